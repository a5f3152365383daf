"""Where mail goes that shall not go by MX: routes by sender or by recipient domain, as the configuration gives them.

The first route that matches counts. Local domains never get here: the queue delivers them itself, whatever routes say.

Imports: values.    RFC 5321 5.1, RFC 2033 (LMTP).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from mailsrv.values import Address, Envelope


class Tls(Enum):
    """How a connection must be protected, from nothing to a checked certificate."""

    NONE = "none"
    OPPORTUNISTIC = "opportunistic"  # TLS if it is to be had, checked by nobody; else in clear
    REQUIRED = "required"  # TLS, checked by nobody
    VERIFIED = "verified"  # TLS, with a certificate of the host's name that the system trusts


@dataclass(frozen=True, slots=True)
class Route:
    """`senders` and `recipients` hold addresses ("ann@example.org"), domains ("example.org") or domains with all below
    them (".example.org"); empty matches everybody. `implicit_tls`: TLS from the first octet.
    """

    host: str
    port: int
    senders: frozenset[str] = frozenset()
    recipients: frozenset[str] = frozenset()
    protocol: str = "smtp"
    user: str = ""
    password_file: str = ""
    tls: Tls = Tls.OPPORTUNISTIC
    implicit_tls: bool = False
    source_v4: str = ""
    source_v6: str = ""

    @property
    def name(self) -> str:
        """Where it leads, for people and for the queue, which groups by it."""
        user = f"{self.user}@" if self.user else ""
        return f"{self.protocol}:{user}[{self.host}]:{self.port}"

    def matches(self, sender: Address | None, recipient: Address) -> bool:
        return _among(sender, self.senders) and _among(recipient, self.recipients)


def _among(address: Address | None, wanted: frozenset[str]) -> bool:
    if not wanted:
        return True
    if address is None:
        return False
    domain = address.domain
    if domain in wanted or f"{address.local}@{domain}".lower() in wanted:
        return True
    while domain:
        if f".{domain}" in wanted:
            return True
        domain = domain.partition(".")[2]
    return False


def find(routes: Sequence[Route], envelope: Envelope, recipient: Address) -> Route | None:
    for route in routes:
        if route.matches(envelope.sender, recipient):
            return route
    return None
