"""Goes into the background as init scripts expect: the command returns when the server listens, or says why not.

Before any thread or greenlet exists: a fork copies neither.

Imports: the standard library.    daemon(7), "SysV daemons".
"""

from __future__ import annotations

import os
import sys

from gevent.monkey import get_original

_fork = get_original("os", "fork")
_close = get_original("os", "close")  # gevent's waits for an event loop to turn
_select = get_original("select", "select")
_READY = b"1"
READY_SECONDS = 60.0
# Run from a source tree that is the present directory, the helper programs are found there alone.
_source = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Starter:
    """Whoever waits for the server to be ready; nobody, in the foreground."""

    def __init__(self, fd: int = -1) -> None:
        self._fd = fd
        if fd >= 0:
            os.register_at_fork(after_in_child=self._let_go)

    def ready(self) -> None:
        """Until now, what goes wrong was told on the terminal; from here on there is none."""
        if self._fd >= 0:
            os.write(self._fd, _READY)
            self._let_go()

    def _let_go(self) -> None:
        """Also in each child, whose terminal would otherwise seem to be in use for as long as it runs."""
        if self._fd < 0:
            return
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        _close(null)
        _close(self._fd)
        self._fd = -1


def _wait(told: int) -> int:
    """The exit code of the command."""
    if _select([told], [], [], READY_SECONDS)[0]:
        return 0 if os.read(told, 1) == _READY else 1  # no octet: it ended, and said why
    sys.stderr.write(f"mailsrv: not ready after {READY_SECONDS:.0f} s, and still trying; see the log\n")
    sys.stderr.flush()
    return 1


def detach() -> Starter:
    """Returns in a process of a session of its own. The one that was started waits for it, and never returns."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # what the shell or its caller had open is none of ours
    told, tell = os.pipe2(os.O_CLOEXEC)
    if _fork():
        _close(tell)
        os._exit(_wait(told))
    _close(told)
    os.setsid()
    if _fork():  # not the session's leader: it cannot get a terminal by opening one
        os._exit(0)
    if os.getcwd() != _source:
        os.chdir("/")
    return Starter(tell)
