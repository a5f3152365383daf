"""Mail that still waits, as its sender sees it: a mailbox `Outbox` whose messages are queue entries.

The queue is the truth and the Outbox shows it: a copy of the message with its state as keywords, made when an entry has
to wait or its first attempt takes more than some seconds, and removed when it ends. The way back is one question: a
copy that its owner removed means that the message shall not be sent. Whoever asks (the queue, before each attempt and
when the mailbox changed) gets "removed" only from a mailbox that is there and never held the UID's message under
another UIDVALIDITY: a lost folder cancels nothing. Each copy begins with a line that names its entry, by which what a
crash left over is found.

Imports: mail.{accounts,mailbox,queue}, store, log, errors, values, gevent.
RFC 5550 5.10 ($SubmitPending), RFC 3501 2.3.2.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import gevent
from gevent.pool import Group

from mailsrv import log
from mailsrv.errors import AccountNotFound, MailboxExists, MailboxNotFound, MailError
from mailsrv.mail.accounts import Accounts
from mailsrv.mail.mailbox import AccountMail, Mailboxes
from mailsrv.mail.queue import Queue
from mailsrv.mail.together import Together
from mailsrv.store.account import AccountStore
from mailsrv.store.entry import Entry, EntryDamaged
from mailsrv.store.files import COPY_BYTES, Incoming, offload
from mailsrv.store.spool import EntryGone
from mailsrv.values import SEEN, Account, AccountId, FlagOp, MailboxId

NAME = "Outbox"
PENDING = "$SubmitPending"
DEFERRED, HELD, SCHEDULED = "$Deferred", "$Held", "$Scheduled"
STATES = (DEFERRED, HELD, SCHEDULED)
FIRST_OCTETS = 100  # of a copy, in which its first line is
LOOKED_AT_ONCE = 50
LOTS_AT_ONCE = 2  # of one mailbox
SUBMITTED = "submission"  # the service whose entries are shown
_NAMED = re.compile(rb"X-Mailsrv-Queue-Id: ([0-9a-f]{6,40})\r\n")


@dataclass(frozen=True, slots=True)
class Shown:
    """Where a waiting message is shown: what a queue entry keeps to find it again."""

    mailbox: MailboxId
    uidvalidity: int
    uid: int


class Outbox:
    """The waiting mail of all accounts, shown to their owners."""

    def __init__(self, mailboxes: Mailboxes) -> None:
        self._mailboxes = mailboxes
        self._presence, self._removal = _InLots(self._holds), _InLots(self._take_away)

    def show(self, account: Account, id: str, path: str, states: Sequence[str]) -> Shown | None:
        """Put a copy of the message file into the account's Outbox; None if it cannot be (a full mailbox, say).

        The message is sent all the same: what is shown is a comfort.
        """
        mail = self._mailboxes.account(account)
        incoming = mail.incoming()
        try:
            self._make(mail)
            incoming.write(f"X-Mailsrv-Queue-Id: {id}\r\n".encode())
            mail.run(_read_into, incoming, path)
            appended = mail.append(NAME, incoming, flags=SEEN, keywords=[PENDING, *states])
        except (MailError, OSError) as failure:
            log.warning("waiting message not shown", account=str(account.address), reason=str(failure))
            return None
        finally:
            incoming.close()
        return Shown(appended.mailbox, appended.uidvalidity, appended.uid)

    def _make(self, mail: AccountMail) -> None:
        """The mailbox, made and subscribed to when the first message has to wait."""
        try:
            mail.find(NAME)
        except MailboxNotFound:
            try:
                mail.create(NAME)
                mail.subscribe(NAME)  # many programs list what is subscribed to, and nothing else
            except MailboxExists:
                pass  # another process was faster

    def mark(self, account: Account, shown: Shown, states: Sequence[str]) -> None:
        """Give the shown message these states and no others; nothing happens where it is as asked, or gone."""
        mail, number = self._mailboxes.account(account), shown.mailbox.number
        others = [state for state in STATES if state not in states]
        try:
            if self._presence(account, shown):
                mail.change_flags(number, shown.uid, FlagOp.REMOVE, others)
                mail.change_flags(number, shown.uid, FlagOp.ADD, [PENDING, *states])
        except MailError as failure:
            log.warning("state not shown", account=str(account.address), uid=shown.uid, reason=str(failure))

    def withdrawn(self, account: Account, shown: Shown) -> bool:
        """Whether the owner removed the message. A mailbox that cannot be read, or is another one, says nothing."""
        try:
            return not self._presence(account, shown)
        except MailError:
            return False

    def removed(self, account: Account, some: Mapping[str, Shown]) -> list[str]:
        """Which of these entries, all shown in one mailbox, the owner removed. As with `withdrawn`, a mailbox that
        cannot be read says nothing.
        """
        mail = self._mailboxes.account(account)
        try:
            return mail.run_long(_removed, mail.store, some) if some else []
        except MailError:
            return []

    def hide(self, account: Account, shown: Shown) -> None:
        """The entry has ended: take its copy away."""
        try:
            self._removal(account, shown)
        except MailError as failure:
            log.warning("sent message still shown", account=str(account.address), uid=shown.uid, reason=str(failure))

    def _holds(self, account: Account, some: Sequence[Shown]) -> set[Shown]:
        """Which of them, of one mailbox, are there. MailError if it is another one now."""
        mail, uids = self._mailboxes.account(account), sorted(one.uid for one in some)
        there = mail.run(mail.store.present, some[0].mailbox.number, some[0].uidvalidity, uids)
        return {one for one in some if one.uid in there}

    def _take_away(self, account: Account, some: Sequence[Shown]) -> set[Shown]:
        there = self._holds(account, some)
        if there:
            self._mailboxes.account(account).remove(some[0].mailbox.number, sorted(one.uid for one in there))
        return there

    def shown(self, account: Account) -> list[Shown]:
        """What the account's Outbox holds, whoever put it there; nothing where there is no Outbox."""
        if not any(os.path.isdir(f"{account.home}/Maildir/.{NAME}/{sub}") for sub in ("cur", "new")):
            return []  # without opening the index of everybody who never had one
        mail = self._mailboxes.account(account)
        info = mail.find(NAME)
        snapshot = mail.run(mail.store.snapshot, info.id.number)
        return [Shown(info.id, snapshot.uidvalidity, uid) for uid in snapshot.uids]

    def entries_of(self, account: Account, some: Sequence[Shown]) -> list[tuple[Shown, str]]:
        """With the ids of the queue entries they are copies of; what is no copy is left out."""
        mail = self._mailboxes.account(account)
        known = {one.uid: one for one in some}
        number = some[0].mailbox.number
        texts = mail.run(mail.store.beginnings, number, list(known), FIRST_OCTETS)
        named = [(known[uid], _NAMED.match(text)) for uid, text in texts]
        return [(one, found[1].decode()) for one, found in named if found is not None]


