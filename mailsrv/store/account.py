"""The mail of one account: message files and index joined into single operations.

Each method is one blocking task for the thread pool: it holds no greenlet's state and may be called from any thread.
How messages arrive, and in which order they become durable, is in `store.arrivals`; here they are looked at, changed,
copied, moved, removed and read.

Imports: store.*, errors, values.    RFC 3501 2.3, 6.4.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from mailsrv import log
from mailsrv.errors import MailboxNotFound, MessageGone, ModSeqTooOld, OverQuota, TemporaryFailure
from mailsrv.store import files, names
from mailsrv.store.arrivals import PREPARE_BYTES, Arrival, Arrivals, Staged, count
from mailsrv.store.base import BOOT, DEFAULT_MAILBOXES, Prepare
from mailsrv.store.files import Incoming
from mailsrv.store.index import FlagChange, MailboxRecord, MessageRecord
from mailsrv.store.sqlite import SqliteIndex, snapshot_of
from mailsrv.values import (
    DELETED,
    SEEN,
    Appended,
    Copied,
    Delta,
    FlagOp,
    MailboxStatus,
    Prepared,
    Row,
    Snapshot,
    Stored,
)

__all__ = ["DEFAULT_MAILBOXES", "AccountStore", "Arrival", "Incoming", "Prepare", "Staged"]

SWEEP_SECONDS = 36 * 3600
MOST_LOOKS = 3  # at a mailbox whose index is forgotten meanwhile
MOST_CHASES = 5  # of a file that is renamed meanwhile
NEWER_THAN_ANY = 2**63 - 1


class AccountStore(Arrivals):
    # -------------------------------------------------------------- looking

    def usage(self) -> int:
        with self._reading() as index:
            return index.usage()

    def status(self, number: int) -> MailboxStatus:
        record = self._fresh(number)
        return MailboxStatus(
            record.messages, record.unseen, max(0, record.uidnext - max(record.recent_uid, 1)) and self._recent(record),
            record.deleted, record.uidnext, record.uidvalidity, record.highest_modseq, record.size,
        )  # fmt: skip

    def _recent(self, record: MailboxRecord) -> int:
        with self._reading() as index:
            return min(record.messages, index.count_from(record.number, record.recent_uid))  # some may have come since

    def snapshot(self, number: int) -> Snapshot:
        """The whole mailbox, after a look whether another program changed its directories."""
        self._fresh(number)
        with self._one_state(number) as (index, record):
            return snapshot_of(record, index.flag_columns(number))

    def changes(self, number: int, since: int) -> Delta:
        """What was committed after `since`; raises ModSeqTooOld if expunges that far back are forgotten."""
        with self._one_state(number) as (index, record):
            if since < record.expunged_floor:
                raise ModSeqTooOld
            return index.changes(record, since)

    def _fresh(self, number: int) -> MailboxRecord:
        """The record, known to agree with the directory.

        Two changes within one tick of the file system's clock share an mtime; where the mtimes were recorded that soon
        after a change, the entries are counted once more when the tick has passed.
        """
        for _ in range(3):
            self.reconcile(number)
            with self._reading() as index:
                record = self._record_read(index, number)
            mtimes = (record.cur_mtime, record.new_mtime)
            if self._verified.get(number) == mtimes:
                return record
            folder = self.folder(record.directory)
            with files.storage_errors("Reading the mailbox"):
                entries = _count_entries(f"{folder}/cur") + _count_entries(f"{folder}/new")
            if entries == record.messages:
                if int(self._clock() * 1e9) - max(mtimes) > 20_000_000:
                    self._verified[number] = mtimes
                return record
            with self._reading() as index:  # only a change nobody recorded is a reason to list everything
                again = self._record_read(index, number)
            unchanged = (again.cur_mtime, again.new_mtime, again.messages) == (*mtimes, record.messages)
            if unchanged and not self.reconcile(number, full=True):
                self._verified[number] = mtimes  # odd files that are no messages
        return record

    def refreshed(self, number: int) -> bool:
        """Look for other programs' changes as thoroughly as `snapshot` does; True if something was committed."""
        with self._reading() as index:
            before = self._record_read(index, number).highest_modseq
        return self._fresh(number).highest_modseq > before

    def folder_of(self, number: int) -> str:
        """The absolute path of the mailbox's directory, for now."""
        with self._reading() as index:
            return self.folder(self._record_read(index, number).directory)

    def claim_recent(self, number: int) -> tuple[int, int]:
        """UIDs that no read-write session had been told of, now the caller's (RFC 3501 2.3.2)."""
        with self._reading() as index:
            record = self._record_read(index, number)
            if record.recent_uid >= record.uidnext:
                return record.uidnext, record.uidnext
        with self._writing() as index:
            record = self._record(index, number)
            first, record.recent_uid = record.recent_uid, record.uidnext
            index.put_mailbox(record)
            return first, record.uidnext

    def rows(self, number: int, uids: Sequence[int]) -> list[Row]:
        with self._reading() as index:
            return index.rows(number, uids)

    def present(self, number: int, uidvalidity: int, uids: Sequence[int]) -> set[int]:
        """Which of the messages (ascending) are there, as the directory says now. MailError where that cannot be said:
        the mailbox is another one now, or another process forgets its index meanwhile, which then has no messages.
        """
        self.mailbox_numbered(number)  # the folder may be another one
        for _ in range(MOST_LOOKS):
            self.reconcile(number)
            with self._one_state(number) as (index, record):
                if record.uidvalidity != uidvalidity:
                    raise MailboxNotFound("The mailbox is another one now")
                if record.boot == BOOT:
                    return {message.uid for message in index.records(number, uids)}
        raise TemporaryFailure("The index is made anew all the time")

    # -------------------------------------------------------------- flags

    def store_flags(
        self, number: int, uids: Sequence[int], op: FlagOp, flags: int, keywords: Sequence[str],
        unchanged_since: int | None = None,
    ) -> Stored:  # fmt: skip
        """Change flags by renaming the files. Messages that have them already are left alone and not announced."""
        with self._writing() as index:
            record = self._settled(index, number)
            if op is FlagOp.REMOVE:  # nothing to make a new keyword for
                known = {name.lower() for name in record.keywords}
                keywords = [keyword for keyword in keywords if keyword.lower() in known]
            bits = self._keyword_bits(record, keywords)
            before = self._mtimes(record)
            messages = index.records(number, uids)
            present = {message.uid for message in messages}
            gone = [uid for uid in uids if uid not in present]
            modified = []
            renamer = _Renamer(self, record)
            limit = (1 << len(record.keywords)) - 1

            def changed(old: int, keywords: int) -> tuple[int, int]:
                if op is FlagOp.ADD:
                    return old | flags, (keywords | bits) & limit
                if op is FlagOp.REMOVE:
                    return old & ~flags, keywords & ~bits & limit
                return flags, bits

            changes: list[FlagChange] = []
            previous: list[int] = []
            for message in messages:
                if unchanged_since is not None and message.modseq > unchanged_since:
                    modified.append(message.uid)
                    continue
                if changed(message.flags, message.keywords) == (message.flags, message.keywords):
                    continue
                renamed = renamer.rename(message, changed)
                if renamed is None:
                    gone.append(message.uid)
                    continue
                new = (renamed.flags, renamed.keywords)
                changes.append(FlagChange(message.uid, 0, *new, renamed.letters))
                # Another program's change that comes to light with ours is news to every client (R29).
                previous.append(message.modseq if renamed.as_known else NEWER_THAN_ANY)
                record.unseen += bool(message.flags & SEEN) - bool(new[0] & SEEN)
                record.deleted += bool(new[0] & DELETED) - bool(message.flags & DELETED)
            if changes:
                index.update_flags(number, self._next_modseq(record), changes)
                self._note_mtimes(record, before, disturbed=renamer.disturbed)
            index.put_mailbox(record)
        self._sync(renamer.touched)
        return Stored(record.highest_modseq, [change.uid for change in changes], previous, modified, sorted(gone))

    def _note_mtimes(self, record: MailboxRecord, before: tuple[int, int], *, disturbed: bool = False) -> None:
        """Record what our own change made of the mtimes, unless somebody else's change is still to be found."""
        if disturbed:
            record.cur_mtime = record.new_mtime = 0
        elif before == (record.cur_mtime, record.new_mtime):
            record.cur_mtime, record.new_mtime = self._mtimes(record)

    def _sync(self, directories: set[str]) -> None:
        with files.storage_errors("Syncing the mailbox"):
            for directory in sorted(directories):
                files.sync_directory(directory)  # renames (flags) and removals survive from here on

    # -------------------------------------------------------------- copy, move, expunge

    def copy(
        self, number: int, uids: Sequence[int], target: int, quota_bytes: int = 0, *, whole: bool = False
    ) -> Copied:
        """Hard links under new names, all of them or none (RFC 3501 6.4.7).

        UIDs that are not there are ignored; with `whole` they are MessageGone.
        """
        return self._transfer(number, uids, target, quota_bytes, moving=False, whole=whole)

    def move(self, number: int, uids: Sequence[int], target: int, *, whole: bool = False) -> Copied:
        """Renames, all of them or none (RFC 6851 3.3); `whole` as for `copy`."""
        return self._transfer(number, uids, target, 0, moving=True, whole=whole)

    def _move_all(self, source: int, target: int) -> None:
        self.reconcile(source)
        with self._reading() as index:
            uids = [message.uid for message in index.records(source)]
        if uids:
            self.move(source, uids, target)

    def _transfer(
        self, number: int, uids: Sequence[int], target: int, quota_bytes: int, *, moving: bool, whole: bool
    ) -> Copied:
        done: list[tuple[str, str]] = []
        try:
            with self._writing() as index:
                source_record = self._settled(index, number)
                same = number == target
                target_record = source_record if same else self._settled(index, target)
                messages = index.records(number, uids)
                if whole and len(messages) < len(uids):
                    raise MessageGone("Some of the messages were expunged by another session")
                total = sum(message.size for message in messages)
                if quota_bytes and not moving and index.usage() + total > quota_bytes:
                    raise OverQuota("The mailbox is full")
                if not messages:
                    return Copied(target_record.uidvalidity, [], [])
                source_before, target_before = self._mtimes(source_record), self._mtimes(target_record)
                keyword_bits = _KeywordMap(self, source_record, target_record)
                uid = self._take_uids(target_record, len(messages))
                modseq = self._next_modseq(target_record)
                now = self._clock()
                locate = _Renamer(self, source_record)
                target_folder = self.folder(target_record.directory)
                placed: list[MessageRecord] = []
                for message in messages:
                    size = f",S={message.size}"
                    if message.bare_lf:
                        stored, _ = names.sizes(message.base)
                        size = f",S={stored},W={message.size}" if stored else ""
                    base = f"{files.unique_part(now)}.{self._host}{size},U={target_record.uidvalidity}-{uid}"
                    keywords = keyword_bits[message.keywords]
                    in_new = bool(message.in_new) and not message.flags and not keywords
                    path = names.path_of(base, message.flags, keywords, message.letters, in_new)
                    new_path = f"{target_folder}/{path}"
                    place = files.rename_noreplace if moving else files.link
                    origin = locate.chase(message, partial(place, target=new_path))
                    if origin is None:
                        raise MessageGone("A message was removed meanwhile")
                    done.append((origin, new_path))
                    placed.append(
                        message._replace(
                            uid=uid, base=base, in_new=int(in_new), keywords=keywords, modseq=modseq, save_date=int(now)
                        )
                    )
                    uid += 1
                index.insert(target, placed)
                pairs = [(old.uid, new.uid) for old, new in zip(messages, placed, strict=True)]
                index.copy_prepared(number, target, pairs)
                for message in placed:
                    count(target_record, message, +1)
                if moving:
                    gone = [message.uid for message in messages]
                    index.expunge(source_record, self._next_modseq(source_record), gone)
                    for message in messages:
                        count(source_record, message, -1)
                self._note_mtimes(target_record, target_before, disturbed=same and locate.disturbed)
                if not same:
                    self._note_mtimes(source_record, source_before, disturbed=locate.disturbed)
                    index.put_mailbox(source_record)
                index.put_mailbox(target_record)
            directories = {os.path.dirname(new) for _, new in done}
            if moving:
                directories |= {os.path.dirname(old) for old, _ in done}
        except OSError as failure:
            self._undo(done, moving)
            raise TemporaryFailure(str(failure)) from failure
        except BaseException:
            self._undo(done, moving)
            raise
        try:
            self._sync(directories)
        except BaseException:
            if not moving:  # who is told NO will ask again, and would have them twice (RFC 3501 6.4.7)
                self._undo(done, moving)
                self._after_failure(target)
            raise
        return Copied(target_record.uidvalidity, [old for old, _ in pairs], [new for _, new in pairs])

    def _undo(self, done: list[tuple[str, str]], moving: bool) -> None:
        for old, new in reversed(done):
            try:
                if moving:
                    files.rename_noreplace(new, old)
                else:
                    files.unlink(new)
            except OSError as failure:
                log.warning("could not undo", path=new, error=str(failure))

    def expunge(self, number: int, uids: Sequence[int] | None = None) -> list[int]:
        """Remove the messages marked deleted (among `uids`, RFC 4315 2.1); the UIDs that went, ascending."""
        with self._writing() as index:
            record = self._settled(index, number)
            marked = index.uids_with_flag(number, DELETED)
            if uids is not None:
                wanted = set(uids)
                marked = [uid for uid in marked if uid in wanted]
            gone, touched = self._remove(index, record, index.records(number, marked), marked=True)
        self._sync(touched)
        return gone

    def withdraw(self, appended: Appended) -> None:
        """Take back a placed message that was not acknowledged."""
        self.remove(appended.mailbox.number, [appended.uid])

    def remove(self, number: int, uids: Sequence[int]) -> list[int]:
        """Remove messages, marked deleted or not; the UIDs of those that were there. Durable when this returns."""
        with self._writing() as index:
            record = self._settled(index, number)
            gone, touched = self._remove(index, record, index.records(number, uids))
        self._sync(touched)
        return gone

    def _remove(
        self, index: SqliteIndex, record: MailboxRecord, messages: list[MessageRecord], *, marked: bool = False
    ) -> tuple[list[int], set[str]]:
        """(the UIDs that went, directories to sync). With `marked` a file stays whose name does not say so any more.

        Files first: a crash before the commit leaves rows without files, which is an expunge too.
        """
        before = self._mtimes(record)
        locate = _Renamer(self, record)
        spared: set[str] = set()
        gone: list[int] = []

        def unlink(path: str) -> None:
            if marked and "T" not in path.rpartition(":2,")[2]:
                spared.add(path)  # another program took the mark away just now
            else:
                files.unlink_ours(path)

        for message in messages:
            path = locate.chase(message, unlink)
            if path in spared:
                continue
            if path is not None:
                locate.touched.add(os.path.dirname(path))
            count(record, message, -1)
            gone.append(message.uid)
        if gone:
            index.expunge(record, self._next_modseq(record), gone)
            self._note_mtimes(record, before, disturbed=locate.disturbed)
            index.put_mailbox(record)
        return gone, locate.touched

    # -------------------------------------------------------------- reading text

    def read(self, number: int, uid: int) -> bytes:
        """The message as it is sent, with CRLF; MessageGone when it is not there any more."""
        found = self.read_many(number, [uid], 1)
        if not found:
            raise MessageGone("The message was removed")
        return found[0][1]

    def read_many(self, number: int, uids: Sequence[int], limit_bytes: int) -> list[tuple[int, bytes]]:
        """Messages in order of UID, as sent, until one passes the limit; those that are gone are left out."""
        with self._reading() as index:
            record = self._record_read(index, number)
            messages: list[MessageRecord] = []
            total = 0
            for start in range(0, len(uids), 64):
                for message in index.records(number, uids[start : start + 64]):
                    messages.append(message)
                    total += message.size
                    if total >= limit_bytes:
                        break
                if total >= limit_bytes:
                    break
        with files.storage_errors("Reading a message"):
            texts = ((message.uid, self._text(record, message)) for message in messages)
            return [(uid, text) for uid, text in texts if text is not None]

    def beginnings(self, number: int, uids: Sequence[int], octets: int) -> list[tuple[int, bytes]]:
        """The first octets of messages, as they are on disk, in order of UID; those that are gone are left out."""
        with self._reading() as index:
            record = self._record_read(index, number)
            messages = index.records(number, uids)
        folder, found = self.folder(record.directory), []
        with files.storage_errors("Reading a message"):
            for one in messages:
                path = names.path_of(one.base, one.flags, one.keywords, one.letters, bool(one.in_new))
                text = _read_file(f"{folder}/{path}", octets, whole=False)
                if text is None:
                    text = self._text(record, one)
                if text is not None:
                    found.append((one.uid, text[:octets]))
        return found

    def _text(self, record: MailboxRecord, message: MessageRecord) -> bytes | None:
        """The file at its direct path; else in the other sub-directory; else by one scan, which mends the index."""
        folder = self.folder(record.directory)
        path = names.path_of(message.base, message.flags, message.keywords, message.letters, bool(message.in_new))
        data = _read_file(f"{folder}/{path}", message.size)
        if data is not None:
            self.opens["direct"] += 1
        else:
            data = self._text_elsewhere(record, message, folder)
        if data is None:
            self.opens["missing"] += 1
            return None
        return _with_crlf(data) if message.bare_lf else data

    def _text_elsewhere(self, record: MailboxRecord, message: MessageRecord, folder: str) -> bytes | None:
        other = names.path_of(message.base, message.flags, message.keywords, message.letters, not message.in_new)
        data = _read_file(f"{folder}/{other}", message.size)
        if data is not None:
            self.opens["other_subdirectory"] += 1
        else:
            self.opens["scan"] += 1
        self.reconcile(record.number, full=data is None)
        if data is None:
            with self._reading() as index:
                again = index.records(record.number, [message.uid])
                folder = self.folder(self._record_read(index, record.number).directory)
            if again:
                m = again[0]
                path = names.path_of(m.base, m.flags, m.keywords, m.letters, bool(m.in_new))
                data = _read_file(f"{folder}/{path}", m.size)
        return data

    def prepared(
        self, number: int, uids: Sequence[int], parts: Sequence[str] = Prepared._fields, *, alone: bool = False
    ) -> list[tuple[Any, ...]]:
        """(uid, size, internal date, *parts of Prepared), ascending; what was not prepared yet is, and kept. `alone`:
        size and date may be left out as 0, which halves the time.

        Structures are made when they are asked for: who lists a mailbox that another program filled waits half as long.
        """
        structure = "bodystructure" in parts
        # A row that is not there has none of the parts, one that was made without structure an empty one.
        at = 3 + parts.index("bodystructure" if structure else parts[0])
        with self._reading() as index:
            if alone:
                found = index.prepared_alone(number, uids, parts)
                if len(found) == len(uids) and not (structure and any(not row[at] for row in found)):
                    return found
            found = index.prepared(number, uids, parts)
        missing = [row[0] for row in found if row[at] is None or (structure and not row[at])]
        if not missing:
            return found
        made: dict[int, tuple[Any, ...] | None] = dict.fromkeys(missing)
        picked = [Prepared._fields.index(part) for part in parts]
        while missing:
            texts = self.read_many(number, missing, 4 * files.COPY_BYTES)
            batch = [(uid, self._prepare(text, structure=structure)) for uid, text in texts]
            if not batch:
                break
            with self._writing() as index:
                still = {message.uid for message in index.records(number, [uid for uid, _ in batch])}
                index.put_prepared(number, [entry for entry in batch if entry[0] in still])
            made.update((uid, tuple(prepared[position] for position in picked)) for uid, prepared in batch)
            last = batch[-1][0]
            missing = [uid for uid in missing if uid > last]
        rows = []
        for row in found:
            parts_made = made.get(row[0], row[3:])
            if parts_made is not None:  # else its text is gone
                rows.append((*row[:3], *parts_made))
        return rows

    def search_text(self, number: int, uids: Sequence[int], column: str, needle: str) -> list[int]:
        """UIDs whose prepared text contains the case-folded needle; everything searched is prepared first."""
        with self._reading() as index:
            missing = index.unprepared(number, uids)
        for start in range(0, len(missing), 500):
            self.prepared(number, missing[start : start + 500], ("message_id",))
        with self._reading() as index:
            return index.search(number, uids, column, needle)

    def find_message_id(self, number: int, message_id: str) -> int | None:
        """The newest prepared message with that Message-ID."""
        with self._reading() as index:
            return index.find_message_id(number, message_id)

    def message_id_of(self, message: Incoming) -> str:
        """The Message-ID of a message on its way in; "" if it has none or is large."""
        text = message.text()
        if text is None or len(text) > PREPARE_BYTES:
            return ""
        return self._prepare(text, structure=False).message_id

    # -------------------------------------------------------------- care

    def reindex(self, progress: Callable[[str, int, int], None] | None = None) -> None:
        """Forget every row and read it again from the Maildir: same UIDs, UIDVALIDITYs, flags and keywords."""
        with self._writing() as index:
            self._sync_folders(index)
            records = index.mailboxes()
        for position, record in enumerate(sorted(records, key=lambda record: record.name)):
            if progress is not None:
                progress(record.name, position, len(records))
            with self._writing() as index:
                current = index.mailbox(record.number)
                if current is None:
                    continue
                index.clear_messages(current.number)
                current.messages = current.unseen = current.deleted = current.size = 0
                current.cur_mtime = current.new_mtime = 0
                current.boot = ""
                index.put_mailbox(current)
            self.reconcile(record.number)

    def rebuild(self) -> None:
        """Throw the index away and make it again: the identities of mailboxes come from the Maildir too then."""
        with self._mutex, files.storage_errors("Making the index anew"):
            index = self._connected()
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX)
            try:
                self._discard(self._same_file(index), "it is made anew")
            finally:
                fcntl.flock(self._lock_fd, fcntl.LOCK_UN)
        self.reindex()

    def sweep(self) -> int:
        """Remove files left in tmp/ for a day and a half (S, durability rule 9); how many went."""
        removed = 0
        with files.storage_errors("Looking for old temporary files"):
            folders = [self.maildir, *(entry.path for entry in _entries(self.maildir) if entry.name.startswith("."))]
            for folder in folders:
                for entry in _entries(f"{folder}/tmp"):
                    status = entry.stat(follow_symlinks=False)
                    if time.time() - max(status.st_mtime, status.st_ctime) > SWEEP_SECONDS:
                        files.unlink_quietly(entry.path)
                        removed += 1
        return removed


