"""Files of ended queue entries, emptied, that new ones are made of: a file that is kept costs no search for a new one.

ext4 does not take an inode that was removed in the last minutes while it has others, and looks through all of those for
every file it makes: 30 microseconds of the processor became 400 to 600 where some thousand files had just been removed,
as in a queue whose mail leaves at once. docs/decisions/0042-files-of-the-queue-again.md.

A file comes here when nothing that survives a power cut calls it by its old name, and is empty. Any process of the
server takes one by renaming it. Whoever read it under its old name finds that this name is gone.

Imports: store.files.
"""

from __future__ import annotations

import os
import random
import time

from mailsrv.store import files

SUFFIX = ".ended"
MOST_SPARE = 256
LOOK_SECONDS = 0.02  # between two looks at what there is


class Spares:
    """Used from threads, of several processes; whoever loses a race makes a file of its own."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._names: list[str] = []  # that were there at the last look
        self._looked_at = 0.0
        self._room = 0  # for so many without another look

    def take(self, path: str) -> int:
        """One of them renamed to `path` and opened; -1 if there is none."""
        if not self._names:
            self._look()
        while self._names:
            try:
                name = self._names.pop()
            except IndexError:  # another thread had it
                return -1
            try:
                files.rename_noreplace(f"{self.directory}/{name}", path)
            except FileNotFoundError:
                continue  # another process had it
            except OSError:
                return -1
            return self._open(path)
        return -1

    def _open(self, path: str) -> int:
        fd = -1
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            there = os.fstat(fd)
            if there.st_size == 0 and there.st_nlink == 1:
                return fd
            raise OSError("not one of ours, or somebody's still")
        except OSError:
            if fd >= 0:
                files.close(fd)
            files.unlink_quietly(path)
            return -1

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        try:
            names = [name for name in os.listdir(self.directory) if name.endswith(SUFFIX)]
        except OSError:
            return  # there was none so far
        random.shuffle(names)  # else all processes would try the same ones
        self._names = names

    def give(self, path: str) -> None:
        """Keep the file, whose name ends in SUFFIX, or remove it where there are enough. Nothing that survives a power
        cut calls it by its old name any more.
        """
        try:
            if not self._has_room():
                files.unlink(path)
                return
            files.step("truncate", path)
            os.truncate(path, 0)
            files.rename(path, f"{self.directory}/{os.path.basename(path)}")
        except OSError:
            files.unlink_quietly(path)

    def _has_room(self) -> bool:
        if self._room <= 0:
            try:
                self._room = MOST_SPARE - len(os.listdir(self.directory))
            except FileNotFoundError:
                files.make_private(self.directory)
                self._room = MOST_SPARE
        self._room -= 1
        return self._room >= 0
