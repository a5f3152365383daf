"""What is done while nobody waits: indexes that nobody uses are closed, old temporary files go, young ones stay."""

import os
import time
from pathlib import Path

import gevent
import pytest

from mailsrv.mail import upkeep
from mailsrv.mail.accounts import Accounts
from mailsrv.mail.mailbox import Mailboxes
from mailsrv.mail.notify import Registry
from mailsrv.mail.upkeep import Upkeep
from mailsrv.store import base
from mailsrv.wire import mime


@pytest.fixture
def house(tmp_path):
    accounts = Accounts(str(tmp_path / "accounts.sqlite3"), str(tmp_path / "mail"))
    accounts.add_domain("example.com")
    for name in ("ann", "bo", "never"):
        accounts.add_user(f"{name}@example.com", "{PLAIN}x")
    mailboxes = Mailboxes(Registry(), prepare=mime.prepare, host="mx.example.com")
    yield accounts, mailboxes
    mailboxes.close_all()
    accounts.close()


def test_s25_files_left_by_deliveries_that_were_cut_off_are_swept(house, events, monkeypatch):
    accounts, mailboxes = house
    old, young = [], []
    for user in accounts.users()[:2]:
        mail = mailboxes.account(user.account)
        mail.mailboxes()
        for folder in (Path(mail.store.maildir), Path(mail.store.maildir) / ".Sent"):
            for name, kept in (("old", old), ("young", young)):
                kept.append(folder / "tmp" / name)
                kept[-1].write_bytes(b"x")
    now = time.time()
    monkeypatch.setattr("mailsrv.store.account.time.time", lambda: now + 37 * 3600)
    for path in young:
        os.utime(path, (now + 37 * 3600,) * 2)
    assert Upkeep(accounts, mailboxes, sweeps=True).sweep() == 4
    assert all(path.exists() for path in young) and not any(path.exists() for path in old)
    assert ("temporary files swept", {"count": 4}) in events
    assert not Path(accounts.users()[2].account.home).exists(), "an account without mail stays without"


@pytest.fixture
def keeper(house):
    keeper = Upkeep(*house, sweeps=False)
    keeper.start()
    yield keeper
    keeper.close()


def until(holds):
    with gevent.Timeout(30):
        while not holds():
            gevent.sleep(0.001)


def test_indexes_that_were_used_once_rest_soon_and_open_again_when_asked(house, keeper):
    accounts, mailboxes = house
    mail = mailboxes.account(accounts.users()[0].account)
    mail.mailboxes()
    assert mail.store._index is not None
    until(lambda: mail.store._index is None)
    assert "Sent" in [info.name for info in mail.mailboxes()]


def test_an_index_that_was_used_again_within_a_minute_stays(house, keeper, monkeypatch):
    accounts, mailboxes = house
    monkeypatch.setattr(base, "QUIET_SECONDS", 0.01)
    once, again = (mailboxes.account(user.account) for user in accounts.users()[:2])
    again.mailboxes()
    until(lambda: again.store._index is None)
    again.mailboxes()
    once.mailboxes()
    until(lambda: once.store._index is None)
    assert again.store._index is not None
    again.store.used_at -= base.RETURN_SECONDS
    until(lambda: again.store._index is None)


def test_too_many_indexes_rest_the_oldest_first_and_not_in_the_way_of_who_opens_one(house, monkeypatch):
    accounts, mailboxes = house
    monkeypatch.setattr(base, "QUIET_SECONDS", 60.0)
    monkeypatch.setattr(base, "KEPT_INDEXES", 1)
    stores = [mailboxes.account(user.account).store for user in accounts.users()]
    for store in stores:
        store.mailboxes()
    assert all(store._index is not None for store in stores)
    base.rest_indexes()
    assert [store._index is not None for store in stores] == [False, False, True]
    monkeypatch.setattr(base, "MOST_OPEN_INDEXES", 2)
    for store in stores:
        store.mailboxes()
    assert [store._index is not None for store in stores] == [False, True, True], "there is a limit"


def test_memory_is_given_back_when_a_burst_is_over(house, monkeypatch):
    accounts, mailboxes = house
    stores = [mailboxes.account(user.account).store for user in accounts.users()]
    open_at_trim = []
    monkeypatch.setattr(upkeep, "ROUND_SECONDS", 0.01)
    monkeypatch.setattr(upkeep, "TRIM_AFTER", len(stores))
    monkeypatch.setattr(upkeep, "trim", lambda: open_at_trim.append([one for one in stores if one._index is not None]))
    keeper = Upkeep(accounts, mailboxes, sweeps=False)
    keeper.start()
    for store in stores:
        store.mailboxes()
    until(lambda: open_at_trim)
    keeper.close()
    assert open_at_trim == [[]], "once, when all of them rest"
