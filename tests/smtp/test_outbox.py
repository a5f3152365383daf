"""Waiting mail over IMAP: shown to its sender as it changes, cancelled by deleting it; and mail that leaves later."""

import re
import time

import gevent
import pytest

from mailsrv import runner
from mailsrv.mail import queue
from mailsrv.store.entry import CANCELLED
from mailsrv.values import Address

from ..conftest import until
from .elsewhere import queue_files, runner_tell, send


def fetched(client, mailbox="Outbox"):
    """[(flags, text)] of a mailbox; None without one."""
    if client.select(mailbox, readonly=True)[0] != "OK":
        return None
    found = (
        client.uid("FETCH", "1:*", "(FLAGS BODY.PEEK[])")[1] if client.untagged_responses["EXISTS"] != [b"0"] else []
    )
    texts = [part for part in found if isinstance(part, tuple)]
    return [(set(re.search(rb"FLAGS \(([^)]*)\)", b"".join(_flat(found)))[1].split()), text) for _, text in texts]


def _flat(parts):
    for part in parts:
        yield from part if isinstance(part, tuple) else [part]


def entry(server):
    spool = runner.spool_of(server.settings)
    [path] = (server.directory / "queue").glob("??/*.json")
    return spool.load(path.stem)


def test_deferred_mail_is_shown_with_its_state_and_goes_when_it_is_sent(serve, dial, world, imap):
    world.replies = {"bo@elsewhere.org": (451, "4.2.0", "Not now")}
    server = serve()
    id = send(dial(server, "submissions", user="ann"), "bo@elsewhere.org")
    client = imap(server)
    [(flags, text)] = until(lambda: fetched(client), "shown")
    assert {b"$SubmitPending", b"$Deferred", b"\\Seen"} <= flags
    assert text.startswith(b"X-Mailsrv-Queue-Id: " + id.encode() + b"\r\nReceived: from client.example.net")
    assert text.endswith(b"\r\n\r\nText.\r\n")
    assert b'"Outbox"' in b"".join(client.lsub()[1]) or b" Outbox" in b"".join(client.lsub()[1])
    world.replies = {}
    runner.spool_of(server.settings).change(id, lambda one: one.delay(one.recipients[0], 0.0, one.written) is None)
    runner_tell(server, id)
    until(lambda: queue_files(server) == [], "sent")
    until(lambda: fetched(client) == [], "no longer shown")


def test_mail_whose_first_attempt_takes_long_is_shown_meanwhile(serve, dial, world, imap, monkeypatch):
    monkeypatch.setattr(queue, "SLOW_SECONDS", 0.2)
    world.open = False  # the other server says nothing
    server = serve()
    send(dial(server, "submissions", user="ann"), "bo@elsewhere.org")
    client = imap(server)
    [(flags, text)] = until(lambda: fetched(client), "shown")
    assert b"$SubmitPending" in flags and b"$Deferred" not in flags and text.endswith(b"\r\n\r\nText.\r\n")
    world.open = True
    until(lambda: queue_files(server) == [], "sent")
    until(lambda: fetched(client) == [], "no longer shown")


def test_deleted_while_the_first_attempt_goes_on_it_is_not_tried_again(serve, dial, world, imap, monkeypatch):
    monkeypatch.setattr(queue, "SLOW_SECONDS", 0.2)
    world.open, world.replies = False, {"bo@elsewhere.org": (451, "4.2.0", "Not now")}
    server = serve()
    send(dial(server, "submissions", user="ann"), "bo@elsewhere.org")
    client = imap(server)
    until(lambda: fetched(client), "shown")
    until(lambda: entry(server).shown is not None, "remembered")
    client.select("Outbox")
    client.store("1", "+FLAGS", "\\Deleted")
    client.expunge()
    world.open = True
    until(lambda: queue_files(server) == [], "cancelled")
    assert len(world.taken) == 1 and fetched(client) == []


def test_mail_that_leaves_at_once_is_never_shown(serve, dial, world, imap):
    server = serve()
    send(dial(server, "submissions", user="ann"), "bo@elsewhere.org")
    until(lambda: world.taken and queue_files(server) == [], "sent")
    assert fetched(imap(server)) is None  # no mailbox was made


def test_deleting_it_in_the_outbox_cancels_it(serve, dial, world, imap):
    """Not sent any more, gone from the queue, and no report: its owner knows."""
    server = serve(**{"submission.undo_seconds": 3000})
    send(dial(server, "submissions", user="ann"), "bo@elsewhere.org", "bo@example.com")
    client = imap(server)
    [(flags, _)] = until(lambda: fetched(client), "shown")
    assert {b"$SubmitPending", b"$Scheduled"} <= flags
    until(lambda: entry(server).shown is not None, "remembered")
    client.select("Outbox")
    client.store("1", "+FLAGS", "\\Deleted")
    assert queue_files(server) != []  # marked is not yet removed
    client.expunge()
    until(lambda: queue_files(server) == [], "cancelled")
    assert world.taken == [] and not list((server.maildir("bo") / "new").glob("*"))
    assert fetched(client, "INBOX") == []


