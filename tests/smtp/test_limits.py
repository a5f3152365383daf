"""Limits and deadlines: long lines, odd octets, sizes, counts, loops, slow and silent clients, shutdown."""

import gc
import socket
import time

import gevent
import pytest

from mailsrv import log
from mailsrv.mail.intake import Intake
from mailsrv.smtp.session import Session


@pytest.fixture
def talk(serving, pair):
    """A greeted client of a port 25 session with settings of its own."""

    def start(**settings):
        client, _ = pair(serving, **settings)
        client.reply()
        client.say("EHLO c")
        return client

    return start


# ---------------------------------------------------------------- lines (S4, S5)


@pytest.mark.parametrize(
    ("command", "octets", "code"),
    [
        ("NOOP ", 512, "250"),
        ("NOOP ", 513, "500"),
        ("VRFY ", 2000, "500"),
        ("NOOP ", 12_000, "500"),
        ("NOOP ", 100_000, "500"),
        ("MAIL FROM:<x@elsewhere.org> ", 2049, "500"),
    ],
)
def test_s04_command_lines_have_a_length(serving, dial, command, octets, code):
    client = dial(serving)
    line = command + "x" * (octets - 2 - len(command))  # RFC 5321 4.5.3.1.4 counts the CRLF
    assert client.say(line).decode().startswith(code)
    assert client.say("NOOP") == b"250 2.0.0 Ok"  # what was too long is not read as further commands


def test_s04_a_line_without_end_ends_the_connection(serving, dial):
    client = dial(serving)
    block = b"x" * 65536
    with pytest.raises(OSError):
        for _ in range(200):
            client.send(block)


@pytest.mark.parametrize(
    ("local", "domain", "code"),
    [
        (64, "example.com", "550 5.1.1"),
        (65, "example.com", "501"),
        (1, ".".join(["a" * 60] * 4) + ".example.com", "501"),  # the path is over 256
        (1, "a" * 64 + ".example.com", "501"),
        (1, "a" * 63 + ".example.com", "550 5.7.1"),
    ],
)
def test_s04_parts_of_an_address_have_a_length(serving, dial, local, domain, code):
    client = dial(serving)
    client.say("MAIL FROM:<x@elsewhere.org>")
    assert client.say(f"RCPT TO:<{'l' * local}@{domain}>").decode().startswith(code)


@pytest.mark.parametrize("octet", [*range(10), 11, 12, *range(14, 32), 127])
def test_s05_control_characters_in_commands_are_errors(talk, octet):
    client = talk()
    for line in (b"NOOP %c", b"%cNOOP", b"MAIL FROM:<x%c@elsewhere.org>", b"EHLO a%cb"):
        assert client.say(line % octet)[:3] in (b"500", b"501")
    assert client.say("RCPT TO:<ann@example.com>").startswith(b"503 ")


@pytest.mark.parametrize("line", [b"NOOP \xff", b"MAIL FROM:<\xc3\x28@elsewhere.org>", b"\xe9HLO x", b"\x80" * 500])
def test_s05_octets_that_are_no_utf8_are_errors(talk, line):
    assert talk().say(line).startswith(b"500 ")


def test_s12_utf8_addresses_need_smtputf8(serving, talk, inbox):
    client = talk()
    assert client.say("MAIL FROM:<jürgen@elsewhere.org>").startswith(b"501 ")
    assert client.say("MAIL FROM:<jürgen@elsewhere.org> SMTPUTF8").startswith(b"250 ")
    assert client.say("RCPT TO:<ann@example.com>", "DATA", "Subject: Grüße\r\n\r\n.").startswith(b"250 ")
    (text,) = inbox(serving, "ann")
    assert text.startswith("Return-Path: <jürgen@elsewhere.org>\r\n".encode())
    assert "Subject: Grüße\r\n".encode() in text
    client.say("MAIL FROM:<x@elsewhere.org>")
    assert client.say("RCPT TO:<bö@example.com>").startswith(b"501 ")


