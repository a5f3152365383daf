"""The program: patches the standard library for gevent, then calls the command line. Nothing else patches."""

import gevent
from gevent import monkey

gevent.config.track_greenlet_tree = False  # which greenlet started which: nobody asks, and each would remember it
monkey.patch_all()

import sys

from mailsrv.cli import main

if __name__ == "__main__":
    sys.exit(main())
