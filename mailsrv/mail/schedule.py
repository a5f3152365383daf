"""When the queue does what, and what it counts.

Imports: the standard library.    RFC 5321 4.5.4.1.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

SLACK_SECONDS = 5.0  # recipients due this soon go with those that are due
AGAIN_SECONDS = 60.0  # after the disk failed


@dataclass(frozen=True, slots=True)
class Schedule:
    """When is the next attempt, when is the sender told that it takes long, when is it given up. Seconds."""

    retry: tuple[float, ...] = (300.0, 900.0, 1800.0, 3600.0, 7200.0, 14400.0)
    expire: float = 5 * 86400.0
    notice: float = 4 * 3600.0  # 0: never
    jitter: float = 0.1

    def pause(self, attempts: int) -> float:
        """After that many attempts; the last pause is repeated."""
        step = self.retry[min(max(attempts, 1), len(self.retry)) - 1]
        return step * random.uniform(1 - self.jitter, 1 + self.jitter)


@dataclass(slots=True)
class Counters:
    """Since the start: recipients by what became of them, and what else happened. For whoever wants to show them."""

    attempts: int = 0
    sent: int = 0
    deferred: int = 0
    failed: int = 0
    expired: int = 0
    cancelled: int = 0
    bounces: int = 0
    notices: int = 0
    damaged: int = 0
    ended: int = 0
