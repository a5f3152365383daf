"""What a session and its transaction stand on: the states, the settings, the services, and the ways a command ends.

Imports: mail, net.tally, wire, errors, values.    RFC 5321 3.3, 4.1.4, 4.5.3.
"""

from __future__ import annotations

import ssl
import time
from dataclasses import dataclass, field

from mailsrv.errors import MailError
from mailsrv.mail.accounts import Accounts
from mailsrv.mail.intake import Intake, Outward, Recipient, Waiting
from mailsrv.mail.passwords import Passwords
from mailsrv.mail.throttle import Throttle
from mailsrv.net.tally import Shared, Tally
from mailsrv.values import Address, Envelope
from mailsrv.wire import smtp as wire
from mailsrv.wire.smtp import Reply


class State:
    """A bit for each. No Flag: its operators are Python, and every command asks."""

    START = 1
    READY = 2  # greeted, no transaction
    MAIL = 4
    RCPT = 8


@dataclass(frozen=True, slots=True)
class SmtpSettings:
    """Limits in seconds, octets and counts. RFC 5321 4.5.3."""

    message_bytes: int = 50 * 1024 * 1024
    recipients: int = 1000
    command_seconds: float = 300.0
    data_seconds: float = 3600.0
    write_seconds: float = 60.0
    least_rate: float = 500.0  # octets per second of a message
    errors_delayed: int = 10
    errors: int = 20
    idle_commands: int = 100  # that send no mail, in a row
    hops: int = 100
    login_failures: int = 5
    failure_delay_seconds: float = 2.0
    connections_per_user: int = 50
    normalize_newlines: bool = False
    save_sent: bool = False
    undo_seconds: float = 0.0
    future_seconds: int = 0


@dataclass(frozen=True, slots=True)
class Services:
    """What sessions act on; one object for each service of a process."""

    accounts: Accounts
    passwords: Passwords
    intake: Intake
    hostname: str
    submission: bool = False
    tls_context: ssl.SSLContext | None = None
    settings: SmtpSettings = field(default_factory=SmtpSettings)
    tally: Tally = field(default_factory=lambda: Tally(Shared()))  # connections of each user
    throttle: Throttle | None = None  # of those who ask for unknown recipients


class Closing(Exception):
    """The session ends with this reply."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.text)
        self.reply = reply


class Transaction:
    """From MAIL to the end of DATA."""

    __slots__ = ("asked", "expanded", "mail", "not_before", "outward", "recipients", "through")

    def __init__(self, mail: wire.Mail, not_before: float | None) -> None:
        self.mail, self.not_before = mail, not_before
        self.asked: dict[Address, Outward] = {}  # as the sender named them
        self.recipients: dict[int, Recipient] = {}  # by account: one copy each
        self.outward: dict[Address, Outward] = {}  # likewise
        self.through: list[Address] = []  # of ours, which lead elsewhere
        self.expanded: list[Waiting] = []

    @property
    def count(self) -> int:
        return len(self.recipients) + len(self.outward)

    def wait(self) -> None:
        """All of it goes to the queue, whoever it is for: recipients are looked up again when it is released."""
        self.recipients, self.outward, self.through, self.expanded = {}, self.asked, [], []

    def envelope(self) -> Envelope:
        mail = self.mail
        release = "" if mail.hold_for is None else f"for;{mail.hold_for}"
        if mail.hold_until is not None:
            release = time.strftime("until;%Y-%m-%dT%H:%M:%SZ", time.gmtime(mail.hold_until))
        return Envelope(mail.sender, mail.body, mail.smtputf8, mail.ret, mail.envid, mail.require_tls, release)


class Refusal(MailError):
    """A refusal that this session words itself."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.text)
        self.reply = reply
