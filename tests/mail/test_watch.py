"""Other programs' changes in open mailboxes are heard of and looked at; our own are not, and a closed one is left."""

import errno
import os
import time
from pathlib import Path

import gevent
import pytest
from gevent.event import Event

from mailsrv.errors import TemporaryFailure
from mailsrv.mail import watch as module
from mailsrv.mail.mailbox import EVERY, Mailboxes
from mailsrv.mail.notify import Registry
from mailsrv.mail.watch import Watch
from mailsrv.store.account import AccountStore
from mailsrv.store.files import Incoming, came, placed, went
from mailsrv.store.sqlite import SqliteIndex
from mailsrv.values import ANSWERED, DELETED, FLAGGED, SEEN, Account, AccountId, Address, FlagOp
from mailsrv.wire import mime


@pytest.fixture
def start():
    """`start(watch)` gives a process's mailboxes, watched."""
    made = []

    def run(watch):
        mailboxes = Mailboxes(
            Registry(), prepare=mime.prepare, host="mx.example.com", on_open=watch.opened, on_close=watch.closed
        )
        watch.start(mailboxes)
        made.append((mailboxes, watch))
        return mailboxes

    yield run
    for mailboxes, watch in made:
        watch.close()
        mailboxes.close_all()


@pytest.fixture
def account(tmp_path):
    return Account(AccountId(1), Address("ann", "example.com"), str(tmp_path / "ann"))


@pytest.fixture
def looks(monkeypatch):
    """The looks that were asked for, by mailbox."""
    asked = []
    real = Mailboxes.reconcile
    monkeypatch.setattr(Mailboxes, "reconcile", lambda self, state: (asked.append(state), real(self, state))[1])
    return asked


class DeafLibc:
    """A system whose inotify is used up: for everybody, or from some number of watches on."""

    def __init__(self, watch, watches=None):
        self._real, self._left = watch._libc, watches

    def inotify_init1(self, flags):
        return -1 if self._left is None else self._real.inotify_init1(flags)

    def inotify_add_watch(self, *arguments):
        self._left -= 1
        return -1 if self._left < 0 else self._real.inotify_add_watch(*arguments)

    def inotify_rm_watch(self, *arguments):
        return self._real.inotify_rm_watch(*arguments)


def folder(account):
    return f"{account.home}/Maildir"


def drop(account, word, sub="new"):
    """As another program delivers."""
    path = f"{folder(account)}/{sub}/1700000000.{word}.elsewhere"
    with open(f"{folder(account)}/tmp/{word}", "wb") as file:
        file.write(b"Subject: %b\r\n\r\n" % word.encode())
    os.rename(f"{folder(account)}/tmp/{word}", path)
    return path


def until(condition):
    with gevent.Timeout(60):
        while not condition():
            gevent.sleep(0.005)


def count(state):
    state.refresh()
    return len(state.uids)


def deliver(mailboxes, account, word):
    mail = mailboxes.account(account)
    message = Incoming(mail.store.tmp_dir)
    message.write(b"Subject: %b\r\n\r\n" % word.encode())
    appended = mail.deliver(mail.inbox().id.number, message, prefix=b"")
    mailboxes.announce(appended, 0.0)
    return os.path.basename(appended.path)


@pytest.mark.parametrize("sub", ["new", "cur"])
def test_r08_a_dropped_file_is_found(start, account, sub):
    state = start(Watch()).open(account, "INBOX")
    drop(account, "one", sub)
    until(lambda: count(state) == 1)
    state.close()


def test_r08_a_removed_and_a_renamed_file_are_found(start, account):
    mailboxes = start(Watch())
    state = mailboxes.open(account, "INBOX")
    drop(account, "one", "cur")
    until(lambda: count(state) == 1)
    (name,) = os.listdir(f"{folder(account)}/cur")
    flagged = f"{folder(account)}/cur/{name.partition(':')[0]}:2,F"
    os.rename(f"{folder(account)}/cur/{name}", flagged)
    until(lambda: state.refresh() or list(state.flags) != [0])
    os.unlink(flagged)
    until(lambda: count(state) == 0)
    state.close()


