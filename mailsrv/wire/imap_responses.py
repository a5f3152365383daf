"""What the server writes: strings, flags, dates, names and numbers in IMAP's form. Pure, and fast where it is asked
often.

Imports: values, wire.mutf7, wire.imap_values.    RFC 3501 4, 7, 9.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from functools import lru_cache

from mailsrv.values import SYSTEM_FLAGS
from mailsrv.wire import mutf7
from mailsrv.wire.imap_values import FetchItem

_UNSAFE = re.compile(rb'[\x00-\x1f\x7f-\xff"\\]')
_ATOM = re.compile(rb"[A-Za-z0-9!#$&'+,./:;<=>?@^_`|}~-]+")
LONGEST_QUOTED = 1000
MONTHS = (b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec")


def quoted_or_literal(raw: bytes | str) -> bytes:
    """A string: quoted where that is possible without escapes going on for ever, else a literal."""
    data = raw.encode("utf-8", "replace") if isinstance(raw, str) else raw
    if len(data) <= LONGEST_QUOTED:
        if not _UNSAFE.search(data):
            return b'"%b"' % data
        if not any(octet < 0x20 or octet > 0x7E for octet in data):
            return b'"%b"' % data.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    return b"{%d}\r\n%b" % (len(data), data)


def nstring(raw: bytes | str | None) -> bytes:
    return b"NIL" if raw is None else quoted_or_literal(raw)


def mailbox_name(name: str) -> bytes:
    """A mailbox name in modified UTF-7, as an atom where it can be one."""
    coded = mutf7.encode(name)
    return coded if _ATOM.fullmatch(coded) and coded.upper() != b"NIL" else quoted_or_literal(coded)


@lru_cache(maxsize=4096)
def flag_list(system: int, keywords: int, names: tuple[str, ...], recent: bool = False) -> bytes:
    """Flags without parentheses: system flags, keywords by their bits, \\Recent last."""
    flags = [name for name, bit in SYSTEM_FLAGS.items() if system & bit]
    flags += [name for number, name in enumerate(names) if keywords >> number & 1]
    if recent:
        flags.append("\\Recent")
    return " ".join(flags).encode()


def number_set(numbers: Iterable[int]) -> bytes:
    """Numbers, in their order, with runs as ranges: `1:3,5`. "" for none."""
    parts: list[str] = []
    start = previous = None
    for number in numbers:
        if previous is not None and number == previous + 1:
            previous = number
            continue
        if start is not None:
            parts.append(f"{start}:{previous}" if previous != start else str(start))
        start = previous = number
    if start is not None:
        parts.append(f"{start}:{previous}" if previous != start else str(start))
    return ",".join(parts).encode()


@lru_cache(maxsize=4096)
def _day(day: int) -> bytes:
    moment = time.gmtime(day * 86400)
    return b"%2d-%b-%04d" % (moment.tm_mday, MONTHS[moment.tm_mon - 1], moment.tm_year)


def internal_date(seconds: int) -> bytes:
    """`"dd-Mon-yyyy hh:mm:ss +0000"` with the quotes; the day is padded with a space (RFC 3501 9, date-day-fixed)."""
    day, rest = divmod(seconds, 86400)
    return b'"%b %02d:%02d:%02d +0000"' % (_day(day), rest // 3600, rest // 60 % 60, rest % 60)


def fetch_item_name(item: FetchItem) -> bytes:
    """The item's name in a FETCH response: `BODY[1.HEADER.FIELDS (To)]<0>`. Only the origin is echoed (R32)."""
    if item.section is None:
        return item.name.encode()
    section = item.section
    text = ".".join(str(number) for number in section.path).encode()
    if section.kind:
        text += (b"." if text else b"") + section.kind.encode()
    if section.fields:
        fields = [field if _ATOM.fullmatch(field) else quoted_or_literal(field) for field in section.fields]
        text += b" (" + b" ".join(fields) + b")"
    origin = b"<%d>" % item.partial[0] if item.partial is not None else b""
    return b"BODY[" + text + b"]" + origin


def list_line(kind: bytes, attributes: Sequence[str], delimiter: str, name: str, extra: bytes = b"") -> bytes:
    """`* LIST (\\HasNoChildren) "/" INBOX`."""
    marks = " ".join(attributes).encode()
    return b'* %b (%b) "%b" %b%b\r\n' % (kind, marks, delimiter.encode(), mailbox_name(name), extra)
