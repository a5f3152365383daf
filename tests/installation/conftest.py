"""A private root in which the program was installed from this source tree."""

import sys
from collections.abc import Iterator

import pytest

from .private import ROOT, PrivateRoot


@pytest.fixture(scope="session")
def installed() -> Iterator[PrivateRoot]:
    """The program installed by `mailsrv install`; never started yet, and no domain."""
    with PrivateRoot() as root:
        root.run("env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "mailsrv", "install", outside_net=True, timeout=500)
        yield root
