"""The program: patches the standard library for gevent, then calls the command line. Nothing else patches."""

from gevent import monkey

monkey.patch_all()

import sys

from mailsrv.cli import main

if __name__ == "__main__":
    sys.exit(main())