class _InLots:
    """What is asked of one mailbox at a moment is done together, and of each mailbox by itself: one whose account is
    locked for long holds up nobody who asks of another. `act`: for some of one mailbox, which of them it found there.
    """

    def __init__(self, act: Callable[[Account, Sequence[Shown]], set[Shown]]) -> None:
        self._act = act
        self._lots: dict[tuple[MailboxId, int], Together[tuple[Account, Shown], bool]] = {}  # while there are any

    def __call__(self, account: Account, shown: Shown) -> bool:
        """Whether it was there; MailError if that cannot be known."""
        place = shown.mailbox, shown.uidvalidity
        lots = self._lots.get(place)
        if lots is None:
            lots = self._lots[place] = Together(self._work, lambda: LOTS_AT_ONCE, again=True)
        try:
            return lots((account, shown))
        finally:
            if lots.idle and self._lots.get(place) is lots:
                del self._lots[place]

    def _work(self, lot: Sequence[tuple[Account, Shown]]) -> Sequence[bool | Exception]:
        account, wanted = lot[-1][0], list(dict.fromkeys(shown for _, shown in lot))
        try:
            found = self._act(account, wanted)
        except MailError as failure:
            return [failure] * len(lot)
        return [shown in found for _, shown in lot]


def _removed(store: AccountStore, some: Mapping[str, Shown]) -> list[str]:
    """Entries whose message is not there any more; runs in a thread, for they may be many."""
    snapshot = store.snapshot(next(iter(some.values())).mailbox.number)
    there = set(snapshot.uids)
    return [id for id, one in some.items() if one.uidvalidity == snapshot.uidvalidity and one.uid not in there]


