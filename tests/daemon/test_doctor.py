"""The doctor finds what is wrong, beside a running server and without one, says what to do, and mends what is safe."""

import json
import os
import pwd
import smtplib
import socket
import sqlite3
import time
from contextlib import closing

import pytest

from mailsrv import authority, config
from mailsrv.doctor import machine, services
from mailsrv.doctor import mail as doctor_mail
from mailsrv.runner import spool_of
from mailsrv.store import account
from mailsrv.store.compare import compare
from mailsrv.store.spool import new_id
from tests.conftest import configuration
from tests.daemon.conftest import until


@pytest.fixture
def daemon(daemon, certificate):
    """Servers with the name that their certificate is for, and with a key of their own."""
    os.chmod(certificate[1], 0o600)
    return lambda **changes: daemon(**{"server.hostname": "localhost", **changes})


def doctor(server, *words):
    """(exit code, findings that are not ok)."""
    made = server.command("doctor", "--no-dns", "--json", *words)
    assert made.stdout, made.stderr
    rows = json.loads(made.stdout)
    return made.returncode, [row for row in rows if row["result"] != "ok" and not row["what"].startswith("clock: ")]


def deliver(server, count=3):
    with smtplib.SMTP("127.0.0.1", server.ports["smtp"]) as client:
        for number in range(count):
            client.sendmail("x@elsewhere.org", ["ann@example.com"], f"Subject: {number}\r\n\r\nText.\r\n".encode())


def damage(server, statement, *values):
    """Change the index behind the server's back."""
    home = server.maildir("ann").parent
    with closing(sqlite3.connect(home / "index.sqlite3", isolation_level=None)) as db:
        assert db.execute(statement, values).rowcount > 0


def test_f23_a_sound_server_is_found_sound_while_mail_arrives_and_when_stopped(daemon, imap):
    server = daemon(**{"server.workers": 2})
    deliver(server, 20)
    client = imap(server.connect("imap"))
    client.ok("STORE 1:5 +FLAGS (\\Seen $Work)")
    client.ok("STORE 6 +FLAGS (\\Deleted)")
    client.ok("EXPUNGE")
    assert doctor(server) == (0, [])
    text = server.command("doctor", "--no-dns").stdout
    assert "mail: 6 mailboxes with 19 messages are as their indexes say" in text
    assert server.stop() == 0
    assert doctor(server) == (0, [])


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("DELETE FROM messages WHERE uid=2", "extra"),
        ("UPDATE messages SET flags=flags+1 WHERE uid=2", "flags"),
        ("UPDATE messages SET base='nowhere' WHERE uid=2", "missing"),
        ("UPDATE mailboxes SET uidnext=2 WHERE name='INBOX'", "totals"),
        ("UPDATE mailboxes SET uidvalidity=uidvalidity+1 WHERE name='INBOX'", "identity"),
    ],
)
def test_b14_a_wrong_index_is_found_and_mended_beside_the_server(daemon, imap, statement, kind):
    server = daemon()
    deliver(server)
    with closing(imap(server.connect("imap"))) as client:
        before = client.uids()
    assert server.stop() == 0  # nothing in memory that would hide it
    damage(server, statement)
    server.start()
    code, found = doctor(server)
    assert code == 1
    assert [row["result"] for row in found] == ["fail"]
    assert "ann@example.com: INBOX: " in found[0]["what"] and f"1 {kind}" in found[0]["what"]
    assert "mailsrv reindex ann@example.com" in found[0]["advice"]
    assert found[0]["repair"].startswith("mailsrv doctor --repair would ")
    code, found = doctor(server, "--repair")
    assert code == 0 and found[0]["repair"].startswith("repaired: ")
    assert doctor(server) == (0, [])
    assert set(imap(server.connect("imap")).uids()) == set(before)


def test_a_lost_and_a_damaged_index_are_told(daemon, imap):
    server = daemon()
    deliver(server)
    assert server.stop() == 0
    index = server.maildir("ann").parent / "index.sqlite3"
    for path in index.parent.glob("index.sqlite3*"):
        path.unlink()
    code, found = doctor(server)
    assert (code, [row["what"] for row in found]) == (0, ["mail: ann@example.com: no index"])
    index.write_bytes(b"no database\n" * 1000)
    code, found = doctor(server)
    assert code == 1 and found[0]["what"].startswith("mail: ann@example.com: the index is damaged")
    assert doctor(server, "--repair")[0] == 0
    assert doctor(server) == (0, [])
    server.start()
    assert sorted(imap(server.connect("imap")).uids()) == [1, 2, 3]


