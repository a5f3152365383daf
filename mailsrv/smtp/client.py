"""The sending side of one connection, SMTP or LMTP: greeting, TLS, AUTH, and as many transactions as are wanted.

What is said of a recipient becomes an Outcome; permanence is read from the class of the reply code and nothing else
(B22). What is said of the connection becomes an exception: `Refused` with the server's reply, or what the stream
raises. A connection that is lost between the final dot and its reply leaves a message that may have been taken: it is
tried again later, never elsewhere at once.

Imports: net.stream, smtp.outgoing, wire, values.    RFC 5321 4.5.3.2 (timeouts), 2033, 2920, 3030, 3207, 4954.
"""

from __future__ import annotations

import base64
import ssl
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from mailsrv.net.stream import ConnectionLost, DeadlineExceeded, Stream, StreamError
from mailsrv.smtp.outgoing import Outgoing
from mailsrv.values import Address, Disposition, Envelope, Outcome, RecipientOptions
from mailsrv.wire.errors import WireError
from mailsrv.wire.smtp_client import (
    REPLY_LINE_OCTETS,
    Offers,
    ReplyReader,
    ServerReply,
    mail_command,
    parse_offers,
    rcpt_command,
)  # fmt: skip

RECIPIENTS = 100  # of one transaction: RFC 5321 4.5.3.1.8
ONE_WRITE_OCTETS = 32 * 1024  # a chunk up to here goes in one packet train with its BDAT line
Recipients = Sequence[tuple[Address, RecipientOptions]]
Said = dict[Address, Outcome]


@dataclass(frozen=True, slots=True)
class Timeouts:
    """RFC 5321 4.5.3.2, in seconds. Shorter than 10 minutes for the final dot makes duplicates (S16)."""

    greeting: float = 300.0
    command: float = 300.0
    data: float = 120.0
    block: float = 180.0
    final: float = 600.0
    handshake: float = 30.0
    farewell: float = 2.0


class Refused(Exception):
    """The server does not want this connection, or not like this: its reply, and at which step."""

    def __init__(self, reply: ServerReply, step: str) -> None:
        super().__init__(f"{step}: {reply.code} {reply.text}")
        self.reply, self.step = reply, step


class Unfit(Exception):
    """The server lacks what this message needs; another host may have it. `enhanced` without its class: "6.7"."""

    def __init__(self, enhanced: str, text: str, *, permanent: bool = True) -> None:
        super().__init__(text)
        self.enhanced, self.text, self.permanent = enhanced, text, permanent


