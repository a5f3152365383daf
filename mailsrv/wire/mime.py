"""Messages as IMAP and the index see them: what is prepared once at delivery, sections, and text to search.

Takes any bytes: broken mail gives a value too. `raw` is always the whole message as sent (CRLF line ends), and a
section is a piece of it, octet for octet.

Imports: values, wire.header, wire.pieces, wire.structure.    RFC 3501 6.4.4 (SEARCH), 6.4.5 (sections), RFC 2045-2047.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache

from mailsrv.values import Prepared
from mailsrv.wire.header import (
    HEADER_LIMIT,
    Fields,
    day_number,
    decode_charset_all,
    decode_field,
    decode_words,
    first,
    parameter_text,
    parse_fields,
    parse_parameters,
)
from mailsrv.wire.pieces import PIECE, base64, cut, find_blank, fold, holds, quoted_printable
from mailsrv.wire.structure import Part, body, bodystructure, envelope, envelope_of, parse, transfer_encoding

__all__ = [
    "COMMON_FIELDS",
    "Part",
    "body",
    "body_holds",
    "bodystructure",
    "envelope",
    "field_picker",
    "fold",
    "header_end",
    "header_fields",
    "parse",
    "prepare",
    "search_body",
    "search_header",
    "search_text",
    "section",
    "section_of",
    "text_holds",
]

# What Thunderbird, Apple Mail, mutt, K-9, Outlook and mbsync ask for when they list a mailbox.
COMMON_FIELDS = frozenset(
    b"date from to cc bcc subject message-id references in-reply-to reply-to sender return-path mime-version "
    b"content-type content-transfer-encoding list-id list-post list-unsubscribe x-priority importance priority "
    b"x-spam-flag disposition-notification-to".split()
)
DECODED_LIMIT = 16 << 20  # octets of text of one message that a search looks at
_MATCHER_LIMIT = 64  # names for which a matcher is compiled; more are looked up one by one

# A field, or a line that is none, with the lines after it that begin with white space.
_FIELD = re.compile(rb"[^\n]++(?:\n[ \t][^\n]*+)*+\n?+|\n")
_NAME = re.compile(rb"([!-9;-~]++)[ \t]*+:")
_IS_NAME = re.compile(rb"[!-9;-~]++").fullmatch


def header_end(raw: bytes) -> int:
    """Where the body begins: after the first empty line."""
    if raw.startswith((b"\r\n", b"\n")):
        return raw.index(b"\n") + 1
    found = find_blank(raw)
    return found.end() if found else len(raw)


# --- header fields --------------------------------------------------------------------------------------------------


@lru_cache(256)
def _matcher(names: frozenset[bytes]) -> Callable[[bytes], list[bytes]]:
    # Finds whole fields in one call; each match begins with the line end before the field, which the search for a
    # literal octet finds fast. A loop over the fields in Python takes four times as long.
    listed = b"|".join(re.escape(name) for name in sorted(names) if _IS_NAME(name)) or b"(?!)"
    return re.compile(rb"\n(?:" + listed + rb")[ \t]*+:[^\n]*+(?:\n[ \t][^\n]*+)*+", re.IGNORECASE).findall


def field_picker(names: frozenset[bytes]) -> Callable[[bytes], bytes]:
    """`header_fields` for many headers of whole lines and the same few names (lower case)."""
    find, join = _matcher(names), b"".join

    def pick(header: bytes) -> bytes:
        if len(header) > PIECE:
            return _walk_fields(header, names, False)
        found = find(b"\n" + header)
        return join(found)[1:] + b"\n\r\n" if found else b"\r\n"

    return pick


def header_fields(header: bytes, names: frozenset[bytes], invert: bool = False) -> bytes:
    """The fields with these names (lower case), or all others, in their order and folding, and a blank line."""
    if not header.endswith(b"\n"):
        header += b"\r\n"
    if not invert and 0 < len(names) <= _MATCHER_LIMIT:
        return field_picker(names)(header)
    return _walk_fields(header, names, invert)


def _walk_fields(header: bytes, names: frozenset[bytes], invert: bool) -> bytes:
    """One field after the other: slower, but others have their turn meanwhile."""
    kept: list[bytes] = []
    for field in _FIELD.finditer(header):
        line = field[0]
        if line in (b"\r\n", b"\n"):
            break
        name = _NAME.match(line)
        if (name is not None and name[1].lower() in names) != invert:
            kept.append(line)
    return b"".join(kept) + b"\r\n"


def _considered(header: bytes) -> bytes:
    """As much of a header block as is looked at: whole lines within the limit."""
    if len(header) <= HEADER_LIMIT:
        return header
    return header[: header.rfind(b"\n", 0, HEADER_LIMIT) + 1]


# --- what is kept in the index --------------------------------------------------------------------------------------


def prepare(raw: bytes, *, structure: bool = True) -> Prepared:
    """What the index keeps of a message. Runs at every delivery: 10 KB of plain text take about 60 µs.

    Without `structure` the body is not looked at and BODYSTRUCTURE is empty: less than half of that.
    """
    if structure:
        root = parse(raw)
        fields, header, told = root.fields, _header_of(raw, root), bodystructure(root, raw)
    else:
        end = header_end(raw)
        fields, header, told = parse_fields(raw[: min(end, HEADER_LIMIT)]), _header_before(raw, end), b""
    date = first(fields, b"date")
    return Prepared(
        envelope=envelope_of(fields),
        bodystructure=told,
        fields=header_fields(header, COMMON_FIELDS)[:-2],
        sent_day=day_number(date) if date else 0,
        message_id=_folded(fields, b"message-id"),
        subject=_folded(fields, b"subject"),
        from_=_folded(fields, b"from"),
        to=_folded(fields, b"to"),
        cc=_folded(fields, b"cc"),
        bcc=_folded(fields, b"bcc"),
    )


def _folded(fields: Fields, name: bytes) -> str:
    values = fields.get(name)
    if values is None:
        return ""
    if len(values) == 1:
        return decode_field(values[0]).casefold()
    return "\n".join([decode_field(value) for value in values]).casefold()


# --- sections -------------------------------------------------------------------------------------------------------


def section(raw: bytes, path: tuple[int, ...], kind: str | None = None, fields: tuple[bytes, ...] = ()) -> bytes | None:
    """The text of BODY[<path>.<kind>]; None if the message has no such part. RFC 3501 6.4.5.

    `kind` is None, "HEADER", "HEADER.FIELDS", "HEADER.FIELDS.NOT", "TEXT" or "MIME".
    """
    if path:
        return section_of(parse(raw), raw, path, kind, fields)
    if kind is None:
        return raw
    end = header_end(raw)  # needs no structure
    return _message_section(raw[:end], raw[end:], kind, fields)


def section_of(
    root: Part, raw: bytes, path: tuple[int, ...], kind: str | None = None, fields: tuple[bytes, ...] = ()
) -> bytes | None:
    """`section` of a message that is parsed already."""
    if not path:
        return section(raw, path, kind, fields)
    part = _find(root, path)
    if part is None:
        return None
    if kind is None:
        return raw[part.body_start : part.end]
    if kind == "MIME":
        return raw[part.header_start : part.body_start]
    if not part.is_message:
        return None
    message = part.children[0]
    return _message_section(
        raw[message.header_start : message.body_start], raw[message.body_start : message.end], kind, fields
    )


def _message_section(header: bytes, text: bytes, kind: str, fields: tuple[bytes, ...]) -> bytes | None:
    if kind == "HEADER":
        return header
    if kind == "TEXT":
        return text
    if kind in ("HEADER.FIELDS", "HEADER.FIELDS.NOT"):
        names = frozenset(name.lower() for name in fields)
        return header_fields(_considered(header), names, invert=kind == "HEADER.FIELDS.NOT")
    return None  # MIME needs a part number


def _find(root: Part, path: tuple[int, ...]) -> Part | None:
    """The part with that number. A message that is no multipart has its body as part 1."""
    part, is_message_root = root, True
    for number in path:
        if not is_message_root and part.is_message:
            part, is_message_root = part.children[0], True
        if part.is_multipart:
            if not 1 <= number <= len(part.children):
                return None
            part = part.children[number - 1]
        elif not is_message_root or number != 1:
            return None
        is_message_root = False
    return part


# --- search ---------------------------------------------------------------------------------------------------------


def search_header(header: bytes, name: str | bytes) -> list[str]:
    """The decoded values of all fields of that name, not folded, in their order."""
    key = (name.encode("utf-8", "replace") if isinstance(name, str) else name).lower()
    return [decode_field(value) for value in parse_fields(header).get(key, ())]


def search_text(raw: bytes) -> str:
    """All text of a message, decoded and folded: its header and its body."""
    return fold("".join(_all_texts(raw)))


def search_body(raw: bytes) -> str:
    """All text of a message's body, decoded and folded: text parts, and the headers of parts and messages inside."""
    return fold("".join(_body_texts(raw, parse(raw))))


