"""ENVELOPE, BODY and BODYSTRUCTURE: what RFC 3501 prints, what broken mail gives, what any bytes give.

The answers are read by an own small reader of IMAP lists, which knows only RFC 3501 9.
"""

from __future__ import annotations

import email
import email.policy
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailsrv.wire.structure import (
    NESTING_LIMIT,
    PART_LIMIT,
    Part,
    body,
    bodystructure,
    envelope,
    nstring,
    parse,
)

# --- an independent reader --------------------------------------------------------------------------------------------


def read_list(data: bytes) -> Any:
    """Reads one IMAP value: lists, quoted strings and literals as bytes, NIL as None, numbers as int. All 7-bit."""
    assert data.isascii()
    assert b"\0" not in data
    stack: list[list[Any]] = [[]]
    at = 0
    while at < len(data):
        octet = data[at : at + 1]
        if octet == b"(":
            stack.append([])
            at += 1
        elif octet == b")":
            done = stack.pop()
            assert stack, "too many closing parentheses"
            stack[-1].append(done)
            at += 1
        elif octet == b" ":
            assert data[at + 1 : at + 2] not in (b" ", b")", b""), "stray space"
            at += 1
        elif octet == b'"':
            at += 1
            text = bytearray()
            while data[at : at + 1] != b'"':
                assert at < len(data), "quoted string without an end"
                if data[at : at + 1] == b"\\":
                    at += 1
                    assert data[at : at + 1] in (b'"', b"\\")
                assert data[at] not in b"\r\n"
                text.append(data[at])
                at += 1
            stack[-1].append(bytes(text))
            at += 1
        elif octet == b"{":
            close = data.index(b"}", at)
            size = int(data[at + 1 : close])
            assert data[close + 1 : close + 3] == b"\r\n"
            start = close + 3
            assert start + size <= len(data)
            stack[-1].append(data[start : start + size])
            at = start + size
        elif data.startswith(b"NIL", at):
            stack[-1].append(None)
            at += 3
        else:
            end = at
            while data[end : end + 1].isdigit():
                end += 1
            assert end > at, data[at : at + 20]
            stack[-1].append(int(data[at:end]))
            at = end
    assert len(stack) == 1
    assert len(stack[0]) == 1
    return stack[0][0]


def check_addresses(value: Any) -> None:
    if value is None:
        return
    assert value
    inside = False
    for name, route, mailbox, host in value:
        assert all(part is None or isinstance(part, bytes) for part in (name, route, mailbox, host))
        if host is None:
            assert inside == (mailbox is None)  # a group begins with a name and ends with NIL
            inside = mailbox is not None
        else:
            assert mailbox is not None
    assert not inside


def check_envelope(value: Any) -> None:
    assert len(value) == 10
    for number in (0, 1, 8, 9):
        assert value[number] is None or isinstance(value[number], bytes)
    for number in range(2, 8):
        check_addresses(value[number])


def check_body(value: Any, *, extended: bool) -> None:
    """The grammar of body in RFC 3501 9."""
    if isinstance(value[0], list):
        count = next(number for number, item in enumerate(value) if not isinstance(item, list))
        for child in value[:count]:
            check_body(child, extended=extended)
        assert isinstance(value[count], bytes)
        rest = value[count + 1 :]
        assert len(rest) == (4 if extended else 0)
        if extended:
            check_parameters(rest[0])
            check_extension(rest[1:])
        return
    kind, subtype, parameters, content_id, description, encoding, size = value[:7]
    assert kind != b"MULTIPART"
    assert isinstance(kind, bytes)
    assert isinstance(subtype, bytes)
    assert isinstance(encoding, bytes)
    check_parameters(parameters)
    assert content_id is None or isinstance(content_id, bytes)
    assert description is None or isinstance(description, bytes)
    assert isinstance(size, int)
    rest = value[7:]
    if (kind, subtype) == (b"MESSAGE", b"RFC822"):
        check_envelope(rest[0])
        check_body(rest[1], extended=extended)
        assert isinstance(rest[2], int)
        rest = rest[3:]
    elif kind == b"TEXT":
        assert isinstance(rest[0], int)
        rest = rest[1:]
    assert len(rest) == (4 if extended else 0)
    if extended:
        assert rest[0] is None or isinstance(rest[0], bytes)
        check_extension(rest[1:])


