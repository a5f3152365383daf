"""Messages arriving in a mailbox: staged (written and synced), then placed under their UIDs.

The order that makes a delivery durable: file written and synced (no lock held) → under the account's lock the UID is
taken, the file renamed to the name that carries it, the row committed → the directory synced → the caller may
acknowledge. Several that arrive at once in one mailbox share the lock, the commit and the directory's sync; each has
an outcome of its own.

Imports: store.*, errors, values.    RFC 3501 2.3.1.1, 6.3.11.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from gevent.monkey import get_original

from mailsrv import log
from mailsrv.errors import KeywordRefused, MailError, OverQuota, TemporaryFailure
from mailsrv.store import files, names
from mailsrv.store.base import BOOT
from mailsrv.store.files import Incoming
from mailsrv.store.folders import Folders
from mailsrv.store.index import MailboxRecord, MessageRecord
from mailsrv.store.reconcile import adopt, reconcile
from mailsrv.store.sqlite import SqliteIndex
from mailsrv.values import DELETED, MAX_KEYWORDS, SEEN, Appended, MailboxId, Prepared

_monotonic: Callable[[], float] = get_original("time", "monotonic")
PREPARE_BYTES = 256 * 1024  # larger messages are prepared when somebody first asks
_KEYWORD_BYTES = 100


@dataclass(frozen=True, slots=True)
class Arrival:
    """A message on its way into a mailbox, and what it shall have there. `prefix` goes before its text.

    `claim_recent`: a session of the caller's is about to be told, so the message is not recent for any other one.
    """

    message: Incoming
    prefix: bytes = b""
    flags: int = 0
    keywords: Sequence[str] = ()
    internal_date: int | None = None
    quota_bytes: int = 0
    claim_recent: bool = False


@dataclass(slots=True)
class Staged:
    """A message file in tmp/, complete, waiting for its UID; synced once `durable_at` is set."""

    path: str
    size: int
    flags: int
    keywords: tuple[str, ...]
    internal_date: int
    quota_bytes: int
    claim_recent: bool
    prepared: Prepared | None
    fd: int
    durable_at: float = 0.0


@dataclass(slots=True)
class _Placed:
    """A staged message under its final name, its row not committed yet."""

    path: str
    message: MessageRecord
    staged: Staged
    previous_modseq: int
    recent: tuple[int, int]


class Arrivals(Folders):
    # -------------------------------------------------------------- staging

    def stage(self, arrival: Arrival) -> Staged:
        """Write the message to tmp/ and sync it."""
        staged = self._write(arrival)
        self._sync_staged(staged)
        return staged

    def _write(self, arrival: Arrival) -> Staged:
        message, prefix = arrival.message, arrival.prefix
        path, fd = "", -1
        try:
            with files.storage_errors("Writing the message"):
                taken = message.take_file() if message.prefix == prefix else None
                text = None if taken is not None else message.text()
                if taken is not None:
                    fd, path = taken
                else:
                    self._ensure_open()
                    path = files.temporary_name(self.tmp_dir)
                    files.step("create", path)
                    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
                    if text is not None:
                        files.write_all(fd, prefix + text)
                    else:
                        files.write_all(fd, prefix)
                        message.write_to(fd)
                files.begin_sync(fd)  # the disk works while the message is prepared, and while others are written
                if arrival.internal_date is not None:
                    os.utime(fd, (arrival.internal_date, arrival.internal_date))
            prepared = self._prepare(prefix + text) if text is not None and len(text) <= PREPARE_BYTES else None
        except BaseException:
            if fd >= 0:
                files.close(fd)
            if path:
                files.unlink_quietly(path)
            raise
        date = int(self._clock()) if arrival.internal_date is None else arrival.internal_date
        return Staged(
            path, len(prefix) + message.size, arrival.flags, tuple(arrival.keywords), date, arrival.quota_bytes,
            arrival.claim_recent, prepared, fd,
        )  # fmt: skip

    def _sync_staged(self, staged: Staged) -> None:
        """The message itself survives a power cut from here on. A sync that fails is final: the file is removed."""
        try:
            with files.storage_errors("Writing the message"):
                files.step("fsync", staged.path)
                files.sync(staged.fd)
            staged.durable_at = _monotonic()
        except BaseException:
            files.unlink_quietly(staged.path)
            raise
        finally:
            files.close(staged.fd)

    def _ensure_open(self) -> None:
        if self._index is None:
            with self._reading():
                pass

    def discard(self, staged: Staged) -> None:
        """Forget a staged message."""
        files.unlink_quietly(staged.path)

    # -------------------------------------------------------------- arriving

    def append(self, number: int, arrival: Arrival) -> Appended:
        """Stage and place in one task."""
        return self.place(number, self.stage(arrival))

    def append_all(self, number: int, arrivals: Sequence[Arrival]) -> list[Appended | MailError]:
        """Stage and place several: one commit and one sync of the directory for all, an outcome for each.

        All are written before the first is synced, so that the disk has them to write together.
        """
        outcomes: list[Appended | MailError | None] = [None] * len(arrivals)
        staged: dict[int, Staged] = {}
        for position, arrival in enumerate(arrivals):
            try:
                staged[position] = self._write(arrival)
            except MailError as failure:
                outcomes[position] = failure
        for position in list(staged):
            try:
                self._sync_staged(staged[position])
            except MailError as failure:
                outcomes[position] = failure
                del staged[position]
        for position, outcome in zip(staged, self.place_all(number, list(staged.values())), strict=True):
            outcomes[position] = outcome
        return [outcome for outcome in outcomes if outcome is not None]

    def place(self, number: int, staged: Staged) -> Appended:
        """Give the staged file its UID and its name; durable when this returns. On failure the file is removed."""
        [outcome] = self.place_all(number, [staged])
        if isinstance(outcome, MailError):
            raise outcome
        return outcome

    def place_all(self, number: int, staged: Sequence[Staged]) -> list[Appended | MailError]:
        """Place several with one commit. What is refused of one (its quota, its keywords) leaves the others alone;
        what fails for all of them (the commit, the directory's sync) is raised, and every file is removed.
        """
        if not staged:
            return []
        outcomes: list[_Placed | MailError] = []
        try:
            with self._writing() as index:
                record = self._settled(index, number)
                before = {in_new: self._mtime(record, in_new) for in_new in {_goes_to_new(one) for one in staged}}
                usage = index.usage() if any(one.quota_bytes for one in staged) else 0
                for one in staged:
                    try:
                        placed = self._place_one(record, one, usage)
                        usage += one.size
                        outcomes.append(placed)
                    except (MailError, OSError) as failure:
                        files.unlink_quietly(one.path)
                        outcomes.append(_mail_error(failure))
                done = [one for one in outcomes if isinstance(one, _Placed)]
                index.insert(number, [one.message for one in done])
                index.put_prepared(
                    number, [(one.message.uid, one.staged.prepared) for one in done if one.staged.prepared is not None]
                )
                for in_new, mtime in before.items():
                    self._note_mtime(record, in_new, mtime)
                index.put_mailbox(record)
            committed_at = _monotonic()
            with files.storage_errors("Syncing the mailbox"):
                for directory in sorted({os.path.dirname(one.path) for one in done}):
                    files.sync_directory(directory)  # the names, and with them UIDs and flags, survive from here on
        except BaseException:
            renamed = {id(one.staged): one.path for one in outcomes if isinstance(one, _Placed)}
            for one in staged:
                files.unlink_quietly(renamed.get(id(one), one.path))
            if renamed:
                self._after_failure(number)
            raise
        mailbox = MailboxId(self.account, number)
        return [
            one if isinstance(one, MailError) else Appended(
                mailbox, one.message.uid, record.uidvalidity, one.message.modseq, one.message.size, one.message.flags,
                one.message.keywords, record.keywords, one.previous_modseq, one.recent,
                one.path.removeprefix(f"{self.maildir}/"), one.staged.durable_at, committed_at,
            )
            for one in outcomes
        ]  # fmt: skip

    def _place_one(self, record: MailboxRecord, staged: Staged, usage: int) -> _Placed:
        """Rename the file to the name that carries its UID. Inside a transaction, after which its row is inserted."""
        if staged.quota_bytes and usage + staged.size > staged.quota_bytes:
            raise OverQuota("The mailbox is full")
        keywords = self._keyword_bits(record, staged.keywords)
        uid = self._take_uids(record, 1)
        in_new = _goes_to_new(staged)
        now = self._clock()
        base = f"{files.unique_part(now)}.{self._host},S={staged.size},U={record.uidvalidity}-{uid}"
        path = f"{self.folder(record.directory)}/{names.path_of(base, staged.flags, keywords, '', in_new)}"
        if in_new:
            files.placed.add(base)
        files.rename_noreplace(staged.path, path)
        previous_modseq, modseq = record.highest_modseq, self._next_modseq(record)
        recent = (record.recent_uid, record.uidnext) if staged.claim_recent else (0, 0)
        if staged.claim_recent:
            record.recent_uid = record.uidnext
        message = MessageRecord(
            uid, base, int(in_new), staged.flags, keywords, "", modseq, staged.size, staged.internal_date, int(now), 0
        )
        count(record, message, +1)
        return _Placed(path, message, staged, previous_modseq, recent)

    def _after_failure(self, number: int) -> None:
        """Files were renamed into the mailbox and removed again: whatever the index kept of them goes."""
        try:
            self.reconcile(number, full=True)
        except MailError as failure:
            log.warning("reconcile after a failed delivery did not work", account=self.account, error=str(failure))

    # -------------------------------------------------------------- what other programs brought, changed or took

    def reconcile(self, number: int, *, full: bool = False, heard: Collection[str] = ()) -> bool:
        """Compare with the directory if its mtimes moved (`full`: in any case); True if something was committed.

        Another program's change may fall between two looks at an mtime around a change of ours, and be taken for ours.
        `heard`: names (`cur/…`, `new/…`) that came or went there; they are held against the index too.
        """
        changed = False
        if not full:
            with self._reading() as index:
                record = self._record_read(index, number)
                if self._is_current(record) and self._agree(index, record, heard):
                    return False
        while True:
            with self._writing() as index:
                record = self._record(index, number)
                if not full and self._is_current(record) and self._agree(index, record, heard):
                    return changed
                outcome = reconcile(self, index, record, BOOT)
            changed |= outcome.changed
            left = outcome.left
            if not left:
                return changed
            while left:
                with self._writing() as index:
                    left = adopt(self, index, self._record(index, number), left)
            full, heard = False, ()

    def agrees(self, number: int, heard: Collection[str]) -> bool:
        """Whether the index has what came and went under these names: nothing is left to reconcile."""
        with self._reading() as index:
            return self._agree(index, self._record_read(index, number), heard)

    def _recover(self, index: SqliteIndex, record: MailboxRecord) -> None:
        reconcile(self, index, record, BOOT)

    def _record_read(self, index: SqliteIndex, number: int) -> MailboxRecord:
        record = index.mailbox(number)
        if record is None:  # perhaps only not listed yet
            with index.transaction():
                return self._record(index, number)
        return record

    @contextmanager
    def _one_state(self, number: int) -> Iterator[tuple[SqliteIndex, MailboxRecord]]:
        """The index and the mailbox's record; all that is read inside is of one commit. A message that another process
        added and removed between two statements would be there in one list and gone in the other.
        """
        with self._reading() as index:
            while True:
                with index.one_state():
                    record = index.mailbox(number)
                    if record is not None:
                        yield index, record
                        return
                self._record_read(index, number)  # MailboxNotFound, unless it was only not listed yet

    def _is_current(self, record: MailboxRecord) -> bool:
        return record.boot == BOOT and self._mtimes(record) == (record.cur_mtime, record.new_mtime)

    def _agree(self, index: SqliteIndex, record: MailboxRecord, heard: Collection[str]) -> bool:
        """Whether what came and went under these names is what the index has: each file it knows by such a name is
        there, and no other.
        """
        if not heard:
            return True
        bases = {name.partition("/")[2].partition(":")[0] for name in heard}
        uids = [tag[1] for base in bases if (tag := names.tag(base)) and tag[0] == record.uidvalidity]
        known = {
            names.path_of(one.base, one.flags, one.keywords, one.letters, bool(one.in_new))
            for one in index.records(record.number, sorted(set(uids)))
            if one.base in bases
        }
        folder = self.folder(record.directory)
        return all(os.path.lexists(f"{folder}/{path}") is (path in known) for path in known.union(heard))

    # -------------------------------------------------------------- what arriving shares with changing

    def _settled(self, index: SqliteIndex, number: int) -> MailboxRecord:
        """The record for writing; first brought to the directory's state where UIDs depend on it."""
        record = self._record(index, number)
        if record.boot != BOOT:
            reconcile(self, index, record, BOOT)
        return record

    def _note_mtime(self, record: MailboxRecord, in_new: bool, before: int) -> None:
        """Record what our own change made of one directory's mtime, unless somebody else's is still to be found."""
        if in_new and before == record.new_mtime:
            record.new_mtime = self._mtime(record, in_new)
        elif not in_new and before == record.cur_mtime:
            record.cur_mtime = self._mtime(record, in_new)

    def _keyword_bits(self, record: MailboxRecord, keywords: Sequence[str]) -> int:
        """The bits of the keywords, new ones added to the mailbox's list (durably, before a file name uses them)."""
        bits, added = 0, list(record.keywords)
        lower = {name.lower(): number for number, name in enumerate(added)}
        for keyword in keywords:
            number = lower.get(keyword.lower())
            if number is None:
                if len(added) >= MAX_KEYWORDS or not 0 < len(keyword.encode()) <= _KEYWORD_BYTES:
                    raise KeywordRefused(f"A mailbox keeps at most {MAX_KEYWORDS} keywords")
                number = lower[keyword.lower()] = len(added)
                added.append(keyword)
            bits |= 1 << number
        if len(added) > len(record.keywords):
            self._write_metadata(record, keywords=tuple(added))
        return bits


def _goes_to_new(staged: Staged) -> bool:
    """Messages without any flag go to new/ (maildir(5): who looks first moves them to cur/)."""
    return not staged.flags and not staged.keywords


def _mail_error(failure: MailError | OSError) -> MailError:
    if isinstance(failure, MailError):
        return failure
    return TemporaryFailure(f"Writing the mail store: {failure.strerror or failure}")


def count(record: MailboxRecord, message: MessageRecord, sign: int) -> None:
    """Enter a message into the mailbox's counters, or take it out of them."""
    record.messages += sign
    record.size += sign * message.size
    record.unseen += sign * (not message.flags & SEEN)
    record.deleted += sign * bool(message.flags & DELETED)