@pytest.mark.parametrize("act", ["drop", "rename", "remove"])
def test_b14_a_change_that_falls_into_one_of_ours_is_heard_of(start, account, monkeypatch, act):
    """Between our two looks at the directory's mtime it leaves an mtime that is taken for ours."""
    mailboxes = start(Watch())
    state = mailboxes.open(account, "INBOX")
    for word in ("one", "two"):
        deliver(mailboxes, account, word)
    state.store_flags([1, 2], FlagOp.ADD, SEEN, ())
    [other] = [path for path in Path(f"{folder(account)}/cur").iterdir() if "-2:" in path.name]
    real = AccountStore._next_modseq

    def meanwhile(self, record):
        monkeypatch.setattr(AccountStore, "_next_modseq", real)
        if act == "drop":
            drop(account, "three", "cur")
        elif act == "rename":
            other.rename(f"{other}F")
        else:
            other.unlink()
        return real(self, record)

    monkeypatch.setattr(AccountStore, "_next_modseq", meanwhile)
    state.store_flags([1], FlagOp.ADD, ANSWERED, ())
    expected = {"drop": {1: ANSWERED | SEEN, 2: SEEN, 3: 0}, "rename": {1: ANSWERED | SEEN, 2: FLAGGED | SEEN}}
    until(lambda: shown(state) == expected.get(act, {1: ANSWERED | SEEN}))
    state.close()


def shown(state):
    state.refresh()
    return dict(zip(state.uids, state.flags, strict=True))


def test_a_look_under_way_does_not_hide_a_change_from_the_next_one(start, account, monkeypatch):
    """Names are kept until they were compared: who asks meanwhile compares them too."""
    watch = Watch()
    mailboxes = start(watch)
    state = mailboxes.open(account, "INBOX")
    drop(account, "one")
    with state.looked_at():
        drop(account, "two")
        names = [name for name in watch.heard(state.id) if name.endswith(".elsewhere")]
        assert len(names) == 2
        mailboxes.reconcile(state)
    assert count(state) == 2
    until(lambda: watch.heard(state.id) == {})
    state.close()


def test_more_names_than_are_kept_have_the_whole_mailbox_compared(start, account, monkeypatch):
    monkeypatch.setattr(module, "MOST_HEARD", 3)
    watch = Watch()
    mailboxes = start(watch)
    state = mailboxes.open(account, "INBOX")
    for number in range(10):
        drop(account, f"m{number}")
    assert EVERY in watch.heard(state.id) and len(watch.heard(state.id)) <= 4
    mailboxes.reconcile(state)
    assert count(state) == 10
    until(lambda: watch.heard(state.id) == {})
    state.close()


def test_many_changes_of_a_moment_are_read_together(start, account, monkeypatch):
    """The first is heard at once; the loop is not woken for each of thousands that a STORE renames."""
    monkeypatch.setattr(module, "REST_SECONDS", 0.2)
    watch = Watch()
    woken = []
    monkeypatch.setattr(Watch, "_news", lambda self, real=Watch._news: (woken.append(1), real(self))[1])
    state = start(watch).open(account, "INBOX")
    begun = time.monotonic()
    for number in range(200):
        drop(account, f"m{number}")
        gevent.sleep(0)
    rests = (time.monotonic() - begun) / 0.2
    assert 1 <= len(woken) <= rests + 2
    until(lambda: count(state) == 200)
    state.close()


def test_what_another_worker_did_is_settled_by_the_look_for_it(start, account, monkeypatch):
    """Its change is heard as another program's; who reads it from the index compares the names in the same task."""
    watch = Watch()
    mailboxes, worker = start(watch), start(Watch())
    state = mailboxes.open(account, "INBOX")
    monkeypatch.setattr(Watch, "_is_ours", staticmethod(lambda mask, name: False))
    with monkeypatch.context() as patch:
        patch.setattr(mailboxes, "reconcile", lambda state: pytest.fail("looked at once more"))
        deliver(worker, account, "one")
        assert watch.heard(state.id)
        mailboxes.registry.changed(state.id)
        assert count(state) == 1 and not watch.heard(state.id)
        until(lambda: not watch._looking)
    deliver(worker, account, "two")
    drop(account, "three")
    mailboxes.registry.changed(state.id)
    state.refresh()
    assert any("three" in name for name in watch.heard(state.id)), "the index does not have it"
    until(lambda: count(state) == 3 and not watch.heard(state.id))
    state.close()


