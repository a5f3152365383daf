"""One process of the server: builds the objects, serves on the sockets it was given, runs its parts, drains on SIGTERM.

A part is what runs once in the whole server, such as the queue: in the one process there is, or in a child of the
supervisor's that has no listeners.

Imports: everything below; gevent.    Order of draining: stop accepting, end what idles, let messages finish, close.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Protocol

import gevent
from gevent.event import Event

from mailsrv import audit, log, systemd
from mailsrv.config import Config
from mailsrv.control import Control
from mailsrv.expiry import Expiry
from mailsrv.imap import context as imap_context
from mailsrv.imap.session import Session as ImapSession
from mailsrv.mail import throttle
from mailsrv.mail.accounts import Accounts
from mailsrv.mail.bus import Bus
from mailsrv.mail.canary import Canary
from mailsrv.mail.intake import Intake
from mailsrv.mail.logins import Logins
from mailsrv.mail.mailbox import Mailboxes
from mailsrv.mail.notify import Registry
from mailsrv.mail.passwords import Passwords
from mailsrv.mail.srs import Rewriter
from mailsrv.mail.throttle import Throttle
from mailsrv.mail.tickets import Tickets
from mailsrv.mail.upkeep import Upkeep
from mailsrv.mail.watch import Watch
from mailsrv.net import listener, tls
from mailsrv.net.stream import Stream
from mailsrv.net.tally import Shared, Tally
from mailsrv.networks import Networks
from mailsrv.probes import Probe
from mailsrv.runner import Runner, outgoing_of
from mailsrv.smtp import context as smtp_context
from mailsrv.smtp.session import Session as SmtpSession
from mailsrv.start import (
    IMPLICIT_TLS,
    PROBES,
    Bound,
    StartError,
    load_certificates,
    make_certificate,
    reopen_log,
    reread,
)
from mailsrv.store.files import close, offload
from mailsrv.ticker import Ticker
from mailsrv.vitals import Vitals
from mailsrv.wire import mime

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h
COLLECT_AFTER = (5000, 20, 100)  # a full collection holds everybody up, and finds next to nothing here
SWITCH_SECONDS = 0.0005  # how long a thread may hold the interpreter while the hub waits for it
BEATS_IN_HANG = 5  # signs of life in the time after which a process is taken to hang
TURN_SECONDS = 0.05
RETRY_SECONDS = 10.0
MOST_PROBES = 32  # connections of one process
GOODBYES_A_SECOND = 100  # at a stop, of each listener; more when the time is short
CERTIFICATES_SECONDS = 60.0  # between two looks at their files
WANTED = (signal.SIGHUP, signal.SIGUSR1)  # a process that begins keeps these until it can act on them


def throttle_limits(config: Config) -> throttle.Limits:
    return throttle.Limits(
        config["limits.login_failures"],
        config["limits.login_pause_seconds"],
        config["limits.unknown_recipients"],
        Networks(config["limits.trusted_networks"]),
    )


def _farewell(service: str) -> Callable[[str], bytes]:
    """What a client without a place is told, and why."""
    words = b"" if service == PROBES else b"* BYE [LIMIT] %b\r\n" if service.startswith("imap") else b"421 4.7.0 %b\r\n"
    return lambda reason: words % reason.encode() if words else b""


class Leaving(Enum):
    """Why a process ends."""

    STOPPED = auto()
    REPLACED = auto()


class Part(Protocol):
    """What runs once in the whole server. With new settings it is closed and made again."""

    def start(self) -> None:
        """Begin, in greenlets of its own."""

    def close(self, deadline: float) -> None:
        """End. What is under way may be finished until then (monotonic clock); nothing goes on afterwards."""


def give_memory_back() -> None:
    """Have the C library return what was freed: few arenas for the many threads, and large blocks (argon2's 19 MiB, a
    message, a list of a hundred thousand) always in mappings of their own. mallopt(3).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # another C library, with other ways
    for option, value in ((_M_ARENA_MAX, 2), (_M_MMAP_THRESHOLD, 256 * 1024), (_M_TRIM_THRESHOLD, 1024 * 1024)):
        mallopt(option, value)


