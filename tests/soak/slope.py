"""Whether a figure grows: a line through its samples, and how sure that is. Pure functions.

What a process does first is no leak: it is looked at from WARM_UP_SECONDS after its own start on, so that one that took
the place of another is judged by the same rule, over a shorter time. Less than SETTLED_SECONDS of that is too short.

Samples of a process are not independent (memory stays where it went), so the line is laid through the means of BLOCKS
pieces of time, and the bounds are Student's for so many. A figure grows when even the lower bound does, by more than
is allowed, and each half of it as well: a cache that fills up or one step is no leak, however straight the line looks.
It is flat when even the upper bound is within what is allowed, or that of the later half: it has levelled off.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

BLOCKS = 12
STUDENT = 2.228  # two-sided 95 % for BLOCKS - 2 degrees of freedom
HALF_STUDENT = 2.132  # one-sided 95 % for BLOCKS / 2 - 2
HALF_BOTH_STUDENT = 2.776  # two-sided
WARM_UP_SECONDS = 150.0  # caches of the soak's server are full in one, and free memory was given back twice (upkeep)
SETTLED_SECONDS = 120.0


@dataclass(frozen=True)
class Slope:
    """Per cent of the mean in an hour: the estimate and its 95 % bounds. `verdict`: flat, grows, or undecided."""

    begin: float
    end: float
    mean: float
    per_hour: float
    low: float
    high: float
    growth: float  # over the time looked at, in the figure's own unit
    seen: float  # what grows by so much in an hour, per cent of the mean, is called a growth, however it wavers
    verdict: str


def line(points):
    """(slope, its standard error) of the least squares line through (x, y)."""
    count = len(points)
    middle = sum(x for x, _ in points) / count
    level = sum(y for _, y in points) / count
    spread = sum((x - middle) ** 2 for x, _ in points)
    slope = sum((x - middle) * (y - level) for x, y in points) / spread
    left = sum((y - level - slope * (x - middle)) ** 2 for x, y in points)
    return slope, math.sqrt(left / max(1, count - 2) / spread)


def surely(points):
    """The lower bound of the slope of half the blocks."""
    slope, error = line(points)
    return slope - HALF_STUDENT * error


def at_most(points):
    """The upper bound of the slope of half the blocks."""
    slope, error = line(points)
    return slope + HALF_BOTH_STUDENT * error


def blocks(samples):
    """The means of BLOCKS equal runs of the samples."""
    edges = [round(number * len(samples) / BLOCKS) for number in range(BLOCKS + 1)]
    pieces = [samples[first:last] for first, last in pairwise(edges)]
    return [(sum(x for x, _ in piece) / len(piece), sum(y for _, y in piece) / len(piece)) for piece in pieces]


def settled(samples, started):
    """The samples after the warm-up of a process that began then; none if they are too few, or of too short a time."""
    kept = [sample for sample in samples if sample[0] >= started + WARM_UP_SECONDS]
    return kept if len(kept) >= BLOCKS and kept[-1][0] - kept[0][0] >= SETTLED_SECONDS else []


def judge(samples, *, limit, least, started=None):
    """Samples are (seconds, value); `limit` in per cent of the mean per hour. What grows by less than `least` in the
    time looked at does not count. `started`: when the process did (else with the first sample). None: too short a time.
    """
    kept = settled(samples, samples[0][0] if started is None and samples else started)
    if not kept:
        return None
    points = blocks(kept)
    mean = sum(y for _, y in points) / BLOCKS
    slope, error = line(points)
    half = min(surely(points[: BLOCKS // 2]), surely(points[BLOCKS // 2 :]))
    share = 100 * 3600 / mean if mean else 0.0
    low, high = (slope - STUDENT * error) * share, (slope + STUDENT * error) * share
    seconds = kept[-1][0] - kept[0][0]
    growth = slope * seconds
    later = at_most(points[BLOCKS // 2 :]) * share
    if low > limit and half * share > limit and growth > least:
        verdict = "grows"
    elif high <= limit or later <= limit or growth <= least:
        verdict = "flat"
    else:
        verdict = "undecided"
    # The line of what grows by more than `grown` has all three; and it may lie lower than what there is, by its error.
    wavers = STUDENT * error * share
    grown = max(limit + wavers, limit + (slope - half) * share, least / seconds * share)
    return Slope(kept[0][0], kept[-1][0], mean, slope * share, low, high, growth, grown + wavers, verdict)
