"""Messages of one mailbox on their way to its watchers: who was told when, for the log and the metrics.

A delivery of this process is known from the end of its data on. What another process committed is noticed when the
index is read: its modseq is the time of its commit in microseconds, but where several fell into one.

Imports: mail.notify, counters, log, values, gevent.    docs/monitoring.md.
"""

from __future__ import annotations

import time

import gevent

from mailsrv import counters, log
from mailsrv.mail.notify import Registry
from mailsrv.values import NOBODY, MailboxId

KEPT = 64
SECONDS = 1.0  # that the log waits for watchers who are busy
SESSIONS_NAMED = 5
_FIRST, _LAST = counters.push_seconds.of("first"), counters.push_seconds.of("last")
_PUSHED = counters.delivery_seconds.of("pushed")


class _Push:
    """One commit: when it was accepted (0: not known) and committed, on the monotonic clock, and who was told when."""

    __slots__ = ("accepted_at", "committed_at", "first_at", "last_at", "modseq", "sessions", "told", "uid", "watchers")

    def __init__(self, modseq: int, uid: int, accepted_at: float, committed_at: float, watchers: int) -> None:
        self.modseq, self.uid, self.accepted_at, self.committed_at = modseq, uid, accepted_at, committed_at
        self.watchers = watchers
        self.told = 0
        self.first_at = self.last_at = 0.0
        self.sessions: list[str] = []


class Pushes:
    __slots__ = ("_mailbox", "_name", "_registry", "_timed", "_waiting")

    def __init__(self, mailbox: MailboxId, name: str, registry: Registry) -> None:
        self._mailbox, self._name, self._registry = mailbox, name, registry
        self._waiting: dict[int, _Push] = {}  # by modseq, in the order of the commits
        self._timed = False  # somebody will look at what waits too long

    def committed(self, modseq: int, uid: int, committed_at: float, accepted_at: float) -> None:
        """This process committed a message."""
        watchers = self._registry.watchers(self._mailbox)
        if not watchers:
            return
        if not self._timed:
            self._timed = True
            gevent.spawn_later(SECONDS, self._report_rest)
        self._waiting[modseq] = _Push(modseq, uid, accepted_at, committed_at, watchers)
        if len(self._waiting) > KEPT:
            self._report(self._waiting.pop(next(iter(self._waiting))))

    def noticed(self, modseq: int, uid: int) -> None:
        """A message is there that somebody committed, perhaps this process and already known."""
        age = time.time() - modseq / 1e6
        if modseq not in self._waiting and 0 <= age < SECONDS:
            self.committed(modseq, uid, time.monotonic() - age, 0.0)

    def told(self, modseq: int, session: str) -> None:
        """A session wrote everything up to `modseq` to its client."""
        if not self._waiting:
            return
        now = time.monotonic()
        watchers = self._registry.watchers(self._mailbox)
        for push in [push for push in self._waiting.values() if push.modseq <= modseq]:
            push.told += 1
            push.first_at = push.first_at or now
            push.last_at = now
            if len(push.sessions) < SESSIONS_NAMED:
                push.sessions.append(session)
            if push.told >= min(push.watchers, watchers):
                del self._waiting[push.modseq]
                self._report(push)

    def _report_rest(self) -> None:
        """Sessions that are busy, or do not idle, are told when they next ask: the log does not wait for them."""
        now = time.monotonic()
        for push in [push for push in self._waiting.values() if now - push.committed_at >= SECONDS]:
            del self._waiting[push.modseq]
            self._report(push)
        self._timed = bool(self._waiting)
        if self._timed:
            first = next(iter(self._waiting.values()))
            gevent.spawn_later(max(0.0, first.committed_at + SECONDS - now), self._report_rest)

    def _report(self, push: _Push) -> None:
        if not push.told or self._mailbox.account == NOBODY:
            return
        first, last = push.first_at - push.committed_at, push.last_at - push.committed_at
        since_accepted = push.first_at - push.accepted_at if push.accepted_at else None
        log.info(
            "pushed", mailbox=str(self._mailbox), name=self._name, uid=push.uid, watchers=push.told,
            first_ms=first * 1e3, last_ms=last * 1e3,
            since_accepted_ms=None if since_accepted is None else since_accepted * 1e3,
            sessions=" ".join(push.sessions),
        )  # fmt: skip
        _FIRST.observe(first)
        _LAST.observe(last)
        counters.pushes.add(first)
        if since_accepted is not None:
            _PUSHED.observe(since_accepted)
