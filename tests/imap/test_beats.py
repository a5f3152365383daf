"""Heartbeats: one timer for many sessions, each account's sessions together, nothing left of those who went."""

import gc
import weakref

import gevent
import pytest
from gevent.event import Event

from mailsrv.imap.beats import APART_SECONDS, Beats


def test_connections_of_an_account_share_a_timer_and_are_told_together():
    beats, period = Beats(), 0.05
    pulses = [beats.join(1, period, Event()), beats.join(1, period, Event())]
    assert len(beats._beats) == 1
    try:
        for _ in range(2):  # and again
            for pulse in pulses:
                assert pulse.event.wait(30) and pulse.due
                pulse.due = False
                pulse.event.clear()
    finally:
        for pulse in pulses:
            pulse.stop()
    assert beats._beats == {}


def test_many_accounts_have_few_timers():
    beats = Beats()
    pulses = [beats.join(account, 120.0, Event()) for account in range(1000)]
    assert len(beats._beats) == 120 / APART_SECONDS
    for pulse in pulses:
        pulse.stop()
    assert beats._beats == {}


def test_who_left_is_not_told_and_who_comes_later_is():
    beats, period = Beats(), 0.05
    gone = beats.join(1, period, Event())
    gone.stop()
    came = beats.join(1, period, Event())
    with gevent.Timeout(30):
        came.event.wait()
    assert came.due and not gone.due
    came.stop()


@pytest.mark.parametrize("begun", [False, True], ids=["at once", "after a while"])
def test_nothing_is_left_for_the_collector_of_those_who_went(begun):
    gc.disable()
    try:
        beats = Beats()
        pulse = beats.join(1, 120.0, Event())
        left = weakref.ref(pulse._beat._greenlet)
        if begun:
            gevent.sleep(0)
        pulse.stop()
        del pulse
        with gevent.Timeout(30):
            while left() is not None:
                gevent.sleep(0.001)
    finally:
        gc.enable()
