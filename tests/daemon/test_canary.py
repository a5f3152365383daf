"""The message to ourselves: seen by every worker, hidden from everybody, leaving nothing behind, missed if it fails."""

import smtplib
from pathlib import Path

from tests.daemon.conftest import until
from tests.daemon.test_status import alarms_of, answer, both_workers


def canary_of(server):
    return answer(server, "status")["canary"]


def files(server):
    return [
        path
        for sub in ("new", "cur")
        for path in (Path(server.settings["server.data_dir"]) / "canary/Maildir" / sub).iterdir()
    ]


def test_every_worker_is_told_and_the_mailbox_does_not_grow(daemon, imap):
    server = daemon(**{"server.workers": 2, "canary.seconds": 0.3, "log.level": "debug"})
    both_workers(server)
    first = until(lambda: now if (now := canary_of(server)) and now["seen_at"] else None, "seen once")
    later = until(lambda: now if (now := canary_of(server))["seen_at"] > first["seen_at"] + 1 else None, "again")
    assert later["problems"] == {}
    assert 0 < later["last_seconds"] < 60
    until(lambda: len(files(server)) <= 2, "the old ones are removed")
    status = server.command("status").stdout
    assert "a message to ourselves was pushed within " in status
    # Nobody sees it: no user, no address, no line in the log for each, no delivery in what is counted.
    assert "canary" not in server.command("user", "list").stdout
    with smtplib.SMTP("127.0.0.1", server.ports["smtp"]) as client:
        client.helo("x.test")
        client.mail("x@elsewhere.org")
        for address in ("canary@localhost", "canary@example.com", "canary"):
            assert client.rcpt(address)[0] >= 500
    refused = imap(server.connect("imap"), user=None)
    refused.send('LOGIN canary@localhost ""')
    assert refused.until(b"a1 ")[-1].startswith(b"a1 NO")
    text = server.log.read_text()
    assert "delivered" not in text
    assert "pushed" not in text
    assert answer(server, "status")["push"]["count"] == 0
    assert server.stop() == 0


def test_a_message_that_cannot_be_stored_is_an_alarm_until_it_can(daemon):
    server = daemon(**{"canary.seconds": 0.3})
    until(lambda: canary_of(server)["seen_at"], "seen once")
    home = Path(server.settings["server.data_dir"]) / "canary"
    home.rename(home.with_name("away"))
    home.write_text("in the way")
    found = until(lambda: now if (now := answer(server, "status"))["canary"]["problems"] else None, "an alarm")
    said = alarms_of(found)
    assert said and [text for text in said if text.startswith("Canary, worker-0: ")] == said
    assert "ALARM  Canary, worker-0: " in server.command("status").stdout
    until(lambda: " error canary-failed " in server.log.read_text(), "the log tells")
    home.unlink()
    home.with_name("away").rename(home)
    until(lambda: not canary_of(server)["problems"], "well again")
    until(lambda: " warning canary-is-well-again" in server.log.read_text(), "the log tells")
    assert server.stop() == 0


def test_a_worker_that_is_not_told_knows_it(serve, monkeypatch):
    """The registry forgets to wake: what a user would see as mail that does not come."""
    import gevent

    from mailsrv.mail import canary

    monkeypatch.setattr(canary, "PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(canary, "FIRST_SECONDS", 0.0)
    serving = serve(**{"canary.seconds": 0.2})
    watched = serving.server.canary
    with gevent.Timeout(60):
        while not watched.seen_at:
            gevent.sleep(0.01)
        monkeypatch.setattr(type(serving.server.registry), "_wake", lambda self, mailbox: None)
        while "was not announced within" not in watched.problem:
            gevent.sleep(0.01)
        while "no message was announced" not in watched.problem:
            gevent.sleep(0.01)
        monkeypatch.undo()
        while watched.problem:
            gevent.sleep(0.01)


def test_without_it_nothing_is_made(daemon):
    server = daemon()
    assert canary_of(server) is None
    assert not (Path(server.settings["server.data_dir"]) / "canary").exists()
