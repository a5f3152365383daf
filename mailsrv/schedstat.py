"""How long a thread has run, and how long it was ready and the system ran others.

Imports: the standard library.    proc(5), schedstat.
"""

from __future__ import annotations

import os

PATH = "/proc/thread-self/schedstat"


class Schedstat:
    """Of the thread that makes it. Not `told`: a system or kernel that does not say; then all is 0."""

    def __init__(self) -> None:
        self._fd, self.told = -1, False
        try:
            self._fd = os.open(PATH, os.O_RDONLY | os.O_CLOEXEC)
            self.told = self.times() > (0.0, 0.0)
        except OSError:
            pass

    def times(self) -> tuple[float, float]:
        """Seconds in all its life: at work, and ready without running."""
        if self._fd < 0:
            return 0.0, 0.0
        ran, waited, _ = os.pread(self._fd, 100, 0).split()
        return int(ran) / 1e9, int(waited) / 1e9

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
