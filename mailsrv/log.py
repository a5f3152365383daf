"""One event, one line: `log.info("delivered", mailbox=id, uid=7, ms=0.8)`.

Nothing here ever waits: a call puts the event on a queue, and one native thread formats and writes it. What cannot be
written (disk full, nobody reads) is tried again for some seconds and then lost, as are events for which the queue has
no room. They are counted, and the count is written when that is possible again; meanwhile standard error and the
system's log are told, and `problem` tells who asks.
The same event of the same peer is written a few times in ten seconds; the others are counted, and the count,
`suppressed`, is on the next such line or on one of its own.
Values are escaped to printable ASCII and capped, so that no client can forge a line. Secrets and message text are never
given to this module. After a fork the child starts its own thread with its first event.

Format `logfmt`: `2026-01-31T12:00:00.123Z info delivered mailbox=M1-1 uid=7 ms=0.800`; format `json`: one object a
line.

Imports: the standard library, gevent.monkey (for threads that are threads).
"""

from __future__ import annotations

import _queue
import atexit
import itertools
import json
import os
import re
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from types import NoneType
from typing import Any

from gevent.monkey import get_original

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
QUEUE_LIMIT = 20_000  # events; some megabytes when the output hangs
VALUE_LIMIT = 512  # characters of one value
TRACEBACK_LIMIT = 6_000
REPEATS, REPEAT_SECONDS = 20, 10.0  # lines of one event and peer in so many seconds
MOST_REPEATERS = 10_000
# What clients can cause at will; of other events that are no warnings, each line is one that somebody may look for.
REPEATING = frozenset({
    "connection failed", "early talker", "protocol error", "refused", "timeout", "too many commands", "too many errors",
})  # fmt: skip
EVERY_ONE = frozenset({"auth failed"})  # counted by fail2ban
STDERR = "standard error"
SYSLOG = "syslog"  # as the file: the system's log, by its socket
SYSLOG_PATH = "/dev/log"
PATIENCE_SECONDS = 10.0  # for output that cannot be written to, before lines are lost
RETRY_SECONDS = 0.5
_SYSLOG_LEVELS = {"debug": 7, "info": 6, "warning": 4, "error": 3}
_FACILITY_MAIL = 2 << 3  # RFC 3164 4.1.1
BATCH_SECONDS = 0.05  # the writer wakes at most this often: waking it for every event costs the hub its time slice
LINES_AT_ONCE = 32  # are made while others wait for the interpreter: a tenth of a millisecond
MOST_SHAPES = 1000  # of lines, remembered
QUOTED = "file"  # a field in quotes as a rule: the name of a message's file has "S=4711,U=1-7" in it

counts = dict.fromkeys(LEVELS, 0)  # of events, by level

# Called with (event, fields) for every event of any level, in the caller's greenlet: keep it short.
listeners: list[Callable[[str, dict[str, Any]], None]] = []

# `_queue.SimpleQueue` is the native one also after monkey patching: its get() blocks a thread, its put() nobody.
_Record = tuple[float, str, str, dict[str, Any]]
_start_thread = get_original("_thread", "start_new_thread")
_allocate_lock = get_original("_thread", "allocate_lock")
_sleep = get_original("time", "sleep")
_close = get_original("os", "close")  # gevent's waits for its loop
_select = get_original("select", "select")
_socket = get_original("socket", "socket")


Lines = list[tuple[str, str]]  # (level, line with its end)


def _encoded(text: str) -> bytes:
    return text.encode("ascii", "backslashreplace")


class _Descriptor:
    """A file or standard error."""

    def __init__(self, number: int, name: str) -> None:
        self._number, self.name = number, name
        self._torn = False  # the file ends within a line

    def write(self, lines: Lines) -> tuple[int, str]:
        """How many of the lines were written, and what hinders the next."""
        begin = b"\n" if self._torn else b""
        view = memoryview(begin + _encoded("".join([line for _, line in lines])))
        written = 0
        while written < len(view):
            try:
                written += os.write(self._number, view[written:])
            except BlockingIOError:
                _sleep(0.05)
            except OSError as failure:  # disk full, terminal gone
                octets = [_encoded(line) for _, line in lines]
                return self._whole(octets, written - len(begin)), str(failure.strerror)
        self._torn = False
        return len(lines), ""

    def _whole(self, lines: list[bytes], octets: int) -> int:
        """How many lines so many octets are. One that was cut is ended and written again: others write there too."""
        if octets < 0:
            return 0
        count = 0
        while octets >= len(lines[count]):
            octets -= len(lines[count])
            count += 1
        self._torn = octets > 0
        return count


