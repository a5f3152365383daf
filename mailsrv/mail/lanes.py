"""How many attempts go on at once: per destination as many as it bears, and no more than a bound in all.

A destination begins with a few, earns more by taking mail and loses half by trouble with the connection. One that fails
several times in a row is left alone for a while, longer each time; then a single attempt asks whether it is back. So a
destination that hangs keeps a few attempts busy and nobody else's, and one that comes back is not run over.

Imports: values.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from mailsrv.values import Disposition, Outcome

T = TypeVar("T")

FIRST_AT_ONCE = 4.0
TROUBLES = 3  # in a row, until a destination is left alone
REST_SECONDS, MOST_REST_SECONDS = 60.0, 900.0
KEPT_IDLE = 2000


@dataclass(slots=True)
class Lane(Generic[T]):
    """One destination: what waits for it, and how it has been doing."""

    name: str
    waiting: deque[T] = field(default_factory=deque)
    busy: int = 0
    width: float = FIRST_AT_ONCE
    troubles: int = 0
    rest: float = REST_SECONDS
    rested_at: float = 0.0  # when the last rest began
    resting_until: float = 0.0
    last: Outcome | None = None  # the trouble it rests from
    ready: bool = False  # listed among those that may be given a turn

    @property
    def idle(self) -> bool:
        return not self.busy and not self.waiting


def is_trouble(outcomes: Sequence[Outcome]) -> bool:
    """Whether the destination as a whole did not work: no reply, or one that ends the connection (RFC 5321 3.8)."""
    return bool(outcomes) and all(
        outcome.disposition is Disposition.LATER and outcome.code in (0, 421) for outcome in outcomes
    )


class Lanes(Generic[T]):
    def __init__(self, most: int, most_each: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._most_each, self._clock = most, most_each, clock
        self._lanes: dict[str, Lane[T]] = {}
        self._ready: deque[Lane[T]] = deque()
        self.busy = 0

    def lanes(self) -> list[Lane[T]]:
        return list(self._lanes.values())

    def add(self, name: str, item: T) -> None:
        lane = self._lanes.get(name)
        if lane is None:
            self._forget_idle()
            lane = self._lanes[name] = Lane(name)
        lane.waiting.append(item)
        self._list(lane)

    def _list(self, lane: Lane[T]) -> None:
        if lane.waiting and not lane.ready:
            lane.ready = True
            self._ready.append(lane)

    def _forget_idle(self) -> None:
        if len(self._lanes) > KEPT_IDLE:
            now = self._clock()
            for name in [name for name, one in self._lanes.items() if one.idle and one.resting_until <= now]:
                del self._lanes[name]

    def take(self) -> tuple[Lane[T], T] | None:
        """The next item whose turn it is, destinations in turn; None while there is none. `done` must follow."""
        for _ in range(len(self._ready)):
            if self.busy >= self._most:
                return None
            lane = self._ready.popleft()
            if lane.busy >= self._allowed(lane):
                lane.ready = False  # listed again when one of its attempts ends
                continue
            item = lane.waiting.popleft()
            lane.ready = False
            lane.busy += 1
            self.busy += 1
            self._list(lane)
            return lane, item
        return None

    def _allowed(self, lane: Lane[T]) -> int:
        if self.is_resting(lane):
            return int(FIRST_AT_ONCE)  # nothing is tried: what waits is put off
        if lane.troubles >= TROUBLES:
            return 1  # is it back?
        # Nobody takes all of what is left: somebody with a single message may come along.
        return max(1, min(int(lane.width), (self._most - self.busy + 1) // 2))

    def is_resting(self, lane: Lane[T]) -> bool:
        return lane.resting_until > self._clock()

    def rest_left(self, lane: Lane[T]) -> float:
        return max(0.0, lane.resting_until - self._clock())

    def end_rest(self, name: str, asked_ago: float) -> None:
        """Somebody who should know asked so many seconds ago that the destination be tried: a rest that had begun by
        then is over. One that began later stands, so that one word for ten thousand messages is one attempt.
        """
        lane = self._lanes.get(name)
        if lane is not None and self.is_resting(lane) and lane.rested_at <= self._clock() - asked_ago:
            lane.resting_until, lane.rest = 0.0, REST_SECONDS

    def done(self, lane: Lane[T], outcomes: Sequence[Outcome]) -> None:
        """An attempt ended; without outcomes, nothing was learnt."""
        lane.busy -= 1
        self.busy -= 1
        if is_trouble(outcomes):
            lane.width = max(1.0, lane.width / 2)
            lane.troubles += 1
            if lane.troubles >= TROUBLES and not self.is_resting(lane):
                lane.rested_at = self._clock()
                lane.resting_until = lane.rested_at + lane.rest
                lane.rest = min(lane.rest * 2, MOST_REST_SECONDS)
                lane.last = outcomes[-1]
        elif outcomes:
            lane.troubles, lane.rest, lane.last = 0, REST_SECONDS, None
            lane.width = min(float(self._most_each), lane.width + 1 / max(1.0, lane.width) + 0.5)
        self._list(lane)