class Client:
    """`host` names the server for people, as in Outcome. Begin with `greet`."""

    def __init__(
        self, stream: Stream, host: str, helo: str, *, lmtp: bool = False, timeouts: Timeouts | None = None,
    ) -> None:  # fmt: skip
        self._stream, self.host, self._helo, self._lmtp = stream, host, helo, lmtp
        self._timeouts = timeouts or Timeouts()
        self._stream.write_seconds = self._timeouts.block
        self.offers = Offers()
        self.tls = ""
        self.vouched = False  # name and certificate are what REQUIRETLS wants them to be (RFC 8689 2)
        self.transactions = 0
        self._dirty = False  # a transaction was begun and not ended by its final reply

    # -------------------------------------------------------------- beginning

    def greet(self) -> None:
        """The server's greeting, and ours. RFC 5321 3.1, 3.2."""
        reply = self._reply(self._timeouts.greeting)
        if reply.code != 220:
            raise Refused(reply, "greeting")
        self.hello()

    def hello(self) -> None:
        """EHLO, LHLO; HELO where EHLO is not known (RFC 5321 3.2). What was offered before counts no more."""
        verb = "LHLO" if self._lmtp else "EHLO"
        reply = self._command(f"{verb} {self._helo}")
        if reply.code == 250:
            self.offers = parse_offers(reply)
            return
        self.offers = Offers()
        if self._lmtp or not 500 <= reply.code < 600:
            raise Refused(reply, verb)
        reply = self._command(f"HELO {self._helo}")
        if reply.code != 250:
            raise Refused(reply, "HELO")

    def start_tls(self, context: ssl.SSLContext, server_name: str) -> None:
        """RFC 3207. Refused, HandshakeFailed, or WireError for what was smuggled in before TLS (S3)."""
        reply = self._command("STARTTLS")
        if reply.code != 220:
            raise Refused(reply, "STARTTLS")
        self._stream.start_client_tls(context, server_name, self._timeouts.handshake)
        self.tls = self._stream.tls_name

    def start_implicit_tls(self, context: ssl.SSLContext, server_name: str) -> None:
        self._stream.start_client_tls(context, server_name, self._timeouts.handshake)
        self.tls = self._stream.tls_name

    def peer_chain(self) -> list[bytes]:
        return self._stream.peer_chain()

    def authenticate(self, user: str, password: str) -> None:
        """PLAIN, else LOGIN; only inside TLS (S32). RFC 4954, 4616."""
        if not self._stream.tls:
            raise Unfit("7.11", "The password is not sent without TLS", permanent=False)
        offered = {word.upper() for word in self.offers.keywords.get("AUTH", ())}
        if "PLAIN" in offered:
            reply = self._command(f"AUTH PLAIN {_base64(chr(0) + user + chr(0) + password)}")
        elif "LOGIN" in offered:
            reply = self._command("AUTH LOGIN")
            for answer in (user, password):
                if reply.code == 334:
                    reply = self._command(_base64(answer))
        else:
            raise Unfit("7.4", "The server offers neither AUTH PLAIN nor AUTH LOGIN", permanent=False)
        if reply.code != 235:
            raise Refused(reply, "AUTH")

    # -------------------------------------------------------------- a transaction

    def send(self, message: Outgoing, envelope: Envelope, recipients: Recipients, said: Said) -> None:
        """One transaction for as many of `recipients` as the server takes at once; what came of each goes into `said`.

        Who is not in `said` afterwards was not decided and may be tried in a further transaction. After an exception
        too, what is in `said` stands. Unfit comes before anything was sent.
        """
        utf8 = self._fits(message, envelope, recipients)
        if envelope.require_tls and not (envelope.must_require_tls or self.vouched):
            envelope = replace(envelope, require_tls=False)  # a report goes all the same, without the word
        some = recipients[: min(RECIPIENTS, self.offers.limit("RCPTMAX") or RECIPIENTS)]
        survey = message.survey
        mail = mail_command(envelope, self.offers, size=survey.size, eight_bit=survey.eight_bit, utf8=utf8)
        rcpts = [rcpt_command(address, options, self.offers) for address, options in some]
        self.transactions += 1
        chunking = "CHUNKING" in self.offers
        if "PIPELINING" in self.offers:
            accepted, data = self._offer_at_once(mail, rcpts, some, said, chunking)
        else:
            accepted, data = self._offer_one_by_one(mail, rcpts, some, said, chunking)
        if not accepted:
            if data is not None and data.code == 354:  # it waits for a message nobody shall have, RFC 2920 3.1
                self._stream.write(b".\r\n")
                self._reply(self._timeouts.final)
            return
        if data is not None and data.code != 354:
            self._settle(accepted, data, said)
            return
        self._transfer(message, accepted, said, chunking)

    def _fits(self, message: Outgoing, envelope: Envelope, recipients: Recipients) -> bool:
        """Whether SMTPUTF8 is to be said. Raises Unfit if this server cannot take the message at all."""
        survey, offers = message.survey, self.offers
        if 0 < offers.size_limit < survey.size:  # RFC 1870 6.1: no use in trying
            raise Unfit("3.4", f"{survey.size} octets are more than the {offers.size_limit} this server takes")
        if envelope.must_require_tls and not (self.tls and "REQUIRETLS" in offers):
            raise Unfit("7.30", "The server does not offer REQUIRETLS, which the sender asked for", permanent=False)
        if survey.eight_bit and not ("8BITMIME" in offers or "SMTPUTF8" in offers):
            raise Unfit("6.3", "The message has 8-bit text, which this server does not take (8BITMIME)")
        addresses_need = not all(str(one).isascii() for one in (envelope.sender or "", *(one for one, _ in recipients)))
        if not (addresses_need or survey.header_eight_bit):
            return False  # the right downgrade: nothing in it needs the extension, RFC 6531 3.2
        if "SMTPUTF8" not in offers:
            raise Unfit(
                "6.7", "The message has UTF-8 in addresses or header, which this server does not take (SMTPUTF8)"
            )
        return addresses_need or survey.header_utf8

    def _offer_at_once(
        self, mail: bytes, rcpts: list[bytes], recipients: Recipients, said: Said, chunking: bool
    ) -> tuple[list[tuple[Address, RecipientOptions]], ServerReply | None]:
        """MAIL, RCPT and DATA in one go. RFC 2920 3.1."""
        begin = [b"RSET\r\n", mail] if self._dirty else [mail]
        end = [] if chunking else [b"DATA\r\n"]
        self._stream.write(b"".join((*begin, *rcpts, *end)))
        if self._dirty:
            self._reply(self._timeouts.command)
        self._dirty = True
        mailed = self._reply(self._timeouts.command)
        accepted: list[tuple[Address, RecipientOptions]] = []
        for one in recipients:
            reply = self._reply(self._timeouts.command)
            if mailed.code // 100 == 2 and self._is_accepted(one[0], reply, said, bool(accepted)):
                accepted.append(one)
        data = None if chunking else self._reply(self._timeouts.data)
        if mailed.code // 100 != 2:
            self._settle(recipients, mailed, said)
        return accepted, data

    def _offer_one_by_one(
        self, mail: bytes, rcpts: list[bytes], recipients: Recipients, said: Said, chunking: bool
    ) -> tuple[list[tuple[Address, RecipientOptions]], ServerReply | None]:
        if self._dirty:
            self._command("RSET")
        self._dirty = True
        mailed = self._exchange(mail, self._timeouts.command)
        if mailed.code // 100 != 2:
            self._settle(recipients, mailed, said)
            return [], None
        accepted: list[tuple[Address, RecipientOptions]] = []
        for line, one in zip(rcpts, recipients, strict=True):
            if self._is_accepted(one[0], self._exchange(line, self._timeouts.command), said, bool(accepted)):
                accepted.append(one)
        if not accepted or chunking:
            return accepted, None
        return accepted, self._exchange(b"DATA\r\n", self._timeouts.data)

    def _is_accepted(self, recipient: Address, reply: ServerReply, said: Said, others: bool) -> bool:
        if reply.code // 100 == 2:
            return True
        # "Too many recipients" is no word on this one: it has its turn in the next transaction (RFC 5321 4.5.3.1.10).
        if not (others and reply.code in (452, 552)):
            said[recipient] = self._outcome(recipient, reply)
        return False

    def _transfer(self, message: Outgoing, accepted: Recipients, said: Said, chunking: bool) -> None:
        try:
            self._send_text(message, chunking)
        except ConnectionLost:
            # Some servers refuse in the middle and hang up; what they said may still be there to be read.
            try:
                self._settle(accepted, self._reply(self._timeouts.farewell), said)
            except (StreamError, WireError, Refused):
                pass
            raise
        try:
            self._stream.flush()
            self._read_verdict(accepted, said)
        except (StreamError, WireError) as failure:
            # RFC 5321 4.5.3.2.6, RFC 1047: it may have been taken. A second copy is better than none.
            text = f"The connection ended before the reply to the message: {failure}"
            for address, _ in accepted:
                if address not in said:
                    said[address] = Outcome(address, Disposition.LATER, 0, "4.4.2", text, self.host, self.tls)
            raise
        self._dirty = False

    def _send_text(self, message: Outgoing, chunking: bool) -> None:
        if chunking:  # RFC 3030 2: the whole as one chunk
            self._stream.queue(b"BDAT %d LAST\r\n" % message.survey.size)
        for piece in message.pieces(dotted=not chunking):
            self._stream.write(piece)

    def _read_verdict(self, accepted: Recipients, said: Said) -> None:
        """One reply for all, or with LMTP one for each recipient in their order (RFC 2033 4.2)."""
        if not self._lmtp:
            self._settle(accepted, self._reply(self._timeouts.final, closing=True), said)
            return
        for one in accepted:
            self._settle([one], self._reply(self._timeouts.final, closing=True), said)

    def _settle(self, recipients: Iterable[tuple[Address, RecipientOptions]], reply: ServerReply, said: Said) -> None:
        for address, _ in recipients:
            said[address] = self._outcome(address, reply)

    def _outcome(self, recipient: Address, reply: ServerReply) -> Outcome:
        kind = reply.code // 100
        if kind == 2:
            disposition = Disposition.SENT
        else:
            disposition = Disposition.NEVER if kind == 5 else Disposition.LATER
        enhanced = reply.status() if kind != 3 else "4.5.0"  # 354 where none is due
        relayed = kind == 2 and "DSN" in self.offers
        return Outcome(recipient, disposition, reply.code, enhanced, reply.text, self.host, self.tls, relayed)

    # -------------------------------------------------------------- replies

    def _command(self, line: str) -> ServerReply:
        return self._exchange(line.encode() + b"\r\n", self._timeouts.command)

    def _exchange(self, line: bytes, seconds: float) -> ServerReply:
        self._stream.write(line)
        return self._reply(seconds)

    def _reply(self, seconds: float, *, closing: bool = False) -> ServerReply:
        """The next reply, all of it within `seconds`. 421 may come at any time and ends the connection (RFC 5321 3.8);
        as a verdict on a message (`closing`) it is one.
        """
        self._stream.set_deadline(seconds)
        self._stream.read_seconds = seconds
        reader = ReplyReader()
        while (reply := reader.feed(self._stream.read_reply_line(REPLY_LINE_OCTETS))) is None:
            pass
        if reply.code == 421 and not closing:
            raise Refused(reply, "the server closes the connection")
        return reply

    # -------------------------------------------------------------- ending

    @property
    def usable(self) -> bool:
        """Whether a further transaction may be begun."""
        return self._stream.quiet

    def close(self) -> None:
        """QUIT, and no waiting for what is said to it: all that mattered has been said."""
        if not self._stream.closed:
            try:
                self._stream.write_seconds = self._timeouts.farewell
                self._stream.write(b"QUIT\r\n")
            except StreamError:
                pass
            self._stream.close()

    def drop(self) -> None:
        self._stream.close()


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


__all__ = ["Client", "ConnectionLost", "DeadlineExceeded", "Refused", "Said", "Timeouts", "Unfit"]
