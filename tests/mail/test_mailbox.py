"""The shared state of an open mailbox: whatever was committed, by whom and how, every reader is told it once."""

import random
import time

import gevent
import pytest
from gevent.event import Event
from gevent.monkey import get_original

from mailsrv.errors import TemporaryFailure
from mailsrv.mail.mailbox import Mailbox, Mailboxes
from mailsrv.mail.notify import Registry
from mailsrv.store import files
from mailsrv.store.account import Arrival
from mailsrv.store.files import Incoming
from mailsrv.values import DELETED, FLAGGED, SEEN, Account, AccountId, Address, FlagOp
from mailsrv.wire import mime


@pytest.fixture
def process():
    """`process()` is what one worker has: a registry and its mailboxes."""
    made = []

    def start():
        made.append(Mailboxes(Registry(), prepare=mime.prepare, host="mx.example.com"))
        return made[-1]

    yield start
    for one in made:
        one.close_all()


@pytest.fixture
def account(tmp_path):
    return Account(AccountId(1), Address("ann", "example.com"), str(tmp_path / "ann"))


def deliver(mailboxes, account, name="INBOX", word="x", **options):
    mail = mailboxes.account(account)
    message = Incoming(mail.store.tmp_dir)
    message.write(b"Subject: %s\r\n\r\n" % word.encode())
    return mail.append(name, message, **options).uid


class Reader:
    """A client of one process: what it was told, by applying what `changes_since` says and nothing else."""

    def __init__(self, mailbox):
        self.mailbox = mailbox
        self.known, self.count = mailbox.uids, len(mailbox.uids)
        self.modseq = mailbox.highest_modseq
        self.flags = dict(zip(mailbox.uids, zip(mailbox.flags, mailbox.keywords, strict=True), strict=True))

    def catch_up(self):
        self.mailbox.refresh()
        changes = self.mailbox.changes_since(self.modseq, self.known, self.count)
        told = set(self.flags)
        assert changes.arrived == sorted(set(changes.arrived)) and not told & set(changes.arrived)
        assert set(changes.changed) <= told and set(changes.vanished) <= told
        for uid in changes.vanished:
            del self.flags[uid]
        for uid in changes.arrived + changes.changed:
            position = self.mailbox.position(uid)
            if position is not None:
                self.flags[uid] = (self.mailbox.flags[position], self.mailbox.keywords[position])
        self.known, self.count, self.modseq = self.mailbox.uids, len(self.mailbox.uids), changes.modseq


@pytest.mark.parametrize("seed", range(12))
def test_b01_b03_readers_of_two_processes_agree_with_the_disk(process, account, seed, monkeypatch):
    """Random work by two processes; readers that look at random times, some hardly ever, miss and invent nothing."""
    chance = random.Random(seed)
    if seed % 3 == 0:
        monkeypatch.setattr("mailsrv.mail.mailbox.LOG_LENGTH", 8)  # most readers are behind the log
    if seed % 4 == 0:
        monkeypatch.setattr("mailsrv.store.sqlite.KEEP_EXPUNGED", 3)  # the journal forgets
    one, two = process(), process()
    for a, b in ((one, two), (two, one)):
        a.registry.on_publish.append(lambda mailbox, _, b=b: b.registry.changed(mailbox))  # as the bus does
    open_at = {id(p): p.open(account, "INBOX") for p in (one, two)}
    readers = [Reader(open_at[id(p)]) for p in (one, two) for _ in range(3)]
    for _ in range(120):
        actor = chance.choice((one, two))
        mailbox = open_at[id(actor)]
        mailbox.refresh()
        present = list(mailbox.uids)
        some = sorted(chance.sample(present, chance.randint(0, len(present)))) if present else []
        match chance.randrange(8):
            case 0 | 1 | 2:
                flags = chance.choice((0, 0, SEEN))
                deliver(actor, account, flags=flags, keywords=chance.choice(((), ("Work",))))
            case 3:
                mailbox.store_flags(
                    some, chance.choice(list(FlagOp)), chance.choice((SEEN, FLAGGED, DELETED)), ["Play"]
                )
            case 4:
                mailbox.store_flags(some[:2], FlagOp.ADD, DELETED, [])
                mailbox.expunge()
            case 5:
                mailbox.move(some[:1], "Archive")
            case 6:
                archive = actor.open(account, "Archive")
                archive.copy(list(archive.uids)[:2], "INBOX")
                archive.close()
            case 7:
                chance.choice(readers).catch_up()
    check = process().open(account, "INBOX")
    truth = dict(zip(check.uids, zip(check.flags, check.keywords, strict=True), strict=True))
    for reader in readers:
        reader.catch_up()
        assert reader.flags == truth
        assert list(reader.known[: reader.count]) == list(truth)


