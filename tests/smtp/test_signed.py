"""Signatures on the wire: what a host receives verifies with the keys in the DNS, whatever way the message took."""

import os
import re
from dataclasses import replace

import dkim
import pytest

from mailsrv.dns_check import lookup_by
from mailsrv.mail.dkim import ACTIVE, NEW, Keys
from mailsrv.mail.signing import Signer
from mailsrv.net.resolver import Resolver, ResolverSettings
from mailsrv.rotation import Rotation
from mailsrv.values import AccountId, Disposition
from mailsrv.wire.draft import parse_authors
from mailsrv.wire.lines import WholeLines
from tests.daemon.conftest import until
from tests.fakes.dns import SERVFAIL
from tests.fakes.sink import EXTENSIONS
from tests.fakes.world import World

HEADER = b"Received: from a by b\r\nFrom: Ann <ann@example.com>\r\nTo: bo@far.example\r\nSubject: hello\r\n"


@pytest.fixture
def world(tmp_path):
    """Its relay signs for example.com, whose keys are in its DNS."""
    keys = Keys(str(tmp_path / "dkim"))
    with World(tmp_path) as made:
        publish(made, keys, keys.generate("example.com"))
        made.more["sign"] = Signer(
            keys, may_author=lambda account, author: True, authors=parse_authors, whole_lines=WholeLines
        ).sign
        yield made


def publish(world, keys, some):
    for key in some:
        record = keys.record(key)
        world.dns.add(key.name, "TXT", f'"{record[:255]}" "{record[255:]}"')


def verdicts(world, text):
    lookup = lookup_by(world.resolver)
    count = text.partition(b"\r\n\r\n")[0].count(b"DKIM-Signature:")
    asked = [dkim.DKIM(text) for _ in range(count)]
    return [
        one.verify(number, dnsfunc=lambda name, timeout=5: lookup(name.decode().rstrip("."), "TXT")[0].encode())
        for number, one in enumerate(asked)
    ]


def received(world, text, **more):
    job = replace(world.job("bo@far.example", text=text), account=AccountId(1), **more)
    assert [one.disposition for one in world.relay(job)] == [Disposition.SENT]
    [message] = world.sinks["mx.far.example"].messages
    return message.text


@pytest.mark.parametrize(
    "text",
    [
        HEADER + b"\r\nHow are you?\r\n", HEADER + b"\r\n.\r\n..\r\n. x\r\n\r\n\r\n", HEADER + b"\r\n", HEADER,
        HEADER.replace(b"\r\n", b"\n") + b"\nlone\nLF\rand CR\r\r\n.\n.", HEADER + b"\r\nno line end",
        HEADER + b"\r\n" + os.urandom(48).hex().encode().join([b"\r\n.", b" \t\r\n\n"] * 1600),
    ],
    ids=["plain", "dots", "no body", "header alone", "lone", "unfinished", "large"],
)  # fmt: skip
@pytest.mark.parametrize("extensions", [EXTENSIONS, (*EXTENSIONS, "CHUNKING")], ids=["DATA", "BDAT"])
def test_s02_what_arrives_verifies(world, text, extensions):
    world.domain("far.example", extensions=extensions)
    arrived = received(world, text)
    assert arrived.startswith(b"DKIM-Signature: v=1; a=rsa-sha256;")
    lines = WholeLines()
    assert arrived.endswith(b"\r\n" + (lines.feed(text) + lines.end())), "the rest is what it was"
    assert verdicts(world, arrived) == [True, True]
    with pytest.raises(dkim.DKIMException):
        verdicts(world, arrived + b"x\r\n")


def test_b18_nothing_is_added_to_what_is_not_ours(world):
    world.domain("far.example")
    text = HEADER + b"\r\nHow are you?\r\n"
    job = world.job("bo@far.example", text=text)
    assert [one.disposition for one in world.relay(job)] == [Disposition.SENT]
    [message] = world.sinks["mx.far.example"].messages
    assert message.text == text


