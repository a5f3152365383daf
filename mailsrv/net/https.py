"""One small document by HTTPS, from the host and no other: no redirects, no proxies, a bound on time and size.

Imports: net.{dial,resolver,stream}, gevent.    RFC 8461 3.3.
"""

from __future__ import annotations

import http.client
import ssl
from typing import Any

import gevent

from mailsrv.net.dial import Sources, dial
from mailsrv.net.resolver import LookupFailed, NameNotFound, Resolver
from mailsrv.net.stream import StreamError, client_handshake

SECONDS = 30.0


class FetchFailed(Exception):
    """The document could not be had; `str()` says why."""


def fetch(
    host: str, path: str, resolver: Resolver, context: ssl.SSLContext, *, seconds: float = SECONDS, limit: int,
    port: int = 443, sources: Sources | None = None,
) -> bytes:  # fmt: skip
    """The body of a text/plain document. `context` verifies the certificate. Raises FetchFailed."""
    sock: Any = None
    try:
        with gevent.Timeout(max(0.001, seconds), FetchFailed("took too long")):
            addresses = resolver.addresses(host).values
            sock, _ = dial(addresses, port, seconds, sources)
            sock = client_handshake(sock, context, host, seconds)
            return _get(sock, host, path, limit)
    except (NameNotFound, LookupFailed, StreamError, OSError, http.client.HTTPException) as failure:
        raise FetchFailed(f"{type(failure).__name__}: {failure}") from None
    finally:
        if sock is not None:
            sock.close()


def _get(sock: Any, host: str, path: str, limit: int) -> bytes:
    connection = http.client.HTTPConnection(host)
    connection.sock = sock  # connected and inside TLS already
    connection.request("GET", path, headers={"Connection": "close", "Accept": "text/plain"})
    with connection.getresponse() as response:
        if response.status != 200:
            raise FetchFailed(f"the server answers {response.status}")
        kind = response.headers.get_content_type()
        if kind != "text/plain":
            raise FetchFailed(f"the document is {kind[:60]}, not text/plain")
        body = response.read(limit + 1)
    if len(body) > limit:
        raise FetchFailed(f"the document is larger than {limit} octets")
    return body
