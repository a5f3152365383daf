"""Takes over a finished transaction: the message is durable for every recipient, or refused whole.

Recipients are mailboxes here, addresses elsewhere, or both. All files are written and synced before the first is
placed: mailboxes first, queue entries then; one that cannot be placed takes the others back, so that a sender who gets
a temporary failure may send everything again. Only when all are placed is any of them announced and the queue runner
woken, and only then does `commit` return, after which the session may answer 250 (RFC 5321 6.1).

Imports: mail.*, store, log, errors, values.
"""

from __future__ import annotations

import email.utils
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from email.message import EmailMessage
from email.policy import SMTP
from functools import partial
from types import TracebackType
from typing import ParamSpec, Protocol, TypeVar

from mailsrv import counters, log
from mailsrv.errors import MailError, OverQuota, RecipientUnknown, RelayDenied
from mailsrv.mail.accounts import Accounts
from mailsrv.mail.bounce import LAST_REPORT, REPORT, Bounces, Letter, Report, quoted
from mailsrv.mail.gate import writers_at_once
from mailsrv.mail.mailbox import AccountMail, Mailboxes
from mailsrv.mail.together import Together
from mailsrv.store.account import Incoming, Staged
from mailsrv.store.entry import SENT, Entry, Origin
from mailsrv.store.entry import Recipient as Waiting
from mailsrv.store.files import offload, storage_errors
from mailsrv.store.spool import EntryGone, Spool, StagedEntry, new_id
from mailsrv.values import (
    NOBODY,
    SEEN,
    Account,
    Address,
    Appended,
    Disposition,
    Envelope,
    Job,
    Outcome,
    RecipientOptions,
)

__all__ = [
    "Accepted", "Intake", "Origin", "Outgoing", "Outward", "Recipient", "Route", "Trace", "Transaction", "Waiting",
    "main_domain", "new_id",
]  # fmt: skip
P = ParamSpec("P")
T = TypeVar("T")

_Made = tuple[Entry, Incoming, bytes]  # an entry, its message, and what goes before that

NO_OPTIONS = RecipientOptions()
_DURABLE, _COMMITTED, _ANSWERED = map(counters.delivery_seconds.of, ("durable", "committed", "answered"))
REPORTED_OCTETS = 64 * 1024  # of a message whose delivery is to be reported


@dataclass(frozen=True, slots=True)
class Recipient:
    """Whose mailbox, and the address the sender used for it."""

    account: Account
    address: Address
    options: RecipientOptions = NO_OPTIONS


@dataclass(frozen=True, slots=True)
class Outward:
    """An address on another server; `via` is ours that leads there, None where the sender named it."""

    address: Address
    options: RecipientOptions = NO_OPTIONS
    via: Address | None = None


@dataclass(frozen=True, slots=True)
class Accepted:
    """A transaction taken over; `id` is what the 250 and the log call it."""

    id: str
    size: int
    committed_at: float


class Trace(Protocol):
    """Who knows the lines that go before each copy."""

    def local(self, recipient: Recipient) -> bytes: ...

    def outward(self, via: Address | None, recipients: list[Address]) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Outgoing:
    """The way out: where entries are put, how the runner is woken, who writes reports, and who hears of what nobody
    else can be told.
    """

    spool: Spool
    wake: Callable[[str], None]
    bounces: Bounces
    postmaster: Callable[[], Address | None]
    close: Callable[[], None] = lambda: None  # nobody is woken after it


