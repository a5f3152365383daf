"""Addresses that are taken stay what they are, wherever they are kept, told or written."""

import pytest

from mailsrv.wire.address import parse_mailbox, parse_path
from mailsrv.wire.errors import WireError


@pytest.mark.parametrize("char", ["\u200b", "\u2028", "\x85", "\u202e", "\u07bf", "\ue000", "\ud800"])
def test_s22_an_address_that_cannot_be_shown_is_refused(char):
    """A queue entry with it would count as damaged, and its message would never go on (found by fuzzing)."""
    for text in (f"a{char}b@example.org", f'"a{char}b"@example.org'):
        with pytest.raises(WireError):
            parse_mailbox(text)
    with pytest.raises(WireError):
        parse_mailbox("a@b\ud800.org")


@pytest.mark.parametrize(
    "domain", ["a\u2100b.org", "cx\u02dc.org", "a\uff20b.org", "a\uff0fb.org", "a\u2025b.org", "\u3002.org"]
)
def test_s23_letters_that_mean_other_signs_make_no_domain(domain):
    """Names are mapped before they are written in ASCII (RFC 3490 4), to a slash or a space (found by fuzzing)."""
    with pytest.raises(WireError):
        parse_mailbox(f"a@{domain}")


def test_s22_letters_of_any_script_are_shown():
    assert parse_path("<j\u00fcrgen@example.org>", smtputf8=True)[0] == parse_mailbox("j\u00fcrgen@example.org")
    assert parse_mailbox('"\u65e5 \u672c"@example.org').local == "\u65e5 \u672c"
