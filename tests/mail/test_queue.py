"""The queue runner: what becomes of entries, when, and what is on disk at any time. The ways out are the test's own."""

import socket
import time
from dataclasses import replace
from pathlib import Path

import gevent
import pytest
from gevent.event import Event

from mailsrv.errors import RecipientUnknown, TemporaryFailure
from mailsrv.mail.queue import LOCAL, Queue, Ways
from mailsrv.mail.schedule import Schedule
from mailsrv.mail.wakeup import Waker, tell
from mailsrv.store import files
from mailsrv.store.entry import CANCELLED, FAILED, SENT, WAITING, Entry, Origin, Recipient, Stamp
from mailsrv.store.files import Incoming
from mailsrv.store.spool import QueueLocked, Spool, new_id
from mailsrv.values import Address, Disposition, Envelope, Outcome, RecipientOptions

from ..conftest import SECONDS, until

TEXT = b"From: ann@example.com\r\nSubject: Out\r\n\r\nOut it goes\r\n"
ANN = Address("ann", "example.com")
LATER, NEVER, DONE = Disposition.LATER, Disposition.NEVER, Disposition.SENT
HOST = "mx.test[192.0.2.1]:25"


def address(text: str) -> Address:
    local, _, domain = text.partition("@")
    return Address(local, domain)


class World:
    """What is outside: says for each address what its server replies, and remembers what it was given."""

    def __init__(self, tmp_path: Path) -> None:
        self.replies: dict[str, list[tuple[int, str, str]]] = {}  # the last one stays
        self.jobs: list[tuple[str, tuple[str, ...]]] = []
        self.reports: list = []
        self.refuse_reports = 0
        self.gates: dict[str, Event] = {}  # of domains that hang until it is set
        self.base = time.time()  # files have times of the real clock
        self.now = [Stamp(self.base, "boot", 1000.0)]
        self.clock = [0.0]
        self.spool = Spool(str(tmp_path / "queue"), now=lambda: self.now[0])
        self.spool.prepare()
        self.socket = str(tmp_path / "queue.sock")
        self.queues: list[Queue] = []
        self.attempt_seconds = 0.0
        self.active: dict[str, int] = {}
        self.most: dict[str, int] = {}

    def put(self, *recipients: str, sender: Address | None = ANN, **options) -> str:
        given = RecipientOptions(frozenset(options.pop("notify", ())))
        envelope = Envelope(sender)
        entry = Entry(new_id(), envelope, [Recipient(address(one), given) for one in recipients], **options)
        message = Incoming(self.spool.tmp_dir)
        message.write(TEXT)
        self.spool.put(entry, message)
        return entry.id

    def relay(self, job):
        domain = job.recipients[0][0].domain
        assert {one.domain for one, _ in job.recipients} == {domain}
        self.jobs.append((job.id, tuple(str(one) for one, _ in job.recipients)))
        assert Path(job.path).read_bytes() == TEXT and job.size == len(TEXT)
        self.active[domain] = self.active.get(domain, 0) + 1
        self.most[domain] = max(self.most.get(domain, 0), self.active[domain])
        try:
            if domain in self.gates:
                assert self.gates[domain].wait(SECONDS)
            else:
                gevent.sleep(self.attempt_seconds)
            return [self._outcome(one) for one, _ in job.recipients]
        finally:
            self.active[domain] -= 1

    def _outcome(self, one):
        replies = self.replies.get(str(one)) or self.replies.get(one.domain) or [(250, "2.0.0", "Taken")]
        code, enhanced, text = replies.pop(0) if len(replies) > 1 else replies[0]
        disposition = DONE if code // 100 == 2 else NEVER if code // 100 == 5 else LATER
        return Outcome(one, disposition, code, enhanced, text, HOST if code else "")

    def post(self, report):
        if self.refuse_reports:
            self.refuse_reports -= 1
            raise TemporaryFailure("no room")
        self.reports.append((report.kind, [str(one.address) for one in report.recipients], report))

    def queue(self, schedule: Schedule | None = None, **options) -> Queue:
        ways = Ways(
            self.relay, lambda envelope, one: one.domain, self.relay, lambda domain: domain == "example.com", self.post
        )
        made = Queue(self.spool, ways, schedule or Schedule(jitter=0.0), socket_path=self.socket,
                     monotonic=lambda: self.clock[0], **options)  # fmt: skip
        made.start()
        self.queues.append(made)
        return made

    def advance(self, seconds: float, jump: float = 0.0) -> None:
        """Time passes by every clock; the wall clock is set besides."""
        now = self.now[0]
        self.now[0] = Stamp(now.wall + seconds + jump, now.boot, now.clock + seconds)
        self.clock[0] += seconds
        for queue in self.queues:
            queue._stir.set()

    def idle(self, queue: Queue) -> None:
        """Nothing is being done: all that is known waits."""
        until(lambda: not queue._busy and not queue.active and not due(queue), "the queue rests")

    def step(self, queue: Queue, seconds: float, jump: float = 0.0) -> None:
        self.advance(seconds, jump)
        self.idle(queue)


