"""The pid file, locked while the server runs: a second one on the same directory does not start.

Imports: start (StartError), log.    flock(2): the lock belongs to the open file, and goes along when a process
leaves it to another.
"""

from __future__ import annotations

import fcntl
import os
import time

from mailsrv import log
from mailsrv.start import StartError
from mailsrv.store.files import close, unlink_if_there

PAUSE_SECONDS = 0.05


class PidFile:
    def __init__(self, run_dir: str) -> None:
        self.path = f"{run_dir}/mailsrv.pid"
        self.fd = -1

    def acquire(self) -> None:
        """Lock it and write this process's id. StartError if another server has it."""
        try:
            os.makedirs(os.path.dirname(self.path), mode=0o750, exist_ok=True)
            self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        except OSError as failure:
            raise StartError(f"server.run_dir: cannot write {self.path}: {failure.strerror}") from None
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            close(self.fd)
            self.fd = -1
            refuse_second(self.path)
            raise StartError(f"mailsrv is starting or stopping just now ({self.path})") from None
        self.write()

    def adopt(self, fd: int) -> None:
        """The open, locked file of the server that this one replaces. `write` says who has it now."""
        os.set_inheritable(fd, False)
        self.fd = fd

    def write(self) -> None:
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, f"{os.getpid()}\n".encode(), 0)

    def leave(self) -> None:
        """To the server that replaces this one: it has the lock, and the name stays."""
        close(self.fd)
        self.fd = -1

    def release(self) -> None:
        if self.fd >= 0:
            unlink_if_there(self.path)
            close(self.fd)
            self.fd = -1


def running_pid(path: str) -> int | None:
    """The process that holds the pid file's lock; None when no server runs."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except OSError:
        text = os.read(fd, 32).decode("ascii", "replace").strip()
        return int(text) if text.isascii() and text.isdigit() else 0
    finally:
        close(fd)


def refuse_second(path: str, patience: float = 0.0) -> None:
    """StartError if a server runs already. One that was killed has left processes that end by themselves, and have the
    lock until then: they are waited for, `patience` seconds at most.
    """
    end, told = time.monotonic() + patience, False
    while (pid := running_pid(path)) is not None:
        if pid == 0 or _exists(pid):
            raise StartError(f"mailsrv is running already (pid {pid or 'unknown'}, {path})")
        if time.monotonic() > end:
            raise StartError(f"mailsrv was killed (pid {pid}, {path}), and its processes have not ended yet")
        if not told:
            log.warning("waiting for the processes of a killed server", killed=pid, seconds=patience)
            told = True
        time.sleep(PAUSE_SECONDS)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
