"""SMTP's commands and replies as values. A command line gives one Command or a WireError; a reply gives its lines.

Imports: values, wire.address, wire.errors.    RFC 5321 4.1, 4.2; RFC 1870 (SIZE), 6152 (8BITMIME), 6531 (SMTPUTF8),
2034, 3461 4 (DSN), 8689 (REQUIRETLS).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from mailsrv.values import Address, RecipientOptions
from mailsrv.wire.address import parse_domain, parse_path
from mailsrv.wire.errors import WireError

COMMAND_OCTETS = 512  # RFC 5321 4.5.3.1.4
AUTH_OCTETS = 12288  # RFC 4954 4
MAIL_OCTETS = 2048  # with the growth its extensions allow
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
_VERB = re.compile(r"[A-Za-z]{1,20}(?= |$)")
_KEYWORD = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]{0,31})(?:=([!-<>-~\u0080-\U0010ffff]{1,1024}))?")
_DATE_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?(?:[Zz]|[+-][0-9]{2}:[0-9]{2})"
)
_HELO_NAME = re.compile(r"[!-~]{1,255}")
MOST_ENVID, MOST_ORCPT = 100, 500  # RFC 3461 4.4, 4.2
_XTEXT = re.compile(r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*")  # RFC 3461 4: no "+" and no "=" but in "+3D"
_HEX = re.compile(r"\+([0-9A-F]{2})")
_ADDRESS_TYPE = re.compile(r"[A-Za-z0-9-]{1,64}")
_NOTIFY = frozenset({"SUCCESS", "FAILURE", "DELAY"})


class Command(NamedTuple):  # like Reply: several for every message, made in a third of a dataclass's time
    """A verb in capitals with its argument as sent."""

    verb: str
    argument: str


@dataclass(frozen=True, slots=True)
class Mail:
    """MAIL FROM. `sender` None is the null sender `<>`; `size` None when not declared; `ret` "", FULL or HDRS.

    `hold_for` seconds, or `hold_until` (seconds since 1970), is when the message shall be released (RFC 4865 4).
    """

    sender: Address | None
    size: int | None = None
    body: str = "7BIT"
    smtputf8: bool = False
    ret: str = ""
    envid: str = ""
    require_tls: bool = False
    hold_for: int | None = None
    hold_until: float | None = None


class Reply(NamedTuple):
    code: int
    enhanced: str  # "" where RFC 2034 wants none
    text: str

    def encode(self) -> bytes:
        enhanced = f"{self.enhanced} " if self.enhanced else ""
        return f"{self.code} {enhanced}{self.text}\r\n".encode("utf-8", "replace")


def parse_command(line: bytes) -> Command:
    """A command line without its CRLF. WireError for control characters, 8-bit rubbish or no verb (S5)."""
    if _CONTROL.search(line):
        raise WireError("Control character in a command")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        raise WireError("Command is not UTF-8") from None
    found = _VERB.match(text)
    if not found:
        raise WireError("Not a command")
    return Command(found[0].upper(), text[found.end() :].strip(" "))


def parse_helo(argument: str) -> str:
    """The name after HELO or EHLO. Many clients send odd ones: anything printable is taken, and never trusted."""
    if not _HELO_NAME.fullmatch(argument):
        raise WireError("Expected a host name")
    return argument


def parse_mail(argument: str, *, tls: bool = False, future: bool = False) -> Mail:
    """`FROM:<path> [parameters]` (RFC 5321 4.1.1.2). `tls`: REQUIRETLS was announced (RFC 8689 2), `future`:
    FUTURERELEASE was (RFC 4865 4).
    """
    rest = _after(argument, "FROM:")
    sender, end = parse_path(rest, smtputf8=True)  # whether it may be UTF-8 is said behind it
    if sender is not None and not sender.domain:
        raise WireError("The sender needs a domain")
    size, body, smtputf8, ret, envid, require_tls = None, "7BIT", False, "", "", False
    hold_for, hold_until = None, None
    for keyword, value in _parameters(rest[end:]):
        if keyword == "SIZE":
            if not value or not value.isascii() or not value.isdigit() or len(value) > 20:
                raise WireError("SIZE is a number")
            size = int(value)
        elif keyword == "BODY":
            if value is None or value.upper() not in ("7BIT", "8BITMIME"):
                raise ParameterUnknown(f"BODY={value}")
            body = value.upper()
        elif keyword == "SMTPUTF8" and value is None:
            smtputf8 = True
        elif keyword == "RET":
            if value is None or value.upper() not in ("FULL", "HDRS"):
                raise WireError("RET is FULL or HDRS")
            ret = value.upper()
        elif keyword == "ENVID":
            envid = parse_xtext(value or "")
            if not 0 < len(envid) <= MOST_ENVID or not envid.isprintable():
                raise WireError(f"ENVID is 1 to {MOST_ENVID} printable characters as xtext")
        elif keyword == "REQUIRETLS" and value is None and tls:
            require_tls = True
        elif keyword == "HOLDFOR" and future:
            if not value or not value.isascii() or not value.isdigit() or len(value) > 9:
                raise WireError("HOLDFOR is a number of seconds")
            hold_for = int(value)
        elif keyword == "HOLDUNTIL" and future:
            hold_until = _parse_date_time(value or "")
        elif keyword == "AUTH" and value is not None:
            pass  # RFC 4954 5: may be ignored; nobody is trusted to vouch for another
        else:
            raise ParameterUnknown(keyword)
    if not smtputf8 and not rest[:end].isascii():
        raise WireError("Address is not ASCII, and SMTPUTF8 was not asked for", 1)
    if hold_for is not None and hold_until is not None:
        raise WireError("HOLDFOR or HOLDUNTIL, not both")
    return Mail(sender, size, body, smtputf8, ret, envid, require_tls, hold_for, hold_until)


def _parse_date_time(text: str) -> float:
    """A date-time of RFC 3339 5.6, its zone included, as seconds since 1970."""
    if not _DATE_TIME.fullmatch(text):
        raise WireError("HOLDUNTIL is a date and time such as 2026-11-25T08:00:00Z")
    try:
        return datetime.fromisoformat(text.upper()).timestamp()
    except (ValueError, OverflowError):
        raise WireError("HOLDUNTIL is a date and time such as 2026-11-25T08:00:00Z") from None


def parse_rcpt(argument: str, *, smtputf8: bool) -> tuple[Address, RecipientOptions]:
    """`TO:<path> [NOTIFY=…] [ORCPT=…]` (RFC 3461 4.1, 4.2)."""
    rest = _after(argument, "TO:")
    recipient, end = parse_path(rest, smtputf8=smtputf8)
    if recipient is None:
        raise WireError("A recipient cannot be empty")
    notify: frozenset[str] = frozenset()
    orcpt = ""
    for keyword, value in _parameters(rest[end:]):
        if keyword == "NOTIFY":
            notify = _parse_notify(value or "")
        elif keyword == "ORCPT":
            orcpt = _parse_orcpt(value or "", smtputf8=smtputf8)
        else:
            raise ParameterUnknown(keyword)
    return recipient, RecipientOptions(notify, orcpt)


def _parse_notify(value: str) -> frozenset[str]:
    words = value.upper().split(",")
    if words == ["NEVER"]:
        return frozenset(words)
    if not set(words) <= _NOTIFY or len(set(words)) < len(words):
        raise WireError("NOTIFY is NEVER, or some of SUCCESS, FAILURE, DELAY")
    return frozenset(words)


def _parse_orcpt(value: str, *, smtputf8: bool) -> str:
    """`type;address`, the address decoded. RFC 6533 3 allows UTF-8 as it is where SMTPUTF8 was asked for."""
    kind, semicolon, text = value.partition(";")
    if not semicolon or not _ADDRESS_TYPE.fullmatch(kind) or not text or len(value) > MOST_ORCPT:
        raise WireError(f"ORCPT is type;address, {MOST_ORCPT} characters at most")
    address = text if smtputf8 and kind.lower() == "utf-8" and not text.isascii() else parse_xtext(text)
    if not address.isprintable():
        raise WireError("ORCPT has control characters")
    return f"{kind.lower()};{address}"


def parse_xtext(text: str) -> str:
    """The ASCII text that is meant; WireError where it is not xtext (RFC 3461 4)."""
    if not _XTEXT.fullmatch(text):
        raise WireError("Not xtext")
    decoded = _HEX.sub(lambda found: chr(int(found[1], 16)), text)
    if not decoded.isascii():
        raise WireError("Not xtext of an ASCII text")
    return decoded


def format_xtext(text: str) -> str:
    """RFC 3461 4, for an ASCII text."""
    return "".join(char if "!" <= char <= "~" and char not in "+=" else f"+{ord(char):02X}" for char in text)


class ParameterUnknown(WireError):
    """An ESMTP parameter that was not offered (RFC 5321 4.1.1.11: 555)."""

    def __init__(self, keyword: str) -> None:
        super().__init__(f"Parameter not recognised: {keyword[:40]}")


def _after(argument: str, word: str) -> str:
    if argument[: len(word)].upper() != word:
        raise WireError(f"Expected {word}<address>")
    return argument[len(word) :].lstrip(" ")  # a space after the colon is wrong and common


def _parameters(text: str) -> list[tuple[str, str | None]]:
    found: list[tuple[str, str | None]] = []
    if text and not text.startswith(" "):
        raise WireError("Unexpected characters after the path")
    for part in text.split():
        match = _KEYWORD.fullmatch(part)
        if not match or len(found) > 20:
            raise WireError("Parameter not understood")
        found.append((match[1].upper(), match[2]))
    if len({keyword for keyword, _ in found}) < len(found):
        raise WireError("Parameter given twice")
    return found


def multiline(code: int, lines: list[str]) -> bytes:
    """A reply of several lines, as EHLO's (RFC 5321 4.2.1)."""
    last = len(lines) - 1
    return b"".join(
        b"%d%b%b\r\n" % (code, b" " if number == last else b"-", line.encode()) for number, line in enumerate(lines)
    )


__all__ = [
    "AUTH_OCTETS", "COMMAND_OCTETS", "MAIL_OCTETS", "Command", "Mail", "ParameterUnknown", "Reply", "format_xtext",
    "multiline", "parse_command", "parse_domain", "parse_helo", "parse_mail", "parse_rcpt", "parse_xtext",
]  # fmt: skip
