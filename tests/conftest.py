"""Every test runs as the server does: with gevent's cooperative standard library, patched before anything else is imported."""

from gevent import monkey

monkey.patch_all()
