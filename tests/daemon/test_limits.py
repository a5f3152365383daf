"""Limits of a real server: they hold over all its workers, say what to do, and are forgiven at once."""

import base64
import json
import re
import smtplib
import socket
import threading
from contextlib import closing

import pytest

from mailsrv.mail.throttle import Limits, Throttle
from tests.conftest import PASSWORD
from tests.daemon.conftest import SECONDS, until

OPEN = {"limits.trusted_networks": []}


def submission(server):
    client = smtplib.SMTP_SSL("localhost", server.ports["submissions"], context=server.tls)
    client.ehlo()
    return client


def test_s33_a_user_has_so_many_connections_over_protocols_and_workers(daemon, imap):
    server = daemon(**{"server.workers": 2, "limits.connections_per_user": 4})
    held = [imap(server.connect("imap")) for _ in range(3)]
    with submission(server) as sender:
        sender.login("ann@example.com", PASSWORD)
        for _ in range(4):  # whichever worker takes it
            over = imap(server.connect("imap"), None)
            tag = over.send(f'LOGIN ann@example.com "{PASSWORD}"').encode()
            answer = over.until(tag)[-1]
            assert answer.startswith(tag + b" NO [LIMIT] ann@example.com has 4 connections, the most allowed; close ")
            over.close()
        with submission(server) as second, pytest.raises(smtplib.SMTPAuthenticationError) as refused:
            second.login("ann@example.com", PASSWORD)
        assert refused.value.smtp_code == 454
        assert b"has 4 connections" in refused.value.smtp_error
        assert imap(server.connect("imap"), "bo").ok("NOOP") == []  # others have their own
    held[0].ok("LOGOUT")

    def room():
        client = imap(server.connect("imap"), None)
        tag = client.send(f'LOGIN ann@example.com "{PASSWORD}"').encode()
        return client.until(tag)[-1].startswith(tag + b" OK")

    assert until(room, "a connection that ended makes room")


def test_s33_an_address_has_so_many_connections_over_all_workers(daemon):
    server = daemon(**{"server.workers": 2, "limits.connections_per_address": 6, **OPEN})
    until(lambda: _held(server, 6), "six at once")
    server = server.command("status")
    assert server.returncode == 0


def _held(server, count):
    socks = [server.connect("imap") for _ in range(count + 6)]
    try:
        greetings = [sock.recv(200) for sock in socks]
    finally:
        for sock in socks:
            sock.close()
    greeted = [text for text in greetings if text.startswith(b"* OK ")]
    refused = [text for text in greetings if not text.startswith(b"* OK ")]
    assert all(
        text == b"* BYE [LIMIT] Your address has 6 connections, the most allowed; try again when some are closed\r\n"
        for text in refused
    ), refused
    assert len(greeted) <= count  # never over the limit; fewer while the last ones are closing
    return len(greeted) == count


def test_by_default_loopback_may_have_more_connections_than_others(daemon):
    server = daemon(**{"limits.connections_per_address": 5})
    socks = [server.connect("imap") for _ in range(20)]
    assert all(sock.recv(200).startswith(b"* OK ") for sock in socks)
    for sock in socks:
        sock.close()


def fail_at_once(server, passwords, user="ann@example.com"):
    """One wrong login for each password, on connections of their own; the answers."""
    answers = []

    def attempt(password):
        with server.connect("imap") as sock, sock.makefile("rb") as file:
            file.readline()
            sock.sendall(f'a LOGIN {user} "{password}"\r\n'.encode())
            answers.append(file.readline())

    threads = [threading.Thread(target=attempt, args=(password,)) for password in passwords]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    return answers


def test_s20_pauses_hold_over_workers_protocols_and_restarts_until_forgiven(daemon, imap):
    server = daemon(**{"server.workers": 2, **OPEN})
    assert json.loads(server.command("limits", "list", "--json").stdout) == []
    fail_at_once(server, [f"guess {number}" for number in range(10)], "nobody@example.com")
    fail_at_once(server, ["guess"], "somebody@example.com")
    rows = json.loads(server.command("limits", "list", "--json").stdout)
    (row,) = [row for row in rows if row["who"] == "127.0.0.0/24"]
    assert row["kind"] == "network" and row["failures"] > 3
    with closing(Throttle(server.settings.throttle_path, Limits())) as throttle:  # as much again, without the waiting
        for number in range(8):
            throttle.failed("nobody@example.com", "127.0.0.1", f"guess after guess {number}")
    (answer,) = fail_at_once(server, [PASSWORD])
    assert answer.startswith(b"a NO [UNAVAILABLE] Too many wrong passwords from your network. Wait "), answer
    with submission(server) as client, pytest.raises(smtplib.SMTPAuthenticationError) as refused:
        client.login("ann@example.com", PASSWORD)
    assert refused.value.smtp_code == 454
    assert b"4.7.0 Too many wrong passwords from your network. Wait " in refused.value.smtp_error
    text = server.command("limits", "list").stdout
    assert text.splitlines()[0].split() == ["KIND", "WHO", "FAILURES", "WAIT", "SECONDS", "LAST"]
    assert server.stop() == 0
    server.start()
    (answer,) = fail_at_once(server, [PASSWORD])
    assert answer.startswith(b"a NO [UNAVAILABLE] "), answer
    assert server.command("limits", "clear").returncode == 1  # whom?
    cleared = server.command("limits", "clear", "127.0.0.1")
    assert (cleared.returncode, cleared.stderr) == (0, "1 entries forgotten\n")
    imap(server.connect("imap")).ok("NOOP")
    assert server.command("limits", "clear", "--all").returncode == 0
    assert json.loads(server.command("limits", "list", "--json").stdout) == []


