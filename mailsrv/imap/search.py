"""Evaluates a SEARCH over what the client sees. Cheap questions first, and each only of the messages still in doubt.

A key is asked of a list of UIDs and gives those it holds for. In a conjunction the keys are ordered by cost, so that
text is read only of messages that flags, dates and prepared headers left over.

Imports: imap.view, mail.mailbox, wire, values.    RFC 3501 6.4.4.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Sequence
from itertools import compress

from mailsrv.imap.view import View
from mailsrv.mail.mailbox import Mailbox
from mailsrv.values import SEEN
from mailsrv.wire import imap_values as v
from mailsrv.wire import mime

PREPARED_AT_ONCE = 2_000
TEXT_AT_ONCE = 2 * 1024 * 1024
_EPOCH = datetime.date(1970, 1, 1).toordinal()
_COLUMNS = {"from": "from_", "to": "to", "cc": "cc", "bcc": "bcc", "subject": "subject"}


def search(mailbox: Mailbox, view: View, key: v.SearchKey) -> list[int]:
    """UIDs of the messages that match, ascending. WireError for a sequence number that is not there."""
    known = view.uids[: view.count].tolist()
    return _Evaluation(mailbox, view).holds(key, known)


def cost(key: v.SearchKey) -> int:
    """Rough order of what a key costs per message: arrays, rows, prepared text, message text."""
    if isinstance(key, v.And):
        return max(cost(part) for part in key.keys)
    if isinstance(key, v.Or):
        return max(cost(key.left), cost(key.right))
    if isinstance(key, v.Not):
        return cost(key.key)
    if isinstance(key, v.InternalDate | v.Size):
        return 1
    if isinstance(key, v.SentDate):
        return 3
    if isinstance(key, v.Header):
        return 2 if key.name in _COLUMNS else 3 if key.name.encode() in mime.COMMON_FIELDS else 4
    if isinstance(key, v.Body | v.Text):
        return 5
    return 0


class _Evaluation:
    def __init__(self, mailbox: Mailbox, view: View) -> None:
        self._mailbox, self._view = mailbox, view

    def holds(self, key: v.SearchKey, uids: list[int]) -> list[int]:
        """Those of `uids` (ascending) the key holds for, ascending."""
        if not uids:
            self._check(key)
            return []
        match key:
            case v.All():
                return uids
            case v.And(keys):
                for part in sorted(keys, key=cost):
                    uids = self.holds(part, uids)
                return uids
            case v.Or(left, right):
                first, second = sorted((left, right), key=cost)
                found = set(self.holds(first, uids))
                rest = [uid for uid in uids if uid not in found]
                found.update(self.holds(second, rest))
                return [uid for uid in uids if uid in found]
            case v.Not(inner):
                found = set(self.holds(inner, uids))
                return [uid for uid in uids if uid not in found]
            case v.SeqSet(numbers):
                wanted = set(self._view.uids_of(numbers))
                return [uid for uid in uids if uid in wanted]
            case v.UidSet(numbers):
                wanted = set(self._view.known_uids_of(numbers))
                return [uid for uid in uids if uid in wanted]
            case v.HasFlag(bit, wanted_set):
                return self._with_flags(uids, bit, bit if wanted_set else 0)
            case v.HasKeyword(name, wanted_set):
                return self._with_keyword(uids, name, wanted_set)
            case v.Recent(wanted_set):
                return [uid for uid in uids if self._view.is_recent(uid) is wanted_set]
            case v.New():
                return [uid for uid in self._with_flags(uids, SEEN, 0) if self._view.is_recent(uid)]
            case v.InternalDate(op, day):
                return self._by_row(uids, lambda octets, date: _compare(op, date // 86400 + _EPOCH, day))
            case v.Size(op, limit):
                return self._by_row(uids, lambda octets, date: octets > limit if op == ">" else octets < limit)
            case v.SentDate(op, day):
                return self._by_sent_date(uids, op, day)
            case v.Header(name, text):
                return self._by_header(uids, name, text)
            case v.Body(text):
                return self._by_text(uids, text, mime.body_holds)
            case v.Text(text):
                return self._by_text(uids, text, mime.text_holds)
        raise AssertionError(key)

    def _check(self, key: v.SearchKey) -> None:
        """A number out of range is an error even where no message is left to ask (R9)."""
        match key:
            case v.And(keys):
                for part in keys:
                    self._check(part)
            case v.Or(left, right):
                self._check(left)
                self._check(right)
            case v.Not(inner):
                self._check(inner)
            case v.SeqSet(numbers):
                self._view.uids_of(numbers)

    # -------------------------------------------------------------- arrays

    def _with_flags(self, uids: list[int], mask: int, value: int) -> list[int]:
        mailbox = self._mailbox
        if uids == mailbox.uids.tolist():  # the usual case: the whole mailbox, unchanged
            table = bytes(int(octet & mask == value) for octet in range(256))
            return list(compress(uids, mailbox.flags.translate(table)))
        found = []
        for uid in uids:
            position = mailbox.position(uid)
            if position is not None and mailbox.flags[position] & mask == value:
                found.append(uid)
        return found

    def _with_keyword(self, uids: list[int], name: str, wanted: bool) -> list[int]:
        names = [keyword.lower() for keyword in self._mailbox.keyword_names]
        if name.lower() not in names:
            return [] if wanted else uids
        bit = 1 << names.index(name.lower())
        found = []
        for uid in uids:
            position = self._mailbox.position(uid)
            if position is not None and bool(self._mailbox.keywords[position] & bit) is wanted:
                found.append(uid)
        return found

    # -------------------------------------------------------------- rows and prepared text

    def _by_row(self, uids: list[int], test: Callable[[int, int], bool]) -> list[int]:
        found: list[int] = []
        for chunk in _chunks(uids, PREPARED_AT_ONCE):
            found += [row.uid for row in self._mailbox.rows(chunk) if test(row.size, row.internal_date)]
        return found

    def _by_sent_date(self, uids: list[int], op: str, day: int) -> list[int]:
        """The Date field as written, zone ignored (R41); without one the internal date stands in."""
        found: list[int] = []
        for chunk in _chunks(uids, PREPARED_AT_ONCE):
            for uid, _, date, sent_day in self._mailbox.prepared(chunk, ("sent_day",)):
                if _compare(op, sent_day or date // 86400 + _EPOCH, day):
                    found.append(uid)
        return found

    def _by_header(self, uids: list[int], name: str, text: str) -> list[int]:
        needle = mime.fold(text)
        if name in _COLUMNS and needle:
            return self._mailbox.search_text(uids, _COLUMNS[name], needle)
        found: list[int] = []
        if name.encode() in mime.COMMON_FIELDS:
            for chunk in _chunks(uids, PREPARED_AT_ONCE):
                for uid, _, _, fields in self._mailbox.prepared(chunk, ("fields",)):
                    if _in_header(fields, name, needle):
                        found.append(uid)
                time.sleep(0)
            return found
        return self._read(uids, lambda raw: _in_header(raw[: mime.header_end(raw)], name, needle))

    # -------------------------------------------------------------- message text

    def _by_text(self, uids: list[int], text: str, holds: Callable[[bytes, str], bool]) -> list[int]:
        needle = mime.fold(text)
        return self._read(uids, lambda raw: holds(raw, needle))

    def _read(self, uids: list[int], test: Callable[[bytes], bool]) -> list[int]:
        """Read and test messages in a thread, a bounded batch at a time."""

        def batch(wanted: Sequence[int]) -> tuple[int, list[int]]:
            texts = store_read(wanted)
            return (texts[-1][0] if texts else wanted[-1]), [uid for uid, raw in texts if test(raw)]

        store_read = self._mailbox.reader(TEXT_AT_ONCE)
        found: list[int] = []
        done = 0
        while done < len(uids):
            last, matching = self._mailbox.offload(batch, uids[done : done + PREPARED_AT_ONCE])
            found += matching
            while done < len(uids) and uids[done] <= last:
                done += 1
        return found


def _in_header(header: bytes, name: str, needle: str) -> bool:
    """`needle` in a field of that name; "" asks whether there is one (R42)."""
    return any(needle in mime.fold(value) for value in mime.search_header(header, name))


def _compare(op: str, value: int, day: int) -> bool:
    return value < day if op == "<" else value == day if op == "=" else value >= day


def _chunks(uids: list[int], size: int) -> list[list[int]]:
    return [uids[start : start + size] for start in range(0, len(uids), size)]
