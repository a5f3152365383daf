"""The audit trail: no changing command and no login that it does not know; no secret in it."""

import argparse
import json
import os
import stat

import pytest

from mailsrv import audit, cli
from mailsrv.audit import Query, Trail
from mailsrv.mail import logins as module
from mailsrv.mail.logins import Logins
from tests.conftest import PASSWORD, configuration

SECRET = "a very good secret"


def entries(settings, **query):
    return list(audit.read(audit.directory_of(settings), Query(**query)))


def commands(parser, words=()):
    """(name, parser) of every command."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield " ".join(words), parser
    for group in groups:
        for name, below in group.choices.items():
            yield from commands(below, (*words, name))


def test_f16_every_command_is_audited_or_known_to_read_only():
    """A new command is audited unless its verb or its author says that it changes nothing; those are named here."""
    found = dict(commands(cli.parser()))
    assert {"user add", "queue list", "doctor", "limits clear", "audit list"} <= set(found)
    defaults = {name: parser._defaults for name, parser in found.items()}
    assert {name: values["full_name"] for name, values in defaults.items()} == {name: name for name in found}
    said_by_author = {
        name for name, values in defaults.items() if values["reads"] and name.split()[-1] not in cli.common.READING
    }
    # serve is in the log; a quickstart is a server of its own; doctor is audited when it repairs; others only print.
    assert said_by_author - {"serve", "quickstart", "doctor", "dns generate", "preflight"} == set()
    changing = {name for name, values in defaults.items() if not values["reads"]}
    assert {
        "user add",
        "user passwd",
        "user remove",
        "user disable",
        "user quota",
        "user import",
        "domain add",
    } <= changing
    assert {"alias add", "alias remove", "domain catch-all", "reindex", "kick", "limits clear"} <= changing
    assert not {name for name in changing if name.split()[-1] in ("list", "show", "check")}


def test_f16_what_an_administrator_does_is_kept_with_who_and_without_secrets(daemon, monkeypatch):
    server = daemon()
    monkeypatch.setenv("SUDO_USER", "bea")
    words = ("user", "add", "dan@example.com", "--password-stdin")
    assert server.command(*words, "--quota", "1G", input=SECRET).returncode == 0
    assert server.command("alias", "add", "all@example.com", "ann@example.com", "bo@example.com").returncode == 0
    assert server.command(*words, input=SECRET).returncode == 1
    assert server.command("user", "list").returncode == 0
    made, alias, failed = entries(server.settings)
    assert made["action"] == "user add"
    assert made["target"] == "dan@example.com"
    assert made["outcome"] == "done"
    assert made["details"] == {"password_stdin": True, "quota": 1024**3}
    assert made["by"]["uid"] == os.getuid() and made["by"]["sudo_user"] == "bea"
    assert alias["target"] == "all@example.com"
    assert alias["details"] == {"targets": ["ann@example.com", "bo@example.com"]}
    assert failed["outcome"] == "failed"
    assert failed["error"] == "There is a user dan@example.com already"
    directory = audit.directory_of(server.settings)
    path = f"{directory}/admin.jsonl"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600 and stat.S_IMODE(os.stat(directory).st_mode) == 0o700
    with open(path) as file:
        assert SECRET not in file.read()
    listed = json.loads(server.command("audit", "list", "--json", "--user", "dan@example.com").stdout)
    assert [entry["outcome"] for entry in listed] == ["done", "failed"]
    assert len(json.loads(server.command("audit", "list", "--json", "--user", "bea").stdout)) == 3
    assert len(json.loads(server.command("audit", "list", "--json", "--action", "alias").stdout)) == 1
    assert json.loads(server.command("audit", "list", "--json", "--until", "2020-01-01").stdout) == []
    assert len(json.loads(server.command("audit", "list", "--json", "--since", "1h", "--last", "2").stdout)) == 2
    shown = server.command("audit", "list").stdout.splitlines()
    assert shown[0].split() == ["TIME", "ACTION", "OUTCOME", "BY", "TARGET", "MORE"]
    assert "(bea)" in shown[1] and "password_stdin=True" in shown[1]
    wrong = server.command("audit", "list", "--since", "yesterday")
    assert wrong.returncode == 2 and "expected a date such as" in wrong.stderr


def test_f16_a_trail_that_cannot_be_written_is_said_and_stops_nobody(tmp_path, certificate):
    settings = configuration(tmp_path, certificate, {})
    os.makedirs(settings["server.data_dir"])
    (tmp_path / "data" / "audit").write_text("a file where a directory should be")
    assert cli.main(["domain", "add", "example.net", "--config", settings.path]) == 0
    assert cli.main(["domain", "list", "--config", settings.path]) == 0


def test_an_interrupted_command_and_a_bug_are_kept_too(tmp_path, certificate, monkeypatch):
    settings = configuration(tmp_path, certificate, {})

    def broken(*_, **__):
        raise ZeroDivisionError("a bug")

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    words = ["domain", "add", "example.net", "--config", settings.path]
    os.makedirs(settings["server.data_dir"])
    monkeypatch.setattr(cli.people, "open_accounts", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main(words)
    monkeypatch.setattr(cli.people, "open_accounts", interrupted)
    assert cli.main(words) == 1
    assert [entry["error"] for entry in entries(settings)] == ["ZeroDivisionError: a bug", "interrupted"]


def test_f16_logins_are_kept_once_a_day_and_summed_up(daemon, imap):
    server = daemon(**{"server.workers": 2})
    for _ in range(6):
        imap(server.connect("imap")).ok("LOGOUT")
    for _ in range(2):
        client = imap(server.connect("imap"), None)
        client.until(client.send('LOGIN mallory@example.com "guess guess"').encode())
    assert server.stop() == 0
    found = entries(server.settings, user="ann@example.com")
    firsts = [entry for entry in found if entry["action"] == "login"]
    sums = [entry for entry in found if entry["action"] == "login repeated"]
    assert 1 <= len(firsts) <= 2  # one of each worker
    assert len(firsts) + sum(entry["count"] for entry in sums) == 6
    assert all((entry["peer"], entry["service"]) == ("127.0.0.1", "imap") for entry in firsts + sums)
    assert all(entry["since"] <= entry["until"] for entry in sums)
    failed = entries(server.settings, action="login failed")
    assert failed[0]["user"] == "mallory@example.com" and failed[0]["peer"] == "127.0.0.1"
    for entry in os.listdir(audit.directory_of(server.settings)):
        with open(f"{audit.directory_of(server.settings)}/{entry}") as file:
            text = file.read()
        assert PASSWORD not in text and "guess guess" not in text


class Clock:
    now = 1_800_000_000.0

    def __call__(self):
        return self.now


def test_the_record_of_logins_is_bounded_and_loses_no_count(monkeypatch):
    monkeypatch.setattr(module, "MOST_KEYS", 50)
    clock, kept = Clock(), []
    logins = Logins(kept.extend, clock=clock)
    for round in range(3):
        for number in range(200):
            clock.now += 1
            logins.succeeded(f"{number % 40}@example.com", "192.0.2.7", "imap")
            logins.failed(f"whoever {round} {number}", f"10.{number % 100}.0.{round}", "imap")
    assert len(logins._seen) <= 50
    logins.close()
    total = sum(entry.get("count", 1) for entry in kept)
    assert total == 3 * 400
    assert {entry["action"] for entry in kept} <= {"login", "login repeated", "login failed", "login failed repeated"}


def test_a_day_later_a_login_is_a_first_one_again():
    clock, kept = Clock(), []
    logins = Logins(kept.extend, clock=clock)
    for hours in (0, 1, 2, 25, 26):
        clock.now = Clock.now + hours * 3600
        logins.succeeded("ann@example.com", "192.0.2.7", "imap")
    assert [(entry["action"], entry.get("count")) for entry in kept] == [
        ("login", None), ("login repeated", 2), ("login", None),
    ]  # fmt: skip


# ------------------------------------------------------------------ the files


def test_entries_of_many_writers_are_whole_also_when_files_are_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(audit, "ROTATE_BYTES", 20_000)
    directory = str(tmp_path / "audit")
    children = []
    for writer in range(4):
        pid = os.fork()
        if not pid:
            try:
                trail = Trail(directory, "admin", 365)
                for number in range(200):
                    trail.append([{"time": "t", "action": "a", "target": f"{writer}-{number}", "text": "x" * 200}])
                os._exit(0)
            finally:
                os._exit(1)
        children.append(pid)
    assert all(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0 for pid in children)
    found = list(audit.read(directory, Query()))
    assert {entry["target"] for entry in found} == {f"{w}-{n}" for w in range(4) for n in range(200)}
    assert len(found) == 800
    assert len(os.listdir(directory)) > 5


def test_old_files_go_and_a_torn_line_harms_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(audit, "ROTATE_BYTES", 100)
    directory = tmp_path / "audit"
    trail = Trail(str(directory), "admin", 30)
    trail.append([{"time": "2026-01-01T00:00:00Z", "action": "one", "text": "x" * 100}])
    old = directory / "admin-20200101T000000Z.jsonl"
    old.write_text('{"time": "2020", "action": "zero"}\n')
    os.utime(old, (1_500_000_000, 1_500_000_000))
    trail.append([{"time": "2026-01-02T00:00:00Z", "action": "two"}])
    assert not old.exists()
    with open(trail.path, "a") as file:
        file.write('{"time": "2026-01-03", "act\n')
    trail.append([{"time": "2026-01-04T00:00:00Z", "action": "three"}])
    assert [entry["action"] for entry in audit.read(str(directory), Query())] == ["one", "two", "three"]


def test_a_link_in_its_place_is_not_followed(tmp_path):
    (tmp_path / "audit").mkdir()
    victim = tmp_path / "victim"
    victim.write_text("mine\n")
    os.symlink(victim, tmp_path / "audit" / "admin.jsonl")
    with pytest.raises(OSError):
        Trail(str(tmp_path / "audit"), "admin", 365).append([{"time": "t"}])
    assert victim.read_text() == "mine\n"
