"""Looks for what is wrong with an installation, says what it means and what to do about it, and does what is safe.

Checks change nothing and work beside a running server and without one. Each yields Findings; one that can be repaired
without losing anything carries the repair. First what root alone can see and mend (owners, ports), then, as the
server's own user, the rest: whatever a repair writes belongs to the server.

Imports: doctor.*, config, pidfile.    docs/doctor.md
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mailsrv.config import Config
from mailsrv.doctor import machine, mail, services
from mailsrv.doctor.finding import FAIL, OK, WARN, Finding, Repair
from mailsrv.pidfile import running_pid

__all__ = ["FAIL", "OK", "WARN", "Finding", "Repair", "as_root", "as_server", "examine"]

Progress = Callable[[str], None]


def _running(settings: Config) -> bool:
    return running_pid(f"{settings['server.run_dir']}/mailsrv.pid") is not None


def as_root(settings: Config) -> Iterator[Finding]:
    """What needs the rights of whoever asks. The settings themselves were checked when they were loaded."""
    yield Finding(OK, f"settings: {settings.path}")
    yield from machine.owners(settings)
    yield from services.keys(settings)
    yield from services.ports(settings, running=_running(settings))


def as_server(settings: Config, *, quick: bool, progress: Progress = lambda name: None) -> Iterator[Finding]:
    """What the server's user can see; without `quick` every mailbox is compared with its index."""
    yield from machine.directories(settings)
    yield from machine.disk(settings)
    yield from machine.clock(settings)
    yield from services.accounts(settings)
    yield from services.certificates(settings)
    yield from mail.queue(settings, running=_running(settings))
    if not quick:
        yield from mail.mailboxes(settings, progress)


def examine(settings: Config, *, quick: bool = True) -> list[Finding]:
    """All of it, by one and the same user."""
    return [*as_root(settings), *as_server(settings, quick=quick)]
