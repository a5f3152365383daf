"""What an administrator sees of a running server, and does to it: status, who, kick, loglevel."""

import json
import os
import signal
import smtplib
import socket
import subprocess
import sys
import time

import pytest

from tests.conftest import PASSWORD
from tests.daemon.conftest import ROOT, SECONDS, until
from tests.daemon.test_processes import deliver, smtp_connection


def answer(server, *words):
    """The JSON a command prints."""
    done = server.command(*words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def alarms_of(found):
    """Without what a busy machine brings about by itself."""
    return [text for text in found["alarms"] if not text.startswith("The event loop is late: ")]


def workers_of(found):
    return [one for one in found["processes"] if one["name"].startswith("worker-")]


def both_workers(server):
    return until(lambda: found if len(workers_of(found := answer(server, "status"))) == 2 else None, "both answer")


def test_status_of_a_server_that_does_not_run(daemon):
    server = daemon()
    assert server.stop() == 0
    shown = server.command("status")
    assert shown.returncode == 3
    assert shown.stdout.startswith("mailsrv is not running\n")
    found = json.loads(server.command("status", "--json").stdout)
    assert (found["running"], found["pid"]) == (False, None)
    refused = server.command("who")
    assert refused.returncode == 1
    assert "No server runs" in refused.stderr


def test_status_adds_up_the_workers(daemon, imap):
    server = daemon(**{"server.workers": 2})
    both_workers(server)
    clients = [imap(server.connect("imaps"), user=user) for user in ("ann", "ann", "ann", "bo")]
    for client in clients:
        client.idle()
    waiting = smtp_connection(server)
    found = until(lambda: now if (now := answer(server, "status"))["idling"] == 4 else None, "four idle")
    assert found["running"] is True
    assert found["pid"] == server.process.pid
    assert [one["name"] for one in workers_of(found)] == ["worker-0", "worker-1"]
    assert sorted(one["pid"] for one in workers_of(found)) == sorted(server.workers())
    assert {(one["name"], one["pid"]) for one in found["processes"]} >= {("supervisor", server.process.pid)}
    assert all(one["memory_bytes"] > 5_000_000 for one in found["processes"])
    assert found["connections"]["imaps"] == 4
    assert found["connections"]["smtp"] == 1
    assert found["users"] == {"ann@example.com": 3, "bo@example.com": 1}
    assert {(one["service"], one["address"]) for one in found["listeners"]} == {
        (name, f"127.0.0.1:{port}") for name, port in server.ports.items()
    }
    assert found["certificates"][0]["file"] == server.settings["tls.certificate"]
    assert found["certificates"][0]["days_left"] > 14
    assert 0 < found["disk"]["free_bytes"] < found["disk"]["total_bytes"]
    assert until(lambda: answer(server, "status")["queue"], "the queue answers")["depth"] == 0
    shown = server.command("status").stdout
    assert "nothing waits" in shown
    assert f"mailsrv is running, pid {server.process.pid}, version " in shown
    assert "ann@example.com 3, bo@example.com 1" in shown
    assert "imaps 4, smtp 1 (4 idling)" in shown
    waiting.close()
    assert server.stop() == 0


def test_push_latencies_of_all_workers_are_seen_whoever_delivered(daemon, imap):
    server = daemon(**{"server.workers": 2})
    both_workers(server)
    clients = [imap(server.connect("imap")) for _ in range(8)]
    for client in clients:
        client.idle()
    for number in range(1, 6):
        deliver(server)
        for client in clients:
            client.until(b"* %d EXISTS" % number)
    processes = {line.split("-")[1] for line in server.log.read_text().split() if line.startswith("session=imap-")}
    found = until(
        lambda: now if (now := answer(server, "status"))["push"]["count"] >= 5 * len(processes) else None, "all told"
    )
    assert 0 < found["push"]["p50_ms"] <= found["push"]["p90_ms"] <= found["push"]["p99_ms"] < 60_000
    assert "told within p50 " in server.command("status").stdout
    assert server.stop() == 0


def test_a_worker_that_hangs_is_named_and_one_that_died_counts_a_restart(daemon):
    server = daemon(**{"server.workers": 2})
    found = both_workers(server)
    hung = workers_of(found)[0]["pid"]
    os.kill(hung, signal.SIGSTOP)
    try:
        shown = server.command("status")
        assert shown.returncode == 0
        assert f"ALARM  worker-0 (pid {hung}) does not answer" in shown.stdout
    finally:
        os.kill(hung, signal.SIGKILL)

    def restarted():
        rows = answer(server, "status")["processes"]
        return [row for row in rows if row["name"] == "worker-0" and row["pid"] != hung and not row["error"]]

    [row] = until(restarted, "a new worker-0")
    assert row["restarts"] == 1
    until(lambda: alarms_of(answer(server, "status")) == [], "no alarm any more")
    assert server.stop() == 0


def test_watch_shows_it_again_and_again(daemon):
    server = daemon()
    command = [sys.executable, "-m", "mailsrv", "status", "--watch", "--seconds", "0.1", "--json"]
    with subprocess.Popen(
        [*command, "--config", server.settings.path],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a suite in the background ignores it
    ) as watching:
        for _ in range(3):
            assert json.loads(watching.stdout.readline())["running"] is True
        watching.send_signal(signal.SIGINT)
        assert watching.wait(SECONDS) == 0


def test_who_shows_every_session(daemon, imap):
    server = daemon()
    one = imap(server.connect("imaps"), mailbox=None)
    one.ok('ID ("name" "Mail\\"er" "version" "7.1" "vendor" "x")')
    one.ok("SELECT Sent")
    one.idle()
    two = imap(server.connect("imap"), user=None)
    three = smtp_connection(server)
    rows = answer(server, "who")
    shown = {row["service"]: row for row in rows}
    assert len(rows) == 3
    first = shown["imaps"]
    assert (first["user"], first["mailbox"], first["state"]) == ("ann@example.com", "Sent", "idling")
    assert (first["client"], first["tls"], first["peer"]) == ('Mail"er 7.1', True, "127.0.0.1")
    assert first["connected_at"] <= first["idling_since"] <= time.time()
    assert (shown["imap"]["user"], shown["imap"]["tls"]) == (None, False)
    assert shown["smtp"]["client"] == "client.test"
    assert len({row["session"] for row in rows}) == 3
    text = server.command("who", "ann@example.com").stdout.splitlines()
    assert text[0].split() == ["SESSION", "SERVICE", "USER", "PEER", "TLS", "MAILBOX", "STATE", "FOR", "CLIENT"]
    assert len(text) == 2
    assert text[1].startswith(first["session"])
    one.done()
    assert answer(server, "who", "imaps")[0]["state"] == "waiting"
    three.close()
    two.close()
    assert server.stop() == 0


@pytest.mark.parametrize("by", ["user", "session", "peer"])
def test_kick_tells_the_client_why_and_ends_the_session(daemon, imap, by):
    server = daemon()
    idler = imap(server.connect("imaps"))
    idler.idle()
    sender = smtplib.SMTP_SSL("localhost", server.ports["submissions"], context=server.tls)
    sender.login("ann@example.com", PASSWORD)
    other = imap(server.connect("imap"), user="bo")
    row = next(row for row in answer(server, "who") if row["service"] == "imaps")
    done = server.command("kick", row[by], "--reason", "a new\r\n* password", "--json")
    assert done.returncode == 0, done.stderr
    kicked = json.loads(done.stdout)
    text = b"Disconnected by the administrator: a new??* password"
    assert idler.until(b"* BYE")[-1] == b"* BYE " + text + b"\r\n"
    assert idler.line() == b""
    if by == "session":
        assert [one["session"] for one in kicked] == [row["session"]]
        assert sender.noop()[0] == 250
        sender.close()
    else:
        assert len(kicked) == (2 if by == "user" else 3)
        code, said = sender.getreply()
        assert code == 421
        assert said.endswith(text)
        with pytest.raises((smtplib.SMTPServerDisconnected, ConnectionError)):
            sender.noop()
        sender.close()
    if by == "peer":
        assert other.until(b"* BYE")
    else:
        other.ok("NOOP")
    until(lambda: "kicked session=" + row["session"] in server.log.read_text(), "logged")
    assert server.stop() == 0


def test_kick_of_nobody_says_so(daemon):
    server = daemon()
    done = server.command("kick", "nobody@example.com")
    assert done.returncode == 1
    assert "no session of nobody@example.com" in done.stderr


def test_kick_ends_a_session_that_is_busy_too(daemon):
    server = daemon()
    sock = smtp_connection(server)
    for line in (b"MAIL FROM:<x@elsewhere.org>", b"RCPT TO:<ann@example.com>", b"DATA"):
        sock.sendall(line + b"\r\n")
        sock.recv(4096)
    [row] = answer(server, "who")
    assert row["state"] == "working"
    answer(server, "kick", row["session"])
    sock.settimeout(SECONDS)
    try:
        assert sock.recv(4096) == b""  # after a while for finishing, which this one does not use
    except ConnectionResetError:
        pass
    sock.close()
    until(lambda: answer(server, "who") == [], "it is gone")
    assert not list(server.maildir("ann").glob("*/1*"))


def test_level_of_the_log_is_set_while_running(daemon):
    server = daemon(**{"server.workers": 2, "log.level": "warning"})
    both_workers(server)
    assert answer(server, "loglevel") == {"level": "warning"}
    assert answer(server, "loglevel", "debug") == {"level": "debug"}
    with socket.create_connection(("127.0.0.1", server.ports["imap"])) as sock:
        sock.recv(100)
        until(lambda: " debug connected session=imap-" in server.log.read_text(), "debug lines")
    assert server.stop() == 0
