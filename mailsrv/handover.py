"""New code on the same listeners: one server starts the next, and leaves when that one serves.

The listening sockets and the locked pid file are inherited, and the environment says which descriptor is which. While
both run both accept; nobody is refused. The next server answers on a pipe when its processes serve; if it ends before,
or takes too long, the old one goes on as if nothing had been asked.

Imports: start, pidfile, log.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass, field

from gevent.monkey import get_original

from mailsrv import log
from mailsrv.pidfile import PidFile
from mailsrv.start import Address, Bound
from mailsrv.store.files import close

_posix_spawn = get_original("os", "posix_spawn")
_waitpid = get_original("os", "waitpid")
_VARIABLE = "MAILSRV_HANDOVER"
_READY = b"ready"
MOST_WHY = 2000
SECONDS = 60.0  # for the next server to serve
_started_in = os.getcwd()


@dataclass(slots=True)
class Inheritance:
    """What the server before this one left; empty without one."""

    sockets: dict[tuple[str, Address], socket.socket] = field(default_factory=dict)
    pid_fd: int = -1
    report_fd: int = -1

    def __bool__(self) -> bool:
        return self.pid_fd >= 0

    def serving(self, bound: list[Bound]) -> None:
        """Tell it to leave. Listeners that the configuration does not have any more end here."""
        for sock in self.sockets.values():
            if all(one.socket is not sock for one in bound):
                sock.close()
        self._report(_READY)

    def failed(self, why: str) -> None:
        """Tell it why it must go on."""
        self._report(why.encode()[:MOST_WHY])

    def _report(self, answer: bytes) -> None:
        if self.report_fd >= 0:
            os.write(self.report_fd, answer)
            close(self.report_fd)
            self.report_fd = -1


def inherited() -> Inheritance:
    """To be asked once, at the start."""
    text = os.environ.pop(_VARIABLE, "")
    if not text:
        return Inheritance()
    told = json.loads(text)
    sockets = {
        (service, (host, port)): socket.socket(fileno=descriptor)
        for service, host, port, descriptor in told["listeners"]
    }
    for descriptor in (told["pid"], told["report"], *(sock.fileno() for sock in sockets.values())):
        os.set_inheritable(descriptor, False)
    return Inheritance(sockets, told["pid"], told["report"])


class Successor:
    """The next server, from its start until it serves or has failed. OSError if there can be no process for it."""

    def __init__(self, bound: list[Bound], pid_file: PidFile) -> None:
        self.fd, report = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            self.pid = _spawn(bound, pid_file.fd, report)
        except BaseException:
            close(self.fd)
            raise
        finally:
            close(report)
        self._deadline = time.monotonic() + SECONDS
        log.info("next server started", pid=self.pid)

    def verdict(self) -> bool | None:
        """Whether it serves; None while that is open. After False it has ended."""
        try:
            answer = os.read(self.fd, MOST_WHY) or b"it ended without a word; see standard error"
        except BlockingIOError:
            if time.monotonic() < self._deadline:
                return None
            answer = b"it did not serve in time"
        close(self.fd)
        if answer == _READY:
            log.info("next server serves", pid=self.pid)
            return True
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        try:
            _waitpid(self.pid, 0)
        except ChildProcessError:
            pass  # the supervisor, who waits for every child, has noticed already
        log.error("next server failed", pid=self.pid, reason=answer.decode(), advice="this one goes on")
        return False


def _spawn(bound: list[Bound], pid_fd: int, report: int) -> int:
    """The same command again, from where it was given; its pid. Spawned, not forked: a fork of a process with threads
    may wait for ever for a lock that one of them held (decision 7).
    """
    kept = [pid_fd, report, *(one.socket.fileno() for one in bound)]
    first = max(kept) + 1  # each has a number of its own there, for a copy onto itself would stay closed to it
    numbers = {descriptor: first + place for place, descriptor in enumerate(kept)}
    told = {
        "pid": numbers[pid_fd],
        "report": numbers[report],
        "listeners": [[one.service, *one.address, numbers[one.socket.fileno()]] for one in bound],
    }
    pid: int = _posix_spawn(
        "/bin/sh",
        ["sh", "-c", 'cd "$0" 2>/dev/null || cd /; exec "$@"', _started_in, sys.executable, *sys.orig_argv[1:]],
        {**os.environ, _VARIABLE: json.dumps(told)},
        file_actions=[(os.POSIX_SPAWN_DUP2, old, new) for old, new in numbers.items()],
        setsigmask=[],
    )
    return pid
