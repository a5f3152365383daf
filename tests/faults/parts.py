"""A worker, the queue's runner and the supervisor are killed, each alone: service is back in time, nothing is lost."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from pathlib import Path

import gevent

from tests.fakes.sink import FakeSink
from tests.faults.checker import over_imap
from tests.faults.context import Context
from tests.faults.ledger import Ledger
from tests.faults.load import ELSEWHERE, Elsewhere, Load, deliver, prepare, settings
from tests.faults.report import Result
from tests.faults.server import PASSWORD, USERS, Server, _group_exists, until


def run(context: Context) -> Result:
    result = Result("a worker, the runner, the supervisor killed")
    moment, ledger = random.Random(f"{context.seed} parts"), Ledger(context.seed, "r")
    with FakeSink() as sink:
        server = Server(context.place("parts"), **{"server.workers": 2, **settings(sink)})
        elsewhere, load, maildirs = Elsewhere(sink), Load(server, ledger, context.seed), server.maildirs()
        try:
            server.start()
            prepare(server, ledger)
            for number in range(context.of(3, 12, 60)):
                who = ("worker", "runner", "supervisor")[number % 3]
                load.start()
                gevent.sleep(moment.uniform(0.1, 0.6))
                begun = time.monotonic()
                _kill(server, who)
                wrong = _back(server, ledger, who)
                taken = time.monotonic() - begun
                load.stop()
                boxes = maildirs.boxes(thoroughly=False)
                wrong += ledger.close(boxes) + maildirs.wrong
                wrong += over_imap(server.ports["imap"], PASSWORD, ledger, boxes, USERS)
                wrong += elsewhere.drained(ledger, server) + server.bugs()
                # Workers without a supervisor end as if told to, and say so.
                wrong += [one for one in load.refused if who != "supervisor" or "421" not in one]
                load.refused.clear()
                if taken > context.back_seconds:
                    wrong.append(f"back after {taken:.1f} s")
                result.counts[f"{who} killed"] += 1
                result.wrong += [f"{who}, {number}: {one}" for one in wrong]
                if wrong:
                    return result
        except AssertionError as failure:
            result.wrong.append(str(failure))
        finally:
            server.close()
            result.counts.update(load.counts)
    return result


def _kill(server: Server, who: str) -> None:
    assert server.process is not None
    if who == "supervisor":
        os.kill(server.process.pid, signal.SIGKILL)
        return
    os.kill(_pid(server, "worker-" if who == "worker" else ""), signal.SIGKILL)


def _pid(server: Server, name: str) -> int:
    """A child by its name in the log; no name: one that is no worker."""
    assert server.process is not None
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")

    def found() -> int | None:
        names = {pid: one for one, pid in re.findall(r"process-started name=(\S+) pid=(\d+)", server.log.read_text())}
        for pid in children.read_text().split():
            known = names.get(pid, "")
            if known and (known.startswith(name) if name else not known.startswith("worker-")):
                return int(pid)
        return None

    return int(until(found, f"a child {name or 'that is no worker'}"))


def _back(server: Server, ledger: Ledger, who: str) -> list[str]:
    """Mail is taken and served again: for the supervisor by a start, as an init script would."""
    if who == "supervisor":
        assert server.process is not None
        group = server.process.pid
        server.process.wait(30)
        server.process = None
        until(lambda: not _group_exists(group), "its children end with the supervisor")
        server.start()
    until(lambda: server.answers("imap") and server.answers("smtp"), "the service is back")
    try:
        deliver(server, ledger, ["ann"], [ELSEWHERE])
    except Exception as failure:
        return [f"a message was not taken: {failure!r}"]
    return []
