"""The soak: mixed clients for minutes or hours, while workers are killed and settings reloaded; does anything grow?"""

import os
import random
import re
import signal
import time
from collections import Counter, defaultdict

import gevent

from mailsrv.daemon import PARTS
from mailsrv.store.compare import compare
from tests.conftest import USERS
from tests.daemon.conftest import until
from tests.model.responses import Fault
from tests.soak.actors import Appender, Comer, Fetcher, Idler, Keeper, Ledger, Searcher, Sender
from tests.soak.sampling import FIGURES, Sampler
from tests.soak.slope import judge

CAST = ((Idler, 6), (Fetcher, 1), (Searcher, 1), (Appender, 1), (Sender, 2), (Comer, 1))  # of each user
SAMPLES = 200
LOOKS_FOR_A_QUESTION = 4
LEAST_LOOKS = 3 * LOOKS_FOR_A_QUESTION
# Per cent in an hour; what less than this in the time looked at does not count.
LIMITS = {"memory": (20.0, 1024 * 1024), "descriptors": (20.0, 5), "threads": (20.0, 3), "greenlets": (20.0, 10)}
KILLS = (0.05, 0.1, 0.15)  # of the time: the last life of that worker is judged for nearly as long as the others
RELOADS = 10
SHARED_OUT = ("descriptors", "greenlets")  # as many as the clients that a worker happens to serve, and some more
TOGETHER = "all workers"
PUSH_SECONDS = 30.0
LATE_SECONDS = 60.0
now = time.monotonic


def named(name, pid):
    return f"{name} ({pid})" if pid is not None else name


