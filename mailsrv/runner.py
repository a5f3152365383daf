"""The queue runner put together: the queue on this server's spool, with the ways out that this server has.

It is one part of a process that has accounts, mailboxes and an intake; where several processes serve, of a process of
its own. Others put entries into the spool and wake it through its socket.

Imports: config, rotation, dns_check, smtp, net, mail, store, wire.
"""

from __future__ import annotations

import ssl
import time
from functools import partial
from typing import Protocol

from mailsrv.config import Config
from mailsrv.dns_check import lookup_by
from mailsrv.mail.accounts import Accounts, parse_address
from mailsrv.mail.bounce import Bounces
from mailsrv.mail.dkim import Keys
from mailsrv.mail.intake import Intake, Outgoing, main_domain
from mailsrv.mail.outbox import Showing
from mailsrv.mail.queue import Queue, Ways
from mailsrv.mail.schedule import Schedule
from mailsrv.mail.scheduled import Reading, Rules, Scheduled, Unusable
from mailsrv.mail.signing import Signer
from mailsrv.mail.wakeup import NAME, Waker
from mailsrv.net import https
from mailsrv.net.dial import Sources
from mailsrv.net.resolver import Resolver, ResolverSettings
from mailsrv.net.tls import client_context
from mailsrv.rotation import Rotation
from mailsrv.smtp import mta_sts
from mailsrv.smtp.client import Timeouts
from mailsrv.smtp.next_hops import Ourselves
from mailsrv.smtp.relay import Relay, RelaySettings
from mailsrv.smtp.routes import Tls
from mailsrv.smtp.tls_policy import StsPolicies
from mailsrv.store.files import offload
from mailsrv.store.policies import PolicyFiles
from mailsrv.store.spool import Spool
from mailsrv.values import Address, Envelope, Job, Outcome
from mailsrv.wire.draft import Draft, has_utf8_header, parse_authors, parse_draft, ready_to_send
from mailsrv.wire.errors import WireError
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
    return Outgoing(spool, waker.wake, Bounces(hostname, config["queue.return_bytes"]), postmaster, waker.close)


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


def resolver_of(config: Config) -> Resolver:
    return Resolver(
        ResolverSettings(tuple(config["dns.nameservers"]), config["dns.port"], seconds=config["dns.seconds"])
    )


def way_out(config: Config, accounts: Accounts) -> WayOut:
    """To other servers."""
    hostname, resolver = config["server.hostname"], resolver_of(config)
    ports = frozenset(port for _, port in config["smtp.listen"]) | {25}
    sources = Sources(config["relay.source_ipv4"], config["relay.source_ipv6"])
    command, final = config["relay.command_seconds"], config["relay.final_seconds"]
    settings = RelaySettings(
        helo=config["relay.helo"] or hostname,
        port=config["relay.port"],
        routes=config["relay.routes"],
        tls=Tls(config["relay.tls"]),
        dane=config["relay.dane"],
        ca_file=config["relay.ca_file"],
        sources=sources,
        ourselves=Ourselves(
            frozenset({hostname, config["relay.helo"]} - {""}), frozenset(config["relay.own_addresses"]), ports
        ),
        timeouts=Timeouts(greeting=command, command=command, final=final),
        connect_seconds=config["relay.connect_seconds"],
        attempt_seconds=config["relay.attempt_seconds"],
        idle_seconds=config["relay.idle_seconds"],
        idle_connections=config["queue.attempts"],
        transactions=config["relay.messages_per_connection"],
    )
    sign, sts = signer_of(config, accounts).sign, sts_of(config, resolver, sources)
    return Relay(settings, resolver, offload, sign=sign, sts=sts)


def sts_of(config: Config, resolver: Resolver, sources: Sources) -> StsPolicies | None:
    """Other domains' MTA-STS policies; None if they are not to be looked for."""
    if not config["relay.mta_sts"]:
        return None
    contexts: list[ssl.SSLContext] = []  # made at the first use: reading the system's authorities takes its time

    def get(host: str, path: str, until: float) -> bytes:
        if not contexts:
            contexts.append(offload(partial(client_context, verify=True, ca_file=config["relay.ca_file"])))
        seconds = min(https.SECONDS, until - time.monotonic())
        return https.fetch(
            host, path, resolver, contexts[0], seconds=seconds, limit=mta_sts.MOST_OCTETS, sources=sources
        )  # fmt: skip

    return mta_sts.Policies(resolver, get, PolicyFiles(f"{config['server.data_dir']}/mta-sts"), offload)


def _read_draft(message: bytes, now: float) -> Draft:
    try:
        return parse_draft(message, now)
    except WireError as error:
        raise Unusable(f"{error.message}.") from None


def rules_of(config: Config) -> Rules:
    return Rules(
        config["submission.scheduled_mailbox"], config["submission.scheduled_hour"], config["server.hostname"],
        config["smtp.message_bytes"], config["smtp.recipients"],
    )  # fmt: skip


class Runner:
    """The queue at work, and what else belongs to the one process that sends mail."""

    def __init__(self, config: Config, accounts: Accounts, intake: Intake) -> None:
        self._way_out = way_out(config, accounts)
        self._rotation = Rotation(Keys(config.dkim_path), lookup_by(resolver_of(config)))
        ways = Ways(self._way_out, self._way_out.destination, intake.deliver, accounts.is_local, intake.post)
        self.queue = Queue(
            intake.spool, ways, schedule_of(config), connections=config["queue.attempts"],
            per_destination=config["queue.attempts_per_destination"], socket_path=socket_path(config),
        )  # fmt: skip
        self._showing = Showing(intake.mailboxes, accounts, self.queue) if config["queue.outbox"] else None
        self._scheduled: Scheduled | None = None
        if config["submission.scheduled_mailbox"]:
            reading = Reading(_read_draft, ready_to_send, has_utf8_header)
            self._scheduled = Scheduled(intake, accounts, self.queue, rules_of(config), reading)

    def start(self) -> None:
        """Raises QueueLocked when another runner works on this queue."""
        self.queue.start(before=self._showing.begin if self._showing is not None else None)
        self._rotation.start()
        if self._scheduled is not None:
            self._scheduled.start()

    def close(self, deadline: float) -> None:
        """Attempts that go on may end until then (monotonic clock)."""
        self._rotation.close()
        if self._scheduled is not None:
            self._scheduled.close()
        if self._showing is not None:
            self._showing.close()
        self.queue.stop(max(0.0, deadline - time.monotonic()))
        self._way_out.close()