def test_a_message_that_was_cut_is_told_and_not_mended(daemon):
    server = daemon()
    deliver(server)
    path = server.files("ann")[0]
    os.truncate(path, 10)
    code, found = doctor(server, "--repair")
    assert code == 1
    assert "1 size" in found[0]["what"] and path.name in found[0]["what"]
    assert "compare with a backup" in found[0]["advice"]
    assert path.stat().st_size == 10


def test_what_another_program_did_is_no_damage(daemon):
    server = daemon()
    deliver(server)
    assert server.stop() == 0
    (server.maildir("ann") / "new" / "1700000000.1.elsewhere").write_bytes(b"Subject: x\n\ny\n")
    code, found = doctor(server)
    assert code == 0
    assert [row["result"] for row in found] == ["warn"]
    assert "another program was there" in found[0]["what"]
    assert doctor(server, "--repair")[0] == 0
    assert doctor(server) == (0, [])


def test_comparing_changes_nothing(daemon):
    server = daemon()
    deliver(server)
    assert server.stop() == 0
    damage(server, "DELETE FROM messages WHERE uid=2")
    home = server.maildir("ann").parent

    def state():
        files = sorted(
            (str(p), p.stat().st_mtime_ns) for p in home.rglob("*") if not p.name.startswith("index.sqlite3-")
        )
        with closing(sqlite3.connect(home / "index.sqlite3")) as db:
            return files, db.execute("SELECT uid FROM messages").fetchall()

    before = state()
    assert [found.differences["extra"] for found in compare(str(home)) if found.name == "INBOX"] == [1]
    assert state() == before


def test_old_temporary_files_are_told_and_removed(daemon, monkeypatch):
    server = daemon()
    deliver(server)
    left = server.maildir("ann") / "tmp" / "left"
    left.write_text("half a message")
    assert doctor(server) == (0, [])  # a delivery may be under way
    old = time.time() - 40 * 3600
    os.utime(left, (old, old))
    assert doctor(server) == (0, [])  # its change of time is new: ctime counts as well
    assert left.exists()
    monkeypatch.setattr(doctor_mail, "SWEEP_SECONDS", -1)
    monkeypatch.setattr(account, "SWEEP_SECONDS", -1)
    [found] = [one for one in doctor_mail.mailboxes(server.settings, lambda name: None) if one.result == "warn"]
    assert found.what == "mail: ann@example.com: 1 temporary files are left over from an interrupted delivery"
    found.repair.run()
    assert not left.exists()


def test_queue_entries_that_cannot_be_read_are_told(daemon):
    server = daemon()
    spool = spool_of(server.settings)
    assert server.stop() == 0
    id = _damaged_entry(spool)
    code, found = doctor(server)
    assert code == 1 and f"{id}: not JSON" in found[0]["what"]
    server.start()
    until(lambda: spool.damaged(), "the runner puts it aside")
    code, found = doctor(server)
    assert code == 1 and "1 damaged entries were put aside" in found[0]["what"]


def _damaged_entry(spool):
    spool.prepare()
    id = new_id()
    for path in (spool.message_path(id), spool.envelope_path(id)):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write("{half")
    return id


def test_modes_are_told_and_mended(daemon):
    server = daemon()
    data = server.settings["server.data_dir"]
    os.chmod(data, 0o755)
    os.chmod(server.settings["tls.key"], 0o644)
    code, found = doctor(server, "--quick")
    assert code == 0
    assert [row["advice"] for row in found] == [f"chmod o-rwx {data}", f"chmod o= {server.settings['tls.key']}"]
    assert doctor(server, "--quick", "--repair")[0] == 0
    assert os.stat(data).st_mode & 0o777 == 0o750
    assert doctor(server, "--quick") == (0, [])
    assert server.command("audit", "list", "--action", "doctor", "--json").stdout.count('"action"') == 1  # the repair


