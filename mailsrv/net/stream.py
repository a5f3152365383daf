"""A connection as whole lines and counted octets, each read and write with a limit and a deadline.

An idle stream keeps no buffer: what was read ahead is given back as soon as it is used up. A write that the peer
does not take in time ends the connection, so that a client which never reads holds nothing but itself.

Imports: wire, gevent.    RFC 5321 2.3.8 (CRLF is the only line end), RFC 3207 (nothing read in clear survives
STARTTLS).
"""

from __future__ import annotations

import _ssl
import select
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import gevent
from gevent.hub import get_hub
from gevent.monkey import get_original

from mailsrv import counters
from mailsrv.wire.errors import WireError
from mailsrv.wire.lines import DotDecoder

READ_BYTES = 16 * 1024
CHUNK_BYTES = 64 * 1024
HANDSHAKE_SECONDS = 30.0
FAREWELL_SECONDS = 5.0
LINGER_SECONDS, LINGER_OCTETS = 2.0, 4 << 20
_ENCODING_DER: int = _ssl.ENCODING_DER
select_poll = get_original("select", "poll")  # asked for no time at all, it never waits


class StreamError(Exception):
    """The connection cannot go on."""


class ConnectionLost(StreamError):
    """The peer went away, or the network did."""


class DeadlineExceeded(StreamError):
    """The peer took too long."""


class HandshakeFailed(ConnectionLost):
    """TLS could not be agreed upon; nothing but TLS can be wrong."""


class LimitExceeded(StreamError):
    """The peer sent more than is allowed here; what it sends further on is not read as something else."""


class Watch:
    """Calls back once when the connection has something to read, or has ended."""

    __slots__ = ("_callback", "_watcher", "fired")

    def __init__(self, fd: int, callback: Callable[[], None]) -> None:
        self._callback = callback
        self.fired = False
        self._watcher: Any = get_hub().loop.io(fd, 1)
        self._watcher.start(self._fired)

    def _fired(self) -> None:
        self._watcher.stop()  # the event is a level: it would fire again at once
        self.fired = True
        self._callback()

    def stop(self) -> None:
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher.close()
            self._watcher = None


