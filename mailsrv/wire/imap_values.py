"""One dataclass per IMAP command, and the values inside them. Names and texts are decoded, numbers are numbers.

Imports: values.    RFC 3501 6, 9; RFC 2177, 3691, 4315, 5161, 5258, 6154, 6851, 7162.
"""

from __future__ import annotations

from dataclasses import dataclass

from mailsrv.values import FlagOp


@dataclass(frozen=True, slots=True)
class Literal:
    """`{size}` at the end of a line. `data` is None until it was read."""

    size: int
    sync: bool
    binary: bool
    data: bytes | None = None


@dataclass(frozen=True, slots=True)
class SequenceSet:
    """Ranges as given; None stands for `*`."""

    ranges: tuple[tuple[int | None, int | None], ...]


@dataclass(frozen=True, slots=True)
class FlagList:
    system: int
    keywords: tuple[str, ...] = ()
    recent: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """`BODY[1.2.HEADER.FIELDS (To)]`: part numbers, what of the part, field names as given."""

    path: tuple[int, ...] = ()
    kind: str | None = None
    fields: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class FetchItem:
    name: str
    section: Section | None = None
    peek: bool = False
    partial: tuple[int, int] | None = None


# ------------------------------------------------------------------ search keys


@dataclass(frozen=True, slots=True)
class All:
    pass


@dataclass(frozen=True, slots=True)
class And:
    keys: tuple[SearchKey, ...]


@dataclass(frozen=True, slots=True)
class Or:
    left: SearchKey
    right: SearchKey


@dataclass(frozen=True, slots=True)
class Not:
    key: SearchKey


@dataclass(frozen=True, slots=True)
class SeqSet:
    set: SequenceSet


@dataclass(frozen=True, slots=True)
class UidSet:
    set: SequenceSet


@dataclass(frozen=True, slots=True)
class HasFlag:
    bit: int
    wanted: bool


@dataclass(frozen=True, slots=True)
class HasKeyword:
    name: str
    wanted: bool


@dataclass(frozen=True, slots=True)
class Recent:
    wanted: bool


@dataclass(frozen=True, slots=True)
class New:
    """Recent and not seen."""


@dataclass(frozen=True, slots=True)
class InternalDate:
    """`op` is "<", "=" or ">="; `day` is `date.toordinal()`."""

    op: str
    day: int


@dataclass(frozen=True, slots=True)
class SentDate:
    op: str
    day: int


@dataclass(frozen=True, slots=True)
class Size:
    op: str
    octets: int


@dataclass(frozen=True, slots=True)
class Header:
    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Body:
    text: str


@dataclass(frozen=True, slots=True)
class Text:
    text: str


SearchKey = (
    All | And | Or | Not | SeqSet | UidSet | HasFlag | HasKeyword | Recent | New | InternalDate | SentDate | Size
    | Header | Body | Text
)  # fmt: skip

# ------------------------------------------------------------------ commands


@dataclass(frozen=True, slots=True)
class Command:
    tag: str


class Capability(Command):
    pass


class Noop(Command):
    pass


class Logout(Command):
    pass


class StartTls(Command):
    pass


class Namespace(Command):
    pass


class Check(Command):
    pass


class Close(Command):
    pass


class Unselect(Command):
    pass


class Idle(Command):
    pass


@dataclass(frozen=True, slots=True)
class Authenticate(Command):
    mechanism: str
    initial: bytes | None  # decoded; None when there was none


@dataclass(frozen=True, slots=True)
class Login(Command):
    user: str
    password: str


@dataclass(frozen=True, slots=True)
class Enable(Command):
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Id(Command):
    fields: dict[str, str | None] | None


@dataclass(frozen=True, slots=True)
class Select(Command):
    mailbox: str
    examine: bool


@dataclass(frozen=True, slots=True)
class Create(Command):
    mailbox: str
    special_use: str | None


@dataclass(frozen=True, slots=True)
class Delete(Command):
    mailbox: str


@dataclass(frozen=True, slots=True)
class Rename(Command):
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Subscribe(Command):
    mailbox: str


@dataclass(frozen=True, slots=True)
class Unsubscribe(Command):
    mailbox: str


@dataclass(frozen=True, slots=True)
class List(Command):
    """LIST and LSUB; options in capitals (RFC 5258)."""

    reference: str
    patterns: tuple[str, ...]
    lsub: bool
    select: frozenset[str]
    returns: frozenset[str]
    status: tuple[str, ...]
    extended: bool


@dataclass(frozen=True, slots=True)
class Status(Command):
    mailbox: str
    items: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Append(Command):
    """`date` is seconds since 1970, `literal` announced and not read yet."""

    mailbox: str
    flags: FlagList
    date: int | None
    literal: Literal


@dataclass(frozen=True, slots=True)
class Expunge(Command):
    uids: SequenceSet | None


@dataclass(frozen=True, slots=True)
class Search(Command):
    uid: bool
    charset: str | None
    key: SearchKey


@dataclass(frozen=True, slots=True)
class Fetch(Command):
    uid: bool
    set: SequenceSet
    items: tuple[FetchItem, ...]


@dataclass(frozen=True, slots=True)
class Store(Command):
    uid: bool
    set: SequenceSet
    op: FlagOp
    silent: bool
    flags: FlagList


@dataclass(frozen=True, slots=True)
class Copy(Command):
    uid: bool
    set: SequenceSet
    mailbox: str


@dataclass(frozen=True, slots=True)
class Move(Command):
    uid: bool
    set: SequenceSet
    mailbox: str