def test_owners_are_told_and_mended(daemon):
    server = daemon()
    deliver(server, 1)
    assert os.getuid() == 0, "only root can give files away"
    path = server.files("ann")[0]
    os.chown(path, 65534, -1)
    code, found = doctor(server, "--quick")
    assert code == 1
    assert f"1 files or directories of {server.settings['server.data_dir']} do not belong to root" in found[0]["what"]
    assert str(path) in found[0]["what"]
    assert doctor(server, "--quick", "--repair")[0] == 0
    assert os.stat(path).st_uid == 0


def test_s26_owners_are_mended_in_the_directory_alone(tmp_path, monkeypatch):
    """Whoever took over the server's user must not have root give away what is elsewhere."""
    assert os.getuid() == 0, "only root can give files away"
    data, outside = tmp_path / "data", tmp_path / "outside"
    for directory in (data / "mail", data / "swapped", outside):
        directory.mkdir(parents=True)
    for path in (data / "mail" / "a", data / "swapped" / "shadow", outside / "shadow", outside / "passwd"):
        path.write_text("x")
    settings = config.parse(json.dumps({"server": {"data_dir": str(data), "user": "nobody"}}))
    (finding,) = machine.owners(settings)
    assert finding.repair is not None
    (data / "swapped").rename(data / "before")  # after the look, before the repair
    (data / "swapped").symlink_to(outside)
    (data / "second").hardlink_to(outside / "passwd")
    monkeypatch.setattr(machine, "_foreign_links", lambda: True)
    with pytest.raises(OSError, match="1 files have a second name elsewhere"):
        finding.repair.run()
    assert [path.stat().st_uid for path in (outside / "shadow", outside / "passwd")] == [0, 0]
    nobody = pwd.getpwnam("nobody").pw_uid
    given = (data, data / "mail" / "a", data / "before" / "shadow", data / "swapped")
    assert [path.lstat().st_uid for path in given] == [nobody] * 4


def test_a_certificate_of_another_name_and_one_that_ended(tmp_path, daemon, monkeypatch):
    server = daemon()
    text = (tmp_path / "mailsrv.yaml").read_text()
    authority.make(str(tmp_path), "other.example.net", ["127.0.0.1"])
    mine = text.replace(server.settings["tls.certificate"], f"{tmp_path}/server.pem")
    (tmp_path / "mailsrv.yaml").write_text(mine.replace(server.settings["tls.key"], f"{tmp_path}/server.key"))
    code, found = doctor(server, "--quick")
    assert code == 0
    assert found[0]["what"].startswith("tls: no certificate is for localhost (they are for ")
    assert "other.example.net" in found[0]["what"]
    monkeypatch.setattr(authority, "SERVER_DAYS", 0)
    (tmp_path / "x").mkdir()
    authority.make(str(tmp_path / "x"), "localhost", [])
    (tmp_path / "mailsrv.yaml").write_text(
        text.replace(server.settings["tls.certificate"], f"{tmp_path}/x/server.pem").replace(
            server.settings["tls.key"], f"{tmp_path}/x/server.key"
        )
    )
    code, found = doctor(server, "--quick")
    assert code == 1 and " ended 1 days ago" in found[0]["what"]


def test_whose_a_port_is():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert f"(pid {os.getpid()})" in services.listener_of(listener.getsockname()[1])


def test_clock_disk_and_files(tmp_path, monkeypatch, certificate):
    settings = configuration(tmp_path, certificate, {})
    os.makedirs(settings["server.data_dir"])
    assert next(finding.result for finding in machine.disk(settings)) in ("ok", "warn")
    monkeypatch.setattr(machine, "LOW_DISK_BYTES", 1 << 60)
    monkeypatch.setattr(machine, "LOW_FILES", 1 << 60)
    assert {finding.result for finding in machine.disk(settings)} == {"warn"}
    (clock,) = machine.clock(settings)
    assert clock.result in ("ok", "warn")
    with open(settings.accounts_path, "w"):
        pass
    os.utime(settings.accounts_path, (time.time() + 7200, time.time() + 7200))
    (clock,) = machine.clock(settings)
    assert clock.result == "fail" and "7200 seconds later" in clock.what
    monkeypatch.setattr(machine.time, "time", lambda: 86_400.0)
    (clock,) = machine.clock(settings)
    assert clock.result == "fail" and "1970-01-02" in clock.what
