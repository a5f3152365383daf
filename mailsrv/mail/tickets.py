"""Passwords verified lately: what one worker has verified, the others need not verify for some minutes.

The memory is made before the workers are forked. It holds tickets: keyed hashes of user, stored hash and password.
Nobody can make or read them without the key, which lives in these processes alone; another password, or another
stored hash, has another ticket. There are no locks: a ticket that two workers write over each other is none, and is
written again.

Imports: the standard library.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import time
from struct import Struct

SECONDS = 300.0
BUCKETS, WAYS = 4096, 4  # a ticket has one bucket; a full one forgets the oldest of its tickets
_SLOT = Struct("=d32s")  # until when (monotonic, the same for all processes), the ticket
_BUCKET = WAYS * _SLOT.size


class Tickets:
    def __init__(self) -> None:
        self._key = os.urandom(32)
        self._memory = mmap.mmap(-1, BUCKETS * _BUCKET)  # pages that are never touched cost nothing

    def make(self, *parts: str) -> bytes:
        text = "\0".join(parts).encode(errors="surrogatepass")
        return hashlib.blake2b(text, key=self._key, digest_size=32).digest()

    def __contains__(self, ticket: bytes) -> bool:
        now = time.monotonic()
        return any(until > now and one == ticket for until, one in self._slots(ticket))

    def add(self, ticket: bytes) -> None:
        slots = self._slots(ticket)
        place = min(range(WAYS), key=lambda way: (slots[way][1] != ticket, slots[way][0]))
        start = self._start(ticket) + place * _SLOT.size
        self._memory[start : start + _SLOT.size] = _SLOT.pack(time.monotonic() + SECONDS, ticket)

    def _slots(self, ticket: bytes) -> list[tuple[float, bytes]]:
        start = self._start(ticket)
        return list(_SLOT.iter_unpack(self._memory[start : start + _BUCKET]))

    @staticmethod
    def _start(ticket: bytes) -> int:
        return int.from_bytes(ticket[:4], "little") % BUCKETS * _BUCKET
