"""Waiting mail as its sender sees it: shown, marked, taken away; and only a removed copy means "do not send"."""

import fcntl
import shutil
from pathlib import Path
from types import SimpleNamespace

import gevent
import pytest
from gevent.event import Event

from mailsrv.mail.mailbox import AccountMail, Mailboxes
from mailsrv.mail.notify import Registry
from mailsrv.mail.outbox import (
    DEFERRED,
    HELD,
    LOOKED_AT_ONCE,
    LOTS_AT_ONCE,
    NAME,
    PENDING,
    SCHEDULED,
    Outbox,
    Showing,
    Shown,
)
from mailsrv.mail.queue import Hooks
from mailsrv.store.account import AccountStore
from mailsrv.store.entry import Entry, Recipient
from mailsrv.store.files import Incoming
from mailsrv.store.spool import Spool, new_id
from mailsrv.values import DELETED, Account, AccountId, Address, Envelope, FlagOp
from mailsrv.wire import mime

TEXT = b"From: ann@example.com\r\nTo: bo@elsewhere.test\r\nSubject: waits\r\n\r\nHello\r\n"


@pytest.fixture
def mailboxes():
    made = Mailboxes(Registry(), prepare=mime.prepare, host="mx.example.com")
    yield made
    made.close_all()


@pytest.fixture
def account(tmp_path):
    return Account(AccountId(1), Address("ann", "example.com"), str(tmp_path / "ann"))


@pytest.fixture
def message(tmp_path):
    path = tmp_path / "1.eml"
    path.write_bytes(TEXT)
    return str(path)


def keywords(mailboxes, account):
    """UID -> keyword names, of the Outbox."""
    store = mailboxes.account(account).store
    snapshot = store.snapshot(store.mailbox(NAME).id.number)
    return {
        uid: {name for n, name in enumerate(snapshot.keyword_names) if bits >> n & 1}
        for uid, bits in zip(snapshot.uids, snapshot.keywords, strict=True)
    }


def test_a_waiting_message_is_shown_as_it_is_and_subscribed_to(mailboxes, account, message):
    shown = Outbox(mailboxes).show(account, "abc123", message, [DEFERRED])
    mail = mailboxes.account(account)
    assert mail.store.read(shown.mailbox.number, shown.uid) == b"X-Mailsrv-Queue-Id: abc123\r\n" + TEXT
    assert keywords(mailboxes, account) == {shown.uid: {PENDING, DEFERRED}}
    assert NAME in mail.subscriptions()


def test_however_much_is_left_over_the_queue_need_not_wait_for_it(mailboxes, account, message, tmp_path):
    outbox, spool = Outbox(mailboxes), Spool(str(tmp_path / "queue"))
    spool.prepare()
    waits = Entry(new_id(), Envelope(None), [Recipient(Address("bo", "elsewhere.test"))])
    kept = outbox.show(account, waits.id, message, [])
    waits.shown = (kept.mailbox.number, kept.uidvalidity, kept.uid)
    spool.put(waits, Incoming(spool.tmp_dir))
    for _ in range(LOOKED_AT_ONCE + 3):
        outbox.show(account, new_id(), message, [])
    user, woken = SimpleNamespace(account=account), []
    showing = Showing(
        mailboxes, SimpleNamespace(users=lambda: [user], by_id=lambda id: account),
        SimpleNamespace(spool=spool, hooks=Hooks(), wake=woken.append),
    )  # fmt: skip
    with gevent.Timeout(60):
        showing.begin()
        assert len(outbox.shown(account)) == LOOKED_AT_ONCE + 4  # nothing is read before the queue begins
        while outbox.shown(account) != [kept]:
            gevent.sleep(0.01)
    assert showing._watched == {kept.mailbox: {waits.id: kept}} and woken == []
    with gevent.Timeout(60):
        outbox.hide(account, kept)
        while woken != [waits.id]:  # what the owner removes is looked at by the queue, and nothing else
            gevent.sleep(0.01)
    showing.close()


def test_large_messages_are_shown_too(mailboxes, account, tmp_path):
    path = tmp_path / "large.eml"
    path.write_bytes(TEXT + b"x" * 70 + b"\r\n" + b"y" * 998 * 4096)
    shown = Outbox(mailboxes).show(account, "abc123", str(path), [])
    assert mailboxes.account(account).store.read(shown.mailbox.number, shown.uid) == (
        b"X-Mailsrv-Queue-Id: abc123\r\n" + path.read_bytes()
    )


