"""SMTP and LMTP as load: some connections on the loop, the envelope pipelined where that is offered."""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from targets.base import Target

from .loop import Loop

SENDER = b"sender@gen.bench.test"


@dataclass(slots=True, eq=False)
class Job:
    """One message to one recipient."""

    recipient: str
    data: bytes
    key: int = 0
    sent: float = 0.0  # when the end of data had been sent
    answered: float = 0.0  # when the final reply came
    ok: bool = False
    reply: bytes = b""


@dataclass(slots=True, eq=False)
class Connection:
    sock: socket.socket
    buffer: bytes = b""
    state: str = "idle"  # envelope, mail, rcpt, data, final: which reply is expected next
    job: Job | None = None
    out: bytes | memoryview = b""
    replies: int = 0  # that are still expected to a pipelined envelope


class SmtpPool:
    """Sends each message that is submitted over the next connection that is free."""

    def __init__(self, target: Target, loop: Loop, connections: int = 1) -> None:
        self.loop, self.address, self.lmtp = loop, target.smtp, target.smtp_proto == "lmtp"
        self.idle: deque[Connection] = deque()
        self.all: list[Connection] = []
        self.waiting: deque[Job] = deque()
        self.on_done: Callable[[Job], None] | None = None
        self.pending = self.failed = 0
        self.first_error = ""
        self.pipelining = False
        for _ in range(connections):
            self._open()

    def _open(self) -> None:
        sock = socket.create_connection(self.address, 30)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(sock)
        self._reply_to(connection)
        sock.sendall((b"LHLO" if self.lmtp else b"EHLO") + b" client.bench.test\r\n")
        self.pipelining = b"PIPELINING" in self._reply_to(connection).upper()
        sock.setblocking(False)
        self.loop.add(sock, lambda events: self._event(connection, events))
        self.all.append(connection)
        self.idle.append(connection)

    def _reply_to(self, connection: Connection) -> bytes:
        """One whole positive reply, waited for."""
        text = b""
        while True:
            while b"\n" not in connection.buffer:
                data = connection.sock.recv(4096)
                if not data:
                    raise OSError("SMTP connection closed")
                connection.buffer += data
            line, connection.buffer = connection.buffer.split(b"\n", 1)
            text += line + b"\n"
            if line[3:4] != b"-":
                if not line.startswith(b"2"):
                    raise OSError(f"SMTP: {line!r}")
                return text

    def submit(self, job: Job) -> None:
        self.pending += 1
        if self.idle:
            self._begin(self.idle.popleft(), job)
        else:
            self.waiting.append(job)

    def _begin(self, connection: Connection, job: Job) -> None:
        connection.job = job
        mail = b"MAIL FROM:<%s>\r\n" % SENDER
        rcpt = b"RCPT TO:<%s>\r\n" % job.recipient.encode()
        if self.pipelining:
            connection.state, connection.replies = "envelope", 3
            connection.sock.sendall(mail + rcpt + b"DATA\r\n")
        else:
            connection.state, connection.out = "mail", rcpt
            connection.sock.sendall(mail)

    def _event(self, connection: Connection, events: int) -> None:
        if events & select.EPOLLOUT:
            self._push(connection)
            if not events & ~select.EPOLLOUT:
                return
        try:
            data = connection.sock.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        now = time.perf_counter()
        if not data:
            return self._lost(connection, now)
        connection.buffer += data
        while b"\n" in connection.buffer:
            line, connection.buffer = connection.buffer.split(b"\n", 1)
            if line[3:4] != b"-" and connection.job:
                self._reply(connection, connection.job, line, now)

    def _lost(self, connection: Connection, now: float) -> None:
        self.loop.drop(connection.sock)
        connection.sock.close()
        self.all.remove(connection)
        if connection in self.idle:
            self.idle.remove(connection)
        if connection.job:
            self._done(connection, False, b"connection closed", now, reuse=False)

    def _reply(self, connection: Connection, job: Job, line: bytes, now: float) -> None:
        state, good = connection.state, line[:1] in b"23"
        if state == "envelope":
            connection.replies -= 1
            if not good:
                job.reply = job.reply or line
            if connection.replies == 0 and line[:3] == b"354":
                self._data(connection, job)
            elif connection.replies == 0:
                self._done(connection, False, job.reply or line, now)
        elif state == "final":
            self._done(connection, line[:1] == b"2", line, now)
        elif not good:
            self._done(connection, False, line, now)
        elif state == "mail":
            connection.state = "rcpt"
            connection.sock.sendall(connection.out)
        elif state == "rcpt":
            connection.state = "data"
            connection.sock.sendall(b"DATA\r\n")
        elif state == "data":
            self._data(connection, job)

    def _data(self, connection: Connection, job: Job) -> None:
        connection.state = "final"
        connection.out = memoryview(job.data + (b".\r\n" if job.data.endswith(b"\r\n") else b"\r\n.\r\n"))
        self._push(connection)

    def _push(self, connection: Connection) -> None:
        try:
            while connection.out:
                connection.out = connection.out[connection.sock.send(connection.out) :]
        except BlockingIOError:
            self.loop.mask(connection.sock, select.EPOLLIN | select.EPOLLOUT)
            return
        connection.out = b""
        if connection.job:
            connection.job.sent = time.perf_counter()
            if len(connection.job.data) > 60000:
                self.loop.mask(connection.sock, select.EPOLLIN)

    def _done(self, connection: Connection, ok: bool, line: bytes, now: float, reuse: bool = True) -> None:
        job, connection.job = connection.job, None
        assert job
        job.ok, job.answered, job.reply = ok, now, line
        connection.state = "idle"
        self.pending -= 1
        if not ok:
            self.failed += 1
            self.first_error = self.first_error or line.decode(errors="replace").strip()
            if reuse:
                connection.sock.setblocking(True)
                connection.sock.sendall(b"RSET\r\n")
                self._reply_to(connection)
                connection.sock.setblocking(False)
        if reuse and self.waiting:
            self._begin(connection, self.waiting.popleft())
        elif reuse:
            self.idle.append(connection)
        if self.on_done:
            self.on_done(job)

    def wait(self, timeout: float) -> bool:
        end = time.time() + timeout
        while self.pending and time.time() < end and self.all:
            self.loop.once(0.2)
        return not self.pending

    def close(self) -> None:
        for connection in self.all:
            self.loop.drop(connection.sock)
            try:
                connection.sock.setblocking(True)
                connection.sock.settimeout(2)
                connection.sock.sendall(b"QUIT\r\n")
            except OSError:
                pass
            connection.sock.close()
        self.all = []
