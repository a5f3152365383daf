"""Connections to other hosts: the addresses of one host race, IPv6 and IPv4 in turn, and the first that answers wins.

An address that does not answer holds the next one up for a quarter of a second only. Also here: which addresses are
this machine's own, and a place where connections wait a moment for their next use.

Imports: net.stream, gevent.    RFC 8305 (Happy Eyeballs), RFC 5321 5.1.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import gevent
from gevent.pool import Group
from gevent.queue import Empty, Queue

from mailsrv.net.stream import ConnectionLost, DeadlineExceeded

STAGGER_SECONDS = 0.25  # RFC 8305 8, Connection Attempt Delay
_BIND_ADDRESS_NO_PORT = 24  # ip(7): the port is chosen at connect, so that many connections may share one


@dataclass(frozen=True, slots=True)
class Sources:
    """The addresses we connect from; "" leaves it to the system."""

    v4: str = ""
    v6: str = ""


def in_turn(addresses: Sequence[str]) -> list[str]:
    """IPv6 and IPv4 alternately, IPv6 first, each family in its order (RFC 8305 4)."""
    six = deque(one for one in addresses if ":" in one)
    four = deque(one for one in addresses if ":" not in one)
    ordered: list[str] = []
    while six or four:
        for family in (six, four):
            if family:
                ordered.append(family.popleft())
    return ordered


def dial(addresses: Sequence[str], port: int, seconds: float, sources: Sources | None = None) -> tuple[Any, str]:
    """(socket, address) of the first address that takes the connection. Raises ConnectionLost or DeadlineExceeded."""
    sources = sources or Sources()
    if len(addresses) == 1:
        return _connect(addresses[0], port, seconds, sources), addresses[0]
    deadline = time.monotonic() + seconds
    results: Queue[tuple[Any, str, Exception | None]] = Queue()
    racers, waiting, running = Group(), deque(in_turn(addresses)), 0
    failure: Exception = ConnectionLost("no address to connect to")

    def race(address: str) -> None:
        try:
            results.put((_connect(address, port, deadline - time.monotonic(), sources), address, None))
        except (ConnectionLost, DeadlineExceeded) as failed:
            results.put((None, address, failed))

    try:
        while waiting or running:
            if waiting:
                racers.spawn(race, waiting.popleft())
                running += 1
            left = deadline - time.monotonic()
            try:
                sock, address, failed = results.get(timeout=min(STAGGER_SECONDS, left) if waiting else left + 1)
            except Empty:
                if left <= 0:
                    break
                continue
            running -= 1
            if sock is not None:
                return sock, address
            failure = failed or failure
        raise failure
    finally:
        racers.kill()
        while not results.empty():
            late, _, _ = results.get()
            if late is not None:
                late.close()


def _connect(address: str, port: int, seconds: float, sources: Sources) -> Any:
    """A connected socket; it is closed again if anything, even the end of the greenlet, comes between."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    source = sources.v6 if family == socket.AF_INET6 else sources.v4
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as failed:
        raise ConnectionLost(str(failed)) from None
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if source:
            sock.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
            sock.bind((source, 0))
        sock.settimeout(max(0.001, seconds))
        sock.connect((address, port))
        return sock
    except TimeoutError:
        sock.close()
        raise DeadlineExceeded("no answer to the connection") from None
    except OSError as failed:
        sock.close()
        raise ConnectionLost(failed.strerror or str(failed)) from None
    except BaseException:
        sock.close()
        raise


def is_own(address: str) -> bool:
    """Whether an IP address is one of this machine: a socket can be bound to it."""
    try:
        if ipaddress.ip_address(address).is_unspecified:
            return True
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
        return True
    except (OSError, ValueError):
        return False


def is_usable(address: str) -> bool:
    """Whether a connection to it can mean anything."""
    ip = ipaddress.ip_address(address)
    return not (ip.is_multicast or ip.is_unspecified or address == "255.255.255.255")


class Keepable(Protocol):
    """What can wait in a Shelf."""

    @property
    def usable(self) -> bool: ...

    def close(self) -> None: ...


K = TypeVar("K", bound=Keepable)


class Shelf(Generic[K]):
    """Connections that may be used again soon, by what they lead to; each at most `seconds`, `most` in all."""

    def __init__(
        self, seconds: float, most: int, *, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._seconds, self._most, self._clock = seconds, most, clock
        self._kept: dict[Any, list[tuple[float, K]]] = {}
        self._count = 0
        self._sweeper: gevent.Greenlet | None = None

    def __len__(self) -> int:
        return self._count

    def put(self, key: Any, connection: K) -> None:
        if self._count >= self._most or not self._seconds:
            connection.close()
            return
        self._kept.setdefault(key, []).append((self._clock() + self._seconds, connection))
        self._count += 1
        if self._sweeper is None or self._sweeper.dead:
            self._sweeper = gevent.spawn(self._sweep)

    def take(self, key: Any) -> K | None:
        """The one put there last that still stands."""
        kept = self._kept.get(key)
        while kept:
            _, connection = kept.pop()
            self._count -= 1
            if not kept:
                del self._kept[key]
            if connection.usable:
                return connection
            connection.close()
        return None

    def _sweep(self) -> None:
        while self._count:
            gevent.sleep(self._seconds / 2)
            now = self._clock()
            for key in list(self._kept):
                kept = self._kept.get(key, [])
                old = [one for until, one in kept if until <= now]
                kept[:] = [pair for pair in kept if pair[0] > now]
                if not kept:
                    self._kept.pop(key, None)
                self._count -= len(old)
                for connection in old:
                    connection.close()

    def close(self) -> None:
        if self._sweeper is not None:
            self._sweeper.kill()
        for kept in self._kept.values():
            for _, connection in kept:
                connection.close()
        self._kept.clear()
        self._count = 0
