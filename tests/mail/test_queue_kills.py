"""The work of the queue ends without warning between any two changes of the disk; then another runner goes on.

A ledger beside the queue has a line, synced, for each message that another server took and for each report that was
taken. Nothing that was promised is missing from it, and nothing is in it more than twice.
"""

import os
import time
from collections import Counter
from pathlib import Path

import gevent
import pytest

from mailsrv.errors import MailError
from mailsrv.mail.accounts import Accounts
from mailsrv.mail.bounce import Bounces
from mailsrv.mail.intake import Intake, Origin, Outgoing, Outward, Recipient
from mailsrv.mail.mailbox import Mailboxes
from mailsrv.mail.notify import Registry
from mailsrv.mail.queue import Queue, Ways
from mailsrv.mail.schedule import Schedule
from mailsrv.store import files
from mailsrv.store.entry import Entry
from mailsrv.store.entry import Recipient as Waiting
from mailsrv.store.files import Incoming
from mailsrv.store.spool import Spool, new_id
from mailsrv.values import Address, Disposition, Envelope, Outcome, RecipientOptions
from mailsrv.wire import mime

TEXT = b"From: ann@example.com\r\nSubject: Out\r\n\r\nOut it goes\r\n"
ANN = Address("ann", "example.com")
ALWAYS = RecipientOptions(frozenset({"SUCCESS", "FAILURE"}))
SECONDS = 60.0


def told(place: Path) -> Counter:
    ledger = place / "ledger"
    return Counter(ledger.read_text().split()) if ledger.exists() else Counter()


