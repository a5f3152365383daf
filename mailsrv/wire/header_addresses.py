"""Address lists of header fields (From, To, Cc and their like), as ENVELOPE needs them.

An own grammar, lenient and linear: groups, comments, quoted names with commas, obsolete routes and the common errors
(no angle brackets, no domain, an address as its own unquoted name). Any bytes give a list.

Imports: the standard library only.    RFC 5322 3.4, 4.4; RFC 3501 7.4.2 (the four members of an address).
"""

from __future__ import annotations

import re
from typing import NamedTuple

# In an address structure no mailbox or no host means a group (RFC 3501 7.4.2): where the sender left one out, a word
# stands for it. Dovecot writes the same two.
MISSING_MAILBOX = b"MISSING_MAILBOX"
MISSING_DOMAIN = b"MISSING_DOMAIN"


class MailAddress(NamedTuple):
    """One address; a group begins with only `mailbox` (its name) and ends with nothing set."""

    name: bytes | None
    route: bytes | None
    mailbox: bytes | None
    host: bytes | None


GROUP_END = MailAddress(None, None, None, None)

# The usual forms, one match per address: `"Name" <local@host>`, `Name <local@host>`, `local@host`.
_ATOM = rb'[^\s"(),:;<>@\\\[\]]++'
_USUAL = re.compile(
    rb'[ \t]*+(?:(?:"([^"\\]*+)"|([^"(),:;<>@\\\[\]]*+))[ \t]*+<(' + _ATOM + rb")@(" + _ATOM + rb")>|"
    rb"(" + _ATOM + rb")@(" + _ATOM + rb"))[ \t]*+(?:,|\Z)"
)
_TOKEN = re.compile(
    rb'(\s++)|("(?:[^"\\]++|\\.)*+"?+)|(' + _ATOM + rb")|(\[[^\]]*+\]?+)|([(])|([,:;<>@])|(.)",
    re.DOTALL,
)
_SPACE, _QUOTED, _WORD, _LITERAL, _OPEN, _SPECIAL = range(1, 7)
_INSIDE = re.compile(rb"[()]|\\.|[^()\\]++|\\", re.DOTALL)
_PAIR = re.compile(rb"\\(.)", re.DOTALL)


def parse_addresses(value: bytes) -> list[MailAddress]:
    """The addresses of an unfolded field, in their order."""
    addresses: list[MailAddress] = []
    position, end = 0, len(value)
    while position < end:
        found = _USUAL.match(value, position)
        if found is None:
            return _Parser(value).run()
        position = found.end()
        quoted, name, local, host, bare_local, bare_host = found.groups()
        if bare_local is not None:
            addresses.append(MailAddress(None, None, bare_local, bare_host))
        else:
            addresses.append(MailAddress(_phrase(quoted or name or b""), None, local, host))
    return addresses


def _phrase(name: bytes) -> bytes | None:
    return b" ".join(name.split()) or None


