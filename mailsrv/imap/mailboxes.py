"""Handlers that act on mailboxes as such: select, list, create, delete, rename, subscribe, status.

Imports: imap.context, imap.view, mail, wire, errors.    RFC 3501 6.3, 7.2; RFC 2342, 3691, 5258 (as far as 6154
needs it), 6154.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from gevent.event import Event

from mailsrv.errors import MailError
from mailsrv.imap.context import Refused, State
from mailsrv.imap.view import View, flags_response
from mailsrv.values import MAX_KEYWORDS, SEEN, SYSTEM_FLAGS, MailboxInfo, MailboxStatus
from mailsrv.wire import imap_values as v
from mailsrv.wire.imap_responses import list_line, mailbox_name

if TYPE_CHECKING:
    from mailsrv.imap.session import Session

DELIMITER = "/"
SLICE_SECONDS = 0.005  # of the loop, until others have their turn
_SEEN_MAP = bytes(0 if octet & SEEN else 1 for octet in range(256))


def select(session: Session, command: v.Command) -> str:
    """SELECT and EXAMINE. Subscribes before the first look, so that no change falls between (R44)."""
    assert isinstance(command, v.Select)
    session.leave_mailbox()  # a failed SELECT leaves nothing selected (R14)
    mailbox = session.services.mailboxes.open(session.mail().account, command.mailbox)
    wake = Event()
    subscription = mailbox.subscribe(wake)
    try:
        mailbox.refresh()
        if mailbox.gone:
            raise Refused("[NONEXISTENT] The mailbox was deleted")
        view = View(mailbox, subscription, read_only=command.examine)
    except BaseException:
        subscription.close()
        mailbox.close()
        raise
    session.view, session.wake, session.state = view, wake, State.SELECTED
    first_recent = None if view.read_only else view.claim_recent()
    flags = mailbox.flags
    unseen = flags.translate(_SEEN_MAP).find(1, 0, view.count)
    names = " ".join([*SYSTEM_FLAGS, *view.keyword_names])
    more = " \\*" if len(view.keyword_names) < MAX_KEYWORDS else ""
    permanent = "" if view.read_only else names + more
    lines = [
        flags_response(view.keyword_names),
        f"* OK [PERMANENTFLAGS ({permanent})] Flags that are kept\r\n".encode(),
        b"* %d EXISTS\r\n" % view.count,
        b"* %d RECENT\r\n" % (view.recent_count() if first_recent is not None else _unclaimed(session, view)),
    ]
    if unseen >= 0:
        lines.append(b"* OK [UNSEEN %d] First unseen message\r\n" % (unseen + 1))
    lines.append(b"* OK [UIDVALIDITY %d] UIDs are valid\r\n" % mailbox.uidvalidity)
    lines.append(b"* OK [UIDNEXT %d] Predicted next UID\r\n" % mailbox.uidnext)
    session.stream.queue(b"".join(lines))
    return "[READ-ONLY] EXAMINE completed" if command.examine else "[READ-WRITE] SELECT completed"


def _unclaimed(session: Session, view: View) -> int:
    """EXAMINE tells how many are recent and leaves them so (R12)."""
    return min(view.count, view.mailbox.status().recent)


def close(session: Session, command: v.Command) -> None:
    """Expunges without telling, unless the mailbox is read-only (R15, R16)."""
    view = session.selected()
    try:
        if not view.read_only:
            session.acted("expunged", view.mailbox.expunge())
    finally:
        session.leave_mailbox()


def unselect(session: Session, command: v.Command) -> None:
    session.leave_mailbox()


def create(session: Session, command: v.Command) -> None:
    assert isinstance(command, v.Create)
    session.mail().create(command.mailbox.removesuffix(DELIMITER), command.special_use)  # RFC 3501 6.3.3: a hint


def delete(session: Session, command: v.Command) -> None:
    assert isinstance(command, v.Delete)
    if session.view is not None and session.view.mailbox.name == command.mailbox:
        session.leave_mailbox()
    session.mail().delete(command.mailbox)


def rename(session: Session, command: v.Command) -> None:
    assert isinstance(command, v.Rename)
    session.mail().rename(command.old, command.new.removesuffix(DELIMITER))


def subscribe(session: Session, command: v.Command) -> None:
    """A name need not exist to be subscribed to (R22)."""
    assert isinstance(command, v.Subscribe)
    session.mail().subscribe(command.mailbox.removesuffix(DELIMITER))


def unsubscribe(session: Session, command: v.Command) -> None:
    assert isinstance(command, v.Unsubscribe)
    session.mail().unsubscribe(command.mailbox.removesuffix(DELIMITER))


def namespace(session: Session, command: v.Command) -> None:
    session.stream.queue(b'* NAMESPACE (("" "/")) NIL NIL\r\n')


def status(session: Session, command: v.Command) -> None:
    assert isinstance(command, v.Status)
    session.stream.queue(_status_line(command.mailbox, command.items, session.mail().status(command.mailbox)))


def _status_line(name: str, items: tuple[str, ...], found: MailboxStatus) -> bytes:
    values = {
        "MESSAGES": found.messages, "RECENT": found.recent, "UIDNEXT": found.uidnext, "UIDVALIDITY": found.uidvalidity,
        "UNSEEN": found.unseen,
    }  # fmt: skip
    text = " ".join(f"{item} {values[item]}" for item in items)
    return b"* STATUS %b (%b)\r\n" % (mailbox_name(name), text.encode())


# ------------------------------------------------------------------ LIST and LSUB


class _Pace:
    """Gives way when some milliseconds were used: names, patterns and their lengths are the client's choice."""

    def __init__(self) -> None:
        self._begun = time.perf_counter()

    def step(self) -> None:
        if time.perf_counter() - self._begun > SLICE_SECONDS:
            time.sleep(0)
            self._begun = time.perf_counter()


