"""The mail itself: the queue, and every mailbox against its index.

Imports: doctor.finding, control, runner, mail, store, wire.mime, config, errors.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial

from mailsrv.config import Config
from mailsrv.control import ask_all
from mailsrv.doctor.finding import FAIL, OK, WARN, Finding, Repair
from mailsrv.errors import MailError, TemporaryFailure
from mailsrv.mail.accounts import Accounts, User
from mailsrv.mail.bus import tell_everything
from mailsrv.mail.wakeup import Waker
from mailsrv.runner import socket_path, spool_of
from mailsrv.store.account import SWEEP_SECONDS, AccountStore
from mailsrv.store.compare import INDEX, Compared, compare
from mailsrv.store.entry import EntryDamaged
from mailsrv.store.index import IndexDamaged
from mailsrv.store.spool import PARTS, EntryGone, Spool
from mailsrv.wire import mime

ASK_SECONDS = 5.0
OVERDUE_SECONDS = 900.0
OLD_SECONDS = 86_400.0
MOST_NAMED = 5
_TAKEN_OVER = {"missing", "extra", "flags", "totals", "uid"}  # what another program may do to a mailbox


# ------------------------------------------------------------------ the queue


def queue(settings: Config, *, running: bool) -> Iterator[Finding]:
    spool = spool_of(settings)
    if not os.path.isdir(spool.root):
        yield Finding(OK, "queue: nothing was sent yet")
        return
    put_aside = spool.damaged()
    if put_aside:
        named = "; ".join(f"{id}: {reason}" for id, reason in put_aside[:MOST_NAMED])
        yield Finding(
            FAIL, f"queue: {len(put_aside)} damaged entries were put aside: {named}",
            f"they are in {spool.damaged_dir} and not tried: look at them, and move or remove them by hand",
        )  # fmt: skip
    yield from _entries(spool)
    if running:
        yield from _runner(settings, spool)


def _entries(spool: Spool) -> Iterator[Finding]:
    ids, damaged, oldest = spool.ids(), [], None
    for id in ids:
        try:
            entry = spool.load(id)
            spool.check(entry, thoroughly=False)
        except EntryGone:
            continue
        except (EntryDamaged, TemporaryFailure) as failure:
            damaged.append(f"{id}: {failure}")
            continue
        oldest = oldest or id
    if damaged:
        yield Finding(
            FAIL, f"queue: {len(damaged)} entries cannot be read: {'; '.join(damaged[:MOST_NAMED])}",
            "the queue runner puts damaged ones aside, with the reason, and tries the others; check the disk",
        )  # fmt: skip
    waiting = f"queue: {len(ids)} entries" + (f", the oldest {oldest}" if oldest else "")
    yield Finding(OK, waiting)


def _runner(settings: Config, spool: Spool) -> Iterator[Finding]:
    replies = ask_all(settings["server.run_dir"], "queue", seconds=ASK_SECONDS)
    if not any(not reply.error for reply in replies):
        yield Finding(FAIL, "queue: no process answers for the queue runner", "see the log; restart the server")
        return
    before = time.time() - OVERDUE_SECONDS
    late = [id for part in PARTS for id, due in spool.scan(part) if due < before]
    if late:
        yield Finding(
            WARN, f"queue: {len(late)} entries are overdue by more than {round(OVERDUE_SECONDS / 60)} minutes",
            "mailsrv queue why ID tells what an entry waits for; waking the runner has it look at them",
            Repair("wake the queue runner", partial(_wake, settings, late)),
        )  # fmt: skip
    else:
        yield Finding(OK, "queue: the runner answers")


def _wake(settings: Config, ids: list[str]) -> None:
    waker = Waker(socket_path(settings))
    for id in ids:
        waker.wake(id)


# ------------------------------------------------------------------ mailboxes


def mailboxes(settings: Config, progress: Callable[[str], None]) -> Iterator[Finding]:
    if not os.path.exists(settings.accounts_path):
        return
    try:
        with closing(Accounts(settings.accounts_path, settings.mail_root)) as accounts:
            users = accounts.users()
    except MailError:
        return  # said already
    number = messages = 0
    wrong = False
    for user in users:
        for finding, found in _account(settings, user, progress):
            if found is not None:
                number, messages = number + 1, messages + found.messages
            if finding is not None:
                wrong = wrong or finding.result != OK
                yield finding
    if not wrong:
        yield Finding(OK, f"mail: {number} mailboxes with {messages} messages are as their indexes say")


def _account(
    settings: Config, user: User, progress: Callable[[str], None]
) -> Iterator[tuple[Finding | None, Compared | None]]:
    address, home = user.account.address, user.account.home
    if not os.path.exists(f"{home}/Maildir"):
        return  # nothing arrived yet
    old = list(_left_over(f"{home}/Maildir"))
    if old:
        yield Finding(
            WARN, f"mail: {address}: {len(old)} temporary files are left over from an interrupted delivery",
            "they were never answered with 250; the server removes them within a day",
            Repair("remove them", partial(_store, settings, user, AccountStore.sweep)),
        ), None  # fmt: skip
    anew = Repair("make the index anew", partial(_store, settings, user, AccountStore.reindex))
    if not os.path.exists(f"{home}/{INDEX}"):
        yield (
            Finding(WARN, f"mail: {address}: no index", "it is made with the next login, which takes longer", anew),
            None,
        )
        return
    try:
        for found in compare(home, lambda name: progress(f"{address} {name}")):
            yield _told(settings, user, found), found
    except IndexDamaged as damage:
        advice = f"it is made anew when it is next used, or now: mailsrv reindex {address}; check the disk"
        yield Finding(FAIL, f"mail: {address}: the index is damaged: {damage}", advice, anew), None
    except OSError as failure:
        advice = "check owner and mode, and the disk"
        yield Finding(FAIL, f"mail: {address}: {failure.filename}: {failure.strerror}", advice), None


def _told(settings: Config, user: User, found: Compared) -> Finding | None:
    address, kinds = user.account.address, set(found.differences)
    what = f"mail: {address}: {found.name}: " + ", ".join(
        f"{n} {kind}" for kind, n in sorted(found.differences.items())
    )
    examples = "; ".join(found.examples)
    if not found.differences:
        return None
    if "size" in kinds:
        return Finding(
            FAIL, f"{what} ({examples})",
            "message files were changed or cut by another program or a broken disk: compare with a backup",
        )  # fmt: skip
    if found.pending and kinds <= _TAKEN_OVER:
        return Finding(
            WARN, f"{what}: another program was there ({examples})",
            "the server takes it over when the mailbox is next opened",
            Repair("look at the mailbox now", partial(_store, settings, user, partial(_reconcile, name=found.name))),
        )  # fmt: skip
    # A message without its row would come back as a new one; read anew, it has the UID that its name says.
    mend: Callable[[AccountStore], object] = AccountStore.rebuild if "identity" in kinds else AccountStore.reindex
    return Finding(
        FAIL, f"{what} ({examples})",
        f"the index is not what the Maildir holds; the Maildir is right: mailsrv reindex {address}",
        Repair("bring the index to what the Maildir holds", partial(_store, settings, user, mend)),
    )  # fmt: skip


def _left_over(maildir: str) -> Iterator[str]:
    before = time.time() - SWEEP_SECONDS
    for folder in (maildir, *(entry.path for entry in os.scandir(maildir) if entry.name.startswith("."))):
        try:
            with os.scandir(f"{folder}/tmp") as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    if max(status.st_mtime, status.st_ctime) < before:
                        yield entry.path
        except (FileNotFoundError, NotADirectoryError):
            continue


def _reconcile(store: AccountStore, *, name: str) -> None:
    store.reconcile(store.mailbox(name).id.number, full=True)


def _store(settings: Config, user: User, act: Callable[[AccountStore], object]) -> None:
    host = settings["server.hostname"]
    with closing(AccountStore(user.account.id, user.account.home, prepare=mime.prepare, host=host)) as store:
        act(store)
    tell_everything(settings["server.run_dir"])