def test_s20_an_old_telephone_locks_nobody_out(daemon, imap):
    server = daemon(**{"server.workers": 2, **OPEN})
    assert all(b" NO [AUTHENTICATIONFAILED] " in text for text in fail_at_once(server, ["the old password"] * 12))
    imap(server.connect("imap")).ok("NOOP")
    until(lambda: server.log.read_text().count(" repeated=") >= 12, "logged")
    log = server.log.read_text()
    assert log.count("repeated=no user=ann@example.com") == 1
    assert log.count("repeated=yes user=ann@example.com") == 11


def rcpt(server, *names):
    """The answers to MAIL and RCPTs on one connection, until it is closed."""
    answers = []
    with socket.create_connection(("127.0.0.1", server.ports["smtp"]), timeout=60) as sock, sock.makefile("rb") as file:
        file.readline()
        for line in ["HELO x", "MAIL FROM:<x@elsewhere.org>", *(f"RCPT TO:<{name}@example.com>" for name in names)]:
            sock.sendall(line.encode() + b"\r\n")
            answers.append(file.readline())
            if answers[-1][:3] in (b"421", b""):
                break
    return answers[1:]


def test_s19_guessing_addresses_ends(serve):
    server = serve(**{"limits.unknown_recipients": 3, **OPEN})
    answers = rcpt(server, "ann", "a", "b", "a", "b", "c", "ann")
    assert [answer[:3] for answer in answers] == [b"250", b"250", *[b"550"] * 5, b"250"]  # the same again is no guess
    answers = rcpt(server, "d", "ann")
    assert [answer[:3] for answer in answers] == [b"250", b"421"]
    assert answers[1].startswith(b"421 4.7.1 Too many unknown recipients from your address. Wait 40 minutes before ")
    answers = rcpt(server)
    assert answers[0].startswith(b"451 4.7.1 Too many unknown recipients from your address. Wait ")
    assert server.server.throttle.clear("127.0.0.1") == 1
    assert [answer[:3] for answer in rcpt(server, "ann")] == [b"250", b"250"]


def test_s19_users_of_ours_may_mistype(serve):
    server = serve(**{"limits.unknown_recipients": 1, **OPEN})
    with smtplib.SMTP_SSL("localhost", server.ports["submissions"], context=server.client_tls) as client:
        client.login("ann@example.com", PASSWORD)
        client.mail("ann@example.com")
        assert [client.rcpt(f"{name}@example.com")[0] for name in ("a", "b", "c", "bo")] == [550, 550, 550, 250]


def test_s33_the_number_of_errors_is_a_setting_of_both_protocols(serve):
    server = serve(**{"limits.errors": 3, "limits.commands_without_mail": 10})
    with server.connect("imap") as sock, sock.makefile("rb") as file:
        file.readline()
        sock.sendall(b"a X\r\na X\r\na X\r\na X\r\n")
        assert file.read().endswith(b"* BYE Too many errors\r\n")
    with server.connect("smtp") as sock, sock.makefile("rb") as file:
        file.readline()
        sock.sendall(b"X\r\nX\r\nX\r\n")
        assert file.read().count(b"\r\n") == 4
    with server.connect("smtp") as sock, sock.makefile("rb") as file:
        file.readline()
        sock.sendall(b"NOOP\r\n" * 11)
        assert file.read().endswith(b"421 4.7.0 mx.example.com Too many commands without a message\r\n")


def test_s16_whoever_does_not_log_in_is_sent_away_whatever_else_is_asked(serve):
    server = serve(**{"imap.login_seconds": 5})
    with server.connect("imap") as sock, sock.makefile("rb") as file:
        file.readline()
        answers = []
        while (line := file.readline()) and not line.startswith(b"* BYE"):
            answers.append(line)
        assert answers == []
        assert line.startswith(b"* BYE Autologout")
    with server.connect("imap") as sock, sock.makefile("rb") as file:
        file.readline()
        sock.settimeout(60)
        answered = 0
        while True:
            sock.sendall(f"a{answered} NOOP\r\n".encode())
            line = file.readline()
            if line.startswith(b"* BYE Autologout"):
                break
            assert line.startswith(b"a"), line
            answered += 1
            threading.Event().wait(0.25)
        assert answered > 5


def test_plain_auth_is_put_off_with_the_time_to_wait(serve):
    server = serve(**OPEN)
    for number in range(8):
        server.server.throttle.failed("ann@example.com", f"10.0.{number}.1", f"guess {number}")
    with smtplib.SMTP_SSL("localhost", server.ports["submissions"], context=server.client_tls) as client:
        client.ehlo()
        plain = base64.b64encode(f"\0ann@example.com\0{PASSWORD}".encode()).decode()
        code, text = client.docmd("AUTH", f"PLAIN {plain}")
        assert code == 454
        answer = rb"4\.7\.0 Too many wrong passwords for this user\. Wait 1?\d seconds before you try again"
        assert re.fullmatch(answer, text), text
