"""How a server is: collected from its processes and its files, and written for people.

Imports: cli.common, certificates, config, control, pidfile, start, vitals.    docs/monitoring.md.
"""

from __future__ import annotations

import datetime
import os
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from mailsrv.certificates import expiry
from mailsrv.cli.common import human
from mailsrv.config import Config
from mailsrv.control import Reply, ask_all
from mailsrv.pidfile import running_pid
from mailsrv.start import certificate_files
from mailsrv.vitals import memory_of

ASK_SECONDS = 2.0
CERTIFICATE_DAYS = 14  # left, from when on it is an alarm
DISK_SHARE = 0.05  # free, below which it is an alarm
DELAY_SECONDS = 0.5


def collect(config: Config) -> dict[str, Any]:
    """Everything `mailsrv status` shows. `running` and `pid` are there also when nothing else is."""
    pid = running_pid(f"{config['server.run_dir']}/mailsrv.pid")
    found: dict[str, Any] = {"running": pid is not None, "pid": pid}
    found["certificates"] = certificates(config)
    found["disk"] = disk(config["server.data_dir"])
    if pid is not None:
        replies = ask_all(config["server.run_dir"], "status", seconds=ASK_SECONDS)
        queue = [
            reply.answer for reply in ask_all(config["server.run_dir"], "queue", seconds=ASK_SECONDS) if not reply.error
        ]
        found |= _together(pid, replies)
        found["queue"] = queue[0] if queue else None
    found["alarms"] = alarms(found)
    return found


def _together(pid: int, replies: Sequence[Reply]) -> dict[str, Any]:
    answers = [reply.answer for reply in replies if not reply.error]
    connections: Counter[str] = Counter()
    users: Counter[str] = Counter()
    for one in answers:
        connections.update(one["connections"])
        users.update(one["users"])
    began = [one["began_at"] for one in answers]
    listeners = {(one["service"], one["address"]) for answer in answers for one in answer["listeners"]}
    processes = [_process(reply) for reply in replies]
    if pid not in [reply.pid for reply in replies]:
        processes.insert(0, {"name": "supervisor", "pid": pid, "memory_bytes": memory_of(pid), "error": None})
    lags = [one["index"] for one in answers]
    return {
        "version": answers[0]["version"] if answers else None,
        "up_seconds": round(time.time() - min(began)) if began else None,
        "processes": processes,
        "memory_bytes": sum(one.get("memory_bytes") or 0 for one in processes),
        "listeners": [{"service": service, "address": address} for service, address in sorted(listeners)],
        "connections": dict(connections),
        "idling": sum(one["idling"] for one in answers),
        "users": dict(users.most_common()),
        "push": percentiles([value for one in answers for value in one["push_seconds"]]),
        "hub_delay": percentiles([value for one in answers for value in one["hub_delay_seconds"]]),
        "index": {"waiting": sum(lag[0] for lag in lags), "oldest_seconds": max((lag[1] for lag in lags), default=0.0)},
        "canary": _canary([(reply.process, reply.answer["canary"]) for reply in replies if not reply.error]),
        "log_dropped": sum(one["log_dropped"] for one in answers),
        "log_problems": sorted({one["log_problem"] for one in answers if one["log_problem"]}),
    }  # fmt: skip


def _process(reply: Reply) -> dict[str, Any]:
    known = reply.answer or {}
    row = {"name": reply.process, "pid": reply.pid, "error": reply.error or None}
    if known:
        row["up_seconds"] = round(time.time() - known["began_at"])
        row["connections"] = sum(known["connections"].values())
        row |= {name: known[name] for name in ("memory_bytes", "restarts")}
    return row


def _canary(told: Sequence[tuple[str, dict[str, Any] | None]]) -> dict[str, Any] | None:
    """Of all processes that watch: what is wrong with each, when one saw a message last, how late the slowest was."""
    watching = [(name, one) for name, one in told if one is not None]
    if not watching:
        return None
    return {
        "problems": {name: one["problem"] for name, one in watching if one["problem"]},
        "seen_at": max(one["seen_at"] for _, one in watching) or None,
        "last_seconds": max(one["last_seconds"] for _, one in watching),
    }


def percentiles(values: Sequence[float]) -> dict[str, Any]:
    """In milliseconds; `count` 0 and nothing else when there is nothing to say."""
    if not values:
        return {"count": 0}
    ordered = sorted(values)
    found: dict[str, Any] = {"count": len(ordered)}
    for name, share in (("p50_ms", 0.5), ("p90_ms", 0.9), ("p99_ms", 0.99), ("worst_ms", 1.0)):
        found[name] = round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e3, 3)
    return found


def certificates(config: Config) -> list[dict[str, Any]]:
    """The certificate files: when they end, or why that is not known."""
    return [_certificate(path) for path, _ in certificate_files(config)]


def _certificate(path: str) -> dict[str, Any]:
    try:
        ends = expiry(path)
    except (OSError, ValueError) as failure:
        return {"file": path, "error": getattr(failure, "strerror", None) or str(failure)}
    left = ends - datetime.datetime.now(datetime.UTC)
    return {"file": path, "expires": ends.isoformat(), "days_left": left.days, "error": None}


def disk(path: str) -> dict[str, Any]:
    try:
        found = os.statvfs(path)
    except OSError as failure:
        return {"path": path, "error": failure.strerror}
    free, total = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
    return {"path": path, "free_bytes": free, "total_bytes": total, "free_files": found.f_favail, "error": None}


