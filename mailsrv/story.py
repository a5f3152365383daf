"""The story of a message, from the log: where it came from, what was decided, where it is, who was told when.

The log is read three times: for what the question is about, for the names that this leads to (queue entries, forwards,
reports, the place in a mailbox), and for all that was said of them. Lines may have something before them, such as
journalctl's date and host.

Imports: the standard library.    docs/monitoring.md, "The log".
"""

from __future__ import annotations

import glob
import gzip
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

_LOGFMT = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z) (debug|info|warning|error) (\S+)(.*)")
# As syslog and journalctl show it: the time is theirs.
_SYSLOG = re.compile(
    rb"^(\S+T\S+|[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d) .*?mailsrv\[\d+\]: (debug|info|warning|error) (\S+)(.*)"
)
_FIELD = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|\S*)')
_ESCAPE = re.compile(r"\\(x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8}|.)")
_PLAIN = {"n": "\n", "r": "\r", "t": "\t"}
ADDRESSED = ("sender", "recipient", "account", "user", "to")
OPENING = ("connected", "login", "client")  # of a session, told with each of its messages
LINE_OCTETS = 64 * 1024  # of a line, looked at


@dataclass(slots=True)
class Line:
    """One event of the log; `event` with dashes for spaces, in either format."""

    at: datetime
    level: str
    event: str
    fields: dict[str, Any]

    def get(self, name: str) -> str:
        value = self.fields.get(name)
        return "" if value is None else str(value)


@dataclass(slots=True)
class Story:
    """`id` is what the message's sender was told; `lines` are in the order of time."""

    id: str
    lines: list[Line] = field(default_factory=list)


# ------------------------------------------------------------------ the log


def log_files(path: str) -> list[str]:
    """The log and what was rotated away of it (`.1`, `.2.gz`, `-20260131` and so on), oldest first."""
    found = [
        name
        for name in glob.glob(f"{glob.escape(path)}[.-]*")
        if re.fullmatch(r"[.-][\w.-]*\d[\w.-]*", name[len(path) :])
    ]
    rotated = [name for name in found if os.path.isfile(name)]
    return sorted(rotated, key=os.path.getmtime) + ([path] if os.path.exists(path) else [])


def _raw(paths: Sequence[str]) -> Iterator[bytes]:
    for path in paths:
        with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:
            for line in file:
                yield line[:LINE_OCTETS]


def parse(raw: bytes) -> Line | None:
    """An event of either format; None for a line that is none."""
    found = _LOGFMT.search(raw) or _SYSLOG.search(raw)
    if found is not None:
        at, level, event, text = (part.decode("ascii", "replace") for part in found.groups())
        fields: dict[str, Any] = {name: _unquoted(value) for name, value in _FIELD.findall(text)}
        try:
            return Line(_time(at), level, event, fields)
        except ValueError:
            return None
    start = raw.find(b'{"time"')
    if start < 0:
        return None
    try:
        fields = json.loads(raw[start:])
        at, level, event = (str(fields.pop(name)) for name in ("time", "level", "event"))
        return Line(_time(at), level, event.replace(" ", "-"), fields)
    except (ValueError, KeyError, AttributeError):
        return None


def _time(text: str) -> datetime:
    """Of the log itself, or of syslog, old (no year, local time) or new. ValueError if it is none."""
    if text[:1].isdigit():
        return datetime.fromisoformat(text).astimezone(UTC)
    now = datetime.now().astimezone()
    at = datetime.strptime(f"{now.year} {text}", "%Y %b %d %H:%M:%S").astimezone()
    if at > now + timedelta(days=1):  # of last year
        at = at.replace(year=now.year - 1)
    return at.astimezone(UTC)


def _unquoted(text: str) -> str:
    if not text.startswith('"'):
        return text
    return _ESCAPE.sub(_character, text[1:-1])


def _character(found: re.Match[str]) -> str:
    code = found[1]
    return chr(int(code[1:], 16)) if len(code) > 1 else _PLAIN.get(code, code)


# ------------------------------------------------------------------ what belongs together


