"""MTA-STS: a domain says by HTTPS which hosts take its mail, and that they have proper certificates.

A policy that was had once counts until its `max_age` ends, whatever the DNS or the web server say or fail to say
meanwhile: who can block those must not switch it off. A fresh one is fetched when the id in the DNS changes.

Imports: net.{https,resolver}, log.    RFC 8461.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from mailsrv import log
from mailsrv.net.https import FetchFailed
from mailsrv.net.resolver import LookupFailed, NameNotFound, Resolver

ENFORCE, TESTING, NONE = "enforce", "testing", "none"
MOST_AGE = 31_557_600  # RFC 8461 3.2: about a year
MOST_OCTETS = 64 * 1024  # RFC 8461 3.3
MOST_PATTERNS = 200
RETRY_SECONDS = 300.0  # after a fetch that failed
MOST_KNOWN = 5000
_RECORD = re.compile(r"v=STSv1[ \t]*;")
_ID = re.compile(r"(?:^|;)[ \t]*id[ \t]*=[ \t]*([A-Za-z0-9]{1,32})[ \t]*(?:;|$)")
_DOMAIN = re.compile(r"[a-z0-9.-]{1,200}")


@dataclass(frozen=True, slots=True)
class Policy:
    id: str
    mode: str
    patterns: tuple[str, ...]
    max_age: int

    def allows(self, host: str) -> bool:
        """RFC 8461 4.1: exact, or a wildcard for exactly one label."""
        host = host.lower().rstrip(".")
        parent = host.partition(".")[2]
        return any(one == host or (one.startswith("*.") and one[2:] == parent) for one in self.patterns)


class PolicyWrong(Exception):
    """The text is no policy."""


def parse_id(texts: tuple[str, ...]) -> str:
    """The id in the TXT records of _mta-sts; "" if there is not exactly one record (RFC 8461 3.1)."""
    records = [text for text in texts if _RECORD.match(text)]
    found = _ID.search(records[0]) if len(records) == 1 else None
    return found[1] if found else ""


def parse_policy(text: str, id: str) -> Policy:
    """RFC 8461 3.2: `key: value` lines; the first of a key counts, except for mx."""
    values: dict[str, str] = {}
    patterns: list[str] = []
    for line in text.replace("\r\n", "\n").split("\n"):
        key, colon, value = line.partition(":")
        key, value = key.strip(), value.strip()
        if not colon:
            continue
        if key == "mx":
            patterns.append(value.lower().rstrip("."))
        else:
            values.setdefault(key, value)
    mode, age = values.get("mode", ""), values.get("max_age", "")
    if values.get("version") != "STSv1":
        raise PolicyWrong("no version STSv1")
    if mode not in (ENFORCE, TESTING, NONE):
        raise PolicyWrong("no known mode")
    if not (age.isascii() and age.isdigit() and len(age) <= 10):
        raise PolicyWrong("no max_age")
    if mode != NONE and not 0 < len(patterns) <= MOST_PATTERNS:
        raise PolicyWrong("no mx, or too many")
    return Policy(id, mode, tuple(patterns), min(int(age), MOST_AGE))


class PolicyFiles(Protocol):
    """Where policies stay between starts; both block."""

    def load(self, domain: str) -> dict[str, Any] | None: ...

    def save(self, domain: str, value: dict[str, Any]) -> None: ...


@dataclass(slots=True)
class _Known:
    policy: Policy | None
    expires: float  # wall clock
    not_before: float = 0.0  # of the next fetch, after one that failed
    fetching: Any = field(default_factory=threading.Lock)  # the others wait for what the first one finds


class Policies:
    """`fetch(host, path, until)` gives the document; `offload` runs what blocks. Times of policies are wall clock."""

    def __init__(
        self, resolver: Resolver, fetch: Callable[[str, str, float], bytes], files: PolicyFiles,
        offload: Callable[..., Any], *, clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._resolver, self._fetch, self._files, self._offload, self._clock = resolver, fetch, files, offload, clock
        self._known: dict[str, _Known] = {}

    def find(self, domain: str, until: float) -> Policy | None:
        """The policy that counts now, or None. Never raises: without any answer there is no policy (RFC 8461 5.1)."""
        if not _DOMAIN.fullmatch(domain):
            return None
        known = self._recall(domain)
        id = self._announced(domain, until)
        if id and not self._is_current(known, id):
            with known.fetching:
                if not self._is_current(known, id) and known.not_before <= self._clock():
                    self._renew(domain, id, known, until)
        return known.policy if known.expires > self._clock() else None

    def _is_current(self, known: _Known, id: str) -> bool:
        return known.policy is not None and known.policy.id == id and known.expires > self._clock()

    def _announced(self, domain: str, until: float) -> str:
        try:
            return parse_id(self._resolver.lookup(f"_mta-sts.{domain}", "TXT", until=until).values)
        except (NameNotFound, LookupFailed):
            return ""

    def _recall(self, domain: str) -> _Known:
        known = self._known.get(domain)
        if known is None:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()  # they are on disk
            known = self._known.setdefault(domain, self._read(domain))  # another one may have been quicker
        return known

    def _read(self, domain: str) -> _Known:
        try:
            stored = self._offload(self._files.load, domain) or {}
            policy = parse_policy(stored["text"], stored["id"])
            return _Known(policy, min(float(stored["expires"]), self._clock() + MOST_AGE))
        except (OSError, PolicyWrong, KeyError, TypeError, ValueError):
            return _Known(None, 0.0)

    def _renew(self, domain: str, id: str, known: _Known, until: float) -> None:
        """Fetch the policy; a failure leaves what is known as it is."""
        known.not_before = self._clock() + RETRY_SECONDS
        try:
            text = self._fetch(f"mta-sts.{domain}", "/.well-known/mta-sts.txt", until).decode("utf-8")
            policy = parse_policy(text, id)
        except (FetchFailed, PolicyWrong, UnicodeDecodeError) as failure:
            log.warning("MTA-STS policy not had", domain=domain, reason=str(failure), kept=known.policy is not None)
            return
        known.policy, known.expires, known.not_before = policy, self._clock() + policy.max_age, 0.0
        try:
            self._offload(self._files.save, domain, {"id": id, "expires": known.expires, "text": text})
        except OSError as failure:
            log.warning("MTA-STS policy not kept", domain=domain, reason=str(failure))