def test_states_replace_each_other_leave_other_flags_alone_and_are_pushed(mailboxes, account, message):
    outbox = Outbox(mailboxes)
    shown = outbox.show(account, "abc123", message, [SCHEDULED])
    mail = mailboxes.account(account)
    mail.change_flags(shown.mailbox.number, shown.uid, FlagOp.ADD, ["mine"])
    woken = Event()
    mailboxes.registry.subscribe(shown.mailbox, woken)
    outbox.mark(account, shown, [HELD])
    assert woken.is_set()
    assert keywords(mailboxes, account) == {shown.uid: {PENDING, HELD, "mine"}}
    woken.clear()
    outbox.mark(account, shown, [HELD])
    assert not woken.is_set()  # nothing changed, nobody is woken


def test_an_ended_entry_is_taken_away_and_its_watchers_told(mailboxes, account, message):
    outbox = Outbox(mailboxes)
    shown = outbox.show(account, "abc123", message, [])
    woken = Event()
    mailboxes.registry.subscribe(shown.mailbox, woken)
    outbox.hide(account, shown)
    assert woken.is_set() and keywords(mailboxes, account) == {}
    outbox.hide(account, shown)  # twice is no mistake
    outbox.mark(account, shown, [HELD])
    assert keywords(mailboxes, account) == {}


def test_only_a_removed_message_is_withdrawn(mailboxes, account, message):
    outbox = Outbox(mailboxes)
    shown, other = outbox.show(account, "abc123", message, []), outbox.show(account, "abc123", message, [])
    mail = mailboxes.account(account)
    mail.change_flags(shown.mailbox.number, shown.uid, FlagOp.ADD, [], DELETED)
    assert not outbox.withdrawn(account, shown)  # marked is not yet removed
    mail.run(mail.store.expunge, shown.mailbox.number)
    assert outbox.withdrawn(account, shown)
    assert not outbox.withdrawn(account, other)


def test_what_is_asked_of_many_at_a_moment_is_asked_together_and_answered_for_each(mailboxes, account, message):
    """In whatever order they come: a message that is there, taken for removed, would not be sent."""
    outbox = Outbox(mailboxes)
    shown = [outbox.show(account, f"{number:06x}", message, []) for number in range(1, 9)]
    mail = mailboxes.account(account)
    mail.run(mail.store.remove, shown[4].mailbox.number, [shown[4].uid])
    ran, real = [], mail.store.reconcile

    def counted(number):
        ran.append(number)
        return real(number)

    mail.store.reconcile = counted
    order = [shown[at] for at in (7, 3, 0, 6, 4, 2, 1, 5)]  # the first two go alone, while the others come
    asked = [gevent.spawn(outbox.withdrawn, account, one) for one in order]
    gevent.joinall(asked)
    assert [one for one, greenlet in zip(order, asked, strict=True) if greenlet.value] == [shown[4]]
    assert len(ran) <= 4
    del ran[:]
    gevent.joinall([gevent.spawn(outbox.hide, account, one) for one in order if one is not shown[3]])
    assert outbox.shown(account) == [shown[3]] and len(ran) <= 4


def test_one_mailbox_that_is_another_one_now_answers_for_itself_alone(mailboxes, account, message, tmp_path):
    other = Account(AccountId(2), Address("bo", "example.com"), str(tmp_path / "bo"))
    outbox = Outbox(mailboxes)
    ours, theirs = outbox.show(account, "abc123", message, []), outbox.show(other, "abc124", message, [])
    former = Shown(theirs.mailbox, theirs.uidvalidity + 1, theirs.uid)
    shown = [(account, ours), (other, former), (other, theirs), (account, ours), (other, former)]
    asked = [gevent.spawn(outbox.withdrawn, *one) for one in shown]
    gevent.joinall([*asked, *(gevent.spawn(outbox.hide, *one) for one in shown)])
    assert not any(greenlet.value for greenlet in asked[:2]), "nothing was removed by then"
    assert asked[1].value is asked[4].value is False, "another mailbox says nothing"
    assert outbox.shown(account) == outbox.shown(other) == []