def check_parameters(value: Any) -> None:
    if value is not None:
        assert value
        assert len(value) % 2 == 0
        assert all(isinstance(item, bytes) for item in value)


def check_extension(value: Any) -> None:
    disposition, language, location = value
    if disposition is not None:
        assert isinstance(disposition[0], bytes)
        check_parameters(disposition[1])
    assert language is None or isinstance(language, bytes) or all(isinstance(tag, bytes) for tag in language)
    assert location is None or isinstance(location, bytes)


def check_offsets(part: Part, raw: bytes, low: int, high: int) -> None:
    assert low <= part.header_start <= part.body_start <= part.end <= high
    at = part.body_start
    for child in part.children:
        check_offsets(child, raw, at, part.end)
        at = child.end


def check_all(raw: bytes) -> Part:
    root = parse(raw)
    check_offsets(root, raw, 0, len(raw))
    assert root.end == len(raw)
    check_body(read_list(body(root, raw)), extended=False)
    check_body(read_list(bodystructure(root, raw)), extended=True)
    check_envelope(read_list(envelope(raw[: root.body_start])))
    return root


def body_of(*lines: bytes) -> Any:
    raw = b"\r\n".join(lines) + b"\r\n"
    check_all(raw)
    return read_list(body(parse(raw), raw))


def extended_of(*lines: bytes) -> Any:
    raw = b"\r\n".join(lines) + b"\r\n"
    check_all(raw)
    return read_list(bodystructure(parse(raw), raw))


# --- what RFC 3501 prints ---------------------------------------------------------------------------------------------

SAMPLE_HEADER = (
    b"Date: Wed, 17 Jul 1996 02:23:25 -0700 (PDT)\r\n"
    b"From: Terry Gray <gray@cac.washington.edu>\r\n"
    b"Subject: IMAP4rev1 WG mtg summary and minutes\r\n"
    b"To: imap@cac.washington.edu\r\n"
    b"cc: minutes@CNRI.Reston.VA.US, John Klensin <KLENSIN@MIT.EDU>\r\n"
    b"Message-Id: <B27397-0100000@cac.washington.edu>\r\n"
    b"MIME-Version: 1.0\r\n"
    b"Content-Type: TEXT/PLAIN; CHARSET=US-ASCII\r\n"
    b"\r\n"
)


