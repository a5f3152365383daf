"""From a user's submission to another server, through the settings, the queue and the DNS."""

import email
import email.policy
import smtplib
import ssl

import gevent
import pytest

from tests.fakes.world import World

TEXT = "From: ann@example.com\r\nTo: bo@example.org\r\nSubject: out\r\n\r\nthere\r\n"


@pytest.fixture
def world(tmp_path):
    with World(tmp_path) as made:
        yield made


def submit(serving, recipients):
    context = serving.client_tls
    assert isinstance(context, ssl.SSLContext)
    with smtplib.SMTP("localhost", serving.ports["submission"], timeout=60) as client:
        client.starttls(context=context)
        client.login("ann@example.com", "correct horse")
        client.sendmail("ann@example.com", recipients, TEXT)


def test_f07_a_submitted_message_reaches_the_mx_of_its_domain(world, serve, tls_of):
    sink = world.domain("example.org", tls=tls_of("mx.example.org"))
    serving = serve(**{"dns.nameservers": ["127.0.0.1"], "dns.port": world.dns.port, "relay.port": world.port})
    submit(serving, ["bo@example.org", "bo@example.com"])
    assert sink.arrived.wait(20)
    [message] = sink.messages
    assert message.recipients == ["bo@example.org"] and message.tls
    assert message.text.endswith(TEXT.encode()) and message.text.startswith(b"Received: from ")
    assert sink.connections[0].lines[0] == "EHLO mx.example.com"
    assert ("_mta-sts.example.org", "TXT", "udp") in world.dns.queries
    with gevent.Timeout(60):  # the copy for our own user was there before the 250
        assert len(list((serving.maildir("bo") / "new").iterdir())) == 1


def test_b20_a_route_for_everybody_does_not_take_local_mail_away(world, serve):
    sink = world.host("smart.example.net", "127.0.0.2")
    routes = [{"host": "smart.example.net", "port": world.port}]
    serving = serve(**{"dns.nameservers": ["127.0.0.1"], "dns.port": world.dns.port, "relay.routes": routes})
    submit(serving, ["bo@example.com", "x@elsewhere.example"])
    assert sink.arrived.wait(20)
    assert sink.recipients == ["x@elsewhere.example"]
    assert len(list((serving.maildir("bo") / "new").iterdir())) == 1


@pytest.mark.parametrize("body", ["Gr\xfc\xdfe", "z" * 3000], ids=["8-bit", "long line"])
def test_a_report_reaches_a_7_bit_host(world, serve, dial, body):
    """A forward fails; the sender's host has neither 8BITMIME nor SMTPUTF8."""
    refuses = world.domain("example.org")
    refuses.on["RCPT shop@example.org"] = "550 5.1.1 gone"
    plain = world.domain("third.org", extensions=("PIPELINING",))
    settings = {"dns.nameservers": ["127.0.0.1"], "dns.port": world.dns.port, "relay.port": world.port}
    serving = serve(**settings)
    serving.accounts.add_alias("sales@example.com", ["shop@example.org"])
    client = dial(serving)
    for command in ("MAIL FROM:<x@third.org> BODY=8BITMIME", "RCPT TO:<sales@example.com>"):
        assert client.say(command).startswith(b"250 ")
    assert client.say("DATA", f"Subject: out\r\n\r\n{body}\r\n.").startswith(b"250 ")
    assert plain.arrived.wait(20)
    [message] = plain.messages
    assert message.recipients == ["x@third.org"] and message.mail.startswith("MAIL FROM:<>")
    assert message.text.isascii() and max(map(len, message.text.split(b"\r\n"))) <= 998
    assert b"text/rfc822-headers" in message.text


@pytest.mark.parametrize("srs", [False, True])
@pytest.mark.parametrize("able", [False, True])
def test_a_report_to_an_address_with_other_letters_needs_a_host_that_takes_them(world, serve, dial, srs, able):
    """The envelope needs SMTPUTF8, whatever the report is written in. Not offered, the postmaster is told."""
    refuses = world.domain("example.org")
    refuses.on["RCPT shop@example.org"] = "550 5.1.1 gone"
    third = world.domain("third.org", extensions=("PIPELINING", "8BITMIME", *(["SMTPUTF8"] if able else [])))
    settings = {"dns.nameservers": ["127.0.0.1"], "dns.port": world.dns.port, "relay.port": world.port}
    serving = serve(**settings, **{"forwarding.srs": srs})
    serving.accounts.add_alias("sales@example.com", ["shop@example.org"])
    serving.accounts.add_alias("postmaster@example.com", ["cy@example.com"])
    client = dial(serving)
    for command in ("MAIL FROM:<jürgen@third.org> SMTPUTF8", "RCPT TO:<sales@example.com>"):
        assert client.say(command).startswith(b"250 ")
    assert client.say("DATA", "Subject: Grüße\r\n\r\nText.\r\n.").startswith(b"250 ")
    folder = serving.maildir("cy") / "new"
    if able:
        assert third.arrived.wait(20)
        [message] = third.messages
        assert message.recipients == ["jürgen@third.org"] and "SMTPUTF8" in message.mail.split()
        kind = "delivery-status" if srs else "global-delivery-status"
        assert f"message/{kind}\r\n".encode() in message.text and not folder.exists()
        return
    with gevent.Timeout(60):
        while not folder.exists() or not list(folder.iterdir()):
            gevent.sleep(0.01)
    [path] = folder.iterdir()
    told = email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
    assert told["Subject"].startswith("Undeliverable report: ") and third.messages == []
    words = next(told.iter_parts()).get_content()
    assert "jürgen@third.org" in words and "SMTPUTF8" in words and "The sender of this message cannot be told" in words
