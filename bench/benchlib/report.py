"""The report in Markdown, and the short table for the README."""

from __future__ import annotations

import re
from typing import Any

from . import goals
from .results import Failed, Figure, failures, outcome, ratio
from .rows import Group, Row, groups
from .util import number, quantity

PEERS = {
    "dovecot": "Dovecot + Postfix",
    "dovecot-lmtp": "Dovecot by LMTP",
    "dovecot-shared": "Dovecot, shared processes",
    "dovecot-hibernate": "Dovecot, hibernating",
}
BUSY = 0.5  # load average before it began
BEGIN, END = "<!-- bench/run --readme: begin -->", "<!-- bench/run --readme: end -->"


def cell(row: Row, result: dict[str, Figure] | Failed | None) -> str:
    """A figure with its spread and the processor time; FAILED; or nothing where nothing was measured."""
    if isinstance(result, Failed):
        return "FAILED"
    figure = result.get(row.name) if result else None
    if not result or not figure:
        return ""
    text = quantity(number(figure.median), row.unit)
    if figure.rounds > 1:
        text += f" ({number(figure.least)} to {number(figure.most)})"
    if row.cpu in result:
        text += f"; CPU {number(result[row.cpu].median)}"
    return text


def times(row: Row, ours: dict[str, Figure] | Failed | None, theirs: dict[str, Figure] | Failed | None) -> str:
    if not isinstance(ours, dict) or not isinstance(theirs, dict) or not row.unit:
        return ""
    if row.name not in ours or row.name not in theirs:
        return ""
    factor = ratio(row.name, ours[row.name], theirs[row.name])
    return "" if factor is None else f"{number(factor)}x" if factor < 100 else f"{factor:,.0f}x"


def markdown(results: dict[str, Any], picture: str | None = None) -> str:
    lines = ["# How fast it is", "", *preface(results), ""]
    if picture:
        lines += [f"![Ratios and latencies]({picture})", ""]
    lines += goals.table(results)
    for group in groups(results["sizes"]):
        lines += section(results, group)
    lines += limits(results)
    lines += wrong(results)
    return "\n".join(lines).rstrip() + "\n"


def origin(results: dict[str, Any]) -> str:
    machine = results["machine"]
    where = f"{machine['cores']} cores ({machine['cpu']}), {machine['memory_gb']} GB, Linux {machine['kernel']}"
    return f"Measured on {results['began'][:10]} on {where}, Python {machine['python']}, by `{results['command']}`"


def preface(results: dict[str, Any]) -> list[str]:
    rounds = max((len(runs) for entry in results["targets"].values() for runs in entry["runs"].values()), default=0)
    lines = [f"{origin(results)}: {plural(rounds, 'round')}, {results['seconds'] / 60:.0f} minutes."]
    if results["quick"]:
        lines += ["A quick run: small sizes. The full run is `bench/run`."]
    load = results["machine"]["load"]
    if load > BUSY:
        lines += [
            f"**Other programs were at work** (load average before it began: {load:.2f}): trust ratios, not figures."
        ]
    lines += [
        "",
        "All servers did the same work on this machine, one after the other, over loopback; client and server share",
        "its cores. A figure is the median of the rounds (in brackets: the least and the greatest of them); CPU is the",
        "time of all processes of the server, in the unit of the figure. `2x` means that mailsrv is twice as good,",
        "`0.5x` half as good. What came back was checked; a workload with a wrong answer is FAILED and scores nothing.",
        "",
        "What bounds each figure: [performance.md](performance.md); how to run it: [README.md](../bench/README.md).",
        "",
        "| server | version | what is synced before the 250 |",
        "|---|---|---|",
    ]
    for target, entry in results["targets"].items():
        info = entry["info"]
        if target != "mailsrv-1" or "mailsrv" not in results["targets"]:
            lines.append(f"| {PEERS.get(target, info['name'])} | {info['version']} | {info['fsync']} |")
    notes = {note: None for entry in results["targets"].values() for note in entry["info"]["notes"]}
    lines += ["", *(f"Note: {note}." for note in notes)] if notes else []
    return lines


