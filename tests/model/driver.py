"""Runs the model against a server: phases in which everybody acts at once, and a rest after each.

In a phase each session does its steps, while mail is delivered and another program works on the Maildir. Some sessions
are done sooner and wait in IDLE for what the others do. At rest nobody acts, and all have to agree: those that idle
without being asked, the others after NOOP, a fresh client, STATUS, the directory, the index, and the ledger.
"""

import random
import time
from pathlib import Path

import gevent

from mailsrv.store.compare import compare
from tests.conftest import DOMAIN
from tests.model.ledger import Box
from tests.model.others import Foreign, Sender, on_disk
from tests.model.responses import Fault
from tests.model.session import ASKED, Session
from tests.model.steps import SHARED

PUSH_SECONDS = 45.0  # in which an idling client is told, on a machine however busy
PHASE_SECONDS = 240.0
STEPS = 40
MOST_MESSAGES = 60  # of a mailbox, when a phase begins
now = time.monotonic


class World:
    """What the actors share: the server, the ledger, what each message is."""

    user = "ann"

    def __init__(self, server, seed):
        self.server, self.seed = server, seed
        self.bodies, self.sizes, self.boxes, self.last_validity = {}, {}, {}, {}

    def port(self, service):
        return self.server.ports[service]

    def folder(self, name):
        maildir = self.server.maildir(self.user)
        return maildir if name == "INBOX" else maildir / f".{name}"

    def box(self, name):
        return self.boxes[name]

    def made(self, token, body, size=None):
        self.bodies[token] = body.encode()
        if size is not None:
            self.sizes[token] = size

    def size_is(self, token, size):
        if self.sizes.setdefault(token, size) != size:
            raise Fault("size", f"{token} had {self.sizes[token]} octets, and has {size} (R37)")


class Fresh(Session):
    """A client of the driver's own, that has its say when nobody else acts."""

    def _log_in(self, mailbox):
        super()._log_in(mailbox)


