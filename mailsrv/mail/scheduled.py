"""Mail that its author puts into a mailbox, to be sent later: each message there has a queue entry that waits.

The mailbox and the queue are brought together again and again, and each step leaves both such that the next look does
the rest. A message without an entry gets one, or goes back to Drafts with the reason. The entry's id is made of the
message's place and UID, so that a crash makes no second one. A message that is taken away cancels its entry, which
is asked before each attempt as in the Outbox. An entry that is over ends only when its message has gone to Sent: what
lies in the mailbox without an entry was never sent.

Imports: mail.{accounts,intake,mailbox,outbox,queue}, store, counters, log, errors, values, gevent.
docs/decisions/0040-scheduled-mail.md; RFC 5322 3.6, RFC 6409 8.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import gevent
from gevent.event import Event

from mailsrv import counters, log
from mailsrv.errors import AccountNotFound, MailboxNotFound, MailError, MessageGone, RecipientUnknown, RelayDenied
from mailsrv.mail.accounts import Accounts
from mailsrv.mail.intake import Intake, Waiting
from mailsrv.mail.mailbox import AccountMail
from mailsrv.mail.outbox import PENDING, STATES, Outbox, Shown, states_of
from mailsrv.mail.queue import Queue
from mailsrv.store import names
from mailsrv.store.entry import CANCELLED, SCHEDULED, Entry, Origin
from mailsrv.store.files import Incoming, offload
from mailsrv.values import (
    DELETED,
    DRAFT,
    SEEN,
    Account,
    AccountId,
    Address,
    Envelope,
    FlagOp,
    MailboxId,
    MailboxInfo,
    RecipientOptions,
    Row,
    Snapshot,
)

NOT_SENT = "$NotSent"  # of what went back to Drafts
SWEEP_SECONDS = 60.0  # between two looks for what other programs did
SETTLED_SECONDS = 0.1  # a directory changed longer ago than this shows the next change in its time stamp
LATE_SECONDS = 86400.0  # a time that is longer past is not meant
AHEAD_SECONDS = 366 * 86400.0
_BARE = re.compile(rb"\r(?!\n)|(?<!\r)\n")
Stamp = tuple[int, int, int]  # of a mailbox's directory: inode, and when new/ and cur/ were changed


@dataclass(slots=True)
class _Found:
    """One look at a mailbox: the entries' ids of what lies there, those whose state is not shown, and what has none."""

    known: dict[Shown, str] = field(default_factory=dict)
    unmarked: list[str] = field(default_factory=list)
    new: list[tuple[Shown, str, Row]] = field(default_factory=list)


class Unusable(Exception):
    """The message cannot be sent; the text says why, for its author."""


class Draft(Protocol):
    """A message that somebody wrote, read for sending."""

    @property
    def sender(self) -> Address: ...

    @property
    def recipients(self) -> tuple[Address, ...]: ...

    @property
    def send_at(self) -> float | None: ...


@dataclass(frozen=True, slots=True)
class Reading:
    """What is known of the grammar of messages. `draft` raises Unusable; `ready` gives the message as it goes out at a
    time, under a Message-ID if it has none; `is_utf8` says whether its header needs SMTPUTF8.
    """

    draft: Callable[[bytes, float], Draft]
    ready: Callable[[bytes, float, str], bytes]
    is_utf8: Callable[[bytes], bool]


@dataclass(frozen=True, slots=True)
class Rules:
    """`hour` is when mail leaves that names no time; the limits are those of submission."""

    mailbox: str
    hour: int = 8
    hostname: str = "localhost"
    message_bytes: int = 50 * 1024 * 1024
    recipients: int = 1000


def next_hour(hour: int, now: float) -> float:
    """The next time that a clock on the wall here shows that hour."""
    year, month, day, *_ = time.localtime(now)
    times = (time.mktime((year, month, day + days, hour, 0, 0, 0, 0, -1)) for days in range(3))
    return next(at for at in times if at > now)


def entry_id(place: Shown, base: str) -> str:
    """The id of a message's entry: the same each time, and of the form that all ids have (the time the message came,
    then what makes it unlike others).
    """
    came = names.arrival(base)
    seconds = came if 0 < came < 1 << 32 else place.uidvalidity
    words = f"{place.mailbox.account} {place.mailbox.number} {place.uidvalidity} {place.uid}"
    digest = int.from_bytes(hashlib.sha256(words.encode()).digest()[:8])
    return f"{seconds * 1_000_000 + digest % 1_000_000:014x}{digest >> 48:04x}"


