"""What a process tells of itself, and lets an administrator do: the answers behind status, who, kick and the metrics.

Imports: control, counters, daemon (types), log, gevent.    docs/monitoring.md.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections import Counter as Tally
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import gevent
from gevent.hub import get_hub

from mailsrv import __version__, counters, log
from mailsrv.control import Misasked
from mailsrv.store.files import offload
from mailsrv.store.spool import time_of

if TYPE_CHECKING:
    from mailsrv.daemon import Server
    from mailsrv.mail.queue import Queue
    from mailsrv.net.listener import Conversation
    from mailsrv.runner import Runner

BUSY_SECONDS, QUIET_SECONDS = 0.1, 1.0  # between two looks at how late the event loop is
BUSY_SHARE = 0.01  # of the processor's time
WINDOW_SECONDS = 300.0  # of percentiles
USERS_SHOWN = 50
SESSIONS_AT_ONCE = 200  # looked at between two turns of the others
REASON_LETTERS = 200
GRACE_SECONDS = 5.0  # for a session that is to end after what it does


class Vitals:
    """Answers for one process. `restarts`: how often it was started again after it died."""

    def __init__(self, server: Server, *, restarts: int = 0) -> None:
        self._server, self._restarts = server, restarts
        self._began_at = time.time()
        self._delays = counters.Samples()
        self._timer: Any = None
        self._queue: Queue | None = None
        self._memory_bytes = 0
        control = server.control
        control.answer("status", self.status)
        control.answer("who", lambda question: self.who())
        control.answer("kick", self.kick)
        control.answer("metrics", self.metrics)
        control.answer("loglevel", loglevel)

    def start(self) -> None:
        self._look_again(QUIET_SECONDS)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None

    # -------------------------------------------------------------- how late the event loop is

    def _look_again(self, seconds: float) -> None:
        self._due_at = time.monotonic() + seconds
        self._spent = time.process_time()
        self._waits = seconds
        self.close()
        self._timer = get_hub().loop.timer(seconds)
        self._timer.start(self._looked)

    def _looked(self) -> None:
        """Runs in the hub. A process that does nothing is looked at seldom: it is not late, and is to sleep."""
        late = max(0.0, time.monotonic() - self._due_at)
        counters.hub_delay.observe(late)
        self._delays.add(late)
        busy = time.process_time() - self._spent > BUSY_SHARE * self._waits
        self._look_again(BUSY_SECONDS if busy else QUIET_SECONDS)

    # -------------------------------------------------------------- status

    def status(self, question: dict[str, Any]) -> dict[str, Any]:
        server = self._server
        connections: Tally[str] = Tally()
        users: Tally[str] = Tally()
        idling = 0
        for one in self._sessions():
            row = one.described()
            if row["user"]:
                users[row["user"]] += 1
            idling += row["state"] == "idling"
        for listener in server.listeners:
            connections[listener.service] += listener.connections
        return {
            "name": server.control.name, "pid": os.getpid(), "version": __version__, "began_at": self._began_at,
            "memory_bytes": offload(memory_of, os.getpid()), "restarts": self._restarts,
            "listeners": [{"service": one.service, "address": one.address} for one in server.listeners],
            "connections": dict(connections), "idling": idling,
            "logged_in": len(users), "users": dict(users.most_common(USERS_SHOWN)),
            "push_seconds": [round(value, 6) for value in counters.pushes.since(WINDOW_SECONDS)],
            "hub_delay_seconds": [round(value, 6) for value in self._delays.since(WINDOW_SECONDS)],
            "index": server.watch.lag(),
            "canary": server.canary.described() if server.canary is not None else None,
            "log_dropped": log.dropped(), "log_problem": log.problem(),
        }  # fmt: skip

    def metrics(self, question: dict[str, Any]) -> dict[str, Any]:
        """The counters as they are; `gauges` are figures of this moment, which add up over the processes."""
        connections: Tally[str] = Tally()
        for listener in self._server.listeners:
            connections[listener.service] += listener.connections
        late, oldest = self._server.watch.lag()
        canary = self._server.canary
        return {
            "counters": {name: one.rows() for name, one in counters.ALL.items()},
            "queue": self.queue(),
            "gauges": {
                "mailsrv_connections": [[[service], count] for service, count in connections.items()],
                "mailsrv_index_lag_mailboxes": [[[], late]],
                "mailsrv_log_events_total": [[[level], count] for level, count in log.counts.items()],
                "mailsrv_sessions_idling": [[[], counters.idling.count]],
            },
            "process": {
                "mailsrv_process_start_time_seconds": self._began_at,
                "mailsrv_process_cpu_seconds_total": time.process_time(),
                "mailsrv_process_memory_bytes": self._memory(),
                "mailsrv_process_restarts_total": self._restarts,
                "mailsrv_index_lag_seconds": oldest,
                "mailsrv_log_events_dropped_total": log.dropped(),
                "mailsrv_log_ok": int(not log.problem()),
                **({"mailsrv_canary_ok": int(not canary.problem)} if canary is not None else {}),
            },
        }  # fmt: skip

    def _memory(self) -> int:
        """As it was when the metrics were read last: a thread to look again may have to wait behind the disk's work."""
        if self._memory_bytes:
            gevent.spawn(self._look_at_memory)
        else:
            self._look_at_memory()
        return self._memory_bytes

    def _look_at_memory(self) -> None:
        self._memory_bytes = offload(memory_of, os.getpid())

    def watch_queue(self, runner: Runner) -> Runner:
        """The queue runs in this process: it is asked too."""
        self._queue = runner.queue
        self._server.control.answer("queue", lambda question: self.queue())
        return runner

    def queue(self) -> dict[str, Any] | None:
        """What waits, what became of recipients since the start, and destinations that do not work."""
        queue = self._queue
        if queue is None:
            return None
        oldest = queue.oldest_id
        return {
            "depth": queue.depth, "active": queue.active,
            "oldest_seconds": round(max(0.0, time.time() - time_of(oldest))) if oldest else 0,
            "resting": sorted(lane.name for lane in queue.lanes() if lane.last is not None)[:USERS_SHOWN],
            "counters": dataclasses.asdict(queue.counters),
        }  # fmt: skip

    # -------------------------------------------------------------- sessions

    def _sessions(self) -> Iterator[Conversation]:
        """All that are there when it is looked; others have their turn now and then."""
        everybody = [one for listener in self._server.listeners for one in listener.sessions]
        for number, one in enumerate(everybody, 1):
            yield one
            if number % SESSIONS_AT_ONCE == 0:
                gevent.sleep(0)

    def who(self) -> Iterator[dict[str, Any]]:
        """A row for each session, as long as it is there."""
        pid = os.getpid()
        for one in self._sessions():
            yield {**one.described(), "pid": pid}

    def kick(self, question: dict[str, Any]) -> list[dict[str, Any]]:
        """End the sessions of a user or an address, or one by its name; those that were ended."""
        whom = question.get("whom")
        if not isinstance(whom, str) or not whom:
            raise Misasked("whom: a user, an address or a session")
        text = "Disconnected by the administrator"
        if reason := _printable(question.get("reason")):
            text += f": {reason}"
        kicked = []
        for one in self._sessions():
            row = one.described()
            if whom in (row["session"], row["peer"]) or whom.lower() == (row["user"] or "").lower():
                kicked.append(row)
                log.warning("kicked", session=row["session"], user=row["user"], peer=row["peer"], reason=reason)
                one.stop(text)
                gevent.spawn_later(GRACE_SECONDS, one.hang_up)
        return kicked


def _printable(reason: Any) -> str:
    """As it can stand in a reply: one line of ASCII."""
    text = reason if isinstance(reason, str) else ""
    return "".join(char if " " <= char <= "~" else "?" for char in text)[:REASON_LETTERS]


def loglevel(question: dict[str, Any]) -> dict[str, Any]:
    """Set the level, if one is given, until the next start; the level."""
    level = question.get("level")
    if level is not None:
        if level not in log.LEVELS:
            raise Misasked(f"level: one of {', '.join(log.LEVELS)}")
        log.set_level(level)
        log.warning("log level set", level=level)
    return {"level": log.level()}


def memory_of(pid: int) -> int:
    """Octets of memory of a process, with its share of what several share (PSS); 0 where that is not told."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            for line in file:
                if line.startswith("Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
