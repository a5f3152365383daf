"""A mailbox whose messages are sent later: put there by a mail program or another one, taken back by taking it away."""

import email
import email.utils
import time
from contextlib import contextmanager

import pytest

from mailsrv import runner
from mailsrv.config import ConfigError
from mailsrv.mail import scheduled
from mailsrv.mail.outbox import Shown
from mailsrv.mail.scheduled import entry_id, next_hour
from mailsrv.store.spool import is_id, time_of
from mailsrv.values import AccountId, MailboxId

from ..conftest import until
from .elsewhere import queue_files, runner_tell
from .test_outbox import entry, fetched

ON = {"submission.scheduled_mailbox": "Scheduled"}


@pytest.fixture
def imap(imap):
    """`imap(server)`: ann, logged in, with a mailbox Scheduled."""

    def login(server):
        client = imap(server)
        client.create("Scheduled")
        return client

    return login


def at(seconds):
    return email.utils.formatdate(time.time() + seconds, localtime=True)


def text(*lines, to="bo@elsewhere.org", sender="ann@example.com"):
    fields = [f"From: Ann <{sender}>", *([f"To: {to}"] if to else []), "Subject: Later", *lines]
    return "\r\n".join([*fields, "", "See you.", ""]).encode()


def put(client, message, mailbox="Scheduled", flags="\\Draft"):
    assert client.append(mailbox, flags, None, message)[0] == "OK"


@contextmanager
def no_runner(server):
    """The queue is nobody's for a while; then another runner begins."""
    [part] = server.server.parts
    part._part.close(time.monotonic())
    part._part = None
    yield
    part._begin()


def drop(server, message, mailbox=".Scheduled"):
    """As another program does it."""
    folder = server.maildir("ann") / mailbox
    (folder / "tmp" / "mutt").write_bytes(message)
    (folder / "tmp" / "mutt").rename(folder / "new" / "mutt.1")


def release(server):
    """Its time has come."""
    one = entry(server)

    def now(entry):
        entry.not_before = None
        return True

    runner.spool_of(server.settings).change(one.id, now)
    runner_tell(server, one.id)


def waiting(server):
    until(lambda: len(list((server.directory / "queue").glob("??/*.json"))) == 1, "an entry")
    return entry(server)


def test_it_waits_for_its_time_and_is_in_sent_afterwards(serve, world, imap):
    server = serve(**ON)
    client = imap(server)
    put(client, text(f"X-Send-Later-At: {at(7200)}", "Bcc: cy@elsewhere.org", "Date: Mon, 1 Jan 2024 00:00:00 +0000"))
    waits = waiting(server)
    assert 7100 < waits.not_before - time.time() <= 7200
    assert [str(one.address) for one in waits.recipients] == ["bo@elsewhere.org", "cy@elsewhere.org"]
    flags = until(lambda: [f for f, _ in fetched(client, "Scheduled") if b"$SubmitPending" in f], "shown")
    assert b"$Scheduled" in flags[0] and world.taken == []
    release(server)
    until(lambda: queue_files(server) == [], "sent")
    job, sent = world.taken[0]
    message = email.message_from_bytes(sent)
    assert message.keys() == ["Received", "Date", "Message-ID", "From", "To", "Subject"]
    assert abs(email.utils.parsedate_to_datetime(message["Date"]).timestamp() - time.time() - 7200) < 100
    assert (str(job.envelope.sender), job.account) == ("ann@example.com", waits.origin.account)
    assert len(world.taken) == 1 and sent.endswith(b"\r\n\r\nSee you.\r\n")
    [(flags, kept)] = fetched(client, "Sent")
    assert flags & {b"\\Seen", b"\\Draft", b"$SubmitPending", b"$Scheduled"} == {b"\\Seen"} and b"Bcc: cy@" in kept
    assert fetched(client, "Scheduled") == []


def test_it_may_be_moved_or_copied_there(serve, world, imap):
    server = serve(**ON)
    client = imap(server)
    put(client, text(f"Date: {at(3600)}"), "Drafts")
    client.select("Drafts")
    assert client.copy("1", "Scheduled")[0] == "OK"
    first = waiting(server)
    assert 3500 < first.not_before - time.time() <= 3600
    client.select("Scheduled")
    client.store("1", "+FLAGS", "\\Deleted")
    client.expunge()
    until(lambda: queue_files(server) == [], "cancelled")
    client.select("Drafts")
    assert client.xatom("MOVE", "1", "Scheduled")[0] == "OK"
    assert waiting(server).id != first.id


