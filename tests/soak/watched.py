"""`python -m tests.soak.watched serve …`: the server, which also answers how many greenlets a process has.

The page cache of an index fills up to a megabyte, with 60 octets of each message that comes and goes: in the soak that
takes a quarter of an hour, and looks like a leak meanwhile. Here it is small, and full before anything is judged.
"""

# ruff: noqa: E402  (patch first, import then)

from gevent import monkey

monkey.patch_all()

import gc
import sys

from greenlet import greenlet

from mailsrv.cli import main
from mailsrv.store.sqlite import SqliteIndex
from mailsrv.vitals import Vitals

PAGE_CACHE_KIB = 256


def count_greenlets():
    begin = Vitals.__init__

    def init(self, server, **more):
        begin(self, server, **more)
        server.control.answer("greenlets", lambda question: sum(isinstance(one, greenlet) for one in gc.get_objects()))

    Vitals.__init__ = init


def limit_page_caches():
    begin = SqliteIndex._open

    def opened(index):
        begin(index)
        index._db.execute(f"PRAGMA cache_size=-{PAGE_CACHE_KIB}")

    SqliteIndex._open = opened


if __name__ == "__main__":
    count_greenlets()
    limit_page_caches()
    sys.exit(main())
