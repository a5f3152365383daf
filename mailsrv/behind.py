"""A process that runs behind the others of the server, on processors that nobody else wants, as long as it gets on so.

Behind (SCHED_IDLE) it delays nobody: who wakes has the processor at once. But where the others want all there is, it
would hardly run, and they would wait for the locks it holds. So it looks each second how long it was ready and did not
run, and takes its share as soon as it waits longer than it works (SCHED_BATCH: when it wakes, it takes the processor
from nobody).

Imports: schedstat, log, gevent.    sched(7).    docs/decisions/0046-the-runner-runs-behind.md.
"""

from __future__ import annotations

import math
import os
import resource
import time
from collections.abc import Callable
from contextlib import suppress
from threading import get_native_id

import gevent
from gevent.monkey import get_original

from mailsrv import log
from mailsrv.schedstat import Schedstat

LOOK_SECONDS = 1.0
SHARE_SECONDS = 10.0  # at least, once it had to be taken
ROOM = 0.5  # seconds waited for one at work, below which there is room for all
LITTLE = 0.1  # seconds waited from look to look that nobody minds
TRY_SECONDS = 0.01
_HERE = os.sched_param(0)
_NICE_AS_IT_IS = 20  # setrlimit(2): a limit of 20 lets a process come back from behind to a nice value of 0

Worked = tuple[float, float]  # seconds of the main thread: at work, and ready without running


def allow_return() -> None:
    """What root has to do before it is left behind: without, a process that has gone behind stays there."""
    with suppress(OSError, ValueError):
        soft, hard = resource.getrlimit(resource.RLIMIT_NICE)
        if soft != resource.RLIM_INFINITY and soft < _NICE_AS_IT_IS:
            hard = hard if hard == resource.RLIM_INFINITY else max(hard, _NICE_AS_IT_IS)
            resource.setrlimit(resource.RLIMIT_NICE, (_NICE_AS_IT_IS, hard))


class Behind:
    """Of this process; made in its main thread. All its threads, also those to come, are where it is."""

    def __init__(self, worked: Callable[[], Worked] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._worked, self._clock = worked or _reader(), clock
        self._before = self._worked()
        self._share_until = 0.0
        self.behind = False
        _move(os.SCHED_BATCH)

    def keep(self) -> None:
        """Looks until it is killed; returns where there is no way behind and back."""
        if not _can_return():
            log.info("runner stays beside the workers", advice="LimitNICE=+0 in its unit lets it step behind them")
            return
        while True:
            self.look()
            gevent.sleep(LOOK_SECONDS)

    def stay_beside(self) -> None:
        """For good: who waits for this process to end should not wait for everybody else."""
        self._share_until = math.inf
        if self.behind:
            self._step(behind=False)

    def look(self) -> None:
        before, self._before = self._before, self._worked()
        worked, waited = (now - then for now, then in zip(self._before, before, strict=True))
        if self.behind and waited > max(worked, LITTLE):
            self._share_until = max(self._share_until, self._clock() + SHARE_SECONDS)
            self._step(behind=False, worked_s=worked, waited_s=waited)
        elif not self.behind and waited <= max(worked * ROOM, LITTLE) and self._clock() >= self._share_until:
            self._step(behind=True, worked_s=worked, waited_s=waited)

    def _step(self, *, behind: bool, **why: float) -> None:
        if not _move(os.SCHED_IDLE if behind else os.SCHED_BATCH):
            return  # the next look tries again
        self.behind = behind
        rounded = {name: round(seconds, 3) for name, seconds in why.items()}
        log.debug("runner steps", to="behind" if behind else "beside", **rounded)


def _move(policy: int) -> bool:
    """Every thread of this process; new ones begin as the thread that makes them. False if they cannot be listed."""
    try:
        threads = os.listdir("/proc/self/task")
    except OSError:  # no descriptors left, or no /proc
        return False
    for thread in threads:
        with suppress(OSError):  # it has ended, or the system forbids it
            os.sched_setscheduler(int(thread), policy, _HERE)
    return True


def _can_return() -> bool:
    """Tried with a thread that has nothing else to do."""
    came: list[bool] = []
    under_way = get_original("_thread", "allocate_lock")()  # gevent's Event would leave a loop of that thread's open

    def there_and_back() -> None:
        try:
            with suppress(OSError):
                for policy in (os.SCHED_IDLE, os.SCHED_BATCH):
                    os.sched_setscheduler(get_native_id(), policy, _HERE)
                came.append(True)
        finally:
            under_way.release()

    under_way.acquire()
    get_original("_thread", "start_new_thread")(there_and_back, ())
    while not under_way.acquire(blocking=False):
        gevent.sleep(TRY_SECONDS)
    return bool(came)


def _reader() -> Callable[[], Worked]:
    schedstat = Schedstat()
    if schedstat.told:
        return schedstat.times
    schedstat.close()
    # Nobody is seen to wait, so nobody may step behind: this is neither more nor less than anything.
    return lambda: (0.0, math.nan)