def test_b21_new_keys_sign_when_they_are_seen(world, tmp_path, events):
    keys = Keys(str(tmp_path / "dkim"))
    world.domain("far.example")
    looks = lookup_by(Resolver(ResolverSettings(("127.0.0.1",), world.dns.port)))
    rotation = Rotation(keys, looks)
    assert rotation.look() == [], "nothing to do"
    new = keys.rotate("example.com")
    publish(world, keys, new[:1])
    world.dns.fail(new[1].name, "TXT", SERVFAIL)
    assert rotation.look() == [] and len(keys.of("example.com", NEW)) == 2
    publish(world, keys, new[1:])
    assert Rotation(keys, lookup_by(world.resolver)).look() == ["example.com"], (
        "by a resolver that remembers nothing yet"
    )
    assert {key.selector for key in keys.of("example.com", ACTIVE)} == {key.selector for key in new}
    assert ("dkim keys activated", "example.com") in [(event, fields.get("domain")) for event, fields in events]
    text = HEADER + b"\r\nHow are you?\r\n"
    arrived = received(world, text)
    assert f"s={new[0].selector};".encode() in arrived and verdicts(world, arrived) == [True, True]


# ------------------------------------------------------------------ the whole server


@pytest.fixture
def server(world, serve):
    """Its DNS and its world are the test's, and so are the keys of example.com that it signs with."""
    made = serve(**{"dns.nameservers": ["127.0.0.1"], "dns.port": world.dns.port, "relay.port": world.port})
    publish(world, Keys(made.settings.dkim_path), Keys(made.settings.dkim_path).generate("example.com"))
    return made


def submit(client, sender, recipient, text):
    for command in (f"MAIL FROM:<{sender}>", f"RCPT TO:<{recipient}>"):
        assert client.say(command).startswith(b"250 "), command
    assert client.say("DATA", text + "\r\n.").startswith(b"250 ")


def test_b21_users_mail_is_signed_forwards_keep_spf_and_reports_find_the_sender(server, world, dial):
    sink = world.domain("far.example")
    back = world.domain("third.example")
    ann = dial(server, "submissions", user="ann")
    submit(ann, "ann@example.com", "bo@far.example", "From: Ann <ann@example.com>\r\nSubject: one\r\n\r\nText.")
    until(lambda: sink.messages, "sent")
    assert verdicts(world, sink.messages[0].text) == [True, True]
    submit(ann, "ann@example.com", "bo@far.example", "From: Bo <bo@example.com>\r\nSubject: two\r\n\r\nText.")
    until(lambda: len(sink.messages) == 2, "sent")
    assert verdicts(world, sink.messages[1].text) == [], "somebody else's name is not vouched for (B18)"

    server.accounts.add_alias("info@example.com", ["Cy@far.example"])
    stranger = dial(server)
    original = "From: Eve <eve@third.example>\r\nSubject: three\r\n\r\nText."
    submit(stranger, "eve@third.example", "info@example.com", original)
    until(lambda: len(sink.messages) == 3, "forwarded")
    forwarded = sink.messages[2]
    assert forwarded.recipients == ["Cy@far.example"] and verdicts(world, forwarded.text) == []
    made = re.search(r"<(SRS0=[^>]+@example\.com)>", forwarded.mail)[1]
    assert made.endswith("=third.example=eve@example.com")
    assert forwarded.text.endswith(original.encode() + b"\r\n"), "the author's own signature would hold"

    # The report of the next server comes to the rewritten sender, and goes on to the original one.
    submit(stranger, "", made, "From: MAILER-DAEMON@far.example\r\nSubject: failed\r\n\r\nText.")
    until(lambda: back.messages, "passed on")
    assert "FROM:<>" in back.messages[0].mail and back.messages[0].recipients == ["eve@third.example"]
    assert stranger.say("MAIL FROM:<x@third.example>").startswith(b"250 ")
    assert stranger.say(f"RCPT TO:<{made}>").startswith(b"550 5.1.1 "), "reports only"

    # And what fails here is reported by us, signed.
    stranger.say("RSET")
    sink.on["RCPT Cy@far.example"] = "550 5.1.1 gone"
    submit(stranger, "eve@third.example", "info@example.com", original)
    until(lambda: len(back.messages) == 2, "reported")
    report = back.messages[1]
    assert "FROM:<>" in report.mail and b"multipart/report" in report.text
    assert verdicts(world, report.text) == [True, True]