def due(queue: Queue) -> bool:
    return any(at <= queue._monotonic() for at in queue._due.values())


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    yield made
    for gate in made.gates.values():
        gate.set()
    for queue in made.queues:
        queue.stop(5)


def state(world, id):
    return [(str(one.address), one.state, one.attempts) for one in world.spool.load(id).recipients]


# ------------------------------------------------------------------ outcomes


def test_what_is_sent_is_gone(world):
    queue = world.queue()
    id = world.put("bo@example.org", "cy@example.org")
    assert tell(world.socket, [id])
    until(lambda: not world.spool.ids() and not queue.depth, "sent")
    assert world.jobs == [(id, ("bo@example.org", "cy@example.org"))]  # one transaction
    assert world.reports == []
    assert list(Path(world.spool.root).rglob("*.eml")) == []
    assert (queue.counters.sent, queue.counters.ended, queue.counters.attempts) == (2, 1, 1)


def test_b21_each_recipient_has_an_end_of_its_own(world):
    """One message file for three domains: sent here, refused there, put off elsewhere; nothing vanishes."""
    world.replies = {
        "no@example.org": [(550, "5.1.1", "No such user")],
        "late@example.net": [(451, "4.2.0", "Not now"), (250, "2.0.0", "Now")],
        "hm@example.net": [(550, "5.7.1", "Go away")],
    }
    id = world.put("bo@example.org", "no@example.org", "late@example.net", "hm@example.net", "dee@example.edu")
    queue = world.queue()
    until(lambda: len(world.jobs) == 3, "tried")
    world.idle(queue)
    assert sorted(state(world, id)) == [
        ("bo@example.org", SENT, 1), ("dee@example.edu", SENT, 1), ("hm@example.net", FAILED, 1),
        ("late@example.net", WAITING, 1), ("no@example.org", FAILED, 1),
    ]  # fmt: skip
    told = sorted(name for kind, names, _ in world.reports for name in names)
    assert told == ["hm@example.net", "no@example.org"] and {kind for kind, _, _ in world.reports} == {"failed"}
    assert Path(world.spool.message_path(id)).read_bytes() == TEXT
    last = world.spool.load(id).recipients[2].last
    assert (last.host, last.code, last.text) == (HOST, 451, "Not now")
    world.step(queue, 300)
    assert world.jobs[-1] == (id, ("late@example.net",))
    assert world.spool.ids() == [] and sum(len(names) for _, names, _ in world.reports) == 2


def test_b22_permanence_comes_from_the_class_of_the_reply(world):
    world.replies = {"a@example.org": [(451, "4.7.1", "550 5.1.1 looks permanent 554 and is not")],
                     "b@example.org": [(550, "5.1.1", "try again later 450")]}  # fmt: skip
    id = world.put("a@example.org", "b@example.org")
    queue = world.queue()
    until(lambda: world.reports, "reported")
    world.idle(queue)
    assert state(world, id) == [("a@example.org", WAITING, 1), ("b@example.org", FAILED, 1)]
    assert world.reports[0][1] == ["b@example.org"]