def test_s12_raw_8bit_headers_are_kept(serving, talk, inbox):
    client = talk()
    client.begin("ann@example.com")
    assert client.say(b"Subject: Gr\xfc\xdfe\r\n\r\n.").startswith(b"250 ")
    assert b"Subject: Gr\xfc\xdfe\r\n" in inbox(serving, "ann")[0]


# ---------------------------------------------------------------- S22, S23


def test_s22_no_client_forges_a_line_of_the_log(serve, pair, dial, tmp_path):
    path = tmp_path / "log"
    log.configure(level="debug", file=str(path))
    try:
        serving = serve()
        client, _ = pair(serving)
        client.reply()
        client.say('EHLO x=y"level=error\\', 'MAIL FROM:<"a b\\"=\u2028\u0085"@elsewhere.org> SMTPUTF8')
        client.say("RCPT TO:<nobody\u2028@example.com>", "RCPT TO:<ann@example.com>", "DATA", "S: x\r\n\r\n.")
        submitter, _ = pair(serving, submission=True)
        submitter.reply()
        submitter.say("EHLO c", "AUTH LOGIN", "YQoyMDI2IGVycm9yIGZvcmdlZAp4", "eA==")  # "a\n2026 error forged\nx"
        log.flush()
    finally:
        log.configure()
    raw = path.read_bytes()
    assert raw.isascii()
    lines = raw.decode().splitlines()
    assert raw.count(b"\n") == len(lines)
    assert all(line[10:11] == "T" and line.split()[1] in log.LEVELS for line in lines)
    assert not any(line.split()[1] == "error" or line.startswith("2026 error") for line in lines)
    assert sum(" warning auth-failed rip=192.0.2.7 " in line for line in lines) == 1


@pytest.mark.parametrize(
    ("sender", "path"),
    [
        ('"a b"@elsewhere.org', '"a b"@elsewhere.org'),
        ('"a>b"@elsewhere.org', '"a>b"@elsewhere.org'),
        ('"a\\"b"@elsewhere.org', '"a\\"b"@elsewhere.org'),
        ('"a\\\\"@elsewhere.org', '"a\\\\"@elsewhere.org'),
        ('"plain"@elsewhere.org', "plain@elsewhere.org"),
        ('"a..b"@elsewhere.org', '"a..b"@elsewhere.org'),
        ("x@[192.0.2.1]", "x@[192.0.2.1]"),
        ("x@[IPv6:2001:DB8::1]", "x@[IPv6:2001:db8::1]"),
        ("@relay.example.org:x@elsewhere.org", "x@elsewhere.org"),
    ],
)
def test_s09_s23_return_path_can_be_answered(serving, talk, inbox, sender, path):
    client = talk()
    client.begin("ann@example.com", sender=sender)
    assert client.say("S: x\r\n\r\n.").startswith(b"250 ")
    assert inbox(serving, "ann")[0].split(b"\r\n")[0] == f"Return-Path: <{path}>".encode()


# ---------------------------------------------------------------- size (S17)


def test_s17_declared_size(serve, dial):
    serving = serve(**{"smtp.message_bytes": 2000})
    client = dial(serving)
    assert b"\n250-SIZE 2000\n" in client.say("EHLO c")
    assert client.say("MAIL FROM:<x@elsewhere.org> SIZE=2001").startswith(b"552 5.3.4 ")
    assert client.say("MAIL FROM:<x@elsewhere.org> SIZE=99999999999999999999").startswith(b"552 5.3.4 ")
    assert client.say("MAIL FROM:<x@elsewhere.org> SIZE=2000").startswith(b"250 ")


@pytest.mark.parametrize(("octets", "taken"), [(2000, True), (2001, False), (3000, False), (500_000, False)])
def test_s17_counted_size(serve, dial, inbox, traces, octets, taken):
    serving = serve(**{"smtp.message_bytes": 2000})
    client = dial(serving)
    client.say("MAIL FROM:<x@elsewhere.org> SIZE=10", "RCPT TO:<ann@example.com>", "DATA")
    text = b"S: x\r\n\r\n" + b"y" * (octets - 10) + b"\r\n"
    assert len(text) == octets
    answer = client.say(text + b".")
    if taken:
        assert answer.startswith(b"250 ")
        assert inbox(serving, "ann")[0].endswith(text)
    else:
        assert answer.startswith(b"552 5.3.4 ")
        assert traces(serving) == []
    assert client.say("NOOP") == b"250 2.0.0 Ok"


