"""The hosts that take mail for a domain, best first: MX, or the domain itself, or what an address literal says.

A domain that does not exist, or says that it takes no mail, is final; that the DNS does not answer never is. Hosts
that are ourselves are left out together with all that are not better, and if that leaves none the mail would loop.

Imports: net.resolver, net.dial, values.    RFC 5321 5.1, RFC 7505 (null MX), RFC 3463 3.2, 3.5.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from mailsrv.net.dial import is_own, is_usable
from mailsrv.net.resolver import LookupFailed, NameNotFound, Records, Resolver
from mailsrv.values import Disposition

MOST_HOSTS = 10  # of which addresses are looked up
MOST_ADDRESSES = 8  # of one host


class Unroutable(Exception):
    """There is no host to send to; now (LATER) or at all (NEVER)."""

    def __init__(self, disposition: Disposition, enhanced: str, text: str) -> None:
        super().__init__(text)
        self.disposition, self.enhanced, self.text = disposition, enhanced, text


@dataclass(frozen=True, slots=True)
class Host:
    """`secure`: its addresses were validated by DNSSEC; `mx_secure`: so was that it is a host of this domain.
    `canonical` is its name with aliases followed.
    """

    name: str
    port: int
    addresses: tuple[str, ...]
    preference: int = 0
    canonical: str = ""
    secure: bool = False
    mx_secure: bool = False


@dataclass(frozen=True, slots=True)
class Ourselves:
    """How to know ourselves among the hosts: names, addresses that others see, and ports on which we take mail."""

    names: frozenset[str] = frozenset()
    addresses: frozenset[str] = frozenset()
    ports: frozenset[int] = frozenset({25})

    def is_host(self, host: Host) -> bool:
        if host.port not in self.ports:
            return False
        return host.name in self.names or any(one in self.addresses or is_own(one) for one in host.addresses)


def never(enhanced: str, text: str) -> Unroutable:
    return Unroutable(Disposition.NEVER, enhanced, text)


def later(enhanced: str, text: str) -> Unroutable:
    return Unroutable(Disposition.LATER, enhanced, text)


def hosts_of_domain(
    domain: str, resolver: Resolver, ourselves: Ourselves, port: int, until: float,
    shuffle: Callable[[list[tuple[int, str]]], None] = random.shuffle,
) -> list[Host]:  # fmt: skip
    """The hosts to try, in order. Raises Unroutable."""
    if domain.startswith("["):
        hosts = [Host(domain, port, (domain[1:-1].removeprefix("IPv6:"),))]
    else:
        hosts = _by_mx(domain, resolver, port, until, shuffle)
    own = min((host.preference for host in hosts if ourselves.is_host(host)), default=None)
    if own is not None:
        # RFC 5321 5.1: whoever is not better than ourselves would send it back to us.
        hosts = [host for host in hosts if host.preference < own]
        if not hosts:
            raise never("5.4.6", f"Mail for {domain} leads back to this server, which is not set up to take it")
    hosts = [host for host in hosts if host.addresses]
    if not hosts:
        raise never("5.4.4", f"No host for mail to {domain} has an address")
    return hosts


def _by_mx(
    domain: str, resolver: Resolver, port: int, until: float, shuffle: Callable[[list[tuple[int, str]]], None]
) -> list[Host]:
    try:
        mx = resolver.lookup(domain, "MX", until=until)
    except NameNotFound:
        raise never("5.1.2", f"The domain {domain} does not exist") from None
    except LookupFailed as failure:
        raise later("4.4.3", f"DNS: {failure}") from None
    listed = list(mx.values)
    if listed and all(name == "." for _, name in listed):
        raise never("5.1.10", f"The domain {domain} takes no mail (null MX)")  # RFC 7505 4.1
    listed = [pair for pair in listed if pair[1] != "."] or [(0, domain)]
    shuffle(listed)
    listed.sort(key=lambda pair: pair[0])
    listed = listed[:MOST_HOSTS]
    found = resolver.addresses_of_all([name for _, name in listed], until=until)
    hosts = [
        Host(
            name, port, tuple(one for one in records.values if is_usable(one))[:MOST_ADDRESSES], preference,
            records.name, records.secure, mx.secure,
        )
        for (preference, name), records in zip(listed, found, strict=True) if isinstance(records, Records)
    ]  # fmt: skip
    if any(host.addresses for host in hosts):
        return hosts
    failures = [one for one in found if isinstance(one, LookupFailed)]
    if failures:
        raise later("4.4.3", f"DNS: {failures[0]}")
    if mx.values:
        raise never("5.4.4", f"No host for mail to {domain} has an address")
    raise never("5.1.2", f"The domain {domain} has no host for mail")


def host_of_route(name: str, port: int, resolver: Resolver, until: float) -> Host:
    """The one host of a route: its addresses, no MX. Trouble with it is ours, and never final."""
    literal = name.strip("[]").removeprefix("IPv6:")
    if ":" in literal or literal.replace(".", "").isdigit():
        return Host(literal, port, (literal,))
    try:
        records = resolver.addresses(name, until=until)
    except (NameNotFound, LookupFailed) as failure:
        raise later("4.4.3", f"DNS: {failure}") from None
    if not records.values:
        raise later("4.4.4", f"The host {name} of the route has no address")
    return Host(name, port, records.values[:MOST_ADDRESSES], 0, records.name, records.secure)
