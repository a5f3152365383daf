"""One attempt to hand a message to the next host: for each recipient sent, later or never, and why.

The hosts of a destination are tried in their order until one has taken, or finally refused, every recipient; trouble
with one leads to the next within the time of an attempt. Nothing is raised: what the network, the DNS or a server does
is an Outcome. A connection that worked waits a moment for the next message to the same destination; one that proves
dead when it is used again costs nothing but a new one.

Imports: net, smtp, values, log.    RFC 5321 4.5.4.1, 5.1; docs/decisions/0013-out-into-the-world.md.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mailsrv import log
from mailsrv.net.dial import Shelf, Sources, dial
from mailsrv.net.resolver import LookupFailed, Resolver
from mailsrv.net.stream import ConnectionLost, HandshakeFailed, Stream, StreamError
from mailsrv.net.tls import client_context
from mailsrv.smtp import dane
from mailsrv.smtp.client import Client, Refused, Said, Timeouts, Unfit
from mailsrv.smtp.next_hops import Host, Ourselves, Unroutable, host_of_route, hosts_of_domain
from mailsrv.smtp.outgoing import Offload, Outgoing
from mailsrv.smtp.routes import Route, Tls, find
from mailsrv.smtp.tls_policy import Policies, PolicyFailed, StsPolicies, TlsPolicy
from mailsrv.values import Address, Disposition, Envelope, Job, Outcome
from mailsrv.wire.errors import WireError
from mailsrv.wire.lines import LINE_OCTETS
from mailsrv.wire.smtp_client import path

UNREADABLE = "The message cannot be read"


@dataclass(frozen=True, slots=True)
class RelaySettings:
    """`port` is that of hosts found by MX. `attempt_seconds`: no further host is begun with after that long."""

    helo: str
    port: int = 25
    routes: tuple[Route, ...] = ()
    tls: Tls = Tls.OPPORTUNISTIC
    dane: bool = True
    ca_file: str = ""
    sources: Sources = field(default_factory=Sources)
    ourselves: Ourselves = field(default_factory=Ourselves)
    timeouts: Timeouts = field(default_factory=Timeouts)
    connect_seconds: float = 30.0
    lookup_seconds: float = 60.0
    attempt_seconds: float = 300.0
    idle_seconds: float = 5.0
    idle_connections: int = 200
    transactions: int = 100  # of one connection


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a host did not do. `permanent`: it said so itself."""

    enhanced: str
    text: str
    host: str = ""
    code: int = 0
    permanent: bool = False
    tls: str = ""


@dataclass(slots=True)
class _Attempt:
    """A Job under way: what is to be sent, and what has been said so far."""

    job: Job
    message: Outgoing
    route: Route | None
    destination: str
    until: float
    said: Said = field(default_factory=dict)
    troubles: list[Trouble] = field(default_factory=list)

    @property
    def undecided(self) -> list[Any]:
        return [one for one in self.job.recipients if one[0] not in self.said]

    def settle(self, disposition: Disposition, trouble: Trouble) -> None:
        """The same for everybody of whom nothing was said."""
        for address, _ in self.undecided:
            self.said[address] = Outcome(
                address, disposition, trouble.code, trouble.enhanced, trouble.text, trouble.host, trouble.tls
            )


