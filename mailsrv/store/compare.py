"""What the index of an account says against what its Maildir holds; nothing is changed.

A mailbox whose directories were touched since the index last looked is only waiting to be looked at: another program
was there. What differs although both agree that nothing happened is damage. A mailbox that a server works on while it
is compared may seem to differ, so what differs is compared again before it is told.

Imports: store.*.    docs/doctor.md
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from mailsrv.store import metadata, names
from mailsrv.store.base import BOOT
from mailsrv.store.index import MailboxRecord, MessageRecord
from mailsrv.store.sqlite import SqliteIndex
from mailsrv.values import DELETED, SEEN

AGAIN_SECONDS = 0.2
MOST_LOOKS = 3
INDEX = "index.sqlite3"


@dataclass(slots=True)
class Compared:
    """One mailbox. `differences` by kind: missing (no file), extra (no row), flags, uid, duplicate, size, totals,
    identity; `pending`: its directories were changed since the index looked.
    """

    name: str
    messages: int = 0
    pending: bool = False
    differences: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def differs(self, kind: str, what: str) -> None:
        self.differences[kind] += 1
        if len(self.examples) < 5:
            self.examples.append(f"{kind}: {what}".encode("utf-8", "backslashreplace").decode())


def compare(home: str, progress: Callable[[str], None] = lambda name: None) -> Iterator[Compared]:
    """Every mailbox of the account. Raises IndexDamaged for an index that cannot be read, OSError for a directory."""
    maildir = f"{home}/Maildir"
    index = SqliteIndex(f"{home}/{INDEX}")
    try:
        with index.reading():
            records = {record.directory: record for record in index.mailboxes()}
        folders = names.served(_folders(maildir))
        for directory in sorted(folders | set(records)):
            progress(names.name_of(directory) or directory)
            found = _looked_at(index, maildir, directory, known=directory in records)
            if found is not None:
                yield found
    finally:
        index.close()


def _folders(maildir: str) -> Iterator[str]:
    yield ""
    with os.scandir(maildir) as entries:
        for entry in entries:
            if names.name_of(entry.name) not in (None, names.INBOX) and os.path.isdir(f"{entry.path}/cur"):
                yield entry.name


def _looked_at(index: SqliteIndex, maildir: str, directory: str, *, known: bool) -> Compared | None:
    folder = f"{maildir}/{directory}" if directory else maildir
    for look in range(MOST_LOOKS):
        with index.one_state():
            record = next((one for one in index.mailboxes() if one.directory == directory), None)
            rows = index.records(record.number) if record is not None else []
        exists = os.path.isdir(f"{folder}/cur")
        if record is None or not exists:
            # Made or removed by another program, or just now: the server finds it when it next lists the mailboxes.
            return Compared(names.name_of(directory) or directory, pending=True) if record or exists else None
        found = _compared(folder, record, rows)
        if not found.differences or look == MOST_LOOKS - 1:
            return found
        time.sleep(AGAIN_SECONDS)
    return None


def _compared(folder: str, record: MailboxRecord, rows: list[MessageRecord]) -> Compared:
    found = Compared(record.name, len(rows))
    try:
        found.pending = record.boot != BOOT or (_mtime(f"{folder}/cur"), _mtime(f"{folder}/new")) != (
            record.cur_mtime, record.new_mtime,
        )  # fmt: skip
        files = _listed(folder)
    except FileNotFoundError:
        found.pending = True  # its directories are made again when it is next opened
        return found
    _identity(found, folder, record)
    by_base = {row.base: row for row in rows}
    for base in by_base.keys() - files.keys():
        found.differs("missing", f"UID {by_base[base].uid}, {base}")
    limit = (1 << len(record.keywords)) - 1
    tags: Counter[int] = Counter()
    for base, (sub, name, size) in files.items():
        tag = names.tag(base)
        if tag is not None and tag[0] == record.uidvalidity:
            tags[tag[1]] += 1
        row = by_base.get(base)
        if row is None:
            found.differs("extra", f"{sub}/{name}")
            continue
        parsed = names.parse(name)
        if (parsed.flags, parsed.keywords & limit, sub == "new") != (row.flags, row.keywords, bool(row.in_new)):
            found.differs("flags", f"UID {row.uid}, {sub}/{name}")
        if tag is None or tag != (record.uidvalidity, row.uid):
            found.differs("uid", f"UID {row.uid}, {sub}/{name}")
        said = names.sizes(base)[0]
        if (said is not None and said != size) or (not row.bare_lf and row.size != size):
            found.differs("size", f"UID {row.uid}, {size} octets, {sub}/{name}")
    for uid, count in tags.items():
        if count > 1:
            found.differs("duplicate", f"UID {uid} is in {count} names")
    _totals(found, record, rows)
    return found


def _identity(found: Compared, folder: str, record: MailboxRecord) -> None:
    meta = metadata.read_mailbox(folder)
    if meta is None:
        found.differs("identity", f"{metadata.MAILBOX_FILE} is missing or cannot be read")
    elif (meta.number, meta.uidvalidity) != (record.number, record.uidvalidity):
        found.differs("identity", f"{metadata.MAILBOX_FILE} says {meta.number}, {meta.uidvalidity}, "
                      f"the index {record.number}, {record.uidvalidity}")  # fmt: skip


def _totals(found: Compared, record: MailboxRecord, rows: list[MessageRecord]) -> None:
    counted = (
        len(rows), sum(not row.flags & SEEN for row in rows), sum(bool(row.flags & DELETED) for row in rows),
        sum(row.size for row in rows),
    )  # fmt: skip
    if counted != (record.messages, record.unseen, record.deleted, record.size):
        found.differs("totals", f"messages, unseen, deleted, octets are {counted}")
    if rows and rows[-1].uid >= record.uidnext:
        found.differs("totals", f"UIDNEXT {record.uidnext} is not above UID {rows[-1].uid}")


def _listed(folder: str) -> dict[str, tuple[str, str, int]]:
    """base -> (sub-directory, file name, octets), as `reconcile` lists them."""
    found: dict[str, tuple[str, str, int]] = {}
    for sub in ("new", "cur"):
        with os.scandir(f"{folder}/{sub}") as entries:
            for entry in entries:
                if entry.name.startswith(".") or not entry.is_file(follow_symlinks=False):
                    continue
                try:
                    size = entry.stat(follow_symlinks=False).st_size
                except FileNotFoundError:
                    continue
                found[entry.name.partition(":")[0]] = (sub, entry.name, size)
    return found


def _mtime(path: str) -> int:
    return os.stat(path).st_mtime_ns
