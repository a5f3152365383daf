"""Nobody who waits is forgotten: pushes in bursts and alone, over two workers, and beside another user's slow disk."""

from __future__ import annotations

import random
import smtplib
import socket
import statistics
import subprocess
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
from gevent.pool import Group

from tests.faults import tracing
from tests.faults.context import Context
from tests.faults.ledger import Ledger
from tests.faults.report import Result
from tests.faults.server import DOMAIN, SECONDS, Client, Server

WATCHERS, SENDERS = 16, 6
LATEST_SECONDS = 5.0
SLOW_MICROSECONDS = 300_000


class Watcher:
    """An idling client and how many messages it was told of."""

    def __init__(self, server: Server, user: str, sock: socket.socket | None = None) -> None:
        self._client = Client(server, user, "INBOX", sock)
        self.count, self.at = 0, 0.0
        self._client.idle()
        self._reader = gevent.spawn(self._read)

    def _read(self) -> None:
        while line := self._client.line():
            words = line.split()
            if words[2:3] == [b"EXISTS"]:
                self.count, self.at = int(words[1]), time.monotonic()

    def idle_again(self) -> None:
        """End IDLE and begin anew, without waiting for an answer."""
        self._client.send("IDLE", before=b"DONE\r\n")

    def close(self) -> None:
        self._reader.kill()
        self._client.close()


def told(watchers: list[Watcher], count: int, seconds: float = LATEST_SECONDS) -> bool:
    """Whether all are told of so many messages in time."""
    end = time.monotonic() + seconds
    while any(watcher.count != count for watcher in watchers):
        if time.monotonic() > end:
            return False
        gevent.sleep(0.005)
    return True


def lost(context: Context) -> Result:
    """Bursts of deliveries at once and single ones; after each, everybody who idles must soon know of all of it.

    Nothing follows in the meantime: the next message would tell of those before.
    """
    result = Result("no push is lost")
    server = Server(context.place("pushes"), broken=context.broken, **{"server.workers": 2, "queue.outbox": False})
    try:
        server.start()
        mail = _Mail(context.seed, server)
        for one in [mail.burst, mail.single] * context.of(15, 70, 500):
            one()
            result.counts["bursts" if one == mail.burst else "single messages"] += 1
            if not told(mail.watchers, mail.count):
                known = [watcher.count for watcher in mail.watchers]
                result.wrong.append(f"{mail.count} messages were acknowledged, {known} were announced")
                break
        result.counts["pushes"] = mail.count * WATCHERS
        mail.close()
        result.wrong += server.bugs()
    finally:
        server.close()
    return result


class _Mail:
    """Deliveries to one mailbox and those who watch it, over all workers."""

    def __init__(self, seed: int, server: Server) -> None:
        self._choice, self._ledger = random.Random(f"{seed} bursts"), Ledger(seed, "w")
        self.watchers = [Watcher(server, "ann", sock) for sock in server.spread("imap", WATCHERS)]
        self._senders = [_sender(sock) for sock in server.spread("smtp", SENDERS)]
        self.count = 0
        self._taken = deque([0.01], 16)  # seconds of the latest single deliveries

    def burst(self) -> None:
        """Two or three nearly at once: the last may come while everybody is being told of the others."""
        senders = self._choice.sample(self._senders, self._choice.randint(2, 3))
        _at_once([(self._choice.random() * 0.004, self._send, sender) for sender in senders])

    def single(self) -> None:
        """One, while everybody begins to idle: each at a moment at which it may be committed, as the latest were."""
        moments = [max(0.0, self._choice.choice(self._taken) - self._choice.random() * 0.002) for _ in self.watchers]
        entering = [(moment, one.idle_again) for moment, one in zip(moments, self.watchers, strict=True)]
        self._taken.append(_at_once([(0.0, self._send, self._choice.choice(self._senders)), *entering])[0])

    def _send(self, sender: smtplib.SMTP) -> float:
        """Seconds until it was acknowledged."""
        begun = time.monotonic()
        sender.sendmail("", [f"ann@{DOMAIN}"], self._ledger.message(500)[1])
        self.count += 1
        return time.monotonic() - begun

    def close(self) -> None:
        for one in (*self.watchers, *self._senders):
            one.close()


