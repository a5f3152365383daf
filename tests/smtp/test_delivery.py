"""What a message becomes on disk: for whom, with which trace lines, all or nothing, and never a trace of what was not
answered with 250.
"""

import errno
import re
import socket
import sqlite3
import time
from contextlib import closing

import pytest

from mailsrv.store import files

BIG = b"Subject: big\r\n\r\n" + b"0123456789" * 70 + b"\r\n"
BIG += b"x" * 70 + b"\r\n"
LARGE = b"Subject: large\r\n\r\n" + (b"y" * 76 + b"\r\n") * 10_000  # more than is kept in memory


@pytest.fixture
def failing():
    """`failing("fsync", "/bo/")` makes that step fail on such a path, from now on, as a full disk does."""

    def start(name, part, code=errno.ENOSPC):
        def hook(step, path):
            if step == name and part in path:
                raise OSError(code, "No space left on device", path)

        files.on_step(hook)

    yield start
    files.on_step(None)


def test_f06_trace_lines_of_a_message_for_one(serving, dial, inbox):
    client = dial(serving)
    client.begin("ann@example.com", sender="X@Elsewhere.org")
    answer = client.say(b"Subject: x\r\n\r\nText.\r\n.")
    accepted = re.fullmatch(rb"250 2\.0\.0 Accepted as ([0-9a-f]{18})", answer)[1].decode()
    (text,) = inbox(serving, "ann")
    pattern = (
        r"Return-Path: <X@elsewhere\.org>\r\n"
        r"Delivered-To: ann@example\.com\r\n"
        r"Received: from client\.example\.net \(\[127\.0\.0\.1\]\)\r\n"
        rf"\tby mx\.example\.com \(mailsrv\) with ESMTP id {accepted}\r\n"
        r"\tfor <ann@example\.com>; \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d [+-]\d{4}\r\n"
        r"Subject: x\r\n\r\nText\.\r\n"
    )
    assert re.fullmatch(pattern, text.decode())


@pytest.mark.parametrize(
    ("service", "helo", "user", "parameters", "protocol"),
    [
        ("smtp", "HELO", "", "", "SMTP"),
        ("smtp", "EHLO", "", "", "ESMTP"),
        ("smtp", "EHLO", "", " SMTPUTF8", "UTF8SMTP"),
        ("smtp+tls", "EHLO", "", "", "ESMTPS"),
        ("smtp+tls", "EHLO", "", " SMTPUTF8", "UTF8SMTPS"),
        ("submission", "EHLO", "ann", "", "ESMTPSA"),
        ("submissions", "EHLO", "ann", " SMTPUTF8", "UTF8SMTPSA"),
    ],
)
def test_received_names_the_protocol(serving, dial, inbox, service, helo, user, parameters, protocol):
    """RFC 3848, RFC 6531 4.3."""
    name, _, tls = service.partition("+")
    client = dial(serving, name, user=user, tls=bool(tls), hello=helo == "EHLO" or name != "smtp")
    if helo == "HELO":
        client.say("HELO client.example.net")
    assert client.say(f"MAIL FROM:<ann@example.com>{parameters}", "RCPT TO:<bo@example.com>").startswith(b"250")
    assert client.say("DATA", b"Subject: x\r\n\r\n.").startswith(b"250")
    assert f" with {protocol} id ".encode() in inbox(serving, "bo")[0]


@pytest.mark.parametrize(("peer", "literal"), [("192.0.2.7", "[192.0.2.7]"), ("2001:db8::7", "[IPv6:2001:db8::7]")])
def test_received_names_the_peer_as_a_literal(serving, pair, inbox, peer, literal):
    client, _ = pair(serving, peer=peer)
    client.reply()
    client.say("EHLO [IPv6:2001:db8::1]")
    client.begin("ann@example.com")
    assert client.say(b"Subject: x\r\n\r\n.").startswith(b"250")
    assert f"\r\nReceived: from [IPv6:2001:db8::1] ({literal})\r\n".encode() in inbox(serving, "ann")[0]


