"""Who a user is, and where mail for an address goes: domains, users, aliases, catch-alls in one small database.

An alias or a catch-all may lead to addresses elsewhere: then mail for it is forwarded, and with a `srs.Rewriter` its
sender becomes one of ours, through which reports find their way back.

The command line writes it while the server runs, and the server sees it at once: every look-up first asks SQLite
whether another connection committed (`PRAGMA data_version`, a few microseconds), and only then trusts what it
remembers. This database is no cache: its commits are synced.

Imports: mail.srs, store.files (its lock), errors, values.
RFC 5321 2.3.11, 4.5.1 (postmaster), RFC 5233 (subaddress).
"""

from __future__ import annotations

import os
import re
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from mailsrv.errors import (
    AccountExists,
    AccountNotFound,
    AddressInvalid,
    DomainExists,
    DomainNotFound,
    RecipientUnknown,
    RelayDenied,
    TemporaryFailure,
)
from mailsrv.mail.srs import Rewriter, is_rewritten
from mailsrv.store.files import native_lock
from mailsrv.values import Account, AccountId, Address

VERSION = 1
BUSY_SECONDS = 10
MOST_TARGETS = 100
MOST_STEPS = 10
MOST_NAMED = 5  # in one message to the administrator
KEPT_ANSWERS = 10_000
FRESH_SECONDS = 0.01  # a command that changed something has not ended by then
PLUS = "+"

SCHEMA = """
CREATE TABLE domains (name TEXT PRIMARY KEY, catch_all TEXT) WITHOUT ROWID;
CREATE TABLE users (
    id INTEGER PRIMARY KEY AUTOINCREMENT, local TEXT NOT NULL, domain TEXT NOT NULL REFERENCES domains (name),
    hash TEXT NOT NULL, home TEXT NOT NULL, enabled INTEGER NOT NULL DEFAULT 1, quota_bytes INTEGER NOT NULL DEFAULT 0,
    UNIQUE (local, domain));
CREATE TABLE aliases (
    local TEXT NOT NULL, domain TEXT NOT NULL REFERENCES domains (name), target TEXT NOT NULL,
    PRIMARY KEY (local, domain, target)) WITHOUT ROWID;
"""

_ATEXT = r"[A-Za-z0-9!#$&'*/=?^_`{|}~\u0080-\U0010ffff+-]+"  # without %, which no recipient may have
_LOCAL = re.compile(rf"{_ATEXT}(?:\.{_ATEXT})*")
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_SAFE_LOCAL = re.compile(r"[^a-z0-9_+=.-]")


@dataclass(frozen=True, slots=True)
class User:
    """A user as administration sees them; `hash` never leaves this layer and `mail.passwords`."""

    account: Account
    hash: str
    enabled: bool


@dataclass(frozen=True, slots=True)
class Domain:
    name: str
    catch_all: str | None
    users: int


@dataclass(frozen=True, slots=True)
class Expansion:
    """Where mail for `via`, an address of ours in lower case, goes: to mailboxes here, and to addresses elsewhere.

    With `remote` the message is forwarded, and `via` is the address it came through: what its Delivered-To says, and
    what would be met again if it were in a loop (S11). One of the two is never empty. Local parts elsewhere are as the
    alias has them: their case is their server's affair (RFC 5321 2.4).
    """

    via: Address
    local: tuple[Account, ...]
    remote: tuple[Address, ...] = ()


def parse_domain(text: str) -> str:
    """A domain name in the form it is kept in: lower case, ASCII (IDNA)."""
    name = text.strip().rstrip(".").lower()
    try:
        name = name.encode("ascii").decode() if name.isascii() else name.encode("idna").decode()
    except UnicodeError:
        raise AddressInvalid(f"Not a domain name: {text!r}") from None
    if not name or len(name) > 253 or not all(_LABEL.fullmatch(label) for label in name.split(".")):
        raise AddressInvalid(f"Not a domain name: {text!r}")
    return name


