"""Mailbox addresses as SMTP writes them: paths, quoted local parts, address literals. Our own grammar, strict and
linear.

A source route is read and ignored, never followed (S9). `user%host@domain` and `a@b@domain` are refused: old ways to
relay.

Imports: values, wire.errors.    RFC 5321 4.1.2, 4.1.3, 4.5.3.1; RFC 6531 3.3 (UTF-8).
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache

from mailsrv.values import Address
from mailsrv.wire.errors import WireError

MOST_LOCAL, MOST_DOMAIN, MOST_PATH = 64, 255, 256
_ATEXT = r"[A-Za-z0-9!#$&'*+/=?^_`{|}~\u0080-\U0010ffff-]"  # without %: no percent hack
_DOT_STRING = re.compile(rf"{_ATEXT}+(?:\.{_ATEXT}+)*")
_QUOTED = re.compile(r'"((?:[ !#-\[\]-~\u0080-\U0010ffff]|\\[ -~])*)"')
_PAIR = re.compile(r"\\(.)")
_LABEL = re.compile(r"[A-Za-z0-9\u0080-\U0010ffff](?:[A-Za-z0-9\u0080-\U0010ffff-]{0,61}[A-Za-z0-9\u0080-\U0010ffff])?")
_QUOTED_FIRST = re.compile(r'(?:[^">]*:)?"(?:[^"\\]|\\.)*"')
_ROUTE = re.compile(r"@[^@:,<>\s]{1,255}(?:,@[^@:,<>\s]{1,255})*:")


def parse_path(text: str, *, smtputf8: bool = False) -> tuple[Address | None, int]:
    """`<…>` at the start of `text`: (the address, or None for `<>`, and where it ends). WireError otherwise.

    `<postmaster>` without a domain gives an Address with an empty domain (RFC 5321 4.5.1).
    """
    if not text.startswith("<"):
        raise WireError("Expected an address in angle brackets")
    end = _closing_bracket(text)
    inside = text[1:end]
    if len(inside.encode()) > MOST_PATH:
        raise WireError("The path is too long", 1)
    if not smtputf8 and not inside.isascii():
        raise WireError("Address is not ASCII, and SMTPUTF8 was not asked for", 1)
    if not inside:
        return None, end + 1
    route = _ROUTE.match(inside)
    if route:
        inside = inside[route.end() :]
    if inside.lower() == "postmaster":
        return Address(inside, ""), end + 1
    return _usual_mailbox(inside), end + 1


def _closing_bracket(text: str) -> int:
    """The `>` that ends the path; one inside a quoted local part does not."""
    start = 1
    if '"' in text and (quoted := _QUOTED_FIRST.match(text[1 : MOST_PATH * 4])):
        start += quoted.end()
    end = text.find(">", start)
    if end < 0:
        raise WireError("The path has no closing bracket", len(text))
    return end


def parse_mailbox(text: str) -> Address:
    """`local@domain`; the local part without its quotes."""
    quoted = _QUOTED.match(text)
    if quoted:
        local, rest = _PAIR.sub(r"\1", quoted[1]), text[quoted.end() :]
    else:
        found = _DOT_STRING.match(text)
        if not found:
            raise WireError("Not an address")
        local, rest = found[0], text[found.end() :]
    if not rest.startswith("@"):
        raise WireError("Not an address", len(text) - len(rest))
    # A quoted second address (S9, S15), or one that no line, log or queue entry can show as it is.
    if (quoted and "@" in local) or not local.isprintable():
        raise WireError("Not an address this server takes")
    if not local or len(local.encode()) > MOST_LOCAL:
        raise WireError("The local part is empty or too long")
    return Address(local, parse_domain(rest[1:]))


_usual_mailbox = lru_cache(1024)(parse_mailbox)  # of a path: recipients are few, and senders come again


def written(address: Address) -> str:
    """The address as it stands in a path or a header field: a local part that needs quotes has them again."""
    local = address.local
    if not _DOT_STRING.fullmatch(local):
        local = '"' + re.sub(r'(["\\])', r"\\\1", local) + '"'
    return f"{local}@{address.domain}"


def parse_domain(text: str) -> str:
    """A domain or address literal, in lower case."""
    if text.startswith("["):
        return _literal(text)
    name = text.lower()
    octets = len(name.encode(errors="surrogatepass"))
    if octets > MOST_DOMAIN or not all(_LABEL.fullmatch(label) for label in name.split(".")):
        raise WireError("Not a domain")
    if not name.isascii():
        try:
            name = name.encode("idna").decode("ascii")
        except UnicodeError:
            raise WireError("Not a domain") from None
        # Some letters stand for several in ASCII, as "\u2100" for "a/c": what they mean has to be a domain, too.
        if not all(_LABEL.fullmatch(label) for label in name.split(".")):
            raise WireError("Not a domain")
    return name


def _literal(text: str) -> str:
    inside = text[1:-1]
    if not text.endswith("]"):
        raise WireError("Not an address literal")
    try:
        if inside[:5].upper() == "IPV6:":
            return f"[IPv6:{ipaddress.IPv6Address(inside[5:])}]"
        return f"[{ipaddress.IPv4Address(inside)}]"
    except ValueError:
        raise WireError("Not an address literal") from None
