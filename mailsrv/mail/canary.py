"""A message to ourselves now and then, to know that mail is stored and pushed before a user misses it.

One process hands it to the intake, for a mailbox that is no user's: not in the accounts, not to be logged in to, not
reachable by any address, and emptied again each time. Every serving process watches that mailbox as an idling session
does, and measures how long after the commit it was woken and knew of it. If the message cannot be stored, or somebody
is not told of it in time, that is an alarm, in the log and in the status.

Imports: mail, counters, log, errors, values, gevent.    docs/monitoring.md.
"""

from __future__ import annotations

import time
from typing import Any

import gevent
from gevent.event import Event

from mailsrv import counters, log
from mailsrv.errors import MailError
from mailsrv.mail.intake import Intake, Origin, Recipient, new_id
from mailsrv.mail.mailbox import Mailbox
from mailsrv.store.names import INBOX
from mailsrv.values import NOBODY, Account, Address, Envelope

FIRST_SECONDS = 2.0  # after the start
PATIENCE_SECONDS = 10.0  # that a push may take
ADDRESS = Address("canary", "localhost")


class Canary:
    """`sends`: this process puts the messages in; all others only watch."""

    def __init__(self, intake: Intake, home: str, seconds: float, *, sends: bool) -> None:
        self._intake, self._seconds, self._sends = intake, seconds, sends
        self._account = Account(NOBODY, ADDRESS, home)
        self._greenlets: list[gevent.Greenlet] = []
        self._seen = Event()
        self.problem = ""  # what is wrong now
        self.seen_at = 0.0  # seconds since 1970, 0 before the first
        self.last_seconds = 0.0

    def start(self) -> None:
        self._greenlets = [gevent.spawn(self._watch)]
        if self._sends:
            self._greenlets.append(gevent.spawn(self._send_on))

    def close(self) -> None:
        gevent.killall(self._greenlets)

    def described(self) -> dict[str, Any]:
        return {"problem": self.problem, "seen_at": self.seen_at, "last_seconds": self.last_seconds}

    def _judge(self, problem: str) -> None:
        if problem:
            counters.canary_failures.add()
            log.error("canary failed", reason=problem)
        elif self.problem:
            log.warning("canary is well again")
        self.problem = problem

    # -------------------------------------------------------------- watching

    def _watch(self) -> None:
        while True:
            try:
                mailbox = self._intake.mailboxes.open(self._account, INBOX)
            except MailError as failure:
                self._judge(f"its mailbox cannot be opened: {failure}")
                gevent.sleep(min(self._seconds, PATIENCE_SECONDS))
                continue
            try:
                self._watch_mailbox(mailbox)
            except MailError as failure:
                self._judge(f"its mailbox cannot be read: {failure}")
                gevent.sleep(min(self._seconds, PATIENCE_SECONDS))
            finally:
                mailbox.close()

    def _watch_mailbox(self, mailbox: Mailbox) -> None:
        """As IDLE does: wait to be told, look. Who is not told does not look. Returns when the mailbox is gone."""
        news = Event()
        subscription = mailbox.subscribe(news)
        known = mailbox.uidnext
        begun_at = time.time()
        try:
            while True:
                while not news.wait(self._seconds):
                    if self._overdue(begun_at):
                        self._judge("no message was announced to this process in time")
                news.clear()
                mailbox.refresh()
                if mailbox.gone:
                    return
                for position in range(len(mailbox.uids) - 1, -1, -1):
                    if mailbox.uids[position] < known:
                        break
                    self._saw(mailbox.modseqs[position])
                known = mailbox.uidnext
        finally:
            subscription.close()

    def _saw(self, modseq: int) -> None:
        """A modseq is the time of its commit in microseconds."""
        now = time.time()
        self.seen_at, self.last_seconds = now, max(0.0, now - modseq / 1e6)
        counters.canary_seconds.observe(self.last_seconds)
        self._seen.set()
        self._judge("")

    def _overdue(self, begun_at: float) -> bool:
        return time.time() - max(self.seen_at, begun_at) > 2 * self._seconds + PATIENCE_SECONDS

    # -------------------------------------------------------------- sending

    def _send_on(self) -> None:
        gevent.sleep(FIRST_SECONDS)
        while True:
            self._seen.clear()
            try:
                self._send()
            except MailError as failure:
                self._judge(f"a message cannot be stored: {failure}")
            else:
                if not self._seen.wait(PATIENCE_SECONDS):
                    self._judge(f"a message was not announced within {PATIENCE_SECONDS:g} s")
            gevent.sleep(self._seconds)

    def _send(self) -> None:
        mail = self._intake.mailboxes.account(self._account)
        number = mail.inbox().id.number
        old = mail.run(mail.store.snapshot, number).uids
        id = new_id()
        recipient = Recipient(self._account, ADDRESS)
        origin = Origin(service="canary")
        with self._intake.open([recipient], envelope=Envelope(None), trace=_NoTrace(), origin=origin, id=id) as message:
            message.write(b"Subject: Is mail stored and pushed?\r\n\r\nIt is, if somebody notices this.\r\n")
            message.commit(time.monotonic())
        for uid in old:  # all have had time to see them
            mail.remove(number, [uid])


class _NoTrace:
    """The message comes from nowhere."""

    def local(self, recipient: Recipient) -> bytes:
        return b""

    def outward(self, via: Address | None, recipients: list[Address]) -> bytes:
        return b""
