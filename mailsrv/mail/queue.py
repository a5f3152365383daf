"""The queue runner: what could not be delivered at once is tried when it is due, until it is delivered or given up.

It is given the ways out: `relay` tries one Job and says what came of each recipient, `destination` names what
recipients have in common, `deliver` is the way into our own mailboxes, `post` takes a report to a sender. A result is
on disk before anything is forgotten; a report is on its way, durably, before its reason is. What is kept in memory of
a waiting entry is its id and when to look at it.

Imports: mail.{bounce,gate,lanes,schedule,telling,together,wakeup}, store, log, errors, values, gevent.
docs/decisions/0009-the-queue.md; RFC 5321 4.5.4.
"""

from __future__ import annotations

import heapq
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import gevent
from gevent.event import Event
from gevent.pool import Pool

from mailsrv import log
from mailsrv.errors import TemporaryFailure
from mailsrv.mail import bounce
from mailsrv.mail.gate import writers_at_once
from mailsrv.mail.lanes import Lane, Lanes
from mailsrv.mail.schedule import AGAIN_SECONDS, SLACK_SECONDS, Counters, Schedule
from mailsrv.mail.telling import Telling
from mailsrv.mail.together import Together
from mailsrv.mail.wakeup import Wakeups
from mailsrv.store.entry import CANCELLED, FAILED, SCHEDULED, SENT, WAITING, Entry, EntryDamaged, Recipient, Stamp
from mailsrv.store.files import offload
from mailsrv.store.spool import EntryBusy, EntryGone, Ownership, Spool, time_of
from mailsrv.values import AccountId, Address, Disposition, Envelope, Job, Outcome, RecipientOptions

LOCAL = "local"  # the destination that is our own mailboxes
LONGEST_LOOK = 4.5 * 3600.0  # a file time further away is not believed: the entry is looked at
SCAN_SECONDS = 300.0
RETRY_SCAN_SECONDS = 30.0  # after a look that the disk cut short
OPENERS = 4
FRESH_SECONDS = 1.0  # an entry read that lately need not be read again
KEPT_OPEN = 2000  # entries held in memory for an attempt that is near
RECIPIENTS_PER_JOB = 100  # RFC 5321 4.5.3.1.8: no host need take more at once
AT_HAND_SECONDS = 30.0  # entries younger than that are read without a thread
SLOW_SECONDS = 5.0  # an attempt, with the wait for its turn, that takes longer is told of while it goes on


@dataclass(frozen=True, slots=True)
class Ways:
    """What the queue is given to get rid of mail."""

    relay: Callable[[Job], list[Outcome]]
    destination: Callable[[Envelope, Address], str]
    deliver: Callable[[Job], list[Outcome]]
    is_local: Callable[[str], bool]
    post: Callable[[bounce.Report], None]


@dataclass(slots=True)
class _Turn:
    """An entry that waits in a lane; the entry itself only while few wait."""

    id: str
    entry: Entry | None
    read_at: float


_Change = tuple[str, Callable[[Entry], bool], Entry | None]  # the entry as it was read before, to be used up


@dataclass(slots=True)
class Hooks:
    """Who wants to hear. `changed`: the entry was written, or has ended (`entry.over`), or takes long (SLOW_SECONDS).
    `may_go`: asked before each attempt; False cancels what still waits. `may_end`: asked before a SCHEDULED entry that
    is over ends; False: it is asked again later.
    """

    changed: list[Callable[[Entry], None]] = field(default_factory=list)
    may_go: list[Callable[[Entry], bool]] = field(default_factory=list)
    may_end: list[Callable[[Entry], bool]] = field(default_factory=list)