def test_b05_a_change_during_a_look_is_not_lost(process, account):
    one = process()
    mailbox = one.open(account, "INBOX")
    real = mailbox._account.store.changes

    def changes_then_another(number, since):
        delta = real(number, since)
        if not late:
            late.append(since)
            mailbox._account.store.append(1, Arrival(message()))  # committed after the index was read …
            one.registry.changed(mailbox.id)  # … and announced before the answer is applied
        return delta

    def message():
        made = Incoming(mailbox._account.store.tmp_dir)
        made.write(b"Subject: late\r\n\r\n")
        return made

    late = []
    mailbox._account.store.changes = changes_then_another
    mailbox.mark_stale()
    mailbox.refresh()
    assert list(mailbox.uids) == [1]


def test_whoever_finds_what_another_program_did_announces_it(process, account):
    """STATUS looks at the directory too, and commits what it finds: those who watch would not find it any more."""
    mailboxes = process()
    state = mailboxes.open(account, "INBOX")
    woken = Event()
    subscription = state.subscribe(woken)
    path = f"{account.home}/Maildir/new/1700000000.one.elsewhere"
    with open(path, "wb") as file:
        file.write(b"Subject: one\r\n\r\n")
    woken.clear()
    assert mailboxes.account(account).status("INBOX").messages == 1
    assert woken.is_set()
    state.refresh()
    assert list(state.uids) == [1]
    subscription.close()
    state.close()


def test_one_look_serves_all_who_wait_for_it(process, account):
    one = process()
    mailbox = one.open(account, "INBOX")
    looks = []
    real = mailbox._account.store.changes
    mailbox._account.store.changes = lambda *args: looks.append(1) or real(*args)
    mailbox.mark_stale()
    gevent.joinall([gevent.spawn(mailbox.refresh) for _ in range(50)])
    assert len(looks) == 1


def test_a_delivery_of_this_process_is_known_without_asking_the_index(process, account):
    one = process()
    mailbox = one.open(account, "INBOX")
    mailbox._account.store.changes = None  # would fail if it were called
    event = Event()
    subscription = mailbox.subscribe(event)
    for uid in (1, 2, 3):
        assert deliver(one, account) == uid
        assert event.is_set()
        event.clear()
        mailbox.refresh()
        assert list(mailbox.uids) == list(range(1, uid + 1))
    subscription.close()


def test_a_delivery_that_is_not_the_next_commit_is_looked_up(process, account):
    one, two = process(), process()
    mailbox = one.open(account, "INBOX")
    deliver(two, account)  # nobody told: as if the datagram were still under way
    deliver(one, account)
    mailbox.refresh()
    assert list(mailbox.uids) == [1, 2]


def test_f04_b05_publish_reaches_all_subscribers_and_nobody_else():
    registry = Registry()
    events = [Event() for _ in range(4)]
    subscriptions = [registry.subscribe((1, 1), event) for event in events[:3]]
    other = registry.subscribe((1, 2), events[3])
    registry.publish((1, 1))
    assert [event.is_set() for event in events] == [True, True, True, False]
    for subscription in subscriptions:
        subscription.close()
        subscription.close()
    assert registry.watchers((1, 1)) == 0 and registry.watchers((1, 2)) == 1
    registry.publish((1, 1))
    other.close()
    assert registry._subscriptions == {}, "nothing is kept of those who left"


def test_f04_a_mailbox_is_followed_while_it_is_open(process, account, monkeypatch):
    """From before the first look at it, and for as long as anybody has it open."""
    mailboxes = process()
    mail = mailboxes.account(account)
    followed = []
    for name in ("refreshed", "snapshot"):
        real = getattr(mail.store, name)
        monkeypatch.setattr(
            mail.store, name,
            lambda *args, real=real: (followed.append(mailboxes.registry.followed), real(*args))[1],
        )  # fmt: skip
    one, two = mailboxes.open(account, "INBOX"), mailboxes.open(account, "INBOX")
    one.close()
    assert followed == [[two.id]] * 2 and mailboxes.registry.followed == [two.id]
    two.close()
    assert mailboxes.registry.followed == []
    monkeypatch.setattr(mail.store, "refreshed", lambda number: (_ for _ in ()).throw(TemporaryFailure("no disk")))
    with pytest.raises(TemporaryFailure):
        mailboxes.open(account, "INBOX")
    assert mailboxes.registry.followed == []


def test_f04_everyone_is_told_of_a_mailbox_that_is_new_or_has_a_new_name(process, account):
    mailboxes = process()
    told = []
    mailboxes.registry.on_publish.append(lambda mailbox, everyone: told.append((mailbox, everyone)))
    mail = mailboxes.account(account)
    id = mail.create("Scheduled").id
    mail.rename("Scheduled", "Later")
    deliver(mailboxes, account, "Later")
    assert told[:2] == [(id, True)] * 2 and set(told[2:]) == {(id, False)}


