"""The wall clock jumps by a day and by ten years, both ways, under a running server and across a restart.

libfaketime shifts what the server takes for the time; the clocks that nobody sets go on as they do. Mail that waits
goes on waiting and is not returned, UIDs and UIDVALIDITYs stay what they were, deliveries are pushed.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import gevent

from tests.fakes.sink import FakeSink
from tests.faults.checker import over_imap, queued
from tests.faults.context import Context
from tests.faults.ledger import Ledger
from tests.faults.load import ELSEWHERE, Elsewhere, deliver, prepare, settings
from tests.faults.pushes import LATEST_SECONDS, Watcher, told
from tests.faults.report import Result
from tests.faults.server import PASSWORD, USERS, Client, Server, until

JUMPS = ("+3650d", "-3650d", "+1d", "-1d", "+0")
WAITING = 5  # messages that cannot be delivered for now
_LIBRARIES = ("/usr/lib/*/faketime/libfaketimeMT.so.1", "/usr/lib64/faketime/libfaketimeMT.so.1")


def run(context: Context) -> Result:
    result = Result("clock jumps")
    library = next((str(path) for pattern in _LIBRARIES for path in Path("/").glob(pattern[1:])), "")
    if not library:
        result.left_out = "libfaketime is not installed"
        return result
    place = context.place("clock")
    clock = place / "clock"
    clock.write_text("+0")
    environment = {
        "LD_PRELOAD": library, "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_DONT_RESET": "1",
    }  # fmt: skip
    with FakeSink() as sink:
        sink.on["RCPT"] = "450 4.2.0 come back later"
        changes = {**settings(sink), "queue.retry_seconds": [2, 3]}
        server, ledger = Server(place / "server", environment=environment, **changes), Ledger(context.seed, "j")
        server.module = "tests.faults.shifted"
        try:
            server.start()
            prepare(server, ledger)
            for _ in range(WAITING):
                deliver(server, ledger, [], [ELSEWHERE])
            for restart in (False, True):
                for jump in JUMPS[: context.of(2, 3, 5)]:  # the last start has a clock that was set back
                    _jump(server, ledger, clock, jump, restart, result)
            del sink.on["RCPT"]
            result.wrong += Elsewhere(sink).drained(ledger, server) + server.bugs()
        except AssertionError as failure:
            result.wrong.append(str(failure))
        finally:
            server.close()
    shutil.rmtree(place / "server") if not result.wrong else None
    return result


def _jump(server: Server, ledger: Ledger, clock: Path, jump: str, restart: bool, result: Result) -> None:
    watcher = None if restart else Watcher(server, "ann")
    if restart:
        server.kill()
    _set(clock, jump)
    if restart:
        server.start()
    told_before = len(server.files("ann"))
    maildirs = server.maildirs()
    wrong = []
    for _ in range(3):
        deliver(server, ledger, USERS)
    if watcher is not None:
        if not told([watcher], told_before + 3, LATEST_SECONDS):
            wrong.append(f"{watcher.count} of {told_before + 3} messages were announced")
        watcher.close()
    name = f"Made{result.counts['jumps']}"
    client = Client(server, "ann")
    client.run(f"CREATE {name}")  # its UIDVALIDITY is one that no mailbox had
    client.close()
    gevent.sleep(0.5)  # for whatever a runner might do at once with mail that it takes for old
    boxes = maildirs.boxes(thoroughly=False)
    validities = [uidvalidity for (user, _), (uidvalidity, _) in boxes.items() if user == "ann"]
    if len(set(validities)) != len(validities):
        wrong.append("two mailboxes have one UIDVALIDITY")
    wrong += ledger.close(boxes) + maildirs.wrong  # a report in a mailbox would be strange to the ledger
    wrong += over_imap(server.ports["imap"], PASSWORD, ledger, boxes, ["ann"])
    waiting, damage = queued(server.data / "queue")
    if len(waiting) != WAITING:
        wrong.append(f"{len(waiting)} of {WAITING} messages wait")
    wrong += damage
    if jump.startswith(("+1", "-1")) and not _is_off(server, jump):
        wrong.append("the server's clock did not jump: nothing was tried")
    result.counts["jumps"] += 1
    result.wrong += [f"{jump}{', restarted' if restart else ''}: {one}" for one in wrong]


def _set(clock: Path, jump: str) -> None:
    temporary = clock.with_suffix(".new")
    temporary.write_text(jump)
    temporary.replace(clock)
    gevent.sleep(1.5)  # it is read again every second


def _is_off(server: Server, jump: str) -> bool:
    """The log's own time says what the server takes for the day."""
    import datetime

    days = int(jump[:-1])
    wanted = (datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)).date().isoformat()
    return bool(until(lambda: wanted in server.log.read_text(), "the log has the day", 5))
