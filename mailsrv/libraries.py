"""Libraries that are large and not always needed: imported where they are first used, by one thread at a time.

Threads that import the same thing for the first time wait for each other in locks that gevent has replaced, and such a
wait may never end: a wake-up between the loops of two threads can be lost. So each takes its turn here first, and then
finds the library whole (decision 41).

Imports: gevent, for the lock that it replaced.
"""

from __future__ import annotations

from importlib import import_module

from gevent.monkey import get_original

_turn = get_original("threading", "Lock")()
_whole: set[str] = set()


def load(*names: str) -> None:
    """Have these modules. Blocks, some of them for 50 ms: in a thread, or before there is anything to serve."""
    if not _whole.issuperset(names):
        with _turn:
            for name in names:
                import_module(name)
            _whole.update(names)
