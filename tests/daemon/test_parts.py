"""Parts: what runs once in the whole server, wherever its processes are."""

import time

import gevent
import pytest

from mailsrv import daemon
from mailsrv.daemon import Server
from tests.conftest import configuration


class Counted:
    """A part that says what becomes of it."""

    def __init__(self, log, server):
        self.log, self.server = log, server

    def start(self):
        self.log.append(("started", self.server))

    def close(self, deadline):
        assert deadline >= time.monotonic() - 1
        self.log.append(("closed", self.server))


def eventually(condition):
    with gevent.Timeout(60):
        while not condition():
            gevent.sleep(0.01)


@pytest.fixture
def servers(tmp_path):
    (tmp_path / "run").mkdir()
    settings = configuration(tmp_path, None, {"server.shutdown_seconds": 1})
    made = [Server(settings, [], None, leads=False, parts=["counted"]) for _ in range(2)]
    yield made


def test_a_part_begins_only_when_nobody_else_has_it(servers, monkeypatch):
    told = []
    monkeypatch.setitem(daemon.PARTS, "counted", lambda server: Counted(told, server))
    first, second = servers
    # Two servers of one process would share a bus socket's name: only their parts are started.
    first.parts[0].start()
    eventually(lambda: told == [("started", first)])
    second.parts[0].start()
    gevent.sleep(4 * daemon.TURN_SECONDS)
    assert told == [("started", first)]
    first.parts[0].close(time.monotonic())
    eventually(lambda: told == [("started", first), ("closed", first), ("started", second)])
    second.parts[0].renew()
    assert told[-2:] == [("closed", second), ("started", second)]
    second.parts[0].close(time.monotonic())
    assert told[-1] == ("closed", second)
    for one in servers:
        one.accounts.close()


def test_a_part_that_cannot_start_is_tried_again(servers, monkeypatch, events):
    told = []

    def make(server):
        if not events or not any(event == "part failed to start" for event, _ in events):
            raise OSError("not now")
        return Counted(told, server)

    monkeypatch.setitem(daemon.PARTS, "counted", make)
    monkeypatch.setattr(daemon, "RETRY_SECONDS", 0.01)
    servers[0].parts[0].start()
    eventually(lambda: told == [("started", servers[0])])
    servers[0].parts[0].close(time.monotonic())
    assert told[-1] == ("closed", servers[0])
    for one in servers:
        one.accounts.close()
