"""Tells systemd how the service is: one datagram for each state, to the socket it named.

Imports: the standard library.    sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import os
import socket
import time

from gevent.monkey import get_original

_socket = get_original("socket", "socket")  # the supervisor has no event loop to wait in


def notify(*states: str) -> None:
    """`notify("READY=1", "STATUS=…")`; nothing if systemd did not start this, and never a failure or a wait."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address[0] == "@":
        address = "\0" + address[1:]  # an abstract name; unix(7)
    try:
        with _socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto("\n".join(states).encode(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL, address)
    except OSError:
        pass  # it will see for itself


def reloading() -> None:
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def watchdog_seconds() -> float:
    """How often `WATCHDOG=1` is due: half of what systemd waits for; 0 if it does not watch."""
    text = os.environ.get("WATCHDOG_USEC", "")
    return int(text) / 2e6 if text.isascii() and text.isdigit() else 0.0
