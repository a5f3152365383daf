"""Figures of several rounds: the median, the least and the greatest; nothing of a workload with a wrong answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .util import median


@dataclass(frozen=True)
class Figure:
    median: float
    least: float
    most: float
    rounds: int


@dataclass(frozen=True)
class Failed:
    errors: tuple[str, ...]


def outcome(results: dict[str, Any], target: str, workload: str) -> dict[str, Figure] | Failed | None:
    """The figures of one workload on one target; None if it was not run."""
    runs = results["targets"].get(target, {}).get("runs", {}).get(workload)
    if not runs:
        return None
    errors = tuple(error for run in runs for error in run["errors"])
    if errors:
        return Failed(errors)
    figures = {}
    for name in dict.fromkeys(name for run in runs for name in run["metrics"]):
        values = [run["metrics"][name] for run in runs if name in run["metrics"]]
        figures[name] = Figure(median(values), min(values), max(values), len(values))
    return figures


def samples(results: dict[str, Any], target: str, workload: str, name: str) -> list[float]:
    """Single measurements of all rounds; none of a workload that failed."""
    if not isinstance(outcome(results, target, workload), dict):
        return []
    runs = results["targets"][target]["runs"][workload]
    return [value for run in runs for value in run.get("samples", {}).get(name, ())]


def failures(results: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(target, workload, what was wrong)"""
    return [
        (target, workload, error)
        for target, entry in results["targets"].items()
        for workload, runs in entry["runs"].items()
        for run in runs
        for error in run["errors"]
    ]


def merged(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Several results as one: the rounds of all of them. Machine, sizes and command are the first one's."""
    whole: dict[str, Any] = {**parts[0], "targets": {}}
    for part in parts:
        if part["sizes"] != whole["sizes"]:
            raise ValueError("results of different sizes cannot be one")
        for target, entry in part["targets"].items():
            there = whole["targets"].setdefault(target, {"info": entry["info"], "runs": {}})
            for workload, runs in entry["runs"].items():
                there["runs"].setdefault(workload, []).extend(runs)
    whole["seconds"] = sum(part["seconds"] for part in parts)
    return whole


def higher_is_better(name: str) -> bool:
    return name.endswith(("per_s", "mbps")) and "_cpu_" not in name  # processor time a second is a cost


def ratio(name: str, ours: Figure, theirs: Figure) -> float | None:
    """How many times better ours is; None where that has no meaning (a latency below zero)."""
    good, bad = (ours, theirs) if higher_is_better(name) else (theirs, ours)
    if good.median <= 0 or bad.median <= 0:
        return None
    return good.median / bad.median