class Scheduled:
    """Keeps the mailboxes for scheduled mail and the queue together; one in the whole server."""

    def __init__(self, intake: Intake, accounts: Accounts, queue: Queue, rules: Rules, reading: Reading) -> None:
        self._intake, self._mailboxes, self._outbox = intake, intake.mailboxes, Outbox(intake.mailboxes)
        self._accounts, self._queue, self._rules, self._reading = accounts, queue, rules, reading
        self._directory = names.directory(names.canonical(rules.mailbox))
        self._homes: dict[AccountId, Account] = {}
        self._pending: dict[AccountId, None] = {}
        self._all = True
        self._stir = Event()
        self._stamps: dict[AccountId, Stamp] = {}  # as of the last look, where there is such a mailbox
        self._known: dict[AccountId, dict[Shown, str]] = {}  # the entries of what lay there
        self._followed: dict[AccountId, MailboxId] = {}
        self._greenlet: gevent.Greenlet | None = None
        queue.hooks.changed.append(self._changed)
        queue.hooks.may_go.append(self._may_go)
        queue.hooks.may_end.append(self._may_end)

    def start(self) -> None:
        registry = self._mailboxes.registry
        registry.on_change.append(self._mailbox_changed)
        registry.on_publish.append(self._mailbox_changed)
        self._greenlet = gevent.spawn(self._run)

    def close(self) -> None:
        if self._greenlet is not None:
            registry = self._mailboxes.registry
            registry.on_change.remove(self._mailbox_changed)
            registry.on_publish.remove(self._mailbox_changed)
            self._greenlet.kill()
            self._greenlet = None

    # -------------------------------------------------------------- where to look

    def _mailbox_changed(self, mailbox: MailboxId | None, everyone: bool = False) -> None:
        if mailbox is None:
            self._all = True
        else:
            self._pending[mailbox.account] = None
        self._stir.set()

    def _run(self) -> None:
        while True:
            self._stir.clear()
            try:
                self._look_around()
            except Exception:  # our bug: the next look may find the world otherwise
                log.exception("scheduled mail not looked at")
            if not self._stir.wait(SWEEP_SECONDS):
                self._pending = dict.fromkeys(self._homes)  # another program may have put a file there

    def _look_around(self) -> None:
        """At the mailboxes that may have changed: of most accounts and changes that is two system calls."""
        if self._all:
            self._all = False
            self._homes = {user.account.id: user.account for user in self._accounts.users()}
            self._pending = dict.fromkeys(self._homes)
        pending, self._pending = self._pending, {}
        here = [account for account in map(self._account, pending) if account is not None]
        for account, stamp in zip(here, offload(self._stamps_of, here), strict=True):
            if stamp is None:
                self._stamps.pop(account.id, None)
            elif stamp != self._stamps.get(account.id):
                self._look_at(account, stamp)

    def _account(self, id: AccountId) -> Account | None:
        if id not in self._homes:
            try:
                self._homes[id] = self._accounts.by_id(id)
            except AccountNotFound:
                return None
        return self._homes[id]

    def _stamps_of(self, accounts: Sequence[Account]) -> list[Stamp | None]:
        return [_stamp(f"{account.home}/Maildir/{self._directory}") for account in accounts]

    def _look_at(self, account: Account, stamp: Stamp) -> None:
        self._stamps.pop(account.id, None)
        try:
            account = self._accounts.by_id(account.id)  # as it is now
            done = not self._accounts.enabled(account.id) or self._bring_together(account)
        except AccountNotFound:
            self._homes.pop(account.id, None)
            return
        except MailError as failure:
            log.warning("scheduled mail not looked at", account=str(account.address), reason=str(failure))
            return
        if done and time.time() - max(stamp[1:]) / 1e9 > SETTLED_SECONDS:
            self._stamps[account.id] = stamp

    def _follow(self, account: Account, mailbox: MailboxId | None) -> None:
        """Only that one of the account: a new one, or one with a new name, is told of to everyone."""
        before = self._followed.pop(account.id, None)
        if mailbox is not None:
            self._mailboxes.registry.follow(mailbox)
            self._followed[account.id] = mailbox
        if before is not None:
            self._mailboxes.registry.unfollow(before)

    def _bring_together(self, account: Account) -> bool:
        """Each message has an entry, or goes back. False: something could not be done now."""
        mail = self._mailboxes.account(account)
        try:
            info = mail.find(self._rules.mailbox)
        except MailboxNotFound:
            self._follow(account, None)
            return True
        self._follow(account, info.id)  # before the look
        snapshot = mail.run(mail.store.snapshot, info.id.number)
        rows = mail.run(mail.store.rows, info.id.number, snapshot.uids)
        found = offload(self._compare, info, snapshot, rows)
        before = self._known.pop(account.id, {})
        if found.known:
            self._known[account.id] = found.known
        for place, id in before.items():
            if place not in found.known:
                self._queue.wake(id)  # it was taken away: the queue asks whether it may go
        for id in found.unmarked:
            self._queue.wake(id)  # its state is not shown yet
        done = [self._take(account, mail, *one) for one in found.new]
        return all(done)

    def _compare(self, info: MailboxInfo, snapshot: Snapshot, rows: Sequence[Row]) -> _Found:
        """In a thread: there may be thousands."""
        found = _Found()
        bit = 1 << snapshot.keyword_names.index(PENDING) if PENDING in snapshot.keyword_names else 0
        marks = dict(zip(snapshot.uids, zip(snapshot.flags, snapshot.keywords, strict=True), strict=True))
        for row in rows:
            place = Shown(info.id, info.uidvalidity, row.uid)
            id = entry_id(place, os.path.basename(row.path).partition(":")[0])
            flags, keywords = marks[row.uid]
            found.known[place] = id
            if not self._queue.spool.exists(id):
                if not flags & DELETED:  # somebody is about to remove it
                    found.new.append((place, id, row))
            elif not keywords & bit:
                found.unmarked.append(id)
        return found

    # -------------------------------------------------------------- a message that is new there

    def _take(self, account: Account, mail: AccountMail, place: Shown, id: str, row: Row) -> bool:
        """Give it an entry, durably. False: it could not be done now, and is tried again."""
        now = self._queue.spool.now().wall
        try:
            if row.size > self._rules.message_bytes:
                raise Unusable(f"It is larger than {self._rules.message_bytes} octets.")
            if offload(self._queue.spool.is_damaged, id):
                raise Unusable("What was remembered of it is damaged; parts of it may have been sent.")
            text = mail.run(mail.store.read, place.mailbox.number, place.uid)
            entry, message = offload(self._prepare, account, place, id, text, now)
            self._check(account, entry)
            trace = self._received(id)
            offload(self._queue.spool.put_once, entry, message, trace)
        except Unusable as why:
            return self._send_back(account, mail, place, str(why))
        except MessageGone:
            return True
        except MailError as failure:
            log.warning("not scheduled yet", id=id, account=str(account.address), uid=place.uid, reason=str(failure))
            return False
        counters.scheduled_messages.add("taken")
        log.info(
            "scheduled", id=id, account=str(account.address), mailbox=str(place.mailbox), uid=place.uid,
            sender=str(entry.envelope.sender), recipients=len(entry.recipients), size=entry.size,
            in_s=round((entry.not_before or now) - now),
        )  # fmt: skip
        self._outbox.mark(account, place, states_of(entry, now))
        self._queue.wake(id)
        return True

    def _received(self, id: str) -> bytes:
        assert self._intake.outgoing is not None
        return self._intake.outgoing.bounces.received(id).encode()

    def _prepare(self, account: Account, place: Shown, id: str, text: bytes, now: float) -> tuple[Entry, Incoming]:
        """The entry and the message as it goes out; in a thread."""
        if _BARE.search(text):
            raise Unusable("It has bare CR or LF: lines end in CRLF.")
        draft = self._reading.draft(text, now)
        if len(draft.recipients) > self._rules.recipients:
            raise Unusable(f"It has more than {self._rules.recipients} recipients.")
        at = draft.send_at if draft.send_at is not None else next_hour(self._rules.hour, now)
        if at < now - LATE_SECONDS:
            raise Unusable(f"The time that it asks for is past: {time.ctime(at)}.")
        if at > now + AHEAD_SECONDS:
            raise Unusable("The time that it asks for is more than a year away.")
        at = max(at, now)
        ready = self._reading.ready(text, at, f"<{id}@{self._rules.hostname}>")
        ascii_only = all(str(one).isascii() for one in (draft.sender, *draft.recipients))
        envelope = Envelope(draft.sender, smtputf8=not ascii_only or self._reading.is_utf8(ready))
        entry = Entry(
            id, envelope, [Waiting(one) for one in draft.recipients], Origin(account.id, service=SCHEDULED),
            not_before=at, shown=(place.mailbox.number, place.uidvalidity, place.uid),
        )  # fmt: skip
        message = Incoming(self._queue.spool.tmp_dir)
        message.write(ready)
        return entry, message

    def _check(self, account: Account, entry: Entry) -> None:
        """What a submission session checks at MAIL and RCPT."""
        sender = entry.envelope.sender
        if not self._accounts.may_send_as(account, sender):
            raise Unusable(f"Its sender {sender} is no address of yours.")
        for one in entry.recipients:
            try:
                self._intake.route(one.address, RecipientOptions(), anywhere=True, null_sender=False)
            except (RecipientUnknown, RelayDenied) as refusal:
                raise Unusable(f"It cannot be sent to {one.address}: {refusal}.") from None

    def _send_back(self, account: Account, mail: AccountMail, place: Shown, why: str) -> bool:
        """To Drafts, where its author can mend it; a message tells why. Told last, so that it is not told twice."""
        log.warning(
            "not scheduled", account=str(account.address), mailbox=str(place.mailbox), uid=place.uid, reason=why
        )
        number = place.mailbox.number
        try:
            drafts = mail.special("\\Drafts", "Drafts", other_than=place.mailbox)
            mail.change_flags(number, place.uid, FlagOp.REMOVE, [PENDING, *STATES])
            mail.change_flags(number, place.uid, FlagOp.ADD, [NOT_SENT], DRAFT)
            mail.move(number, place.uid, drafts)
        except MailError as failure:
            log.warning("not put into Drafts yet", account=str(account.address), uid=place.uid, reason=str(failure))
            return False
        counters.scheduled_messages.add("returned")
        text = (
            f"A message that you put into {self._rules.mailbox} is not going to be sent:\n\n  {why}\n\n"
            f"It is in {drafts.name} again. Mend it there and put it into {self._rules.mailbox} once more.\n"
        )
        try:
            self._intake.write_to(account.address, "Not scheduled", text)
        except MailError as failure:
            log.warning("author not told", account=str(account.address), reason=str(failure))
        return True

    # -------------------------------------------------------------- an entry of the queue

    def _owner(self, entry: Entry) -> tuple[Account, Shown] | None:
        if entry.origin.service != SCHEDULED or entry.shown is None:
            return None
        try:
            account = self._accounts.by_id(AccountId(entry.origin.account))
        except AccountNotFound:
            return None
        number, uidvalidity, uid = entry.shown
        return account, Shown(MailboxId(account.id, number), uidvalidity, uid)

    def _changed(self, entry: Entry) -> None:
        owner = self._owner(entry)
        if owner is None:
            return
        if entry.over:
            counters.scheduled_messages.add("cancelled" if _is_cancelled(entry) else "ended")
        elif self._outbox.withdrawn(*owner):
            self._queue.cancel(entry.id)
            self._queue.wake(entry.id)
        else:
            self._outbox.mark(*owner, states_of(entry, self._queue.spool.now().wall))

    def _may_go(self, entry: Entry) -> bool:
        """Not in the name of somebody who was removed or switched off since."""
        if entry.origin.service != SCHEDULED:
            return True
        owner = self._owner(entry)
        return owner is not None and self._accounts.enabled(owner[0].id) and not self._outbox.withdrawn(*owner)

    def _may_end(self, entry: Entry) -> bool:
        """Its message goes to Sent first; or back, where somebody else than its author cancelled it."""
        owner = self._owner(entry)
        if owner is None or self._outbox.withdrawn(*owner):
            return True
        account, place = owner
        mail = self._mailboxes.account(account)
        try:
            if _is_cancelled(entry):
                return self._send_back(account, mail, place, "An administrator stopped it.")
            self._file(mail, place)
        except MailboxNotFound:
            return True  # there is nothing to put away
        except MailError as failure:
            log.warning("sent message not filed yet", id=entry.id, account=str(account.address), reason=str(failure))
            return False
        return True

    def _file(self, mail: AccountMail, place: Shown) -> None:
        number = place.mailbox.number
        mail.change_flags(number, place.uid, FlagOp.REMOVE, [PENDING, *STATES], DRAFT)
        mail.change_flags(number, place.uid, FlagOp.ADD, [], SEEN)
        mail.move(number, place.uid, mail.special("\\Sent", "Sent", other_than=place.mailbox))


def _is_cancelled(entry: Entry) -> bool:
    return all(one.state == CANCELLED for one in entry.recipients)


def _stamp(directory: str) -> Stamp | None:
    """None where there is no such mailbox."""
    try:
        new, cur = os.stat(f"{directory}/new"), os.stat(f"{directory}/cur")
    except OSError:
        return None
    return new.st_ino, new.st_mtime_ns, cur.st_mtime_ns
