"""FETCH: the one command whose speed everybody feels. Each item is an encoder for a chunk of messages; what a message
needs read is read once.

Work goes in chunks that give way: flags are formatted from the shared arrays, what the index has prepared (envelope,
structure, common header fields) from rows, everything else from message text read in batches of a bounded size. Each
chunk is one write.

Imports: imap.context, imap.messages, imap.view, mail, wire, values.    RFC 3501 6.4.5, 7.4.2.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mailsrv.imap.messages import refuse_expunged, resolve
from mailsrv.imap.view import View
from mailsrv.values import SEEN, FlagOp
from mailsrv.wire import imap_values as v
from mailsrv.wire import mime
from mailsrv.wire.imap_responses import fetch_item_name, flag_list, internal_date

if TYPE_CHECKING:
    from mailsrv.imap.session import Session

FLAGS_PER_WRITE = 2_000  # 1 to 2 ms of the event loop's time, as are those below
PREPARED_PER_READ, PREPARED_PER_WRITE = 400, 200
TEXT_PER_WRITE = 512 * 1024
LARGE_TEXT = 256 * 1024  # taken apart in a thread
SEEN_PER_COMMIT = 1_000

_PREPARED_ITEMS = {"ENVELOPE": "envelope", "BODYSTRUCTURE": "bodystructure"}  # as the index calls them
_ROW_ITEMS = frozenset({"INTERNALDATE", "RFC822.SIZE"})


_RECENT = 32  # beside the system flags, in tables only
_FLAG_LISTS = [flag_list(word % _RECENT, 0, (), word >= _RECENT) for word in range(2 * _RECENT)]
_WITH_RECENT = bytes(word | _RECENT for word in range(256))


class Message:
    """One message while its response is made. What was not needed is not there."""

    __slots__ = ("_part", "date", "position", "prepared", "seq", "size", "text", "uid")

    def __init__(
        self, seq: int, uid: int, position: int, size: int = 0, date: int = 0, text: bytes = b"",
        prepared: tuple[bytes, ...] = (),
    ) -> None:  # fmt: skip
        self.seq, self.uid, self.position = seq, uid, position
        self.size, self.date, self.text, self.prepared = size, date, text, prepared
        self._part: mime.Part | None = None

    def part(self) -> mime.Part:
        if self._part is None:
            self._part = mime.parse(self.text)
        return self._part


# One text for each message; a tuple of pieces where joining them would copy a message.
Encoder = Callable[[list[Message]], Sequence[bytes | tuple[bytes, ...]]]


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


def _responses(view: View, messages: list[Message], encoders: Sequence[Encoder], seen: frozenset[int]) -> bytes:
    """The FETCH responses of a chunk. Text is copied once, into the result: its pieces stay pieces until then."""
    out: list[bytes] = []
    for message, *row in zip(messages, *[encode(messages) for encode in encoders], strict=True):
        start = b"* %d FETCH (" % message.seq
        if message.uid in seen:
            start += _flags(view, message) + b" "
        for text in row:
            out.append(start)
            if type(text) is tuple:
                out += text
            else:
                out.append(text)
            start = b" "
        out.append(b")\r\n")
    return b"".join(out)


def _plain_responses(view: View, messages: list[Message], encoders: Sequence[Encoder], seen: frozenset[int]) -> bytes:
    """The same for short texts in one piece and no flags besides: half the time of joining pieces."""
    line = b"* %d FETCH (" + b" ".join([b"%b"] * len(encoders)) + b")\r\n"
    columns = [[message.seq for message in messages], *[encode(messages) for encode in encoders]]
    return b"".join([line % row for row in zip(*columns, strict=True)])


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
        if aligned and names == ["UID", "FLAGS"]:
            texts = _flag_lists(view, first, len(chunk))
            lines = [
                b"* %d FETCH (UID %d FLAGS (%b))\r\n" % row
                for row in zip(range(first + 1, first + 1 + len(chunk)), chunk, texts, strict=True)
            ]
        else:
            lines = []
            for message in _messages(view, chunk):
                if message.position < 0:
                    missing = True
                    continue
                texts = [_flags(view, message) if name == "FLAGS" else b"UID %d" % message.uid for name in names]
                lines.append(b"* %d FETCH (%b)\r\n" % (message.seq, b" ".join(texts)))
        session.stream.write(view.new_keywords() + b"".join(lines))
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


def _flag_lists(view: View, first: int, count: int) -> list[bytes]:
    """The flags of `count` messages from a position of the mailbox's arrays on, by way of a table."""
    mailbox = view.mailbox
    end = first + count
    words = mailbox.flags[first:end]
    for low, high in view.recent:
        start, stop = (bisect_left(mailbox.uids, uid, first, end) - first for uid in (low, high))
        words[start:stop] = words[start:stop].translate(_WITH_RECENT)
    texts = [*map(_FLAG_LISTS.__getitem__, words)]
    keywords = mailbox.keywords[first:end]
    if any(keywords):
        for at, bits in enumerate(keywords):
            if bits:
                texts[at] = flag_list(words[at] & ~_RECENT, bits, mailbox.keyword_names, bool(words[at] & _RECENT))
    return texts


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
    parts = tuple(dict.fromkeys(_PREPARED_ITEMS.get(item.name, "fields") for item in items if _is_prepared(item)))
    alone = not any(item.name in _ROW_ITEMS for item in items)
    encoders = [_encoder(view, item, parts) for item in items]
    missing = False
    size, slice_size = (PREPARED_PER_READ, PREPARED_PER_WRITE) if parts else (FLAGS_PER_WRITE, FLAGS_PER_WRITE)
    for start in range(0, len(uids), size):
        chunk = uids[start : start + size]
        if parts:
            found: Sequence[tuple[Any, ...]] = mailbox.prepared(chunk, parts, alone=alone)
        else:
            found = [(row.uid, row.size, row.internal_date) for row in mailbox.rows(chunk)]
        missing |= len(found) < len(chunk)
        for first in range(0, len(found), slice_size):
            if first:
                time.sleep(0)
            rows = found[first : first + slice_size]
            # No switch from here to the write: numbers, positions and flags are of one moment.
            messages = []
            for (uid, octets, date, *prepared), seq, position in zip(rows, *_places(view, rows), strict=True):
                if seq and position >= 0:
                    messages.append(Message(seq, uid, position, octets, date, b"", tuple(prepared)))
            missing |= len(messages) < len(rows)
            responses = (_responses if seen else _plain_responses)(view, messages, encoders, seen)
            session.stream.write(view.new_keywords() + responses)
    return missing


