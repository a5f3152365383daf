"""TLS contexts from certificate files.

Imports: ssl.    RFC 8314 (implicit TLS), RFC 9325 (recommendations), RFC 6066 3 (server names).
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"  # for TLS 1.2; 1.3 has its own

# What a file was when it was read: inode, size, time of the last change.
_Stamp = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate chain and its key, and the names it is for, `*.example.org` among them."""

    certificate: str
    key: str
    names: tuple[str, ...] = ()


class ServerContext(ssl.SSLContext):
    """The one context of all services. It has no certificate itself: each handshake takes the one whose name the client
    asks for, or the first. So new files hold from the next handshake on, for everybody who has this context already,
    and session tickets stay valid.
    """

    _first: ssl.SSLContext
    _by_name: dict[str, ssl.SSLContext]
    _stamps: dict[str, _Stamp | None]

    def load(self, pairs: Sequence[Pair]) -> None:
        """Serve these from now on. Raises OSError or ssl.SSLError if one cannot be used, and stays with what it had."""
        stamps = {path: _stamp(path) for pair in pairs for path in (pair.certificate, pair.key)}
        contexts = [_prepared(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)) for _ in pairs]
        by_name: dict[str, ssl.SSLContext] = {}
        for context, pair in zip(contexts, pairs, strict=True):
            context.load_cert_chain(pair.certificate, pair.key)
            for name in pair.names:
                by_name.setdefault(name.lower(), context)
        self._first, self._by_name, self._stamps = contexts[0], by_name, stamps

    def changed(self) -> bool:
        """Whether a file is another than the one that was loaded."""
        return any(_stamp(path) != stamp for path, stamp in self._stamps.items())

    def choose(self, name: str | None) -> ssl.SSLContext:
        """For the name that a client asks for; None if it did not."""
        name = (name or "").lower()
        found = self._by_name.get(name) or self._by_name.get("*." + name.partition(".")[2])
        return found or self._first


def _choose(sock: ssl.SSLSocket | ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
    assert isinstance(context, ServerContext)
    sock.context = context.choose(name)


def _prepared(context: ssl.SSLContext) -> ssl.SSLContext:
    """TLS 1.2 and newer, with forward secrecy and authenticated encryption."""
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    return context


def _stamp(path: str) -> _Stamp | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def server_context(pairs: Sequence[Pair]) -> ServerContext:
    """Raises OSError or ssl.SSLError for files that cannot be used."""
    context = ServerContext(ssl.PROTOCOL_TLS_SERVER)
    _prepared(context)
    context.load(pairs)
    context.sni_callback = _choose
    return context


def client_context(*, verify: bool, ca_file: str = "") -> ssl.SSLContext:
    """For connections to other servers: certificate and name are checked, or nothing is (opportunistic, RFC 7435).

    Reads the system's trusted certificates: off the hub. Raises OSError or ssl.SSLError for a file that cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif ca_file:
        context.load_verify_locations(ca_file)
    else:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    return context
