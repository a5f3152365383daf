"""The soak's result as a page."""

import datetime
import os
import platform

from mailsrv import counters
from tests.soak.run import LIMITS, named
from tests.soak.slope import SETTLED_SECONDS, WARM_UP_SECONDS

MIB = 1024 * 1024
UNITS = {"memory": (MIB, "MiB"), "descriptors": (1, ""), "threads": (1, ""), "greenlets": (1, "")}


def _number(value, figure):
    unit, name = UNITS[figure]
    return f"{value / unit:.1f} {name}".strip()


def written(soak, command):
    failed = soak.failed()
    undecided = sum(slope is not None and slope.verdict == "undecided" for *_, slope in soak.slopes())
    result = "nothing grows, nothing is lost." if not undecided else f"nothing is lost; {undecided} figures undecided."
    result = result if not failed else "failed."
    when = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC"
    machine = f"Python {platform.python_version()}, Linux {platform.release()}, {os.cpu_count()} cores"
    counted = ", ".join(f"{name} {limit:g} %, {_number(most, name)}" for name, (limit, most) in LIMITS.items())
    what = (
        "Clients of three users at once: in IDLE, fetching, searching, appending, logging in and out (with and without "
        "TLS), mail by SMTP\nand by submission under TLS."
        f" {len(soak.killed)} workers were killed (SIGKILL), {soak.reloads} times settings were reloaded (SIGHUP)."
    )
    how = (
        "Memory is each process's own: its anonymous pages, which no other process makes more or fewer. Judged is\n"
        f"what came {WARM_UP_SECONDS:g} seconds after that very process started, if that is {SETTLED_SECONDS:g} "
        "seconds or more. A line through\nthose samples: per cent of the mean in an hour, with 95 % bounds. A figure "
        "fails when its lower bound is beyond\nthe limit, that of both halves as well, and the growth is more than "
        f"counts\n({counted}).\n"
        "It is flat when the upper bound is within the limit, that of all or of the later half, or the growth less\n"
        'than counts. Undecided: a longer run says more. What grows by as much as is said under "seen from" (per\n'
        "cent of the mean in an hour) fails, however the figure wavers. Of each worker, the queue and the supervisor\n"
        "each figure has to be decided for one process at least, else the run has shown nothing of it and fails;\n"
        "descriptors and greenlets, which follow how many clients a worker happens to have, for all workers together."
    )
    sections = [
        "# Soak",
        f"`{command}`, {when}, seed {soak.seed}, {soak.seconds / 60:.1f} minutes, {machine}.",
        what,
        f"**Result: {result}**",
        *(["\n".join(f"- {one}" for one in failed[:50])] if failed else []),
        "## What each process used",
        how,
        _table(
            ["process", "figure", "judged", "mean", "% in an hour", "95 % bounds", "seen from", "verdict"],
            _slopes(soak),
        ),
        "## Memory over time, MiB",
        _table(["process", *(f"{tenth * 10} %" for tenth in range(1, 11))], _memory(soak)),
        "## How late the event loops were",
        _delays(soak.sampler.delays),
        "## The ledger",
        _ledger(soak.ledger),
    ]
    return "\n\n".join(sections) + "\n"


def _table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _slopes(soak):
    judged = {pid for _, pid, _, slope in soak.slopes() if slope is not None} | {None}
    for name, pid, figure, slope in soak.slopes():
        process = named(name, pid)
        if slope is not None:
            ended = f" (killed at {soak.killed[pid]:.0f} s)" if pid in soak.killed else ""
            yield (
                process,
                figure,
                f"{slope.begin:.0f} to {slope.end:.0f} s",
                _number(slope.mean, figure),
                f"{slope.per_hour:+.1f}",
                f"{slope.low:+.1f} to {slope.high:+.1f}",
                f"{slope.seen:.0f}",
                slope.verdict + ended,
            )
        elif pid in judged or figure == "memory":
            yield process, figure if pid in judged else "all", "", "", "", "", "", _life(soak, name, pid)


def _life(soak, name, pid):
    began = soak.sampler.started.get((name, pid), 0.0)
    if pid in soak.killed:
        return f"killed after {soak.killed[pid] - began:.0f} s: too short to judge"
    return "too short to judge"


def _memory(soak):
    tenth = soak.seconds / 10
    for (name, pid), figures in sorted(soak.sampler.series.items()):
        cells = []
        for number in range(10):
            values = [value for at, value in figures["memory"] if number * tenth <= at < (number + 1) * tenth]
            cells.append(f"{sum(values) / len(values) / MIB:.1f}" if values else "")
        yield f"{name} ({pid})", *cells


def _ledger(ledger):
    arrived = sum(bool(ledger.seen[token]) for token in ledger.doubtful)
    counts = ", ".join(f"{count} {name}" for name, count in sorted(ledger.counts.items()))
    return (
        f"{len(ledger.accepted)} messages accepted, {len(ledger.missing())} lost; {len(ledger.doubtful)} in doubt (cut "
        f"off before an answer), of which {arrived} had arrived.\nSteps: {counts}."
    )


def _delays(row):
    """The histogram of all processes that ran at the end."""
    if row is None:
        return "Not told."
    total, below, rows = sum(row[:-1]), 0, []
    for bound, count in zip([*counters.hub_delay.bounds, None], row[:-1], strict=True):
        below += count
        words = f"{bound * 1000:g} ms" if bound is not None else "more"
        rows.append((words, f"{count:.0f}", f"{100 * below / total if total else 0:.2f} %"))
    mean = 1000 * row[-1] / total if total else 0
    note = f"Mean {mean:.2f} ms of {total:.0f} samples. Counting greenlets holds a loop for some milliseconds."
    return _table(["at most", "samples", "share so far"], rows) + "\n\n" + note
