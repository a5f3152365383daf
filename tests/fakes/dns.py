"""An authoritative name server on loopback whose every answer a test writes.

    with FakeDns() as dns:
        dns.add("example.org", "MX", "10 mx.example.org.")
        dns.add("mx.example.org", "A", "127.0.0.1")
        dns.fail("broken.example", "MX", "SERVFAIL")
        resolver = Resolver(ResolverSettings(("127.0.0.1",), dns.port))

A name that was never mentioned does not exist (NXDOMAIN); one that was mentioned has no records of other types. Names
in `secure` are answered with the AD bit, as a validating resolver does. `queries` holds (name, type, "udp" or "tcp").
"""

from __future__ import annotations

import socket
import struct
from types import TracebackType
from typing import Any

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
import gevent
from gevent.pool import Pool

SERVFAIL, REFUSED, TIMEOUT, TRUNCATED, GARBAGE, OTHER_QUESTION = (
    "SERVFAIL", "REFUSED", "TIMEOUT", "TRUNCATED", "GARBAGE", "OTHER_QUESTION",
)  # fmt: skip


def _name(text: str) -> str:
    return text.lower().rstrip(".")


class FakeDns:
    def __init__(self) -> None:
        self._records: dict[tuple[str, str], tuple[int, list[str]]] = {}
        self._extra: dict[tuple[str, str], list[str]] = {}
        self._failures: dict[tuple[str, str], str] = {}
        self._delays: dict[tuple[str, str], float] = {}
        self.secure: set[str] = set()
        self.queries: list[tuple[str, str, str]] = []
        self._udp, self._tcp = self._bind()
        self.port: int = self._udp.getsockname()[1]
        self._pool = Pool(200)
        self._servers = [gevent.spawn(self._serve_udp), gevent.spawn(self._serve_tcp)]

    @staticmethod
    def _bind() -> tuple[Any, Any]:
        """One port for both, which another process may just have taken for one of them."""
        while True:
            udp, tcp = socket.socket(type=socket.SOCK_DGRAM), socket.socket()
            udp.bind(("127.0.0.1", 0))
            try:
                tcp.bind(udp.getsockname())
                tcp.listen(50)
                return udp, tcp
            except OSError:
                udp.close()
                tcp.close()

    # -------------------------------------------------------------- what a test says

    def add(self, name: str, kind: str, *values: str, ttl: int = 300) -> None:
        """Records in master file format; replaces those of that name and type. No values: the name exists."""
        self._records[_name(name), kind] = ttl, list(values)
        self._failures.pop((_name(name), kind), None)

    def remove(self, name: str) -> None:
        for table in (self._records, self._failures, self._delays):
            for key in [key for key in table if key[0] == _name(name)]:
                del table[key]

    def fail(self, name: str, kind: str, how: str) -> None:
        """SERVFAIL, REFUSED, TIMEOUT (no answer), TRUNCATED (TC by UDP, right by TCP), GARBAGE, OTHER_QUESTION."""
        self._failures[_name(name), kind] = how

    def delay(self, name: str, kind: str, seconds: float) -> None:
        self._delays[_name(name), kind] = seconds

    def poison(self, name: str, kind: str, *rrsets: str) -> None:
        """Whole records ("victim.example. 300 IN A 192.0.2.66") sent along with the answer to this question."""
        self._extra[_name(name), kind] = list(rrsets)

    def asked(self, name: str, kind: str) -> int:
        return sum(1 for query in self.queries if query[:2] == (_name(name), kind))

    # -------------------------------------------------------------- serving

    def _serve_udp(self) -> None:
        while True:
            wire, peer = self._udp.recvfrom(4096)
            self._pool.spawn(self._answer_udp, wire, peer)

    def _answer_udp(self, wire: bytes, peer: Any) -> None:
        answer = self._answer(wire, "udp")
        if answer is not None:
            self._udp.sendto(answer, peer)

    def _serve_tcp(self) -> None:
        while True:
            sock, _ = self._tcp.accept()
            self._pool.spawn(self._answer_tcp, sock)

    def _answer_tcp(self, sock: Any) -> None:
        with sock:
            head = sock.recv(2, socket.MSG_WAITALL)
            if len(head) == 2:
                answer = self._answer(sock.recv(struct.unpack("!H", head)[0], socket.MSG_WAITALL), "tcp")
                if answer is not None:
                    sock.sendall(struct.pack("!H", len(answer)) + answer)

    def _answer(self, wire: bytes, via: str) -> bytes | None:
        query = dns.message.from_wire(wire)
        question = query.question[0]
        key = _name(question.name.to_text()), dns.rdatatype.to_text(question.rdtype)
        self.queries.append((*key, via))
        if key in self._delays:
            gevent.sleep(self._delays[key])
        how = self._failures.get(key)
        if how == TIMEOUT:
            return None
        if how == GARBAGE:
            return wire[:2] + b"\xff" * 20
        if how == OTHER_QUESTION:
            other = dns.message.make_query("other.example", question.rdtype, id=query.id)
            return dns.message.make_response(other).to_wire()
        response = dns.message.make_response(query, recursion_available=True)
        if how in (SERVFAIL, REFUSED):
            response.set_rcode(dns.rcode.from_text(how))
            return response.to_wire()
        if how == TRUNCATED and via == "udp":
            response.flags |= dns.flags.TC
            return response.to_wire()
        self._fill(response, *key)
        if key[0] in self.secure:
            response.flags |= dns.flags.AD
        if via == "udp":
            try:
                return response.to_wire(max_size=1232)
            except Exception:
                response = dns.message.make_response(query, recursion_available=True)
                response.flags |= dns.flags.TC
                return response.to_wire()
        return response.to_wire(max_size=65535)

    def _fill(self, response: Any, name: str, kind: str) -> None:
        """The records, with the aliases on the way to them, at most 20."""
        exists = False
        for _ in range(20):
            known = [key for key in self._records if key[0] == name]
            exists = bool(known)
            target = self._records.get((name, "CNAME"))
            wanted = kind if target is None or kind == "CNAME" else "CNAME"
            ttl, values = self._records.get((name, wanted), (300, []))
            if values:
                response.answer.append(dns.rrset.from_text_list(name + ".", ttl, "IN", wanted, values))
            if wanted == kind:
                break
            name = _name(values[0])
        for text in self._extra.get((name, kind), []):
            owner, ttl_text, _, rdtype, value = text.split(None, 4)
            response.answer.append(dns.rrset.from_text(owner, int(ttl_text), "IN", rdtype, value))
        if not exists:
            response.set_rcode(dns.rcode.NXDOMAIN)

    def close(self) -> None:
        gevent.killall(self._servers)
        self._pool.kill()
        self._udp.close()
        self._tcp.close()

    def __enter__(self) -> FakeDns:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
