"""What the names of the messages cannot say, in two small JSON files beside them: they make the Maildir complete.

`<Maildir>/mailsrv-account.json`: {"next_mailbox": int, "last_uidvalidity": int}.
`<folder>/mailsrv-mailbox.json`: {"number": int, "uidvalidity": int, "uid_mark": int, "keywords": [name…],
"special_use": name or null}. `uid_mark`: UIDs below it may have been given. Keyword n is letter chr(97 + n).

Both are replaced whole and synced before what they announce is used.

Imports: store.files.    RFC 3501 2.3.1.1 (UIDVALIDITY), RFC 6154 (special use).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from mailsrv.store import files

ACCOUNT_FILE = "mailsrv-account.json"
MAILBOX_FILE = "mailsrv-mailbox.json"
UID_RESERVE = 1000
MAX_UINT32 = 0xFFFFFFFF


def _number(value: Any, low: int, high: int = MAX_UINT32) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high else None


@dataclass(frozen=True, slots=True)
class MailboxMeta:
    number: int
    uidvalidity: int
    uid_mark: int
    keywords: tuple[str, ...] = ()
    special_use: str | None = None

    def with_mark(self, uid: int) -> MailboxMeta:
        """The same with a reserve beyond `uid`."""
        return replace(self, uid_mark=min(uid + UID_RESERVE, MAX_UINT32))


def read_mailbox(folder: str) -> MailboxMeta | None:
    """What the folder says of itself; None without a usable file."""
    value = files.read_json(f"{folder}/{MAILBOX_FILE}")
    if value is None:
        return None
    number, uidvalidity, mark = (_number(value.get(key), 1) for key in ("number", "uidvalidity", "uid_mark"))
    keywords, special_use = value.get("keywords", []), value.get("special_use")
    if number is None or uidvalidity is None or mark is None or not isinstance(keywords, list):
        return None
    if not all(isinstance(keyword, str) for keyword in keywords):
        return None
    return MailboxMeta(
        number, uidvalidity, mark, tuple(keywords), special_use if isinstance(special_use, str) else None
    )


def write_mailbox(folder: str, meta: MailboxMeta) -> None:
    files.write_json(
        f"{folder}/{MAILBOX_FILE}",
        {
            "number": meta.number,
            "uidvalidity": meta.uidvalidity,
            "uid_mark": meta.uid_mark,
            "keywords": list(meta.keywords),
            "special_use": meta.special_use,
        },
    )


@dataclass(frozen=True, slots=True)
class AccountMeta:
    next_mailbox: int = 1
    last_uidvalidity: int = 0


def read_account(maildir: str) -> AccountMeta | None:
    value = files.read_json(f"{maildir}/{ACCOUNT_FILE}")
    if value is None:
        return None
    number, last = _number(value.get("next_mailbox"), 1), _number(value.get("last_uidvalidity"), 0)
    return None if number is None or last is None else AccountMeta(number, last)


def write_account(maildir: str, meta: AccountMeta) -> None:
    files.write_json(
        f"{maildir}/{ACCOUNT_FILE}", {"next_mailbox": meta.next_mailbox, "last_uidvalidity": meta.last_uidvalidity}
    )
