"""Messages that arrive in one mailbox at the same time go in together: one commit, one sync of the directory.

The first to come works for all who came with it; who comes while it works waits and goes with the next lot. An idle
mailbox never waits for company, a busy one pays its fixed costs once for each lot. Every message has an outcome of
its own, and all who share a lot are told in the order of their UIDs.

Imports: errors, store, values, gevent.event.    docs/decisions/0035-deliveries-go-together.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gevent.event import Event

from mailsrv.errors import MailError, TemporaryFailure
from mailsrv.store.account import Arrival
from mailsrv.values import Appended

MOST_TOGETHER = 16
AppendAll = Callable[[int, Sequence[Arrival]], list[Appended | MailError]]


class _Turn:
    """One message's wait: for its outcome, or for being the one to work for the next lot."""

    __slots__ = ("arrival", "outcome", "woken")

    def __init__(self, arrival: Arrival) -> None:
        self.arrival = arrival
        self.outcome: Appended | BaseException | None = None
        self.woken = Event()


class Deliveries:
    """The messages arriving in the mailboxes of one account. `append_all` blocks until a lot is durable."""

    __slots__ = ("_append_all", "_waiting")

    def __init__(self, append_all: AppendAll) -> None:
        self._append_all = append_all
        self._waiting: dict[int, list[_Turn]] = {}  # by mailbox number; there while somebody works for it

    def deliver(self, number: int, arrival: Arrival) -> Appended:
        """Durable in the mailbox when this returns; raises what speaks against this message."""
        turn = _Turn(arrival)
        waiting = self._waiting.get(number)
        if waiting is None:
            self._waiting[number] = [turn]
        else:
            waiting.append(turn)
            self._wait(number, turn)
        if turn.outcome is None:
            self._work(number)
        if isinstance(turn.outcome, BaseException):
            raise turn.outcome
        assert turn.outcome is not None  # _work gives every turn of its lot an outcome
        return turn.outcome

    def _wait(self, number: int, turn: _Turn) -> None:
        try:
            turn.woken.wait()  # ends with the lot before: every piece of file work does
        except BaseException:
            waiting = self._waiting.get(number, [])
            if turn in waiting:
                waiting.remove(turn)
            if turn.woken.is_set() and turn.outcome is None:
                self._hand_on(number)
            raise

    def _work(self, number: int) -> None:
        """For the lot that has come until now, this greenlet's own message among it."""
        lot = self._waiting[number][:MOST_TOGETHER]
        del self._waiting[number][:MOST_TOGETHER]
        outcomes: Sequence[Appended | BaseException] = []
        try:
            outcomes = self._append_all(number, [turn.arrival for turn in lot])
        except MailError as failure:
            outcomes = [failure] * len(lot)
        finally:
            if not outcomes:  # this greenlet was ended, or it is our bug: the others may try again
                outcomes = [TemporaryFailure("The delivery was interrupted")] * len(lot)
            # No switch here: the greenlets run in the order they are woken in, and announce in that order.
            for turn, outcome in zip(lot, outcomes, strict=True):
                turn.outcome = outcome
                turn.woken.set()
            self._hand_on(number)

    def _hand_on(self, number: int) -> None:
        """The one who has waited longest works for the next lot."""
        if self._waiting[number]:
            self._waiting[number][0].woken.set()
        else:
            del self._waiting[number]
