"""The mailboxes of this process: one shared state per open mailbox, changed only by what the index committed.

Every operation runs in the thread pool, then announces the mailbox id. The announcement marks the state stale; the
first session that looks reads what was committed since the state's modseq and applies it, all others find it
current. So own changes, other sessions', other processes' and other programs' changes arrive by one road, in commit
order.

`uids`, `flags`, `keywords`, `modseqs` are parallel and ascending by UID. New messages are appended to them and flags
written in place; an expunge makes new arrays, so that a session may keep (array, count) as what its client was told.

Imports: mail.notify, store, log, errors, values, gevent.lock.    RFC 3501 5.2, RFC 7162 3.1.
"""

from __future__ import annotations

import time
from array import array
from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import compress
from typing import Any, ParamSpec, Protocol, TypeVar

from gevent.event import Event
from gevent.lock import BoundedSemaphore

from mailsrv.errors import MailboxNotFound, ModSeqTooOld, TemporaryFailure
from mailsrv.mail.delivery import Deliveries
from mailsrv.mail.gate import Gate, writers_at_once
from mailsrv.mail.notify import Registry, Subscription
from mailsrv.mail.pushes import Pushes
from mailsrv.store.account import AccountStore, Arrival, Incoming, Prepare, Staged
from mailsrv.store.files import offload
from mailsrv.store.names import INBOX
from mailsrv.values import (
    Account,
    AccountId,
    Appended,
    Changed,
    Copied,
    Delta,
    FlagOp,
    MailboxId,
    MailboxInfo,
    MailboxStatus,
    Row,
    Snapshot,
    Stored,
)

P = ParamSpec("P")
T = TypeVar("T")
A = TypeVar("A")

THREADS_PER_ACCOUNT = 4  # of the pool's: one account's bulk work cannot hold up the others
KEPT_ACCOUNTS = 1000
KEPT_CLOSED = 64
KEPT_CLOSED_MESSAGES = 300_000
LOG_LENGTH = 4096
NOTICED = 16  # of the messages of one look
LOOKS_AT_ONCE, WORKS_AT_ONCE = 3, 1
FEW = 20  # messages
EVERY = ""  # stands for any name in a mailbox's directories


@dataclass(frozen=True, slots=True)
class Changes:
    """What a reader at some modseq does not know yet; each list ascending by UID."""

    arrived: list[int]
    changed: list[int]
    vanished: list[int]
    modseq: int


def add_range(ranges: list[tuple[int, int]], first: int, last: int) -> None:
    """Half-open ranges, ascending: mostly the new one goes on where the last one ends."""
    if ranges and ranges[-1][1] == first:
        ranges[-1] = (ranges[-1][0], last)
    else:
        insort(ranges, (first, last))


class Hearing(Protocol):
    """Who hears of what other programs do in the directories of open mailboxes."""

    def heard(self, mailbox: MailboxId) -> dict[str, int]:
        """Names that came or went and were not looked at yet, each with a number; EVERY if it is not known which."""

    def looked_at(self, mailbox: MailboxId, names: dict[str, int]) -> None:
        """These were looked at."""

    def doubt(self, mailbox: MailboxId) -> None:
        """A change of ours failed on its way: what it did to names is not in the index."""


class Deaf:
    def heard(self, mailbox: MailboxId) -> dict[str, int]:
        return {}

    def looked_at(self, mailbox: MailboxId, names: dict[str, int]) -> None:
        pass

    def doubt(self, mailbox: MailboxId) -> None:
        pass


