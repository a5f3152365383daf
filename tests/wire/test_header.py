"""Header fields: tables from the RFCs, what other programs wrote wrongly, and any bytes at all."""

from __future__ import annotations

import email
import email.header
import email.policy
import email.utils
import time
from collections.abc import Callable
from datetime import date, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailsrv.wire.header import (
    FIELD_LIMIT,
    HEADER_LIMIT,
    REPEAT_LIMIT,
    day_number,
    decode_base64,
    decode_charset,
    decode_field,
    decode_words,
    encode_8bit,
    parameter_text,
    parse_fields,
    parse_parameters,
    strip_comments,
    unfold,
)
from mailsrv.wire.header_addresses import parse_addresses

# --- fields -----------------------------------------------------------------------------------------------------------


def test_b08_fields_are_found_whatever_their_case_and_folding() -> None:
    fields = parse_fields(b"From x\r\nSUBJECT: a\r\n b\r\nto : c\r\n junk\r\n\tmore\r\nno colon\r\nTo:d\r\n\r\n")
    assert fields == {b"subject": [b" a\r\n b\r"], b"to": [b" c\r\n junk\r\n\tmore\r", b"d\r"]}
    assert unfold(fields[b"to"][0]) == b"c junk\tmore"


def test_f13_one_field_is_looked_at_up_to_64_kib() -> None:
    assert FIELD_LIMIT == 65536
    assert len(unfold(b"x" * 100_000)) == 65536
    assert len(decode_field(b"x" * 100_000)) == 65536


def test_s28_a_header_and_the_repeats_of_a_field_have_limits() -> None:
    assert b"late" not in parse_fields(b"x" * HEADER_LIMIT + b"\r\nLate: 1\r\n")
    assert len(parse_fields(b"To: a\r\n" * 5000)[b"to"]) == REPEAT_LIMIT


# --- encoded words ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        # The table of RFC 2047 8.
        (b"(=?ISO-8859-1?Q?a?=)", "(a)"),
        (b"(=?ISO-8859-1?Q?a?= b)", "(a b)"),
        (b"(=?ISO-8859-1?Q?a?= =?ISO-8859-1?Q?b?=)", "(ab)"),
        (b"(=?ISO-8859-1?Q?a?=  =?ISO-8859-1?Q?b?=)", "(ab)"),
        (b"(=?ISO-8859-1?Q?a_b?=)", "(a b)"),
        (b"(=?ISO-8859-1?Q?a?= =?ISO-8859-2?Q?_b?=)", "(a b)"),
        (b"=?US-ASCII?Q?Keith_Moore?= <moore@cs.utk.edu>", "Keith Moore <moore@cs.utk.edu>"),
        (b"=?ISO-8859-1?Q?Keld_J=F8rn_Simonsen?=", "Keld Jørn Simonsen"),
        (b"=?ISO-8859-1?B?SWYgeW91IGNhbiByZWFkIHRoaXMgeW8=?=", "If you can read this yo"),
        # What is written and should not be.
        (b"=?utf-8?q?=C3?= =?utf-8?q?=BC?=", "ü"),  # a character cut in two
        (b"=?utf-8*de?q?=C3=BC?=", "ü"),  # RFC 2231 5
        (b"=?utf-8?q?two words?=", "two words"),
        (b"=?UTF-8?B?w7w?=", "ü"),  # no padding
        (b"=?utf-8?b?w7w=w7w=?=", "ü"),  # stops at the first padding
        (b"=?x-unknown?q?=C3=BC?=", "ü"),
        (b"=?x-unknown?q?=FC?=", "ü"),
        (b"=?zlib?q?=FC?=", "ü"),  # a codec, but no charset
        (b"=?utf-8?q?=FF?=", "\ufffd"),
        (b"=?utf-8?x?abc?=", "=?utf-8?x?abc?="),
        (b"=?utf-8?q?abc", "=?utf-8?q?abc"),
        (b"a=?utf-8?q?b?=c", "abc"),
        (b"=?iso-2022-jp?B?GyRCMnE1RBsoQg==?=", "会議"),
        (b"=?koi8-r?b?79TexdQ=?=", "Отчет"),
        (b"=?gb2312?b?xOO6ww==?=", "你好"),
        ("roh: ü".encode(), "roh: ü"),
        ("roh: ü".encode("latin-1"), "roh: ü"),
    ],
)
def test_f13_encoded_words(value: bytes, text: str) -> None:
    assert decode_words(value) == text


