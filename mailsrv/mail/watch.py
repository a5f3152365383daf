"""Hears of other programs' changes in open mailboxes, by inotify, and has them looked at.

One inotify descriptor per process watches new/ and cur/ of every open mailbox. What this process itself delivers,
renames or removes is known by the names, unless it fails on its way; changes by other workers cause a look that is two
`stat` calls and one for each name, since a change of ours records the mtimes it leaves. The names are needed because
another program's change that falls into one of ours leaves an mtime that is taken for ours. Looks are merged: the first
event of a mailbox is looked at at once, further ones while that look is under way cause one more. Where inotify is not
to be had (its limits are per user and may be used up) the mailboxes are looked at every few seconds instead.

Imports: mail.mailbox, log, gevent.    inotify(7).
"""

from __future__ import annotations

import ctypes
import os
import struct
import time
from typing import Any

import gevent
from gevent.hub import get_hub
from gevent.pool import Group

from mailsrv import log
from mailsrv.errors import MailError
from mailsrv.mail.mailbox import EVERY, Mailbox, Mailboxes
from mailsrv.store.files import came, placed, went
from mailsrv.values import MailboxId

MOST_HEARD = 50_000  # names of a mailbox: beyond them it is compared as a whole
_CREATE, _DELETE, _MOVED_FROM, _MOVED_TO = 0x100, 0x200, 0x40, 0x80
_MASK = _CREATE | _DELETE | _MOVED_FROM | _MOVED_TO | 0x01000000  # IN_ONLYDIR
_OVERFLOW, _IGNORED = 0x4000, 0x8000
_EVENT = struct.Struct("iIII")
_NONBLOCK_CLOEXEC = os.O_NONBLOCK | os.O_CLOEXEC
POLL_SECONDS = 5.0
OWN_QUIET_SECONDS = 0.02
REST_SECONDS = 0.01  # between two readings: else a STORE of thousands wakes the loop for each file that it renames


