"""What certificates say: whom they are for and when they end.

Read without a library: every process of the server does it, and `cryptography` would take 9 MB of memory for that
(decision 41). Nothing is verified here; whether a file can be served is OpenSSL's to say.

RFC 5280 4.1 and 4.2.1.6, RFC 7468 (PEM), X.690 8.1 and 10.1 (DER).
"""

from __future__ import annotations

import base64
import datetime
import ipaddress
import re
from dataclasses import dataclass

_PEM = re.compile(rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----(.+?)-----END ", re.DOTALL)
_UTC_TIME, _VERSION, _EXTENSIONS, _DNS_NAME, _ADDRESS = 0x17, 0xA0, 0xA3, 0x82, 0x87  # tags
_ALTERNATIVE_NAMES = b"\x55\x1d\x11"  # 2.5.29.17


@dataclass(frozen=True, slots=True)
class Known:
    """What the first certificate of a file says. `problem`: why it says nothing; then there is no `ends`."""

    path: str
    names: tuple[str, ...] = ()
    ends: datetime.datetime | None = None
    self_signed: bool = False
    problem: str = ""

    @property
    def days_left(self) -> int | None:
        """Whole days, below 0 when it has ended."""
        return None if self.ends is None else (self.ends - datetime.datetime.now(datetime.UTC)).days


def examine(path: str) -> Known:
    """Never raises: what cannot be read is known as that."""
    try:
        return _read(path)
    except (OSError, ValueError) as failure:
        return Known(path, problem=getattr(failure, "strerror", None) or f"no certificate: {failure}")


def names(path: str) -> tuple[str, ...]:
    """Whom the first certificate of a file is for. OSError, or ValueError for a file that holds none."""
    return _read(path).names


def expiry(path: str) -> datetime.datetime:
    """When the first certificate of a file ends. OSError, or ValueError for a file that holds none."""
    ends = _read(path).ends
    assert ends is not None
    return ends


def _read(path: str) -> Known:
    with open(path, "rb") as file:
        pem = _PEM.search(file.read())
    if pem is None:
        raise ValueError("no PEM block of one")
    try:
        fields = _parts(_parts(_parts(base64.b64decode(pem[1]))[0][1])[0][1])
        rest = fields[1:] if fields[0][0] == _VERSION else fields
        _serial, _algorithm, (_, issuer), (_, validity), (_, subject), _key, *more = rest
        _begins, (kind, ends) = _parts(validity)
        extensions = next((_parts(value)[0][1] for tag, value in more if tag == _EXTENSIONS), b"")
        return Known(path, _names(extensions), _time(kind, ends), issuer == subject)
    except (IndexError, ValueError) as failure:
        raise ValueError(f"it is damaged ({failure})") from None


def _parts(data: bytes) -> list[tuple[int, bytes]]:
    """(tag, content) of the values that stand one after the other. IndexError or ValueError if they do not."""
    found, at = [], 0
    while at < len(data):
        tag, length, at = data[at], data[at + 1], at + 2
        if length & 0x80:
            octets = length & 0x7F
            length, at = int.from_bytes(data[at : at + octets], "big"), at + octets
        if at + length > len(data):
            raise ValueError("cut off")
        found.append((tag, data[at : at + length]))
        at += length
    return found


def _time(kind: int, octets: bytes) -> datetime.datetime:
    """RFC 5280 4.1.2.5: in UTC, two digits of the year up to 2049."""
    text = octets.decode("ascii")
    if kind == _UTC_TIME:
        text = ("19" if text >= "5" else "20") + text
    return datetime.datetime.fromisoformat(f"{text[:8]}T{text[8:]}")


def _names(extensions: bytes) -> tuple[str, ...]:
    """Those of the subjectAltName, addresses last."""
    for _, extension in _parts(extensions):
        (_, oid), *_critical, (_, value) = _parts(extension)
        if oid == _ALTERNATIVE_NAMES:
            general = _parts(_parts(value)[0][1])
            hosts = [name.decode("ascii") for tag, name in general if tag == _DNS_NAME]
            return (*hosts, *(str(ipaddress.ip_address(name)) for tag, name in general if tag == _ADDRESS))
    return ()
