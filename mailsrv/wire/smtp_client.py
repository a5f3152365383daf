"""What the sending side of SMTP and LMTP reads and writes: replies and offers of a server, MAIL and RCPT commands.

A server is a stranger: its replies are bounded in every direction, its words become printable text, and a code that
is none is a WireError. Whatever an address holds, a command is one line.

Imports: values, wire.address, wire.errors.    RFC 5321 4.2; RFC 2034, 3463 (enhanced codes), 1870, 6152, 6531, 3461
(DSN), 8689, 9422 (LIMITS).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache

from mailsrv.values import Address, Envelope, RecipientOptions
from mailsrv.wire.address import written
from mailsrv.wire.errors import WireError

REPLY_LINE_OCTETS = 2048  # RFC 5321 4.5.3.1.5 says 512; some write more
REPLY_LINES = 128
REPLY_OCTETS = 32 * 1024
TEXT_CHARACTERS = 1000  # of a reply that is kept for people
_ENHANCED = re.compile(r"([245]\.[0-9]{1,3}\.[0-9]{1,3})(?: +|$)")
_NOT_PRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


@dataclass(frozen=True, slots=True)
class ServerReply:
    """A whole reply. `enhanced` is the server's own, "" where it gave none that fits its code."""

    code: int
    enhanced: str
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        return " ".join(self.lines)[:TEXT_CHARACTERS]

    @property
    def positive(self) -> bool:
        return self.code < 400

    def status(self) -> str:
        """An RFC 3463 code in any case; the class is that of the reply code, which alone says what is permanent."""
        return self.enhanced or f"{self.code // 100}.0.0"


class ReplyReader:
    """Takes a reply line by line; `feed` gives the reply with its last line."""

    __slots__ = ("_enhanced", "_lines", "_octets")

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._enhanced = ""
        self._octets = 0

    def feed(self, line: bytes) -> ServerReply | None:
        """A line without its end. WireError for what is no reply, or for one without end."""
        reply, last = _reply_line(line)
        if last and not self._lines:
            return reply
        self._octets += len(line)
        if len(self._lines) >= REPLY_LINES or self._octets > REPLY_OCTETS:
            raise WireError("The server's reply is too long")
        self._enhanced = self._enhanced or reply.enhanced
        self._lines += reply.lines
        # Codes that differ within a reply are wrong (RFC 5321 4.2.1); the last line's counts.
        enhanced = self._enhanced if self._enhanced[:1] == str(reply.code // 100) else ""
        return ServerReply(reply.code, enhanced, tuple(self._lines)) if last else None


@lru_cache(maxsize=256)  # servers say the same few lines to every message
def _reply_line(line: bytes) -> tuple[ServerReply, bool]:
    """The reply that a line alone is, and whether it is the last one."""
    code, mark = line[:3], line[3:4]
    if not (code.isdigit() and len(code) == 3 and b"2" <= code[:1] <= b"5" and mark in (b" ", b"-", b"")):
        raise WireError("What the server says is no SMTP reply")
    text = _NOT_PRINTABLE.sub(" ", line[4:].decode("utf-8", "backslashreplace")).strip()
    found, enhanced = _ENHANCED.match(text), ""
    if found:
        text = text[found.end() :]
        enhanced = found[1] if found[1][0] == str(int(code) // 100) else ""
    return ServerReply(int(code), enhanced, (text,)), mark != b"-"


@dataclass(frozen=True, slots=True)
class Offers:
    """The extensions a server offered in its reply to EHLO or LHLO: keyword in capitals, arguments."""

    keywords: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __contains__(self, keyword: str) -> bool:
        return keyword in self.keywords

    @property
    def size_limit(self) -> int:
        """Octets of the largest message it takes; 0 where it does not say (RFC 1870 4)."""
        return _number(next(iter(self.keywords.get("SIZE", ())), ""))

    def limit(self, name: str) -> int:
        """RCPTMAX, MAILMAX (RFC 9422); 0 where it does not say."""
        for word in self.keywords.get("LIMITS", ()):
            key, _, value = word.partition("=")
            if key.upper() == name:
                return _number(value)
        return 0


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else 0


def parse_offers(reply: ServerReply) -> Offers:
    """RFC 5321 4.1.1.1; also `AUTH=LOGIN`, as servers wrote it before RFC 4954."""
    found: dict[str, tuple[str, ...]] = {}
    for line in reply.lines[1:]:
        words = line.split()
        if words and words[0].upper().startswith("AUTH="):
            words[:1] = ["AUTH", words[0][5:]]
        if words:
            keyword = words[0].upper()
            found[keyword] = found.get(keyword, ()) + tuple(words[1:])
    return Offers(found)


def path(address: Address | None) -> str:
    """`<local@domain>`, `<>` for the null sender. WireError if that would not be one."""
    if address is None:
        return "<>"
    text = written(address)
    if _NOT_PRINTABLE.search(text) or not text.isprintable() or "<" in address.domain or ">" in address.domain:
        raise WireError("This address cannot be written")
    return f"<{text}>"


def xtext(text: str) -> str:
    """RFC 3461 4: printable ASCII without `+` and `=`, which are written in hexadecimal like all the rest."""
    return "".join(
        char if "!" <= char <= "~" and char not in "+=" else "".join(f"+{octet:02X}" for octet in char.encode())
        for char in text
    )


def mail_command(envelope: Envelope, offers: Offers, *, size: int, eight_bit: bool, utf8: bool) -> bytes:
    """MAIL with the parameters that the server offered and this message has. RFC 5321 4.1.1.2."""
    line = f"MAIL FROM:{path(envelope.sender)}"
    if "SIZE" in offers:
        line += f" SIZE={size}"
    if eight_bit and "8BITMIME" in offers:
        line += " BODY=8BITMIME"
    if utf8:
        line += " SMTPUTF8"
    if envelope.require_tls and "REQUIRETLS" in offers:
        line += " REQUIRETLS"
    if "DSN" in offers:
        if envelope.ret:
            line += f" RET={envelope.ret}"
        if envelope.envid:
            line += f" ENVID={xtext(envelope.envid)}"
    return line.encode() + b"\r\n"


_NOTIFY_ORDER = ("NEVER", "SUCCESS", "FAILURE", "DELAY")


def rcpt_command(recipient: Address, options: RecipientOptions, offers: Offers) -> bytes:
    """RCPT, with NOTIFY and ORCPT where DSN is offered. RFC 5321 4.1.1.3, RFC 3461 4.1, 4.2."""
    line = f"RCPT TO:{path(recipient)}"
    if "DSN" in offers:
        if options.notify:
            line += " NOTIFY=" + ",".join(word for word in _NOTIFY_ORDER if word in options.notify)
        kind, _, original = options.orcpt.partition(";")
        if kind.isalnum() and kind.isascii() and original.isascii() and original:
            line += f" ORCPT={kind};{xtext(original)}"
    return line.encode() + b"\r\n"