def test_b20_our_own_domains_are_never_sent_out(world):
    """Also when the domain became ours while the message waited."""
    delivered, relayed = [], []
    queue = world.queue()
    queue.ways = replace(
        queue.ways, relay=lambda job: relayed.append(job) or world.relay(job),
        deliver=lambda job: delivered.append(job) or world.relay(job),
    )  # fmt: skip
    world.put("cy@example.com", "bo@example.org", "dee@example.com")
    tell(world.socket, world.spool.ids())
    until(lambda: not world.spool.ids(), "delivered")
    assert [[str(one) for one, _ in job.recipients] for job in delivered] == [["cy@example.com", "dee@example.com"]]
    assert [[str(one) for one, _ in job.recipients] for job in relayed] == [["bo@example.org"]]
    assert {lane.name for lane in queue.lanes()} == {LOCAL, "example.org"}


def test_a_way_out_that_fails_is_no_answer(world):
    def broken(job):
        raise ZeroDivisionError

    id = world.put("bo@example.org")
    queue = world.queue()
    queue.ways = replace(queue.ways, relay=broken)
    until(lambda: world.spool.load(id).recipients[0].attempts, "put off")
    assert state(world, id) == [("bo@example.org", WAITING, 1)]
    assert world.spool.load(id).recipients[0].last.text == "Internal error; it is tried again"


def test_many_recipients_go_in_portions(world):
    id = world.put(*(f"u{n}@example.org" for n in range(250)))
    world.idle(world.queue())
    until(lambda: not world.spool.ids(), "sent")
    assert [len(names) for _, names in world.jobs] == [100, 100, 50] and {job for job, _ in world.jobs} == {id}


# ------------------------------------------------------------------ time


def test_f08_attempts_come_when_they_are_due(world):
    world.replies = {"example.org": [(451, "4.2.0", "Not now")]}
    id = world.put("bo@example.org", notify=["FAILURE"])
    queue = world.queue()
    until(lambda: len(world.jobs) == 1, "tried")
    world.idle(queue)
    for count, pause in enumerate([300, 900, 1800, 3600, 7200, 14400, 14400, 14400], 1):
        world.step(queue, pause - 60)
        assert len(world.jobs) == count, "too early"
        world.step(queue, 61)
        assert len(world.jobs) == count + 1, f"not tried after {pause}"
        world.advance(-1)
    one = world.spool.load(id).recipients[0]
    assert one.attempts == 9 and len(one.history) == 8


def test_f08_expiry_is_reported_and_ends_it(world):
    world.replies = {"example.org": [(451, "4.2.0", "Not now")]}
    id = world.put("bo@example.org", notify=["FAILURE"])
    queue = world.queue()
    until(lambda: world.jobs, "tried")
    for _ in range(40):
        world.idle(queue)
        if not world.spool.ids():
            break
        age = world.spool.load(id).age(world.now[0])
        assert age < 5 * 86400, "it should have expired"
        world.step(queue, world.spool.load(id).wait(world.now[0]) + 1)
    [(kind, names, report)] = world.reports
    assert (kind, names) == ("failed", ["bo@example.org"])
    last = report.recipients[0].last
    assert last.enhanced == "4.4.7" and last.text == "Not delivered within 5 days; at last: Not now"
    assert 5 * 86400 <= world.now[0].wall - world.base < 5 * 86400 + 14500
    assert queue.counters.expired == 1


@pytest.mark.parametrize("jump", [-3650 * 86400.0, -86400.0, 86400.0, 3650 * 86400.0])
def test_a_clock_that_jumps_neither_floods_nor_bounces(world, jump):
    world.replies = {"example.org": [(451, "4.2.0", "Not now")]}
    ids = [world.put("bo@example.org") for _ in range(5)]
    queue = world.queue()
    until(lambda: len(world.jobs) == 5, "tried")
    world.idle(queue)
    world.step(queue, 10, jump)
    queue.look_everywhere()
    for id in ids:
        queue.wake(id)
    world.idle(queue)
    assert len(world.jobs) == 5 and world.reports == []
    # A runner that starts by that clock waits no less, and no more.
    queue.stop(1)
    world.queues.clear()
    queue = world.queue()
    queue.look_everywhere()
    world.idle(queue)
    world.step(queue, 200)
    assert len(world.jobs) == 5 and world.reports == []
    for _ in range(3):
        queue.wake(ids[0])
        world.idle(queue)
    world.step(queue, 100)
    assert len(world.jobs) in (6, 10)
    for id in ids:
        queue.wake(id)  # a file time that is far off costs one look
    world.idle(queue)
    assert len(world.jobs) == 10 and world.reports == []
    assert all(world.spool.load(id).age(world.now[0]) < 400 for id in ids)


