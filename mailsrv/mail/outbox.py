"""Mail that still waits, as its sender sees it: a mailbox `Outbox` whose messages are queue entries.

The queue is the truth and the Outbox shows it: a copy of the message with its state as keywords, made when an entry has
to wait and removed when it ends. The way back is one question: a copy that its owner removed means that the message
shall not be sent. Whoever asks (the queue, before each attempt and when the mailbox changed) gets "removed" only from a
mailbox that is there and never held the UID's message under another UIDVALIDITY: a lost folder cancels nothing.

Imports: mail.mailbox, mail.accounts, log, errors, values.    RFC 5550 5.10 ($SubmitPending), RFC 3501 2.3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mailsrv import log
from mailsrv.errors import MailboxExists, MailboxNotFound, MailError
from mailsrv.mail.mailbox import AccountMail, Mailboxes
from mailsrv.store.files import COPY_BYTES, Incoming
from mailsrv.values import SEEN, Account, FlagOp, MailboxId

NAME = "Outbox"
PENDING = "$SubmitPending"
DEFERRED, HELD, SCHEDULED = "$Deferred", "$Held", "$Scheduled"
STATES = (DEFERRED, HELD, SCHEDULED)


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

    def show(self, account: Account, path: str, states: Sequence[str]) -> Shown | None:
        """Put a copy of the message file into the account's Outbox; None if it cannot be (a full mailbox, say).

        The message is sent all the same: what is shown is a comfort.
        """
        mail = self._mailboxes.account(account)
        incoming = mail.incoming()
        try:
            self._make(mail)
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


def _read_into(incoming: Incoming, path: str) -> None:
    """The whole file, in chunks; runs in a thread."""
    with open(path, "rb") as file:
        while chunk := file.read(COPY_BYTES):
            if incoming.write(chunk):
                incoming.spill()