def text_holds(raw: bytes, needle: str) -> bool:
    """Whether the needle, which is folded, is in `search_text`; a piece at a time, and never all in one place."""
    return holds(_all_texts(raw), needle)


def body_holds(raw: bytes, needle: str) -> bool:
    """The same of `search_body`."""
    return holds(_body_texts(raw, parse(raw)), needle)


def _all_texts(raw: bytes) -> Iterator[str]:
    root = parse(raw)
    yield _header_text(raw, root)
    yield "\n"
    yield from _body_texts(raw, root)


def _header_of(raw: bytes, part: Part) -> bytes:
    """As much of a part's header as is looked at."""
    return _header_before(raw, part.body_start, part.header_start)


def _header_before(raw: bytes, end: int, start: int = 0) -> bytes:
    return _considered(raw[start : min(end, start + HEADER_LIMIT + 1)])


def _header_text(raw: bytes, part: Part) -> str:
    header = _header_of(raw, part).replace(b"\0", b"")
    for end in (b"\r\n", b"\n"):  # unfolded
        header = header.replace(end + b" ", b" ").replace(end + b"\t", b"\t")
    return decode_words(header).replace("\t", " ")


def _body_texts(raw: bytes, root: Part) -> Iterator[str]:
    """Text after text, with a line end between those that do not belong together."""
    between = False
    for text in _texts_of_parts(raw, root):
        if between:
            yield "\n"
        yield from text
        between = True


