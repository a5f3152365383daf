"""The mailboxes of one account: listed, created, deleted, renamed, subscribed to.

A directory name is a mailbox name; the record in the index follows. Directories are changed first and synced, then the
index: after a crash in between the index is brought to what the directories say, since each carries its own identity.

Imports: store.*, errors, values.    RFC 3501 6.3.3-6.3.7.
"""

from __future__ import annotations

import os

from mailsrv.errors import MailboxExists, MailboxNameInvalid, MailboxNotFound, MailboxReserved, TemporaryFailure
from mailsrv.store import files, metadata, names
from mailsrv.store.base import StoreBase
from mailsrv.store.index import MailboxRecord
from mailsrv.store.sqlite import SqliteIndex
from mailsrv.values import MailboxId, MailboxInfo

MOST_MAILBOXES = 10_000
SUBSCRIPTIONS = "subscriptions"
_TRASH = "mailsrv-deleted"


class Folders(StoreBase):
    def mailboxes(self) -> list[MailboxInfo]:
        """All mailboxes by name, those that other programs made included."""
        return [self._info(record) for record in sorted(self._records(), key=lambda record: record.name)]

    def mailbox(self, name: str) -> MailboxInfo:
        wanted = names.canonical(name)
        for record in self._records():
            if record.name == wanted:
                return self._info(record)
        raise MailboxNotFound(f"There is no mailbox {wanted}")

    def mailbox_numbered(self, number: int) -> MailboxInfo:
        """By the number it has for life; MailboxNotFound when it is gone."""
        for record in self._records():
            if record.number == number:
                return self._info(record)
        raise MailboxNotFound("The mailbox does not exist any more")

    def _records(self) -> list[MailboxRecord]:
        with self._reading() as index:
            if self._folders_current(index):
                return index.mailboxes()
        with self._writing() as index:
            self._ready(index)
            return index.mailboxes()

    def _by_name(self, index: SqliteIndex) -> dict[str, MailboxRecord]:
        self._ready(index)
        return {record.name: record for record in index.mailboxes()}

    def create(self, name: str, special_use: str | None = None) -> MailboxInfo:
        """Make the mailbox and its missing superiors (RFC 3501 6.3.3)."""
        name = names.canonical(name)
        with self._writing() as index:
            known = self._by_name(index)
            if name in known:
                raise MailboxExists(f"There is a mailbox {name} already")
            self._make_missing(known, name, special_use)
            self._sync_folders(index)
            record = self._by_name(index)[name]
        return self._info(record)

    def _make_missing(self, known: dict[str, MailboxRecord], name: str, special_use: str | None) -> None:
        parts = name.split(names.DELIMITER)
        account = metadata.read_account(self.maildir) or metadata.AccountMeta(
            max(record.number for record in known.values()) + 1, max(record.uidvalidity for record in known.values())
        )
        for depth in range(1, len(parts) + 1):
            level = names.DELIMITER.join(parts[:depth])
            if level in known:
                continue
            if len(known) >= MOST_MAILBOXES:
                raise MailboxNameInvalid(f"An account has at most {MOST_MAILBOXES} mailboxes")
            directory = names.directory(level)
            # The account's record goes first: a number or UIDVALIDITY that was on disk once is never given again (R8).
            uidvalidity = max(account.last_uidvalidity + 1, int(self._clock()))
            account = metadata.AccountMeta(account.next_mailbox + 1, uidvalidity)
            metadata.write_account(self.maildir, account)
            self._make_folder(self.folder(directory))
            use = special_use if level == name else None
            meta = metadata.MailboxMeta(account.next_mailbox - 1, uidvalidity, 1, (), use)
            metadata.write_mailbox(self.folder(directory), meta)
        files.sync_directory(self.maildir)

    def delete(self, name: str) -> MailboxId:
        """Remove a mailbox with its messages; inferiors stay (RFC 3501 6.3.4)."""
        name = names.canonical(name)
        if name == names.INBOX:
            raise MailboxReserved("INBOX cannot be deleted")
        with self._writing() as index:
            record = self._by_name(index).get(name)
            if record is None:
                raise MailboxNotFound(f"There is no mailbox {name}")
            trash = f"{self.maildir}/{_TRASH}-{record.number}"
            files.remove_tree(trash)
            # One rename takes it out of sight whole; what is removed below can no longer be half a mailbox.
            files.rename(self.folder(record.directory), trash)
            files.sync_directory(self.maildir)
            index.drop_mailbox(record.number)
            index.set_fact("root_mtime", 0)
        files.remove_tree(trash)
        self._verified.pop(record.number, None)
        return MailboxId(self.account, record.number)

    def rename(self, old: str, new: str) -> list[MailboxId]:
        """Rename a mailbox and its inferiors; INBOX instead gives its messages to the new one (RFC 3501 6.3.5)."""
        old, new = names.canonical(old), names.canonical(new)
        with self._writing() as index:
            known = self._by_name(index)
            if old not in known and not any(name.startswith(old + names.DELIMITER) for name in known):
                raise MailboxNotFound(f"There is no mailbox {old}")
            if new in known:
                raise MailboxExists(f"There is a mailbox {new} already")
            if new == names.INBOX or new.startswith(old + names.DELIMITER):
                raise MailboxReserved("A mailbox cannot become its own inferior")
        if old == names.INBOX:
            return self._rename_inbox(new)
        with self._writing() as index:
            known = self._by_name(index)
            moved = {
                name: new + name[len(old) :] for name in known if name == old or name.startswith(old + names.DELIMITER)
            }
            targets = [
                names.canonical(name) for name in moved.values()
            ]  # too long or too deep: refused before anything moves
            taken = [name for name in targets if name in known and name not in moved]
            if taken:
                raise MailboxExists(f"There is a mailbox {taken[0]} already")
            if not moved:
                raise MailboxNotFound(f"There is no mailbox {old}")
            superior = new.rpartition(names.DELIMITER)[0]
            if superior and superior not in known:
                self._make_missing(known, superior, None)
            # Inferiors first: if this is cut short, the superior still has its old name and the command can be
            # repeated.
            for name in sorted(moved, key=len, reverse=True):
                record = known[name]
                directory = names.directory(moved[name])
                files.rename(self.folder(record.directory), f"{self.maildir}/{directory}")
                record.directory, record.name = directory, moved[name]
            files.sync_directory(self.maildir)
            for name in moved:
                index.put_mailbox(known[name])
            self._sync_folders(index)
            return [MailboxId(self.account, known[name].number) for name in moved]

    def _rename_inbox(self, new: str) -> list[MailboxId]:
        target = self.create(new)
        inbox = self.mailbox(names.INBOX)
        self._move_all(inbox.id.number, target.id.number)
        return [inbox.id, target.id]

    def _move_all(self, source: int, target: int) -> None:
        raise TemporaryFailure("A store without messages cannot move them")

    # -------------------------------------------------------------- subscriptions

    def subscriptions(self) -> list[str]:
        """Names, in order of subscription; they outlive the mailbox (RFC 3501 6.3.6). Without the file: all
        mailboxes.
        """
        try:
            with open(f"{self.maildir}/{SUBSCRIPTIONS}", encoding="utf-8", errors="replace") as file:
                return [line for line in file.read().split("\n") if line]
        except FileNotFoundError:
            return [record.name for record in sorted(self._records(), key=lambda record: record.name)]

    def subscribe(self, name: str) -> None:
        name = names.canonical(name)
        self._subscriptions(lambda listed: listed if name in listed else [*listed, name])

    def unsubscribe(self, name: str) -> None:
        self._subscriptions(lambda listed: [other for other in listed if other != name])

    def _subscriptions(self, change: object) -> None:
        listed = self.subscriptions()
        with self._writing():
            if os.path.exists(f"{self.maildir}/{SUBSCRIPTIONS}"):
                listed = self.subscriptions()
            wanted = change(listed)  # type: ignore[operator]
            if len(wanted) > MOST_MAILBOXES:
                raise MailboxNameInvalid("There are too many subscriptions")
            files.write_text(f"{self.maildir}/{SUBSCRIPTIONS}", "".join(f"{name}\n" for name in wanted))
