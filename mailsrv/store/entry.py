"""A queue entry as a value: envelope, recipients and what became of each; to JSON and back.

Times are told in wall time, for people and for restarts, and counted by the clock that nobody sets: what an entry
remembers of time stands beside the Stamp it was written at. Within one boot a change of the wall clock therefore
neither ages an entry nor makes it due; between two boots, where only the wall clock knows, at most MOST_GAP is added to
its age, and it is due at the latest after the pause it was given.

Imports: store.base, values.    docs/decisions/0009-the-queue.md
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from gevent.monkey import get_original

from mailsrv.store.base import BOOT
from mailsrv.values import Address, Disposition, Envelope, Outcome, RecipientOptions

VERSION = 1
MOST_GAP = 24 * 3600.0
HISTORY = 8  # the last attempts that are told of
MOST_TEXT = 2000
WAITING, SENT, FAILED, CANCELLED = "waiting", "sent", "failed", "cancelled"
SCHEDULED = "scheduled"  # Origin.service of messages that their senders put into a mailbox to be sent later
STATES = (WAITING, SENT, FAILED, CANCELLED)
_HALVES = re.compile("[\ud800-\udfff]")  # of surrogate pairs
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
NOTIFY = frozenset({"NEVER", "SUCCESS", "FAILURE", "DELAY"})

_time: Callable[[], float] = get_original("time", "time")
_encode = json.JSONEncoder(ensure_ascii=False).encode  # with an indent json has no encoder in C: five times slower


class EntryDamaged(Exception):
    """The entry cannot be what it was; the text says why."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """A moment by both clocks: `clock` counts seconds of this boot, and only while `boot` is the same one."""

    wall: float
    boot: str
    clock: float

    @staticmethod
    def now() -> Stamp:
        return Stamp(_time(), BOOT, time.clock_gettime(time.CLOCK_BOOTTIME))

    def comparable(self, later: Stamp) -> bool:
        return self.boot == later.boot and later.clock >= self.clock

    def until(self, later: Stamp) -> float:
        """Seconds from this moment to a later one, never less than none."""
        if self.comparable(later):
            return later.clock - self.clock
        return max(0.0, later.wall - self.wall)


FileState = tuple[int, int, int, int]  # inode, its changes, times and size; replaced or used again, one is another


@dataclass(frozen=True, slots=True)
class Attempt:
    """What one attempt did for a recipient, in the words of the remote host: one line, fit for a terminal."""

    at: float
    disposition: str
    code: int
    enhanced: str
    text: str
    host: str
    tls: str

    @staticmethod
    def of(outcome: Outcome, at: float) -> Attempt:
        return Attempt(
            at, outcome.disposition.value, outcome.code, outcome.enhanced, _CONTROLS.sub(" ", outcome.text[:MOST_TEXT]),
            _CONTROLS.sub(" ", outcome.host[:500]), _CONTROLS.sub(" ", outcome.tls[:200]),
        )  # fmt: skip


@dataclass(slots=True)
class Recipient:
    """One recipient. `via` is the address of ours that led to it, where the sender named another one.

    `next_at` is when it is tried again, `notice_at` when the sender is to be told that it takes long (None: not at
    all); both in wall time as of the entry's last writing. `report` names what the sender is still to be told
    ("failed", "delivered", "relayed", "expanded"), "" if nothing.
    """

    address: Address
    options: RecipientOptions = field(default_factory=RecipientOptions)
    via: Address | None = None
    state: str = WAITING
    destination: str = ""
    attempts: int = 0
    history: list[Attempt] = field(default_factory=list)
    next_at: float = 0.0
    notice_at: float | None = None
    noticed: bool = False
    report: str = ""

    @property
    def last(self) -> Attempt | None:
        return self.history[-1] if self.history else None

    def note(self, outcome: Outcome, at: float, *, tried: bool = True) -> None:
        """Remember an attempt; or, not `tried`, why there was none."""
        self.attempts += tried
        self.history.append(Attempt.of(outcome, at))
        del self.history[:-HISTORY]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an entry came from: the account that submitted it (0: none), the session, and the service or occasion."""

    account: int = 0
    session: str = ""
    service: str = ""