def tell(place: Path, line: str) -> None:
    fd = os.open(place / "ledger", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(fd, line.encode() + b"\n")
    os.fsync(fd)
    os.close(fd)


def run(place: Path) -> None:
    """A runner, until nothing is left to do: `no@…` is refused, the rest taken."""
    spool = Spool(str(place / "queue"))

    def relay(job):
        assert Path(job.path).read_bytes() == TEXT
        outcomes = []
        for one, _ in job.recipients:
            bad = one.local == "no"
            if not bad:
                tell(place, f"sent:{one}")
            disposition = Disposition.NEVER if bad else Disposition.SENT
            outcomes.append(Outcome(one, disposition, 550 if bad else 250, "", "So", "mx"))
        return outcomes

    def post(report):
        for one in report.recipients:
            tell(place, f"{one.report}:{one.address}")

    ways = Ways(relay, lambda envelope, one: one.domain, relay, lambda domain: False, post)
    queue = Queue(spool, ways, Schedule())
    queue.start()
    end = time.monotonic() + SECONDS
    while spool.ids():
        assert time.monotonic() < end
        gevent.sleep(0.002)
    queue.stop(5)


@pytest.fixture
def dies(tmp_path):
    """As in the tests of the store: `work` in a child that ends before its n-th step, for each n; then `check`."""

    def go(prepare, work, check) -> int:
        for n in range(300):
            place = tmp_path / f"at{n}"
            place.mkdir()
            prepare(place)
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    left = n

                    def hook(_step, _path):
                        nonlocal left
                        if left == 0:
                            os._exit(9)
                        left -= 1

                    files.on_step(hook)
                    work(place)
                    code = 0
                finally:
                    os._exit(code)
            _, status = os.waitpid(child, 0)
            code = os.waitstatus_to_exitcode(status)
            assert code in (0, 9), f"the child failed at step {n}"
            check(place, code == 0)
            if code == 0:
                return n
        raise AssertionError("the work does not end")

    return go


def test_b21_s25_a_runner_that_ends_anywhere_loses_nothing(dies):
    """Three recipients of two domains, one of them refused: results, report and end. At most one duplicate each."""

    def prepare(place):
        spool = Spool(str(place / "queue"))
        spool.prepare()
        names = ("bo@example.org", "no@example.org", "cy@example.net")
        recipients = [Waiting(Address(*name.split("@")), ALWAYS) for name in names]
        message = Incoming(spool.tmp_dir)
        message.write(TEXT)
        spool.put(Entry(new_id(), Envelope(ANN), recipients), message)

    def check(place, done):
        run(place)  # the next runner does what is left
        found = told(place)
        assert set(found) == {
            "sent:bo@example.org", "sent:cy@example.net", "failed:no@example.org", "relayed:bo@example.org",
            "relayed:cy@example.net",
        }  # fmt: skip
        assert max(found.values()) <= (1 if done else 2)
        left = [path for path in (place / "queue").rglob("*") if path.is_file() and path.name != "lock"]
        # What an end between two steps leaves is a message without an envelope: swept when it is old.
        assert all(path.suffix == ".eml" or path.parent.name in ("tmp", "spare") for path in left)

    assert dies(prepare, run, check) >= 8


class Lines:
    """Trace lines of no interest here."""

    def local(self, recipient):
        return b"Delivered-To: x\r\n"

    def outward(self, via, recipients):
        return b""


def intake(place: Path, woken: list[str]) -> tuple[Intake, Mailboxes]:
    accounts = Accounts(str(place / "accounts.sqlite3"), str(place / "mail"))
    mailboxes = Mailboxes(Registry(), prepare=mime.prepare, host="mx.example.com")
    spool = Spool(str(place / "queue"))
    outgoing = Outgoing(spool, woken.append, Bounces("mx.example.com"), lambda: None)
    return Intake(mailboxes, accounts, str(place / "mail"), outgoing), mailboxes


def test_b19_s25_a_transaction_that_ends_anywhere_is_whole_once_it_is_acknowledged(dies):
    """Two mailboxes and two servers elsewhere. Before the 250 anything may be missing, as the sender sends it again;
    what is there is whole, and afterwards all of it is there."""

    def prepare(place):
        accounts = Accounts(str(place / "accounts.sqlite3"), str(place / "mail"))
        accounts.add_domain("example.com")
        for name in ("bo", "cy"):
            accounts.add_user(f"{name}@example.com", "{PLAIN}x")
        Spool(str(place / "queue")).prepare()
        accounts.close()
        one, mailboxes = intake(place, [])
        for user in one.accounts.users():
            mailboxes.account(user.account).inbox()
        mailboxes.close_all()
        one.accounts.close()

    def work(place):
        one, mailboxes = intake(place, [])
        here = [Recipient(user.account, user.account.address) for user in one.accounts.users()]
        there = [Outward(Address("dee", "example.org")), Outward(Address("eve", "example.net"))]
        with one.open(here, there, envelope=Envelope(ANN), trace=Lines(), origin=Origin(), id=new_id()) as transaction:
            transaction.write(TEXT)
            transaction.commit(time.monotonic())
        tell(place, "250")
        mailboxes.close_all()

    def check(place, done):
        spool = Spool(str(place / "queue"))
        entries = [spool.load(id) for id in spool.ids()]
        for one in entries:
            spool.check(one, thoroughly=True)
            assert [str(to.address) for to in one.recipients] == ["dee@example.org", "eve@example.net"]
        copies = [path.read_bytes() for path in (place / "mail").rglob("new/*")]
        assert set(copies) <= {b"Delivered-To: x\r\n" + TEXT}
        if told(place)["250"]:
            assert len(entries) == 1 and len(copies) == 2
        assert bool(told(place)["250"]) == done

    assert dies(prepare, work, check) >= 12


@pytest.mark.parametrize("at", range(24))
def test_s26_a_transaction_that_fails_takes_all_back(tmp_path, at):
    """The n-th change of the disk fails: nothing is left in mailboxes and queue, nobody was woken."""
    accounts = Accounts(str(tmp_path / "accounts.sqlite3"), str(tmp_path / "mail"))
    accounts.add_domain("example.com")
    for name in ("bo", "cy"):
        accounts.add_user(f"{name}@example.com", "{PLAIN}x")
    accounts.close()
    woken: list[str] = []
    one, mailboxes = intake(tmp_path, woken)
    one.spool.prepare()
    here = [Recipient(user.account, user.account.address) for user in one.accounts.users()]
    for recipient in here:
        mailboxes.account(recipient.account).inbox()
        # The first delivery reserves UIDs: steps of its own.
        with one.open([recipient], envelope=Envelope(ANN), trace=Lines(), origin=Origin(), id=new_id()) as first:
            first.write(TEXT)
            first.commit(time.monotonic())
    left = [at]

    def hook(step, path):
        left[0] -= 1
        if left[0] == -1:
            raise OSError(28, "No space left on device")

    there = [Outward(Address("dee", "example.org")), Outward(Address("eve", "example.net"), via=Address("x", "here"))]
    failed = False
    files.on_step(hook)
    try:
        with one.open(here, there, envelope=Envelope(ANN), trace=Lines(), origin=Origin(), id=new_id()) as transaction:
            transaction.write(TEXT)
            transaction.commit(time.monotonic())
    except MailError:
        failed = True
    finally:
        files.on_step(None)
    assert failed and left[0] < 0
    assert one.spool.ids() == [] and woken == []
    assert len(list((tmp_path / "mail").rglob("new/*"))) == 2
    assert [path for path in (tmp_path / "queue").rglob("*") if path.is_file()] == []
    assert list((tmp_path / "mail").rglob("tmp/*")) == []
    mailboxes.close_all()
    one.accounts.close()