@settings(max_examples=60)
@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zs", "Zl", "Zp")), min_size=1))
def test_f13_what_python_encodes_is_decoded(text: str) -> None:
    encoded = email.header.Header(text, "utf-8").encode(linesep="\r\n").encode()
    assert decode_field(encoded) == text


@given(st.lists(st.sampled_from(["ü", "", "Отчёт", "plain", "a", "会議の議事録", "é" * 30]), min_size=1, max_size=30))
def test_r36_raw_8bit_in_encoded_words_reads_the_same(words: list[str]) -> None:
    text = " ".join(words)
    encoded = encode_8bit(text.encode())
    assert encoded.isascii()
    assert decode_words(encoded) == text
    assert all(len(word) <= 75 for word in encoded.split() if word.startswith(b"=?"))


@pytest.mark.parametrize(
    "charset", ["", "us-ascii", "UTF-8", '"utf-8"', "x-none", "idna", "base64", "utf-8 ", "../../x", "\0"]
)
def test_r41_no_charset_is_refused(charset: str) -> None:
    assert decode_charset("grün".encode(), charset) == "grün"
    assert isinstance(decode_charset(b"\xff\xfe\xfd", charset), str)


def test_r41_half_of_a_surrogate_pair_is_no_text() -> None:
    """Python's UTF-7 gives it, and the index cannot keep it (found by fuzzing)."""
    assert decode_words(b"=?utf-7?q?a+2AA-b?=") == decode_charset(b"a+2AA-b", "UTF-7") == "a\ufffdb"
    assert decode_charset(b"+2D3eAA-", "unicode-1-1-utf-7") == "\U0001f600", "whole ones are"


def test_r41_charsets_are_known_by_their_usual_names() -> None:
    for name in ("iso-8859-1", "ISO_8859-15", "windows-1252", "cp1250", "koi8-r", "koi8-u", "big5", "gbk", "gb18030"):
        assert decode_charset(b"abc", name) == "abc"
        assert decode_charset("a".encode(name.replace("_", "-")) + b"\x80" * 0, name) == "a"
    assert decode_charset("ř".encode("windows-1250"), "windows-1250") == "ř"
    assert decode_charset("한".encode("euc-kr"), "ks_c_5601-1987") == "한"
    assert decode_charset("日".encode("shift_jis"), "Shift_JIS") == "日"
    assert decode_charset(b"+AOQ-", "utf-7") == "ä"


@given(st.binary(max_size=60))
def test_r41_any_base64_is_decoded(data: bytes) -> None:
    assert isinstance(decode_base64(data), bytes)


def test_r41_base64_with_a_wrong_end_keeps_its_beginning() -> None:
    assert decode_base64(b"YWJj\r\nZGV") == b"abcde"
    assert decode_base64(b"YWJjZ") == b"abc"
    assert decode_base64(b"YW!Jj-ZA") == b"abcd"


