"""Holds the listening sockets, starts children on them, restarts what dies, kills what hangs, passes signals on.

Its children are the workers, each serving all listeners, and one for each part (daemon.PARTS). It runs no greenlets:
between forks there must be nothing that could wake in a child. A child whose supervisor dies is told by the kernel and
drains, so that the ports are free again.

Imports: daemon, heartbeat, config, log.    prctl(2) PR_SET_PDEATHSIG.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import os
import signal
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import gevent
from gevent.monkey import get_original

from mailsrv import log
from mailsrv.config import Config
from mailsrv.daemon import PARTS, Bound, Server, StartError, bind_all, raise_descriptor_limit, tls_context
from mailsrv.heartbeat import Heartbeats
from mailsrv.net.tally import Shared, Tally

_fork = get_original("os", "fork")
_waitpid = get_original("os", "waitpid")
_PR_SET_PDEATHSIG = 1
_select = get_original("select", "select")
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
STEADY_SECONDS = 10.0  # a child that lived this long is restarted at once
LONGEST_PAUSE = 30.0
ROUND_SECONDS = 0.5
KILL_AFTER_SECONDS = 5.0  # beyond the time sessions have for shutting down


class PidFile:
    """`<run_dir>/mailsrv.pid`, locked while the server runs: a second one on the same directory does not start."""

    def __init__(self, run_dir: str) -> None:
        self.path = f"{run_dir}/mailsrv.pid"
        self._fd = -1

    def acquire(self) -> None:
        try:
            os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as failure:
            raise StartError(f"server.run_dir: cannot write {self.path}: {failure.strerror}") from None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StartError(
                f"mailsrv is running already (pid {running_pid(self.path) or 'unknown'}, {self.path})"
            ) from None
        os.ftruncate(self._fd, 0)
        os.write(self._fd, f"{os.getpid()}\n".encode())

    def release(self) -> None:
        if self._fd >= 0:
            try:
                os.unlink(self.path)
            except FileNotFoundError:
                pass
            os.close(self._fd)
            self._fd = -1


def running_pid(path: str) -> int | None:
    """The process that holds the pid file's lock; None when no server runs."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except OSError:
        text = os.read(fd, 32).decode("ascii", "replace").strip()
        return int(text) if text.isascii() and text.isdigit() else 0
    finally:
        os.close(fd)


def serve(config: Config) -> None:
    """Run the server in the foreground until it is told to stop. StartError if it cannot start."""
    pid_file = PidFile(config["server.run_dir"])
    pid_file.acquire()
    try:
        raise_descriptor_limit()
        context = tls_context(config)
        if context is None:
            log.warning("no TLS certificate is configured: nobody can log in (tls.certificate, tls.key)")
        bound = bind_all(config)
        log.info(
            "listening", workers=config["server.workers"],
            addresses=" ".join(f"{one.service}={_address(one)}" for one in bound),
        )  # fmt: skip
        if config["server.workers"] == 1:
            Server(config, bound, context, parts=tuple(PARTS)).run()
        else:
            gc.freeze()  # pages the children share stay shared
            _Supervisor(config, bound, list(_children(config, bound, context))).run()
    finally:
        pid_file.release()
        log.flush()


def _address(one: Bound) -> str:
    host, port = one.socket.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(frozen=True, slots=True)
class Child:
    """A process to be kept alive. `run` serves until SIGTERM; it is given what to call while its event loop turns, and
    how often it was restarted.
    """

    name: str
    run: Callable[[Callable[[], None], int], None]


def _children(config: Config, bound: list[Bound], context: ssl.SSLContext | None) -> Iterator[Child]:
    """The workers, and one child for each part."""
    shared = Shared(config["server.workers"])
    for number in range(config["server.workers"]):

        def work(beat: Callable[[], None], restarts: int, number: int = number) -> None:
            name, tally = f"worker-{number}", Tally(shared, number)
            Server(
                config, bound, context, name=name, restarts=restarts, leads=number == 0, beat=beat, tally=tally
            ).run()

        yield Child(f"worker-{number}", work)
    for part in PARTS:

        def attend(beat: Callable[[], None], restarts: int, part: str = part) -> None:
            for one in bound:
                one.socket.close()
            Server(config, [], context, name=part, restarts=restarts, leads=False, parts=[part], beat=beat).run()

        yield Child(part, attend)


def _noted(number: int, frame: object) -> None:
    """The pipe has it."""


@dataclass(slots=True)
class _Running:
    seat: int
    pid: int
    started_at: float


