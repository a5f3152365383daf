"""What this process has counted since it started, for metrics and status.

A counter is a dict entry and an addition: the event loop's thread alone counts, so there is no lock, and nothing is
written as text until somebody asks (docs/decisions/0027-counters.md). Labels are words of ours, such as a service's
name or a reply code, never what a client sent; should that ever be wrong, what is too much is counted as "other".

Imports: the standard library.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from typing import Any

MOST_SERIES = 500  # of one metric
SAMPLES = 2048
# Seconds. A push takes some tenths of a millisecond, a delivery to a slow disk hundreds.
FAST = (0.0001, 0.0002, 0.0003, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
LOOP = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0)

ALL: dict[str, Counter | Histogram] = {}


class Sum:
    """Of one combination of labels. Who counts often keeps it and adds to `count`: no labels are looked up then."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count: float = 0


class Counter:
    """A sum for each combination of labels; `name` ends in _total."""

    __slots__ = ("labels", "name", "text", "values")
    kind = "counter"

    def __init__(self, name: str, text: str, *labels: str) -> None:
        self.name, self.text, self.labels = name, text, labels
        self.values: dict[tuple[str, ...], Sum] = {}
        ALL[name] = self

    def of(self, *key: str) -> Sum:
        """To be kept by who counts often."""
        one = self.values.get(key)
        if one is None:
            if len(self.values) >= MOST_SERIES:
                key = ("other",) * len(key)
            one = self.values.setdefault(key, Sum())
        return one

    def add(self, *key: str, n: float = 1) -> None:
        self.of(*key).count += n

    def total(self, *start: str) -> float:
        """The sum over all keys that begin so."""
        return sum(one.count for key, one in self.values.items() if key[: len(start)] == start)

    def rows(self) -> list[Any]:
        """What JSON can say: [[label, ...], value] each."""
        return [[list(key), one.count] for key, one in self.values.items() if one.count]


class Times:
    """Of one combination of labels. Who observes often keeps it."""

    __slots__ = ("_bounds", "row")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.row: list[float] = [0] * (len(bounds) + 2)  # a count for each bound, one beyond, and the sum

    def observe(self, seconds: float) -> None:
        row = self.row
        row[bisect_left(self._bounds, seconds)] += 1
        row[-1] += seconds


class Histogram:
    """How many were at most so long, for each combination of labels."""

    __slots__ = ("bounds", "labels", "name", "text", "values")
    kind = "histogram"

    def __init__(self, name: str, text: str, *labels: str, bounds: Sequence[float] = FAST) -> None:
        self.name, self.text, self.labels, self.bounds = name, text, labels, tuple(bounds)
        self.values: dict[tuple[str, ...], Times] = {}
        ALL[name] = self

    def of(self, *key: str) -> Times:
        """To be kept by who observes often."""
        one = self.values.get(key)
        if one is None:
            if len(self.values) >= MOST_SERIES:
                key = ("other",) * len(key)
            one = self.values.setdefault(key, Times(self.bounds))
        return one

    def observe(self, seconds: float, *key: str) -> None:
        self.of(*key).observe(seconds)

    def rows(self) -> list[Any]:
        return [[list(key), one.row] for key, one in self.values.items() if any(one.row[:-1])]


class Level:
    """How many of something there are now."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class Samples:
    """The latest of some figure, for percentiles of the last minutes."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: deque[tuple[float, float]] = deque(maxlen=SAMPLES)

    def add(self, value: float) -> None:
        self._kept.append((time.monotonic(), value))

    def since(self, seconds: float) -> list[float]:
        """Those of the last `seconds`."""
        start = time.monotonic() - seconds
        return [value for at, value in self._kept if at >= start]


# ------------------------------------------------------------------ what is counted

connections = Counter("mailsrv_connections_total", "Connections accepted.", "service")
connections_refused = Counter(
    "mailsrv_connections_refused_total", "Connections turned away, and why.", "service", "reason"
)
octets = Counter("mailsrv_bytes_total", "Octets received and sent, without TLS's own.", "service", "direction")
logins = Counter(
    "mailsrv_logins_total", "Attempts to log in: ok, failed, put off by a limit, or not checked.", "service", "result"
)

smtp_replies = Counter("mailsrv_smtp_replies_total", "Replies to SMTP commands, by code.", "service", "code")
smtp_messages = Counter(
    "mailsrv_smtp_messages_total", "Messages received whole: accepted, refused (5xx), or put off (4xx).",
    "service", "outcome",
)  # fmt: skip
smtp_octets = Counter("mailsrv_smtp_message_bytes_total", "Octets of accepted messages.", "service")

imap_commands = Counter("mailsrv_imap_commands_total", "IMAP commands by their result.", "command", "result")
imap_seconds = Histogram(
    "mailsrv_imap_command_seconds", "From a command to its completion; IDLE is not counted.", "command"
)

idling = Level()  # IMAP sessions in IDLE

delivery_seconds = Histogram(
    "mailsrv_delivery_seconds",
    "From the end of a message's data until it was durable, committed, answered, and pushed to the first watcher.",
    "hop",
)
push_seconds = Histogram(
    "mailsrv_push_seconds", "From a message's commit until the first and the last watcher had been written to.", "who"
)
pushes = Samples()  # of push_seconds, first

scheduled_messages = Counter(
    "mailsrv_scheduled_messages_total",
    "Messages in mailboxes for scheduled mail: taken, returned to their authors, cancelled by them, or ended (sent).",
    "outcome",
)  # fmt: skip

canary_seconds = Histogram(
    "mailsrv_canary_seconds", "From the commit of a message to ourselves until a process had been told of it."
)
canary_failures = Counter(
    "mailsrv_canary_failures_total", "Messages to ourselves not stored, or not announced in time."
)

hub_delay = Histogram(
    "mailsrv_hub_delay_seconds", "How much later than it should an event was handled, sampled.", bounds=LOOP
)
