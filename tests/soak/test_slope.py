"""Growth is told from noise, steps and waves: the slope test sees a leak, and does not see what is none."""

import math
import random

import pytest

from tests.soak.slope import SETTLED_SECONDS, WARM_UP_SECONDS, judge

MIB = 1024 * 1024
LIMIT = {"limit": 20.0, "least": MIB}


def samples(shape, *, start=0, seconds=600, every=3, noise=0.003, seed=1):
    """60 MiB and what `shape` adds at each second, with a noise that stays for a while, as memory does."""
    dice, drift, found = random.Random(seed), 0.0, []
    for at in range(start, seconds, every):
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
    short, long = (judge(samples(lambda at: 0, seconds=seconds, noise=0.00001), **LIMIT) for seconds in (400, 2700))
    assert 20 < short.seen < 30 and 20 < long.seen < 21


@pytest.mark.parametrize("noise", [0.0001, 0.001, 0.003, 0.01])
@pytest.mark.parametrize(("start", "seconds"), [(0, 600), (93, 600), (90, 400), (0, 3600)])
def test_a_leak_as_small_as_the_report_says_it_can_see_is_seen(start, seconds, noise):
    verdicts = []
    for seed in range(40):
        level = judge(samples(lambda at: 0, start=start, seconds=seconds, noise=noise, seed=seed), **LIMIT)
        share, middle = level.seen / 100 / 3600, (level.begin + level.end) / 2
        each = share * level.mean / (1 - share * middle) / MIB  # a second; of a mean that it makes larger
        leak = samples(lambda at, each=each: each * at, start=start, seconds=seconds, noise=noise, seed=seed)
        verdicts.append(judge(leak, **LIMIT).verdict)
    assert verdicts.count("grows") >= 38, verdicts


def test_each_process_has_its_own_warm_up():
    """One that was killed and replaced is judged like the others, and not for what it does first."""

    def warming(at):
        return 8 * (1 - math.exp(-(at - 93) / 30))

    for seed in range(20):
        life = samples(warming, start=93, noise=0.001, seed=seed)
        found = judge(life, started=90.0, **LIMIT)
        assert found.verdict == "flat" and found.begin == 240, found
        leaking = samples(lambda at: warming(at) + at / 60, start=93, noise=0.001, seed=seed)
        assert judge(leaking, started=90.0, **LIMIT).verdict == "grows"
    # As one life from the beginning on, the same samples begin with what is no leak.
    assert judge(life, started=-60.0, **LIMIT).begin == 93


@pytest.mark.parametrize("lasting", [20, 40, 80, 120])
@pytest.mark.parametrize("start", [0, 90])
def test_a_warm_up_that_saturates_is_no_leak(start, lasting):
    """What was measured: 6 MiB of a worker, most of it within the first minute."""
    verdicts = [
        judge(samples(lambda at: 6 * (1 - math.exp((start - at) / lasting)), start=start, seed=seed), **LIMIT).verdict
        for seed in range(40)
    ]
    assert verdicts.count("grows") == 0, verdicts


def test_memory_that_is_given_back_each_minute_is_flat():
    for seed in range(20):
        saw = samples(lambda at: 2 * (at % 60) / 60, noise=0.001, seed=seed)
        assert judge(saw, **LIMIT).verdict == "flat"
        leak = samples(lambda at: 2 * (at % 60) / 60 + at / 60, noise=0.001, seed=seed)
        assert judge(leak, **LIMIT).verdict == "grows"


def test_a_life_that_ended_soon_after_its_warm_up_is_too_short_to_judge():
    enough = WARM_UP_SECONDS + SETTLED_SECONDS
    life = [(100.0 + at, 30.0 * MIB) for at in range(1000)]
    assert judge([one for one in life if one[0] < 100 + enough], **LIMIT) is None
    assert judge([one for one in life if one[0] <= 100 + enough], **LIMIT).verdict == "flat"
    assert judge([one for one in life if one[0] <= 100 + enough], started=120.0, **LIMIT) is None
    assert judge([one for one in life if int(one[0]) % 40 == 0][:10], **LIMIT) is None  # few samples


def test_descriptors_that_are_not_closed_are_seen():
    leak = [(float(at), 40 + at // 30 + at % 3) for at in range(0, 600, 3)]
    level = [(float(at), 40 + at % 7) for at in range(0, 600, 3)]
    assert judge(leak, limit=20.0, least=5).verdict == "grows"
    assert judge(level, limit=20.0, least=5).verdict == "flat"
    assert judge([(float(at), 7) for at in range(300)], limit=20.0, least=5).verdict == "flat"


def test_too_few_samples_are_not_judged():
    assert judge([(float(at), 1.0) for at in range(10)], **LIMIT) is None
    assert judge([], **LIMIT) is None
