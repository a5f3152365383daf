"""Small things that all of them use."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
COMMAND = f"{ROOT}/bench/sending.py"
sys.path.insert(0, ROOT)

DOMAINS = tuple(f"d{number:02d}.example" for number in range(100))
HANGING = "hangs.example"
SECONDS = 300.0  # for whatever must happen


def until(condition: Callable[[], Any], what: str, seconds: float = SECONDS, pause: float = 0.02) -> Any:
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise SystemExit(f"not in time: {what}")
        time.sleep(pause)
    return value


def free_port(address: str = "127.0.0.1") -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
            return bool(sock.recv(1))
    except OSError:
        return False
