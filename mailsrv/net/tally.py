"""Counts by key (an address, a user) over all workers, exact in each and never too low between them.

The memory is made before the workers are forked and shared by them. Each worker writes its own part alone, so there
are no locks, and a part is emptied when its worker starts again. Between workers a key's count is read from a sketch
(count-min: some cells for each key, the lowest of them counts), which says too much only when all its cells are shared
with other keys; whose keys share cells depends on a secret. To enter is to count oneself first and look then: of two
that come at the same instant none passes over the limit.

Imports: the standard library.    Cormode and Muthukrishnan, "An improved data stream summary" (2005).
"""

from __future__ import annotations

import mmap
import os
from collections import Counter
from hashlib import blake2b
from struct import Struct

ROWS, COLUMNS = 3, 16_384
_CELL = 4  # octets
_INDEXES = Struct(f"={ROWS}I")


class Shared:
    """What the processes of one server have in common from before they are forked: the cells, and a secret."""

    def __init__(self, workers: int = 1) -> None:
        self.workers = workers
        self.secret = os.urandom(32)
        self._memory = mmap.mmap(-1, workers * ROWS * COLUMNS * _CELL)  # pages that are never touched cost nothing
        self.cells = memoryview(self._memory).cast("I")

    def forget(self, number: int) -> None:
        """A worker begins: whatever its predecessor counted is gone with it."""
        size = ROWS * COLUMNS * _CELL
        if self.workers > 1:
            self._memory[number * size : (number + 1) * size] = bytes(size)


class Tally:
    """The counts of worker `number`, and what it knows of the others'."""

    def __init__(self, shared: Shared, number: int = 0) -> None:
        self._shared, self._number = shared, number
        self.mine: Counter[str] = Counter()
        self.secret = shared.secret
        shared.forget(number)

    def enter(self, key: str, limit: int) -> bool:
        """Count one more for the key, unless there are `limit` already."""
        self.mine[key] += 1
        self._add(key, +1)
        if self.mine[key] > limit or self.count(key) > limit:
            self.leave(key)
            return False
        return True

    def leave(self, key: str) -> None:
        self._add(key, -1)
        self.mine[key] -= 1
        if not self.mine[key]:
            del self.mine[key]

    def count(self, key: str) -> int:
        """Over all workers."""
        total = self.mine[key]
        if self._shared.workers > 1:
            cells, indexes = self._shared.cells, self._indexes(key)
            for other in range(self._shared.workers):
                if other != self._number:
                    start = other * ROWS * COLUMNS
                    total += min(cells[start + index] for index in indexes)
        return total

    def _add(self, key: str, amount: int) -> None:
        if self._shared.workers > 1:
            start = self._number * ROWS * COLUMNS
            for index in self._indexes(key):
                self._shared.cells[start + index] += amount

    def _indexes(self, key: str) -> list[int]:
        digest = blake2b(key.encode(errors="replace"), key=self._shared.secret, digest_size=_INDEXES.size).digest()
        return [row * COLUMNS + value % COLUMNS for row, value in enumerate(_INDEXES.unpack(digest))]
