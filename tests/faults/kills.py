"""kill -9 of the whole server at random moments under load; then it starts again and everything is looked at."""

from __future__ import annotations

import random
from pathlib import Path

import gevent

from tests.fakes.sink import FakeSink
from tests.faults.checker import over_imap
from tests.faults.context import Context
from tests.faults.ledger import Ledger
from tests.faults.load import Elsewhere, Load, prepare, settings
from tests.faults.report import Result
from tests.faults.server import PASSWORD, USERS, Server

THOROUGH = 25  # every so many cycles all files are read again, not only new ones
LONGEST_SECONDS = 0.8


def run(context: Context) -> Result:
    """`context.cycles` kills, half of them of one process, half of a supervisor with two workers and a runner."""
    result = Result("kill -9 under load")
    kinds = context.of(1, 2, 2)  # the short form leaves out the one process, which `power` stops as well
    for workers in (2, 1)[:kinds]:
        cycles = context.cycles // kinds + (context.cycles % kinds if workers == 1 else 0)
        if cycles and not result.wrong:
            _kill(context, result, context.place(f"kills-{workers}"), workers, cycles)
    return result


def _kill(context: Context, result: Result, place: Path, workers: int, cycles: int) -> None:
    seed = context.seed * 10 + workers
    moment, ledger = random.Random(f"{seed} moments"), Ledger(seed)
    with FakeSink() as sink:
        server = Server(place, broken=context.broken, **{"server.workers": workers, **settings(sink)})
        elsewhere, load = Elsewhere(sink), Load(server, ledger, seed)
        maildirs = server.maildirs()
        try:
            server.start()
            prepare(server, ledger)
            for cycle in range(cycles):
                load.start()
                gevent.sleep(moment.uniform(0.02, LONGEST_SECONDS))
                server.kill()
                load.join()
                thoroughly = cycle % THOROUGH == 0 or cycle == cycles - 1
                wrong = ledger.close(maildirs.boxes(thoroughly=thoroughly)) + maildirs.wrong
                wrong += elsewhere.close(ledger, server)
                server.start()
                boxes = maildirs.boxes(thoroughly=False)
                # Nothing was under way any more: what a start changes is changed without anybody having asked.
                wrong += ledger.close(boxes) + maildirs.wrong
                wrong += over_imap(server.ports["imap"], PASSWORD, ledger, boxes, USERS)
                if server.back_seconds[-1] > context.back_seconds:
                    wrong.append(f"the server was back after {server.back_seconds[-1]:.1f} s")
                wrong += load.refused + server.bugs()
                result.counts["kills"] += 1
                result.wrong += [f"cycle {cycle}, {workers} workers: {one}" for one in wrong]
                if wrong:
                    return
            result.wrong += elsewhere.drained(ledger, server)
        except AssertionError as failure:
            result.wrong.append(f"{workers} workers: {failure}")
        finally:
            server.close()
            result.counts.update({f"{name}": number for name, number in load.counts.items()})
            result.counts["messages looked at"] += ledger.counts["looked at"]
            result.counts["sent elsewhere twice"] += elsewhere.doubled
            if server.back_seconds:
                result.notes.append(f"back within {max(server.back_seconds):.1f} s ({workers} workers)")