class Transaction:
    """A message arriving. Write chunks, then `commit`; leaving the `with` without it forgets the message."""

    def __init__(
        self, intake: Intake, recipients: Sequence[Recipient], outward: Sequence[Outward], envelope: Envelope,
        trace: Trace, origin: Origin, id: str, sent_copy: Account | None, expanded: Sequence[Waiting],
        not_before: float | None,
    ) -> None:  # fmt: skip
        self.id, self._not_before = id, not_before
        self._intake, self._mailboxes = intake, intake.mailboxes
        self._recipients, self._trace = recipients, trace
        self._envelope, self._origin, self._sent_copy = envelope, origin, sent_copy
        self._failure: MailError | None = None
        self._entries: list[tuple[Entry, bytes]] = []
        if outward:
            try:
                self._entries = self._make_entries(outward)
            except MailError as failure:  # told at the end of the text, like any other
                self._failure = failure
        self._reports = [*expanded, *(_reported(r) for r in recipients if "SUCCESS" in r.options.notify)]
        self._head = b""  # kept where something is to be reported
        self._first = self._mailboxes.account(recipients[0].account) if recipients else None
        # With one copy a large message's file begins with its trace lines and is placed as it is.
        alone = len(recipients) + len(self._entries) == 1 and sent_copy is None
        if self._first is not None:
            self._incoming = Incoming(self._first.store.tmp_dir, trace.local(recipients[0]) if alone else b"")
        else:
            self._incoming = Incoming(intake.spool.tmp_dir, self._entries[0][1] if alone and self._entries else b"")

    def _make_entries(self, outward: Sequence[Outward]) -> list[tuple[Entry, bytes]]:
        """One entry, with its trace lines, for all that the sender named, and one for each address of ours that leads
        out: it has another sender.
        """
        groups: dict[Address | None, list[Outward]] = {}
        for one in outward:
            groups.setdefault(one.via, []).append(one)
        made = []
        for number, (via, members) in enumerate(groups.items()):
            envelope = self._envelope if via is None else self._intake.forwarded(self._envelope, via)
            waiting = [Waiting(one.address, one.options, one.via) for one in members]
            entry = Entry(new_id() if number else self.id, envelope, waiting, self._origin, not_before=self._not_before)
            made.append((entry, self._trace.outward(via, [one.address for one in members])))
        return made

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
        if self._reports and len(self._head) < REPORTED_OCTETS:
            self._head += chunk[: REPORTED_OCTETS - len(self._head)]
        if self._failure is not None or not self._incoming.write(chunk):
            return
        try:
            if self._first is not None:
                self._first.inbox()  # the first message of a new account makes its directories
                self._first.run(self._incoming.spill)
            else:
                offload(self._incoming.spill)
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
        if self._entries:
            placed = self._place_and_queue(places)
        elif len(places) == 1:
            mail, recipient = places[0]
            prefix = self._trace.local(recipient)
            placed = [mail.deliver(mail.inbox().id.number, self._incoming, prefix=prefix)]
        else:
            placed = self._place_all(places, [])
        for (mail, recipient), appended in zip(places, placed, strict=True):
            self._mailboxes.announce(appended, accepted_at)
            if mail.account.id != NOBODY:
                self._delivered(mail.account, recipient, appended, accepted_at, message_id)
        for entry, _ in self._entries:
            self._announce(entry)
        if self._sent_copy is not None:
            self._file_sent(self._mailboxes.account(self._sent_copy))
        if self._reports:
            self._report()
        return Accepted(self.id, self.size, placed[-1].committed_at if placed else time.monotonic())

    def _delivered(
        self, account: Account, recipient: Recipient, appended: Appended, accepted_at: float, message_id: str
    ) -> None:
        """Log it and count it, with how long each hop took since the end of data."""
        durable, committed = appended.durable_at - accepted_at, appended.committed_at - accepted_at
        ready = time.monotonic() - accepted_at
        log.info(
            "delivered", id=self.id, session=self._origin.session, account=str(account.address),
            recipient=str(recipient.address), mailbox=str(appended.mailbox), uid=appended.uid, size=appended.size,
            file=appended.path, message_id=message_id, durable_ms=durable * 1e3, committed_ms=committed * 1e3,
            ready_ms=ready * 1e3,
        )  # fmt: skip
        _DURABLE.observe(durable)
        _COMMITTED.observe(committed)
        _ANSWERED.observe(ready)

    # -------------------------------------------------------------- placing

    def _place_and_queue(self, places: list[tuple[AccountMail, Recipient]]) -> list[Appended]:
        spool = self._intake.spool
        if not places and len(self._entries) == 1:
            entry, prefix = self._entries[0]
            if self._incoming.path is None:
                self._intake.put((entry, self._incoming, prefix))
                self._intake.give_way()  # a lot's sessions are woken together, and nobody here waits for their mail
            else:  # large: small ones need not wait for it
                self._write_queue(spool.put, entry, self._incoming, prefix)
            return []
        entries: list[StagedEntry] = []
        try:
            for entry, prefix in self._entries:
                entries.append(self._write_queue(spool.stage, entry, self._incoming, prefix))
            return self._place_all(places, entries)
        except BaseException:
            for staged in entries:
                offload(spool.discard, staged)
            raise

    def _write_queue(self, act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        with self._mailboxes.delivering:
            return offload(act, *args, **kwargs)

    def _place_all(self, places: list[tuple[AccountMail, Recipient]], entries: Sequence[StagedEntry]) -> list[Appended]:
        staged: list[tuple[AccountMail, Staged]] = []
        placed: list[tuple[AccountMail, Appended]] = []
        queued: list[StagedEntry] = []
        try:
            for mail, recipient in places:
                mail.inbox()  # the first message of a new account makes its directories
                staged.append((mail, mail.stage(self._incoming, prefix=self._trace.local(recipient))))
            while staged:
                mail, one = staged.pop(0)
                placed.append((mail, mail.place(mail.inbox().id.number, one)))
            for entry in entries:
                self._write_queue(self._intake.spool.commit, entry)
                queued.append(entry)
        except BaseException:
            for mail, one in staged:
                mail.run(mail.store.discard, one)
            for mail, appended in placed:
                self._withdraw(mail, appended)
            for entry in queued:
                self._take_back(entry)
            raise
        return [appended for _, appended in placed]

    def _withdraw(self, mail: AccountMail, appended: Appended) -> None:
        try:
            mail.run(mail.store.withdraw, appended)
            self._mailboxes.registry.publish(appended.mailbox)  # somebody may have looked meanwhile
        except MailError as failure:
            log.warning("not withdrawn", mailbox=str(appended.mailbox), uid=appended.uid, error=str(failure))

    def _take_back(self, staged: StagedEntry) -> None:
        try:
            offload(self._intake.spool.remove, staged.entry.id)
        except (MailError, EntryGone) as failure:
            log.warning("not withdrawn", id=staged.entry.id, error=str(failure))

    def _announce(self, entry: Entry) -> None:
        log.info(
            "queued", id=entry.id, message=self.id, session=self._origin.session, size=entry.size,
            sender=str(entry.envelope.sender or ""), recipients=len(entry.recipients),
            first=str(entry.recipients[0].address), via=str(entry.recipients[0].via or ""),
        )  # fmt: skip
        self._intake.wake(entry.id)

    # -------------------------------------------------------------- afterwards

    def _report(self) -> None:
        """Tell the sender what they asked to be told of this delivery. The message is taken whatever happens here."""
        if self._envelope.sender is None:
            return
        entry = Entry(
            self.id, self._envelope, self._reports, self._origin, size=self._incoming.size, arrived_at=time.time()
        )
        try:
            self._intake.post(Report("delivered", entry, tuple(self._reports), lambda octets: self._head[:octets]))
        except MailError as failure:
            log.warning("delivery not reported", id=self.id, error=str(failure))

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


def _reported(recipient: Recipient) -> Waiting:
    return Waiting(recipient.address, recipient.options, state=SENT, report="delivered")


@dataclass(frozen=True, slots=True)
class Route:
    """Where mail for one recipient goes. `expanded` is the recipient as it is reported, where it stands for several and
    the sender asked to hear of success (RFC 3461 5.2.7).
    """

    recipients: tuple[Recipient, ...]
    outward: tuple[Outward, ...]
    via: Address | None = None
    expanded: Waiting | None = None


class Intake:
    """Where SMTP sessions hand over messages, and the server its own. Without `outgoing` mail stays here."""

    def __init__(
        self, mailboxes: Mailboxes, accounts: Accounts, mail_root: str, outgoing: Outgoing | None = None
    ) -> None:
        self.mailboxes, self.accounts, self.outgoing = mailboxes, accounts, outgoing
        self._mail_root = mail_root
        self.put: Together[_Made, None] = Together(self._put_all, writers_at_once)

    def _put_all(self, made: Sequence[_Made]) -> Sequence[Exception | None]:
        with self.mailboxes.delivering:
            return offload(self.spool.put_all, made)

    def give_way(self) -> None:
        """To who is about to be told of a change; returns at once where nobody is."""
        self.mailboxes.registry.turns.take()

    def close(self) -> None:
        """At the end of the process."""
        if self.outgoing is not None:
            self.outgoing.close()

    def has_room(self, octets: int) -> bool:
        """Whether the disk has that much left. Where it cannot be asked, storing will tell."""
        try:
            there = os.path.isdir(self._mail_root)  # before the first message it is not
            disk = os.statvfs(self._mail_root if there else os.path.dirname(self._mail_root))
        except OSError:
            return True
        return disk.f_bavail * disk.f_frsize >= octets

    def open(
        self, recipients: Sequence[Recipient], outward: Sequence[Outward] = (), *, envelope: Envelope, trace: Trace,
        origin: Origin, id: str, sent_copy: Account | None = None, expanded: Sequence[Waiting] = (),
        not_before: float | None = None,
    ) -> Transaction:  # fmt: skip
        """Begin to take a message; `trace` gives the lines before a copy, `sent_copy` asks for one in Sent.

        `not_before`: entries of the queue wait until then (wall time).
        """
        return Transaction(self, recipients, outward, envelope, trace, origin, id, sent_copy, expanded, not_before)

    def check_quota(self, account: Account, size: int) -> None:
        """Raises OverQuota if `size` more octets do not fit; asked again, under the lock, at commit."""
        if account.quota_bytes and self.mailboxes.account(account).usage() + size > account.quota_bytes:
            raise OverQuota(f"The mailbox of {account.address} is full")

    def route(self, address: Address, options: RecipientOptions, *, anywhere: bool, null_sender: bool) -> Route:
        """Ours first, always (B20). `anywhere`: the sender may send to other servers; others only reach them where an
        address of ours leads there. Raises RelayDenied, RecipientUnknown.
        """
        if anywhere and self.outgoing is not None and not self.accounts.is_local(address.domain):
            return Route((), (Outward(address, options),))
        expansion = self.accounts.expand(address, null_sender=null_sender)
        if expansion.remote and self.outgoing is None:
            raise RelayDenied(f"{address} leads to {expansion.remote[0].domain}")
        expanded = None
        if "SUCCESS" in options.notify and len(expansion.local) + len(expansion.remote) > 1:
            expanded = Waiting(address, options, state=SENT, report="expanded")
            options = replace(options, notify=(options.notify - {"SUCCESS"}) or frozenset({"NEVER"}))
        return Route(
            tuple(Recipient(account, address, options) for account in expansion.local),
            tuple(Outward(remote, options, expansion.via) for remote in expansion.remote),
            expansion.via if expansion.remote else None, expanded,
        )  # fmt: skip

    # -------------------------------------------------------------- the way out

    @property
    def spool(self) -> Spool:
        return self._out.spool

    @property
    def _out(self) -> Outgoing:
        assert self.outgoing is not None  # `route` gives nothing outward without it
        return self.outgoing

    def wake(self, id: str) -> None:
        self._out.wake(id)

    def forwarded(self, envelope: Envelope, via: Address) -> Envelope:
        """The envelope of what `via`, an address of ours, leads elsewhere. May wait for the disk."""
        return replace(envelope, sender=self.accounts.forward_sender(envelope.sender, via))

    # -------------------------------------------------------------- messages of our own

    def post(self, report: Report) -> None:
        """Tell the sender: into their mailbox here, or into the queue. Durable when this returns. Raises MailError if
        it cannot be now.
        """
        if self.outgoing is None:
            return
        postmaster = self.outgoing.postmaster()
        stays = self._stays(report.entry.envelope.sender or postmaster)
        letter = offload(partial(self._out.bounces.write, report, postmaster, stays=stays))
        while letter is not None:
            id = new_id()
            try:
                self._post(letter, id)
            except (RecipientUnknown, RelayDenied) as refusal:
                log.warning("report undeliverable", id=id, about=report.entry.id, to=str(letter.recipient),
                            reason=str(refusal))  # fmt: skip
                letter = self._out.bounces.undeliverable(letter, postmaster)
                continue
            log.info(
                "report", id=id, about=report.entry.id, kind=report.kind, to=str(letter.recipient),
                recipients=len(report.recipients),
            )  # fmt: skip
            return

    def _stays(self, address: Address | None) -> bool:
        """Whether a report to that address goes into mailboxes here and nowhere else."""
        try:
            return address is not None and not self.accounts.expand(address, null_sender=True).remote
        except MailError:
            return False

    def _post(self, letter: Letter, id: str) -> None:
        route = self.route(letter.recipient, RecipientOptions(), anywhere=True, null_sender=True)
        envelope = Envelope(None, smtputf8=letter.smtputf8, require_tls=letter.require_tls)
        origin = Origin(service=LAST_REPORT if letter.final else REPORT)
        trace = _OwnTrace(None, self._out.bounces.received(id))
        try:
            with self.open(
                route.recipients, route.outward, envelope=envelope, trace=trace, origin=origin, id=id
            ) as transaction:
                transaction.write(letter.message)
                transaction.commit(time.monotonic())
        except MailError as failure:
            if not route.recipients:
                raise
            log.warning("report waits", id=id, to=str(letter.recipient), reason=str(failure))
            message = Incoming(self.spool.tmp_dir)
            message.write(letter.message)
            entry = Entry(id, envelope, [Waiting(letter.recipient)], origin)
            offload(self.spool.put, entry, message, trace.outward(None, [letter.recipient]))
            self.wake(id)

    def write_postmaster(self, subject: str, text: str) -> None:
        """A letter from the server to who looks after it, durable when this returns; nothing if there is nobody. Raises
        MailError if it cannot be delivered now.
        """
        to = None if self.outgoing is None else self.outgoing.postmaster()
        if to is not None:
            self.write_to(to, subject, text)

    def write_to(self, to: Address, subject: str, text: str) -> None:
        """The same, to somebody with a mailbox here."""
        author = self._out.postmaster() or to
        message = EmailMessage(policy=SMTP)
        message["From"] = f"mailsrv <{author}>"
        message["To"] = str(to)
        message["Subject"] = subject
        message["Date"] = email.utils.formatdate(localtime=True)
        message["Message-ID"] = f"<{os.urandom(12).hex()}@{author.domain}>"
        message["Auto-Submitted"] = "auto-generated"  # RFC 3834 5
        message.set_content(text)
        self._post(Letter(to, bytes(message), smtputf8=False, final=True), new_id())

    # -------------------------------------------------------------- from the queue into mailboxes

    def deliver(self, job: Job) -> list[Outcome]:
        """The queue's way for addresses of ours: each recipient's copy, or why there is none."""
        return [self._deliver(job, address, options) for address, options in job.recipients]

    def _deliver(self, job: Job, address: Address, options: RecipientOptions) -> Outcome:
        try:
            # What was asked to be reported is reported by the queue.
            quiet = RecipientOptions(frozenset({"NEVER"}))
            route = self.route(address, quiet, anywhere=False, null_sender=job.envelope.sender is None)
            trace = _OwnTrace(job.envelope.sender, "")
            with self.open(
                route.recipients, [replace(one, options=options) for one in route.outward], envelope=job.envelope,
                trace=trace, origin=Origin(service="queue"), id=new_id(),
            ) as transaction:  # fmt: skip
                for chunk in iter(partial(_next_chunk, job.path, [0]), b""):
                    transaction.write(chunk)
                accepted = transaction.commit(time.monotonic())
        except (RecipientUnknown, RelayDenied) as refusal:
            return Outcome(address, Disposition.NEVER, 550, "5.1.1", str(refusal))
        except OverQuota as refusal:
            return Outcome(address, Disposition.LATER, 452, "4.2.2", str(refusal))
        except MailError as failure:
            return Outcome(address, Disposition.LATER, 451, "4.3.0", str(failure))
        return Outcome(address, Disposition.SENT, 250, "2.0.0", f"Accepted as {accepted.id}")


def _next_chunk(path: str, offset: list[int]) -> bytes:
    chunk = offload(_read_at, path, offset[0])
    offset[0] += len(chunk)
    return chunk


def _read_at(path: str, offset: int) -> bytes:
    with storage_errors("Reading the queue"), open(path, "rb") as file:
        file.seek(offset)
        return file.read(256 * 1024)


class _OwnTrace:
    """Trace lines of what no session brought."""

    def __init__(self, sender: Address | None, received: str) -> None:
        self._sender = "" if sender is None else quoted(sender)
        self._received = received

    def local(self, recipient: Recipient) -> bytes:
        delivered = f"Delivered-To: {quoted(recipient.address)}\r\n"
        return f"Return-Path: <{self._sender}>\r\n{delivered}{self._received}".encode()

    def outward(self, via: Address | None, recipients: list[Address]) -> bytes:
        return (("" if via is None else f"Delivered-To: {quoted(via)}\r\n") + self._received).encode()


def main_domain(accounts: Accounts, hostname: str) -> str | None:
    """The domain this host's own addresses are in: the one its name belongs to, else the first."""
    domains = [domain.name for domain in accounts.domains()]
    return next((name for name in domains if hostname == name or hostname.endswith("." + name)), None) or (
        domains[0] if domains else None
    )