class Mailbox:
    """One open mailbox, shared by all sessions of the process that have it selected."""

    __slots__ = (
        "_account",
        "_claimed",
        "_last_question",
        "_lock",
        "_log",
        "_log_floor",
        "_owner",
        "_pushes",
        "_recent_below",
        "_stale",
        "flags",
        "generation",
        "gone",
        "highest_modseq",
        "id",
        "keyword_names",
        "keywords",
        "modseqs",
        "name",
        "sessions",
        "uidnext",
        "uids",
        "uidvalidity",
        "writers",
    )  # fmt: skip

    def __init__(self, owner: Mailboxes, account: AccountMail, info: MailboxInfo, snapshot: Snapshot) -> None:
        self._owner, self._account = owner, account
        self.id, self.name, self.uidvalidity = info.id, info.name, info.uidvalidity
        self.sessions = 0
        self.writers = 0  # sessions that are not read-only: one of them is told first that a message is recent
        self._claimed: list[tuple[int, int]] | None = None
        self._recent_below = 0  # UIDs below it were claimed as recent, here or in another process
        self.gone = False
        self.generation = 0
        self._stale = False
        self._lock: BoundedSemaphore | None = None
        self._pushes: Pushes | None = None
        self._adopt(snapshot)

    def _adopt(self, snapshot: Snapshot) -> None:
        self.uids, self.flags = snapshot.uids, snapshot.flags
        self.keywords, self.modseqs = snapshot.keywords, snapshot.modseqs
        self.keyword_names, self.uidnext = snapshot.keyword_names, snapshot.uidnext
        self.highest_modseq = snapshot.highest_modseq
        self.generation += 1
        self._log: list[tuple[int, int, bool]] = []  # (modseq, uid, vanished), ascending by modseq
        self._log_floor = snapshot.highest_modseq  # a reader at or above it can be answered from the log
        self._last_question: tuple[int, array[int], int, Changes] | None = None

    # -------------------------------------------------------------- being told, and looking

    def mark_stale(self) -> None:
        self._stale = True

    def subscribe(self, event: Event) -> Subscription:
        return self._owner.registry.subscribe(self.id, event)

    def refresh(self) -> None:
        """Bring the state to the last commit if it may be behind; waits for a look that is under way.

        Afterwards `gone` may be set.
        """
        while (self._stale or (self._lock is not None and self._lock.locked())) and not self.gone:
            if self._lock is None:
                self._lock = BoundedSemaphore(1)
            with self._lock:
                if not self._stale:
                    return
                self._stale = False  # before the look: a change during it marks the state again
                try:
                    self._look()
                except BaseException:
                    self._stale = True
                    raise

    def _look(self) -> None:
        store, hearing = self._account.store, self._owner.hearing
        heard = hearing.heard(self.id)

        def look() -> tuple[Delta, bool]:
            delta = store.changes(self.id.number, self.highest_modseq)
            return delta, bool(heard) and EVERY not in heard and store.agrees(self.id.number, heard)

        try:
            delta, agreed = self._account.run(look)
        except ModSeqTooOld:
            # Expunges were forgotten (or the index was made anew): compare from scratch.
            self._adopt(self._account.run_long(store.snapshot, self.id.number))
        except MailboxNotFound:
            self.gone = True
        else:
            self._apply(delta)
            if agreed:  # what was heard was another process of ours, as mostly
                hearing.looked_at(self.id, heard)

    def take(self, appended: Appended) -> bool:
        """A commit of this process, taken over as it is if it is the very next one; False: the index must be asked.

        The modseqs are a chain: whoever knows everything up to `previous_modseq` knows everything now.
        """
        if appended.recent != (0, 0):
            if self._claimed is None:
                self._claimed = []
            add_range(self._claimed, *appended.recent)
            self._recent_below = appended.recent[1]
        busy = self._stale or (self._lock is not None and self._lock.locked())
        if busy or appended.previous_modseq != self.highest_modseq:
            return False
        one = Changed(appended.uid, appended.flags, appended.keywords, appended.modseq)
        self._apply(Delta([one], [], appended.keyword_names, appended.uid + 1, appended.modseq))
        return True

    def _apply(self, delta: Delta) -> None:
        # No switch here: other sessions see the state before or after, never between.
        before = (self.highest_modseq, self.uids, len(self.uids))
        self.keyword_names, self.uidnext = delta.keyword_names, delta.uidnext
        news: list[tuple[int, int, bool]] = []
        positions = self._positions([uid for uid, _ in delta.vanished])
        vanished = [self.uids[position] for position in positions]
        if vanished:
            self._remove(positions)
            news.extend((modseq, uid, True) for uid, modseq in delta.vanished)
        uids = self.uids
        last = uids[-1] if uids else 0
        arrived, changed, strays = [], [], []
        for uid, flags, keywords, modseq in delta.changed:
            if uid > last:
                uids.append(uid)
                self.flags.append(flags)
                self.keywords.append(keywords)
                self.modseqs.append(modseq)
                arrived.append(uid)
            else:
                position = bisect_left(uids, uid)
                if uids[position] != uid:
                    strays.append((uid, flags, keywords, modseq))
                    continue
                self.flags[position], self.keywords[position] = flags, keywords
                self.modseqs[position] = modseq
                changed.append(uid)
            news.append((modseq, uid, False))
        if strays:  # a UID below the highest appeared (an old copy of a file came back): make new arrays
            self._insert(strays)
            news.extend((modseq, uid, False) for uid, _, _, modseq in strays)
        news.sort()
        self._log.extend(news)
        if len(self._log) > LOG_LENGTH:
            cut = len(self._log) - LOG_LENGTH // 2
            self._log_floor = self._log[cut - 1][0]
            del self._log[:cut]
        self.highest_modseq = max(self.highest_modseq, delta.highest_modseq)
        # Who knew everything before will ask next, and this is the answer.
        changes = Changes(arrived, changed, vanished, self.highest_modseq)
        self._last_question = None if strays else (*before, changes)
        if self._owner.registry.watchers(self.id):
            for uid, _, _, modseq in delta.changed[-NOTICED:]:
                if uid > last:
                    self._watched().noticed(modseq, uid)

    def _positions(self, wanted: list[int]) -> list[int]:
        """Where those of the UIDs are in the arrays that are there."""
        uids, count = self.uids, len(self.uids)
        return [at for uid in wanted if (at := bisect_left(uids, uid)) < count and uids[at] == uid]

    def _remove(self, positions: list[int]) -> None:
        uids, flags, keywords, modseqs = array("I"), bytearray(), array("I"), array("Q")
        start = 0
        for position in [*positions, len(self.uids)]:
            uids.extend(self.uids[start:position])
            flags += self.flags[start:position]
            keywords.extend(self.keywords[start:position])
            modseqs.extend(self.modseqs[start:position])
            start = position + 1
        self.uids, self.flags, self.keywords, self.modseqs = uids, flags, keywords, modseqs
        self.generation += 1

    def _insert(self, strays: list[tuple[int, int, int, int]]) -> None:
        rows = list(zip(self.uids, self.flags, self.keywords, self.modseqs, strict=True))
        rows = sorted([*rows, *strays])
        self.uids, self.flags = array("I", [r[0] for r in rows]), bytearray(r[1] for r in rows)
        self.keywords, self.modseqs = array("I", [r[2] for r in rows]), array("Q", [r[3] for r in rows])
        self.generation += 1

    def position(self, uid: int) -> int | None:
        """Index of the UID in the arrays; None if it is not there."""
        position = bisect_left(self.uids, uid)
        return position if position < len(self.uids) and self.uids[position] == uid else None

    def changes_since(self, modseq: int, known: array[int], count: int) -> Changes:
        """What a reader at `modseq`, who knows the first `count` UIDs of `known`, has to be told."""
        asked = self._last_question
        if asked is not None and asked[0] == modseq and asked[1] is known and asked[2] == count:
            return asked[3]
        if modseq >= self._log_floor:
            changes = self._from_log(modseq, known, count)
        else:
            changes = self._from_scratch(modseq, known, count)
        # A thousand watchers ask the same question in a row.
        self._last_question = (modseq, known, count, changes)
        return changes

    def _from_log(self, modseq: int, known: array[int], count: int) -> Changes:
        arrived, changed, vanished = set(), set(), set()
        for position in range(bisect_right(self._log, (modseq, 0xFFFFFFFF, True)), len(self._log)):
            _, uid, gone = self._log[position]
            at = bisect_left(known, uid, 0, count)
            is_known = at < count and known[at] == uid
            if gone:
                arrived.discard(uid)
                changed.discard(uid)
                if is_known:
                    vanished.add(uid)
            else:
                (changed if is_known else arrived).add(uid)
        return Changes(sorted(arrived), sorted(changed), sorted(vanished), self.highest_modseq)

    def _from_scratch(self, modseq: int, known: array[int], count: int) -> Changes:
        # Of a hundred thousand messages: no Python step for each, so that the loop is not held for long.
        newer = list(compress(self.uids, map(modseq.__lt__, self.modseqs)))
        if known is self.uids:  # which grow in place, and are made anew when any goes
            last = known[count - 1] if count else 0
            return Changes(known[count:].tolist(), [uid for uid in newer if uid <= last], [], self.highest_modseq)
        old, now = set(known[:count]), set(self.uids)
        changed = [uid for uid in newer if uid in old]
        return Changes(sorted(now - old), changed, sorted(old - now), self.highest_modseq)

    # -------------------------------------------------------------- who was told when

    def note_commit(self, appended: Appended, accepted_at: float) -> None:
        """Remember when a delivery was accepted and committed, so that its push can be told in milliseconds."""
        self._watched().committed(appended.modseq, appended.uid, appended.committed_at, accepted_at)

    def told(self, modseq: int, session: str) -> None:
        """A session wrote everything up to `modseq` to its client."""
        if self._pushes is not None:
            self._pushes.told(modseq, session)

    def _watched(self) -> Pushes:
        if self._pushes is None:
            self._pushes = Pushes(self.id, self.name, self._owner.registry)
        return self._pushes

    # -------------------------------------------------------------- operations

    def offload(self, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run something expensive in a thread, within this account's share of the pool."""
        return self._account.run_long(fn, *args, **kwargs)

    def claim_recent(self) -> list[tuple[int, int]]:
        """Ranges of UIDs (half-open) that no session was told of as recent; the caller is, now."""
        claimed, self._claimed = self._claimed or [], None
        before, self._recent_below = self._recent_below, max(self._recent_below, self.uidnext)  # others need not ask
        if before < self.uidnext:
            try:
                claimed.append(self._account.run(self._account.store.claim_recent, self.id.number))
            except BaseException:
                self._recent_below = before
                raise
        return [(first, last) for first, last in claimed if first < last]

    @property
    def recent_is_known(self) -> bool:
        """Whether `claim_recent` answers without asking the index."""
        return self._recent_below >= self.uidnext

    @contextmanager
    def _announced_anyway(self, *mailboxes: MailboxId) -> Iterator[None]:
        """What fails may have been committed before: a directory that cannot be synced. Whoever watches looks."""
        try:
            yield
        except TemporaryFailure:
            for mailbox in mailboxes:
                self._owner.hearing.doubt(mailbox)
                self._owner.registry.publish(mailbox)
            raise

    @contextmanager
    def looked_at(self) -> Iterator[Callable[[], None]]:
        """A look at what other programs did in the directory, for a thread.

        What follows from a message's flags is asked of the files, not of what the index remembers of them.
        """
        hearing = self._owner.hearing
        heard = hearing.heard(self.id)
        looks: list[bool] = []

        def look() -> None:
            looks.append(self._account.store.reconcile(self.id.number, full=EVERY in heard, heard=heard))

        try:
            yield look
        finally:
            if looks:  # it did not fail
                hearing.looked_at(self.id, heard)

    def _change(self, uids: Sequence[int] | None, act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """A change of messages, after a look, in one task."""
        with self.looked_at() as look:

            def looked_first() -> T:
                look()
                return act(*args, **kwargs)

            return self._account.run_for(uids, looked_first)

    def store_flags(
        self, uids: Sequence[int], op: FlagOp, flags: int, keywords: Sequence[str], unchanged_since: int | None = None
    ) -> Stored:
        store = self._account.store
        with self._announced_anyway(self.id):
            result = self._change(uids, store.store_flags, self.id.number, uids, op, flags, keywords, unchanged_since)
        if result.changed:
            self._owner.registry.publish(self.id)
        return result

    def copy(self, uids: Sequence[int], target: str, *, whole: bool = False) -> Copied:
        """All of those that are there; with `whole` MessageGone unless all are."""
        account = self._account
        to = account.run(account.store.mailbox, target)
        quota = account.account.quota_bytes
        with self._announced_anyway(to.id):
            result = self._change(uids, account.store.copy, self.id.number, uids, to.id.number, quota, whole=whole)
        if result.target_uids:
            self._owner.registry.publish(to.id)
        return result

    def move(self, uids: Sequence[int], target: str, *, whole: bool = False) -> Copied:
        account = self._account
        to = account.run(account.store.mailbox, target)
        with self._announced_anyway(to.id, self.id):
            result = self._change(uids, account.store.move, self.id.number, uids, to.id.number, whole=whole)
        if result.target_uids:
            self._owner.registry.publish(to.id)
            self._owner.registry.publish(self.id)
        return result

    def expunge(self, uids: Sequence[int] | None = None) -> list[int]:
        with self._announced_anyway(self.id):
            gone = self._change(uids, self._account.store.expunge, self.id.number, uids)
        if gone:
            self._owner.registry.publish(self.id)
        return gone

    def rows(self, uids: Sequence[int]) -> list[Row]:
        return self._account.run(self._account.store.rows, self.id.number, uids)

    def prepared(self, uids: Sequence[int], parts: Sequence[str], *, alone: bool = False) -> list[tuple[Any, ...]]:
        """(uid, size, internal date, *parts of Prepared), ascending, of those that are there; `alone`: without size
        and date, which may be 0.
        """
        return self._account.run(self._account.store.prepared, self.id.number, uids, parts, alone=alone)

    def search_text(self, uids: Sequence[int], column: str, needle: str) -> list[int]:
        return self._account.run_long(self._account.store.search_text, self.id.number, uids, column, needle)

    def read(self, uid: int) -> bytes:
        return self._account.run(self._account.store.read, self.id.number, uid)

    def read_many(self, uids: Sequence[int], limit_bytes: int) -> list[tuple[int, bytes]]:
        return self._account.run(self._account.store.read_many, self.id.number, uids, limit_bytes)

    def reader(self, limit_bytes: int) -> Callable[[Sequence[int]], list[tuple[int, bytes]]]:
        """`read_many` for work that is in a thread already (see `offload`)."""
        store, number = self._account.store, self.id.number
        return lambda uids: store.read_many(number, uids, limit_bytes)

    def status(self) -> MailboxStatus:
        return self._account.run(self._account.store.status, self.id.number)

    def close(self) -> None:
        self._owner.close(self)


class AccountMail:
    """The mail of one account, off the hub and announced: what sessions and deliveries act on."""

    __slots__ = ("_deliveries", "_inbox", "_owner", "_threads", "account", "store")

    def __init__(self, owner: Mailboxes, account: Account, store: AccountStore) -> None:
        self._owner, self.account, self.store = owner, account, store
        self._threads = BoundedSemaphore(THREADS_PER_ACCOUNT)
        self._inbox: MailboxInfo | None = None
        self._deliveries: Deliveries | None = None  # from the first one on

    def run(self, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        with self._threads, self._owner.looking, self._announcing():
            return offload(fn, *args, **kwargs)

    def run_for(self, uids: Sequence[int] | None, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`run` for a few messages, `run_long` for many."""
        if uids is not None and len(uids) <= FEW:
            return self.run(fn, *args, **kwargs)
        return self.run_long(fn, *args, **kwargs)

    def _run_delivery(self, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            with self._threads, self._owner.delivering, self._announcing():
                return offload(fn, *args, **kwargs)
        except MailboxNotFound:
            self._inbox = None  # somebody replaced it on disk: the sender's next attempt finds the new one
            raise

    def _deliver_to(self, fn: Callable[[int, A], T], number: int, what: A) -> T:
        """Into a mailbox. What fails at the very end was committed and taken back: who saw it meanwhile looks again."""
        try:
            return self._run_delivery(fn, number, what)
        except TemporaryFailure:
            self._owner.registry.publish(MailboxId(self.account.id, number))
            raise

    def run_long(self, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As `run`, for work whose length depends on the mailbox: it waits behind other such work."""
        with self._threads, self._owner.working, self._announcing():
            return offload(fn, *args, **kwargs)

    def _announcing(self) -> _Announcing:
        return _Announcing(self)

    def announce_found(self) -> None:
        """Whoever looks at a mailbox, if only for STATUS, may be who finds what another program did there."""
        found = self.store.found
        while found:
            self._owner.registry.publish(MailboxId(self.account.id, found.pop()))

    def _claims(self, number: int) -> bool:
        """Whether a session of this process is about to be told of what arrives there."""
        state = self._owner.find_open(MailboxId(self.account.id, number))
        return state is not None and state.writers > 0

    def mailboxes(self) -> list[MailboxInfo]:
        return self.run(self.store.mailboxes)

    def find(self, name: str) -> MailboxInfo:
        return self.run(self.store.mailbox, name)

    def inbox(self) -> MailboxInfo:
        """INBOX, remembered: its number is for life, and deliveries ask each time."""
        if self._inbox is None:
            self._inbox = self.find(INBOX)
        return self._inbox

    def status(self, name: str) -> MailboxStatus:
        return self.run(lambda: self.store.status(self.store.mailbox(name).id.number))

    def create(self, name: str, special_use: str | None = None) -> MailboxInfo:
        info = self.run_long(self.store.create, name, special_use)
        self._owner.registry.publish(info.id, everyone=True)
        return info

    def delete(self, name: str) -> None:
        self._owner.registry.publish(self.run_long(self.store.delete, name))

    def rename(self, old: str, new: str) -> None:
        for mailbox in self.run_long(self.store.rename, old, new):
            self._owner.registry.publish(mailbox, everyone=True)

    def subscriptions(self) -> list[str]:
        return self.run(self.store.subscriptions)

    def subscribe(self, name: str) -> None:
        self.run(self.store.subscribe, name)

    def unsubscribe(self, name: str) -> None:
        self.run(self.store.unsubscribe, name)

    def usage(self) -> int:
        return self.run(self.store.usage)

    def incoming(self, prefix: bytes = b"") -> Incoming:
        """Where a message on its way in is collected; `spill` it with `self.run` when `write` says so."""
        return Incoming(self.store.tmp_dir, prefix)

    def append(
        self, name: str, message: Incoming, *, flags: int = 0, keywords: Sequence[str] = (),
        internal_date: int | None = None,
    ) -> Appended:  # fmt: skip
        """APPEND: durable and announced when this returns."""
        accepted_at = time.monotonic()
        number = self.find(name).id.number
        arrival = Arrival(
            message, b"", flags, keywords, internal_date, self.account.quota_bytes, self._claims(number)
        )  # fmt: skip
        appended = self._deliver_to(self.store.append, number, arrival)
        self._owner.announce(appended, accepted_at)
        return appended

    def change_flags(self, number: int, uid: int, op: FlagOp, keywords: Sequence[str], flags: int = 0) -> None:
        """Of one message, in a mailbox that need not be open; announced if anything changed."""
        if self.run(self.store.store_flags, number, [uid], op, flags, keywords).changed:
            self._owner.registry.publish(MailboxId(self.account.id, number))

    def remove(self, number: int, uids: Sequence[int]) -> None:
        """Messages, marked deleted or not; announced."""
        if self.run(self.store.remove, number, uids):
            self._owner.registry.publish(MailboxId(self.account.id, number))

    def move(self, number: int, uid: int, target: MailboxInfo) -> None:
        """One message into another mailbox, if it is still there; announced."""
        if self.run(self.store.move, number, [uid], target.id.number).target_uids:
            self._owner.registry.publish(target.id)
            self._owner.registry.publish(MailboxId(self.account.id, number))

    def special(self, use: str, name: str, *, other_than: MailboxId) -> MailboxInfo:
        """The mailbox for that use (RFC 6154); without one, the mailbox of that name, made if need be."""
        for info in self.mailboxes():
            if info.special_use == use and info.id != other_than:
                return info
        try:
            return self.find(name)
        except MailboxNotFound:
            return self.create(name, use)

    def stage(self, message: Incoming, *, prefix: bytes) -> Staged:
        """A message for one of several mailboxes: written and synced, to be placed when all are."""
        return self._run_delivery(self.store.stage, Arrival(message, prefix, quota_bytes=self.account.quota_bytes))

    def place(self, number: int, staged: Staged) -> Appended:
        staged.claim_recent = self._claims(number)
        return self._deliver_to(self.store.place, number, staged)

    def deliver(self, number: int, message: Incoming, *, prefix: bytes, flags: int = 0) -> Appended:
        """Durable when this returns, not announced yet. Small messages that arrive meanwhile go together."""
        arrival = Arrival(
            message, prefix, flags, quota_bytes=self.account.quota_bytes, claim_recent=self._claims(number)
        )
        if message.text() is None:  # in a file of its own already: nothing is won, and others would wait for it
            return self._deliver_to(self.store.append, number, arrival)
        if self._deliveries is None:
            append_all = self.store.append_all
            self._deliveries = Deliveries(lambda number, lot: self._deliver_to(append_all, number, lot))
        return self._deliveries.deliver(number, arrival)


class _Announcing:
    """`announce_found` at the end, however it comes."""

    __slots__ = ("_mail",)

    def __init__(self, mail: AccountMail) -> None:
        self._mail = mail

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._mail.announce_found()


class Mailboxes:
    """The open mailboxes of this process, and some closed ones that are likely to be opened again."""

    def __init__(
        self, registry: Registry, *, prepare: Prepare, host: str,
        on_open: Callable[[Mailbox, str], None] | None = None, on_close: Callable[[Mailbox], None] | None = None,
    ) -> None:  # fmt: skip
        self.registry = registry
        self.hearing: Hearing = Deaf()  # until somebody watches the directories
        self.delivering = Gate(writers_at_once)
        self.looking = Gate(lambda: LOOKS_AT_ONCE)
        self.working = Gate(lambda: WORKS_AT_ONCE)
        self._prepare, self._host = prepare, host
        self._accounts: OrderedDict[AccountId, AccountMail] = OrderedDict()  # least recently used first
        self._open: dict[MailboxId, Mailbox] = {}
        self._closed: OrderedDict[MailboxId, Mailbox] = OrderedDict()
        self._on_open, self._on_close = on_open, on_close
        registry.on_change.append(self._changed)

    def account(self, account: Account) -> AccountMail:
        mail = self._accounts.get(account.id)
        if mail is None or mail.account.home != account.home:
            mail = AccountMail(self, account, AccountStore(
                account.id, account.home, prepare=self._prepare, host=self._host,
            ))  # fmt: skip
            self._accounts[account.id] = mail
            self._forget_unused()
        self._accounts.move_to_end(account.id)
        mail.account = account  # the quota may have been changed
        return mail

    def _forget_unused(self) -> None:
        """Accounts beyond a bound that nobody has a mailbox of open; they are cheap to meet again."""
        if len(self._accounts) <= KEPT_ACCOUNTS:
            return
        busy = {mailbox.account for mailbox in [*self._open, *self._closed]}
        for id in list(self._accounts)[: len(self._accounts) - KEPT_ACCOUNTS]:
            if id not in busy:
                del self._accounts[id]  # its index connection, if open, is among those that are closed in turn

    def _changed(self, mailbox: MailboxId | None) -> None:
        if mailbox is None:
            for every in [*self._open.values(), *self._closed.values()]:
                every.mark_stale()
        elif (state := self._open.get(mailbox) or self._closed.get(mailbox)) is not None:
            state.mark_stale()

    def open(self, account: Account, name: str) -> Mailbox:
        """The shared state of a mailbox, current; to be closed once by each that opened it."""
        mail = self.account(account)
        info = mail.find(name)
        self.registry.follow(info.id)  # before the first look
        try:
            state = self._current(mail, info)
        except BaseException:
            self.registry.unfollow(info.id)
            raise
        self._closed.pop(info.id, None)
        state.name = info.name
        self._open[info.id] = state
        state.sessions += 1
        try:
            if state.sessions == 1 and self._on_open is not None:
                self._on_open(state, mail.run(mail.store.folder_of, info.id.number))
                self.reconcile(state)  # what another program did before the watch was there
            state.refresh()
        except BaseException:
            self.close(state)
            raise
        return state

    def _current(self, mail: AccountMail, info: MailboxInfo) -> Mailbox:
        """The shared state of a mailbox, kept or new, as of now."""
        state: Mailbox | None = self._open.get(info.id) or self._closed.get(info.id)
        if state is not None and not state.gone and state.uidvalidity == info.uidvalidity:
            mail.run_long(mail.store.refreshed, info.id.number)  # another program may have changed the directory since
            if self.hearing.heard(info.id):  # within a change of ours, so that the directory's mtime does not say it
                self.reconcile(state)
            state.mark_stale()
            state.refresh()
        else:
            state = None
        if state is None or state.gone:
            # Stale until the first look: what is committed between the snapshot and now is found then.
            snapshot = mail.run_long(mail.store.snapshot, info.id.number)
            state = self._open.get(info.id)
            if state is None or state.gone:
                state = Mailbox(self, mail, info, snapshot)
                state.mark_stale()
        return state

    def close(self, state: Mailbox) -> None:
        self.registry.unfollow(state.id)
        state.sessions -= 1
        if state.sessions:
            return
        if self._on_close is not None:
            self._on_close(state)
        if self._open.get(state.id) is state:
            del self._open[state.id]
            if not state.gone:
                self._closed[state.id] = state
        total = sum(len(kept.uids) for kept in self._closed.values())
        while self._closed and (len(self._closed) > KEPT_CLOSED or total > KEPT_CLOSED_MESSAGES):
            total -= len(self._closed.popitem(last=False)[1].uids)

    def close_all(self) -> None:
        """At the end of the process: the index connections and locks of all accounts."""
        for mail in self._accounts.values():
            mail.run(mail.store.close)

    def find_open(self, mailbox: MailboxId) -> Mailbox | None:
        return self._open.get(mailbox)

    def reconcile(self, state: Mailbox) -> None:
        """Another program may have changed the mailbox: look; what is found is announced."""
        if not state.gone:
            with state.looked_at() as look:
                state._account.run_long(look)

    def announce(self, appended: Appended, accepted_at: float) -> None:
        """A message was committed: remember its hops if somebody watches, and publish."""
        state = self._open.get(appended.mailbox)
        if state is None:
            self.registry.publish(appended.mailbox)
            return
        state.note_commit(appended, accepted_at)
        self.registry.publish(appended.mailbox, known=state.take(appended))
