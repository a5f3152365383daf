"""The sending side of one connection, against a server that says what the test wants: what is on the wire, and what
each recipient is told.
"""

import errno
import os
import socket
from dataclasses import replace

import gevent
import pytest

from mailsrv.smtp.client import Timeouts
from mailsrv.smtp.routes import Route, Tls
from mailsrv.values import Address, Disposition, RecipientOptions
from tests.fakes.sink import DROP, EXTENSIONS, SILENCE, endless
from tests.fakes.world import TEXT, World

SENT, LATER, NEVER = Disposition.SENT, Disposition.LATER, Disposition.NEVER


@pytest.fixture
def world(tmp_path):
    with World(tmp_path) as made:
        yield made


@pytest.fixture
def sink(world):
    return world.domain("example.org")


def told(outcomes):
    return {str(one.recipient): (one.disposition, one.code, one.enhanced) for one in outcomes}


# ------------------------------------------------------------------ the plain course


def test_a_message_goes_out_and_the_outcome_says_where(world, sink):
    [outcome] = world.send("bo@example.org")
    assert (outcome.disposition, outcome.code, outcome.enhanced, outcome.text) == (SENT, 250, "2.0.0", "taken")
    assert outcome.host == f"mx.example.org[127.0.0.2]:{world.port}" and outcome.tls == ""
    [message] = sink.messages
    assert message.text == TEXT and message.recipients == ["bo@example.org"]
    assert message.mail == f"MAIL FROM:<ann@example.com> SIZE={len(TEXT)}"
    assert sink.connections[0].lines[0] == "EHLO me.example.com"


def test_the_null_sender_and_quoted_local_parts(world, sink):
    world.relay(world.job("bo@example.org", sender=None))
    job = world.job("x@example.org", sender=Address('a "b\\', "example.com"))
    world.relay(job)
    assert sink.messages[0].mail.startswith("MAIL FROM:<> ")
    assert sink.messages[1].mail.startswith(r'MAIL FROM:<"a \"b\\"@example.com> ')


def test_s23_an_address_that_would_break_the_line_is_never_written(world, sink):
    job = world.job("bo@example.org")
    bad = Address("x>\r\nRCPT TO:<evil", "example.org")
    outcomes = world.relay(replace(job, recipients=((bad, RecipientOptions()), *job.recipients)))
    assert [(one.disposition, one.enhanced) for one in outcomes] == [(NEVER, "5.1.3"), (SENT, "2.0.0")]
    [outcome] = world.relay(world.job("bo@example.org", sender=Address("x", "a>\r\nDATA")))
    assert (outcome.disposition, outcome.enhanced) == (NEVER, "5.1.7") and len(sink.messages) == 1
    assert not any("evil" in line for connection in sink.connections for line in connection.lines)


def test_commands_are_pipelined_where_that_is_offered_and_only_there(world, sink):
    arrived = []

    def look(connection):
        """What has come by the time MAIL is about to be answered."""
        connection.sock.settimeout(0.1)
        try:
            connection.buffer += connection.sock.recv(65536)
        except TimeoutError:
            pass
        connection.sock.settimeout(None)
        arrived.append(connection.buffer)

    sink.on["MAIL"] = look
    world.send("bo@example.org")
    sink.extensions.remove("PIPELINING")
    world.relay.close()
    world.send("bo@example.org")
    assert arrived == [b"RCPT TO:<bo@example.org>\r\nDATA\r\n", b""]
    assert len(sink.messages) == 2


def test_helo_for_a_server_that_does_not_know_ehlo(world, sink):
    sink.on["EHLO"] = "502 5.5.1 what"
    assert world.send("bo@example.org")[0].disposition is SENT
    assert sink.connections[0].lines[:3] == [
        "EHLO me.example.com",
        "HELO me.example.com",
        "MAIL FROM:<ann@example.com>",
    ]


# ------------------------------------------------------------------ S2: line ends and dots


