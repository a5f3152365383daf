"""The rows of the report: which figure stands under which words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    title: str
    name: str  # of the metric
    unit: str
    cpu: str = ""  # the metric with the server's processor time for the same work, where it has a row of its own: none
    key: str = ""  # the words in the short table, if it stands there
    ours: str = ""  # another target of ours than the group's


@dataclass(frozen=True)
class Group:
    title: str
    workload: str
    ours: str  # mailsrv: as many workers as cores; mailsrv-1: one
    checked: str
    rows: tuple[Row, ...]


def count(n: int) -> str:
    return f"{n:,}"


def groups(sizes: dict[str, Any]) -> list[Group]:
    return [
        push(), fanout(sizes), many(sizes), throughput(sizes), memory(sizes), login(), idle(sizes), mailbox(sizes),
        search(sizes), changes(sizes), durability(),
    ]  # fmt: skip


def push() -> Group:
    def latency(kind: str, words: str, key: str = "") -> list[Row]:
        name = f"push.{kind}.after_250"
        return [
            Row(f"250 -> EXISTS, {words}, median", f"{name}.p50_ms", "ms", key=key),
            Row(f"250 -> EXISTS, {words}, 99th percentile", f"{name}.p99_ms", "ms"),
        ]

    rows = (
        *latency("irregular", "messages at irregular intervals"),
        *latency("isolated", "single messages"),
        Row(
            "end of data -> EXISTS, median", "push.irregular.after_eod.p50_ms", "ms", key="Push: end of data -> EXISTS"
        ),
        Row("end of data -> EXISTS, 99th percentile", "push.irregular.after_eod.p99_ms", "ms"),
        Row("end of data -> 250, median", "push.irregular.smtp_250_after_eod.p50_ms", "ms"),
        Row("server CPU for each message", "push.irregular.server_cpu_ms_per_msg", "ms"),
    )
    return Group("Push latency", "push", "mailsrv", "every message accepted and announced", rows)


def fanout(sizes: dict[str, Any]) -> Group:
    rows: list[Row] = []
    for n in sizes["fan"]:
        name, key = f"fanout.{n}", f"{count(n)} watchers of one mailbox: the last is told" if n == 1000 else ""
        rows += [
            Row(f"{count(n)} watchers: first told after the 250", f"{name}.first.p50_ms", "ms"),
            Row(f"{count(n)} watchers: half are told", f"{name}.median.p50_ms", "ms"),
            Row(f"{count(n)} watchers: last told", f"{name}.last.p50_ms", "ms", key=key),
            Row(f"{count(n)} watchers: last told, worst message", f"{name}.last.max_ms", "ms"),
            Row(f"{count(n)} watchers: server CPU for each message", f"{name}.server_cpu_ms_per_msg", "ms"),
        ]
    return Group("Fan-out", "fanout", "mailsrv", "every watcher is told of every message", tuple(rows))


def many(sizes: dict[str, Any]) -> Group:
    users, rate = count(sizes["many_users"]), sizes["many_rate"]
    key = f"{users} users, {rate} messages/s: end of data -> EXISTS"
    rows = (
        Row("250 -> EXISTS, median", "many.after_250.p50_ms", "ms"),
        Row("250 -> EXISTS, 99th percentile", "many.after_250.p99_ms", "ms"),
        Row("end of data -> EXISTS, median", "many.after_eod.p50_ms", "ms", key=key),
        Row("end of data -> EXISTS, 99th percentile", "many.after_eod.p99_ms", "ms"),
        Row(f"opening {users} waiting connections", "many.open_s", "s"),
        Row("server CPU for each message", "many.server_cpu_ms_per_msg", "ms"),
    )
    title = f"{users} users who wait, {rate} messages a second"
    return Group(title, "many", "mailsrv", "every message accepted and announced to its user", rows)


def throughput(sizes: dict[str, Any]) -> Group:
    rows: list[Row] = []
    for n in sizes["thr_conns"]:
        name, words = f"throughput.10k.c{n}", f"10 KB, {n} connection{'s' if n > 1 else ''}"
        key = f"Deliveries of 10 KB, {n} connections" if n == max(sizes["thr_conns"]) else ""
        cpu_key = "Server CPU for each of them" if key else ""
        rows += [
            Row(f"{words}: accepted", f"{name}.accepted_per_s", "/s"),
            Row(f"{words}: visible", f"{name}.visible_per_s", "/s", key=key),
            Row(f"{words}: last visible after the last 250", f"{name}.visible_after_last_250_ms", "ms"),
            Row(f"{words}: server CPU for each message", f"{name}.server_cpu_ms_per_msg", "ms", key=cpu_key),
        ]
        if key:
            ours, one = "mailsrv-1", f"{words}, `workers: 1`"
            rows += [
                Row(f"{one}: visible", f"{name}.visible_per_s", "/s", ours=ours),
                Row(f"{one}: server CPU for each message", f"{name}.server_cpu_ms_per_msg", "ms", ours=ours),
            ]
    rows += [
        Row("1 MB, 10 connections: visible", "throughput.1m.c10.visible_mbps", "MB/s"),
        Row("1 MB, 10 connections: server CPU for each message", "throughput.1m.c10.server_cpu_ms_per_msg", "ms"),
    ]
    checked = "as many visible as accepted; the text of the last one"
    return Group("Deliveries", "throughput", "mailsrv", checked, tuple(rows))


def memory(sizes: dict[str, Any]) -> Group:
    rows: list[Row] = []
    for ours in ("", "mailsrv"):
        for kind, words in (("plain", "without TLS"), ("tls", "with TLS")):
            for n in (0, *sizes["mem_levels"]):
                title = f"{count(n)} idle connections {words}" + (", `workers: auto`" if ours else "")
                key = title if n == 1000 and not ours else ""
                rows.append(
                    Row(title, f"memory.{kind}.{n}.pss_mb", "MB", key=f"Memory, {key}" if key else "", ours=ours)
                )
    return Group(
        "Memory of all server processes (PSS)", "memory", "mailsrv-1", "no connection was dropped", tuple(rows)
    )


def login() -> Group:
    rows: list[Row] = []
    for kind, words in (("plain", "without TLS"), ("tls", "with TLS")):
        name = f"login.{kind}"
        rows += [
            Row(f"{words}", f"{name}.per_s", "/s", key=f"connect + LOGIN + SELECT + LOGOUT {words}"),
            Row(f"{words}: median", f"{name}.p50_ms", "ms"),
            Row(f"{words}: 99th percentile", f"{name}.p99_ms", "ms"),
            Row(f"{words}: server CPU for each", f"{name}.server_cpu_ms_each", "ms"),
            Row(f"{words}, `workers: 1`", f"{name}.per_s", "/s", ours="mailsrv-1"),
        ]
    title = "connect + LOGIN + SELECT + LOGOUT, 20 at a time"
    return Group(title, "login", "mailsrv", "each went through all steps", tuple(rows))


def idle(sizes: dict[str, Any]) -> Group:
    n = count(sizes["idle_conns"])
    row = Row(
        f"{n} connections in IDLE: server CPU", "idlecpu.server_cpu_ms_per_s", "ms/s", key=f"CPU of {n} connections"
    )
    return Group("Waiting", "idlecpu", "mailsrv-1", "no connection was dropped", (row,))


def timed(title: str, name: str, key: str = "") -> Row:
    return Row(title, f"mailbox.{name}.wall_s", "s", cpu=f"mailbox.{name}.server_cpu_s", key=key)


def mailbox(sizes: dict[str, Any]) -> Group:
    n, bulk = count(sizes["box_n"]), count(sizes["box_bulk"])
    rows: list[Row] = []
    for name, words in (
        ("select", "SELECT"),
        ("flags", "FETCH 1:* (UID FLAGS)"),
        ("envelope", "FETCH 1:* ENVELOPE and more"),
        ("headers", "FETCH 1:* HEADER.FIELDS"),
        ("bodystructure", "FETCH 1:* BODYSTRUCTURE"),
    ):
        for phase in ("first", "cold", "warm"):
            key = f"{words} of {n} messages, {phase}" if (name, phase) == ("envelope", "warm") else ""
            rows.append(timed(f"{words}, {phase}", f"{phase}.{name}", key))
    rows += [
        Row("one body, median", "mailbox.warm.rand_body.p50_ms", "ms"),
        Row("one body, 99th percentile", "mailbox.warm.rand_body.p99_ms", "ms"),
        timed(f"{bulk} bodies in one FETCH", "warm.bulk_body"),
        Row(f"{bulk} bodies in one FETCH", "mailbox.warm.bulk_body.mbps", "MB/s"),
    ]
    checked = "every message once; sizes and Message-IDs against what was stored, bodies byte for byte"
    return Group(f"A mailbox of {n} messages: reading", "mailbox", "mailsrv", checked, tuple(rows))


def search(sizes: dict[str, Any]) -> Group:
    n = count(sizes["box_n"])
    rows = (
        timed("SEARCH UNSEEN, warm", "warm.search_unseen"),
        timed("SEARCH SUBJECT, cold", "cold.search_subject"),
        timed("SEARCH SUBJECT, warm", "warm.search_subject"),
        timed("SEARCH TEXT", "warm.search_text", f"SEARCH TEXT in {n} messages"),
        timed("SORT (SUBJECT DATE), cold", "cold.sort_subject"),
        timed("SORT (SUBJECT DATE), warm", "warm.sort_subject"),
    )
    checked = "as many found as were planted"
    return Group(f"A mailbox of {n} messages: searching", "mailbox", "mailsrv", checked, rows)


def changes(sizes: dict[str, Any]) -> Group:
    n, some = count(sizes["box_n"]), count(sizes["box_mod"])
    rows = (
        timed(f"STORE +FLAGS (\\Seen) of {some}", "store_seen"),
        timed(f"COPY of {some}", "copy"),
        timed(f"STORE +FLAGS.SILENT (\\Deleted) of {some}", "store_deleted"),
        timed(f"EXPUNGE of {some}", "expunge"),
        Row("APPEND of 10 KB, median", "mailbox.append.p50_ms", "ms"),
        Row("APPEND of 10 KB, 99th percentile", "mailbox.append.p99_ms", "ms"),
        timed(f"STATUS of {sizes['box_status']} mailboxes", "status_boxes"),
    )
    checked = "what is left, copied and added, by count"
    return Group(f"A mailbox of {n} messages: changing", "mailbox", "mailsrv", checked, rows)


def durability() -> Group:
    row = Row("sync calls for each accepted message (strace)", "durability.syncs_per_msg", "")
    return Group(
        "Durability", "durability", "mailsrv", "there is at least one; the figure itself is no contest", (row,)
    )
