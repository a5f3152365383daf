"""All file work: durable writes, renames that never replace, and the thread pool that keeps it off the hub.

`offload` runs blocking work in a native thread and gives its result to the calling greenlet. The rest is plain blocking
code: it never runs on the hub, except in the command line and in tests.

Imports: gevent (the pool only), errors.    docs/architecture.md, "A message, once through".
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from gevent.monkey import get_original
from gevent.threadpool import ThreadPool

from mailsrv.errors import TemporaryFailure

P = ParamSpec("P")
T = TypeVar("T")

POOL_THREADS = 24
_NativeLock, _NativeRLock = get_original("threading", ["Lock", "RLock"])
_monotonic: Callable[[], float] = get_original("time", "monotonic")
_time: Callable[[], float] = get_original("time", "time")
# gevent's os.close leaves a directory open until its loop next turns, and with it the directory's lock; in a thread of
# the pool, and in the command line, no loop need ever turn.
close: Callable[[int], None] = get_original("os", "close")
_pool: ThreadPool | None = None


def native_lock(*, reentrant: bool = False) -> Any:
    """A lock between native threads (the patched one switches greenlets and must not be used off the hub)."""
    return _NativeRLock() if reentrant else _NativeLock()


def _thread_pool() -> ThreadPool:
    global _pool
    if _pool is None:
        _pool = ThreadPool(POOL_THREADS)
    return _pool


def _forget_pool() -> None:
    global _pool
    _pool = None


os.register_at_fork(after_in_child=_forget_pool)  # a forked child starts its own threads


def _guarded(fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bool, Any]:
    # The pool prints every exception it sees to stderr, so failures travel as values.
    try:
        return True, fn(*args, **kwargs)
    except BaseException as failure:
        return False, failure


def offload(fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `fn` in a native thread; other greenlets go on meanwhile. Raises what `fn` raises."""
    waiting = _thread_pool().spawn(_guarded, fn, args, kwargs)
    ok, value = waiting.get()
    if not ok:
        raise value
    return value  # type: ignore[no-any-return]


# ------------------------------------------------------------------ primitives

_step_hook: Callable[[str, str], None] | None = None


def on_step(hook: Callable[[str, str], None] | None) -> None:
    """Tests are told of each step that changes the disk, before it happens, and may end the process there."""
    global _step_hook
    _step_hook = hook


def step(name: str, path: str) -> None:
    if _step_hook is not None:
        _step_hook(name, path)


_RENAME_NOREPLACE = 1
_AT_FDCWD = -100
_renameat2: Any = None
try:
    _renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
except (OSError, AttributeError):  # a libc without it
    pass


def rename_noreplace(source: str, target: str) -> None:
    """Rename; FileExistsError when the target is there: a name collision can never overwrite a message (S25)."""
    step("rename", target)
    if _renameat2 is not None:
        if _renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE) == 0:
            return
        code = ctypes.get_errno()
        if code not in (errno.EINVAL, errno.ENOSYS):
            raise OSError(code, os.strerror(code), target)
    os.link(source, target)
    os.unlink(source)


def rename(source: str, target: str) -> None:
    step("rename", target)
    os.rename(source, target)


def link(source: str, target: str) -> None:
    step("link", target)
    os.link(source, target, follow_symlinks=False)


def unlink(path: str) -> None:
    step("unlink", path)
    os.unlink(path)


