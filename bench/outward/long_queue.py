"""What a hundred thousand waiting messages cost."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from outward.clients import BODY
from outward.common import DOMAINS, until
from outward.servers import Mailsrv, processes, pss_mib
from outward.world import World


def make_entries(root: str, count: int) -> list[str]:
    """Deferred entries as the queue leaves them, due in some hours; their ids."""
    from mailsrv.store.entry import Entry, Origin, Recipient, Stamp, to_text
    from mailsrv.store.spool import Spool
    from mailsrv.values import Address, Disposition, Envelope, Outcome

    spool, now, text = Spool(root), Stamp.now(), b"From: u0@bench.test\r\nSubject: waits\r\n\r\n" + BODY[:500]
    spool.prepare()
    digest = hashlib.sha256(text).hexdigest()
    accepted = [now.wall - 3600 * (1 - number / count) for number in range(count)]  # over the last hour
    ids = [f"{int(wall * 1e6):014x}{number & 0xFFFF:04x}" for number, wall in enumerate(accepted)]
    for number, id in enumerate(ids):
        address = Address(f"r{number}", DOMAINS[number % 100])
        one = Recipient(address, destination=address.domain, next_at=now.wall + 7200 + number % 3600)
        one.note(Outcome(address, Disposition.LATER, 451, "4.7.1", "Greylisted, come again"), now.wall)
        entry = Entry(
            id, Envelope(Address("u0", "bench.test")), [one], Origin(0, "s", "smtp"), len(text), digest, now.wall
        )
        entry.touch(now)
        os.makedirs(f"{root}/{id[7:9]}", exist_ok=True)
        with open(spool.message_path(id), "wb") as file:
            file.write(text)
        with open(spool.envelope_path(id), "wb") as file:
            file.write(to_text(entry))
        os.utime(spool.envelope_path(id), (one.next_at, one.next_at))
    return ids


def tracer(pid: int) -> int:
    with open(f"/proc/{pid}/status") as file:
        return int(file.read().partition("TracerPid:")[2].split()[0])


def traced(pid: int, act: Callable[[], Any]) -> Counter[str]:
    """How often the process listed a directory or opened a file while `act` ran and two seconds after."""
    with tempfile.NamedTemporaryFile("r") as out:
        calls = "trace=getdents64,openat,newfstatat,statx"
        strace = subprocess.Popen(
            ["strace", "-f", "-qq", "-e", calls, "-o", out.name, "-p", str(pid)], stderr=subprocess.DEVNULL
        )
        try:
            until(lambda: tracer(pid) == strace.pid, "strace is attached")
            act()
            time.sleep(2)
        finally:
            strace.send_signal(signal.SIGINT)
            strace.wait()
        return Counter(re.findall(r"^\d+ +(\w+)\(", out.read(), re.M))


def queued(directory: str, world: World, certificate: tuple[str, str], args: argparse.Namespace) -> None:
    made = f"{directory}/entries/queue"
    os.makedirs(os.path.dirname(made))
    ids = make_entries(made, args.entries)
    for workers in ("auto", 1):
        ours = Mailsrv(f"{directory}/queue-{workers}", world, certificate, server__workers=workers, hub_delay=True)
        shutil.rmtree(ours.queue, ignore_errors=True)
        os.rename(made, ours.queue)
        world.begin()
        try:
            long_queue(ours, world, workers, ids.pop())
        finally:
            ours.stop()
        os.rename(ours.queue, made)


def long_queue(ours: Mailsrv, world: World, workers: str | int, retried: str) -> None:
    def log() -> str:
        with open(ours.log) as file:
            return file.read()

    began = time.monotonic()
    ours.start()
    serves = time.monotonic() - began
    pattern = re.compile(r" queue-read .*found=(\d+) .*ms=([\d.]+)")
    read = until(lambda: pattern.search(log()), "the runner has read the queue")
    knows = time.monotonic() - began
    time.sleep(3)
    late, own = (max(map(float, re.findall(rf" {name}=([\d.]+)", log()))) for name in ("longest_ms", "own_ms"))
    with open(f"{ours.queue}/lock") as file:
        runner = int(file.read())
    print(f"queue of {read[1]}, workers {workers}: serves after {serves:.2f} s, has read it after {knows:.2f} s "
          f"(in {float(read[2]) / 1e3:.2f} s); event loops at most {late:.0f} ms late, of which they ran {own:.0f}; "
          f"PSS of the runner's process {pss_mib(runner):.0f} MiB, of all {sum(map(pss_mib, processes(ours.pid))):.0f}"
    )  # fmt: skip
    began = time.monotonic()
    lines = ours.command("queue", "list").splitlines()
    print(f"queue list: first page of {len(lines) - 1} in {time.monotonic() - began:.2f} s")
    calls = traced(runner, lambda: ours.command("queue", "retry", retried))
    until(lambda: world.received() == 1, "the retried message arrives", 30)
    told = ", ".join(f"{name} {count}" for name, count in sorted(calls.items()))
    print(f"queue retry of one: {told} in the runner's process, with all else it did in two seconds")
