"""One message stays one message (S1): no end of data but CRLF . CRLF, whatever stands in the text, however it is cut,
and nothing that follows another end is ever a command. And those who talk before they may (S3, S7) are sent away.
"""

import base64
import socket

import gevent
import pytest

HEAD = b"From: x@elsewhere.org\r\nSubject: carrier\r\n\r\nText."
SMUGGLED = (
    b"MAIL FROM:<admin@example.com>\r\nRCPT TO:<bo@example.com>\r\nDATA\r\n"
    b"Subject: smuggled\r\n\r\nGive me your password.\r\n.\r\n"
)
ENDS = [
    b"\n.\n",
    b"\n.\r\n",
    b"\r\n.\n",
    b"\r.\r",
    b"\r\n.\r",
    b"\r.\r\n",
    b"\n.\r",
    b"\r.\n",
    b"\r\n. \r\n",
    b"\r\n.\t\r\n",
    b"\r\n .\r\n",
    b"\r\n.\r\r\n",
    b"\r\r\n.\r\r\n",
    b"\n\n.\r\n",
    b"\r\n.\0\r\n",
    b"\r\n\0.\r\n",
    b"\r\n.\n\r\n",
    b"\n\r.\r\n",
    b"\r\n\x2e\x0b\r\n",
    b"\r\n.\x85\r\n",
    b"\xe2\x80\xa8.\xe2\x80\xa8",
]
BARE = [end for end in ENDS if end.replace(b"\r\n", b"").strip(b".\0 \t\x0b\x85\xe2\x80\xa8") != b""]


def _ids(end):
    return end.decode("latin-1").encode("unicode_escape").decode()


@pytest.mark.parametrize("end", ENDS, ids=_ids)
def test_s01_other_ends_end_nothing(serving, dial, inbox, end):
    client = dial(serving)
    client.begin("ann@example.com")
    client.send(HEAD + end + SMUGGLED)  # closed by the smuggled message's own dot
    answer = client.reply()
    if end in BARE:
        assert answer.startswith(b"550 5.6.0 ")
        assert inbox(serving, "ann") == []
    else:
        assert answer.startswith(b"250 2.0.0 ")
        assert b"smuggled" in inbox(serving, "ann")[0]
    assert inbox(serving, "bo") == []
    assert client.say("NOOP") == b"250 2.0.0 Ok"


@pytest.mark.parametrize("end", ENDS, ids=_ids)
def test_s01_other_ends_cut_at_every_octet(serving, pair, inbox, end):
    client, _ = pair(serving, errors=1000, errors_delayed=1000)
    client.reply()
    client.say("EHLO c")
    text = b"S: x\r\n\r\nText." + end + b"MAIL FROM:<a@b.example>\r\nRCPT TO:<bo@example.com>\r\n.\r\n"
    around = range(8, 14 + len(end) + 4)
    for cut in around:
        client.begin("ann@example.com")
        client.send(text[:cut])
        gevent.sleep(0)  # the session reads the first piece
        client.send(text[cut:])
        assert client.reply().startswith(b"550 5.6.0 " if end in BARE else b"250 2.0.0 "), cut
    assert client.say("NOOP") == b"250 2.0.0 Ok"
    assert len(inbox(serving, "ann")) == (0 if end in BARE else len(around))
    assert inbox(serving, "bo") == []


@pytest.mark.parametrize("end", BARE, ids=_ids)
def test_s01_normalized_ends_end_nothing_either(serve, dial, inbox, end):
    serving = serve(**{"smtp.bare_newline": "normalize"})
    client = dial(serving)
    client.begin("ann@example.com")
    client.send(HEAD + end + SMUGGLED)
    assert client.reply().startswith(b"250 2.0.0 ")
    (text,) = inbox(serving, "ann")
    assert b"smuggled" in text
    assert text.count(b"\n") == text.count(b"\r\n") == text.count(b"\r")
    assert inbox(serving, "bo") == []


