"""What is run: the workloads, their sizes, and which servers do them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import connections, deliveries, durability, mailbox
from .work import Work

FULL: dict[str, Any] = {
    "push_n": 200, "push_gap": 0.25, "push_isolated": 20, "push_wait": 10,
    "fan": (100, 1000), "fan_n": 8,
    "many_users": 1000, "many_rate": 50, "many_secs": 20,
    "mem_levels": (100, 1000, 5000, 10000), "mem_tls": 1, "mem_settle": 2.0,
    "thr_n": 5000, "thr_size": 10240, "thr_conns": (1, 10, 50), "thr_boxes": 10,
    "thr_big_n": 100, "thr_big_size": 1 << 20,
    "steady_per_min": 1000, "steady_secs": 45, "steady_watchers": 10,
    "box_n": 100000, "box_fill": "auto", "box_rand": 1000, "box_bulk": 10000, "box_mod": 10000, "box_append": 1000,
    "box_status": 100,
    "login_n": 2000, "login_tls_n": 1000, "login_conc": 20,
    "idle_conns": 1000, "idle_secs": 30,
}  # fmt: skip
# The same rows in minutes: fewer messages, a smaller mailbox, fewer users (each one's first login pays for argon2).
QUICK: dict[str, Any] = FULL | {
    "push_n": 25, "push_gap": 0.15, "push_isolated": 4,
    "fan": (1000,), "fan_n": 2,
    "many_users": 300, "many_secs": 4,
    "mem_levels": (100, 1000), "mem_settle": 1.0,
    "thr_n": 500, "thr_big_n": 20,
    "steady_secs": 8,
    "box_n": 5000, "box_rand": 200, "box_bulk": 1000, "box_mod": 1000, "box_append": 200, "box_status": 50,
    "login_n": 1000, "login_tls_n": 300,
    "idle_conns": 200, "idle_secs": 4,
}  # fmt: skip


@dataclass(frozen=True)
class Workload:
    run: Callable[[Work], None]
    targets: tuple[str, ...]  # who does it, in this order
    limit_seconds: float  # in the full size; beyond that it has failed


BOTH = ("mailsrv", "dovecot")
ALL = (*BOTH, "dovecot-lmtp")
# mailsrv-1 is mailsrv with `workers: 1`; IMAP behind LMTP is the same Dovecot, so only deliveries are measured there.
WORKLOADS = {
    "push": Workload(deliveries.push, ALL, 240),
    "fanout": Workload(deliveries.fanout, BOTH, 400),
    "many": Workload(deliveries.many, ALL, 300),
    "throughput": Workload(deliveries.throughput, ("mailsrv", "mailsrv-1", "dovecot", "dovecot-lmtp"), 600),
    "memory": Workload(connections.memory, ("mailsrv-1", "mailsrv", "dovecot"), 900),
    "login": Workload(connections.login, ("mailsrv", "mailsrv-1", "dovecot"), 240),
    "idlecpu": Workload(connections.idlecpu, ("mailsrv-1", "dovecot"), 240),
    "mailbox": Workload(mailbox.mailbox, BOTH, 900),
    "durability": Workload(durability.durability, ALL, 120),
    "steady": Workload(deliveries.steady, ALL, 240),
}
OPTIONAL = ("steady",)  # only when asked for: the same as `push` with more watchers
ALIASES = {
    "deliveries": "throughput",
    "delivery": "throughput",
    "search": "mailbox",
    "idle": "idlecpu",
    "logins": "login",
}
NOT_IF_QUICK = {
    ("memory", "mailsrv"),
    ("login", "mailsrv-1"),
    ("throughput", "mailsrv-1"),
    ("many", "dovecot-lmtp"),
}
MINUTES = {"quick": "4", "full": "25 a round"}


MANY_USERS = ("many", "memory", "idlecpu")  # have one for each connection


def users(pairs: list[tuple[str, str]], sizes: dict[str, Any]) -> int:
    """How many users the servers need."""
    return max(sizes["many_users"] if any(name in MANY_USERS for name, _ in pairs) else 0, 320)


def chosen(only: list[str] | None, targets: list[str], quick: bool) -> list[tuple[str, str]]:
    """(workload, target) in the order they are run."""
    names = [ALIASES.get(name, name) for name in only or WORKLOADS if only or name not in OPTIONAL]
    names = [name for name in names if name in WORKLOADS]  # `floor` is none: no server does it
    pairs = []
    for name in dict.fromkeys(names):
        for target in WORKLOADS[name].targets:
            wanted = target in targets or (target == "mailsrv-1" and "mailsrv" in targets)
            if wanted and not (quick and (name, target) in NOT_IF_QUICK):
                pairs.append((name, target))
        pairs += [(name, target) for target in targets if target not in (*ALL, "mailsrv-1")]
    return pairs