def test_a_runner_that_starts_by_a_clock_that_was_set_back_asks_the_entries(world):
    """Their files' times are years away; what is inside them is not."""
    world.replies = {"example.org": [(451, "4.2.0", "Not now"), (250, "2.0.0", "Taken")]}
    world.put("bo@example.org")
    queue = world.queue()
    until(lambda: len(world.jobs) == 1, "tried")
    world.idle(queue)
    queue.stop(1)
    world.queues.clear()
    world.advance(10, -3650 * 86400.0)
    queue = world.queue()
    until(lambda: queue._due, "the queue is read")
    world.step(queue, 10)
    assert len(world.jobs) == 1
    world.step(queue, 300)
    assert len(world.jobs) == 2 and world.spool.ids() == []


def test_delay_is_told_once_after_four_hours(world):
    world.replies = {"example.org": [(451, "4.2.0", "Not now")], "example.net": [(451, "4.2.0", "Not now")]}
    asked = world.put("bo@example.org", "cy@example.net", notify=["DELAY", "FAILURE"])
    world.put("bo@example.org", notify=["FAILURE"])
    world.put("bo@example.org", notify=["NEVER"])
    world.put("bo@example.org", sender=None)
    usual = world.put("bo@example.org")
    queue = world.queue()
    until(lambda: len(world.jobs) == 6, "tried")
    world.idle(queue)
    world.step(queue, 4 * 3600 - 30)
    assert world.reports == []
    for _ in range(6):
        world.step(queue, 1800)
    told = sorted((kind, report.entry.id, tuple(names)) for kind, names, report in world.reports)
    assert told == sorted([
        ("delayed", asked, ("bo@example.org", "cy@example.net")), ("delayed", usual, ("bo@example.org",)),
    ])  # fmt: skip
    assert world.reports[0][2].until == pytest.approx(world.base + 5 * 86400, abs=60)


# ------------------------------------------------------------------ reports


@pytest.mark.parametrize(
    ("notify", "reply", "relayed", "kinds"),
    [
        ((), 250, False, []),
        ((), 550, False, ["failed"]),
        (("NEVER",), 250, False, []),
        (("NEVER",), 550, False, []),
        (("SUCCESS",), 250, False, ["delivered"]),
        (("SUCCESS",), 250, True, []),  # the next host has promised to report
        (("SUCCESS",), 550, False, []),
        (("FAILURE",), 250, False, []),
        (("FAILURE",), 550, False, ["failed"]),
        (("DELAY",), 550, False, []),
        (("SUCCESS", "FAILURE", "DELAY"), 250, False, ["delivered"]),
        (("SUCCESS", "FAILURE", "DELAY"), 550, True, ["failed"]),
    ],
)  # fmt: skip
def test_notify_decides_what_is_told(world, notify, reply, relayed, kinds):
    world.replies = {"example.org": [(reply, f"{reply // 100}.1.1", "So it is")]}
    queue = world.queue()
    honest = queue.ways.relay
    queue.ways = replace(
        queue.ways, relay=lambda job: [replace(one, dsn_relayed=relayed) for one in honest(job)]
    )  # fmt: skip
    world.put("bo@example.org", notify=notify)
    queue.look_everywhere()
    until(lambda: not world.spool.ids(), "ended")
    world.idle(queue)
    assert [kind for kind, _, _ in world.reports] == kinds
    if kinds == ["delivered"]:
        assert world.reports[0][2].recipients[0].report == "relayed"