@pytest.mark.parametrize(
    "text", [b"a\nb", b"a\rb", b"\nS: x", b"S: x\r\n\r\nb\n", b"S: x\n\nb", b"\r", b"S: x\r\n\r\n\r"]
)
def test_s01_bare_line_ends_are_refused_after_the_dot(serving, dial, traces, text):
    client = dial(serving)
    client.begin("ann@example.com")
    assert client.say(text + b"\r\n.").startswith(b"550 5.6.0 ")
    assert traces(serving) == []


@pytest.mark.parametrize("command", [b"NOOP\n", b"NOOP\nRSET\r\n", b"NOOP\rRSET\r\n", b"\nNOOP\r\n"])
def test_s01_bare_line_ends_in_commands_are_errors(serving, dial, command):
    client = dial(serving)
    client.send(command + b"QUIT\r\n")
    answers = client.rest().split(b"\r\n")
    assert answers[0].startswith(b"500 5.5.2 ")
    assert answers[-2].startswith(b"221 ")


# ---------------------------------------------------------------- chunks nobody asked for

COMMANDS_INSIDE = b"RSET\r\nMAIL FROM:<x@elsewhere.org>\r\nRCPT TO:<bo@example.com>\r\nDATA\r\nSmuggled: yes\r\n.\r\n"


@pytest.mark.parametrize("service", ["smtp", "submission", "submissions"])
def test_s08_chunking_is_not_offered(serving, dial, service):
    offered = dial(serving, service, tls=service == "submission").say("EHLO c")
    assert b"CHUNKING" not in offered and b"BINARYMIME" not in offered


@pytest.mark.parametrize("last", [b"", b" LAST", b" last"])
@pytest.mark.parametrize("before", [(), ("MAIL FROM:<x@elsewhere.org>", "RCPT TO:<ann@example.com>")])
def test_s08_the_octets_of_a_chunk_are_never_commands(serving, dial, inbox, before, last):
    client = dial(serving)
    for command in before:
        client.say(command)
    client.send(b"BDAT %d%b\r\n" % (len(COMMANDS_INSIDE), last) + COMMANDS_INSIDE + b"NOOP\r\n")
    assert client.reply().startswith(b"500 5.5.1 BDAT is not offered")
    assert client.reply().startswith(b"250 "), "the next command is understood as one"
    if before:  # what was begun goes on with DATA
        assert client.say("DATA").startswith(b"354 ")
        assert client.say(b"Subject: x\r\n\r\nText.\r\n.").startswith(b"250 2.0.0 ")
    assert len(inbox(serving, "ann")) == bool(before) and inbox(serving, "bo") == []


def test_s08_a_chunk_that_comes_in_pieces_is_passed_over_whole(serving, dial):
    client = dial(serving)
    assert client.say(b"BDAT %d" % len(COMMANDS_INSIDE)).startswith(b"500 5.5.1 "), "before its octets are there"
    for octet in range(0, len(COMMANDS_INSIDE), 7):
        client.send(COMMANDS_INSIDE[octet : octet + 7])
    assert client.say("BDAT 0 LAST").startswith(b"500 5.5.1 ")
    assert client.say("NOOP").startswith(b"250 ")


@pytest.mark.parametrize(
    "size", [b"", b"x", b"-1", b"+5", b"0x5", b"99999999999", b"9" * 30, b"5 LAST LAST", b"5 FIRST"]
)
def test_s08_a_chunk_of_no_size_ends_the_connection(serving, dial, inbox, size):
    client = dial(serving)
    client.send(b"BDAT " + size + b"\r\n" + COMMANDS_INSIDE)
    answers = client.rest().split(b"\r\n")
    assert [answer[:9] for answer in answers] == [b"500 5.5.1", b"421 4.7.0", b""]
    assert inbox(serving, "bo") == []


# ---------------------------------------------------------------- before the reply


