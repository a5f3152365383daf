"""The program with a sleep that libfaketime leaves alone: `python -m tests.faults.shifted serve …`.

Python sleeps until a moment of the monotonic clock, and libfaketime takes that for one of the clock it shifts, and
refuses. A sleep of so many seconds by select(2) is the same to everybody.
"""

import select
import time

_select = select.select
time.sleep = lambda seconds: _select([], [], [], seconds) and None  # type: ignore[assignment]

from gevent import monkey

monkey.patch_all()

import sys

from mailsrv.cli import main

if __name__ == "__main__":
    sys.exit(main())
