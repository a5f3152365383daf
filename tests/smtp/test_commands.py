"""The dialogue: greeting, EHLO, each command in and out of order, replies with their enhanced codes, groups of
commands.
"""

import re
import smtplib
import socket
from datetime import UTC, datetime, timedelta

import pytest

ENHANCED = re.compile(rb"([245])\d\d[ -]([245])\.\d{1,3}\.\d{1,3} \S")


def test_f05_greeting_names_the_host(serving, dial):
    client = dial(serving, hello=False)
    client.sock.close()
    with serving.connect("smtp") as sock:
        assert sock.recv(100) == b"220 mx.example.com ESMTP mailsrv\r\n"


CLEAR = "PIPELINING|SIZE 52428800|8BITMIME|SMTPUTF8|DSN|ENHANCEDSTATUSCODES"
LATER = "FUTURERELEASE 2592000 <latest>"


@pytest.mark.parametrize(
    ("service", "tls", "keywords"),
    [
        ("smtp", False, f"{CLEAR}|STARTTLS"),
        ("smtp", True, f"{CLEAR}|REQUIRETLS"),
        ("submission", False, f"{CLEAR}|{LATER}|STARTTLS"),
        ("submission", True, f"{CLEAR}|REQUIRETLS|{LATER}|AUTH PLAIN LOGIN"),
        ("submissions", False, f"{CLEAR}|REQUIRETLS|{LATER}|AUTH PLAIN LOGIN"),
    ],
)
def test_s32_ehlo_offers_what_is_possible_now(serving, dial, service, tls, keywords):
    client = dial(serving, service, tls=tls)
    answer = client.say("EHLO client.example.net").decode().split("\n")
    assert answer[0] == "250-mx.example.com greets client.example.net"
    told = [line[4:] for line in answer[1:]]
    for at, keyword in enumerate(told):
        if keyword.startswith("FUTURERELEASE "):  # RFC 4865 3: the longest wait, and the moment that makes it now
            seconds, latest = keyword.split()[1:]
            ahead = datetime.fromisoformat(latest) - datetime.now(UTC)
            assert timedelta(seconds=int(seconds) - 60) < ahead <= timedelta(seconds=int(seconds))
            told[at] = f"FUTURERELEASE {seconds} <latest>"
    assert told == keywords.split("|")


def test_helo_is_one_line(serving, dial):
    client = dial(serving, hello=False)
    assert client.say("HELO client.example.net") == b"250 mx.example.com"


READY = ["EHLO c"]
MAIL = [*READY, "MAIL FROM:<x@elsewhere.org>"]
RCPT = [*MAIL, "RCPT TO:<ann@example.com>"]


