"""The receiving side of one SMTP connection: the table of commands, what each does, the transaction's course.

Replies of a pipelined group go out together. A message is answered with 250 only when `mail.intake` has made it
durable for all its recipients (RFC 5321 6.1). Port 25 takes mail for local recipients from anybody; submission takes
it from authenticated users, who send as themselves, to anywhere.

Imports: smtp.context, smtp.replies, net.stream, mail, wire, log, errors, values.
RFC 5321, 2920 (PIPELINING), 3207 (STARTTLS), 4954 (AUTH), 6409 (submission).
"""

from __future__ import annotations

import base64
import binascii
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from mailsrv import counters, log
from mailsrv.errors import (
    AuthenticationFailed,
    LoginThrottled,
    MailError,
    MessageTooLarge,
    RecipientUnknown,
    RelayDenied,
    SenderRefused,
    TemporaryFailure,
)
from mailsrv.mail.intake import Origin, Outward, main_domain, new_id
from mailsrv.mail.passwords import Caller
from mailsrv.net.stream import DeadlineExceeded, LimitExceeded, Stream, StreamError
from mailsrv.smtp.arrival import Arrival, Limits, TooLarge, Trace
from mailsrv.smtp.context import Closing, Refusal, Services, State, Transaction
from mailsrv.smtp.replies import reply_to
from mailsrv.values import Account, Address
from mailsrv.wire import sasl
from mailsrv.wire import smtp as wire
from mailsrv.wire.errors import WireError
from mailsrv.wire.smtp import Reply

ANY = State.START | State.READY | State.MAIL | State.RCPT

_CHUNK = re.compile(r"([0-9]{1,12})(?: +LAST)?", re.IGNORECASE)  # of BDAT (RFC 3030 2)


@dataclass(frozen=True, slots=True)
class Row:
    """What the RFC says of a command: the states it is legal in, and whether it ends a pipelined group (RFC 2920
    3.1). `idle`: it brings no message nearer, and its number is limited (S33).
    """

    states: int  # of State
    run: Callable[[Session, str], None]
    ends_group: bool = False
    octets: int = wire.COMMAND_OCTETS
    idle: bool = False