class Queue:
    def __init__(
        self, spool: Spool, ways: Ways, schedule: Schedule | None = None, *, connections: int = 200,
        per_destination: int = 20, socket_path: str = "", monotonic: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.spool, self.ways, self.schedule = spool, ways, schedule or Schedule()
        self.counters, self.hooks = Counters(), Hooks()
        self._telling = Telling(
            spool, self.schedule, self.counters, send=lambda report: self.ways.post(report), stays=self._is_asked_for,
            ended=self._ended,
        )  # fmt: skip
        self._ownership = Ownership(spool.root)
        self._monotonic = monotonic
        self._lanes: Lanes[_Turn] = Lanes(connections, per_destination, clock=monotonic)
        self._heap: list[tuple[float, str]] = []
        self._due: dict[str, float] = {}  # of what waits; an item of the heap that says otherwise is stale
        self._busy: dict[str, int] = {}  # being opened, or in so many lanes
        self._woken: set[str] = set()  # while busy
        self._lined_up: dict[str, float] = {}  # busy, and since when; the first is the oldest
        self._open = 0
        self._stir = Event()
        self._stopping = False
        self._started_wall = 0.0
        self._changes: Together[_Change, Entry] = Together(self._change_all, writers_at_once)
        self._openers = Pool(OPENERS)
        self._attempts = Pool()
        self._greenlets: list[gevent.Greenlet] = []
        self._wakeups = Wakeups(socket_path, self.wake, self.look_everywhere) if socket_path else None

    @property
    def depth(self) -> int:
        """Entries that wait or are being tried."""
        return len(self._due) + len(self._busy)

    @property
    def oldest_id(self) -> str | None:
        """Of the entries that wait or are being tried: ids begin with the time they were made."""
        return min(min(self._due, default="~"), min(self._busy, default="~")) if self.depth else None

    @property
    def active(self) -> int:
        """Attempts that go on now."""
        return self._lanes.busy

    def lanes(self) -> list[Lane[_Turn]]:
        return self._lanes.lanes()

    # -------------------------------------------------------------- life

    def start(self, before: Callable[[], None] | None = None) -> None:
        """Own the queue and begin; `before` runs when it is owned. Raises QueueLocked when another runner has it."""
        offload(self.spool.prepare)
        self._ownership.acquire()
        if before is not None:
            before()
        self._started_wall = self.spool.now().wall
        if self._wakeups is not None:
            self._wakeups.start()
        tasks = (self._run, self._look_now_and_then, self._tell_of_slow_ones)
        self._greenlets = [gevent.spawn(task) for task in tasks]

    def stop(self, seconds: float = 0.0) -> None:
        """Begin nothing new; attempts that go on may end. What is cut off is tried again by the next runner."""
        self._stopping = True
        self._stir.set()
        if self._wakeups is not None:
            self._wakeups.close()
        gevent.killall(self._greenlets)
        self._openers.join(timeout=min(seconds, 5.0))
        self._openers.kill()
        if not self._attempts.join(timeout=seconds):
            log.warning("attempts cut off at shutdown", count=len(self._attempts))
            self._attempts.kill()
        self._ownership.release()

    def wake(self, id: str) -> None:
        """Something about the entry is new: look at it now."""
        if id in self._busy:
            self._woken.add(id)
        else:
            self._look_in(id, 0.0)

    def _look_in(self, id: str, seconds: float) -> None:
        at = self._monotonic() + min(seconds, LONGEST_LOOK)
        self._due[id] = at
        heapq.heappush(self._heap, (at, id))
        if self._heap[0][1] == id:
            self._stir.set()

    # -------------------------------------------------------------- what is there

    def _look_now_and_then(self) -> None:
        while True:
            pause = SCAN_SECONDS
            try:
                self.look_everywhere()
            except OSError as failure:  # no descriptors left, a disk that does not read: it must not be the last look
                log.warning("queue not read", error=str(failure))
                pause = RETRY_SCAN_SECONDS
            gevent.sleep(pause)

    def look_everywhere(self) -> None:
        """Read the names and times of all entries; those not known yet are waited for from now on."""
        begun, found = self._monotonic(), 0
        for part in offload(self.spool.parts):
            listed, now = offload(self.spool.scan, part), self.spool.now().wall
            for id, at in listed:
                if id not in self._due and id not in self._busy:
                    found += 1
                    # Further away than any pause: it is held, or the clock was set back since. The entry itself says.
                    self._look_in(id, max(0.0, at - now) if at - now <= LONGEST_LOOK else SLACK_SECONDS)
            offload(self.spool.sweep, part)
        offload(self.spool.sweep_tmp)
        if found:
            log.info("queue read", found=found, depth=self.depth, ms=round((self._monotonic() - begun) * 1e3, 1))

    def _run(self) -> None:
        while True:
            self._stir.clear()
            now = self._monotonic()
            while self._heap and self._heap[0][0] <= now:
                at, id = heapq.heappop(self._heap)
                if self._due.get(id) == at:
                    del self._due[id]
                    self._busy[id] = 1
                    self._openers.spawn(self._guard, self._open_entry, id)  # waits while all openers are at work
            self._stir.wait(self._heap[0][0] - now if self._heap else None)

    def _guard(self, act: Callable[[str], None], id: str) -> None:
        try:
            act(id)
        except Exception:  # our bug: the entry stays, and the others go on
            log.exception("queue entry not handled", id=id)
            self._release(id, AGAIN_SECONDS)

    def _release(self, id: str, seconds: float | None) -> None:
        """One who was busy with the entry is done; `seconds` until it is looked at again, None: it has ended."""
        left = self._busy.get(id, 1) - 1
        if left > 0:
            self._busy[id] = left
            if seconds is not None:
                self._woken.add(id)  # whoever is last looks at what all have made of it
            return
        self._busy.pop(id, None)
        self._lined_up.pop(id, None)
        woken = id in self._woken
        self._woken.discard(id)
        if woken or seconds is not None:
            self._look_in(id, 0.0 if woken or seconds is None else seconds)

    def _load(self, id: str) -> Entry | None:
        """The entry; None if it has ended or had to be put aside. TemporaryFailure passes."""
        try:
            entry = self.spool.load_at_hand(id) if self._is_fresh(id) else None
            return entry or offload(self.spool.load, id)
        except EntryGone:
            return None
        except EntryDamaged as damage:
            self._put_aside(id, str(damage))
            return None

    def _is_fresh(self, id: str) -> bool:
        """Whether the entry was made a moment ago, so that the system has its files in memory."""
        return 0 <= self.spool.now().wall - time_of(id) < AT_HAND_SECONDS

    def _put_aside(self, id: str, reason: str) -> None:
        self.counters.damaged += 1
        try:
            offload(self.spool.quarantine, id, reason)
        except TemporaryFailure as failure:
            log.error("damaged entry not put aside", id=id, error=str(failure))

    # -------------------------------------------------------------- an entry that is due

    def _open_entry(self, id: str) -> None:
        try:
            entry = self._load(id)
        except TemporaryFailure as failure:
            log.warning("queue entry not read", id=id, error=str(failure))
            self._release(id, AGAIN_SECONDS)
            return
        if entry is None:
            self._release(id, None)
            return
        now = self.spool.now()
        wait = entry.wait(now)
        early = entry.not_before is not None and entry.not_before > now.wall  # a release has no slack
        if wait > SLACK_SECONDS or early or entry.over:
            self._put_back(entry, wait)
            return
        if any(one.report for one in entry.recipients):
            self._release(entry.id, self._telling.report(entry))
            return
        if self._telling.overdue(entry, now):
            self._release(entry.id, self._telling.give_notice(entry, now))
            return
        self._line_up(entry, now)

    def _put_back(self, entry: Entry, wait: float) -> None:
        if entry.over:  # the command line cancelled all that waited, or somebody is to be asked first
            self._finish(entry)
            return
        self._tell(entry)
        self._release(entry.id, wait)

    def _line_up(self, entry: Entry, now: Stamp) -> None:
        """Each destination of the recipients that are due gets the entry."""
        names = dict.fromkeys(self._destination(entry, one) for one in self._due_now(entry, now))
        self._busy[entry.id] = max(1, len(names))
        if not names:
            self._release(entry.id, max(1.0, entry.wait(now)))
            return
        read_at = self._monotonic()
        self._lined_up[entry.id] = time.monotonic()
        for name in names:
            if entry.asked_at is not None:
                self._lanes.end_rest(name, max(0.0, now.wall - entry.asked_at))
            kept = entry if self._open < KEPT_OPEN else None
            self._open += kept is not None
            self._lanes.add(name, _Turn(entry.id, kept, read_at))
        self._begin_attempts()

    def _due_now(self, entry: Entry, now: Stamp) -> list[Recipient]:
        return [one for one in entry.waiting if entry.remaining(one.next_at, now) <= SLACK_SECONDS]

    def _destination(self, entry: Entry, recipient: Recipient) -> str:
        if self.ways.is_local(recipient.address.domain):
            return LOCAL  # a domain of ours is never sent out (B20)
        return self.ways.destination(entry.envelope, recipient.address)

    def _begin_attempts(self) -> None:
        while not self._stopping and (turn := self._lanes.take()) is not None:
            self._attempts.spawn(self._attempt, *turn)

    # -------------------------------------------------------------- an attempt

    def _attempt(self, lane: Lane[_Turn], turn: _Turn) -> None:
        outcomes: list[Outcome] = []
        again: float | None = AGAIN_SECONDS
        try:
            entry = self._current(turn)
            if entry is None:
                again = None
            else:
                again = self._try(lane, entry, outcomes)
        except TemporaryFailure as failure:
            log.warning("queue entry not tried", id=turn.id, error=str(failure))
        except Exception:
            log.exception("attempt failed", id=turn.id, destination=lane.name)
        finally:
            self._lanes.done(lane, outcomes)
            self._release(turn.id, again)
            self._begin_attempts()

    def _current(self, turn: _Turn) -> Entry | None:
        entry, turn.entry = turn.entry, None
        if entry is not None:
            self._open -= 1
            if self._monotonic() - turn.read_at < FRESH_SECONDS:
                return entry
        return self._load(turn.id)

    def _try(self, lane: Lane[_Turn], entry: Entry, learnt: list[Outcome]) -> float | None:
        """Try the recipients of this destination and write down what came of it; when to look again."""
        now = self.spool.now()
        due = [one for one in self._due_now(entry, now) if self._destination(entry, one) == lane.name]
        if not due or entry.hold or entry.wait(now) > SLACK_SECONDS:
            return entry.wait(now)
        if not all(may_go(entry) for may_go in self.hooks.may_go):
            return self.cancel(entry.id)
        if self._lanes.is_resting(lane) and lane.last is not None:
            return self._put_off(lane, lane.last, entry, due)
        # A message that was accepted before this runner began is looked at with more care than one just written.
        thoroughly = entry.arrived_at < self._started_wall or any(one.attempts for one in due)
        try:
            if not thoroughly and self._is_fresh(entry.id):
                self.spool.check(entry, thoroughly=False)
            else:
                offload(self.spool.check, entry, thoroughly=thoroughly)
        except EntryGone:
            return None
        except EntryDamaged as damage:
            self._put_aside(entry.id, str(damage))
            return None
        outcomes = self._run_jobs(lane.name, entry, due)
        learnt += outcomes
        return self._record(entry.id, lane.name, outcomes, known=entry)

    def _put_off(self, lane: Lane[_Turn], last: Outcome, entry: Entry, due: Sequence[Recipient]) -> float | None:
        """The destination rests: no attempt is made, none is counted, and all look again when the rest is over. Written
        down where nothing says yet why the entry waits, and where its time is over.
        """
        after = self._lanes.rest_left(lane) * random.uniform(1.0, 1.0 + self.schedule.jitter) + 0.01
        if all(one.history for one in due) and entry.tried_for(self.spool.now()) < self.schedule.expire:
            return after
        return self._record(entry.id, lane.name, [_not_tried(one.address, last) for one in due], after=after)

    def _run_jobs(self, destination: str, entry: Entry, due: Sequence[Recipient]) -> list[Outcome]:
        way = self.ways.deliver if destination == LOCAL else self.ways.relay
        outcomes: list[Outcome] = []
        for start in range(0, len(due), RECIPIENTS_PER_JOB):
            if self._stopping and start:
                break  # the rest is the next runner's
            some = due[start : start + RECIPIENTS_PER_JOB]
            recipients = tuple((one.address, _told_onward(one)) for one in some)
            job = Job(
                entry.id, entry.envelope, recipients, self.spool.message_path(entry.id), entry.size,
                account=AccountId(entry.origin.account),
                ours=entry.origin.service in (bounce.REPORT, bounce.LAST_REPORT),
            )  # fmt: skip
            self.counters.attempts += 1
            try:
                said = {outcome.recipient: outcome for outcome in way(job)}
            except Exception:  # our bug, not the recipient's fault
                log.exception("attempt failed", id=entry.id, destination=destination)
                said = {}
            missing = Outcome(some[0].address, Disposition.LATER, 451, "4.3.0", "Internal error; it is tried again")
            outcomes += [said.get(one.address) or replace(missing, recipient=one.address) for one in some]
        return outcomes

    def _record(
        self, id: str, destination: str, outcomes: Sequence[Outcome], *, after: float | None = None,
        known: Entry | None = None,
    ) -> float | None:  # fmt: skip
        """Write down what came of an attempt, however long the disk takes to let us; when to look again. `after`: there
        was no attempt, and there is none for so many seconds. `known`: the entry as it was tried, which is used up.
        """
        said = {outcome.recipient: outcome for outcome in outcomes}
        others = self._busy.get(id, 1) > 1  # attempts under way, whose result is to be written too
        if others:
            known = None  # they have it too

        def merge(entry: Entry) -> bool:
            now = self.spool.now()
            for one in entry.recipients:
                outcome = said.get(one.address)
                # What left before the cancellation reached it was sent, whatever was wished.
                too_late = one.state == CANCELLED and outcome is not None and outcome.disposition is Disposition.SENT
                if outcome is not None and (one.state == WAITING or too_late):
                    self._apply(entry, one, destination, outcome, now, after)
            if after is None:
                entry.asked_at = None
            return not entry.over or others or self._is_asked_for(entry)

        pause = 0.1
        while True:
            try:
                entry = self._change(id, merge, known)
                break
            except EntryGone:
                for outcome in outcomes:
                    if outcome.disposition is Disposition.SENT:
                        log.warning("sent before it was removed", id=id, recipient=str(outcome.recipient))
                return None
            except EntryDamaged as damage:
                self._put_aside(id, str(damage))
                return None
            except TemporaryFailure as failure:
                known = None
                log.error("result not written yet", id=id, error=str(failure), outcomes=len(outcomes))
                gevent.sleep(pause)
                pause = min(pause * 2, AGAIN_SECONDS)
        self._log(entry, outcomes)
        if entry.over and (others or self._is_asked_for(entry)):
            return 0.0  # whoever is last ends it
        self._tell(entry)
        if entry.over:
            self.counters.ended += 1
            return None
        return 0.0 if any(one.report for one in entry.recipients) else entry.wait(self.spool.now())

    def _change_all(self, changes: Sequence[_Change]) -> Sequence[Entry | Exception]:
        acts = [(id, act) for id, act, _ in changes]
        return offload(self.spool.change_all, acts, [known for _, _, known in changes])

    def _change(self, id: str, act: Callable[[Entry], bool], known: Entry | None) -> Entry:
        """As `Spool.change`, together with others."""
        try:
            return self._changes((id, act, known))
        except EntryBusy:
            return offload(self.spool.change, id, act)  # it may take a while, and nobody else waits for it

    def _apply(
        self, entry: Entry, one: Recipient, destination: str, outcome: Outcome, now: Stamp, after: float | None
    ) -> None:
        one.destination = destination
        one.note(outcome, now.wall, tried=after is None)
        wants = one.options.notify
        if outcome.disposition is Disposition.SENT:
            one.state = SENT
            if "SUCCESS" in wants and not outcome.dsn_relayed:
                one.report = "delivered" if destination == LOCAL else "relayed"  # RFC 3461 5.2.2
        elif outcome.disposition is Disposition.NEVER:
            self._fail(one)
        elif entry.tried_for(now) >= self.schedule.expire:
            days = self.schedule.expire / 86400
            expired = Outcome(
                one.address, Disposition.NEVER, outcome.code, "4.4.7",
                f"Not delivered within {days:g} days; at last: {outcome.text}", outcome.host, outcome.tls,
            )  # fmt: skip
            one.history.pop()
            one.note(expired, now.wall, tried=False)
            self.counters.expired += 1
            self._fail(one)
        else:
            entry.delay(one, self.schedule.pause(one.attempts) if after is None else after, now)
            if self.schedule.notice and not one.noticed and one.notice_at is None and _wants_notice(one):
                entry.delay_notice(one, max(0.0, self.schedule.notice - entry.tried_for(now)), now)

    def _fail(self, one: Recipient) -> None:
        one.state = FAILED
        if not one.options.notify or "FAILURE" in one.options.notify:
            one.report = "failed"

    def _log(self, entry: Entry, outcomes: Sequence[Outcome]) -> None:
        tried = {outcome.recipient for outcome in outcomes}
        for one in entry.recipients:
            last = one.last
            if one.address not in tried or last is None:
                continue
            said = {
                "id": entry.id, "recipient": str(one.address), "host": last.host, "code": last.code,
                "enhanced": last.enhanced, "reply": last.text, "tls": last.tls, "attempt": one.attempts,
            }  # fmt: skip
            if one.state == SENT:
                self.counters.sent += 1
                log.info("sent", **said, age_s=round(entry.age(self.spool.now()), 1))
            elif one.state == FAILED:
                self.counters.failed += 1
                log.warning("undeliverable", **said)
            elif one.state == WAITING:
                self.counters.deferred += 1
                log.info("deferred", **said, next_in_s=round(entry.remaining(one.next_at, self.spool.now())))

    def _tell(self, entry: Entry) -> None:
        for hook in self.hooks.changed:
            try:
                hook(entry)
            except Exception:
                log.exception("queue hook failed", id=entry.id)

    def _tell_of_slow_ones(self) -> None:
        """A host may take ten minutes to say nothing; whoever shows what waits need not."""
        while True:
            gevent.sleep(SLOW_SECONDS / 2)
            before = time.monotonic() - SLOW_SECONDS
            while (id := next(iter(self._lined_up), "")) and self._lined_up[id] <= before:
                del self._lined_up[id]
                try:
                    entry = self._load(id)
                except TemporaryFailure as failure:
                    log.warning("queue entry not read", id=id, error=str(failure))
                    continue
                if entry is not None and not entry.over:
                    self._tell(entry)

    def _ended(self, entry: Entry) -> None:
        self.counters.ended += 1
        self._tell(entry)

    def cancel(self, id: str) -> float | None:
        """Whoever may do so has taken the message back. While attempts are under way the entry stays: what they send
        all the same is to be written down.
        """
        busy = id in self._busy

        def cancel(entry: Entry) -> bool:
            for one in entry.waiting:
                one.state = CANCELLED
                self.counters.cancelled += 1
            return not entry.over or busy or self._is_asked_for(entry)

        try:
            entry = offload(self.spool.change, id, cancel)
        except (EntryGone, EntryDamaged):
            return 0.0
        log.info("cancelled", id=id)
        if entry.over and (busy or self._is_asked_for(entry)):
            self.wake(id)
            return 0.0
        self._tell(entry)
        return None if entry.over else 0.0

    def _is_asked_for(self, entry: Entry) -> bool:
        """Whether somebody wants to be asked before the entry ends."""
        return bool(self.hooks.may_end) and entry.origin.service == SCHEDULED

    def _finish(self, entry: Entry) -> None:
        """Nothing is left to be done for the entry: it ends, unless that has changed."""
        id = entry.id
        if self._is_asked_for(entry) and not all(may_end(entry) for may_end in self.hooks.may_end):
            self._release(id, AGAIN_SECONDS)
            return
        try:
            entry = offload(self.spool.change, id, lambda entry: not entry.over)
        except (EntryGone, EntryDamaged):
            self._release(id, None)
            return
        except TemporaryFailure as failure:
            log.warning("queue entry not removed", id=id, error=str(failure))
            self._release(id, AGAIN_SECONDS)
            return
        self._tell(entry)
        self.counters.ended += entry.over
        self._release(id, None if entry.over else 0.0)


def _not_tried(address: Address, last: Outcome) -> Outcome:
    """The destination just did not work for others."""
    text = f"Not tried: the destination did not work shortly before: {last.text}"
    return Outcome(address, Disposition.LATER, last.code, last.enhanced, text, last.host)


def _wants_notice(one: Recipient) -> bool:
    return not one.options.notify or "DELAY" in one.options.notify


def _told_onward(one: Recipient) -> RecipientOptions:
    """What the next host is asked to report. RFC 3461 5.2.1: the address the sender named goes with it."""
    if one.via is not None and not one.options.orcpt:
        return replace(one.options, orcpt=f"rfc822;{one.via}")
    return one.options
