"""Builds that are broken on purpose, so that the proofs are seen to fail: `python -m tests.faults.broken NAME serve …`.

Each is the program with one rule taken out, as somebody could take it out by mistake. Nothing of this is in mailsrv.
"""

from gevent import monkey

monkey.patch_all()

import os
import sys
from collections.abc import Callable
from typing import Any

from gevent.monkey import get_original


def no_fsync() -> None:
    """Nothing is synced; only SQLite syncs for itself."""
    os.fsync = os.fdatasync = lambda fd: None  # type: ignore[assignment]


def publish_before_commit() -> None:
    """Sessions are woken when a message is about to be committed, and not afterwards."""
    from mailsrv.mail.mailbox import AccountMail, Mailboxes
    from mailsrv.values import MailboxId

    deliver = AccountMail.deliver

    def early(self: Any, number: int, message: Any, **more: Any) -> Any:
        self._owner.registry.publish(MailboxId(self.account.id, number))
        return deliver(self, number, message, **more)

    AccountMail.deliver = early  # type: ignore[method-assign]
    Mailboxes.announce = lambda self, appended, accepted_at: None  # type: ignore[method-assign]


def look_before_subscribe() -> None:
    """IDLE looks, tells what it saw, and subscribes then, to wait: what is committed between the two wakes nobody.

    So does whoever takes the subscription for a part of the wait. In this build to subscribe goes through a thread and
    back, as whatever is asked of an account does. Done without a switch right behind the look, it would hardly show
    that it comes too late: a commit during the look has marked the mailbox, so that it looks once more.
    """
    from mailsrv.imap.session import Session

    tell = Session.tell

    def late(self: Any, *, expunges: bool, at_once: bool = False) -> None:
        if not at_once or self.view is None:
            tell(self, expunges=expunges, at_once=at_once)
            return
        self.view.subscription.close()
        tell(self, expunges=expunges, at_once=True)
        self.mail().run(bool)
        self.view.subscription = self.view.mailbox.subscribe(self.wake)

    Session.tell = late  # type: ignore[method-assign]


def uid_from_row_count() -> None:
    """The next UID is one more than there are messages."""
    from mailsrv.store.base import StoreBase

    take = StoreBase._take_uids

    def counted(self: Any, record: Any, count: int) -> int:
        record.uidnext = record.messages + 1
        return take(self, record, count)

    StoreBase._take_uids = counted  # type: ignore[method-assign]


def reply_before_durable() -> None:
    """250 goes out while the queue entry is still being written."""
    from mailsrv.store.files import Incoming
    from mailsrv.store.spool import Spool

    put = Spool.put

    def later(self: Any, entry: Any, message: Any, prefix: bytes = b"") -> None:
        text = message.text()
        if text is None:
            put(self, entry, message, prefix)
            return
        own = Incoming(self.tmp_dir)
        own.write(text)

        def work() -> None:
            get_original("time", "sleep")(0.05)
            put(self, entry, own, prefix)

        get_original("_thread", "start_new_thread")(work, ())

    Spool.put = later  # type: ignore[method-assign]


BUILDS: dict[str, Callable[[], None]] = {
    "no-fsync": no_fsync,
    "publish-before-commit": publish_before_commit,
    "look-before-subscribe": look_before_subscribe,
    "uid-from-row-count": uid_from_row_count,
    "reply-before-durable": reply_before_durable,
}

if __name__ == "__main__":
    from mailsrv.cli import main

    name = sys.argv.pop(1)
    BUILDS[name]()
    sys.exit(main())
