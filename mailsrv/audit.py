"""The audit trail: what administrators did, and who logged in from where. Lines are added, never changed.

`<data>/audit/admin.jsonl` has one JSON object for each changing command: time, action, target, outcome, by whom,
details. `<data>/audit/logins.jsonl` has one for the first login of a day of a user, address and service, and one with
their number and the last of them when the day is over; likewise for failures of a network. A file that has grown is
renamed (`admin-20260131T120000Z.jsonl`) and kept for `audit.days`. Any tool can read them.

An entry is written with one call under a lock, and synced if an administrator made it: what was done stays known.

Imports: config.    docs/decisions/0033-audit-trail.md
"""

from __future__ import annotations

import argparse
import fcntl
import glob
import heapq
import json
import os
import pwd
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from gevent.monkey import get_original

from mailsrv.config import Config

ADMIN, LOGINS = "admin", "logins"
ROTATE_BYTES = 10 * 1024 * 1024
VALUE_LIMIT = 1000
_PLUMBING = {"run", "at_end", "config", "json", "reads", "full_name", "settings", "audit", "by"}
_TARGETS = ("address", "domain", "who", "whom", "id", "ids", "name", "target")
_SECRET = ("password", "secret", "token", "key")
_close = get_original("os", "close")  # at once: the lock goes with the descriptor

Record = dict[str, Any]


class Trail:
    """One of the files, for writing."""

    def __init__(self, directory: str, name: str, days: int) -> None:
        self.directory, self.name, self._days = directory, name, days
        self.path = f"{directory}/{name}.jsonl"

    def append(self, records: Iterable[Record], *, sync: bool = False) -> None:
        """Add entries. Blocks on the disk; OSError if that fails."""
        data = "".join(json.dumps(record, ensure_ascii=True) + "\n" for record in records).encode()
        fd = self._open_locked()
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            if sync:
                os.fsync(fd)
        finally:
            _close(fd)

    def _open_locked(self) -> int:
        try:
            os.mkdir(self.directory, 0o700)
            _give_to_owner(self.directory, os.path.dirname(self.directory))
        except FileExistsError:
            pass
        while True:
            fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                status = os.fstat(fd)
                if not _is_at(self.path, status):
                    _close(fd)  # renamed while we waited
                    continue
                if not status.st_size:
                    _give_to_owner(self.path, self.directory)
                if status.st_size < ROTATE_BYTES:
                    return fd
                self._rotate()
            except BaseException:
                _close(fd)
                raise
            _close(fd)

    def _rotate(self) -> None:
        now = time.time()
        target = _kept_name(self.directory, self.name, now)
        while os.path.exists(target):  # the lock is ours: nobody else makes one
            now += 1
            target = _kept_name(self.directory, self.name, now)
        os.rename(self.path, target)
        _prune(self.directory, self.name, self._days)


def prune(directory: str, days: int) -> int:
    """Remove files that were full and put aside, and had their last entry longer ago; how many."""
    return sum(_prune(directory, name, days) for name in (ADMIN, LOGINS))


def _prune(directory: str, name: str, days: int) -> int:
    removed = 0
    for path in _files(directory, name)[:-1]:
        try:
            if os.stat(path).st_mtime < time.time() - days * 86400:
                os.unlink(path)
                removed += 1
        except FileNotFoundError:
            pass  # by another process, at the same time
    return removed


def _kept_name(directory: str, name: str, when: float) -> str:
    return f"{directory}/{name}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(when))}.jsonl"


def _is_at(path: str, status: os.stat_result) -> bool:
    try:
        return os.stat(path).st_ino == status.st_ino
    except FileNotFoundError:
        return False


def _give_to_owner(path: str, like: str) -> None:
    """What root makes in a directory of the server's user is the server's too."""
    if os.geteuid() == 0:
        status = os.stat(like)
        os.chown(path, status.st_uid, status.st_gid, follow_symlinks=False)


def _files(directory: str, name: str) -> list[str]:
    """Oldest first; the one in use last."""
    old = sorted(glob.glob(f"{glob.escape(directory)}/{name}-*Z.jsonl"))
    return [*old, f"{directory}/{name}.jsonl"]


# ------------------------------------------------------------------ what administrators do


def directory_of(settings: Config) -> str:
    return f"{settings['server.data_dir']}/audit"


def command_record(args: argparse.Namespace, error: str | None) -> Record:
    """What a command that ran with these arguments is remembered as."""
    given = {
        name: _plain(name, value)
        for name, value in vars(args).items()
        if name not in _PLUMBING and value not in (None, False, [], "")
    }
    target = next((given.pop(name) for name in _TARGETS if name in given), None)
    record: Record = {"time": timestamp(time.time()), "action": args.full_name}
    if target is not None:
        record["target"] = " ".join(target) if isinstance(target, list) else target
    record["outcome"] = "done" if error is None else "failed"
    if error:
        record["error"] = error[:VALUE_LIMIT]
    record["by"] = args.by
    details = {**given, **getattr(args, "audit", {})}
    if details:
        record["details"] = details
    return record


def whoever_runs_this() -> Record:
    """The user, and who is behind it: what sudo says, and the login that the kernel remembers (proc(5), loginuid)."""
    found: Record = {"uid": os.getuid(), "user": _user_name(os.getuid())}
    if sudo := os.environ.get("SUDO_USER"):
        found["sudo_user"] = sudo[:VALUE_LIMIT]
    try:
        with open("/proc/self/loginuid", encoding="ascii") as file:
            login = int(file.read())
        if login != 0xFFFF_FFFF:
            found["login"] = _user_name(login)
    except (OSError, ValueError):
        pass
    return found


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, bool | int | float):
        return value
    if any(word in name for word in _SECRET):
        return "(not kept)"
    if isinstance(value, list | tuple):
        return [str(item)[:VALUE_LIMIT] for item in value[:100]]
    return str(value)[:VALUE_LIMIT]


# ------------------------------------------------------------------ queries


@dataclass(frozen=True, slots=True)
class Query:
    """`user` is an account, an administrator or a target; times are as in the entries."""

    user: str = ""
    action: str = ""
    since: str = ""
    until: str = ""

    def holds(self, record: Record) -> bool:
        when = str(record.get("until") or record.get("time") or "")
        if (self.since and when < self.since) or (self.until and str(record.get("time") or "") >= self.until):
            return False
        if self.action and not f"{record.get('action')} ".startswith(f"{self.action} "):
            return False
        return not self.user or self.user.lower() in _people(record)


def _people(record: Record) -> set[str]:
    by = record.get("by")
    names = [record.get("user"), record.get("peer"), *str(record.get("target") or "").split()]
    if isinstance(by, dict):
        names += [by.get("user"), by.get("sudo_user"), by.get("login")]
    return {str(name).lower() for name in names if name}


def read(directory: str, query: Query) -> Iterator[Record]:
    """Entries of both files in the order of time. What is no entry is passed by."""
    both = (_entries(directory, name) for name in (ADMIN, LOGINS))
    for record in heapq.merge(*both, key=lambda record: str(record.get("time"))):
        if query.holds(record):
            yield record


def _entries(directory: str, name: str) -> Iterator[Record]:
    for path in _files(directory, name):
        try:
            file = open(path, encoding="utf-8", errors="replace")  # noqa: SIM115
        except FileNotFoundError:
            continue
        with file:
            for line in file:
                try:
                    record = json.loads(line)
                except ValueError:
                    continue  # the end of a line that a full disk cut off
                if isinstance(record, dict):
                    yield record


def timestamp(when: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(when)) + "Z"