class Server:
    """The process `name`, with all it needs to serve. `leads`: it does what one of all processes does. `parts`: names
    in PARTS. `beat` is called while the event loop turns. `tally`: connections, counted with the other workers;
    `tickets`: passwords that any of them verified. `on_leaving` is called when it has to end.
    """

    def __init__(
        self,
        config: Config,
        bound: list[Bound],
        context: tls.ServerContext | None,
        *,
        name: str = "worker-0",
        restarts: int = 0,
        leads: bool = True,
        parts: Sequence[str] = (),
        beat: Callable[[], None] = lambda: None,
        tally: Tally | None = None,
        tickets: Tickets | None = None,
        on_leaving: Callable[[], None] = lambda: None,
    ) -> None:
        self.config = config
        self._beat, self._leads = beat, leads
        self._heart: gevent.Greenlet | None = None
        self._stop = Event()
        self._ticker: gevent.Greenlet | None = None
        self._context, self._alone = context, True
        self._leaving: Leaving | None = None
        self._on_leaving = on_leaving
        self._certificates: gevent.Greenlet | None = None
        rewriter = Rewriter(f"{config['server.data_dir']}/srs") if config["forwarding.srs"] else None
        self.accounts = Accounts(config.accounts_path, config.mail_root, rewriter)
        self.tally = tally if tally is not None else Tally(Shared())
        self.throttle = Throttle(config.throttle_path, throttle_limits(config), self.tally.secret)
        self.logins = Logins(audit.Trail(audit.directory_of(config), audit.LOGINS, config["audit.days"]).append)
        self.passwords = Passwords(self.accounts, self.throttle, self.logins, tickets)
        self.registry = Registry()
        self.watch = Watch()
        self.mailboxes = Mailboxes(
            self.registry,
            prepare=mime.prepare,
            host=config["server.hostname"],
            on_open=self.watch.opened,
            on_close=self.watch.closed,
        )
        self.intake = Intake(self.mailboxes, self.accounts, config.mail_root, outgoing_of(config, self.accounts))
        self.upkeep = Upkeep(self.accounts, self.mailboxes, sweeps=leads)
        self.bus = Bus(config["server.run_dir"], str(os.getpid()), self.registry)
        self.control = Control(config["server.run_dir"], name)
        self._admission = listener.Admission(_limits(config), self.tally)
        makers = self._makers()
        probing = listener.Admission(listener.Limits(MOST_PROBES, MOST_PROBES))
        self.listeners = [
            listener.Listener(
                one.socket,
                one.service,
                makers[one.service],
                probing if one.service == PROBES else self._admission,
                farewell=_farewell(one.service),
                tls_context=(lambda: context) if one.service in IMPLICIT_TLS else (lambda: None),
            )
            for one in bound
        ]
        self.canary: Canary | None = None
        if bound and config["canary.seconds"]:
            home = f"{config['server.data_dir']}/canary"
            self.canary = Canary(self.intake, home, config["canary.seconds"], sends=leads)
        self.expiry = Expiry(lambda: self.config, self.intake) if leads else None
        self.vitals = Vitals(self, restarts=restarts)
        self.parts = [_Once(name, self) for name in parts]

    def _makers(self) -> dict[str, Callable[[Stream], listener.Conversation]]:
        """What makes a connection of each service a session, with the settings of now."""
        context = self._context
        return {
            "smtp": self._smtp_maker(context, submission=False),
            "submission": self._smtp_maker(context, submission=True),
            "submissions": self._smtp_maker(context, submission=True),
            "imap": self._imap_maker(context),
            "imaps": self._imap_maker(context),
            PROBES: lambda stream: Probe(stream, self),
        }

    def _smtp_maker(self, context: tls.ServerContext | None, *, submission: bool) -> Callable[[Stream], SmtpSession]:
        config = self.config
        settings = smtp_context.SmtpSettings(
            message_bytes=config["smtp.message_bytes"],
            recipients=config["smtp.recipients"],
            command_seconds=config["smtp.command_seconds"],
            data_seconds=config["smtp.data_seconds"],
            write_seconds=config["limits.write_seconds"],
            least_rate=config["smtp.bytes_per_second"],
            hops=config["smtp.hops"],
            errors_delayed=(config["limits.errors"] + 1) // 2,
            errors=config["limits.errors"],
            idle_commands=config["limits.commands_without_mail"],
            connections_per_user=config["limits.connections_per_user"],
            normalize_newlines=config["smtp.bare_newline"] == "normalize",
            save_sent=config["submission.save_sent"],
            undo_seconds=config["submission.undo_seconds"],
            future_seconds=config["submission.future_seconds"],
        )
        services = smtp_context.Services(
            self.accounts,
            self.passwords,
            self.intake,
            config["server.hostname"],
            submission,
            context,
            settings,
            self.tally,
            self.throttle,
        )
        return lambda stream: SmtpSession(stream, services)

    def _imap_maker(self, context: tls.ServerContext | None) -> Callable[[Stream], ImapSession]:
        config = self.config
        settings = imap_context.ImapSettings(
            login_seconds=config["imap.login_seconds"],
            idle_seconds=config["imap.idle_seconds"],
            write_seconds=config["limits.write_seconds"],
            heartbeat_seconds=config["imap.heartbeat_seconds"],
            message_bytes=config["smtp.message_bytes"],
            allow_plaintext_login=config["imap.allow_plaintext_login"],
            errors=config["limits.errors"],
            connections_per_user=config["limits.connections_per_user"],
        )
        services = imap_context.Services(
            self.accounts, self.passwords, self.mailboxes, config["server.hostname"], context, settings, self.tally
        )
        return lambda stream: ImapSession(stream, services)

    def run(self, replace: Callable[[], None] | None = None) -> None:
        """Serve until SIGTERM or SIGINT; then drain. At SIGUSR2 `replace` is called; without it the process leaves to
        one that has replaced it. SIGHUP reads settings and certificates again, SIGUSR1 opens the log again.
        """
        self._alone = replace is not None
        sys.setswitchinterval(SWITCH_SECONDS)
        give_memory_back()
        for number in (signal.SIGTERM, signal.SIGINT):
            gevent.signal_handler(number, self.stop)
        gevent.signal_handler(signal.SIGUSR2, replace or self.leave)
        gevent.signal_handler(signal.SIGHUP, gevent.spawn, self.reload)
        gevent.signal_handler(signal.SIGUSR1, gevent.spawn, offload, reopen_log)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WANTED)
        self.start()
        self.run_until_stopped()

    def run_until_stopped(self) -> None:
        """After `start`: wait for `stop` or `leave`, then drain."""
        try:
            self._stop.wait()
        finally:
            self.drain()

    def start(self) -> None:
        self.bus.start()
        self.control.start()
        self.vitals.start()
        self.watch.start(self.mailboxes)
        self.upkeep.start()
        if self.config["log.hub_delay"]:
            self._ticker = gevent.spawn(Ticker().run)
        for one in self.listeners:
            one.start()
        if self.canary is not None:
            self.canary.start()
        for part in self.parts:
            part.start()
        self._heart = gevent.spawn(self._beat_on)
        if self.expiry is not None:
            self.expiry.start()
        if self._context is not None:
            self._certificates = gevent.spawn(self._watch_certificates)
        # What was imported and built stays for good: the collector need not look at it again, nor copy its pages.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*COLLECT_AFTER)

    def _beat_on(self) -> None:
        while True:
            self._beat()
            gevent.sleep(self.config["server.hang_seconds"] / BEATS_IN_HANG)

    # -------------------------------------------------------------- changes

    def reload(self) -> None:
        """The settings and certificates as they are in their files now, for what begins from now on; no connection
        ends. What is wrong with them is logged, and nothing changes.
        """
        if self._alone:
            systemd.reloading()
        config = offload(lambda: reread(self.config, self._context, first=self._alone))
        if config is not None:
            self._adopt(config)
        if self._alone:
            systemd.notify("READY=1")

    def _adopt(self, config: Config) -> None:
        if config.values == self.config.values:
            return
        self.config = config
        makers = self._makers()
        for one in self.listeners:
            one.make = makers[one.service]
        self._admission.limits = _limits(config)
        self.throttle.limits = throttle_limits(config)
        for part in self.parts:
            part.renew()

    def _watch_certificates(self) -> None:
        """Renewed files are used, whether somebody says so or not."""
        assert self._context is not None
        while True:
            gevent.sleep(CERTIFICATES_SECONDS)
            offload(self._look_at_certificates, self._context)

    def _look_at_certificates(self, context: tls.ServerContext) -> None:
        """Runs in a thread."""
        if self._leads:
            try:
                make_certificate(self.config)
            except StartError as failure:
                log.error("certificate not renewed", problem=str(failure))
        if context.changed():
            load_certificates(self.config, context)

    # -------------------------------------------------------------- ending

    def stop(self) -> None:
        """End soon: within `server.shutdown_seconds`."""
        self._end(Leaving.STOPPED)

    def leave(self) -> None:
        """End when others serve already: those who came lately may finish what they came for."""
        self._end(Leaving.REPLACED)

    @property
    def stopping(self) -> bool:
        return self._leaving is not None

    def _end(self, how: Leaving) -> None:
        if self._leaving in (None, Leaving.REPLACED) and self._leaving is not how:
            begun, self._leaving = self._leaving is not None, how
            self._on_leaving()
            if begun:
                self._send_away()
            self._stop.set()

    def _send_away(self) -> None:
        config = self.config
        longest = min(config["server.goodbye_seconds"], config["server.shutdown_seconds"] / 2)
        grace = longest if self._leaving is Leaving.REPLACED else 0.0
        for one in self.listeners:
            waiting = one.service.startswith("imap")
            over = min(longest, len(one.sessions) / GOODBYES_A_SECOND) if waiting else 0.0
            one.stop(over=over, grace=grace)

    def drain(self) -> None:
        if self._alone and self._leaving is Leaving.STOPPED:
            systemd.notify("STOPPING=1")
        log.info("stopping", connections=sum(len(one.sessions) for one in self.listeners))
        deadline = time.monotonic() + self.config["server.shutdown_seconds"]
        for one in self.listeners:
            one.stop_accepting()
        self._send_away()
        for part in self.parts:
            part.close(deadline)
        cut = sum(one.join(deadline) for one in self.listeners)
        if cut:
            log.warning("connections cut off at shutdown", count=cut)
        for greenlet in (self._ticker, self._heart, self._certificates):
            if greenlet is not None:
                greenlet.kill()
        if self.canary is not None:
            self.canary.close()
        if self.expiry is not None:
            self.expiry.close()
        self.upkeep.close()
        self.vitals.close()
        self.control.close()
        self.watch.close()
        self.bus.close()
        self.intake.close()
        self.mailboxes.close_all()
        self.logins.close()
        self.throttle.close()
        self.accounts.close()
        log.info("stopped")


