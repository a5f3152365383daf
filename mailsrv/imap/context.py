"""What a session and its handlers share: the states, the settings, the services, and the ways a handler ends.

Imports: mail, net.tally.    RFC 3501 3.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from enum import Flag, auto

from mailsrv.imap.beats import Beats
from mailsrv.mail.accounts import Accounts
from mailsrv.mail.mailbox import Mailboxes
from mailsrv.mail.passwords import Passwords
from mailsrv.net.tally import Shared, Tally


class State(Flag):
    NOT_AUTHENTICATED = auto()
    AUTHENTICATED = auto()
    SELECTED = auto()


@dataclass(frozen=True, slots=True)
class ImapSettings:
    """Limits in seconds and octets. RFC 3501 5.4 asks for at least 30 minutes before an idle user is logged out."""

    login_seconds: float = 60.0
    idle_seconds: float = 1800.0
    write_seconds: float = 60.0
    heartbeat_seconds: float = 120.0
    message_bytes: int = 50 * 1024 * 1024
    login_failures: int = 5
    failure_delay_seconds: float = 2.0
    allow_plaintext_login: bool = False
    errors: int = 20
    connections_per_user: int = 50


@dataclass(frozen=True, slots=True)
class Services:
    """What sessions act on; one object for all of a process."""

    accounts: Accounts
    passwords: Passwords
    mailboxes: Mailboxes
    hostname: str
    tls_context: ssl.SSLContext | None = None
    settings: ImapSettings = field(default_factory=ImapSettings)
    tally: Tally = field(default_factory=lambda: Tally(Shared()))  # connections of each user
    beats: Beats = field(default_factory=Beats)


class Refused(Exception):
    """A handler's NO or BAD, worded there."""

    def __init__(self, text: str, word: str = "NO") -> None:
        super().__init__(text)
        self.text, self.word = text, word


class Bye(Exception):
    """The session ends, with these words."""


class Completed(Exception):
    """The handler has written the tagged line itself."""