class _Syslog:
    """The system's log. RFC 3164, as its local socket has it."""

    def __init__(self, *, patience: float = 1.0) -> None:
        self.name = SYSLOG_PATH
        self._patience = patience
        self._socket: Any = None

    def write(self, lines: Lines) -> tuple[int, str]:
        """As _Descriptor.write."""
        for count, (level, line) in enumerate(lines):
            text = line if line.startswith("{") else line.partition(" ")[2]  # it has a time of its own
            head = f"<{_FACILITY_MAIL | _SYSLOG_LEVELS[level]}>{time.strftime('%b %e %H:%M:%S')} mailsrv[{os.getpid()}]"
            problem = self._send(f"{head}: {text.rstrip()}".encode("ascii", "backslashreplace"))
            if problem:
                return count, problem
        return len(lines), ""

    def _send(self, datagram: bytes) -> str:
        """Why it could not be sent."""
        problem = ""
        for _ in range(2):  # once more if its daemon was started again
            try:
                if self._socket is None:
                    self._socket = _socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                    self._socket.settimeout(self._patience)
                    self._socket.connect(SYSLOG_PATH)
                self._socket.send(datagram)
                return ""
            except (TimeoutError, BlockingIOError):
                return "nobody reads"
            except OSError as failure:
                problem = str(failure.strerror)
                self.close()
        return problem

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _complain(target: _Descriptor | _Syslog, record: _Record) -> None:
    """Where somebody may see it, when the log itself cannot say it. Waits for nobody."""
    line = format_logfmt(*record)
    if target.name != STDERR:
        try:
            if sys.stderr is not None and _select([], [2], [], 0)[1]:
                os.write(2, line.encode("ascii", "backslashreplace"))
        except (OSError, ValueError):
            pass
        if isinstance(target, _Descriptor):
            system = _Syslog(patience=0.0)
            system.write([(record[1], line)])
            system.close()


def _may_be_too_much(level: str, event: str) -> bool:
    return event in REPEATING or (level in ("warning", "error") and event not in EVERY_ONE)


