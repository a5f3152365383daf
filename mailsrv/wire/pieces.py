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
from collections.abc import Iterable, Iterator

PIECE = 1 << 18  # octets or characters: up to 3 ms of the slowest call here
RUN_LIMIT = 1 << 18  # octets that a decoder may keep for later
_BLANK = re.compile(rb"\n\r?\n")
# Piece by piece these insist on their byte order mark. Without one the machine's order counts, which is the first here.
_WITH_MARK = {
    "utf_16": [(codecs.BOM_UTF16_LE, "utf_16_le"), (codecs.BOM_UTF16_BE, "utf_16_be")],
    "utf_32": [(codecs.BOM_UTF32_LE, "utf_32_le"), (codecs.BOM_UTF32_BE, "utf_32_be")],
}
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


def find(raw: bytes, text: bytes, start: int, end: int) -> int:
    """As `bytes.find`."""
    if end - start <= PIECE:
        return raw.find(text, start, end)
    for at in range(start, end, PIECE):
        found = raw.find(text, at, min(at + PIECE + len(text) - 1, end))
        if found >= 0:
            return found
    return -1


def fold(text: str) -> str:
    """Text for comparing without case. No Unicode normalisation: it takes quadratic time for runs of accents."""
    if len(text) <= PIECE:
        return text.casefold()
    return "".join([text[at : at + PIECE].casefold() for at in range(0, len(text), PIECE)])


def holds(texts: Iterable[str], needle: str) -> bool:
    """Whether the needle, which is folded, is somewhere in the texts, which are not, as if they were one."""
    tail = ""
    for text in texts:
        for at in range(0, len(text), PIECE):
            folded = tail + text[at : at + PIECE].casefold()
            if needle in folded:
                return True
            tail = folded[len(folded) - len(needle) + 1 :] if len(folded) >= len(needle) else folded
    return not needle


def cut(raw: bytes, start: int, end: int) -> list[bytes]:
    return [raw[at : min(at + PIECE, end)] for at in range(start, end, PIECE)]


def decode(data: bytes, codec: str, errors: str = "strict") -> str:
    """As `bytes.decode`."""
    if len(data) <= PIECE:
        return data.decode(codec, errors)
    return "".join(decode_all(cut(data, 0, len(data)), codec, errors))


def decode_all(data: list[bytes], codec: str, errors: str = "strict") -> list[str]:
    """The text of pieces that belong together, in pieces."""
    if len(data) < 2:
        return [one.decode(codec, errors) for one in data]
    if codec in _WITH_MARK:
        mark = next((mark for mark, _ in _WITH_MARK[codec] if data[0].startswith(mark)), b"")
        codec = next(kind for known, kind in _WITH_MARK[codec] if known == mark or not mark)
        data = [data[0][len(mark) :], *data[1:]]
    decoder = codecs.getincrementaldecoder(codec)(errors)
    texts: list[str] = []
    for one in data:
        texts.append(decoder.decode(one))
        if len(decoder.getstate()[0]) > RUN_LIMIT:  # UTF-7 begins anew with a run of base64 until that has an end
            texts.append(decoder.decode(b"", True))
            decoder.reset()
    return [*texts, decoder.decode(b"", True)]


def decode_quoted_printable(data: bytes) -> bytes:
    return a2b_qp(data) if len(data) <= PIECE else b"".join(quoted_printable(data, 0, len(data)))


def quoted_printable(raw: bytes, start: int, end: int) -> list[bytes]:
    """What is meant by a stretch of quoted-printable text, in pieces."""
    return [a2b_qp(piece) for piece in _lines(raw, start, end)]


def decode_base64(data: bytes) -> bytes:
    """What base64 text stands for; wrong characters are skipped, a wrong end is cut off."""
    return b"".join(base64(data, 0, len(data)))


def base64(raw: bytes, start: int, end: int) -> list[bytes]:
    """`decode_base64` of a stretch, in pieces."""
    try:
        return [a2b_base64(piece) for piece in _lines(raw, start, end)]
    except BinasciiError:
        pass
    found: list[bytes] = []
    held = b""
    for piece in cut(raw, start, end):
        text = held + piece.translate(None, _NOT_BASE64)
        whole = len(text) // 4 * 4
        held = text[whole:]
        found.append(a2b_base64(text[:whole]))
    if len(held) > 1:
        found.append(a2b_base64(held + b"=" * (4 - len(held))))
    return found


def _lines(data: bytes, start: int, end: int) -> Iterator[bytes]:
    """Pieces that end with a line, or where there is no line end for long, somewhere, but not within an `=3D`."""
    while start < end:
        if end - start <= PIECE:
            yield data[start:end]
            return
        stop = min(start + 2 * PIECE, end)
        line = data.find(b"\n", start + PIECE, stop) + 1
        if not line:
            escape = data.find(b"=", stop - 2, stop)
            line = escape if escape >= 0 and stop < end else stop
        yield data[start:line]
        start = line