# --- dates ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "day"),
    [
        (b"Fri, 21 Nov 1997 09:55:06 -0600", date(1997, 11, 21)),  # RFC 5322 A.1.1
        (b"Thu, 13 Feb 1969 23:32:54 -0330", date(1969, 2, 13)),
        (b"21 Nov 97 09:55:06 GMT", date(1997, 11, 21)),  # A.6.2
        (b"Fri, 21 Nov 1997 09(comment):   55  :  06 -0600", date(1997, 11, 21)),  # A.6.3
        (b"Thu,\r\n      13\r\n        Feb\r\n          1969\r\n      23:32", date(1969, 2, 13)),  # A.5
        (b"Fri, 1 Jan 2027 23:59:59 -1200", date(2027, 1, 1)),  # R41: the zone does not count
        (b"1 january 2027", date(2027, 1, 1)),
        (b"(today) 1 Jan 2027", date(2027, 1, 1)),
        (b"Fri 1 Jan 27 00:00", date(2027, 1, 1)),
        (b"1 Jan 049", date(1949, 1, 1)),
        (b"Fri, 01-Jan-2027 00:00:00", date(2027, 1, 1)),
        (b"Mon Nov 23 10:00:00 2020", date(2020, 11, 23)),
        (b"Mon Nov  3 10:00:00 PST 2020", date(2020, 11, 3)),
        (b"2020-11-23T10:00:00Z", date(2020, 11, 23)),
    ],
)
def test_b08_many_forms_of_dates(value: bytes, day: date) -> None:
    assert date.fromordinal(day_number(unfold(value))) == day


@pytest.mark.parametrize(
    "value", [b"", b"x", b"Mon", b"31 Feb 2020", b"1 Foo 2020", b"0 Jan 2020", b"99 99 99", b"2020-13-01"]
)
def test_r41_what_is_no_date_is_day_0(value: bytes) -> None:
    assert day_number(value) == 0


@given(st.datetimes(datetime(1950, 1, 1), datetime(2100, 1, 1)))
def test_r41_dates_as_python_writes_them(when: datetime) -> None:
    assert day_number(email.utils.format_datetime(when).encode()) == when.date().toordinal()


# --- addresses --------------------------------------------------------------------------------------------------------

GROUP_END = (None, None, None, None)


@pytest.mark.parametrize(
    ("value", "addresses"),
    [
        # RFC 5322 A.1.2, A.1.3, A.5, A.6.1, A.6.3
        (b'"Joe Q. Public" <john.q.public@example.com>', [(b"Joe Q. Public", None, b"john.q.public", b"example.com")]),
        (
            b"Mary Smith <mary@x.test>, jdoe@example.org, Who? <one@y.test>",
            [
                (b"Mary Smith", None, b"mary", b"x.test"),
                (None, None, b"jdoe", b"example.org"),
                (b"Who?", None, b"one", b"y.test"),
            ],
        ),
        (
            b'<boss@nil.test>, "Giant; \\"Big\\" Box" <sysservices@example.net>',
            [(None, None, b"boss", b"nil.test"), (b'Giant; "Big" Box', None, b"sysservices", b"example.net")],
        ),
        (
            b"A Group:Ed Jones <c@a.test>,joe@where.test,John <jdoe@one.test>;",
            [
                (None, None, b"A Group", None),
                (b"Ed Jones", None, b"c", b"a.test"),
                (None, None, b"joe", b"where.test"),
                (b"John", None, b"jdoe", b"one.test"),
                GROUP_END,
            ],
        ),
        (b"Undisclosed recipients:;", [(None, None, b"Undisclosed recipients", None), GROUP_END]),
        (
            b"Pete(A nice \\) chap) <pete(his account)@silly.test(his host)>",
            [(b"Pete", None, b"pete", b"silly.test")],
        ),
        (
            b"A Group(Some people)\t :Chris Jones <c@(Chris's host.)public.example>,\t joe@example.org; (the end)",
            [
                (None, None, b"A Group", None),
                (b"Chris Jones", None, b"c", b"public.example"),
                (None, None, b"joe", b"example.org"),
                GROUP_END,
            ],
        ),
        (
            b"(Empty list)(start)Hidden recipients  :(nobody(that I know))  ;",
            [(None, None, b"Hidden recipients", None), GROUP_END],
        ),
        (b"Joe Q. Public <john.q.public@example.com>", [(b"Joe Q. Public", None, b"john.q.public", b"example.com")]),
        (
            b"Mary Smith <@node.test:mary@example.net>, , jdoe@test  . example",
            [(b"Mary Smith", b"@node.test", b"mary", b"example.net"), (None, None, b"jdoe", b"test.example")],
        ),
        (b"<@a.test,@b.test:joe@c.test>", [(None, b"@a.test,@b.test", b"joe", b"c.test")]),
        (b"John <jdoe@machine(comment).  example>", [(b"John", None, b"jdoe", b"machine.example")]),
        # What else is met.
        (b"ann@example.com (Ann Lee)", [(b"Ann Lee", None, b"ann", b"example.com")]),
        (b"ann@example.com <ann@example.com>", [(b"ann@example.com", None, b"ann", b"example.com")]),
        (b'"ann lee"@example.com', [(None, None, b"ann lee", b"example.com")]),
        (b"ann@[192.0.2.1]", [(None, None, b"ann", b"[192.0.2.1]")]),
        (b"root", [(None, None, b"root", b"MISSING_DOMAIN")]),
        (b"Ann Lee", [(b"Ann Lee", None, b"MISSING_MAILBOX", b"MISSING_DOMAIN")]),
        (b"Mailer <>", [(b"Mailer", None, b"MISSING_MAILBOX", b"MISSING_DOMAIN")]),
        (b"Ann Lee ann@example.com", [(b"Ann Lee", None, b"ann", b"example.com")]),
        (b"Ann <ann@example.com", [(b"Ann", None, b"ann", b"example.com")]),
        (b"a@b@example.com", [(None, None, b"a@b", b"example.com")]),
        (b"a@x; b@y", [(None, None, b"a", b"x"), (None, None, b"b", b"y")]),
        (b"G: a@x", [(None, None, b"G", None), (None, None, b"a", b"x"), GROUP_END]),
        (b'""  <a@x>', [(None, None, b"a", b"x")]),
        (b'Hans "der" Meyer  <h@x>', [(b"Hans der Meyer", None, b"h", b"x")]),
        (b"=?utf-8?q?J=C3=BCrgen?= <j@x>", [(b"=?utf-8?q?J=C3=BCrgen?=", None, b"j", b"x")]),
        (b"", []),
        (b", ,;", []),
        (b"(nobody)", []),
    ],
)
def test_b08_addresses(value: bytes, addresses: list[Any]) -> None:
    assert parse_addresses(value) == addresses


