"""Mail that still waits, as its sender sees it: a mailbox `Outbox` whose messages are queue entries.

The queue is the truth and the Outbox shows it: a copy of the message with its state as keywords, made when an entry has
to wait or its first attempt takes more than some seconds, and removed when it ends. The way back is one question: a
copy that its owner removed means that the message shall not be sent. Whoever asks (the queue, before each attempt and
when the mailbox changed) gets "removed" only from a mailbox that is there and never held the UID's message under
another UIDVALIDITY: a lost folder cancels nothing. Each copy begins with a line that names its entry, by which what a
crash left over is found.

Imports: mail.{accounts,mailbox,queue}, store, log, errors, values.    RFC 5550 5.10 ($SubmitPending), RFC 3501 2.3.2.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from mailsrv import log
from mailsrv.errors import AccountNotFound, MailboxExists, MailboxNotFound, MailError
from mailsrv.mail.accounts import Accounts
from mailsrv.mail.mailbox import AccountMail, Mailboxes
from mailsrv.mail.queue import Queue
from mailsrv.store.entry import Entry, EntryDamaged
from mailsrv.store.files import COPY_BYTES, Incoming, offload
from mailsrv.store.spool import EntryGone
from mailsrv.values import SEEN, Account, AccountId, FlagOp, MailboxId

NAME = "Outbox"
PENDING = "$SubmitPending"
DEFERRED, HELD, SCHEDULED = "$Deferred", "$Held", "$Scheduled"
STATES = (DEFERRED, HELD, SCHEDULED)
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
            if self._holds(mail, shown):
                mail.change_flags(number, shown.uid, FlagOp.REMOVE, others)
                mail.change_flags(number, shown.uid, FlagOp.ADD, [PENDING, *states])
        except MailError as failure:
            log.warning("state not shown", account=str(account.address), uid=shown.uid, reason=str(failure))

    def withdrawn(self, account: Account, shown: Shown) -> bool:
        """Whether the owner removed the message. A mailbox that cannot be read, or is another one, says nothing."""
        try:
            return not self._holds(self._mailboxes.account(account), shown)
        except MailError:
            return False

    def _holds(self, mail: AccountMail, shown: Shown) -> bool:
        info = mail.run(mail.store.mailbox_numbered, shown.mailbox.number)
        if info.uidvalidity != shown.uidvalidity:
            raise MailboxNotFound("The mailbox is another one now")
        mail.run(mail.store.reconcile, shown.mailbox.number)  # another program may have removed the file
        return bool(mail.run(mail.store.rows, shown.mailbox.number, [shown.uid]))

    def hide(self, account: Account, shown: Shown) -> None:
        """The entry has ended: take its copy away."""
        mail = self._mailboxes.account(account)
        try:
            if self._holds(mail, shown):
                mail.remove(shown.mailbox.number, shown.uid)
        except MailError as failure:
            log.warning("sent message still shown", account=str(account.address), uid=shown.uid, reason=str(failure))

    def left_over(self, account: Account) -> list[tuple[Shown, str]]:
        """What the account's Outbox shows, with the ids of the entries; nothing where there is no Outbox."""
        if not any(os.path.isdir(f"{account.home}/Maildir/.{NAME}/{sub}") for sub in ("cur", "new")):
            return []  # without opening the index of everybody who never had one
        mail = self._mailboxes.account(account)
        info = mail.find(NAME)
        snapshot = mail.run(mail.store.snapshot, info.id.number)
        found = []
        for uid in snapshot.uids:
            for _, text in mail.run(mail.store.read_many, info.id.number, [uid], 1):
                named = _NAMED.match(text)
                if named is not None:
                    found.append((Shown(info.id, info.uidvalidity, uid), named[1].decode()))
        return found


class Showing:
    """Keeps the Outboxes as the queue is, and cancels in the queue what owners remove."""

    def __init__(self, mailboxes: Mailboxes, accounts: Accounts, queue: Queue) -> None:
        self._mailboxes, self._outbox = mailboxes, Outbox(mailboxes)
        self._accounts, self._queue = accounts, queue
        self._watched: dict[MailboxId, dict[str, None]] = {}
        self._showing: set[str] = set()
        queue.hooks.changed.append(self._changed)
        queue.hooks.may_go.append(self._may_go)
        mailboxes.registry.on_change.append(self._mailbox_changed)

    def close(self) -> None:
        self._mailboxes.registry.on_change.remove(self._mailbox_changed)

    def begin(self) -> None:
        """Before the queue begins: remove copies of entries that have ended, or that a crash made twice."""
        for user in self._accounts.users():
            try:
                for shown, id in self._outbox.left_over(user.account):
                    entry = self._entry(id)
                    if entry is None or entry.shown != _remembered(shown):
                        self._outbox.hide(user.account, shown)
                    else:
                        self._watch(shown.mailbox, id)
            except MailError as failure:
                log.warning("outbox not looked at", account=str(user.account.address), reason=str(failure))

    def _entry(self, id: str) -> Entry | None:
        try:
            return offload(self._queue.spool.load, id)
        except (EntryGone, EntryDamaged):
            return None

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
            self._watch(shown.mailbox, entry.id)
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
            self._watch(shown.mailbox, id)
        except (EntryGone, EntryDamaged, MailError):
            self._outbox.hide(account, shown)

    def _may_go(self, entry: Entry) -> bool:
        account = self._owner(entry)
        shown = _shown(account, entry)
        return account is None or shown is None or not self._outbox.withdrawn(account, shown)

    # -------------------------------------------------------------- what owners do

    def _watch(self, mailbox: MailboxId, id: str) -> None:
        self._watched.setdefault(mailbox, {})[id] = None

    def _forget(self, mailbox: MailboxId, id: str) -> None:
        watched = self._watched.get(mailbox, {})
        watched.pop(id, None)
        if not watched:
            self._watched.pop(mailbox, None)

    def _mailbox_changed(self, mailbox: MailboxId | None) -> None:
        """Somebody, here or in another process, changed a mailbox: the queue looks at what is shown there."""
        for one in list(self._watched) if mailbox is None else [mailbox]:
            for id in self._watched.get(one, {}):
                self._queue.wake(id)


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