def test_s17_stuffing_dots_are_not_counted(serve, dial, inbox):
    serving = serve(**{"smtp.message_bytes": 2000})
    client = dial(serving)
    client.begin("ann@example.com")
    text = b"S: x\r\n\r\n" + b".\r\n" * 664
    assert len(text) == 2000
    assert client.say(text.replace(b".\r\n", b"..\r\n") + b".").startswith(b"250 ")
    assert inbox(serving, "ann")[0].endswith(text)


def test_s17_far_too_large_ends_the_connection(serving, talk, traces):
    client = talk(message_bytes=2000)
    client.begin("ann@example.com")
    with pytest.raises(OSError):
        for _ in range(100):
            client.send(b"y" * 65536)
    assert client.rest().startswith(b"552 5.3.4 ")
    assert traces(serving) == []


def test_s33_mail_waits_while_the_disk_is_nearly_full(serving, talk):
    """Below twice the largest message nothing is begun: what is under way can still be written."""
    first = talk()
    first.begin("ann@example.com")  # the directory of all mail is there from now on
    assert first.say("S: x\r\n\r\n.").startswith(b"250 ")
    client = talk(message_bytes=2**59)
    assert client.say("MAIL FROM:<x@elsewhere.org>") == b"452 4.3.1 Insufficient system storage"
    assert client.say("RCPT TO:<ann@example.com>").startswith(b"503 ")


def test_s33_the_disk_is_asked_before_the_first_message_too(tmp_path):
    """The directory of all mail is made with it."""
    intake = Intake(None, None, str(tmp_path / "mail"))
    assert intake.has_room(1)
    assert not intake.has_room(2**60)


# ---------------------------------------------------------------- counts (S33)


def test_s33_recipients_over_the_limit_are_for_the_next_transaction(serving, talk, inbox):
    client = talk(recipients=1, errors=3)
    client.say("MAIL FROM:<x@elsewhere.org>", "RCPT TO:<ann@example.com>")
    for _ in range(10):  # no errors of the client's (RFC 5321 4.5.3.1.10)
        assert client.say("RCPT TO:<bo@example.com>") == b"452 4.5.3 Too many recipients"
    assert client.say("DATA", "S: x\r\n\r\n.").startswith(b"250 ")
    assert (len(inbox(serving, "ann")), len(inbox(serving, "bo"))) == (1, 0)
    client.begin("bo@example.com")


def test_f05_s33_a_hundred_recipients_at_least(serving, talk, inbox, password_hash):
    serving.accounts.add_users([(f"u{number}@example.com", password_hash) for number in range(100)])
    client = talk()
    client.send(
        b"MAIL FROM:<x@elsewhere.org>\r\n"
        + b"".join(b"RCPT TO:<u%d@example.com>\r\n" % number for number in range(100))
    )
    assert {client.reply()[:3] for _ in range(101)} == {b"250"}
    assert client.say("DATA", "S: x\r\n\r\n.").startswith(b"250 ")
    assert all(len(inbox(serving, f"u{number}")) == 1 for number in range(100))


def test_s33_s19_too_many_errors_end_the_connection(serving, talk):
    client = talk(errors=4)
    client.say("MAIL FROM:<x@elsewhere.org>")
    for number in range(3):
        assert client.say(f"RCPT TO:<guess{number}@example.com>").startswith(b"550 ")
    client.send(b"RCPT TO:<guess@example.com>\r\n")
    assert client.rest() == (
        b"550 5.1.1 No such mailbox here\r\n421 4.7.0 mx.example.com Too many errors, closing connection\r\n"
    )