def _texts_of_parts(raw: bytes, root: Part) -> Iterator[list[str]]:
    room = DECODED_LIMIT
    for part in root.walk():
        if room <= 0:
            break
        if part is not root:
            header = _header_text(raw, part)
            room -= len(header)
            yield [header]
            if name := _encoded_file_name(part.fields):
                yield [name]
        if part.type == b"text" and room > 0:
            yield _part_text(raw, part, min(part.end, part.body_start + room))
            room -= part.end - part.body_start


def _part_text(raw: bytes, part: Part, end: int) -> list[str]:
    encoding = transfer_encoding(part.fields)
    if encoding == b"base64":
        data = base64(raw, part.body_start, end)
    elif encoding == b"quoted-printable":
        data = quoted_printable(raw, part.body_start, end)
    else:
        data = cut(raw, part.body_start, end)
    charset = next((value for name, value in part.parameters if name == b"charset"), b"")
    return decode_charset_all(data, charset.decode("latin-1"))


def _encoded_file_name(fields: Fields) -> str | None:
    """The name of an attachment, if the header says it in percent encoding (RFC 2231)."""
    for field in (b"content-disposition", b"content-type"):
        value = first(fields, field)
        if value and b"*" in value:
            _, parameters = parse_parameters(value)
            if text := parameter_text(parameters, b"filename") or parameter_text(parameters, b"name"):
                return text
    return None