def test_another_program_may_put_a_file_there(serve, world, imap, monkeypatch):
    monkeypatch.setattr(scheduled, "SWEEP_SECONDS", 0.2)
    server = serve(**ON)
    imap(server)
    drop(server, text().replace(b"\r\n", b"\n"))
    assert waiting(server).not_before == next_hour(8, time.time())
    release(server)
    until(lambda: queue_files(server) == [], "sent")
    assert b"\r\n\r\nSee you.\r\n" in world.taken[0][1]


def test_taken_away_it_is_cancelled_and_nobody_is_told(serve, world, imap):
    server = serve(**ON)
    client = imap(server)
    put(client, text(to="bo@example.com, bo@elsewhere.org"))
    waiting(server)
    client.select("Scheduled")
    assert client.xatom("MOVE", "1", "Drafts")[0] == "OK"
    until(lambda: queue_files(server) == [], "cancelled")
    assert world.taken == [] and fetched(client, "INBOX") == [] and fetched(client, "Sent") == []
    assert len(fetched(client, "Drafts")) == 1


def test_taken_away_while_the_server_was_down_it_is_not_sent(serve, world, imap):
    server = serve(**ON)
    client = imap(server)
    put(client, text())
    waiting(server)
    with no_runner(server):
        for path in (server.maildir("ann") / ".Scheduled" / "cur").glob("*"):
            path.unlink()
    release(server)
    until(lambda: queue_files(server) == [], "cancelled")
    assert world.taken == []


def test_mailboxes_here_get_it_at_its_time_too(serve, world, imap, inbox):
    server = serve(**ON)
    client = imap(server)
    put(client, text(to="bo@example.com, cy@elsewhere.org"))
    waiting(server)
    assert inbox(server, "bo") == []
    release(server)
    until(lambda: queue_files(server) == [], "sent")
    [copy] = inbox(server, "bo")
    assert copy.startswith(b"Return-Path: <ann@example.com>\r\nDelivered-To: bo@example.com\r\n") and world.taken


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (text(sender="bo@example.com"), "Its sender bo@example.com is no address of yours."),
        (text(to=""), "No recipient in To, Cc or Bcc."),
        (text(to="Bo"), "Not an address in To."),
        (text(to="nobody@example.com"), "It cannot be sent to nobody@example.com: "),
        (text("X-Send-Later-At: soon"), "X-Send-Later-At is no date and time."),
        (text("X-Send-Later-At: Mon, 1 Jan 2024 00:00:00 +0000"), "The time that it asks for is past: "),
        (text("X-Send-Later-At: Mon, 1 Jan 2080 00:00:00 +0000"), "more than a year away."),
        (b"", "No sender: "),
    ],
)
def test_what_cannot_be_sent_goes_back_with_the_reason_once(serve, world, imap, message, why):
    server = serve(**ON)
    client = imap(server)
    put(client, message or b"\r\n")
    [(_, told)] = until(lambda: fetched(client, "INBOX"), "told")
    told = email.message_from_bytes(told)
    words = told.get_payload(decode=True).decode()
    assert told["Subject"] == "Not scheduled" and why in words and "It is in Drafts again." in words
    assert fetched(client, "Scheduled") == [] and queue_files(server) == [] and world.taken == []
    [(flags, _)] = fetched(client, "Drafts")
    assert {b"$NotSent", b"\\Draft"} <= flags
    for part in server.server.parts:
        part.renew()  # another look at everything
    put(client, text())
    waiting(server)
    assert len(fetched(client, "INBOX")) == 1


def test_lone_cr_is_refused_as_from_any_client(serve, world, imap, monkeypatch):
    monkeypatch.setattr(scheduled, "SWEEP_SECONDS", 0.2)
    server = serve(**ON)
    client = imap(server)
    drop(server, text("X: a\rb"))
    [(_, told)] = until(lambda: fetched(client, "INBOX"), "told")
    assert b"It has bare CR or LF" in told and queue_files(server) == []


def test_too_large_or_for_too_many_it_goes_back(serve, world, imap, monkeypatch):
    monkeypatch.setattr(scheduled, "SWEEP_SECONDS", 0.2)
    server = serve(**ON, **{"smtp.recipients": 100, "smtp.message_bytes": 20_000})
    client = imap(server)
    put(client, text(to=",".join(f"u{n}@elsewhere.org" for n in range(101))))
    until(lambda: fetched(client, "INBOX"), "told")
    drop(server, text("X: " + "x" * 900) * 23)
    told = until(lambda: len(found := fetched(client, "INBOX")) == 2 and found, "told again")
    assert b"more than 100 recipients" in told[0][1] and b"larger than 20000 octets" in told[1][1]
    assert len(fetched(client, "Drafts")) == 2 and queue_files(server) == []