class _Supervisor:
    def __init__(self, config: Config, bound: list[Bound], children: list[Child]) -> None:
        self._config, self._bound, self._children = config, bound, children
        self._beats = Heartbeats(len(children))
        self._running: dict[int, _Running] = {}  # by pid
        self._due: dict[int, float] = {}  # seat (place in `children`) -> when to start it (again)
        self._pauses: dict[int, float] = {}
        self._deaths = [0] * len(children)
        self._looked_at = 0.0
        self._stopping_since: float | None = None

    def run(self) -> None:
        # The number of each signal comes through a pipe, whichever thread the kernel gave it to.
        numbers, written = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(written)
        for number in _SIGNALS:
            signal.signal(number, _noted)
        self._due = dict.fromkeys(range(len(self._children)), 0.0)
        while self._running or (self._due and self._stopping_since is None):
            self._start_due()
            if _select([numbers], [], [], ROUND_SECONDS)[0]:
                for received in dict.fromkeys(os.read(numbers, 4096)):
                    self._signal(signal.Signals(received))
            self._reap()
            if self._stopping_since is not None:
                self._tell(signal.SIGTERM)  # again, for one that was told before it could hear
                self._kill_slow()
            else:
                self._kill_hung()

    def _start_due(self) -> None:
        now = time.monotonic()
        for seat in [seat for seat, when in self._due.items() if when <= now]:
            if self._stopping_since is None:
                del self._due[seat]
                self._start(seat)

    def _start(self, seat: int) -> None:
        log.flush()
        parent = os.getpid()
        child = self._children[seat]
        self._beats.clear(seat)
        pid = _fork()
        if pid:
            self._running[pid] = _Running(seat, pid, time.monotonic())
            log.info("process started", name=child.name, pid=pid)
            return
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for one in _SIGNALS:
                signal.signal(one, signal.SIG_DFL)
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(0)  # it died before the kernel was asked to tell
            gevent.reinit()
            child.run(lambda: self._beats.beat(seat), self._deaths[seat])
            code = 0
        except BaseException:
            log.exception("process failed", name=child.name)
        finally:
            log.flush()
            os._exit(code)

    def _signal(self, number: signal.Signals) -> None:
        if number in (signal.SIGTERM, signal.SIGINT):
            if self._stopping_since is None:
                log.info("shutting down", signal=number.name)
                self._stopping_since = time.monotonic()
                for one in self._bound:  # else clients would wait in a queue that nobody takes them from
                    one.socket.close()
        elif number == signal.SIGHUP:
            log.reopen()
            self._tell(signal.SIGHUP)

    def _tell(self, number: signal.Signals) -> None:
        for pid in self._running:
            _kill(pid, number)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = _waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            ended = self._running.pop(pid, None)
            if ended is not None:
                self._ended(ended, os.waitstatus_to_exitcode(status))

    def _ended(self, ended: _Running, code: int) -> None:
        name = self._children[ended.seat].name
        if self._stopping_since is not None:
            log.info("process ended", name=name, pid=ended.pid, code=code)
            return
        self._deaths[ended.seat] += 1
        lived = time.monotonic() - ended.started_at
        pause = 0.0 if lived > STEADY_SECONDS else self._pauses.get(ended.seat, 0.05)
        self._pauses[ended.seat] = min(max(pause, 0.05) * 2, LONGEST_PAUSE)
        log.error("process died", name=name, pid=ended.pid, code=code, restart_in_s=pause)
        self._due[ended.seat] = time.monotonic() + pause

    def _kill_hung(self) -> None:
        """End whose event loop has not turned for too long. Not after a time in which this process did not run either,
        as when the machine was stopped: then nobody could beat.
        """
        now, limit = time.monotonic(), self._config["server.hang_seconds"]
        stood_still, self._looked_at = now - self._looked_at > limit / 2 + ROUND_SECONDS, now
        for one in self._running.values():
            silent = now - max(one.started_at, self._beats.last(one.seat))
            if stood_still:
                self._beats.beat(one.seat)
            elif silent > limit:
                log.error("process hangs", name=self._children[one.seat].name, pid=one.pid, silent_s=silent)
                _kill(one.pid, signal.SIGKILL)
                one.started_at = now  # until it is reaped

    def _kill_slow(self) -> None:
        assert self._stopping_since is not None
        if time.monotonic() - self._stopping_since > self._config["server.shutdown_seconds"] + KILL_AFTER_SECONDS:
            log.error("processes did not end in time", pids=" ".join(str(pid) for pid in self._running))
            self._tell(signal.SIGKILL)


def _kill(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
