"""The sender rewriting scheme: what we forward carries a sender of ours, and reports to it find the way back.

A server that receives a forwarded message asks whether *we* may send for the original sender's domain (SPF), and we may
not. So the envelope sender of a forward becomes an address of ours that holds the original one:

    SRS0=HHHHHHHH=TT=example.net=bo@ours.example     of bo@example.net
    SRS1=HHHHHHHH=first.example==…@ours.example      of SRS0=…@first.example, and of SRS1=… of any server after it

TT is the day (two base32 digits, which come again after 1024 days), HHHHHHHH 40 bits of an HMAC over the rest, so that
nobody can make such addresses and have us send to others: it is checked before anything else, without regard to case,
which servers on the way may change. What does not fit in a local part (64 octets, RFC 5321 4.5.3.1.1), or needs quotes,
is kept in a file for as long as it is valid, and the address names the file:

    <directory>/secret              a line for each secret, hexadecimal; the first makes new addresses, all are accepted
    <directory>/<day>/<token>       a sender that did not fit

Imports: store.files, values.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import time
from base64 import b32encode
from collections.abc import Callable

from mailsrv.store import files
from mailsrv.values import Address

VALID_DAYS = 21  # our queue gives up after 5 days, others after at most a few more
MOST_LOCAL = 64
HASH_DIGITS = 8
TOKEN_DIGITS = 16
DIGITS = "abcdefghijklmnopqrstuvwxyz234567"
CYCLE_DAYS = len(DIGITS) ** 2
SECRET_OCTETS, LEAST_SECRET_OCTETS = 32, 16
DAY_SECONDS = 86_400
KEPT = "kept.invalid"  # instead of the domain in addresses that name a file; nobody's (RFC 6761 6.4)

_OURS = re.compile(r"srs[01]=", re.IGNORECASE)
_SEPARATORS = ("=", "+", "-")  # that other servers choose from
_PLAIN = re.compile(r"[A-Za-z0-9!#$&'*/=?^_`{|}~+-]+(?:\.[A-Za-z0-9!#$&'*/=?^_`{|}~+-]+)*")
_DOMAIN = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_TOKEN = re.compile(rf"srs-[{DIGITS}]{{{TOKEN_DIGITS}}}")


def is_rewritten(local: str) -> bool:
    """Whether a local part has the form of those made here, valid or not."""
    return _OURS.match(local) is not None


def rewrite(sender: Address, domain: str, secret: bytes, day: int) -> Address | None:
    """`sender` as an address in `domain`, our own; None if it does not fit (see `Rewriter`)."""
    kind, sep, rest = sender.local[:4].upper(), sender.local[4:5], sender.local[5:]
    if kind == "SRS0" and sep in _SEPARATORS and rest:
        wrapped = f"{sender.domain}={sep}{rest}"
        local = f"SRS1={_hash(secret, wrapped)}={wrapped}"
    elif kind == "SRS1" and sep in _SEPARATORS and _first_hop(rest.partition("=")[2]) is not None:
        wrapped = rest.partition("=")[2]  # without the hash of the server before us, to which it need not go back
        local = f"SRS1={_hash(secret, wrapped)}={wrapped}"
    else:
        local = _original(sender.domain, sender.local, secret, day)
    return Address(local, domain) if len(local) <= MOST_LOCAL and _PLAIN.fullmatch(local) else None


def _original(domain: str, local: str, secret: bytes, day: int) -> str:
    rest = f"{_day_digits(day)}={domain}={local}"
    return f"SRS0={_hash(secret, rest)}={rest}"


def restore(local: str, secrets_: list[bytes], day: int) -> tuple[Address, int] | None:
    """The address that a local part of ours holds, and the day it was made (0: not known); None unless it is valid."""
    kind, sep, rest = local[:4].upper(), local[4:5], local[5:]
    given, equals, wrapped = rest.partition("=")
    if sep != "=" or not equals or len(given) != HASH_DIGITS or not given.isascii():
        return None
    if not any(hmac.compare_digest(given.lower(), _hash(secret, wrapped)) for secret in secrets_):
        return None
    if kind == "SRS0":
        digits, _, address = wrapped.partition("=")
        domain, equals, original = address.partition("=")
        age = _age(digits, day)
        if not equals or not original or age > VALID_DAYS or not _DOMAIN.fullmatch(domain):
            return None
        return Address(original, domain.lower()), day - age
    if kind == "SRS1":
        first = _first_hop(wrapped)
        return None if first is None else (first, 0)  # its own server knows how old it is
    return None


def _first_hop(wrapped: str) -> Address | None:
    """What SRS1 holds: the address that the first server made. What only looks like it is rewritten as any other."""
    domain, equals, original = wrapped.partition("=")
    if not equals or len(original) < 2 or not _DOMAIN.fullmatch(domain):
        return None
    return Address(f"SRS0{original}", domain.lower())


def _hash(secret: bytes, text: str) -> str:
    digest = hmac.new(secret, text.lower().encode(), hashlib.sha256).digest()
    return b32encode(digest).decode()[:HASH_DIGITS].lower()


def _day_digits(day: int) -> str:
    high, low = divmod(day % CYCLE_DAYS, len(DIGITS))
    return DIGITS[high] + DIGITS[low]


def _age(digits: str, day: int) -> int:
    """How many days before `day` the digits were written."""
    if len(digits) != 2 or any(digit not in DIGITS for digit in digits.lower()):
        return CYCLE_DAYS
    high, low = (DIGITS.index(digit) for digit in digits.lower())
    return (day - high * len(DIGITS) - low) % CYCLE_DAYS


class Rewriter:
    """Both ways, with the secret and the senders that did not fit in `directory`, which is made at the first use."""

    def __init__(self, directory: str, *, now: Callable[[], float] = time.time) -> None:
        self._directory, self._now = directory, now
        self._secrets: list[bytes] = []

    def _today(self) -> int:
        return int(self._now() // DAY_SECONDS)

    def forward(self, sender: Address, domain: str) -> Address:
        """The envelope sender of a forward, in `domain`. May wait for the disk. Raises TemporaryFailure."""
        known, day = self._known_secrets(), self._today()
        rewritten = rewrite(sender, domain, known[0], day)
        if rewritten is None:
            token = b32encode(hmac.digest(known[0], f"{day} {sender}".encode(), "sha256")).decode().lower()
            name = f"srs-{token[:TOKEN_DIGITS]}"
            files.offload(self._keep, day, name, sender)
            rewritten = Address(_original(KEPT, name, known[0], day), domain)
        return rewritten

    def back(self, local: str) -> Address | None:
        """The address to which a report for `local`, in a domain of ours, goes on; None unless we made it lately."""
        found = restore(local, self._known_secrets(), self._today())
        if found is None:
            return None
        address, day = found
        if address.domain == KEPT:
            return self._kept(day, address.local.lower()) if _TOKEN.fullmatch(address.local.lower()) else None
        return address

    # -------------------------------------------------------------- senders that did not fit

    def _keep(self, day: int, name: str, sender: Address) -> None:
        directory = f"{self._directory}/{day}"
        with files.storage_errors("Keeping the sender of a forward"):
            if not os.path.isdir(directory):
                self._forget(day - VALID_DAYS - 1)
                files.make_private(directory)
            if not os.path.exists(f"{directory}/{name}"):
                files.write_text(f"{directory}/{name}", f"{sender.local}\n{sender.domain}\n")

    def _kept(self, day: int, name: str) -> Address | None:
        try:
            with open(f"{self._directory}/{day}/{name}", encoding="utf-8") as file:
                local, domain = file.read(1024).rstrip("\n").rsplit("\n", 1)
        except (OSError, ValueError):
            return None
        return Address(local, domain)

    def _forget(self, before: int) -> None:
        for name in os.listdir(self._directory):
            if name.isdigit() and int(name) < before:
                files.remove_tree(f"{self._directory}/{name}")

    # -------------------------------------------------------------- the secret

    def _known_secrets(self) -> list[bytes]:
        if not self._secrets:
            with files.storage_errors(f"The secret of rewritten senders, {self._directory}/secret"):
                self._secrets = files.offload(self._read_secrets)
        return self._secrets

    def _read_secrets(self) -> list[bytes]:
        path = f"{self._directory}/secret"
        if not os.path.exists(path):
            files.make_private(self._directory)
            files.create_text(path, secrets.token_hex(SECRET_OCTETS) + "\n")
        with open(path, encoding="ascii") as file:
            lines = file.read(4096).split()
        try:
            known = [bytes.fromhex(line) for line in lines]
        except ValueError:
            known = []
        if not known or any(len(one) < LEAST_SECRET_OCTETS for one in known):
            raise OSError(f"expected lines of {2 * LEAST_SECRET_OCTETS} hexadecimal digits or more")
        return known