def test_a_report_that_cannot_be_posted_is_not_forgotten(world):
    world.replies = {"example.org": [(550, "5.1.1", "No")]}
    world.refuse_reports = 2
    id = world.put("bo@example.org")
    queue = world.queue()
    until(lambda: world.refuse_reports == 1, "refused")
    world.idle(queue)
    assert state(world, id) == [("bo@example.org", FAILED, 1)] and world.reports == []
    # Neither by a runner that ends.
    queue.stop(1)
    world.queues.clear()
    queue = world.queue()
    until(lambda: not world.refuse_reports, "refused again")
    world.idle(queue)
    world.step(queue, 301)
    assert [kind for kind, _, _ in world.reports] == ["failed"] and world.spool.ids() == []
    assert len(world.jobs) == 1


# ------------------------------------------------------------------ the disk


def test_s26_a_result_is_kept_until_it_is_on_disk(world):
    """The disk fails while the result is written: the entry stays as it was, and the result is written later."""
    failing = [True]

    def hook(step, path):
        if failing[0] and step in ("create", "rename", "unlink") and "queue" in path:
            raise OSError(28, "No space left on device")

    id = world.put("bo@example.org")
    queue = world.queue()
    files.on_step(hook)
    try:
        until(lambda: world.jobs, "tried")
        gevent.sleep(0.3)
        assert state(world, id) == [("bo@example.org", WAITING, 0)]
        failing[0] = False
        until(lambda: not world.spool.ids(), "written down")
    finally:
        files.on_step(None)
    assert len(world.jobs) == 1, "sent again"
    world.idle(queue)


def test_damaged_entries_are_put_aside_and_the_others_go_on(world, events):
    ids = [world.put(f"u{n}@example.org") for n in range(6)]
    Path(world.spool.envelope_path(ids[1])).write_text("{")
    Path(world.spool.message_path(ids[2])).write_bytes(TEXT[:-1])
    Path(world.spool.message_path(ids[3])).unlink()
    Path(world.spool.message_path(ids[4])).write_bytes(TEXT.replace(b"Out", b"In!"))
    world.advance(10)  # accepted before this runner began
    queue = world.queue()
    until(lambda: not world.spool.ids(), "all handled")
    world.idle(queue)
    assert sorted(job for job, _ in world.jobs) == [ids[0], ids[5]]
    assert [id for id, _ in world.spool.damaged()] == ids[1:5]
    reasons = {fields["id"]: fields["reason"] for event, fields in events if event == "queue entry damaged"}
    assert set(reasons) == set(ids[1:5]) and "SHA-256" in reasons[ids[4]]
    assert queue.counters.damaged == 4


def test_b21_two_runners_do_not_share_a_queue(world):
    first = world.queue()
    with pytest.raises(QueueLocked):
        Queue(world.spool, first.ways, socket_path=world.socket).start()
    world.put("bo@example.org")
    first.look_everywhere()
    until(lambda: not world.spool.ids(), "the first works on")
    assert len(world.jobs) == 1


# ------------------------------------------------------------------ changes meanwhile


def test_what_is_held_waits_until_it_is_released(world):
    id = world.put("bo@example.org", hold=True)
    queue = world.queue()
    world.step(queue, 20 * 86400)
    assert world.jobs == [] and world.spool.ids() == [id]

    def release(entry):
        entry.hold = False
        return True

    world.spool.change(id, release)
    tell(world.socket, [id])
    until(lambda: not world.spool.ids(), "sent")


def test_not_before_its_time(world):
    world.put("bo@example.org", not_before=world.base + 7200)
    queue = world.queue()
    queue.look_everywhere()
    world.step(queue, 7000)
    assert world.jobs == []
    world.step(queue, 201)
    until(lambda: not world.spool.ids(), "sent")


def test_a_change_during_an_attempt_is_kept(world):
    world.gates["example.org"] = Event()
    world.replies = {"example.org": [(451, "4.2.0", "Not now")]}
    id = world.put("bo@example.org")
    queue = world.queue()
    until(lambda: world.active.get("example.org"), "under way")

    def hold(entry):
        entry.hold = True
        return True

    world.spool.change(id, hold)
    queue.wake(id)
    world.gates["example.org"].set()
    world.idle(queue)
    entry = world.spool.load(id)
    assert entry.hold and entry.recipients[0].attempts == 1


