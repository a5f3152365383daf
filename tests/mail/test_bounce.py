"""Reports are what Python's email package understands, whatever the original, the remote host and the sender wrote."""

import email
import email.policy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailsrv.mail.bounce import LAST_REPORT, WORDS, Bounces, Report
from mailsrv.store.entry import Attempt, Entry, Origin, Recipient
from mailsrv.store.spool import new_id
from mailsrv.values import Address, Envelope, RecipientOptions

ANN, POSTMASTER = Address("ann", "example.com"), Address("postmaster", "example.com")
HOST = "mx.example.org[192.0.2.1]:25"
ORIGINAL = b"From: ann@example.com\r\nSubject: Hello\r\nMessage-ID: <1@example.com>\r\n\r\nText.\r\n"


def attempt(code=550, enhanced="5.1.1", text="No such user", host=HOST, disposition="never"):
    return Attempt(1.8e9, disposition, code, enhanced, text, host, "")


def recipient(address="bo@example.org", tried=None, **more):
    local, _, domain = address.rpartition("@")
    return Recipient(Address(local, domain), history=[tried or attempt()], **more)


def write(
    *recipients, kind="failed", sender=ANN, original=ORIGINAL, octets=50_000, origin=None, stays=False, **envelope
):
    entry = Entry(new_id(), Envelope(sender, **envelope), list(recipients), origin or Origin(), size=len(original))
    entry.arrived_at = 1.8e9
    report = Report(kind, entry, tuple(recipients), lambda n: original[:n], 1.8e9 + 432000)
    return Bounces("mx.example.com", octets).write(report, POSTMASTER, stays=stays)


def parsed(data):
    assert b"\r\n" in data and b"\n" not in data.replace(b"\r\n", b"") and b"\r" not in data.replace(b"\r\n", b"")
    assert max(map(len, data.split(b"\r\n"))) <= 998
    message = email.message_from_bytes(data, policy=email.policy.default)
    assert not message.defects
    return message


def parts(letter):
    return list(parsed(letter.message).iter_parts())


def fields(letter):
    """What machines are told of each recipient."""
    return parts(letter)[1].get_payload()[1:]


EVIL = [
    "a\r\nBcc: evil@x.example\r\n\r\nbody",
    "\r\n.\r\n",
    "\x00\x1b[31m\x7f\x85\u2028",
    "ü" * 3000,
    "x" * 5000,
    "=?utf-8?q?=0A?=",
]


@pytest.mark.parametrize("evil", EVIL)
def test_s23_nothing_of_theirs_makes_a_line_of_its_own(evil):
    one = recipient(tried=attempt(text=evil, host=evil, enhanced=evil), via=Address("sales", "example.com"))
    one.options = RecipientOptions(orcpt=f"rfc822;{evil}")
    letter = write(one, envid=evil[:100], original=b"Subject: " + evil.encode() + b"\r\n\r\nText.\r\n", octets=0)
    message = parsed(letter.message)
    assert "Bcc" not in message and len(list(message.iter_parts())) == 3
    whole, told = list(message.iter_parts())[1].get_payload()
    assert set(whole.keys()) <= {"Reporting-MTA", "Original-Envelope-Id", "Arrival-Date"}
    assert set(told.keys()) <= {
        "Original-Recipient", "Final-Recipient", "Action", "Status", "Remote-MTA", "Diagnostic-Code",
        "Last-Attempt-Date",
    }  # fmt: skip
    assert told["Status"] == "5.0.0" and told["Action"] == "failed"


@settings(deadline=None)  # the first one loads code
@given(st.text(max_size=200), st.binary(max_size=300))
def test_s23_reports_of_anything_are_reports(text, original):
    letter = write(recipient(tried=attempt(text=text)), original=original)
    message = email.message_from_bytes(letter.message, policy=email.policy.default)
    assert message.get_content_type() == "multipart/report" and len(list(message.iter_parts())) == 3
    assert [one["Action"] for one in list(message.iter_parts())[1].get_payload()[1:]] == ["failed"]


@pytest.mark.parametrize(
    ("kind", "enhanced", "status"),
    [
        ("failed", "5.1.1", "5.1.1"), ("failed", "4.4.7", "4.4.7"), ("failed", "", "5.0.0"),
        ("failed", "2.0.0", "5.0.0"), ("failed", "550", "5.0.0"), ("delayed", "4.2.0", "4.2.0"),
        ("delayed", "5.1.1", "4.0.0"),
        ("delivered", "2.1.5", "2.1.5"), ("delivered", "", "2.0.0"), ("delivered", "5.1.1", "2.0.0"),
    ],
)  # fmt: skip
def test_the_class_of_the_status_is_that_of_the_action(kind, enhanced, status):
    one = recipient(tried=attempt(enhanced=enhanced), report="relayed" if kind == "delivered" else "")
    [told] = fields(write(one, kind=kind))
    assert told["Status"] == status
    assert told["Action"] == {"delivered": "relayed"}.get(kind, kind)
    assert ("Will-Retry-Until" in told) == (kind == "delayed")


