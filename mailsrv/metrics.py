"""The figures of all processes as Prometheus reads them.

Each process tells its counters as they are (vitals.Vitals.metrics); here they are added up, joined by what is true of
the server as a whole, and given to prometheus-client, which writes them.

Imports: counters, control (the replies); prometheus_client where something is written.    docs/metrics.md is made from
this.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from mailsrv import __version__, counters
from mailsrv.control import Reply
from mailsrv.libraries import load

if TYPE_CHECKING:
    from prometheus_client.core import Metric


class Figure(NamedTuple):
    """A metric that is no counter of counters.ALL. `kind` is gauge or counter."""

    kind: str
    text: str
    labels: tuple[str, ...] = ()


GAUGE, COUNTER = "gauge", "counter"
_LIBRARY = ("prometheus_client.core", "prometheus_client.exposition", "prometheus_client.registry")
FIGURES = {
    "mailsrv_info": Figure(GAUGE, "Always 1; the version is a label.", ("version",)),
    "mailsrv_up": Figure(GAUGE, "Whether a process answers.", ("process",)),
    "mailsrv_process_start_time_seconds": Figure(GAUGE, "When a process began, seconds since 1970.", ("process",)),
    "mailsrv_process_cpu_seconds_total": Figure(COUNTER, "Processor time of a process.", ("process",)),
    "mailsrv_process_memory_bytes": Figure(GAUGE, "Memory of a process, with its share (PSS).", ("process",)),
    "mailsrv_process_restarts_total": Figure(COUNTER, "How often a process was started again.", ("process",)),
    "mailsrv_log_events_total": Figure(COUNTER, "Log events by level; errors are to be read.", ("level",)),
    "mailsrv_log_events_dropped_total": Figure(COUNTER, "Log events not written.", ("process",)),
    "mailsrv_log_ok": Figure(GAUGE, "Whether the log can be written; 0 when its disk is full.", ("process",)),
    "mailsrv_canary_ok": Figure(GAUGE, "Whether the last message to ourselves came in time.", ("process",)),
    "mailsrv_index_lag_seconds": Figure(
        GAUGE, "For how long the first open mailbox that another program changed waits to be looked at.", ("process",)
    ),
    "mailsrv_index_lag_mailboxes": Figure(GAUGE, "Open mailboxes that others changed and nobody has looked at yet."),
    "mailsrv_connections": Figure(GAUGE, "Connections that are open now.", ("service",)),
    "mailsrv_sessions_idling": Figure(GAUGE, "IMAP sessions that wait in IDLE."),
    "mailsrv_queue_messages": Figure(GAUGE, "Messages that wait for other servers, or are being tried."),
    "mailsrv_queue_attempts_active": Figure(GAUGE, "Attempts that go on now."),
    "mailsrv_queue_oldest_seconds": Figure(GAUGE, "For how long the oldest message waits."),
    "mailsrv_queue_recipients_total": Figure(
        COUNTER, "Recipients by what came of an attempt: sent, deferred, failed, expired, cancelled.", ("outcome",)
    ),
    "mailsrv_queue_attempts_total": Figure(COUNTER, "Attempts begun."),
    "mailsrv_queue_reports_total": Figure(COUNTER, "Reports to senders: bounce, or notice of delay.", ("kind",)),
    "mailsrv_queue_damaged_total": Figure(COUNTER, "Queue entries put aside because they could not be read."),
    "mailsrv_disk_free_bytes": Figure(GAUGE, "Room left where mail is kept."),
    "mailsrv_disk_size_bytes": Figure(GAUGE, "Size of the file system where mail is kept."),
    "mailsrv_certificate_expiry_seconds": Figure(GAUGE, "When a certificate ends, seconds since 1970.", ("file",)),
}  # fmt: skip
_QUEUE_OUTCOMES = ("sent", "deferred", "failed", "expired", "cancelled")
Rows = list[tuple[tuple[str, ...], Any]]


def sums(answers: Sequence[dict[str, Any]]) -> dict[str, dict[tuple[str, ...], Any]]:
    """The counters and gauges of several processes, added up by name and labels."""
    found: dict[str, dict[tuple[str, ...], Any]] = defaultdict(dict)
    for answer in answers:
        for name, rows in [*answer["counters"].items(), *answer["gauges"].items()]:
            for labels, value in rows:
                key, known = tuple(labels), found[name].get(tuple(labels))
                if known is None:
                    found[name][key] = value
                elif isinstance(value, list):
                    found[name][key] = [one + other for one, other in zip(known, value, strict=True)]
                else:
                    found[name][key] = known + value
    return found


def gathered(replies: Sequence[Reply], disk: tuple[int, int] | None, certificates: dict[str, float]) -> dict[str, Rows]:
    """Rows of every figure there is. `disk`: (free, size); `certificates`: when each file's ends."""
    answered = [reply for reply in replies if not reply.error]
    rows: dict[str, Rows] = {name: list(one.items()) for name, one in sums([r.answer for r in answered]).items()}
    rows["mailsrv_info"] = [((__version__,), 1)]
    # While new code takes over, two processes have one name: the figures of the younger are shown.
    answered.sort(key=lambda reply: float(reply.answer["process"]["mailsrv_process_start_time_seconds"]))
    youngest = {reply.process: reply.answer["process"] for reply in answered}
    rows["mailsrv_up"] = [((name,), int(name in youngest)) for name in sorted({reply.process for reply in replies})]
    for process, figures in youngest.items():
        for name, value in figures.items():
            rows.setdefault(name, []).append(((process,), value))
    queue = next((reply.answer["queue"] for reply in answered if reply.answer["queue"] is not None), None)
    if queue is not None:
        counts = queue["counters"]
        rows["mailsrv_queue_messages"] = [((), queue["depth"])]
        rows["mailsrv_queue_attempts_active"] = [((), queue["active"])]
        rows["mailsrv_queue_oldest_seconds"] = [((), queue["oldest_seconds"])]
        rows["mailsrv_queue_recipients_total"] = [((outcome,), counts[outcome]) for outcome in _QUEUE_OUTCOMES]
        rows["mailsrv_queue_attempts_total"] = [((), counts["attempts"])]
        rows["mailsrv_queue_reports_total"] = [(("bounce",), counts["bounces"]), (("notice",), counts["notices"])]
        rows["mailsrv_queue_damaged_total"] = [((), counts["damaged"])]
    if disk is not None:
        rows["mailsrv_disk_free_bytes"], rows["mailsrv_disk_size_bytes"] = [((), disk[0])], [((), disk[1])]
    rows["mailsrv_certificate_expiry_seconds"] = [((path,), at) for path, at in certificates.items()]
    return rows