def test_an_entry_removed_during_an_attempt_stays_removed(world):
    world.gates["example.org"] = Event()
    world.replies = {"example.org": [(550, "5.1.1", "No")]}
    id = world.put("bo@example.org")
    queue = world.queue()
    until(lambda: world.active.get("example.org"), "under way")
    world.spool.remove(id)
    world.gates["example.org"].set()
    world.idle(queue)
    assert world.spool.ids() == [] and world.reports == [] and queue.depth == 0


@pytest.mark.parametrize("by_runner", [True, False])
def test_what_was_sent_before_its_cancellation_is_sent(world, by_runner):
    """Two attempts are under way when all is taken back: one succeeds, one fails."""
    world.gates = {"example.org": Event(), "example.net": Event()}
    world.replies = {"example.net": [(550, "5.1.1", "No")]}
    id = world.put("bo@example.org", "cy@example.net", notify=["SUCCESS", "FAILURE"])
    queue = world.queue()
    told = []
    queue.hooks.changed.append(lambda entry: told.append((entry.over, [one.state for one in entry.recipients])))
    until(lambda: len([n for n in world.active.values() if n]) == 2, "under way")

    def cancel(entry):
        for one in entry.waiting:
            one.state = CANCELLED
        return True

    if by_runner:
        queue.cancel(id)
    else:
        world.spool.change(id, cancel)
        queue.wake(id)
    world.gates["example.net"].set()
    until(lambda: not world.active["example.net"], "refused")
    world.gates["example.org"].set()
    until(lambda: not world.spool.ids(), "ended")
    world.idle(queue)
    assert told[-1] == (True, [SENT, CANCELLED]) and queue.counters.sent == 1
    assert [(kind, who) for kind, who, _ in world.reports] == [("delivered", ["bo@example.org"])]


def test_whoever_may_takes_it_back(world):
    queue = world.queue()
    told = []
    queue.hooks.may_go.append(lambda entry: False)
    queue.hooks.changed.append(lambda entry: told.append(entry.over))
    world.put("bo@example.org")
    queue.look_everywhere()
    until(lambda: told, "taken back")
    world.idle(queue)
    assert world.spool.ids() == []
    assert world.jobs == [] and world.reports == [] and told == [True]


# ------------------------------------------------------------------ many


def test_a_destination_that_hangs_does_not_slow_the_others(world):
    world.gates["hangs.test"] = Event()
    hanging = [world.put(f"u{n}@hangs.test") for n in range(60)]
    others = [world.put(f"u{n}@example.org") for n in range(60)]
    world.queue(connections=12, per_destination=10)
    until(lambda: not set(others) & set(world.spool.ids()), "the others are through")
    assert set(world.spool.ids()) == set(hanging) and world.most["hangs.test"] <= 4
    world.gates["hangs.test"].set()
    until(lambda: not world.spool.ids(), "all are through")
    assert len(world.jobs) == 120


def test_f09_concurrency_grows_by_success_within_bounds(world):
    for n in range(150):
        world.put(f"u{n}@example.org")
    world.attempt_seconds = 0.02
    world.queue(connections=50, per_destination=8)
    until(lambda: not world.spool.ids(), "sent")
    assert 4 < world.most["example.org"] <= 8


def test_f09_no_storm_on_a_destination_that_is_down(world):
    """40 entries, a host that does not answer: a few attempts find out, the rest is put off with the reason; later
    one asks first.
    """
    world.replies = {"example.org": [(0, "4.4.1", "Connection refused")]}
    ids = [world.put(f"u{n}@example.org") for n in range(40)]
    queue = world.queue()
    until(lambda: all(world.spool.load(id).recipients[0].history for id in ids), "put off")
    world.idle(queue)
    assert 3 <= len(world.jobs) <= 7
    texts = [world.spool.load(id).recipients[0].last.text for id in ids]
    assert sum(text.startswith("Not tried: ") and "Connection refused" in text for text in texts) >= 33
    assert sum(world.spool.load(id).recipients[0].attempts for id in ids) == len(world.jobs)  # what was not is not told
    world.replies = {"example.org": [(250, "2.0.0", "Back")]}
    world.most.clear()
    world.step(queue, 310)
    until(lambda: not world.spool.ids(), "all sent")
    assert world.most["example.org"] <= 20 and world.reports == []


