"""The world: a name server on port 53, ten hosts that take mail, and one that says nothing."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess

from outward.common import DOMAINS, HANGING, free_port, until

NAMES = "127.0.53.1"  # the name server
SINKS = tuple(f"127.0.1.{number}" for number in range(1, 11))
SILENT = "127.0.1.99"  # accepts, and never says a word


def serve_names(sock: socket.socket) -> None:
    """A name server that makes each answer once and finds it by the octets of the question from then on."""
    import dns.message
    import dns.rcode
    import dns.rdatatype
    import dns.rrset

    records = {(f"mx.{HANGING}", "A"): SILENT, (HANGING, "MX"): f"10 mx.{HANGING}."}
    for number, domain in enumerate(DOMAINS):
        records[domain, "MX"] = f"10 mx.{domain}."
        records[f"mx.{domain}", "A"] = SINKS[number % len(SINKS)]
    names = {name for name, _ in records}
    known: dict[bytes, bytes] = {}
    while True:
        wire, peer = sock.recvfrom(4096)
        answer = known.get(wire[2:])
        if answer is None:
            query = dns.message.from_wire(wire)
            question = query.question[0]
            name, kind = question.name.to_text(True).lower(), dns.rdatatype.to_text(question.rdtype)
            response = dns.message.make_response(query, recursion_available=True)
            if (name, kind) in records:
                response.answer.append(dns.rrset.from_text(f"{name}.", 3600, "IN", kind, records[name, kind]))
            elif name not in names:
                response.set_rcode(dns.rcode.NXDOMAIN)
            answer = known[wire[2:]] = response.to_wire()[2:]
        sock.sendto(wire[:2] + answer, peer)


class World:
    """The name server in a process of its own, and ten sinks; `received` is how many messages these have."""

    def __init__(self, directory: str) -> None:
        self.directory, self.port = directory, free_port(SINKS[0])
        self._rounds = 0
        self._sinks: list[subprocess.Popen[bytes]] = []
        self._counts: list[str] = []
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((NAMES, 53))
            self._names = os.fork()
            if not self._names:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                serve_names(sock)
        self._silent = socket.create_server((SILENT, self.port), backlog=500)

    def begin(self) -> None:
        """New sinks, whose count is zero."""
        self.end()
        self._rounds += 1
        for address in SINKS:
            path = f"{self.directory}/sink.{self._rounds}.{address}"
            with open(path, "wb") as out:
                words = ["smtp-sink", "-c", "-u", "nobody", f"{address}:{self.port}", "1024"]
                self._sinks.append(subprocess.Popen(words, stdout=out))
            self._counts.append(path)
        for address in SINKS:
            until(lambda address=address: self._listens(address), "smtp-sink listens")

    def _listens(self, address: str) -> bool:
        try:
            socket.create_connection((address, self.port), timeout=5).close()
            return True
        except OSError:
            return False

    def received(self) -> int:
        total = 0
        for path in self._counts:
            with open(path, "rb") as file:
                file.seek(max(0, os.path.getsize(path) - 200))
                found = re.findall(rb"mesg=(\d+)[ \r]", file.read())
                total += int(found[-1]) if found else 0
        return total

    def end(self) -> None:
        for sink in self._sinks:
            sink.kill()
            sink.wait()
        self._sinks, self._counts = [], []

    def close(self) -> None:
        self.end()
        self._silent.close()
        os.kill(self._names, signal.SIGKILL)
        os.waitpid(self._names, 0)
