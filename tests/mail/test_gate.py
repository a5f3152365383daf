"""How much goes on at once, and that one piece of work that hangs does not hold up the rest."""

import gevent
import pytest
from gevent.event import Event

from mailsrv.mail import gate
from mailsrv.mail.gate import Gate


def worker(turnstile, inside, leave):
    with turnstile:
        inside.append(gevent.getcurrent())
        leave.wait()


def test_as_many_as_its_width_in_order_of_arrival(monkeypatch):
    monkeypatch.setattr(gate, "PATIENCE_SECONDS", 60)
    turnstile, inside = Gate(lambda: 2), []
    leave = [Event() for _ in range(5)]
    workers = [gevent.spawn(worker, turnstile, inside, event) for event in leave]
    gevent.idle()
    assert inside == workers[:2]
    for number in range(3):
        leave[number].set()
        workers[number].join()
        gevent.idle()
        assert inside == workers[: 3 + number]
    for event in leave:
        event.set()
    gevent.joinall(workers)
    assert turnstile._inside == 0


def test_a_wider_gate_lets_more_in_at_the_next_turn(monkeypatch):
    monkeypatch.setattr(gate, "PATIENCE_SECONDS", 60)
    width, inside, leave = [1], [], Event()
    first = Event()
    turnstile = Gate(lambda: width[0])
    workers = [gevent.spawn(worker, turnstile, inside, first)]
    workers += [gevent.spawn(worker, turnstile, inside, leave) for _ in range(3)]
    gevent.idle()
    assert len(inside) == 1
    width[0] = 3
    first.set()
    workers[0].join()
    gevent.idle()
    assert len(inside) == 4
    leave.set()
    gevent.joinall(workers)


def test_work_that_hangs_does_not_hold_up_the_rest(monkeypatch):
    monkeypatch.setattr(gate, "PATIENCE_SECONDS", 0.01)
    turnstile, inside, leave = Gate(lambda: 1), [], Event()
    workers = [gevent.spawn(worker, turnstile, inside, leave) for _ in range(4)]
    with gevent.Timeout(60):
        while len(inside) < 4:
            gevent.sleep(0.001)
    leave.set()
    gevent.joinall(workers)
    assert turnstile._inside == 0


def test_whoever_gives_up_waiting_takes_no_place(monkeypatch):
    monkeypatch.setattr(gate, "PATIENCE_SECONDS", 60)
    turnstile, inside, leave = Gate(lambda: 1), [], Event()
    first, second, third = (gevent.spawn(worker, turnstile, inside, leave) for _ in range(3))
    gevent.idle()
    second.kill()
    leave.set()
    gevent.joinall([first, third])
    assert inside == [first, third] and turnstile._inside == 0
    with pytest.raises(ZeroDivisionError), turnstile:
        raise ZeroDivisionError
    assert turnstile._inside == 0
