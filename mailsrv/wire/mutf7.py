"""Mailbox names on the wire: modified UTF-7, in its one canonical form, both ways.

Imports: wire.errors.    RFC 3501 5.1.3.
"""

from __future__ import annotations

import base64
import binascii

from mailsrv.wire.errors import WireError


def encode(name: str) -> bytes:
    """The name as IMAP sends it. Any str without lone surrogates."""
    out: list[str] = []
    run: list[str] = []
    for char in (*name, ""):
        if char and not "\x20" <= char <= "\x7e":
            run.append(char)
            continue
        if run:
            coded = base64.b64encode("".join(run).encode("utf-16-be", "replace")).decode().rstrip("=")
            out.append(f"&{coded.replace('/', ',')}-")
            run.clear()
        out.append("&-" if char == "&" else char)
    return "".join(out).encode("ascii")


def decode(raw: bytes) -> str:
    """The name as Unicode; WireError unless it is canonical modified UTF-7."""
    out: list[str] = []
    position = 0
    while position < len(raw):
        start = raw.find(b"&", position)
        plain = raw[position : start if start >= 0 else len(raw)]
        if any(octet < 0x20 or octet > 0x7E for octet in plain):
            raise WireError("Mailbox name is not modified UTF-7", position)
        out.append(plain.decode("ascii"))
        if start < 0:
            break
        end = raw.find(b"-", start)
        if end < 0:
            raise WireError("Unterminated shift in mailbox name", start)
        out.append(_shifted(raw[start + 1 : end], start) if end > start + 1 else "&")
        position = end + 1
    name = "".join(out)
    if encode(name) != raw:
        raise WireError("Mailbox name is not in canonical modified UTF-7")
    return name


def _shifted(coded: bytes, offset: int) -> str:
    try:
        padded = coded.replace(b",", b"/") + b"=" * (-len(coded) % 4)
        if b"/" in coded:
            raise WireError("Slash in a modified base64 run", offset)
        return base64.b64decode(padded, validate=True).decode("utf-16-be")
    except (binascii.Error, UnicodeDecodeError):
        raise WireError("Mailbox name is not modified UTF-7", offset) from None
