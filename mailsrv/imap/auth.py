"""Handlers before and around the login: what the server can do, TLS, who the client is.

Imports: imap.session (types), net.stream, mail, wire, log.    RFC 3501 6.1, 6.2; RFC 4959 (SASL-IR); RFC 2971 (ID);
RFC 5161.
"""

from __future__ import annotations

import base64
import time
from typing import TYPE_CHECKING

from mailsrv import __version__, counters, log
from mailsrv.errors import AuthenticationFailed, LoginThrottled
from mailsrv.imap.context import Bye, Completed, Refused, State
from mailsrv.mail.passwords import Caller
from mailsrv.net.stream import LimitExceeded
from mailsrv.wire import imap_values as v
from mailsrv.wire import sasl
from mailsrv.wire.errors import WireError
from mailsrv.wire.imap_commands import decode_base64
from mailsrv.wire.imap_responses import quoted_or_literal

if TYPE_CHECKING:
    from mailsrv.imap.session import Session
BASE = ("IMAP4rev1", "LITERAL+", "SASL-IR", "ID", "ENABLE", "IDLE")
AFTER_LOGIN = (
    *BASE, "CHILDREN", "NAMESPACE", "UIDPLUS", "MOVE", "UNSELECT", "SPECIAL-USE", "CREATE-SPECIAL-USE",
)  # fmt: skip
RESPONSE_BYTES = 4096
CLIENT_LETTERS = 120  # kept of what a client calls itself


def capabilities(session: Session) -> bytes:
    """The capability list of this moment (R46, R47)."""
    if session.account is not None:
        return " ".join(AFTER_LOGIN).encode()
    words = list(BASE)
    if not session.stream.tls and session.services.tls_context is not None:
        words.append("STARTTLS")
    if may_log_in(session):
        words += [f"AUTH={name}" for name in sasl.MECHANISMS]
    else:
        words.append("LOGINDISABLED")
    return " ".join(words).encode()


def may_log_in(session: Session) -> bool:
    """Passwords travel under TLS only, but for a client on this machine where the administrator allows it."""
    loopback = session.stream.peer.startswith(("127.", "::1", "[::1]"))
    return session.stream.tls or (session.settings.allow_plaintext_login and loopback)


def capability(session: Session, command: v.Command) -> None:
    session.stream.queue(b"* CAPABILITY %b\r\n" % capabilities(session))


def identify(session: Session, command: v.Command) -> None:
    assert isinstance(command, v.Id)
    if command.fields:
        words = (command.fields.get(name) or "" for name in ("name", "version", "os"))
        session.client = " ".join(word[:CLIENT_LETTERS] for word in words if word)[:CLIENT_LETTERS]
        user = str(session.account.account.address) if session.account is not None else None
        log.info("client", session=session.id, user=user, client=session.client)
    session.stream.queue(b'* ID ("name" "mailsrv" "version" %b)\r\n' % quoted_or_literal(__version__))


def enable(session: Session, command: v.Command) -> None:
    """Nothing that changes the protocol is offered yet; unknown names are ignored (RFC 5161 3.1)."""
    session.stream.queue(b"* ENABLED\r\n")


def start_tls(session: Session, command: v.Command) -> str | None:
    context = session.services.tls_context
    if session.stream.tls or context is None:
        raise Refused("TLS is not available here" if context is None else "TLS is active already", "BAD")
    if session.stream.pending:
        # What follows the command came in clear: it is not executed inside TLS (R46, CVE-2011-0411).
        log.warning("data before TLS", session=session.id, peer=session.stream.peer)
        raise Bye("Data was sent before TLS was negotiated")
    session.stream.write(b"%b OK Begin TLS negotiation now\r\n" % command.tag.encode())
    session.stream.start_tls(context)
    raise Completed


def login(session: Session, command: v.Command) -> str:
    assert isinstance(command, v.Login)
    _require_privacy(session)
    return _log_in(session, "LOGIN", command.user, command.password)


def authenticate(session: Session, command: v.Command) -> str:
    assert isinstance(command, v.Authenticate)
    _require_privacy(session)
    kind = sasl.MECHANISMS.get(command.mechanism)
    if kind is None:
        raise Refused("[CANNOT] Unknown mechanism")
    mechanism = kind()
    answer = mechanism.start(command.initial)
    while isinstance(answer, bytes):
        session.stream.write(b"+ %b\r\n" % base64.b64encode(answer))
        try:
            with session.waiting():
                session.stream.set_deadline(session.settings.login_seconds)
                line = session.stream.read_line(RESPONSE_BYTES)
        except LimitExceeded:
            session.stream.discard_line(10 * RESPONSE_BYTES)
            raise WireError("The response is too long") from None
        if line == b"*":
            raise WireError("Authentication cancelled")  # RFC 3501 6.2.2: tagged BAD
        answer = mechanism.step(decode_base64(line))
    if answer.authorize_as:
        raise Refused("[AUTHORIZATIONFAILED] Acting as another user is not offered")
    return _log_in(session, command.mechanism, answer.user, answer.password)


def _require_privacy(session: Session) -> None:
    if not may_log_in(session):
        raise Refused("[PRIVACYREQUIRED] Use STARTTLS or the TLS port first")


def _log_in(session: Session, method: str, user: str, password: str) -> str:
    try:
        account = session.services.passwords.authenticate(user, password, Caller(session.stream.peer, "imap", method))
    except AuthenticationFailed:
        session.failures += 1
        counters.logins.add(session.stream.service, "failed")
        time.sleep(session.settings.failure_delay_seconds)
        if session.failures >= session.settings.login_failures:
            raise Bye("Too many failed logins on this connection; check user name and password") from None
        raise
    except LoginThrottled as throttled:
        session.failures += 1
        counters.logins.add(session.stream.service, "put off")
        time.sleep(session.settings.failure_delay_seconds)
        if session.failures >= session.settings.login_failures:
            raise Bye(f"[UNAVAILABLE] {throttled}") from None
        raise
    if not session.enter(account):
        counters.logins.add(session.stream.service, "put off")
        log.warning(
            "too many connections of a user", session=session.id, peer=session.stream.peer, user=str(account.address)
        )
        raise Refused(
            f"[LIMIT] {account.address} has {session.settings.connections_per_user} connections, the most allowed; "
            "close a mail program on another device, or try again later"
        )
    counters.logins.add(session.stream.service, "ok")
    session.account = session.services.mailboxes.account(account)
    session.state = State.AUTHENTICATED
    log.info(
        "login", session=session.id, user=str(account.address), peer=session.stream.peer, method=method,
        tls=session.stream.tls,
    )  # fmt: skip
    return f"[CAPABILITY {capabilities(session).decode()}] Logged in"
