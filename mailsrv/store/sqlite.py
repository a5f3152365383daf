"""The index on SQLite, one file per account, WAL: the only module that knows SQL.

`synchronous=NORMAL`: a commit is not synced, a checkpoint is. After a power cut the file is sound but may be missing
its last commits; the store sees by the boot id that it must compare with the Maildir.

Imports: store.index, values.    https://sqlite.org/wal.html
"""

from __future__ import annotations

import json
import os
import sqlite3
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from mailsrv.store.index import FlagChange, Index, IndexDamaged, IndexFailed, MailboxRecord, MessageRecord
from mailsrv.store.names import path_of
from mailsrv.values import Changed, Delta, Prepared, Row, Snapshot

__all__ = ["SqliteIndex", "snapshot_of"]

VERSION = 1
KEEP_EXPUNGED = 100_000
MOST_PARAMETERS = 500
BUSY_SECONDS = 30

SCHEMA = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE mailboxes (
    number INTEGER PRIMARY KEY, directory TEXT NOT NULL UNIQUE, name TEXT NOT NULL, uidvalidity INTEGER NOT NULL,
    uidnext INTEGER NOT NULL, uid_mark INTEGER NOT NULL, keywords TEXT NOT NULL, special_use TEXT,
    highest_modseq INTEGER NOT NULL, recent_uid INTEGER NOT NULL, messages INTEGER NOT NULL, unseen INTEGER NOT NULL,
    deleted INTEGER NOT NULL, size INTEGER NOT NULL, cur_mtime INTEGER NOT NULL, new_mtime INTEGER NOT NULL,
    expunged_floor INTEGER NOT NULL, boot TEXT NOT NULL);
CREATE TABLE messages (
    mailbox INTEGER NOT NULL, uid INTEGER NOT NULL, base TEXT NOT NULL, in_new INTEGER NOT NULL, flags INTEGER NOT NULL,
    keywords INTEGER NOT NULL, letters TEXT NOT NULL, modseq INTEGER NOT NULL, size INTEGER NOT NULL,
    internal_date INTEGER NOT NULL, save_date INTEGER NOT NULL, bare_lf INTEGER NOT NULL,
    PRIMARY KEY (mailbox, uid)) WITHOUT ROWID;
CREATE INDEX messages_modseq ON messages (mailbox, modseq);
CREATE TABLE expunged (mailbox INTEGER NOT NULL, uid INTEGER NOT NULL, modseq INTEGER NOT NULL,
    PRIMARY KEY (mailbox, uid)) WITHOUT ROWID;
CREATE INDEX expunged_modseq ON expunged (mailbox, modseq);
CREATE TABLE prepared (
    mailbox INTEGER NOT NULL, uid INTEGER NOT NULL, envelope BLOB NOT NULL, bodystructure BLOB NOT NULL,
    fields BLOB NOT NULL, sent_day INTEGER NOT NULL, message_id TEXT NOT NULL, subject TEXT NOT NULL,
    from_ TEXT NOT NULL, to_ TEXT NOT NULL, cc TEXT NOT NULL, bcc TEXT NOT NULL,
    PRIMARY KEY (mailbox, uid)) WITHOUT ROWID;