REFUSED = [(0, "4.4.1", "Connection refused")]


def resting(world) -> tuple[Queue, list[str]]:
    """A queue with a destination that has just been given a rest of a minute, and three that were tried for it."""
    world.replies = {"example.org": REFUSED}
    tried = [world.put(f"u{n}@example.org") for n in range(3)]
    queue = world.queue()
    until(lambda: len(world.jobs) == 3, "tried")
    world.idle(queue)
    assert [lane.resting_until > world.clock[0] for lane in queue.lanes()] == [True]
    return queue, tried


def retry(world, *ids):
    """As `mailsrv queue retry` does it."""

    def now_due(entry):
        for one in entry.waiting:
            entry.delay(one, 0.0, world.now[0])
        entry.asked_at = world.now[0].wall
        return True

    for id in ids:
        world.spool.change(id, now_due)
    tell(world.socket, list(ids))


def test_what_is_put_off_by_a_rest_counts_nothing_and_waits_no_longer_than_the_rest(world):
    queue, _ = resting(world)
    late = world.put("late@example.org")
    queue.wake(late)
    until(lambda: world.spool.load(late).recipients[0].history, "put off")
    world.idle(queue)
    one = world.spool.load(late).recipients[0]
    assert one.attempts == 0 and one.last.text.startswith("Not tried: ") and len(world.jobs) == 3
    assert world.spool.load(late).wait(world.now[0]) <= 61
    world.step(queue, 61)
    until(lambda: (late, ("late@example.org",)) in world.jobs, "tried when the rest is over")
    world.idle(queue)
    assert state(world, late) == [("late@example.org", WAITING, 1)]


def test_what_has_said_why_it_waits_is_not_written_again_while_its_destination_rests(world):
    queue, tried = resting(world)
    world.spool.change(tried[0], lambda entry: entry.delay(entry.recipients[0], 0.0, world.now[0]) is None)
    before = Path(world.spool.envelope_path(tried[0])).read_bytes()
    queue.wake(tried[0])
    world.idle(queue)
    assert Path(world.spool.envelope_path(tried[0])).read_bytes() == before and len(world.jobs) == 3
    world.replies = {}
    world.step(queue, 61)
    until(lambda: tried[0] not in world.spool.ids(), "sent when the rest is over")


def test_f09_a_retry_that_is_asked_for_ends_the_rest_once(world):
    """An administrator has mended the host, or believes so."""
    queue, tried = resting(world)
    world.step(queue, 10)
    retry(world, *tried)
    until(lambda: len(world.jobs) > 3, "tried")
    world.idle(queue)
    assert len(world.jobs) == 4  # it is down all the same: one attempt tells
    assert sorted(world.spool.load(id).recipients[0].attempts for id in tried) == [1, 1, 2]
    assert [lane.rest for lane in queue.lanes()] == [120.0]  # as after the first trouble
    asked = [id for id in tried if world.spool.load(id).asked_at is not None]
    assert len(asked) == 2  # who was not tried is still asked for
    world.replies = {}
    world.step(queue, 10)
    retry(world, tried[0])
    until(lambda: tried[0] not in world.spool.ids(), "sent")


def test_time_runs_out_during_a_rest_too(world):
    queue, _ = resting(world)
    old = world.put("old@example.org", notify=["FAILURE"])
    queue.wake(old)
    until(lambda: world.spool.load(old).recipients[0].history, "put off")
    queue.lanes()[0].resting_until += 10 * 86400
    world.step(queue, 5 * 86400 + 10)
    until(lambda: old not in world.spool.ids(), "given up")
    world.idle(queue)
    [report] = [report for _, names, report in world.reports if names == ["old@example.org"]]
    last = report.recipients[0].last
    assert last.enhanced == "4.4.7" and "Not tried: " in last.text and report.recipients[0].attempts == 0


