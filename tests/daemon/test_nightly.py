"""The work of a night: silent when nothing is new, and the postmaster hears of what is wrong."""

import email
import json
import os
import time
from email.policy import default

import pytest

from mailsrv import audit, nightly
from mailsrv.doctor import FAIL, OK, WARN, Finding
from mailsrv.runner import spool_of
from mailsrv.store import account, spool
from tests.daemon.test_doctor import damage, deliver

pytestmark = pytest.mark.timeout(400)  # many commands, each a start of the program


@pytest.fixture
def server(daemon, certificate):
    os.chmod(certificate[1], 0o600)
    server = daemon(**{"server.hostname": "localhost"})
    server.accounts.add_alias("postmaster@example.com", ["bo@example.com"])
    return server


def night(server, *words):
    return server.command("nightly", "--no-dns", *words)


def letters(server):
    return [email.message_from_bytes(path.read_bytes(), policy=default) for path in server.files("bo")]


def test_a_sound_server_is_left_in_peace(server):
    deliver(server)
    first = night(server, "--json")  # that nobody keeps the clock may be news
    assert first.returncode == 0, first.stderr
    told = json.loads(first.stdout)["told"]
    assert all(one["what"].startswith("clock: ") for one in told)
    second = night(server)
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert len(server.files("bo")) == len(told)


def test_what_is_wrong_is_told_the_postmaster_each_night_and_pushed(server, imap):
    deliver(server)
    assert server.stop() == 0
    damage(server, "DELETE FROM messages WHERE uid=2")
    server.start()
    client = imap(server.connect("imap"), "bo")
    client.idle()
    for count in (1, 2):
        done = night(server)
        assert done.returncode == 1, done.stderr
        assert "fail  mail: ann@example.com: INBOX: 1 extra" in done.stdout
        assert client.until(b"* %d EXISTS" % count)
    letter = letters(server)[0]
    assert letter["Subject"] == "localhost: something is wrong"
    assert letter["To"] == "postmaster@example.com" and letter["Auto-Submitted"] == "auto-generated"
    text = letter.get_content()
    assert "FAIL  mail: ann@example.com: INBOX: 1 extra" in text and "mailsrv reindex ann@example.com" in text
    quick = night(server, "--quick")
    assert (quick.returncode, quick.stdout) == (0, "")
    assert server.command("doctor", "--no-dns", "--repair").returncode == 0
    assert night(server).returncode == 0
    assert len(server.files("bo")) == 2
    listed = json.loads(server.command("audit", "list", "--action", "nightly", "--json").stdout)
    assert [one["outcome"] for one in listed] == ["failed", "failed", "done", "done"]


def test_a_warning_is_news_once_and_again_when_it_was_gone(server):
    warning, failure, fine = Finding(WARN, "tls: ends in 5 days"), Finding(FAIL, "a port"), Finding(OK, "disk")
    older = Finding(WARN, "tls: ends in 4 days")
    assert nightly.news(server.settings, [warning, failure, fine]) == [warning, failure]
    assert nightly.news(server.settings, [older, failure, fine]) == [failure]
    assert nightly.news(server.settings, [fine]) == []
    assert nightly.news(server.settings, [older]) == [older]


def test_what_was_left_over_is_removed(server, monkeypatch):
    deliver(server)
    left = server.maildir("ann") / "tmp" / "left"
    left.write_text("half a message")
    queue = spool_of(server.settings)
    begun = f"{queue.tmp_dir}/begun.eml"
    with open(begun, "w"):
        pass
    assert nightly.tidy(server.settings) == {"mailboxes": 0, "queue": 0, "audit": 0}, "they may be under way"
    monkeypatch.setattr(account, "SWEEP_SECONDS", -1)
    monkeypatch.setattr(spool, "STALE_SECONDS", -1)
    assert nightly.tidy(server.settings) == {"mailboxes": 1, "queue": 1, "audit": 0}
    assert not left.exists() and not os.path.exists(begun)
    assert len(server.files("ann")) == 3


def test_full_audit_trails_go_when_their_days_are_over(tmp_path):
    for name in ("admin-20250101T000000Z", "logins-20250101T000000Z", "admin-20260101T000000Z", "admin", "logins"):
        (tmp_path / f"{name}.jsonl").write_text("{}\n")
    for name in ("admin-20250101T000000Z", "logins-20250101T000000Z", "admin"):
        os.utime(tmp_path / f"{name}.jsonl", (time.time() - 91 * 86400,) * 2)
    assert audit.prune(str(tmp_path), 90) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "admin-20260101T000000Z.jsonl", "admin.jsonl", "logins.jsonl",
    ]  # fmt: skip
