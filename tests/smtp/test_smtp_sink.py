"""The relay against Postfix's smtp-sink, a server not of our making: polite, terse, refusing, breaking off."""

import os
import socket
import subprocess
import time

import pytest

from mailsrv.smtp.routes import Route, Tls
from mailsrv.values import Disposition
from tests.conftest import free_ports
from tests.fakes.world import TEXT, World

SENT, LATER, NEVER = Disposition.SENT, Disposition.LATER, Disposition.NEVER


@pytest.fixture
def world(tmp_path):
    with World(tmp_path) as made:
        yield made


@pytest.fixture
def smtp_sink(world):
    """`smtp_sink("-q", "rcpt")` starts one that a route for everybody leads to."""
    running = []

    def start(*options, protocol="smtp"):
        [port] = free_ports(1)
        user = ["-u", "nobody"] if os.geteuid() == 0 else []
        running.append(subprocess.Popen(["smtp-sink", *user, *options, f"127.0.0.1:{port}", "50"], cwd=world.directory))
        end = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < end, "smtp-sink did not start"
                time.sleep(0.02)
        world.settings["routes"] = (Route("127.0.0.1", port, protocol=protocol, tls=Tls.NONE),)

    yield start
    for process in running:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    "options", [(), ("-e",), ("-p",), ("-8",), ("-a",), ("-F",), ("-T", "1000"), ("-h", "mx.example.org")]
)
@pytest.mark.parametrize("text", [TEXT, TEXT + b"..x\r\n.\r\n" * 100_000], ids=["small", "large"])
def test_it_takes_messages_whatever_it_offers(world, smtp_sink, options, text):
    smtp_sink(*options)
    for _ in range(2):
        outcomes = world.send("bo@a.example", "cy@b.example", text=text)
        assert [(one.disposition, one.code) for one in outcomes] == [(SENT, 250)] * 2


def test_lmtp(world, smtp_sink):
    smtp_sink("-L", protocol="lmtp")
    outcomes = world.send("bo@a.example", "cy@b.example")
    assert [(one.disposition, one.code) for one in outcomes] == [(SENT, 250)] * 2


@pytest.mark.parametrize("command", ["connect", "ehlo", "mail", "rcpt", "data", "."])
@pytest.mark.parametrize(
    ("option", "disposition", "code"), [("-q", LATER, 0), ("-Q", LATER, 421), ("-r", LATER, 450), ("-f", NEVER, 500)]
)
def test_it_breaks_off_or_refuses(world, smtp_sink, command, option, disposition, code):
    smtp_sink(option, command)
    [outcome] = world.send("bo@a.example")
    if option == "-f" and command == "ehlo":
        disposition, code = SENT, 250  # by HELO
    assert (outcome.disposition, outcome.code) == (disposition, code)
    assert outcome.enhanced[0] == {SENT: "2", LATER: "4", NEVER: "5"}[disposition]


def test_a_refusal_in_the_middle_of_the_text(world, smtp_sink):
    smtp_sink("-A", "1")
    [outcome] = world.send("bo@a.example", text=TEXT + (b"x" * 70 + b"\r\n") * 1_000_000)
    assert (outcome.disposition, outcome.code) == (NEVER, 550)
