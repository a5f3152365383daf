"""Wakes the queue runner: a datagram to its socket names entries that are new or were changed.

A wake-up that is lost costs time, never mail: the runner lists its directories now and then. What the socket does not
take at once is sent a moment later; of too many, only "look at everything" is sent.

Imports: store.files, log, gevent.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import time
from collections.abc import Callable, Iterable

import gevent

from mailsrv import log
from mailsrv.store.files import unlink_if_there

NAME = "queue.sock"
EVERYTHING = b"*"
IDS_PER_DATAGRAM = 100
MOST_PENDING = 10_000
RETRY_SECONDS = 0.005
PATIENCE_SECONDS = 10.0  # of a command, with a runner that takes nothing
_IDS = re.compile(rb"[0-9a-f]{18}(?: [0-9a-f]{18}){0,199}")
_FULL = (errno.EAGAIN, errno.ENOBUFS, errno.EWOULDBLOCK)


class Wakeups:
    """The runner's end."""

    def __init__(self, path: str, wake: Callable[[str], None], everything: Callable[[], None]) -> None:
        self._path, self._wake, self._everything = path, wake, everything
        self._socket: socket.socket | None = None
        self._greenlet: gevent.Greenlet | None = None
        self._looking: gevent.Greenlet | None = None

    def start(self) -> None:
        unlink_if_there(self._path)  # of a runner that was killed
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self._path)
        os.chmod(self._path, 0o600)
        self._greenlet = gevent.spawn(self._receive)

    def _receive(self) -> None:
        assert self._socket is not None
        while True:
            try:
                datagram = self._socket.recv(64 * 1024)
            except OSError:
                return  # closed
            if datagram == EVERYTHING:
                if self._looking is None or self._looking.dead:
                    self._looking = gevent.spawn(self._everything)
            elif _IDS.fullmatch(datagram):
                for id in datagram.decode().split():
                    self._wake(id)
            else:
                log.warning("wake-up not understood", octets=len(datagram))

    def close(self) -> None:
        for one in (self._greenlet, self._looking):
            if one is not None:
                one.kill()
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            unlink_if_there(self._path)


class Waker:
    """Another process's end: `wake` never waits."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._socket: socket.socket | None = None
        self._pid = 0
        self._pending: dict[str, None] = {}
        self._everything = False
        self._flushing = False

    def wake(self, id: str) -> None:
        if self._flushing or not self._send(id.encode()):
            self._pending[id] = None
            if len(self._pending) > MOST_PENDING:
                self._pending.clear()
                self._everything = True
            if not self._flushing:
                self._flushing = True
                gevent.spawn(self._flush)

    def _send(self, datagram: bytes) -> bool:
        """False if the socket is full. A runner that is not there lists its directories when it starts."""
        if self._socket is None or self._pid != os.getpid():
            self._socket, self._pid = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), os.getpid()
            self._socket.setblocking(False)
        try:
            self._socket.sendto(datagram, self._path)
        except OSError as failure:
            if failure.errno in _FULL:
                return False
            if failure.errno not in (errno.ENOENT, errno.ECONNREFUSED):
                log.warning("queue runner not woken", error=str(failure))
        return True

    def _flush(self) -> None:
        while self._everything or self._pending:
            some = list(self._pending)[:IDS_PER_DATAGRAM]
            datagram = EVERYTHING if self._everything else " ".join(some).encode()
            if self._send(datagram):
                # No switch between sending and forgetting.
                self._everything = False
                for id in some:
                    self._pending.pop(id, None)
            else:
                gevent.sleep(RETRY_SECONDS)
        self._flushing = False

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def tell(path: str, ids: Iterable[str]) -> bool:
    """From outside the server: False if no runner listens, which will see for itself when it starts, or if one takes
    nothing for PATIENCE_SECONDS.
    """
    names = list(ids)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        return all(
            _told(sock, path, " ".join(names[start : start + IDS_PER_DATAGRAM]).encode())
            for start in range(0, len(names), IDS_PER_DATAGRAM)
        )


def _told(sock: socket.socket, path: str, datagram: bytes) -> bool:
    """Asks again and again: such a socket is always writable by poll(2), also when the other one has no room."""
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            sock.sendto(datagram, path)
            return True
        except OSError as failure:
            if failure.errno not in _FULL or time.monotonic() >= end:
                return False
        gevent.sleep(RETRY_SECONDS)
