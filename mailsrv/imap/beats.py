"""Heartbeats of idle sessions: one timer for all of an account, and of many accounts, instead of one for each session.

A thousand timers are half a megabyte, and each news would stop one and start it again.

Imports: gevent.
"""

from __future__ import annotations

import time

import gevent
from gevent.event import Event

APART_SECONDS = 5.0


class Beat:
    """Those that are told at the same time. Sets `event` of each when it is `due`; who acts on it clears both."""

    __slots__ = ("_beats", "_greenlet", "_key", "sessions")

    def __init__(self, beats: Beats, key: tuple[float, float]) -> None:
        self._beats, self._key = beats, key
        self.sessions: dict[Pulse, None] = {}
        self._greenlet: gevent.Greenlet | None = gevent.spawn(self._run)

    def _run(self) -> None:
        period, phase = self._key
        while True:
            gevent.sleep(period - (time.time() - phase) % period or period)
            for pulse in self.sessions:
                pulse.due = True
                pulse.event.set()

    def left(self, pulse: Pulse) -> None:
        del self.sessions[pulse]
        if not self.sessions and self._greenlet is not None:
            # The two hold each other, and a collection that would find them is seldom.
            greenlet, self._greenlet = self._greenlet, None
            greenlet.kill(block=False)
            self._beats.ended(self._key)


class Pulse:
    """One session's part: `event` is set when it is to be told that the server is there, and `due` says so."""

    __slots__ = ("_beat", "due", "event")

    def __init__(self, beat: Beat, event: Event) -> None:
        self._beat, self.event, self.due = beat, event, False
        beat.sessions[self] = None

    def stop(self) -> None:
        self._beat.left(self)


class Beats:
    """All connections of an account are told at one time, so that a phone wakes once for them, and many accounts at
    that same time, so that the server wakes once for all of them.
    """

    def __init__(self) -> None:
        self._beats: dict[tuple[float, float], Beat] = {}

    def join(self, account: int, period: float, event: Event) -> Pulse:
        key = (period, account * APART_SECONDS % period)
        beat = self._beats.get(key)
        if beat is None:
            beat = self._beats[key] = Beat(self, key)
        return Pulse(beat, event)

    def ended(self, key: tuple[float, float]) -> None:
        del self._beats[key]