def test_undo_holds_local_recipients_too_and_all_leave_together(serve, dial, world, imap, inbox):
    server = serve(**{"submission.undo_seconds": 3})
    begun = time.time()
    send(dial(server, "submissions", user="ann"), "bo@elsewhere.org", "cy@example.com")
    assert inbox(server, "cy") == [] and world.taken == []
    until(lambda: inbox(server, "cy") and world.taken, "left")
    assert time.time() - begun >= 3
    [text] = inbox(server, "cy")
    assert text.startswith(b"Return-Path: <ann@example.com>\r\nDelivered-To: cy@example.com\r\nReceived: ")
    until(lambda: queue_files(server) == [], "forgotten")
    client = imap(server)
    until(lambda: fetched(client) in ([], None), "no longer shown")


def test_a_lost_outbox_cancels_nothing(serve, dial, world, imap):
    server = serve(**{"submission.undo_seconds": 2})
    send(dial(server, "submissions", user="ann"), "bo@elsewhere.org")
    client = imap(server)
    until(lambda: fetched(client), "shown")
    client.unselect()
    assert client.delete("Outbox")[0] == "OK"
    until(lambda: world.taken, "sent all the same")


def test_what_a_crash_left_in_the_outbox_is_removed_at_the_next_start(serve, dial, world, imap):
    server = serve(**{"submission.undo_seconds": 3000})
    id = send(dial(server, "submissions", user="ann"), "bo@elsewhere.org")
    client = imap(server)
    until(lambda: fetched(client), "shown")
    until(lambda: entry(server).shown is not None, "remembered")
    shown = entry(server).shown
    client.select("Outbox")
    client.copy("1", "Outbox")  # as if it had been shown twice
    strange = b"X-Mailsrv-Queue-Id: 0123456789abcdef01\r\n\r\nof an entry that ended\r\n"
    client.append("Outbox", None, None, strange)
    client.append("Outbox", None, None, b"Subject: mine\r\n\r\nput here by its owner\r\n")
    for part in server.server.parts:
        part.renew()  # the queue's runner ends and another one begins
    right = [b"X-Mailsrv-Queue-Id: ", b"Subject: mine\r\n\r\nput"]
    until(lambda: [text[:20] for _, text in fetched(client)] == right, "looked through")
    assert entry(server).shown == shown and entry(server).id == id


@pytest.mark.parametrize("parameter", ["HOLDFOR=3600", "HOLDUNTIL="])
def test_rfc4865_a_client_may_ask_for_a_later_release(serve, dial, world, inbox, parameter):
    server = serve()
    client = dial(server, "submissions", user="ann")
    if parameter.endswith("="):
        parameter += time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
    send(client, "bo@elsewhere.org", "bo@example.com", mail=f" {parameter}")
    held = entry(server)
    assert held.envelope.release == ("for;3600" if "HOLDFOR" in parameter else f"until;{parameter.partition('=')[2]}")
    assert 3590 < held.not_before - time.time() <= 3600
    assert [str(one.address) for one in held.recipients] == ["bo@elsewhere.org", "bo@example.com"]
    gevent.sleep(0)
    assert world.taken == [] and inbox(server, "bo") == []


@pytest.mark.parametrize(
    ("mail", "code"),
    [
        ("HOLDFOR=x", b"501"), ("HOLDFOR=", b"501"), ("HOLDFOR", b"501"), ("HOLDFOR=9999999", b"501"),
        ("HOLDFOR=1234567890", b"501"), ("HOLDUNTIL=tomorrow", b"501"), ("HOLDUNTIL=2026-13-01T00:00:00Z", b"501"),
        ("HOLDUNTIL=2099-01-01T00:00:00Z", b"501"), ("HOLDUNTIL=2026-11-25T08:00:00", b"501"),
        ("HOLDFOR=5 HOLDUNTIL=2026-11-25T08:00:00Z", b"501"), ("HOLDFOR=0", b"250"),
        ("HOLDUNTIL=2020-01-01T00:00:00Z", b"250"), ("HOLDUNTIL=2020-01-01T00:00:00.5+02:00", b"250"),
    ],
)  # fmt: skip
def test_rfc4865_times_that_cannot_be_are_refused(serving, dial, world, mail, code):
    client = dial(serving, "submissions", user="ann")
    assert client.say(f"MAIL FROM:<ann@example.com> {mail}").startswith(code)


def test_rfc4865_is_for_submission_and_where_it_is_set(serve, dial, world):
    server = serve(**{"submission.future_seconds": 60})
    client = dial(server, "submissions", user="ann")
    offered = client.say("EHLO again.example.net")
    assert re.search(rb"250[ -]FUTURERELEASE 60 20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ\s", offered)
    assert client.say("MAIL FROM:<ann@example.com> HOLDFOR=61").startswith(b"501 ")
    stranger = dial(server)
    assert b"FUTURERELEASE" not in stranger.say("EHLO client.example.net")
    assert stranger.say("MAIL FROM:<x@elsewhere.org> HOLDFOR=5").startswith(b"555 ")


def test_expiry_counts_from_the_release(serve, dial, world):
    """A message held for longer than an entry lives is tried like any other when its time has come."""
    server = serve()
    send(dial(server, "submissions", user="ann"), "bo@elsewhere.org", mail=" HOLDFOR=864000")
    held = entry(server)
    spool = runner.spool_of(server.settings)
    now = spool.now()
    held.waited = 864000.0
    held.arrived_at -= 864000
    held.not_before -= 864000
    assert held.age(now) >= 864000 and held.tried_for(now) < 60
    assert held.recipients[0].state != CANCELLED and held.envelope.sender == Address("ann", "example.com")