class _Renamed(NamedTuple):
    """What a file's name says now; `as_known`: nobody else had changed it."""

    flags: int
    keywords: int
    letters: str
    as_known: bool


class _Renamer:
    """Finds and renames message files of one mailbox, listing the directory at most once for those that moved."""

    def __init__(self, store: AccountStore, record: MailboxRecord) -> None:
        self._folder = store.folder(record.directory)
        self._opens = store.opens
        self._listing: dict[str, str] | None = None
        self.touched: set[str] = set()
        self.disturbed = False  # another program is at work: what it does is not to be taken for ours

    def chase(self, message: MessageRecord, act: Callable[[str], None]) -> str | None:
        """Do something to the file, though another program may rename it meanwhile: its path, or None if it is gone."""
        path: str | None = self._direct(message)
        for attempt in range(MOST_CHASES):
            if path is None:
                return None
            try:
                act(path)
            except FileNotFoundError:
                path = self._listed(message.base, again=attempt > 0)
                continue
            self._opens["direct"] += not attempt
            return path
        raise TemporaryFailure("A message is renamed by another program all the time")

    def _direct(self, message: MessageRecord) -> str:
        in_new = bool(message.in_new)
        direct = names.path_of(message.base, message.flags, message.keywords, message.letters, in_new)
        return f"{self._folder}/{direct}"

    def _listed(self, base: str, *, again: bool = False) -> str | None:
        if self._listing is None or again:
            self.disturbed = True
            self._listing = {
                name.partition(":")[0]: f"{self._folder}/{sub}/{name}"
                for sub in ("new", "cur")
                for name in os.listdir(f"{self._folder}/{sub}")
            }
        found = self._listing.get(base)
        self._opens["missing" if found is None else "scan"] += 1
        return found

    def rename(self, message: MessageRecord, changed: Callable[[int, int], tuple[int, int]]) -> _Renamed | None:
        """Give the file its new flags, in cur/: those that `changed` makes of the flags and keywords in its name. None
        if it is gone.
        """
        in_new = bool(message.in_new)
        flags, keywords, letters = message.flags, message.keywords, message.letters
        source = self._direct(message)
        self.touched.add(f"{self._folder}/cur")
        if in_new:
            self.touched.add(f"{self._folder}/new")
        for attempt in range(MOST_CHASES):
            new = changed(flags, keywords)
            try:
                files.rename_ours(source, f"{self._folder}/{names.path_of(message.base, *new, letters, False)}")
                return _Renamed(*new, letters, attempt == 0)
            except FileNotFoundError:
                # Another program was quicker: what it made of the flags stays, but for what we were asked to change.
                found = self._listed(message.base, again=attempt > 0)
                if found is None:
                    return None
                source = found
                _, flags, keywords, letters = names.parse(os.path.basename(found))
        raise TemporaryFailure("A message is renamed by another program all the time")


