"""`python -m tests.soak.watched serve …`: the server, which also answers how many greenlets a process has."""

# ruff: noqa: E402  (patch first, import then)

from gevent import monkey

monkey.patch_all()

import gc
import sys

from greenlet import greenlet

from mailsrv.cli import main
from mailsrv.vitals import Vitals


def count_greenlets():
    begin = Vitals.__init__

    def init(self, server, **more):
        begin(self, server, **more)
        server.control.answer("greenlets", lambda question: sum(isinstance(one, greenlet) for one in gc.get_objects()))

    Vitals.__init__ = init


if __name__ == "__main__":
    count_greenlets()
    sys.exit(main())
