"""Starts the server, and holds it together: binds, gives up being root, starts children, restarts what dies, kills what
hangs, passes signals on, lets new code take over.

Its children are the workers, each serving all listeners, and one for each part (daemon.PARTS). It runs no greenlets:
between forks there must be nothing that could wake in a child. A child whose supervisor dies is told by the kernel and
drains, so that the ports are free again. With one worker there is no supervisor: one process does everything.

Imports: start, daemon, behind, privileges, detach, pidfile, handover, heartbeat, systemd, config, log.
prctl(2) PR_SET_PDEATHSIG, S27.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import gevent
from gevent.monkey import get_original
from gevent.socket import wait_read

from mailsrv import log, privileges, systemd
from mailsrv.behind import Behind, allow_return
from mailsrv.config import Config
from mailsrv.daemon import CERTIFICATES_SECONDS, PARTS, WANTED, Server
from mailsrv.detach import Starter, detach
from mailsrv.handover import Inheritance, Successor
from mailsrv.heartbeat import Heartbeats
from mailsrv.mail import private_key
from mailsrv.mail.dkim import Keys
from mailsrv.mail.tickets import Tickets
from mailsrv.net.tally import Shared, Tally
from mailsrv.net.tls import ServerContext
from mailsrv.pidfile import PidFile, refuse_second
from mailsrv.start import (
    Bound,
    StartError,
    bind_all,
    check_accounts,
    load_certificates,
    make_certificate,
    reopen_log,
    reread,
    tls_context,
)

_fork = get_original("os", "fork")
_waitpid = get_original("os", "waitpid")
_select = get_original("select", "select")
_PR_SET_PDEATHSIG = 1
_STOP = (signal.SIGTERM, signal.SIGINT)
_SIGNALS = (*_STOP, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD)
STEADY_SECONDS = 10.0  # a child that lived this long is restarted at once
LONGEST_PAUSE = 30.0
ROUND_SECONDS, START_ROUND_SECONDS = 0.5, 0.02
KILL_AFTER_SECONDS = 5.0  # beyond the time sessions have for shutting down


# ------------------------------------------------------------------ starting


def serve(config: Config, before: Inheritance, *, foreground: bool = True) -> None:
    """Run the server until it is told to stop. StartError if it cannot start. Not in the foreground, the calling
    process ends when the server serves, and this returns in another. `before`: the server that this one replaces.
    """
    pid_file = PidFile(config["server.run_dir"])
    if not before:
        refuse_second(pid_file.path, config["server.shutdown_seconds"] + KILL_AFTER_SECONDS)
    starter = Starter() if foreground or before else detach()
    try:
        run = _start(config, before, pid_file, starter, detached=not foreground)
        run()
    except StartError:
        raise
    except BaseException:
        log.exception("server failed")
        raise
    finally:
        pid_file.release()
        log.flush()


def _start(
    config: Config, before: Inheritance, pid_file: PidFile, starter: Starter, *, detached: bool
) -> Callable[[], None]:
    """Everything that root is for, then everything that it is not for; what is left is to run."""
    identity = privileges.wanted(config)
    privileges.raise_descriptor_limit()
    allow_return()
    privileges.prepare(config, identity)
    bound = bind_all(config, before.sockets)
    context = tls_context(config)
    if Keys(config.dkim_path).there:
        private_key.preload()  # else with the first mail that is signed
    if identity is not None:
        privileges.drop(identity)
    privileges.no_new_privileges()
    if before:
        pid_file.adopt(before.pid_fd)
    else:
        pid_file.acquire()
    privileges.check(config)
    check_accounts(config)
    _open_log(config, detached=detached)
    privileges.advise(config)
    if make_certificate(config):
        context = tls_context(config)
    elif context is None:
        log.warning("no TLS certificate is configured: nobody can log in (tls.certificate, tls.key)")

    def ready() -> None:
        if before:
            pid_file.write()
        before.serving(bound)
        starter.ready()
        systemd.notify("READY=1", f"STATUS=Serving on {len(bound)} addresses", f"MAINPID={os.getpid()}")
        log.info("ready", pid=os.getpid())

    log.info(
        "listening", workers=config["server.workers"],
        addresses=" ".join(f"{one.service}={_address(one)}" for one in bound),
    )  # fmt: skip
    if config["server.workers"] == 1:
        return _Alone(config, bound, context, pid_file, ready).run
    gc.freeze()  # pages the children share stay shared
    return _Supervisor(config, bound, context, pid_file, ready).run


def _open_log(config: Config, *, detached: bool) -> None:
    """Where the settings say; in the background, where there is no standard error to write to, nowhere means syslog."""
    file = config["log.file"] or ("syslog" if detached else None)
    try:
        log.configure(level=config["log.level"], file=file, format=config["log.format"])
    except OSError as failure:
        raise StartError(
            f"log.file: {file}: {failure.strerror}; it must belong to {privileges.pwd_name(os.geteuid())}"
        ) from None


def _address(one: Bound) -> str:
    host, port = one.socket.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


# ------------------------------------------------------------------ one process


class _Alone:
    """The server in one process: what a supervisor does otherwise, as far as it is left."""

    def __init__(
        self, config: Config, bound: list[Bound], context: ServerContext | None, pid_file: PidFile,
        ready: Callable[[], None],
    ) -> None:  # fmt: skip
        self._bound, self._pid_file, self._ready = bound, pid_file, ready
        self._server = Server(config, bound, context, parts=tuple(PARTS), beat=self._beat)
        self._begun = False
        self._replacing: gevent.Greenlet | None = None

    def run(self) -> None:
        watchdog = gevent.spawn(self._watchdog)
        self._server.run(self._replace)
        watchdog.kill()

    def _beat(self) -> None:
        if not self._begun:
            self._begun = True
            self._ready()

    def _watchdog(self) -> None:
        while seconds := systemd.watchdog_seconds():
            systemd.notify("WATCHDOG=1")
            gevent.sleep(seconds)

    def _replace(self) -> None:
        if self._replacing is None or self._replacing.dead:
            self._replacing = gevent.spawn(self._hand_over)

    def _hand_over(self) -> None:
        try:
            successor = Successor(self._bound, self._pid_file)
        except OSError as failure:
            log.error("next server not started", error=str(failure))
            return
        while (verdict := successor.verdict()) is None:
            try:
                wait_read(successor.fd, timeout=1)
            except TimeoutError:
                continue
        if verdict:
            systemd.notify(f"MAINPID={successor.pid}")
            self._pid_file.leave()
            self._server.leave()
        else:
            self._pid_file.write()


# ------------------------------------------------------------------ several


@dataclass(frozen=True, slots=True)
class Child:
    """A process to be kept alive. `run` serves until SIGTERM; it is given what to call while its event loop turns, and
    how often it was restarted.
    """

    name: str
    run: Callable[[Config, Callable[[], None], int], None]
    serves: bool  # connections, so that the server is not ready without it


def _children(workers: int, bound: list[Bound], context: ServerContext | None) -> Iterator[Child]:
    """The workers, and one child for each part."""
    shared, tickets = Shared(workers), Tickets()
    for number in range(workers):

        def work(config: Config, beat: Callable[[], None], restarts: int, number: int = number) -> None:
            name, tally = f"worker-{number}", Tally(shared, number)
            Server(
                config, bound, context, name=name, restarts=restarts, leads=number == 0, beat=beat, tally=tally,
                tickets=tickets,
            ).run()  # fmt: skip

        yield Child(f"worker-{number}", work, serves=True)
    for part in PARTS:

        def attend(config: Config, beat: Callable[[], None], restarts: int, part: str = part) -> None:
            place = Behind()
            gevent.spawn(place.keep)
            for one in bound:
                one.socket.close()
            Server(
                config, [], context, name=part, restarts=restarts, leads=False, parts=[part], beat=beat,
                on_leaving=place.stay_beside,
            ).run()  # fmt: skip

        yield Child(part, attend, serves=False)


def _noted(number: int, frame: object) -> None:
    """The pipe has it."""


@dataclass(slots=True)
class _Running:
    seat: int
    pid: int
    started_at: float


class _Supervisor:
    def __init__(
        self, config: Config, bound: list[Bound], context: ServerContext | None, pid_file: PidFile,
        ready: Callable[[], None],
    ) -> None:  # fmt: skip
        self._config, self._bound, self._context, self._pid_file = config, bound, context, pid_file
        self._ready: Callable[[], None] | None = ready
        self._children = list(_children(config["server.workers"], bound, context))
        self._beats = Heartbeats(len(self._children))
        self._running: dict[int, _Running] = {}  # by pid
        self._due = dict.fromkeys(range(len(self._children)), 0.0)  # seat (place in `children`) -> when to start it
        self._pauses: dict[int, float] = {}
        self._deaths = [0] * len(self._children)
        self._successor: Successor | None = None
        self._looked_at = self._files_looked_at = time.monotonic()
        self._watchdog_due = 0.0
        self._stopping_since: float | None = None
        self._farewell = signal.SIGTERM  # what children are told at the end

    def run(self) -> None:
        # The number of each signal comes through a pipe, whichever thread the kernel gave it to.
        numbers, written = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(written)
        for number in _SIGNALS:
            signal.signal(number, _noted)
        while self._running or (self._due and self._stopping_since is None):
            self._start_due()
            self._wait(numbers)
            self._reap()
            self._look_after_successor()
            self._watchdog()
            if self._stopping_since is not None:
                self._tell(self._farewell)  # again, for one that was told before it could hear
                self._kill_slow()
            else:
                self._kill_hung()
                self._look_at_certificates()
                self._say_ready()

    def _wait(self, numbers: int) -> None:
        watched = [numbers] if self._successor is None else [numbers, self._successor.fd]
        if numbers in _select(watched, [], [], START_ROUND_SECONDS if self._ready else ROUND_SECONDS)[0]:
            for received in dict.fromkeys(os.read(numbers, 4096)):
                self._signal(signal.Signals(received))

    def _say_ready(self) -> None:
        """Once, when every worker serves."""
        if self._ready and all(self._beats.last(seat) for seat, one in enumerate(self._children) if one.serves):
            self._ready()
            self._ready = None

    def _watchdog(self) -> None:
        seconds = systemd.watchdog_seconds()
        if seconds and time.monotonic() >= self._watchdog_due:
            systemd.notify("WATCHDOG=1")
            self._watchdog_due = time.monotonic() + seconds - ROUND_SECONDS

    # -------------------------------------------------------------- children

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
        signal.pthread_sigmask(signal.SIG_BLOCK, WANTED)  # the child would die of one before it has its handlers
        pid = _fork()
        if pid:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, WANTED)
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
            child.run(self._config, lambda: self._beats.beat(seat), self._deaths[seat])
            code = 0
        except BaseException:
            log.exception("process failed", name=child.name)
        finally:
            log.flush()
            os._exit(code)

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

    # -------------------------------------------------------------- what it is asked

    def _signal(self, number: signal.Signals) -> None:
        if number in _STOP:
            self._stop(f"asked to by {number.name}", signal.SIGTERM)
        elif number == signal.SIGHUP:
            self._reload()
        elif number == signal.SIGUSR1:
            reopen_log()
            self._tell(signal.SIGUSR1)
        elif number == signal.SIGUSR2:
            self._replace()

    def _stop(self, why: str, farewell: signal.Signals) -> None:
        if self._stopping_since is None:
            log.info("shutting down", why=why)
            systemd.notify("STOPPING=1" if farewell is signal.SIGTERM else "STATUS=Replaced")
            self._stopping_since = time.monotonic()
            for one in self._bound:  # else clients would wait in a queue that nobody takes them from
                one.socket.close()
        if self._farewell is not farewell:
            self._farewell = signal.SIGTERM if self._farewell is signal.SIGUSR2 else farewell
        self._tell(self._farewell)

    def _reload(self) -> None:
        """Only what is good is handed on: the children read it for themselves."""
        systemd.reloading()
        config = reread(self._config, self._context)
        if config is not None:
            self._config = config
            self._tell(signal.SIGHUP)
        systemd.notify("READY=1")

    def _look_at_certificates(self) -> None:
        """For children that are started later; those that run look for themselves."""
        if self._context is None or time.monotonic() - self._files_looked_at < CERTIFICATES_SECONDS:
            return
        self._files_looked_at = time.monotonic()
        if self._context.changed():
            load_certificates(self._config, self._context)

    def _replace(self) -> None:
        if self._successor is None and self._stopping_since is None:
            try:
                self._successor = Successor(self._bound, self._pid_file)
            except OSError as failure:
                log.error("next server not started", error=str(failure))

    def _look_after_successor(self) -> None:
        verdict = None if self._successor is None else self._successor.verdict()
        if verdict is None or self._successor is None:
            return
        if verdict:
            systemd.notify(f"MAINPID={self._successor.pid}")
            self._pid_file.leave()
            self._stop("replaced", signal.SIGUSR2)
        else:
            self._pid_file.write()
        self._successor = None


def _kill(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