class Showing:
    """Keeps the Outboxes as the queue is, and cancels in the queue what owners remove."""

    def __init__(self, mailboxes: Mailboxes, accounts: Accounts, queue: Queue) -> None:
        self._mailboxes, self._outbox = mailboxes, Outbox(mailboxes)
        self._accounts, self._queue = accounts, queue
        self._watched: dict[MailboxId, dict[str, Shown]] = {}
        self._looks: dict[MailboxId, bool] = {}  # under way; True: it has changed once more
        self._lookers = Group()
        self._showing: set[str] = set()
        self._looking: gevent.Greenlet | None = None
        queue.hooks.changed.append(self._changed)
        queue.hooks.may_go.append(self._may_go)
        mailboxes.registry.on_change.append(self._mailbox_changed)

    def close(self) -> None:
        if self._looking is not None:
            self._looking.kill()
        self._lookers.kill()
        self._mailboxes.registry.on_change.remove(self._mailbox_changed)

    def begin(self) -> None:
        """Before the queue begins: see what is shown. It is looked through while the queue works already."""
        found: list[tuple[Account, list[Shown]]] = []
        for user in self._accounts.users():
            try:
                found.append((user.account, self._outbox.shown(user.account)))
            except MailError as failure:
                log.warning("outbox not looked at", account=str(user.account.address), reason=str(failure))
        self._looking = gevent.spawn(self._look_through, found)

    def _look_through(self, found: Sequence[tuple[Account, list[Shown]]]) -> None:
        """Remove copies of entries that have ended, or that a crash made twice; watch the others."""
        for account, shown in found:
            try:
                for start in range(0, len(shown), LOOKED_AT_ONCE):
                    self._look_at(account, shown[start : start + LOOKED_AT_ONCE])
            except MailError as failure:
                log.warning("outbox not looked at", account=str(account.address), reason=str(failure))

    def _look_at(self, account: Account, some: Sequence[Shown]) -> None:
        copies = self._outbox.entries_of(account, some)
        entries = offload(self._load, [id for _, id in copies])
        for (shown, id), remembered in zip(copies, entries, strict=True):
            if remembered == _remembered(shown):
                self._watch(shown, id)
            else:
                # What the queue shows from now on has a later UID: this copy is nobody's, whatever happens meanwhile.
                self._outbox.hide(account, shown)

    def _load(self, ids: Sequence[str]) -> list[tuple[int, int, int] | None]:
        """Where each entry is shown, as it says itself; runs in a thread."""
        found: list[tuple[int, int, int] | None] = []
        for id in ids:
            try:
                found.append(self._queue.spool.load(id).shown)
            except (EntryGone, EntryDamaged):
                found.append(None)
        return found

    def _owner(self, entry: Entry) -> Account | None:
        """Whose Outbox shows the entry: what users submitted themselves, and not what an address of ours passed on."""
        submitted = entry.origin.service == SUBMITTED and entry.origin.account
        if not submitted or any(one.via is not None for one in entry.recipients):
            return None
        try:
            return self._accounts.by_id(AccountId(entry.origin.account))
        except AccountNotFound:
            return None

    def _changed(self, entry: Entry) -> None:
        if entry.over and entry.shown is None:
            return  # most mail: it left at once, and was never shown
        account = self._owner(entry)
        if account is None:
            return
        shown = _shown(account, entry)
        if entry.over:
            if shown is not None:
                self._forget(shown.mailbox, entry.id)
                self._outbox.hide(account, shown)
        elif shown is None:
            self._show(account, entry)
        elif self._outbox.withdrawn(account, shown):
            self._queue.cancel(entry.id)
            self._queue.wake(entry.id)
        else:
            self._watch(shown, entry.id)
            self._outbox.mark(account, shown, states_of(entry, self._queue.spool.now().wall))

    def _show(self, account: Account, entry: Entry) -> None:
        if entry.id in self._showing:
            return  # another destination's attempt does so
        self._showing.add(entry.id)
        try:
            path, states = self._queue.spool.message_path(entry.id), states_of(entry, self._queue.spool.now().wall)
            shown = self._outbox.show(account, entry.id, path, states)
            if shown is not None:
                self._remember(account, entry.id, shown)
        finally:
            self._showing.discard(entry.id)

    def _remember(self, account: Account, id: str, shown: Shown) -> None:
        def note(entry: Entry) -> bool:
            entry.shown = _remembered(shown)
            return True  # if it is over, whoever made it so ends it

        try:
            if offload(self._queue.spool.change, id, note).over:
                raise EntryGone
            self._watch(shown, id)
        except (EntryGone, EntryDamaged, MailError):
            self._outbox.hide(account, shown)

    def _may_go(self, entry: Entry) -> bool:
        if entry.shown is None:
            return True
        account = self._owner(entry)
        shown = _shown(account, entry)
        return account is None or shown is None or not self._outbox.withdrawn(account, shown)

    # -------------------------------------------------------------- what owners do

    def _watch(self, shown: Shown, id: str) -> None:
        if shown.mailbox not in self._watched:
            self._mailboxes.registry.follow(shown.mailbox)
            self._watched[shown.mailbox] = {}
        self._watched[shown.mailbox][id] = shown

    def _forget(self, mailbox: MailboxId, id: str) -> None:
        watched = self._watched.get(mailbox)
        if watched is not None:
            watched.pop(id, None)
            if not watched:
                del self._watched[mailbox]
                self._mailboxes.registry.unfollow(mailbox)

    def _mailbox_changed(self, mailbox: MailboxId | None) -> None:
        """Somebody, here or in another process, changed a mailbox: what was removed from an Outbox is to be cancelled.
        Many changes of a moment are one look.
        """
        for one in list(self._watched) if mailbox is None else [mailbox]:
            if one not in self._watched:
                continue
            if one not in self._looks:
                self._lookers.spawn(self._look_for_removed, one)
            self._looks[one] = True

    def _look_for_removed(self, mailbox: MailboxId) -> None:
        try:
            while self._looks[mailbox]:
                self._looks[mailbox] = False
                watched = dict(self._watched.get(mailbox, {}))
                for id in self._outbox.removed(self._accounts.by_id(mailbox.account), watched):
                    self._queue.wake(id)
        except AccountNotFound:
            pass
        finally:
            del self._looks[mailbox]


def _remembered(shown: Shown) -> tuple[int, int, int]:
    return shown.mailbox.number, shown.uidvalidity, shown.uid


def _shown(account: Account | None, entry: Entry) -> Shown | None:
    if account is None or entry.shown is None:
        return None
    number, uidvalidity, uid = entry.shown
    return Shown(MailboxId(account.id, number), uidvalidity, uid)


def states_of(entry: Entry, now: float) -> list[str]:
    """The keywords of a waiting entry."""
    states = [HELD] if entry.hold else []
    if entry.not_before is not None and entry.not_before > now:
        states.append(SCHEDULED)
    if any(one.history for one in entry.waiting):
        states.append(DEFERRED)
    return states


def _read_into(incoming: Incoming, path: str) -> None:
    """The whole file, in chunks; runs in a thread."""
    with open(path, "rb") as file:
        while chunk := file.read(COPY_BYTES):
            if incoming.write(chunk):
                incoming.spill()
