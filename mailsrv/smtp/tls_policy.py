"""How well a connection to a host must be protected: DANE, then MTA-STS, then the sender's wish, then our own default.

What is found here is kept to: where a policy cannot be met the mail waits, and it never goes in clear instead (S18).

Imports: net.resolver, smtp.{dane,mta_sts,next_hops,routes}, log.    RFC 7672, RFC 8461, RFC 8689.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from mailsrv import log
from mailsrv.net.resolver import LookupFailed, NameNotFound, Resolver
from mailsrv.smtp import dane
from mailsrv.smtp.mta_sts import ENFORCE, Policy
from mailsrv.smtp.next_hops import Host
from mailsrv.smtp.routes import Tls


class PolicyFailed(Exception):
    """A policy forbids to speak with this host as it is now."""


class StsPolicies(Protocol):
    """Where the MTA-STS policy of a domain is had from; None without one."""

    def find(self, domain: str, until: float) -> Policy | None: ...


@dataclass(frozen=True, slots=True)
class TlsPolicy:
    """`origin` says to people who wants it; `tlsa` and `names`, where not empty, replace the check by authorities.
    `server_name` is what is asked for (SNI) and checked.
    """

    level: Tls
    server_name: str
    origin: str = ""
    tlsa: tuple[dane.Tlsa, ...] = ()
    names: tuple[str, ...] = ()

    @property
    def is_mandatory(self) -> bool:
        return self.level in (Tls.REQUIRED, Tls.VERIFIED)


class Policies:
    """Finds the policy for each host of a domain. `sts` None: MTA-STS is not looked for."""

    def __init__(self, resolver: Resolver, default: Tls, *, dane: bool = True, sts: StsPolicies | None = None) -> None:
        self._resolver, self._default, self._dane, self._sts = resolver, default, dane, sts

    def for_host(self, domain: str, host: Host, *, require_tls: bool, until: float) -> TlsPolicy:
        """Raises PolicyFailed if the host must not be used, LookupFailed if nobody can tell (RFC 7672 2.1.1)."""
        by_dane = self._by_dane(domain, host, until)
        sts = None if by_dane and by_dane.tlsa else self._by_sts(domain, host, until)
        found = sts or by_dane or TlsPolicy(self._default, host.name)
        if require_tls:
            return _with_require_tls(found, host)
        return found

    def _by_dane(self, domain: str, host: Host, until: float) -> TlsPolicy | None:
        if not (self._dane and host.mx_secure and host.secure and host.canonical):
            return None
        for name in dict.fromkeys((host.canonical, host.name)):  # an alias may have records of its own: 2.2.2
            try:
                records = self._resolver.lookup(f"_{host.port}._tcp.{name}", "TLSA", until=until)
            except NameNotFound:
                continue
            # LookupFailed passes: whoever can suppress the answer must not thereby switch DANE off.
            if records.values and records.secure:
                tlsa = dane.usable(records.values)
                names = tuple(dict.fromkeys((name, host.name, domain)))
                return TlsPolicy(Tls.REQUIRED, name, "DANE", tlsa, names if tlsa else ())
        return None

    def _by_sts(self, domain: str, host: Host, until: float) -> TlsPolicy | None:
        policy = self._sts.find(domain, until) if self._sts is not None else None
        if policy is None or policy.mode == "none":
            return None
        if policy.mode == ENFORCE:
            if not policy.allows(host.name):
                raise PolicyFailed(f"The MTA-STS policy of {domain} does not list {host.name}")
            return TlsPolicy(Tls.VERIFIED, host.name, "MTA-STS")
        if not policy.allows(host.name):
            log.info("MTA-STS in testing mode would fail", domain=domain, host=host.name, reason="host not listed")
        return None


def _with_require_tls(found: TlsPolicy, host: Host) -> TlsPolicy:
    """RFC 8689 4.2.1: DNSSEC or MTA-STS vouch for the host's name, DANE or authorities for its certificate."""
    if found.origin == "MTA-STS" or found.tlsa:
        return found
    if not host.mx_secure:
        raise PolicyFailed(f"The sender asked for REQUIRETLS, but nobody vouches for {host.name} (DNSSEC, MTA-STS)")
    return TlsPolicy(Tls.VERIFIED, host.name, "REQUIRETLS")


__all__ = ["LookupFailed", "Policies", "PolicyFailed", "TlsPolicy"]
