"""Takes over a finished transaction: the message is durable for every recipient, or refused whole.

All recipients' files are written and synced before the first is placed, and one that cannot be placed takes the
others back: a sender who gets a temporary failure may send everything again. Only when all are placed is any of them
announced, and only then does `commit` return, after which the session may answer 250 (RFC 5321 6.1).

Imports: mail.*, store, log, errors, values.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

from mailsrv import counters, log
from mailsrv.errors import MailError, OverQuota
from mailsrv.mail.mailbox import AccountMail, Mailboxes
from mailsrv.store.account import Incoming, Staged
from mailsrv.values import NOBODY, SEEN, Account, Address, Appended


@dataclass(frozen=True, slots=True)
class Recipient:
    """Whose mailbox, and the address the sender used for it."""

    account: Account
    address: Address


@dataclass(frozen=True, slots=True)
class Accepted:
    """A transaction taken over; `id` is what the 250 and the log call it."""

    id: str
    size: int
    committed_at: float


class Transaction:
    """A message arriving. Write chunks, then `commit`; leaving the `with` without it forgets the message."""

    def __init__(
        self, mailboxes: Mailboxes, recipients: Sequence[Recipient], prefix: Callable[[Recipient], bytes], session: str,
        id: str, sent_copy: Account | None,
    ) -> None:  # fmt: skip
        self.id = id
        self._mailboxes, self._recipients, self._prefix = mailboxes, recipients, prefix
        self._session, self._sent_copy = session, sent_copy
        self._failure: MailError | None = None
        self._first = mailboxes.account(recipients[0].account)
        # With one recipient a large message's file begins with its trace lines and is placed as it is.
        alone = len(recipients) == 1 and sent_copy is None
        self._incoming = Incoming(self._first.store.tmp_dir, prefix(recipients[0]) if alone else b"")

    @property
    def size(self) -> int:
        return self._incoming.size

    def __enter__(self) -> Transaction:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._incoming.close()

    def write(self, chunk: bytes) -> None:
        """Keep a chunk. What cannot be kept makes `commit` fail, not this: a sender speaks on to the end of the text,
        and a refusal given before it would have the rest read as commands.
        """
        if self._failure is not None or not self._incoming.write(chunk):
            return
        try:
            self._first.inbox()  # the first message of a new account makes its directories
            self._first.run(self._incoming.spill)
        except MailError as failure:
            self._failure = failure
            self._incoming.close()

    def commit(self, accepted_at: float, message_id: str = "") -> Accepted:
        """Durable for all when this returns. `accepted_at`: monotonic time of the end of data; `message_id` as the
        header has it, for the log.
        """
        if self._failure is not None:
            raise self._failure
        places = [(self._mailboxes.account(r.account), r) for r in self._recipients]
        if len(places) == 1:
            mail, recipient = places[0]
            placed = [mail.deliver(mail.inbox().id.number, self._incoming, prefix=self._prefix(recipient))]
        else:
            placed = self._place_all(places)
        for (mail, recipient), appended in zip(places, placed, strict=True):
            self._mailboxes.announce(appended, accepted_at)
            if mail.account.id != NOBODY:
                self._delivered(mail.account, recipient, appended, accepted_at, message_id)
        if self._sent_copy is not None:
            self._file_sent(self._mailboxes.account(self._sent_copy))
        return Accepted(self.id, self.size, placed[-1].committed_at)

    def _delivered(
        self, account: Account, recipient: Recipient, appended: Appended, accepted_at: float, message_id: str
    ) -> None:
        """Log it and count it, with how long each hop took since the end of data."""
        durable, committed = appended.durable_at - accepted_at, appended.committed_at - accepted_at
        ready = time.monotonic() - accepted_at
        log.info(
            "delivered", id=self.id, session=self._session, account=str(account.address),
            recipient=str(recipient.address), mailbox=str(appended.mailbox), uid=appended.uid, size=appended.size,
            file=appended.path, message_id=message_id, durable_ms=round(durable * 1e3, 3),
            committed_ms=round(committed * 1e3, 3), ready_ms=round(ready * 1e3, 3),
        )  # fmt: skip
        counters.delivery_seconds.observe(durable, "durable")
        counters.delivery_seconds.observe(committed, "committed")
        counters.delivery_seconds.observe(ready, "answered")

    def _place_all(self, places: list[tuple[AccountMail, Recipient]]) -> list[Appended]:
        staged: list[tuple[AccountMail, Staged]] = []
        placed: list[tuple[AccountMail, Appended]] = []
        try:
            for mail, recipient in places:
                number = mail.inbox().id.number
                staged.append((mail, mail.stage(number, self._incoming, prefix=self._prefix(recipient))))
            while staged:
                mail, one = staged.pop(0)
                placed.append((mail, mail.place(one)))
        except BaseException:
            for mail, one in staged:
                mail.run(mail.store.discard, one)
            for mail, appended in placed:
                self._withdraw(mail, appended)
            raise
        return [appended for _, appended in placed]

    def _withdraw(self, mail: AccountMail, appended: Appended) -> None:
        try:
            mail.run(mail.store.withdraw, appended)
            self._mailboxes.registry.publish(appended.mailbox)  # somebody may have looked meanwhile
        except MailError as failure:
            log.warning("not withdrawn", mailbox=str(appended.mailbox), uid=appended.uid, error=str(failure))

    def _file_sent(self, mail: AccountMail) -> None:
        """A copy of a submitted message in the sender's \\Sent mailbox, unless the client filed one itself.

        The message is accepted whatever happens here.
        """
        try:
            sent = next((info for info in mail.mailboxes() if info.special_use == "\\Sent"), None)
            if sent is None:
                return
            message_id = mail.run(self._message_id, mail)
            if message_id and mail.run(mail.store.find_message_id, sent.id.number, message_id) is not None:
                return
            appended = mail.deliver(sent.id.number, self._incoming, prefix=b"", flags=SEEN)
            self._mailboxes.announce(appended, appended.committed_at)
        except MailError as failure:
            log.warning("copy not filed to Sent", account=str(mail.account.address), error=str(failure))

    def _message_id(self, mail: AccountMail) -> str:
        return mail.store.message_id_of(self._incoming)


class Intake:
    """Where SMTP sessions hand over messages."""

    def __init__(self, mailboxes: Mailboxes, mail_root: str) -> None:
        self._mailboxes, self._mail_root = mailboxes, mail_root

    def has_room(self, octets: int) -> bool:
        """Whether the disk has that much left. Where it cannot be asked, storing will tell."""
        try:
            disk = os.statvfs(self._mail_root)
        except OSError:
            return True
        return disk.f_bavail * disk.f_frsize >= octets

    def open(
        self, recipients: Sequence[Recipient], *, prefix: Callable[[Recipient], bytes], session: str, id: str,
        sent_copy: Account | None = None,
    ) -> Transaction:  # fmt: skip
        """Begin to take a message; `prefix` gives the trace lines of a copy, `sent_copy` asks for one in Sent."""
        return Transaction(self._mailboxes, recipients, prefix, session, id, sent_copy)

    def check_quota(self, account: Account, size: int) -> None:
        """Raises OverQuota if `size` more octets do not fit; asked again, under the lock, at commit."""
        if account.quota_bytes and self._mailboxes.account(account).usage() + size > account.quota_bytes:
            raise OverQuota(f"The mailbox of {account.address} is full")