def text_of(octets: int, lines: int) -> bytes:
    rest = octets - 2 * lines
    return b"".join(b"x" * (rest // lines + (number < rest % lines)) + b"\r\n" for number in range(lines))


def test_r36_envelope_of_the_rfc_sample() -> None:
    printed = (
        b'("Wed, 17 Jul 1996 02:23:25 -0700 (PDT)" "IMAP4rev1 WG mtg summary and minutes" '
        b'(("Terry Gray" NIL "gray" "cac.washington.edu")) (("Terry Gray" NIL "gray" "cac.washington.edu")) '
        b'(("Terry Gray" NIL "gray" "cac.washington.edu")) ((NIL NIL "imap" "cac.washington.edu")) '
        b'((NIL NIL "minutes" "CNRI.Reston.VA.US")("John Klensin" NIL "KLENSIN" "MIT.EDU")) NIL NIL '
        b'"<B27397-0100000@cac.washington.edu>")'
    )
    assert envelope(SAMPLE_HEADER) == printed


def test_r35_body_of_the_rfc_sample() -> None:
    raw = SAMPLE_HEADER + text_of(3028, 92)
    assert len(SAMPLE_HEADER) == 342  # RFC 3501 8: BODY[HEADER] {342}
    assert body(parse(raw), raw) == b'("TEXT" "PLAIN" ("CHARSET" "US-ASCII") NIL NIL "7BIT" 3028 92)'


def test_r35_body_of_a_text_with_an_attachment_as_the_rfc_prints_it() -> None:
    raw = (
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\n"
        b"--b\r\nContent-Type: TEXT/PLAIN; charset=US-ASCII\r\n\r\n" + text_of(1152, 23) + b"\r\n--b\r\n"
        b"Content-Type: text/plain; charset=US-ASCII;\r\n\tname=cc.diff\r\nContent-Transfer-Encoding: base64\r\n"
        b"Content-ID: <960723163407.20117h@cac.washington.edu>\r\nContent-Description: Compiler diff\r\n\r\n"
        + text_of(4554, 73)
        + b"\r\n--b--\r\n"
    )
    assert body(check_all(raw), raw) == (
        b'(("TEXT" "PLAIN" ("CHARSET" "US-ASCII") NIL NIL "7BIT" 1152 23)("TEXT" "PLAIN" ("CHARSET" '
        b'"US-ASCII" "NAME" "cc.diff") "<960723163407.20117h@cac.washington.edu>" "Compiler diff" "BASE64" 4554 73) '
        b'"MIXED")'
    )


# --- ENVELOPE ---------------------------------------------------------------------------------------------------------


def envelope_with(field: bytes) -> Any:
    value = read_list(envelope(field + b"\r\n\r\n"))
    check_envelope(value)
    return value


def test_r36_an_empty_header_has_ten_nils() -> None:
    assert envelope(b"") == b"(NIL NIL NIL NIL NIL NIL NIL NIL NIL NIL)"


def test_r36_sender_and_reply_to_default_to_from_also_when_empty() -> None:
    one = [[None, None, b"ann", b"example.com"]]
    assert envelope_with(b"From: ann@example.com")[2:5] == [one, one, one]
    assert envelope_with(b"From: ann@example.com\r\nSender:\r\nReply-To: ")[2:5] == [one, one, one]
    other = [[None, None, b"bo", b"example.com"]]
    assert envelope_with(b"From: ann@example.com\r\nReply-To: bo@example.com")[2:5] == [one, one, other]


def test_b08_all_address_fields_and_in_reply_to_are_there() -> None:
    value = envelope_with(
        b"Cc: c@x\r\nBcc: b@x\r\nIn-Reply-To: <1@x>\r\nMessage-ID: <2@x>\r\nSender: s@x\r\nReply-To: r@x"
    )
    assert value[3:] == [
        [[None, None, b"s", b"x"]],
        [[None, None, b"r", b"x"]],
        None,
        [[None, None, b"c", b"x"]],
        [[None, None, b"b", b"x"]],
        b"<1@x>",
        b"<2@x>",
    ]


def test_b08_folded_fields_come_on_one_line() -> None:
    assert envelope_with(b"Subject: one\r\n two\r\n\tthree")[1] == b"one two\tthree"


def test_b08_commas_inside_quoted_names_do_not_break_addresses() -> None:
    assert envelope_with(b'To: "Meyer, Hans" <hans@example.com>,\r\n bo@example.com')[5] == [
        [b"Meyer, Hans", None, b"hans", b"example.com"],
        [None, None, b"bo", b"example.com"],
    ]


def test_r36_a_group_is_told_with_nil_markers() -> None:
    assert envelope_with(b"To: Friends: ann@x, Bo <bo@y>;")[5] == [
        [None, None, b"Friends", None],
        [None, None, b"ann", b"x"],
        [b"Bo", None, b"bo", b"y"],
        [None, None, None, None],
    ]


def test_r36_encoded_words_stay_raw() -> None:
    assert envelope_with(b"Subject: =?utf-8?Q?Gr=C3=BC=C3=9Fe?=")[1] == b"=?utf-8?Q?Gr=C3=BC=C3=9Fe?="


@pytest.mark.parametrize(
    ("raw", "sent"),
    [
        ("Grüße".encode(), "=?utf-8?b?R3LDvMOfZQ==?="),
        ("Grüße".encode("latin-1"), "=?iso-8859-1?b?R3L832U=?="),
        ("Re: Grüße an alle".encode(), "Re: =?utf-8?b?R3LDvMOfZQ==?= an alle"),
    ],
)
def test_r36_raw_8bit_becomes_encoded_words(raw: bytes, sent: str) -> None:
    assert envelope_with(b"Subject: " + raw)[1] == sent.encode()


@pytest.mark.parametrize(
    "text", ["ü " * 40, "Отчёт за квартал " * 9, "=?utf-8?q?a?= ü =?utf-8?q?b?=", "会議の議事録" * 20]
)
def test_r36_what_python_reads_from_our_encoded_words(text: str) -> None:
    sent = envelope_with(b"Subject: " + text.encode())[1]
    assert all(len(word) <= 75 for word in sent.split())
    assert str(email.message_from_bytes(b"Subject: " + sent + b"\r\n\r\n", policy=email.policy.default)["subject"]) == (
        text.strip().replace("=?utf-8?q?a?=", "a").replace("=?utf-8?q?b?=", "b")
    )


def test_s05_nul_never_leaves() -> None:
    assert envelope_with(b"Subject: a\0b\r\nFrom: x\0@y")[1] == b"ab"


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        (None, b"NIL"),
        (b"", b'""'),
        (b'a"b\\c', b'"a\\"b\\\\c"'),
        (b"a\rb", b"{3}\r\na\rb"),
        (b"x" * 1001, b"{1001}\r\n" + b"x" * 1001),
    ],
)
def test_r39_nstring(value: bytes | None, sent: bytes) -> None:
    assert nstring(value) == sent


