"""The parameters of RFC 3461: xtext both ways, and what is not exactly as the RFC has it refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailsrv.wire.errors import WireError
from mailsrv.wire.smtp import ParameterUnknown, format_xtext, parse_mail, parse_rcpt, parse_xtext

ASCII = st.text(st.characters(min_codepoint=0, max_codepoint=127), max_size=80)


@settings(deadline=None)
@given(ASCII)
def test_xtext_goes_both_ways(text):
    written = format_xtext(text)
    assert parse_xtext(written) == text
    assert all("!" <= char <= "~" for char in written) and "=" not in written


@settings(deadline=None)
@given(st.text(max_size=40))
def test_s05_anything_is_xtext_or_an_error(text):
    try:
        assert parse_xtext(text).isascii()
    except WireError:
        pass


@pytest.mark.parametrize("text", ["+", "+4", "+4g", "+4a", "a=b", "a b", "ü", "+C3+BC", "+FF"])
def test_what_is_not_xtext(text):
    with pytest.raises(WireError):
        parse_xtext(text)


def test_mail_parameters():
    mail = parse_mail("FROM:<a@b.example> RET=hdrs ENVID=QQ+2B314+20x SIZE=10 REQUIRETLS", tls=True)
    assert (mail.ret, mail.envid, mail.size, mail.require_tls) == ("HDRS", "QQ+314 x", 10, True)
    mail = parse_mail("FROM:<>")
    assert (mail.sender, mail.ret, mail.envid, mail.require_tls) == (None, "", "", False)


@pytest.mark.parametrize(
    "parameters",
    ["RET", "RET=", "RET=BODY", "RET=FULL RET=HDRS", "ENVID", "ENVID=", "ENVID=a+0Ab", "ENVID=" + "x" * 101,
     "ENVID=a=b", "REQUIRETLS=YES", "REQUIRETLS"],
)  # fmt: skip
def test_s23_wrong_mail_parameters(parameters):
    with pytest.raises(WireError):
        parse_mail(f"FROM:<a@b.example> {parameters}")


@pytest.mark.parametrize(
    ("parameters", "notify", "orcpt"),
    [
        ("", set(), ""),
        ("NOTIFY=never", {"NEVER"}, ""),
        ("NOTIFY=SUCCESS,FAILURE,DELAY", {"SUCCESS", "FAILURE", "DELAY"}, ""),
        ("NOTIFY=delay ORCPT=RFC822;Bo+2Bx@b.example", {"DELAY"}, "rfc822;Bo+x@b.example"),
        ("ORCPT=x400;/C=US", None, None),  # "=" is not xtext
        ("ORCPT=x400;/C+3DUS", set(), "x400;/C=US"),
    ],
)
def test_rcpt_parameters(parameters, notify, orcpt):
    argument = f"TO:<a@b.example> {parameters}".strip()
    if notify is None:
        with pytest.raises(WireError):
            parse_rcpt(argument, smtputf8=False)
        return
    address, options = parse_rcpt(argument, smtputf8=False)
    assert str(address) == "a@b.example" and options.notify == notify and options.orcpt == orcpt


@pytest.mark.parametrize(
    "parameters",
    ["NOTIFY", "NOTIFY=", "NOTIFY=NEVER,DELAY", "NOTIFY=SUCCESS,SUCCESS", "NOTIFY=SOMETIMES", "NOTIFY=DELAY,",
     "ORCPT=a@b", "ORCPT=;a@b", "ORCPT=rfc822;", "ORCPT=rfc822;a+0D+0Ab", "ORCPT=rf_c;a", "ORCPT=utf-8;ü@b",
     "ORCPT=rfc822;" + "x" * 500],
)  # fmt: skip
def test_s23_wrong_rcpt_parameters(parameters):
    with pytest.raises(WireError):
        parse_rcpt(f"TO:<a@b.example> {parameters}", smtputf8=False)


def test_parameters_of_the_other_command_are_unknown():
    for argument in ("FROM:<a@b.example> NOTIFY=NEVER", "FROM:<a@b.example> ORCPT=rfc822;a"):
        with pytest.raises(ParameterUnknown):
            parse_mail(argument)
    with pytest.raises(ParameterUnknown):
        parse_rcpt("TO:<a@b.example> RET=FULL", smtputf8=False)


def test_utf8_where_it_was_asked_for():
    _, options = parse_rcpt("TO:<ü@b.example> ORCPT=utf-8;ü@b.example", smtputf8=True)
    assert options.orcpt == "utf-8;ü@b.example"


def test_s09_the_path_is_read_before_its_parameters():
    """A word inside a quoted local part is no parameter, and UTF-8 needs the real one."""
    assert parse_mail('FROM:<"a SMTPUTF8 b"@c.example>').smtputf8 is False
    with pytest.raises(WireError, match="SMTPUTF8 was not asked for"):
        parse_mail('FROM:<"ü SMTPUTF8 b"@c.example>')
    assert parse_mail('FROM:<"ü > SMTPUTF8"@c.example> SMTPUTF8').sender.local == "ü > SMTPUTF8"