def test_s13_null_sender_has_an_empty_return_path_and_one_recipient(serving, dial, inbox):
    client = dial(serving)
    client.say("MAIL FROM:<>", "RCPT TO:<ann@example.com>")
    assert client.say("RCPT TO:<bo@example.com>") == b"452 4.5.3 A bounce has one recipient"
    assert client.say("DATA", b"Subject: x\r\n\r\n.").startswith(b"250")
    assert inbox(serving, "ann")[0].startswith(b"Return-Path: <>\r\nDelivered-To: ann@example.com\r\n")
    assert inbox(serving, "bo") == []


def test_f06_several_recipients_each_have_their_own_copy(serving, dial, inbox):
    client = dial(serving)
    client.begin("ann@example.com", "bo@example.com", "cy@example.com")
    assert client.say(b"Subject: x\r\n\r\nText.\r\n.").startswith(b"250")
    for name in ("ann", "bo", "cy"):
        (text,) = inbox(serving, name)
        assert text.split(b"\r\n")[1] == f"Delivered-To: {name}@example.com".encode()
        others = {"ann", "bo", "cy"} - {name}
        assert not any(f"{other}@".encode() in text for other in others)  # nobody learns who else was addressed
        assert b"\tfor <" not in text
        assert text.endswith(b"\r\nSubject: x\r\n\r\nText.\r\n")


def test_a_recipient_named_twice_gets_one_copy(serving, dial, inbox):
    client = dial(serving)
    client.begin("ann@example.com", "ANN@example.com", "ann+list@example.com")
    assert client.say(b"Subject: x\r\n\r\n.").startswith(b"250")
    assert len(inbox(serving, "ann")) == 1


def test_s13_unknown_recipients_are_refused_by_name_and_the_others_served(serving, dial, inbox):
    client = dial(serving)
    client.say("MAIL FROM:<x@elsewhere.org>")
    answers = [
        client.say(f"RCPT TO:<{name}@example.com>")[:9] for name in ("ann", "nobody", "bo", "ann.x", "annx", "an")
    ]
    assert answers == [b"250 2.1.5", b"550 5.1.1", b"250 2.1.5", b"550 5.1.1", b"550 5.1.1", b"550 5.1.1"]
    assert client.say("DATA", b"Subject: x\r\n\r\n.").startswith(b"250")
    assert [len(inbox(serving, name)) for name in ("ann", "bo", "cy")] == [1, 1, 0]


def test_f06_alias_with_several_targets(serving, dial, inbox):
    serving.accounts.add_alias("staff@example.com", ["ann@example.com", "bo@example.com"])
    client = dial(serving)
    client.begin("staff@example.com", "ann@example.com")
    assert client.say(b"Subject: x\r\n\r\n.").startswith(b"250")
    assert [len(inbox(serving, name)) for name in ("ann", "bo", "cy")] == [1, 1, 0]
    assert b"\r\nDelivered-To: staff@example.com\r\n" in inbox(serving, "bo")[0]


@pytest.mark.parametrize(
    ("address", "name"),
    [("ann+lists@example.com", "ann"), ("Ann+A+B@example.com", "ann"), ("staff+x@example.com", "cy"),
     ("anybody@example.net", "bo"), ("boss@example.net", "cy"), ("postmaster@example.com", "ann"),
     ("Postmaster", "ann"), ("POSTMASTER@[127.0.0.1]", "ann"), ("@relay.example.org:ann@example.com", "ann"),
     ("@a.example.org,@b.example.org:ann@example.com", "ann"), ('"ann"@example.com', "ann"),
     ('"a\\nn"@example.com', "ann")],
)  # fmt: skip
def test_s09_s10_whose_mailbox_an_address_means(serving, dial, inbox, address, name):
    serving.accounts.add_domain("example.net")
    serving.accounts.set_catch_all("example.net", "bo@example.com")
    serving.accounts.add_alias("boss@example.net", ["staff@example.com"])
    serving.accounts.add_alias("staff@example.com", ["cy@example.com"])
    client = dial(serving)
    client.begin(address)
    assert client.say(b"Subject: x\r\n\r\n.").startswith(b"250")
    assert {who: len(inbox(serving, who)) for who in ("ann", "bo", "cy")} == {
        who: int(who == name) for who in ("ann", "bo", "cy")
    }


