"""Signatures on the wire: what a host receives verifies with the keys in the DNS, whatever way the message took."""

import os
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
    looks = lookup_by(Resolver(ResolverSettings(("127.0.0.1",), world.dns.port, try_seconds=0.5)))
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
