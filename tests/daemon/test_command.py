"""The command line on a running server: what it changes is true at once; what it says is of use."""

import json
import os
import pty
import re
import signal
import smtplib
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from mailsrv import config
from mailsrv.mail.accounts import Accounts
from tests.conftest import PASSWORD, configuration
from tests.daemon.conftest import ROOT, SECONDS, until


def mailsrv(*words, **more):
    return subprocess.run(
        [sys.executable, "-m", "mailsrv", *words], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
        **more,
    )  # fmt: skip


def accepts(server, address):
    with smtplib.SMTP("127.0.0.1", server.ports["smtp"]) as client:
        client.ehlo()
        client.mail("x@elsewhere.org")
        return client.rcpt(address)[0]


def logs_in(imap, server, user, password):
    client = imap(server.connect("imap"), None)
    tag = client.send(f'LOGIN {user} "{password}"').encode()
    return client.until(tag)[-1].startswith(tag + b" OK")


def test_f12_users_domains_and_aliases_are_effective_at_once(daemon, imap):
    server = daemon()
    assert accepts(server, "dan@example.com") == 550
    added = server.command(
        "user", "add", "dan@example.com", "--password-stdin", "--quota", "1G", input="a good secret\n"
    )
    assert added.returncode == 0, added.stderr
    assert accepts(server, "dan@example.com") == 250
    assert logs_in(imap, server, "dan@example.com", "a good secret")
    changed = server.command("user", "passwd", "dan@example.com", "--password-stdin", input="another secret\n")
    assert changed.returncode == 0
    assert logs_in(imap, server, "dan@example.com", "another secret")
    assert not logs_in(imap, server, "dan@example.com", "a good secret")
    assert server.command("user", "disable", "dan@example.com").returncode == 0
    assert accepts(server, "dan@example.com") == 550
    assert not logs_in(imap, server, "dan@example.com", "another secret")
    assert server.command("user", "enable", "dan@example.com").returncode == 0
    assert accepts(server, "dan@example.com") == 250
    assert server.command("alias", "add", "all@example.com", "ann@example.com", "bo@example.com").returncode == 0
    assert accepts(server, "all@example.com") == 250
    listed = json.loads(server.command("alias", "list", "--json").stdout)
    assert listed == [{"address": "all@example.com", "targets": ["ann@example.com", "bo@example.com"], "forwarded": []}]
    assert server.command("alias", "add", "all@example.com", "Dee@elsewhere.org").returncode == 0
    shown = server.command("alias", "list").stdout.splitlines()
    assert [line.split() for line in shown] == [
        ["ADDRESS", "TARGETS", "FORWARDED"],
        ["all@example.com", "Dee@elsewhere.org,", "ann@example.com,", "bo@example.com", "Dee@elsewhere.org"],
    ]
    assert server.command("alias", "remove", "all@example.com", "dee@elsewhere.org").returncode == 0
    assert accepts(server, "all@example.com") == 250
    assert server.command("alias", "remove", "all@example.com").returncode == 0
    assert accepts(server, "all@example.com") == 550
    assert accepts(server, "x@example.net") == 550
    assert server.command("domain", "add", "Example.NET").returncode == 0
    assert server.command("domain", "catch-all", "example.net", "ann@example.com").returncode == 0
    assert accepts(server, "whoever@example.net") == 250
    assert server.command("domain", "catch-all", "example.net", "none").returncode == 0
    assert accepts(server, "whoever@example.net") == 550
    assert server.command("domain", "remove", "example.net").returncode == 0
    assert [row["domain"] for row in json.loads(server.command("domain", "list", "--json").stdout)] == ["example.com"]
    users = {row["address"]: row for row in json.loads(server.command("user", "list", "--json").stdout)}
    assert users["dan@example.com"]["quota_bytes"] == 1024**3
    assert users["dan@example.com"]["enabled"] is True
    assert "dan@example.com  enabled  1.0 GiB" in server.command("user", "list").stdout
    removed = server.command("user", "remove", "dan@example.com")
    assert removed.returncode == 0
    assert "the mail stays in" in removed.stderr
    assert accepts(server, "dan@example.com") == 550


