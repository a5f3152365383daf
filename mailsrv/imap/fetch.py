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
from collections.abc import Callable, Iterable, Sequence
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
PREPARED_PER_WRITE = 400
TEXT_PER_WRITE = 512 * 1024
WITH_COMPLETION = 64 * 1024
LARGE_TEXT = 256 * 1024  # taken apart in a thread
SEEN_PER_COMMIT = 1_000

_PREPARED_ITEMS = {"ENVELOPE": "envelope", "BODYSTRUCTURE": "bodystructure"}  # as the index calls them
_ROW_ITEMS = frozenset({"INTERNALDATE", "RFC822.SIZE"})


_RECENT = 32  # beside the system flags, in tables only
_FLAG_LISTS = [flag_list(word % _RECENT, 0, (), word >= _RECENT) for word in range(2 * _RECENT)]
_WITH_RECENT = bytes(word | _RECENT for word in range(256))


class Chunk:
    """Messages whose responses are made in one go, as columns: their UIDs, and where they were asked for sizes, dates,
    and texts, which are either those that the index has prepared or whole messages.
    """

    __slots__ = ("_parts", "dates", "positions", "seqs", "sizes", "texts", "uids")

    def __init__(self, seqs: Sequence[int], positions: Sequence[int], columns: Sequence[Sequence[Any]]) -> None:
        self.seqs, self.positions = seqs, positions
        self.uids, self.sizes, self.dates, *self.texts = columns if len(columns) > 1 else (columns[0], (), ())
        self._parts: dict[int, mime.Part] = {}

    def part(self, at: int) -> mime.Part:
        """The structure of one whole message."""
        if at not in self._parts:
            self._parts[at] = mime.parse(self.texts[0][at])
        return self._parts[at]


# An item as a format, and what goes into it, for each message: formatting all items at once takes half the time.
Column = tuple[bytes, Callable[[Chunk], Iterable[Any]]]
# What is made of text, one for each message: a tuple of pieces where joining them would copy a message.
Encoder = Callable[[Chunk], Iterable[bytes | tuple[bytes, ...]]]


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
        missing |= _flags_only(session, view, uids, items)
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


def _text_responses(view: View, chunk: Chunk, encoders: Sequence[Encoder], seen: frozenset[int]) -> bytes:
    """The FETCH responses of a chunk. Text is copied once, into the result: its pieces stay pieces until then."""
    out: list[bytes] = []
    columns = [encode(chunk) for encode in encoders]
    for seq, uid, position, *row in zip(chunk.seqs, chunk.uids, chunk.positions, *columns, strict=True):
        start = b"* %d FETCH (" % seq
        if uid in seen:
            start += b"FLAGS (%b) " % _flags(view, uid, position)
        for text in row:
            out.append(start)
            if type(text) is tuple:
                out += text
            else:
                out.append(text)
            start = b" "
        out.append(b")\r\n")
    return b"".join(out)


def _responses(view: View, chunk: Chunk, columns: Sequence[Column], seen: frozenset[int]) -> bytes:
    """The FETCH responses of a chunk without long texts: one format for all items."""
    line = b"* %d FETCH ("
    values: list[Iterable[Any]] = [chunk.seqs]
    if seen:
        line += b"%b"
        values.append(_flags_where(view, chunk, seen))
    line += b" ".join([text for text, _ in columns]) + b")\r\n"
    values += [column(chunk) for _, column in columns]
    return b"".join([line % row for row in zip(*values, strict=True)])


def _flags_where(view: View, chunk: Chunk, seen: frozenset[int]) -> list[bytes]:
    """The flags, as a beginning of the response, of messages that were marked seen just now."""
    return [
        b"FLAGS (%b) " % _flags(view, uid, position) if uid in seen else b""
        for uid, position in zip(chunk.uids, chunk.positions, strict=True)
    ]


def _send(session: Session, text: bytes, *, last: bool) -> None:
    """One write for each chunk; the last one, if it is short, with the completion: that wakes the client once."""
    if last and len(text) <= WITH_COMPLETION:
        session.stream.queue(text)
    else:
        session.stream.write(text)