def exposition(rows: dict[str, Rows], accept: str) -> tuple[bytes, str]:
    """(text, its type), in the format the reader asks for. Takes some milliseconds: not for the event loop."""
    load(*_LIBRARY)
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.registry import CollectorRegistry

    class Families:
        def collect(self) -> Iterator[Metric]:
            yield from _families(rows)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Families())
    encode, kind = choose_encoder(accept)
    return encode(registry), kind


def _families(rows: dict[str, Rows]) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    for name, text, labels, kind, bounds in _declared():
        if kind == "histogram":
            histogram = HistogramMetricFamily(name, text, labels=labels)
            for key, row in rows.get(name, ()):
                histogram.add_metric(key, _buckets(bounds, row), row[-1])
            yield histogram
        else:
            family = (CounterMetricFamily if kind == "counter" else GaugeMetricFamily)(name, text, labels=labels)
            for key, value in rows.get(name, ()):
                family.add_metric(key, value)
            yield family


def _buckets(bounds: Sequence[float], row: Sequence[float]) -> list[tuple[str, float]]:
    """Cumulative, as Prometheus has them."""
    total, found = 0.0, []
    for bound, count in zip((*map(str, bounds), "+Inf"), row, strict=False):
        total += count
        found.append((bound, total))
    return found


def _declared() -> Iterable[tuple[str, str, tuple[str, ...], str, Sequence[float]]]:
    """(name, text, labels, kind, bounds) of every metric."""
    for name, one in counters.ALL.items():
        yield name, one.text, one.labels, one.kind, one.bounds if isinstance(one, counters.Histogram) else ()
    for name, figure in FIGURES.items():
        yield name, figure.text, figure.labels, figure.kind, ()


def names() -> set[str]:
    """Of every series that can be asked for."""
    found = set()
    for name, _, _, kind, _ in _declared():
        found |= {f"{name}_bucket", f"{name}_sum", f"{name}_count"} if kind == "histogram" else {name}
    return found


def reference() -> str:
    """The table of metrics, `docs/metrics.md`."""
    lines = [
        "# Metrics", "",
        "Generated by `python -m mailsrv.generate`. What to do with them: [monitoring](monitoring.md).", "",
        "| metric | kind | labels | meaning |", "|---|---|---|---|",
    ]  # fmt: skip
    for name, text, labels, kind, _ in sorted(_declared()):
        lines.append(f"| `{name}` | {kind} | {', '.join(labels)} | {text} |")
    return "\n".join(lines) + "\n"
