"""Questions to processes: who may ask, what comes back, and what bad questions and dead processes do."""

import json
import os
import socket
import stat
import time

import gevent
import pytest

from mailsrv import control
from mailsrv.control import Control, Misasked, Reply, ask, ask_all


@pytest.fixture
def one(tmp_path):
    """A process that answers, and the path of its socket."""
    made = Control(str(tmp_path), "worker-0")
    made.start()
    yield made, f"{tmp_path}/worker-0-{os.getpid()}.ctl"
    made.close()


def talk(path, data):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(60)
        sock.connect(path)
        sock.sendall(data)
        return json.loads(sock.makefile().readline())


def test_a_registered_question_is_answered_and_nobody_else_may_ask(one, tmp_path):
    server, path = one
    server.answer("sum", lambda question: {"sum": sum(question["of"])})
    assert ask(path, "sum", of=[1, 2, 3]) == {"sum": 6}
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert ask_all(str(tmp_path), "ping") == [Reply("worker-0", os.getpid(), "pong")]


@pytest.mark.parametrize("line", [b"\n", b"{\n", b"[1]\n", b'{"ask": "nothing"}\n', b'{"ask": ["x"]}\n', b"\xff\xfe\n"])
def test_bad_questions_are_told_so_and_end_nothing(one, line):
    _, path = one
    assert set(talk(path, line)) == {"error"}
    assert ask(path, "ping") == "pong"


def test_a_question_without_end_is_dropped(one):
    _, path = one
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(60)
        sock.connect(path)
        try:
            for _ in range(100):
                sock.sendall(b"x" * control.REQUEST_BYTES)
            assert sock.recv(1) == b""
        except (BrokenPipeError, ConnectionResetError):
            pass
    assert ask(path, "ping") == "pong"


def test_refusals_and_bugs_reach_who_asks(one, events):
    server, path = one

    def refuse(question):
        raise Misasked("No such user")

    server.answer("refuse", refuse)
    server.answer("bug", lambda question: 1 / 0)
    with pytest.raises(Misasked, match="No such user"):
        ask(path, "refuse")
    with pytest.raises(Misasked, match="ZeroDivisionError"):
        ask(path, "bug")
    assert [event for event, _ in events if event == "control question failed"]


def test_rows_are_sent_in_slices_while_others_go_on(one):
    server, path = one
    server.answer("many", lambda question: ({"n": n, "text": "x" * 100} for n in range(20_000)))
    server.answer("none", lambda question: iter(()))
    longest, before = 0.0, time.monotonic()
    asking = gevent.spawn(ask, path, "many")
    while not asking.ready():
        gevent.sleep(0)
        longest, before = max(longest, time.monotonic() - before), time.monotonic()
    assert [row["n"] for row in asking.get()] == list(range(20_000))
    assert longest < 1
    assert ask(path, "none") == []


def test_who_says_nothing_is_not_waited_for_and_who_was_killed_is_forgotten(one, tmp_path):
    hung = socket.socket(socket.AF_UNIX)
    hung.bind(f"{tmp_path}/worker-1-{os.getpid()}.ctl")
    hung.listen()
    gone = socket.socket(socket.AF_UNIX)
    gone.bind(f"{tmp_path}/worker-2-4194305.ctl")  # above the largest pid there is
    gone.close()
    began = time.monotonic()
    replies = ask_all(str(tmp_path), "ping", seconds=0.3)
    assert time.monotonic() - began < 5
    assert replies[0] == Reply("worker-0", os.getpid(), "pong")
    assert (replies[1].process, replies[1].answer, bool(replies[1].error)) == ("worker-1", None, True)
    assert len(replies) == 2
    assert not os.path.exists(f"{tmp_path}/worker-2-4194305.ctl")
    hung.close()


def test_every_process_of_a_server_answers(daemon):
    server = daemon(**{"server.workers": 2})
    run_dir = server.settings["server.run_dir"]
    gevent.sleep(0)
    deadline = time.monotonic() + 60
    while len(replies := ask_all(run_dir, "ping")) < 3:
        assert time.monotonic() < deadline
        gevent.sleep(0.05)
    assert [(reply.process, reply.answer) for reply in replies] == [
        ("queue", "pong"), ("worker-0", "pong"), ("worker-1", "pong"),
    ]  # fmt: skip
    assert sorted(reply.pid for reply in replies if reply.process != "queue") == sorted(server.workers())
    assert server.stop() == 0
    assert control.processes(run_dir) == []
