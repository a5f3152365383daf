"""The tokens of IMAP: one cursor over a command's lines and literals, and the primitives of the formal syntax.

Imports: wire.errors, wire.imap_values.    RFC 3501 9, RFC 7888 (non-synchronizing literals).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mailsrv.wire.errors import WireError
from mailsrv.wire.imap_values import Literal, SequenceSet

MAX_UINT32 = 0xFFFFFFFF
MAX_RANGES = 20_000

# atom-char: any 7-bit CHAR but atom-specials; `]` may stand in an astring (R39).
_ATOM = re.compile(rb'[^\x00-\x20\x7f-\xff(){%*"\\\]]+')
_ASTRING = re.compile(rb'[^\x00-\x20\x7f-\xff(){%*"\\]+')
_LIST_MAILBOX = re.compile(rb'[^\x00-\x20\x7f-\xff(){"\\]+')
_TAG = re.compile(rb'[^\x00-\x20\x7f-\xff(){%*"\\+]+')
_NUMBER = re.compile(rb"[0-9]{1,20}")
_QUOTED = re.compile(rb'"((?:[^"\\\x00\r\n]|\\["\\])*)"')
_UNESCAPE = re.compile(rb'\\(["\\])')
_SET = re.compile(rb"[0-9*:,]+")
_LITERAL_END = re.compile(rb"(~?)\{([0-9]{1,20})(\+?)\}\Z")


def line_literal(line: bytes) -> Literal | None:
    """The literal that a line announces at its end."""
    found = _LITERAL_END.search(line, max(0, len(line) - 26))
    return Literal(int(found[2]), not found[3], bool(found[1])) if found else None


class Cursor:
    """Reads one command: line, literal, line, … as `parts`. Every miss is a WireError with the offset."""

    __slots__ = ("_base", "_index", "_parts", "line", "pos", "tag")

    def __init__(self, parts: Sequence[bytes | Literal]) -> None:
        self._parts = parts
        self._index = 0
        self._base = 0
        self.line = parts[0] if parts and isinstance(parts[0], bytes) else b""
        self.pos = 0
        self.tag: str | None = None

    def fail(self, message: str) -> WireError:
        return WireError(message, self._base + self.pos, self.tag)

    def at_end(self) -> bool:
        return self.pos >= len(self.line) and self._index + 1 >= len(self._parts)

    def end(self) -> None:
        if not self.at_end():
            raise self.fail("Unexpected characters at the end of the command")

    def peek(self, text: bytes) -> bool:
        return self.line.startswith(text, self.pos)

    def take(self, text: bytes) -> bool:
        if self.line.startswith(text, self.pos):
            self.pos += len(text)
            return True
        return False

    def expect(self, text: bytes, what: str = "") -> None:
        if not self.take(text):
            raise self.fail(what or f"Expected {text.decode('ascii')!r}")

    def space(self) -> None:
        self.expect(b" ", "Expected a space")

    def _match(self, pattern: re.Pattern[bytes], what: str) -> bytes:
        found = pattern.match(self.line, self.pos)
        if not found:
            raise self.fail(f"Expected {what}")
        self.pos = found.end()
        return found[0]

    def read_tag(self) -> str:
        return self._match(_TAG, "a tag").decode("ascii")

    def atom(self) -> str:
        return self._match(_ATOM, "an atom").decode("ascii")

    def word(self) -> str:
        """An atom in capitals."""
        return self.atom().upper()

    def number(self, most: int = MAX_UINT32) -> int:
        value = int(self._match(_NUMBER, "a number"))
        if value > most:
            raise self.fail("Number out of range")
        return value

    def nz_number(self, most: int = MAX_UINT32) -> int:
        value = self.number(most)
        if not value:
            raise self.fail("Number must not be 0")
        return value

    def quoted(self) -> bytes:
        found = _QUOTED.match(self.line, self.pos)
        if not found:
            raise self.fail("Quoted string is not well formed")
        self.pos = found.end()
        return _UNESCAPE.sub(rb"\1", found[1]) if b"\\" in found[1] else found[1]

    def literal(self) -> bytes:
        """The literal that ends this line; the cursor goes on in the next one."""
        announced = line_literal(self.line)
        if announced is None or self._index + 2 >= len(self._parts):
            raise self.fail("Expected a literal")
        start = _LITERAL_END.search(self.line, max(0, len(self.line) - 26))
        given, following = self._parts[self._index + 1], self._parts[self._index + 2]
        if start is None or start.start() != self.pos or not isinstance(given, Literal) or given.data is None:
            raise self.fail("Expected a literal")
        if not given.binary and b"\0" in given.data:
            raise self.fail("NUL in a literal")
        if not isinstance(following, bytes):
            raise self.fail("Expected a line after the literal")
        self._base += len(self.line) + len(given.data)
        self._index += 2
        self.line, self.pos = following, 0
        return given.data

    def string(self) -> bytes:
        return self.quoted() if self.peek(b'"') else self.literal()

    def astring(self) -> bytes:
        if self.peek(b'"') or self.peek(b"{") or self.peek(b"~{"):
            return self.string()
        return self._match(_ASTRING, "a string")

    def list_mailbox(self) -> bytes:
        if self.peek(b'"') or self.peek(b"{"):
            return self.string()
        return self._match(_LIST_MAILBOX, "a mailbox pattern")

    def nstring(self) -> bytes | None:
        if self.line[self.pos : self.pos + 3].upper() == b"NIL":
            self.pos += 3
            return None
        return self.string()

    def text(self, raw: bytes) -> str:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail("String is not UTF-8") from None

    def sequence_set(self) -> SequenceSet:
        """RFC 3501 9, sequence-set. Order and overlap are as given; `*` is None."""
        raw = self._match(_SET, "a sequence set")
        ranges: list[tuple[int | None, int | None]] = []
        for part in raw.split(b","):
            if len(ranges) >= MAX_RANGES:
                raise self.fail("Too many ranges in the sequence set")
            first, colon, last = part.partition(b":")
            low = self._set_number(first)
            ranges.append((low, self._set_number(last) if colon else low))
        return SequenceSet(tuple(ranges))

    def _set_number(self, raw: bytes) -> int | None:
        if raw == b"*":
            return None
        if not raw.isdigit() or len(raw) > 10 or not 0 < int(raw) <= MAX_UINT32:
            raise self.fail("Not a sequence set")
        return int(raw)
