"""One IMAP connection that waits for each answer, with as little work of its own as possible."""

from __future__ import annotations

import re
import socket

from .util import Address

EXISTS = re.compile(rb"(?m)^\* (\d+) EXISTS")
LITERAL = re.compile(rb"\{(\d+)\}\r\n$")


class ImapError(Exception):
    """The server's answer is not what the command should have."""


class Imap:
    def __init__(self, address: Address, timeout: float = 300) -> None:
        self.sock = socket.create_connection(address, timeout)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""
        self.commands = 0
        self.capabilities: set[bytes] = set()
        greeting = self._line()
        if not greeting.startswith(b"* OK"):
            raise ImapError(f"greeting {greeting!r}")

    def _more(self) -> bytes:
        data = self.sock.recv(1 << 18)
        if not data:
            raise ImapError("connection closed by server")
        return data

    def _line(self) -> bytes:
        while (end := self.buffer.find(b"\n")) < 0:
            self.buffer += self._more()
        line, self.buffer = self.buffer[: end + 1], self.buffer[end + 1 :]
        return line

    def _exactly(self, n: int) -> bytes:
        while len(self.buffer) < n:
            self.buffer += self._more()
        data, self.buffer = self.buffer[:n], self.buffer[n:]
        return data

    def _tag(self) -> bytes:
        self.commands += 1
        return b"Zq%06d" % self.commands

    def cmd(self, text: str, ok: bool = True) -> tuple[list[bytes], bytes]:
        """Sends one command. Returns the untagged responses, with their literals, and the tagged line."""
        tag = self._tag()
        self.sock.sendall(tag + b" " + text.encode() + b"\r\n")
        return self._finish(tag, ok, text)

    def _finish(self, tag: bytes, ok: bool, text: str) -> tuple[list[bytes], bytes]:
        untagged: list[bytes] = []
        while True:
            line = self._line()
            # At the end of the line, so that each turn finds the next literal.
            while not line.startswith(tag) and (literal := LITERAL.search(line)):
                line += self._exactly(int(literal.group(1))) + self._line()
            if line.startswith(tag + b" "):
                if ok and not line.startswith(tag + b" OK"):
                    raise ImapError(f"{text[:80]}: {line[:200]!r}")
                return untagged, line
            untagged.append(line)

    def bulk(self, text: str) -> list[bytes]:
        """Sends one command. Returns the answer as it came, in chunks; the tagged line is the end of the last."""
        tag = self._tag()
        self.sock.sendall(tag + b" " + text.encode() + b"\r\n")
        mark = b"\r\n" + tag + b" "
        chunks = [self.buffer] if self.buffer else []
        self.buffer = tail = b""
        while True:
            data = self._more()
            chunks.append(data)
            tail = (tail + data)[-600:]
            if not tail.endswith(b"\r\n"):
                continue
            at = tail.rfind(mark) + 2  # 1: it is not there
            if at == 1 and len(chunks) < 3 and b"".join(chunks).startswith(mark[2:]):
                at = 0  # there is nothing before the tagged line
            if at != 1 and tail.find(b"\r\n", at) == len(tail) - 2:
                if not tail[at:].startswith(tag + b" OK"):
                    raise ImapError(f"{text[:80]}: {tail[at:][:200]!r}")
                return chunks

    def login(self, user: str, password: str) -> Imap:
        self.cmd(f"LOGIN {user} {password}")
        untagged, _ = self.cmd("CAPABILITY")
        self.capabilities = set(b" ".join(line for line in untagged if b"CAPABILITY" in line).upper().split())
        return self

    def has(self, capability: str) -> bool:
        return capability.upper().encode() in self.capabilities

    def select(self, mailbox: str = "INBOX") -> int:
        """Returns the number of messages."""
        untagged, _ = self.cmd(f"SELECT {mailbox}")
        for line in untagged:
            if count := EXISTS.match(line):
                return int(count.group(1))
        raise ImapError("SELECT without EXISTS")

    def status_messages(self, mailbox: str = "INBOX") -> int:
        untagged, _ = self.cmd(f"STATUS {mailbox} (MESSAGES)")
        for line in untagged:
            if count := re.search(rb"MESSAGES (\d+)", line):
                return int(count.group(1))
        raise ImapError("STATUS without MESSAGES")

    def append(self, mailbox: str, *messages: bytes) -> None:
        """One APPEND (several messages: MULTIAPPEND), with non-synchronising literals where they are offered."""
        tag = self._tag()
        head = tag + b" APPEND " + mailbox.encode()
        if self.has("LITERAL+"):
            self.sock.sendall(head + b"".join(b" {%d+}\r\n%s" % (len(one), one) for one in messages) + b"\r\n")
        else:
            for message in messages:
                self.sock.sendall(head + b" {%d}\r\n" % len(message))
                while (line := self._line()).startswith(b"* "):
                    pass
                if not line.startswith(b"+"):
                    raise ImapError(f"APPEND: {line[:200]!r}")
                head = b""
                self.sock.sendall(message)
            self.sock.sendall(b"\r\n")
        self._finish(tag, True, "APPEND")

    def close(self) -> None:
        try:
            self.sock.sendall(b"Zz LOGOUT\r\n")
            self.sock.settimeout(5)
            while self.sock.recv(4096):
                pass
        except OSError:
            pass
        self.sock.close()
