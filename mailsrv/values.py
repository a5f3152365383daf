"""Frozen data that crosses layers: identities, flags, rows and the results of store operations.

Nothing here does I/O or knows a protocol. Hot values are NamedTuples (cheap to make by the hundred thousand),
the others frozen dataclasses.

Imports: the standard library only.    RFC 3501 2.3 (message attributes), RFC 7162 (modseq), RFC 8474 (object ids).
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, NewType

AccountId = NewType("AccountId", int)
NOBODY = AccountId(0)  # the server's own account for watching itself: no user, and in no count of users' mail
Uid = NewType("Uid", int)
Seq = NewType("Seq", int)
ModSeq = NewType("ModSeq", int)

# System flags as bits of one octet (RFC 3501 2.3.2). \Recent belongs to a session and is never stored.
SEEN, ANSWERED, FLAGGED, DELETED, DRAFT = 1, 2, 4, 8, 16
SYSTEM_FLAGS = {"\\Seen": SEEN, "\\Answered": ANSWERED, "\\Flagged": FLAGGED, "\\Deleted": DELETED, "\\Draft": DRAFT}
MAX_KEYWORDS = 26  # one Maildir letter a-z each; bit n of a keyword word is the n-th name of the mailbox's list


class MailboxId(NamedTuple):
    """Who a mailbox is for ever: kept by rename, never given to another one. `str()` is the object id (RFC 8474)."""

    account: AccountId
    number: int

    def __str__(self) -> str:
        return f"M{self.account:x}-{self.number:x}"


class FlagOp(Enum):
    """What STORE does with the flags it names (RFC 3501 6.4.6)."""

    ADD = "+"
    REMOVE = "-"
    REPLACE = "="


@dataclass(frozen=True, slots=True)
class MailboxInfo:
    """A mailbox as LIST needs it. `name` is Unicode, hierarchy delimiter `/`, INBOX in capitals."""

    id: MailboxId
    name: str
    uidvalidity: int
    special_use: str | None = None  # "\\Sent" and so on, RFC 6154


@dataclass(frozen=True, slots=True)
class MailboxStatus:
    """What STATUS reports (RFC 3501 6.3.10); `size` in octets as BODY[] would send them."""

    messages: int
    unseen: int
    recent: int
    deleted: int
    uidnext: int
    uidvalidity: int
    highest_modseq: int
    size: int


class Row(NamedTuple):
    """One message of the index, without what is prepared from its text.

    `path` is relative to the mailbox directory ("cur/1700…:2,S"); `size` is in octets as sent (CRLF counted);
    dates are seconds since 1970 UTC; `bare_lf` says that the file has LF line ends and is converted on the way out.
    """

    uid: int
    path: str
    size: int
    internal_date: int
    save_date: int
    bare_lf: bool


class Prepared(NamedTuple):
    """What clients ask of every message of a list, made once from the message text and kept in the index.

    `envelope` and `bodystructure` are IMAP wire text, parentheses included; `bodystructure` is empty where nobody asked
    for it yet. `fields` holds the raw lines (folding kept,
    CRLF) of the commonly asked header fields, in their order. `subject` … `bcc` are decoded and case-folded, for
    SEARCH.
    `sent_day` is the day number (`date.toordinal()`) of the Date field as written, zone ignored; 0 without one.
    """

    envelope: bytes
    bodystructure: bytes
    fields: bytes
    sent_day: int
    message_id: str
    subject: str
    from_: str
    to: str
    cc: str
    bcc: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A whole mailbox as parallel compact arrays, ascending by UID, at `highest_modseq`."""

    uids: array[int]  # 'I'
    flags: bytearray  # system flag bits
    keywords: array[int]  # 'I', keyword bits
    modseqs: array[int]  # 'Q'
    keyword_names: tuple[str, ...]
    uidnext: int
    uidvalidity: int
    highest_modseq: int


class Changed(NamedTuple):
    """One message that is new or whose flags changed."""

    uid: int
    flags: int
    keywords: int
    modseq: int


@dataclass(frozen=True, slots=True)
class Delta:
    """What was committed to a mailbox after a modseq: at most one entry per UID, each list ascending by UID.

    `changed` has new and re-flagged messages alike (a UID unknown to the reader is new); `vanished` has (uid, modseq).
    """

    changed: list[Changed]
    vanished: list[tuple[int, int]]
    keyword_names: tuple[str, ...]
    uidnext: int
    highest_modseq: int


