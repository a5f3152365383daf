"""Connections to hosts with several addresses, and the shelf where connections wait."""

import socket
import time

import gevent
import pytest

from mailsrv.net import dial as module
from mailsrv.net.dial import Shelf, Sources, dial, in_turn, is_own, is_usable
from mailsrv.net.stream import ConnectionLost, DeadlineExceeded


@pytest.fixture
def listening():
    """`listening("127.0.0.2")` accepts there; all on one port."""
    sockets = []

    def start(address):
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        sock.bind((address, sockets[0].getsockname()[1] if sockets else 0))
        sock.listen(50)
        sockets.append(sock)
        return sock.getsockname()[1]

    yield start
    for sock in sockets:
        sock.close()


@pytest.fixture
def hanging(monkeypatch):
    """`hanging.add("127.0.0.9")`: connections there are never answered."""
    addresses = set()
    real = module._connect

    def connect(address, port, seconds, sources):
        if address in addresses:
            gevent.sleep(max(0.0, seconds))
            raise DeadlineExceeded("no answer")
        return real(address, port, seconds, sources)

    monkeypatch.setattr(module, "_connect", connect)
    return addresses


def seconds_of(addresses, port):
    """Until there is a connection to the last of these addresses."""
    begun = time.monotonic()
    sock, address = dial(addresses, port, 10)
    took = time.monotonic() - begun
    sock.close()
    assert address == addresses[-1]
    return took


def test_families_take_turns():
    assert in_turn(["1.1.1.1", "2.2.2.2", "::1", "::2", "::3"]) == ["::1", "1.1.1.1", "::2", "2.2.2.2", "::3"]
    assert in_turn(["1.1.1.1", "2.2.2.2"]) == ["1.1.1.1", "2.2.2.2"]


def test_a_broken_ipv6_costs_a_quarter_of_a_second(listening, hanging):
    port = listening("127.0.0.2")
    hanging.add("::1")
    took = [seconds_of(["::1", "127.0.0.2"], port) for _ in range(3)]
    assert 0.2 < min(took) < 3  # the machine may hold one of them up


def test_a_refused_address_costs_nothing(listening):
    port = listening("127.0.0.2")
    assert min(seconds_of(["127.0.0.8", "127.0.0.9", "127.0.0.2"], port) for _ in range(10)) < 0.24


def test_nobody_answers(listening, hanging):
    port = listening("127.0.0.2")
    hanging |= {"127.0.0.8", "::1"}
    with pytest.raises((DeadlineExceeded, ConnectionLost)):
        dial(["127.0.0.8", "::1"], port, 0.5)
    with pytest.raises(ConnectionLost):
        dial(["127.0.0.9"], port, 5)
    with pytest.raises(ConnectionLost):
        dial([], port, 5)


def test_a_source_address_is_used(listening):
    port = listening("127.0.0.2")
    sock, _ = dial(["127.0.0.2"], port, 5, Sources("127.0.0.77"))
    assert sock.getsockname()[0] == "127.0.0.77"
    sock.close()
    with pytest.raises(ConnectionLost):
        dial(["127.0.0.2"], port, 5, Sources("203.0.113.1"))


def test_which_addresses_are_our_own():
    assert is_own("127.0.0.1") and is_own("127.9.9.9") and is_own("0.0.0.0")
    assert not is_own("203.0.113.1") and not is_own("2001:db8::1")
    assert is_usable("10.0.0.1") and not is_usable("224.0.0.1") and not is_usable("0.0.0.0") and not is_usable("::")


class Thing:
    def __init__(self):
        self.usable, self.closed = True, False

    def close(self):
        self.closed = True


def test_a_shelf_gives_back_what_was_put_there_last_and_still_works():
    shelf = Shelf(10, 5)
    things = [Thing() for _ in range(3)]
    for thing in things:
        shelf.put("a", thing)
    things[2].usable = False
    assert shelf.take("b") is None
    assert shelf.take("a") is things[1] and things[2].closed
    assert len(shelf) == 1
    shelf.close()
    assert things[0].closed and len(shelf) == 0 and shelf.take("a") is None


def test_a_shelf_is_bounded_and_empties_itself():
    shelf = Shelf(0.1, 2)
    things = [Thing() for _ in range(3)]
    for thing in things:
        shelf.put("a", thing)
    assert [thing.closed for thing in things] == [False, False, True]
    with gevent.Timeout(60):
        while len(shelf):
            gevent.sleep(0.01)
    assert all(thing.closed for thing in things)
