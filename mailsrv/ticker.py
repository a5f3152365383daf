"""How late the event loop comes back, and why: it was at work, or waited for a processor, or for the interpreter.

A thousand times a second it asks to be woken and looks at the clock. The log has a line each second: how many ticks,
the longest delay with what it was made of, and all delays from a millisecond on. `own_ms` is time this thread ran,
`queued_ms` time it was ready and the system ran others; the rest it waited for the interpreter's lock, which a thread
of ours held.

Imports: schedstat, log, gevent.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import gevent

from mailsrv import log
from mailsrv.schedstat import Schedstat

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
        self._schedstat = Schedstat()  # where it does not tell, no time counts as queued

    def run(self) -> None:
        try:
            while True:
                self._second()
        finally:
            self._schedstat.close()

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
        ran, queued, before = time.thread_time(), self._schedstat.times()[1], time.monotonic()
        gevent.sleep(TICK_SECONDS)
        late = time.monotonic() - before - TICK_SECONDS
        return Delay(late * 1e3, (time.thread_time() - ran) * 1e3, (self._schedstat.times()[1] - queued) * 1e3)