class _Repeats:
    """Which lines are too much of the same."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], list[float]] = {}  # (event, peer) -> [start of its time, lines, suppressed]

    def __bool__(self) -> bool:
        return bool(self._seen)

    def admit(self, record: _Record) -> list[_Record]:
        """What is to be written instead of one that may be too much: the record, with what was suppressed before it, or
        nothing.
        """
        when, level, event, fields = record
        key = event, str(fields.get("peer", ""))
        state = self._seen.get(key)
        if state is None or when - state[0] >= REPEAT_SECONDS:
            suppressed = int(state[2]) if state is not None else 0
            if len(self._seen) >= MOST_REPEATERS:
                self._seen.clear()
            self._seen[key] = [when, 1, 0]
            return [(when, level, event, {**fields, "suppressed": suppressed} if suppressed else fields)]
        state[1] += 1
        if state[1] <= REPEATS:
            return [record]
        state[2] += 1
        return []

    def due(self, now: float) -> list[_Record]:
        """Counts of what has stopped."""
        told: list[_Record] = []
        for key, (begun, _, suppressed) in list(self._seen.items()):
            if now - begun >= REPEAT_SECONDS:
                del self._seen[key]
                if suppressed:
                    event, peer = key
                    told.append((now, "warning", event, {"peer": peer or None, "suppressed": int(suppressed)}))
        return told


class _Writer:
    """The queue and its thread, in one process."""

    def __init__(self, target: _Descriptor | _Syslog, as_json: bool) -> None:
        self.pid = os.getpid()
        self.target = target
        self.as_json = as_json
        self.problem = ""  # why nothing can be written now
        self._since = 0.0  # when that began
        self._repeats = _Repeats()
        self.dropped = self.dropped_in_all = 0
        self._dropping = _allocate_lock()  # any thread may log
        self._hurry = _allocate_lock()  # held, but for a moment when somebody waits for what is queued
        self._hurry.acquire()
        self.queue: _queue.SimpleQueue[_Record | Any] = _queue.SimpleQueue()
        _start_thread(self._run, ())

    def put(self, record: _Record) -> None:
        if self.queue.qsize() >= QUEUE_LIMIT:
            self._count(1)
        else:
            self.queue.put(record)

    def _count(self, lost: int) -> None:
        with self._dropping:
            self.dropped += lost
            self.dropped_in_all += lost

    def flush(self, seconds: float) -> None:
        """Waits until everything queued so far is written, at most `seconds`."""
        done = _allocate_lock()
        done.acquire()
        self.queue.put(done)
        try:
            self._hurry.release()
        except RuntimeError:
            pass  # somebody else was faster
        done.acquire(timeout=seconds)

    def _run(self) -> None:
        while True:
            try:
                wait = RETRY_SECONDS if self.dropped else REPEAT_SECONDS if self._repeats else None
                items = [self.queue.get(timeout=wait)]
            except _queue.Empty:
                items = []
            if items and isinstance(items[0], tuple):
                self._hurry.acquire(timeout=BATCH_SECONDS)
            try:
                while len(items) < 1000:
                    items.append(self.queue.get_nowait())
            except _queue.Empty:
                pass
            records: list[_Record] = []
            for item in items:
                if isinstance(item, tuple):
                    if _may_be_too_much(item[1], item[2]):
                        records += self._repeats.admit(item)
                    else:
                        records.append(item)
            if self._repeats:
                records += self._repeats.due(time.time())
            if self._write(records) and self.dropped:
                self._tell_dropped()
            for item in items:
                if not isinstance(item, tuple):
                    item.release()

    def _write(self, records: list[_Record]) -> bool:
        """Whether all are written. What cannot be is tried again, at a new target too, until patience is at its end."""
        lines = []
        for number, record in enumerate(records, 1):
            lines.append((record[1], self._format(record)))
            if number % LINES_AT_ONCE == 0:
                _sleep(0)
        while lines:
            target = self.target
            written, problem = target.write(lines)
            lines = lines[written:]
            if problem:
                self._trouble(target, problem)
                if time.monotonic() - self._since >= PATIENCE_SECONDS:
                    self._count(len(lines))
                    return False
                _sleep(RETRY_SECONDS)
            else:
                self._well(target)
        return True

    def _trouble(self, target: _Descriptor | _Syslog, problem: str) -> None:
        if not self.problem:
            self._since = time.monotonic()
            _complain(target, (time.time(), "error", "log not written", {"log": target.name, "error": problem}))
        self.problem = f"{target.name}: {problem}"

    def _well(self, target: _Descriptor | _Syslog) -> None:
        if self.problem:
            self.problem = ""
            _complain(target, (time.time(), "warning", "log written again", {"log": target.name}))

    def _tell_dropped(self) -> None:
        with self._dropping:
            count, self.dropped = self.dropped, 0
        line = self._format((time.time(), "warning", "log events dropped", {"count": count}))
        target = self.target
        if target.write([("warning", line)])[0]:
            self._well(target)
        else:
            with self._dropping:
                self.dropped += count

    def _format(self, record: _Record) -> str:
        try:
            return (format_json if self.as_json else format_logfmt)(*record)
        except Exception as error:  # a value whose str() fails must not end the writer
            return f"{_timestamp(record[0])} error unprintable-event error={_quote(repr(error), VALUE_LIMIT)}\n"


class _State:
    numbers = itertools.count(1)
    process = ""  # pid and start, once somebody has asked
    level = LEVELS["info"]
    as_json = False
    file: str | None = None
    descriptor = 2
    writer: _Writer | None = None
    second = (-1, "")  # the last that was written, and as what


def configure(*, level: str = "info", file: str | None = None, format: str = "logfmt") -> None:
    """Says what is logged where; `file` None is standard error, "syslog" the system's log. Raises OSError if the file
    cannot be opened.
    """
    flush()
    _State.level = LEVELS[level]
    _State.as_json = format == "json"
    _State.file = file or None
    _open()


def set_level(level: str) -> None:
    _State.level = LEVELS[level]


def level() -> str:
    return next(name for name, value in LEVELS.items() if value == _State.level)


def dropped() -> int:
    """How many events of this process were not written because its output hung or was full."""
    return _State.writer.dropped_in_all if _State.writer is not None else 0


def problem() -> str:
    """Why this process cannot write its log now; nothing when it can."""
    return _State.writer.problem if _State.writer is not None else ""


def reopen() -> None:
    """Opens the log file again by its name, after it was rotated. Raises OSError if that fails."""
    flush()
    _open()


def _open() -> None:
    old = _State.descriptor
    in_file = _State.file not in (None, SYSLOG)
    _State.descriptor = (
        os.open(str(_State.file), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640) if in_file else 2
    )
    if _State.writer is not None and _State.writer.pid == os.getpid():
        _State.writer.target = _target()
        _State.writer.as_json = _State.as_json
    if old > 2:
        _close(old)


def _target() -> _Descriptor | _Syslog:
    if _State.file == SYSLOG:
        return _Syslog()
    return _Descriptor(_State.descriptor, _State.file or STDERR)


def flush(seconds: float = 2.0) -> None:
    """Waits until what was logged so far is written, but never for long."""
    writer = _State.writer
    if writer is not None and writer.pid == os.getpid():
        writer.flush(seconds)


def new_id(kind: str) -> str:
    """A name for a session that no other one has had, in whichever process: `imap-4711-t6n2f9-17`, which is the kind,
    the process, when that began (seconds since 1970 in base 36), and a number.
    """
    if not _State.process:
        _State.process = f"{os.getpid()}-{_base36(int(time.time()))}"
    return f"{kind}-{_State.process}-{next(_State.numbers)}"


def _base36(number: int) -> str:
    text = ""
    while number:
        number, digit = divmod(number, 36)
        text = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + text
    return text


def debug(event: str, **fields: Any) -> None:
    if listeners or _State.level <= LEVELS["debug"]:
        _emit("debug", event, fields)


def info(event: str, **fields: Any) -> None:
    _emit("info", event, fields)


def warning(event: str, **fields: Any) -> None:
    _emit("warning", event, fields)


def error(event: str, **fields: Any) -> None:
    _emit("error", event, fields)


def exception(event: str, **fields: Any) -> None:
    """As error(), with the exception being handled and where it came from."""
    text = traceback.format_exc()
    _emit("error", event, {**fields, "traceback": text[-TRACEBACK_LIMIT:]})


def _emit(level: str, event: str, fields: dict[str, Any]) -> None:
    for listener in listeners:
        listener(event, fields)
    if LEVELS[level] < _State.level:
        return
    counts[level] += 1
    writer = _State.writer  # None after a fork
    if writer is None:
        writer = _State.writer = _Writer(_target(), _State.as_json)
    writer.put((time.time(), level, event, fields))


class _Shape:
    """What lines of one event have in common whose fields have the same names and types: all but the values."""

    __slots__ = ("frame", "room", "text")

    def __init__(self, level: str, event: str, names: Sequence[str], kinds: Sequence[type]) -> None:
        self.text = f"{level} {_named(event)}".replace("%", "%%")
        usual = []
        for name, kind in zip(names, kinds, strict=True):
            quoted = name == QUOTED and kind is str
            mark = f'"{_MARKS[kind]}"' if quoted else _MARKS[kind]
            self.text += mark if kind is NoneType else f" {name}={mark}"
            usual.append("S=U=" if quoted else _USUAL[kind])
        line = self.text % tuple(usual)
        self.frame = line.encode().translate(None, _PLAIN_OCTETS)
        self.room = len(line) + VALUE_LIMIT - 5 * len(names)  # within it no value is too long

    def line(self, values: tuple[Any, ...]) -> str:
        """The line without its time; "" if a value has to be looked at by itself."""
        line = self.text % values
        try:
            if line.encode("ascii").translate(None, _PLAIN_OCTETS) != self.frame:
                return ""  # a character in a value that needs an escape or quotes
        except UnicodeEncodeError:
            return ""
        return "" if len(line) > self.room or "= " in line or line[-1] == "=" else line  # empty values have quotes


_PLAIN_OCTETS = bytes(octet for octet in range(0x21, 0x7F) if octet not in b'"\\=')
_MARKS: dict[type, str] = {str: "%s", int: "%s", bool: "%s", float: "%.3f", NoneType: "%.0s"}  # the last says nothing
_USUAL: dict[type, Any] = {str: "", int: 0, bool: True, float: 0.0, NoneType: None}
_shapes: dict[tuple[Any, ...], _Shape | None] = {}  # None where a value is of another type


def _shape(level: str, event: str, fields: dict[str, Any]) -> _Shape | None:
    kinds = tuple(map(type, fields.values()))
    key = (level, event, *fields, kinds)
    try:
        return _shapes[key]
    except KeyError:
        if len(_shapes) >= MOST_SHAPES:
            _shapes.clear()
        known = all(kind in _MARKS for kind in kinds)
        shape = _shapes[key] = _Shape(level, event, tuple(fields), kinds) if known else None
        return shape


def format_logfmt(when: float, level: str, event: str, fields: dict[str, Any]) -> str:
    """`<time> <level> <event> key=value …` and a line end; values with anything but plain characters are quoted.

    Most lines have plain values alone, and are looked at as a whole: one by one takes three times as long.
    """
    shape = _shape(level, event, fields)
    if shape is not None and (line := shape.line(tuple(fields.values()))):
        return f"{_timestamp(when)} {line}\n"
    return _logfmt_of_any(when, level, event, fields)


def _named(event: str) -> str:
    return _escape(event, VALUE_LIMIT).replace(" ", "-")


def _logfmt_of_any(when: float, level: str, event: str, fields: dict[str, Any]) -> str:
    parts = [_timestamp(when), level, _named(event)]
    for key, value in fields.items():
        if value is not None:
            text = _text(value)
            plain = len(text) <= VALUE_LIMIT and _PLAIN(text) is not None
            parts.append(f"{key}={text if plain else _quote(text, _limit(key))}")
    return " ".join(parts) + "\n"


def format_json(when: float, level: str, event: str, fields: dict[str, Any]) -> str:
    """One JSON object and a line end."""
    document: dict[str, Any] = {"time": _timestamp(when), "level": level, "event": event}
    for key, value in fields.items():
        if isinstance(value, float):
            document[key] = round(value, 3)
        elif isinstance(value, bool | int) or value is None:
            document[key] = value
        else:
            document[key] = _text(value)[: _limit(key)]
    return json.dumps(document, ensure_ascii=True).replace("\x7f", "\\u007f") + "\n"


def _limit(key: str) -> int:
    return TRACEBACK_LIMIT if key == "traceback" else VALUE_LIMIT


def _timestamp(when: float) -> str:
    milliseconds = int(when * 1000)
    whole = milliseconds // 1000
    second, text = _State.second  # most lines are of the same as the line before
    if whole != second:
        text = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(whole))
        _State.second = whole, text
    return f"{text}{milliseconds % 1000:03d}Z"


def _text(value: Any) -> str:
    if type(value) is str:
        return value
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, bytes | bytearray):
        return value[: TRACEBACK_LIMIT + 1].decode("ascii", "backslashreplace")
    return str(value)


_PLAIN = re.compile(r"[!#-<>-\[\]-~]+").fullmatch  # printable ASCII without space, quote, equals sign and backslash
_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t", '"': '\\"', "\\": "\\\\"}


def _escape(text: str, limit: int) -> str:
    cut = text[:limit]
    if not (cut.isascii() and cut.isprintable()) or '"' in cut or "\\" in cut:
        cut = "".join(
            _ESCAPES.get(c) or (c if " " <= c <= "~" else c.encode("ascii", "backslashreplace").decode())
            if c >= " " and c != "\x7f"
            else _ESCAPES.get(c) or f"\\x{ord(c):02x}"
            for c in cut
        )
    return cut if len(text) <= limit else cut + "..."


def _quote(text: str, limit: int) -> str:
    escaped = _escape(text, limit)
    if escaped == text and text and " " not in text and "=" not in text:
        return escaped
    return f'"{escaped}"'


def _forget_writer() -> None:
    _State.writer = None  # its thread did not come along through fork()
    _State.process = ""


os.register_at_fork(after_in_child=_forget_writer)
atexit.register(flush)
if sys.stderr is None:  # started with standard error closed: descriptor 2 may be anything
    _State.descriptor = os.open(os.devnull, os.O_WRONLY)