def test_thousands_are_found_and_sent(world):
    ids = {world.put(f"u{n}@d{n % 50}.test") for n in range(1500)}
    queue = world.queue()
    until(lambda: not world.spool.ids(), "all sent")
    assert {id for id, _ in world.jobs} == ids and len(world.jobs) == 1500
    world.idle(queue)
    assert queue.depth == 0 and not queue._due and not queue._busy and queue._open == 0


def test_a_runner_that_is_stopped_lets_attempts_end(world):
    world.gates["example.org"] = Event()
    ids = [world.put(f"u{n}@example.org") for n in range(8)]
    queue = world.queue()
    until(lambda: world.active.get("example.org") == 4, "under way")
    stopping = gevent.spawn(queue.stop, 20)
    gevent.sleep(0.05)
    assert not stopping.dead
    world.gates["example.org"].set()
    stopping.join(SECONDS)
    world.queues.clear()
    assert len(world.jobs) == 4 and len(world.spool.ids()) == 4
    second = world.queue()
    until(lambda: not world.spool.ids(), "the next runner does the rest")
    world.idle(second)
    assert sorted(id for id, _ in world.jobs) == sorted(ids) and second.counters.sent == 4


def test_wake_ups_that_do_not_fit_are_sent_later(world):
    waker = Waker(world.socket)
    ids = [world.put(f"u{n}@example.org") for n in range(300)]
    waker.wake(ids[0])  # nobody listens: nothing happens
    queue = world.queue()
    world.idle(queue)
    more = [world.put(f"u{n}@example.net") for n in range(300)]
    for id in more:
        waker.wake(id)
    until(lambda: not world.spool.ids(), "all woken")
    assert len(world.jobs) == 600
    waker.close()


def test_a_command_that_changes_thousands_of_entries_waits_until_the_runner_has_read_of_them_all(tmp_path):
    ids, heard = [new_id() for _ in range(3000)], []

    def read_late() -> None:
        gevent.sleep(0.05)  # by then the socket is full, many times
        while len(heard) < len(ids):
            heard.extend(runner.recv(64 * 1024).decode().split())

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as runner, gevent.Timeout(SECONDS):
        runner.bind(str(tmp_path / "queue.sock"))
        reader = gevent.spawn(read_late)
        assert tell(str(tmp_path / "queue.sock"), ids)
        reader.join()
    assert heard == ids


def test_garbage_on_the_socket_is_ignored(world):
    queue = world.queue()
    for text in ("", "x", "../../../etc/passwd", "0" * 17, "g" * 18):
        tell(world.socket, [text])
    id = world.put("bo@example.org")
    tell(world.socket, [id])
    until(lambda: not world.spool.ids() and not queue.depth, "sent")


def test_unknown_errors_of_a_report_are_not_the_end(world):
    world.replies = {"example.org": [(550, "5.1.1", "No")]}

    def refuse(report):
        raise RecipientUnknown("nobody")

    id = world.put("bo@example.org", origin=Origin(1, "smtp-1", "submission"))
    queue = world.queue()
    queue.ways = replace(queue.ways, post=refuse)
    until(lambda: state(world, id)[0][1] == FAILED, "failed")
    world.idle(queue)
    assert world.spool.ids() == [id]


def test_s26_a_look_that_the_disk_cuts_short_is_not_the_last(world, monkeypatch):
    """No descriptors at the wrong moment: what was put in without a word is found by the next look."""
    monkeypatch.setattr("mailsrv.mail.queue.RETRY_SCAN_SECONDS", 0.01)
    parts, failures = world.spool.parts, [OSError(24, "Too many open files")] * 3

    def listed():
        if failures:
            raise failures.pop()
        return parts()

    monkeypatch.setattr(world.spool, "parts", listed)
    id = world.put("bo@example.org")
    world.queue()
    until(lambda: world.jobs, "the entry is tried")
    assert world.jobs == [(id, ("bo@example.org",))] and failures == []
