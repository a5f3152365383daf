"""Work for a thread that comes in while threads are busy goes together, in one task.

The first to come works for all who came with it; who comes while it works waits and goes with the next lot. Nobody ever
waits for company, and under load the cost of changing threads is paid once for each lot. Everybody has an outcome of
its own.

Imports: errors, gevent.event.    docs/decisions/0035-deliveries-go-together.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from gevent.event import Event

from mailsrv.errors import TemporaryFailure

MOST_TOGETHER = 16
T = TypeVar("T")
R = TypeVar("R")


class _Turn(Generic[T, R]):
    """One item's wait: for its outcome, or for being the one to work for the next lot."""

    __slots__ = ("item", "outcome", "taken", "woken")

    def __init__(self, item: T) -> None:
        self.item = item
        self.outcome: tuple[R] | Exception | None = None
        self.taken = False  # into a lot, whose end brings the outcome
        self.woken = Event()


class Together(Generic[T, R]):
    """`work` does a lot, blocking its greenlet alone, and gives the results in the order of the items, an exception for
    what failed. At most `at_once()` lots are worked for at the same time.
    """

    def __init__(self, work: Callable[[Sequence[T]], Sequence[R | Exception]], at_once: Callable[[], int]) -> None:
        self._work_for, self._at_once = work, at_once
        self._waiting: deque[_Turn[T, R]] = deque()
        self._working = 0

    def __call__(self, item: T) -> R:
        """The result for the item; raises what speaks against it."""
        turn = _Turn[T, R](item)
        self._waiting.append(turn)
        while turn.outcome is None:
            if turn.taken or self._working >= self._at_once():
                self._wait(turn)
            else:
                self._work()
        if isinstance(turn.outcome, Exception):
            raise turn.outcome
        return turn.outcome[0]

    def _wait(self, turn: _Turn[T, R]) -> None:
        if not turn.taken:
            turn.woken.clear()
        try:
            turn.woken.wait()  # ends with a lot before: every piece of file work does
        except BaseException:
            if not turn.taken:
                self._waiting.remove(turn)
                self._hand_on()
            raise

    def _work(self) -> None:
        """For the lot that has come until now."""
        lot = [self._waiting.popleft() for _ in range(min(MOST_TOGETHER, len(self._waiting)))]
        for turn in lot:
            turn.taken = True
            turn.woken.clear()
        results: Sequence[R | Exception] = []
        self._working += 1
        try:
            results = self._work_for([turn.item for turn in lot])
        finally:
            self._working -= 1
            if not results:  # this greenlet was ended, or it is our bug: the others may try again
                results = [TemporaryFailure("The work was interrupted")] * len(lot)
            for turn, result in zip(lot, results, strict=True):
                turn.outcome = result if isinstance(result, Exception) else (result,)
                turn.woken.set()
            self._hand_on()

    def _hand_on(self) -> None:
        """The one who has waited longest works for the next lot."""
        if self._waiting and self._working < self._at_once():
            self._waiting[0].woken.set()
