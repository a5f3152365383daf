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


def test_unused_indexes_are_closed_and_open_again_when_asked(house, monkeypatch):
    accounts, mailboxes = house
    monkeypatch.setattr(upkeep, "ROUND_SECONDS", 0.01)
    mail = mailboxes.account(accounts.users()[0].account)
    mail.mailboxes()
    assert mail.store._index is not None
    keeper = Upkeep(accounts, mailboxes, sweeps=False)
    keeper.start()
    with gevent.Timeout(60):
        while mail.store._index is not None:
            gevent.sleep(0.001)
    keeper.close()
    assert "Sent" in [info.name for info in mail.mailboxes()]
