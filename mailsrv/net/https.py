"""One small document by HTTPS, from the host and no other: no redirects, no proxies, a bound on time and size.

Imports: net.{dial,resolver,stream}, gevent.    RFC 8461 3.3.
"""

from __future__ import annotations

import http.client
import io
import ssl
from typing import Any

import gevent

from mailsrv.net.dial import Sources, dial
from mailsrv.net.resolver import LookupFailed, NameNotFound, Resolver
from mailsrv.net.stream import StreamError, client_handshake

SECONDS = 30.0
AROUND_OCTETS = 64 * 1024  # of head and chunk sizes beside the document


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
    except (NameNotFound, LookupFailed, StreamError, OSError, ValueError, http.client.HTTPException) as failure:
        # ValueError: what http.client makes of chunk sizes below 0, for instance
        raise FetchFailed(f"{type(failure).__name__}: {failure}") from None
    finally:
        if sock is not None:
            sock.close()


class _Bounded(io.RawIOBase):
    """What a server sends, up to `octets`: http.client takes a chunk of size -1 for "all there is"."""

    def __init__(self, sock: Any, octets: int) -> None:
        self._socket, self._left = sock, octets

    def sendall(self, data: bytes) -> None:
        self._socket.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._left <= 0:
            raise OSError("the answer is too large")
        data = self._socket.recv(min(len(buffer), self._left))
        self._left -= len(data)
        buffer[: len(data)] = data
        return len(data)


def _get(sock: Any, host: str, path: str, limit: int) -> bytes:
    connection = http.client.HTTPConnection(host)
    connection.sock = _Bounded(sock, limit + AROUND_OCTETS)  # connected and inside TLS already
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
