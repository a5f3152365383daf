"""How much work goes on in threads at once: few threads hold each other up less than many.

All Python threads share one interpreter lock, so more of them at work do not make work faster; each waits longer for
its turn, and so does the event loop, on which everybody's news depends. What more threads do hide is the disk's
latency.

Imports: store.files, gevent.event.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from gevent.event import Event

from mailsrv.store.files import sync_seconds

PATIENCE_SECONDS = 0.1
LEAST_WRITERS, MOST_WRITERS = 2, 16
WRITER_SECONDS = 0.0015  # about, besides its syncs


def writers_at_once() -> int:
    """As many as hide the disk's latency: two where a sync takes a fraction of a millisecond, more on slower disks."""
    return min(MOST_WRITERS, LEAST_WRITERS + int(sync_seconds() / WRITER_SECONDS))


class Gate:
    """`with gate:` waits, first come first served, until fewer than `width()` are inside.

    When nobody has left for PATIENCE_SECONDS, one more is let in: work that hangs (a disk, a lock that another process
    holds) does not hold up everything else.
    """

    def __init__(self, width: Callable[[], int]) -> None:
        self._width = width
        self._inside = 0
        self._moved_at = 0.0
        self._waiting: deque[Event] = deque()

    def __enter__(self) -> None:
        if self._inside < self._width() and not self._waiting:
            self._inside += 1
            return
        turn = Event()
        self._waiting.append(turn)
        try:
            while not turn.wait(PATIENCE_SECONDS):
                if time.monotonic() - self._moved_at > PATIENCE_SECONDS:
                    self._admit()
        except BaseException:
            if turn.is_set():
                self._leave()
            else:
                self._waiting.remove(turn)
            raise

    def __exit__(self, *_: object) -> None:
        self._leave()

    def _admit(self) -> None:
        """The one who has waited longest goes in."""
        self._inside += 1
        self._moved_at = time.monotonic()
        self._waiting.popleft().set()

    def _leave(self) -> None:
        self._inside -= 1
        self._moved_at = time.monotonic()
        while self._waiting and self._inside < self._width():
            self._admit()
