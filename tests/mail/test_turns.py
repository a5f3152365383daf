"""Who accepts mail gives way to who is about to be told of a change, and to nobody else."""

import socket

import gevent
import pytest
from gevent.event import Event

from mailsrv.mail.notify import Registry
from mailsrv.mail.turns import DUE_SECONDS, Turns
from mailsrv.values import MailboxId

from ..conftest import SECONDS

MAILBOX = MailboxId(1, 1)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def registry(clock):
    made = Registry()
    made.turns = Turns(clock)
    return made


@pytest.fixture
def told(registry):
    """What happened, in its order. Somebody watches the mailbox, and writes "told" when it changed."""
    order: list[object] = []
    event = Event()
    subscription = registry.subscribe(MAILBOX, event)

    def watch() -> None:
        while event.wait():
            event.clear()
            order.append("told")

    watcher = gevent.spawn(watch)
    gevent.idle()
    yield order
    watcher.kill()
    subscription.close()


def ready(registry, order, numbers, act=lambda number: None):
    """Sessions that are all ready to work at once."""

    def work(number: int) -> None:
        registry.turns.take()
        order.append(number)
        act(number)

    return [gevent.spawn(work, number) for number in numbers]


def test_without_news_nobody_waits(registry):
    other = gevent.spawn(lambda: None)
    registry.turns.take()
    assert not other.dead
    other.join()


def test_a_change_that_nobody_here_watches_is_no_news(registry):
    registry.publish(MAILBOX)
    other = gevent.spawn(lambda: None)
    registry.turns.take()
    assert not other.dead
    other.join()


def test_watchers_are_told_before_those_who_were_ready_earlier(registry, told):
    publisher = gevent.spawn(registry.publish, MAILBOX)
    sessions = ready(registry, told, range(20))
    gevent.joinall([publisher, *sessions], timeout=SECONDS)
    assert told == ["told", *range(20)]


def test_sockets_are_looked_at_between_two_turns(registry, told):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        reader = gevent.spawn(lambda: told.append(ours.recv(10)))
        gevent.idle()
        registry.publish(MAILBOX)
        sessions = ready(registry, told, range(5), lambda number: number or theirs.send(b"news"))
        gevent.joinall([reader, *sessions], timeout=SECONDS)
    assert told == ["told", 0, b"news", 1, 2, 3, 4]


def test_what_a_turn_publishes_is_told_before_the_next_turn(registry, told):
    registry.publish(MAILBOX)
    sessions = ready(registry, told, range(3), lambda number: registry.publish(MAILBOX))
    gevent.joinall(sessions, timeout=SECONDS)
    gevent.idle()
    assert told == ["told", 0, "told", 1, "told", 2, "told"]


def test_when_news_is_due_no_longer_all_go_on(registry, told, clock):
    def pass_time(number: int) -> None:
        clock.now += DUE_SECONDS

    registry.publish(MAILBOX)
    sessions = ready(registry, told, range(5), pass_time)
    gevent.joinall(sessions, timeout=SECONDS)
    assert told == ["told", 0, 1, 2, 3, 4]
    other = gevent.spawn(lambda: None)
    registry.turns.take()
    assert not other.dead
    other.join()


def test_one_that_is_ended_while_it_waits_holds_nobody_up(registry, told):
    registry.publish(MAILBOX)
    first, second, third = ready(registry, told, range(3))
    gevent.spawn(second.kill)
    gevent.joinall([first, second, third], timeout=SECONDS)
    assert told == ["told", 0, 2]
