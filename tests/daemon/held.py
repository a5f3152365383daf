"""`python -m tests.daemon.held FILE serve …`: the server, whose processes do not serve while there is a FILE."""

# ruff: noqa: E402  (patch first, import then)

from gevent import monkey

monkey.patch_all()

import os
import sys
import time

from mailsrv.cli import main
from mailsrv.daemon import Server


def hold(path):
    run = Server.run

    def held(self, *args):
        while os.path.exists(path):
            time.sleep(0.01)
        run(self, *args)

    Server.run = held


if __name__ == "__main__":
    hold(sys.argv.pop(1))
    sys.exit(main())
