"""`python -m tests.model.broken FAULT serve …`: the server with one fault put in, to see that the model finds it.

Each is a fault that servers have had, made as small as it can be.
"""

# ruff: noqa: E402  (patch first, import then)

from gevent import monkey

monkey.patch_all()

import sys

import gevent

from mailsrv.cli import main
from mailsrv.imap import session, view
from mailsrv.mail import mailbox
from mailsrv.mail.bus import Bus
from mailsrv.mail.notify import Registry
from mailsrv.store import base
from mailsrv.store.account import AccountStore
from mailsrv.values import FlagOp, MailboxId


def publish_before_commit():
    """What is about to be committed is announced: who looks at once does not find it."""
    publish = Registry.publish
    Registry.publish = lambda self, mailbox, *, known=False: None
    here = []
    begin = mailbox.Mailboxes.__init__

    def remember(self, registry, **more):
        here[:] = [gevent.get_hub().loop, registry]
        begin(self, registry, **more)

    def early(act, boxes=1):
        def wrapped(self, *args, **more):
            for number in (args[0], args[2]) if boxes == 2 else args[:1]:
                here[0].run_callback_threadsafe(publish, here[1], MailboxId(self.account, number))
            return act(self, *args, **more)

        return wrapped

    mailbox.Mailboxes.__init__ = remember
    for name in ("store_flags", "append", "append_all", "expunge"):
        setattr(AccountStore, name, early(getattr(AccountStore, name)))
    for name in ("copy", "move"):
        setattr(AccountStore, name, early(getattr(AccountStore, name), 2))


def look_before_subscribe():
    """IDLE looks first and clears its Event then: what happens between is not heard of."""
    tell = session.Session.tell

    def late(self, *, expunges, at_once=False):
        tell(self, expunges=expunges, at_once=at_once)
        if at_once:
            gevent.sleep(0.002)
            self.wake.clear()

    session.Session.tell = late


def uid_from_row_count():
    """The next UID is the number of messages and one."""

    def take(self, record, count):
        record.uidnext = record.messages + 1 + count
        return record.messages + 1

    base.StoreBase._take_uids = take


def expunge_during_fetch():
    session._by_number = lambda command: False


def expunge_numbers_not_counted():
    """Each EXPUNGE has the number from before those told with it (R3)."""
    lines = view.View._expunge_lines

    def wrong(self):
        told = [int(line.split()[1]) for line in lines(self)]
        return [b"* %d EXPUNGE\r\n" % (number + at) for at, number in enumerate(told)]

    view.View._expunge_lines = wrong


def silent_hides_all():
    """.SILENT hides what others changed too (R29)."""

    class All(dict):
        def __init__(self, mailbox):
            self.mailbox = mailbox

        def get(self, uid, default=None):
            position = self.mailbox.position(uid)
            return default if position is None else self.mailbox.modseqs[position]

    def silence(self, uids, modseq):
        self.silenced = All(self.mailbox)

    view.View.silence = silence


def other_workers_not_told():
    Bus.forward = lambda self, mailbox: None


def live_numbers():
    """Numbers are resolved against the mailbox as it is now, not as the client was told."""
    uids_of = view.View.uids_of

    def live(self, numbers):
        if len(self.mailbox.uids) < self.count:
            self.mailbox.refresh()
            view_uids, self.uids = self.uids, self.mailbox.uids
            count, self.count = self.count, len(self.mailbox.uids)
            try:
                return uids_of(self, numbers)
            finally:
                self.uids, self.count = view_uids, count
        return uids_of(self, numbers)

    view.View.uids_of = live


def recent_to_everybody():
    def claim(self, number):
        with self._reading() as index:
            record = self._record_read(index, number)
            return 1, record.uidnext

    AccountStore.claim_recent = claim


def copy_without_flags():
    transfer = AccountStore._transfer

    def bare(self, number, uids, target, quota_bytes, *, moving, whole):
        copied = transfer(self, number, uids, target, quota_bytes, moving=moving, whole=whole)
        if copied.target_uids:
            self.store_flags(target, copied.target_uids, FlagOp.REMOVE, 255, ())
        return copied

    AccountStore._transfer = bare


def expunge_takes_the_first():
    """EXPUNGE removes one message more than is marked."""
    expunge = AccountStore.expunge

    def more(self, number, uids=None):
        gone = expunge(self, number, uids)
        if gone:
            with self._reading() as index:
                first = [message.uid for message in index.records(number)][:1]
            for uid in first:
                self.remove(number, uid)
        return gone

    AccountStore.expunge = more


def delivered_twice():
    place_all = AccountStore.append_all
    counts = [0]

    def twice(self, number, arrivals):
        outcomes = place_all(self, number, arrivals)
        counts[0] += 1
        if counts[0] % 10 == 0:
            self.copy(number, [outcomes[0].uid], number)
        return outcomes

    AccountStore.append_all = twice


FAULTS = {
    name.replace("_", "-"): act
    for name, act in list(globals().items())
    if getattr(act, "__module__", "") == __name__ and callable(act)
}
if __name__ == "__main__":
    FAULTS[sys.argv.pop(1)]()
    sys.exit(main())