def test_s33_s19_errors_slow_the_session(serving, talk):
    fast, slow = [], []
    for _ in range(3):  # the machine may hold one of them up
        client = talk(errors_delayed=2, failure_delay_seconds=0.4)
        for took in (fast, slow):
            begun = time.monotonic()
            client.say("NONSENSE")
            took.append(time.monotonic() - begun)
    assert min(fast) < 0.15 < min(slow)


@pytest.mark.parametrize("command", ["NOOP", "RSET", "VRFY x", "HELP", "EHLO c", "HELO c"])
def test_s33_commands_that_bring_no_mail_are_counted(serving, talk, command):
    client = talk(idle_commands=5)  # the first EHLO is one
    for _ in range(4):
        assert client.say(command)[:1] == b"2"
    client.begin("ann@example.com")
    assert client.say("S: x\r\n\r\n.").startswith(b"250 ")
    for _ in range(5):
        assert client.say(command)[:1] == b"2"
    client.send(command.encode() + b"\r\n")
    assert client.rest() == b"421 4.7.0 mx.example.com Too many commands without a message\r\n"


def test_s33_an_accepted_message_forgives(serving, talk):
    client = talk(errors=3)
    for _ in range(3):
        client.say("NONSENSE", "NONSENSE")
        client.begin("ann@example.com")
        assert client.say("S: x\r\n\r\n.").startswith(b"250 ")


def test_s33_refused_messages_count_as_errors(serving, talk):
    client = talk(errors=2)
    client.begin("ann@example.com")
    assert client.say("bare\nLF\r\n.").startswith(b"550 ")
    client.begin("ann@example.com")
    client.send(b"bare\nLF\r\n.\r\n")
    assert b"\r\n421 4.7.0 " in client.rest()


# ---------------------------------------------------------------- loops (S11)


@pytest.mark.parametrize(("count", "taken"), [(20, True), (21, False), (500, False)])
def test_s11_received_lines_are_counted(serve, dial, traces, count, taken):
    serving = serve(**{"smtp.hops": 20})
    client = dial(serving)
    client.begin("ann@example.com")
    header = b"Received: from a by b;\r\n\tMon, 1 Jan 2024 00:00:00 +0000\r\n" * (count - 1) + b"RECEIVED : x\r\n"
    header = header.replace(b"RECEIVED :", b"received:")
    answer = client.say(header + b"Subject: x\r\n\r\n.")
    assert answer.startswith(b"250 " if taken else b"554 5.4.6 ")
    assert len(traces(serving)) == int(taken)


@pytest.mark.parametrize("empty", [b"S: x\r\n\r\n", b"\r\nText\r\n\r\n", b"\r\n"])
def test_s11_received_lines_in_the_body_are_not(serve, dial, inbox, empty):
    serving = serve(**{"smtp.hops": 20})
    client = dial(serving)
    client.begin("ann@example.com")
    assert client.say(empty + b"Received: x\r\nDelivered-To: ann@example.com\r\n" * 30 + b".").startswith(b"250 ")


@pytest.mark.parametrize(
    ("field", "taken"),
    [
        (b"Delivered-To: ann@example.com", False),
        (b"delivered-to:  ANN@Example.com  ", False),
        (b"Delivered-To: list@elsewhere.org\r\nDelivered-To: ann@example.com", False),
        (b"Delivered-To: bo@example.com", True),
        (b"Delivered-To: ann@elsewhere.org", True),
        (b"X-Delivered-To: ann@example.com", True),
        (b"Subject: Delivered-To: ann@example.com", True),
    ],
)
def test_s11_a_message_that_was_delivered_here_before(serving, dial, traces, field, taken):
    client = dial(serving)
    client.begin("ann@example.com")
    answer = client.say(b"Received: x\r\n" + field + b"\r\nSubject: x\r\n\r\n.")
    assert answer.startswith(b"250 " if taken else b"554 5.4.6 ")
    assert len(traces(serving)) == int(taken)


# ---------------------------------------------------------------- time (S16)


def test_s16_a_client_that_says_nothing(serving, talk):
    client = talk(command_seconds=0.2)
    assert client.rest() == b"421 4.4.2 mx.example.com Timeout, closing connection\r\n"