@pytest.mark.parametrize(
    ("before", "command", "expected"),
    [
        ([], "MAIL FROM:<x@elsewhere.org>", "503 5.5.1"),
        ([], "RCPT TO:<ann@example.com>", "503 5.5.1"),
        ([], "DATA", "503 5.5.1"),
        ([], "AUTH PLAIN", "503 5.5.1"),
        ([], "RSET", "250 2.0.0"),
        ([], "NOOP", "250 2.0.0"),
        ([], "NOOP anything at all", "250 2.0.0"),
        ([], "VRFY ann", "252 2.5.0"),
        ([], "EXPN staff", "502 5.5.1"),
        ([], "HELP", "214 2.0.0"),
        ([], "QUIT", "221 2.0.0"),
        ([], "quit", "221 2.0.0"),
        ([], "HELO", "501 5.5.4"),
        ([], "EHLO", "501 5.5.4"),
        ([], "EHLO two words", "501 5.5.4"),
        ([], "", "500 5.5.2"),
        ([], " NOOP", "500 5.5.2"),
        ([], "MAILFROM:<x@elsewhere.org>", "500 5.5.2"),
        ([], "XCLIENT ADDR=192.0.2.1", "500 5.5.1"),
        ([], "BDAT 5 LAST", "500 5.5.1"),
        ([], "STARTTLS now", "501 5.5.4"),
        (READY, "RCPT TO:<ann@example.com>", "503 5.5.1"),
        (READY, "DATA", "503 5.5.1"),
        (READY, "AUTH PLAIN", "502 5.5.1"),
        (READY, "MAIL", "501 5.5.4"),
        (READY, "MAIL x@elsewhere.org", "501 5.5.4"),
        (READY, "MAIL FROM:x@elsewhere.org", "501 5.5.4"),
        (READY, "MAIL FROM:<x@elsewhere.org", "501 5.5.4"),
        (READY, "MAIL FROM:<x>", "501 5.5.4"),
        (READY, "MAIL FROM:<x@elsewhere.org>SIZE=1", "501 5.5.4"),
        (READY, "MAIL FROM:<x@elsewhere.org> SIZE=-1", "501 5.5.4"),
        (READY, "MAIL FROM:<x@elsewhere.org> SIZE=1 SIZE=1", "501 5.5.4"),
        (READY, "MAIL FROM:<x@elsewhere.org> BODY=BINARYMIME", "555 5.5.4"),
        (READY, "MAIL FROM:<x@elsewhere.org> RET=FULL ENVID=QQ314159", "250 2.1.0"),
        (READY, "MAIL FROM:<x@elsewhere.org> RET=SOME", "501 5.5.4"),
        (READY, "MAIL FROM:<x@elsewhere.org> RET", "501 5.5.4"),
        (READY, "MAIL FROM:<x@elsewhere.org> ENVID=", "501 5.5.4"),
        (READY, "MAIL FROM:<x@elsewhere.org> ENVID=a+0D+0Ab", "501 5.5.4"),
        (READY, "MAIL FROM:<x@elsewhere.org> REQUIRETLS", "555 5.5.4"),  # in clear it means nothing (RFC 8689 2)
        (READY, "MAIL FROM:<x@elsewhere.org> NOTIFY=NEVER", "555 5.5.4"),
        (READY, "mail from:<x@elsewhere.org>", "250 2.1.0"),
        (READY, "MAIL FROM: <x@elsewhere.org>", "250 2.1.0"),
        (READY, "MAIL FROM:<>", "250 2.1.0"),
        (READY, "MAIL FROM:<x@elsewhere.org> SIZE=1000 BODY=8BITMIME SMTPUTF8", "250 2.1.0"),
        (READY, "MAIL FROM:<x@elsewhere.org> AUTH=<>", "250 2.1.0"),
        (MAIL, "MAIL FROM:<x@elsewhere.org>", "503 5.5.1"),
        (MAIL, "DATA", "503 5.5.1"),
        (MAIL, "AUTH PLAIN", "503 5.5.1"),
        (MAIL, "RCPT", "501 5.5.4"),
        (MAIL, "RCPT TO:<>", "501 5.5.4"),
        (MAIL, "RCPT TO:ann@example.com", "501 5.5.4"),
        (MAIL, "RCPT TO:<ann@example.com> NOTIFY=NEVER", "250 2.1.5"),
        (MAIL, "RCPT TO:<ann@example.com> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;Ann+2Bx@example.com", "250 2.1.5"),
        (MAIL, "RCPT TO:<ann@example.com> NOTIFY=NEVER,DELAY", "501 5.5.4"),
        (MAIL, "RCPT TO:<ann@example.com> NOTIFY=", "501 5.5.4"),
        (MAIL, "RCPT TO:<ann@example.com> ORCPT=ann@example.com", "501 5.5.4"),
        (MAIL, "RCPT TO:<ann@example.com> ORCPT=rfc822;ann+0Abcc", "501 5.5.4"),
        (MAIL, "RCPT TO:<ann@example.com> SIZE=1", "555 5.5.4"),
        (MAIL, "RCPT TO:<ann@example.com>", "250 2.1.5"),
        (MAIL, "rcpt to:<ANN@Example.COM>", "250 2.1.5"),
        (RCPT, "MAIL FROM:<x@elsewhere.org>", "503 5.5.1"),
        (RCPT, "RCPT TO:<bo@example.com>", "250 2.1.5"),
        (RCPT, "DATA now", "501 5.5.4"),
        (RCPT, "VRFY ann", "252 2.5.0"),
        (RCPT, "DATA", "354 "),
        ([*RCPT, "RSET"], "RCPT TO:<ann@example.com>", "503 5.5.1"),
        ([*RCPT, "RSET"], "MAIL FROM:<x@elsewhere.org>", "250 2.1.0"),
        ([*RCPT, "EHLO c"], "DATA", "503 5.5.1"),
        ([*RCPT, "HELO c"], "DATA", "503 5.5.1"),
        ([*RCPT, "EHLO two words"], "DATA", "354 "),  # refused, so nothing was reset
        ([*RCPT, "NOOP"], "DATA", "354 "),
        ([*RCPT, "RCPT TO:<nobody@example.com>"], "DATA", "354 "),
        ([*MAIL, "RCPT TO:<nobody@example.com>"], "DATA", "503 5.5.1"),
    ],
)
def test_f05_each_command_where_it_may_come(serving, dial, before, command, expected):
    client = dial(serving, hello=False)
    for line in before:
        client.say(line)
    answer = client.say(command)
    assert answer.decode().startswith(expected)
    if not answer.startswith(b"354"):
        found = ENHANCED.match(answer)
        assert found and found[1] == found[2]  # RFC 3463: the class agrees with the reply code