def _places(view: View, rows: Sequence[tuple[Any, ...]]) -> tuple[Sequence[int], Sequence[int]]:
    """(sequence numbers, positions in the mailbox's arrays) of rows that begin with a UID; 0 and -1 where there is
    none.
    """
    mailbox = view.mailbox
    if rows and view.uids is mailbox.uids:
        first = bisect_left(view.uids, rows[0][0], 0, view.count)
        last = first + len(rows)
        if last <= view.count and view.uids[last - 1] == rows[-1][0] and view.uids[first] == rows[0][0]:
            return range(first + 1, last + 1), range(first, last)
    numbers, positions = [], []
    for uid, *_ in rows:
        position = mailbox.position(uid)
        numbers.append(view.seq(uid) or 0)
        positions.append(-1 if position is None else position)
    return numbers, positions


# ------------------------------------------------------------------ from the text


def _from_text(
    session: Session, view: View, uids: list[int], items: tuple[v.FetchItem, ...], seen: frozenset[int]
) -> bool:
    mailbox = view.mailbox
    encoders = [_encoder(view, item, None) for item in items]
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
        messages = []
        for uid, text in texts:
            seq, position = view.seq(uid), mailbox.position(uid)
            if seq is None or position is None or (needs_row and uid not in rows):
                missing = True
                continue
            message = Message(seq, uid, position, text=text)
            if needs_row:
                message.size, message.date = rows[uid].size, rows[uid].internal_date
            if len(text) > LARGE_TEXT and _needs_parsing(items):
                mailbox.offload(message.part)
            messages.append(message)
        if keywords := view.new_keywords():
            session.stream.queue(keywords)
        session.stream.write(_responses(view, messages, encoders, seen))
    return missing