class Soak:
    def __init__(self, server, seed, seconds):
        self.server, self.seed, self.seconds = server, seed, seconds
        self.ledger = Ledger()
        self.sampler = Sampler(server)
        self.ending = False
        self.killed, self.reloads = {}, 0  # pid -> seconds since the beginning
        self.keepers = [Keeper(self, f"K{user}", user) for user in USERS]
        self.actors = [
            make(self, f"{make.__name__[0]}{user}{number}", user) for user in USERS for make, count in CAST
            for number in range(count)
        ]  # fmt: skip
        self.dice = random.Random(f"{seed} soak")

    def run(self):
        begun = now()
        working = []
        for actor in [*self.keepers, *self.actors]:
            working.append(gevent.spawn(actor.run))
            gevent.sleep(min(0.05, self.seconds / 200))
        several = self.server.settings["server.workers"] > 1
        kills = [begun + share * self.seconds for share in KILLS if several]
        reloads = [begun + (number + 0.5) * self.seconds / RELOADS for number in range(RELOADS)]
        looked = 0
        # A loaded machine takes its time for a look, or for a new worker: nothing is left out for that.
        while now() < begun + self.seconds or kills or reloads or looked < LEAST_LOOKS:
            assert now() < begun + self.seconds + LATE_SECONDS, f"still to be done: {len(kills)} kills, {looked} looks"
            if kills and now() > kills[0] and self.kill_a_worker():
                kills.pop(0)
            if reloads and now() > reloads[0]:
                reloads.pop(0)
                self.server.process.send_signal(signal.SIGHUP)
                self.reloads += 1
            self.sampler.look()
            if looked % LOOKS_FOR_A_QUESTION == 0:
                self.sampler.ask()
            looked += 1
            gevent.sleep(max(0.1, self.seconds / SAMPLES))
        self.sampler.ask()
        self.ending = True
        gevent.joinall(working, timeout=60)
        self.settle()

    def kill_a_worker(self):
        """The last of them, as a crash would; False until the one killed before has a successor that was looked at."""
        sampled = {pid for _, pid in self.sampler.series}
        workers = {name: pid for pid, name in self.sampler.pids().items() if name.startswith("worker-")}
        if len(workers) < 2 or (pid := workers[max(workers)]) in self.killed or pid not in sampled:
            return False
        os.kill(pid, signal.SIGKILL)
        self.killed[pid] = self.sampler.seconds()
        return True

    def settle(self):
        """Everything accepted is seen, every idler knows how many there are, and disk and index agree."""
        for keeper in self.keepers:

            def looked(keeper=keeper):
                try:
                    keeper.client = keeper.client or keeper.begin()
                    keeper.look()
                except (Fault, OSError) as failure:
                    if isinstance(failure, Fault) and failure.kind != "connection":
                        self.ledger.wrong.append(f"{keeper.name}: {failure}")
                    keeper.drop()
                    return False
                return True

            until(looked, f"{keeper.name} looks", 30)
        kept = {keeper.user: len(keeper.uids) for keeper in self.keepers}
        idlers = [actor for actor in self.actors if isinstance(actor, Idler) and actor.client is not None]
        gevent.joinall([gevent.spawn(self.told, idler, kept[idler.user]) for idler in idlers])
        for actor in [*self.keepers, *self.actors]:
            actor.drop()
        for user in USERS:
            for found in compare(str(self.server.maildir(user).parent)):
                if found.differences:
                    self.ledger.wrong.append(f"{user} {found.name}: {dict(found.differences)} {found.examples}")
        log = self.server.log.read_text()
        failed = re.findall(r"^\S+ error (session-failed.*)$", log, re.MULTILINE)
        self.ledger.wrong += [f"log: {line[:200]}" for line in failed[:5]]

    def told(self, idler, count):
        """In IDLE a client is told how many messages there are."""
        try:
            idler.client.idle(PUSH_SECONDS, lambda: idler.client.count == count)
            if idler.client.count != count:
                self.ledger.wrong.append(f"{idler.name} was told of {idler.client.count} messages, not {count}")
        except (Fault, OSError) as failure:
            self.ledger.wrong.append(f"{idler.name}: {failure}")

    def slopes(self):
        """(process, pid, figure, Slope, or None if the time was too short to judge)."""
        rows = []
        for (name, pid), figures in sorted(self.sampler.series.items()):
            for figure, samples in figures.items():
                if samples:
                    limit, least = LIMITS[figure]
                    started = self.sampler.started.get((name, pid))
                    rows.append((name, pid, figure, judge(samples, limit=limit, least=least, started=started)))
        return [*rows, *self.together()]

    def together(self):
        """Rows of what all workers have: the clients of one come and go, the sum stays."""
        workers = {key: figures for key, figures in self.sampler.series.items() if key[0].startswith("worker-")}
        if not workers:
            return
        started = max(self.sampler.started.get(key, 0.0) for key in workers)
        for figure in SHARED_OUT:
            sums = defaultdict(list)
            for figures in workers.values():
                for at, value in figures[figure]:
                    sums[at].append(value)
            all_there = self.server.settings["server.workers"]
            samples = [(at, sum(values)) for at, values in sorted(sums.items()) if len(values) == all_there]
            limit, least = LIMITS[figure]
            yield TOGETHER, None, figure, judge(samples, limit=limit, least=least, started=started)

    def roles(self):
        """What the server consists of, whichever process did it at the time."""
        workers = self.server.settings["server.workers"]
        return (
            ["supervisor", *(f"worker-{number}" for number in range(workers)), *PARTS]
            if workers > 1
            else ["supervisor"]
        )

    def unproven(self):
        """(role, figure, why) of which no process of the role was found to grow or not to."""
        found = defaultdict(list)
        for name, _, figure, slope in self.slopes():
            found[name, figure].append(slope)
        for role in self.roles():
            for figure in FIGURES:
                slopes = found[role, figure]
                if (role, figure) == ("supervisor", "greenlets") and not slopes:
                    continue  # it has none, and answers no questions
                if role.startswith("worker-") and figure in SHARED_OUT:
                    slopes = [*slopes, *found[TOGETHER, figure]] if any(slopes) else []
                if not any(slopes):
                    yield role, figure, "all its processes were too short to judge"
                elif all(slope is None or slope.verdict == "undecided" for slope in slopes):
                    yield role, figure, "a longer run has to decide"

    def died(self):
        """(process, how often) of what ended though nobody killed it: what it held until then proves nothing."""
        killed = Counter(name for name, pid in self.sampler.series if pid in self.killed)
        for name, times in sorted(self.sampler.restarts.items()):
            if times > killed[name]:
                yield name, times - killed[name]

    def failed(self):
        """What is wrong, in words; nothing if all is well."""
        growing = [
            f"{figure} of {named(name, pid)} grows by {slope.per_hour:.0f} % in an hour (at least {slope.low:.0f})"
            for name, pid, figure, slope in self.slopes() if slope is not None and slope.verdict == "grows"
        ]  # fmt: skip
        unproven = defaultdict(list)
        for role, figure, why in self.unproven():
            unproven[role, why].append(figure)
        unproven = [f"nothing is shown of {role}: {why}: {', '.join(what)}" for (role, why), what in unproven.items()]
        died = [f"{name} ended by itself, {times} times" for name, times in self.died()]
        return [*growing, *unproven, *died, *self.ledger.problems()]
