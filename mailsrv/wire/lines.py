"""Line ends and the dot: the one strict reading of them, and the one way they are written.

A message ends at CRLF `.` CRLF and nowhere else; a lone CR or LF is never taken for a line end, only noticed (S1).
Everything here is incremental: the same octets give the same result however they were cut.

Imports: nothing.    RFC 5321 2.3.8, 4.1.1.4, 4.5.2.
"""

from __future__ import annotations

END = b"\r\n.\r\n"
LINE_OCTETS = 998  # without CRLF: RFC 5322 2.1.1, RFC 5321 4.5.3.1.6
HEADER_OCTETS = 1024 * 1024  # further on it is body, whatever it looks like


class DotDecoder:
    """Takes the octets after DATA's 354, gives the text without its stuffing dots.

    `done` once the end was seen; then `rest` holds what followed it. `bare` tells whether a CR or LF stood alone; with
    `normalize` such line ends become CRLF (and still never end the message).
    """

    __slots__ = ("_held", "_normalize", "_virtual", "bare", "done", "rest")

    def __init__(self, *, normalize: bool = False) -> None:
        self._normalize = normalize
        # The text begins at the start of a line: as if a CRLF, which is not part of it, had just been read.
        self._held = b"\r\n"
        self._virtual = 2
        self.bare = False
        self.done = False
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        """Text that is certain now. Keeps back at most four octets, those that may begin the end or a stuffed dot."""
        joined = self._held + data
        end = joined.find(END)
        if end >= 0:
            self.done = True
            text, self.rest, self._held = joined[: end + 2], joined[end + len(END) :], b""
        else:
            keep = _open_suffix(joined)
            text, self._held = joined[: len(joined) - keep], joined[len(joined) - keep :]
        if not text:
            return b""
        line_ends = text.count(b"\r\n")
        if text.count(b"\n") != line_ends or text.count(b"\r") != line_ends:
            self.bare = True
        text = text.replace(b"\r\n.", b"\r\n")[self._virtual :]
        self._virtual = 0
        if self._normalize and self.bare:
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")
        return text


def _open_suffix(text: bytes) -> int:
    """Length of the longest end of `text` that is a beginning of END."""
    for size in range(min(4, len(text)), 0, -1):
        if text.endswith(END[:size]):
            return size
    return 0


def dot_stuffed(text: bytes) -> bytes:
    """A text with CRLF line ends as DATA sends it, the final dot included (RFC 5321 4.5.2)."""
    if text.startswith(b"."):
        text = b"." + text
    text = text.replace(b"\r\n.", b"\r\n..")
    return text + (b".\r\n" if text.endswith(b"\r\n") or not text else END)


class WholeLines:
    """Text as it is kept, made text as it leaves: a lone CR or LF becomes CRLF, and the last line has one (S2).

    Whoever signs a message and whoever sends it use this, so that the one signs what the other sends; dots are stuffed
    after it. RFC 5321 2.3.8, RFC 6376 5.3.
    """

    __slots__ = ("_held", "_in_line")

    def __init__(self) -> None:
        self._held = b""  # a CR, of which only what follows tells whether it stands alone
        self._in_line = False

    def feed(self, data: bytes) -> bytes:
        if self._held:
            data = self._held + data
        self._held = b""
        if data.endswith(b"\r"):
            data, self._held = data[:-1], b"\r"
        if not data:
            return b""
        line_ends = data.count(b"\r\n")
        if data.count(b"\n") != line_ends or data.count(b"\r") != line_ends:
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")
        self._in_line = not data.endswith(b"\n")
        return data

    def end(self) -> bytes:
        """What is still to come after the last octet was fed."""
        unfinished, self._held, self._in_line = self._in_line or bool(self._held), b"", False
        return b"\r\n" if unfinished else b""


class DotStuffer:
    """The other side of DotDecoder for a text with CRLF line ends that comes in pieces; `finish` is the final dot."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last = b"\r\n"

    def feed(self, text: bytes) -> bytes:
        if b"\n." not in text and not text.startswith(b"."):
            self._last = text[-2:] if len(text) > 1 else (self._last + text)[-2:]
            return text
        joined = self._last + text
        stuffed = joined.replace(b"\r\n.", b"\r\n..")[len(self._last) :]
        self._last = joined[-2:]
        return stuffed

    def finish(self) -> bytes:
        return b".\r\n" if self._last == b"\r\n" else END


class Survey:
    """What a server must be able to take, found while a text with CRLF line ends passes by, cut in no CRLF.

    `long_line`: a line has more than LINE_OCTETS. `header_utf8` says whether 8-bit octets of the header are UTF-8.
    """

    __slots__ = ("_header", "_line", "eight_bit", "header_eight_bit", "header_utf8", "long_line", "size")

    def __init__(self) -> None:
        self.size = 0
        self.eight_bit = self.header_eight_bit = False
        self.header_utf8 = True
        self.long_line = False
        self._line = 0  # octets of the line that is not at its end
        self._header: bytes | None = b""

    def feed(self, text: bytes) -> None:
        self.size += len(text)
        if not text.isascii():
            self.eight_bit = True
        self.long_line = self.long_line or self._measure(text)
        if self._header is not None:
            self._feed_header(text)

    def _measure(self, text: bytes) -> bool:
        """Whether a line is too long. Hops from line end to line end, as far as a good line reaches: a line of 998
        octets and its CRLF are 1,000.
        """
        reach = LINE_OCTETS + 2
        first = text.find(b"\n", 0, reach)
        if first < 0:
            self._line += len(text)
            return self._line > LINE_OCTETS
        if self._line + first - 1 > LINE_OCTETS:
            return True
        at = first + 1
        while len(text) - at >= reach:
            end = text.rfind(b"\n", at, at + reach)
            if end < 0:
                return True
            at = end + 1
        self._line = len(text) - 1 - text.rfind(b"\n")
        return self._line > LINE_OCTETS

    def _feed_header(self, text: bytes) -> None:
        header = (self._header or b"") + text
        end = header.find(b"\r\n\r\n")
        self._header = header if end < 0 and len(header) < HEADER_OCTETS else None
        if end >= 0:
            header = header[:end]
        if not header.isascii():
            self.header_eight_bit = True
            try:
                header.decode("utf-8")
                self.header_utf8 = True
            except UnicodeDecodeError as failure:
                self.header_utf8 = self._header is not None and failure.end == len(header)
