"""What a server says, read; what it is told, written."""

import random

import pytest

from mailsrv.values import Address, Envelope, RecipientOptions
from mailsrv.wire.errors import WireError
from mailsrv.wire.smtp_client import (
    REPLY_LINES,
    REPLY_OCTETS,
    Offers,
    ReplyReader,
    ServerReply,
    mail_command,
    parse_offers,
    path,
    rcpt_command,
    xtext,
)  # fmt: skip


def read(*lines):
    reader = ReplyReader()
    *before, last = [reader.feed(line) for line in lines]
    assert before == [None] * len(before)
    return last


@pytest.mark.parametrize(
    ("lines", "reply"),
    [
        ([b"250 2.1.0 Ok"], ServerReply(250, "2.1.0", ("Ok",))),
        ([b"250"], ServerReply(250, "", ("",))),
        ([b"354 go"], ServerReply(354, "", ("go",))),
        ([b"550-5.1.1 no", b"550 5.1.1 such user"], ServerReply(550, "5.1.1", ("no", "such user"))),
        ([b"550-no", b"550-5.7.1 at", b"550 all"], ServerReply(550, "5.7.1", ("no", "at", "all"))),
        ([b"550 4.1.1 liar"], ServerReply(550, "", ("liar",))),
        ([b"250-2.0.0 a", b"550 b"], ServerReply(550, "", ("a", "b"))),
        ([b"450 4.7.1"], ServerReply(450, "4.7.1", ("",))),
        ([b"550 5.1.1234 x"], ServerReply(550, "", ("5.1.1234 x",))),
        ([b"250 caf\xc3\xa9 \xff\x07"], ServerReply(250, "", ("caf\u00e9 \\xff",))),
    ],
)
def test_replies(lines, reply):
    assert read(*lines) == reply


@pytest.mark.parametrize(
    "line", [b"", b"25", b"250x", b"199 x", b"600 x", b"2 50 x", b"abc d", b"\xb2\xb3\xb4 x", b"+25 x"]
)
def test_what_is_no_reply(line):
    with pytest.raises(WireError):
        read(line)


def test_s04_replies_are_bounded():
    reader = ReplyReader()
    for _ in range(REPLY_LINES):
        assert reader.feed(b"250-x") is None
    with pytest.raises(WireError):
        reader.feed(b"250 x")
    reader = ReplyReader()
    with pytest.raises(WireError):
        for _ in range(REPLY_OCTETS // 1000 + 1):
            reader.feed(b"250-" + b"x" * 1000)


def test_garbage_gives_a_reply_or_a_wire_error():
    chance = random.Random(7)
    for _ in range(3000):
        line = bytes(chance.choice(b"2345 -.0\x00\xffax") for _ in range(chance.randrange(12)))
        try:
            reply = ReplyReader().feed(line)
        except WireError:
            continue
        assert reply is None or (200 <= reply.code < 600 and reply.text.isprintable())


def test_offers():
    reply = ServerReply(
        250, "", ("mx hello", "SIZE 1000", "auth PLAIN", "AUTH=LOGIN", "LIMITS RCPTMAX=7 MAILMAX=x", "", "8bitmime")
    )
    offers = parse_offers(reply)
    assert offers.size_limit == 1000 and offers.keywords["AUTH"] == ("PLAIN", "LOGIN") and "8BITMIME" in offers
    assert (offers.limit("RCPTMAX"), offers.limit("MAILMAX"), offers.limit("OTHER")) == (7, 0, 0)
    assert "MX" not in offers
    for size in ("", "-1", "9" * 30, "\u0661"):
        assert parse_offers(ServerReply(250, "", ("x", f"SIZE {size}"))).size_limit == 0


ALL = Offers(dict.fromkeys(("SIZE", "8BITMIME", "SMTPUTF8", "DSN", "REQUIRETLS"), ()))


def test_commands():
    envelope = Envelope(Address("a b", "example.org"), ret="FULL", envid="x=y", require_tls=True)
    assert mail_command(envelope, ALL, size=7, eight_bit=True, utf8=True) == (
        b'MAIL FROM:<"a b"@example.org> SIZE=7 BODY=8BITMIME SMTPUTF8 REQUIRETLS RET=FULL ENVID=x+3Dy\r\n'
    )
    assert mail_command(Envelope(None), Offers(), size=7, eight_bit=True, utf8=False) == b"MAIL FROM:<>\r\n"
    asked = RecipientOptions(frozenset({"DELAY", "FAILURE"}), "rfc822;a+b@c")
    assert rcpt_command(Address("a", "b.example"), asked, ALL) == (
        b"RCPT TO:<a@b.example> NOTIFY=FAILURE,DELAY ORCPT=rfc822;a+2Bb@c\r\n"
    )
    assert rcpt_command(Address("a", "b.example"), asked, Offers()) == b"RCPT TO:<a@b.example>\r\n"
    odd = RecipientOptions(orcpt="x y;\u00e4")
    assert rcpt_command(Address("a", "b.example"), odd, ALL) == b"RCPT TO:<a@b.example>\r\n"


def test_xtext_is_printable_and_can_be_read_back():
    assert xtext("a+b=c d\u00e9\r\n") == "a+2Bb+3Dc+20d+C3+A9+0D+0A"


@pytest.mark.parametrize("local", ["a\r\nb", "a\nb", "\x00", "a\x7f", "\u2028"])
def test_s23_no_command_has_two_lines(local):
    with pytest.raises(WireError):
        path(Address(local, "example.org"))
    with pytest.raises(WireError):
        path(Address("a", f"{local}.example"))
