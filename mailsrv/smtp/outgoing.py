"""A message on its way out: read off the hub, its line ends made right, and what it asks of the host that takes it.

A small message is read once and kept, without a thread where the system has it in memory; a larger one is read twice,
once to learn its size and nature and once while it is sent, in pieces. The file itself is never changed.

Imports: at_hand, wire.    RFC 5321 2.3.8, 4.5.2; RFC 3030 (BDAT: the same text, not stuffed).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Protocol

from mailsrv.at_hand import read_at_hand
from mailsrv.wire.lines import DotStuffer, Survey, WholeLines, dot_stuffed

SMALL_OCTETS = 256 * 1024
AT_HAND_OCTETS = 64 * 1024
PIECE_OCTETS = 64 * 1024  # what the network must take within the time for a data block, RFC 5321 4.5.3.2.5


class Offload(Protocol):
    """Runs blocking work in a thread and gives its result."""

    def __call__(self, fn: Callable[..., Any], /, *args: Any) -> Any: ...


class Outgoing:
    """`head` goes before the message in the file: a signature. `survey` describes both together."""

    __slots__ = ("_head", "_offload", "_path", "_text", "survey")

    def __init__(self, path: str, head: bytes, offload: Offload) -> None:
        self._path, self._head, self._offload = path, head, offload
        self._text: bytes | None = None
        self.survey = Survey()

    def read(self) -> None:
        """Find out what it is like. Raises OSError."""
        text = read_at_hand(self._path, AT_HAND_OCTETS)
        if text is None:
            self._offload(self._read)
        else:
            self._keep(text)

    def _keep(self, text: bytes) -> None:
        lines = WholeLines()
        self._text = lines.feed(self._head + text) + lines.end()
        self.survey.feed(self._text)

    def _read(self) -> None:
        with open(self._path, "rb", buffering=0) as file:
            text = file.read(SMALL_OCTETS + 1) or b""
            if len(text) <= SMALL_OCTETS:
                self._keep(text)
                return
            file.seek(0)
            for piece in _whole(file, self._head):
                self.survey.feed(piece)

    def pieces(self, *, dotted: bool) -> Iterator[bytes]:
        """The text as DATA sends it, final dot included, or as BDAT does. Raises OSError, also when the file has
        changed meanwhile: then the dot that would make a part of it a message is never given.
        """
        if self._text is not None:
            yield dot_stuffed(self._text) if dotted else self._text
            return
        file = self._offload(open, self._path, "rb", 0)
        stuffer, left = DotStuffer(), self.survey.size
        try:
            source = _whole(file, self._head)
            while (piece := self._offload(next, source, None)) is not None:
                left -= len(piece)
                if dotted:
                    piece = stuffer.feed(piece)
                for start in range(0, len(piece), PIECE_OCTETS):
                    yield piece[start : start + PIECE_OCTETS]
            if left:
                raise OSError("the file has changed")
            if dotted:
                yield stuffer.finish()
        finally:
            file.close()


def _whole(file: BinaryIO, head: bytes) -> Iterator[bytes]:
    lines = WholeLines()
    if head:
        yield lines.feed(head)
    while data := file.read(4 * PIECE_OCTETS):
        yield lines.feed(data)
    yield lines.end()
