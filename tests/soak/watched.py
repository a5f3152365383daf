"""`python -m tests.soak.watched serve …`: the server, which also answers how many greenlets a process has.

What it keeps on purpose has a bound, and fills up to it by some octets of each message that comes and goes: the page
cache of an index to a megabyte, what changed in a mailbox to 4096 changes (half a megabyte of each), the figures that
percentiles are made of to 2048, the thread pool to 24. In the soak that takes a quarter of an hour or more, and looks
like a leak meanwhile. Here the bounds are small, and what they hold is full before anything is judged; all threads of
the pool are there from the start.
"""

# ruff: noqa: E402  (patch first, import then)

from gevent import monkey

monkey.patch_all()

import gc
import sys
from collections import Counter, deque
from itertools import chain

import gevent
from gevent.monkey import get_original
from greenlet import greenlet

from mailsrv import counters
from mailsrv.cli import main
from mailsrv.mail import mailbox
from mailsrv.store import files
from mailsrv.store.sqlite import SqliteIndex
from mailsrv.vitals import Vitals

PAGE_CACHE_KIB = 256
CHANGES_KEPT = 256
FIGURES_KEPT = 256
POOL_SECONDS = 0.5


def greenlets():
    """How many there are, without garbage that nobody has collected yet: that is no leak, nor is its memory. A full
    collection gives back the interpreter's free tuples too (2000 of each length), which grow to a megabyte in minutes.

    They are counted in C from the first object to the last, so that no other thread runs meanwhile: a tuple that one is
    about to make out of a generator is among the objects, must have no second holder when it is finished, and fails
    with a SystemError else (bpo-15108).
    """
    gc.collect()
    kinds = Counter(map(type, chain.from_iterable(map(gc.get_objects, (None,)))))
    return sum(count for kind, count in kinds.items() if issubclass(kind, greenlet))


def count_greenlets():
    begin = Vitals.__init__

    def init(self, server, **more):
        begin(self, server, **more)
        server.control.answer("greenlets", lambda question: greenlets())

    Vitals.__init__ = init


def limit_page_caches():
    begin = SqliteIndex._open

    def opened(index):
        begin(index)
        index._db.execute(f"PRAGMA cache_size=-{PAGE_CACHE_KIB}")

    SqliteIndex._open = opened


def limit_histories():
    mailbox.LOG_LENGTH = CHANGES_KEPT

    def init(samples):
        samples._kept = deque(maxlen=FIGURES_KEPT)

    counters.Samples.__init__ = init
    counters.pushes.__init__()  # it is there already


def fill_pools():
    start, sleep = Vitals.start, get_original("time", "sleep")

    def started(vitals):
        start(vitals)
        for _ in range(files.POOL_THREADS):
            gevent.spawn(files.offload, sleep, POOL_SECONDS)  # each takes a thread of its own

    Vitals.start = started


if __name__ == "__main__":
    count_greenlets()
    limit_page_caches()
    limit_histories()
    fill_pools()
    sys.exit(main())
