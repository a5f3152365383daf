"""DKIM-Signature fields for what our users and this server itself send: one with RSA, one with Ed25519.

Signed is mail whose author (From) the submitting user may be, with the keys of the author's domain, so that the
signature is aligned; and reports this server wrote. Nothing else: what is forwarded, or has another author, is not ours
to vouch for.

The message's file is read once, in blocks, in a native thread, and made into what leaves (`whole_lines`) before it is
hashed: what is signed is what is sent (S2). Header fields that matter are named once more than they occur, so that none
can be added (S31). There is no l=: text appended to a message makes the signature invalid.

Imports: mail.dkim, store.files, values, log.    RFC 6376 (3.4.2, 3.4.4, 3.5, 3.7, 5.4), 8301, 8463.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from mailsrv import log
from mailsrv.mail.dkim import ACTIVE, Key, Keys, KeysRefused
from mailsrv.mail.private_key import PrivateKey
from mailsrv.store import files
from mailsrv.values import AccountId, Address, Job

BLOCK_OCTETS = 64 * 1024  # of the message at a time: the interpreter is held for a fraction of a millisecond
HEADER_OCTETS = 256 * 1024  # as much as is looked at when a message arrives
MOST_REPEATED = 50  # occurrences of one field that is signed
KEPT_SECONDS = 300.0
KEPT_SIGNATURES = 512
STRIPES = 64
LINE_OCTETS = 72

# One more of each than the message has is named in h= (RFC 6376 8.15): what a reader sees or a program acts on.
OVERSIGNED = (
    "From", "Reply-To", "To", "Cc", "Subject", "Date", "Message-ID", "MIME-Version", "Content-Type",
    "Content-Transfer-Encoding",
)  # fmt: skip
# Signed as often as they occur: a mailing list may add them (RFC 6376 5.4.1; RFC 8058 4 wants the List- fields signed).
SIGNED = (
    "Sender", "In-Reply-To", "References", "List-Id", "List-Help", "List-Unsubscribe", "List-Unsubscribe-Post",
    "List-Subscribe", "List-Post", "List-Owner", "List-Archive", "Resent-From", "Resent-To", "Resent-Date",
    "Resent-Message-ID", "Autocrypt",
)  # fmt: skip

_SPACE = re.compile(rb"[ \t\r\n]++")

Fields = list[tuple[bytes, bytes]]  # (name in lower case, raw value) in their order


class Lines(Protocol):
    """Makes text as it is kept into text as it leaves: `wire.lines.WholeLines`."""

    def feed(self, data: bytes, /) -> bytes: ...
    def end(self) -> bytes: ...


class RelaxedBody:
    """The hash of a body in relaxed form, fed in pieces (RFC 6376 3.4.4): runs of white space are one space, none is at
    the end of a line, empty lines at the end do not count.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._held = b""  # white space, or the first half of a line end, that the next piece decides about
        self._empty_lines = 0  # line ends not hashed yet, as they may be the last
        self._any = False

    def feed(self, data: bytes) -> None:
        """A piece of the body; its lines end in CRLF, which may be cut in two, and no CR or LF stands alone."""
        data = self._held + data
        if b"\t" in data:
            data = data.replace(b"\t", b" ")
        while b"  " in data:
            data = data.replace(b"  ", b" ")
        data = data.replace(b" \r\n", b"\r\n")
        kept = len(data) - (1 if data.endswith(b"\r") else 0)
        kept -= 1 if data.endswith(b" ", 0, kept) else 0
        data, self._held = data[:kept], data[kept:]
        text = data.rstrip(b"\r\n")
        if text:
            while self._empty_lines:
                some = min(self._empty_lines, BLOCK_OCTETS)
                self._hash.update(b"\r\n" * some)
                self._empty_lines -= some
            self._hash.update(text)
            self._any = True
        self._empty_lines += (len(data) - len(text)) // 2

    def digest(self) -> bytes:
        """After the last piece."""
        if self._any:
            self._hash.update(b"\r\n")
        return self._hash.digest()


def relaxed(name: bytes, value: bytes) -> bytes:
    """A header field in relaxed form, without its line end (RFC 6376 3.4.2)."""
    return name.lower() + b":" + _SPACE.sub(b" ", value).strip(b" ")


def split_fields(header: bytes) -> Fields:
    """The fields of a header whose lines end in CRLF; lines that are none are left out, for no signature names them."""
    fields: Fields = []
    for line in re.split(rb"\r\n(?![ \t])", header):
        name, colon, value = line.partition(b":")
        if colon:
            fields.append((name.rstrip(b" \t").lower(), value))
    return fields


@dataclass(frozen=True, slots=True)
class Text:
    """What a signature is made of."""

    fields: Fields
    body_hash: bytes


def read_text(path: str, lines: Lines) -> Text | None:
    """Reads a message; None if it has no header that could be signed. Blocking; raises OSError."""
    head, body = b"", None
    with open(path, "rb") as file:
        while True:
            block = file.read(BLOCK_OCTETS)
            data = lines.feed(block) if block else lines.end()
            if body is None:
                looked_at = max(0, len(head) - 3)
                head += data
                end = head.find(b"\r\n\r\n", looked_at)
                if end >= 0:
                    body = RelaxedBody()
                    body.feed(head[end + 4 :])
                    head = head[:end]
                if len(head) > HEADER_OCTETS:
                    return None
            else:
                body.feed(data)
            if not block:
                break
    if head.startswith(b"\r\n"):
        return None  # there is no header, however much the body looks like one
    if body is None:  # a header alone
        body, head = RelaxedBody(), head.removesuffix(b"\r\n")
    return Text(split_fields(head), body.digest())


