"""Where a client comes from: its address, and the network around it that limits count by.

Of IPv6 a subscriber has a /64, so that is what counts as one address; the network of an IPv4 address is its /24 (S20).

Imports: nothing of ours.    RFC 4291 2.5.4 (64-bit interface identifiers), RFC 6177.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from functools import lru_cache

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@lru_cache(maxsize=4096)
def address_of(peer: str) -> str:
    """What counts as one address: `192.0.2.7`, `2001:db8::/64`."""
    if ":" not in peer:
        return peer
    return network_of(peer)


@lru_cache(maxsize=4096)
def network_of(peer: str) -> str:
    """`192.0.2.0/24` or `2001:db8::/64`; what is no IP address is itself."""
    try:
        address = ipaddress.ip_address(peer.partition("%")[0])
    except ValueError:
        return peer
    return str(ipaddress.ip_network((address, 24 if address.version == 4 else 64), strict=False))


class Networks:
    """A list of networks: `peer in networks`."""

    def __init__(self, networks: Sequence[Network] = ()) -> None:
        self._networks = tuple(networks)
        self._holds = lru_cache(maxsize=4096)(self._look)

    def __contains__(self, peer: str) -> bool:
        return bool(self._networks) and self._holds(peer)

    def _look(self, peer: str) -> bool:
        try:
            address = ipaddress.ip_address(peer.partition("%")[0])
        except ValueError:
            return False
        return any(address in network for network in self._networks)