def test_s16_a_client_that_never_ends_its_line(serving, talk):
    client = talk(command_seconds=0.2)
    client.send(b"NOO")
    assert client.rest().startswith(b"421 4.4.2 ")


def test_s16_a_client_that_stops_inside_the_text(serving, talk, traces):
    client = talk(command_seconds=1.0)
    client.begin("ann@example.com")
    client.send(b"Subject: x\r\n")
    assert client.rest().startswith(b"421 4.4.2 ")
    assert traces(serving) == []


def test_s16_a_text_that_trickles_has_a_total_deadline(serving, talk, traces):
    client = talk(command_seconds=5.0, data_seconds=0.3)
    client.begin("ann@example.com")
    begun = time.monotonic()
    with gevent.Timeout(30), pytest.raises(OSError):
        while True:  # to a server that counts from each octet for ever
            client.send(b"x")
            gevent.sleep(0.02)
    assert time.monotonic() - begun >= 0.25
    assert client.rest().startswith(b"421 4.4.2 ")
    assert traces(serving) == []


def test_s16_a_client_that_does_not_read(serving, talk):
    client = talk(write_seconds=0.3, idle_commands=10**9)
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.sock.settimeout(60)
    with pytest.raises(ConnectionError):
        while True:  # replies that nobody takes: the server gives up, not its memory
            client.send(b"HELP\r\n" * 1000)


# ---------------------------------------------------------------- the end


def test_stop_ends_an_idle_session_at_once(serving, pair):
    client, session = pair(serving)
    client.reply()
    client.say("EHLO c", "MAIL FROM:<x@elsewhere.org>", "RCPT TO:<ann@example.com>")
    session.stop()
    assert client.rest() == b"421 4.3.2 mx.example.com Shutting down, try again later\r\n"


def test_stop_lets_a_message_finish(serving, pair, inbox):
    client, session = pair(serving)
    client.reply()
    client.say("EHLO c")
    client.begin("ann@example.com")
    client.send(b"Subject: x\r\n\r\n")
    gevent.sleep(0)
    session.stop()
    client.send(b"Text.\r\n.\r\n")
    accepted, farewell, rest = client.rest().split(b"\r\n")
    assert accepted.startswith(b"250 2.0.0 ")
    assert farewell == b"421 4.3.2 mx.example.com Shutting down, try again later"
    assert rest == b""
    assert len(inbox(serving, "ann")) == 1


def test_stop_of_the_whole_server(serving, dial, inbox):
    idle, busy = dial(serving), dial(serving)
    busy.begin("ann@example.com")
    busy.send(b"Subject: x\r\n\r\n")
    serving.server.stop()
    assert idle.rest().startswith(b"421 4.3.2 ")
    busy.send(b"Text.\r\n.\r\n")
    assert busy.rest().startswith(b"250 2.0.0 ")
    assert len(inbox(serving, "ann")) == 1
    with pytest.raises(ConnectionError):
        serving.connect("smtp")


def test_every_session_leaves_nothing_behind(serving):
    """Two hundred short connections, some with half a command: no session stays."""
    for number in range(200):
        sock = serving.connect("smtp")
        if number % 2:
            sock.recv(100)
            sock.sendall(b"EHLO c\r\nMAIL FROM:<" * (number % 4))
        sock.close()
    with gevent.Timeout(60):
        while any(listener.sessions for listener in serving.server.listeners):
            gevent.sleep(0.01)
    gc.collect()
    assert not [one for one in gc.get_objects() if isinstance(one, Session)]


@pytest.mark.parametrize("service", ["smtp", "submissions"])
def test_the_farewell_reaches_a_client_that_reads_only_afterwards(serving, dial, told_the_end, service):
    for _ in range(10):
        client = dial(serving, service, hello=False)
        client.send(b"EHLO c\r\n" + b"NOOP\r\n" * 9000)
        told_the_end(client.sock)
        client.send(b"NOOP\r\n" * 9000)  # 100 KB in all
        assert client.rest() == b"554 5.5.0 Wait for the reply to EHLO\r\n"
        client.close()