def test_s10_postmaster_may_be_an_alias(serving, dial, inbox):
    serving.accounts.add_alias("postmaster@example.com", ["cy@example.com"])
    client = dial(serving)
    client.begin("postmaster")
    assert client.say(b"Subject: x\r\n\r\n.").startswith(b"250")
    assert len(inbox(serving, "cy")) == 1


@pytest.mark.parametrize("address", ["[127.0.0.2]", "[192.0.2.1]", "[IPv6:::1]", "[IPv6:2001:db8::1]"])
def test_s10_other_hosts_literals_are_not_ours(serving, dial, address):
    client = dial(serving)
    client.say("MAIL FROM:<x@elsewhere.org>")
    assert client.say(f"RCPT TO:<postmaster@{address}>").startswith(b"550 5.7.1 ")


def test_s10_only_postmaster_is_known_at_an_address_literal(serving, dial):
    client = dial(serving)
    client.say("MAIL FROM:<x@elsewhere.org>")
    assert client.say("RCPT TO:<ann@[127.0.0.1]>").startswith(b"550 5.7.1 ")


def test_f12_disabled_users_are_unknown(serving, dial, inbox):
    serving.accounts.set_enabled("bo@example.com", False)
    client = dial(serving)
    client.say("MAIL FROM:<x@elsewhere.org>")
    assert client.say("RCPT TO:<bo@example.com>").startswith(b"550 5.1.1 ")
    serving.accounts.set_enabled("bo@example.com", True)
    assert client.say("RCPT TO:<bo@example.com>").startswith(b"250")  # seen at once


def test_b20_every_hosted_domain_is_local_for_submission_too(serving, dial, inbox):
    serving.accounts.add_domain("example.net")
    serving.accounts.add_alias("dora@example.net", ["bo@example.com"])
    client = dial(serving, "submissions", user="ann")
    client.begin("dora@example.net", sender="ann@example.com")
    assert client.say(b"Subject: x\r\n\r\n.").startswith(b"250")
    assert len(inbox(serving, "bo")) == 1


# ---------------------------------------------------------------- the text


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        (b"\r\n.", b"\r\n"),
        (b".", b""),
        (b"S: x\r\n\r\n..\r\n.", b"S: x\r\n\r\n.\r\n"),
        (b"S: x\r\n\r\n...\r\n.", b"S: x\r\n\r\n..\r\n"),
        (b"S: x\r\n\r\n.a\r\n.", b"S: x\r\n\r\na\r\n"),
        (b"..S: x\r\n\r\n.", b".S: x\r\n\r\n"),
        (b"S: x\r\n\r\na.\r\n.", b"S: x\r\n\r\na.\r\n"),
        (b"S: x\r\n\r\n\r\n\r\n.", b"S: x\r\n\r\n\r\n\r\n"),
        (b"S: x\r\n\r\nnul \0 and \x80\xff octets\r\n.", b"S: x\r\n\r\nnul \0 and \x80\xff octets\r\n"),
        (b"S: x\r\n\r\n" + b"a" * 100_000 + b"\r\n.", b"S: x\r\n\r\n" + b"a" * 100_000 + b"\r\n"),
    ],
)
def test_s05_s06_the_text_is_kept_as_it_was_sent(serving, dial, inbox, sent, stored):
    client = dial(serving)
    client.begin("ann@example.com")
    assert client.say(sent).startswith(b"250")
    (text,) = inbox(serving, "ann")
    assert text.partition(b"; ")[2].partition(b"\r\n")[2] == stored


def test_s06_stuffed_dots_cut_at_every_octet(serving, dial, inbox):
    text = b"S: x\r\n\r\n..a\r\n..\r\n...\r\n\r\n..\r\n.\r\n"
    client = dial(serving)
    for cut in range(1, len(text)):
        client.begin("ann@example.com")
        client.send(text[:cut])
        client.send(text[cut:])
        assert client.reply().startswith(b"250")
    found = inbox(serving, "ann")
    assert len(found) == len(text) - 1
    assert all(one.endswith(b"\r\nS: x\r\n\r\n.a\r\n.\r\n..\r\n\r\n.\r\n") for one in found)


