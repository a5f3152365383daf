"""How fast mail leaves, beside Postfix; and when one of a hundred destinations hangs."""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

from outward.clients import submission
from outward.common import until
from outward.servers import Mailsrv, Postfix, cpu_seconds
from outward.world import World


def one_round(server: Any, world: World, messages: int) -> tuple[float, float, float]:
    """(messages/s until the sinks have all, seconds until all are accepted, CPU milliseconds of each)."""
    world.begin()
    server.start()
    try:
        with submission(server, messages) as begin:
            time.sleep(1)  # what the start left to do
            cpu, begun = cpu_seconds(server.pid), time.monotonic()
            accepted = begin()
            until(lambda: world.received() >= messages, f"{server.name} delivers", 60 + messages / 20, 0.01)
            seconds = time.monotonic() - begun
            submitting = accepted()
        until(lambda: not server.waiting(), f"the queue of {server.name} is empty")
        cpu = cpu_seconds(server.pid) - cpu
        time.sleep(0.5)
        if world.received() != messages:
            raise SystemExit(f"{server.name}: {world.received()} messages arrived, {messages} were sent")
        return messages / seconds, submitting, cpu / messages * 1e3
    finally:
        server.stop()


def rate(directory: str, world: World, certificate: tuple[str, str], args: argparse.Namespace) -> None:
    ours = Mailsrv(f"{directory}/mailsrv", world, certificate)
    if args.sign:
        ours.command("dkim", "generate", "bench.test")
    servers = [ours, *([] if args.alone else [Postfix(f"{directory}/postfix", world, certificate)])]
    figures: dict[str, list[tuple[float, float, float]]] = {server.name: [] for server in servers}
    for number in range(args.rounds):
        for server in servers if number % 2 else reversed(servers):
            figures[server.name].append(one_round(server, world, args.messages))
            speed, submitting, cpu = figures[server.name][-1]
            print(
                f"  {server.name}: {speed:.0f}/s, accepted after {submitting:.1f} s, {cpu:.2f} ms CPU each", flush=True
            )
    medians = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in figures.items()
    }
    for name, (speed, submitting, cpu) in medians.items():
        print(f"rate {name}: {speed:.0f} messages/s, all accepted after {submitting:.1f} s, {cpu:.2f} ms CPU each "
              f"({args.messages} messages, median of {args.rounds})")  # fmt: skip
    if not args.alone:
        print(f"rate mailsrv / postfix: {medians['mailsrv'][0] / medians['postfix'][0]:.2f}, "
              f"CPU {medians['mailsrv'][2] / medians['postfix'][2]:.2f}")  # fmt: skip


def hang(directory: str, world: World, certificate: tuple[str, str], args: argparse.Namespace) -> None:
    for number, hanging in enumerate((False, True) * args.rounds):
        ours = Mailsrv(f"{directory}/hang-{number}", world, certificate)
        world.begin()
        ours.start()
        try:
            arriving = args.messages - args.messages // 100 * hanging
            with submission(ours, args.messages, hanging=hanging) as begin:
                begun = time.monotonic()
                accepted = begin()
                until(
                    lambda n=arriving: world.received() >= n, "the others' mail arrives", 60 + args.messages / 20, 0.01
                )
                seconds = time.monotonic() - begun
                accepted()
            print(f"hang: {'one of the 100 domains hangs' if hanging else 'all 100 domains answer'}: "
                  f"{arriving / seconds:.0f} messages/s to those that answer")  # fmt: skip
        finally:
            ours.process.kill() if ours.process else None
            ours.stop()
