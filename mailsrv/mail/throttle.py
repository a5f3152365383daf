"""How often logins may fail: counted for each network and for each user, kept across workers and restarts.

After some failures each further one doubles the time until the next attempt is looked at. Three rules keep that from
hurting the wrong people (S20):
- the same wrong password again is not counted: an old telephone must not lock an office out;
- a user's own addresses, those with a login in the last weeks, are never made to wait for what their network did,
  and from the networks of these addresses a user never waits for what others tried on the account;
- failures are forgotten, one in every few minutes.
The networks of proxies (`trusted`, loopback: a webmail) are not counted, as all users come from there.

The state is a small database beside the accounts. It is read before an attempt (some microseconds, by primary key) and
written after failures, and after a login that is the first one in an hour from its address; writing is for the pool.
Passwords are known here only as short keyed hashes, under a key that is in the memory of one server run alone.
The same table counts the unknown recipients an address asked for (S19).

Imports: store.files (the pool), networks, errors, log.    docs/decisions/0032-throttling.md; docs/limits.md.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from mailsrv import log
from mailsrv.errors import LoginThrottled
from mailsrv.networks import Networks, address_of, network_of
from mailsrv.store.files import close, native_lock, offload, unlink_if_there

VERSION = 1
FORGOTTEN_SECONDS = 300.0  # one failure is forgotten in this time
KNOWN_SECONDS = 30 * 86400.0  # an address is the user's own for so long after a login
NOTED_SECONDS = 3600.0  # how often that is written down
MARK_SECONDS = 86400.0  # how long a wrong password is recognised
MOST_ROWS = 50_000  # of each table; the oldest go
MOST_NOTED = 20_000
SWEEP_WRITES = 500
BUSY_SECONDS = 5
PROBE_SECONDS = 3600.0  # what `probes` counts within

SCHEMA = """
CREATE TABLE strikes (kind TEXT, who TEXT, count REAL, at REAL, until REAL, PRIMARY KEY (kind, who)) WITHOUT ROWID;
CREATE TABLE marks (mark BLOB PRIMARY KEY, at REAL) WITHOUT ROWID;
CREATE TABLE known (user TEXT, address TEXT, network TEXT, at REAL, PRIMARY KEY (user, address)) WITHOUT ROWID;
"""
NETWORK, USER, SENDER = "network", "user", "sender"


@dataclass(frozen=True, slots=True)
class Limits:
    """`free` failures without a pause; pauses double from one second up to `longest_seconds`; unknown recipients an
    address may ask for in an hour."""

    free: int = 3
    longest_seconds: float = 900.0
    probes: int = 100
    trusted: Networks = field(default_factory=Networks)


@dataclass(frozen=True, slots=True)
class Entry:
    """One row as administration sees it. `kind` is network, user or sender (who asked for unknown recipients)."""

    kind: str
    who: str
    failures: float
    last_at: float
    wait_seconds: float


class Throttle:
    """The limits of one process. Opens its database when first asked, and works without one that fails."""

    def __init__(
        self, path: str, limits: Limits, secret: bytes = b"", *, clock: Callable[[], float] = time.time
    ) -> None:
        self._path, self.limits, self._clock = path, limits, clock
        self._secret = secret or os.urandom(32)
        self._reader: sqlite3.Connection | None = None
        self._writer: sqlite3.Connection | None = None
        self._writing = native_lock()
        self._noted: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._struck: OrderedDict[str, None] = OrderedDict()  # users with failures that a login will forgive
        self._writes = 0

    # -------------------------------------------------------------- before and after an attempt

    def check(self, user: str, peer: str) -> None:
        """Raises LoginThrottled while an attempt from there, on that user, has to wait. Quick: for the hub."""
        now = self._clock()
        rows = self._look(
            "SELECT kind, until, count FROM strikes WHERE (kind='user' AND who=?) OR (kind='network' AND who=?)",
            (user, network_of(peer)),
        )
        waits = {kind: min(until - now, self.limits.longest_seconds) for kind, until, _ in rows if until > now}
        if any(kind == USER for kind, _, _ in rows):
            self._remember(self._struck, user)
        trusted = peer in self.limits.trusted
        if trusted:
            waits.pop(NETWORK, None)
        if waits and not trusted:
            self._excuse(user, peer, waits, now)
        if waits:
            kind, seconds = max(waits.items(), key=lambda item: item[1])
            raise LoginThrottled(_SAID[kind].format(_duration(seconds)), seconds)

    def _excuse(self, user: str, peer: str, waits: dict[str, float], now: float) -> None:
        """Take away what does not hold for a place this user is known from."""
        since = now - KNOWN_SECONDS
        if self._look("SELECT 1 FROM known WHERE user=? AND address=? AND at>?", (user, address_of(peer), since)):
            waits.clear()
        elif USER in waits and self._look(
            "SELECT 1 FROM known WHERE user=? AND network=? AND at>? LIMIT 1", (user, network_of(peer), since)
        ):
            del waits[USER]

    def failed(self, user: str, peer: str, password: str) -> bool:
        """Count a wrong password; True if it is the same again, which is not counted. Blocks on the disk."""
        mark = blake2b(f"{user}\0{password}".encode(errors="replace"), key=self._secret, digest_size=12).digest()
        now = self._clock()

        def count(db: sqlite3.Connection) -> bool:
            seen = db.execute("SELECT at FROM marks WHERE mark=?", (mark,)).fetchone()
            db.execute("INSERT OR REPLACE INTO marks VALUES (?,?)", (mark, now))
            if seen is not None and seen[0] > now - MARK_SECONDS:
                return True
            self._strike(db, USER, user, now)
            if peer not in self.limits.trusted:
                self._strike(db, NETWORK, network_of(peer), now)
            return False

        return bool(self._write(count))

    def _strike(self, db: sqlite3.Connection, kind: str, who: str, now: float) -> None:
        count = _left(db.execute("SELECT count, at FROM strikes WHERE kind=? AND who=?", (kind, who)).fetchone(), now)
        count += 1
        over = count - self.limits.free
        until = now + min(2.0 ** min(over - 1, 30), self.limits.longest_seconds) if over > 0 else 0.0
        db.execute("INSERT OR REPLACE INTO strikes VALUES (?,?,?,?,?)", (kind, who, count, now, until))

    def news(self, user: str, peer: str) -> bool:
        """Whether a login is worth `succeeded`: the first of an hour from there, or after failures."""
        return user in self._struck or self._noted.get((user, peer), 0.0) < self._clock() - NOTED_SECONDS

    def succeeded(self, user: str, peer: str) -> None:
        """Forgive the user's failures, and know the place. Blocks on the disk."""
        now = self._clock()

        def note(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM strikes WHERE kind='user' AND who=?", (user,))
            if peer not in self.limits.trusted:
                db.execute(
                    "INSERT OR REPLACE INTO known VALUES (?,?,?,?)", (user, address_of(peer), network_of(peer), now)
                )

        self._write(note)
        self._struck.pop(user, None)
        self._noted[user, peer] = now
        while len(self._noted) > MOST_NOTED:
            self._noted.popitem(last=False)

    # -------------------------------------------------------------- unknown recipients

    def probe_refusal(self, peer: str) -> str | None:
        """Why an address may not name recipients for now, and how long; None if it may. Quick: for the hub."""
        rows = self._look("SELECT until FROM strikes WHERE kind='sender' AND who=?", (address_of(peer),))
        wait = min(rows[0][0] - self._clock(), PROBE_SECONDS) if rows else 0.0
        if wait <= 0 or peer in self.limits.trusted:
            return None
        return f"Too many unknown recipients from your address. Wait {_duration(wait)} before you try again"

    def probed(self, peer: str, recipient: str) -> None:
        """Count a recipient that does not exist; the same one again is not counted. Waits for the disk."""
        if peer not in self.limits.trusted:
            offload(self._probed, address_of(peer), recipient)

    def _probed(self, who: str, recipient: str) -> None:
        now = self._clock()
        mark = blake2b(f"{who}\0{recipient}".encode(errors="replace"), key=self._secret, digest_size=12).digest()
        forgotten = PROBE_SECONDS / self.limits.probes

        def count(db: sqlite3.Connection) -> None:
            if db.execute("SELECT 1 FROM marks WHERE mark=? AND at>?", (mark, now - PROBE_SECONDS)).fetchone():
                return
            db.execute("INSERT OR REPLACE INTO marks VALUES (?,?)", (mark, now))
            row = db.execute("SELECT count, at FROM strikes WHERE kind=? AND who=?", (SENDER, who)).fetchone()
            asked = _left(row, now, forgotten) + 1
            over = asked - self.limits.probes
            until = now + max(60.0, (over + 1) * forgotten) if over > 0 else 0.0
            db.execute("INSERT OR REPLACE INTO strikes VALUES (?,?,?,?,?)", (SENDER, who, asked, now, until))

        self._write(count)

    # -------------------------------------------------------------- administration

    def entries(self) -> list[Entry]:
        """Who has failures, those that wait longest first."""
        now = self._clock()
        found = [
            Entry(kind, who, left, at, max(0.0, min(until - now, max(self.limits.longest_seconds, PROBE_SECONDS))))
            for kind, who, count, at, until in self._look("SELECT kind, who, count, at, until FROM strikes")
            if (left := _left((count, at), now, self._forgotten(kind))) > 0 or until > now
        ]
        return sorted(found, key=lambda entry: (-entry.wait_seconds, -entry.failures, entry.kind, entry.who))

    def _forgotten(self, kind: str) -> float:
        return PROBE_SECONDS / self.limits.probes if kind == SENDER else FORGOTTEN_SECONDS

    def clear(self, who: str | None) -> int:
        """Forgive a user, an address with its network, or with None everybody; how many entries went."""

        def forget(db: sqlite3.Connection) -> int:
            if who is None:
                return db.execute("DELETE FROM strikes").rowcount
            names = {who, who.lower(), network_of(who), address_of(who)}
            return sum(db.execute("DELETE FROM strikes WHERE who=?", (name,)).rowcount for name in names)

        return int(self._write(forget) or 0)

    def close(self) -> None:
        for db in (self._reader, self._writer):
            if db is not None:
                db.close()
        self._reader = self._writer = None

    # -------------------------------------------------------------- the database

    def _remember(self, table: OrderedDict[str, None], key: str) -> None:
        table[key] = None
        while len(table) > MOST_NOTED:
            table.popitem(last=False)

    def _look(self, sql: str, values: tuple[object, ...] = ()) -> list[Any]:
        try:
            if self._reader is None:
                self._reader = self._connect()
            return self._reader.execute(sql, values).fetchall()
        except (sqlite3.DatabaseError, OSError) as failure:
            self._give_up("read", failure)
            return []

    def _write(self, change: Callable[[sqlite3.Connection], Any]) -> Any:
        """`change` in a transaction of its own; None when the database does not work: people can log in all the
        same."""
        with self._writing:
            try:
                if self._writer is None:
                    self._writer = self._connect()
                db = self._writer
                db.execute("BEGIN IMMEDIATE")
                try:
                    outcome = change(db)
                    self._writes += 1
                    if self._writes % SWEEP_WRITES == 0:
                        self._sweep(db)
                    db.execute("COMMIT")
                except BaseException:
                    db.execute("ROLLBACK")
                    raise
                return outcome
            except (sqlite3.DatabaseError, OSError) as failure:
                self._give_up("write", failure)
                return None

    def _sweep(self, db: sqlite3.Connection) -> None:
        now = self._clock()
        db.execute("DELETE FROM strikes WHERE until<? AND at<?", (now, now - 86400.0))
        db.execute("DELETE FROM marks WHERE at<?", (now - MARK_SECONDS,))
        db.execute("DELETE FROM known WHERE at<?", (now - KNOWN_SECONDS,))
        for table in ("strikes", "marks", "known"):
            over = db.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0] - MOST_ROWS
            if over > 0:
                oldest = db.execute(f"SELECT at FROM {table} ORDER BY at LIMIT 1 OFFSET ?", (over - 1,)).fetchone()[0]
                db.execute(f"DELETE FROM {table} WHERE at<=?", (oldest,))

    def _connect(self) -> sqlite3.Connection:
        try:
            return self._opened()
        except sqlite3.OperationalError:
            raise  # busy, no room, no permission: the file itself may be sound
        except sqlite3.DatabaseError as failure:
            log.warning("throttle state discarded", path=self._path, error=str(failure))
            for suffix in ("", "-wal", "-shm"):
                unlink_if_there(self._path + suffix)
            return self._opened()

    def _make_file(self) -> None:
        """For its owner alone. Only where there is none: closing a descriptor of a file that this process has a
        connection to takes the connection's locks away (POSIX, fcntl(2)), and another process that ends would then
        take the log for its own and remove it.
        """
        try:
            close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            pass

    def _opened(self) -> sqlite3.Connection:
        self._make_file()
        db = sqlite3.connect(self._path, timeout=BUSY_SECONDS, check_same_thread=False, isolation_level=None)
        try:
            db.execute("PRAGMA synchronous=NORMAL")
            if db.execute("PRAGMA user_version").fetchone()[0] != VERSION:
                db.execute("PRAGMA journal_mode=WAL")
                db.execute("BEGIN IMMEDIATE")
                if db.execute("PRAGMA user_version").fetchone()[0] != VERSION:
                    for statement in SCHEMA.split(";"):
                        db.execute(statement)
                    db.execute(f"PRAGMA user_version={VERSION}")
                db.execute("COMMIT")
        except BaseException:
            db.close()
            raise
        return db

    def _give_up(self, what: str, failure: Exception) -> None:
        log.warning("throttle state not usable", path=self._path, doing=what, error=str(failure))
        if what == "read" and self._reader is not None:
            self._reader.close()
            self._reader = None
        elif what == "write" and self._writer is not None:
            self._writer.close()
            self._writer = None


_SAID = {
    NETWORK: "Too many wrong passwords from your network. Wait {} before you try again",
    USER: "Too many wrong passwords for this user. Wait {} before you try again",
}


def _left(row: tuple[float, float] | None, now: float, forgotten: float = FORGOTTEN_SECONDS) -> float:
    """What of a count is left by now."""
    return max(0.0, row[0] - max(0.0, now - row[1]) / forgotten) if row is not None else 0.0


def _duration(seconds: float) -> str:
    whole = max(1, round(seconds))
    if whole < 120:
        return f"{whole} second{'s' if whole > 1 else ''}"
    return f"{round(whole / 60)} minutes"