class Watch:
    def __init__(self) -> None:
        self._mailboxes: Mailboxes | None = None
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = -1
        self._reader: Any = None
        self._rest: Any = None
        self._poller: gevent.Greenlet | None = None
        self._by_watch: dict[int, tuple[MailboxId, str]] = {}
        self._watches: dict[MailboxId, list[int]] = {}
        self._unwatched: set[MailboxId] = set()
        self._states: dict[MailboxId, Mailbox] = {}
        self._heard: dict[MailboxId, dict[str, int]] = {}  # names that came or went, and which event told it
        self._events = 0
        self._last_looks = Group()
        self._looking: dict[MailboxId, bool] = {}  # a look is under way; True: look again
        self._since: dict[MailboxId, float] = {}  # when the change was heard of that is being looked at

    def start(self, mailboxes: Mailboxes) -> None:
        self._mailboxes = mailboxes
        mailboxes.hearing = self
        self._fd = self._libc.inotify_init1(_NONBLOCK_CLOEXEC)
        if self._fd < 0:
            log.warning("no inotify: open mailboxes are polled", error=os.strerror(ctypes.get_errno()))
        else:
            loop = get_hub().loop
            self._reader, self._rest = loop.io(self._fd, 1), loop.timer(REST_SECONDS, REST_SECONDS)
            self._reader.start(self._news)
        self._poller = gevent.spawn(self._poll)

    def close(self) -> None:
        self._last_looks.kill()
        if self._poller is not None:
            self._poller.kill()
        if self._reader is not None:
            for watcher in (self._reader, self._rest):
                watcher.stop()
                watcher.close()
            self._reader = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def opened(self, state: Mailbox, folder: str) -> None:
        """Begin to watch: called before the first look at the mailbox is over, so nothing falls between."""
        self._states[state.id] = state
        watches = []
        for sub in ("new", "cur"):
            number = -1
            if self._fd >= 0:
                number = self._libc.inotify_add_watch(self._fd, os.fsencode(f"{folder}/{sub}"), _MASK)
            if number < 0:
                self._unwatched.add(state.id)
            else:
                watches.append(number)
                self._by_watch[number] = (state.id, sub)
        self._watches[state.id] = watches

    def closed(self, state: Mailbox) -> None:
        """End the watch. What was heard until now is looked at still; who opens the mailbox meanwhile does it too."""
        names = self.heard(state.id)
        self._states.pop(state.id, None)
        self._unwatched.discard(state.id)
        for number in self._watches.pop(state.id, ()):
            if self._by_watch.pop(number, None) is not None:
                self._libc.inotify_rm_watch(self._fd, number)
        if names:
            self._last_looks.spawn(self._last_look, state)

    def _last_look(self, state: Mailbox) -> None:
        assert self._mailboxes is not None
        try:
            self._mailboxes.reconcile(state)
        except MailError as failure:
            log.warning("could not look at a changed mailbox", mailbox=str(state.id), error=str(failure))
            self._heard.pop(state.id, None)

    def heard(self, mailbox: MailboxId) -> dict[str, int]:
        """Names that came or went in an open mailbox and were not looked at yet, each with a number that grows; EVERY
        stands for names that were not kept.
        """
        while self._fd >= 0 and self._readable():
            pass
        return dict(self._heard.get(mailbox, ()))

    def looked_at(self, mailbox: MailboxId, names: dict[str, int]) -> None:
        """Who heard of these names has compared them; those that came or went again meanwhile are kept."""
        kept = self._heard.get(mailbox, {})
        for name, number in names.items():
            if kept.get(name) == number:
                del kept[name]
        if not kept:
            self._heard.pop(mailbox, None)

    def doubt(self, mailbox: MailboxId) -> None:
        """The directories of an open mailbox are to be compared as a whole: of what is ours nothing was kept."""
        if mailbox in self._states:
            self._hear(mailbox, EVERY)
            self._look_soon(mailbox)

    def _hear(self, mailbox: MailboxId, name: str) -> None:
        names = self._heard.setdefault(mailbox, {})
        self._events += 1
        names[name if len(names) < MOST_HEARD else EVERY] = self._events

    def _news(self) -> None:
        """Runs in the hub. What comes in the next moment is read together, or by who looks meanwhile."""
        self._reader.stop()
        while self._readable():
            pass
        self._rest.again(self._rested)

    def _rested(self) -> None:
        self._rest.stop()
        self._reader.start(self._news)

    def _readable(self) -> bool:
        """Reads what is there and spawns looks; never waits. Whether there may be more."""
        try:
            data = os.read(self._fd, 65536)
        except OSError:
            return False
        touched: dict[MailboxId, None] = {}
        offset = 0
        while offset + _EVENT.size <= len(data):
            number, mask, _, length = _EVENT.unpack_from(data, offset)
            name = data[offset + _EVENT.size : offset + _EVENT.size + length].rstrip(b"\0")
            offset += _EVENT.size + length
            if self._is_ours(mask, os.fsdecode(name)):
                continue
            if mask & _OVERFLOW:
                for mailbox in self._states:
                    self._hear(mailbox, EVERY)
                    touched[mailbox] = None
            elif mask & _IGNORED:
                self._by_watch.pop(number, None)
            elif (watched := self._by_watch.get(number)) is not None:
                mailbox, sub = watched
                self._hear(mailbox, f"{sub}/{os.fsdecode(name)}")
                touched[mailbox] = None
        for mailbox in touched:
            self._look_soon(mailbox)
        return True

    @staticmethod
    def _is_ours(mask: int, name: str) -> bool:
        """Whether this process did it: the index has it already, or has it soon."""
        if mask & _MOVED_TO:
            return came.take(name) or placed.take(name)
        return bool(mask & (_MOVED_FROM | _DELETE)) and went.take(name)

    def _look_soon(self, mailbox: MailboxId) -> None:
        if mailbox in self._looking:
            self._looking[mailbox] = True
            return
        self._looking[mailbox] = False
        self._since[mailbox] = time.monotonic()
        gevent.spawn_later(OWN_QUIET_SECONDS, self._look, mailbox)

    def _look(self, mailbox: MailboxId) -> None:
        assert self._mailboxes is not None
        try:
            while True:
                self._looking[mailbox] = False
                state = self._states.get(mailbox)
                if state is not None and (mailbox in self._unwatched or self.heard(mailbox)):
                    self._mailboxes.reconcile(state)
                if not self._looking[mailbox]:
                    return
                gevent.sleep(OWN_QUIET_SECONDS)
        except MailError as failure:
            log.warning("could not look at a changed mailbox", mailbox=str(mailbox), error=str(failure))
        finally:
            self._looking.pop(mailbox, None)
            self._since.pop(mailbox, None)

    def lag(self) -> tuple[int, float]:
        """How many open mailboxes others changed that are not looked at yet, and for how many seconds the first."""
        oldest = min(self._since.values(), default=None)
        return len(self._since), 0.0 if oldest is None else time.monotonic() - oldest

    def _poll(self) -> None:
        """The mailboxes that have no watch."""
        while True:
            gevent.sleep(POLL_SECONDS)
            for mailbox in list(self._unwatched):
                self._look_soon(mailbox)
