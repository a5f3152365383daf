"""Growth is told from noise, steps and waves: the slope test sees a leak, and does not see what is none."""

import math
import random

import pytest

from tests.soak.slope import judge

MIB = 1024 * 1024
LIMIT = {"limit": 20.0, "least": MIB}


def samples(shape, *, seconds=600, every=3, noise=0.003, seed=1):
    """60 MiB and what `shape` adds at each second, with a noise that stays for a while, as memory does."""
    dice, drift, found = random.Random(seed), 0.0, []
    for at in range(0, seconds, every):
        drift = 0.8 * drift + dice.gauss(0, noise * 60 * MIB)
        found.append((float(at), 60 * MIB + drift + shape(at) * MIB))
    return found


@pytest.mark.parametrize("seed", range(20))
def test_a_leak_is_seen(seed):
    found = judge(samples(lambda at: at / 60, seed=seed), **LIMIT)  # a MiB a minute
    assert found.verdict == "grows", found
    assert 70 < found.per_hour < 110 and found.low < found.per_hour < found.high


@pytest.mark.parametrize("shape", [
    lambda at: 0, lambda at: 20 if at > 100 else 0, lambda at: 20 * (1 - math.exp(-at / 40)), lambda at: -at / 60,
    lambda at: 4 * math.sin(at / 12), lambda at: 2 if at > 450 else 0, lambda at: 0.1 * at / 60,
], ids=["level", "warm-up", "cache that fills", "falling", "waves", "one step", "less than counts"])  # fmt: skip
def test_what_is_no_leak_is_not_called_one(shape):
    verdicts = [judge(samples(shape, seed=seed), **LIMIT).verdict for seed in range(40)]
    assert verdicts.count("grows") == 0, verdicts


@pytest.mark.parametrize("seed", range(20))
def test_what_levelled_off_is_decided(seed):
    cache = samples(lambda at: 12 * (1 - math.exp(-at / 500)), seconds=3600, every=18, noise=0.0005, seed=seed)
    assert judge(cache[:60], **LIMIT).verdict != "flat"
    assert judge(cache, **LIMIT).verdict == "flat"


def test_the_shorter_the_time_the_larger_a_leak_has_to_be():
    short, long = (judge(samples(lambda at: 0, seconds=seconds), **LIMIT) for seconds in (600, 2700))
    assert 20 < short.seen < 30 and long.seen == 20


def test_descriptors_that_are_not_closed_are_seen():
    leak = [(float(at), 40 + at // 30 + at % 3) for at in range(0, 600, 3)]
    level = [(float(at), 40 + at % 7) for at in range(0, 600, 3)]
    assert judge(leak, limit=20.0, least=5).verdict == "grows"
    assert judge(level, limit=20.0, least=5).verdict == "flat"
    assert judge([(float(at), 7) for at in range(300)], limit=20.0, least=5).verdict == "flat"


def test_too_few_samples_are_not_judged():
    assert judge([(float(at), 1.0) for at in range(10)], **LIMIT) is None
    assert judge([], **LIMIT) is None