def _needs_parsing(items: tuple[v.FetchItem, ...]) -> bool:
    return any(
        item.name in ("BODY", "BODYSTRUCTURE") or (item.section is not None and item.section.path) for item in items
    )


# ------------------------------------------------------------------ encoders


def _encoder(view: View, item: v.FetchItem, parts: tuple[str, ...] | None) -> Encoder:
    """How this item is written for messages. `parts`: what was read of them from the index; None: their text was."""
    name = item.name
    if name == "UID":
        return lambda messages: [b"UID %d" % message.uid for message in messages]
    if name == "FLAGS":
        return lambda messages: _flags_column(view, messages)
    if name == "RFC822.SIZE":
        return lambda messages: [b"RFC822.SIZE %d" % message.size for message in messages]
    if name == "INTERNALDATE":
        return lambda messages: [b"INTERNALDATE " + internal_date(message.date) for message in messages]
    if name in _PREPARED_ITEMS and parts is not None:
        label, at = f"{name} ".encode(), parts.index(_PREPARED_ITEMS[name])
        return lambda messages: [label + message.prepared[at] for message in messages]
    if name == "ENVELOPE":
        return lambda messages: [
            b"ENVELOPE " + mime.envelope(message.text[: mime.header_end(message.text)]) for message in messages
        ]
    if name == "BODYSTRUCTURE":
        return lambda messages: [
            b"BODYSTRUCTURE " + mime.bodystructure(message.part(), message.text) for message in messages
        ]
    if name == "BODY":
        return lambda messages: [b"BODY " + mime.body(message.part(), message.text) for message in messages]
    return _section_encoder(item, parts)


def _flags_column(view: View, messages: list[Message]) -> list[bytes]:
    if not messages:
        return []
    first, last = messages[0], messages[-1]
    uids = view.mailbox.uids
    together = last.position - first.position == len(messages) - 1 and last.position < len(uids)
    # UIDs and positions both ascend: if the ends are where they were, so is everything between.
    if together and uids[first.position] == first.uid and uids[last.position] == last.uid:
        return [b"FLAGS (%b)" % text for text in _flag_lists(view, first.position, len(messages))]
    return [_flags(view, message) for message in messages]


_RFC822 = {"RFC822": None, "RFC822.HEADER": "HEADER", "RFC822.TEXT": "TEXT"}


def _section_encoder(item: v.FetchItem, parts: tuple[str, ...] | None) -> Encoder:
    label = fetch_item_name(item) + b" "
    section = v.Section((), _RFC822[item.name]) if item.section is None else item.section
    partial = item.partial
    if parts is not None:
        pick, at = mime.field_picker(frozenset(field.lower() for field in section.fields)), parts.index("fields")
        return lambda messages: [label + _literal(pick(message.prepared[at]), partial) for message in messages]

    def from_message(message: Message) -> bytes | tuple[bytes, ...]:
        if section.path:
            data = mime.section_of(message.part(), message.text, section.path, section.kind, section.fields)
        else:
            data = mime.section(message.text, (), section.kind, section.fields)
        if data is None or partial is not None or not data:
            return label + (b"NIL" if data is None else _literal(data, partial))
        return label, b"{%d}\r\n" % len(data), data

    return lambda messages: [from_message(message) for message in messages]


def _literal(data: bytes, partial: tuple[int, int] | None) -> bytes:
    """The octets as a literal; a range that begins past the end is an empty string (R32)."""
    if partial is not None:
        data = data[partial[0] : partial[0] + partial[1]]
    return b"{%d}\r\n%b" % (len(data), data) if data else b'""'
