"""Answers programs that watch the server, by HTTP: /metrics for Prometheus, /health and /ready for whoever restarts or
routes.

One request on a connection, a few lines of it read with limits and a deadline; whichever process accepts it speaks for
all of them.

Imports: control, metrics, net.stream, log.    RFC 9112; docs/monitoring.md.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mailsrv import log, metrics
from mailsrv.certificates import expiry
from mailsrv.config import Config
from mailsrv.control import Reply, ask_all
from mailsrv.errors import MailError
from mailsrv.net.stream import Stream, StreamError
from mailsrv.start import certificate_files
from mailsrv.store.files import offload
from mailsrv.wire.errors import WireError

if TYPE_CHECKING:
    from mailsrv.daemon import Server

SECONDS = 10.0  # for a request; RFC 9112 has no number
ASK_SECONDS = 3.0
LINE_OCTETS, MOST_LINES = 8192, 100
PLAIN, JSON = "text/plain; charset=utf-8", "application/json"
_WORDS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}
# (status, content type, body)
Response = tuple[int, str, bytes]


class Probe:
    """One connection."""

    def __init__(self, stream: Stream, server: Server) -> None:
        self.stream, self._server = stream, server
        self.id = log.new_id("probe")
        self._begun_at = round(time.time(), 3)

    def run(self) -> None:
        stream = self.stream
        try:
            stream.set_deadline(SECONDS)
            stream.write_seconds = SECONDS
            try:
                status, kind, body, method = self._answered()
            except WireError as error:
                status, kind, body, method = 400, PLAIN, f"{error.message}\n".encode(), "GET"
            head = (
                f"HTTP/1.1 {status} {_WORDS[status]}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
                + ("Allow: GET, HEAD\r\n" if status == 405 else "")
                + "Cache-Control: no-store\r\nConnection: close\r\n\r\n"
            )
            stream.write(head.encode() + (b"" if method == "HEAD" else body))
        except StreamError as failure:
            log.debug("disconnected", session=self.id, peer=stream.peer, reason=str(failure))
        except Exception:
            log.exception("session failed", session=self.id, peer=stream.peer)
        finally:
            stream.close()

    def stop(self, text: str = "") -> None:
        """It ends by itself, soon."""

    def hang_up(self) -> None:
        self.stream.hang_up()

    def described(self) -> dict[str, Any]:
        return {
            "session": self.id, "service": self.stream.service, "user": None, "peer": self.stream.peer,
            "tls": False, "client": None, "mailbox": None, "state": "working", "connected_at": self._begun_at,
            "idling_since": None,
        }  # fmt: skip

    def _answered(self) -> tuple[int, str, bytes, str]:
        words = self.stream.read_line(LINE_OCTETS).decode("latin-1").split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            raise WireError("Not a request of HTTP/1.1")
        method, path = words[0], words[1].partition("?")[0]
        accept = self._accept()
        if method not in ("GET", "HEAD"):
            return 405, PLAIN, b"GET or HEAD\n", method
        page = PAGES.get(path)
        if page is None:
            return 404, PLAIN, f"There are {', '.join(PAGES)}\n".encode(), method
        return (*page(self._server, accept), method)

    def _accept(self) -> str:
        """Reads the header; what its Accept field says."""
        accept = ""
        for _ in range(MOST_LINES):
            line = self.stream.read_line(LINE_OCTETS).decode("latin-1")
            if not line:
                return accept
            name, _, value = line.partition(":")
            if name.lower() == "accept":
                accept = value.strip()
        raise WireError("Too many header fields")


# ------------------------------------------------------------------ the pages


def _metrics(server: Server, accept: str) -> Response:
    replies = ask_all(server.config["server.run_dir"], "metrics", seconds=ASK_SECONDS)
    text, kind = offload(_written, server.config, replies, accept)
    return 200, kind, text


def _written(config: Config, replies: list[Reply], accept: str) -> tuple[bytes, str]:
    try:
        found = os.statvfs(config["server.data_dir"])
        disk: tuple[int, int] | None = (found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize)
    except OSError:
        disk = None
    return metrics.exposition(metrics.gathered(replies, disk, _expiries(config)), accept)


_expiry: dict[str, tuple[int, float]] = {}  # by file: its time, and when it ends


def _expiries(config: Config) -> dict[str, float]:
    for path, _ in certificate_files(config):
        try:
            changed_at = os.stat(path).st_mtime_ns
            if _expiry.get(path, (0, 0.0))[0] != changed_at:
                _expiry[path] = (changed_at, expiry(path).timestamp())
        except (OSError, ValueError):
            _expiry.pop(path, None)
    served = {path for path, _ in certificate_files(config)}
    return {path: at for path, (_, at) in _expiry.items() if path in served}


def _health(server: Server, accept: str) -> Response:
    """This process turns: that it answers is the answer."""
    return 200, PLAIN, b"ok\n"


def _ready(server: Server, accept: str) -> Response:
    """Whether mail is taken and given out."""
    problems = []
    if server.stopping:
        problems.append("the server is shutting down")
    if not os.path.isfile(server.config.accounts_path):
        problems.append(f"{server.config.accounts_path} is gone")
    try:
        server.accounts.domains()
    except MailError as failure:
        problems.append(f"accounts: {failure}")
    if not server.intake.has_room(2 * server.config["smtp.message_bytes"]):
        problems.append("the disk is full: mail is put off")
    for reply in ask_all(server.config["server.run_dir"], "ping", seconds=ASK_SECONDS):
        if reply.error:
            problems.append(f"{reply.process} does not answer: {reply.error}")
    text = json.dumps({"ready": not problems, "problems": problems}) + "\n"
    return 503 if problems else 200, JSON, text.encode()


PAGES: dict[str, Callable[[Server, str], Response]] = {"/metrics": _metrics, "/health": _health, "/ready": _ready}
