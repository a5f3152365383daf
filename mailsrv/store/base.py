"""What every operation on one account stands on: its paths, its lock, its index connection, its mailbox records.

Two locks order everything: a native mutex per account (threads of this process), and `flock` on `<home>/lock` around
what writes (all processes). Index connections are few: an account that nobody asks closes its own, and opens it again
when it is next asked. A damaged or deleted index is made anew; every mailbox then compares itself with its
directory.

Imports: store.*, log, errors, values.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar, Protocol

from gevent.monkey import get_original

from mailsrv import log
from mailsrv.errors import MailboxNotFound, TemporaryFailure
from mailsrv.store import files, metadata, names
from mailsrv.store.index import IndexDamaged, IndexFailed, MailboxRecord
from mailsrv.store.sqlite import SqliteIndex
from mailsrv.values import AccountId, MailboxId, MailboxInfo, Prepared


class Prepare(Protocol):
    def __call__(self, raw: bytes, /, *, structure: bool = True) -> Prepared:
        """What the index keeps of a message; without `structure` its `bodystructure` is empty."""


DEFAULT_MAILBOXES: tuple[tuple[str, str], ...] = (
    ("Drafts", "\\Drafts"),
    ("Sent", "\\Sent"),
    ("Junk", "\\Junk"),
    ("Trash", "\\Trash"),
    ("Archive", "\\Archive"),
)
# Index connections: how many stay open, and how many there are at most until `rest_indexes` has closed the others. To
# close one that wrote takes two syncs, better not in the way of a delivery; but many leave holes in memory behind them.
KEPT_INDEXES, MOST_OPEN_INDEXES = 16, 24
QUIET_SECONDS = 0.5  # that nobody uses an index before it is closed
RETURN_SECONDS = 60.0  # the same where the account was used again within that time
_INTENT = struct.Struct("!II")  # in the lock file: mailbox number, its UIDNEXT once the work in hand is committed
SUBDIRECTORIES = ("cur", "new", "tmp")


def boot_id() -> str:
    """Names this start of the system; an index written under another one may have lost its last commits."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return "unknown"


BOOT = boot_id()
_monotonic: Callable[[], float] = get_original("time", "monotonic")


class _OpenIndexes:
    """The accounts of this process that hold an index connection, least recently used first."""

    def __init__(self) -> None:
        self._lock = files.native_lock()
        self._pid = os.getpid()
        self._stores: OrderedDict[int, StoreBase] = OrderedDict()

    def used(self, store: StoreBase) -> None:
        with self._lock:
            if self._pid != os.getpid():  # connections do not cross a fork
                self._stores.clear()
                self._pid = os.getpid()
            store.used_at = _monotonic()
            self._stores[id(store)] = store
            self._stores.move_to_end(id(store))
            surplus = len(self._stores) - MOST_OPEN_INDEXES
            over = list(self._stores.values())[:surplus] if surplus > 0 else ()
        self.close(over)

    def close(self, stores: Iterable[StoreBase]) -> int:
        """How many were free and are closed now."""
        count = 0
        for store in stores:
            if store.close_if_free():
                self.closed(store)  # at once: it may be opened again while the next one is synced
                count += 1
        return count

    def closed(self, store: StoreBase) -> None:
        with self._lock:
            self._stores.pop(id(store), None)

    def all(self) -> list[StoreBase]:
        with self._lock:
            return list(self._stores.values())

    def unused(self) -> list[StoreBase]:
        """Whose connection can be closed: nobody used it lately, or there are too many."""
        now, stores = _monotonic(), self.all()
        surplus = len(stores) - KEPT_INDEXES
        return [store for place, store in enumerate(stores) if place < surplus or store.used_at + store.patience < now]


_open_indexes = _OpenIndexes()


def indexes_to_rest() -> bool:
    """Whether `rest_indexes` has something to do. Does not wait."""
    return bool(_open_indexes.unused())


def indexes_opened_lately() -> bool:
    """Whether any are open that will rest soon unless they are used again."""
    return any(store.patience == QUIET_SECONDS for store in _open_indexes.all())


def rest_indexes() -> int:
    """Close the index connections of this process that nobody uses, and say how many; they open again when asked."""
    return _open_indexes.close(_open_indexes.unused())


