"""Brings the index of a mailbox to what its directory says, after another program's work or a crash.

The directory wins. A file that changed its flags or its sub-directory is a flag change, one that is gone is
expunged, one that is new gets a UID and carries it in its name from then on. It all goes through the journal, so it
is pushed like any other change. Runs inside a write transaction of the account.

Imports: store.*, values.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mailsrv import log
from mailsrv.store import files, metadata, names
from mailsrv.store.index import FlagChange, MailboxRecord, MessageRecord
from mailsrv.values import DELETED, SEEN, MailboxId

BATCH = 5_000  # files named per transaction: between two, other work on the account goes on

if TYPE_CHECKING:
    from mailsrv.store.base import StoreBase
    from mailsrv.store.sqlite import SqliteIndex


@dataclass(frozen=True, slots=True)
class Outcome:
    """Whether the index was changed, and the files found that are for `adopt`: base -> (in new/, file name)."""

    changed: bool
    left: dict[str, tuple[bool, str]]


def reconcile(store: StoreBase, index: SqliteIndex, record: MailboxRecord, boot: str) -> Outcome:
    """The record is written back, with the mtimes the listing was made under."""
    folder = store.folder(record.directory)
    # The mtimes are read before the listing: a change during it leaves them behind and is found next time.
    cur_mtime, new_mtime = store._mtimes(record)
    meta = metadata.read_mailbox(folder)
    if meta is not None and meta.number == record.number:
        record.uid_mark = max(record.uid_mark, meta.uid_mark)
        if len(meta.keywords) >= len(record.keywords):
            record.keywords = meta.keywords
        record.special_use = meta.special_use
    else:
        store._write_metadata(record)
    fresh_index = not record.boot
    # A file with a tag of ours below this was known once and is not any more: taken back under that UID it would appear
    # among messages that clients have numbered already, so it comes as a new one (R7).
    first_unknown = 1 if fresh_index else record.uidnext
    if record.boot != boot:
        # UIDs up to the mark may have been shown to clients before the index lost them (power cut, deleted file).
        record.uidnext = max(record.uidnext, record.uid_mark)
        record.boot = boot
    comparison = _Comparison(store, index, record, folder, first_unknown)
    changed = comparison.run()
    if fresh_index:
        record.expunged_floor = store._next_modseq(record)
        record.recent_uid = record.uidnext if record.uid_mark > 1 else 1
        changed = True
    # What was renamed here, or is left over, moved the mtimes: they stay behind, and the next look lists again.
    record.cur_mtime, record.new_mtime = (0, 0) if comparison.left else (cur_mtime, new_mtime)
    index.put_mailbox(record)
    if changed:
        store._finding.append(record.number)
    return Outcome(changed, comparison.left)


def adopt(
    store: StoreBase, index: SqliteIndex, record: MailboxRecord, left: dict[str, tuple[bool, str]]
) -> dict[str, tuple[bool, str]]:
    """Take in the next batch of what a comparison left over; the rest. Files that are gone meanwhile are passed by."""
    comparison = _Comparison(store, index, record, store.folder(record.directory), 1)
    comparison.insert(comparison.adopted(list(left), left))
    index.put_mailbox(record)
    store._finding.append(record.number)
    return comparison.left


class _Comparison:
    def __init__(
        self, store: StoreBase, index: SqliteIndex, record: MailboxRecord, folder: str, first_unknown: int
    ) -> None:
        self.store, self.index, self.record, self.folder = store, index, record, folder
        self.first_unknown = first_unknown
        self.known_keywords = (1 << len(record.keywords)) - 1
        self.now = int(store._clock())
        self.modseq = 0
        self.left: dict[str, tuple[bool, str]] = {}

    def _modseq(self) -> int:
        if not self.modseq:
            self.modseq = self.store._next_modseq(self.record)
        return self.modseq

    def run(self) -> bool:
        on_disk = self._listing()
        known = {message.base: message for message in self.index.records(self.record.number)}
        vanished = [message for base, message in known.items() if base not in on_disk]
        if vanished:
            vanished = self._still_missing(vanished, on_disk)
        if vanished:
            self.index.expunge(self.record, self._modseq(), sorted(message.uid for message in vanished))
            for message in vanished:
                self._count(message, -1)
        self._flag_changes(known, on_disk)
        new = [base for base in on_disk if base not in known]
        if new:
            self._additions(new, on_disk, {message.uid for message in known.values()})
        return self.modseq > 0

    def _listing(self) -> dict[str, tuple[bool, str]]:
        """base -> (in new/, file name); cur/ wins over new/. Links and odd files are not ours."""
        found: dict[str, tuple[bool, str]] = {}
        for sub in ("new", "cur"):  # new first: a file moved to cur meanwhile is seen there
            with os.scandir(f"{self.folder}/{sub}") as entries:
                for entry in entries:
                    name = entry.name
                    if name.startswith(".") or not entry.is_file(follow_symlinks=False):
                        continue
                    found[name.partition(":")[0]] = (sub == "new", name)
        return found

    def _still_missing(
        self, vanished: list[MessageRecord], on_disk: dict[str, tuple[bool, str]]
    ) -> list[MessageRecord]:
        """Listing a directory while it changes may skip a file that was renamed: look again before believing it."""
        again = self._listing()
        on_disk.update(again)
        return [message for message in vanished if message.base not in again]

    def _flag_changes(self, known: dict[str, MessageRecord], on_disk: dict[str, tuple[bool, str]]) -> None:
        changes = []
        for base, (in_new, name) in on_disk.items():
            message = known.get(base)
            if message is None:
                continue
            parsed = names.parse(name)
            keywords = parsed.keywords & self.known_keywords
            same_flags = parsed.flags == message.flags and keywords == message.keywords
            if same_flags and bool(message.in_new) == in_new and parsed.letters == message.letters:
                continue
            changes.append(FlagChange(message.uid, int(in_new), parsed.flags, keywords, parsed.letters))
            self.record.unseen += int(bool(message.flags & SEEN)) - int(bool(parsed.flags & SEEN))
            self.record.deleted += int(bool(parsed.flags & DELETED)) - int(bool(message.flags & DELETED))
        if changes:
            self.index.update_flags(self.record.number, self._modseq(), changes)

    def _additions(self, new: list[str], on_disk: dict[str, tuple[bool, str]], taken: set[int]) -> None:
        number, uidvalidity = self.record.number, self.record.uidvalidity
        ours: dict[int, str] = {}
        foreign: list[str] = []
        for base in new:
            tag = names.tag(base)
            uid = tag[1] if tag and tag[0] == uidvalidity and names.is_text(base) else 0
            free = uid >= self.first_unknown and uid not in taken and uid not in ours
            if free and not self.index.was_expunged(number, uid):
                ours[uid] = base
            else:
                foreign.append(base)
        records = [self._described(base, uid, on_disk[base]) for uid, base in sorted(ours.items())]
        if ours:
            self.record.uidnext = max(self.record.uidnext, max(ours) + 1)
            if self.record.uidnext > self.record.uid_mark:
                self.record.uid_mark = self.record.uidnext + metadata.UID_RESERVE
                self.store._write_metadata(self.record)
        if foreign:
            records += self.adopted(sorted(foreign, key=lambda base: (names.arrival(base), base)), on_disk)
        self.insert(records)

    def adopted(self, bases: list[str], places: dict[str, tuple[bool, str]]) -> list[MessageRecord | None]:
        """The first BATCH of them under UIDs of their own; the others are kept as `left`."""
        self.left = {base: places[base] for base in bases[BATCH:]}
        del bases[BATCH:]
        uid = self.store._take_uids(self.record, len(bases))
        records = [self._tagged(base, uid + number, places[base]) for number, base in enumerate(bases)]
        for sub in sorted({"new" if places[base][0] else "cur" for base in bases}):
            files.sync_directory(f"{self.folder}/{sub}")  # the names, and with them the UIDs, survive from here on
        log.info("messages adopted", mailbox=str(MailboxId(self.store.account, self.record.number)), count=len(bases))
        return records

    def insert(self, records: list[MessageRecord | None]) -> None:
        present = [record for record in records if record is not None]
        if present:
            self.index.insert(self.record.number, present)
            for message in present:
                self._count(message, +1)

    def _tagged(self, base: str, uid: int, place: tuple[bool, str]) -> MessageRecord | None:
        """Rename a foreign file so that it carries its UID, and its sizes where they cost a look to find out."""
        in_new, name = place
        path = f"{self.folder}/{'new' if in_new else 'cur'}/{name}"
        try:
            status = os.stat(path, follow_symlinks=False)
            sent, bare_lf = _size_as_sent(path, base, status.st_size)
            tagged = names.with_tag(
                base, self.record.uidvalidity, uid, status.st_size, sent if bare_lf else None
            )  # fmt: skip
            files.rename_noreplace(path, f"{path[: -len(name)]}{tagged}{name[len(base) :]}")
        except FileNotFoundError:
            return None  # gone again already
        except OSError as failure:
            log.warning("message not adopted", path=path, error=str(failure))
            return None
        return self._record_of(tagged, uid, in_new, name, status, sent, bare_lf)

    def _described(self, base: str, uid: int, place: tuple[bool, str]) -> MessageRecord | None:
        """A file that carries its UID already."""
        in_new, name = place
        path = f"{self.folder}/{'new' if in_new else 'cur'}/{name}"
        try:
            status = os.stat(path, follow_symlinks=False)
            size, bare_lf = _size_as_sent(path, base, status.st_size)
        except OSError as failure:
            log.warning("message not readable", path=path, error=str(failure))
            return None
        return self._record_of(base, uid, in_new, name, status, size, bare_lf)

    def _record_of(
        self, base: str, uid: int, in_new: bool, name: str, status: os.stat_result, size: int, bare_lf: bool
    ) -> MessageRecord:
        _, flags, keywords, letters = names.parse(name)
        return MessageRecord(
            uid, base, int(in_new), flags, keywords & self.known_keywords, letters, self._modseq(), size,
            int(status.st_mtime), self.now, int(bare_lf),
        )  # fmt: skip

    def _count(self, message: MessageRecord, sign: int) -> None:
        record = self.record
        record.messages += sign
        record.size += sign * message.size
        record.unseen += sign * (not message.flags & SEEN)
        record.deleted += sign * bool(message.flags & DELETED)


def _size_as_sent(path: str, base: str, stored: int) -> tuple[int, bool]:
    """(octets with CRLF line ends, whether the file has bare LF). Names written by us or Dovecot say it; else we
    look.
    """
    named, sent = names.sizes(base)
    if named == stored and sent is not None and stored <= sent <= 2 * stored:
        return sent, sent != stored
    if named == stored and names.tag(base) is not None:
        return stored, False  # written by us, with CRLF
    bare = 0
    previous = b""
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(files.COPY_BYTES):
            joined = previous + chunk
            bare += chunk.count(b"\n") - joined.count(b"\r\n")
            previous = chunk[-1:]
            if previous == b"\r":
                continue
            previous = b""
    return stored + bare, bare > 0
