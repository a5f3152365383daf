"""What the IMAP tests share: a client that speaks octets and reads whole responses, mail by SMTP, and waiting."""

import re
import smtplib
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import gevent
import pytest

PASSWORD = "correct horse"
SECONDS = 60  # that anything may take
_LITERAL = re.compile(rb"\{(\d+)\}\r\n\Z")


def octets(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


class Client:
    """The other end of an IMAP connection. Every response is kept whole, literals included, without its last CRLF."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.buffer = b""
        self.tags = 0

    def send(self, data: str | bytes) -> None:
        self.sock.sendall(octets(data))

    def _receive(self) -> bool:
        data = self.sock.recv(65536)
        self.buffer += data
        return bool(data)

    def _take(self, size: int) -> bytes:
        while len(self.buffer) < size:
            assert self._receive(), f"the server closed the connection after {self.buffer!r}"
        data, self.buffer = self.buffer[:size], self.buffer[size:]
        return data

    def line(self) -> bytes:
        """Up to and with the next CRLF."""
        while b"\r\n" not in self.buffer:
            assert self._receive(), f"the server closed the connection after {self.buffer!r}"
        return self._take(self.buffer.index(b"\r\n") + 2)

    def response(self) -> bytes:
        """One whole response."""
        data = self.line()
        while found := _LITERAL.search(data):
            data += self._take(int(found[1])) + self.line()
        return data[:-2]

    def begin(self, command: str | bytes) -> bytes:
        """Send a command and do not wait; its tag."""
        self.tags += 1
        tag = b"t%d" % self.tags
        self.send(tag + b" " + octets(command) + b"\r\n")
        return tag

    def finish(self, tag: bytes) -> list[bytes]:
        """All responses up to the completion of `tag`, which comes last and without the tag."""
        found = [self.response()]
        while found[-1].startswith((b"* ", b"+ ")):
            found.append(self.response())
        assert found[-1].startswith(tag + b" "), found
        return [*found[:-1], found[-1].removeprefix(tag + b" ")]

    def say(self, command: str | bytes, *literals: str | bytes) -> list[bytes]:
        """Send a command; untagged responses, then the completion without its tag.

        With literals `command` ends in what stands before the first, each goes out after its continuation, and a
        literal that is followed by more of the command is followed by it in `literals`: data, text, data, text.
        """
        if not literals:
            return self.finish(self.begin(command))
        pieces = [octets(command), *map(octets, literals)]
        tag = self.begin(pieces[0] + b" {%d}" % len(pieces[1]))
        for number in range(1, len(pieces), 2):
            answer = self.response()
            if not answer.startswith(b"+ "):
                self.buffer = answer + b"\r\n" + self.buffer
                break
            rest = pieces[number + 1] if number + 1 < len(pieces) else b""
            more = b" {%d}" % len(pieces[number + 2]) if number + 2 < len(pieces) else b""
            self.send(pieces[number] + rest + more + b"\r\n")
        return self.finish(tag)

    def ok(self, command: str | bytes, *literals: str | bytes) -> list[bytes]:
        """`say`, for a command that has to work: the untagged responses."""
        *untagged, done = self.say(command, *literals)
        assert done.startswith(b"OK "), (command, untagged, done)
        return untagged

    def append(
        self, text: str | bytes = b"Subject: x\r\n\r\nText\r\n", *, mailbox: str = "INBOX", how: str = ""
    ) -> int:
        """APPEND a message; its UID. `how`: flags and date."""
        done = self.say(f"APPEND {mailbox}{' ' + how if how else ''}", text)[-1]
        found = re.fullmatch(rb"OK \[APPENDUID \d+ (\d+)\] [^\r\n]+", done)
        assert found, done
        return int(found[1])

    def flags(self) -> dict[int, set[bytes]]:
        """UID -> flags of all messages, by UID FETCH, so that sequence numbers play no part. Without \\Recent."""
        found = {}
        for line in self.ok("UID FETCH 1:* (UID FLAGS)"):
            match = re.fullmatch(rb"\* \d+ FETCH \(UID (\d+) FLAGS \(([^)]*)\)\)", line)
            if match:
                found[int(match[1])] = set(match[2].split()) - {b"\\Recent"}
        return found

    def uids(self) -> list[int]:
        """UIDs in the order of their sequence numbers."""
        found = {}
        for line in self.ok("FETCH 1:* (UID)"):
            match = re.fullmatch(rb"\* (\d+) FETCH \(UID (\d+)\)", line)
            assert match, line
            found[int(match[1])] = int(match[2])
        return [found[seq] for seq in sorted(found)]

    def idle(self) -> bytes:
        """Begin to idle; the tag. What had changed before is still to be read."""
        tag = self.begin("IDLE")
        assert self.response() == b"+ idling"
        return tag

    def done(self, tag: bytes) -> list[bytes]:
        self.send(b"DONE\r\n")
        return self.finish(tag)

    def quiet(self) -> bool:
        """Whether nothing stands to be read, after everybody who could run has run."""
        for _ in range(5):
            gevent.sleep(0.005)
            self.sock.settimeout(0.001)
            with suppress(TimeoutError):
                self._receive()
            self.sock.settimeout(SECONDS)
        return not self.buffer

    def rest(self) -> bytes:
        """Everything up to the end of the connection."""
        with suppress(ConnectionError):
            while self._receive():
                pass
        return self.buffer

    def login(self, user: str = "ann", password: str = PASSWORD) -> list[bytes]:
        return self.say(f'LOGIN {user}@example.com "{password}"')

    def close(self) -> None:
        self.sock.close()


def open_client(server: Any, service: str = "imap") -> Client:
    """A connection without delay, its greeting unread."""
    client = Client(server.connect(service))
    client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.sock.settimeout(SECONDS)
    return client


@pytest.fixture
def dial() -> Iterator[Callable[..., Client]]:
    """`dial(server, "ann", select="INBOX")` gives a client that was greeted, logged in and has a mailbox selected;
    without a user it stops after the greeting.
    """
    clients: list[Client] = []

    def start(server: Any, user: str = "", *, select: str = "", examine: str = "", service: str = "imap") -> Client:
        client = open_client(server, service)
        clients.append(client)
        assert client.response().startswith(b"* OK ")
        if user:
            assert client.login(user)[-1].startswith(b"OK ")
        if select or examine:
            client.ok(f"SELECT {select}" if select else f"EXAMINE {examine}")
        return client

    yield start
    for client in clients:
        client.close()


@pytest.fixture
def client_of() -> Callable[[socket.socket], Client]:
    """`client_of(sock)`: a client at the end of a connection made elsewhere."""
    return Client


@pytest.fixture
def mail() -> Callable[..., None]:
    """`mail(server, "ann", text)` delivers by SMTP; on return it was answered with 250."""

    def deliver(server: Any, user: str = "ann", text: str | bytes = "Subject: mail\r\n\r\nText\r\n") -> None:
        with smtplib.SMTP("127.0.0.1", server.ports["smtp"], timeout=SECONDS) as client:
            client.sendmail("x@elsewhere.org", [f"{user}@example.com"], octets(text))

    return deliver


@pytest.fixture
def eventually() -> Callable[[Callable[[], object]], Any]:
    """`eventually(condition)` waits until it is true, and gives its value."""

    def wait(condition: Callable[[], Any]) -> Any:
        end = time.monotonic() + SECONDS
        while not (value := condition()):
            assert time.monotonic() < end, "it did not come about"
            gevent.sleep(0.005)
        return value

    return wait


@pytest.fixture
def files() -> Callable[..., list[Path]]:
    """`files(server, "ann", ".Work")`: the message files of a mailbox."""

    def found(server: Any, user: str = "ann", folder: str = "") -> list[Path]:
        maildir = server.maildir(user) / folder
        return sorted(path for part in ("new", "cur") for path in (maildir / part).glob("*"))

    return found
