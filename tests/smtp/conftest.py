"""What the SMTP tests share: a client that speaks octets and reads whole replies, and sessions with limits of their
own.
"""

import base64
import imaplib
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import gevent
import pytest

from mailsrv import runner
from mailsrv.mail.intake import Intake
from mailsrv.net.stream import Stream
from mailsrv.smtp.context import Services, SmtpSettings
from mailsrv.smtp.session import Session

from .elsewhere import World

PASSWORD = "correct horse"


class Client:
    """The other end of an SMTP connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.buffer = b""

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def _receive(self) -> bool:
        data = self.sock.recv(65536)
        self.buffer += data
        return bool(data)

    def line(self) -> bytes:
        while b"\r\n" not in self.buffer:
            assert self._receive(), f"the server closed the connection after {self.buffer!r}"
        line, self.buffer = self.buffer.split(b"\r\n", 1)
        assert b"\n" not in line and b"\r" not in line
        return line

    def reply(self) -> bytes:
        """One whole reply, its lines joined by LF."""
        lines = [self.line()]
        while lines[-1][3:4] == b"-":
            lines.append(self.line())
        assert len({line[:3] for line in lines}) == 1, lines
        assert all(line[3:4] in (b" ", b"-") for line in lines), lines
        return b"\n".join(lines)

    def say(self, *commands: str | bytes) -> bytes:
        """Send each command by itself; the reply to the last."""
        answer = b""
        for command in commands:
            self.send((command.encode() if isinstance(command, str) else command) + b"\r\n")
            answer = self.reply()
        return answer

    def begin(self, *recipients: str, sender: str = "x@elsewhere.org") -> None:
        """A transaction as far as 354."""
        assert self.say(f"MAIL FROM:<{sender}>").startswith(b"250 2.1.0 ")
        for recipient in recipients:
            assert self.say(f"RCPT TO:<{recipient}>").startswith(b"250 2.1.5 ")
        assert self.say("DATA").startswith(b"354 ")

    def rest(self) -> bytes:
        """Everything up to the end of the connection."""
        with suppress(ConnectionError):
            while self._receive():
                pass
        return self.buffer

    def login(self, name: str, password: str = PASSWORD) -> bytes:
        plain = base64.b64encode(f"\0{name}@example.com\0{password}".encode()).decode()
        return self.say(f"AUTH PLAIN {plain}")

    def close(self) -> None:
        self.sock.close()


@pytest.fixture
def dial() -> Iterator[Callable[..., Client]]:
    """`dial(server, "submission", user="ann")` gives a client that was greeted, is inside TLS and logged in;
    `hello=False` stops after the greeting.
    """
    clients: list[Client] = []

    def start(server: Any, service: str = "smtp", *, user: str = "", hello: bool = True, tls: bool = False) -> Client:
        client = Client(server.connect(service))
        client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        clients.append(client)
        assert client.reply().startswith(b"220 mx.example.com ")
        if hello:
            assert client.say("EHLO client.example.net").startswith(b"250-")
        if (user or tls) and service != "submissions":
            assert client.say("STARTTLS").startswith(b"220 ")
            client.sock = server.client_tls.wrap_socket(client.sock, server_hostname="localhost")
            assert client.say("EHLO client.example.net").startswith(b"250-")
        if user:
            assert client.login(user).startswith(b"235 ")
        return client

    yield start
    for client in clients:
        client.close()


class Tls(Stream):
    """A connection in memory that counts as encrypted."""

    __slots__ = ()

    def __init__(self, sock: Any, peer: str) -> None:
        super().__init__(sock, peer)
        self.tls = True

    @property
    def pending(self) -> bool:
        return bool(self._buffer)


@pytest.fixture
def pair() -> Iterator[Callable[..., tuple[Client, Session]]]:
    """`pair(server, errors=3)` runs a session with settings of its own over a socket pair; `first` is sent before the
    session begins.
    """
    made: list[tuple[Client, Any]] = []

    def start(
        server: Any,
        *,
        submission: bool = False,
        first: bytes = b"",
        peer: str = "192.0.2.7",
        kind: int = socket.SOCK_STREAM,
        **settings: Any,
    ) -> tuple[Client, Session]:
        settings.setdefault("failure_delay_seconds", 0.0)
        ours, theirs = socket.socketpair(type=kind)
        ours.settimeout(60)
        ours.sendall(first)
        services = Services(
            server.accounts,
            server.server.passwords,
            Intake(server.server.mailboxes, server.accounts, server.settings.mail_root),
            "mx.example.com",
            submission,
            None,
            SmtpSettings(**settings),
        )
        stream = (Tls if submission else Stream)(theirs, peer)
        session = Session(stream, services)
        client = Client(ours)
        made.append((client, gevent.spawn(session.run)))
        return client, session

    yield start
    for client, running in made:
        client.close()
        running.join(60)
        assert running.dead, "a session outlives its connection"


def _files(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.is_dir() else []


@pytest.fixture
def inbox() -> Callable[..., list[bytes]]:
    """`inbox(server, "ann")`: the message files of a mailbox, as they are on disk."""

    def read(server: Any, name: str, folder: str = "") -> list[bytes]:
        maildir = server.maildir(name) / folder
        return [path.read_bytes() for part in ("new", "cur") for path in _files(maildir / part)]

    return read


@pytest.fixture
def traces() -> Callable[[Any], list[Path]]:
    """`traces(server)`: every file that is a message or part of one, in all accounts."""

    def find(server: Any) -> list[Path]:
        mail = server.directory / "mail"
        return [path for part in ("new", "cur", "tmp") for path in mail.rglob(f"{part}/*") if path.is_file()]

    return find


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World()
    monkeypatch.setattr(runner, "way_out", lambda config, accounts: made)
    yield made
    made.open = True


@pytest.fixture
def imap() -> Iterator[Callable[[Any], imaplib.IMAP4]]:
    """`imap(server)`: ann, logged in."""
    opened = []

    def login(server: Any) -> imaplib.IMAP4:
        client = imaplib.IMAP4("127.0.0.1", server.ports["imap"], timeout=60)
        opened.append(client)
        client.login("ann@example.com", PASSWORD)
        return client

    yield login
    for client in opened:
        client.shutdown()
