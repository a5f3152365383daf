"""The index as an interface: for each mailbox its counters, for each UID its file, flags, size and dates.

The index is a cache of the Maildir that makes answers fast and gives order to changes (modseq). Everything in it can be
made again from file names and metadata files. One object serves one account in one process; its methods are called
with the account's mutex held, those that write also inside `transaction()`. Nothing outside an engine knows SQL.

Imports: values.    RFC 3501 2.3 (UID, UIDVALIDITY, UIDNEXT), RFC 7162 (modseq, expunged).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

from mailsrv.values import Delta, Prepared, Row


@dataclass(slots=True)
class MailboxRecord:
    """One mailbox. Mtimes are nanoseconds, 0 for "not known"; `boot` names the system start it was last written
    under.
    """

    number: int
    directory: str  # relative to the Maildir, "" for INBOX
    name: str
    uidvalidity: int
    uidnext: int
    uid_mark: int
    keywords: tuple[str, ...] = ()
    special_use: str | None = None
    highest_modseq: int = 1
    recent_uid: int = 1
    messages: int = 0
    unseen: int = 0
    deleted: int = 0
    size: int = 0
    cur_mtime: int = 0
    new_mtime: int = 0
    expunged_floor: int = 0
    boot: str = ""


class MessageRecord(NamedTuple):
    """One message as the store works on it; `letters` are foreign capital letters of its file name."""

    uid: int
    base: str
    in_new: int
    flags: int
    keywords: int
    letters: str
    modseq: int
    size: int
    internal_date: int
    save_date: int
    bare_lf: int


class FlagChange(NamedTuple):
    """New flags, and with them possibly a new place, of one message."""

    uid: int
    in_new: int
    flags: int
    keywords: int
    letters: str


class Index(ABC):
    """What a storage engine must offer for one account."""

    @abstractmethod
    def reading(self) -> AbstractContextManager[None]:
        """The engine's failures inside are IndexDamaged, or IndexFailed where the index is sound."""

    @abstractmethod
    def one_state(self) -> AbstractContextManager[None]:
        """All that is read inside is of one commit, whatever other processes commit meanwhile."""

    @abstractmethod
    def transaction(self) -> AbstractContextManager[None]:
        """Everything inside is committed together, or nothing; failures as in `reading`."""

    @abstractmethod
    def fact(self, name: str) -> int:
        """A number kept for the account (0 if never set)."""

    @abstractmethod
    def set_fact(self, name: str, value: int) -> None: ...

    @abstractmethod
    def mailboxes(self) -> list[MailboxRecord]: ...

    @abstractmethod
    def mailbox(self, number: int) -> MailboxRecord | None: ...

    @abstractmethod
    def put_mailbox(self, record: MailboxRecord) -> None:
        """Insert or replace the record (not its messages)."""

    @abstractmethod
    def drop_mailbox(self, number: int) -> None:
        """Forget a mailbox and all that belongs to it."""

    @abstractmethod
    def clear_messages(self, number: int) -> None: ...

    @abstractmethod
    def insert(self, number: int, records: Sequence[MessageRecord]) -> None: ...

    @abstractmethod
    def update_flags(self, number: int, modseq: int, changes: Sequence[FlagChange]) -> None: ...

    @abstractmethod
    def expunge(self, record: MailboxRecord, modseq: int, uids: Sequence[int]) -> None:
        """Remove rows and remember the UIDs as expunged at `modseq`.

        Of more than a bounded number the oldest are forgotten, which raises `record.expunged_floor`.
        """

    @abstractmethod
    def was_expunged(self, number: int, uid: int) -> bool: ...

    @abstractmethod
    def records(self, number: int, uids: Sequence[int] | None = None) -> list[MessageRecord]:
        """Ascending by UID; those that exist."""

    @abstractmethod
    def rows(self, number: int, uids: Sequence[int]) -> list[Row]:
        """Of those that are there; `uids` ascend, here and wherever else they are given."""

    @abstractmethod
    def flag_columns(self, number: int) -> list[tuple[int, int, int, int]]:
        """(uid, flags, keywords, modseq) of all messages, ascending by UID."""

    @abstractmethod
    def uids_with_flag(self, number: int, bit: int) -> list[int]: ...

    @abstractmethod
    def count_from(self, number: int, uid: int) -> int:
        """How many messages have this UID or a higher one."""

    @abstractmethod
    def changes(self, record: MailboxRecord, since: int) -> Delta: ...

    @abstractmethod
    def prepared(self, number: int, uids: Sequence[int], parts: Sequence[str]) -> list[tuple[Any, ...]]:
        """(uid, size, internal date, *parts), ascending; `parts` names fields of Prepared, None where not prepared."""

    @abstractmethod
    def prepared_alone(self, number: int, uids: Sequence[int], parts: Sequence[str]) -> list[tuple[Any, ...]]:
        """The same of those that are prepared, with 0 for size and date."""

    @abstractmethod
    def unprepared(self, number: int, uids: Sequence[int]) -> list[int]: ...

    @abstractmethod
    def put_prepared(self, number: int, entries: Iterable[tuple[int, Prepared]]) -> None: ...

    @abstractmethod
    def copy_prepared(self, source: int, target: int, pairs: Sequence[tuple[int, int]]) -> None: ...

    @abstractmethod
    def search(self, number: int, uids: Sequence[int], column: str, needle: str) -> list[int]:
        """UIDs, among those given and prepared, whose text contains the needle."""

    @abstractmethod
    def find_message_id(self, number: int, message_id: str) -> int | None: ...

    @abstractmethod
    def usage(self) -> int:
        """Octets of all messages of the account."""

    @abstractmethod
    def close(self) -> None: ...


class IndexDamaged(Exception):
    """The engine cannot read what is on disk; the store discards it and rebuilds from the Maildir."""


OpenIndex = Callable[[str], Index]


class IndexFailed(OSError):
    """The engine could not do it now: a full disk, no descriptors left. The connection is of no further use: one that
    was opened in such a moment may be for reading only, and would stay so.
    """