class Session:
    __slots__ = (
        "_begun_at", "_ending", "_errors", "_failures", "_idle_commands", "_waiting", "account", "extended",
        "helo_name", "id", "services", "settings", "state", "stream", "transaction",
    )  # fmt: skip

    def __init__(self, stream: Stream, services: Services) -> None:
        self.stream, self.services, self.settings = stream, services, services.settings
        self.id = log.new_id("smtp")
        self.state = State.START
        self.account: Account | None = None
        self.transaction: Transaction | None = None
        self.extended = False
        self.helo_name = ""
        self._errors = self._failures = self._idle_commands = 0
        self._begun_at = time.time()
        self._waiting = False
        self._ending: Reply | None = None  # the last words, once somebody wants it to end

    # -------------------------------------------------------------- life

    def run(self) -> None:
        """The whole connection; returns when it has ended. Never raises."""
        log.debug("connected", session=self.id, service=self._service, peer=self.stream.peer, tls=self.stream.tls)
        try:
            self.stream.read_seconds = self.settings.command_seconds
            self.stream.write_seconds = self.settings.write_seconds
            self._greet()
            while True:
                self._command()
        except Closing as closing:
            self._last_words(closing.reply)
        except DeadlineExceeded as failure:
            log.info("timeout", session=self.id, peer=self.stream.peer, reason=str(failure))
            self._last_words(Reply(421, "4.4.2", f"{self.services.hostname} Timeout, closing connection"))
        except StreamError as failure:
            log.debug("disconnected", session=self.id, peer=self.stream.peer, reason=str(failure))
        except Exception:
            log.exception("session failed", session=self.id, peer=self.stream.peer)
            self._last_words(Reply(421, "4.3.0", f"{self.services.hostname} Internal error, closing connection"))
        finally:
            if self.account is not None:
                self.services.tally.leave(f"user {self.account.id}")
            self.stream.close()

    def stop(self, text: str = "") -> None:
        """Called from another greenlet, at shutdown or by an administrator: an idle session ends at once, one with a
        message finishes it."""
        host = self.services.hostname
        if text:
            self._ending = Reply(421, "4.7.0", f"{host} {text}")
        else:
            self._ending = Reply(421, "4.3.2", f"{host} Shutting down, try again later")
        if self.stream.closed:
            self.stream.hang_up()  # it need not linger
        elif self._waiting:
            self._last_words(self._ending)

    def hang_up(self) -> None:
        self.stream.hang_up()

    def described(self) -> dict[str, Any]:
        """What an administrator sees of the session."""
        return {
            "session": self.id, "service": self.stream.service,
            "user": str(self.account.address) if self.account is not None else None,
            "peer": self.stream.peer, "tls": self.stream.tls, "client": self.helo_name or None, "mailbox": None,
            "state": "waiting" if self._waiting else "working", "connected_at": round(self._begun_at, 3),
            "idling_since": None,
        }  # fmt: skip

    def _counted(self, reply: Reply) -> Reply:
        _replies(self.stream.service, reply.code).count += 1
        return reply

    def _last_words(self, reply: Reply) -> None:
        with suppress(StreamError):  # it may be gone already
            self.stream.write_last(self._counted(reply).encode(), expected=reply.code == 221)
        if self._ending is not None:
            self.stream.hang_up()  # nobody is waited for

    @property
    def _service(self) -> str:
        return "submission" if self.services.submission else "smtp"

    def _greet(self) -> None:
        if not self.services.submission and self.stream.spoken_to():  # S7
            log.info("early talker", session=self.id, peer=self.stream.peer, after="")
            raise Closing(Reply(554, "5.5.0", "Wait for the greeting"))
        self.stream.write(Reply(220, "", f"{self.services.hostname} ESMTP mailsrv").encode())

    # -------------------------------------------------------------- commands

    def _command(self) -> None:
        if not self.stream.pending:
            self.stream.flush()  # the group is complete: its replies go out in one write
        if self._ending is not None:
            raise Closing(self._ending)
        try:
            line = self._read_line()
        except WireError as error:
            self._error(Reply(500, "5.5.2", f"Syntax error: {error.message}"))
            return
        try:
            command = wire.parse_command(line)
        except WireError as error:
            self._error(Reply(500, "5.5.2", f"Syntax error: {error.message}"))
            return
        row = COMMANDS.get(command.verb)
        if row is None:
            if command.verb == "BDAT":
                self._pass_over_chunk(command.argument)
            else:
                self._error(Reply(500, "5.5.1", "Command not recognised"))
            return
        if row.idle:
            self._idle_commands += 1
            if self._idle_commands > self.settings.idle_commands:
                log.info("too many commands", session=self.id, peer=self.stream.peer)
                raise Closing(Reply(421, "4.7.0", f"{self.services.hostname} Too many commands without a message"))
        if len(line) + 2 > row.octets:
            self._error(Reply(500, "5.5.2", "The command line is too long"))
            return
        if not row.states & self.state:
            self._error(Reply(503, "5.5.1", "Bad sequence of commands"))
            return
        if row.ends_group and command.verb not in ("QUIT", "DATA") and self.stream.spoken_to():
            # What was sent without waiting for the answer may be meant for a state that never comes (S3, S7).
            log.info("early talker", session=self.id, peer=self.stream.peer, after=command.verb)
            raise Closing(Reply(554, "5.5.0", f"Wait for the reply to {command.verb}"))
        try:
            row.run(self, command.argument)
        except wire.ParameterUnknown as error:
            self._error(Reply(555, "5.5.4", error.message))
        except WireError as error:
            self._error(Reply(501, "5.5.4", f"Syntax error: {error.message}"))
        except MailError as error:
            self._refuse(error)

    def _pass_over_chunk(self, argument: str) -> None:
        """BDAT is not offered. Who sends it all the same sends its octets with it, and they are not commands (S8)."""
        self._error(Reply(500, "5.5.1", "BDAT is not offered here, nor any CHUNKING; use DATA"))
        found = _CHUNK.fullmatch(argument)
        if found is None or int(found[1]) > 2 * self.settings.message_bytes:
            raise Closing(Reply(421, "4.7.0", f"{self.services.hostname} Nobody can say where this chunk ends"))
        self.stream.flush()
        self.stream.set_deadline(self.settings.command_seconds)
        try:
            for _ in self.stream.read_chunks(int(found[1])):
                pass
        finally:
            self.stream.set_deadline(None)

    def _read_line(self) -> bytes:
        waits = self._waiting = not self.stream.pending
        try:
            line = self.stream.read_line(wire.AUTH_OCTETS)
        except LimitExceeded:
            self._waiting = False
            try:
                self.stream.discard_line(1024 * 1024)
            except LimitExceeded:
                raise Closing(Reply(421, "4.7.0", f"{self.services.hostname} The line does not end")) from None
            raise WireError("The line is too long") from None
        finally:
            self._waiting = False
        if waits:
            self.services.intake.give_way()
        return line

    def reply(self, code: int, enhanced: str, text: str) -> None:
        self.stream.queue(self._counted(Reply(code, enhanced, text)).encode())

    def _refuse(self, error: MailError) -> None:
        reply = error.reply if isinstance(error, Refusal) else reply_to(error)
        log.info(
            "refused", session=self.id, peer=self.stream.peer, user=str(self.account.address) if self.account else None,
            code=reply.code, reason=str(error),
        )  # fmt: skip
        if isinstance(error, RecipientUnknown):
            self._unknown_recipient(error)
        self._error(reply)

    def _error(self, reply: Reply) -> None:
        """Answer with a refusal; too many of them slow the session down, then end it (S33)."""
        self._errors += 1
        self.stream.queue(self._counted(reply).encode())
        if self._errors >= self.settings.errors:
            log.info("too many errors", session=self.id, peer=self.stream.peer)
            raise Closing(Reply(421, "4.7.0", f"{self.services.hostname} Too many errors, closing connection"))
        if self._errors >= self.settings.errors_delayed:
            time.sleep(self.settings.failure_delay_seconds / 2)

    def greet_plainly(self, argument: str) -> None:
        self.helo_name = wire.parse_helo(argument)
        self._reset(State.READY)
        self.extended = False
        self.reply(250, "", self.services.hostname)

    def ehlo(self, argument: str) -> None:
        self.helo_name = wire.parse_helo(argument)
        self._reset(State.READY)
        self.extended = True
        lines = [
            f"{self.services.hostname} greets {self.helo_name}",
            "PIPELINING",
            f"SIZE {self.settings.message_bytes}",
            "8BITMIME",
            "SMTPUTF8",
            "DSN",
            "ENHANCEDSTATUSCODES",
        ]
        if self.stream.tls:
            lines.append("REQUIRETLS")  # RFC 8689 2
        if self._future:
            latest = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + self.settings.future_seconds))
            lines.append(f"FUTURERELEASE {self.settings.future_seconds} {latest}")  # RFC 4865 3
        if self.services.tls_context is not None and not self.stream.tls:
            lines.append("STARTTLS")
        if self.services.submission and self.stream.tls:
            lines.append(f"AUTH {' '.join(sasl.MECHANISMS)}")
        self.stream.queue(wire.multiline(250, lines))

    def start_tls(self, argument: str) -> None:
        context = self.services.tls_context
        if argument:
            raise WireError("STARTTLS has no argument")
        if context is None or self.stream.tls:
            self._error(Reply(503, "5.5.1", "TLS is active already" if self.stream.tls else "TLS is not available"))
            return
        self.stream.write(Reply(220, "2.0.0", "Go ahead").encode())
        try:
            self.stream.start_tls(context)
        except WireError as error:
            log.warning("data before TLS", session=self.id, peer=self.stream.peer)
            raise LimitExceeded(error.message) from None  # nothing more can be said on this connection
        self._reset(State.START)  # RFC 3207 4.2: all that was said in clear is forgotten
        self.helo_name = ""

    def auth(self, argument: str) -> None:
        name, _, initial = argument.partition(" ")
        if not self.services.submission:
            raise Refusal(Reply(502, "5.5.1", "Authentication is for submission, on ports 587 and 465"))
        if not self.stream.tls:
            raise Refusal(Reply(538, "5.7.11", "Encryption is required: use STARTTLS first"))
        if self.account is not None:
            raise Refusal(Reply(503, "5.5.1", "Already authenticated"))
        kind = sasl.MECHANISMS.get(name.upper())
        if kind is None:
            raise Refusal(Reply(504, "5.5.4", "Mechanism not recognised"))
        mechanism = kind()
        answer = mechanism.start(_decode(initial) if initial else None)
        while isinstance(answer, bytes):
            self.stream.write(b"334 %b\r\n" % base64.b64encode(answer))
            line = self._read_line()
            if line == b"*":
                raise Refusal(Reply(501, "5.7.0", "Authentication cancelled"))
            answer = mechanism.step(_decode(line.decode("ascii", "replace")))
        self._authenticated(name.upper(), answer)

    def _authenticated(self, method: str, who: sasl.Credentials) -> None:
        try:
            if who.authorize_as:
                raise AuthenticationFailed("Acting as another user is not offered")
            account = self.services.passwords.authenticate(
                who.user, who.password, Caller(self.stream.peer, self._service, method)
            )
        except AuthenticationFailed as error:
            self._failures += 1
            counters.logins.add(self.stream.service, "failed")
            time.sleep(self.settings.failure_delay_seconds)
            if self._failures >= self.settings.login_failures:
                raise Closing(Reply(421, "4.7.0", f"{self.services.hostname} Too many failed logins")) from None
            self._error(reply_to(error))
            return
        except LoginThrottled as throttled:
            self._failures += 1
            counters.logins.add(self.stream.service, "put off")
            time.sleep(self.settings.failure_delay_seconds)
            if self._failures >= self.settings.login_failures:
                raise Closing(Reply(421, "4.7.0", f"{self.services.hostname} {throttled}")) from None
            raise Refusal(Reply(454, "4.7.0", str(throttled))) from None  # RFC 4954 6
        except TemporaryFailure as failure:
            counters.logins.add(self.stream.service, "not checked")
            log.warning("login not checked", session=self.id, peer=self.stream.peer, reason=str(failure))
            raise Refusal(Reply(454, "4.7.0", "Temporary failure; try again later")) from None  # RFC 4954 6
        if not self.services.tally.enter(f"user {account.id}", self.settings.connections_per_user):
            counters.logins.add(self.stream.service, "put off")
            log.warning(
                "too many connections of a user", session=self.id, peer=self.stream.peer, user=str(account.address)
            )
            most = self.settings.connections_per_user
            raise Refusal(Reply(454, "4.7.0", f"{account.address} has {most} connections, the most allowed; try later"))
        self.account = account
        counters.logins.add(self.stream.service, "ok")
        log.info(
            "login", session=self.id, user=str(account.address), peer=self.stream.peer, service=self._service,
            method=method,
        )  # fmt: skip
        self.reply(235, "2.7.0", "Authentication succeeded")

    def mail(self, argument: str) -> None:
        if self.services.submission and self.account is None:
            raise Refusal(Reply(530, "5.7.0", "Authentication required"))
        mail = wire.parse_mail(argument, tls=self.stream.tls, future=self._future)
        not_before = self._release_time(mail)
        if mail.size is not None and mail.size > self.settings.message_bytes:
            raise MessageTooLarge(f"{mail.size} octets declared")
        if not self.services.intake.has_room(2 * self.settings.message_bytes):
            raise Refusal(Reply(452, "4.3.1", "Insufficient system storage"))  # S33
        self._require_honest(Reply(451, "4.7.1", ""))
        if self.account is not None:
            accounts = self.services.accounts
            if not accounts.enabled(self.account.id):
                raise Refusal(Reply(530, "5.7.0", "Authentication required"))
            # The null sender is nobody's: a mail program's read receipts have it (RFC 8098 3).
            if mail.sender is not None and not accounts.may_send_as(self.account, mail.sender):
                raise SenderRefused(f"{self.account.address} as {mail.sender}")
        self.transaction = Transaction(mail, not_before)
        self.state = State.MAIL
        self.reply(250, "2.1.0", "Sender ok")

    @property
    def _future(self) -> bool:
        """Whether the client may ask for a later release (RFC 4865: submission only)."""
        return self.services.submission and self.settings.future_seconds > 0

    def _release_time(self, mail: wire.Mail) -> float | None:
        """When the message shall leave, in wall time; None at once. RFC 4865 4.2: at most what EHLO said."""
        now = time.time()
        until = now + mail.hold_for if mail.hold_for is not None else mail.hold_until
        if until is None:
            undo = self.settings.undo_seconds if self.services.submission and mail.sender is not None else 0
            return now + undo if undo else None
        if until > now + self.settings.future_seconds:
            raise WireError(f"A message is held for {self.settings.future_seconds} seconds at most")
        return until if until > now else None

    def _require_honest(self, reply: Reply) -> None:
        """Whoever asked for many unknown recipients gets no more answers for a while, right or wrong (S19)."""
        throttle = self.services.throttle
        text = throttle.probe_refusal(self.stream.peer) if throttle is not None and self.account is None else None
        if text is not None:
            refusal = Reply(reply.code, reply.enhanced, text)
            raise Closing(refusal) if reply.code == 421 else Refusal(refusal)

    def _unknown_recipient(self, error: MailError) -> None:
        """Guessing gets slower with each wrong guess, and ends."""
        if self.services.throttle is not None and self.account is None:
            self.services.throttle.probed(self.stream.peer, str(error))
            time.sleep(self.settings.failure_delay_seconds * min(0.5, self._errors / 20))
            self._require_honest(Reply(421, "4.7.1", ""))

    def rcpt(self, argument: str) -> None:
        transaction = self._open_transaction()
        mail = transaction.mail
        address, options = wire.parse_rcpt(argument, smtputf8=mail.smtputf8)
        address = self._own_literal(address)
        if transaction.count >= self.settings.recipients:
            # No error of the client's: it sends to the others in its next transaction (RFC 5321 4.5.3.1.10).
            self.reply(452, "4.5.3", "Too many recipients")
            return
        if mail.sender is None and transaction.count:
            raise Refusal(Reply(452, "4.5.3", "A bounce has one recipient"))  # S13
        # RecipientUnknown tells who exists, as it must (bounces would be worse); guessing is slowed down and ended
        # (S19). Whoever has not logged in reaches other servers only where an address of ours leads there (S15).
        route = self.services.intake.route(
            address, options, anywhere=self.account is not None, null_sender=mail.sender is None
        )
        for recipient in route.recipients:
            self.services.intake.check_quota(recipient.account, mail.size or 0)
        transaction.asked.setdefault(address, Outward(address, options))
        for recipient in route.recipients:
            transaction.recipients.setdefault(recipient.account.id, recipient)
        for outward in route.outward:
            transaction.outward.setdefault(outward.address, outward)
        if route.via is not None:
            transaction.through.append(route.via)
        if route.expanded is not None:
            transaction.expanded.append(route.expanded)
        self.state = State.RCPT
        self.reply(250, "2.1.5", "Recipient ok")

    def _own_literal(self, address: Address) -> Address:
        """`<postmaster>` and addresses at our own IP address mean this host's first domain (RFC 5321 4.5.1; S10)."""
        if address.domain and not address.domain.startswith("["):
            return address
        own = not address.domain or address.domain == f"[{self.stream.local_address}]"
        if not own and self.account is not None:
            return address  # another host's
        mine = main_domain(self.services.accounts, self.services.hostname)
        if address.local.lower() != "postmaster" or not own or mine is None:
            raise RelayDenied(f"{address} is not an address of this server")
        return Address(address.local, mine)

    def _open_transaction(self) -> Transaction:
        assert self.transaction is not None  # the table admits such commands in MAIL and RCPT only
        return self.transaction

    def rset(self, argument: str) -> None:
        self._reset(State.READY if self.helo_name else State.START)
        self.reply(250, "2.0.0", "Reset")

    def _reset(self, state: int) -> None:
        self.transaction = None
        self.state = state

    def noop(self, argument: str) -> None:
        self.reply(250, "2.0.0", "Ok")

    def vrfy(self, argument: str) -> None:
        self.reply(252, "2.5.0", "Send some mail, and see")

    def help(self, argument: str) -> None:
        self.reply(214, "2.0.0", "See RFC 5321")

    def refuse_command(self, argument: str) -> None:
        self._error(Reply(502, "5.5.1", "Command not implemented"))

    def quit(self, argument: str) -> None:
        raise Closing(Reply(221, "2.0.0", f"{self.services.hostname} closing connection"))

    # -------------------------------------------------------------- the message

    def data(self, argument: str) -> None:
        transaction = self._open_transaction()
        if argument:
            raise WireError("DATA has no argument")
        if not self.services.submission and self.stream.spoken_to():
            # RFC 2920 3.1: DATA ends a group; a message sent before 354 is a smuggler's or a broken client's (S7).
            log.info("early talker", session=self.id, peer=self.stream.peer, after="DATA")
            raise Closing(Reply(554, "5.5.0", "Wait for the reply to DATA"))
        self.stream.write(Reply(354, "", "End data with <CR><LF>.<CR><LF>").encode())
        if transaction.not_before is not None:
            transaction.wait()
        recipients = list(transaction.recipients.values())
        self._reset(State.READY)
        identity = new_id()
        trace = Trace(transaction.mail.sender, self._received(transaction.mail, identity), one=transaction.count == 1)
        sent_copy = self.account if self.settings.save_sent and self.account is not None else None
        origin = Origin(self.account.id if self.account is not None else 0, self.id, self._service)
        with self.services.intake.open(
            recipients, list(transaction.outward.values()), envelope=transaction.envelope(), trace=trace,
            origin=origin, id=identity, sent_copy=sent_copy, expanded=transaction.expanded,
            not_before=transaction.not_before,
        ) as incoming:  # fmt: skip
            arrival = Arrival(
                self._limits(), incoming.write, complete=self.services.submission, host=self.services.hostname
            )
            self.stream.set_deadline(self.settings.data_seconds)
            try:
                arrival.read(self.stream)
            except TooLarge as error:
                raise Closing(Reply(552, "5.3.4", str(error))) from None
            finally:
                self.stream.set_deadline(None)
            accepted_at = time.monotonic()
            if not recipients:  # of ours, who may be waiting for it
                self.services.intake.give_way()
            message_id = arrival.message_id
            log.info(
                "received", id=identity, session=self.id, service=self.stream.service, peer=self.stream.peer,
                tls=self.stream.tls, helo=self.helo_name, user=str(self.account.address) if self.account else None,
                sender="" if transaction.mail.sender is None else str(transaction.mail.sender),
                recipients=transaction.count, size=incoming.size, message_id=message_id,
            )  # fmt: skip
            problem = arrival.problem([*(recipient.address for recipient in recipients), *transaction.through])
            if problem is not None:
                log.info("message refused", session=self.id, peer=self.stream.peer, id=identity, reason=problem.text)
                self._count_message(problem)
                self._error(problem)
                return
            try:
                accepted = incoming.commit(accepted_at, message_id)
            except MailError as error:
                self._count_message(reply_to(error))
                raise
        messages, octets = _accepted(self.stream.service)
        messages.count += 1
        octets.count += accepted.size
        # The client forgets the message on 250: every recipient's copy is on disk by now (RFC 5321 6.1).
        self._errors = self._idle_commands = 0
        self.reply(250, "2.0.0", f"Accepted as {accepted.id}")

    def _count_message(self, reply: Reply) -> None:
        counters.smtp_messages.add(self.stream.service, "refused" if reply.code >= 500 else "put off")

    def _received(self, mail: wire.Mail, identity: str) -> str:
        """The Received line up to its `for` and date (RFC 5321 4.4)."""
        protocol = "SMTP"
        if self.extended:
            protocol = "UTF8SMTP" if mail.smtputf8 else "ESMTP"
            protocol += ("S" if self.stream.tls else "") + ("A" if self.account is not None else "")
        peer = f"[IPv6:{self.stream.peer}]" if ":" in self.stream.peer else f"[{self.stream.peer}]"
        by = f"\tby {self.services.hostname} (mailsrv) with {protocol} id {identity}"
        return f"Received: from {self.helo_name} ({peer})\r\n{by}"

    def _limits(self) -> Limits:
        settings = self.settings
        return Limits(settings.message_bytes, settings.hops, settings.least_rate, settings.normalize_newlines)