def test_what_an_administrator_removes_goes_back(serve, world, imap):
    server = serve(**ON)
    client = imap(server)
    put(client, text())
    waits = waiting(server)

    def cancel(entry):
        for one in entry.waiting:
            one.state = "cancelled"
        return True

    runner.spool_of(server.settings).change(waits.id, cancel)
    runner_tell(server, waits.id)
    [(_, told)] = until(lambda: fetched(client, "INBOX"), "told")
    assert b"An administrator stopped it." in told
    until(lambda: queue_files(server) == [], "ended")
    assert len(fetched(client, "Drafts")) == 1 and fetched(client, "Scheduled") == [] and world.taken == []


@pytest.mark.parametrize("gone", [False, True])
def test_it_is_not_sent_in_the_name_of_who_was_switched_off_or_removed(serve, world, imap, gone):
    server = serve(**ON)
    put(imap(server), text())
    waiting(server)
    if gone:
        server.accounts.remove_user("ann@example.com")
    else:
        server.accounts.set_enabled("ann@example.com", False)
    release(server)
    until(lambda: queue_files(server) == [], "cancelled")
    assert world.taken == []
    assert len(list((server.maildir("ann") / ".Drafts" / "cur").glob("*"))) == (not gone)


def test_what_fails_is_in_sent_and_reported(serve, world, imap):
    world.replies = {"bo@elsewhere.org": (550, "5.1.1", "No such user")}
    server = serve(**ON)
    client = imap(server)
    put(client, text(f"Date: {at(3600)}"))
    waiting(server)
    release(server)
    until(lambda: queue_files(server) == [], "ended")
    [(_, report)] = fetched(client, "INBOX")
    assert b"multipart/report" in report and len(fetched(client, "Sent")) == 1
    assert fetched(client, "Scheduled") == []


def test_without_the_setting_it_is_a_mailbox_like_any_other(serve, world, imap, monkeypatch):
    monkeypatch.setattr(scheduled, "SWEEP_SECONDS", 0.05)
    server = serve()
    client = imap(server)
    put(client, text(f"X-Send-Later-At: {at(0)}"))
    for part in server.server.parts:
        part.renew()
    assert queue_files(server) == [] and len(fetched(client, "Scheduled")) == 1


def test_what_was_there_before_the_start_is_found(serve, world, imap):
    server = serve(**ON)
    client = imap(server)
    with no_runner(server):
        put(client, text(f"X-Send-Later-At: {at(-3600)}"))  # its time came while nothing ran
    until(lambda: world.taken, "sent at once")
    until(lambda: fetched(client, "Sent"), "filed")


def test_ids_are_made_of_the_place_and_look_like_all_others():
    place = Shown(MailboxId(AccountId(3), 7), 1_700_000_000, 12)
    made = entry_id(place, "1795780791.M057877P1Q2R09d4bbb1.mx,S=69,U=1700000000-12")
    assert is_id(made) and int(time_of(made)) == 1795780791
    assert made == entry_id(place, "1795780791.M057877P1Q2R09d4bbb1.mx,S=69,U=1700000000-12")
    others = {entry_id(Shown(place.mailbox, 1_700_000_000, uid), "1795780791.x") for uid in range(2000)}
    assert len(others) == 2000
    for base in ("mutt", "99999999999.x", "0.x"):
        assert is_id(entry_id(place, base)) and int(time_of(entry_id(place, base))) == 1_700_000_000


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/New_York"])
def test_the_hour_is_that_of_the_clock_on_the_wall(monkeypatch, zone):
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        start = 1_774_000_000  # days around both changes of the clock in 2026
        for hours in range(0, 240 * 24, 7):
            now = start + hours * 3600.0
            found = next_hour(8, now)
            assert now < found <= now + 25 * 3600 and time.localtime(found)[3:6] == (8, 0, 0)
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("name", ["INBOX", "inbox/later", "Sent", "outbox", "Drafts", "a//b", "x\ny"])
def test_a_mailbox_that_is_for_something_else_is_refused(serve, name):
    with pytest.raises(ConfigError, match="the name of a mailbox of its own"):
        serve(**{"submission.scheduled_mailbox": name})