# ------------------------------------------------------------------ flags alone


def _flags_only(session: Session, view: View, uids: list[int], items: tuple[v.FetchItem, ...]) -> bool:
    """Flags of many messages: the shared arrays and a table of texts, about 1 µs a message."""
    columns = [_column(view, item, ()) for item in items]
    missing = False
    for start in range(0, len(uids), FLAGS_PER_WRITE):
        part = uids[start : start + FLAGS_PER_WRITE]
        # No switch here: numbers, positions and flags are of one moment.
        chunk = _placed(view, [part])
        missing |= len(chunk.uids) < len(part)
        last = start + FLAGS_PER_WRITE >= len(uids)
        _send(session, view.new_keywords() + _responses(view, chunk, columns, frozenset()), last=last)
        if not last:
            time.sleep(0)
    return missing


def _placed(view: View, columns: Sequence[Sequence[Any]]) -> Chunk:
    """The columns of a chunk, ascending by UID, with the messages' numbers and positions in the mailbox's arrays;
    without those that have none.
    """
    mailbox, uids = view.mailbox, columns[0]
    if uids and view.uids is mailbox.uids:
        first = bisect_left(view.uids, uids[0], 0, view.count)
        end = first + len(uids)
        # UIDs and positions both ascend: if the ends are where they must be, so is everything between.
        if end <= view.count and view.uids[first] == uids[0] and view.uids[end - 1] == uids[-1]:
            return Chunk(range(first + 1, end + 1), range(first, end), columns)
    places = [(view.seq(uid), mailbox.position(uid)) for uid in uids]
    kept = [at for at, place in enumerate(places) if None not in place]
    return Chunk(
        [places[at][0] or 0 for at in kept], [places[at][1] or 0 for at in kept],
        [[column[at] for at in kept] for column in columns],
    )  # fmt: skip


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


def _flags(view: View, uid: int, position: int) -> bytes:
    mailbox = view.mailbox
    # The arrays may have been made anew while text was read.
    if position >= len(mailbox.uids) or mailbox.uids[position] != uid:
        found = mailbox.position(uid)
        if found is None:
            return b""
        position = found
    recent = bool(view.recent) and view.is_recent(uid)
    return flag_list(mailbox.flags[position], mailbox.keywords[position], mailbox.keyword_names, recent)


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
    columns = [_column(view, item, parts) for item in items]
    missing = False
    size = PREPARED_PER_WRITE if parts else FLAGS_PER_WRITE
    for start in range(0, len(uids), size):
        part = uids[start : start + size]
        if parts:
            found: Sequence[tuple[Any, ...]] = mailbox.prepared(part, parts, alone=alone)
        else:
            found = [(row.uid, row.size, row.internal_date) for row in mailbox.rows(part)]
        if not found:
            missing = True
            continue
        # No switch from here to the write: numbers, positions and flags are of one moment.
        chunk = _placed(view, list(zip(*found, strict=True)))
        missing |= len(chunk.uids) < len(part)
        text = view.new_keywords() + _responses(view, chunk, columns, seen)
        _send(session, text, last=start + size >= len(uids))
    return missing


# ------------------------------------------------------------------ from the text


def _from_text(
    session: Session, view: View, uids: list[int], items: tuple[v.FetchItem, ...], seen: frozenset[int]
) -> bool:
    mailbox = view.mailbox
    encoders = [_encoder(view, item) for item in items]
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
        expected, done = after - done, after
        rows = [(uid, 0, 0, text) for uid, text in texts]
        if needs_row:
            facts = {row.uid: (row.size, row.internal_date) for row in mailbox.rows([uid for uid, _ in texts])}
            rows = [(uid, *facts[uid], text) for uid, text in texts if uid in facts]
        missing |= len(rows) < expected
        if not rows:
            continue
        chunk = _placed(view, list(zip(*rows, strict=True)))
        missing |= len(chunk.uids) < len(rows)
        if _needs_parsing(items):
            for at, text in enumerate(chunk.texts[0]):
                if len(text) > LARGE_TEXT:
                    mailbox.offload(chunk.part, at)
        if keywords := view.new_keywords():
            session.stream.queue(keywords)
        _send(session, _text_responses(view, chunk, encoders, seen), last=done >= len(uids))
    return missing