def unlink_if_there(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def unlink_quietly(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass


def remove_tree(path: str) -> None:
    """Remove a directory and all below it, links themselves and not what they lead to, as far as that is possible."""
    for directory, folders, names in os.walk(path, topdown=False):
        for name in (*names, *folders):
            unlink_quietly(f"{directory}/{name}")  # a folder stays, a link to one goes
        try:
            os.rmdir(directory)
        except OSError:
            pass


_sync_seconds = 0.0


def sync(fd: int) -> None:
    """fsync, and remember how long it takes on this disk."""
    global _sync_seconds
    begun = _monotonic()
    os.fsync(fd)
    _sync_seconds += (_monotonic() - begun - _sync_seconds) / 16  # a lost update of another thread does no harm


_SYNC_FILE_RANGE_WRITE = 2
_sync_file_range: Any = None
try:
    _sync_file_range = ctypes.CDLL(None).sync_file_range
    _sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
except (OSError, AttributeError):  # a libc without it
    pass


def begin_sync(fd: int) -> None:
    """Have the disk begin with what was written, and do not wait: for several files that `sync` makes durable next. A
    hint and no promise, see sync_file_range(2); where it fails, `sync` takes longer.
    """
    if _sync_file_range is not None:
        _sync_file_range(fd, 0, 0, _SYNC_FILE_RANGE_WRITE)


def sync_seconds() -> float:
    """How long a sync takes lately: a running mean of this process."""
    return _sync_seconds


def sync_directory(path: str) -> None:
    """The names in a directory survive a power cut from here on."""
    step("fsync", path)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync(fd)
    finally:
        close(fd)


def make_directory(path: str) -> None:
    step("mkdir", path)
    os.mkdir(path, 0o700)


def make_private(path: str) -> None:
    """Make a directory, and those above it that are missing, which nobody else can read; durable."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    make_private(parent)
    try:
        make_directory(path)
    except FileExistsError:
        return
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        hand_over(fd, parent)
    finally:
        close(fd)
    sync_directory(parent)


def hand_over(fd: int, directory: str) -> None:
    """What root makes in a directory belongs to whoever the directory belongs to: a command of the administrator must
    not lock the server out.
    """
    if os.geteuid() == 0:
        owner = os.stat(directory)
        if owner.st_uid != 0:
            os.fchown(fd, owner.st_uid, owner.st_gid)


def write_all(fd: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def write_json(path: str, value: dict[str, Any]) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_text(path: str, text: str) -> None:
    """Replace a small file: whole and durable, or as it was."""
    temporary = f"{path}.{os.getpid()}.tmp"
    step("write", path)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        hand_over(fd, os.path.dirname(path))
        write_all(fd, text.encode())
        os.fsync(fd)
    finally:
        close(fd)
    rename(temporary, path)
    sync_directory(os.path.dirname(path))


def create_text(path: str, text: str) -> None:
    """Make a small file, whole and durable, unless there is one: then that stays, whoever made it."""
    temporary = temporary_name(os.path.dirname(path))
    step("write", path)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        hand_over(fd, os.path.dirname(path))
        write_all(fd, text.encode())
        os.fsync(fd)
    finally:
        close(fd)
    try:
        rename_noreplace(temporary, path)
    except FileExistsError:
        unlink_quietly(temporary)
        return
    sync_directory(os.path.dirname(path))


def read_json(path: str) -> dict[str, Any] | None:
    """The object in a JSON file; None when there is no file or no object in it."""
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return value if isinstance(value, dict) else None


class StorageErrors:
    """Failures of the disk (full, over quota, broken, out of descriptors) become TemporaryFailure. No generator:
    several of these are in each delivery.
    """

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, failure: BaseException | None, trace: object) -> None:
        if isinstance(failure, OSError):
            raise TemporaryFailure(f"{self._what}: {failure.strerror or failure}") from failure


storage_errors = StorageErrors


# ------------------------------------------------------------------ a message being received

MEMORY_BYTES = 256 * 1024
COPY_BYTES = 1024 * 1024
MOST_PLACED = 4096
MOST_CHANGED = 16384  # as many events as the kernel keeps for a reader, inotify(7)


class Incoming:
    """A message on its way in: in memory while it is small, then in a file under `directory`, a tmp/ of the store.

    `prefix` (trace header lines) goes before it. Nothing is durable yet; `close` forgets it.
    """

    __slots__ = ("_chunks", "_fd", "_in_memory", "_memory_bytes", "directory", "path", "prefix", "size")

    def __init__(self, directory: str, prefix: bytes = b"", *, memory_bytes: int = MEMORY_BYTES) -> None:
        self.directory, self.prefix = directory, prefix
        self.size = 0
        self.path: str | None = None
        self._chunks: list[bytes] = []
        self._in_memory = 0
        self._memory_bytes = memory_bytes
        self._fd = -1

    def write(self, chunk: bytes) -> bool:
        """Take a chunk; True asks for `spill()`, which blocks on the disk."""
        self._chunks.append(chunk)
        self.size += len(chunk)
        self._in_memory += len(chunk)
        return self._in_memory > self._memory_bytes

    def spill(self) -> None:
        """Move what is in memory to the file."""
        with storage_errors("Writing the message"):
            if self._fd < 0:
                self.path = temporary_name(self.directory)
                step("create", self.path)
                self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                write_all(self._fd, self.prefix)
            write_all(self._fd, b"".join(self._chunks))
        self._chunks.clear()
        self._in_memory = 0

    def text(self) -> bytes | None:
        """The message without prefix, if it is in memory still. TemporaryFailure once it is closed: whoever brought it
        has ended while it waited for its turn in a thread, and no part of it is a message.
        """
        if self._fd >= 0:
            return None
        chunks = self._chunks[:]
        text = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        if len(text) != self.size:
            raise TemporaryFailure("The message was taken back")
        if len(chunks) > 1:
            self._chunks[:] = [text]
        return text

    def write_to(self, fd: int) -> None:
        """Append the message, without prefix, to an open file."""
        text = self.text()
        if text is not None:
            write_all(fd, text)
            return
        if self._chunks:
            self.spill()
        offset, end = len(self.prefix), len(self.prefix) + self.size
        while offset < end:
            chunk = os.pread(self._fd, min(COPY_BYTES, end - offset), offset)
            write_all(fd, chunk)
            offset += len(chunk)

    def take_file(self) -> tuple[int, str] | None:
        """The file as it is, prefix included, handed to the caller; None while the message is in memory."""
        if self._fd < 0 or self.path is None:
            return None
        if self._chunks:
            self.spill()
        taken = (self._fd, self.path)
        self._fd, self.path = -1, None
        return taken

    def close(self) -> None:
        if self._fd >= 0:
            close(self._fd)
            self._fd = -1
        if self.path is not None:
            unlink_quietly(self.path)
            self.path = None
        self._chunks.clear()


_counter = 0
_counter_lock = native_lock()


def unique_part(now: float) -> str:
    """The unique left part of a Maildir name: seconds, microseconds, process, count, random (S25)."""
    global _counter
    with _counter_lock:
        _counter += 1
        count = _counter
    seconds = int(now)
    return f"{seconds}.M{int((now - seconds) * 1e6):06d}P{os.getpid()}Q{count}R{os.urandom(4).hex()}"


class _OwnNames:
    """Names that this process gives to files, or takes from them, so that to hear of it is no news."""

    def __init__(self, most: int) -> None:
        self._names: dict[str, None] = {}
        self._most = most

    def add(self, name: str) -> None:
        self._names[name] = None
        if len(self._names) > self._most:  # of mailboxes that nobody watches
            for old in list(self._names)[: self._most // 2]:
                self._names.pop(old, None)

    def take(self, name: str) -> bool:
        """Whether the name is one of them; it is forgotten."""
        return self._names.pop(name, self) is None


placed = _OwnNames(MOST_PLACED)  # deliveries to new/, whether somebody watches or not
came, went = _OwnNames(MOST_CHANGED), _OwnNames(MOST_CHANGED)  # in mailboxes that are open here


def rename_ours(source: str, target: str) -> None:
    """`rename` of a message in a mailbox that is open in this process."""
    old, new = os.path.basename(source), os.path.basename(target)
    went.add(old)
    came.add(new)
    try:
        rename(source, target)
    except BaseException:  # whoever does the same later is somebody else
        went.take(old)
        came.take(new)
        raise


def unlink_ours(path: str) -> None:
    """`unlink` of a message in a mailbox that is open in this process."""
    name = os.path.basename(path)
    went.add(name)
    try:
        unlink(path)
    except BaseException:
        went.take(name)
        raise


def temporary_name(directory: str) -> str:
    return f"{directory}/{unique_part(_time())}"