def test_an_account_that_somebody_keeps_locked_holds_up_no_other(mailboxes, account, message, tmp_path):
    other = Account(AccountId(2), Address("bo", "example.com"), str(tmp_path / "bo"))
    outbox = Outbox(mailboxes)
    ours = [outbox.show(account, f"{number:06x}", message, []) for number in range(2 * LOTS_AT_ONCE)]
    theirs = [outbox.show(other, f"{number:06x}", message, []) for number in range(2)]
    with open(f"{account.home}/lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = []
        for one in ours:  # each begins, or waits for its turn, before the next
            waiting.append(gevent.spawn(outbox.hide, account, one))
            gevent.idle()
        with gevent.Timeout(20):
            outbox.hide(other, theirs[0])
            assert not outbox.withdrawn(other, theirs[1])
        assert outbox.shown(other) == theirs[1:] and not any(one.ready() for one in waiting)
        fcntl.flock(lock, fcntl.LOCK_UN)
        gevent.joinall(waiting)
    assert outbox.shown(account) == [] and not outbox._removal._lots and not outbox._presence._lots


def test_who_is_ended_at_a_look_leaves_the_others_their_answer(mailboxes, account, message):
    """A message that its owner removed is not sent because somebody else's look was cut off."""
    outbox = Outbox(mailboxes)
    shown = [outbox.show(account, f"{number:06x}", message, []) for number in range(LOTS_AT_ONCE + 2)]
    mail = mailboxes.account(account)
    mail.run(mail.store.remove, shown[-1].mailbox.number, [shown[-1].uid])
    began, go, real = [], Event(), mail.run

    def held(*what):
        began.append(what)
        go.wait()
        return real(*what)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AccountMail, "run", lambda mail, *what: held(*what))
        asked = [gevent.spawn(outbox.withdrawn, account, one) for one in shown]
        gevent.idle()
        assert len(began) == LOTS_AT_ONCE
        asked[0].kill()  # the third goes on, with the last one in its lot
        gevent.idle()
        assert len(began) == LOTS_AT_ONCE + 1
        asked[LOTS_AT_ONCE].kill()
        go.set()
        gevent.joinall(asked)
    assert asked[-1].value is True


@pytest.mark.parametrize("forget", ["rebuild", "reindex", "delete the file"])
def test_an_index_that_is_forgotten_during_a_look_withdraws_nothing(mailboxes, account, message, monkeypatch, forget):
    """Another process forgets it between the look at the directory and the one at the rows."""
    outbox = Outbox(mailboxes)
    shown, removed = (outbox.show(account, name, message, []) for name in ("abc123", "abc124"))
    store = mailboxes.account(account).store
    store.remove(removed.mailbox.number, [removed.uid])
    other = AccountStore(account.id, account.home, prepare=mime.prepare, host="mx.example.com")
    real, looks = store.reconcile, []

    def forgotten(number):
        done = real(number)
        looks.append(number)
        if len(looks) == 1:
            with monkeypatch.context() as patch:
                patch.setattr(other, "reconcile", lambda number: False)  # it is not that far yet
                if forget == "rebuild":
                    other.rebuild()
                elif forget == "reindex":
                    other.reindex()
                else:
                    for file in Path(account.home).glob("index.sqlite3*"):
                        file.unlink()
        return done

    store.reconcile = forgotten
    assert not outbox.withdrawn(account, shown)
    assert outbox.withdrawn(account, removed)
    other.close()


def test_a_message_moved_elsewhere_or_deleted_by_another_program_is_withdrawn(mailboxes, account, message, tmp_path):
    outbox = Outbox(mailboxes)
    moved, deleted = outbox.show(account, "abc123", message, []), outbox.show(account, "abc123", message, [])
    mail = mailboxes.account(account)
    mail.run(mail.store.move, moved.mailbox.number, [moved.uid], mail.find("Drafts").id.number)
    assert outbox.withdrawn(account, moved)
    [file] = (tmp_path / "ann" / "Maildir" / f".{NAME}" / "cur").iterdir()
    file.unlink()
    assert outbox.withdrawn(account, deleted)


def test_what_is_lost_withdraws_nothing(mailboxes, account, message, tmp_path):
    """A folder that is deleted, made anew under the same name, or an index that is lost: the mail goes out."""
    outbox = Outbox(mailboxes)
    shown = outbox.show(account, "abc123", message, [])
    mail = mailboxes.account(account)
    for suffix in ("", "-wal", "-shm"):
        (tmp_path / "ann" / f"index.sqlite3{suffix}").unlink(missing_ok=True)
    assert not outbox.withdrawn(account, shown)
    mail.delete(NAME)
    assert not outbox.withdrawn(account, shown)
    mail.create(NAME)
    assert not outbox.withdrawn(account, shown)
    shutil.rmtree(tmp_path / "ann" / "Maildir" / f".{NAME}")
    assert not outbox.withdrawn(account, shown)
    outbox.hide(account, shown)  # and there is nothing to take away


def test_a_full_mailbox_shows_nothing_and_stops_nothing(mailboxes, account, message, events):
    full = Account(account.id, account.address, account.home, quota_bytes=10)
    assert Outbox(mailboxes).show(full, "abc123", message, []) is None
    assert ("waiting message not shown") in [event for event, _ in events]


def test_two_processes_make_one_outbox(account, message):
    processes = [Mailboxes(Registry(), prepare=mime.prepare, host="mx.example.com") for _ in range(2)]
    shown = [Outbox(one).show(account, "abc123", message, []) for one in processes]
    assert shown[0].mailbox == shown[1].mailbox and shown[0].uid != shown[1].uid
    for one in processes:
        one.close_all()