def test_users_are_imported_all_or_none(daemon, imap, tmp_path):
    server = daemon()
    hashed = server.accounts.users()[0].hash
    lists = tmp_path / "users"
    lists.write_text(f"# name:password\neve:open sesame\nfay@example.com:{hashed}\n\n")
    done = server.command("user", "import", str(lists), "--domain", "example.com")
    assert done.returncode == 0, done.stderr
    assert "2 users imported" in done.stderr
    assert logs_in(imap, server, "eve@example.com", "open sesame")
    assert logs_in(imap, server, "fay@example.com", PASSWORD)
    lists.write_text("gil@example.com:secret one\nhal@nowhere.org:secret two\n")
    refused = server.command("user", "import", str(lists))
    assert refused.returncode == 1
    assert f"{lists}:2: nowhere.org is not a domain of this server" in refused.stderr
    assert accepts(server, "gil@example.com") == 550


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["user", "add", "ann@example.com", "--password-stdin"], "There is a user ann@example.com already"),
        (["user", "add", "zoe@nowhere.org", "--password-stdin"], "mailsrv domain add nowhere.org"),
        (["user", "add", "zoe", "--password-stdin"], "expected name@domain"),
        (["user", "add", "zoe@example.com"], "use --password-stdin"),
        (["user", "passwd", "zoe@example.com", "--password-stdin"], "There is no user zoe@example.com"),
        (["alias", "add", "a@elsewhere.org", "ann@example.com"], "mailsrv domain add elsewhere.org"),
        (
            ["alias", "remove", "team@example.com", "x@elsewhere.org"],
            "team@example.com does not lead to x@elsewhere.org",
        ),
        (["domain", "add", "not a domain"], "Not a domain name"),
        (["domain", "remove", "example.com"], "still has users"),
    ],
)
def test_what_cannot_be_done_says_why(daemon, words, says):
    server = daemon()
    failed = server.command(*words, input="a good secret\n")
    assert failed.returncode == 1
    assert says in failed.stderr
    assert "Traceback" not in failed.stderr


def test_misuse_is_two_and_short_passwords_are_refused(daemon):
    server = daemon()
    assert server.command("user", "frobnicate").returncode == 2
    assert server.command("user", "quota", "ann@example.com", "lots").returncode == 2
    short = server.command("user", "passwd", "ann@example.com", "--password-stdin", input="short\n")
    assert short.returncode == 1
    assert "8 to 128 characters" in short.stderr


def test_passwords_are_asked_for_at_a_terminal(daemon, imap):
    server = daemon()
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execv(
            sys.executable,
            [sys.executable, "-m", "mailsrv", "user", "passwd", "ann@example.com", "-c", server.settings.path],
        )
    shown = b""
    for question in (b"New password for ann@example.com: ", b"Again: "):
        while question not in shown:
            shown += os.read(terminal, 1024)
        os.write(terminal, b"typed by hand\n")
    try:
        while data := os.read(terminal, 1024):
            shown += data
    except OSError:
        pass  # the other end is closed
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, shown
    os.close(terminal)
    assert b"typed by hand" not in shown
    assert logs_in(imap, server, "ann@example.com", "typed by hand")


def test_mailboxes_are_listed_and_reindexed(daemon):
    server = daemon()
    with smtplib.SMTP("127.0.0.1", server.ports["smtp"]) as client:
        client.sendmail("x@elsewhere.org", ["ann@example.com"], "Subject: One\r\n\r\nText.\r\n")
    rows = json.loads(server.command("mailbox", "list", "ann@example.com", "--json").stdout)
    inbox = next(row for row in rows if row["mailbox"] == "INBOX")
    assert (inbox["messages"], inbox["unseen"], inbox["uidnext"]) == (1, 1, 2)
    assert next(row for row in rows if row["mailbox"] == "Sent")["special_use"] == "\\Sent"
    done = server.command("reindex", "ann@example.com")
    assert done.returncode == 0
    assert re.search(r"ann@example.com +6 +1\n", done.stdout)
    again = json.loads(server.command("mailbox", "list", "ann@example.com", "--json").stdout)
    for before, after in zip(rows, again, strict=True):
        assert after.pop("uidnext") >= before.pop("uidnext")  # never less, and beyond what may have been shown
        assert after == before


def test_doctor_finds_what_is_wrong(daemon, tmp_path):
    server = daemon()
    fine = server.command("doctor", "--no-dns", "--json")
    found = {row["what"]: row for row in json.loads(fine.stdout)}
    assert fine.returncode == 0, fine.stdout
    assert found[f"imaps: 127.0.0.1:{server.ports['imaps']} answers"]["result"] == "ok"
    assert found["accounts: 1 domains, 3 users"]["result"] == "ok"
    assert server.stop() == 0
    key = tmp_path / "other.key"
    key.write_text("no key\n")
    text = (tmp_path / "mailsrv.yaml").read_text()
    (tmp_path / "mailsrv.yaml").write_text(text.replace(server.settings["tls.key"], str(key)))
    with socket.create_server(("127.0.0.1", server.ports["smtp"])):
        wrong = server.command("doctor", "--no-dns")
    assert wrong.returncode == 1
    assert "fail  tls: tls.certificate" in wrong.stdout
    assert f"fail  smtp: 127.0.0.1:{server.ports['smtp']} is another program's" in wrong.stdout


@pytest.mark.parametrize("workers", [1, 2])
def test_accounts_of_a_newer_version_are_refused_before_anything_starts(tmp_path, workers):
    settings = configuration(tmp_path, None, {"server.workers": workers, "log.file": str(tmp_path / "log")})
    Accounts(settings.accounts_path, settings.mail_root).close()
    with closing(sqlite3.connect(settings.accounts_path)) as db:
        db.execute("PRAGMA user_version=2")
    says = f"mailsrv: {settings.accounts_path} has schema version 2; this program knows 1: a newer mailsrv wrote it\n"
    for words in (["check"], ["serve"], ["serve", "--foreground"]):
        refused = mailsrv(*words, "--config", settings.path)
        assert (refused.returncode, refused.stderr) == (1, says), words
    assert not (tmp_path / "log").exists(), "nothing began"