class Tracer:
    """Answers one question about the logs at `paths`."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths

    def tell(self, about: str, most: int) -> tuple[list[Story], int]:
        """(the last `most` stories, how many there are). `about`: a Message-ID, an address, a session or a queue id."""
        roots = self._roots(about.strip())
        chosen = list(roots)[-most:]
        stories = {root: Story(root) for root in chosen}
        self._gather(stories, *self._links(chosen))
        return list(stories.values()), len(roots)

    def _lines(self, tokens: Iterable[str]) -> Iterator[Line]:
        """The events of lines that contain one of the tokens, whatever its case."""
        searched = re.compile(b"|".join(re.escape(token.encode("utf-8", "replace")) for token in tokens), re.IGNORECASE)
        for raw in _raw(self._paths):
            if searched.search(raw) and (line := parse(raw)) is not None:
                yield line

    def _roots(self, about: str) -> dict[str, None]:
        """Ids of the messages that are asked for, oldest first: each process writes its lines in its own time."""
        found: dict[str, datetime] = {}
        bare = about.strip("<>")
        # The longest part of it that stands in the log as it is, whatever the format escapes.
        plain = max(re.findall(r"[\w.@+-]+", bare, re.ASCII), key=len, default=bare)
        for line in self._lines([plain]):
            matches = (
                line.get("message_id").strip("<>") == bare
                or bare in (line.get("id"), line.get("session"))
                or any(line.get(name).lower() == bare.lower() for name in ADDRESSED)
            )
            if matches and line.get("id"):
                root = line.get("message") or line.get("about") or line.get("id")
                found[root] = min(line.at, found.get(root, line.at))
        return dict.fromkeys(sorted(found, key=found.__getitem__))

    def _links(self, roots: Sequence[str]) -> tuple[dict[str, str], dict[str, str], dict[tuple[str, str], str]]:
        """What leads to a root: names of entries made of it, sessions, places (mailbox, uid)."""
        names = {root: root for root in roots}
        sessions: dict[str, str] = {}
        places: dict[tuple[str, str], str] = {}
        for line in self._lines(roots) if roots else ():
            root = names.get(line.get("message")) or names.get(line.get("about")) or names.get(line.get("id"))
            if root is None:
                continue
            if line.get("id"):
                names.setdefault(line.get("id"), root)
            if line.event in ("received", "delivered") and line.get("session"):
                sessions.setdefault(line.get("session"), root)
            if line.get("uid"):
                places[line.get("mailbox"), line.get("uid")] = root
        return names, sessions, places

    def _gather(
        self, stories: dict[str, Story], names: dict[str, str], sessions: dict[str, str],
        places: dict[tuple[str, str], str],
    ) -> None:  # fmt: skip
        before: dict[str, list[Line]] = {session: [] for session in sessions}
        mailboxes = {mailbox for mailbox, _ in places}
        tokens = [*names, *sessions, *mailboxes]
        for line in self._lines(tokens) if tokens else ():
            session, root = line.get("session"), names.get(line.get("id"))
            if root is not None:
                if line.event == "received":
                    stories[root].lines += before.get(session, ())
                stories[root].lines.append(line)
            elif line.get("id"):
                pass
            elif line.get("mailbox") in mailboxes:
                for root in {places[place] for place in _places(line) if place in places}:
                    stories[root].lines.append(line)
                continue
            elif session in before:
                before[session].append(line)
                continue
            if line.event == "received" and session in before:  # what was said of the next message comes from here on
                before[session] = [one for one in before[session] if one.event in OPENING]
        for story in stories.values():
            story.lines.sort(key=lambda line: line.at)


def _places(line: Line) -> Iterator[tuple[str, str]]:
    """(mailbox, uid) of the messages a line is about: `uid=7`, or `uids=3:5,9`."""
    mailbox = line.get("mailbox")
    if line.get("uid"):
        yield mailbox, line.get("uid")
    for part in line.get("uids").split(","):
        first, _, last = part.partition(":")
        if first.isdigit() and (last or first).isdigit():
            for uid in range(int(first), min(int(last or first), int(first) + 100_000) + 1):
                yield mailbox, str(uid)


# ------------------------------------------------------------------ for people

# What an event says, and the fields it says it with.
_WORDS = {
    "connected": "connection to {service} from {peer}",
    "login": "{user} logged in from {peer}",
    "received": "{size} octets received from {peer} ({helo}), sender <{sender}>, {recipients} recipients, {message_id}",
    "delivered": "in the mailbox of {account} for {recipient}: {mailbox} UID {uid}, file {file}; "
    "durable after {durable_ms} ms, committed {committed_ms}, done {ready_ms}",
    "pushed": "{watchers} sessions told: first {first_ms} ms after the commit, last {last_ms} ms ({sessions})",
    "appended": "{user} put it into {name} as UID {uid}",
    "queued": "waits for other servers as {id}",
    "sent": "taken over by {host} for {recipient}: {answer}",
    "deferred": "not now for {recipient}{where}: {answer}; again in {next_in_s} s",
    "undeliverable": "never for {recipient}{where}: {answer}",
    "message-refused": "refused: {reason}",
    "refused": "refused with {code}: {reason}",
    "report": "a report ({kind}) goes to {to} as {id}",
    "expunged": "{user} removed it from {name}",
    "moved": "{user} moved it from {name} to {target}",
    "copied": "{user} copied it from {name} to {target}",
    "cancelled": "taken back before it left",
}


def said(line: Line) -> str:
    """One event in words; what has no words of its own is shown as it stands."""
    template = _WORDS.get(line.event)
    if template is not None:
        host = line.fields.get("host")
        return template.format_map(_Fields(line.fields, answer=_answer(line), where=f" at {host}" if host else ""))
    return " ".join(f"{name}={value}" for name, value in line.fields.items() if name not in ("id", "session"))


def _answer(line: Line) -> str:
    """What a server said, or why none was asked (code 0)."""
    code = line.fields.get("code")
    words = ("" if code in (None, "0") else code, line.fields.get("enhanced"), line.fields.get("reply"))
    return " ".join(word for word in words if word)


class _Fields(dict[str, Any]):
    def __missing__(self, name: str) -> str:
        return "-"


def written(story: Story) -> str:
    """The story as text: time since the first line, what happened, to whom it belongs."""
    if not story.lines:
        return f"{story.id}: nothing"
    begun = story.lines[0].at
    lines = [f"Message {story.id}, {begun:%Y-%m-%d %H:%M:%S.%f}"[:-3] + " UTC"]
    for line in story.lines:
        since = f"+{round((line.at - begun).total_seconds() * 1e3)} ms"
        where = line.get("session") if line.event in (*OPENING, "received", "refused") else ""
        lines.append(f"{since:>12}  {line.event:<16} {_printable(said(line))}" + (f"  [{where}]" if where else ""))
    return "\n".join(lines)


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)


def as_json(story: Story) -> dict[str, Any]:
    begun = story.lines[0].at if story.lines else None
    return {
        "id": story.id,
        "lines": [
            {
                "time": line.at.isoformat(timespec="milliseconds"),
                "since_ms": round((line.at - begun).total_seconds() * 1e3) if begun else 0,
                "level": line.level, "event": line.event, "text": said(line), "fields": line.fields,
            }
            for line in story.lines
        ],
    }  # fmt: skip
