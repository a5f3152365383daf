"""One operation at a time on a small account, in a process that a fault can meet at every system call.

A place is made once and copied for each try: ann's INBOX and Work with some messages, and a queue with one entry. An
operation acts in a child and tells what it was answered; `begin`, `done` and `refused` say in the ledger what that
means.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mailsrv.mail.accounts import Accounts
from mailsrv.mail.bounce import Bounces
from mailsrv.mail.intake import Intake, Origin, Outgoing, Outward, Recipient
from mailsrv.mail.mailbox import Mailboxes
from mailsrv.mail.notify import Registry
from mailsrv.store import files
from mailsrv.store.account import AccountStore, Arrival
from mailsrv.store.entry import Entry
from mailsrv.store.entry import Recipient as Waiting
from mailsrv.store.files import Incoming
from mailsrv.store.spool import Spool, new_id
from mailsrv.values import DELETED, FLAGGED, SEEN, Address, Envelope, FlagOp
from mailsrv.wire import mime
from tests.faults.ledger import Flags, Ledger
from tests.store.conftest import account, incoming

INBOX, WORK = ("ann", "INBOX"), ("ann", "Work")
ANN, OUT = Address("ann", "example.com"), Address("x", "out.test")
NONE: Flags = frozenset()


def home(place: Path) -> Path:
    return place / "mail" / "example.com" / "ann"


def store(place: Path) -> AccountStore:
    return account(home(place))


def spool(place: Path) -> Spool:
    return Spool(str(place / "queue"))


def number(one: AccountStore, name: str) -> int:
    return one.mailbox(name).id.number


def make(place: Path, ledger: Ledger) -> None:
    """The place, and the ledger of it."""
    accounts = Accounts(str(place / "accounts.sqlite3"), str(place / "mail"))
    accounts.add_domain("example.com")
    accounts.add_user("ann@example.com", "{PLAIN}x")
    accounts.close()
    one = store(place)
    one.create("Work")
    for box in (INBOX, WORK):
        for flags, names in ((0, NONE), (SEEN, frozenset({"\\Seen"})), (DELETED, frozenset({"\\Deleted"}))):
            token, text = ledger.message(900)
            ledger.appending(box, token, names)
            appended = one.append(number(one, box[1]), Arrival(incoming(one, text), flags=flags))
            ledger.appended(box, token, appended.uid, names)
    one.close()
    spool(place).prepare()
    token, text = ledger.message(900)
    put(place, text)
    ledger.sending(token, [], [str(OUT)])
    ledger.sent(token, [], [str(OUT)])


_last_put = ""  # the entry that was made last: whoever looked for it would make calls that fail


def put(place: Path, text: bytes) -> None:
    message = Incoming(spool(place).tmp_dir)
    message.write(text)
    global _last_put
    _last_put = new_id()
    spool(place).put(Entry(_last_put, Envelope(ANN), [Waiting(OUT)]), message)


@dataclass
class Operation:
    """`act(place, text)` gives what it was answered; the rest takes (ledger, token, answer)."""

    name: str
    act: Callable[[Path, bytes], Any]
    begin: Callable[[Ledger, str], None]
    done: Callable[[Ledger, str, Any], None]
    refused: Callable[[Ledger, str], None]
    threads: bool = False  # works in the thread pool: which thread makes a call is not always the same
    boxes: tuple[str, str] | None = None  # a mailbox that may have been renamed


def with_store(act: Callable[[AccountStore, bytes], Any]) -> Callable[[Path, bytes], Any]:
    opened: dict[Path, AccountStore] = {}

    def run(place: Path, text: bytes) -> Any:
        if place not in opened:
            opened[place] = store(place)
        return act(opened[place], text)

    return run


def _intake(place: Path, text: bytes) -> None:
    """A transaction for ann and for somebody elsewhere."""
    accounts = Accounts(str(place / "accounts.sqlite3"), str(place / "mail"))
    mailboxes = Mailboxes(Registry(), prepare=mime.prepare, host="mx.example.com")
    intake = Intake(mailboxes, accounts, str(place / "mail"),
                    Outgoing(spool(place), lambda id: None, Bounces("mx.example.com"), lambda: None))  # fmt: skip
    here = [Recipient(user.account, user.account.address) for user in accounts.users()]
    with intake.open(here, [Outward(OUT)], envelope=Envelope(ANN), trace=_Lines(), origin=Origin(), id=new_id()) as one:
        one.write(text)
        one.commit(time.monotonic())


def _submission(place: Path, text: bytes) -> None:
    """A transaction for somebody elsewhere alone: the queue is all that has it."""
    message = Incoming(spool(place).tmp_dir)
    message.write(text)
    files.offload(spool(place).put, Entry(new_id(), Envelope(ANN), [Waiting(OUT)]), message)


def _end_and_entry(place: Path, text: bytes) -> None:
    """An entry ends, and another one with the same message is made of its file."""
    made = spool(place)
    for last in (False, True):
        message = Incoming(made.tmp_dir)
        message.write(text)
        id = new_id()
        files.offload(made.put, Entry(id, Envelope(ANN), [Waiting(OUT)]), message)
        if not last:
            files.offload(made.change_all, [(id, lambda entry: False)])


class _Lines:
    def local(self, recipient: Recipient) -> bytes:
        return b"Delivered-To: x\r\n"

    def outward(self, via: Address | None, recipients: list[Address]) -> bytes:
        return b""


def _note(place: Path, text: bytes) -> None:
    """What an attempt came to, written into the entry."""

    def act(entry: Entry) -> bool:
        entry.recipients[0].attempts += 1
        return True

    spool(place).change(_last_put, act)


def _rename(one: AccountStore, text: bytes) -> None:
    if any(info.name == "Work" for info in one.mailboxes()):  # not done by the try before
        one.rename("Work", "Projects")


def _copy(one: AccountStore, text: bytes) -> dict[int, int]:
    done = one.copy(number(one, "INBOX"), [1, 2], number(one, "Work"))
    return dict(zip(done.source_uids, done.target_uids, strict=True))


def _move(one: AccountStore, text: bytes) -> dict[int, int]:
    done = one.move(number(one, "INBOX"), [1, 2], number(one, "Work"))
    return dict(zip(done.source_uids, done.target_uids, strict=True))


def _moved(ledger: Ledger, token: str, answer: dict[int, int]) -> None:
    # What is not in the answer had been moved by a try that was refused.
    ledger.moved(INBOX, answer, WORK)


def _moving(ledger: Ledger, token: str) -> None:
    uids = [uid for uid in (1, 2) if not ledger.boxes[INBOX].places[uid].may_go]
    if uids:
        ledger.moving(INBOX, uids, WORK)


STORED = {1: frozenset({"\\Flagged", "$Later"}), 2: frozenset({"\\Seen", "\\Flagged", "$Later"})}


def _nothing(ledger: Ledger, token: str, answer: Any = None) -> None:
    pass


OPERATIONS = (
    Operation(
        "delivery", with_store(lambda one, text: one.append(number(one, "INBOX"), Arrival(incoming(one, text))).uid),
        lambda ledger, token: ledger.appending(INBOX, token, NONE),
        lambda ledger, token, uid: ledger.appended(INBOX, token, uid, NONE),
        lambda ledger, token: ledger.not_appended(INBOX, token),
    ),
    Operation(
        "APPEND",
        with_store(lambda one, text: one.append(
            number(one, "Work"),
            Arrival(incoming(one, text), flags=SEEN, keywords=("$Later",), internal_date=10**9)).uid),
        lambda ledger, token: ledger.appending(WORK, token, frozenset({"\\Seen", "$Later"})),
        lambda ledger, token, uid: ledger.appended(WORK, token, uid, frozenset({"\\Seen", "$Later"})),
        lambda ledger, token: ledger.not_appended(WORK, token),
    ),
    Operation(
        "COPY", with_store(_copy),
        lambda ledger, token: ledger.copying(INBOX, [1, 2], WORK),
        lambda ledger, token, pairs: ledger.copied(INBOX, pairs, WORK),
        lambda ledger, token: ledger.not_copied(INBOX, [1, 2], WORK),
    ),
    # A refused MOVE, STORE or EXPUNGE may have been done to some: one place each, the old flags or the new.
    Operation("MOVE", with_store(_move), _moving, _moved, _nothing),
    Operation(
        "STORE",
        with_store(lambda one, text: one.store_flags(
            number(one, "INBOX"), [1, 2], FlagOp.ADD, FLAGGED, ("$Later",)) and None),
        lambda ledger, token: ledger.storing(INBOX, STORED),
        lambda ledger, token, _: ledger.stored(INBOX, STORED), _nothing,
    ),
    Operation(
        "EXPUNGE", with_store(lambda one, text: one.expunge(number(one, "INBOX"))),
        lambda ledger, token: ledger.expunging(INBOX, [3]),
        lambda ledger, token, _: ledger.expunged(INBOX, [3]), _nothing,
    ),
    Operation("RENAME", with_store(_rename), _nothing, _nothing, _nothing, boxes=("Work", "Projects")),
    Operation(
        "queue entry", _submission,
        lambda ledger, token: ledger.sending(token, [], [str(OUT)]),
        lambda ledger, token, _: ledger.sent(token, [], [str(OUT)]),
        lambda ledger, token: ledger.refused(token, [], [str(OUT)]), threads=True,
    ),
    Operation(
        "queue change", _note, _nothing, _nothing, _nothing,
    ),
    Operation(
        "queue end", _end_and_entry,
        lambda ledger, token: ledger.sending(token, [], [str(OUT)]),
        lambda ledger, token, _: ledger.sent(token, [], [str(OUT)]),
        lambda ledger, token: ledger.refused(token, [], [str(OUT)]), threads=True,
    ),
    Operation(
        "transaction", _intake,
        lambda ledger, token: ledger.sending(token, ["ann"], [str(OUT)]),
        lambda ledger, token, _: ledger.sent(token, ["ann"], [str(OUT)]),
        lambda ledger, token: ledger.refused(token, ["ann"], [str(OUT)]), threads=True,
    ),
)  # fmt: skip


def fresh(ledger: Ledger) -> Ledger:
    return copy.deepcopy(ledger)
