"""What the queue tells the senders of its mail: of failures and successes when they are known, of a delay once.

A report is on its way, durably, before its reason is forgotten; a notice of delay is noted before it is sent.

Imports: mail.{bounce,schedule}, store, log, errors.    RFC 3461 5.2, RFC 5321 6.1; docs/decisions/0009-the-queue.md.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from mailsrv import log
from mailsrv.errors import MailError, TemporaryFailure
from mailsrv.mail import bounce
from mailsrv.mail.schedule import AGAIN_SECONDS, SLACK_SECONDS, Counters, Schedule
from mailsrv.store.entry import Entry, EntryDamaged, Recipient, Stamp
from mailsrv.store.files import offload
from mailsrv.store.spool import EntryGone, Spool


class Telling:
    """`send` takes a report; `stays` says whether an entry that is over stays all the same; `ended` hears of those
    that end because all is told.
    """

    def __init__(
        self, spool: Spool, schedule: Schedule, counters: Counters, *, send: Callable[[bounce.Report], None],
        stays: Callable[[Entry], bool], ended: Callable[[Entry], None],
    ) -> None:  # fmt: skip
        self._spool, self._schedule, self._counters = spool, schedule, counters
        self._send, self._stays, self._ended = send, stays, ended

    def report(self, entry: Entry) -> float | None:
        """Post what the sender is to be told; then, and only then, it is forgotten. When to look again, None: never."""
        told = {one.address: one.report for one in entry.recipients if one.report}
        try:
            self._post(entry, [one for one in entry.recipients if one.report == "failed"], "failed")
            successes = [one for one in entry.recipients if one.report not in ("", "failed")]
            self._post(entry, successes, "delivered")
        except MailError as failure:
            log.error("report not posted yet", id=entry.id, error=str(failure))
            return self._schedule.retry[0]

        def forget(current: Entry) -> bool:
            for one in current.recipients:
                if told.get(one.address) == one.report:
                    one.report = ""
            return not current.over or self._stays(current)

        try:
            entry = offload(self._spool.change, entry.id, forget)
        except (EntryGone, EntryDamaged):
            return None
        except TemporaryFailure as failure:
            log.error("result not written yet", id=entry.id, error=str(failure))
            return AGAIN_SECONDS
        if entry.over and not self._stays(entry):
            self._ended(entry)
            return None
        return entry.wait(self._spool.now())

    def _post(self, entry: Entry, recipients: list[Recipient], kind: bounce.Kind) -> None:
        if not recipients:
            return
        content = partial(_beginning, self._spool.message_path(entry.id))
        self._send(bounce.Report(kind, entry, tuple(recipients), content, self._given_up_at(entry)))
        if kind == "failed":
            self._counters.bounces += 1
        else:
            self._counters.notices += 1

    def _given_up_at(self, entry: Entry) -> float:
        now = self._spool.now()
        return now.wall + max(0.0, self._schedule.expire - entry.age(now))

    def overdue(self, entry: Entry, now: Stamp) -> list[Recipient]:
        """Who still waits, and the sender is to be told of it now."""
        return [
            one for one in entry.waiting
            if one.notice_at is not None and entry.remaining(one.notice_at, now) <= SLACK_SECONDS
        ]  # fmt: skip

    def give_notice(self, entry: Entry, now: Stamp) -> float | None:
        """Tell the sender, once, that some still wait. It is noted first: one that is lost is no harm, two are. When
        to look again.
        """
        late = {one.address for one in self.overdue(entry, now)}

        def note(current: Entry) -> bool:
            for one in current.waiting:
                if one.address in late:
                    one.noticed, one.notice_at = True, None
            return True

        try:
            entry = offload(self._spool.change, entry.id, note)
        except (EntryGone, EntryDamaged):
            return 0.0
        except TemporaryFailure as failure:
            log.warning("queue entry not written", id=entry.id, error=str(failure))
            return AGAIN_SECONDS
        try:
            if entry.envelope.sender is not None:
                self._post(entry, [one for one in entry.waiting if one.address in late], "delayed")
        except MailError as failure:
            log.warning("delay not told", id=entry.id, error=str(failure))
        return entry.wait(self._spool.now())


def _beginning(path: str, octets: int) -> bytes:
    with open(path, "rb") as file:
        return file.read(octets)
