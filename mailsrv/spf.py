"""Whether an IP address may send for a domain, by the domain's SPF record: enough to tell a domain's own administrator.

Macros are not expanded: a mechanism that has one does not match. Limits as RFC 7208 4.6.4 has them (S30): ten terms
that need look-ups, two empty answers, ten hosts of an `mx`.

Imports: the standard library only.    RFC 7208.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass, field

MOST_LOOKUPS, MOST_VOID, MOST_MX = 10, 2, 10
RESULTS = {"+": "pass", "-": "fail", "~": "softfail", "?": "neutral"}

Lookup = Callable[[str, str], list[str]]  # (name, type) -> texts; [] for none; raises LookupError if nobody could tell


class SpfError(Exception):
    """permerror: the record cannot be used; the text says why."""


def find_record(name: str, lookup: Lookup) -> str:
    """The SPF record of a name, "" without one. SpfError if there are several (RFC 7208 4.5)."""
    found = [text for text in lookup(name, "TXT") if text.lower() == "v=spf1" or text.lower().startswith("v=spf1 ")]
    if len(found) > 1:
        raise SpfError(f"{name} has {len(found)} SPF records; there may be one")
    return found[0] if found else ""


def result(address: str, name: str, lookup: Lookup) -> str:
    """pass, fail, softfail, neutral, or none. Raises SpfError, or what `lookup` raises."""
    return _Evaluation(ipaddress.ip_address(address), lookup).check(name)


@dataclass(slots=True)
class _Evaluation:
    """One question, with what it has cost so far."""

    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    lookup: Lookup
    lookups: int = 0
    void: int = 0
    seen: list[str] = field(default_factory=list)

    def check(self, name: str) -> str:
        record = find_record(name, self.lookup)
        if not record:
            return "none"
        redirect = ""
        terms = record.split()[1:]
        for term in terms:
            modifier, equals, value = term.partition("=")
            if equals and ":" not in modifier and "/" not in modifier:
                redirect = value if modifier.lower() == "redirect" else redirect
                continue
            sign, rest = (term[0], term[1:]) if term[0] in RESULTS else ("+", term)
            if self._matches(rest, name):
                return RESULTS[sign]
        if redirect and not any(term.lower().lstrip("+-~?") == "all" for term in terms):
            self._count()
            followed = self.check(redirect)
            if followed == "none":
                raise SpfError(f"redirect={redirect}, which has no SPF record")
            return followed
        return "neutral"

    def _matches(self, term: str, name: str) -> bool:
        mechanism, colon, value = term.partition(":")
        mechanism, slash, cidr = mechanism.partition("/")
        if colon:
            value, slash, cidr = value.partition("/") if mechanism.lower() not in ("ip4", "ip6") else (value, "", "")
        match mechanism.lower():
            case "all":
                return True
            case "ip4" | "ip6":
                return self._in_network(value, 4 if mechanism.lower() == "ip4" else 6)
            case "a" | "mx":
                self._count()
                return "%" not in value and self._in_hosts(mechanism.lower(), value or name, slash + cidr)
            case "include":
                self._count()
                found = self.check(value) if "%" not in value else "fail"
                if found == "none":
                    raise SpfError(f"include:{value}, which has no SPF record")
                return found == "pass"
            case "exists":
                self._count()
                return "%" not in value and bool(self._ask(value, "A"))
            case "ptr":
                self._count()
                return False
        raise SpfError(f"{term!r} is no mechanism of SPF")

    def _count(self) -> None:
        self.lookups += 1
        if self.lookups > MOST_LOOKUPS:
            raise SpfError(f"it needs more than {MOST_LOOKUPS} look-ups")

    def _ask(self, name: str, type: str) -> list[str]:
        found = self.lookup(name, type)
        if not found:
            self.void += 1
            if self.void > MOST_VOID:
                raise SpfError(f"more than {MOST_VOID} of its names do not exist, the last one {name}")
        return found

    def _in_hosts(self, mechanism: str, name: str, lengths: str) -> bool:
        """Whether the address is one of the hosts', or in the same network of /4//6 lengths."""
        type, length = ("A", 32) if self.address.version == 4 else ("AAAA", 128)
        four, _, six = (
            lengths.removeprefix("/").partition("//") if not lengths.startswith("//") else ("", "", lengths[2:])
        )
        text = four if self.address.version == 4 else six
        if text and (not text.isdigit() or int(text) > length):
            raise SpfError(f"{lengths!r} is no prefix length")
        length = int(text) if text else length
        if mechanism == "a":
            found = self._ask(name, type)
        else:
            hosts = self._ask(name, "MX")
            if len(hosts) > MOST_MX:
                raise SpfError(f"{name} has more than {MOST_MX} MX hosts")
            # A host without an address of this family is nothing wrong, and does not count as an empty answer.
            found = [one for host in hosts for one in self.lookup(host.split()[-1].rstrip("."), type)]
        return any(self.address in ipaddress.ip_network(f"{one}/{length}", strict=False) for one in found)

    def _in_network(self, value: str, version: int) -> bool:
        try:
            network = ipaddress.ip_network(value, strict=False)
        except ValueError:
            raise SpfError(f"{value!r} is no network") from None
        if network.version != version:
            raise SpfError(f"{value!r} is no IPv{version} network")
        return self.address.version == version and self.address in network