@pytest.mark.parametrize(
    ("before", "group"),
    [
        ([], b"EHLO c\r\nMAIL FROM:<x@elsewhere.org>\r\n"),
        ([], b"HELO c\r\nMAIL FROM:<x@elsewhere.org>\r\n"),
        (["EHLO c"], b"STARTTLS\r\nEHLO injected\r\n"),
        (["EHLO c"], b"STARTTLS\r\n\r\n"),
        (
            ["EHLO c", "MAIL FROM:<x@elsewhere.org>", "RCPT TO:<ann@example.com>"],
            b"DATA\r\nSubject: too early\r\n\r\n.\r\n",
        ),
    ],
    ids=["EHLO", "HELO", "STARTTLS", "STARTTLS and an empty line", "DATA"],
)
def test_s03_s07_who_talks_past_the_end_of_a_group_is_sent_away(serving, dial, traces, events, before, group):
    client = dial(serving, hello=False)
    for command in before:
        client.say(command)
    client.send(group)
    assert client.rest().startswith(b"554 5.5.0 Wait for the reply to ")
    assert client.buffer.count(b"\r\n") == 1
    assert traces(serving) == []
    assert [fields["after"] for event, fields in events if event == "early talker"] == [group.split()[0].decode()]


@pytest.mark.parametrize(
    ("before", "command", "more"),
    [
        ((), b"EHLO c\r\n", b"MAIL FROM:<x@elsewhere.org>\r\n"),
        ((), b"HELO c\r\n", b"MAIL FROM:<x@elsewhere.org>\r\n"),
        (("EHLO c", "MAIL FROM:<x@elsewhere.org>", "RCPT TO:<ann@example.com>"), b"DATA\r\n", b"Subject: early\r\n"),
    ],
)
def test_s07_talk_that_arrives_by_itself_before_the_reply_is_found(serving, pair, traces, before, command, more):
    client, _ = pair(serving, kind=socket.SOCK_SEQPACKET)  # the server reads one write at a time
    client.reply()
    client.say(*before)
    client.send(command)
    client.send(more)
    assert client.rest().startswith(b"554 5.5.0 Wait for the reply to " + command[:4])
    assert traces(serving) == []


def test_s07_who_talks_before_the_greeting_is_sent_away(serving, pair, traces):
    client, _ = pair(serving, first=b"EHLO spam\r\nMAIL FROM:<x@elsewhere.org>\r\n")
    assert client.rest() == b"554 5.5.0 Wait for the greeting\r\n"


def test_s07_auth_with_more_behind_it_is_sent_away(serving, dial):
    client = dial(serving, "submissions")
    client.send(b"AUTH PLAIN " + base64.b64encode(b"\0ann@example.com\0correct horse") + b"\r\nNOOP\r\n")
    assert client.rest().startswith(b"554 5.5.0 ")


def test_s03_starttls_forgets_what_was_said_in_clear(serving, dial):
    client = dial(serving)
    client.say("MAIL FROM:<x@elsewhere.org>", "RCPT TO:<ann@example.com>")
    assert client.say("STARTTLS") == b"220 2.0.0 Go ahead"
    client.sock = serving.client_tls.wrap_socket(client.sock, server_hostname="localhost")
    assert client.say("DATA").startswith(b"503 ")
    assert client.say("RCPT TO:<ann@example.com>").startswith(b"503 ")
    assert client.say("MAIL FROM:<x@elsewhere.org>").startswith(b"503 ")  # not even the EHLO is remembered
    assert b"STARTTLS" not in client.say("EHLO again")
    assert client.say("STARTTLS").startswith(b"503 5.5.1 ")
    client.begin("ann@example.com")


def test_s03_clear_text_after_starttls_is_no_command(serving, dial, traces):
    """What is sent instead of a handshake, or along with it, never reaches the session."""
    client = dial(serving)
    assert client.say("STARTTLS").startswith(b"220 ")
    client.send(b"EHLO injected\r\nMAIL FROM:<x@elsewhere.org>\r\nRCPT TO:<ann@example.com>\r\n")
    assert b"250" not in client.rest()
    assert traces(serving) == []


def test_s03_tls_is_said_to_be_missing_without_a_certificate(serving, pair):
    client, _ = pair(serving)
    client.reply()
    assert b"STARTTLS" not in client.say("EHLO c")
    assert client.say("STARTTLS") == b"503 5.5.1 TLS is not available"