def alarms(found: dict[str, Any]) -> list[str]:
    """What somebody should look at, one sentence each."""
    said = []
    for one in found.get("processes", ()):
        if one["error"]:
            said.append(f"{one['name']} (pid {one['pid']}) does not answer: {one['error']}")
    for name, problem in ((found.get("canary") or {}).get("problems") or {}).items():
        said.append(f"Canary, {name}: {problem}")
    for one in found["certificates"]:
        if one["error"]:
            said.append(f"Certificate {one['file']}: {one['error']}")
        elif one["days_left"] < CERTIFICATE_DAYS:
            said.append(f"Certificate {one['file']} ends in {one['days_left']} days")
    space = found["disk"]
    if space["error"]:
        said.append(f"{space['path']}: {space['error']}")
    elif space["free_bytes"] < DISK_SHARE * space["total_bytes"]:
        said.append(f"{space['path']}: {human(space['free_bytes'])} free of {human(space['total_bytes'])}")
    if found.get("hub_delay", {}).get("p99_ms", 0) > DELAY_SECONDS * 1e3:
        said.append(f"The event loop is late: {found['hub_delay']['p99_ms']} ms at the 99th percentile")
    for problem in found.get("log_problems", ()):
        said.append(f"The log cannot be written: {problem}")
    if found.get("log_dropped"):
        said.append(f"{found['log_dropped']} log events were lost since the start: the log's disk or reader failed")
    return said


# ------------------------------------------------------------------ for people


def written(found: dict[str, Any]) -> str:
    """A screen of text."""
    lines = []
    if not found["running"]:
        lines.append("mailsrv is not running")
    else:
        about = f", version {found['version']}, up {lasting(found['up_seconds'])}" if found["version"] else ""
        lines.append(f"mailsrv is running, pid {found['pid']}{about}")
        lines += ["", *_processes(found["processes"]), ""]
        lines += [f"{title:<12} {text}" for title, text in _facts(found)]
    for one in found["certificates"]:
        text = one["error"] or f"{one['days_left']} days left (until {one['expires'][:10]})"
        lines.append(f"{'certificate':<12} {one['file']}: {text}")
    space = found["disk"]
    text = space["error"] or f"{human(space['free_bytes'])} free of {human(space['total_bytes'])}"
    lines.append(f"{'disk':<12} {space['path']}: {text}")
    lines += ["", *(f"ALARM  {text}" for text in found["alarms"])] if found["alarms"] else []
    return "\n".join(lines)


def _processes(processes: Sequence[dict[str, Any]]) -> list[str]:
    rows = [("PROCESS", "PID", "UP", "MEMORY", "CONNECTIONS", "RESTARTS")]
    for one in processes:
        up = lasting(one["up_seconds"]) if "up_seconds" in one else ""
        memory = human(one["memory_bytes"]) if one.get("memory_bytes") else ""
        state = str(one.get("connections", "")) if not one["error"] else "no answer"
        rows.append((one["name"], str(one["pid"]), up, memory, state, str(one.get("restarts") or "")))
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _facts(found: dict[str, Any]) -> list[tuple[str, str]]:
    connections = ", ".join(f"{service} {count}" for service, count in sorted(found["connections"].items()) if count)
    users = list(found["users"].items())
    shown = ", ".join(f"{user} {count}" for user, count in users[:5]) + (f", {len(users) - 5} more" * (len(users) > 5))
    index = found["index"]
    late = f"{index['waiting']} mailboxes to be looked at, the first since {index['oldest_seconds']:.1f} s"
    facts = [
        ("listening", ", ".join(f"{one['service']} {one['address']}" for one in found["listeners"])),
        ("connections", (connections or "none") + (f" ({found['idling']} idling)" if found["idling"] else "")),
        ("users", shown or "none"),
        ("push", _percentiles(found["push"], "told within")),
        ("event loop", _percentiles(found["hub_delay"], "late by")),
        ("index", late if index["waiting"] else "nothing waits to be read"),
    ]
    if found["canary"] is not None:
        facts.append(("canary", _canary_text(found["canary"])))
    if found["queue"] is not None:
        facts.append(("queue", _queue(found["queue"])))
    return facts


def _canary_text(canary: dict[str, Any]) -> str:
    if canary["problems"]:
        return "a message to ourselves was not stored and pushed in time: see below"
    if canary["seen_at"] is None:
        return "no message to ourselves yet"
    seen = lasting(time.time() - canary["seen_at"])
    return f"a message to ourselves was pushed within {canary['last_seconds'] * 1e3:.3f} ms, {seen} ago"


def _percentiles(figures: dict[str, Any], words: str) -> str:
    if not figures["count"]:
        return "nothing in the last 5 minutes"
    each = ", ".join(f"{name[:-3]} {figures[name]} ms" for name in ("p50_ms", "p90_ms", "p99_ms", "worst_ms"))
    return f"{words} {each} (5 minutes, {figures['count']} times)"


def _queue(queue: dict[str, Any]) -> str:
    if not queue["depth"]:
        return "nothing waits"
    text = (
        f"{queue['depth']} waiting, the oldest since {lasting(queue['oldest_seconds'])}, {queue['active']} being tried"
    )
    return text + (f"; left alone for now: {', '.join(queue['resting'][:5])}" if queue["resting"] else "")


def lasting(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 5 min`, `8 d 2 h`."""
    minutes, rest = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else f"{rest} s"
