"""What a server costs, from /proc: processor time and PSS of its process trees.

Processor time: for every live process of the tree its run time in nanoseconds (/proc/PID/task/*/schedstat, exact; else
utime+stime in ticks), and cutime+cstime of the children it has reaped. So children that live shortly count, too.
"""

from __future__ import annotations

import os
import time
from typing import Protocol

_TICK = os.sysconf("SC_CLK_TCK")


def _stat(pid: str) -> tuple[int, int, int, int, int, int]:
    with open(f"/proc/{pid}/stat", "rb") as f:
        data = f.read()
    rest = data[data.rindex(b")") + 2 :].split()
    # rest[0] is field 3 (state)
    return int(rest[1]), int(rest[11]), int(rest[12]), int(rest[13]), int(rest[14]), int(rest[17])


def tree(roots: list[int]) -> dict[int, tuple[int, int, int, int, int, int]]:
    """All live pids of the trees below (and with) the root pids -> stat tuple."""
    stats: dict[int, tuple[int, int, int, int, int, int]] = {}
    kids: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                st = _stat(name)
            except (OSError, ValueError):
                continue
            pid = int(name)
            stats[pid] = st
            kids.setdefault(st[0], []).append(pid)
    out, todo = {}, [p for p in roots if p in stats]
    while todo:
        p = todo.pop()
        if p not in out:
            out[p] = stats[p]
            todo.extend(kids.get(p, ()))
    return out


def cpu_seconds(roots: list[int]) -> float:
    total = 0.0
    for pid, (_pp, ut, st, cut, cst, nthreads) in tree(roots).items():
        try:
            if nthreads == 1:
                with open(f"/proc/{pid}/schedstat") as f:
                    own = int(f.read().split()[0]) / 1e9
            else:
                own = 0.0
                for t in os.listdir(f"/proc/{pid}/task"):
                    with open(f"/proc/{pid}/task/{t}/schedstat") as f:
                        own += int(f.read().split()[0]) / 1e9
                own = max(own, (ut + st) / _TICK)
        except (OSError, IndexError, ValueError):
            own = (ut + st) / _TICK
        total += own + (cut + cst) / _TICK
    return total


def memory(roots: list[int]) -> dict[str, int]:
    """dict: pss_kb, private_kb, rss_kb, procs, threads over the trees."""
    r = {"pss_kb": 0, "private_kb": 0, "rss_kb": 0, "procs": 0, "threads": 0}
    for pid, st in tree(roots).items():
        try:
            with open(f"/proc/{pid}/smaps_rollup", "rb") as f:
                txt = f.read()
        except OSError:
            continue
        r["procs"] += 1
        r["threads"] += st[5]
        for line in txt.splitlines():
            k = line.split(None, 2)
            if line.startswith(b"Pss:"):
                r["pss_kb"] += int(k[1])
            elif line.startswith(b"Rss:"):
                r["rss_kb"] += int(k[1])
            elif line.startswith((b"Private_Clean:", b"Private_Dirty:")):
                r["private_kb"] += int(k[1])
    return r


def mem_available_kb() -> int:
    with open("/proc/meminfo") as f:
        for line in f:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1])
    raise RuntimeError("no MemAvailable in /proc/meminfo")


class Measured(Protocol):
    def cpu(self) -> float: ...


class Meter:
    """with Meter(target) as meter: ... ; then meter.wall, meter.server and meter.client are seconds."""

    def __init__(self, target: Measured) -> None:
        self.target = target

    def __enter__(self) -> Meter:
        self.s0 = self.target.cpu()
        self.c0 = time.process_time()
        self.w0 = time.perf_counter()
        return self

    def __exit__(self, *exc: object) -> None:
        self.wall = time.perf_counter() - self.w0
        self.client = time.process_time() - self.c0
        self.server = self.target.cpu() - self.s0