NAMES = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20).map(
    lambda name: " ".join(name.split())
)
LOCALS = st.from_regex(r"[a-z0-9]{1,8}(\.[a-z0-9]{1,8})?", fullmatch=True)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(NAMES, LOCALS), min_size=1, max_size=6))
def test_b08_the_same_addresses_as_python_finds(people: list[tuple[str, str]]) -> None:
    value = ", ".join(email.utils.formataddr((name, f"{local}@example.com")) for name, local in people)
    ours = [(name or b"", mailbox, host) for name, _, mailbox, host in parse_addresses(value.encode())]
    theirs = email.message_from_string(f"To: {value}\n\n", policy=email.policy.default)["to"].addresses
    assert ours == [(name.encode(), local.encode(), b"example.com") for name, local in people]
    assert [(mailbox, host) for _, mailbox, host in ours] == [
        (address.username.encode(), address.domain.encode()) for address in theirs
    ]


@settings(max_examples=300)
@given(st.lists(st.sampled_from(list('ab .,:;<>@"\\()[]\t\r\nü')), max_size=30).map("".join))
def test_b08_any_octets_give_addresses(value: str) -> None:
    for name, route, mailbox, host in parse_addresses(value.encode()):
        assert host is None or mailbox
        assert (name, route) == (None, None) if host is None else True


