"""Who submits mail: twenty connections in a process of their own."""

from __future__ import annotations

import base64
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from outward.common import COMMAND, DOMAINS, HANGING, SECONDS

CONNECTIONS = 20
HEAD = b"""From: u0@bench.test
To: %b
Subject: Number %d of many
Date: Tue, 24 Nov 2026 08:00:00 +0000
Message-ID: <%d.%d@bench.test>

""".replace(b"\n", b"\r\n")
BODY = b"A line of text that is neither long nor short.\r\n" * 83


class Client:
    """One connection that submits mail; every reply is as it should be, or the run ends."""

    def __init__(self, port: int, *, tls: bool = True) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._lines = self._socket.makefile("rb")
        self._expect(b"220")
        self.say(b"EHLO client.bench.test", b"250")
        if tls:
            self.say(b"STARTTLS", b"220")
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            self._socket = context.wrap_socket(self._socket)
            self._lines = self._socket.makefile("rb")
            self.say(b"EHLO client.bench.test", b"250")

    def _expect(self, code: bytes) -> None:
        line = self._lines.readline()
        while line[3:4] == b"-":
            line = self._lines.readline()
        if not line.startswith(code):
            raise ConnectionError(f"{line!r} instead of {code!r}")

    def say(self, line: bytes, code: bytes) -> None:
        self._socket.sendall(line + b"\r\n")
        self._expect(code)

    def authenticate(self, user: str, password: str) -> None:
        self.say(b"AUTH PLAIN " + base64.b64encode(f"\0{user}\0{password}".encode()), b"235")

    def send(self, recipient: bytes, number: int) -> float:
        """Returns when it is accepted: the moment the end of data was sent."""
        self._socket.sendall(b"MAIL FROM:<u0@bench.test>\r\nRCPT TO:<%b>\r\nDATA\r\n" % recipient)
        for code in (b"250", b"250", b"354"):
            self._expect(code)
        sent = time.monotonic()
        self._socket.sendall(HEAD % (recipient, number, number, os.getpid()) + BODY + b".\r\n")
        self._expect(b"250")
        return sent

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


def submit(server: Any, recipients: list[bytes]) -> None:
    """All of them, by CONNECTIONS connections that stand before the clock starts, in a process of its own; returns
    when it is ready, and again (by `next`) when all were accepted.
    """
    clients = []
    for _ in range(CONNECTIONS):
        clients.append(Client(server.port))
        server.log_in(clients[-1])
    failures: list[BaseException] = []

    def work(first: int) -> None:
        try:
            for number in range(first, len(recipients), CONNECTIONS):
                clients[first].send(recipients[number], number)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(CONNECTIONS)]
    print("ready", flush=True)
    sys.stdin.readline()
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise SystemExit(f"a message was not accepted: {failures[0]}")
    print(time.monotonic() - begun, flush=True)
    for client in clients:
        client.close()


@contextmanager
def submission(server: Any, messages: int, *, hanging: bool = False) -> Iterator[Callable[[], Callable[[], float]]]:
    """The submitting process, connected; what it gives begins, what that gives waits for the end and tells seconds."""
    words = [sys.executable, COMMAND, "submit", server.name, str(server.port), str(messages), str(int(hanging))]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    stdin, stdout = process.stdin, process.stdout
    try:
        if stdout.readline() != "ready\n":
            raise SystemExit("the submitting process could not connect")

        def begin() -> Callable[[], float]:
            stdin.write("\n")
            stdin.flush()
            return lambda: float(stdout.readline())

        yield begin
    finally:
        stdin.close()
        process.kill() if process.poll() is None and sys.exc_info()[0] else None
        process.wait()


def recipients_of(messages: int, hanging: bool) -> list[bytes]:
    domains = [*DOMAINS[1:], HANGING] if hanging else DOMAINS
    return [f"r{number}@{domains[number % 100]}".encode() for number in range(messages)]
