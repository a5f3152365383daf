"""How soon local mail is pushed: with nothing else to do, while mail is accepted and leaves, while a queue empties."""

from __future__ import annotations

import argparse
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from outward.clients import Client, submission
from outward.common import percentile, until
from outward.servers import WATCHERS, Mailsrv, Postfix, cpu_seconds
from outward.world import World

QUIET = "with nothing else to do"
PROBES_AT_REST = 200
PAUSES = 0.005, 0.045  # from a push to the next message, evenly spread
SETTLED = 0.05  # processor seconds of a second that count as rest

Push = tuple[float, float]  # milliseconds from 250, and from the end of data, to EXISTS


class Probe:
    """Sends messages to a mailbox here, one after the other, and sees them come at an idling client."""

    def __init__(self, server: Mailsrv, number: int) -> None:
        self._address = f"u{number}@bench.test".encode()
        self._smtp = Client(server.smtp, tls=False)
        self._imap = socket.create_connection(("127.0.0.1", server.imap), timeout=30)
        self._imap.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._lines = self._imap.makefile("rb")
        self._lines.readline()
        for text in (b'a LOGIN %b "password %d"' % (self._address, number), b"a SELECT INBOX"):
            self._imap.sendall(text + b"\r\n")
            while not self._lines.readline().startswith(b"a OK"):
                pass
        self._imap.sendall(b"a IDLE\r\n")
        self._lines.readline()
        self._imap.settimeout(None)  # another one may have its turn for long
        self._seen = 0
        self._times: dict[int, float] = {}
        self._arrived = threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in self._lines:
            if line.endswith(b"EXISTS\r\n"):
                with self._arrived:
                    self._seen = int(line.split()[1])
                    self._times[self._seen] = time.monotonic()
                    self._arrived.notify()

    def once(self) -> Push:
        """A push that comes before the 250 took no time after it."""
        with self._arrived:
            count = self._seen + 1
        sent = self._smtp.send(self._address, count)
        answered = time.monotonic()
        with self._arrived:
            if not self._arrived.wait_for(lambda: count in self._times, 30):
                raise SystemExit("no EXISTS within 30 s")
        told = self._times.pop(count)
        return max(0.0, told - answered) * 1e3, (told - sent) * 1e3


def probed(probes: list[Probe], goes_on: Callable[[int], bool]) -> list[Push]:
    """What the probes, in turn, measure while it goes on."""
    found: list[Push] = []
    while goes_on(len(found)):
        found.append(probes[len(found) % len(probes)].once())
        time.sleep(random.uniform(*PAUSES))
    return found


# ------------------------------------------------------------------ what goes on meanwhile


def while_sending(probes: list[Probe], server: Any, world: World, messages: int) -> list[Push]:
    """While it accepts messages as fast as it can and sends them."""
    world.begin()
    with submission(server, messages) as begin:
        time.sleep(1)
        accepted = begin()
        end = time.monotonic() + 60 + messages / 20
        found = probed(probes, lambda count: world.received() < messages and time.monotonic() < end)
        accepted()
    until(lambda: world.received() >= messages, "the messages arrive")
    until(lambda: not server.waiting(), f"the queue of {server.name} is empty")
    return found


def fill(server: Any, world: World, messages: int) -> None:
    """As when the line to the world is down: everything is accepted, tried in vain, and waits."""
    world.end()
    with submission(server, messages) as begin:
        begin()()
    until(lambda: server.waiting() >= messages, f"the queue of {server.name} is full")
    until(lambda: at_rest(server), f"{server.name} has tried what it wants to", pause=0.1)
    if server.waiting() != messages:
        raise SystemExit(f"{server.waiting()} of {messages} messages wait in {server.name}")


def at_rest(server: Any) -> bool:
    before = cpu_seconds(server.pid)
    time.sleep(1)
    return cpu_seconds(server.pid) - before < SETTLED