# --- BODYSTRUCTURE ----------------------------------------------------------------------------------------------------

PLAIN = [b"TEXT", b"PLAIN", [b"CHARSET", b"US-ASCII"], None, None, b"7BIT"]


def test_r35_a_message_without_content_type_is_plain_text() -> None:
    assert body_of(b"Subject: x", b"", b"one", b"two") == [*PLAIN, 10, 2]


def test_r35_all_extension_data() -> None:
    assert extended_of(
        b"Content-Type: image/png; name=x.png",
        b"Content-ID: <i@x>",
        b"Content-Description: a picture",
        b"Content-Transfer-Encoding: BASE64",
        b"Content-MD5: Q2hlY2sgSW50ZWdyaXR5IQ==",
        b'Content-Disposition: attachment; filename="my x.png"; size=3',
        b"Content-Language: en, de",
        b"Content-Location: http://x.example/\r\n very/long",
        b"",
        b"abcd",
    ) == [
        b"IMAGE",
        b"PNG",
        [b"NAME", b"x.png"],
        b"<i@x>",
        b"a picture",
        b"BASE64",
        6,
        b"Q2hlY2sgSW50ZWdyaXR5IQ==",
        [b"ATTACHMENT", [b"FILENAME", b"my x.png", b"SIZE", b"3"]],
        [b"EN", b"DE"],
        b"http://x.example/very/long",
    ]


def test_r35_message_rfc822_adds_envelope_body_and_lines() -> None:
    inner = b"Subject: inner\r\nFrom: a@b\r\n\r\nhello\r\nworld\r\n"
    raw = b"Content-Type: message/rfc822\r\n\r\n" + inner
    check_all(raw)
    value = read_list(body(parse(raw), raw))
    assert value[:7] == [b"MESSAGE", b"RFC822", None, None, None, b"7BIT", len(inner)]
    assert value[7] == read_list(envelope(inner))
    assert value[8:] == [[*PLAIN, 14, 2], 5]


def test_r35_digest_children_are_messages_by_default() -> None:
    value = body_of(
        b"Content-Type: multipart/digest; boundary=d",
        b"",
        b"--d",
        b"",
        b"Subject: one",
        b"",
        b"text",
        b"--d",
        b"Content-Type: text/plain",
        b"",
        b"note",
        b"--d--",
    )
    assert value[0][:2] == [b"MESSAGE", b"RFC822"]
    assert value[0][7][1] == b"one"
    assert value[1] == [*PLAIN, 4, 0]
    assert value[2] == b"DIGEST"


