"""An SMTP or LMTP server on loopback that takes mail as a test wants it to: politely, or not at all.

    with FakeSink() as sink:
        sink.on["RCPT bo@example.org"] = "450 4.2.0 greylisted"
        sink.on["."] = DROP
        ... send to 127.0.0.1, sink.port ...
        assert sink.messages[0].text == b"Subject: hi\\r\\n\\r\\n"

`on` says what happens at an event: "connect", a verb ("EHLO", "MAIL", "DATA" …), "RCPT <address>" for one recipient,
"." for the end of a message, "tls" before the handshake. What happens is a reply (text, or bytes as they are), DROP,
SILENCE, a function of the Connection that returns one of these or None for the usual reply, or a list of any of them,
one for each time, the last for ever. Messages are kept as they came: `raw` as on the wire, `text` unstuffed.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import gevent
from gevent.event import Event
from gevent.pool import Group

DROP, SILENCE = object(), object()
EXTENSIONS = ("PIPELINING", "8BITMIME", "SMTPUTF8", "SIZE 50000000", "DSN", "ENHANCEDSTATUSCODES")
Reaction = Any


class Hangup(Exception):
    """The connection is over."""


@dataclass
class Message:
    """What arrived in one transaction that ended well or was refused at its end."""

    mail: str
    recipients: list[str]
    raw: bytes
    text: bytes
    tls: bool
    connection: int


@dataclass
class Connection:
    sink: FakeSink
    sock: Any
    number: int
    lines: list[str] = field(default_factory=list)
    mail: str = ""
    recipients: list[str] = field(default_factory=list)
    chunks: bytes = b""
    tls: bool = False
    sni: str = ""
    buffer: bytes = b""
    clear_after_tls: bytes = b""

    def receive(self) -> None:
        try:
            data = self.sock.recv(65536)
        except OSError:
            raise Hangup from None
        if not data:
            raise Hangup
        self.buffer += data

    def read_line(self) -> str:
        while b"\n" not in self.buffer:
            self.receive()
        line, _, self.buffer = self.buffer.partition(b"\n")
        text = line.removesuffix(b"\r").decode("utf-8", "backslashreplace")
        self.lines.append(text)
        return text

    def read_until(self, end: bytes) -> bytes:
        while end not in self.buffer:
            self.receive()
        at = self.buffer.index(end) + len(end)
        data, self.buffer = self.buffer[:at], self.buffer[at:]
        return data

    def read_exactly(self, size: int) -> bytes:
        while len(self.buffer) < size:
            self.receive()
        data, self.buffer = self.buffer[:size], self.buffer[size:]
        return data

    def send(self, data: bytes) -> None:
        try:
            self.sock.sendall(data)
        except OSError:
            raise Hangup from None

    def react(self, events: Sequence[str], usual: str) -> bool:
        """Whether the usual or any other 2xx or 3xx reply was given."""
        reaction = self.sink.reaction(events)
        if callable(reaction):
            reaction = reaction(self)
        if reaction is None:
            reaction = usual
        if reaction is DROP:
            raise Hangup
        if reaction is SILENCE:
            self.sink.silent.set()
            while True:
                self.receive()
        if isinstance(reaction, str):
            reaction = reaction.encode() + b"\r\n"
        self.send(reaction)
        return bool(reaction[:1] in (b"2", b"3"))


class FakeSink:
    def __init__(
        self, *, extensions: Sequence[str] = EXTENSIONS, tls: ssl.SSLContext | None = None, lmtp: bool = False,
        address: str = "127.0.0.1", port: int = 0, implicit_tls: bool = False,
    ) -> None:  # fmt: skip
        self.extensions, self.tls, self.lmtp, self.implicit_tls = list(extensions), tls, lmtp, implicit_tls
        self.on: dict[str, Reaction] = {}
        self.messages: list[Message] = []
        self.connections: list[Connection] = []
        self.silent = Event()
        self.arrived = Event()
        self._socket = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((address, port))
        self._socket.listen(200)
        self.port: int = self._socket.getsockname()[1]
        self._serving = Group()
        self._acceptor = gevent.spawn(self._accept)

    def reaction(self, events: Sequence[str]) -> Reaction:
        for event in events:
            reaction = self.on.get(event)
            if isinstance(reaction, list):
                return reaction.pop(0) if len(reaction) > 1 else reaction[0]
            if reaction is not None:
                return reaction
        return None

    @property
    def recipients(self) -> list[str]:
        """Everybody a message was taken for, in order."""
        return [one for message in self.messages for one in message.recipients]

    def _accept(self) -> None:
        while True:
            sock, _ = self._socket.accept()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = Connection(self, sock, len(self.connections))
            self.connections.append(connection)
            self._serving.spawn(self._serve, connection)

    def _serve(self, connection: Connection) -> None:
        try:
            if self.implicit_tls:
                self._handshake(connection)
            if connection.react(["connect"], "220 sink ESMTP"):
                while self._command(connection):
                    pass
        except Hangup:
            pass
        finally:
            connection.sock.close()

    def _command(self, c: Connection) -> bool:
        line = c.read_line()
        verb, _, argument = line.partition(" ")
        verb = verb.upper()
        if verb in ("EHLO", "LHLO"):
            offers = [*self.extensions, *(["STARTTLS"] if self.tls and not c.tls else [])]
            lines = ["sink", *offers]
            text = "\r\n".join(f"250{' ' if n == len(lines) - 1 else '-'}{one}" for n, one in enumerate(lines))
            c.react([verb], text)
        elif verb == "STARTTLS":
            if c.react([verb], "220 go"):
                self._handshake(c)
        elif verb == "MAIL":
            if c.react([verb], "250 2.1.0 ok"):
                c.mail, c.recipients, c.chunks = line, [], b""
        elif verb == "RCPT":
            address = argument.partition("<")[2].partition(">")[0]
            usual = "250 2.1.5 ok" if c.mail else "503 5.5.1 MAIL first"
            if c.react([f"RCPT {address}", "RCPT"], usual):
                c.recipients.append(address)
        elif verb == "DATA":
            if c.react([verb], "354 go" if c.recipients else "554 5.5.1 no recipients"):
                raw = self._read_data(c)
                text = (b"\r\n" + raw.removesuffix(b".\r\n")).replace(b"\r\n.", b"\r\n")[2:]
                self._end_of_message(c, raw, text)
        elif verb == "BDAT":
            size, _, last = argument.partition(" ")
            chunk = c.read_exactly(int(size))
            c.chunks += chunk
            if last.upper() == "LAST":
                self._end_of_message(c, c.chunks, c.chunks)
            else:
                c.react([verb], "250 ok")
        elif verb == "AUTH":
            self._auth(c, argument)
        elif verb == "QUIT":
            c.react([verb], "221 bye")
            return False
        else:
            if verb == "RSET":
                c.mail, c.recipients, c.chunks = "", [], b""
            usual = "250 ok" if verb in ("HELO", "RSET", "NOOP") else "500 5.5.1 what"
            c.react([verb], usual)
        return True

    def _read_data(self, c: Connection) -> bytes:
        while len(c.buffer) < 3:
            c.receive()
        return c.read_exactly(3) if c.buffer.startswith(b".\r\n") else c.read_until(b"\r\n.\r\n")

    def _end_of_message(self, c: Connection, raw: bytes, text: bytes) -> None:
        message = Message(c.mail, list(c.recipients), raw, text, c.tls, c.number)
        c.mail, c.recipients, c.chunks = "", [], b""
        if not self.lmtp:
            if c.react(["."], "250 2.0.0 taken"):
                self._keep(message)
            return
        taken = [one for one in message.recipients if c.react([f". {one}", "."], "250 2.0.0 taken")]
        message.recipients = taken
        self._keep(message)

    def _keep(self, message: Message) -> None:
        self.messages.append(message)
        self.arrived.set()

    def _auth(self, c: Connection, argument: str) -> None:
        if argument.upper() == "LOGIN":
            for prompt in ("334 VXNlcm5hbWU6", "334 UGFzc3dvcmQ6"):
                c.send(prompt.encode() + b"\r\n")
                c.read_line()
        c.react(["AUTH"], "235 2.7.0 welcome")

    def _handshake(self, c: Connection) -> None:
        reaction = self.reaction(["tls"])
        if reaction is DROP or self.tls is None:
            raise Hangup
        if reaction is SILENCE:
            self.silent.set()
            gevent.sleep(3600)
        c.clear_after_tls, c.buffer = c.buffer, b""
        try:
            c.sock = self.tls.wrap_socket(c.sock, server_side=True, do_handshake_on_connect=False)
            c.sock.do_handshake()
        except (OSError, ValueError):
            raise Hangup from None
        c.tls = True

    def close(self) -> None:
        self._acceptor.kill()
        self._socket.close()
        self._serving.kill()
        for connection in self.connections:
            connection.sock.close()

    def __enter__(self) -> FakeSink:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def endless(line: bytes, count: int = 100_000) -> Callable[[Connection], Reaction]:
    """Sends the same line again and again until the peer has enough of it."""

    def react(connection: Connection) -> Reaction:
        for _ in range(count):
            connection.send(line)
        return DROP

    return react
