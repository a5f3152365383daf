"""Routes as the configuration describes them, read and checked.

Imports: smtp.routes.    docs/sending.md.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Any

from mailsrv.smtp.routes import Route, Tls

KEYS = ("sender", "recipient", "host", "port", "protocol", "user", "password_file", "tls", "source")
_PATTERN = re.compile(r"(?:[^\s@<>]{1,64}@)?\.?[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?")
_HOST = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?|\[?[0-9a-fA-F:]{2,45}\]?")
_PORTS = {"smtp": 25, "lmtp": 24}
SUBMISSION, SUBMISSIONS = 587, 465


def read_routes(value: Any) -> tuple[Route, ...]:
    """Routes as YAML gives them. ValueError says what is wrong with which."""
    if not isinstance(value, list):
        raise ValueError("this is no list")
    routes = []
    for number, one in enumerate(value, 1):
        try:
            routes.append(_read_route(one))
        except ValueError as wrong:
            raise ValueError(f"route {number}: {wrong}") from None
    return tuple(routes)


def _read_route(one: Any) -> Route:
    if not isinstance(one, dict):
        raise ValueError("expected `host: …` and what belongs to it")
    for key in one:
        if key not in KEYS:
            raise ValueError(f"{key} is not one of {', '.join(KEYS)}")
    host, protocol, user = str(one.get("host", "")).lower(), one.get("protocol", "smtp"), one.get("user", "")
    if not _HOST.fullmatch(host):
        raise ValueError("host is a host name or an IP address")
    if protocol not in _PORTS:
        raise ValueError("protocol is smtp or lmtp")
    port = one.get("port", SUBMISSION if user else _PORTS[protocol])
    if isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 65536:
        raise ValueError("port is a number from 1 to 65535")
    password_file = one.get("password_file", "")
    if not isinstance(user, str) or not isinstance(password_file, str) or bool(user) != bool(password_file):
        raise ValueError("user and password_file are set together, or neither")
    if password_file and not password_file.startswith("/"):
        raise ValueError("password_file is an absolute path")
    try:
        tls = Tls(one.get("tls", "verified" if user else "opportunistic"))
    except ValueError:
        raise ValueError("tls is none, opportunistic, required or verified") from None
    if user and tls in (Tls.NONE, Tls.OPPORTUNISTIC):
        raise ValueError("a password needs tls: required or verified")
    v4, v6 = _read_sources(one.get("source", []))
    return Route(
        host.strip("[]"), port, _read_patterns(one, "sender"), _read_patterns(one, "recipient"), protocol, user,
        password_file, tls, port == SUBMISSIONS and protocol == "smtp" and tls is not Tls.NONE, v4, v6,
    )  # fmt: skip


def _read_patterns(one: dict[str, Any], key: str) -> frozenset[str]:
    value = one.get(key, [])
    patterns = [str(item).lower() for item in (value if isinstance(value, list) else [value])]
    for pattern in patterns:
        if not _PATTERN.fullmatch(pattern):
            raise ValueError(f"{key} is an address, a domain, a .domain with all below it, or a list of these")
    return frozenset(patterns)


def _read_sources(value: Any) -> tuple[str, str]:
    found = {4: "", 6: ""}
    for item in value if isinstance(value, list) else [value]:
        try:
            address = ipaddress.ip_address(item if isinstance(item, str) else "")
        except ValueError:
            raise ValueError("source is an IP address, or one of each version") from None
        if found[address.version]:
            raise ValueError("source has at most one address of each version")
        found[address.version] = str(address)
    return found[4], found[6]
