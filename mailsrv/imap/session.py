"""One IMAP connection: its states, its table of commands, the tagged completion, and telling of changes before it.

Reads a command, lets the table say whether it is legal now, runs its handler, tells what changed in the selected
mailbox, and completes. Every failure of the model becomes NO in one place, every syntax error BAD; anything else is
our bug and ends this connection alone.

Imports: imap.*, net.stream, mail, wire, log, errors.    RFC 3501 3, 5.2, 6, 7; RFC 2177; RFC 5161.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from gevent.event import Event

from mailsrv import counters, log
from mailsrv.errors import MailboxReadOnly, MailError
from mailsrv.imap import auth, fetch, idle, mailboxes, messages
from mailsrv.imap.context import Bye, Completed, Refused, Services, State
from mailsrv.imap.reader import AFTER_LOGIN, BEFORE_LOGIN, Limits, Unreadable, read_command
from mailsrv.imap.responses import refusal
from mailsrv.imap.view import View, ViewBroken
from mailsrv.mail.mailbox import AccountMail
from mailsrv.net.stream import DeadlineExceeded, Stream, StreamError
from mailsrv.values import Account
from mailsrv.wire import imap_values as v
from mailsrv.wire.errors import BadCharset, WireError
from mailsrv.wire.imap_responses import number_set

MOST_LOGGED = 2000  # UIDs of one event
LONG_SECONDS = 0.001

NOBODY = State.NOT_AUTHENTICATED
SOMEBODY = State.AUTHENTICATED | State.SELECTED
ALWAYS = NOBODY | SOMEBODY


@dataclass(frozen=True, slots=True)
class Row:
    """What the RFC says of a command: in which states it is legal, whether it needs a writable mailbox, and whether
    messages may be told as expunged before it completes (R1)."""

    states: State
    run: Callable[[Session, v.Command], str | None]
    writes: bool = False
    expunges: bool = True


class Session:
    __slots__ = (
        "_begun_at", "_ending", "_errors", "_login_by", "_waiting", "account", "client", "failures", "id",
        "idling_since", "services", "settings", "state", "stream", "view", "wake",
    )  # fmt: skip

    def __init__(self, stream: Stream, services: Services) -> None:
        self.stream, self.services, self.settings = stream, services, services.settings
        self.id = log.new_id("imap")
        self.state = State.NOT_AUTHENTICATED
        self.account: AccountMail | None = None
        self.view: View | None = None
        self.wake: Event | None = None  # set by the registry and, while idling, by the socket
        self.failures = 0
        self.client = ""  # what it calls itself (RFC 2971)
        self.idling_since = 0.0
        self._begun_at = time.time()
        self._login_by = time.monotonic() + self.settings.login_seconds
        self._errors = 0
        self._waiting = False
        self._ending = ""  # the last words, once somebody wants it to end

    # -------------------------------------------------------------- life

    def run(self) -> None:
        """The whole connection; returns when it has ended. Never raises."""
        log.debug("connected", session=self.id, service="imap", peer=self.stream.peer, tls=self.stream.tls)
        try:
            self.stream.write_seconds = self.settings.write_seconds
            self.stream.write(b"* OK [CAPABILITY %b] mailsrv ready\r\n" % auth.capabilities(self))
            self._serve()
        except Bye as bye:
            self._farewell(str(bye))
        except Unreadable as failure:
            log.info("protocol error", session=self.id, peer=self.stream.peer, error=str(failure))
            self._farewell(str(failure))
        except DeadlineExceeded:
            self._farewell("Autologout; idle for too long")
        except StreamError as failure:
            log.debug("disconnected", session=self.id, peer=self.stream.peer, reason=str(failure))
        except Exception:
            log.exception("session failed", session=self.id, peer=self.stream.peer)
            self._farewell("[SERVERBUG] Internal error; the connection is closed, nothing else is affected")
        finally:
            self.leave_mailbox()
            self.stream.close()
            if self.account is not None:
                self.services.tally.leave(_user_key(self.account.account))
                log.info("logout", session=self.id, user=str(self.account.account.address))

    def stop(self, text: str = "") -> None:
        """Called from another greenlet, at shutdown or by an administrator: a session that waits for its client ends at
        once, others after their command."""
        self._ending = text or "Server is shutting down"
        if self.stream.closed:
            self.stream.hang_up()  # it need not linger
        elif self._waiting:
            self._farewell(self._ending)

    def hang_up(self) -> None:
        self.stream.hang_up()

    def described(self) -> dict[str, Any]:
        """What an administrator sees of the session."""
        state = "idling" if self.idling_since else "waiting" if self._waiting else "working"
        return {
            "session": self.id, "service": self.stream.service,
            "user": str(self.account.account.address) if self.account is not None else None,
            "peer": self.stream.peer, "tls": self.stream.tls, "client": self.client or None,
            "mailbox": self.view.mailbox.name if self.view is not None else None, "state": state,
            "connected_at": round(self._begun_at, 3), "idling_since": round(self.idling_since, 3) or None,
        }  # fmt: skip

    def _farewell(self, text: str) -> None:
        with suppress(StreamError):  # it may be gone already
            self.stream.write_last(b"* BYE %b\r\n" % text.encode("ascii", "replace"))
        if self._ending:
            self.stream.hang_up()  # nobody is waited for

    def _serve(self) -> None:
        while True:
            try:
                command = self.next_command()
            except WireError as error:
                self._syntax_error(error)
                continue
            if not self.execute(command):
                return
            if self._ending:
                raise Bye(self._ending)

    def next_command(self) -> v.Command:
        logged_in = self.account is not None
        self.stream.read_seconds = self.settings.idle_seconds if logged_in else self.settings.login_seconds
        limits: Limits = AFTER_LOGIN if logged_in else BEFORE_LOGIN
        if not logged_in:
            # All before a login within one time, however slowly it is typed and whatever else is asked (S16).
            self.stream.set_deadline(self._login_by - time.monotonic())
        with self.waiting():
            return read_command(self.stream, limits)

    def enter(self, account: Account) -> bool:
        """Count the connection as the user's; False if the user has too many."""
        return self.services.tally.enter(_user_key(account), self.settings.connections_per_user)

    def waiting(self) -> _Waiting:
        """While inside, the session only waits for its client and may be ended by `stop`."""
        return _Waiting(self)

    def _syntax_error(self, error: WireError) -> None:
        self._errors += 1
        log.debug("syntax error", session=self.id, error=error.message, offset=error.offset)
        tag = (error.tag or "*").encode()
        if isinstance(error, BadCharset):
            self.stream.write(b"%b NO [BADCHARSET (UTF-8 US-ASCII)] %b\r\n" % (tag, error.message.encode()))
            return
        text = "".join(char if " " <= char <= "~" else "?" for char in error.message)[:200]
        self.stream.write(b"%b BAD %b\r\n" % (tag, text.encode()))
        if self._errors >= self.settings.errors:
            log.info("too many errors", session=self.id, peer=self.stream.peer)
            raise Bye("Too many errors")

    def execute(self, command: v.Command) -> bool:
        """Run one command and complete it; False after LOGOUT."""
        tag = command.tag.encode()
        row = COMMANDS[type(command)]
        if isinstance(command, v.Logout):
            self.stream.write_last(b"* BYE Logging out\r\n%b OK LOGOUT completed\r\n" % tag, expected=True)
            return False
        if self.account is not None and not self.services.accounts.enabled(self.account.account.id):
            raise Bye("The account is disabled")
        word, text = "OK", None
        name = _name(command)
        begun = time.perf_counter()
        try:
            if not row.states & self.state:
                raise Refused(_not_now(row, self.state), "BAD")
            if row.writes and self.view is not None and self.view.read_only:
                raise MailboxReadOnly("The mailbox was opened with EXAMINE")
            text = row.run(self, command)
            self._errors = 0
        except Completed:
            return True
        except Refused as refused:
            word, text = refused.word, refused.text
        except WireError as error:  # found while acting: a sequence number that is not there, base64 that is none
            word, text = "BAD", error.message
        except MailError as error:
            word, text = "NO", refusal(error)
        if word == "BAD":
            self._errors += 1
        self.tell(expunges=row.expunges and not _by_number(command))
        completion = text if text is not None else f"{name} completed"
        counters.imap_commands.add(name, word)
        if not isinstance(command, v.Idle):
            counters.imap_seconds.observe(time.perf_counter() - begun, name)
        if self._errors >= self.settings.errors:
            raise Bye("Too many errors")
        self.stream.write(b"%b %b %b\r\n" % (tag, word.encode(), completion.encode("utf-8", "replace")))
        if time.perf_counter() - begun > LONG_SECONDS:
            time.sleep(0)  # a client that is as fast as we are must not have the loop for itself
        return True

    # -------------------------------------------------------------- the selected mailbox

    def selected(self) -> View:
        assert self.view is not None  # the table admits such commands in SELECTED only
        return self.view

    def mail(self) -> AccountMail:
        assert self.account is not None  # the table admits such commands to SOMEBODY only
        return self.account

    def acted(self, event: str, uids: list[int], target: str | None = None) -> None:
        """Who made messages of the selected mailbox go, or come elsewhere, is in the log."""
        mailbox = self.selected().mailbox
        if uids:
            log.info(
                event, session=self.id, user=str(self.mail().account.address), mailbox=str(mailbox.id),
                name=mailbox.name, target=target, count=len(uids), uids=number_set(uids[:MOST_LOGGED]).decode(),
            )  # fmt: skip

    def leave_mailbox(self) -> None:
        if self.view is not None:
            self.view.close()
            self.view = self.wake = None
            self.state = State.AUTHENTICATED

    def tell(self, *, expunges: bool, at_once: bool = False) -> None:
        """Queue what changed in the selected mailbox; it goes out with the completion (R3, R5), or `at_once`."""
        view = self.view
        if view is None:
            return
        view.mailbox.refresh()
        if view.mailbox.gone:
            raise Bye("The mailbox was deleted")
        known, cursor = view.count, view.cursor
        try:
            lines = view.tell(expunges=expunges)
        except ViewBroken as broken:
            raise Bye(f"The mailbox has to be opened anew: {broken}") from None
        if lines:
            self.stream.queue(b"".join(lines))
        if view.count > known:
            if at_once and not view.mailbox.recent_is_known:
                self.stream.flush()  # the news does not wait for whose they are
            if view.claim_recent():
                self.stream.queue(b"* %d RECENT\r\n" % view.recent_count())
        if at_once:
            self.stream.flush()
        if view.cursor > cursor:
            view.mailbox.told(view.cursor, self.id)


