"""What one client believes of its mailbox: which message has which sequence number, and what it has not been told yet.

Sequence numbers exist here and nowhere else. The view shares the mailbox's own array of UIDs as long as the two
agree, and keeps a private copy only while expunges may not be told (during FETCH, STORE and SEARCH by number, R1). A
command's numbers are resolved against the view, so another session's expunge can never make them mean a neighbour
(R2, R6).

Imports: mail.mailbox, wire, values.    RFC 3501 5.2, 5.5, 7.3, 7.4; RFC 2180.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from operator import itemgetter

from mailsrv.mail.mailbox import Mailbox, add_range
from mailsrv.mail.notify import Subscription
from mailsrv.values import SYSTEM_FLAGS
from mailsrv.wire.errors import WireError
from mailsrv.wire.imap_responses import flag_list
from mailsrv.wire.imap_values import SequenceSet

NONE: frozenset[int] = frozenset()  # one for all: an empty one has 216 octets
NOTHING_RECENT: list[tuple[int, int]] = []  # half-open UID ranges, ascending; this one is never changed
RECENT_RANGES = 32
WALK_SHARE = 16  # one walk over all is cheaper than a search for each of more than this part of them

_first = itemgetter(0)


class ViewBroken(Exception):
    """The mailbox became something that cannot be told in this session; it has to begin anew."""


class View:
    __slots__ = (
        "count", "cursor", "keyword_names", "mailbox", "pending", "read_only", "recent", "recent_most", "silenced",
        "subscription", "uids", "uses_uid",
    )  # fmt: skip

    def __init__(self, mailbox: Mailbox, subscription: Subscription, *, read_only: bool) -> None:
        self.mailbox, self.subscription, self.read_only = mailbox, subscription, read_only
        # No switch here: array, count, cursor and keywords are of one moment.
        self.uids: array[int] = mailbox.uids
        self.count = len(mailbox.uids)
        self.cursor = mailbox.highest_modseq
        self.keyword_names = mailbox.keyword_names
        self.recent = NOTHING_RECENT
        self.recent_most = RECENT_RANGES  # with more, those of messages that are gone are dropped
        self.pending = NONE  # expunged, the client does not know; mostly none
        self.silenced: dict[int, int] | None = None  # uid -> modseq of a change of our own not to be told
        self.uses_uid = False
        mailbox.writers += not read_only

    # -------------------------------------------------------------- numbers

    def seq(self, uid: int) -> int | None:
        """The sequence number of a UID; None if the client does not know it."""
        position = bisect_left(self.uids, uid, 0, self.count)
        return position + 1 if position < self.count and self.uids[position] == uid else None

    def seqs(self, uids: list[int]) -> list[int]:
        """The sequence numbers of those UIDs (ascending) that the client knows."""
        if len(uids) * WALK_SHARE < self.count:
            return [seq for uid in uids if (seq := self.seq(uid)) is not None]
        wanted = set(uids)
        return [seq for seq, uid in enumerate(self.uids[: self.count], 1) if uid in wanted]

    def uids_of(self, numbers: SequenceSet) -> list[int]:
        """UIDs of a set of sequence numbers, ascending, each once. WireError for a number beyond the last (R9)."""
        spans = []
        for first, last in numbers.ranges:
            low, high = first or self.count, last or self.count
            low, high = min(low, high), max(low, high)
            if not self.count and first is None and last is None:
                continue  # `*` of an empty mailbox is nothing (R10)
            if low < 1 or high > self.count:
                raise WireError("There is no message with that number")
            spans.append((low - 1, high))
        return self._spanned(spans)

    def known_uids_of(self, uids: SequenceSet) -> list[int]:
        """UIDs of the set that the client knows, ascending, each once; others are ignored (R9). `*` is the last
        (R10).
        """
        if not self.count:
            return []
        top = self.uids[self.count - 1]
        spans = []
        for first, last in uids.ranges:
            low, high = top if first is None else first, top if last is None else last
            low, high = min(low, high), max(low, high)
            spans.append((bisect_left(self.uids, low, 0, self.count), bisect_right(self.uids, high, 0, self.count)))
        return self._spanned(spans)

    def _spanned(self, spans: list[tuple[int, int]]) -> list[int]:
        found: list[int] = []
        done = 0
        for start, end in sorted(spans):
            start = max(start, done)
            if start < end:
                found.extend(self.uids[start:end])
                done = end
        return found

    def is_recent(self, uid: int) -> bool:
        place = bisect_right(self.recent, uid, key=_first) - 1
        return place >= 0 and uid < self.recent[place][1]

    def recent_count(self) -> int:
        return sum(
            bisect_left(self.uids, last, 0, self.count) - bisect_left(self.uids, first, 0, self.count)
            for first, last in self.recent
        )

    def claim_recent(self) -> bool:
        """Take over messages no session was told of as recent; True if there were any. EXAMINE takes none (R12)."""
        if self.read_only:
            return False
        claimed = self.mailbox.claim_recent()
        if claimed and self.recent is NOTHING_RECENT:
            self.recent = []
        for first, last in claimed:
            add_range(self.recent, first, last)
        if len(self.recent) > self.recent_most:
            self._forget_recent()
        return bool(claimed)

    def _forget_recent(self) -> None:
        """Drop the ranges of messages that are gone, and join those with nothing between them. Where sessions take
        turns to be told first, each message is a range, and a session may last for weeks.
        """
        kept: list[tuple[int, int]] = []
        after = -1  # the position behind the last range kept
        for first, last in self.recent:
            start, end = (bisect_left(self.uids, uid, 0, self.count) for uid in (first, last))
            if start == end < self.count:  # others may still be told of; none comes below those
                continue
            if start == after and start < self.count:
                kept[-1] = (kept[-1][0], last)
            else:
                kept.append((first, last))
            after = end
        self.recent = kept
        self.recent_most = max(RECENT_RANGES, 2 * len(kept))  # so that a claim costs the same however many there are

    # -------------------------------------------------------------- telling

    def flags_line(self, seq: int, uid: int, position: int, *, with_uid: bool) -> bytes:
        """An untagged FETCH with the flags of the message at `position` of the mailbox's arrays."""
        mailbox = self.mailbox
        recent = bool(self.recent) and self.is_recent(uid)
        flags = flag_list(mailbox.flags[position], mailbox.keywords[position], mailbox.keyword_names, recent)
        if with_uid:
            return b"* %d FETCH (UID %d FLAGS (%b))\r\n" % (seq, uid, flags)
        return b"* %d FETCH (FLAGS (%b))\r\n" % (seq, flags)

    def new_keywords(self) -> bytes:
        """The flags of the mailbox if it has keywords that the client was not told of: they go before a FETCH response
        that may have them (R30).
        """
        if self.keyword_names == self.mailbox.keyword_names:
            return b""
        self.keyword_names = self.mailbox.keyword_names
        return flags_response(self.keyword_names)

    def tell(self, *, expunges: bool, told: set[int] | None = None) -> list[bytes]:
        """The lines that bring the client up to date: EXPUNGE, EXISTS, FLAGS, FETCH. `told` collects UIDs whose
        flags went out.

        The mailbox must have been refreshed. Costs nothing when nothing changed.
        """
        mailbox = self.mailbox
        if mailbox.highest_modseq == self.cursor and not (expunges and self.pending):
            return []
        # No switch in here: what is read of the mailbox is of one moment.
        changes = mailbox.changes_since(self.cursor, self.uids, self.count)
        self.cursor = changes.modseq
        lines: list[bytes] = []
        if changes.vanished:
            self.pending = self.pending.union(changes.vanished)
        if self.pending and expunges:
            lines.extend(self._expunge_lines())
        if changes.arrived:
            if self.count and changes.arrived[0] <= self.uids[self.count - 1]:
                raise ViewBroken("messages appeared among those already numbered")
            if self.pending:
                self.uids = self.uids[: self.count] + array("I", changes.arrived)
            self.count += len(changes.arrived)
            lines.append(b"* %d EXISTS\r\n" % self.count)
        if not self.pending:
            # Whatever was told, the client now knows exactly what the mailbox holds.
            self.uids, self.count = mailbox.uids, len(mailbox.uids)
        if keywords := self.new_keywords():
            lines.append(keywords)
        for uid in changes.changed:
            position = mailbox.position(uid)
            seq = self.seq(uid)
            if position is None or seq is None:
                continue
            if self.silenced is not None and self.silenced.get(uid) == mailbox.modseqs[position]:
                continue
            lines.append(self.flags_line(seq, uid, position, with_uid=self.uses_uid))
            if told is not None:
                told.add(uid)
        self.silenced = None
        return lines

    def _expunge_lines(self) -> list[bytes]:
        """One EXPUNGE each, in ascending order, each number counting those before it as gone (R3)."""
        uids, count = self.uids, self.count
        positions = [bisect_left(uids, uid, 0, count) for uid in sorted(self.pending)]
        lines = [b"* %d EXPUNGE\r\n" % (position + 1 - gone) for gone, position in enumerate(positions)]
        remaining: array[int] = array("I")
        start = 0
        for position in [*positions, self.count]:
            remaining.extend(self.uids[start:position])
            start = position + 1
        self.uids, self.count = remaining, len(remaining)
        self.pending = NONE
        return lines

    def silence(self, uids: Sequence[int], modseq: int) -> None:
        """Our own change that the client asked not to be told of (R29)."""
        self.silenced = {**(self.silenced or {}), **dict.fromkeys(uids, modseq)}

    def close(self) -> None:
        self.mailbox.writers -= not self.read_only
        self.subscription.close()
        self.mailbox.close()


def flags_response(keyword_names: tuple[str, ...]) -> bytes:
    """The flags of the mailbox (R30)."""
    return b"* FLAGS (%b)\r\n" % " ".join([*SYSTEM_FLAGS, *keyword_names]).encode()
