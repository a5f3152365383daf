"""Sessions that accept mail give way while somebody is about to be told of a change.

Who has a command or a message to work on asks for a turn first. Nobody waits for one unless a mailbox changed a moment
ago that is watched here; then turns are had one at a time, each after all who were woken before it, and after another
look at the sockets. Between two turns lies whatever a push needs: a result of a thread, an Event, a datagram.

Imports: gevent.    docs/decisions/0044-pushes-go-first.md.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from gevent.hub import Waiter, get_hub

DUE_SECONDS = 0.002  # from the change on: by then most watchers have been told
STEPS = 2  # a result wakes who publishes, and an Event of theirs who watches


class Turns:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due_until = 0.0
        self._waiting: deque[Any] = deque()
        self._loop: Any = None
        self._timer: Any = None
        self._going_on = False
        self._steps = 0
        self.listen: Callable[[], None] = lambda: None  # hears at once what other processes have told of, if anything

    def news(self) -> None:
        """Somebody here is about to be told of a change."""
        self._due_until = self._clock() + DUE_SECONDS

    def take(self) -> None:
        """Returns at once unless somebody is about to be told."""
        self.listen()
        if self._waiting or self._clock() < self._due_until:
            self._wait(get_hub().loop)

    def _wait(self, loop: Any) -> None:
        if loop is not self._loop:
            self._loop, self._timer, self._going_on = loop, loop.timer(0.0, priority=-1), False
        turn = Waiter()
        self._waiting.append(turn)
        if not self._going_on:
            self._going_on = True
            self._look()
        try:
            turn.get()
        except BaseException:
            if turn in self._waiting:
                self._waiting.remove(turn)
            raise

    def _look(self) -> None:
        """A timer that is due at once, and comes after the sockets that the loop looks at before it."""
        self._timer.start(self._looked, update=False)

    def _looked(self) -> None:
        self._steps = STEPS
        self._loop.run_callback(self._step)

    def _step(self) -> None:
        """Runs in the hub, behind everybody who was woken before it was called for."""
        if self._steps:
            self._steps -= 1
            self._loop.run_callback(self._step)
        elif self._clock() >= self._due_until:
            self._going_on = False
            while self._waiting:
                self._loop.run_callback(self._waiting.popleft().switch, None)
        elif self._waiting:
            self._look()
            self._waiting.popleft().switch(None)
        else:
            self._going_on = False