class Relay:
    """Called with a Job from any number of greenlets. `offload` runs what blocks in a thread. `sign` gives header lines
    to go before the message, which it reads as it will be sent (`wire.lines.WholeLines`) and without holding the hub.
    """

    def __init__(
        self, settings: RelaySettings, resolver: Resolver, offload: Offload, *,
        sign: Callable[[Job], bytes] | None = None, sts: StsPolicies | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._settings, self._resolver, self._offload, self._clock = settings, resolver, offload, clock
        self._sign = sign or (lambda job: b"")
        self._policies = Policies(resolver, settings.tls, dane=settings.dane, sts=sts)
        self._shelf: Shelf[Client] = Shelf(settings.idle_seconds, settings.idle_connections)
        self._contexts: dict[bool, ssl.SSLContext] = {}
        self._names = _names(settings.routes)

    def destination(self, envelope: Envelope, address: Address) -> str:
        """What recipients have in common that can go in one attempt: the domain, or the host of a route."""
        route = find(self._settings.routes, envelope, address)
        return self._names[route] if route is not None else address.domain

    def close(self) -> None:
        """End the connections that wait for a next use."""
        self._shelf.close()

    def __call__(self, job: Job) -> list[Outcome]:
        said: Said = {}
        try:
            self._attempt(job, said)
        except Exception:  # our bug: what was said stands, the rest is tried again
            log.exception("attempt failed", id=job.id)
        missing = Trouble("4.3.0", "Internal error; it is tried again", code=451)
        return [
            said.get(address) or Outcome(address, Disposition.LATER, missing.code, missing.enhanced, missing.text)
            for address, _ in job.recipients
        ]

    # -------------------------------------------------------------- an attempt

    def _attempt(self, job: Job, said: Said) -> None:
        first = job.recipients[0][0]
        route = find(self._settings.routes, job.envelope, first)
        destination = self._names[route] if route is not None else first.domain
        until = self._clock() + self._settings.attempt_seconds
        try:
            message = Outgoing(job.path, self._sign(job), self._offload)
            message.read()
        except OSError as failure:
            for address, _ in job.recipients:
                said[address] = Outcome(address, Disposition.LATER, 451, "4.3.0", f"{UNREADABLE}: {failure}")
            return
        attempt = _Attempt(job, message, route, destination, until, said)
        self._refuse_unwritable(attempt)
        if message.survey.long_line:
            text = f"The message has a line of more than {LINE_OCTETS} octets, the most that mail allows"
            attempt.settle(Disposition.NEVER, Trouble("5.6.0", text))
        if attempt.undecided and not self._again(attempt):
            self._anew(attempt)

    def _refuse_unwritable(self, attempt: _Attempt) -> None:
        """Whoever edits a queue entry may write addresses that no command can hold; S23."""
        for address, _ in attempt.job.recipients:
            try:
                path(address)
            except WireError as wrong:
                attempt.said[address] = Outcome(address, Disposition.NEVER, 0, "5.1.3", wrong.message)
        try:
            path(attempt.job.envelope.sender)
        except WireError as wrong:
            attempt.settle(Disposition.NEVER, Trouble("5.1.7", wrong.message))

    def _key(self, attempt: _Attempt) -> Any:
        return attempt.destination, attempt.job.envelope.must_require_tls

    def _again(self, attempt: _Attempt) -> bool:
        """Use a connection that is there, and another one if that proves dead; True if nothing is left to do."""
        for _ in range(2):
            client = self._shelf.take(self._key(attempt))
            if client is None:
                break
            self._use(client, attempt)
            if not attempt.undecided:
                return True
        return False

    def _anew(self, attempt: _Attempt) -> None:
        """Try the hosts in their order."""
        attempt.troubles.clear()  # those of connections that had been waiting say nothing of the hosts
        try:
            hosts = self._hosts(attempt)
        except Unroutable as reason:
            attempt.settle(reason.disposition, Trouble(reason.enhanced, reason.text))
            return
        for host in hosts:
            if self._clock() >= attempt.until:
                attempt.troubles.append(Trouble("4.4.1", "The time of this attempt is used up"))
                break
            client = self._open(host, attempt)
            if client is not None:
                self._use(client, attempt)
            if not attempt.undecided:
                return
        self._give_up(attempt)

    def _give_up(self, attempt: _Attempt) -> None:
        """No host did it. Final only if every one of them said that it is."""
        passing = [one for one in attempt.troubles if not one.permanent]
        if passing:
            # What a server said tells more than that another one did not answer.
            attempt.settle(Disposition.LATER, next((one for one in reversed(passing) if one.code), passing[-1]))
        else:
            attempt.settle(Disposition.NEVER, attempt.troubles[-1])

    def _hosts(self, attempt: _Attempt) -> list[Host]:
        until = self._clock() + self._settings.lookup_seconds
        if attempt.route is not None:
            return [host_of_route(attempt.route.host, attempt.route.port, self._resolver, until)]
        return hosts_of_domain(
            attempt.destination, self._resolver, self._settings.ourselves, self._settings.port, until
        )  # fmt: skip

    # -------------------------------------------------------------- a connection

    def _use(self, client: Client, attempt: _Attempt) -> None:
        """As many transactions as the recipients take; what is wrong with the connection goes to the troubles."""
        try:
            while attempt.undecided:
                client.send(attempt.message, attempt.job.envelope, attempt.undecided, attempt.said)
        except Unfit as lack:
            attempt.troubles.append(_lack(lack, client))
            self._put_back(client, attempt)
            return
        except (Refused, StreamError, WireError) as failure:
            attempt.troubles.append(_trouble(failure, client.host, client.tls))
        except OSError as failure:
            attempt.settle(Disposition.LATER, Trouble("4.3.0", f"{UNREADABLE}: {failure}", code=451))
        except BaseException:  # a bug of ours, or the end of this greenlet
            client.drop()
            raise
        else:
            self._put_back(client, attempt)
            return
        client.drop()

    def _put_back(self, client: Client, attempt: _Attempt) -> None:
        most = min(self._settings.transactions, client.offers.limit("MAILMAX") or self._settings.transactions)
        if client.transactions >= most or any(one.code == 421 for one in attempt.said.values()):
            client.close()
        else:
            self._shelf.put(self._key(attempt), client)

    def _open(self, host: Host, attempt: _Attempt) -> Client | None:
        """A connection to the host, greeted and protected as the policy wants; None if that cannot be had."""
        name = f"{host.name}:{host.port}"
        try:
            policy = self._policy(host, attempt)
            return self._connect(host, policy, attempt)
        except LookupFailed as failure:
            attempt.troubles.append(Trouble("4.4.3", f"DNS: {failure}", name))
        except PolicyFailed as failure:
            log.warning("TLS policy not met", id=attempt.job.id, host=name, reason=str(failure))
            attempt.troubles.append(Trouble("4.7.5", str(failure), name))
        except OSError as failure:
            attempt.troubles.append(Trouble("4.3.5", f"Our own configuration: {failure}", name))
        return None

    def _policy(self, host: Host, attempt: _Attempt) -> TlsPolicy:
        route, require_tls = attempt.route, attempt.job.envelope.must_require_tls
        if route is None:
            until = self._clock() + self._settings.lookup_seconds
            return self._policies.for_host(attempt.destination, host, require_tls=require_tls, until=until)
        level = Tls.VERIFIED if require_tls else route.tls
        return TlsPolicy(level, host.name, "REQUIRETLS" if require_tls else "the route")

    def _connect(self, host: Host, policy: TlsPolicy, attempt: _Attempt, *, in_clear: bool = False) -> Client | None:
        """Raises PolicyFailed, and OSError for files of ours that cannot be read."""
        named, client = f"{host.name}:{host.port}", None
        route = attempt.route
        try:
            sock, address = dial(host.addresses, host.port, self._settings.connect_seconds, self._sources(route))
        except StreamError as failure:
            attempt.troubles.append(Trouble("4.4.1", f"No connection: {failure}", named))  # RFC 3463 3.5
            return None
        try:
            named = f"{host.name}[{address}]:{host.port}"
            client = Client(
                Stream(sock, address), named, self._settings.helo,
                lmtp=route is not None and route.protocol == "lmtp", timeouts=self._settings.timeouts,
            )  # fmt: skip
            self._converse(client, policy, route, in_clear)
            return client
        except HandshakeFailed as failure:
            if not policy.is_mandatory and not (route is not None and route.implicit_tls):
                # Opportunistic: what cannot be encrypted goes in clear, on a new connection (RFC 7435, S18).
                log.info("TLS failed, going on in clear", id=attempt.job.id, host=named, reason=str(failure))
                return self._connect(host, policy, attempt, in_clear=True)
            self._drop(client)
            raise PolicyFailed(f"{named}: {failure} (TLS is required by {policy.origin or 'the settings'})") from None
        except (Refused, StreamError, WireError) as failure:
            attempt.troubles.append(_trouble(failure, named, client.tls if client else ""))
        except Unfit as lack:
            attempt.troubles.append(Trouble(f"4.{lack.enhanced}", lack.text, named))
        except BaseException:
            self._drop(client)
            raise
        self._drop(client)
        return None

    def _drop(self, client: Client | None) -> None:
        if client is not None:
            client.drop()

    def _sources(self, route: Route | None) -> Sources:
        if route is not None and (route.source_v4 or route.source_v6):
            return Sources(route.source_v4, route.source_v6)
        return self._settings.sources

    def _converse(self, client: Client, policy: TlsPolicy, route: Route | None, in_clear: bool) -> None:
        """Greeting to the point where MAIL may be said."""
        if route is not None and route.implicit_tls:
            client.start_implicit_tls(self._context(policy), policy.server_name)
            self._check(client, policy)
            client.greet()
        else:
            client.greet()
            if policy.level is not Tls.NONE and not in_clear:
                self._secure(client, policy)
        if route is not None and route.user:
            client.authenticate(route.user, self._offload(_password, route.password_file))

    def _secure(self, client: Client, policy: TlsPolicy) -> None:
        """STARTTLS, as the policy wants it. PolicyFailed, HandshakeFailed; WireError if something was smuggled in."""
        if "STARTTLS" not in client.offers:
            if policy.is_mandatory:
                raise PolicyFailed(f"{client.host} offers no TLS, which {policy.origin or 'the settings'} requires")
            return
        try:
            client.start_tls(self._context(policy), policy.server_name)
        except Refused as failure:
            if policy.is_mandatory:
                raise PolicyFailed(f"{client.host} will not start TLS: {failure}") from None
            return
        self._check(client, policy)
        client.hello()

    def _check(self, client: Client, policy: TlsPolicy) -> None:
        if policy.tlsa:
            if not self._offload(dane.is_authentic, policy.tlsa, client.peer_chain(), policy.names):
                raise PolicyFailed(f"The certificate of {client.host} is not the one in its TLSA records (DANE)")
            client.tls += " DANE"
            client.vouched = True
        elif policy.level is Tls.VERIFIED:
            client.tls += " verified"
            client.vouched = bool(policy.origin)  # not by our own default alone: nobody vouches for the MX then

    def _context(self, policy: TlsPolicy) -> ssl.SSLContext:
        verify = policy.level is Tls.VERIFIED and not policy.tlsa
        context = self._contexts.get(verify)
        if context is None:
            context = self._contexts[verify] = self._offload(_make_context, verify, self._settings.ca_file)
        return context


def _names(routes: Sequence[Route]) -> dict[Route, str]:
    """A name of its own for each route, also where they lead to the same host in different ways."""
    names: dict[Route, str] = {}
    for route in routes:
        count = sum(1 for other in names if other.name == route.name) if route not in names else 0
        names.setdefault(route, f"{route.name}#{count + 1}" if count else route.name)
    return names


def _make_context(verify: bool, ca_file: str) -> ssl.SSLContext:
    return client_context(verify=verify, ca_file=ca_file)


def _password(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read(4096).strip("\r\n")


def _lack(lack: Unfit, client: Client) -> Trouble:
    kind = 5 if lack.permanent else 4
    code = 0 if lack.permanent else 450  # this message's trouble, not the destination's: others may go on
    return Trouble(f"{kind}.{lack.enhanced}", lack.text, client.host, code, lack.permanent, client.tls)


def _trouble(failure: Exception, host: str, tls: str) -> Trouble:
    if isinstance(failure, Refused):
        reply = failure.reply
        if failure.step == "AUTH":  # our password, not the sender's mail
            return Trouble("4.7.8", f"The server does not take our password: {reply.code} {reply.text}", host, 0)
        return Trouble(reply.status(), reply.text, host, reply.code, reply.code // 100 == 5, tls)
    if isinstance(failure, ConnectionLost):
        return Trouble("4.4.2", f"Connection lost: {failure}", host, tls=tls)
    if isinstance(failure, WireError):
        return Trouble("4.5.0", f"The server breaks the protocol: {failure.message}", host, tls=tls)
    return Trouble("4.4.2", f"The connection did not go on: {failure}", host, tls=tls)


__all__ = ["Relay", "RelaySettings", "Route", "Sources", "Tls"]
