"""The world as a relay sees it, on loopback: a DNS, and hosts at 127.0.0.2, 127.0.0.3 … that share one port."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from mailsrv.net.resolver import Resolver, ResolverSettings
from mailsrv.smtp.client import Timeouts
from mailsrv.smtp.relay import Relay, RelaySettings
from mailsrv.store.files import offload
from mailsrv.values import Address, Envelope, Job, Outcome, RecipientOptions
from tests.fakes.dns import FakeDns
from tests.fakes.sink import FakeSink

TEXT = b"From: ann@example.com\r\nSubject: hello\r\n\r\nHow are you?\r\n"
HASTY = {"try_seconds": 0.5, "seconds": 2.0}  # for a DNS that says nothing
SENDER = Address("ann", "example.com")
IMPATIENT = Timeouts(greeting=20, command=20, data=20, block=20, final=20, handshake=20, farewell=1)


def address(text: str) -> Address:
    return Address(*text.rsplit("@", 1))


class World:
    """`relay` is made at the first use, with `settings` as they are then; so is its resolver."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.dns = FakeDns()
        self.sinks: dict[str, FakeSink] = {}
        with socket.socket() as probe:
            probe.bind(("127.0.0.2", 0))
            self.port: int = probe.getsockname()[1]
        self.settings: dict[str, Any] = {"helo": "me.example.com", "port": self.port, "timeouts": IMPATIENT}
        self.dns_settings: dict[str, Any] = {"try_seconds": 5.0, "seconds": 20.0}
        self.more: dict[str, Any] = {}  # of Relay itself: sign, sts
        self._relay: Relay | None = None
        self._resolver: Resolver | None = None
        self._count = 0

    def host(self, name: str, ip: str, **options: Any) -> FakeSink:
        """A host with that address, on which a FakeSink serves."""
        sink = self.sinks[name] = FakeSink(address=ip, port=self.port, **options)
        self.dns.add(name, "AAAA" if ":" in ip else "A", ip)
        return sink

    def domain(self, name: str, *hosts: str, **options: Any) -> FakeSink:
        """A domain with MX 10, 20 … at these hosts; without hosts one of its own is made, at 127.0.0.2."""
        self.dns.add(name, "MX", *(f"{10 * (n + 1)} {one}." for n, one in enumerate(hosts or [f"mx.{name}"])))
        return self.sinks[hosts[0]] if hosts else self.host(f"mx.{name}", f"127.0.0.{len(self.sinks) + 2}", **options)

    @property
    def resolver(self) -> Resolver:
        if self._resolver is None:
            self._resolver = Resolver(ResolverSettings(("127.0.0.1",), self.dns.port, **self.dns_settings))
        return self._resolver

    @property
    def relay(self) -> Relay:
        if self._relay is None:
            self._relay = Relay(RelaySettings(**self.settings), self.resolver, offload, **self.more)
        return self._relay

    def job(
        self, *recipients: str, text: bytes = TEXT, sender: Address | None = SENDER,
        options: Sequence[RecipientOptions] = (), **envelope: Any,
    ) -> Job:  # fmt: skip
        self._count += 1
        path = self.directory / f"{self._count}.eml"
        path.write_bytes(text)
        asked = [*options, *(RecipientOptions() for _ in recipients)]
        pairs = tuple((address(one), asked[number]) for number, one in enumerate(recipients))
        return Job(f"j{self._count}", Envelope(sender, **envelope), pairs, str(path), len(text))

    def send(self, *recipients: str, **more: Any) -> list[Outcome]:
        return self.relay(self.job(*recipients, **more))

    def close(self) -> None:
        if self._relay is not None:
            self._relay.close()
        for sink in self.sinks.values():
            sink.close()
        self.dns.close()

    def __enter__(self) -> World:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
