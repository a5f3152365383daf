"""Connections accepted: each its session, too many told so, failures of one never those of another."""

import socket
import ssl
import time

import gevent
import pytest
from gevent.event import Event

from mailsrv.net.listener import MOST_EXPLAINED, Admission, Limits, Listener, bind


class Session:
    made = []

    def __init__(self, stream):
        self.stream, self.stopped, self.ended = stream, Event(), False
        Session.made.append(self)

    def run(self):
        try:
            self.stream.write(b"hello\r\n")
            while (line := self.stream.read_line(100)) != b"quit":
                if line == b"fail":
                    raise OSError("broken")
                self.stream.write(line + b"\r\n")
        finally:
            self.stream.close()
            self.ended = True

    def stop(self):
        self.stopped.set()
        self.stream.hang_up()


@pytest.fixture
def listen():
    Session.made = []
    made = []

    def start(**limits):
        admission = Admission(Limits(**limits))
        sock = bind(("127.0.0.1", 0))
        listener = Listener(sock, "test", Session, admission, farewell=lambda reason: b"too many\r\n")
        listener.start()
        made.append(listener)
        return listener, admission, sock.getsockname()

    yield start
    for listener in made:
        listener.stop_accepting()
        listener.stop()
        assert listener.join(time.monotonic() + 60) == 0


def dial(address):
    sock = socket.create_connection(address, timeout=60)
    return sock, sock.makefile("rb")


def wait_until(condition):
    with gevent.Timeout(60):
        while not condition():
            gevent.sleep(0.001)


def test_each_connection_its_session_and_one_that_fails_harms_no_other(listen):
    _, admission, address = listen()
    clients = [dial(address) for _ in range(5)]
    assert [file.readline() for _, file in clients] == [b"hello\r\n"] * 5
    clients[0][0].sendall(b"fail\r\n")
    assert clients[0][1].readline() == b""
    clients[1][0].close()
    clients[1][1].close()
    for sock, file in clients[2:]:
        sock.sendall(b"x\r\n")
        assert file.readline() == b"x\r\n"
    wait_until(lambda: admission.total == 3)
    for sock, file in clients:
        sock.close()
        file.close()
    wait_until(lambda: admission.total == 0 and not admission.tally.mine)
    assert all(session.ended for session in Session.made)


@pytest.mark.parametrize("limits", [{"connections": 2, "per_address": 100}, {"connections": 100, "per_address": 2}])
def test_s19_too_many_are_told_so_and_a_place_that_is_free_again_is_given(listen, limits, events):
    _, admission, address = listen(**limits)
    first, second = dial(address), dial(address)
    assert first[1].readline() == second[1].readline() == b"hello\r\n"
    third = dial(address)
    assert third[1].read() == b"too many\r\n"
    assert "too many connections" in [event for event, _ in events]
    first[0].sendall(b"quit\r\n")
    assert first[1].readline() == b""
    wait_until(lambda: admission.total == 1)
    fourth = dial(address)
    assert fourth[1].readline() == b"hello\r\n"
    for sock, file in (first, second, third, fourth):
        sock.close()
        file.close()


@pytest.fixture
def secured(tls_of, authority):
    """Starts a listener with TLS from the first octet; its admission, and what dials it."""
    made = []

    def start(**limits):
        admission = Admission(Limits(**limits))
        sock, context, client = bind(("127.0.0.1", 0)), tls_of("localhost"), ssl.create_default_context()
        authority.configure_trust(client)
        listener = Listener(
            sock, "imaps", Session, admission, farewell=lambda reason: b"* BYE %b\r\n" % reason.encode(),
            tls_context=lambda: context,
        )  # fmt: skip
        listener.start()
        made.append(listener)

        def dial():
            raw = socket.create_connection(sock.getsockname(), timeout=60)
            secured = client.wrap_socket(raw, server_hostname="localhost")
            return secured, secured.makefile("rb")

        return listener, admission, dial

    yield start
    for listener in made:
        listener.stop_accepting()
        listener.stop()
        assert listener.join(time.monotonic() + 60) == 0


def test_s19_too_many_are_told_so_inside_tls(secured, events):
    _, admission, dial = secured(connections=1)
    first, lines = dial()
    assert lines.readline() == b"hello\r\n"
    over, told = dial()
    assert told.read() == b"* BYE The server has all the connections it can serve; try again in some minutes\r\n"
    assert [fields["told"] for event, fields in events if event == "too many connections"] == [None]
    assert admission.total == 1, "it takes nobody's place"
    for sock in (first, lines, over, told):
        sock.close()
    wait_until(lambda: admission.total == 0 and admission.explaining == 0)


def test_s19_handshakes_for_those_without_a_place_have_bounds(secured, events, monkeypatch):
    monkeypatch.setattr("mailsrv.net.listener.EXPLAINED_A_SECOND", 0.0)
    listener, admission, dial = secured(connections=1)
    first, lines = dial()
    assert lines.readline() == b"hello\r\n"
    address = listener._socket.getsockname()
    silent = [socket.create_connection(address, timeout=60) for _ in range(50)]  # none says anything

    def refused():
        return [fields["told"] for event, fields in events if event == "too many connections"]

    wait_until(lambda: len(refused()) == 50)
    assert refused() == [None] * MOST_EXPLAINED + ["no"] * (50 - MOST_EXPLAINED)
    assert silent[-1].recv(1) == b"", "closed at once"
    assert admission.explaining == MOST_EXPLAINED and admission.total == 1
    lines.close()
    first.close()
    wait_until(lambda: admission.total == 0)
    served, lines = dial()  # whoever has a place is served meanwhile
    assert lines.readline() == b"hello\r\n"
    for sock in (served, lines, *silent):
        sock.close()
    wait_until(lambda: admission.explaining == 0)


def test_stopping_refuses_new_connections_and_asks_the_others_to_end(listen):
    listener, _, address = listen()
    sock, file = dial(address)
    assert file.readline() == b"hello\r\n"
    listener.stop_accepting()
    with pytest.raises(OSError):
        dial(address)
    sock.sendall(b"still\r\n")
    assert file.readline() == b"still\r\n"
    listener.stop()
    assert file.readline() == b"" and Session.made[0].stopped.is_set()
    sock.close()
    file.close()


def test_a_port_in_use_is_an_error_and_leaves_no_socket_open():
    taken = bind(("127.0.0.1", 0))
    with pytest.raises(OSError):
        bind(taken.getsockname())
    taken.close()