class _Waiting:
    __slots__ = ("_session",)

    def __init__(self, session: Session) -> None:
        self._session = session

    def __enter__(self) -> None:
        session = self._session
        session.stream.flush()
        if session._ending:
            raise Bye(session._ending)
        session._waiting = True

    def __exit__(self, *_: object) -> None:
        self._session._waiting = False
        self._session.stream.set_deadline(None)


def _user_key(account: Account) -> str:
    return f"user {account.id}"


def _not_now(row: Row, state: State) -> str:
    if state is State.NOT_AUTHENTICATED:
        return "Log in first"
    if row.states is State.NOT_AUTHENTICATED:
        return "Already logged in"
    return "Select a mailbox first"


def _name(command: v.Command) -> str:
    if isinstance(command, v.List) and command.lsub:
        return "LSUB"
    by_uid = command.uids is not None if isinstance(command, v.Expunge) else getattr(command, "uid", False)
    return f"{'UID ' if by_uid else ''}{type(command).__name__.upper()}"


def _by_number(command: v.Command) -> bool:
    """FETCH, STORE and SEARCH by number: their numbers must keep their meaning until they are done (R1)."""
    return isinstance(command, v.Fetch | v.Store | v.Search) and not command.uid


def _noop(session: Session, command: v.Command) -> None:
    return None