def test_a_large_message_to_an_account_that_never_had_one(serving, dial, inbox):
    client = dial(serving)
    client.begin("ann@example.com")
    assert client.say(LARGE + b".").startswith(b"250")
    (text,) = inbox(serving, "ann")
    assert text.endswith(b"\r\n" + LARGE)
    assert text.startswith(b"Return-Path: <x@elsewhere.org>\r\nDelivered-To: ann@example.com\r\n")


def test_a_large_message_to_several(serving, dial, inbox, traces):
    client = dial(serving)
    client.begin("ann@example.com", "bo@example.com")
    assert client.say(LARGE + b".").startswith(b"250")
    for name in ("ann", "bo"):
        (text,) = inbox(serving, name)
        assert text.startswith(f"Return-Path: <x@elsewhere.org>\r\nDelivered-To: {name}@example.com\r\n".encode())
        assert text.endswith(b"\r\n" + LARGE)
    assert len(traces(serving)) == 2  # and nothing in tmp/


# ---------------------------------------------------------------- failures


@pytest.mark.parametrize("text", [BIG, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("broken", ["ann", "bo", "cy"])
def test_b19_one_recipient_whose_home_cannot_be_made(serving, dial, inbox, traces, broken, text):
    domain = serving.maildir(broken).parent.parent
    domain.mkdir(parents=True, exist_ok=True)
    (domain / broken).write_text("not a directory")
    client = dial(serving)
    client.begin("ann@example.com", "bo@example.com", "cy@example.com")
    assert client.say(text + b".").startswith(b"451 4.3.0 ")
    assert traces(serving) == []
    (domain / broken).unlink()
    client.begin("ann@example.com", "bo@example.com", "cy@example.com")
    assert client.say(text + b".").startswith(b"250 ")
    assert [len(inbox(serving, name)) for name in ("ann", "bo", "cy")] == [1, 1, 1]


@pytest.mark.parametrize("text", [BIG, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("step", ["create", "fsync", "rename"])
@pytest.mark.parametrize("names", [("ann",), ("ann", "bo"), ("bo", "ann")], ids="-".join)
def test_b19_a_disk_that_fails_at_any_step_leaves_nothing(
    serving, dial, inbox, traces, failing, events, text, step, names
):
    addresses = [f"{name}@example.com" for name in names]
    client = dial(serving)
    client.begin(*addresses)
    assert client.say(b"Subject: first\r\n\r\n.").startswith(b"250")  # their homes are there
    before = traces(serving)
    del events[:]
    failing(step, "/bo/" if "bo" in names else "/ann/")
    client.begin(*addresses)
    assert client.say(text + b".").startswith(b"451 4.3.0 ")
    assert client.say("NOOP") == b"250 2.0.0 Ok"  # and not one line of the text was taken for a command
    files.on_step(None)
    assert traces(serving) == before
    assert [event for event, _ in events if event == "delivered"] == []
    client.begin(*addresses)
    assert client.say(text + b".").startswith(b"250 ")
    assert len(traces(serving)) == 2 * len(before)


@pytest.mark.parametrize("text", [BIG, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("others", [(), ("bo@example.com",)], ids=["alone", "with another"])
def test_f10_250_only_when_the_directory_is_synced(serving, dial, traces, failing, text, others):
    client = dial(serving)
    client.begin("ann@example.com", *others)
    client.say(b"Subject: first\r\n\r\n.")
    before = traces(serving)
    failing("fsync", "/ann/Maildir/new", errno.EIO)
    client.begin("ann@example.com", *others)
    assert client.say(text + b".").startswith(b"451 4.3.0 ")
    assert traces(serving) == before


def test_f10_the_steps_before_250_are_in_the_order_that_lasts(serving, dial):
    client = dial(serving)
    client.begin("ann@example.com")
    client.say(b"Subject: first\r\n\r\n.")
    steps = []
    files.on_step(lambda name, path: steps.append((name, path.rpartition("/Maildir/")[2].partition("/")[0])))
    try:
        client.begin("ann@example.com")
        assert client.say(b"Subject: x\r\n\r\n.").startswith(b"250 ")
        on_files = [(name, where) for name, where in steps if name != "commit"]
        assert on_files == [("create", "tmp"), ("fsync", "tmp"), ("rename", "new"), ("fsync", "new")]
        assert [name for name, _ in steps].index("commit") == 3, "the row after the name, both before the last sync"
    finally:
        files.on_step(None)


def test_f05_accounts_that_cannot_be_asked_are_a_temporary_failure(serving, dial):
    client = dial(serving)
    client.say("MAIL FROM:<x@elsewhere.org>")
    with closing(sqlite3.connect(serving.settings.accounts_path, isolation_level=None)) as database:
        database.execute("ALTER TABLE users RENAME TO hidden")
        assert client.say("RCPT TO:<ann@example.com>").startswith(b"451 4.3.0 ")
        database.execute("ALTER TABLE hidden RENAME TO users")
    assert client.say("RCPT TO:<ann@example.com>").startswith(b"250 ")


def test_s17_commands_in_a_text_that_cannot_be_written_are_not_executed(serving, dial, traces, failing):
    client = dial(serving)
    failing("create", "/ann/")
    client.begin("ann@example.com")
    evil = b"\r\nRSET\r\nMAIL FROM:<evil@elsewhere.org>\r\nRCPT TO:<bo@example.com>\r\nDATA\r\nSubject: evil\r\n"
    assert client.say(LARGE + evil + b".").startswith(b"451 4.3.0 ")
    assert client.say("NOOP") == b"250 2.0.0 Ok"
    assert traces(serving) == []


@pytest.mark.parametrize("text", [BIG, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("end", [b"", b"\r\n.", b"\r\n.\r", b"\n.\n"])
def test_a_client_that_drops_inside_the_text_leaves_nothing(serving, dial, traces, events, text, end):
    client = dial(serving)
    client.begin("ann@example.com", "bo@example.com")
    client.send(text.removesuffix(b"\r\n") + end)
    client.sock.shutdown(socket.SHUT_WR)
    assert client.rest() == b""
    assert traces(serving) == []
    assert "delivered" not in [event for event, _ in events]


def test_a_client_that_closes_its_side_after_the_dot_is_answered(serving, dial, inbox):
    client = dial(serving)
    client.begin("ann@example.com")
    client.send(b"Subject: x\r\n\r\n.\r\n")
    client.sock.shutdown(socket.SHUT_WR)
    assert client.rest().startswith(b"250 2.0.0 ")
    assert len(inbox(serving, "ann")) == 1


# ---------------------------------------------------------------- quota


def test_b17_quota_counts_a_message_once(serving, dial, inbox):
    serving.accounts.set_quota("ann@example.com", 5 * (len(BIG) + 250))
    client = dial(serving)
    accepted = 0
    while accepted < 10:
        client.begin("ann@example.com")
        answer = client.say(BIG + b".")
        if not answer.startswith(b"250"):
            break
        accepted += 1
    assert answer.startswith(b"452 4.2.2 ")
    stored = inbox(serving, "ann")
    assert len(stored) == accepted
    total = sum(map(len, stored))
    assert total <= 5 * (len(BIG) + 250) < total + len(stored[0])


def test_s34_quota_at_rcpt_by_the_declared_size(serving, dial, inbox):
    serving.accounts.set_quota("ann@example.com", 10_000)
    client = dial(serving)
    assert client.say("MAIL FROM:<x@elsewhere.org> SIZE=10001", "RCPT TO:<ann@example.com>").startswith(b"452 4.2.2 ")
    assert client.say("RCPT TO:<bo@example.com>").startswith(b"250 ")
    assert client.say("RSET", "MAIL FROM:<x@elsewhere.org> SIZE=9000", "RCPT TO:<ann@example.com>").startswith(b"250 ")


def test_s34_quota_at_commit_for_one_of_several_refuses_for_all(serving, dial, traces):
    serving.accounts.set_quota("bo@example.com", 600)
    client = dial(serving)
    client.begin("ann@example.com", "bo@example.com")
    assert client.say(BIG + b".").startswith(b"452 4.2.2 ")
    assert traces(serving) == []


def test_s34_two_messages_at_once_cannot_both_use_what_is_left(serving, dial, inbox):
    serving.accounts.set_quota("ann@example.com", 2 * len(BIG))
    clients = [dial(serving) for _ in range(5)]
    for client in clients:
        client.begin("ann@example.com")
    for client in clients:
        client.send(BIG + b".\r\n")
    answers = sorted(client.reply()[:9] for client in clients)
    assert answers == [b"250 2.0.0", b"452 4.2.2", b"452 4.2.2", b"452 4.2.2", b"452 4.2.2"]
    assert len(inbox(serving, "ann")) == 1


# ---------------------------------------------------------------- a copy for the sender


def _sent(client, text):
    client.begin("bo@example.com", sender="ann@example.com")
    assert client.say(text + b".").startswith(b"250")


def test_f06_b25_copy_in_sent_is_seen_and_only_one(serve, dial, inbox):
    serving = serve(**{"submission.save_sent": True})
    client = dial(serving, "submissions", user="ann")
    text = b"Date: Mon, 01 Jan 2024 00:00:00 +0000\r\nMessage-ID: <1@example.com>\r\nSubject: x\r\n\r\nText.\r\n"
    _sent(client, text)
    assert inbox(serving, "ann", ".Sent") == [text]
    (path,) = (serving.maildir("ann") / ".Sent" / "cur").iterdir()
    assert path.name.endswith(":2,S")
    _sent(client, text)  # the client's own copy, or this one, is there already
    assert len(inbox(serving, "ann", ".Sent")) == 1
    assert len(inbox(serving, "bo")) == 2


def test_f06_no_copy_in_sent_unless_asked_for(serving, dial, inbox):
    client = dial(serving, "submissions", user="ann")
    _sent(client, b"Subject: x\r\n\r\n")
    assert inbox(serving, "ann", ".Sent") == []


@pytest.mark.parametrize("pieces", [1, 2, 20])
def test_submission_adds_date_and_message_id_where_they_lack(serving, dial, inbox, pieces):
    client = dial(serving, "submissions", user="ann")
    client.begin("bo@example.com", sender="ann@example.com")
    text = b"Subject: x\r\nFrom: ann@example.com\r\n\r\nDate: not a field\r\n.\r\n"
    step = -(-len(text) // pieces)
    for start in range(0, len(text), step):
        client.send(text[start : start + step])
        time.sleep(0.001 if pieces > 1 else 0)
    assert client.reply().startswith(b"250")
    header = inbox(serving, "bo")[0].partition(b"\r\n\r\n")[0]
    assert len(re.findall(rb"(?m)^Date: \w{3}, \d\d ", header)) == 1
    assert len(re.findall(rb"(?m)^Message-ID: <[0-9a-f]{24}@mx\.example\.com>\r?$", header)) == 1


def test_submission_keeps_date_and_message_id_that_are_there(serving, dial, inbox):
    client = dial(serving, "submissions", user="ann")
    _sent(client, b"date: Mon, 01 Jan 2024 00:00:00 +0000\r\nMESSAGE-ID:\r\n <1@example.com>\r\n\r\n")
    assert inbox(serving, "bo")[0].lower().count(b"\r\ndate:") == 1
    assert inbox(serving, "bo")[0].lower().count(b"\r\nmessage-id:") == 1


def test_port_25_adds_no_fields_of_the_author(serving, dial, inbox):
    client = dial(serving)
    client.begin("ann@example.com")
    assert client.say(b"Subject: x\r\n\r\n.").startswith(b"250")
    assert b"\r\nDate:" not in inbox(serving, "ann")[0] and b"Message-ID" not in inbox(serving, "ann")[0]