def plural(n: int, word: str) -> str:
    return f"{n} {word}{'' if n == 1 else 's'}"


def workers(target: str) -> str:
    return "`workers: 1`" if target == "mailsrv-1" else "`workers: auto`"


def section(results: dict[str, Any], group: Group) -> list[str]:
    peers = [name for name in PEERS if outcome(results, name, group.workload) is not None]
    if not peers and outcome(results, group.ours, group.workload) is None:
        return []
    head = "".join(f" {PEERS[name]} | |" for name in peers)
    lines = [
        f"## {group.title}", "", f"mailsrv with {workers(group.ours)}. Checked: {group.checked}.", "",
        f"| | mailsrv |{head}", "|---|---:|" + "---:|---:|" * len(peers),
    ]  # fmt: skip
    empty = len(lines)
    for row in group.rows:
        ours = outcome(results, row.ours or group.ours, group.workload)
        theirs = [outcome(results, name, group.workload) for name in peers]
        if not cell(row, ours) and not any(cell(row, one) for one in theirs if isinstance(one, dict)):
            continue
        if row.ours and not isinstance(ours, dict):
            continue
        cells = "".join(f" {cell(row, one)} | {times(row, ours, one)} |" for one in theirs)
        lines.append(f"| {row.title} | {cell(row, ours)} |{cells}")
    return [*lines, ""] if len(lines) > empty else []


def limits(results: dict[str, Any]) -> list[str]:
    """What bench/floor.py measured, if it was run."""
    if "floor" not in results:
        return []
    lines = ["## The limits of this machine", "", "Measured by `bench/floor.py`, without any mail server.", "", "| | |"]
    rows = [f"| {name.replace('|', '')} | {number(value)} |" for name, value in results["floor"].items()]
    return [*lines, "|---|---:|", *rows, ""]


def wrong(results: dict[str, Any]) -> list[str]:
    found = failures(results)
    if not found:
        return []
    return ["## Wrong answers", "", *(f"- {target}, {workload}: {error}" for target, workload, error in found)]


def key_rows(results: dict[str, Any]) -> list[tuple[Group, Row]]:
    return [(group, row) for group in groups(results["sizes"]) for row in group.rows if row.key]


def short_table(results: dict[str, Any]) -> str:
    """For the README: the rows that matter most, ours beside the best known pair."""
    peers = [name for name in ("dovecot", "dovecot-lmtp") if name in results["targets"]]
    head = "".join(f" {PEERS[name]} | |" for name in peers)
    lines = [f"| | mailsrv |{head}", "|---|---:|" + "---:|---:|" * len(peers)]
    for group, row in key_rows(results):
        ours = outcome(results, group.ours, group.workload)
        cells = ""
        for name in peers:
            theirs = outcome(results, name, group.workload)
            cells += f" {short_cell(row, theirs)} | {times(row, ours, theirs)} |"
        if short_cell(row, ours) or cells.strip(" |"):
            lines.append(f"| {row.key} | {short_cell(row, ours)} |{cells}")
    busy = " Other programs were at work." if results["machine"]["load"] > BUSY else ""
    return "\n".join([*lines, "", f"{origin(results)}. `2x`: mailsrv is twice as good.{busy}"])


def short_cell(row: Row, result: dict[str, Figure] | Failed | None) -> str:
    return re.sub(r" \(.*?\)|; CPU.*", "", cell(row, result))


def into_readme(text: str, table: str) -> str:
    """The README with the table between its marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md has no lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def line(workload: str, results: dict[str, Any], target: str) -> str:
    """One figure for the progress shown while it runs."""
    for group in groups(results["sizes"]):
        figures = outcome(results, target, workload)
        if group.workload == workload and isinstance(figures, dict):
            for row in sorted(group.rows, key=lambda row: not row.key):
                if row.name in figures and not row.ours:
                    return f"{row.key or row.title}: {quantity(number(figures[row.name].median), row.unit)}"
    return ""