def while_emptying(probes: list[Probe], server: Any, world: World, messages: int) -> list[Push]:
    """While it sends what waits, all of it, and accepts nothing but what the probes send."""
    cpu, begun = cpu_seconds(server.pid), time.monotonic()
    server.flush()
    asked = time.monotonic()
    end = asked + 60 + messages / 20
    found = probed(probes, lambda count: world.received() < messages and time.monotonic() < end)
    seconds = time.monotonic() - asked
    until(lambda: world.received() >= messages, "the messages arrive")
    until(lambda: not server.waiting(), f"the queue of {server.name} is empty")
    cpu = cpu_seconds(server.pid) - cpu
    print(f"  {server.name} sent {messages} in {seconds:.1f} s, after {asked - begun:.1f} s of asking, "
          f"{messages / seconds:.0f}/s, {cpu / messages * 1e3:.2f} ms CPU each", flush=True)  # fmt: skip
    return found


# ------------------------------------------------------------------ the two measurements


@contextmanager
def together(
    directory: str, world: World, certificate: tuple[str, str], args: argparse.Namespace
) -> Iterator[tuple[list[Any], list[Probe]]]:
    """The servers, ours first, and probes of ours that are warm."""
    changes = {} if args.outbox else {"queue__outbox": False}
    servers: list[Any] = [Mailsrv(f"{directory}/mailsrv", world, certificate, **changes)]
    if not args.alone:
        servers.append(Postfix(f"{directory}/postfix", world, certificate))
    with ExitStack() as stack:
        for server in servers:
            server.start()
            stack.callback(server.stop)
        probes = [Probe(servers[0], number) for number in range(1, WATCHERS + 1)]
        probed(probes, lambda count: count < 50)
        yield servers, probes


def push(directory: str, world: World, certificate: tuple[str, str], args: argparse.Namespace) -> None:
    figures: dict[str, list[Push]] = {QUIET: []}
    with together(f"{directory}/push", world, certificate, args) as (servers, probes):
        for number in range(args.rounds):
            for server in servers if number % 2 else reversed(servers):
                figures[QUIET] += probed(probes, lambda count: count < PROBES_AT_REST)
                found = while_sending(probes, server, world, args.messages // args.rounds)
                note(figures, f"while {server.name} accepts and sends", found)
    tell("push", figures)


def emptying(directory: str, world: World, certificate: tuple[str, str], args: argparse.Namespace) -> None:
    figures: dict[str, list[Push]] = {QUIET: []}
    with together(f"{directory}/emptying", world, certificate, args) as (servers, probes):
        for number in range(args.rounds):
            for server in servers if number % 2 else reversed(servers):
                messages = args.messages // args.rounds
                fill(server, world, messages)
                figures[QUIET] += probed(probes, lambda count: count < PROBES_AT_REST)
                world.begin()
                found = while_emptying(probes, server, world, messages)
                note(figures, f"while the queue of {server.name} empties", found)
    tell("emptying", figures)


def note(figures: dict[str, list[Push]], what: str, found: list[Push]) -> None:
    print(f"  {what}: {_told(found)}", flush=True)
    figures.setdefault(what, []).extend(found)


def tell(part: str, figures: dict[str, list[Push]]) -> None:
    for what, pushes in figures.items():
        print(f"{part} {what}: {_told(pushes)} ({len(pushes)} messages)")
    ours, *others = [name for name in sorted(figures) if name != QUIET]  # mailsrv comes before postfix
    for what, than in ((ours, QUIET), *((name, QUIET) for name in others), *((ours, name) for name in others)):
        print(f"{part} {what} / {than}: {_compared(figures[what], figures[than])}")


def _told(pushes: list[Push]) -> str:
    parts = []
    for name, column in zip(("250", "end of data"), zip(*pushes, strict=True), strict=True):
        times = list(column)
        p50, p95, p99 = (percentile(times, share) for share in (0.5, 0.95, 0.99))
        parts.append(f"{name} to EXISTS p50 {p50:.2f} p95 {p95:.2f} p99 {p99:.2f} worst {max(times):.1f} ms")
    return "; ".join(parts)


def _compared(pushes: list[Push], others: list[Push]) -> str:
    parts = []
    for number, name in enumerate(("from 250", "from end of data")):
        ours, theirs = ([one[number] for one in some] for some in (pushes, others))
        shares = ((f"p{share * 100:.0f}", percentile(ours, share), percentile(theirs, share)) for share in (0.5, 0.95))
        parts.append(" ".join([name, *(f"{title} {one / max(1e-3, other):.2f}" for title, one, other in shares)]))
    return "; ".join(parts)