class _KeywordMap(dict[int, int]):
    """Keyword bits of one mailbox as bits of another, whose list grows as needed."""

    def __init__(self, store: AccountStore, source: MailboxRecord, target: MailboxRecord) -> None:
        self._store, self._source, self._target = store, source, target
        super().__init__({0: 0})

    def __missing__(self, bits: int) -> int:
        wanted = [name for number, name in enumerate(self._source.keywords) if bits >> number & 1]
        self[bits] = self._store._keyword_bits(self._target, wanted)
        return self[bits]


def _entries(directory: str) -> list[os.DirEntry[str]]:
    """What is in a directory; nothing if it is none."""
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _count_entries(directory: str) -> int:
    return sum(1 for name in os.listdir(directory) if not name.startswith("."))


def _read_file(path: str, octets: int, *, whole: bool = True) -> bytes | None:
    """All of it, which likely has so many octets or fewer; or not the `whole` and these octets alone. None for what is
    not there, and for a link in its place: it could lead out of the account.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError as failure:
        if failure.errno == errno.ELOOP:
            return None
        raise
    try:
        if not whole:
            return os.read(fd, octets)
        data = os.read(fd, octets + 1)
        if len(data) == octets:
            return data
        chunks = [data]
        while chunk := os.read(fd, max(octets, 4096)):  # memory of that size is taken, though nothing may be left
            chunks.append(chunk)
        return b"".join(chunks)
    finally:
        files.close(fd)


def _with_crlf(data: bytes) -> bytes:
    """LF line ends as CRLF; those that have their CR stay."""
    if b"\r" in data:  # looking for two octets takes four times as long as all the rest
        data = data.replace(b"\r\n", b"\n")
    return data.replace(b"\n", b"\r\n")
