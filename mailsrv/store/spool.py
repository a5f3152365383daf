"""The queue on disk: each entry is a message file and a JSON file beside it, durable before anything is promised.

`<root>/<xx>/<id>.eml` is the message as accepted and never changes; `<id>.json` is its envelope and what became of each
recipient, replaced whole. An entry exists when its `.json` does. Its mtime is when to look at it next: a runner that
starts reads names and times, no contents. Whoever changes an entry holds `flock` on its `.eml`, reads the `.json` again
and replaces it; readers need no lock. The `.json` of an entry that has ended is used for another one (store.spares):
who reads what is no entry looks whether the file still has its name. All is blocking work for the thread pool and the
command line.

Imports: store.{base,entry,files,spares}, at_hand, log, errors.    docs/decisions/0009-the-queue.md
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest

from gevent.monkey import get_original

from mailsrv import log
from mailsrv.at_hand import look_at_hand
from mailsrv.errors import TemporaryFailure
from mailsrv.store import files
from mailsrv.store.entry import Entry, EntryDamaged, FileState, Stamp, from_json, to_text
from mailsrv.store.files import Incoming
from mailsrv.store.spares import SUFFIX, Spares

PARTS = frozenset(f"{number:02x}" for number in range(256))  # directories: see part_of
LOCK_SECONDS = 30.0
STALE_SECONDS = 24 * 3600.0  # what is half made is left alone that long
HELD_SECONDS = 365 * 24 * 3600.0  # the mtime of an entry that waits for nothing but a word
MOST_JSON = 64 * 1024 * 1024
AT_HAND_OCTETS = 8 * 1024  # of JSON that is read without a thread: some ten recipients
_ID = re.compile(r"[0-9a-f]{18}")

_sleep: Callable[[float], None] = get_original("time", "sleep")
_monotonic: Callable[[], float] = get_original("time", "monotonic")
_time: Callable[[], float] = get_original("time", "time")


class EntryGone(Exception):
    """There is no such entry (any more)."""


class EntryBusy(Exception):
    """Somebody is changing the entry."""


class QueueLocked(Exception):
    """Another runner owns the queue; `pid` as it wrote it, 0 if unknown."""

    def __init__(self, pid: int) -> None:
        super().__init__(f"another queue runner works on this queue (pid {pid or 'unknown'})")
        self.pid = pid


def new_id() -> str:
    """A name that no other message has: microseconds since 1970 in hexadecimal, then chance. Sorts by time."""
    return f"{int(_time() * 1e6):014x}{os.urandom(2).hex()}"


def is_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def part_of(id: str) -> str:
    """The directory of an entry, one of PARTS: by the second it was made in, so that what is accepted at the same time
    is in the same directory, whose sync is one for all.
    """
    return id[7:9]  # of the hexadecimal microseconds: it moves on every 2**20 of them, and comes round after 268 s


def time_of(id: str) -> float:
    """When the name was made, seconds since 1970."""
    return int(id[:14], 16) / 1e6


@dataclass(frozen=True, slots=True)
class StagedEntry:
    """Both files, complete and synced, in tmp/."""

    entry: Entry
    message: str
    envelope: str


class _OpenFile:
    """A file in tmp/ that was written and is not synced yet."""

    __slots__ = ("fd", "path")

    def __init__(self, fd: int, path: str) -> None:
        self.fd, self.path = fd, path

    @classmethod
    def create(cls, path: str) -> _OpenFile:
        files.step("create", path)
        return cls(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600), path)

    @classmethod
    def of(cls, spares: Spares, path: str) -> _OpenFile:
        """The same, of a spare file if there is one."""
        fd = spares.take(path)
        return cls.create(path) if fd < 0 else cls(fd, path)

    def sync(self) -> None:
        """Sync and close: its text survives a power cut. A sync that fails is final: the file is removed."""
        try:
            with files.storage_errors("Writing to the queue"):
                files.step("fsync", self.path)
                files.sync(self.fd)
        except BaseException:
            self.drop()
            raise
        self._close()

    def drop(self) -> None:
        self._close()
        files.unlink_quietly(self.path)

    def _close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            files.close(fd)


@dataclass(frozen=True, slots=True)
class _Written:
    """Both files, complete, in tmp/."""

    entry: Entry
    message: _OpenFile
    envelope: _OpenFile

    def begin_sync(self) -> None:
        files.begin_sync(self.message.fd)
        files.begin_sync(self.envelope.fd)


class Spool:
    def __init__(self, root: str, *, now: Callable[[], Stamp] = Stamp.now) -> None:
        self.root = root
        self.tmp_dir = f"{root}/tmp"
        self.damaged_dir = f"{root}/damaged"
        self.spares = Spares(f"{root}/spare")
        self.now = now

    def prepare(self) -> None:
        """Make the directories, if they are not there; those of PARTS come with their first entries."""
        if os.path.isdir(self.damaged_dir):
            return
        with files.storage_errors("Making the queue's directories"):
            os.makedirs(self.root, mode=0o700, exist_ok=True)
            for name in ("tmp", "spare", "damaged"):
                os.makedirs(f"{self.root}/{name}", mode=0o700, exist_ok=True)
            files.sync_directory(self.root)
            files.sync_directory(os.path.dirname(self.root))

    def message_path(self, id: str) -> str:
        return f"{self.root}/{part_of(id)}/{id}.eml"

    def envelope_path(self, id: str) -> str:
        return f"{self.root}/{part_of(id)}/{id}.json"

    # -------------------------------------------------------------- making

    def stage(self, entry: Entry, message: Incoming, prefix: bytes = b"") -> StagedEntry:
        """Write and sync both files in tmp/; size and hash of the message are put into the entry."""
        return self._sync_written(self._write(entry, message, prefix))

    def _write(self, entry: Entry, message: Incoming, prefix: bytes) -> _Written:
        with files.storage_errors("Writing the message to the queue"):
            text = self._write_message(entry, message, prefix)
        try:
            return _Written(entry, text, self._write_envelope(entry))
        except BaseException:
            text.drop()
            raise

    def _sync_written(self, written: _Written) -> StagedEntry:
        """Both files survive a power cut from here on. A sync that fails is final: both are removed."""
        try:
            written.message.sync()
            written.envelope.sync()
        except BaseException:
            written.message.drop()
            written.envelope.drop()
            raise
        return StagedEntry(written.entry, written.message.path, written.envelope.path)

    def _write_message(self, entry: Entry, message: Incoming, prefix: bytes) -> _OpenFile:
        own = message.prefix == prefix and message.directory == self.tmp_dir
        taken = message.take_file() if own else None
        made = _OpenFile(*taken) if taken is not None else _OpenFile.create(f"{self.tmp_dir}/{entry.id}.eml")
        try:
            text = message.text() if taken is None else None
            if taken is None:
                files.write_all(made.fd, prefix if text is None else prefix + text)
                if text is None:
                    message.write_to(made.fd)
            if text is None:
                entry.size, entry.sha256 = _digest(made.fd)
            else:
                entry.size, entry.sha256 = len(prefix) + len(text), hashlib.sha256(prefix + text).hexdigest()
        except BaseException:
            made.drop()
            raise
        return made

    def _write_envelope(self, entry: Entry, owner: os.stat_result | None = None) -> _OpenFile:
        now = self.now()
        entry.touch(now)
        with files.storage_errors("Writing to the queue"):
            made = _OpenFile.of(self.spares, f"{files.temporary_name(self.tmp_dir)}.json")
            try:
                files.write_all(made.fd, to_text(entry))
                if owner is not None and owner.st_uid != os.geteuid():
                    os.fchown(made.fd, owner.st_uid, owner.st_gid)  # root's change must not lock the server out
                due = now.wall + min(entry.wait(now), HELD_SECONDS)
                os.utime(made.fd, (due, due))
            except BaseException:
                made.drop()
                raise
        return made

    def commit(self, staged: StagedEntry) -> None:
        """The entry exists, and survives a power cut, when this returns. On failure nothing of it is left."""
        try:
            self._place(staged)
            self._sync_part(part_of(staged.entry.id))
        except BaseException:
            self._take_back(staged)
            raise

    def _place(self, staged: StagedEntry) -> None:
        """The entry exists, and does not survive a power cut yet."""
        id = staged.entry.id
        with files.storage_errors("Placing the message in the queue"):
            try:
                files.rename_noreplace(staged.message, self.message_path(id))
            except FileNotFoundError:  # the first entry of its part
                self._make_part(id)
                files.rename_noreplace(staged.message, self.message_path(id))
            files.rename_noreplace(staged.envelope, self.envelope_path(id))

    def _take_back(self, staged: StagedEntry) -> None:
        for path in (self.envelope_path(staged.entry.id), self.message_path(staged.entry.id)):
            files.unlink_quietly(path)
        self.discard(staged)

    def _make_part(self, id: str) -> None:
        try:
            files.make_directory(f"{self.root}/{part_of(id)}")
        except FileExistsError:
            pass  # another process was faster; its sync may not be done yet
        files.sync_directory(self.root)

    def discard(self, staged: StagedEntry) -> None:
        files.unlink_quietly(staged.message)
        files.unlink_quietly(staged.envelope)

    def put(self, entry: Entry, message: Incoming, prefix: bytes = b"") -> None:
        """Stage and commit in one task."""
        self.commit(self.stage(entry, message, prefix))

    def put_once(self, entry: Entry, message: Incoming, prefix: bytes = b"") -> bool:
        """`put` for the runner alone, of an entry whose id says what it is made of: made again after a crash, it is the
        same one. False: it is there already.
        """
        with files.storage_errors("Looking into the queue"):
            if os.path.lexists(self.envelope_path(entry.id)):
                return False
            for path in (f"{self.tmp_dir}/{entry.id}.eml", self.message_path(entry.id)):  # half made by somebody killed
                if os.path.lexists(path):
                    files.unlink(path)
        self.put(entry, message, prefix)
        return True

    def exists(self, id: str) -> bool:
        return os.path.lexists(self.envelope_path(id))

    def is_damaged(self, id: str) -> bool:
        """Whether an entry of that name was put aside."""
        return os.path.lexists(f"{self.damaged_dir}/{id}.why")

    def put_all(self, made: Sequence[tuple[Entry, Incoming, bytes]]) -> list[Exception | None]:
        """The same for several entries, each with an outcome of its own; a directory is synced once for all of them.

        All are written before the first is synced, so that the disk has them to write together.
        """
        outcomes: list[Exception | None] = [None] * len(made)
        written: list[tuple[int, _Written]] = []
        parts: dict[str, list[tuple[int, StagedEntry]]] = {}
        for number, one in enumerate(made):
            try:
                written.append((number, self._write(*one)))
                if len(made) > 1:
                    written[-1][1].begin_sync()
            except Exception as failure:  # of one, and no concern of the others
                outcomes[number] = failure
        for number, both in written:
            try:
                parts.setdefault(part_of(both.entry.id), []).append((number, self._sync_written(both)))
            except Exception as failure:
                outcomes[number] = failure
        for part, members in parts.items():
            for number, staged in members:
                try:
                    self._place(staged)
                except Exception as failure:
                    self._take_back(staged)
                    outcomes[number] = failure
            try:
                self._sync_part(part)
            except Exception as failure:
                for number, staged in members:
                    self._take_back(staged)
                    outcomes[number] = failure
        return outcomes

    # -------------------------------------------------------------- reading

    def load(self, id: str) -> Entry:
        """The entry as it is now. Raises EntryGone, EntryDamaged, TemporaryFailure."""
        with files.storage_errors("Reading the queue"):
            try:
                while (entry := self._read(id)) is None:
                    pass
            except FileNotFoundError:
                raise EntryGone(id) from None
        return entry

    def _read(self, id: str) -> Entry | None:
        """None: it ended, or was replaced, while it was read, and the file may be another entry's by now."""
        path = self.envelope_path(id)
        with open(path, "rb", buffering=0) as file:
            # Not more than there is: a buffer for the most there may be costs a mapping of its own each time.
            there = os.fstat(file.fileno())
            text = file.read(min(there.st_size, MOST_JSON))
            try:
                return _parse(id, text, there)
            except EntryDamaged:
                if _has_name(file.fileno(), path):
                    raise
                return None

    def load_at_hand(self, id: str) -> Entry | None:
        """The same of a small entry that was written a moment ago, without waiting for the disk; None for others, and
        for what cannot be understood: `load` says what is wrong.
        """
        with files.storage_errors("Reading the queue"):
            try:
                found = look_at_hand(self.envelope_path(id), AT_HAND_OCTETS)
            except FileNotFoundError:
                raise EntryGone(id) from None
        try:
            return None if found is None else _parse(id, *found)
        except EntryDamaged:
            return None

    def check(self, entry: Entry, *, thoroughly: bool) -> None:
        """Raises EntryDamaged unless the message is as it was accepted: its size, `thoroughly` its octets too."""
        with files.storage_errors("Reading the queue"):
            try:
                fd = os.open(self.message_path(entry.id), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                if not os.path.lexists(self.envelope_path(entry.id)):
                    raise EntryGone(entry.id) from None
                raise EntryDamaged("the message file is missing") from None
            try:
                size = os.fstat(fd).st_size
                if size != entry.size:
                    raise EntryDamaged(f"the message has {size} octets, not {entry.size}")
                if thoroughly and _digest(fd)[1] != entry.sha256:
                    raise EntryDamaged("the message is not the one that was accepted (SHA-256 differs)")
            finally:
                files.close(fd)

    def scan(self, part: str) -> list[tuple[str, float]]:
        """(id, when to look at it next) of the entries in one of PARTS; contents are not read."""
        found: list[tuple[str, float]] = []
        try:
            with os.scandir(f"{self.root}/{part}") as listing:
                for one in listing:
                    id, dot, kind = one.name.partition(".")
                    if dot and kind == "json" and is_id(id):
                        try:
                            found.append((id, one.stat(follow_symlinks=False).st_mtime))
                        except FileNotFoundError:
                            pass  # it ended meanwhile
        except FileNotFoundError:
            pass
        return found

    def parts(self) -> list[str]:
        """Those of PARTS that there are."""
        return sorted(_listed(self.root) & PARTS)

    def ids(self) -> list[str]:
        """All entries, oldest first."""
        found: list[str] = []
        for part in self.parts():
            try:
                names = os.listdir(f"{self.root}/{part}")
            except FileNotFoundError:
                continue
            found += [name[:-5] for name in names if name.endswith(".json") and is_id(name[:-5])]
        found.sort()
        return found

    # -------------------------------------------------------------- changing

    def change(self, id: str, act: Callable[[Entry], bool]) -> Entry:
        """Have `act` change the entry; it stays if that returns True, and ends otherwise. Durable when this returns.

        Raises EntryGone, EntryDamaged, TemporaryFailure: then the entry is as it was, or as asked and not surely
        durable.
        """
        ended: list[str] = []
        with self._owned(id):
            entry = self._change(id, act, ended)
            self._sync_changed(part_of(id), ended)
            return entry

    def change_all(
        self, changes: Sequence[tuple[str, Callable[[Entry], bool]]], known: Sequence[Entry | None] = ()
    ) -> list[Entry | Exception]:
        """The same for several entries, each with an outcome of its own; a directory is synced once for all of them.

        An entry that somebody else is changing is left as it is, with EntryBusy: `change` waits for it. One that is
        `known` already, as the caller has read it, need not be read again while it is what it was; it is given away:
        after a failure it may be half changed.
        """
        outcomes: list[Entry | Exception] = []
        ended: dict[str, list[str]] = {part_of(id): [] for id, _ in changes}
        for (id, act), entry in zip_longest(changes, known):
            try:
                with self._owned(id, wait=False):
                    outcomes.append(self._change(id, act, ended[part_of(id)], entry))
            except Exception as failure:  # of one, and no concern of the others
                outcomes.append(failure)
        for part, paths in ended.items():
            try:
                self._sync_changed(part, paths)
            except TemporaryFailure as failure:
                for number, (id, _) in enumerate(changes):
                    if part_of(id) == part and isinstance(outcomes[number], Entry):
                        outcomes[number] = failure
        return outcomes

    def _change(self, id: str, act: Callable[[Entry], bool], ended: list[str], known: Entry | None = None) -> Entry:
        """Not durable before the directory is synced. What is left of an entry that ended goes to `ended`."""
        entry = known if known is not None and self._is_as_read(known) else self.load(id)
        if act(entry):
            self._replace(entry)
        else:
            ended += self._end(id)
        return entry

    def _is_as_read(self, entry: Entry) -> bool:
        with files.storage_errors("Reading the queue"):
            try:
                return _state(os.lstat(self.envelope_path(entry.id))) == entry.file
            except FileNotFoundError:
                raise EntryGone(entry.id) from None

    def _sync_changed(self, part: str, ended: Sequence[str]) -> None:
        """Once it is durable that entries have ended, their files can be others'."""
        try:
            self._sync_part(part)
        except BaseException:
            for path in ended:
                files.unlink_quietly(path)
            raise
        for path in ended:
            self.spares.give(path)

    def _end(self, id: str) -> list[str]:
        """As `_remove`; where the envelope is that was the entry's, if it could be kept."""
        kept = f"{files.temporary_name(self.tmp_dir)}{SUFFIX}"
        try:
            files.rename(self.envelope_path(id), kept)
        except FileNotFoundError:
            raise EntryGone(id) from None
        except OSError:  # on a full disk a name can be removed when none can be made
            self._remove(id)
            return []
        try:
            with files.storage_errors("Removing from the queue"):
                files.unlink(self.message_path(id))
        except BaseException:
            files.unlink_quietly(kept)
            raise
        return [kept]

    def remove(self, id: str) -> None:
        """End the entry, or take back one that was just made."""
        with self._owned(id):
            self._remove(id)
            self._sync_part(part_of(id))

    def _replace(self, entry: Entry) -> None:
        with files.storage_errors("Writing to the queue"):
            owner = os.stat(self.envelope_path(entry.id))
        made = self._write_envelope(entry, owner)
        made.sync()
        path = made.path
        with files.storage_errors("Writing to the queue"):
            try:
                files.rename(path, self.envelope_path(entry.id))
            except BaseException:
                files.unlink_quietly(path)
                raise

    def _remove(self, id: str) -> None:
        with files.storage_errors("Removing from the queue"):
            try:
                files.unlink(self.envelope_path(id))
            except FileNotFoundError:
                raise EntryGone(id) from None
            files.unlink(self.message_path(id))

    def _sync_part(self, part: str) -> None:
        with files.storage_errors("Writing to the queue"):
            files.sync_directory(f"{self.root}/{part}")

    @contextmanager
    def _owned(self, id: str, *, wait: bool = True) -> Iterator[None]:
        """Others that would change the entry wait meanwhile. Raises EntryBusy if they do and we shall not `wait`."""
        path = self.message_path(id)
        with files.storage_errors("Locking the entry"):
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                if os.path.lexists(self.envelope_path(id)):
                    raise EntryDamaged("the message file is missing") from None
                raise EntryGone(id) from None
        try:
            _lock(fd, id, wait)
            if not os.fstat(fd).st_nlink:
                raise EntryGone(id)
            yield
        finally:
            files.close(fd)

    # -------------------------------------------------------------- what is not well

    def quarantine(self, id: str, reason: str) -> None:
        """Put what is left of an entry aside, with the reason beside it. The others go on."""
        log.error("queue entry damaged", id=id, reason=reason, kept=f"{self.damaged_dir}/{id}.*")
        with files.storage_errors("Putting a damaged entry aside"):
            files.write_text(f"{self.damaged_dir}/{id}.why", f"{reason}\n")
            for path in (self.message_path(id), self.envelope_path(id)):
                try:
                    files.rename(path, f"{self.damaged_dir}/{os.path.basename(path)}")
                except FileNotFoundError:
                    pass
            files.sync_directory(self.damaged_dir)
            self._sync_part(part_of(id))

    def damaged(self) -> list[tuple[str, str]]:
        """(id, reason) of what was put aside."""
        found: list[tuple[str, str]] = []
        try:
            names = sorted(name for name in os.listdir(self.damaged_dir) if name.endswith(".why"))
        except FileNotFoundError:
            return found
        for name in names:
            try:
                with open(f"{self.damaged_dir}/{name}", encoding="utf-8", errors="replace") as file:
                    found.append((name.removesuffix(".why"), file.read(1000).strip()))
            except OSError as failure:
                found.append((name.removesuffix(".why"), str(failure)))
        return found

    def sweep(self, part: str) -> int:
        """Remove old messages that have no envelope: never acknowledged, or ended. How many they were."""
        directory = f"{self.root}/{part}"
        there = _listed(directory)
        lonely = [name for name in there if name.endswith(".eml") and f"{name[:-4]}.json" not in there]
        # The listing is no moment: an envelope may have come while it was made.
        return self._unlink_old(
            directory, (name for name in lonely if not os.path.lexists(f"{directory}/{name[:-4]}.json"))
        )

    def sweep_tmp(self) -> int:
        """Remove what was begun long ago and never placed."""
        return self._unlink_old(self.tmp_dir, _listed(self.tmp_dir))

    def _unlink_old(self, directory: str, names: Iterable[str]) -> int:
        before = self.now().wall - STALE_SECONDS
        return sum(_unlink_older(f"{directory}/{name}", before) for name in names)


def _listed(directory: str) -> set[str]:
    try:
        return set(os.listdir(directory))
    except FileNotFoundError:
        return set()


def _unlink_older(path: str, before: float) -> int:
    try:
        if os.lstat(path).st_ctime < before:
            files.unlink(path)
            return 1
    except OSError:
        pass
    return 0


def _has_name(fd: int, path: str) -> bool:
    """Whether the open file is the one that is called so now."""
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False


def _state(there: os.stat_result) -> FileState:
    return there.st_ino, there.st_ctime_ns, there.st_mtime_ns, there.st_size


def _parse(id: str, text: bytes, there: os.stat_result) -> Entry:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise EntryDamaged(f"not JSON: {problem}") from None
    entry = from_json(value)
    if entry.id != id:
        raise EntryDamaged(f"the entry says it is {entry.id[:40]!r}")
    entry.file = _state(there)
    return entry


def _digest(fd: int) -> tuple[int, str]:
    size, digest = 0, hashlib.sha256()
    most = min(files.COPY_BYTES, os.fstat(fd).st_size + 1)
    while chunk := os.pread(fd, most, size):
        digest.update(chunk)
        size += len(chunk)
    return size, digest.hexdigest()


def _lock(fd: int, id: str, wait: bool) -> None:
    """A lock is held for milliseconds; whoever holds it for long has stopped."""
    deadline = _monotonic() + LOCK_SECONDS
    pause = 0.001
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if not wait:
                raise EntryBusy(id) from None
            if _monotonic() > deadline:
                raise TemporaryFailure(f"the queue entry {id} is locked by another process") from None
        except OSError as failure:
            raise TemporaryFailure(f"the queue entry {id} cannot be locked: {failure.strerror}") from failure
        _sleep(pause)
        pause = min(pause * 2, 0.05)


class Ownership:
    """`<root>/lock`: one runner at a time. It holds the runner's pid, and goes with the process."""

    def __init__(self, root: str) -> None:
        self.path = f"{root}/lock"
        self._fd = -1

    def acquire(self) -> None:
        """Raises QueueLocked."""
        with files.storage_errors("Locking the queue"):
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pid = _pid_in(fd)
            files.close(fd)
            raise QueueLocked(pid) from None
        os.ftruncate(fd, 0)
        os.write(fd, f"{os.getpid()}\n".encode())
        self._fd = fd

    def release(self) -> None:
        if self._fd >= 0:
            files.close(self._fd)
            self._fd = -1

    def holder(self) -> int | None:
        """The pid of the runner that works now; None if there is none."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
        except OSError:
            return _pid_in(fd)
        finally:
            files.close(fd)


def _pid_in(fd: int) -> int:
    text = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
    return int(text) if text.isascii() and text.isdigit() else 0