def test_f04_a_thousand_watchers_share_one_answer(process, account):
    one = process()
    mailbox = one.open(account, "INBOX")
    deliver(one, account)
    readers = [Reader(mailbox) for _ in range(1000)]
    asked = []
    real = mailbox._from_log
    type(mailbox)._from_log, kept = lambda self, *args: asked.append(1) or real(*args), type(mailbox)._from_log
    try:
        for _ in range(2):
            deliver(one, account)
        for reader in readers:
            reader.catch_up()
    finally:
        type(mailbox)._from_log = kept
    assert len(asked) == 1
    assert all(list(reader.flags) == [1, 2, 3] for reader in readers)


def test_who_knew_everything_is_answered_with_what_was_committed(process, account, monkeypatch):
    """However many messages changed, and however many there are: the loop is not held while they are compared."""
    mailboxes = process()
    for _ in range(4):
        deliver(mailboxes, account)
    mailbox = mailboxes.open(account, "INBOX")
    reader = Reader(mailbox)
    for way in ("_from_log", "_from_scratch"):
        monkeypatch.setattr(Mailbox, way, lambda *_: pytest.fail("compared"))
    deliver(mailboxes, account)
    reader.catch_up()
    assert sorted(reader.flags) == [1, 2, 3, 4, 5]
    mailbox.store_flags([2, 4], FlagOp.ADD, DELETED, ())
    reader.catch_up()
    assert [uid for uid, (flags, _) in reader.flags.items() if flags & DELETED] == [2, 4]
    mailbox.expunge()
    reader.catch_up()
    assert sorted(reader.flags) == list(mailbox.uids) == [1, 3, 5]
    mailbox.close()


def test_closed_mailboxes_are_kept_within_bounds(process, account, monkeypatch):
    monkeypatch.setattr("mailsrv.mail.mailbox.KEPT_CLOSED", 3)
    one = process()
    for name in ("Drafts", "Sent", "Junk", "Trash", "Archive"):
        one.open(account, name).close()
    assert len(one._closed) == 3 and one._open == {}


def test_a_mailbox_deleted_by_another_process_is_gone(process, account):
    one, two = process(), process()
    two.registry.on_publish.append(lambda mailbox, _: one.registry.changed(mailbox))
    mailbox = one.open(account, "Trash")
    two.account(account).delete("Trash")
    mailbox.refresh()
    assert mailbox.gone
    mailbox.close()


def test_inbox_replaced_on_disk_is_found_again(process, account):
    """Restored from elsewhere while the server runs: one delivery may fail, none goes astray."""
    import shutil

    from mailsrv.errors import MailboxNotFound

    one = process()
    mail = one.account(account)
    assert mail.inbox().id.number == 1
    shutil.rmtree(account.home)
    mail.store.close()
    other = process().account(Account(AccountId(1), account.address, account.home))
    other.create("First")  # numbers differ from before
    message = Incoming(mail.store.tmp_dir)
    message.write(b"Subject: x\r\n\r\n")
    for _ in range(2):
        try:
            uid = mail.deliver(mail.inbox().id.number, message, prefix=b"").uid
            break
        except MailboxNotFound:
            continue
    assert uid == 1 and other.store.status(other.inbox().id.number).messages == 1


class _NativeFlag:
    """Set on the hub, waited for in a thread of the pool, or the other way round."""

    def __init__(self):
        self._set = False

    def set(self):
        self._set = True

    def is_set(self):
        return self._set

    def wait(self, seconds):
        end = time.monotonic() + seconds
        while not self._set and time.monotonic() < end:
            get_original("time", "sleep")(0.005)
        return self._set


def test_s26_a_delivery_that_is_taken_back_is_taken_back_from_who_saw_it(process, account):
    """Its directory cannot be synced. The row was committed by then, and another session looked just between."""
    mailboxes = process()
    deliver(mailboxes, account)
    mailbox = mailboxes.open(account, "INBOX")
    reader, wake = Reader(mailbox), Event()
    subscription = mailbox.subscribe(wake)
    committed, seen = (_NativeFlag() for _ in range(2))

    def broken(step, path):
        if step == "fsync" and path.endswith("/new"):
            committed.set()
            assert seen.wait(20)
            raise OSError(5, "Input/output error")

    files.on_step(broken)
    try:
        delivery = gevent.spawn(deliver, mailboxes, account)
        while not committed.is_set():
            gevent.sleep(0.005)
        mailbox.mark_stale()
        reader.catch_up()
        assert sorted(reader.flags) == [1, 2]
        wake.clear()
        seen.set()
        with pytest.raises(TemporaryFailure):
            delivery.get()
    finally:
        files.on_step(None)
    assert wake.is_set()
    reader.catch_up()
    assert sorted(reader.flags) == [1]
    subscription.close()