@dataclass(slots=True)
class Entry:
    """`waited` is its age when it was `written`; `shown` is (number, UIDVALIDITY, UID) of its copy in an Outbox;
    `asked_at` is when somebody asked that it be tried at once, until it was. `file` is what its file was when it was
    read: while that is the same, so is the entry.
    """

    id: str
    envelope: Envelope
    recipients: list[Recipient]
    origin: Origin = field(default_factory=Origin)
    size: int = 0
    sha256: str = ""
    arrived_at: float = 0.0
    hold: bool = False
    not_before: float | None = None
    shown: tuple[int, int, int] | None = None
    waited: float = 0.0
    written: Stamp | None = None
    asked_at: float | None = None
    file: FileState | None = field(default=None, compare=False)

    @property
    def waiting(self) -> list[Recipient]:
        return [one for one in self.recipients if one.state == WAITING]

    @property
    def over(self) -> bool:
        """Nothing is left to be done, nor to be told."""
        return not any(one.state == WAITING or one.report for one in self.recipients)

    def age(self, now: Stamp) -> float:
        if self.written is None:
            return 0.0
        passed = self.written.until(now)
        return self.waited + (passed if self.written.comparable(now) else min(passed, MOST_GAP))

    def tried_for(self, now: Stamp) -> float:
        """Its age without the time it was asked to wait."""
        asked = 0.0 if self.not_before is None else max(0.0, self.not_before - self.arrived_at)
        return max(0.0, self.age(now) - asked)

    def remaining(self, at: float, now: Stamp) -> float:
        """Seconds until `at`, a time of a recipient."""
        if self.written is None:
            return max(0.0, at - now.wall)
        return max(0.0, at - self.written.wall - self.written.until(now))

    def wait(self, now: Stamp) -> float:
        """Seconds until there is something to do; infinite if that needs somebody's word."""
        if self.over or any(one.report for one in self.recipients):
            return 0.0
        if self.hold:
            return math.inf
        times = [one.next_at for one in self.waiting]
        times += [one.notice_at for one in self.waiting if one.notice_at is not None]
        due = min((self.remaining(at, now) for at in times), default=0.0)
        return due if self.not_before is None else max(due, self.not_before - now.wall)

    def touch(self, now: Stamp) -> None:
        """About to be written: bring what is told of time up to now."""
        if self.written is None:
            self.arrived_at = self.arrived_at or now.wall
        for one in self.recipients:
            if self.written is not None and one.state == WAITING:
                one.next_at = now.wall + self.remaining(one.next_at, now)
                if one.notice_at is not None:
                    one.notice_at = now.wall + self.remaining(one.notice_at, now)
        self.waited, self.written = self.age(now), now

    def delay(self, recipient: Recipient, seconds: float, now: Stamp) -> None:
        """Try the recipient again after that many seconds."""
        base = now if self.written is None else self.written
        recipient.next_at = base.wall + base.until(now) + seconds

    def delay_notice(self, recipient: Recipient, seconds: float, now: Stamp) -> None:
        """Tell the sender after that many seconds, if it still waits then."""
        base = now if self.written is None else self.written
        recipient.notice_at = base.wall + base.until(now) + seconds


# ------------------------------------------------------------------ JSON