"""

_MESSAGE = "uid, base, in_new, flags, keywords, letters, modseq, size, internal_date, save_date, bare_lf"
_MAILBOX = (
    "number, directory, name, uidvalidity, uidnext, uid_mark, keywords, special_use, highest_modseq, recent_uid, "
    "messages, unseen, deleted, size, cur_mtime, new_mtime, expunged_floor, boot"
)
_PUT_MAILBOX = (  # not REPLACE, which would also delete and insert again in the index of directories
    f"INSERT INTO mailboxes VALUES ({','.join('?' * 18)}) ON CONFLICT (number) DO UPDATE SET "
    + ", ".join(f"{name}=excluded.{name}" for name in _MAILBOX.split(", ")[1:])
)
_PREPARED = "envelope, bodystructure, fields, sent_day, message_id, subject, from_, to_, cc, bcc"
_PREPARED_COLUMNS = dict(zip(Prepared._fields, _PREPARED.split(", "), strict=True))
_SEARCHED = {"subject": "subject", "from_": "from_", "to": "to_", "cc": "cc", "bcc": "bcc", "message_id": "message_id"}


def _record(row: tuple[object, ...]) -> MailboxRecord:
    record = MailboxRecord(*row)  # type: ignore[arg-type]
    record.keywords = _keyword_names(str(record.keywords))
    return record


@lru_cache(256)
def _keyword_names(written: str) -> tuple[str, ...]:
    return tuple(json.loads(written))


def _damaged(failure: sqlite3.DatabaseError) -> bool:
    """Corruption or a foreign schema, as against a full disk or a busy file."""
    if isinstance(failure, sqlite3.OperationalError):
        text = str(failure)
        return "no such" in text or "malformed" in text or "has no column" in text
    return not isinstance(failure, sqlite3.IntegrityError | sqlite3.ProgrammingError | sqlite3.InterfaceError)


def _filled_up(uids: Sequence[int]) -> list[int]:
    """With the last again, to one of a few lengths: a connection keeps its last 64 statements, 2.8 MB if each is for
    another length, and makes anew what it has not kept.
    """
    length = min(1 << (len(uids) - 1).bit_length(), MOST_PARAMETERS)
    return [*uids, *[uids[-1]] * (length - len(uids))]


class SqliteIndex(Index):
    """The engine for one account. Opening makes the schema in a new file; raises IndexDamaged for an unusable one."""

    def __init__(self, path: str) -> None:
        self.path = path
        with self.reading():
            self._db = sqlite3.connect(
                path, timeout=BUSY_SECONDS, check_same_thread=False, isolation_level=None, cached_statements=64
            )
            try:
                self._open()
            except BaseException:
                self._db.close()
                raise
        self.inode = os.stat(path).st_ino

    def _open(self) -> None:
        run = self._db.execute
        version = run("PRAGMA user_version").fetchone()[0]
        if version == 0:
            run("PRAGMA page_size=8192")
            run("PRAGMA journal_mode=WAL")
        run("PRAGMA synchronous=NORMAL")
        run("PRAGMA cache_size=-1024")
        run("PRAGMA temp_store=MEMORY")
        if version == 0:
            with self.transaction():
                if run("PRAGMA user_version").fetchone()[0] == 0:  # else another process was faster
                    for statement in SCHEMA.split(";"):
                        run(statement)
                    run(f"PRAGMA user_version={VERSION}")
        elif version != VERSION:
            raise IndexDamaged(f"schema version {version}, expected {VERSION}")

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def reading(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as failure:
            if _damaged(failure):
                raise IndexDamaged(str(failure)) from failure
            raise IndexFailed(f"index {failure}") from failure

    @contextmanager
    def one_state(self) -> Iterator[None]:
        """All that is read inside is of one commit. Without it, each statement sees what was committed until then."""
        with self.reading():
            self._db.execute("BEGIN")
            try:
                yield
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")  # nothing was written

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with self.reading():
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    # -------------------------------------------------------------- account and mailboxes

    def fact(self, name: str) -> int:
        row = self._db.execute("SELECT value FROM facts WHERE name=?", (name,)).fetchone()
        return int(row[0]) if row else 0

    def set_fact(self, name: str, value: int) -> None:
        self._db.execute("INSERT OR REPLACE INTO facts VALUES (?,?)", (name, value))

    def mailboxes(self) -> list[MailboxRecord]:
        return [_record(row) for row in self._db.execute(f"SELECT {_MAILBOX} FROM mailboxes")]

    def mailbox(self, number: int) -> MailboxRecord | None:
        row = self._db.execute(f"SELECT {_MAILBOX} FROM mailboxes WHERE number=?", (number,)).fetchone()
        return _record(row) if row else None

    def put_mailbox(self, record: MailboxRecord) -> None:
        self._db.execute(
            _PUT_MAILBOX,
            (
                record.number, record.directory, record.name, record.uidvalidity, record.uidnext, record.uid_mark,
                json.dumps(record.keywords), record.special_use, record.highest_modseq, record.recent_uid,
                record.messages, record.unseen, record.deleted, record.size, record.cur_mtime, record.new_mtime,
                record.expunged_floor, record.boot,
            ),
        )  # fmt: skip

    def drop_mailbox(self, number: int) -> None:
        self.clear_messages(number)
        self._db.execute("DELETE FROM mailboxes WHERE number=?", (number,))

    def clear_messages(self, number: int) -> None:
        for table in ("messages", "expunged", "prepared"):
            self._db.execute(f"DELETE FROM {table} WHERE mailbox=?", (number,))

    def usage(self) -> int:
        return int(self._db.execute("SELECT COALESCE(SUM(size), 0) FROM mailboxes").fetchone()[0])

    # -------------------------------------------------------------- changing messages

    def insert(self, number: int, records: Sequence[MessageRecord]) -> None:
        self._db.executemany(
            "INSERT INTO messages VALUES (?,?,?,?,?,?,?,?,?,?,?,?)", [(number, *record) for record in records]
        )

    def update_flags(self, number: int, modseq: int, changes: Sequence[FlagChange]) -> None:
        self._db.executemany(
            "UPDATE messages SET in_new=?, flags=?, keywords=?, letters=?, modseq=? WHERE mailbox=? AND uid=?",
            [(c.in_new, c.flags, c.keywords, c.letters, modseq, number, c.uid) for c in changes],
        )

    def expunge(self, record: MailboxRecord, modseq: int, uids: Sequence[int]) -> None:
        number = record.number
        keys = [(number, uid) for uid in uids]
        self._db.executemany("DELETE FROM messages WHERE mailbox=? AND uid=?", keys)
        self._db.executemany("DELETE FROM prepared WHERE mailbox=? AND uid=?", keys)
        self._db.executemany("INSERT OR REPLACE INTO expunged VALUES (?,?,?)", [(number, uid, modseq) for uid in uids])
        over = self._db.execute(
            "SELECT modseq FROM expunged WHERE mailbox=? ORDER BY modseq DESC LIMIT 1 OFFSET ?", (number, KEEP_EXPUNGED)
        ).fetchone()
        if over:
            self._db.execute("DELETE FROM expunged WHERE mailbox=? AND modseq<=?", (number, over[0]))
            record.expunged_floor = over[0]

    def was_expunged(self, number: int, uid: int) -> bool:
        found = self._db.execute("SELECT 1 FROM expunged WHERE mailbox=? AND uid=?", (number, uid)).fetchone()
        return found is not None

    # -------------------------------------------------------------- reading messages

    def _select(
        self, what: str, number: int, uids: Sequence[int] | None, table: str = "messages", extra: str = "",
        values: tuple[object, ...] = (),
    ) -> Iterator[tuple[object, ...]]:  # fmt: skip
        """Rows for the UIDs, ascending: one range where they are dense, else lists of a bounded length."""
        head = f"SELECT {what} FROM {table} WHERE messages.mailbox=?"
        if table == "prepared":
            head = f"SELECT {what} FROM prepared AS messages WHERE messages.mailbox=?"
        if uids is None:
            yield from self._db.execute(f"{head}{extra} ORDER BY messages.uid", (number, *values))
            return
        dense = bool(uids) and uids[-1] - uids[0] + 1 == len(uids)
        length = len(uids) if dense else MOST_PARAMETERS
        for start in range(0, len(uids), length or 1):
            part = uids[start : start + length]
            low, high = part[0], part[-1]
            if high - low + 1 == len(part):
                yield from self._db.execute(
                    f"{head} AND messages.uid BETWEEN ? AND ?{extra} ORDER BY messages.uid",
                    (number, low, high, *values),
                )
            else:
                listed = _filled_up(part)
                marks = ",".join("?" * len(listed))
                yield from self._db.execute(
                    f"{head} AND messages.uid IN ({marks}){extra} ORDER BY messages.uid", (number, *listed, *values)
                )

    def records(self, number: int, uids: Sequence[int] | None = None) -> list[MessageRecord]:
        return [MessageRecord(*row) for row in self._select(_MESSAGE, number, uids)]  # type: ignore[arg-type]

    def rows(self, number: int, uids: Sequence[int]) -> list[Row]:
        return [
            Row(r.uid, path_of(r.base, r.flags, r.keywords, r.letters, bool(r.in_new)), r.size, r.internal_date,
                r.save_date, bool(r.bare_lf))
            for r in self.records(number, uids)
        ]  # fmt: skip

    def flag_columns(self, number: int) -> list[tuple[int, int, int, int]]:
        return self._db.execute(
            "SELECT uid, flags, keywords, modseq FROM messages WHERE mailbox=? ORDER BY uid", (number,)
        ).fetchall()

    def uids_with_flag(self, number: int, bit: int) -> list[int]:
        rows = self._db.execute("SELECT uid FROM messages WHERE mailbox=? AND flags & ? ORDER BY uid", (number, bit))
        return [uid for (uid,) in rows]

    def count_from(self, number: int, uid: int) -> int:
        row = self._db.execute("SELECT COUNT(*) FROM messages WHERE mailbox=? AND uid>=?", (number, uid)).fetchone()
        return int(row[0])

    def changes(self, record: MailboxRecord, since: int) -> Delta:
        changed = [
            Changed(*row)
            for row in self._db.execute(
                "SELECT uid, flags, keywords, modseq FROM messages WHERE mailbox=? AND modseq>? ORDER BY uid",
                (record.number, since),
            )
        ]
        vanished = self._db.execute(
            "SELECT uid, modseq FROM expunged WHERE mailbox=? AND modseq>? ORDER BY uid", (record.number, since)
        ).fetchall()
        return Delta(changed, vanished, record.keywords, record.uidnext, record.highest_modseq)

    # -------------------------------------------------------------- what is prepared from the text

    def prepared(self, number: int, uids: Sequence[int], parts: Sequence[str]) -> list[tuple[Any, ...]]:
        columns = ", ".join(_PREPARED_COLUMNS[part] for part in parts)
        table = "messages LEFT JOIN prepared USING (mailbox, uid)"
        return list(self._select(f"uid, size, internal_date, {columns}", number, uids, table))

    def prepared_alone(self, number: int, uids: Sequence[int], parts: Sequence[str]) -> list[tuple[Any, ...]]:
        columns = ", ".join(_PREPARED_COLUMNS[part] for part in parts)
        return list(self._select(f"uid, 0, 0, {columns}", number, uids, "prepared"))

    def unprepared(self, number: int, uids: Sequence[int]) -> list[int]:
        rows = self._db.execute(
            "SELECT uid FROM messages WHERE mailbox=? AND uid BETWEEN ? AND ? AND NOT EXISTS (SELECT 1 FROM prepared "
            "WHERE prepared.mailbox=messages.mailbox AND prepared.uid=messages.uid) ORDER BY uid",
            (number, uids[0] if uids else 0, uids[-1] if uids else 0),
        )
        missing = [uid for (uid,) in rows]
        if not missing:
            return []
        wanted = set(uids)
        return [uid for uid in missing if uid in wanted]

    def put_prepared(self, number: int, entries: Iterable[tuple[int, Prepared]]) -> None:
        self._db.executemany(
            "INSERT OR REPLACE INTO prepared VALUES (?,?,?,?,?,?,?,?,?,?,?,?)",
            [(number, uid, *prepared) for uid, prepared in entries],
        )

    def copy_prepared(self, source: int, target: int, pairs: Sequence[tuple[int, int]]) -> None:
        self._db.executemany(
            f"INSERT OR REPLACE INTO prepared SELECT ?, ?, {_PREPARED} FROM prepared WHERE mailbox=? AND uid=?",
            [(target, new, source, old) for old, new in pairs],
        )

    def search(self, number: int, uids: Sequence[int], column: str, needle: str) -> list[int]:
        name = _SEARCHED[column]
        rows = self._select("uid", number, uids, "prepared", f" AND instr(messages.{name}, ?)", (needle,))
        return [uid for (uid,) in rows]  # type: ignore[misc]

    def find_message_id(self, number: int, message_id: str) -> int | None:
        row = self._db.execute(
            "SELECT uid FROM prepared WHERE mailbox=? AND message_id=? ORDER BY uid DESC LIMIT 1", (number, message_id)
        ).fetchone()
        return int(row[0]) if row else None


def snapshot_of(record: MailboxRecord, columns: list[tuple[int, int, int, int]]) -> Snapshot:
    """The compact arrays of a whole mailbox."""
    uids, flags, keywords, modseqs = zip(*columns, strict=True) if columns else ((), (), (), ())
    return Snapshot(
        array("I", uids), bytearray(flags), array("I", keywords), array("Q", modseqs),
        record.keywords, record.uidnext, record.uidvalidity, record.highest_modseq,
    )  # fmt: skip