def _sender(sock: socket.socket) -> smtplib.SMTP:
    """smtplib's client on a connection that is there."""
    client = smtplib.SMTP(local_hostname="load.example")
    client.sock = sock
    code, text = client.getreply()
    assert code == 220, text
    return client


def _at_once(calls: list[tuple[Any, ...]]) -> list[Any]:
    """What the calls return (each given as its delay, the function, arguments), a greenlet for each."""
    started = [gevent.spawn_later(*call) for call in calls]
    gevent.joinall(started, raise_error=True)
    return [one.value for one in started]


def slow(context: Context) -> Result:
    """Syncing ann's mailbox takes long; mail for bo must be at bo's client as soon as it is otherwise."""
    result = Result("slow disk of another user")
    if reason := tracing.available():
        result.left_out = reason
        return result
    ledger = Ledger(context.seed, "s")
    server = Server(context.place("slow"), **{"queue.outbox": False})
    try:
        server.start()
        _pushes(server, ledger, 1)  # makes the mailboxes
        rounds = context.of(10, 40, 200)
        with strace(server, "fsync:delay_enter=1", server.maildir("ann") / "new"):
            usual, usual_rate = _pushes(server, ledger, rounds)
        with strace(server, f"fsync:delay_enter={SLOW_MICROSECONDS}", server.maildir("ann") / "new"):
            slowed, slowed_rate = _pushes(server, ledger, rounds)
        result.counts["pushes"] = 2 * rounds
        result.notes.append(f"median {usual * 1e3:.1f} ms, beside syncs of 300 ms {slowed * 1e3:.1f} ms")
        result.notes.append(f"ann's mail went from {usual_rate:.0f} to {slowed_rate:.0f} a second")
        if slowed_rate > 7:  # two at a time, 0.3 s each
            result.wrong.append("ann's mail was not slow: nothing was tried")
        if slowed > 3 * usual + 0.03:
            result.wrong.append(f"the median push took {slowed * 1e3:.1f} ms instead of {usual * 1e3:.1f} ms")
        result.wrong += server.bugs()
    finally:
        server.close()
    return result


def _pushes(server: Server, ledger: Ledger, rounds: int) -> tuple[float, float]:
    """Median seconds until a message is pushed, for bo, while ann is written to all the time; and ann's messages a
    second.
    """
    busy = Group()
    stop: list[bool] = []
    written: list[bool] = []
    started = time.monotonic()

    def write_to_ann() -> None:
        with smtplib.SMTP("127.0.0.1", server.ports["smtp"], "load.example", timeout=SECONDS) as client:
            while not stop:
                client.sendmail("", [f"ann@{DOMAIN}"], ledger.message(500)[1])
                written.append(True)

    for _ in range(2):
        busy.spawn(write_to_ann)
    watcher = Watcher(server, "bo")
    taken = []
    with smtplib.SMTP("127.0.0.1", server.ports["smtp"], "load.example", timeout=SECONDS) as client:
        before = len(server.files("bo")) if server.maildir("bo").exists() else 0
        for number in range(rounds):
            begun = time.monotonic()
            client.sendmail("", [f"bo@{DOMAIN}"], ledger.message(500)[1])
            assert told([watcher], before + number + 1), "bo was not told"
            taken.append(watcher.at - begun)
            gevent.sleep(0.02)
    stop.append(True)
    busy.join()
    watcher.close()
    return statistics.median(taken), len(written) / (time.monotonic() - started)


@contextmanager
def strace(server: Server, inject: str, *paths: Path, calls: str | None = None) -> Iterator[None]:
    """While inside, the running server's system calls (on those paths) go wrong."""
    assert server.process is not None
    only = [word for path in paths for word in ("-P", str(path))]
    calls = calls or inject.partition(":")[0]
    tracer = subprocess.Popen(
        ["strace", "-f", "-o", "/dev/null", *only, "-e", f"trace={calls}", "-e", f"inject={inject}",
         "-p", str(server.process.pid)],
        stderr=subprocess.PIPE,
    )  # fmt: skip
    assert tracer.stderr is not None
    line = tracer.stderr.readline()
    assert b"attached" in line, line
    try:
        yield
    finally:
        tracer.terminate()  # it lets go of the server
        tracer.stderr.read()
        tracer.stderr.close()
        tracer.wait(SECONDS)
