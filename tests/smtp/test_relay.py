"""Nobody sends through this server to another one, and nobody submits without being who they say (S15, B18)."""

import smtplib

import pytest

ELSEWHERE = [
    "victim@elsewhere.org",
    "victim@sub.example.com",
    "victim@example.com.elsewhere.org",
    "victim@notexample.com",
    "victim@[192.0.2.1]",
    "victim@[IPv6:2001:db8::1]",
    "@example.com:victim@elsewhere.org",
    "@mx.example.com,@example.com:victim@elsewhere.org",
    "victim@localhost",
    "victim@mx.example.com",
    "postmaster@elsewhere.org",
]
TRICKS = [
    "victim%elsewhere.org@example.com",
    "victim%elsewhere.org@[127.0.0.1]",
    "ann%elsewhere.org%example.com@mx.example.com",
    '"victim@elsewhere.org"@example.com',
    '"victim%elsewhere.org"@example.com',
    '"victim@elsewhere.org"',
    "victim@elsewhere.org@example.com",
    "victim@example.com@elsewhere.org",
    "elsewhere.org!victim@example.com",
    "elsewhere.org!victim",
    "victim@",
    "victim",
]


@pytest.mark.parametrize("recipient", ELSEWHERE + TRICKS)
@pytest.mark.parametrize("sender", ["x@elsewhere.org", "ann@example.com", "postmaster@mx.example.com", ""])
def test_s15_port_25_relays_for_nobody(serving, dial, traces, sender, recipient):
    client = dial(serving)
    assert client.say(f"MAIL FROM:<{sender}>").startswith(b"250")
    assert client.say(f"RCPT TO:<{recipient}>")[:3] in (b"550", b"501", b"553")
    assert client.say("DATA").startswith(b"503 ")
    assert traces(serving) == []


@pytest.mark.parametrize("recipient", ELSEWHERE)
def test_s15_only_who_has_logged_in_sends_elsewhere(serving, dial, recipient):
    client = dial(serving, "submissions", user="ann")
    assert client.say("MAIL FROM:<ann@example.com>", f"RCPT TO:<{recipient}>").startswith(b"250 2.1.5 ")


@pytest.mark.parametrize("recipient", TRICKS)
def test_s15_nobody_has_use_for_old_tricks(serving, dial, recipient):
    client = dial(serving, "submissions", user="ann")
    client.say("MAIL FROM:<ann@example.com>")
    assert client.say(f"RCPT TO:<{recipient}>")[:3] in (b"550", b"501", b"553")
    assert client.say("DATA").startswith(b"503 ")


@pytest.mark.parametrize("recipient", ["ann@example.com", "victim@elsewhere.org"])
@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("service", ["submission", "submissions"])
def test_b18_s15_submission_without_auth_takes_nothing(serving, dial, traces, service, tls, recipient):
    client = dial(serving, service, tls=tls)
    for sender in ("ann@example.com", "x@elsewhere.org", ""):
        assert client.say(f"MAIL FROM:<{sender}>") == b"530 5.7.0 Authentication required"
        assert client.say(f"RCPT TO:<{recipient}>").startswith(b"503 ")
        assert client.say("DATA").startswith(b"503 ")
    assert traces(serving) == []


def test_b18_a_refused_login_opens_nothing(serving, pair):
    client, _ = pair(serving, submission=True)
    client.reply()
    client.say("EHLO c")
    assert client.login("ann", "wrong password").startswith(b"535 5.7.8 ")
    assert client.say("MAIL FROM:<ann@example.com>").startswith(b"530 5.7.0 ")


@pytest.mark.parametrize(
    ("sender", "taken"),
    [
        ("ann@example.com", True),
        ("ANN@Example.COM", True),
        ("ann+shop@example.com", True),
        ("sales@example.com", True),
        ("sales+x@example.com", True),
        ("team@example.com", True),
        ("bo@example.com", False),
        ("bo+ann@example.com", False),
        ("support@example.com", False),
        ("nobody@example.com", False),
        ("ann@elsewhere.org", False),
        ("ann@sub.example.com", False),
        ("ann@[127.0.0.1]", False),
        ("", True),  # a read receipt has the null sender (RFC 8098 3): nobody else is named
    ],
)
def test_b18_users_send_as_themselves(serving, dial, inbox, sender, taken):
    serving.accounts.add_alias("sales@example.com", ["ann@example.com"])
    serving.accounts.add_alias("team@example.com", ["bo@example.com", "sales@example.com"])
    serving.accounts.add_alias("support@example.com", ["bo@example.com"])
    client = dial(serving, "submissions", user="ann")
    answer = client.say(f"MAIL FROM:<{sender}>")
    if not taken:
        assert answer.startswith(b"553 5.7.1 ")
        assert client.say("RCPT TO:<bo@example.com>").startswith(b"503 ")
        return
    assert client.say("RCPT TO:<bo@example.com>", "DATA", b"Subject: x\r\n\r\n.").startswith(b"250 ")
    own = sender.partition("@")[0] + "@" if sender else ""
    assert inbox(serving, "bo")[0].startswith(f"Return-Path: <{own}".encode())


def test_b18_catch_all_gives_no_right_to_every_address(serving, dial):
    serving.accounts.set_catch_all("example.com", "ann@example.com")
    client = dial(serving, "submissions", user="ann")
    assert client.say("MAIL FROM:<anything@example.com>").startswith(b"553 5.7.1 ")


def test_f12_a_user_disabled_meanwhile_sends_nothing_more(serving, dial):
    client = dial(serving, "submissions", user="ann")
    serving.accounts.set_enabled("ann@example.com", False)
    assert client.say("MAIL FROM:<ann@example.com>").startswith(b"530 5.7.0 ")


def test_s15_xclient_and_proxy_are_unknown(serving, dial):
    client = dial(serving)
    assert client.say("XCLIENT ADDR=127.0.0.1 LOGIN=ann@example.com").startswith(b"500 ")
    assert client.say("XFORWARD ADDR=127.0.0.1").startswith(b"500 ")
    assert client.say("PROXY TCP4 127.0.0.1 127.0.0.1 1 25").startswith(b"500 ")


def test_s13_refused_at_rcpt_never_after_250(serving, traces):
    """What cannot be delivered is said at RCPT, so that nothing ever has to be returned to a forged sender."""
    with (
        smtplib.SMTP("127.0.0.1", serving.ports["smtp"]) as client,
        pytest.raises(smtplib.SMTPRecipientsRefused) as refused,
    ):
        client.sendmail("forged@elsewhere.org", ["no@example.com", "x@other.org"], "Subject: x\r\n\r\n")
    codes = {address: code for address, (code, _) in refused.value.recipients.items()}
    assert codes == {"no@example.com": 550, "x@other.org": 550}
    assert traces(serving) == []
