"""Long texts a piece at a time. One call of the C library holds the interpreter for all of its length, and with it the
event loop, even from a thread; between two pieces others have their turn.

What is short goes in one call, as if this module were not there.

Imports: nothing.
"""

from __future__ import annotations

import codecs
import re
from binascii import Error as BinasciiError
from binascii import a2b_base64, a2b_qp
from collections.abc import Iterator

PIECE = 1 << 18  # octets or characters: up to 3 ms of the slowest call here
_BLANK = re.compile(rb"\n\r?\n")
_WITH_MARK = {"utf_16", "utf_32"}  # piece by piece these insist on their byte order mark, and they are fast
_NOT_BASE64 = bytes(sorted(set(range(256)) - set(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")))


def find_blank(raw: bytes, start: int = 0) -> re.Match[bytes] | None:
    """The first empty line, with the line end before it."""
    if len(raw) - start <= PIECE:
        return _BLANK.search(raw, start)
    for at in range(start, len(raw), PIECE):
        if found := _BLANK.search(raw, at, at + PIECE + 2):  # a match that begins in this piece ends by then
            return found
    return None


def count_lines(raw: bytes, start: int, end: int) -> int:
    if end - start <= PIECE:
        return raw.count(b"\n", start, end)
    return sum([raw.count(b"\n", at, min(at + PIECE, end)) for at in range(start, end, PIECE)])


def fold(text: str) -> str:
    """Text for comparing without case. No Unicode normalisation: it takes quadratic time for runs of accents."""
    if len(text) <= PIECE:
        return text.casefold()
    return "".join([text[at : at + PIECE].casefold() for at in range(0, len(text), PIECE)])


def decode(data: bytes, codec: str, errors: str = "strict") -> str:
    """As `bytes.decode`."""
    if len(data) <= PIECE or codec in _WITH_MARK:
        return data.decode(codec, errors)
    decoder = codecs.getincrementaldecoder(codec)(errors)
    texts = [decoder.decode(data[at : at + PIECE]) for at in range(0, len(data), PIECE)]
    return "".join([*texts, decoder.decode(b"", True)])


def decode_quoted_printable(data: bytes) -> bytes:
    return a2b_qp(data) if len(data) <= PIECE else b"".join([a2b_qp(piece) for piece in _lines(data)])


def decode_base64(data: bytes) -> bytes:
    """What base64 text stands for; wrong characters are skipped, a wrong end is cut off."""
    try:
        return a2b_base64(data) if len(data) <= PIECE else b"".join([a2b_base64(piece) for piece in _lines(data)])
    except BinasciiError:
        data = data.translate(None, _NOT_BASE64)
        rest = len(data) % 4
        data = data[: len(data) - 1] if rest == 1 else data + b"=" * (-rest % 4)
        return b"".join([a2b_base64(data[at : at + PIECE]) for at in range(0, len(data), PIECE)])


def _lines(data: bytes) -> Iterator[bytes]:
    """Pieces that end with a line, or where there is no line end for long, somewhere, but not within an `=3D`."""
    start = 0
    while start < len(data):
        end = data.find(b"\n", start + PIECE, start + 2 * PIECE) + 1
        if not end:
            end = start + 2 * PIECE
            escape = data.find(b"=", end - 2, end)
            end = escape if escape >= 0 and end < len(data) else end
        yield data[start:end]
        start = end