class Stream:
    __slots__ = (
        "_buffer", "_deadline", "_lingers", "_out", "_received", "_sent", "_socket", "closed", "peer", "read_seconds",
        "service", "tls", "write_seconds",
    )  # fmt: skip

    def __init__(
        self, sock: Any, peer: str, *, read_seconds: float = 300.0, write_seconds: float = 60.0, service: str = "other"
    ) -> None:
        self._socket = sock
        self.peer, self.service = peer, service
        self._received = counters.octets.of(service, "received")
        self._sent = counters.octets.of(service, "sent")
        self.read_seconds, self.write_seconds = read_seconds, write_seconds
        self._buffer = b""
        self._out: list[bytes] | None = None
        self._deadline: float | None = None
        self.tls = isinstance(sock, ssl.SSLSocket)
        self.closed = False
        self._lingers = False

    # -------------------------------------------------------------- reading

    def set_deadline(self, seconds: float | None) -> None:
        """A time by which all reading must be done, whatever arrives meanwhile; None takes it back."""
        self._deadline = None if seconds is None else time.monotonic() + seconds

    def _receive(self, size: int = READ_BYTES) -> bytes:
        seconds = self.read_seconds
        if self._deadline is not None:
            seconds = min(seconds, self._deadline - time.monotonic())
            if seconds <= 0:
                raise DeadlineExceeded("total time used up")
        try:
            self._socket.settimeout(seconds)
            data: bytes = self._socket.recv(size)
        except TimeoutError:
            raise DeadlineExceeded("nothing received in time") from None
        except (OSError, ValueError) as failure:
            raise ConnectionLost(str(failure)) from None
        if not data:
            raise ConnectionLost("closed by the peer")
        self._received.count += len(data)
        return data

    @property
    def local_address(self) -> str:
        """The address the peer connected to."""
        try:
            return str(self._socket.getsockname()[0])
        except OSError:
            return ""

    @property
    def pending(self) -> bool:
        """Whether something was received that is not used yet."""
        return bool(self._buffer) or (self.tls and self._socket.pending() > 0)

    def spoken_to(self) -> bool:
        """Whether the peer has sent anything that is not used yet; inside TLS one sees only what was received."""
        if self.pending or self.tls:
            return self.pending
        try:
            self._socket.settimeout(0)
            return bool(self._socket.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def read_line(self, limit: int) -> bytes:
        """One line without its CRLF. WireError for a bare CR or LF in it, LimitExceeded beyond `limit` octets."""
        line = self._read_to_lf(limit)
        if not line.endswith(b"\r"):
            raise WireError("Line ends in a bare LF", len(line))
        line = line[:-1]
        if b"\r" in line:
            raise WireError("Bare CR in a line", line.find(b"\r"))
        return line

    def read_reply_line(self, limit: int) -> bytes:
        """One line of a server without its end, which may be a bare LF: nothing but a code is taken from it."""
        return self._read_to_lf(limit).removesuffix(b"\r")

    def _read_to_lf(self, limit: int) -> bytes:
        buffer = self._buffer
        start = 0
        while (end := buffer.find(b"\n", start)) < 0:
            if len(buffer) > limit + 2:
                raise LimitExceeded(f"line longer than {limit} octets")
            start = len(buffer)
            self._buffer = buffer = buffer + self._receive() if buffer else self._receive()
        if end > limit + 1:
            raise LimitExceeded(f"line longer than {limit} octets")
        line, self._buffer = buffer[:end], buffer[end + 1 :]
        return line

    def discard_line(self, limit: int) -> None:
        """After LimitExceeded: read on to the end of that line, and give up (LimitExceeded) if it has none for long."""
        read = 0
        while (end := self._buffer.find(b"\n")) < 0:
            read += len(self._buffer)
            self._buffer = b""
            if read > limit:
                raise LimitExceeded(f"no line end within {limit} octets")
            self._buffer = self._receive()
        self._buffer = self._buffer[end + 1 :]

    def read_chunks(self, size: int) -> Iterator[bytes]:
        """Exactly `size` octets, in pieces as they arrive."""
        while size > 0:
            chunk = self._buffer or self._receive(min(CHUNK_BYTES, size))
            if len(chunk) > size:
                chunk, self._buffer = chunk[:size], chunk[size:]
            else:
                self._buffer = b""
            size -= len(chunk)
            yield chunk

    def read_exactly(self, size: int) -> bytes:
        return b"".join(self.read_chunks(size))

    def read_dotted(
        self, decoder: DotDecoder, *, least_rate: float = 0.0, grace_seconds: float = 60.0
    ) -> Iterator[bytes]:
        """The text of a DATA command in pieces, unstuffed, until `<CRLF>.<CRLF>`. `least_rate`: octets per second."""
        begun, total = time.monotonic(), 0
        while not decoder.done:
            data = self._buffer or self._receive(CHUNK_BYTES)
            self._buffer = b""
            total += len(data)
            spent = time.monotonic() - begun
            if least_rate and spent > grace_seconds and total < least_rate * spent:
                raise DeadlineExceeded("message arrives too slowly")
            text = decoder.feed(data)
            if decoder.done:
                self._buffer = decoder.rest
            if text:
                yield text

    # -------------------------------------------------------------- writing

    def write(self, data: bytes) -> None:
        """Send what is queued and this, in one go."""
        if self._out:
            self._out.append(data)
            data = b"".join(self._out)
            self._out = None
        try:
            self._socket.settimeout(self.write_seconds)
            self._socket.sendall(data)
            self._sent.count += len(data)
        except TimeoutError:
            raise DeadlineExceeded("the peer does not read") from None
        except (OSError, ValueError) as failure:
            raise ConnectionLost(str(failure)) from None

    def queue(self, data: bytes) -> None:
        """Send with the next `write` or `flush`."""
        if self._out is None:
            self._out = []
        self._out.append(data)

    def flush(self) -> None:
        if self._out:
            self.write(b"")

    def write_last(self, data: bytes, *, expected: bool = False) -> None:
        """Last words: nothing is written after them, and `close` lets the peer read them whatever it still sends.
        `expected`: the peer asked for the end, and is not waited for unless something of it is unread.
        """
        self.write_seconds = min(FAREWELL_SECONDS, self.write_seconds)
        self.write(data)
        self._lingers = not (expected and self.quiet)
        if isinstance(self._socket, ssl.SSLSocket):
            with suppress(OSError, ValueError):
                self._socket.settimeout(0)
                self._socket.unwrap()  # close_notify; the peer's is not waited for (RFC 8446 6.1)

    # -------------------------------------------------------------- life

    def start_tls(self, context: ssl.SSLContext) -> None:
        """The server's side of a handshake. WireError if anything was received before it (RFC 3207 5, command
        injection).
        """
        if self._buffer:
            self._buffer = b""
            raise WireError("Data was sent before TLS was negotiated")
        self._socket = handshake(self._socket, context)
        self.tls = True

    def start_client_tls(self, context: ssl.SSLContext, server_name: str, seconds: float = HANDSHAKE_SECONDS) -> None:
        """The client's side of a handshake, with `server_name` as SNI. HandshakeFailed otherwise; WireError if the
        server said anything more in clear (S3, CVE-2021-38371).
        """
        if self._buffer:
            self._buffer = b""
            raise WireError("Data was sent before TLS was negotiated")
        self._socket = client_handshake(self._socket, context, server_name, seconds)
        self.tls = True

    @property
    def tls_name(self) -> str:
        """How it is encrypted, "TLSv1.3 TLS_AES_256_GCM_SHA384"; "" in clear."""
        if not self.tls:
            return ""
        cipher = self._socket.cipher()
        return f"{self._socket.version()} {cipher[0] if cipher else ''}".strip()

    def peer_chain(self) -> list[bytes]:
        """The certificates the peer sent, its own first, as DER and not verified."""
        # The SSLSocket has this from 3.13 on, the object below it since 3.10.
        chain = self._socket._sslobj.get_unverified_chain() or []
        return [certificate.public_bytes(_ENCODING_DER) for certificate in chain]

    @property
    def quiet(self) -> bool:
        """Whether the peer has neither sent anything that is not read, nor ended the connection."""
        if self.closed or self.pending:
            return False
        poll = select_poll()
        try:
            poll.register(self._socket.fileno(), select.POLLIN | select.POLLHUP | select.POLLERR)
            return not poll.poll(0)
        except (OSError, ValueError):
            return False

    def watch_readable(self, callback: Callable[[], None]) -> Watch:
        return Watch(self._socket.fileno(), callback)

    def hang_up(self) -> None:
        """End the dialogue from another greenlet: whoever reads the connection, or lingers, finds it closed and cleans
        up.
        """
        with suppress(OSError, ValueError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the connection; safe from any greenlet, and twice."""
        if self.closed:
            return
        self.closed = True
        self._buffer = b""
        self._out = None
        try:
            if self._lingers:
                self._linger()
        finally:
            self.hang_up()
            with suppress(OSError):
                self._socket.close()

    def _linger(self) -> None:
        """Read on for a while and forget it. Closing while anything is unread, or arrives later, makes the system send
        a reset (RFC 1122 4.2.2.13), which takes along what the peer has received and not read: our last words.
        """
        deadline, room = time.monotonic() + LINGER_SECONDS, LINGER_OCTETS
        with suppress(OSError, ValueError):
            self._socket.shutdown(socket.SHUT_WR)  # inside TLS too: what comes now is not decrypted any more
            while room > 0:
                self._socket.settimeout(max(0.0, deadline - time.monotonic()))
                data = self._socket.recv(CHUNK_BYTES)
                if not data:
                    return
                room -= len(data)


def handshake(sock: Any, context: ssl.SSLContext, seconds: float = HANDSHAKE_SECONDS) -> Any:
    """TLS on an accepted socket, with a timer of its own over all of it. ConnectionLost or DeadlineExceeded
    otherwise.
    """
    deadline = time.monotonic() + seconds
    secured = None
    try:
        sock.settimeout(seconds)
        secured = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        # Each wait of a handshake is for one flight; a peer that sends octet by octet is cut off by the whole.
        secured.settimeout(max(0.001, deadline - time.monotonic()))
        secured.do_handshake()
        return secured
    except BaseException as failure:
        if secured is not None:
            secured.close()  # it took the descriptor over from `sock`
        if isinstance(failure, TimeoutError):
            raise DeadlineExceeded("TLS handshake took too long") from None
        if isinstance(failure, (OSError, ValueError)):
            raise ConnectionLost(f"TLS handshake: {getattr(failure, 'reason', None) or failure}") from None
        raise


def client_handshake(sock: Any, context: ssl.SSLContext, server_name: str, seconds: float) -> Any:
    """TLS on a socket we connected. HandshakeFailed otherwise, whatever went wrong; the socket is closed then."""
    secured = None
    try:
        sock.settimeout(seconds)
        with gevent.Timeout(seconds, TimeoutError("took too long")):
            secured = context.wrap_socket(sock, server_hostname=server_name or None, do_handshake_on_connect=False)
            secured.do_handshake()
        return secured
    except BaseException as failure:
        (secured or sock).close()
        if isinstance(failure, (OSError, ValueError)):  # ValueError: a name that cannot be in SNI
            reason = getattr(failure, "verify_message", None) or getattr(failure, "reason", None) or failure
            raise HandshakeFailed(f"TLS handshake: {reason}") from None
        raise