@pytest.mark.parametrize("chunking", [False, True])
@pytest.mark.parametrize("size", [0, 300_000])
def test_s02_stray_cr_and_lf_leave_as_whole_line_ends_before_dots_are_stuffed(world, sink, chunking, size):
    if chunking:
        sink.extensions.append("CHUNKING")
    filler = (b"x" * 78 + b"\r\n") * (size // 80)
    attack = b"Subject: a\n\r\n" + filler + b"one\r.\rtwo\n.\nMAIL FROM:<x@y>\r\n.\n.\r\n..\r\nend"
    world.send("bo@example.org", text=attack)
    [message] = sink.messages
    expected = b"Subject: a\r\n\r\n" + filler + b"one\r\n.\r\ntwo\r\n.\r\nMAIL FROM:<x@y>\r\n.\r\n.\r\n..\r\nend\r\n"
    assert message.text == expected
    bare = message.raw.replace(b"\r\n", b"")
    assert b"\r" not in bare and b"\n" not in bare
    assert ("BDAT" in sink.connections[0].lines[-1]) is chunking


def test_dots_at_every_place_arrive_as_they_were(world, sink):
    texts = [b".", b".\r\n", b"..\r\n", b"a: b\r\n\r\n.", b"\r\n.\r\n", b"", b"x\r\n..\r\n.\r\n...x\r\n"]
    for text in texts:
        world.send("bo@example.org", text=text)
    whole = [text if text.endswith(b"\r\n") or not text else text + b"\r\n" for text in texts]
    assert [message.text for message in sink.messages] == whole


def test_a_large_message_is_read_in_pieces_and_arrives_whole(world, sink):
    lines = b"".join(b".%07d\r\n" % n for n in range(200_000))
    world.send("bo@example.org", text=b"A: b\r\n\r\n" + lines)
    assert sink.messages[0].text == b"A: b\r\n\r\n" + lines
    assert f"SIZE={len(lines) + 8}" in sink.messages[0].mail


def test_s04_a_line_longer_than_998_octets_never_leaves(world, sink):
    assert world.send("bo@example.org", text=b"A: b\r\n\r\n" + b"x" * 998 + b"\r\n")[0].disposition is SENT
    for text in (b"x" * 999 + b"\r\n", b"A: b\r\n\r\n" + b"y\r\n" * 100_000 + b"x" * 999):
        [outcome] = world.send("bo@example.org", text=text)
        assert (outcome.disposition, outcome.enhanced) == (NEVER, "5.6.0") and "998" in outcome.text
    assert len(sink.messages) == 1


# ------------------------------------------------------------------ what is said of recipients


def test_each_recipient_has_an_outcome_of_its_own(world, sink):
    sink.on["RCPT no@example.org"] = "550 5.1.1 unknown"
    sink.on["RCPT wait@example.org"] = "450 4.2.0 greylisted"
    outcomes = world.send("no@example.org", "bo@example.org", "wait@example.org", "cy@example.org")
    assert told(outcomes) == {
        "no@example.org": (NEVER, 550, "5.1.1"),
        "bo@example.org": (SENT, 250, "2.0.0"),
        "wait@example.org": (LATER, 450, "4.2.0"),
        "cy@example.org": (SENT, 250, "2.0.0"),
    }
    assert sink.recipients == ["bo@example.org", "cy@example.org"]


@pytest.mark.parametrize(
    ("reply", "disposition", "enhanced"),
    [
        ("450 we once said 550 5.1.1, do not try again", LATER, "4.0.0"),
        ("451 5.1.1 liar", LATER, "4.0.0"),
        ("550 4.2.0 liar", NEVER, "5.0.0"),
        ("550-5.1.1 line one\r\n550 5.1.1 line two", NEVER, "5.1.1"),
        ("552 5.2.2 full", NEVER, "5.2.2"),
    ],
)
def test_b22_only_the_class_of_the_reply_code_says_what_is_final(world, sink, reply, disposition, enhanced):
    sink.on["RCPT"] = reply
    [outcome] = world.send("bo@example.org")
    assert (outcome.disposition, outcome.enhanced) == (disposition, enhanced)


def test_all_refused_and_data_answered_354_all_the_same_sends_nothing(world, sink):
    sink.on["RCPT"] = "550 5.1.1 unknown"
    sink.on["DATA"] = "354 go ahead"
    sink.on["."] = ["554 5.5.1 no valid recipients"]
    [outcome] = world.send("bo@example.org")
    assert (outcome.disposition, outcome.code, outcome.text) == (NEVER, 550, "unknown")
    sink.on.clear()
    assert world.send("cy@example.org")[0].disposition is SENT
    assert [m.recipients for m in sink.messages] == [["cy@example.org"]] and len(sink.connections) == 1
    assert "RSET" in sink.connections[0].lines


@pytest.mark.parametrize("event", ["MAIL", "DATA", "."])
@pytest.mark.parametrize(("reply", "disposition"), [("451 4.3.0 no", LATER), ("554 5.7.1 no", NEVER)])
def test_a_refusal_of_the_message_is_one_for_everybody(world, sink, event, reply, disposition):
    sink.on[event] = reply
    outcomes = world.send("bo@example.org", "cy@example.org")
    assert [one.disposition for one in outcomes] == [disposition] * 2 and sink.messages == []


def test_too_many_recipients_are_sent_in_further_transactions(world, sink):
    sink.on["RCPT"] = lambda c: "452 4.5.3 too many" if len(c.recipients) >= 3 else None
    names = [f"u{n}@example.org" for n in range(8)]
    outcomes = world.send(*names)
    assert {one.disposition for one in outcomes} == {SENT}
    assert [len(message.recipients) for message in sink.messages] == [3, 3, 2] and len(sink.connections) == 1
    assert sink.recipients == names


def test_limits_of_the_server_are_kept(world, sink):
    sink.extensions += ["LIMITS RCPTMAX=2 MAILMAX=3"]
    world.send(*(f"u{n}@example.org" for n in range(5)))
    world.send("x@example.org")
    assert [len(message.recipients) for message in sink.messages] == [2, 2, 1, 1]
    assert [message.connection for message in sink.messages] == [0, 0, 0, 1]


def test_lmtp_says_of_each_recipient_what_became_of_its_copy(world):
    sink = world.host("store.example.org", "127.0.0.9", lmtp=True)
    route = Route("store.example.org", world.port, recipients=frozenset({"example.org"}), protocol="lmtp")
    world.settings["routes"] = (route,)
    sink.on[". cy@example.org"] = "452 4.2.2 full"
    sink.on[". di@example.org"] = "550 5.2.1 closed"
    outcomes = world.send("bo@example.org", "cy@example.org", "di@example.org")
    assert told(outcomes) == {
        "bo@example.org": (SENT, 250, "2.0.0"),
        "cy@example.org": (LATER, 452, "4.2.2"),
        "di@example.org": (NEVER, 550, "5.2.1"),
    }
    assert sink.connections[0].lines[0] == "LHLO me.example.com"


# ------------------------------------------------------------------ extensions


def test_size_is_said_and_a_limit_known_before_costs_no_transaction(world, sink):
    sink.extensions[:] = ["PIPELINING", "SIZE 1000"]
    [outcome] = world.send("bo@example.org", text=TEXT + b"x\r\n" * 400)
    assert (outcome.disposition, outcome.enhanced) == (NEVER, "5.3.4")
    assert not any(line.startswith("MAIL") for line in sink.connections[0].lines)
    assert world.send("bo@example.org")[0].disposition is SENT


def test_eight_bit_text_is_declared_or_refused(world, sink):
    text = TEXT + "Grüße\r\n".encode()
    assert world.send("bo@example.org", text=text)[0].disposition is SENT
    assert "BODY=8BITMIME" in sink.messages[0].mail
    world.relay.close()
    sink.extensions[:] = ["PIPELINING"]
    [outcome] = world.send("bo@example.org", text=text)
    assert (outcome.disposition, outcome.enhanced) == (NEVER, "5.6.3")
    assert world.send("bo@example.org", body="8BITMIME")[0].disposition is SENT  # declared, and not needed
    assert "BODY" not in sink.messages[1].mail and len(sink.messages) == 2


@pytest.mark.parametrize("where", ["recipient", "sender", "header"])
def test_s12_what_needs_smtputf8_is_bounced_where_it_is_not_offered(world, sink, where):
    text = "Subject: Grüße\r\n\r\nx\r\n".encode() if where == "header" else TEXT
    recipient = "grün@example.org" if where == "recipient" else "bo@example.org"
    sender = Address("änn" if where == "sender" else "ann", "example.com")
    job = world.job(recipient, text=text, sender=sender, smtputf8=True)
    assert world.relay(job)[0].disposition is SENT
    assert "SMTPUTF8" in sink.messages[0].mail.split() and sink.messages[0].recipients == [recipient]
    world.relay.close()
    sink.extensions.remove("SMTPUTF8")
    [outcome] = world.relay(job)
    assert (outcome.disposition, outcome.enhanced) == (NEVER, "5.6.7") and len(sink.messages) == 1


def test_s12_a_message_that_does_not_need_smtputf8_goes_without(world, sink):
    sink.extensions.remove("SMTPUTF8")
    assert world.send("bo@example.org", smtputf8=True)[0].disposition is SENT
    assert "SMTPUTF8" not in sink.messages[0].mail


def test_s12_another_mx_may_have_the_extension(world):
    plain = world.host("mx1.example.org", "127.0.0.2", extensions=["PIPELINING"])
    able = world.host("mx2.example.org", "127.0.0.3")
    world.domain("example.org", "mx1.example.org", "mx2.example.org")
    assert world.send("grün@example.org", smtputf8=True)[0].disposition is SENT
    assert plain.messages == [] and able.recipients == ["grün@example.org"]


def test_chunking_sends_the_text_unstuffed_in_one_piece(world, sink):
    sink.extensions.append("CHUNKING")
    text = TEXT + b".\r\n..x\r\n"
    world.send("bo@example.org", text=text)
    assert sink.connections[0].lines[-1] == f"BDAT {len(text)} LAST" and sink.messages[0].raw == text


def test_dsn_parameters_are_passed_on_and_who_reports_is_known(world, sink):
    options = RecipientOptions(frozenset({"SUCCESS", "DELAY"}), "rfc822;Bo+x=1@example.org")
    [outcome] = world.send("bo@example.org", options=[options], ret="HDRS", envid="a b+c")
    assert outcome.dsn_relayed
    assert sink.messages[0].mail.endswith(" RET=HDRS ENVID=a+20b+2Bc")
    line = next(line for line in sink.connections[0].lines if line.startswith("RCPT"))
    assert line == "RCPT TO:<bo@example.org> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;Bo+2Bx+3D1@example.org"
    world.relay.close()
    sink.extensions.remove("DSN")
    [outcome] = world.send("bo@example.org", options=[options], ret="HDRS", envid="a")
    assert not outcome.dsn_relayed and "RET" not in sink.messages[1].mail


# ------------------------------------------------------------------ the connection is used again


def test_a_connection_serves_several_messages(world, sink):
    for _ in range(3):
        world.send("bo@example.org")
    assert [message.connection for message in sink.messages] == [0, 0, 0]


def test_a_connection_that_died_while_it_waited_costs_nothing(world, sink):
    world.send("bo@example.org")
    sink.on["MAIL"] = [DROP, None]  # it looks alive until it is used
    assert world.send("bo@example.org")[0].disposition is SENT
    sink.on["MAIL"] = ["421 4.4.2 idle too long", None]
    assert world.send("bo@example.org")[0].disposition is SENT
    assert [message.connection for message in sink.messages] == [0, 1, 2]


def test_connections_that_all_died_are_not_tried_one_after_the_other(world, sink):
    jobs = [world.job("bo@example.org") for _ in range(6)]
    gevent.joinall([gevent.spawn(world.relay, job) for job in jobs], timeout=60)
    assert len(sink.connections) == 6
    sink.on["MAIL"] = [DROP, DROP, None]
    assert world.send("bo@example.org")[0].disposition is SENT
    assert len(sink.connections) == 7 and sink.messages[-1].connection == 6


def test_a_connection_ends_after_so_many_transactions_and_after_a_pause(world, sink):
    world.settings |= {"transactions": 2, "idle_seconds": 0.1}
    for _ in range(3):
        world.send("bo@example.org")
    assert [message.connection for message in sink.messages] == [0, 0, 1]
    with gevent.Timeout(60):
        while "QUIT" not in sink.connections[1].lines:
            gevent.sleep(0.01)


# ------------------------------------------------------------------ servers that misbehave (the MX zoo)


def test_s16_lost_after_the_dot_is_later_and_never_sent_elsewhere_at_once(world):
    first = world.host("mx1.example.org", "127.0.0.2")
    second = world.host("mx2.example.org", "127.0.0.3")
    world.domain("example.org", "mx1.example.org", "mx2.example.org")
    first.on["."] = DROP
    first.on["RCPT no@example.org"] = "550 5.1.1 unknown"
    outcomes = world.send("bo@example.org", "no@example.org")
    assert told(outcomes) == {"bo@example.org": (LATER, 0, "4.4.2"), "no@example.org": (NEVER, 550, "5.1.1")}
    assert second.connections == []


def test_s16_a_host_that_does_not_listen_is_later(world):
    world.dns.add("example.org", "MX", "10 mx.example.org.")
    world.dns.add("mx.example.org", "A", "127.0.0.77")  # nobody serves there
    [outcome] = world.send("bo@example.org")
    assert (outcome.disposition, outcome.code, outcome.enhanced) == (LATER, 0, "4.4.1")
    assert outcome.text == "No connection: Connection refused"


def test_s16_timeouts_are_those_of_the_rfc():
    limits = Timeouts()
    assert (limits.greeting, limits.command, limits.data, limits.block, limits.final) == (300, 300, 120, 180, 600)


def test_s16_a_server_may_think_longer_about_a_message_than_about_a_command(world, sink):
    world.settings["timeouts"] = replace(world.settings["timeouts"], command=1.5, data=1.5, final=60.0)
    sink.on["."] = lambda c: gevent.sleep(2.5)
    assert world.send("bo@example.org")[0].disposition is SENT and len(sink.connections) == 1


@pytest.mark.parametrize("event", ["connect", "EHLO", "MAIL", "RCPT", "DATA", "."])
def test_s16_silence_ends_by_the_timeout_and_is_later(world, sink, event):
    world.settings["timeouts"] = Timeouts(0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2)
    sink.on[event] = SILENCE
    [outcome] = world.send("bo@example.org")
    assert (outcome.disposition, outcome.code, outcome.enhanced) == (LATER, 0, "4.4.2")


def test_s16_a_reply_that_trickles_is_bound_by_its_whole_time(world, sink):
    world.settings["timeouts"] = Timeouts(0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5)

    def trickle(connection):
        while True:
            connection.send(b"2")
            gevent.sleep(0.05)

    sink.on["connect"] = trickle
    with gevent.Timeout(60):
        [outcome] = world.send("bo@example.org")
    assert outcome.disposition is LATER


@pytest.mark.parametrize(
    "reply", [b"250 " + b"x" * 10_000_000 + b"\r\n", endless(b"250-more\r\n"), endless(b"x" * 1000)]
)
@pytest.mark.parametrize("event", ["connect", "EHLO", "RCPT", "."])
def test_s04_replies_without_end_are_not_read(world, sink, event, reply):
    sink.on[event] = reply
    [outcome] = world.send("bo@example.org")
    assert (outcome.disposition, outcome.code) == (LATER, 0)
    assert len(outcome.text) < 500


def test_replies_with_bare_lf_are_understood(world, sink):
    sink.on |= {"connect": b"220 hi\n", "EHLO": b"250-sink\n250 PIPELINING\n", "MAIL": b"250 ok\n", "RCPT": b"250 ok\n",
                "DATA": b"354 go\n", ".": b"250-2.0.0 a\n250 2.0.0 b\n"}  # fmt: skip
    [outcome] = world.send("bo@example.org")
    assert (outcome.disposition, outcome.text) == (SENT, "a b") and len(sink.messages) == 1


@pytest.mark.parametrize(
    "reply", [b"hello\r\n", b"99 no\r\n", b"950 no\r\n", b"\r\n", b"\xff\xfe\0\r\n", b"2500 x\r\n"]
)
def test_what_is_no_reply_is_later(world, sink, reply):
    sink.on["RCPT"] = reply
    [outcome] = world.send("bo@example.org")
    assert (outcome.disposition, outcome.code, outcome.enhanced) == (LATER, 0, "4.5.0")


def test_s22_what_a_server_says_becomes_printable(world, sink):
    sink.on["RCPT"] = b"550 5.1.1 a\x00b\x1b[31m\x85c \xff\r\n"
    [outcome] = world.send("bo@example.org")
    assert outcome.text.isprintable() and outcome.enhanced == "5.1.1"


@pytest.mark.parametrize("event", ["MAIL", "RCPT", "RCPT cy@example.org", "DATA"])
def test_421_inside_a_pipeline_leads_to_the_next_host_and_nobody_has_it_twice(world, event):
    first = world.host("mx1.example.org", "127.0.0.2")
    second = world.host("mx2.example.org", "127.0.0.3")
    world.domain("example.org", "mx1.example.org", "mx2.example.org")
    first.on[event] = lambda c: c.send(b"421 4.3.2 going down\r\n") or DROP
    outcomes = world.send("bo@example.org", "cy@example.org")
    assert {one.disposition for one in outcomes} == {SENT}
    assert first.messages == [] and second.recipients == ["bo@example.org", "cy@example.org"]


def test_421_alone_is_later(world, sink):
    sink.on["RCPT"] = lambda c: c.send(b"421 4.7.0 slow down\r\n") or DROP
    [outcome] = world.send("bo@example.org")
    assert (outcome.disposition, outcome.code, outcome.enhanced) == (LATER, 421, "4.7.0")


def test_a_refusal_in_the_middle_of_the_text_counts(world, sink):
    def refuse(connection):
        connection.send(b"354 go\r\n")
        connection.read_exactly(100_000)
        connection.send(b"554 5.7.1 I do not like it\r\n")
        connection.sock.shutdown(socket.SHUT_RD)
        gevent.sleep(0.5)
        return DROP

    sink.on["DATA"] = refuse
    [outcome] = world.send("bo@example.org", text=TEXT + (b"x" * 70 + b"\r\n") * 200_000)
    assert (outcome.disposition, outcome.code, outcome.enhanced) == (NEVER, 554, "5.7.1") and sink.messages == []


def test_an_unreadable_message_is_tried_again_and_is_not_the_destinations_fault(world, sink):
    job = world.job("bo@example.org")
    (world.directory / "1.eml").unlink()
    [outcome] = world.relay(job)
    assert (outcome.disposition, outcome.code, outcome.enhanced) == (LATER, 451, "4.3.0") and sink.connections == []


@pytest.mark.parametrize("failure", [BlockingIOError(), OSError(errno.EOPNOTSUPP, "no"), None])
def test_a_message_that_is_not_in_memory_is_read_in_a_thread(world, sink, monkeypatch, failure):
    def preadv(*_):
        if failure is None:
            return 7  # only the beginning is at hand
        raise failure

    monkeypatch.setattr(os, "preadv", preadv)
    assert world.send("bo@example.org")[0].disposition is SENT and sink.messages[0].text == TEXT


@pytest.mark.parametrize("chunking", [False, True])
def test_a_file_that_ends_early_while_it_is_sent_is_not_taken_for_whole(world, sink, chunking):
    job = world.job("bo@example.org", text=TEXT + b"x" * 70 + b"\r\n" + b"z\r\n" * 200_000)
    if chunking:
        sink.extensions.append("CHUNKING")
    sink.on["RCPT"] = lambda c: (world.directory / "1.eml").write_bytes(TEXT) and None
    [outcome] = world.relay(job)
    assert (outcome.disposition, outcome.code) == (LATER, 451) and sink.messages == []


def test_an_attempt_that_is_cut_off_leaves_no_connection(world, sink):
    sink.on["."] = SILENCE
    attempt = gevent.spawn(world.relay, world.job("bo@example.org"))
    assert sink.silent.wait(20)
    attempt.kill()
    with gevent.Timeout(60):
        while sink.connections[0].sock.fileno() >= 0:  # the other side has seen the end
            gevent.sleep(0.01)
    assert sink.messages == []


# ------------------------------------------------------------------ S3, AUTH


def test_s03_what_follows_the_220_to_starttls_ends_the_attempt(world, tls_of):
    sink = world.domain("example.org", tls=tls_of("mx.example.org"))
    sink.on["STARTTLS"] = b"220 go\r\n250-injected\r\n250 AUTH PLAIN\r\n"
    [outcome] = world.send("bo@example.org")
    assert (outcome.disposition, outcome.enhanced) == (LATER, "4.5.0") and "TLS" in outcome.text
    assert sink.messages == [] and len(sink.connections) == 1


def test_s03_what_was_offered_in_clear_counts_no_more_inside_tls(world, tls_of):
    sink = world.domain("example.org", tls=tls_of("mx.example.org"))
    sink.on["EHLO"] = [b"250-sink\r\n250-STARTTLS\r\n250 SIZE 10\r\n", None]
    assert world.send("bo@example.org")[0].disposition is SENT and sink.messages[0].tls


@pytest.mark.parametrize("offer", ["AUTH PLAIN LOGIN", "AUTH LOGIN", "AUTH=LOGIN PLAIN"])
def test_a_smarthost_gets_name_and_password_inside_tls(world, tls_of, authority_file, offer):
    sink = world.host(
        "smart.example.net", "127.0.0.2", tls=tls_of("smart.example.net"), extensions=[*EXTENSIONS, offer]
    )
    password = world.directory / "password"
    password.write_text("s3cret\n")
    world.settings |= {
        "ca_file": authority_file,
        "routes": (Route("smart.example.net", world.port, user="me", password_file=str(password), tls=Tls.VERIFIED),),
    }
    [outcome] = world.send("bo@elsewhere.example")
    assert outcome.disposition is SENT and outcome.tls.endswith(" verified")
    said = [line for line in sink.connections[0].lines if line.startswith("AUTH")]
    assert said == [["AUTH PLAIN AG1lAHMzY3JldA=="], ["AUTH LOGIN"]]["PLAIN" not in offer]
    if "PLAIN" not in offer:
        assert sink.connections[0].lines[4:6] == ["bWU=", "czNjcmV0"]


def test_s32_a_password_never_goes_in_clear_and_a_wrong_one_bounces_nothing(world, tls_of):
    sink = world.host("smart.example.net", "127.0.0.2", extensions=[*EXTENSIONS, "AUTH PLAIN"])
    password = world.directory / "password"
    password.write_text("s3cret")
    route = Route("smart.example.net", world.port, user="me", password_file=str(password), tls=Tls.OPPORTUNISTIC)
    world.settings["routes"] = (route,)
    [outcome] = world.send("bo@elsewhere.example")
    assert (outcome.disposition, outcome.enhanced) == (LATER, "4.7.11") and sink.messages == []
    assert not any("AUTH" in line for line in sink.connections[0].lines)
    sink.tls = tls_of("smart.example.net")
    sink.on["AUTH"] = "535 5.7.8 wrong"
    [outcome] = world.send("bo@elsewhere.example")
    assert (outcome.disposition, outcome.enhanced) == (LATER, "4.7.8") and "s3cret" not in outcome.text