def _look(session: Session, command: v.Command) -> None:
    """NOOP and CHECK look at the mailbox itself: news of another process or program may still be on its way."""
    if session.view is not None:
        session.services.mailboxes.reconcile(session.view.mailbox)
        session.view.mailbox.mark_stale()


COMMANDS: dict[type[v.Command], Row] = {
    v.Capability: Row(ALWAYS, auth.capability),  # RFC 3501 6.1.1
    v.Noop: Row(ALWAYS, _look),  # 6.1.2
    v.Logout: Row(ALWAYS, _noop),  # 6.1.3
    v.Id: Row(ALWAYS, auth.identify),  # RFC 2971
    v.StartTls: Row(NOBODY, auth.start_tls),  # 6.2.1
    v.Authenticate: Row(NOBODY, auth.authenticate),  # 6.2.2
    v.Login: Row(NOBODY, auth.login),  # 6.2.3
    v.Enable: Row(SOMEBODY, auth.enable),  # RFC 5161
    v.Namespace: Row(SOMEBODY, mailboxes.namespace),  # RFC 2342
    v.Select: Row(SOMEBODY, mailboxes.select),  # 6.3.1, 6.3.2
    v.Create: Row(SOMEBODY, mailboxes.create),  # 6.3.3
    v.Delete: Row(SOMEBODY, mailboxes.delete),  # 6.3.4
    v.Rename: Row(SOMEBODY, mailboxes.rename),  # 6.3.5
    v.Subscribe: Row(SOMEBODY, mailboxes.subscribe),  # 6.3.6
    v.Unsubscribe: Row(SOMEBODY, mailboxes.unsubscribe),  # 6.3.7
    v.List: Row(SOMEBODY, mailboxes.list_mailboxes),  # 6.3.8, 6.3.9
    v.Status: Row(SOMEBODY, mailboxes.status),  # 6.3.10
    v.Append: Row(SOMEBODY, messages.append),  # 6.3.11
    v.Idle: Row(SOMEBODY, idle.idle),  # RFC 2177
    v.Check: Row(State.SELECTED, _look),  # 6.4.1: what was acknowledged is durable already
    v.Close: Row(State.SELECTED, mailboxes.close),  # 6.4.2
    v.Unselect: Row(State.SELECTED, mailboxes.unselect),  # RFC 3691
    v.Expunge: Row(State.SELECTED, messages.expunge, writes=True),  # 6.4.3, RFC 4315 2.1
    v.Search: Row(State.SELECTED, messages.search),  # 6.4.4
    v.Fetch: Row(State.SELECTED, fetch.fetch),  # 6.4.5
    v.Store: Row(State.SELECTED, messages.store, writes=True),  # 6.4.6
    v.Copy: Row(State.SELECTED, messages.copy),  # 6.4.7
    v.Move: Row(State.SELECTED, messages.move, writes=True),  # RFC 6851
}