@dataclass(frozen=True, slots=True)
class Appended:
    """A message placed durably: its UID, and what the index committed with it."""

    mailbox: MailboxId
    uid: int
    uidvalidity: int
    modseq: int
    size: int
    flags: int = 0
    keywords: int = 0
    keyword_names: tuple[str, ...] = ()
    previous_modseq: int = 0  # of the mailbox before this: whoever knows all up to it knows all now
    recent: tuple[int, int] = (0, 0)  # the UIDs claimed as recent with it, half-open
    path: str = ""  # of its file, within the account's Maildir
    durable_at: float = 0.0  # time.monotonic() when its file was synced
    committed_at: float = 0.0  # time.monotonic() when its row was committed


@dataclass(frozen=True, slots=True)
class Copied:
    """Result of COPY or MOVE; the two UID lists run in parallel (RFC 4315 3, COPYUID)."""

    uidvalidity: int
    source_uids: list[int]
    target_uids: list[int]


@dataclass(frozen=True, slots=True)
class Stored:
    """Result of STORE: which messages changed (`previous`: their modseqs before), which were refused by UNCHANGEDSINCE
    (RFC 7162 3.1.3), which are gone.
    """

    modseq: int
    changed: list[int]
    previous: list[int]
    modified: list[int] = field(default_factory=list)
    gone: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Address:
    """A mailbox address; `domain` in lower case, `local` as given (RFC 5321 4.1.2)."""

    local: str
    domain: str

    def __str__(self) -> str:
        return f"{self.local}@{self.domain}"


@dataclass(frozen=True, slots=True)
class Account:
    """Who a user is: `home` is the directory of their mail, absolute."""

    id: AccountId
    address: Address
    home: str
    quota_bytes: int = 0  # 0: unlimited


# ------------------------------------------------------------------ mail on its way out


class Disposition(Enum):
    """What an attempt did for one recipient."""

    SENT = "sent"  # the next host has taken it over
    LATER = "later"  # not now; another attempt may do it
    NEVER = "never"  # no attempt will do it: the sender is told


@dataclass(frozen=True, slots=True)
class RecipientOptions:
    """What RCPT asked for one recipient. RFC 3461 4.1, 4.2: `notify` holds NEVER, or some of SUCCESS, FAILURE, DELAY;
    empty is the default. `orcpt` is the original recipient as the sender gave it ("rfc822;ann@example.org", decoded).
    """

    notify: frozenset[str] = frozenset()
    orcpt: str = ""


@dataclass(frozen=True, slots=True)
class Envelope:
    """What goes with a message from host to host, besides its recipients.

    `release` is the time it was asked to leave at, "for;3600" or "until;2026-11-25T08:00:00Z" (RFC 4865), for reports.
    `sender` None is the null sender. `body` is 7BIT or 8BITMIME (RFC 6152); `ret` is "", FULL or HDRS and `envid` the
    sender's own name for the transaction (RFC 3461 4.3, 4.4); `require_tls` is RFC 8689's.
    """

    sender: Address | None
    body: str = "8BITMIME"
    smtputf8: bool = False
    ret: str = ""
    envid: str = ""
    require_tls: bool = False
    release: str = ""

    @property
    def must_require_tls(self) -> bool:
        """Whether it may not go otherwise: a report has the wish too, but is not lost for it (RFC 8689 4.2.1, 5)."""
        return self.require_tls and self.sender is not None


@dataclass(frozen=True, slots=True)
class Job:
    """One attempt: a message for some recipients that share a destination. `path` names the message's file, which
    holds it as accepted (trace lines included, CRLF line ends unless a sender broke them), `size` octets.

    `account` is who submitted it, 0 for nobody; `ours` that this server wrote it (a report): such mail is signed.
    """

    id: str  # of the queue entry
    envelope: Envelope
    recipients: tuple[tuple[Address, RecipientOptions], ...]
    path: str
    size: int
    account: AccountId = AccountId(0)
    ours: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a Job for one recipient, and why, in the words of the remote host where it had some.

    `code` is the SMTP reply code, 0 where no host replied; `enhanced` an RFC 3463 code, ours where the remote gave
    none; `host` is "mx.example.org[192.0.2.1]:25", "" if none was reached; `tls` says how it was spoken to ("" in
    clear); `dsn_relayed` that the host promised to report (RFC 3461 5.2.2), so that we do not.
    """

    recipient: Address
    disposition: Disposition
    code: int
    enhanced: str
    text: str
    host: str = ""
    tls: str = ""
    dsn_relayed: bool = False