def parse_address(text: str) -> Address:
    """`local@domain` of a user or alias, in lower case."""
    return _lower(parse_target(text))


def parse_target(text: str) -> Address:
    """`local@domain` that an alias leads to, here or elsewhere; the local part as given."""
    local, at, domain = text.strip().rpartition("@")
    if not at or not local or len(local.encode()) > 64 or not _LOCAL.fullmatch(local):
        raise AddressInvalid(f"Not an address: {text!r} (expected name@domain)")
    return Address(local, parse_domain(domain))


def _lower(address: Address) -> Address:
    return Address(address.local.lower(), address.domain.lower())


def home_of(address: Address) -> str:
    """Directory of a user below the mail root: `<domain>/<local>`, odd characters percent-encoded (S24)."""
    local = _SAFE_LOCAL.sub(lambda found: "".join(f"%{octet:02x}" for octet in found[0].encode()), address.local)
    if local.startswith("."):
        local = "%2e" + local[1:]
    return f"{address.domain}/{local[:200]}"


class Accounts:
    """Look-ups for the server, changes for the command line. One object serves one process."""

    def __init__(self, path: str, mail_root: str, rewriter: Rewriter | None = None) -> None:
        self._path, self._mail_root, self._rewriter = path, mail_root, rewriter
        self._pid = 0
        self._lock = native_lock(reentrant=True)  # threads of the pool ask too
        self._remembered: dict[tuple[str, object], object] = {}
        self._asked_at = 0.0
        self._version = -1
        self._connect()

    def _connect(self) -> None:
        try:
            os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
            self._db = sqlite3.connect(
                self._path, timeout=BUSY_SECONDS, check_same_thread=False, isolation_level=None, cached_statements=64
            )
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise
        except (sqlite3.DatabaseError, OSError) as failure:
            raise TemporaryFailure(f"Cannot open the accounts database {self._path}: {failure}") from failure
        self._pid = os.getpid()

    def _prepare(self) -> None:
        self._db.execute("PRAGMA synchronous=FULL")  # not a cache: what the administrator was told holds
        self._db.execute("PRAGMA foreign_keys=ON")
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            self._db.execute("PRAGMA journal_mode=WAL")
            with self._changing():
                if self._db.execute("PRAGMA user_version").fetchone()[0] == 0:
                    for statement in SCHEMA.split(";"):
                        self._db.execute(statement)
                    self._db.execute(f"PRAGMA user_version={VERSION}")
            self._hand_over()
        elif version != VERSION:
            raise TemporaryFailure(
                f"{self._path} has schema version {version}; this program knows {VERSION}: a newer mailsrv wrote it"
            )

    def _hand_over(self) -> None:
        """As `files.hand_over`; SQLite gives its other files the owner that the database has. By its name: to close a
        descriptor of a database would end SQLite's locks on it (fcntl(2)).
        """
        owner = os.stat(os.path.dirname(self._path))
        if os.geteuid() == 0 and owner.st_uid != 0:
            os.chown(self._path, owner.st_uid, owner.st_gid, follow_symlinks=False)

    def close(self) -> None:
        if self._pid == os.getpid():
            self._db.close()

    def _ask(self, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        if self._pid != os.getpid():  # a connection does not cross a fork
            self._connect()
        try:
            with self._lock:
                return self._db.execute(sql, values).fetchall()
        except sqlite3.DatabaseError as failure:
            raise TemporaryFailure(f"accounts database: {failure}") from failure

    @contextmanager
    def _changing(self) -> Iterator[None]:
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield
                except BaseException:
                    self._db.execute("ROLLBACK")
                    raise
                self._db.execute("COMMIT")
            except sqlite3.DatabaseError as failure:
                raise TemporaryFailure(f"accounts database: {failure}") from failure
            finally:
                self._remembered.clear()

    def _memory(self) -> dict[tuple[str, object], object]:
        """What is remembered, emptied if the database was changed by anybody else: seen after FRESH_SECONDS at most."""
        now = time.monotonic()
        if now - self._asked_at < FRESH_SECONDS:
            return self._remembered
        self._asked_at = now
        version = self._ask("PRAGMA data_version")[0][0]
        if version != self._version or len(self._remembered) > KEPT_ANSWERS:
            self._remembered.clear()
            assert isinstance(version, int)
            self._version = version
        return self._remembered

    # -------------------------------------------------------------- look-ups

    def _user(self, where: str, values: Sequence[object]) -> list[User]:
        rows = self._ask(f"SELECT id, local, domain, home, quota_bytes, hash, enabled FROM users WHERE {where}", values)
        return [
            User(
                Account(AccountId(id), Address(local, domain), f"{self._mail_root}/{home}", quota), hash, bool(enabled)
            )
            for id, local, domain, home, quota, hash, enabled in rows
        ]

    def users(self) -> list[User]:
        return self._user("1 ORDER BY domain, local", ())

    def user(self, address: Address) -> User:
        found = self._user("local=? AND domain=?", (address.local.lower(), address.domain.lower()))
        if not found:
            raise AccountNotFound(f"There is no user {address}")
        return found[0]

    def by_id(self, account: AccountId) -> Account:
        """Raises AccountNotFound."""
        found = self._user("id=?", (account,))
        if not found:
            raise AccountNotFound(f"There is no user {account}")
        return found[0].account

    def by_address(self, address: Address) -> Account | None:
        """The user with exactly this address, enabled or not."""
        memory, key = self._memory(), ("address", (address.local.lower(), address.domain.lower()))
        if key not in memory:
            found = self._user("local=? AND domain=?", key[1])
            memory[key] = found[0].account if found else None
        return memory[key]  # type: ignore[return-value]

    def by_login(self, name: str) -> User | None:
        """The user who logs in as `name`: the address, or its local part while only one user has it."""
        memory, key = self._memory(), ("login", name)
        if key not in memory:
            local, at, domain = name.strip().lower().rpartition("@")
            if at:
                found = self._user("local=? AND domain=?", (local, domain))
            else:
                found = self._user("local=? LIMIT 2", (domain,))
            memory[key] = found[0] if len(found) == 1 else None
        return memory[key]  # type: ignore[return-value]

    def enabled(self, account: AccountId) -> bool:
        memory, key = self._memory(), ("enabled", account)
        if key not in memory:
            rows = self._ask("SELECT enabled FROM users WHERE id=?", (account,))
            memory[key] = bool(rows and rows[0][0])
        return bool(memory[key])

    def is_local(self, domain: str) -> bool:
        memory, key = self._memory(), ("domain", domain.lower())
        if key not in memory:
            memory[key] = self._hosts(domain.lower())
        return bool(memory[key])

    def _hosts(self, domain: str) -> bool:
        """The same, asked anew: what is remembered afterwards must not be older than the version it is kept under."""
        return bool(self._ask("SELECT 1 FROM domains WHERE name=?", (domain,)))

    def domains(self) -> list[Domain]:
        rows = self._ask(
            "SELECT name, catch_all, (SELECT COUNT(*) FROM users WHERE domain=name) FROM domains ORDER BY name"
        )
        return [Domain(str(name), str(target) if target else None, int(str(count))) for name, target, count in rows]

    def aliases(self) -> dict[Address, list[str]]:
        listed: dict[Address, list[str]] = {}
        rows = self._ask("SELECT local, domain, target FROM aliases ORDER BY domain, local, target")
        for local, domain, target in rows:
            listed.setdefault(Address(local, domain), []).append(target)
        return listed

    def expand(self, address: Address, *, null_sender: bool = False) -> Expansion:
        """Where a message to `address` goes. Raises RelayDenied for other domains, RecipientUnknown in ours,
        TemporaryFailure if that is too far or too many, or there is no domain at all.

        With `null_sender` the message is a report or its like, and `address` may be a sender that `forward_sender`
        made: then `remote` is the original one. For anything else such an address is unknown.
        """
        if self._rewriter is not None and is_rewritten(address.local) and self.is_local(address.domain):
            return self._expand_rewritten(address, self._rewriter, null_sender=null_sender)
        memory, key = self._memory(), ("expand", (address.local.lower(), address.domain.lower()))
        if key not in memory:
            if not self.is_local(address.domain):
                if not self._ask("SELECT 1 FROM domains LIMIT 1"):  # not set up yet, or its disk is not mounted
                    raise TemporaryFailure("There is no domain yet: mailsrv domain add")
                raise RelayDenied(f"{address.domain} is not a domain of this server")
            memory[key] = self._expand(_lower(address))
        expansion: Expansion = memory[key]  # type: ignore[assignment]
        if not expansion.local and not expansion.remote:
            raise RecipientUnknown(f"There is no mailbox {address}")
        return expansion

    def resolve(self, address: Address) -> list[Account]:
        """The accounts a message to `address` goes to, for callers that cannot forward: RelayDenied where it leads
        elsewhere as well. Otherwise as `expand`.
        """
        expansion = self.expand(address)
        if expansion.remote:
            raise RelayDenied(f"{address} leads to {expansion.remote[0].domain}")
        return list(expansion.local)

    def _expand_rewritten(self, address: Address, rewriter: Rewriter, *, null_sender: bool) -> Expansion:
        original = rewriter.back(address.local) if null_sender else None
        if original is None or (is_rewritten(original.local) and self.is_local(original.domain)):
            raise RecipientUnknown(f"{address} is no sender of mail forwarded lately")
        if self.is_local(original.domain):  # it was not when the mail came
            return replace(self.expand(original), via=address)
        return Expansion(address, (), (original,))

    def forward_sender(self, sender: Address | None, via: Address) -> Address | None:
        """The envelope sender with which a message goes on that `via`, an address of ours, led elsewhere.

        For true forwards only: what comes from a domain of ours, or has the null sender, keeps what it has. A sender
        that is rewritten stands in the domain of `via`; the reply path is `expand(…, null_sender=True)`. May wait for
        the disk. Raises TemporaryFailure.
        """
        if sender is None or self._rewriter is None or self.is_local(sender.domain):
            return sender
        return self._rewriter.forward(sender, via.domain)

    def _expand(self, address: Address) -> Expansion:
        local: dict[AccountId, Account] = {}
        remote: dict[Address, None] = {}
        seen: set[Address] = set()
        wave = [address]
        for _ in range(MOST_STEPS):  # aliases of aliases; a loop ends by `seen`
            following: list[Address] = []
            seen.update(wave)
            for one in wave:
                if self._hosts(one.domain):
                    following.extend(self._step(one, local))
                else:
                    remote[one] = None
            wave = [one for one in dict.fromkeys(following) if one not in seen]
            if not wave:
                return Expansion(address, tuple(local.values()), tuple(remote))
            if len(seen) + len(wave) > MOST_TARGETS:
                break
        # To deliver to some and forget the others would lose mail; refused for now, it waits for the administrator.
        raise TemporaryFailure(f"{address} leads to over {MOST_TARGETS} addresses, or by over {MOST_STEPS} steps")

    def _step(self, address: Address, found: dict[AccountId, Account]) -> list[Address]:
        """One address of ours: a user (put into `found`), or the addresses it stands for."""
        base = address.local.partition(PLUS)[0]
        for local in dict.fromkeys([address.local, base] if base else [address.local]):
            users = self._user("local=? AND domain=?", (local, address.domain))
            if users:
                if users[0].enabled:
                    found[users[0].account.id] = users[0].account
                return []
            targets = self._ask("SELECT target FROM aliases WHERE local=? AND domain=?", (local, address.domain))
            if targets:
                return [self._kept_target(target) for (target,) in targets]
        row = self._ask("SELECT catch_all FROM domains WHERE name=?", (address.domain,))
        if row and row[0][0]:
            return [self._kept_target(row[0][0])]
        if base == "postmaster":  # RFC 5321 4.5.1: always there while anybody is
            first = self._user("domain=? AND enabled=1 ORDER BY id LIMIT 1", (address.domain,))
            if first:
                found[first[0].account.id] = first[0].account
        return []

    def _kept_target(self, text: str) -> Address:
        """A target as the database has it. Its domain may have become ours, or not ours, since it was written."""
        target = parse_target(text)
        return _lower(target) if self._hosts(target.domain) else target

    def may_send_as(self, account: Account, sender: Address | None) -> bool:
        """Whether the address is the user's own: theirs, a plus form of it, or an alias that leads to them."""
        if sender is None or not self.is_local(sender.domain):
            return False
        sender = Address(sender.local.lower(), sender.domain.lower())
        base = Address(sender.local.partition(PLUS)[0] or sender.local, sender.domain)
        if account.address in (sender, base):
            return True
        for one in (sender, base):
            if self._ask("SELECT 1 FROM aliases WHERE local=? AND domain=?", (one.local, one.domain)):
                return any(found.id == account.id for found in self._expand(one).local)
        return False

    def may_author(self, id: AccountId, author: Address) -> bool:
        """The same, of a user who submitted a message some time ago and may be gone."""
        found = self._user("id=?", (id,))
        return bool(found) and self.may_send_as(found[0].account, author)

    # -------------------------------------------------------------- changes

    def add_domain(self, name: str) -> None:
        name = parse_domain(name)
        with self._changing():
            if self.is_local(name):
                raise DomainExists(f"{name} is a domain of this server already")
            self._db.execute("INSERT INTO domains VALUES (?, NULL)", (name,))

    def remove_domain(self, name: str) -> None:
        """Receive no more mail for a domain. Its aliases go with it; what of other domains leads into it has to go
        first: it would be forwarded to wherever the domain's mail is received then.
        """
        name = parse_domain(name)
        with self._changing():
            self._require_domain(name)
            if self._ask("SELECT 1 FROM users WHERE domain=? LIMIT 1", (name,)):
                raise DomainExists(f"{name} still has users; remove them first")
            inside = len(f"@{name}")
            leading = self._ask(
                "SELECT local || '@' || domain FROM aliases WHERE domain<>? AND substr(target, ?)=? "
                "UNION SELECT name || ' (catch-all)' FROM domains WHERE name<>? AND substr(catch_all, ?)=?",
                2 * (name, -inside, f"@{name}"),
            )
            if leading:
                named = ", ".join(str(text) for (text,) in leading[:MOST_NAMED]) + (
                    f" and {len(leading) - MOST_NAMED} more" if len(leading) > MOST_NAMED else ""
                )
                raise DomainExists(f"Mail for other addresses goes to {name}; change these first: {named}")
            self._db.execute("DELETE FROM aliases WHERE domain=?", (name,))
            self._db.execute("DELETE FROM domains WHERE name=?", (name,))

    def _require_domain(self, name: str) -> None:
        if not self._ask("SELECT 1 FROM domains WHERE name=?", (name,)):
            raise DomainNotFound(f"{name} is not a domain of this server (mailsrv domain add {name})")

    def set_catch_all(self, domain: str, target: str | None) -> None:
        domain = parse_domain(domain)
        with self._changing():
            self._require_domain(domain)
            kept = str(self._kept_target(target)) if target is not None else None
            self._db.execute("UPDATE domains SET catch_all=? WHERE name=?", (kept, domain))

    def require_new(self, address: str) -> Address:
        """The address in the form it is kept in, free for a new user; raises what speaks against it."""
        parsed = parse_address(address)
        self._require_domain(parsed.domain)
        key = (parsed.local, parsed.domain)
        if self._ask("SELECT 1 FROM users WHERE local=? AND domain=?", key):
            raise AccountExists(f"There is a user {parsed} already")
        if self._ask("SELECT 1 FROM aliases WHERE local=? AND domain=?", key):
            raise AccountExists(f"{parsed} is an alias already")
        return parsed

    def add_user(self, address: str, hash: str, quota_bytes: int = 0) -> Account:
        self.add_users([(address, hash)], quota_bytes)
        return self.user(parse_address(address)).account

    def add_users(self, users: Sequence[tuple[str, str]], quota_bytes: int = 0) -> None:
        """(address, stored hash) each; all of them or, if one cannot be added, none."""
        with self._changing():
            for address, hash in users:
                parsed = self.require_new(address)
                self._db.execute(
                    "INSERT INTO users (local, domain, hash, home, quota_bytes) VALUES (?,?,?,?,?)",
                    (parsed.local, parsed.domain, hash, home_of(parsed), quota_bytes),
                )

    def _update(self, address: str, what: str, value: object) -> None:
        parsed = parse_address(address)
        with self._changing():
            done = self._db.execute(
                f"UPDATE users SET {what}=? WHERE local=? AND domain=?", (value, parsed.local, parsed.domain)
            )
            if not done.rowcount:
                raise AccountNotFound(f"There is no user {parsed}")

    def set_password_hash(self, address: str, hash: str) -> None:
        self._update(address, "hash", hash)

    def upgrade_password_hash(self, address: Address, before: str, after: str) -> bool:
        """In a thread of the server: the same password in another scheme; False if it was changed meanwhile. By a
        connection of its own, so that nobody who asks here waits for the disk.
        """
        own = Accounts(self._path, self._mail_root)
        try:
            with own._changing():
                return own._db.execute(
                    "UPDATE users SET hash=? WHERE local=? AND domain=? AND hash=?",
                    (after, address.local, address.domain, before),
                ).rowcount > 0  # fmt: skip
        finally:
            own.close()

    def set_enabled(self, address: str, enabled: bool) -> None:
        self._update(address, "enabled", int(enabled))

    def set_quota(self, address: str, quota_bytes: int) -> None:
        self._update(address, "quota_bytes", quota_bytes)

    def remove_user(self, address: str) -> Account:
        """Forget the user; their mail stays where it is. The id is never given again."""
        parsed = parse_address(address)
        with self._changing():
            account = self.user(parsed).account
            self._db.execute("DELETE FROM users WHERE id=?", (account.id,))
        return account

    def add_alias(self, address: str, targets: Sequence[str]) -> None:
        """Mail for `address` goes also to each of `targets`; to those in other domains it is forwarded."""
        parsed = parse_address(address)
        with self._changing():
            self._require_domain(parsed.domain)
            if self._ask("SELECT 1 FROM users WHERE local=? AND domain=?", (parsed.local, parsed.domain)):
                raise AccountExists(f"{parsed} is a user already")
            if not targets or len(targets) > MOST_TARGETS:
                raise AddressInvalid(f"An alias has 1 to {MOST_TARGETS} targets")
            for target in targets:
                self._db.execute(
                    "INSERT OR IGNORE INTO aliases VALUES (?,?,?)",
                    (parsed.local, parsed.domain, str(self._kept_target(target))),
                )
            self._expand(parsed)  # raises if it leads too far

    def remove_alias(self, address: str, targets: Sequence[str] = ()) -> None:
        """Remove the alias, or some of its targets only."""
        parsed = parse_address(address)
        key = (parsed.local, parsed.domain)
        with self._changing():
            if not targets and not self._db.execute("DELETE FROM aliases WHERE local=? AND domain=?", key).rowcount:
                raise AccountNotFound(f"There is no alias {parsed}")
            for target in targets:
                done = self._db.execute(
                    "DELETE FROM aliases WHERE local=? AND domain=? AND lower(target)=?",
                    (*key, str(parse_address(target))),
                )
                if not done.rowcount:
                    raise AccountNotFound(f"{parsed} does not lead to {target}")