@pytest.mark.parametrize("code", [code for code in WORDS if code.count(".") == 2])
def test_every_reason_has_words(code):
    words = parts(write(recipient(tried=attempt(enhanced=code))))[0].get_content()
    assert WORDS[code] in " ".join(words.split()) and "No such user" in words


def test_several_recipients_each_with_their_reason():
    letter = write(
        recipient(), recipient("cy@example.net", attempt(0, "4.4.7", "Not delivered within 5 days", "")),
    )  # fmt: skip
    first, second = fields(letter)
    assert first["Remote-MTA"] == "dns; mx.example.org" and first["Diagnostic-Code"] == "smtp; 550 5.1.1 No such user"
    assert "Remote-MTA" not in second and second["Diagnostic-Code"].startswith("x-mailsrv; Not delivered")
    words = parts(letter)[0].get_content()
    assert words.index("bo@example.org") < words.index("cy@example.net")


def test_quoted_local_parts_are_quoted():
    [one] = fields(write(recipient('a "b" c@example.org')))
    assert one["Final-Recipient"] == r'rfc822; "a \"b\" c"@example.org'


def test_addresses_with_other_letters():
    """RFC 6533: the global forms of the parts, and SMTPUTF8 for the report."""
    text = "Subject: Grüße\r\n\r\nÄ\r\n".encode()
    letter = write(recipient("jürgen@example.org"), smtputf8=True, original=text, stays=True)
    assert letter.smtputf8
    words, status, original = parts(letter)
    assert "jürgen@example.org" in words.get_content()
    assert status.get_content_type() == "message/global-delivery-status"
    assert "Final-Recipient: utf-8; jürgen@example.org\r\n".encode() in letter.message
    assert original.get_content_type() == "message/global"
    assert not write(recipient()).smtputf8


def test_subjects_are_shown_as_they_were_meant():
    letter = write(
        recipient(), original=b"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\n =?utf-8?q?_aus_K=C3=B6ln?=\r\n\r\n.\r\n"
    )
    assert parsed(letter.message)["Subject"] == "Undelivered: Grüße aus Köln"
    assert letter.message.partition(b"\r\n\r\n")[0].isascii()
    assert "Subject: Grüße aus Köln" in parts(letter)[0].get_content()


def test_a_large_header_is_cut_at_a_line():
    original = b"Subject: x\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"y" * 100) for n in range(2000)) + b"\r\nText.\r\n"
    returned = parts(write(recipient(), original=original, octets=0))[2]
    text = returned.get_payload(decode=True)
    assert len(text) <= 64 * 1024 and text.endswith(b"y\r\n") and original.startswith(text)


@pytest.mark.parametrize("large", [False, True])
def test_a_report_has_no_line_that_another_server_refuses(large):
    original = b"Subject: x\r\nX-Long: " + b"y" * 5000 + b"\r\n\r\n" + b"z" * (5000 if large else 5) + b"\r\n"
    last = parts(write(recipient(), original=original))[2]
    assert last.get_content_type() == "text/rfc822-headers"
    assert last.get_payload(decode=True) == b"Subject: x\r\nX-Long: " + b"y" * 990 + b"\r\n"


@pytest.mark.parametrize("orcpt", ["", "rfc822;Sales@example.com"])
def test_the_original_recipient_is_what_the_sender_called_so(orcpt):
    one = recipient(via=Address("sales", "example.com"))
    one.options = RecipientOptions(orcpt=orcpt)
    [told] = fields(write(one, origin=Origin(account=1)))
    assert told.get_all("Original-Recipient", []) == ([orcpt] if orcpt else [])


SALES = Address("sales", "example.com")


@pytest.mark.parametrize("account", [0, 7])
def test_strangers_get_nothing_but_the_header_of_what_was_passed_on(account):
    letter = write(recipient(via=SALES), sender=Address("x", "third.org"), origin=Origin(account))
    assert parts(letter)[2].get_content_type() == ("message/rfc822" if account else "text/rfc822-headers")
    assert (b"Text." in letter.message) == bool(account) and b"Subject: Hello" in letter.message
    assert b"Text." in write(recipient(), sender=Address("x", "third.org")).message
    assert b"Text." in write(recipient(via=SALES), sender=None).message, "the postmaster is ours"


