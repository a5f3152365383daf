"""AUTH on submission: only inside TLS, once, with every way of failing answered alike, slowed and counted."""

import base64
import smtplib
import sqlite3
import time
from contextlib import closing

import pytest

PASSWORD = "correct horse"


def _b64(text):
    return base64.b64encode(text if isinstance(text, bytes) else text.encode()).decode()


def _plain(user, password=PASSWORD, authorize=""):
    return _b64(f"{authorize}\0{user}\0{password}")


@pytest.fixture
def submitter(serving, pair):
    """A greeted client of a submission session inside TLS, without delays."""

    def start(**settings):
        client, _ = pair(serving, submission=True, **settings)
        client.reply()
        client.say("EHLO c")
        return client

    return start


@pytest.mark.parametrize("service", ["submission", "submissions"])
@pytest.mark.parametrize("method", ["PLAIN", "LOGIN"])
def test_f05_another_programs_client_logs_in(serving, inbox, service, method):
    port = serving.ports[service]
    if service == "submissions":
        client = smtplib.SMTP_SSL("localhost", port, context=serving.client_tls)
    else:
        client = smtplib.SMTP("localhost", port)
        client.starttls(context=serving.client_tls)
    with client:
        client.ehlo()
        client.user, client.password = "ann@example.com", PASSWORD
        code, _ = client.auth(method, getattr(client, f"auth_{method.lower()}"))
        assert code == 235
        client.sendmail("ann@example.com", ["bo@example.com"], "Subject: x\r\n\r\n")
    assert len(inbox(serving, "bo")) == 1


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "NONSENSE"])
def test_s32_no_auth_in_clear(serving, dial, mechanism):
    client = dial(serving, "submission")
    assert b"AUTH" not in client.say("EHLO c")
    assert client.say(f"AUTH {mechanism} {_plain('ann@example.com')}").startswith(b"538 5.7.11 ")
    assert client.say("MAIL FROM:<ann@example.com>").startswith(b"530 ")


@pytest.mark.parametrize("tls", [False, True])
def test_s32_no_auth_on_port_25(serving, dial, tls):
    client = dial(serving, tls=tls)
    assert b"AUTH" not in client.say("EHLO c")
    assert client.say(f"AUTH PLAIN {_plain('ann@example.com')}").startswith(b"502 5.5.1 ")


@pytest.mark.parametrize(
    "lines",
    [
        [f"AUTH PLAIN {_plain('ann@example.com')}"],
        [f"auth plain {_plain('ANN@Example.com')}"],
        [f"AUTH PLAIN {_plain('ann')}"],
        [f"AUTH PLAIN {_plain('ann@example.com', authorize='ann@example.com')}"],
        ["AUTH PLAIN", _plain("ann@example.com")],
        ["AUTH LOGIN", _b64("ann@example.com"), _b64(PASSWORD)],
        [f"AUTH LOGIN {_b64('ann@example.com')}", _b64(PASSWORD)],
    ],
)
def test_f05_ways_to_log_in(submitter, lines):
    client = submitter()
    for line in lines[:-1]:
        assert client.say(line).startswith(b"334 ")
    assert client.say(lines[-1]) == b"235 2.7.0 Authentication succeeded"
    assert client.say("MAIL FROM:<ann@example.com>").startswith(b"250 ")


def test_challenges_are_what_clients_know(submitter):
    client = submitter()
    assert client.say("AUTH LOGIN") == b"334 " + base64.b64encode(b"Username:")
    assert client.say(_b64("ann@example.com")) == b"334 " + base64.b64encode(b"Password:")
    assert client.say("*").startswith(b"501 ")
    assert client.say("AUTH PLAIN") == b"334 "  # RFC 4954 4: an empty challenge, with its space


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["AUTH PLAIN", "*"], "501 5.7.0"),
        (["AUTH LOGIN", "*"], "501 5.7.0"),
        (["AUTH LOGIN", _b64("ann@example.com"), "*"], "501 5.7.0"),
        (["AUTH PLAIN", "not base64!"], "501 5.5.4"),
        (["AUTH PLAIN", "QUJ"], "501 5.5.4"),
        (["AUTH PLAIN", ""], "501 5.5.4"),
        (["AUTH PLAIN !!!"], "501 5.5.4"),
        (["AUTH PLAIN ="], "501 5.5.4"),
        (["AUTH PLAIN é"], "501 5.5.4"),
        ([f"AUTH PLAIN {_b64('ann@example.com')}"], "501 5.5.4"),
        ([f"AUTH PLAIN {_b64(chr(0) * 5)}"], "501 5.5.4"),
        ([f"AUTH PLAIN {_b64(b'%cann%c' % (0, 0) + bytes([0xFF]))}"], "501 5.5.4"),
        ([f"AUTH PLAIN {_b64('x' * 9000)}"], "501 5.5.4"),
        ([f"AUTH PLAIN {_plain('ann@example.com', 'wrong password')}"], "535 5.7.8"),
        ([f"AUTH PLAIN {_plain('nobody@example.com')}"], "535 5.7.8"),
        ([f"AUTH PLAIN {_plain('ann@example.com', '')}"], "535 5.7.8"),
        ([f"AUTH PLAIN {_plain('ann@example.com', authorize='bo@example.com')}"], "535 5.7.8"),
        ([f"AUTH PLAIN {_plain('%')}"], "535 5.7.8"),
        (["AUTH LOGIN", _b64("ann@example.com"), _b64("wrong password")], "535 5.7.8"),
        (["AUTH"], "504 5.5.4"),
        (["AUTH CRAM-MD5"], "504 5.5.4"),
        (["AUTH PLAIN " + "A" * 12260], "501 5.5.4"),
        (["AUTH PLAIN", "A" * 13000], "50"),
        (["AUTH PLAIN " + "A" * 13000], "50"),
    ],
)
def test_s32_ways_to_fail(submitter, lines, expected):
    client = submitter()
    for line in lines[:-1]:
        assert client.say(line).startswith(b"334 ")
    assert client.say(lines[-1]).decode().startswith(expected)
    assert client.say("NOOP") == b"250 2.0.0 Ok"  # the exchange is over: commands are read again
    assert client.say("MAIL FROM:<ann@example.com>").startswith(b"530 ")
    assert client.say(f"AUTH PLAIN {_plain('ann@example.com')}").startswith(b"235 ")