# Every part: its name, and what makes it of the process's objects.
PARTS: dict[str, Callable[[Server], Part]] = {
    "queue": lambda server: server.vitals.watch_queue(Runner(server.config, server.accounts, server.intake)),
}


def _limits(config: Config) -> listener.Limits:
    return listener.Limits(
        config["limits.connections"],
        config["limits.connections_per_address"],
        Networks(config["limits.trusted_networks"]),
    )


class _Once:
    """A part that waits for its turn: it begins when no other process has it, such as one that is being replaced."""

    def __init__(self, name: str, server: Server) -> None:
        self._name, self._server = name, server
        self._part: Part | None = None
        self._greenlet: gevent.Greenlet | None = None
        self._fd = -1

    def start(self) -> None:
        self._greenlet = gevent.spawn(self._run)

    def _run(self) -> None:
        path = f"{self._server.config['server.run_dir']}/{self._name}.lock"
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        while not self._locked():
            gevent.sleep(TURN_SECONDS)
        self._begin()

    def _begin(self) -> None:
        while self._part is None:
            try:
                part = PARTS[self._name](self._server)
                part.start()
            except Exception:
                log.exception("part failed to start", part=self._name, again_in_s=RETRY_SECONDS)
                gevent.sleep(RETRY_SECONDS)
            else:
                self._part = part

    def renew(self) -> None:
        """Make it again, with the settings of now."""
        if self._part is not None:
            self._part.close(time.monotonic() + self._server.config["server.shutdown_seconds"])
            self._part = None
            self._begin()

    def _locked(self) -> bool:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self, deadline: float) -> None:
        if self._greenlet is not None:
            self._greenlet.kill()
        if self._part is not None:
            self._part.close(deadline)
        if self._fd >= 0:
            close(self._fd)