def chosen(fields: Fields) -> list[str] | None:
    """The names for h=; None for a message that cannot be signed: not one From, or a field too often."""
    found: dict[bytes, int] = {}
    for name, _ in fields:
        found[name] = found.get(name, 0) + 1
    if found.get(b"from") != 1:  # RFC 5322 3.6
        return None
    names: list[str] = []
    for more, table in ((1, OVERSIGNED), (0, SIGNED)):
        for one in table:
            count = found.get(one.lower().encode(), 0)
            if count > MOST_REPEATED:
                return None
            names += [one] * (count + more)
    return names


def signed_header(fields: Fields, names: Sequence[str]) -> bytes:
    """What is signed of the header: of equal names the last comes first; those that are not there count for nothing
    (RFC 6376 5.4.2).
    """
    left: dict[bytes, list[bytes]] = {}
    for name, value in fields:
        left.setdefault(name, []).append(value)
    parts = []
    for one in names:
        key = one.lower().encode()
        if left.get(key):
            parts.append(relaxed(key, left[key].pop()) + b"\r\n")
    return b"".join(parts)


def signature(text: Text, names: Sequence[str], key: Key, private: PrivateKey, at: float) -> bytes:
    """One DKIM-Signature field with its line end."""
    value = (
        f" v=1; a={key.algorithm}; c=relaxed/relaxed; d={key.domain};\r\n"
        f"\ts={key.selector}; t={int(at)};\r\n"
        f"\t{_folded('h=', ':'.join(names), ':')};\r\n"
        f"\tbh={b64encode(text.body_hash).decode()};\r\n\tb="
    ).encode()
    data = signed_header(text.fields, names) + relaxed(b"dkim-signature", value)
    made = b64encode(private.sign(data)).decode()
    return b"DKIM-Signature:" + value + _folded("", made, "").encode() + b"\r\n"


def _folded(begin: str, text: str, after: str) -> str:
    """`text` over lines of LINE_OCTETS, cut after a separator, or anywhere without one."""
    lines, line = [], begin
    for piece in re.findall(rf"[^{after}]*{after}|[^{after}]+" if after else rf".{{1,{LINE_OCTETS}}}", text):
        if len(line) + len(piece) > LINE_OCTETS + len(begin) and line:
            lines.append(line)
            line = ""
        line += piece
    return "\r\n\t".join([*lines, line])


class Signer:
    """`sign` is the hook of the relay: the lines that go before a message.

    `may_author` tells whether a user may write as an address, `authors` reads a From field (none: not understood).
    """

    def __init__(
        self, keys: Keys, *, may_author: Callable[[AccountId, Address], bool],
        authors: Callable[[bytes], Sequence[Address]], whole_lines: Callable[[], Lines],
        now: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._keys, self._may_author, self._authors, self._whole_lines = keys, may_author, authors, whole_lines
        self._now = now
        self._made: dict[str, tuple[float, bytes]] = {}
        self._turns = [threading.Lock() for _ in range(STRIPES)]

    def sign(self, job: Job) -> bytes:
        """DKIM-Signature fields, each with its line end; b"" for what is not signed. Other greenlets go on meanwhile.
        Raises OSError if the message cannot be read.
        """
        if (not job.account and not job.ours) or not self._keys.there:
            return b""
        with self._turns[hash(job.id) % STRIPES]:  # an entry for many destinations is signed once, the others wait
            known = self._made.pop(job.id, None)
            if known is None or not 0 <= self._now() - known[0] < KEPT_SECONDS:
                known = (self._now(), self._signatures(job))
            self._made[job.id] = known
            while len(self._made) > KEPT_SIGNATURES:
                self._made.pop(next(iter(self._made)))
            return known[1]

    def _signatures(self, job: Job) -> bytes:
        text = files.offload(read_text, job.path, self._whole_lines())
        names = chosen(text.fields) if text is not None else None
        if text is None or names is None:
            log.warning("not signed", id=job.id, reason="its header is too large, or has not one From")
            return b""
        domain = self._domain(job, text)
        return files.offload(self._sign, job.id, domain, text, names) if domain else b""

    def _domain(self, job: Job, text: Text) -> str:
        """The domain that signs: the author's, if the sender may be the author; else none."""
        written = next(value for name, value in text.fields if name == b"from")
        authors = self._authors(_SPACE.sub(b" ", written).strip(b" "))
        if not authors:
            log.warning("not signed", id=job.id, reason="the From field has no address that can be read")
        elif not job.ours and not all(self._may_author(job.account, author) for author in authors):
            # Else a user of one domain here could have mail in the name of another one signed.
            log.info(
                "not signed", id=job.id, reason="its author is not the sender's own address", author=str(authors[0])
            )
        else:
            return authors[0].domain
        return ""

    def _sign(self, id: str, domain: str, text: Text, names: list[str]) -> bytes:
        try:
            keys = [(key, self._keys.private(key)) for key in self._keys.of(domain, ACTIVE)]
            return b"".join(signature(text, names, key, private, self._now()) for key, private in keys)
        except (OSError, ValueError, KeysRefused) as failure:
            log.error("not signed", id=id, domain=domain, reason=str(failure))  # SPF may still speak for it
            return b""
