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

    __slots__ = ("item", "left", "outcome", "taken", "woken")

    def __init__(self, item: T) -> None:
        self.item = item
        self.outcome: tuple[R] | Exception | None = None
        self.taken = False  # into a lot, whose end brings the outcome
        self.left = False  # its greenlet was ended
        self.woken = Event()


class Together(Generic[T, R]):
    """`work` does a lot, blocking its greenlet alone, and gives the results in the order of the items, an exception for
    what failed. At most `at_once()` lots are worked for at the same time. `again`: what was interrupted may be done
    again; without, it has failed.
    """

    def __init__(
        self, work: Callable[[Sequence[T]], Sequence[R | Exception]], at_once: Callable[[], int], *, again: bool = False
    ) -> None:  # fmt: skip
        self._work_for, self._at_once, self._again = work, at_once, again
        self._waiting: deque[_Turn[T, R]] = deque()
        self._working = 0

    @property
    def idle(self) -> bool:
        """Nobody works or waits."""
        return not self._working and not self._waiting

    def __call__(self, item: T) -> R:
        """The result for the item; raises what speaks against it."""
        turn = _Turn[T, R](item)
        self._waiting.append(turn)
        try:
            while turn.outcome is None:
                if turn.taken or self._working >= self._at_once():
                    if not turn.taken:
                        turn.woken.clear()
                    turn.woken.wait()  # ends with a lot before: every piece of file work does
                else:
                    self._work()
        except BaseException:
            turn.left = True
            if not turn.taken:  # it may have worked for those before it
                self._waiting.remove(turn)
                self._hand_on()
            raise
        if isinstance(turn.outcome, Exception):
            raise turn.outcome
        return turn.outcome[0]

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
            if results or not self._again:
                self._tell(lot, results)
            else:
                self._take_back(lot)
            self._hand_on()

    def _tell(self, lot: Sequence[_Turn[T, R]], results: Sequence[R | Exception]) -> None:
        if not results:  # this greenlet was ended, or it is our bug: the others may try again
            results = [TemporaryFailure("The work was interrupted")] * len(lot)
        for turn, result in zip(lot, results, strict=True):
            turn.outcome = result if isinstance(result, Exception) else (result,)
            turn.woken.set()

    def _take_back(self, lot: Sequence[_Turn[T, R]]) -> None:
        """Whoever is still there waits as before."""
        for turn in reversed([turn for turn in lot if not turn.left]):
            turn.taken = False
            self._waiting.appendleft(turn)

    def _hand_on(self) -> None:
        """The one who has waited longest works for the next lot."""
        if self._waiting and self._working < self._at_once():
            self._waiting[0].woken.set()