# --- parameters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "main", "parameters"),
    [
        (b"text/plain", b"text/plain", []),
        (b'text/plain; charset="us-ascii" (Plain text)', b"text/plain", [(b"charset", b"us-ascii")]),  # RFC 2045 5.1
        (b"text/plain (a; b=c); d=e", b"text/plain", [(b"d", b"e")]),
        (b'a/b ; X = y ;z="1;2\\""', b"a/b", [(b"x", b"y"), (b"z", b'1;2"')]),
        (b"a/b; name=my report (1).pdf; x=y z", b"a/b", [(b"name", b"my report (1).pdf"), (b"x", b"y")]),
        (b"a/b;;; boundary=--=_x==", b"a/b", [(b"boundary", b"--=_x==")]),
        (b'a/b; x="never closed', b"a/b", [(b"x", b"never closed")]),
        (b"a/b; (comment; with=this) x=y", b"a/b", [(b"x", b"y")]),
        (b"a/b; novalue; =noname; x=", b"a/b", [(b"x", b"")]),
        # RFC 2231 3 and 4
        (
            b'message/external-body; access-type=URL;\t URL*0="ftp://";\t URL*1="cs.utk.edu/pub/moore/bulk-mailer.tar"',
            b"message/external-body",
            [(b"access-type", b"URL"), (b"url", b"ftp://cs.utk.edu/pub/moore/bulk-mailer.tar")],
        ),
        (
            b"a/b; title*0*=us-ascii'en'This%20is%20even; title*1*=%2A%2A%2Afun%2A%2A%2A%20; title*2=\"isn't it!\"",
            b"a/b",
            [(b"title*", b"us-ascii'en'This%20is%20even%2A%2A%2Afun%2A%2A%2A%20isn%27t%20it!")],
        ),
        (b"a/b; x*1=b; x*0=a; y*1=z", b"a/b", [(b"x", b"ab"), (b"y*1", b"z")]),
    ],
)
def test_r35_parameters(value: bytes, main: bytes, parameters: list[tuple[bytes, bytes]]) -> None:
    assert parse_parameters(value) == (main, tuple(parameters))
    padded = value + b" " * 200  # long values take another way
    assert parse_parameters(padded)[0] == main


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"a; filename=x.txt", "x.txt"),
        (b"a; filename*=utf-8''%C3%BC.txt", "ü.txt"),
        (b"a; filename*=iso-8859-1'de'%FC.txt", "ü.txt"),
        (b"a; filename*0*=utf-8''%C3; filename*1*=%BC", "ü"),
        (b'a; filename="=?utf-8?q?=C3=BC?="', "ü"),
        (b"a; filename*=%C3%BC", "ü"),
        (b"a; name=x", None),
    ],
)
def test_r41_file_names_are_decoded(value: bytes, text: str | None) -> None:
    assert parameter_text(parse_parameters(value)[1], b"filename") == text


def test_r35_comments_are_spaces() -> None:
    assert strip_comments(b'a(b(c)\\)d)e "(f)" (g') == b'a e "(f)"  '


@settings(max_examples=300)
@given(st.binary(max_size=80))
def test_s28_any_octets_have_a_meaning(data: bytes) -> None:
    parse_fields(data)
    assert isinstance(decode_field(data), str)
    assert encode_8bit(unfold(data)).isascii()
    assert day_number(data) >= 0
    parse_addresses(data)
    main, parameters = parse_parameters(data)
    assert isinstance(main, bytes)
    parameter_text(parameters, b"filename")


@pytest.mark.parametrize(
    ("work", "unit"),
    [
        (decode_words, b"=?a?q?"),
        (decode_words, b"=?utf-8?q?a?= "),
        (decode_words, b"=?"),
        (parse_addresses, b"a@"),
        (parse_addresses, b"<@a,"),
        (parse_addresses, b"a:b;"),
        (parse_addresses, b"[("),
        (parse_parameters, b";x*0=a"),
        (parse_parameters, b';("'),
        (strip_comments, b'("'),
        (encode_8bit, b"\xff a "),
        (day_number, b"Mon, "),
        (parse_fields, b"x: y\n "),
        (parse_fields, b"xx "),
        (decode_base64, b"=A"),
    ],
)
def test_s29_no_input_takes_more_than_linear_time(work: Callable[[bytes], object], unit: bytes) -> None:
    start = time.process_time()
    work(unit * (300_000 // len(unit)))
    # It takes some tenths of a second at most; in quadratic time it would be a minute and more.
    assert time.process_time() - start < 5