@pytest.mark.parametrize("opened_again", [False, True])
def test_b14_what_was_heard_of_a_mailbox_that_is_closed_is_looked_at(start, account, monkeypatch, opened_again):
    """The last change of ours before it is closed may have hidden another program's."""
    watch = Watch()
    mailboxes = start(watch)
    state = mailboxes.open(account, "INBOX")
    deliver(mailboxes, account, "one")
    deliver(mailboxes, account, "two")
    state.store_flags([1, 2], FlagOp.ADD, SEEN, ())
    [other] = [path for path in Path(f"{folder(account)}/cur").iterdir() if "-2:" in path.name]
    real = AccountStore._next_modseq

    def meanwhile(self, record):
        monkeypatch.setattr(AccountStore, "_next_modseq", real)
        other.rename(f"{other}T")
        return real(self, record)

    monkeypatch.setattr(AccountStore, "_next_modseq", meanwhile)
    state.store_flags([1], FlagOp.ADD, ANSWERED, ())
    state.close()
    if opened_again:
        again = mailboxes.open(account, "INBOX")
        assert shown(again) == {1: ANSWERED | SEEN, 2: SEEN | DELETED}
        again.close()
    else:
        mail = mailboxes.account(account)
        until(lambda: mail.status("INBOX").deleted == 1)
    until(lambda: not watch._last_looks and not watch._heard)


def test_b14_what_others_did_to_flags_counts_before_ours_does(start, account):
    """EXPUNGE, COPY and STORE act on what the files say, not on what the index remembers, and announce it."""
    mailboxes = start(Watch())
    state = mailboxes.open(account, "INBOX")
    woken = Event()
    subscription = state.subscribe(woken)
    deliver(mailboxes, account, "one")
    state.store_flags([1], FlagOp.ADD, DELETED, ())
    state.refresh()
    [path] = Path(f"{folder(account)}/cur").iterdir()
    path.rename(f"{str(path).rpartition(':')[0]}:2,F")
    woken.clear()
    assert state.expunge() == [] and woken.is_set()
    assert shown(state) == {1: FLAGGED}
    subscription.close()
    state.close()


def test_who_opens_a_mailbox_sees_what_was_heard_and_not_looked_at_yet(start, account, monkeypatch):
    """Another program's rename that falls into the same tick as a change of ours: no mtime says it (decision 38)."""
    mailboxes = start(Watch())
    state = mailboxes.open(account, "INBOX")
    name = deliver(mailboxes, account, "one")
    monkeypatch.setattr(module, "OWN_QUIET_SECONDS", 10.0)
    monkeypatch.setattr(AccountStore, "refreshed", lambda self, number: False)
    os.rename(f"{folder(account)}/new/{name}", f"{folder(account)}/cur/{name}:2,F")
    again = mailboxes.open(account, "INBOX")
    assert list(again.flags) == [FLAGGED]
    again.close()
    state.close()


def test_our_own_delivery_causes_no_look(start, account, looks):
    watch = Watch()
    mailboxes = start(watch)
    state = mailboxes.open(account, "INBOX")
    del looks[:]
    names = set()
    for number in range(5):
        names.add(deliver(mailboxes, account, f"own{number}"))
    until(lambda: names.isdisjoint(placed._names))  # all were heard of
    assert watch.lag() == (0, 0.0) and looks == []
    assert count(state) == 5
    state.close()


def test_our_own_renames_and_removals_cause_no_look(start, account, looks):
    watch = Watch()
    mailboxes = start(watch)
    state = mailboxes.open(account, "INBOX")
    for number in range(20):
        deliver(mailboxes, account, f"own{number}")
    del looks[:]
    others = {*came._names, *went._names}  # of mailboxes that nobody watches
    uids = list(range(1, 21))
    state.store_flags(uids, FlagOp.ADD, SEEN | DELETED, ())
    state.store_flags(uids[10:], FlagOp.REMOVE, DELETED, ())
    assert state.expunge() == uids[:10]
    until(lambda: {*came._names, *went._names} <= others)  # all were heard of
    assert looks == [] and watch._heard == {}
    state.close()