def _written_time(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


def to_json(entry: Entry) -> dict[str, Any]:
    envelope = entry.envelope
    assert entry.written is not None
    return {
        "version": VERSION,
        "id": entry.id,
        "arrived_at": _written_time(entry.arrived_at),
        "size": entry.size,
        "sha256": entry.sha256,
        "envelope": {
            "sender": None if envelope.sender is None else str(envelope.sender),
            "body": envelope.body,
            "smtputf8": envelope.smtputf8,
            "ret": envelope.ret,
            "envid": envelope.envid,
            "require_tls": envelope.require_tls,
            **({"release": envelope.release} if envelope.release else {}),
        },
        "origin": {
            "account": entry.origin.account, "session": entry.origin.session, "service": entry.origin.service,
        },
        "hold": entry.hold,
        "not_before": _written_time(entry.not_before),
        "shown": None if entry.shown is None else list(entry.shown),
        "asked_at": _written_time(entry.asked_at),
        "waited_seconds": round(entry.waited, 3),
        "written": {
            "at": _written_time(entry.written.wall), "boot": entry.written.boot, "clock": round(entry.written.clock, 3),
        },
        "recipients": [_recipient_to_json(one) for one in entry.recipients],
    }  # fmt: skip


def _recipient_to_json(one: Recipient) -> dict[str, Any]:
    return {
        "address": str(one.address),
        "via": None if one.via is None else str(one.via),
        "notify": sorted(one.options.notify),
        "orcpt": one.options.orcpt,
        "state": one.state,
        "report": one.report,
        "destination": one.destination,
        "attempts": one.attempts,
        "next_at": _written_time(one.next_at) if one.state == WAITING else None,
        "notice_at": _written_time(one.notice_at),
        "noticed": one.noticed,
        "history": [
            {
                "at": _written_time(tried.at), "disposition": tried.disposition, "host": tried.host, "tls": tried.tls,
                "code": tried.code, "enhanced": tried.enhanced, "text": tried.text,
            }
            for tried in one.history
        ],
    }  # fmt: skip


def to_text(entry: Entry) -> bytes:
    """`to_json` as it is on disk: a line for each field, and one for each recipient."""
    value = to_json(entry)
    recipients = value.pop("recipients")
    lines = [f' "{name}": {_encode(one)},' for name, one in value.items()]
    listed = ",\n".join(f"  {_encode(one)}" for one in recipients)
    return "\n".join(("{", *lines, ' "recipients": [', listed, " ]", "}", "")).encode()


class _Reader:
    """The fields of one JSON object, each of the type it must have."""

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise EntryDamaged(f"{where} is not an object")
        self._value, self._where = value, where

    def _get(self, name: str, kind: type | tuple[type, ...]) -> Any:
        value = self._value.get(name)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise EntryDamaged(f"{self._where}.{name} is missing or not what it must be")
        return value

    def text(self, name: str, *, missing: str | None = None) -> str:
        """`missing`: what it is where there is no such field."""
        if missing is not None and name not in self._value:
            return missing
        value: str = self._get(name, str)
        return self._whole_text(name, value)

    def _whole_text(self, name: str, value: str) -> str:
        if _HALVES.search(value):  # JSON can say it, and no line and no file can
            raise EntryDamaged(f"{self._where}.{name} is no text")
        return value

    def number(self, name: str) -> float:
        try:
            value = float(self._get(name, (int, float)))
        except OverflowError:
            value = math.inf
        if not math.isfinite(value):
            raise EntryDamaged(f"{self._where}.{name} is not a number")
        return value

    def whole(self, name: str) -> int:
        value: int = self._get(name, int)
        if value < 0:
            raise EntryDamaged(f"{self._where}.{name} is below 0")
        return value

    def flag(self, name: str) -> bool:
        value: bool = self._get(name, bool)
        return value

    def objects(self, name: str) -> list[_Reader]:
        return [_Reader(one, f"{self._where}.{name}[{n}]") for n, one in enumerate(self._get(name, list))]

    def object(self, name: str) -> _Reader:
        return _Reader(self._value.get(name), f"{self._where}.{name}")

    def texts(self, name: str) -> list[str]:
        values: list[str] = self._get(name, list)
        if not all(isinstance(value, str) for value in values):
            raise EntryDamaged(f"{self._where}.{name} is not a list of texts")
        return [self._whole_text(name, value) for value in values]

    def numbers(self, name: str) -> tuple[int, int, int] | None:
        if self._value.get(name) is None:
            return None
        values = self._get(name, list)
        if len(values) != 3 or not all(isinstance(value, int) for value in values):
            raise EntryDamaged(f"{self._where}.{name} is not three numbers")
        return values[0], values[1], values[2]

    def time(self, name: str) -> float | None:
        if self._value.get(name) is None:
            return None
        try:
            at = datetime.fromisoformat(self.text(name)).timestamp()
            datetime.fromtimestamp(at, UTC)  # it is told in UTC, where the year may be another one
            return at
        except (ValueError, OverflowError):
            raise EntryDamaged(f"{self._where}.{name} is not a time") from None

    def word(self, name: str, words: tuple[str, ...]) -> str:
        value = self.text(name)
        if value not in words:
            raise EntryDamaged(f"{self._where}.{name} is none of {', '.join(words)}")
        return value

    def address(self, name: str) -> Address | None:
        if self._value.get(name) is None:
            return None
        local, at, domain = self.text(name).rpartition("@")
        if not at or not local or not domain or not (local + domain).isprintable():
            raise EntryDamaged(f"{self._where}.{name} is not an address")
        return Address(local, domain)


def from_json(value: Any) -> Entry:
    """Raises EntryDamaged with what is wrong."""
    root = _Reader(value, "entry")
    if root.whole("version") != VERSION:
        raise EntryDamaged(f"version {root.whole('version')}; this program knows {VERSION}")
    one, origin, written = root.object("envelope"), root.object("origin"), root.object("written")
    envelope = Envelope(
        one.address("sender"), one.word("body", ("7BIT", "8BITMIME")), one.flag("smtputf8"),
        one.word("ret", ("", "FULL", "HDRS")), one.text("envid"), one.flag("require_tls"),
        one.text("release", missing=""),
    )  # fmt: skip
    recipients = [_recipient_from(found) for found in root.objects("recipients")]
    if not recipients:
        raise EntryDamaged("the entry has no recipient")
    return Entry(
        root.text("id"), envelope, recipients,
        Origin(origin.whole("account"), origin.text("session"), origin.text("service")),
        root.whole("size"), root.text("sha256"), root.time("arrived_at") or 0.0, root.flag("hold"),
        root.time("not_before"), root.numbers("shown"), root.number("waited_seconds"),
        Stamp(written.time("at") or 0.0, written.text("boot"), written.number("clock")), root.time("asked_at"),
    )  # fmt: skip


def _recipient_from(one: _Reader) -> Recipient:
    address = one.address("address")
    notify = frozenset(one.texts("notify"))
    if address is None or not notify <= NOTIFY:
        raise EntryDamaged("a recipient has no address, or NOTIFY that does not exist")
    dispositions = tuple(found.value for found in Disposition)
    history = [
        Attempt(
            tried.time("at") or 0.0, tried.word("disposition", dispositions), tried.whole("code"),
            tried.text("enhanced"), tried.text("text"), tried.text("host"), tried.text("tls"),
        )
        for tried in one.objects("history")
    ]  # fmt: skip
    return Recipient(
        address, RecipientOptions(notify, one.text("orcpt")), one.address("via"), one.word("state", STATES),
        one.text("destination"), one.whole("attempts"), history, one.time("next_at") or 0.0, one.time("notice_at"),
        one.flag("noticed"), one.word("report", ("", "failed", "delivered", "relayed", "expanded")),
    )  # fmt: skip
