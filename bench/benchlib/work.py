"""One workload on one target: its sizes, what it measures, and what was wrong.

Names of metrics end in their unit: _ms _s _kb _mb (lower is better), _per_s _mbps (higher is better). A wrong answer
goes to `errors`, and then nothing of the workload counts.
"""

from __future__ import annotations

import os
import random
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from targets.base import Target

from . import gen
from .loop import Loop
from .util import pct

# The first user of each workload, so that they share no mailbox.
U_PUSH, U_FAN, U_STEADY, U_THR, U_BOX, U_LOGIN = 1, 3, 20, 40, 100, 110


class Work:
    def __init__(self, target: Target, sizes: dict[str, Any], seed: int = 1, verbose: bool = True) -> None:
        self.target, self.sizes = target, sizes
        self.rng = random.Random(seed)
        self.metrics: dict[str, float] = {}
        self.samples: dict[str, list[float]] = {}
        self.errors: list[str] = []
        self.verbose = verbose
        self.sent = 0
        self.tag = f"{os.getpid()}.{time.time():.0f}"

    def say(self, *words: object) -> None:
        if self.verbose:
            print("   ", *words, flush=True)

    def check(self, holds: bool, what: str) -> None:
        if not holds:
            self.errors.append(what)
            self.say("WRONG:", what)

    def put(self, name: str, value: float) -> None:
        if value == value:  # a nan is no figure: there was nothing to measure
            self.metrics[name] = value

    def put_ms(self, name: str, seconds: Sequence[float]) -> None:
        for p in (50, 90, 99):
            self.put(f"{name}.p{p}_ms", pct(seconds, p) * 1e3)
        self.put(f"{name}.max_ms", max(seconds) * 1e3 if seconds else float("nan"))
        self.samples[name] = [round(one * 1e3, 4) for one in seconds]

    def mail(self, size: int | None = None) -> bytes:
        self.sent += 1
        return gen.simple(f"{self.tag}.{self.sent}", size or self.sizes["thr_size"])


def spin(loop: Loop, seconds: float) -> None:
    end = time.perf_counter() + seconds
    while (left := end - time.perf_counter()) > 0:
        loop.once(left)


class OutOfTime(Exception):
    """A workload took longer than it may."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise OutOfTime(f"not done after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run(
    target: Target, workload: Callable[[Work], None], sizes: dict[str, Any], seed: int = 1,
    verbose: bool = True, limit_seconds: float = 900,
) -> dict[str, Any]:  # fmt: skip
    """One workload after a restart of its server. Returns metrics, samples, errors and seconds."""
    work = Work(target, sizes, seed, verbose)
    begun = time.time()
    try:
        with time_limit(limit_seconds):
            if target.can_restart:
                target.restart()
            workload(work)
    except Exception as error:  # a broken server must not stop the others
        if verbose and not isinstance(error, OutOfTime):
            traceback.print_exc()
        work.errors.append(f"{type(error).__name__}: {error}")
    return {
        "metrics": work.metrics,
        "samples": work.samples,
        "errors": work.errors,
        "seconds": time.time() - begun,
    }
