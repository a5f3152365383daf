"""The runner ends without warning between any two changes of the disk while it takes scheduled mail, sends it and
puts it away; then another one goes on: one entry, one mail, one copy in Sent.
"""

import time
from pathlib import Path

import gevent

from mailsrv.mail.accounts import Accounts
from mailsrv.mail.bounce import Bounces
from mailsrv.mail.intake import Intake, Outgoing
from mailsrv.mail.mailbox import Mailboxes
from mailsrv.mail.notify import Registry
from mailsrv.mail.outbox import PENDING
from mailsrv.mail.outbox import SCHEDULED as STATE
from mailsrv.mail.queue import Queue, Ways
from mailsrv.mail.schedule import Schedule
from mailsrv.mail.scheduled import Reading, Rules, Scheduled
from mailsrv.runner import _read_draft
from mailsrv.store.spool import Spool
from mailsrv.values import Disposition, Outcome
from mailsrv.wire import mime
from mailsrv.wire.draft import has_utf8_header, ready_to_send

from .test_queue_kills import SECONDS, dies, tell, told

__all__ = ["dies"]

TEXT = (
    b"From: ann@example.com\r\nTo: bo@example.org\r\nBcc: cy@example.org\r\nSubject: Later\r\n"
    b"X-Send-Later-At: Fri, 1 Jan 2100 00:00:00 +0000\r\n\r\nLater\r\n"
)
HOUR_AHEAD = 3600.0


class World:
    """A runner's world in one directory."""

    def __init__(self, place: Path) -> None:
        self.accounts = Accounts(str(place / "accounts.sqlite3"), str(place / "mail"))
        self.mailboxes = Mailboxes(Registry(), prepare=mime.prepare, host="mx.example.com")
        self.spool = Spool(str(place / "queue"))
        outgoing = Outgoing(self.spool, lambda id: None, Bounces("mx.example.com"), lambda: None)
        self.intake = Intake(self.mailboxes, self.accounts, str(place / "mail"), outgoing)
        self._place = place

        def relay(job):
            assert b"cy@" not in Path(job.path).read_bytes()
            tell(place, "sent:" + "+".join(str(one) for one, _ in job.recipients))
            return [Outcome(one, Disposition.SENT, 250, "", "So", "mx") for one, _ in job.recipients]

        ways = Ways(relay, lambda envelope, one: one.domain, relay, self.accounts.is_local, self.intake.post)
        self.queue = Queue(self.spool, ways, Schedule())
        reading = Reading(_read_draft, ready_to_send, has_utf8_header)
        self.scheduled = Scheduled(self.intake, self.accounts, self.queue, Rules("Scheduled"), reading)

    @property
    def mail(self):
        [user] = self.accounts.users()
        return self.mailboxes.account(user.account)

    def texts(self, name: str) -> dict[bytes, set[str]]:
        """The messages of a mailbox with their keywords."""
        number = self.mail.find(name).id.number
        snapshot = self.mail.store.snapshot(number)
        return {
            self.mail.store.read(number, uid): {
                name for n, name in enumerate(snapshot.keyword_names) if bits >> n & 1
            }
            for uid, bits in zip(snapshot.uids, snapshot.keywords, strict=True)
        }  # fmt: skip

    def look(self) -> None:
        """The work of a runner on what is new, up to where nothing is left to do."""
        self.queue.start()
        self.scheduled._look_around()
        self.scheduled._stamps.clear()
        self.scheduled._all = True
        self.scheduled._look_around()
        end = time.monotonic() + SECONDS
        while self.queue._busy or any(at <= time.monotonic() for at in self.queue._due.values()):
            assert time.monotonic() < end
            gevent.sleep(0.002)

    def finish(self) -> None:
        """And on what is due, to its end."""
        self.look()
        end = time.monotonic() + SECONDS
        while self.spool.ids():
            assert time.monotonic() < end
            gevent.sleep(0.002)

    def close(self) -> None:
        self.queue.stop(5)
        self.mailboxes.close_all()
        self.accounts.close()


def prepare(place: Path) -> None:
    world = World(place)
    world.accounts.add_domain("example.com")
    world.accounts.add_user("ann@example.com", "{PLAIN}x")
    world.spool.prepare()
    world.mail.inbox()
    world.mail.create("Scheduled")
    ahead = time.strftime("%a, %d %b %Y %H:%M:%S +0000", time.gmtime(time.time() + HOUR_AHEAD)).encode()
    message = world.mail.incoming()
    message.write(TEXT.replace(b"Fri, 1 Jan 2100 00:00:00 +0000", ahead))
    world.mail.append("Scheduled", message)
    world.close()


def look(place: Path) -> None:
    world = World(place)
    world.look()
    world.close()


def finish(place: Path) -> None:
    world = World(place)
    world.finish()
    world.close()


def release(place: Path) -> None:
    spool = Spool(str(place / "queue"))

    def now(entry):
        entry.not_before = None
        return True

    [id] = spool.ids()
    spool.change(id, now)


def check_end(place: Path, most: int) -> None:
    """Sent, at most so often, and put away."""
    world = World(place)
    world.finish()
    assert set(told(place)) == {"sent:bo@example.org+cy@example.org"} and sum(told(place).values()) <= most
    assert world.texts("Scheduled") == {} and world.texts("INBOX") == {} and world.texts("Drafts") == {}
    [(text, keywords)] = world.texts("Sent").items()
    assert b"Bcc: cy@example.org" in text and not keywords
    assert world.mail.status("Sent").unseen == 0
    world.close()


def test_a_message_taken_by_a_runner_that_ends_anywhere_has_one_entry_and_is_sent_once(dies):
    def check(place, done):
        look(place)
        world = World(place)
        [id] = world.spool.ids()
        world.spool.check(world.spool.load(id), thoroughly=True)
        [keywords] = world.texts("Scheduled").values()
        assert keywords == {PENDING, STATE} and told(place) == {}
        world.close()
        release(place)
        check_end(place, 1)

    assert dies(prepare, look, check) >= 8


def test_a_message_sent_by_a_runner_that_ends_anywhere_is_put_away_once(dies):
    """Between what the other server said and its writing down only a second mail can tell: there, and only there."""
    twice = []

    def due(place):
        prepare(place)
        look(place)
        release(place)

    def check(place, done):
        check_end(place, 1 if done else 2)
        twice.append(sum(told(place).values()) > 1)

    steps = dies(due, finish, check)
    assert steps >= 10 and sum(twice) <= 4
