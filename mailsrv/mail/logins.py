"""Who logged in from where, and how often: a line for the first of a day, a line that sums up the rest.

Kept for each user, address and service; failures for each network and service, since the names in them are whatever
somebody typed. What is not written yet is small and bounded; when there is too much, the oldest is summed up early.

Imports: networks, store.files (the pool), log.    docs/audit.md
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from mailsrv import log
from mailsrv.networks import address_of, network_of
from mailsrv.store.files import offload

PERIOD_SECONDS = 86_400.0
SWEEP_SECONDS = 300.0
MOST_KEYS = 10_000
NAME_LIMIT = 320

Write = Callable[[Iterable[dict[str, Any]]], None]


@dataclass(slots=True)
class _Seen:
    since: float
    last: float
    more: int = 0


class Logins:
    """`write` takes entries to be kept, and may block."""

    def __init__(self, write: Write, *, clock: Callable[[], float] = time.time) -> None:
        self._write, self._clock = write, clock
        self._seen: OrderedDict[tuple[str, str, str, str], _Seen] = OrderedDict()  # by when the first was
        self._swept_at = clock()

    def succeeded(self, user: str, peer: str, service: str) -> None:
        self._note(("login", user, address_of(peer), service), {"user": user, "peer": peer, "service": service})

    def failed(self, name: str, peer: str, service: str) -> None:
        shown = {"user": name[:NAME_LIMIT], "peer": peer, "service": service}
        self._note(("login failed", "", network_of(peer), service), shown)

    def _note(self, key: tuple[str, str, str, str], shown: dict[str, str]) -> None:
        now = self._clock()
        lines: list[dict[str, Any]] = []
        if now - self._swept_at > SWEEP_SECONDS:
            self._swept_at = now
            lines += self._over(lambda seen: now - seen.since > PERIOD_SECONDS)
        seen = self._seen.get(key)
        if seen is not None:
            seen.last = now
            seen.more += 1
        else:
            self._seen[key] = _Seen(now, now)
            lines.append({"time": _timestamp(now), "action": key[0], **shown})
            if len(self._seen) > MOST_KEYS:
                lines += _summed_up(*self._seen.popitem(last=False))
        if lines:
            offload(self._keep, lines)

    def _over(self, ended: Callable[[_Seen], bool]) -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = []
        for key, seen in list(self._seen.items()):
            if not ended(seen):
                break  # those behind it began later
            del self._seen[key]
            lines += _summed_up(key, seen)
        return lines

    def close(self) -> None:
        """Write down what was counted. Blocks on the disk."""
        self._keep(self._over(lambda seen: True))

    def _keep(self, lines: list[dict[str, Any]]) -> None:
        try:
            if lines:
                self._write(lines)
        except OSError as failure:
            log.warning("audit trail not written", error=str(failure))


def _summed_up(key: tuple[str, str, str, str], seen: _Seen) -> list[dict[str, Any]]:
    """One line, or none where there was nothing more than the first."""
    action, user, place, service = key
    if not seen.more:
        return []
    whom = {"user": user, "peer": place} if user else {"network": place}
    return [
        {
            "time": _timestamp(seen.last), "action": f"{action} repeated", **whom, "service": service,
            "count": seen.more, "since": _timestamp(seen.since), "until": _timestamp(seen.last),
        }
    ]  # fmt: skip


def _timestamp(when: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(when)) + "Z"