class _Parser:
    """The full grammar: a phrase is collected until a special character says what it was."""

    def __init__(self, value: bytes) -> None:
        self._value = value
        self._out: list[MailAddress] = []
        self._in_group = False
        self._clear()

    def _clear(self) -> None:
        self._words: list[bytes] = []  # of the phrase, or of what stands after "<" or "@"
        self._glued: list[bool] = []  # no space before that word
        self._name: bytes | None = None  # the phrase before "<"
        self._comment: bytes | None = None
        self._route: list[bytes] = []
        self._local: list[bytes] | None = None  # what stood before "@", in pieces
        self._angle = ""  # "", "inside", "closed"

    def run(self) -> list[MailAddress]:
        value, position, spaced = self._value, 0, True
        while found := _TOKEN.match(value, position):
            position = found.end()
            kind, text = found.lastindex, found[0]
            if kind == _OPEN:
                position = self._read_comment(position)
                spaced = True
            elif kind == _SPECIAL:
                self._special(text)
                spaced = True
            elif kind == _SPACE:
                spaced = True
            elif self._angle != "closed":  # text after ">" belongs to nothing
                if kind == _QUOTED:
                    text = text[1:-1] if len(text) > 1 and text.endswith(b'"') else text[1:]
                    text = _PAIR.sub(rb"\1", text) if b"\\" in text else text
                self._words.append(text)
                self._glued.append(not spaced or self._dotted())
                spaced = False
        self._finish()
        if self._in_group:
            self._out.append(GROUP_END)
        return self._out

    def _dotted(self) -> bool:
        """Whether the last two words are held together by a dot, spaces or not (RFC 5322 4.4, obs-domain)."""
        last = self._words[-2:]
        if self._local is None:
            return b"." in last
        return len(last) == 2 and (last[0].endswith(b".") or last[1].startswith(b"."))

    def _read_comment(self, position: int) -> int:
        start, depth = position, 1
        while depth and (found := _INSIDE.match(self._value, position)):
            position = found.end()
            depth += {b"(": 1, b")": -1}.get(found[0], 0)
        text = self._value[start : position if depth else position - 1]
        self._comment = _phrase(_PAIR.sub(rb"\1", text)) or self._comment
        return position

    def _special(self, text: bytes) -> None:
        if text == b"@":
            self._at()
        elif text == b"<" and not self._angle:
            if self._local is not None:  # an address as its own name, unquoted
                self._name = _phrase(b"".join([*self._local, b"@", *self._words]))
            else:
                self._name = _phrase(b" ".join(self._words))
            self._local, self._angle = None, "inside"
            self._words, self._glued = [], []
        elif text == b">" and self._angle == "inside":
            self._angle = "closed"
        elif text == b":" and self._angle == "inside" and self._local == [b""]:
            # "@a,@b:" before the address is a source route (RFC 5322 4.4)
            self._route += [b"@", *self._words]
            self._local, self._words, self._glued = None, [], []
        elif text == b":" and not self._angle and self._local is None and not self._in_group:
            self._out.append(MailAddress(None, None, _phrase(b" ".join(self._words)) or b"", None))
            self._clear()
            self._in_group = True
        elif text == b"," and self._angle == "inside" and self._local == [b""]:
            self._route += [b"@", *self._words, b","]
            self._local, self._words, self._glued = None, [], []
        elif text in (b",", b";"):
            self._finish()
            if text == b";" and self._in_group:
                self._out.append(GROUP_END)
                self._in_group = False

    def _at(self) -> None:
        if self._angle == "closed":
            return
        if self._local is not None:  # a@b@c: the host is what stands after the last one
            self._local += [b"@", *self._words]
        elif self._angle:
            self._local = [b"".join(self._words)]
        else:  # words set apart before the address are a name that lost its brackets
            start = len(self._words) - 1
            while start > 0 and self._glued[start]:
                start -= 1
            start = max(start, 0)
            self._name = _phrase(b" ".join(self._words[:start]))
            self._local = [b"".join(self._words[start:])]
        self._words, self._glued = [], []

    def _finish(self) -> None:
        """Ends an address: what was collected goes out."""
        words, name, route = self._words, self._name or self._comment, b"".join(self._route) or None
        if self._local is not None:
            end = next((number for number, glued in enumerate(self._glued) if number and not glued), len(words))
            host = b"".join(words[:end])
            local = b"".join(self._local) or MISSING_MAILBOX
            self._out.append(MailAddress(name, route, local, host or MISSING_DOMAIN))
        elif self._angle:
            mailbox = b"".join(words) or MISSING_MAILBOX
            self._out.append(MailAddress(name, route, mailbox, MISSING_DOMAIN))
        elif len(words) == 1:
            self._out.append(MailAddress(name, None, words[0] or MISSING_MAILBOX, MISSING_DOMAIN))
        elif words:
            self._out.append(MailAddress(_phrase(b" ".join(words)), None, MISSING_MAILBOX, MISSING_DOMAIN))
        self._clear()
