"""Accepts connections on one address; each gets a greenlet, a stream and a session.

Over a limit a connection is told so and closed, never left waiting in silence. Inside TLS that costs a handshake: so
many at once and in a second are told, and the others closed. A TLS handshake happens in the
connection's own greenlet under its own timer: stalled ones cost a descriptor each and nobody's time.

Imports: net.stream, net.tally, networks, log, gevent.
"""

from __future__ import annotations

import errno
import socket
import ssl
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import gevent
from gevent.pool import Group

from mailsrv import counters, log
from mailsrv.net.stream import Stream, StreamError, handshake
from mailsrv.net.tally import Shared, Tally
from mailsrv.networks import Networks, address_of

BACKLOG = 1024
PAUSE_SECONDS = 0.1
# Handshakes of a process for no more than to say that there is no place: at once, and in a second.
MOST_EXPLAINED, EXPLAINED_A_SECOND, EXPLAIN_SECONDS = 20, 10.0, 5.0


class Conversation(Protocol):
    """What a listener needs of a session."""

    def run(self) -> None: ...

    def stop(self, text: str = "") -> None:
        """Called from another greenlet: end as soon as the client can be told so, in these words or the usual ones."""

    def described(self) -> dict[str, Any]:
        """What an administrator sees of it: session, service, user, peer and so on."""

    def hang_up(self) -> None:
        """Called from another greenlet: end now, whatever is under way."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How many connections: in a worker, from one address over all workers (not counted for `trusted` networks)."""

    connections: int = 10_000
    per_address: int = 50
    trusted: Networks = field(default_factory=Networks)


class Admission:
    """Counts the connections of a process over all its listeners, and with the other workers those of an address."""

    def __init__(self, limits: Limits, tally: Tally | None = None) -> None:
        self.limits = limits
        self.total = 0
        self.tally = tally if tally is not None else Tally(Shared())
        self.explaining = 0
        self._explanations, self._refilled_at = float(MOST_EXPLAINED), time.monotonic()

    def may_explain(self) -> bool:
        """Whether a handshake may be spent on saying that there is no place. The caller counts `explaining`."""
        now = time.monotonic()
        gained = (now - self._refilled_at) * EXPLAINED_A_SECOND
        self._explanations, self._refilled_at = min(MOST_EXPLAINED, self._explanations + gained), now
        if self.explaining >= MOST_EXPLAINED or self._explanations < 1:
            return False
        self._explanations -= 1
        return True

    def enter(self, peer: str) -> str | None:
        """None when the connection is counted; else why there is no room for it, for the client to read."""
        if self.total >= self.limits.connections:
            return "The server has all the connections it can serve; try again in some minutes"
        # Those from trusted networks are counted too: which networks these are may change while they last.
        most = sys.maxsize if peer in self.limits.trusted else self.limits.per_address
        if not self.tally.enter(address_of(peer), most):
            return (
                f"Your address has {self.limits.per_address} connections, the most allowed; "
                "try again when some are closed"
            )
        self.total += 1
        return None

    def leave(self, peer: str) -> None:
        self.total -= 1
        self.tally.leave(address_of(peer))


