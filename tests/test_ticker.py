"""How late the event loop comes back: told each second, with what the delay was made of."""

import time

import gevent
import gevent.monkey
import pytest

from mailsrv.ticker import Ticker


@pytest.fixture
def seconds(events):
    """Wait for that many lines of the log."""
    ticking = gevent.spawn(Ticker().run)

    def wait(count):
        with gevent.Timeout(60):
            while len(found := [fields for event, fields in events if event == "hub delay"]) < count:
                gevent.sleep(0.01)
        return found[:count]

    yield wait
    ticking.kill()


def work(seconds):
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def test_a_loop_at_work_is_late_by_its_own_work(seconds):
    gevent.spawn(work, 0.3)
    (second,) = seconds(1)
    assert second["longest_ms"] >= 290 and second["own_ms"] >= 290
    assert max(float(late) for late in second["late_ms"].split()) == pytest.approx(second["longest_ms"], abs=0.1)


def test_a_loop_that_is_held_without_working_is_not_said_to_work(seconds):
    gevent.spawn(gevent.monkey.get_original("time", "sleep"), 0.3)
    (second,) = seconds(1)
    assert second["longest_ms"] >= 290 and second["own_ms"] < 200


def test_every_tick_is_counted(seconds):
    first, second = seconds(2)
    assert 1 <= first["ticks"] <= 1000 and 1 <= second["ticks"] <= 1000
    assert all(float(late) >= 1 for late in second["late_ms"].split())
