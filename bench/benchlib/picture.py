"""The report as a picture: ratios as bars, and how push latencies are spread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import patches, pyplot

from .report import PEERS, key_rows, origin
from .results import outcome, ratio, samples

COLORS = {"mailsrv": "#1b6ca8", "dovecot": "#d1733b", "dovecot-lmtp": "#8a9a3c"}
LATENCIES = (
    ("push", "push.irregular.after_eod", "one watcher"),
    ("many", "many.after_eod", "many users"),
)


def draw(results: dict[str, Any], path: Path) -> None:
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(15, 7), width_ratios=(3, 2), layout="constrained")
    ratios(results, left)
    latencies(results, right)
    figure.suptitle(origin(results).replace("`", ""), fontsize=9)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def ratios(results: dict[str, Any], axes: Any) -> None:
    rows = [(group, row) for group, row in key_rows(results)[::-1] if outcome(results, group.ours, group.workload)]
    peers = [name for name in ("dovecot", "dovecot-lmtp") if name in results["targets"]]
    height = 0.8 / max(1, len(peers))
    for place, name in enumerate(peers):
        for at, (group, row) in enumerate(rows):
            ours = outcome(results, group.ours, group.workload)
            theirs = outcome(results, name, group.workload)
            if (
                not isinstance(ours, dict)
                or not isinstance(theirs, dict)
                or not (row.name in ours and row.name in theirs)
            ):
                continue
            factor = ratio(row.name, ours[row.name], theirs[row.name])
            if factor is None:
                continue
            y = at + 0.4 - height * (place + 0.5)
            # From 1: what is better goes to the right, what is worse to the left.
            axes.barh(y, factor - 1, height, left=1, color=COLORS[name])
            axes.annotate(f" {factor:.2g}x " if factor < 10 else f" {factor:,.0f}x ", (factor, y), va="center",
                          ha="left" if factor >= 1 else "right", fontsize=8)  # fmt: skip
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.margins(x=0.15)
    axes.set_yticks(range(len(rows)), [row.key for _, row in rows], fontsize=8)
    axes.set_xlabel("how many times better mailsrv is (logarithmic; 1: the same)")
    handles = [patches.Rectangle((0, 0), 1, 1, color=COLORS[name]) for name in peers]
    if handles:
        axes.legend(handles, [f"against {PEERS[name]}" for name in peers], fontsize=8, loc="lower right")


def latencies(results: dict[str, Any], axes: Any) -> None:
    for name, color in COLORS.items():
        for (workload, metric, words), style in zip(LATENCIES, ("-", "--"), strict=True):
            values = sorted(samples(results, name, workload, metric))
            if values:
                shares = [(rank + 1) / len(values) * 100 for rank in range(len(values))]
                axes.plot(values, shares, style, color=color, label=f"{PEERS.get(name, 'mailsrv')}, {words}")
    axes.set_xscale("log")
    axes.set_xlabel("end of data -> EXISTS, ms (logarithmic)")
    axes.set_ylabel("share of messages told by then, %")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2)  # below: no line is hidden
