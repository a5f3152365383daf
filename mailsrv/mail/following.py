"""Which mailboxes each process wants to hear of, in a table that the other processes read before they tell it.

Most mailboxes are open in one process or in none. A process writes into its table before it first looks at a mailbox,
others read the table after they have committed: so one of the two sees what the other did, and nobody is woken for
what concerns nobody. The table is a file of the run directory that all map into memory, one octet for many
mailboxes: a process may be told of one that it does not follow, never the other way about. Where there is no table
everything is told.

Imports: store.files, log, values.    docs/decisions/0043-told-is-who-follows.md.
"""

from __future__ import annotations

import mmap
import os
from collections import Counter

from mailsrv import log
from mailsrv.store.files import unlink_if_there
from mailsrv.values import MailboxId

SLOTS = 64 * 1024
_SPREAD = 61  # the first mailboxes of neighbouring accounts do not share an octet


def _slot(mailbox: MailboxId) -> int:
    return (mailbox.account * _SPREAD + mailbox.number) % SLOTS


class Following:
    """This process's own table."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._table: mmap.mmap | None = None
        self._counts: Counter[int] = Counter()

    def open(self) -> None:
        """A new file: whoever has one of an earlier process of this name mapped keeps that, and finds another here."""
        unlink_if_there(self._path)
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(fd, "r+b", buffering=0) as file:
                os.posix_fallocate(file.fileno(), 0, SLOTS)  # a full disk is met here, not when the table is written to
                self._table = mmap.mmap(file.fileno(), SLOTS)
        except OSError as failure:
            log.warning("no table of followed mailboxes", path=self._path, error=str(failure))
            unlink_if_there(self._path)

    def add(self, mailbox: MailboxId) -> None:
        """Told of from now on. Counted: `remove` as often."""
        slot = _slot(mailbox)
        self._counts[slot] += 1
        if self._table is not None:
            self._table[slot] = 1

    def remove(self, mailbox: MailboxId) -> None:
        slot = _slot(mailbox)
        self._counts[slot] -= 1
        if not self._counts[slot]:
            del self._counts[slot]
            if self._table is not None:
                self._table[slot] = 0

    def close(self) -> None:
        unlink_if_there(self._path)
        if self._table is not None:
            self._table.close()
            self._table = None


class Followed:
    """Another process's table, as it is at any moment."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file = (0, 0)  # its device and number
        self._table: mmap.mmap | None = None

    def look(self) -> None:
        """The file there now, if it is another one."""
        try:
            with open(self._path, "rb") as file:
                status = os.fstat(file.fileno())
                if (status.st_dev, status.st_ino) != self._file or self._table is None:
                    self._table = mmap.mmap(file.fileno(), SLOTS, prot=mmap.PROT_READ)
                    self._file = status.st_dev, status.st_ino
        except (OSError, ValueError):  # none, or no whole one
            self._table = None

    def __contains__(self, mailbox: MailboxId) -> bool:
        return self._table is None or self._table[_slot(mailbox)] != 0
