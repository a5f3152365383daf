"""A message somebody wrote and has not sent, read for sending: sender, recipients, time; and its header as it goes out.

Unlike what ENVELOPE tells, an address here decides where mail goes: what is not an address in full is an error, never
guessed at.

Imports: values, wire.*.    RFC 5322 3.6.1-3.6.3, RFC 6409 8 (what a submission server may change).
"""

from __future__ import annotations

import email.utils
from dataclasses import dataclass

from mailsrv.values import Address
from mailsrv.wire.address import parse_mailbox, written
from mailsrv.wire.errors import WireError
from mailsrv.wire.header import FIELD_LIMIT, HEADER_LIMIT, REPEAT_LIMIT, parse_fields, unfold
from mailsrv.wire.header_addresses import MISSING_DOMAIN, MISSING_MAILBOX, parse_addresses
from mailsrv.wire.mime import header_end, header_fields

MOST_RECIPIENTS = 1000
SEND_AT = b"x-send-later-at"  # as Thunderbird's Send Later writes it
# Fields of the author's program, which are not for the recipients; and what is written anew.
_AUTHORS = frozenset({
    b"bcc", b"date", b"return-path", SEND_AT, b"x-send-later-uuid", b"x-send-later-recur", b"x-send-later-args",
    b"x-send-later-cancel-on-reply", b"x-mozilla-draft-info", b"x-mozilla-status", b"x-mozilla-status2",
    b"x-mozilla-keys", b"x-mailsrv-queue-id",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Draft:
    """`sender` is the envelope's: Sender, or the only From. `recipients` are those of To, Cc and Bcc, each once.
    `send_at` is the time the author asked for (seconds since 1970), None where none was.
    """

    sender: Address
    recipients: tuple[Address, ...]
    send_at: float | None


def parse_draft(message: bytes, now: float) -> Draft:
    """WireError names what is missing for the message to be sent. A Date in the future is a time to send at, too."""
    header = message[: header_end(message)]
    if len(header) > HEADER_LIMIT:
        raise WireError("The header is too large")
    fields = parse_fields(header)

    def listed(*names: bytes) -> tuple[Address, ...]:
        found: dict[Address, None] = {}
        for name in names:
            values = fields.get(name, [])
            if len(values) >= REPEAT_LIMIT or any(len(value) >= FIELD_LIMIT for value in values):
                raise WireError(f"{name.decode().capitalize()} is too large")  # not all of it would be looked at
            for value in values:
                found.update(dict.fromkeys(_addresses(unfold(value), name.decode())))
        if len(found) > MOST_RECIPIENTS:
            raise WireError(f"More than {MOST_RECIPIENTS} recipients")
        return tuple(found)

    senders = listed(b"sender") or listed(b"from")
    if len(senders) != 1:
        raise WireError("No sender: one address in From is needed" if not senders else "Several in From, and no Sender")
    recipients = listed(b"to", b"cc", b"bcc")
    if not recipients:
        raise WireError("No recipient in To, Cc or Bcc")
    asked = _time(fields.get(SEND_AT))
    if asked is None and fields.get(SEND_AT):
        raise WireError("X-Send-Later-At is no date and time")
    dated = _time(fields.get(b"date"))
    return Draft(senders[0], recipients, asked if asked is not None else dated if dated and dated > now else None)


def parse_authors(value: bytes) -> tuple[Address, ...]:
    """The addresses of an unfolded From field; none at all if one of them is not complete."""
    if len(value) >= FIELD_LIMIT:
        return ()
    try:
        return tuple(_addresses(value, "from"))
    except WireError:
        return ()


def _addresses(value: bytes, field: str) -> list[Address]:
    found: list[Address] = []
    for one in parse_addresses(value):
        if one.host is None:
            continue  # the name of a group, or its end
        try:
            if (
                one.mailbox is None
                or one.mailbox == MISSING_MAILBOX
                or one.host == MISSING_DOMAIN
                or b"%" in one.mailbox
            ):
                raise WireError("Incomplete")
            found.append(parse_mailbox(written(Address(one.mailbox.decode(), one.host.decode()))))
        except (WireError, UnicodeDecodeError):
            raise WireError(f"Not an address in {field.capitalize()}") from None
    return found


def _time(values: list[bytes] | None) -> float | None:
    if not values:
        return None
    try:
        parsed = email.utils.parsedate_to_datetime(unfold(values[0]).decode("ascii", "replace"))
        return parsed.timestamp()
    except (ValueError, OverflowError, TypeError):
        return None


def ready_to_send(message: bytes, at: float, message_id: str) -> bytes:
    """The message as it goes out at that time: without Bcc and what only its author's program needs, dated then, and
    called `message_id` if it has no name yet.
    """
    end = header_end(message)
    kept = header_fields(message[:end], _AUTHORS, invert=True)  # the empty line included
    named = b"message-id" in parse_fields(message[:end])
    added = f"Date: {email.utils.formatdate(at, localtime=True)}\r\n" + (
        "" if named else f"Message-ID: {message_id}\r\n"
    )
    return b"%b%b%b" % (added.encode(), kept, message[end:])


def has_utf8_header(message: bytes) -> bool:
    """Whether the header needs SMTPUTF8 (RFC 6531 3.4)."""
    return not message[: header_end(message)].isascii()