def test_r35_continued_parameters_are_joined() -> None:
    value = extended_of(
        b"Content-Type: application/x; name*0=long; name*1=name",
        b"Content-Disposition: attachment; filename*0*=utf-8''%C3%BC; filename*1=.txt",
        b"",
        b"",
    )
    assert value[2] == [b"NAME", b"longname"]
    assert value[8] == [b"ATTACHMENT", [b"FILENAME*", b"utf-8''%C3%BC.txt"]]


def test_r36_raw_8bit_file_names_become_encoded_words() -> None:
    value = extended_of(b'Content-Type: application/x; name="\xc3\xbc.pdf"', b"", b"")
    assert value[2] == [b"NAME", b"=?utf-8?b?w7wucGRm?="]


# --- broken mail ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        b"Content-Type: multipart/mixed",
        b"Content-Type: multipart/mixed; boundary=",
        b'Content-Type: multipart/mixed; boundary=""',
        b"Content-Type: multipart/mixed; boundary=never-seen",
        b"Content-Type: text",
        b"Content-Type: ",
        b"Content-Type: nonsense nonsense",
        b"Content-Type: /; ;=;",
    ],
)
def test_r35_broken_types_are_shown_as_plain_text(header: bytes) -> None:
    assert body_of(header, b"", b"--x", b"some text") == [*PLAIN, 16, 2]


def multipart(*lines: bytes) -> Any:
    return body_of(b'Content-Type: multipart/mixed; boundary="b"', b"", *lines)


def test_r35_a_multipart_that_is_never_closed_ends_with_the_message() -> None:
    assert multipart(b"--b", b"", b"one") == [[*PLAIN, 5, 1], b"MIXED"]


def test_r35_boundaries_with_trailing_space_count_and_longer_lines_do_not() -> None:
    assert multipart(b"--b \t", b"", b"--bb", b"--b--x", b"--b-- ") == [[*PLAIN, 12, 1], b"MIXED"]


@pytest.mark.parametrize("count", [0, 31, 32, 33, 200])
def test_r35_boundaries_are_found_after_many_lines_with_dashes(count: int) -> None:
    dashes = [b"--", b"-- b", b"--a", b"--b-"] * count
    text = b"\r\n".join([b"x", *dashes])
    value = multipart(b"--b", b"", text, b"--b \t", b"", b"two", *dashes, b"--b--", *dashes)
    assert value == [[*PLAIN, len(text), 4 * count], [*PLAIN, len(text) + 2, 4 * count], b"MIXED"]


def test_r35_a_boundary_inside_a_header_ends_the_part() -> None:
    assert multipart(b"--b", b"X-A: 1", b"--b", b"", b"two", b"--b--") == [[*PLAIN, 0, 0], [*PLAIN, 3, 0], b"MIXED"]


def test_r35_what_follows_the_closing_boundary_is_no_part() -> None:
    assert multipart(b"--b", b"", b"one", b"--b--", b"--b", b"", b"two") == [[*PLAIN, 3, 0], b"MIXED"]


def test_r35_an_inner_multipart_with_the_boundary_of_the_outer_one() -> None:
    inner = b"Content-Type: multipart/alternative; boundary=b"
    value = multipart(b"--b", inner, b"", b"--b", b"", b"x", b"--b--", b"--b", b"", b"y", b"--b--")
    assert value == [[[*PLAIN, 1, 0], b"ALTERNATIVE"], [*PLAIN, 1, 0], b"MIXED"]


def test_r35_an_inner_multipart_without_an_end_is_ended_by_the_outer_boundary() -> None:
    inner = b"Content-Type: multipart/alternative; boundary=i"
    value = multipart(b"--b", inner, b"", b"--i", b"", b"x", b"--b", b"", b"y", b"--i", b"z", b"--b--")
    assert value == [[[*PLAIN, 1, 0], b"ALTERNATIVE"], [*PLAIN, 9, 2], b"MIXED"]


