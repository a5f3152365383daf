"""DNS, the only module that knows it: records of a name, or why there are none.

There are two kinds of no: `NameNotFound` says that the name does not exist and is final; `LookupFailed` (SERVFAIL, no
answer, nonsense, a bogus signature) says nothing about the name and never is. Answers are kept for their time to live,
with a bound; who asks what somebody else is asking already waits for that answer. A name's records are cut at a bound.

dnspython waits in `selectors` and `time.sleep`, which gevent makes cooperative: a lookup holds up its greenlet alone.
It is imported at the first lookup, in a thread: a process that never sends mail does without it (decision 41).

Imports: libraries, dns, gevent.    RFC 1035, 2308 (negative answers), 6840 5.7 (AD), 7505 (null MX), 8020.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gevent.event import Event
from gevent.hub import get_hub
from gevent.pool import Group

from mailsrv.libraries import load

if TYPE_CHECKING:
    import dns.resolver

MOST_RECORDS = 100  # of one answer
MOST_NAMES = 20_000
MOST_ALIASES = 8
LEAST_TTL, MOST_TTL = 5.0, 3600.0
FAILURE_TTL = 10.0  # many messages for one dead zone ask once
EDNS_OCTETS = 1232
_KINDS = ("ANY.CNAME", "ANY.MX", "ANY.NS", "ANY.OPT", "ANY.PTR", "ANY.SOA", "ANY.TLSA", "ANY.TXT", "IN.A", "IN.AAAA")
_LIBRARY = (
    "dns.exception", "dns.flags", "dns.name", "dns.resolver",
    *(f"dns.rdtypes.{kind}" for kind in _KINDS),  # else at the first answer with one, on the hub
)  # fmt: skip


class NameNotFound(Exception):
    """The name does not exist (NXDOMAIN)."""


class LookupFailed(Exception):
    """Nobody could tell."""


@dataclass(frozen=True, slots=True)
class ResolverSettings:
    """`nameservers` empty: those of /etc/resolv.conf. `trusted` None: AD counts if all of them are on loopback
    (RFC 7672 2.2: the path to the validating resolver must be safe)."""

    nameservers: tuple[str, ...] = ()
    port: int = 53
    try_seconds: float = 5.0
    seconds: float = 20.0  # of one lookup in all
    trusted: bool | None = None


@dataclass(frozen=True, slots=True)
class Records:
    """What a name has of one type; empty if it exists without. `values` are (preference, host) for MX, (usage,
    selector, matching type, data) for TLSA, else text. `secure`: a resolver that may be believed has validated it.
    `name` is where aliases led.
    """

    values: tuple[Any, ...]
    secure: bool
    name: str
    ttl: float


class Resolver:
    def __init__(
        self, settings: ResolverSettings | None = None, *, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._settings = settings = settings or ResolverSettings()
        self._clock = clock
        self._made: dns.resolver.Resolver | None = None
        self._known: dict[tuple[str, str], tuple[float, Records | Exception]] = {}
        self._asking: dict[tuple[str, str], Event] = {}

    @property
    def _dns(self) -> dns.resolver.Resolver:
        while self._made is None:
            made = get_hub().threadpool.apply(_make, (self._settings,))
            self._made = self._made or made
        return self._made

    @property
    def trusted(self) -> bool:
        """Whether AD counts."""
        if self._settings.trusted is not None:
            return self._settings.trusted
        return all(ipaddress.ip_address(str(one)).is_loopback for one in self._dns.nameservers)

    def lookup(self, name: str, kind: str, *, until: float | None = None) -> Records:
        """The records of `kind` ("MX", "TXT" …). Raises NameNotFound or LookupFailed; that too when `until` (of the
        clock) has passed.
        """
        key = (name.lower().rstrip("."), kind)
        while True:
            known = self._known.get(key)
            if known is not None and known[0] > self._clock():
                if isinstance(known[1], Exception):
                    raise type(known[1])(*known[1].args)
                return known[1]
            asking = self._asking.get(key)
            if asking is None:
                return self._ask(key, until)
            if not asking.wait(self._left(until)):
                raise LookupFailed(f"no answer for {key[0]} {kind} in time")

    def _left(self, until: float | None) -> float:
        if until is None:
            return self._settings.seconds
        return max(0.0, min(self._settings.seconds, until - self._clock()))

    def _ask(self, key: tuple[str, str], until: float | None) -> Records:
        self._asking[key] = done = Event()
        try:
            seconds = self._left(until)
            if seconds <= 0:
                raise LookupFailed(f"no time left to look up {key[0]}")
            try:
                records = self._follow(*key, self._clock() + seconds)
                self._remember(key, records, min(max(records.ttl, LEAST_TTL), MOST_TTL))
                return records
            except (NameNotFound, LookupFailed) as failure:
                self._remember(key, failure, LEAST_TTL * 12 if isinstance(failure, NameNotFound) else FAILURE_TTL)
                raise
        finally:
            del self._asking[key]
            done.set()

    def _remember(self, key: tuple[str, str], what: Records | Exception, seconds: float) -> None:
        if len(self._known) >= MOST_NAMES:
            now = self._clock()
            self._known = {one: pair for one, pair in self._known.items() if pair[0] > now}
            for old in list(self._known)[: max(0, len(self._known) - MOST_NAMES // 2)]:
                del self._known[old]
        self._known[key] = (self._clock() + seconds, what)

    def _follow(self, name: str, kind: str, until: float) -> Records:
        """The answer, also where the server leaves it to us to follow an alias (RFC 1034 5.2.2)."""
        ours = self._dns
        import dns.flags

        secure = True
        for _ in range(MOST_ALIASES):
            answer = _query(ours, name, kind, until - self._clock())
            secure = secure and self.trusted and bool(answer.response.flags & dns.flags.AD)
            end = answer.canonical_name.to_text(omit_final_dot=True).lower()
            if answer.rrset is not None or end == name:
                values = [_value(kind, data) for data in answer.rrset or ()]
                if kind == "MX":
                    values.sort(key=lambda pair: int(pair[0]))  # the best ones stay
                return Records(tuple(values[:MOST_RECORDS]), secure, end, answer.chaining_result.minimum_ttl)
            name = end
        raise LookupFailed(f"too many aliases at {name}")

    # -------------------------------------------------------------- what is often asked

    def addresses(self, host: str, *, until: float | None = None) -> Records:
        """Its IP addresses, IPv6 first. NameNotFound if there is no such host; LookupFailed if nobody knows of any
        address and not all could be asked for.
        """
        found: list[str] = []
        secure, failed, ttl, name, missing = True, "", MOST_TTL, host, 0
        for kind in ("AAAA", "A"):
            try:
                records = self.lookup(host, kind, until=until)
            except NameNotFound:
                missing += 1
            except LookupFailed as failure:
                failed = str(failure)
            else:
                found += records.values
                secure, ttl, name = secure and records.secure, min(ttl, records.ttl), records.name
        if not found and failed:
            raise LookupFailed(failed)
        if missing == 2:
            raise NameNotFound(f"{host} does not exist")
        return Records(tuple(found), secure, name, ttl)

    def addresses_of_all(self, hosts: Sequence[str], *, until: float | None = None) -> list[Records | Exception]:
        """`addresses` of several hosts at once: in their order what was found, or why nothing."""

        def one(host: str) -> Records | Exception:
            try:
                return self.addresses(host, until=until)
            except (NameNotFound, LookupFailed) as failure:
                return failure

        if len(hosts) == 1:
            return [one(hosts[0])]
        return list(Group().map(one, hosts))

    def names_of(self, address: str, *, until: float | None = None) -> Records:
        """The PTR records of an IP address."""
        return self.lookup(ipaddress.ip_address(address).reverse_pointer, "PTR", until=until)


def _make(settings: ResolverSettings) -> dns.resolver.Resolver:
    """With all of the library that a lookup needs. Blocks."""
    load(*_LIBRARY)
    import dns.flags
    import dns.resolver

    made = dns.resolver.Resolver(configure=False)
    made.nameservers = list(settings.nameservers) or _system_nameservers()
    made.port = settings.port
    made.timeout, made.lifetime = settings.try_seconds, settings.seconds
    made.use_edns(0, 0, EDNS_OCTETS)
    made.flags = dns.flags.RD | dns.flags.AD
    return made


def _system_nameservers() -> list[str]:
    import dns.exception
    import dns.resolver

    try:
        return [str(one) for one in dns.resolver.Resolver().nameservers]
    except dns.exception.DNSException:
        return ["127.0.0.1"]  # as the C library does without a configuration, resolv.conf(5)


def _query(ours: dns.resolver.Resolver, name: str, kind: str, seconds: float) -> dns.resolver.Answer:
    import dns.exception
    import dns.name
    import dns.resolver

    try:
        return ours.resolve(name, kind, raise_on_no_answer=False, search=False, lifetime=max(0.01, seconds))
    except dns.resolver.NXDOMAIN:
        raise NameNotFound(f"{name} does not exist") from None
    except (dns.name.LabelTooLong, dns.name.NameTooLong, dns.name.EmptyLabel, dns.name.BadEscape):
        raise NameNotFound(f"{name[:80]} is not a name") from None
    except dns.resolver.LifetimeTimeout:
        raise LookupFailed(f"no answer for {name} {kind} in time") from None
    except dns.resolver.NoNameservers as failure:
        errors = failure.kwargs.get("errors") or [(None, None, None, "no name server")]
        raise LookupFailed(f"{name} {kind}: {errors[-1][3]}") from None
    except (dns.exception.DNSException, OSError, ValueError, EOFError) as failure:
        raise LookupFailed(f"{name} {kind}: {failure}") from None


def _value(kind: str, data: Any) -> Any:
    if kind == "MX":
        return int(data.preference), str(data.exchange.to_text(omit_final_dot=True)).lower()
    if kind == "TXT":
        return b"".join(data.strings).decode("utf-8", "replace")
    if kind == "TLSA":
        return int(data.usage), int(data.selector), int(data.mtype), bytes(data.cert)
    if kind in ("PTR", "CNAME", "NS"):
        return str(data.target.to_text(omit_final_dot=True)).lower()
    return str(data.to_text())
