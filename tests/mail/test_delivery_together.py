"""Messages that arrive together are placed together, each with its own outcome, told in the order of their UIDs."""

import os

import gevent
import pytest
from gevent.event import Event

from mailsrv.errors import MailError, OverQuota, TemporaryFailure
from mailsrv.mail.delivery import MOST_TOGETHER, Deliveries
from mailsrv.mail.mailbox import Mailboxes
from mailsrv.mail.notify import Registry
from mailsrv.store import files
from mailsrv.store.files import Incoming
from mailsrv.values import Account, AccountId, Address
from mailsrv.wire import mime


@pytest.fixture
def mailboxes():
    made = Mailboxes(Registry(), prepare=mime.prepare, host="mx.example.com")
    yield made
    made.close_all()


@pytest.fixture
def account(tmp_path):
    return Account(AccountId(1), Address("ann", "example.com"), str(tmp_path / "ann"))


class Lots:
    """An append_all that waits to be let go, and remembers the lots it was given."""

    def __init__(self):
        self.lots, self.go, self.failure = [], Event(), None

    def __call__(self, number, arrivals):
        self.lots.append(list(arrivals))
        self.go.wait(10)
        if self.failure is not None:
            raise self.failure
        return [arrival if isinstance(arrival, MailError) else f"placed {arrival}" for arrival in arrivals]


def test_one_alone_does_not_wait_and_those_who_come_meanwhile_go_together():
    lots, told = Lots(), []
    deliveries = Deliveries(lots)

    def deliver(name):
        told.append(deliveries.deliver(1, name))

    greenlets = [gevent.spawn(deliver, f"m{n}") for n in range(MOST_TOGETHER + 5)]
    gevent.idle()
    assert lots.lots == [["m0"]]
    lots.go.set()
    gevent.joinall(greenlets, timeout=60, raise_error=True)
    names = [f"m{n}" for n in range(MOST_TOGETHER + 5)]
    assert lots.lots == [names[:1], names[1 : MOST_TOGETHER + 1], names[MOST_TOGETHER + 1 :]]
    assert told == [f"placed {name}" for name in names]
    assert deliveries._waiting == {}  # nothing is kept of a mailbox that nobody delivers to


def test_mailboxes_do_not_wait_for_each_other():
    lots = Lots()
    deliveries = Deliveries(lots)
    greenlets = [gevent.spawn(deliveries.deliver, number, f"m{number}") for number in (1, 2)]
    gevent.idle()
    assert lots.lots == [["m1"], ["m2"]]
    lots.go.set()
    gevent.joinall(greenlets, timeout=60, raise_error=True)


def test_a_refusal_of_one_is_the_others_success():
    lots = Lots()
    lots.go.set()
    deliveries = Deliveries(lots)
    first = gevent.spawn(deliveries.deliver, 1, "first")
    greenlets = [gevent.spawn(deliveries.deliver, 1, one) for one in ("a", OverQuota("full"), "b")]
    gevent.joinall([first, *greenlets], timeout=60)
    assert [greenlet.value for greenlet in greenlets] == ["placed a", None, "placed b"]
    assert isinstance(greenlets[1].exception, OverQuota)


def test_what_fails_for_all_is_told_to_all_and_the_next_lot_is_tried():
    lots = Lots()
    deliveries = Deliveries(lots)
    lots.failure = TemporaryFailure("disk")
    failing = [gevent.spawn(deliveries.deliver, 1, name) for name in "ab"]
    gevent.idle()
    lots.go.set()
    gevent.joinall(failing, timeout=60)
    assert all(isinstance(one.exception, TemporaryFailure) for one in failing)
    lots.failure = None
    assert deliveries.deliver(1, "c") == "placed c"


