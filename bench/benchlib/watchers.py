"""Many IMAP connections in IDLE on one loop, and when each of them is told of new messages."""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass

from .imap import EXISTS, ImapError
from .loop import Loop
from .util import Address


@dataclass(slots=True)
class Watcher:
    number: int
    user: str
    password: str
    sock: socket.socket | ssl.SSLSocket
    state: str = "greet"  # tls, greet, login, select, wait, idle: what is expected next
    buffer: bytes = b""
    exists: int = -1
    alive: bool = True


class Watchers:
    """`on_exists(watcher, count, now)` is called for each EXISTS that one hears in IDLE."""

    def __init__(
        self, loop: Loop, address: Address, logins: list[tuple[str, str]], tls: ssl.SSLContext | None = None,
        parallel: int = 32,
    ) -> None:  # fmt: skip
        self.loop, self.address, self.logins, self.tls, self.parallel = loop, address, logins, tls, parallel
        self.all: list[Watcher] = []
        self.on_exists: Callable[[Watcher, int, float], None] | None = None
        self.ready = self.dead = 0
        self.errors: list[str] = []

    def open(self, timeout: float = 180) -> float:
        """Opens all, some at a time. Returns the seconds it took; ImapError if not all of them are idle."""
        begun = time.perf_counter()
        end = time.time() + timeout
        todo = list(enumerate(self.logins))[::-1]
        want, started = len(todo), 0
        while self.ready + self.dead < want and time.time() < end:
            while todo and started - self.ready - self.dead < self.parallel:
                number, (user, password) = todo.pop()
                self._connect(number, user, password)
                started += 1
            self.loop.once(0.5)
        if self.ready < want:
            raise ImapError(f"only {self.ready} of {want} watchers idle; {self.dead} died; {self.errors[:2]}")
        return time.perf_counter() - begun

    def _connect(self, number: int, user: str, password: str) -> None:
        sock = socket.create_connection(self.address, 30)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        watcher = Watcher(number, user, password, sock)
        if self.tls:
            watcher.sock = self.tls.wrap_socket(sock, do_handshake_on_connect=False)
            watcher.state = "tls"
        self.all.append(watcher)
        self.loop.add(watcher.sock, lambda _: self._event(watcher))
        if self.tls:
            self._event(watcher)

    def _die(self, watcher: Watcher, why: object) -> None:
        if watcher.alive:
            watcher.alive = False
            self.dead += 1
            if watcher.state == "idle":
                self.ready -= 1
            self.errors.append(f"{watcher.user} in {watcher.state}: {why}")
            self.loop.drop(watcher.sock)
            watcher.sock.close()

    def _event(self, watcher: Watcher) -> None:
        try:
            if watcher.state == "tls" and not self._shake_hands(watcher):
                return
            while True:
                data = watcher.sock.recv(16384)
                now = time.perf_counter()
                if not data:
                    return self._die(watcher, f"closed {watcher.buffer[-200:]!r}")
                if watcher.state == "idle" and not watcher.buffer and data[-1:] == b"\n":
                    self._told(watcher, data, now)
                else:
                    watcher.buffer += data
                    self._feed(watcher, now)
                if not self.tls and len(data) < 16384:
                    return
        except (ssl.SSLWantReadError, BlockingIOError):
            return
        except OSError as error:
            self._die(watcher, repr(error))

    def _shake_hands(self, watcher: Watcher) -> bool:
        assert isinstance(watcher.sock, ssl.SSLSocket)
        try:
            watcher.sock.do_handshake()
        except ssl.SSLWantReadError:
            self.loop.mask(watcher.sock, select.EPOLLIN)
            return False
        except ssl.SSLWantWriteError:
            self.loop.mask(watcher.sock, select.EPOLLOUT)
            return False
        watcher.state = "greet"
        return True

    def _told(self, watcher: Watcher, data: bytes, now: float) -> None:
        counts = EXISTS.findall(data)
        if counts:
            watcher.exists = int(counts[-1])
            if self.on_exists:
                self.on_exists(watcher, watcher.exists, now)

    def _feed(self, watcher: Watcher, now: float) -> None:
        whole, newline, watcher.buffer = watcher.buffer.rpartition(b"\n")
        if not newline:
            return
        if watcher.state == "idle":
            return self._told(watcher, whole + newline, now)
        for line in whole.split(b"\n"):
            if watcher.alive:
                self._line(watcher, line.rstrip(b"\r"), now)

    def _line(self, watcher: Watcher, line: bytes, now: float) -> None:
        state = watcher.state
        if state == "greet" and line.startswith(b"* "):
            watcher.state = "login"
            watcher.sock.sendall(f"a1 LOGIN {watcher.user} {watcher.password}\r\n".encode())
        elif state == "login" and line.startswith(b"a1 "):
            self._next(watcher, line, b"a1 OK", "select", b"a2 SELECT INBOX\r\n")
        elif state == "select" and line.startswith(b"a2 "):
            self._next(watcher, line, b"a2 OK", "wait", b"a3 IDLE\r\n")
        elif state == "select":
            count = EXISTS.match(line)
            if count:
                watcher.exists = int(count.group(1))
        elif state == "wait" and line.startswith(b"+"):
            watcher.state = "idle"
            self.ready += 1
        elif state == "wait" and line.startswith(b"a3 "):
            self._die(watcher, line)
        elif state in ("wait", "idle"):
            self._told(watcher, line, now)

    def _next(self, watcher: Watcher, line: bytes, expected: bytes, state: str, command: bytes) -> None:
        if not line.startswith(expected):
            return self._die(watcher, line)
        watcher.state = state
        watcher.sock.sendall(command)

    def close(self) -> None:
        for watcher in self.all:
            if watcher.alive:
                self.loop.drop(watcher.sock)
                try:
                    watcher.sock.sendall(b"DONE\r\na9 LOGOUT\r\n")
                except OSError:
                    pass
        for watcher in self.all:
            if watcher.alive:
                watcher.alive = False
                watcher.sock.close()
        self.all = []
        self.ready = self.dead = 0
