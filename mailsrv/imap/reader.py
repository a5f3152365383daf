"""Collects one command from the connection: a line, the literals it announces, the lines after them.

Synchronizing literals are asked for with a continuation, others taken as they come; both within limits, which are
small until the client is authenticated. The text of an APPEND is left in the connection for its handler to stream.
After an error the reader stands at the start of the next command.

Imports: net.stream, wire.    RFC 3501 2.2.1, 4.3; RFC 7888.
"""

from __future__ import annotations

from dataclasses import dataclass

from mailsrv.net.stream import LimitExceeded, Stream
from mailsrv.wire.errors import WireError
from mailsrv.wire.imap_commands import append_head, parse
from mailsrv.wire.imap_tokens import line_literal
from mailsrv.wire.imap_values import Append, Command, Literal

MOST_LITERALS = 200
MOST_DISCARDED = 10 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    line: int
    literals: int  # octets of all literals of one command


BEFORE_LOGIN = Limits(8 * 1024, 4 * 1024)
AFTER_LOGIN = Limits(64 * 1024, 1024 * 1024)


class Unreadable(Exception):
    """The command cannot be collected and the connection cannot be brought back into step."""


def read_command(stream: Stream, limits: Limits) -> Command:
    """The next command. WireError for one that is not well formed; the connection is in step then. Unreadable ends
    it.
    """
    parts: list[bytes | Literal] = []
    line_octets = literal_octets = 0
    refusal: str | None = None
    while True:
        line = _line(stream, limits.line - line_octets)
        line_octets += len(line)
        parts.append(line)
        announced = line_literal(line)
        if announced is None:
            break
        if len(parts) > 2 * MOST_LITERALS:
            raise Unreadable("Too many literals in one command")
        if refusal is None:
            head = append_head(parts, announced)
            if head is not None:
                return head
        if literal_octets + announced.size > limits.literals:
            refusal = "The literal is too large"
        if announced.sync:
            if refusal is not None:
                break  # the client waits for a continuation and does not send the literal
            stream.write(b"+ OK\r\n")
        if refusal is not None:
            _discard(stream, announced.size)
            parts.append(Literal(announced.size, announced.sync, announced.binary, b""))
            continue
        data = stream.read_exactly(announced.size)
        literal_octets += announced.size
        parts.append(Literal(announced.size, announced.sync, announced.binary, data))
    if refusal is not None:
        raise WireError(refusal, 0, _tag_of(parts[0]))
    return parse(parts)


def finish_append(stream: Stream, limits: Limits, command: Append) -> None:
    """The rest of an APPEND after its message: nothing but the line end."""
    rest = _line(stream, limits.line)
    if rest:
        raise WireError("Unexpected characters after the message", 0, command.tag)


def _line(stream: Stream, limit: int) -> bytes:
    try:
        return stream.read_line(max(limit, 0))
    except LimitExceeded:
        try:
            stream.discard_line(MOST_DISCARDED)
        except LimitExceeded:
            raise Unreadable("The line does not end") from None
        raise WireError("The line is too long") from None


def _discard(stream: Stream, size: int) -> None:
    if size > MOST_DISCARDED:
        raise Unreadable("The literal is too large")
    for _ in stream.read_chunks(size):
        pass


def _tag_of(first: bytes | Literal) -> str | None:
    if not isinstance(first, bytes):
        return None
    tag = first.partition(b" ")[0][:64]
    return tag.decode("ascii") if tag.isascii() and tag.isalnum() else None