def test_whoever_is_ended_leaves_the_others_their_turn():
    lots = Lots()
    deliveries = Deliveries(lots)
    greenlets = [gevent.spawn(deliveries.deliver, 1, name) for name in "abcd"]
    gevent.idle()
    greenlets[1].kill()  # waits
    greenlets[0].kill()  # works: b has been woken to be the next by nobody, c is
    lots.go.set()
    gevent.joinall(greenlets, timeout=60)
    assert lots.lots == [["a"], ["c", "d"]]
    assert [one.value for one in greenlets[2:]] == ["placed c", "placed d"] and deliveries._waiting == {}


def message(mail, word):
    incoming = Incoming(mail.store.tmp_dir)
    incoming.write(b"Subject: %b\r\n\r\n%b\r\n" % (word.encode(), word.encode()))
    return incoming


def test_f06_many_at_once_share_commits_and_syncs_and_all_are_there(mailboxes, account, tmp_path):
    mail = mailboxes.account(account)
    number = mail.inbox().id.number
    state = mailboxes.open(account, "INBOX")
    steps = []
    files.on_step(lambda step, path: steps.append((step, path)))
    try:
        appended = {}

        def deliver(word):
            appended[word] = mail.deliver(number, message(mail, word), prefix=b"Delivered-To: x\r\n")
            mailboxes.announce(appended[word], 0.0)

        words = [f"w{n}" for n in range(40)]
        gevent.joinall([gevent.spawn(deliver, word) for word in words], timeout=60, raise_error=True)
    finally:
        files.on_step(None)
    commits = sum(1 for step, _ in steps if step == "commit")
    synced = [path for step, path in steps if step == "fsync"]
    directories = [path for path in synced if path.endswith("/new")]
    assert commits == len(directories) < 20  # of 40 messages
    assert len([path for path in synced if "/tmp/" in path.removeprefix(str(tmp_path))]) == 40  # each file
    assert list(state.uids) == list(range(1, 41))  # told in order, without asking the index
    by_uid = {one.uid: word for word, one in appended.items()}
    for uid, text in mail.store.read_many(number, list(range(1, 41)), 10**9):
        word = by_uid[uid].encode()
        assert text == b"Delivered-To: x\r\nSubject: %b\r\n\r\n%b\r\n" % (word, word)
    state.close()


def test_s34_the_quota_counts_what_arrives_together(mailboxes, account):
    """The last ones do not fit: they are refused, and no file of theirs stays."""
    size = len(b"Subject: w0\r\n\r\nw0\r\n")
    limited = Account(account.id, account.address, account.home, quota_bytes=5 * size)
    mail = mailboxes.account(limited)
    number = mail.inbox().id.number
    greenlets = [gevent.spawn(mail.deliver, number, message(mail, f"w{n}"), prefix=b"") for n in range(9)]
    gevent.joinall(greenlets, timeout=60)
    assert [greenlet.successful() for greenlet in greenlets] == [True] * 5 + [False] * 4
    assert all(isinstance(greenlet.exception, OverQuota) for greenlet in greenlets[5:])
    assert mail.usage() == 5 * size and os.listdir(mail.store.tmp_dir) == []
    assert list(mail.store.snapshot(number).uids) == [1, 2, 3, 4, 5]


def test_a_rename_that_fails_concerns_its_message_alone(mailboxes, account):
    mail = mailboxes.account(account)
    number = mail.inbox().id.number
    renames = []

    def hook(step, path):
        if step == "rename" and "/new/" in path:
            renames.append(path)
            if len(renames) == 3:
                raise OSError(5, "Input/output error")

    files.on_step(hook)
    try:
        greenlets = [gevent.spawn(mail.deliver, number, message(mail, f"w{n}"), prefix=b"") for n in range(5)]
        gevent.joinall(greenlets, timeout=60)
    finally:
        files.on_step(None)
    assert sorted(greenlet.successful() for greenlet in greenlets) == [False, True, True, True, True]
    uids = [greenlet.value.uid for greenlet in greenlets if greenlet.successful()]
    assert list(mail.store.snapshot(number).uids) == sorted(uids) and os.listdir(mail.store.tmp_dir) == []