def bind(address: tuple[str, int]) -> socket.socket:
    """A listening socket; OSError if the address cannot be had."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _written(address: tuple[Any, ...]) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Listener:
    """One bound address of one service."""

    def __init__(
        self,
        sock: socket.socket,
        service: str,
        make: Callable[[Stream], Conversation],
        admission: Admission,
        *,
        farewell: Callable[[str], bytes],
        tls_context: Callable[[], ssl.SSLContext | None] = lambda: None,
    ) -> None:
        self.service = service
        self._socket, self._admission, self._farewell = sock, admission, farewell
        self.make = make  # what connections get from now on
        self.address = _written(sock.getsockname())
        self._tls_context = tls_context
        self._acceptor: gevent.Greenlet | None = None
        self._connections, self._refusals = Group(), Group()
        self.sessions: dict[Conversation, float] = {}  # and when they began (monotonic clock)
        self._stopping = False
        self._grace = 0.0
        self._goodbyes = Group()

    @property
    def connections(self) -> int:
        return len(self._connections)

    def start(self) -> None:
        self._acceptor = gevent.spawn(self._accept)

    def _accept(self) -> None:
        while True:
            try:
                sock, address = self._socket.accept()
            except OSError as failure:
                if self._stopping or failure.errno in (errno.EBADF, errno.EINVAL):
                    return
                if failure.errno not in (errno.ECONNABORTED, errno.EINTR, errno.EAGAIN):
                    # Out of descriptors or memory: what is open goes on, and this waits for better times.
                    log.warning("accept failed", service=self.service, error=str(failure))
                    gevent.sleep(PAUSE_SECONDS)
                continue
            peer = address[0].removeprefix("::ffff:")
            reason = self._admission.enter(peer)
            if reason is not None:
                self._refuse(sock, peer, reason)
                continue
            self._connections.spawn(self._serve, sock, peer)

    def _refuse(self, sock: Any, peer: str, reason: str) -> None:
        counters.connections_refused.add(self.service, "limit")
        words, context = self._farewell(reason), self._tls_context()
        told = context is None or (bool(words) and self._admission.may_explain())
        log.warning(
            "too many connections", service=self.service, peer=peer, reason=reason, told="no" if not told else None
        )
        if context is not None and told:
            self._admission.explaining += 1
            self._refusals.spawn(self._explain, sock, peer, context, words)
            return
        try:
            sock.setblocking(False)
            if context is None:
                sock.send(words)
        except OSError:
            pass
        finally:
            sock.close()

    def _explain(self, sock: Any, peer: str, context: ssl.SSLContext, words: bytes) -> None:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock = handshake(sock, context, EXPLAIN_SECONDS)
            stream = Stream(sock, peer, service=self.service)
            try:
                stream.write_last(words)
            finally:
                stream.close()
        except (StreamError, OSError):
            sock.close()
        finally:
            self._admission.explaining -= 1

    def _serve(self, sock: Any, peer: str) -> None:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            counters.connections.add(self.service)
            context = self._tls_context()
            if context is not None:
                sock = handshake(sock, context)
            session = self.make(Stream(sock, peer, service=self.service))
            self.sessions[session] = time.monotonic()
            try:
                if self._stopping:
                    self._goodbyes.add(gevent.spawn_later(self._grace, session.stop))
                session.run()
            finally:
                del self.sessions[session]
        except (StreamError, OSError) as failure:
            counters.connections_refused.add(self.service, "handshake")
            log.info("connection failed", service=self.service, peer=peer, reason=str(failure))
            sock.close()
        finally:
            self._admission.leave(peer)

    def stop_accepting(self) -> None:
        """No further connections; those that are there go on."""
        self._stopping = True
        if self._acceptor is not None:
            self._acceptor.kill()
        self._socket.close()

    def stop(self, *, over: float = 0.0, grace: float = 0.0) -> None:
        """Ask every session to end: the oldest at once, the last after `over` seconds, none before it is `grace`
        seconds old. Does not wait, and a client that does not take its goodbye holds nobody up. A second call replaces
        the first.
        """
        self._stopping, self._grace = True, grace
        self._goodbyes.kill(block=False)
        self._goodbyes = Group()
        self._goodbyes.spawn(self._send_away, over, grace)

    def _send_away(self, over: float, grace: float) -> None:
        now = time.monotonic()
        apart = over / max(1, len(self.sessions))
        for place, (session, began) in enumerate(sorted(self.sessions.items(), key=lambda item: item[1])):
            due = max(now + place * apart, began + grace)
            if due > time.monotonic():
                gevent.sleep(due - time.monotonic())
            if session in self.sessions:
                self._goodbyes.spawn(session.stop)

    def join(self, deadline: float) -> int:
        """Wait until all connections have ended, or until the deadline (monotonic); how many were cut off then."""
        self._connections.join(timeout=max(0.0, deadline - time.monotonic()))
        left = len(self._connections)
        self._goodbyes.kill()
        self._refusals.kill()
        self._connections.kill()
        return left
