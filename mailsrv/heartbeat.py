"""Signs of life of child processes, in memory that they share with their parent.

Imports: the standard library.
"""

from __future__ import annotations

import mmap
import struct
import time

_STAMP = struct.Struct("=d")  # eight aligned octets: written and read whole


class Heartbeats:
    """One time stamp (monotonic clock, the same in all processes) for each of `seats` children."""

    def __init__(self, seats: int) -> None:
        self._memory = mmap.mmap(-1, max(1, seats) * _STAMP.size)

    def beat(self, seat: int) -> None:
        _STAMP.pack_into(self._memory, seat * _STAMP.size, time.monotonic())

    def clear(self, seat: int) -> None:
        _STAMP.pack_into(self._memory, seat * _STAMP.size, 0.0)

    def last(self, seat: int) -> float:
        """When it beat last; 0 if it has not yet."""
        stamp: float = _STAMP.unpack_from(self._memory, seat * _STAMP.size)[0]
        return stamp