def _needs_parsing(items: tuple[v.FetchItem, ...]) -> bool:
    return any(
        item.name in ("BODY", "BODYSTRUCTURE") or (item.section is not None and item.section.path) for item in items
    )


# ------------------------------------------------------------------ encoders


def _column(view: View, item: v.FetchItem, parts: tuple[str, ...]) -> Column:
    """How an item is written that needs no text. `parts`: what was read of the messages from the index."""
    name = item.name
    if name == "UID":
        return b"UID %d", lambda chunk: chunk.uids
    if name == "FLAGS":
        return b"FLAGS (%b)", lambda chunk: _flags_column(view, chunk)
    if name == "RFC822.SIZE":
        return b"RFC822.SIZE %d", lambda chunk: chunk.sizes
    if name == "INTERNALDATE":
        return b"INTERNALDATE %b", lambda chunk: map(internal_date, chunk.dates)
    at = parts.index(_PREPARED_ITEMS.get(name, "fields"))
    if name in _PREPARED_ITEMS:
        return name.encode() + b" %b", lambda chunk: chunk.texts[at]
    assert item.section is not None
    partial = item.partial
    pick = mime.field_picker(frozenset(field.lower() for field in item.section.fields))
    return fetch_item_name(item) + b" %b", lambda chunk: [_literal(pick(text), partial) for text in chunk.texts[at]]


def _flags_column(view: View, chunk: Chunk) -> list[bytes]:
    uids, positions, known = chunk.uids, chunk.positions, view.mailbox.uids
    if not uids:
        return []
    first, last = positions[0], positions[-1]
    together = last - first == len(uids) - 1 and last < len(known)
    # As in _placed: they may have moved since.
    if together and known[first] == uids[0] and known[last] == uids[-1]:
        return _flag_lists(view, first, len(uids))
    return [_flags(view, uid, position) for uid, position in zip(uids, positions, strict=True)]


_RFC822 = {"RFC822": None, "RFC822.HEADER": "HEADER", "RFC822.TEXT": "TEXT"}


def _encoder(view: View, item: v.FetchItem) -> Encoder:
    """How an item is written for messages whose text was read."""
    name = item.name
    if name in ("UID", "FLAGS") or name in _ROW_ITEMS:
        line, values = _column(view, item, ())
        return lambda chunk: [line % value for value in values(chunk)]
    if name == "ENVELOPE":
        return lambda chunk: [b"ENVELOPE " + mime.envelope(text[: mime.header_end(text)]) for text in chunk.texts[0]]
    if name == "BODYSTRUCTURE":
        return lambda chunk: [
            b"BODYSTRUCTURE " + mime.bodystructure(chunk.part(at), text) for at, text in enumerate(chunk.texts[0])
        ]
    if name == "BODY":
        return lambda chunk: [b"BODY " + mime.body(chunk.part(at), text) for at, text in enumerate(chunk.texts[0])]
    return _section_encoder(item)


def _section_encoder(item: v.FetchItem) -> Encoder:
    label = fetch_item_name(item) + b" "
    section = v.Section((), _RFC822[item.name]) if item.section is None else item.section
    partial = item.partial

    def from_message(chunk: Chunk, at: int) -> bytes | tuple[bytes, ...]:
        text = chunk.texts[0][at]
        if section.path:
            data = mime.section_of(chunk.part(at), text, section.path, section.kind, section.fields)
        else:
            data = mime.section(text, (), section.kind, section.fields)
        if data is None or partial is not None or not data:
            return label + (b"NIL" if data is None else _literal(data, partial))
        return label, b"{%d}\r\n" % len(data), data

    return lambda chunk: [from_message(chunk, at) for at in range(len(chunk.uids))]


def _literal(data: bytes, partial: tuple[int, int] | None) -> bytes:
    """The octets as a literal; a range that begins past the end is an empty string (R32)."""
    if partial is not None:
        data = data[partial[0] : partial[0] + partial[1]]
    return b"{%d}\r\n%b" % (len(data), data) if data else b'""'
