"""The queue runner put together: the queue on this server's spool, with the ways out that this server has.

It is one part of a process that has accounts, mailboxes and an intake; where several processes serve, of a process of
its own. Others put entries into the spool and wake it through its socket.

Imports: config, smtp.relay, net.resolver, mail, store, wire.
"""

from __future__ import annotations

import time
from typing import Protocol

from mailsrv.config import Config
from mailsrv.mail.accounts import Accounts, parse_address
from mailsrv.mail.bounce import Bounces
from mailsrv.mail.dkim import Keys
from mailsrv.mail.intake import Intake, Outgoing, main_domain
from mailsrv.mail.queue import Queue, Schedule, Ways
from mailsrv.mail.signing import Signer
from mailsrv.mail.wakeup import NAME, Waker
from mailsrv.net.resolver import Resolver
from mailsrv.smtp.next_hops import Ourselves
from mailsrv.smtp.relay import Relay, RelaySettings
from mailsrv.store.files import offload
from mailsrv.store.spool import Spool
from mailsrv.values import Address, Envelope, Job, Outcome
from mailsrv.wire.draft import parse_authors
from mailsrv.wire.lines import WholeLines


def socket_path(config: Config) -> str:
    return f"{config['server.run_dir']}/{NAME}"


def spool_of(config: Config) -> Spool:
    return Spool(f"{config['server.data_dir']}/queue")


def outgoing_of(config: Config, accounts: Accounts) -> Outgoing:
    """What an intake needs to send mail elsewhere. Makes the queue's directories."""
    spool = spool_of(config)
    spool.prepare()
    hostname, chosen = config["server.hostname"], config["queue.postmaster"]

    def postmaster() -> Address | None:
        if chosen:
            return parse_address(chosen)
        domain = main_domain(accounts, hostname)
        return None if domain is None else Address("postmaster", domain)

    waker = Waker(socket_path(config))
    return Outgoing(spool, waker.wake, Bounces(hostname, config["queue.return_bytes"]), postmaster)


def schedule_of(config: Config) -> Schedule:
    return Schedule(
        tuple(config["queue.retry_seconds"]), config["queue.expire_days"] * 86400, config["queue.notice_hours"] * 3600
    )


class WayOut(Protocol):
    """What tries a Job, and names what recipients have in common that can go in one."""

    def __call__(self, job: Job) -> list[Outcome]: ...

    def destination(self, envelope: Envelope, address: Address) -> str: ...

    def close(self) -> None: ...


def signer_of(config: Config, accounts: Accounts) -> Signer:
    return Signer(
        Keys(config.dkim_path), may_author=accounts.may_author, authors=parse_authors, whole_lines=WholeLines
    )  # fmt: skip


def way_out(config: Config, accounts: Accounts) -> WayOut:
    """To other servers."""
    ports = frozenset(port for _, port in config["smtp.listen"])
    ourselves = Ourselves(frozenset({config["server.hostname"]}), ports=ports | {25})
    settings = RelaySettings(config["server.hostname"], ourselves=ourselves)
    return Relay(settings, Resolver(), offload, sign=signer_of(config, accounts).sign)


class Runner:
    def __init__(self, config: Config, accounts: Accounts, intake: Intake) -> None:
        self._way_out = way_out(config, accounts)
        ways = Ways(self._way_out, self._way_out.destination, intake.deliver, accounts.is_local, intake.post)
        self.queue = Queue(
            intake.spool, ways, schedule_of(config), connections=config["queue.attempts"],
            per_destination=config["queue.attempts_per_destination"], socket_path=socket_path(config),
        )  # fmt: skip

    def start(self) -> None:
        """Raises QueueLocked when another runner works on this queue."""
        self.queue.start()

    def close(self, deadline: float) -> None:
        """Attempts that go on may end until then (monotonic clock)."""
        self.queue.stop(max(0.0, deadline - time.monotonic()))
        self._way_out.close()
