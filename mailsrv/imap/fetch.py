"""FETCH: the one command whose speed everybody feels. Each item is an encoder; what a message needs read is read once.

Work goes in chunks that give way: flags are formatted from the shared arrays, what the index has prepared (envelope,
structure, common header fields) from rows, everything else from message text read in batches of a bounded size. Each
chunk is one write.

Imports: imap.context, imap.messages, imap.view, mail, wire, values.    RFC 3501 6.4.5, 7.4.2.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from mailsrv.imap.messages import refuse_expunged, resolve
from mailsrv.imap.view import View
from mailsrv.values import SEEN, FlagOp, Prepared
from mailsrv.wire import imap_values as v
from mailsrv.wire import mime
from mailsrv.wire.imap_responses import fetch_item_name, flag_list, internal_date

if TYPE_CHECKING:
    from mailsrv.imap.session import Session

FLAGS_PER_WRITE = 2_000
PREPARED_PER_WRITE = 400
TEXT_PER_WRITE = 1024 * 1024
LARGE_TEXT = 256 * 1024  # taken apart in a thread
SEEN_PER_COMMIT = 1_000

_PREPARED_ITEMS = frozenset({"ENVELOPE", "BODYSTRUCTURE"})
_ROW_ITEMS = frozenset({"INTERNALDATE", "RFC822.SIZE"})


class Message:
    """One message while its response is made. What was not needed is not there."""

    __slots__ = ("_part", "date", "flags", "position", "prepared", "seq", "size", "text", "uid")

    def __init__(self, seq: int, uid: int, position: int) -> None:
        self.seq, self.uid, self.position = seq, uid, position
        self.size = self.date = 0
        self.prepared: Prepared | None = None
        self.text = b""
        self._part: mime.Part | None = None

    def part(self) -> mime.Part:
        if self._part is None:
            self._part = mime.parse(self.text)
        return self._part


Encoder = Callable[[Message], bytes]


def fetch(session: Session, command: v.Command) -> None:
    assert isinstance(command, v.Fetch)
    view = session.selected()
    uids = resolve(view, command)
    if not uids:
        return
    items = command.items
    missing = bool(view.pending) and not view.pending.isdisjoint(uids)
    names = {item.name for item in items}
    seen: frozenset[int] = frozenset()
    if not view.read_only and any(_sets_seen(item) for item in items):
        seen = _mark_seen(session, view, uids, tell="FLAGS" in names)
    if names <= {"UID", "FLAGS"}:
        missing |= _flags_only(session, view, uids, [item.name for item in items])
    elif all(item.name in ("UID", "FLAGS") or item.name in _ROW_ITEMS or _is_prepared(item) for item in items):
        missing |= _from_index(session, view, uids, items, seen)
    else:
        missing |= _from_text(session, view, uids, items, seen)
    refuse_expunged(view, command, missing)


# ------------------------------------------------------------------ \Seen


def _sets_seen(item: v.FetchItem) -> bool:
    """R31: asking for text without PEEK; RFC822.HEADER does not."""
    return (item.name == "BODY[]" and not item.peek) or item.name in ("RFC822", "RFC822.TEXT")


def _mark_seen(session: Session, view: View, uids: Sequence[int], *, tell: bool) -> frozenset[int]:
    """Set \\Seen where it is missing; the UIDs whose flags are still to be told, in the response that has the text.

    With `tell` the response has them in any case. A line of their own before it would be as legal, but scripts take the
    first line for the text (RFC 3501 6.4.5: the flags are part of the response).
    """
    mailbox = view.mailbox
    mailbox.refresh()
    unseen = [uid for uid in uids if (at := mailbox.position(uid)) is not None and not mailbox.flags[at] & SEEN]
    changed: list[int] = []
    for start in range(0, len(unseen), SEEN_PER_COMMIT):
        stored = mailbox.store_flags(unseen[start : start + SEEN_PER_COMMIT], FlagOp.ADD, SEEN, ())
        view.silence(stored.changed, stored.modseq)
        changed += stored.changed
    if unseen:
        session.tell(expunges=False)
    return frozenset() if tell else frozenset(changed)


def _line(view: View, message: Message, encoders: Sequence[Encoder], seen: frozenset[int]) -> bytes:
    texts = [encode(message) for encode in encoders]
    if message.uid in seen:
        texts.insert(0, _flags(view, message))
    return b"* %d FETCH (%b)\r\n" % (message.seq, b" ".join(texts))


# ------------------------------------------------------------------ flags alone


def _flags_only(session: Session, view: View, uids: list[int], names: list[str]) -> bool:
    """Flags of many messages: the shared arrays and a table of texts, about 1 µs a message."""
    mailbox = view.mailbox
    missing = False
    for start in range(0, len(uids), FLAGS_PER_WRITE):
        chunk = uids[start : start + FLAGS_PER_WRITE]
        # No switch here: numbers, positions and flags are of one moment.
        first = bisect_left(view.uids, chunk[0], 0, view.count)
        aligned = view.uids is mailbox.uids and view.uids[first : first + len(chunk)].tolist() == chunk
        if (
            aligned
            and not view.recent
            and names == ["UID", "FLAGS"]
            and not any(mailbox.keywords[first : first + len(chunk)])
        ):
            flags = mailbox.flags[first : first + len(chunk)]
            table = [flag_list(word, 0, ()) for word in range(32)]
            lines = [
                b"* %d FETCH (UID %d FLAGS (%b))\r\n" % (seq, uid, table[word])
                for seq, uid, word in zip(range(first + 1, first + 1 + len(chunk)), chunk, flags, strict=True)
            ]
        else:
            lines = []
            for message in _messages(view, chunk):
                if message.position < 0:
                    missing = True
                    continue
                texts = [_flags(view, message) if name == "FLAGS" else b"UID %d" % message.uid for name in names]
                lines.append(b"* %d FETCH (%b)\r\n" % (message.seq, b" ".join(texts)))
        session.stream.write(b"".join(lines))
        if start + FLAGS_PER_WRITE < len(uids):
            time.sleep(0)
    return missing


def _messages(view: View, uids: Sequence[int]) -> Iterator[Message]:
    """The messages with their numbers; position -1 where the mailbox has them no more."""
    for uid in uids:
        seq = view.seq(uid)
        if seq is not None:
            position = view.mailbox.position(uid)
            yield Message(seq, uid, -1 if position is None else position)


def _flags(view: View, message: Message) -> bytes:
    mailbox = view.mailbox
    position = message.position
    # The arrays may have been made anew while text was read.
    if position >= len(mailbox.uids) or mailbox.uids[position] != message.uid:
        found = mailbox.position(message.uid)
        if found is None:
            return b"FLAGS ()"
        position = found
    recent = bool(view.recent) and view.is_recent(message.uid)
    text = flag_list(mailbox.flags[position], mailbox.keywords[position], mailbox.keyword_names, recent)
    return b"FLAGS (%b)" % text


# ------------------------------------------------------------------ from the index


def _is_prepared(item: v.FetchItem) -> bool:
    """Whether the index can answer: structure, envelope, and the header fields everybody asks for."""
    if item.name in _PREPARED_ITEMS:
        return True
    section = item.section
    return (
        section is not None
        and not section.path
        and section.kind == "HEADER.FIELDS"
        and {field.lower() for field in section.fields} <= mime.COMMON_FIELDS
    )


def _from_index(
    session: Session, view: View, uids: list[int], items: tuple[v.FetchItem, ...], seen: frozenset[int]
) -> bool:
    mailbox = view.mailbox
    encoders = [_encoder(view, item) for item in items]
    only_rows = not any(_is_prepared(item) for item in items)
    missing = False
    size = FLAGS_PER_WRITE if only_rows else PREPARED_PER_WRITE
    for start in range(0, len(uids), size):
        chunk = uids[start : start + size]
        found: list[tuple[int, int, int, Prepared | None]]
        if only_rows:
            found = [(row.uid, row.size, row.internal_date, None) for row in mailbox.rows(chunk)]
        else:
            found = list(mailbox.prepared(chunk))
        missing |= len(found) < len(chunk)
        lines = []
        for uid, octets, date, prepared in found:
            seq, position = view.seq(uid), mailbox.position(uid)
            if seq is None or position is None:
                missing = True
                continue
            message = Message(seq, uid, position)
            message.size, message.date, message.prepared = octets, date, prepared
            lines.append(_line(view, message, encoders, seen))
        session.stream.write(b"".join(lines))
    return missing


# ------------------------------------------------------------------ from the text


def _from_text(
    session: Session, view: View, uids: list[int], items: tuple[v.FetchItem, ...], seen: frozenset[int]
) -> bool:
    mailbox = view.mailbox
    encoders = [_encoder(view, item, from_text=True) for item in items]
    needs_row = any(item.name in _ROW_ITEMS for item in items)
    missing = False
    done = 0
    while done < len(uids):
        texts = mailbox.read_many(uids[done : done + FLAGS_PER_WRITE], TEXT_PER_WRITE)
        if not texts:
            # None of a whole batch is there; what is left is looked at in the next one.
            missing = True
            done += FLAGS_PER_WRITE
            continue
        after = bisect_left(uids, texts[-1][0] + 1, done)
        missing |= len(texts) < after - done
        done = after
        rows = {row.uid: row for row in mailbox.rows([uid for uid, _ in texts])} if needs_row else {}
        out = []
        for uid, text in texts:
            seq, position = view.seq(uid), mailbox.position(uid)
            if seq is None or position is None or (needs_row and uid not in rows):
                missing = True
                continue
            message = Message(seq, uid, position)
            message.text = text
            if needs_row:
                message.size, message.date = rows[uid].size, rows[uid].internal_date
            if len(text) > LARGE_TEXT and _needs_parsing(items):
                mailbox.offload(message.part)
            out.append(_line(view, message, encoders, seen))
        session.stream.write(b"".join(out))
    return missing


def _needs_parsing(items: tuple[v.FetchItem, ...]) -> bool:
    return any(
        item.name in ("BODY", "BODYSTRUCTURE") or (item.section is not None and item.section.path) for item in items
    )


# ------------------------------------------------------------------ encoders


def _encoder(view: View, item: v.FetchItem, *, from_text: bool = False) -> Encoder:
    """How this item is written for a message. One place for all items."""
    name = item.name
    if name == "UID":
        return lambda message: b"UID %d" % message.uid
    if name == "FLAGS":
        return lambda message: _flags(view, message)
    if name == "RFC822.SIZE":
        return lambda message: b"RFC822.SIZE %d" % message.size
    if name == "INTERNALDATE":
        return lambda message: b"INTERNALDATE " + internal_date(message.date)
    if name == "ENVELOPE":
        if from_text:
            return lambda message: b"ENVELOPE " + mime.envelope(message.text[: mime.header_end(message.text)])
        return lambda message: b"ENVELOPE " + _prepared(message).envelope
    if name == "BODYSTRUCTURE":
        if from_text:
            return lambda message: b"BODYSTRUCTURE " + mime.bodystructure(message.part(), message.text)
        return lambda message: b"BODYSTRUCTURE " + _prepared(message).bodystructure
    if name == "BODY":
        return lambda message: b"BODY " + mime.body(message.part(), message.text)
    return _section_encoder(item, from_text=from_text)


def _prepared(message: Message) -> Prepared:
    assert message.prepared is not None  # the plan that calls this reads it
    return message.prepared


_RFC822 = {"RFC822": None, "RFC822.HEADER": "HEADER", "RFC822.TEXT": "TEXT"}


def _section_encoder(item: v.FetchItem, *, from_text: bool) -> Encoder:
    label = fetch_item_name(item) + b" "
    section = v.Section((), _RFC822[item.name]) if item.section is None else item.section
    partial = item.partial
    if not from_text:
        wanted = frozenset(field.lower() for field in section.fields)

        def from_fields(message: Message) -> bytes:
            return label + _literal(mime.header_fields(_prepared(message).fields, wanted), partial)

        return from_fields

    def from_message(message: Message) -> bytes:
        if section.path:
            data = mime.section_of(message.part(), message.text, section.path, section.kind, section.fields)
        else:
            data = mime.section(message.text, (), section.kind, section.fields)
        return label + (b"NIL" if data is None else _literal(data, partial))

    return from_message


def _literal(data: bytes, partial: tuple[int, int] | None) -> bytes:
    """The octets as a literal; a range that begins past the end is an empty string (R32)."""
    if partial is not None:
        data = data[partial[0] : partial[0] + partial[1]]
    return b"{%d}\r\n%b" % (len(data), data) if data else b'""'
