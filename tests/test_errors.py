"""Each failure of the mail model has its words in both protocols."""

from mailsrv import errors
from mailsrv.imap.responses import CODES, refusal
from mailsrv.smtp.replies import REPLIES, reply_to


def _failures():
    found, wave = [], [errors.MailError]
    while wave:
        wave = [kind for parent in wave for kind in parent.__subclasses__() if kind.__module__ == errors.__name__]
        found.extend(wave)
    return found


def test_every_failure_has_a_reply_in_smtp():
    assert set(REPLIES) == set(_failures())
    for kind in _failures():
        reply = reply_to(kind("why"))
        assert reply.code // 100 in (4, 5)
        assert reply.enhanced.startswith(f"{reply.code // 100}."), kind
        assert reply.text.isascii() and "\n" not in reply.text


def test_every_failure_has_a_code_in_imap():
    assert set(CODES) == set(_failures())
    for kind in _failures():
        assert refusal(kind("why")) == f"[{CODES[kind]}] why"


def test_failures_that_pass_are_not_final():
    """A sender gives up on 5xx: only what waiting cannot mend may be one (RFC 5321 4.2.1)."""
    assert {kind for kind, reply in REPLIES.items() if reply.code < 500} == {
        errors.LoginThrottled,
        errors.OverQuota,
        errors.TemporaryFailure,
        errors.ModSeqTooOld,
    }


def test_b22_what_is_final_is_never_guessed_from_words():
    assert reply_to(errors.TemporaryFailure("550 5.1.1 disk at 55.4 %")).code == 451
    assert reply_to(errors.RecipientUnknown("451 try again")).code == 550


def test_s23_a_refusal_stays_on_its_line():
    assert "\r" not in refusal(errors.MessageRefused("a\r\n* BYE")) and "\n" not in refusal(errors.MessageGone("a\nb"))