def _matches_one(patterns: list[str], name: str, pace: _Pace) -> bool:
    for pattern in patterns:
        pace.step()
        if matches(pattern, name):
            return True
    return False


def matches(pattern: str, name: str) -> bool:
    """Whether a name matches a pattern with `%` and `*` (RFC 3501 6.3.8). Linear in pattern times name, never more."""
    if pattern == "*":
        return True
    if pattern == "%":
        return DELIMITER not in name
    reachable = {0}  # positions in the pattern that the name read so far can stand at
    reachable = _past_wildcards(pattern, reachable)
    for char in name:
        following = set()
        for position in reachable:
            if position == len(pattern):
                continue
            wanted = pattern[position]
            if wanted == "*" or (wanted == "%" and char != DELIMITER):
                following.add(position)
            elif wanted == char:
                following.add(position + 1)
        reachable = _past_wildcards(pattern, following)
        if not reachable:
            return False
    return len(pattern) in reachable


def _past_wildcards(pattern: str, positions: set[int]) -> set[int]:
    found = set(positions)
    for position in positions:
        while position < len(pattern) and pattern[position] in "*%":
            position += 1
            found.add(position)
    return found


def _squeezed(pattern: str) -> str:
    """The same pattern without repeated wildcards, which match nothing more."""
    out: list[str] = []
    for char in pattern:
        if char in "*%" and out and out[-1] in "*%":
            out[-1] = "*" if "*" in (char, out[-1]) else "%"
        else:
            out.append(char)
    return "".join(out)


def _full_pattern(reference: str, pattern: str) -> str:
    """The reference goes before the pattern, unless that begins at the root (RFC 3501 6.3.8)."""
    full = pattern if pattern.startswith(DELIMITER) else reference + pattern
    if full[:6].upper() == "INBOX" + DELIMITER or full.upper() == "INBOX":
        full = "INBOX" + full[5:]
    return _squeezed(full)[:1000]


def list_mailboxes(session: Session, command: v.Command) -> None:
    assert isinstance(command, v.List)
    kind = b"LSUB" if command.lsub else b"LIST"
    if command.patterns == ("",) and not command.lsub:
        session.stream.queue(b'* LIST (\\Noselect) "/" ""\r\n')  # the delimiter and the root (R19)
        return
    patterns = [_full_pattern(command.reference, pattern) for pattern in command.patterns]
    existing = {info.name: info for info in session.mail().mailboxes()}
    wants_subscribed = command.lsub or "SUBSCRIBED" in command.select
    subscribed: set[str] = (
        set(session.mail().subscriptions()) if wants_subscribed or "SUBSCRIBED" in command.returns else set()
    )
    names = _lsub_names(subscribed, patterns, _Pace()) if command.lsub else None
    if names is None:
        names = dict.fromkeys(subscribed if wants_subscribed else _with_superiors(existing), False)
    pace = _Pace()
    shown = {name for name in names if _matches_one(patterns, name, pace)}
    if any(pattern.upper() == "INBOX" for pattern in patterns) and not wants_subscribed:
        shown.add("INBOX")
    parents = {name[:position] for name in existing for position, char in enumerate(name) if char == DELIMITER}
    for name in sorted(shown, key=lambda name: (name != "INBOX", name)):
        pace.step()
        info = existing.get(name)
        attributes = _attributes(command, name, info, parents, superior=names.get(name, False), subscribed=subscribed)
        if attributes is not None:
            session.stream.queue(list_line(kind, attributes, DELIMITER, name))
            if command.status and info is not None:
                try:
                    session.stream.queue(_status_line(name, command.status, session.mail().status(name)))
                except MailError:
                    continue  # deleted meanwhile


def _attributes(
    command: v.List, name: str, info: MailboxInfo | None, parents: set[str], *, superior: bool, subscribed: set[str]
) -> list[str] | None:
    """The attributes of a line; None if the selection leaves it out."""
    attributes = []
    if "SPECIAL-USE" in command.select and (info is None or info.special_use is None):
        return None
    if superior or (info is None and not command.extended):
        attributes.append("\\Noselect")
    elif info is None:
        attributes.append("\\NonExistent")
    attributes.append("\\HasChildren" if name in parents else "\\HasNoChildren")
    if not command.lsub and info is not None and info.special_use is not None:
        attributes.append(info.special_use)
    if command.extended and name in subscribed:
        attributes.append("\\Subscribed")
    return attributes


def _with_superiors(existing: dict[str, MailboxInfo]) -> list[str]:
    """The mailboxes and those of their superiors that are none themselves (R20)."""
    names = dict.fromkeys(existing)
    for name in existing:
        for position, char in enumerate(name):
            if char == DELIMITER:
                names.setdefault(name[:position])
    return list(names)


def _lsub_names(subscribed: set[str], patterns: list[str], pace: _Pace) -> dict[str, bool]:
    """Subscribed names; with `%` also the superiors of those it hides, marked True (RFC 3501 6.3.9)."""
    names = dict.fromkeys(subscribed, False)
    if any("%" in pattern for pattern in patterns):
        for name in subscribed:
            if _matches_one(patterns, name, pace):
                continue
            for position, char in enumerate(name):
                if char == DELIMITER:
                    names.setdefault(name[:position], True)
    return names