def test_every_reply_but_the_excepted_has_an_enhanced_code(serving, dial):
    """RFC 2034 4: every 2xx, 4xx, 5xx reply but those to the greeting, HELO and EHLO."""
    client = dial(serving, "submissions")
    commands = [
        "NOOP", "HELP", "VRFY x", "EXPN x", "NONSENSE", "RSET", "DATA", "AUTH NTLM", "STARTTLS", "MAIL FROM:<a@b.c>",
        "RCPT TO:<a@b.c>", "\x07", "é", "AUTH PLAIN !!!", "QUIT",
    ]  # fmt: skip
    for command in commands:
        answer = client.say(command)
        found = ENHANCED.match(answer)
        assert found and found[1] == found[2], answer


def test_quit_ends_the_connection(serving, dial):
    client = dial(serving)
    client.send(b"QUIT\r\n")
    assert client.rest() == b"221 2.0.0 mx.example.com closing connection\r\n"


def test_nothing_after_quit_is_executed(serving, dial, traces):
    client = dial(serving)
    client.send(b"QUIT\r\nMAIL FROM:<x@elsewhere.org>\r\nRCPT TO:<ann@example.com>\r\nDATA\r\n")
    assert client.rest() == b"221 2.0.0 mx.example.com closing connection\r\n"
    assert traces(serving) == []


def test_a_pipelined_group_is_answered_in_one_write(serving, pair):
    client, _ = pair(serving, kind=socket.SOCK_SEQPACKET)  # each write arrives by itself
    client.reply()
    client.say("EHLO c")
    client.send(b"MAIL FROM:<x@elsewhere.org>\r\nRCPT TO:<ann@example.com>\r\nRCPT TO:<nobody@example.com>\r\nDATA\r\n")
    data = client.sock.recv(65536)
    assert [line[:3] for line in data.split(b"\r\n")] == [b"250", b"250", b"550", b"354", b""]


def test_a_group_cut_anywhere_gives_the_same_replies(serving, dial, inbox):
    group = b"MAIL FROM:<x@elsewhere.org>\r\nRCPT TO:<ann@example.com>\r\nDATA\r\n"
    client = dial(serving)
    for cut in range(1, len(group)):
        client.send(group[:cut])
        client.send(group[cut:])
        assert [client.reply()[:9] for _ in range(2)] == [b"250 2.1.0", b"250 2.1.5"]
        assert client.reply().startswith(b"354 ")
        assert client.say(b"Subject: x\r\n\r\nt\r\n.").startswith(b"250 2.0.0 ")
    assert len(inbox(serving, "ann")) == len(group) - 1


def test_several_messages_on_one_connection(serving, dial, inbox):
    client = dial(serving)
    for number in range(3):
        client.begin("ann@example.com")
        assert client.say(f"Subject: {number}\r\n\r\nText.\r\n.").startswith(b"250 2.0.0 Accepted as ")
    bodies = inbox(serving, "ann")
    assert sorted(body.split(b"Subject: ")[1][:1] for body in bodies) == [b"0", b"1", b"2"]


def test_another_programs_client_sends(serving, inbox):
    with smtplib.SMTP("127.0.0.1", serving.ports["smtp"]) as client:
        client.starttls(context=serving.client_tls)
        client.ehlo()
        text = "Subject: Grüße\r\n\r\n.dot\r\n..dots\r\nlast\r\n".encode()
        refused = client.sendmail(
            "x@elsewhere.org", ["ann@example.com", "nobody@example.com"], text, mail_options=["BODY=8BITMIME"]
        )
    assert list(refused) == ["nobody@example.com"]
    assert inbox(serving, "ann")[0].endswith(text)
