"""A message arriving by DATA: its text counted, completed and looked at for loops, and the trace lines put before it.

Imports: net.stream, mail.intake, wire, values.    RFC 5321 4.4 (trace), 6.3 (loops), RFC 6409 8 (missing fields).
"""

from __future__ import annotations

import email.utils
import os
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

from mailsrv.mail.intake import Recipient
from mailsrv.net.stream import Stream
from mailsrv.values import Address
from mailsrv.wire.address import written
from mailsrv.wire.lines import DotDecoder
from mailsrv.wire.smtp import Reply

HEADER_OCTETS = 256 * 1024  # of a message, looked at for loops
COMPLETED_OCTETS = 64 * 1024  # of a header, to which missing fields are added
# What was taken is not given back (+): a line that does not fit would cost as much as its length times 320.
_MESSAGE_ID = re.compile(rb"(?im)^Message-ID:(?:[ \t]|\r\n[ \t]){0,1000}+([^\r\n]{1,250}+)")
_RECEIVED = re.compile(rb"(?im)^Received:")
_DELIVERED = re.compile(rb"(?im)^Delivered-To:[ \t]*+([^\r\n]{1,320}+)\r?$")


@lru_cache(2)
def date_of(second: int) -> str:
    """As it is written in a header (RFC 5322 3.3); many messages come in one second."""
    return email.utils.formatdate(second, localtime=True)


class Trace:
    """The lines that go before the message (RFC 5321 4.4); `received` is the Received line up to its `for`."""

    def __init__(self, sender: Address | None, received: str, *, one: bool) -> None:
        self._sender = "" if sender is None else written(sender)
        self._received = received
        self._date = date_of(int(time.time()))
        self._one = one

    def local(self, recipient: Recipient) -> bytes:
        """For one recipient's copy. The recipient is named in Received only where no other could learn of it."""
        address = written(recipient.address)
        return f"Return-Path: <{self._sender}>\r\nDelivered-To: {address}\r\n{self._line(address)}".encode()

    def outward(self, via: Address | None, recipients: list[Address]) -> bytes:
        """For the copy that goes to other servers: Return-Path is their affair. An address of ours that leads there
        leaves its name, by which a loop is found (S11).
        """
        delivered = "" if via is None else f"Delivered-To: {written(via)}\r\n"
        return (delivered + self._line(written(via or recipients[0]))).encode()

    def _line(self, address: str) -> str:
        whom = f"\r\n\tfor <{address}>" if self._one else ""
        return f"{self._received}{whom}; {self._date}\r\n"


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one message."""

    message_bytes: int
    hops: int
    least_rate: float
    normalize_newlines: bool


class TooLarge(Exception):
    """The message is so far over the limit that it is not read to its end (S17)."""


class Arrival:
    """The text of one DATA, streamed on. `complete`: what a submitted message lacks is added."""

    def __init__(self, limits: Limits, write: Callable[[bytes], None], *, complete: bool, host: str) -> None:
        self._limits, self._write = limits, write
        self._host = host
        self._incomplete: bytes | None = b"" if complete else None  # the header so far, until it is whole
        self._decoder = DotDecoder(normalize=limits.normalize_newlines)
        self._head = b""
        self._size = 0

    def read(self, stream: Stream) -> None:
        """Until the final dot. A message over the limit is read on and dropped, far over it the connection ends
        (S17).
        """
        most = self._limits.message_bytes
        for chunk in stream.read_dotted(self._decoder, least_rate=self._limits.least_rate):
            self._size += len(chunk)
            if len(self._head) < HEADER_OCTETS:
                self._head += chunk[: HEADER_OCTETS - len(self._head)]
            if self._size <= most:
                self._keep(chunk)
            elif self._size > 2 * most + 1024 * 1024:
                raise TooLarge("The message is far too large")
        if self._incomplete:
            self._write(self._incomplete)

    def _keep(self, chunk: bytes) -> None:
        if self._incomplete is not None:
            chunk = self._incomplete + chunk
            header = _header_of(chunk)
            if header is None and len(chunk) < COMPLETED_OCTETS:
                self._incomplete = chunk
                return
            self._incomplete = None
            if header is not None:
                self._write(_missing_fields(header, self._host))
        self._write(chunk)

    @property
    def message_id(self) -> str:
        """As the header has it, for the log; "" without one."""
        header = _header_of(self._head)  # what stands in the text is somebody else's
        found = _MESSAGE_ID.search(self._head if header is None else header)
        return found[1].decode("utf-8", "replace").strip() if found else ""

    def problem(self, addresses: Iterable[Address]) -> Reply | None:
        """Why the message is not taken; None if it is. `addresses` are ours that it goes to or through."""
        if self._size > self._limits.message_bytes:
            return Reply(552, "5.3.4", f"The message is larger than {self._limits.message_bytes} octets")
        if self._decoder.bare and not self._limits.normalize_newlines:
            return Reply(550, "5.6.0", "The message has bare CR or LF: lines end in CRLF (RFC 5321 2.3.8)")  # S1
        header = _header_of(self._head)
        if header is None:
            header = self._head
        if len(_RECEIVED.findall(header)) > self._limits.hops:
            return Reply(554, "5.4.6", "Too many hops: this message is in a loop")  # RFC 5321 6.3
        been = {address.strip().lower() for address in _DELIVERED.findall(header)}
        if been and any(written(address).lower().encode() in been for address in addresses):
            return Reply(554, "5.4.6", "The message was delivered here before: it is in a loop")  # S11
        return None


def _header_of(text: bytes) -> bytes | None:
    """The lines before the first empty one, which may be the very first; None if there is none yet."""
    end = 0 if text.startswith(b"\r\n") else text.find(b"\r\n\r\n")
    return None if end < 0 else text[:end]


def _missing_fields(header: bytes, host: str) -> bytes:
    """Date and Message-ID for a submitted message whose header lacks them (RFC 6409 8)."""
    names = {line.partition(b":")[0].strip().lower() for line in header.split(b"\r\n") if line[:1] not in b" \t"}
    added = b""
    if b"date" not in names:
        added += f"Date: {date_of(int(time.time()))}\r\n".encode()
    if b"message-id" not in names:
        added += f"Message-ID: <{os.urandom(12).hex()}@{host}>\r\n".encode()
    return added
