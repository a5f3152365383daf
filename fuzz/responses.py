"""A reader of what IMAP says of a message, by the grammar of RFC 3501 9 alone: nothing here is the program's own.

`read_response` takes ENVELOPE, BODY or BODYSTRUCTURE apart; the checks hold it against the message.
"""

from __future__ import annotations

import re

from mailsrv.wire import mime
from mailsrv.wire.structure import Part

Value = bytes | int | None | list["Value"]
_QUOTED = re.compile(rb'"((?:[^"\\\r\n\0\x80-\xff]|\\["\\])*)"')
_NUMBER = re.compile(rb"[0-9]+")
_LITERAL = re.compile(rb"\{([0-9]+)\}\r\n")


def read_response(text: bytes) -> Value:
    """Lists, strings, numbers and NIL; AssertionError for anything else."""
    stack: list[list[Value]] = [[]]
    position = 0
    while position < len(text):
        octet = text[position : position + 1]
        position += 1
        if octet == b"(":
            stack.append([])
        elif octet == b")":
            done = stack.pop()
            stack[-1].append(done)
        elif octet == b" ":
            assert stack[-1] and text[position : position + 1] not in (b" ", b")"), "a space separates two values"
        elif octet == b'"':
            found = _QUOTED.match(text, position - 1)
            assert found, "not a quoted string"
            stack[-1].append(re.sub(rb"\\(.)", rb"\1", found[1]))
            position = found.end()
        elif octet == b"{":
            found = _LITERAL.match(text, position - 1)
            assert found, "not a literal"
            position = found.end() + int(found[1])
            value = text[found.end() : position]
            assert len(value) == int(found[1]) and value.isascii() and b"\0" not in value
            stack[-1].append(value)
        elif text.startswith(b"NIL", position - 1):
            stack[-1].append(None)
            position += 2
        else:
            found = _NUMBER.match(text, position - 1)
            assert found, f"unexpected {octet!r}"
            stack[-1].append(int(found[0]))
            position = found.end()
    assert len(stack) == 1 and len(stack[0]) == 1, "one value"
    return stack[0][0]


def _is_nstring(value: Value) -> bool:
    return value is None or isinstance(value, bytes)


def check_envelope(value: Value) -> None:
    """Ten members; addresses of four each, groups with their markers."""
    assert isinstance(value, list) and len(value) == 10
    for number, member in enumerate(value):
        if 2 <= number <= 7:
            assert member is None or (isinstance(member, list) and member), "no empty address list"
            for one in member or ():
                assert isinstance(one, list) and len(one) == 4 and all(map(_is_nstring, one))
        else:
            assert _is_nstring(member)


def _check_parameters(value: Value) -> None:
    if value is not None:
        assert isinstance(value, list) and value and len(value) % 2 == 0
        assert all(isinstance(one, bytes) for one in value)


def _check_extension(rest: list[Value]) -> None:
    """Disposition, language, location, in this order."""
    assert len(rest) <= 3
    if rest and rest[0] is not None:
        disposition = rest[0]
        assert isinstance(disposition, list) and len(disposition) == 2 and isinstance(disposition[0], bytes)
        _check_parameters(disposition[1])
    if len(rest) > 1 and isinstance(rest[1], list):
        assert rest[1] and all(isinstance(one, bytes) for one in rest[1])
    elif len(rest) > 1:
        assert _is_nstring(rest[1])
    assert len(rest) < 3 or _is_nstring(rest[2])


def check_bodystructure(value: Value, part: Part, raw: bytes, *, extended: bool) -> None:
    """The grammar, and that parts, octets and lines are those of the message."""
    assert isinstance(value, list)
    if part.is_multipart:
        count = len(part.children)
        assert count > 0 and len(value) > count and isinstance(value[count], bytes)
        for one, child in zip(value, part.children, strict=False):
            check_bodystructure(one, child, raw, extended=extended)
        rest = value[count + 1 :]
        assert extended or not rest
        if rest:
            _check_parameters(rest[0])
            _check_extension(rest[1:])
        return
    assert len(value) >= 7 and isinstance(value[0], bytes) and isinstance(value[1], bytes)
    _check_parameters(value[2])
    assert _is_nstring(value[3]) and _is_nstring(value[4]) and isinstance(value[5], bytes)
    assert value[6] == part.end - part.body_start
    rest = value[7:]
    if part.is_message:
        check_envelope(rest[0])
        check_bodystructure(rest[1], part.children[0], raw, extended=extended)
        assert rest[2] == raw.count(b"\n", part.body_start, part.end)
        rest = rest[3:]
    elif value[0].upper() == b"TEXT":
        assert rest[0] == raw.count(b"\n", part.body_start, part.end)
        rest = rest[1:]
    assert extended or not rest
    if rest:
        assert _is_nstring(rest[0])
        _check_extension(rest[1:])


def check_message(raw: bytes, root: Part) -> None:
    """Every part is a piece of the message, inside its parent, and what its number gives (RFC 3501 6.4.5)."""
    head, text = mime.section(raw, (), "HEADER"), mime.section(raw, (), "TEXT")
    assert head is not None and text is not None and head + text == raw
    pending: list[tuple[Part, tuple[int, ...], bool]] = [(root, (), True)]
    for _ in range(200):
        if not pending:
            break
        part, path, is_whole = pending.pop()
        assert 0 <= part.header_start <= part.body_start <= part.end <= len(raw)
        if not is_whole:
            assert mime.section_of(root, raw, path) == raw[part.body_start : part.end]
            assert mime.section_of(root, raw, path, "MIME") == raw[part.header_start : part.body_start]
            for kind in ("HEADER", "TEXT"):
                assert (mime.section_of(root, raw, path, kind) is not None) is part.is_message
        if part.is_multipart:
            end = part.body_start
            for number, child in enumerate(part.children, 1):
                assert end <= child.header_start and child.end <= part.end
                end = child.end
                pending.append((child, (*path, number), False))
        elif is_whole:
            pending.append((part, (*path, 1), False))
        elif part.is_message:
            pending.append((part.children[0], path, True))
