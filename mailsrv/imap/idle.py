"""IDLE: tell what changed, wait, tell again, until DONE.

One Event is set by the registry, when the mailbox changed, by the socket's readability, and by the heartbeat. The
subscription exists since SELECT, so a change before IDLE, or between two looks, is found by the next look (R44). The
session holds its socket, a cursor and no buffers.

Imports: imap.context, net.stream, gevent.    RFC 2177, RFC 9051 6.3.13.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from gevent.event import Event

from mailsrv import counters
from mailsrv.imap.context import Bye
from mailsrv.net.stream import LimitExceeded
from mailsrv.wire import imap_values as v
from mailsrv.wire.errors import WireError

if TYPE_CHECKING:
    from mailsrv.imap.session import Session

LONGEST_DONE = 64


def idle(session: Session, command: v.Command) -> str:
    """Until DONE; anything else ends it with BAD. Without a mailbox it waits for DONE alone."""
    if session.wake is None:
        session.wake = Event()
    wake = session.wake
    session.stream.write(b"+ idling\r\n")
    session.idling_since = time.time()
    counters.idling.count += 1
    watch = session.stream.watch_readable(wake.set)
    pulse = session.services.beats.join(session.mail().account.id, session.settings.heartbeat_seconds, wake)
    try:
        while True:
            wake.clear()  # before looking: whatever happens from here on sets it again
            session.tell(expunges=True, at_once=True)
            if session.stream.pending:
                break
            with session.waiting():
                wake.wait()
            if watch.fired:
                break
            if pulse.due:
                pulse.due = False
                _heartbeat(session)
    finally:
        session.idling_since = 0.0
        counters.idling.count -= 1
        watch.stop()
        pulse.stop()
    with session.waiting():
        try:
            line = session.stream.read_line(LONGEST_DONE)
        except LimitExceeded:
            session.stream.discard_line(64 * 1024)
            raise WireError("Expected DONE") from None
    if line.upper() != b"DONE":
        raise WireError("Expected DONE")
    return "IDLE completed"


def _heartbeat(session: Session) -> None:
    if not session.services.accounts.enabled(session.mail().account.id):
        raise Bye("The account is disabled")
    session.stream.write(b"* OK Still here\r\n")