def test_an_alias_is_named_once_however_many_it_leads_to():
    private = [recipient(f"{name}@private.example", attempt(text=f"No {name}"), via=SALES) for name in ("ü", "v")]
    letter = write(*private, recipient(), sender=Address("x", "third.org"), stays=True)
    assert [one["Final-Recipient"] for one in fields(letter)] == ["rfc822; sales@example.com", "rfc822; bo@example.org"]
    assert b"private" not in letter.message and b"No v" not in letter.message and not letter.smtputf8
    assert fields(letter)[0]["Diagnostic-Code"].startswith("x-mailsrv; ") and "Remote-MTA" not in fields(letter)[0]
    for known in (write(*private, origin=Origin(7)), write(*private, sender=None)):
        assert b"v@private.example (through sales@example.com)" in known.message


EIGHT_BIT = [
    b"Subject: x\r\n\r\nGr\xc3\xbc\xc3\x9fe\r\n",
    b"Subject: Gr\xfc\xdfe = a\r\nX-B: \xc3\xbc" + b"y" * 2000 + b"\r\n\r\nText.\r\n",
]


@pytest.mark.parametrize("original", EIGHT_BIT)
def test_a_report_that_leaves_is_7_bit(original):
    one = recipient("jürgen@example.org", attempt(text="Kein Nutzer für Sie"))
    one.options = RecipientOptions(orcpt="utf-8;jürgen+x@example.org")
    letter = write(one, original=original)
    assert letter.message.isascii() and not letter.smtputf8
    last = parts(letter)[2]
    assert last.get_content_type() == "text/rfc822-headers"
    header = original.partition(b"\r\n\r\n")[0].split(b"\r\n")
    assert last.get_payload(decode=True) == b"".join(line[:998] + b"\r\n" for line in header)
    [told] = fields(letter)
    assert told["Final-Recipient"] == r"utf-8; j\x{FC}rgen@example.org"
    assert told["Original-Recipient"] == r"utf-8;j\x{FC}rgen\x{2B}x@example.org"


def test_a_report_that_stays_returns_8_bit_text_whole():
    letter = write(recipient(), original=EIGHT_BIT[0], stays=True)
    assert parts(letter)[2].get_content_type() == "message/rfc822" and EIGHT_BIT[0] in letter.message


def test_where_the_sender_has_other_letters_the_report_has_them_too():
    letter = write(recipient(), sender=Address("jürgen", "example.org"), original=EIGHT_BIT[0])
    assert letter.smtputf8 and parts(letter)[2].get_content_type() == "message/global"


def test_rfc4865_a_report_names_the_release_that_was_asked_for():
    whole = parts(write(recipient(), release="for;3600"))[1].get_payload()[0]
    assert whole["Future-Release-Request"] == "for;3600"
    assert "Future-Release-Request" not in parts(write(recipient()))[1].get_payload()[0]


def test_rfc8689_of_a_message_that_requires_tls_the_header_goes_back_and_the_wish_with_it():
    letter = write(recipient(), require_tls=True, ret="FULL")
    assert letter.require_tls and parts(letter)[2].get_content_type() == "text/rfc822-headers"
    assert b"Text." not in letter.message and not write(recipient()).require_tls
    assert Bounces("mx.example.com").undeliverable(letter, POSTMASTER).require_tls


def test_rfc6533_what_may_not_stand_in_an_address_is_spelt_and_the_line_is_not_too_long():
    letter = write(recipient("jürgen a+b\\c@example.org"))
    [told] = fields(letter)
    assert told["Final-Recipient"] == r'utf-8; "j\x{FC}rgen\x{20}a\x{2B}b\x{5C}\x{5C}c"@example.org'
    one = recipient()
    one.options = RecipientOptions(orcpt="utf-8;" + "ü" * 500 + "@example.org")
    [told] = fields(write(one))
    assert told["Original-Recipient"].startswith(r"utf-8;\x{FC}") and told["Original-Recipient"].endswith("}")


def test_s13_reports_on_reports():
    letter = write(recipient(), sender=None)
    assert letter.recipient == POSTMASTER and letter.final
    assert parsed(letter.message)["Subject"] == "Undeliverable report: Hello"
    assert write(recipient(), sender=None, origin=Origin(service=LAST_REPORT)) is None
    for kind in ("delayed", "delivered"):
        assert write(recipient(), sender=None, kind=kind) is None
    bounces = Bounces("mx.example.com")
    assert bounces.undeliverable(letter, POSTMASTER) is None
    again = bounces.undeliverable(write(recipient()), POSTMASTER)
    assert again.recipient == POSTMASTER and again.final


def test_what_it_answers_is_named():
    message = parsed(write(recipient()).message)
    assert message["In-Reply-To"] == message["References"] == "<1@example.com>"
    assert "In-Reply-To" not in parsed(write(recipient(), original=b"Message-ID: nonsense\r\n\r\n").message)