class Run:
    def __init__(self, server, seed, *, sessions=6, log=None):
        self.world = World(server, seed)
        self.server, self.log = server, log
        self.failed = None
        self.phases = 0
        self.dice = random.Random(f"{seed} driver")
        self._begin()
        self.sessions = [Session(self.world, f"C{number}", SHARED[number % 3]) for number in range(sessions)]
        self.others = [Sender(self.world, "M1"), Sender(self.world, "M2"), Foreign(self.world, "X1")]

    def _begin(self):
        first = _bare(self.world)
        first.ok("CREATE Work")
        for name in SHARED:
            [line] = first.ok(f"STATUS {name} (UIDVALIDITY)").of("STATUS")
            self.world.boxes[name] = Box(name, int(line.items["UIDVALIDITY"]))
        self.fresh = first
        first.select("INBOX")

    # -------------------------------------------------------------- a phase

    def go_on(self, seconds, phases=1):
        """Phases until the time is over and there were so many, on a machine however busy; then the end of it all."""
        end = now() + seconds
        try:
            while now() < end or self.phases < phases:
                self.phase()
            self.finish()
        except BaseException:
            self.keep()
            raise

    def phase(self):
        self.phases += 1
        idlers = [session for session in self.sessions if self.dice.random() < 0.4]
        counts = {session: STEPS // 3 if session in idlers else STEPS for session in self.sessions}
        resting = []
        working = [gevent.spawn(self._guarded, session.work, counts[session]) for session in self.sessions]
        others = [
            gevent.spawn(self._guarded, one.work, lambda: any(working) and not self.failed) for one in self.others
        ]
        # Those that are done first wait in IDLE while the others go on.
        waiting = {}
        end = now() + PHASE_SECONDS
        while any(working) and not self.failed:
            for session, greenlet in zip(self.sessions, working, strict=True):
                if session in idlers and greenlet.ready() and session not in waiting:
                    waiting[session] = gevent.spawn(self._guarded, session.idle, lambda: bool(resting) or self.failed)
            if now() > end:
                raise Fault("stuck", f"a phase did not end within {PHASE_SECONDS} s")
            gevent.sleep(0.01)
        for session in idlers:
            if session not in waiting:
                waiting[session] = gevent.spawn(self._guarded, session.idle, lambda: bool(resting) or self.failed)
        gevent.joinall(others, timeout=120)
        self._raise()
        self._told(list(waiting))
        resting.append(True)
        gevent.joinall(list(waiting.values()), timeout=120)
        self._raise()
        self.rest()

    def _guarded(self, act, *args):
        try:
            act(*args)
        except BaseException as failure:
            if not self.failed:
                self.failed = failure
            if not isinstance(failure, (AssertionError, OSError, ValueError, KeyError)):
                raise

    def _raise(self):
        if self.failed:
            raise self.failed

    # -------------------------------------------------------------- agreement

    def _told(self, idlers):
        """Clients in IDLE are told all there is without asking (R44): the directory is what there is."""
        end = now() + PUSH_SECONDS
        while True:
            differing = {}
            for session in idlers:
                box = session.belief.box
                truth = on_disk(self.world.folder(box.name), box.uidvalidity)
                what = "files without a UID" if truth is None else session.belief.differs(truth)
                if what:
                    differing[session.name] = f"{box.name}: {what}"
            self._raise()
            if not differing:
                return
            if now() > end:
                raise Fault("push", f"not told in IDLE within {PUSH_SECONDS} s: {differing}")
            gevent.sleep(0.02)

    def rest(self):
        """Everybody agrees; then the ledger is closed, and mailboxes that became large are cut."""
        for session in self.sessions:
            session.look()
            if session.belief.entries:
                session.fetch("1:*", list(session.belief.entries), ASKED)
        truths = {}
        for name in SHARED:
            truths[name] = truth = self._agreed(name)
            for session in self.sessions:
                if session.belief.box.name == name and (what := session.belief.differs(truth)):
                    raise Fault("disagrees", f"{session.name} in {name}: {what}")
        self._index_agrees()
        for name, truth in truths.items():
            self.world.box(name).rest(truth, now())
        self._cut(truths)
        self.world.bodies = {
            token: body for token, body in self.world.bodies.items()
            if any(token == one for truth in truths.values() for one, _ in truth.values())
        }  # fmt: skip
        return truths

    def _agreed(self, name):
        """What a fresh client is shown of a mailbox, which is what STATUS and the directory say."""
        fresh = self.fresh
        fresh.select(name, examine=True)
        truth = {}
        if fresh.belief.entries:
            fresh.fetch("1:*", list(fresh.belief.entries), ASKED)
            truth = {entry.uid: (entry.token, entry.flags) for entry in fresh.belief.entries}
        there = on_disk(self.world.folder(name), self.world.box(name).uidvalidity)
        if truth != there:
            raise Fault(
                "disk", f"{name}: a fresh client is shown {_without(truth, there)}, on disk is {_without(there, truth)}"
            )
        [line] = fresh.ok(f"STATUS {name} (MESSAGES UNSEEN)").of("STATUS")
        unseen = sum("\\seen" not in flags for _, flags in truth.values())
        if (int(line.items["MESSAGES"]), int(line.items["UNSEEN"])) != (len(truth), unseen):
            raise Fault("count", f"{name}: {line.raw!r}, but {len(truth)} and {unseen} there")
        return truth

    def _index_agrees(self):
        home = self.server.maildir(self.world.user).parent
        for found in compare(str(home)):
            if found.differences:
                raise Fault("index", f"{found.name}: {dict(found.differences)} {found.examples}")

    def _cut(self, truths):
        """Remove the oldest messages of a mailbox that has become large, one that nobody else touches meanwhile."""
        for name, truth in truths.items():
            if len(truth) <= MOST_MESSAGES:
                continue
            fresh = self.fresh
            fresh.select(name)
            entries = fresh.belief.entries[: len(truth) - MOST_MESSAGES // 2]
            uids = f"{entries[0].uid}:{entries[-1].uid}"
            acts = fresh._acts(entries, "+", frozenset({"\\deleted"}))
            said = fresh.ok(f"UID STORE {uids} +FLAGS.SILENT (\\Deleted)", name="UID STORE")
            for act in acts:
                act.end = said.end
            one = fresh._expunging(frozenset(entry.uid for entry in entries))
            said = fresh.ok(f"UID EXPUNGE {uids}", name="UID EXPUNGE")
            fresh.belief.box.expunged(one, said.end)
            if len(fresh.belief.entries) != MOST_MESSAGES // 2:
                raise Fault(
                    "count", f"{name}: {len(fresh.belief.entries)} left of {len(truth)}, not {MOST_MESSAGES // 2}"
                )

    def finish(self):
        """A last agreement, and the same from an index that is made anew."""
        truths = self.rest()
        truths = {name: self._agreed(name) for name in truths}
        made = self.server.command("reindex", f"{self.world.user}@{DOMAIN}")
        if made.returncode:
            raise Fault("reindex", made.stderr)
        for name, truth in truths.items():
            if (again := self._agreed(name)) != truth:
                raise Fault("reindex", f"{name}: {_without(truth, again)} became {_without(again, truth)}")
        for session in [*self.sessions, self.fresh]:
            session.look()
            session.wire.close()

    # -------------------------------------------------------------- what is kept of a failure

    def keep(self):
        """Write what was said, so that it can be read."""
        if self.log is None:
            return
        directory = Path(self.log)
        directory.mkdir(parents=True, exist_ok=True)
        for session in [*self.sessions, self.fresh]:
            (directory / f"{session.name}.txt").write_text("\n".join(session.transcript) + "\n")

    def summary(self):
        commands = sum(session.commands for session in self.sessions)
        sent = sum(one.sent for one in self.others if isinstance(one, Sender))
        return f"{self.phases} phases, {commands} commands, {sent} deliveries"


def _without(one, other):
    return {
        uid: (token, sorted(flags))
        for uid, (token, flags) in (one or {}).items()
        if (other or {}).get(uid) != (token, flags)
    }


def _bare(world):
    """A session that has not selected anything yet."""

    class Bare(Session):
        def select(self, mailbox, *, examine=False):
            if world.boxes:
                super().select(mailbox, examine=examine)

    return Bare(world, "F")