@lru_cache(counters.MOST_SERIES)
def _replies(service: str, code: int) -> counters.Sum:
    return counters.smtp_replies.of(service, str(code))


@lru_cache(counters.MOST_SERIES)
def _accepted(service: str) -> tuple[counters.Sum, counters.Sum]:
    """(messages, their octets)."""
    return counters.smtp_messages.of(service, "accepted"), counters.smtp_octets.of(service)


def _decode(text: str) -> bytes:
    if text == "=":
        return b""  # RFC 4954 4: an empty initial response
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise WireError("Not base64") from None


COMMANDS: dict[str, Row] = {
    "EHLO": Row(ANY, Session.ehlo, ends_group=True, idle=True),  # RFC 5321 4.1.1.1
    "HELO": Row(ANY, Session.greet_plainly, ends_group=True, idle=True),
    "STARTTLS": Row(ANY, Session.start_tls, ends_group=True),  # RFC 3207
    "AUTH": Row(State.READY, Session.auth, ends_group=True, octets=wire.AUTH_OCTETS),  # RFC 4954
    "MAIL": Row(State.READY, Session.mail, octets=wire.MAIL_OCTETS),  # 4.1.1.2
    "RCPT": Row(State.MAIL | State.RCPT, Session.rcpt, octets=wire.MAIL_OCTETS),  # 4.1.1.3
    "DATA": Row(State.RCPT, Session.data),  # 4.1.1.4; ends its group in the handler
    "RSET": Row(ANY, Session.rset, idle=True),  # 4.1.1.5
    "VRFY": Row(ANY, Session.vrfy, idle=True),  # 4.1.1.6
    "EXPN": Row(ANY, Session.refuse_command),  # 4.1.1.7
    "HELP": Row(ANY, Session.help, idle=True),  # 4.1.1.8
    "NOOP": Row(ANY, Session.noop, idle=True),  # 4.1.1.9
    "QUIT": Row(ANY, Session.quit),  # 4.1.1.10
}