def test_s32_one_auth_for_each_session(submitter):
    client = submitter()
    assert client.say(f"AUTH PLAIN {_plain('ann@example.com')}").startswith(b"235 ")
    assert client.say(f"AUTH PLAIN {_plain('bo@example.com')}").startswith(b"503 5.5.1 ")
    assert client.say("MAIL FROM:<bo@example.com>").startswith(b"553 ")


def test_s32_login_outlives_ehlo_and_rset(submitter):
    client = submitter()
    client.say(f"AUTH PLAIN {_plain('ann@example.com')}")
    assert client.say("EHLO c", "RSET", "MAIL FROM:<ann@example.com>").startswith(b"250 ")


def test_s19_unknown_disabled_and_wrong_are_answered_alike(serving, submitter):
    serving.accounts.set_enabled("cy@example.com", False)
    client = submitter()
    passwords = serving.server.passwords
    answers = set()
    for user, password in (("ann", "wrong password"), ("nobody", PASSWORD), ("cy", PASSWORD)):
        before = passwords.verifications
        answers.add(client.say(f"AUTH PLAIN {_plain(f'{user}@example.com', password)}"))
        assert passwords.verifications == before + 1  # each costs the same work
    assert answers == {b"535 5.7.8 Wrong user name or password"}


def test_s20_failures_are_slowed(submitter):
    client = submitter(failure_delay_seconds=0.3)
    begun = time.monotonic()
    assert client.say(f"AUTH PLAIN {_plain('ann@example.com', 'wrong password')}").startswith(b"535 ")
    assert time.monotonic() - begun >= 0.3


def test_s20_failures_are_counted(submitter):
    client = submitter(login_failures=3)
    for _ in range(2):
        assert client.say(f"AUTH PLAIN {_plain('ann@example.com', 'wrong password')}").startswith(b"535 ")
    client.send(f"AUTH PLAIN {_plain('ann@example.com', 'wrong password')}\r\n".encode())
    assert client.rest() == b"421 4.7.0 mx.example.com Too many failed logins\r\n"


def test_s32_s22_a_failure_is_logged_without_the_secret(submitter, events):
    client = submitter()
    client.say(f"AUTH PLAIN {_plain('ann@example.com', 'secret guess')}")
    client.say("AUTH LOGIN", _b64("ann@example.com"), _b64("another guess"))
    client.say("AUTH PLAIN", "c2VjcmV0")
    failed = [fields for event, fields in events if event == "auth failed"]
    assert failed == [
        {"rip": "192.0.2.7", "service": "submission", "method": method, "repeated": "no", "user": "ann@example.com"}
        for method in ("PLAIN", "LOGIN")
    ]
    assert next(iter(failed[0])) == "rip"  # the address stands before anything the client chose
    assert "guess" not in str(events) and "c2VjcmV0" not in str(events)


def test_a_login_that_cannot_be_checked_is_temporary(serving, submitter):
    """RFC 4954 6: 454 4.7.0, so that a client does not ask its user for another password."""
    client = submitter()
    with closing(sqlite3.connect(serving.settings.accounts_path, isolation_level=None)) as database:
        database.execute("ALTER TABLE users RENAME TO hidden")
        assert client.say(f"AUTH PLAIN {_plain('ann@example.com')}").startswith(b"454 4.7.0 ")
        database.execute("ALTER TABLE hidden RENAME TO users")
    assert client.say(f"AUTH PLAIN {_plain('ann@example.com')}").startswith(b"235 ")