def test_what_failed_after_its_renames_is_looked_at(start, account, monkeypatch):
    """A STORE whose commit fails leaves files renamed: nobody else tells, so the directory is compared."""
    watch = Watch()
    mailboxes = start(watch)
    state = mailboxes.open(account, "INBOX")
    deliver(mailboxes, account, "one")

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(SqliteIndex, "update_flags", fail)
        with pytest.raises(TemporaryFailure):
            state.store_flags([1], FlagOp.ADD, SEEN, ())
    until(lambda: shown(state) == {1: SEEN})
    until(lambda: not watch._heard)
    state.close()


def test_many_changes_at_once_are_few_looks(start, account, looks):
    state = start(Watch()).open(account, "INBOX")
    del looks[:]
    for number in range(200):
        drop(account, f"m{number}")
    until(lambda: count(state) == 200)
    assert 1 <= len(looks) <= 10
    state.close()


def test_how_far_behind_it_is_can_be_asked(start, account, monkeypatch):
    watch = Watch()
    state = start(watch).open(account, "INBOX")
    monkeypatch.setattr(module, "OWN_QUIET_SECONDS", 0.05)
    assert watch.lag() == (0, 0.0)
    drop(account, "one")
    until(lambda: watch.lag()[0] == 1)
    until(lambda: count(state) == 1)
    until(lambda: watch.lag() == (0, 0.0))
    state.close()


def test_a_look_that_fails_is_told_and_the_next_change_is_looked_at(start, account, monkeypatch, events):
    watch = Watch()
    mailboxes = start(watch)
    state = mailboxes.open(account, "INBOX")

    def fail(self, looked_at):
        raise TemporaryFailure("disk")

    with monkeypatch.context() as broken:
        broken.setattr(Mailboxes, "reconcile", fail)
        drop(account, "one")
        until(lambda: any(event == "could not look at a changed mailbox" for event, _ in events))
    until(lambda: watch.lag() == (0, 0.0))
    drop(account, "two")
    until(lambda: count(state) == 2)
    state.close()


def test_a_closed_mailbox_is_not_watched_any_more(start, account, looks):
    watch = Watch()
    mailboxes = start(watch)
    state = mailboxes.open(account, "INBOX")
    state.close()
    other = Account(AccountId(2), Address("bo", "example.com"), account.home.replace("ann", "bo"))
    still = mailboxes.open(other, "INBOX")
    del looks[:]
    drop(account, "one")
    drop(other, "two")
    until(lambda: count(still) == 1)
    assert looks and all(one is still for one in looks)
    assert set(watch._watches) == set(watch._states) == {still.id} and len(watch._by_watch) == 2
    with open(f"/proc/self/fdinfo/{watch._fd}") as kernel:
        assert kernel.read().count("inotify wd:") == 2
    still.close()


@pytest.mark.parametrize("watches", [None, 0, 1])
def test_where_inotify_is_used_up_mailboxes_are_polled(start, account, monkeypatch, events, watches):
    monkeypatch.setattr(module, "POLL_SECONDS", 0.05)
    watch = Watch()
    watch._libc = DeafLibc(watch, watches)
    mailboxes = start(watch)
    state = mailboxes.open(account, "INBOX")
    assert any("inotify" in event for event, _ in events) is (watches is None)
    drop(account, "one", "cur")
    until(lambda: count(state) == 1)
    state.close()
    assert not watch._unwatched


def test_after_lost_events_every_open_mailbox_is_looked_at(start, account, monkeypatch):
    """The kernel says that its queue ran over, and not what was in it (inotify(7), IN_Q_OVERFLOW)."""
    watch = Watch()
    mailboxes = start(watch)
    state = mailboxes.open(account, "INBOX")
    real, lost = os.read, module._EVENT.pack(-1, module._OVERFLOW, 0, 0)

    def read(fd, size):
        data = real(fd, size)
        return lost if data and fd == watch._fd else data

    monkeypatch.setattr(os, "read", read)
    drop(account, "one")
    until(lambda: count(state) == 1)
    state.close()
