"""The dialogues of tests/dialogues, played over TCP and TLS, whole and cut.

`C1:` and `S1:` are what the first client sends and is sent, `C2:` and `S2:` the second's; `#` begins a comment.
`mail: bo@example.org -> ann@example.com` delivers a message by SMTP. `<uid>` in a server's line takes whatever word
stands there the first time and has to be the same from then on, in both directions. `login: none` leaves the login to
the dialogue, `over: tcp` or `over: tls` plays it there only; all clients are ann. Every line is expected, in order for
each client, and nothing may be left.
"""

import itertools
import re
import smtplib
import socket
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest

DIALOGUES = sorted((Path(__file__).parent.parent / "dialogues").glob("*.txt"))
PASSWORD = "correct horse"
STRIDE = 12  # cuts of one play are so far apart; STRIDE plays together cut at every position
_NAME = re.compile(r"<([a-z]+)>")
_LINE = re.compile(r"(mail|[CS]\d):(?: (.*))?")


def steps(path: Path) -> tuple[bool, list[tuple[str, str]]]:
    """Whether clients are logged in before, and the lines as (who, text)."""
    found = []
    text = path.read_text()
    logged_in = "\nlogin: none\n" not in text
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith(("#", "login: ", "over: ")):
            continue
        match = _LINE.fullmatch(line)
        assert match, f"{path.name}:{number}: not a line of a dialogue: {line}"
        found.append((match[1], match[2] or ""))
    return logged_in, found


class Player:
    """One play of a dialogue for one fresh account. `cut` gives the pieces of what a client sends."""

    def __init__(self, serving, service: str, user: str, cut) -> None:
        self.serving, self.service, self.user, self.cut = serving, service, user, cut
        self.clients: dict[str, socket.socket] = {}
        self.buffers: dict[str, bytes] = {}
        self.values: dict[str, str] = {}

    def play(self, logged_in: bool, lines: list[tuple[str, str]]) -> None:
        try:
            for who in sorted({who[1:] for who, _ in lines if who != "mail"}):
                self._connect(who, logged_in)
            for who, text in lines:
                if who == "mail":
                    self._mail(text)
                elif who[0] == "C":
                    self._send(who[1:], text)
                else:
                    self._expect(who[1:], text)
            for who in self.clients:
                self._end(who)
        finally:
            for sock in self.clients.values():
                sock.close()

    def _connect(self, who: str, logged_in: bool) -> None:
        sock = self.serving.connect(self.service)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.clients[who], self.buffers[who] = sock, b""
        if logged_in:
            assert self._line(who).startswith(b"* OK ")
            sock.sendall(f'login LOGIN {self.user} "{PASSWORD}"\r\n'.encode())
            assert self._line(who).startswith(b"login OK ")

    def _receive(self, who: str) -> bool:
        data = self.clients[who].recv(65536)
        self.buffers[who] += data
        return bool(data)

    def _line(self, who: str) -> bytes:
        while b"\r\n" not in self.buffers[who]:
            assert self._receive(who), f"closed after {self.buffers[who]!r}"
        line, self.buffers[who] = self.buffers[who].split(b"\r\n", 1)
        return line

    def _send(self, who: str, text: str) -> None:
        text = _NAME.sub(lambda found: self.values.get(found[1], found[0]), text)
        data = text.replace("ann@example.com", self.user).encode() + b"\r\n"
        for piece in self.cut(data):
            self.clients[who].sendall(piece)
            gevent.idle()  # the server has read it before the next one goes out

    def _expect(self, who: str, text: str) -> None:
        pattern, end, fresh = "", 0, []
        for found in _NAME.finditer(text):
            pattern += re.escape(text[end : found.start()])
            if found[1] in self.values:
                pattern += re.escape(self.values[found[1]])
            else:
                pattern += f"(?P<{found[1]}>[^ \\])]+)"
                fresh.append(found[1])
                self.values[found[1]] = "?"
            end = found.end()
        line = self._line(who).decode()
        match = re.fullmatch(pattern + re.escape(text[end:]), line)
        assert match, f"S{who}: expected {text!r}, got {line!r}, then {self.buffers[who]!r}"
        self.values.update({name: match[name] for name in fresh})

    def _mail(self, text: str) -> None:
        sender, recipient = text.split(" -> ")
        with smtplib.SMTP("127.0.0.1", self.serving.ports["smtp"], timeout=60) as client:
            recipient = recipient.replace("ann@example.com", self.user)
            client.sendmail(sender, [recipient], f"From: {sender}\r\nSubject: mail\r\n\r\nText\r\n")

    def _end(self, who: str) -> None:
        """Nothing may be left: a LOGOUT is answered by itself alone, or the server has hung up."""
        sock, left = self.clients[who], b"* BYE Logging out\r\nend OK LOGOUT completed\r\n"
        try:
            sock.sendall(b"end LOGOUT\r\n")
            while self._receive(who):
                pass
        except ConnectionError:
            left = b""
        assert self.buffers[who] in (left, b""), f"client {who} was sent more: {self.buffers[who]!r}"


def whole(data: bytes) -> Iterator[bytes]:
    yield data


def octet_by_octet(data: bytes) -> Iterator[bytes]:
    for position in range(len(data)):
        yield data[position : position + 1]


def every(stride: int, first: int):
    """Cuts at `first`, `first + stride`, … of each line."""

    def cut(data: bytes) -> Iterator[bytes]:
        positions = [0, *range(first, len(data), stride), len(data)]
        for start, end in itertools.pairwise(positions):
            if start < end:
                yield data[start:end]

    return cut


def play(serving, password_hash, path: Path, service: str, cut, number: int = 0) -> None:
    user = f"a{number:02}@example.com"  # as long as ann's
    serving.accounts.add_user(user, password_hash)
    Player(serving, service, user, cut).play(*steps(path))


def services(path: Path) -> list[str]:
    text = path.read_text()
    return [service for service, name in (("imap", "tls"), ("imaps", "tcp")) if f"\nover: {name}\n" not in text]


ALL = [pytest.param(path, service, id=f"{path.stem}-{service}") for path in DIALOGUES for service in services(path)]


@pytest.mark.parametrize(("path", "service"), ALL)
def test_whole(serving, password_hash, path, service):
    play(serving, password_hash, path, service, whole)


@pytest.mark.parametrize(("path", "service"), ALL)
def test_octet_by_octet(serving, password_hash, path, service):
    play(serving, password_hash, path, service, octet_by_octet)


@pytest.mark.parametrize("path", DIALOGUES, ids=lambda path: path.stem)
def test_cut_at_every_position(serving, password_hash, path):
    for first in range(STRIDE):
        play(serving, password_hash, path, services(path)[0], every(STRIDE, first), first)


def test_there_are_dialogues():
    assert len(DIALOGUES) >= 12
