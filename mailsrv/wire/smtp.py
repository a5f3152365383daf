"""SMTP's commands and replies as values. A command line gives one Command or a WireError; a reply gives its lines.

Imports: values, wire.address, wire.errors.    RFC 5321 4.1, 4.2; RFC 1870 (SIZE), 6152 (8BITMIME), 6531 (SMTPUTF8),
2034.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mailsrv.values import Address
from mailsrv.wire.address import parse_domain, parse_path
from mailsrv.wire.errors import WireError

COMMAND_OCTETS = 512  # RFC 5321 4.5.3.1.4
AUTH_OCTETS = 12288  # RFC 4954 4
MAIL_OCTETS = 2048  # with the growth its extensions allow
_VERB = re.compile(r"[A-Za-z]{1,20}(?= |$)")
_KEYWORD = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]{0,31})(?:=([!-<>-~\u0080-\U0010ffff]{1,1024}))?")
_HELO_NAME = re.compile(r"[!-~]{1,255}")


@dataclass(frozen=True, slots=True)
class Command:
    """A verb in capitals with its argument as sent."""

    verb: str
    argument: str


@dataclass(frozen=True, slots=True)
class Mail:
    """MAIL FROM. `sender` None is the null sender `<>`; `size` None when not declared."""

    sender: Address | None
    size: int | None
    body: str
    smtputf8: bool


@dataclass(frozen=True, slots=True)
class Reply:
    code: int
    enhanced: str  # "" where RFC 2034 wants none
    text: str

    def encode(self) -> bytes:
        prefix = f"{self.enhanced} " if self.enhanced else ""
        return b"%d %b%b\r\n" % (self.code, prefix.encode(), self.text.encode("utf-8", "replace"))


def parse_command(line: bytes) -> Command:
    """A command line without its CRLF. WireError for control characters, 8-bit rubbish or no verb (S5)."""
    if any(octet < 0x20 or octet == 0x7F for octet in line):
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


def parse_mail(argument: str) -> Mail:
    """`FROM:<path> [parameters]` (RFC 5321 4.1.1.2)."""
    rest = _after(argument, "FROM:")
    asks_utf8 = "SMTPUTF8" in rest.upper().split()
    sender, end = parse_path(rest, smtputf8=asks_utf8)
    if sender is not None and not sender.domain:
        raise WireError("The sender needs a domain")
    size, body, smtputf8 = None, "7BIT", False
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
        elif keyword == "AUTH" and value is not None:
            pass  # RFC 4954 5: may be ignored; nobody is trusted to vouch for another
        else:
            raise ParameterUnknown(keyword)
    return Mail(sender, size, body, smtputf8)


def parse_rcpt(argument: str, *, smtputf8: bool) -> Address:
    """`TO:<path>`; no parameter is offered."""
    rest = _after(argument, "TO:")
    recipient, end = parse_path(rest, smtputf8=smtputf8)
    if recipient is None:
        raise WireError("A recipient cannot be empty")
    for keyword, _ in _parameters(rest[end:]):
        raise ParameterUnknown(keyword)
    return recipient


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
    "AUTH_OCTETS", "COMMAND_OCTETS", "MAIL_OCTETS", "Command", "Mail", "ParameterUnknown", "Reply", "multiline",
    "parse_command", "parse_domain", "parse_helo", "parse_mail", "parse_rcpt",
]  # fmt: skip