class StoreBase:
    opens: ClassVar[Counter[str]] = Counter()  # how message files were found, in all accounts of the process

    def __init__(
        self,
        account: AccountId,
        home: str,
        *,
        prepare: Prepare,
        host: str,
        clock: Callable[[], float] = time.time,
        defaults: Sequence[tuple[str, str]] = DEFAULT_MAILBOXES,
    ) -> None:
        self.account, self.home = account, home
        self.maildir = f"{home}/Maildir"
        self._prepare, self._clock, self._defaults = prepare, clock, tuple(defaults)
        self._host = names.safe_host(host)
        self._mutex = files.native_lock()
        self._lock_fd = -1
        self.used_at = -RETURN_SECONDS
        self.patience = QUIET_SECONDS  # how long the index connection stays open unused
        self._index: SqliteIndex | None = None
        self._pid = os.getpid()
        self.found: list[int] = []  # mailboxes in which other programs' changes were committed: to be announced
        self._finding: list[int] = []  # the same, of the transaction under way
        self._verified: dict[int, tuple[int, int]] = {}  # number -> mtimes at which the entries were counted

    @property
    def tmp_dir(self) -> str:
        return f"{self.maildir}/tmp"

    # -------------------------------------------------------------- locks and connection

    @contextmanager
    def _reading(self) -> Iterator[SqliteIndex]:
        """The index for reading. Other processes may commit between two statements: what must be of one commit is read
        with `_one_state`.
        """
        with self._mutex, files.storage_errors("Reading the mail store"):
            index = self._connected()
            try:
                with index.reading():
                    yield index
            except IndexDamaged as damage:
                self._discard(index, str(damage))
                raise TemporaryFailure("The index was damaged and is being rebuilt") from damage
            except IndexFailed:
                self._disconnect(index)
                raise
        _open_indexes.used(self)

    @contextmanager
    def _writing(self) -> Iterator[SqliteIndex]:
        """The index inside a transaction, this account locked against every other writer of every process."""
        with self._mutex, files.storage_errors("Writing the mail store"):
            index = self._connected(verified=False)  # once it is locked, below
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX)
            try:
                index = self._same_file(index)
                with index.transaction():
                    self._finish_of_others(index)
                    yield index
                    files.step("commit", index.path)
                self.found.extend(dict.fromkeys(self._finding))  # not before: who is told must find it
            except IndexDamaged as damage:
                self._discard(index, str(damage))
                raise TemporaryFailure("The index was damaged and is being rebuilt") from damage
            except IndexFailed:
                self._disconnect(index)
                raise
            finally:
                self._finding.clear()
                fcntl.flock(self._lock_fd, fcntl.LOCK_UN)
        _open_indexes.used(self)

    def _finish_of_others(self, index: SqliteIndex) -> None:
        """If whoever gave out UIDs last was killed before the commit, what was placed under them is found first.

        Otherwise the same UIDs would be given again, and two files would carry them.
        """
        intent = os.pread(self._lock_fd, _INTENT.size, 0)
        if len(intent) < _INTENT.size:
            return
        number, uidnext = _INTENT.unpack(intent)
        record = index.mailbox(number)
        if record is not None and record.uidnext < uidnext:
            log.warning("unfinished delivery found", mailbox=str(MailboxId(self.account, number)), home=self.home)
            self._recover(index, record)
            record.uidnext = max(record.uidnext, uidnext)
            index.put_mailbox(record)

    def _recover(self, index: SqliteIndex, record: MailboxRecord) -> None:
        """Bring the mailbox to what its directory says."""

    def _connected(self, *, verified: bool = True) -> SqliteIndex:
        if self._pid != os.getpid():  # after a fork: the parent's connection and lock are not ours to use
            self._index, self._lock_fd, self._pid = None, -1, os.getpid()
        if self._index is None:
            self._open()
        elif verified:
            self._index = self._same_file(self._index)
        assert self._index is not None
        return self._index

    def _same_file(self, index: SqliteIndex) -> SqliteIndex:
        """The index that the path names now: somebody may have deleted the one we hold."""
        try:
            if os.stat(index.path).st_ino == index.inode:
                return index
        except FileNotFoundError:
            pass
        index.close()
        self._index = None
        self._open()
        assert self._index is not None
        return self._index

    def _open(self) -> None:
        # One who comes once does not come again soon; one who came again does.
        self.patience = RETURN_SECONDS if _monotonic() - self.used_at < RETURN_SECONDS else QUIET_SECONDS
        if self._lock_fd < 0:
            if not os.path.exists(f"{self.maildir}/{metadata.ACCOUNT_FILE}"):
                self._make_home()
            self._lock_fd = os.open(f"{self.home}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        path = f"{self.home}/index.sqlite3"
        with self._making_index(path):
            try:
                self._index = SqliteIndex(path)
            except IndexDamaged as damage:
                self._remove_index(str(damage))
                self._index = SqliteIndex(path)

    @contextmanager
    def _making_index(self, path: str) -> Iterator[None]:
        """One process at a time makes a new index: SQLite does not wait for another that is turning WAL on.

        The lock is the directory's, since `lock` may be held by the caller already.
        """
        if os.path.exists(path) and os.path.getsize(path):
            yield
            return
        fd = os.open(self.home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            files.close(fd)

    def _remove_index(self, why: str) -> None:
        log.warning("index discarded", account=self.account, home=self.home, reason=why)
        for suffix in ("", "-wal", "-shm"):
            files.unlink_quietly(f"{self.home}/index.sqlite3{suffix}")

    def _disconnect(self, index: SqliteIndex) -> None:
        index.close()
        self._index = None

    def _discard(self, index: SqliteIndex, why: str) -> None:
        self._disconnect(index)
        self._remove_index(why)

    def close_if_free(self) -> bool:
        if not self._mutex.acquire(blocking=False):
            return False
        try:
            self._close()
        finally:
            self._mutex.release()
        return True

    def close(self) -> None:
        with self._mutex:
            self._close()
        _open_indexes.closed(self)

    def _close(self) -> None:
        if self._pid == os.getpid():
            if self._index is not None:
                self._index.close()
            if self._lock_fd >= 0:
                files.close(self._lock_fd)
        self._index, self._lock_fd = None, -1

    # -------------------------------------------------------------- directories

    def _make_home(self) -> None:
        """INBOX and the default mailboxes of a new account (or of an adopted Maildir)."""
        os.makedirs(self.home, mode=0o700, exist_ok=True)
        lock = os.open(f"{self.home}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another worker may be doing the same
            if metadata.read_account(self.maildir) is not None:
                return
            adopted = os.path.isdir(f"{self.maildir}/cur")
            self._make_folder(self.maildir)
            account = metadata.AccountMeta(1, 0)
            if metadata.read_mailbox(self.maildir) is None:
                account = self._new_metadata(account, "", None)
            if not adopted:
                for name, special_use in self._defaults:
                    directory = names.directory(names.canonical(name))
                    self._make_folder(f"{self.maildir}/{directory}")
                    account = self._new_metadata(account, directory, special_use)
            metadata.write_account(self.maildir, account)
            files.sync_directory(self.home)
            files.sync_directory(os.path.dirname(self.home))
        finally:
            files.close(lock)

    def _make_folder(self, path: str) -> None:
        """A Maildir with its three directories; those that exist stay."""
        for directory in (path, *(f"{path}/{name}" for name in SUBDIRECTORIES)):
            try:
                files.make_directory(directory)
            except FileExistsError:
                pass
        if path != self.maildir:
            files.close(os.open(f"{path}/maildirfolder", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def _new_metadata(
        self, account: metadata.AccountMeta, directory: str, special_use: str | None
    ) -> metadata.AccountMeta:
        """Give a folder its number and UIDVALIDITY; the account's record after that, not written yet."""
        uidvalidity = max(account.last_uidvalidity + 1, int(self._clock()))
        meta = metadata.MailboxMeta(account.next_mailbox, uidvalidity, 1, (), special_use)
        metadata.write_mailbox(self.folder(directory), meta)
        return metadata.AccountMeta(account.next_mailbox + 1, uidvalidity)

    def folder(self, directory: str) -> str:
        """Absolute path of a mailbox's directory."""
        return f"{self.maildir}/{directory}" if directory else self.maildir

    # -------------------------------------------------------------- mailbox records

    def _folders_current(self, index: SqliteIndex) -> bool:
        return index.fact("root_mtime") == os.stat(self.maildir).st_mtime_ns

    def _sync_folders(self, index: SqliteIndex) -> None:
        """Bring the list of mailboxes to what the directory holds. Inside a transaction."""
        root_mtime = os.stat(self.maildir).st_mtime_ns
        known = {record.directory: record for record in index.mailboxes()}
        numbers = {record.number for record in known.values()}
        present = {""}
        with os.scandir(self.maildir) as entries:
            for entry in entries:
                is_folder = names.name_of(entry.name) not in (None, names.INBOX)
                if is_folder and entry.is_dir(follow_symlinks=False) and os.path.isdir(f"{entry.path}/cur"):
                    present.add(entry.name)
        for directory in present - (served := names.served(present)):
            log.warning("folder not served", account=self.account, directory=directory, reason="another has its name")
        present = served
        found: dict[str, metadata.MailboxMeta] = {}
        for directory in sorted(present):
            meta = metadata.read_mailbox(self.folder(directory))
            record = known.get(directory)
            if record is not None and (meta is None or record.number == meta.number):
                if meta is None:  # lost or damaged: what the index remembers of it is as good
                    self._write_metadata(record)
                continue
            found[directory] = meta if meta is not None else self._adopt_folder(index, directory)
        taken: set[int] = set()
        for directory, record in known.items():
            if directory not in present or directory in found:
                index.drop_mailbox(record.number)
                numbers.discard(record.number)
        for directory, meta in found.items():
            if meta.number in numbers or meta.number in taken:  # a copied folder: two cannot share an identity
                meta = self._adopt_folder(index, directory)
            taken.add(meta.number)
            name = names.name_of(directory)
            assert name is not None
            index.put_mailbox(
                MailboxRecord(
                    meta.number, directory, name, meta.uidvalidity, 1, meta.uid_mark, meta.keywords, meta.special_use
                )
            )
        index.set_fact("root_mtime", root_mtime)

    def _adopt_folder(self, index: SqliteIndex, directory: str) -> metadata.MailboxMeta:
        """A folder another program made: it gets its three directories and an identity of its own."""
        self._make_folder(self.folder(directory))
        account = metadata.read_account(self.maildir)
        if account is None:  # lost: begin beyond everything that is known
            records = index.mailboxes()
            others = [metadata.read_mailbox(f"{self.maildir}/{name}") for name in os.listdir(self.maildir)]
            metas = [meta for meta in others if meta is not None]
            account = metadata.AccountMeta(
                max([r.number for r in records] + [m.number for m in metas], default=0) + 1,
                max([r.uidvalidity for r in records] + [m.uidvalidity for m in metas], default=0),
            )
        metadata.write_account(self.maildir, self._new_metadata(account, directory, None))
        log.info("mailbox adopted", account=self.account, directory=directory or "INBOX")
        meta = metadata.read_mailbox(self.folder(directory))
        assert meta is not None
        return meta

    def _ready(self, index: SqliteIndex) -> None:
        if not self._folders_current(index):
            self._sync_folders(index)

    def _record(self, index: SqliteIndex, number: int) -> MailboxRecord:
        """The record by number; raises MailboxNotFound when the mailbox is gone."""
        record = index.mailbox(number)
        if record is None:
            if not self._folders_current(index):
                self._sync_folders(index)
                record = index.mailbox(number)
            if record is None:
                raise MailboxNotFound("The mailbox does not exist any more")
        return record

    def _info(self, record: MailboxRecord) -> MailboxInfo:
        return MailboxInfo(MailboxId(self.account, record.number), record.name, record.uidvalidity, record.special_use)

    def _next_modseq(self, record: MailboxRecord) -> int:
        """Strictly above all earlier ones of the mailbox; close to the wall clock in microseconds (RFC 7162 3.1)."""
        record.highest_modseq = max(record.highest_modseq + 1, int(self._clock() * 1e6))
        return record.highest_modseq

    def _take_uids(self, record: MailboxRecord, count: int) -> int:
        """The first of `count` new UIDs; the reserve in the metadata file is raised durably before one beyond it is
        used.
        """
        first = record.uidnext
        last = first + count - 1
        if last > metadata.MAX_UINT32 - 1:
            raise TemporaryFailure("The mailbox has used up its UIDs")
        if last >= record.uid_mark:
            self._write_metadata(record, uid_mark=min(last + 1 + metadata.UID_RESERVE, metadata.MAX_UINT32))
        record.uidnext = last + 1
        # Into the page cache, which a kill -9 does not touch; after a power cut the mark protects the UIDs.
        os.pwrite(self._lock_fd, _INTENT.pack(record.number, record.uidnext), 0)
        return first

    def _write_metadata(
        self, record: MailboxRecord, *, uid_mark: int | None = None, keywords: tuple[str, ...] | None = None
    ) -> None:
        """Write the mailbox's file; what changes in it is true for the record only once it is on disk. The index keeps
        a record whose operation failed, and would say later that there is nothing to write.
        """
        uid_mark = record.uid_mark if uid_mark is None else uid_mark
        keywords = record.keywords if keywords is None else keywords
        metadata.write_mailbox(
            self.folder(record.directory),
            metadata.MailboxMeta(record.number, record.uidvalidity, uid_mark, keywords, record.special_use),
        )
        record.uid_mark, record.keywords = uid_mark, keywords

    def _mtime(self, record: MailboxRecord, in_new: bool) -> int:
        folder = self.folder(record.directory)
        try:
            return os.stat(f"{folder}/{'new' if in_new else 'cur'}").st_mtime_ns
        except FileNotFoundError:
            return self._mtimes(record)[in_new]

    def _mtimes(self, record: MailboxRecord) -> tuple[int, int]:
        folder = self.folder(record.directory)
        try:
            return os.stat(f"{folder}/cur").st_mtime_ns, os.stat(f"{folder}/new").st_mtime_ns
        except FileNotFoundError:
            if not os.path.isdir(folder):
                raise MailboxNotFound("The mailbox does not exist any more") from None
            self._make_folder(folder)  # another program tidied an empty directory away
            return self._mtimes(record)
