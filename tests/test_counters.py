"""Counting: cheap, and with a bounded number of series whatever the labels are."""

import pytest

from mailsrv import counters
from mailsrv.counters import Counter, Histogram, Samples


@pytest.fixture(autouse=True)
def _apart(monkeypatch):
    monkeypatch.setattr(counters, "ALL", {})


def test_sums_by_labels():
    one = Counter("x_total", "x", "service", "code")
    for code in ("250", "250", "550"):
        one.add("smtp", code)
    one.add("imap", "250", n=10)
    assert one.rows() == [[["smtp", "250"], 2], [["smtp", "550"], 1], [["imap", "250"], 10]]
    assert one.total("smtp") == 3
    assert one.total() == 13


def test_a_bound_is_in_its_own_bucket_and_the_sum_is_kept():
    one = Histogram("x_seconds", "x", "hop", bounds=(0.1, 1.0))
    for value in (0.1, 0.11, 1.0, 5.0):
        one.observe(value, "a")
    [[key, row]] = one.rows()
    assert key == ["a"]
    assert row == [1, 2, 1, pytest.approx(6.21)]


def test_labels_without_end_make_no_series_without_end():
    one, two = Counter("x_total", "x", "who"), Histogram("x_seconds", "x", "who", bounds=(1.0,))
    for number in range(3 * counters.MOST_SERIES):
        one.add(str(number))
        two.observe(0.5, str(number))
    assert len(one.values) == len(two.values) == counters.MOST_SERIES + 1
    assert one.values[("other",)].count == 2 * counters.MOST_SERIES
    assert two.values[("other",)].row[0] == 2 * counters.MOST_SERIES
    assert one.total() == 3 * counters.MOST_SERIES


def test_who_counts_often_keeps_the_sum_and_nothing_shows_before_it_counts():
    one, two = Counter("x_total", "x", "who"), Histogram("x_seconds", "x", "who", bounds=(1.0,))
    kept, times = one.of("a"), two.of("a")
    assert one.rows() == two.rows() == []
    kept.count += 2
    one.add("a")
    times.observe(0.5)
    two.observe(3, "a")
    assert one.rows() == [[["a"], 3]]
    assert two.rows() == [[["a"], [1, 1, 3.5]]]


def test_samples_of_the_last_seconds_and_no_more_than_are_kept(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(counters.time, "monotonic", lambda: now[0])
    one = Samples()
    for number in range(counters.SAMPLES + 10):
        one.add(number)
    assert len(one.since(1)) == counters.SAMPLES
    now[0] += 100
    one.add(-1)
    assert one.since(60) == [-1]
