"""The goals of the project, and how far a run came: met, or what the machine allows and what would be needed.

The limits are those that bench/floor.py measured in the same run, without any mail server. Goals are for the full size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .results import Failed, Figure, higher_is_better, outcome
from .util import number, quantity

Floor = dict[str, float]
PEERS = ("dovecot", "dovecot-lmtp")
SYNCS = "disk.fsync 10k file+dir, 1 thread [/s]"


@dataclass(frozen=True)
class Goal:
    title: str
    name: str  # of the metric, which begins with the workload's name
    unit: str
    value: float  # at most, or at least where more is better; with `times`, so many times the best peer of the run
    needed: str  # what it would take, where it is not met
    times: bool = False
    one_worker: bool = False
    limit: Callable[[Floor], float] | None = None  # what the machine allows, in the unit of the goal

    @property
    def workload(self) -> str:
        return self.name.partition(".")[0]


def synced_ms(floor: Floor) -> float:
    return 1000 / floor[SYNCS]


def idle_mb(kind: str, n: int) -> Callable[[Floor], float]:
    """An interpreter with gevent and so many connections that do nothing, without any mail server."""

    def limit(floor: Floor) -> float:
        each = next(
            value
            for name, value in floor.items()
            if name.startswith(f"gevent.{kind} PSS per connection at") and name.endswith("[KB]")
        )
        return floor[f"gevent.{kind} server, no connections, PSS [MB]"] + n * each / 1024

    return limit


LOADER = "client, server and disk share the cores of this machine; "
PUSHED = "an event loop that nothing else uses: threads of the same interpreter and other programs hold it up"
SYNCED = "fewer syncs in sequence (two are the promise), or a disk that syncs faster"
OBJECTS = "smaller modules and session objects; the interpreter and gevent alone take the limit shown"
DELIVERED = "less Python for each message, or more cores: the processor is busy, CPU for each message bounds the rate"
PARSED = "parsing headers at several times Python's speed (a compiled parser), or on more cores"
PREPARED = "prepared texts sent without passing through Python one by one"
SEARCHED = "an index of words, which this version does not have"
FILES = "fewer changes of thread for each file: the rest is the system's open, read and close"
RENAMED = "fewer Python steps for each rename or link and its row"

GOALS = (
    Goal("250 -> EXISTS, median", "push.irregular.after_250.p50_ms", "ms", 0.3, PUSHED,
         limit=lambda floor: floor["gevent.echo round trip p50 [us]"] / 1000),
    Goal("250 -> EXISTS, 99th percentile", "push.irregular.after_250.p99_ms", "ms", 0.9, PUSHED,
         limit=lambda floor: floor["gevent.echo round trip p99 [us]"] / 1000),
    Goal("end of data -> EXISTS, median", "push.irregular.after_eod.p50_ms", "ms", 1.8, SYNCED, limit=synced_ms),
    Goal("end of data -> EXISTS, 99th percentile", "push.irregular.after_eod.p99_ms", "ms", 4, SYNCED,
         limit=lambda floor: floor["disk.fsync 10k file+dir, 1 thread p99 [ms]"]),
    Goal("end of data -> 250, median", "push.irregular.smtp_250_after_eod.p50_ms", "ms", 1.5, SYNCED, limit=synced_ms),
    Goal("1,000 watchers of one mailbox: last told", "fanout.1000.last.p50_ms", "ms", 60, PUSHED,
         limit=lambda floor: floor["fanout.1000 last watcher told [ms]"]),
    Goal("1,000 users, 50 mails/s: 250 -> EXISTS, 99th percentile", "many.after_250.p99_ms", "ms", 3, PUSHED),
    *(
        Goal(f"memory (PSS), {n:,} idle {words}", f"memory.{kind}.{n}.pss_mb", "MB", value, OBJECTS, one_worker=True,
             limit=idle_mb("idletls" if kind == "tls" else "idle", n))
        for n, kind, words, value in (
            (1000, "plain", "plain", 45), (1000, "tls", "TLS", 60), (5000, "plain", "plain", 85),
            (5000, "tls", "TLS", 165), (10000, "tls", "TLS", 300),
        )
    ),
    *(
        Goal(f"10 KB mails visible, {n} connection{'s' * (n > 1)}", f"throughput.10k.c{n}.visible_per_s", "/s", 1.5,
             SYNCED if n == 1 else DELIVERED, times=True,
             limit=lambda floor, n=n: floor[SYNCS if n == 1 else f"disk.fsync 10k file+dir, {n} threads [/s]"])
        for n in (1, 10, 50)
    ),
    Goal("server CPU for each such mail, 50 connections", "throughput.10k.c50.server_cpu_ms_per_msg", "ms", 1.2,
         DELIVERED),
    Goal("1 MB mails", "throughput.1m.c10.visible_mbps", "MB/s", 250,
         LOADER + "looking for the end of data is the rest"),
    Goal("SELECT, warm", "mailbox.warm.select.wall_s", "s", 0.010, PREPARED),
    Goal("SELECT, after a restart", "mailbox.cold.select.wall_s", "s", 0.017, "the arrays kept in a file of their own"),
    Goal("FETCH (UID FLAGS), warm", "mailbox.warm.flags.wall_s", "s", 0.059, PREPARED),
    Goal("FETCH ENVELOPE and more, warm", "mailbox.warm.envelope.wall_s", "s", 0.4, PREPARED),
    Goal("FETCH ENVELOPE and more, first ever", "mailbox.first.envelope.wall_s", "s", 0.6, PARSED,
         limit=lambda floor: 100_000 * floor["fs.open+read 10k+close, page cache [us]"] / 1e6),
    Goal("FETCH HEADER.FIELDS, warm", "mailbox.warm.headers.wall_s", "s", 0.4, PREPARED),
    Goal("FETCH BODYSTRUCTURE, warm", "mailbox.warm.bodystructure.wall_s", "s", 0.16, PREPARED),
    Goal("one body, median", "mailbox.warm.rand_body.p50_ms", "ms", 0.20, FILES,
         limit=lambda floor: (floor["gevent.echo round trip p50 [us]"]
                              + floor["fs.open+read 10k+close, page cache [us]"]) / 1000),
    Goal("10,000 bodies in one FETCH", "mailbox.warm.bulk_body.mbps", "MB/s", 467, FILES,
         limit=lambda floor: floor["loopback.send stream, both ends on this machine [MB/s]"]),
    Goal("SEARCH SUBJECT", "mailbox.warm.search_subject.wall_s", "s", 0.05, SEARCHED),
    Goal("SEARCH TEXT over 1 GB", "mailbox.warm.search_text.wall_s", "s", 0.15, SEARCHED),
    Goal("SORT (SUBJECT DATE)", "mailbox.warm.sort_subject.wall_s", "s", 0.3, "SORT (RFC 5256), which is not built"),
    Goal("STORE of 10,000", "mailbox.store_seen.wall_s", "s", 0.08, RENAMED,
         limit=lambda floor: 10_000 * floor["fs.rename [us]"] / 1e6),
    Goal("COPY of 10,000", "mailbox.copy.wall_s", "s", 0.42, RENAMED,
         limit=lambda floor: 10_000 * floor["fs.link [us]"] / 1e6),
    Goal("EXPUNGE of 10,000", "mailbox.expunge.wall_s", "s", 0.15, RENAMED,
         limit=lambda floor: 10_000 * floor["fs.unlink [us]"] / 1e6),
    Goal("APPEND of 10 KB, median", "mailbox.append.p50_ms", "ms", 1.7, SYNCED, limit=synced_ms),
    Goal("connect + LOGIN + SELECT + LOGOUT", "login.plain.per_s", "/s", 1557,
         "cheaper first logins: each user pays for argon2 once in five minutes, the promise of a password file"),
    Goal("the same with TLS", "login.tls.per_s", "/s", 600, LOADER + "the client's handshakes cost more than ours",
         limit=lambda floor: 1e6 / (floor["tls.handshake P-256, server CPU [us]"]
                                    + floor["tls.handshake P-256, client CPU [us]"])),
    Goal("CPU of 1,000 idle connections", "idlecpu.server_cpu_ms_per_s", "ms/s", 0.2,
         "rarer heartbeats (`imap.heartbeat_seconds`) and timers: an idle process wakes for nothing else",
         one_worker=True),
)  # fmt: skip


def table(results: dict[str, Any]) -> list[str]:
    """The goals whose figure is in a run of the full size; no lines for another."""
    if results["quick"] or results["sizes"].get("box_n") != 100_000:
        return []
    rows = [row for goal in GOALS if (row := _row(goal, results)) is not None]
    if not rows:
        return []
    met = sum(row.endswith("| met |") for row in rows)
    return [
        "## The goals", "",
        f"{met} of {len(rows)} are met in this run. The limit is what bench/floor.py measured, with no mail server.",
        "", "| goal | wanted | mailsrv | best of the others | limit here | |", "|---|---:|---:|---:|---:|---|", *rows,
        "",
    ]  # fmt: skip


def _row(goal: Goal, results: dict[str, Any]) -> str | None:
    ours = _figure(results, "mailsrv-1" if goal.one_worker else "mailsrv", goal)
    others = [figure.median for name in PEERS if (figure := _figure(results, name, goal)) is not None]
    if ours is None and not others:
        return None
    more = higher_is_better(goal.name)
    best = (max if more else min)(others) if others else None
    wanted = goal.value if not goal.times else goal.value * best if best is not None else None
    met = ours is not None and wanted is not None and (ours.median >= wanted if more else ours.median <= wanted)
    sign = "at least" if more else "at most"
    asked = f"{sign} {_text(wanted, goal.unit)}" + (f" ({goal.value:g}x the best)" if goal.times else "")
    limit = _limit(goal, results.get("floor"))
    return (
        f"| {goal.title} | {asked} | {_text(ours.median if ours else None, goal.unit)} | {_text(best, goal.unit)} "
        f"| {_text(limit, goal.unit)} | {'met' if met else f'needs {goal.needed}'} |"
    )


def _figure(results: dict[str, Any], target: str, goal: Goal) -> Figure | None:
    found = outcome(results, target, goal.workload)
    return found.get(goal.name) if found and not isinstance(found, Failed) else None


def _limit(goal: Goal, floor: Floor | None) -> float | None:
    try:
        return goal.limit(floor) if goal.limit is not None and floor else None
    except (KeyError, StopIteration):  # not measured on this machine
        return None


def _text(value: float | None, unit: str) -> str:
    return "" if value is None else quantity(number(value), unit)
