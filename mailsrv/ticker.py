"""How late the event loop comes back, and why: it was at work, or waited for a processor, or for the interpreter.

A thousand times a second it asks to be woken and looks at the clock. The log has a line each second: how many ticks,
the longest delay with what it was made of, and all delays from a millisecond on. `own_ms` is time this thread ran,
`queued_ms` time it was ready and the system ran others; the rest it waited for the interpreter's lock, which a thread
of ours held.

Imports: log, gevent.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import gevent

from mailsrv import log

TICK_SECONDS = 0.001
NOTED_MS = 1.0


@dataclass(slots=True)
class Delay:
    """How late one tick was, in milliseconds."""

    late: float = 0.0
    own: float = 0.0
    queued: float = 0.0


class Ticker:
    """Measures until it is killed; made in the thread it measures."""

    def __init__(self) -> None:
        try:
            self._schedstat = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # a system without it: no time counts as queued
            self._schedstat = -1

    def run(self) -> None:
        try:
            while True:
                self._second()
        finally:
            if self._schedstat >= 0:
                os.close(self._schedstat)

    def _second(self) -> None:
        until = time.monotonic() + 1
        delays = []
        while time.monotonic() < until:
            delays.append(self._tick())
        longest = max(delays, key=lambda delay: delay.late)
        log.info(
            "hub delay", longest_ms=round(longest.late, 2), own_ms=round(longest.own, 2),
            queued_ms=round(longest.queued, 2), ticks=len(delays),
            late_ms=" ".join(f"{delay.late:.1f}" for delay in delays if delay.late >= NOTED_MS),
        )  # fmt: skip

    def _tick(self) -> Delay:
        ran, queued, before = time.thread_time(), self._queued(), time.monotonic()
        gevent.sleep(TICK_SECONDS)
        late = time.monotonic() - before - TICK_SECONDS
        return Delay(late * 1e3, (time.thread_time() - ran) * 1e3, (self._queued() - queued) * 1e3)

    def _queued(self) -> float:
        """Seconds this thread has been ready without running, in all its life. proc(5), schedstat."""
        return int(os.pread(self._schedstat, 100, 0).split()[1]) / 1e9 if self._schedstat >= 0 else 0.0