def test_r35_bare_line_feeds_divide_parts_too() -> None:
    raw = b"Content-Type: multipart/mixed; boundary=b\n\n--b\n\none\n--b\n\ntwo\n--b--\n"
    check_all(raw)
    assert read_list(body(parse(raw), raw)) == [[*PLAIN, 3, 0], [*PLAIN, 3, 0], b"MIXED"]


@pytest.mark.parametrize(
    "raw", [b"", b"\r\n", b"\n", b"\r", b"\0", b"x", b":", b"--", b"\r\n\r\n", b" \r\n \r\n", b"\xff" * 9]
)
def test_r35_the_smallest_messages(raw: bytes) -> None:
    check_all(raw)


# --- limits ------------------------------------------------------------------------------------------------


def nested_multiparts(depth: int) -> bytes:
    opening = [
        b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (level, level) for level in range(depth)
    ]
    closing = [b"\r\n--b%d--\r\n" % level for level in reversed(range(depth))]
    return b"".join([*opening, b"\r\ndeep\r\n", *closing])


def nested_messages(depth: int) -> bytes:
    return b"Content-Type: message/rfc822\r\n\r\n" * depth + b"\r\ndeep\r\n"


def many_parts(count: int) -> bytes:
    return b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--b\r\n\r\nx\r\n" * count + b"--b--\r\n"


def depth_of(part: Part) -> int:
    depth, level = 0, [part]
    while level:
        depth, level = depth + 1, [child for one in level for child in one.children]
    return depth


@pytest.mark.parametrize("nested", [nested_multiparts, nested_messages])
def test_s28_nesting_has_a_limit(nested: Callable[[int], bytes]) -> None:
    raw = nested(1000)
    root = check_all(raw)
    assert depth_of(root) == NESTING_LIMIT + 1
    assert list(root.walk())[-1].subtype == b"octet-stream"
    assert depth_of(check_all(nested(50))) == 51


def test_s28_parts_have_a_limit() -> None:
    root = check_all(many_parts(PART_LIMIT + 5000))
    assert sum(1 for _ in root.walk()) == PART_LIMIT
    assert len(check_all(many_parts(500)).children) == 500


def test_s28_messages_in_a_digest_at_the_limit_are_still_valid() -> None:
    raw = b"Content-Type: multipart/digest; boundary=b\r\n\r\n" + b"--b\r\n\r\nSubject: x\r\n\r\nx\r\n" * PART_LIMIT
    assert PART_LIMIT <= sum(1 for _ in check_all(raw).walk()) <= PART_LIMIT + NESTING_LIMIT


# --- any bytes --------------------------------------------------------------------------------------------------------

PIECES = st.sampled_from(
    b"\r\n|\n|\r|--b|--b--|--c|--|\r\n\r\n| |\t|:|;|\"|\\|(|)|@|<|>|,|a|.|[|]|'|%41|\0|\xff|\xc3\xbc|=?utf-8?b?|?=|"
    b'Content-Type: multipart/mixed; boundary=b\r\n|Content-Type: multipart/digest; boundary="c"\r\n|'
    b"Content-Type: message/rfc822\r\n\r\n|Content-Type: text/html; charset*=x''%ff\r\n|\r\n--b\r\n|\r\n--c\r\n|"
    b"Content-Disposition: |Content-Language: a,b\r\n|Content-MD5: |Content-Transfer-Encoding: base64\r\n|"
    b"From: |To: |Subject: |Date: |filename*0*=|name*1=".split(b"|")
)
MESSAGES = st.one_of(
    st.binary(max_size=300), st.lists(st.one_of(PIECES, st.binary(max_size=4)), max_size=40).map(b"".join)
)


@settings(max_examples=400, deadline=None)
@given(MESSAGES)
def test_r35_any_bytes_have_a_valid_structure(raw: bytes) -> None:
    check_all(raw)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(PIECES, st.binary(max_size=4)), max_size=30).map(b"".join))
def test_r36_any_field_has_a_valid_envelope(value: bytes) -> None:
    check_envelope(
        read_list(envelope(b"Subject: " + value + b"\r\nTo: " + value + b"\r\nIn-Reply-To: " + value + b"\r\n\r\n"))
    )
