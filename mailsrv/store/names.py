"""The two grammars of the Maildir: message file names and folder directory names. Pure functions.

Message: `<unique>.<host>,S=<size>,U=<uidvalidity>-<uid>:2,<letters>`. Everything before `:2,` is the base name and
never changes while the message lives; `S=` and `W=` are sizes as Dovecot writes them, `U=` is ours: a UID means
something only together with the UIDVALIDITY it was given under, so a file moved in from elsewhere shows a foreign tag.

Folder: Maildir++ (`.Work.2026` is Work/2026), each part in modified UTF-7, in which the characters that mean something
to a file system or to Maildir++ (`.`, `/`, `~`, controls) are shifted too: no name can leave its account.

Imports: errors.    Maildir (D. J. Bernstein), Maildir++ (Courier), RFC 3501 5.1.3 (modified UTF-7).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from mailsrv.errors import MailboxNameInvalid
from mailsrv.values import ANSWERED, DELETED, DRAFT, FLAGGED, MAX_KEYWORDS, SEEN

DELIMITER = "/"
INBOX = "INBOX"
MAX_DEPTH = 20
MAX_DIRECTORY_BYTES = 200

LETTER_FLAGS = {"D": DRAFT, "F": FLAGGED, "R": ANSWERED, "S": SEEN, "T": DELETED}
_FLAG_TEXT = tuple("".join(letter for letter, bit in LETTER_FLAGS.items() if word & bit) for word in range(32))
_TAG = re.compile(r",U=(\d{1,10})-(\d{1,10})(?=,|$)")
_NO_TEXT = re.compile("[\ud800-\udfff]")  # an octet of a file name that is not UTF-8; the index takes text only
_SIZE = re.compile(r",S=(\d{1,18})(?=,|$)")
_SIZE_CRLF = re.compile(r",W=(\d{1,18})(?=,|$)")


class FileName(NamedTuple):
    """A message file name taken apart. `letters` are capitals that are no IMAP flag (Maildir's P), kept on rename."""

    base: str
    flags: int
    keywords: int
    letters: str


def parse(name: str) -> FileName:
    base, _, info = name.partition(":")
    return FileName(base, *_parse_info(info))


@lru_cache(1024)  # a few come again and again
def _parse_info(info: str) -> tuple[int, int, str]:
    flags = keywords = 0
    letters = ""
    if info.startswith("2,"):
        for letter in info[2:]:
            if letter in LETTER_FLAGS:
                flags |= LETTER_FLAGS[letter]
            elif "a" <= letter <= "z":
                keywords |= 1 << (ord(letter) - 97)
            elif "A" <= letter <= "Z":
                letters += letter
    return flags, keywords, letters


def keyword_letters(keywords: int) -> str:
    return "".join(chr(97 + bit) for bit in range(MAX_KEYWORDS) if keywords >> bit & 1) if keywords else ""


def info(flags: int, keywords: int, letters: str = "") -> str:
    """The part after the base name in cur/: capitals in ASCII order, then keyword letters."""
    capitals = _FLAG_TEXT[flags & 31]
    if letters:
        capitals = "".join(sorted(set(capitals + letters)))
    return f":2,{capitals}{keyword_letters(keywords)}"


def path_of(base: str, flags: int, keywords: int, letters: str, in_new: bool) -> str:
    return f"new/{base}" if in_new else f"cur/{base}{info(flags, keywords, letters)}"


def tag(base: str) -> tuple[int, int] | None:
    """(UIDVALIDITY, UID) of the name, if it carries them."""
    found = _TAG.search(base)
    return (int(found[1]), int(found[2])) if found else None


def is_text(base: str) -> bool:
    """Whether the name is UTF-8 on disk."""
    return _NO_TEXT.search(base) is None


def sizes(base: str) -> tuple[int | None, int | None]:
    """(size of the file, size as sent), as far as the name says."""
    stored, sent = _SIZE.search(base), _SIZE_CRLF.search(base)
    return (int(stored[1]) if stored else None, int(sent[1]) if sent else None)


def with_tag(base: str, uidvalidity: int, uid: int, stored: int | None = None, sent: int | None = None) -> str:
    """The base name with our tag in place of any other, and `_` for octets that are no UTF-8; `stored` and `sent`
    become S= and W= (RFC822.SIZE) anew.
    """
    base = _NO_TEXT.sub("_", _TAG.sub("", base))
    if stored is not None:
        base = f"{_SIZE_CRLF.sub('', _SIZE.sub('', base))},S={stored}" + ("" if sent is None else f",W={sent}")
    return f"{base},U={uidvalidity}-{uid}"


def arrival(base: str) -> int:
    """Seconds since 1970 at the start of the name; 0 when it does not begin with a number."""
    digits = base.partition(".")[0]
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 12 else 0


@lru_cache(1)
def safe_host(host: str) -> str:
    """A host name as it may stand in a file name."""
    return re.sub(r"[^A-Za-z0-9.-]", "_", host)[:64] or "localhost"


# ------------------------------------------------------------------ mailbox names


def canonical(name: str) -> str:
    """The name as the model keeps it, checked: no empty part, no control character, INBOX in capitals."""
    parts = name.split(DELIMITER)
    if parts[0].upper() == INBOX:
        parts[0] = INBOX
    if len(parts) > MAX_DEPTH:
        raise MailboxNameInvalid(f"A mailbox name has at most {MAX_DEPTH} levels")
    for part in parts:
        if not part:
            raise MailboxNameInvalid("A part of the mailbox name is empty")
        if any(
            ord(char) < 32 or 0x7F <= ord(char) < 0xA0 or 0xD800 <= ord(char) < 0xE000 or ord(char) in (0x2028, 0x2029)
            for char in part
        ):
            raise MailboxNameInvalid("A mailbox name cannot have control characters")
    result = DELIMITER.join(parts)
    if len(directory(result).encode()) > MAX_DIRECTORY_BYTES:
        raise MailboxNameInvalid("The mailbox name is too long")
    return result


def _shifted(text: str) -> str:
    return "&" + base64.b64encode(text.encode("utf-16-be")).decode().rstrip("=").replace("/", ",") + "-"


def _encode_part(part: str) -> str:
    out: list[str] = []
    run = ""
    for char in part:
        if 0x20 <= ord(char) <= 0x7E and char not in "./~":
            if run:
                out.append(_shifted(run))
                run = ""
            out.append("&-" if char == "&" else char)
        else:
            run += char
    if run:
        out.append(_shifted(run))
    return "".join(out)


def _decode_part(part: str) -> str:
    out: list[str] = []
    rest = part
    while rest:
        before, shift, rest = rest.partition("&")
        out.append(before)
        if not shift:
            break
        coded, end, rest = rest.partition("-")
        if not end:
            raise ValueError("unterminated shift")
        if not coded:
            out.append("&")
            continue
        raw = base64.b64decode(coded.replace(",", "/") + "=" * (-len(coded) % 4), validate=True)
        out.append(raw.decode("utf-16-be"))
    return "".join(out)


def directory(name: str) -> str:
    """The folder of a mailbox relative to the Maildir: "" for INBOX."""
    if name == INBOX:
        return ""
    return "." + ".".join(_encode_part(part) for part in name.split(DELIMITER))


def name_of(folder: str) -> str | None:
    """The mailbox name that a folder directory means, ours or another program's; None if it means none."""
    if not folder:
        return INBOX
    if not folder.startswith(".") or folder in (".", ".."):
        return None
    try:
        name = DELIMITER.join(_decode_part(part) for part in folder[1:].split("."))
        return name if canonical(name) == name and name != INBOX else None
    except (ValueError, binascii.Error, MailboxNameInvalid):
        return None


def served(folders: Iterable[str]) -> set[str]:
    """The folders that are mailboxes. Others write some names otherwise (Dovecot `.a~b`, we `.a&AH4-b`): where two
    folders mean one name, ours is served.
    """
    chosen: dict[str, str] = {}
    for folder in sorted(folders):
        name = name_of(folder)
        if name is not None and (name not in chosen or directory(name) == folder):
            chosen[name] = folder
    return set(chosen.values())