def test_whoever_gives_a_command_nobody_else_can_read_what_it_writes(tmp_path):
    settings = configuration(tmp_path, None, {})
    data = tmp_path / "data"
    data.mkdir()
    data.chmod(0o755)
    for words in (
        ["domain", "add", "example.org"],
        ["user", "add", "ann@example.org", "--password-stdin"],
        ["reindex"],
    ):
        done = mailsrv(*words, "--config", settings.path, input="correct horse\n", umask=0o022)
        assert done.returncode == 0, done.stderr
    quick = [sys.executable, "-c", "from mailsrv import quickstart; quickstart.prepare('%s', 20000)" % (tmp_path / "q")]
    subprocess.run(quick, cwd=ROOT, check=True, timeout=120, umask=0o022)
    written = [path for top in (data, tmp_path / "q") for path in top.rglob("*") if path != data]
    assert {"accounts.sqlite3", "index.sqlite3", "passwords.json", "server.key"} <= {path.name for path in written}
    assert not [path for path in written if path.stat().st_mode & 0o077 and path.name not in ("ca.pem", "server.pem")]


def test_check_names_file_line_expectation_and_nearest_name(tmp_path):
    path = tmp_path / "mailsrv.yaml"
    path.write_text("smtp:\n  lissen: []\nimap:\n  heartbeat_seconds: soon\nimpas:\n  listen: []\n")
    checked = mailsrv("check", "--config", str(path))
    assert checked.returncode == 1
    assert checked.stderr.splitlines() == [
        f"mailsrv: {path}:2: unknown setting smtp.lissen; did you mean smtp.listen?",
        f"mailsrv: {path}:4: imap.heartbeat_seconds: expected a number of seconds from 1 to 1740, found 'soon'",
        f"mailsrv: {path}:5: unknown section impas; did you mean imaps?",
    ]
    missing = mailsrv("serve", "--config", str(tmp_path / "none.yaml"))
    assert missing.returncode == 1
    assert "there is no such file; try `mailsrv quickstart`" in missing.stderr
    assert mailsrv("config", "sample").stdout == config.sample()
    assert mailsrv("config", "reference").stdout == config.reference()
    assert re.fullmatch(r"mailsrv \d+\.\d+\.\d+\n", mailsrv("version").stdout)


def test_quickstart_check_prints_both_latencies():
    checked = mailsrv("quickstart", "--check")
    assert checked.returncode == 0, checked.stderr
    assert re.search(r"^  250 -> EXISTS +-?\d+\.\d{3} ms$", checked.stdout, re.MULTILINE)
    assert re.search(r"^  end of data -> EXISTS +\d+\.\d{3} ms$", checked.stdout, re.MULTILINE)


def free_base():
    for base in range(21000, 60000, 1117):
        try:
            for offset in (25, 143, 465, 587, 993):
                socket.create_server(("127.0.0.1", base + offset)).close()
            return base
        except OSError:
            continue
    raise AssertionError("no free ports")


def test_quickstart_shows_deliveries_and_pushes_and_keeps_the_mail(tmp_path):
    base = free_base()
    words = [sys.executable, "-m", "mailsrv", "quickstart", "--dir", str(tmp_path / "q"), "--base-port", str(base)]
    for turn in (1, 2):
        with (tmp_path / f"out{turn}").open("w") as out:
            process = subprocess.Popen(words, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)

        def shown(turn=turn):
            return (tmp_path / f"out{turn}").read_text()

        try:
            until(lambda: "Ctrl-C stops the server" in shown(), "the welcome")
            command = re.search(r"^  bin/mailsrv (status --config .*)$", shown(), re.MULTILINE)[1].split()
            assert "mailsrv is running" in mailsrv(*command).stdout
            second = mailsrv("quickstart", "--dir", str(tmp_path / "q"), "--base-port", str(base + 1))
            assert "for another one: --dir DIR --base-port N" in second.stderr
            assert f':{base + 143}"' in (tmp_path / "q" / "mailsrv.yaml").read_text(), "as it was"
            with socket.create_connection(("127.0.0.1", base + 143)) as watcher, watcher.makefile("rb") as lines:
                assert b"LOGINDISABLED" in lines.readline()
            password = re.search(r"ann@example.test +password (\S+)", shown())[1]
            done = subprocess.run(
                ["curl", "-sS", "--cacert", str(tmp_path / "q/tls/ca.pem"), "--user", f"ann@example.test:{password}",
                 "--mail-from", "ann@example.test", "--mail-rcpt", "bo@example.test", "--upload-file", "-",
                 f"smtps://localhost:{base + 465}"],
                input=b"Subject: Hello\r\n\r\nHello.\r\n", capture_output=True, timeout=120, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            line = until(lambda: re.search(r"delivered  to bo@example.test  uid (\d+), .*", shown()), "the delivery")
            assert int(line[1]) == turn
            assert re.search(r"durable after \d+\.\d+ ms, committed \d+\.\d+ ms", line[0])
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(SECONDS) == 0
        assert "the mail is kept" in shown()
        assert "Traceback" not in shown()
