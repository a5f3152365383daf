"""What is done from time to time while nobody waits for it: rest for unused indexes, memory given back, old temporary
files removed.

Imports: mail.accounts, mail.mailbox, store, log, errors, gevent.    docs/architecture.md, "Memory".
"""

from __future__ import annotations

import ctypes
import os
import time

import gevent

from mailsrv import log
from mailsrv.errors import MailError
from mailsrv.mail.accounts import Accounts
from mailsrv.mail.mailbox import Mailboxes
from mailsrv.store.base import indexes_opened_lately, indexes_to_rest, rest_indexes
from mailsrv.store.files import offload

ROUND_SECONDS = 1.0
TRIM_SECONDS = 60.0
TRIM_AFTER = 8  # indexes closed; some 300 KB each
FIRST_SWEEP_SECONDS, SWEEP_SECONDS = 600, 24 * 3600
PAUSE_SECONDS = 0.1  # between two accounts


class Upkeep:
    """One greenlet of a process. `sweeps`: whether this process looks after temporary files (one of all does)."""

    def __init__(self, accounts: Accounts, mailboxes: Mailboxes, *, sweeps: bool) -> None:
        self._accounts, self._mailboxes, self._sweeps = accounts, mailboxes, sweeps
        self._greenlet: gevent.Greenlet | None = None

    def start(self) -> None:
        self._greenlet = gevent.spawn(self._run)

    def close(self) -> None:
        if self._greenlet is not None:
            self._greenlet.kill()

    def _run(self) -> None:
        sweep_at = time.monotonic() + FIRST_SWEEP_SECONDS
        trim_at = time.monotonic() + TRIM_SECONDS
        closed = 0
        while True:
            gevent.sleep(ROUND_SECONDS)
            if indexes_to_rest():
                closed += offload(rest_indexes)
            if (closed >= TRIM_AFTER and not indexes_opened_lately()) or time.monotonic() > trim_at:
                offload(trim)  # a burst, if there was one, is over
                trim_at, closed = time.monotonic() + TRIM_SECONDS, 0
            if self._sweeps and time.monotonic() > sweep_at:
                sweep_at = time.monotonic() + SWEEP_SECONDS
                self.sweep()

    def sweep(self) -> int:
        """Remove what deliveries that were cut off left in tmp/ (Maildir: after 36 hours); how many files went."""
        removed = 0
        try:
            for user in self._accounts.users():
                if os.path.isdir(user.account.home):
                    mail = self._mailboxes.account(user.account)
                    removed += mail.run_long(mail.store.sweep)
                    gevent.sleep(PAUSE_SECONDS)
        except MailError as failure:
            log.warning("temporary files not swept", error=str(failure))
        if removed:
            log.info("temporary files swept", count=removed)
        return removed


def trim() -> None:
    """Have the C library return what it holds free, where it has a way to ask. malloc_trim(3)."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        pass
