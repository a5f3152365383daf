"""A finished draft: its sender, recipients and time; what is no address in full is refused; Bcc never goes out."""

import email
from email.utils import format_datetime, parsedate_to_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailsrv.values import Address
from mailsrv.wire.draft import Draft, parse_draft, ready_to_send
from mailsrv.wire.errors import WireError

NOW = parsedate_to_datetime("Wed, 25 Nov 2026 10:00:00 +0100").timestamp()


def draft(*lines, body=b"Hello\r\n"):
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def test_recipients_are_those_of_to_cc_and_bcc_each_once():
    text = draft(
        "From: Ann <ann@example.com>",
        'To: "B, o" <bo@example.org>, friends: cy@example.org, Bo@EXAMPLE.org;',
        "Cc: bo@example.org (again)",
        "Bcc: dan@example.net",
        "Bcc: eve@example.net",
    )
    found = parse_draft(text, NOW)
    assert found.sender == Address("ann", "example.com")
    assert [str(one) for one in found.recipients] == [
        "bo@example.org", "cy@example.org", "Bo@example.org", "dan@example.net", "eve@example.net",
    ]  # fmt: skip
    assert found.send_at is None


def test_sender_decides_where_several_wrote():
    text = draft("From: ann@example.com, bo@example.com", "Sender: bo@example.com", "To: cy@example.org")
    assert parse_draft(text, NOW).sender == Address("bo", "example.com")


def test_quoted_and_international_local_parts():
    text = draft("From: ann@example.com", 'To: "two words"@example.org, "j\\"q"@example.org, jörg@exämple.org')
    found = parse_draft(text, NOW).recipients
    assert found == (
        Address("two words", "example.org"), Address('j"q', "example.org"), Address("jörg", "xn--exmple-cua.org"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["To: bo@example.org"], "No sender"),
        (["From: a@example.com, b@example.com", "To: bo@example.org"], "Several in From"),
        (["From: ann@example.com"], "No recipient"),
        (["From: ann@example.com", "To: undisclosed-recipients:;"], "No recipient"),
        (["From: ann@example.com", "To: bo"], "Not an address in To"),
        (["From: ann@example.com", "To: bo@"], "Not an address in To"),
        (["From: ann@example.com", "To: bo@example.org", "Cc: x@y@z"], "Not an address in Cc"),
        (["From: ann@example.com", "To: user%other.test@example.org"], "Not an address in To"),
    ],
)
def test_what_is_missing_is_named(lines, reason):
    with pytest.raises(WireError, match=reason):
        parse_draft(draft(*lines), NOW)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["To: " + ", ".join(f"r{n}@example.org" for n in range(1001))], "More than 1000"),
        ([f"To: r{n}@example.org" for n in range(1001)], "To is too large"),
        (["Bcc: " + ", ".join(f"{'r' * 60}{n}@example.org" for n in range(999))], "Bcc is too large"),
        (["To: bo@example.org", *("X-Filler: " + "x" * 900 for _ in range(1200))], "header is too large"),
    ],
)
def test_recipients_that_would_not_all_be_read_are_an_error(lines, reason):
    with pytest.raises(WireError, match=reason):
        parse_draft(draft("From: ann@example.com", *lines), NOW)


@pytest.mark.parametrize(
    ("lines", "at"),
    [
        ([], None),
        (["Date: Wed, 25 Nov 2026 09:59:00 +0100"], None),
        (["Date: Thu, 26 Nov 2026 08:00:00 +0100"], "Thu, 26 Nov 2026 07:00:00 +0000"),
        (["X-Send-Later-At: Fri, 27 Nov 2026 08:00:00 +0000"], "Fri, 27 Nov 2026 08:00:00 +0000"),
        (["Date: Thu, 26 Nov 2026 08:00:00 +0100", "X-Send-Later-At: Fri, 27 Nov 2026 08:00:00 +0000"],
         "Fri, 27 Nov 2026 08:00:00 +0000"),
        (["Date: Thu, 99 Nov 9999999 08:00:00"], None),
    ],
)  # fmt: skip
def test_the_time_its_author_asked_for(lines, at):
    found = parse_draft(draft("From: ann@example.com", "To: bo@example.org", *lines), NOW)
    assert found.send_at == (None if at is None else parsedate_to_datetime(at).timestamp())


def test_a_time_that_cannot_be_read_is_not_guessed_at():
    with pytest.raises(WireError, match="no date and time"):
        parse_draft(draft("From: ann@example.com", "To: bo@example.org", "X-Send-Later-At: soon"), NOW)


def test_a_message_without_a_name_is_given_one():
    text = draft("From: ann@example.com", "To: bo@example.org")
    sent = email.message_from_bytes(ready_to_send(text, NOW, "<new@mx.example.com>"))
    assert sent["Message-ID"] == "<new@mx.example.com>"
    named = draft("From: ann@example.com", "message-id: <old@example.com>", "To: bo@example.org")
    assert email.message_from_bytes(ready_to_send(named, NOW, "<new@x>")).get_all("Message-ID") == ["<old@example.com>"]


def test_what_goes_out_has_no_bcc_and_the_date_it_goes_out_at():
    text = draft(
        "Bcc: secret@example.net,",
        " more@example.net",
        "From: ann@example.com",
        "Date: Mon, 1 Jan 2024 00:00:00 +0000",
        "To: bo@example.org",
        "Subject: long",
        "\tfolded",
        "X-Send-Later-At: Fri, 27 Nov 2026 08:00:00 +0000",
        "X-Mozilla-Draft-Info: internal/draft",
        body=b"Bcc: stays in the body\r\n",
    )
    sent = ready_to_send(text, NOW, "<new@mx.example.com>")
    message = email.message_from_bytes(sent)
    assert [name for name, _ in message.items()] == ["Date", "Message-ID", "From", "To", "Subject"]
    assert format_datetime(parsedate_to_datetime(message["Date"])) and (
        parsedate_to_datetime(message["Date"]).timestamp() == NOW
    )
    assert sent.endswith(b"Subject: long\r\n\tfolded\r\n\r\nBcc: stays in the body\r\n")
    assert b"secret@example.net" not in sent and b"more@example.net" not in sent


@given(st.binary(max_size=300))
def test_anything_is_a_draft_or_a_wire_error(data):
    for text in (data, b"From: a@example.com\r\nTo: " + data, b"From: a@example.com\r\nTo: b@c.test\r\nDate: " + data):
        try:
            found = parse_draft(text, NOW)
        except WireError:
            continue
        assert isinstance(found, Draft) and found.recipients
        assert b"\r\n\r\n" in ready_to_send(text, NOW, "<x@y>")
