"""Sections, what is prepared for the index, and text to search."""

from __future__ import annotations

import base64
import email
import email.policy
import quopri
import time
from collections.abc import Callable
from datetime import date
from email.message import EmailMessage

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailsrv.wire import mime

# --- the section numbers that RFC 3501 6.4.5 prints -------------------------------------------------------------------


def part(kind: str, body: bytes) -> bytes:
    return b"Content-Type: " + kind.encode() + b"\r\n\r\n" + body


def many(kind: str, boundary: str, *parts: bytes) -> bytes:
    line = b"--" + boundary.encode()
    body = b"".join(line + b"\r\n" + one + b"\r\n" for one in parts) + line + b"--\r\n"
    return part(f'multipart/{kind}; boundary="{boundary}"', body)


ALTERNATIVE = many("alternative", "b422", part("text/plain", b"4.2.2.1"), part("text/richtext", b"4.2.2.2"))
MESSAGE_42 = b"Subject: 4.2\r\n" + many("mixed", "b42", part("text/plain", b"4.2.1"), ALTERNATIVE)
MESSAGE_3 = b"Subject: 3\r\nTo: x@y\r\n" + many(
    "mixed", "b3", part("text/plain", b"3.1"), part("application/octet-stream", b"3.2")
)
PART_4 = many("mixed", "b4", part("image/gif", b"4.1"), part("message/rfc822", MESSAGE_42))
TOP = [part("text/plain", b"1"), part("application/octet-stream", b"2"), part("message/rfc822", MESSAGE_3), PART_4]
RAW = b"Subject: top\r\n" + many("mixed", "b0", *TOP)


def split(message: bytes) -> tuple[bytes, bytes]:
    header, text = message.split(b"\r\n\r\n", 1)
    return header + b"\r\n\r\n", text


@pytest.mark.parametrize(
    ("path", "kind", "text"),
    [
        ("", None, RAW),
        ("", "HEADER", split(RAW)[0]),
        ("", "TEXT", split(RAW)[1]),
        ("1", None, b"1"),
        ("1", "MIME", b"Content-Type: text/plain\r\n\r\n"),
        ("2", None, b"2"),
        ("3", None, MESSAGE_3),
        ("3", "HEADER", split(MESSAGE_3)[0]),
        ("3", "TEXT", split(MESSAGE_3)[1]),
        ("3", "MIME", b"Content-Type: message/rfc822\r\n\r\n"),
        ("3.1", None, b"3.1"),
        ("3.2", None, b"3.2"),
        ("4", None, split(PART_4)[1]),
        ("4", "MIME", split(PART_4)[0]),
        ("4.1", None, b"4.1"),
        ("4.1", "MIME", b"Content-Type: image/gif\r\n\r\n"),
        ("4.2", None, MESSAGE_42),
        ("4.2", "HEADER", split(MESSAGE_42)[0]),
        ("4.2", "TEXT", split(MESSAGE_42)[1]),
        ("4.2.1", None, b"4.2.1"),
        ("4.2.2", None, split(ALTERNATIVE)[1]),
        ("4.2.2.1", None, b"4.2.2.1"),
        ("4.2.2.2", None, b"4.2.2.2"),
        # R33: HEADER and TEXT with a number need a message, MIME needs a number.
        ("", "MIME", None),
        ("1", "HEADER", None),
        ("1", "TEXT", None),
        ("4", "HEADER", None),
        ("4", "TEXT", None),
        ("4.1", "HEADER.FIELDS", None),
        # No such part.
        ("0", None, None),
        ("5", None, None),
        ("1.1", None, None),
        ("3.3", None, None),
        ("3.1.1", None, None),
        ("4.2.2.3", "MIME", None),
    ],
)
def test_r33_b07_section_numbers_of_the_rfc(path: str, kind: str | None, text: bytes | None) -> None:
    numbers = tuple(int(number) for number in path.split(".") if number)
    assert mime.section(RAW, numbers, kind) == text
    assert mime.section_of(mime.parse(RAW), RAW, numbers, kind) == text


def test_r33_part_1_of_a_message_that_is_no_multipart_is_its_body() -> None:
    raw = b"Subject: x\r\n\r\nbody\r\n"
    assert mime.section(raw, (1,)) == b"body\r\n"
    assert mime.section(raw, (1,), "MIME") == b"Subject: x\r\n\r\n"
    assert mime.section(raw, (2,)) is None
    assert mime.section(raw, (1, 1)) is None
    assert mime.section(raw, (1,), "TEXT") is None


def test_r33_a_message_inside_that_is_no_multipart_has_a_part_1_too() -> None:
    raw = many("mixed", "b", part("message/rfc822", b"Subject: in\r\n\r\nbody"))
    assert mime.section(raw, (1, 1)) == b"body"
    assert mime.section(raw, (1, 2)) is None
    whole = part("message/rfc822", b"Subject: in\r\n\r\nbody")
    assert mime.section(whole, (1,)) == b"Subject: in\r\n\r\nbody"
    assert mime.section(whole, (1,), "HEADER") == b"Subject: in\r\n\r\n"
    assert mime.section(whole, (1, 1)) == b"body"


# --- header fields ----------------------------------------------------------------------------------------------------

HEADER = (
    b"Received: from a\r\n\tby b\r\nSUBJECT : one\r\n two\r\nSubject-X: no\r\nTo: a@b,\r\n\tc@d\r\nno field\r\n"
    b"subject: again\r\nX-To: no\r\n\r\n"
)


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ([b"subject"], b"SUBJECT : one\r\n two\r\nsubject: again\r\n\r\n"),
        ([b"to", b"received"], b"Received: from a\r\n\tby b\r\nTo: a@b,\r\n\tc@d\r\n\r\n"),
        ([b"x"], b"\r\n"),
        ([], b"\r\n"),
        ([b""], b"\r\n"),
        ([b".*", b"s.bject", b"two", b"to:", b"a\r\nb"], b"\r\n"),
    ],
)
def test_r34_b07_fields_keep_their_order_and_folding_and_end_in_a_blank_line(names: list[bytes], found: bytes) -> None:
    assert mime.header_fields(HEADER, frozenset(names)) == found
    filler = [b"none-%d" % number for number in range(100)]  # many names take another way
    assert mime.header_fields(HEADER, frozenset([*names, *filler])) == found
    raw = HEADER + b"subject: in the body\r\n"
    assert mime.section(raw, (), "HEADER.FIELDS", tuple(name.upper() for name in names)) == found


def test_r34_all_other_fields() -> None:
    assert mime.header_fields(HEADER, frozenset(), invert=True) == HEADER
    assert mime.section(HEADER + b"x", (), "HEADER.FIELDS.NOT", (b"RECEIVED", b"To", b"x-to", b"subject-x")) == (
        b"SUBJECT : one\r\n two\r\nno field\r\nsubject: again\r\n\r\n"
    )


@pytest.mark.parametrize("header", [b"", b"\r\n", b"A: b", b"A: b\r\n", b"A: b\r\n\r\n"])
def test_r34_there_is_one_blank_line_whatever_the_header_ends_with(header: bytes) -> None:
    expected = b"A: b\r\n\r\n" if header.startswith(b"A") else b"\r\n"
    assert mime.header_fields(header, frozenset([b"a"])) == expected
    assert mime.header_fields(header, frozenset(), invert=True) == expected
    assert mime.section(header, (), "HEADER.FIELDS", (b"a",)) == expected


PIECES = st.sampled_from(
    b"\r\n|\n|\r| |\t|:|To|to:|subject: |x|From: a@b\r\n|Date: 1 Jan 2020\r\n|--b|--b--|\r\n--b\r\n|\xff|\0|=|QUJD|"
    b"Content-Type: multipart/mixed; boundary=b\r\n|Content-Type: message/rfc822\r\n\r\n|=?utf-8?q?a?=|\r\n\r\n|"
    b"Content-Type: text/plain; charset=x\r\n|Content-Transfer-Encoding: base64\r\n|"
    b"Content-Transfer-Encoding: quoted-printable\r\n".split(b"|")
)
MESSAGES = st.one_of(st.binary(max_size=200), st.lists(PIECES, max_size=40).map(b"".join))
NAMES = st.lists(st.sampled_from([b"to", b"subject", b"from", b"date", b"content-type"]), max_size=4)


@settings(max_examples=300, deadline=None)
@given(MESSAGES, NAMES)
def test_r34_fields_from_the_index_are_those_of_the_message(raw: bytes, names: list[bytes]) -> None:
    kept = mime.prepare(raw).fields
    assert mime.header_fields(kept, frozenset(names)) == mime.section(raw, (), "HEADER.FIELDS", tuple(names))


@settings(max_examples=300, deadline=None)
@given(MESSAGES)
def test_r37_sections_are_pieces_of_the_message(raw: bytes) -> None:
    header, text = mime.section(raw, (), "HEADER"), mime.section(raw, (), "TEXT")
    assert header is not None
    assert text is not None
    assert header + text == mime.section(raw, ()) == raw
    root = mime.parse(raw)
    for number, child in enumerate(root.children, 1):
        if root.is_multipart:
            mime_header, body = mime.section(raw, (number,), "MIME"), mime.section(raw, (number,))
            assert mime_header is not None
            assert body is not None
            assert raw[child.header_start :].startswith(mime_header + body)
            if child.is_message:
                inner = mime.section(raw, (number,), "HEADER"), mime.section(raw, (number,), "TEXT")
                assert inner[0] is not None
                assert inner[1] is not None
                assert inner[0] + inner[1] == body


@settings(max_examples=300, deadline=None)
@given(MESSAGES)
def test_s28_any_bytes_are_prepared_and_searched(raw: bytes) -> None:
    prepared = mime.prepare(raw)
    root = mime.parse(raw)
    assert prepared.envelope == mime.envelope(raw[: root.body_start])
    assert prepared.bodystructure == mime.bodystructure(root, raw)
    assert mime.prepare(raw, structure=False) == prepared._replace(bodystructure=b"")
    text = mime.search_text(raw)
    assert text.endswith(mime.search_body(raw))
    assert text.casefold() == mime.fold(text)
    for value in mime.search_header(raw[: root.body_start], "subject"):
        assert isinstance(value, str)


# --- prepare ----------------------------------------------------------------------------------------------------------


def test_f13_r41_what_is_kept_in_the_index() -> None:
    raw = (
        b"Received: by x\r\nFrom: =?utf-8?q?J=C3=BCrgen?= <J@X.example>\r\nTo: a@b,\r\n\tC@D\r\nTo: e@f\r\n"
        b"Subject: =?utf-8?q?GR=C3=9CSSE?=\r\n =?utf-8?q?_ALLE?=\r\nDate: Fri, 1 Jan 2027 23:59:59 -1200\r\n"
        b"Message-ID: <A@b>\r\nX-Other: no\r\n\r\nbody\r\n"
    )
    prepared = mime.prepare(raw)
    assert prepared.from_ == "jürgen <j@x.example>"
    assert prepared.to == "a@b, c@d\ne@f"
    assert prepared.subject == "grüsse alle"
    assert (prepared.cc, prepared.bcc, prepared.message_id) == ("", "", "<a@b>")
    assert prepared.sent_day == date(2027, 1, 1).toordinal()
    assert prepared.fields == raw[len(b"Received: by x\r\n") : raw.index(b"X-Other")]
    assert prepared.bodystructure == b'("TEXT" "PLAIN" ("CHARSET" "US-ASCII") NIL NIL "7BIT" 6 1 NIL NIL NIL NIL)'


def test_r41_without_a_date_the_sent_day_is_0() -> None:
    assert mime.prepare(b"Subject: x\r\n\r\n").sent_day == 0


# --- search -----------------------------------------------------------------------------------------------------------


def coded(charset: str, encoding: str, text: str) -> bytes:
    data = text.encode(charset)
    body = {"base64": base64.encodebytes, "quoted-printable": quopri.encodestring}.get(encoding, bytes)(data)
    return (
        f"Content-Type: text/plain; charset={charset}\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n".encode()
        + body.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    )


@pytest.mark.parametrize("charset", ["utf-8", "ISO-8859-1", "windows-1252", "utf-7"])
@pytest.mark.parametrize("encoding", ["base64", "quoted-printable", "BASE64 (comment)", "8bit"])
def test_r41_bodies_are_decoded(charset: str, encoding: str) -> None:
    raw = coded(charset, encoding.partition(" ")[0].lower(), "Viele GRÜSSE aus Köln").replace(
        encoding.partition(" ")[0].lower().encode(), encoding.encode(), 1
    )
    assert "viele grüsse aus köln" in mime.search_text(raw)
    assert "viele grüsse aus köln" in mime.search_body(many("mixed", "b", raw))


def test_r41_headers_are_decoded_and_belong_to_the_text_not_to_the_body() -> None:
    raw = b"Subject: =?utf-8?q?GR=C3=9CN?=\r\n =?utf-8?q?_und?= blau\r\nX-Any: Thing\r\n\r\nBody\r\n"
    assert mime.search_text(raw) == "subject: grün und blau\r\nx-any: thing\r\n\r\n\nbody\r\n"
    assert mime.search_body(raw) == "body\r\n"


def test_r41_what_is_searched_of_the_parts() -> None:
    hidden = base64.encodebytes(b"secret words").replace(b"\n", b"\r\n")
    inner = b"Subject: =?utf-8?q?inn=C3=AB?=\r\n\r\ninner text"
    raw = many(
        "mixed",
        "b",
        part("text/html", b"<p>HTML</p>"),
        b"Content-Transfer-Encoding: base64\r\n" + part("application/pdf; name*=utf-8''%C3%9C.pdf", hidden),
        part("message/rfc822", inner),
    )
    text = mime.search_body(raw)
    assert "<p>html</p>" in text
    assert "innë" in text
    assert "inner text" in text
    assert "ü.pdf" in text
    assert "secret" not in text
    assert hidden[:10].decode().lower() not in text


def test_r41_all_values_of_a_field() -> None:
    header = b"X-A: =?utf-8?q?=C3=9C?=\r\nx-a: two\r\n three\r\nX-B: no\r\nX-A:\r\n\r\n"
    assert mime.search_header(header, "X-A") == ["Ü", "two three", ""]
    assert mime.search_header(header, b"x-a") == ["Ü", "two three", ""]
    assert mime.search_header(header, "ü") == []


@pytest.mark.parametrize(("text", "folded"), [("ABC", "abc"), ("GRÜSSE", "grüsse"), ("Straße", "strasse"), ("Σ", "σ")])
def test_r41_case_folding(text: str, folded: str) -> None:
    assert mime.fold(text) == folded


def test_s28_searched_text_has_a_limit() -> None:
    raw = b"Subject: x\r\n\r\n" + b"a" * (mime.DECODED_LIMIT + 1000)
    assert len(mime.search_body(raw)) == mime.DECODED_LIMIT
    text = part("text/plain", b"a" * (mime.DECODED_LIMIT - 1000))
    assert len(mime.search_body(many("mixed", "b", text, text, text))) < mime.DECODED_LIMIT + 100


def test_r41_the_same_text_as_python_decodes() -> None:
    message = EmailMessage()
    message["Subject"] = "Grüße und ein langer Betreff, der auf mehrere Zeilen geht, 会議の議事録 " * 3
    message.set_content("Zeile – eins\nОтчёт за квартал\n" * 20)
    message.add_alternative("<p>会議の議事録</p>" * 30, subtype="html", charset="iso-2022-jp")
    message.add_attachment("Anhang ü", filename="ü.txt", cte="base64")
    raw = message.as_bytes(policy=email.policy.SMTP)
    text = mime.search_text(raw)
    assert mime.fold(str(message["subject"])) in text
    for one in message.walk():
        if not one.is_multipart():
            assert mime.fold(one.get_content().replace("\n", "\r\n").strip()) in text


# --- growth -----------------------------------------------------------------------------------------------------------

GROWING: dict[str, Callable[[int], bytes]] = {
    "fields": lambda n: b"To: a@b\r\n" * (n // 9),
    "folds": lambda n: b"To: a@b" + b"\r\n ,a@b" * (n // 7),
    "encoded words": lambda n: b"Subject: x" + b"\r\n =?utf-8?q?=C3=BC?=" * (n // 21),
    "parts": lambda n: b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--b\r\n\r\nx\r\n" * (n // 10),
    "quoted-printable": lambda n: b"Content-Transfer-Encoding: quoted-printable\r\n\r\n" + b"= =" * (n // 3),
    "base64": lambda n: b"Content-Transfer-Encoding: base64\r\n\r\n" + b"=A" * (n // 2),
    "accents": lambda n: b"Content-Type: text/plain; charset=utf-8\r\n\r\n" + "\u0301\u0327".encode() * (n // 4),
    "utf-7": lambda n: b"Content-Type: text/plain; charset=utf-7\r\n\r\n" + b"+AOQ" * (n // 4),
    "iso-2022-jp": lambda n: b"Content-Type: text/plain; charset=iso-2022-jp\r\n\r\n" + b"\x1b$B" * (n // 3),
}


@pytest.mark.parametrize("name", GROWING)
def test_s29_ten_times_the_message_takes_about_ten_times_as_long(name: str) -> None:
    def seconds(raw: bytes) -> float:
        best = 9.0
        for _ in range(3):
            start = time.process_time()
            mime.prepare(raw)
            mime.search_text(raw)
            mime.section(raw, (), "HEADER.FIELDS.NOT", (b"x",))
            best = min(best, time.process_time() - start)
        return best

    small, large = seconds(GROWING[name](20_000)), seconds(GROWING[name](200_000))
    assert large < max(40 * small, 0.05)
    assert large < 2


def test_a_long_header_gives_the_same_fields_as_a_short_one(monkeypatch):
    raw = b"To: a\r\nX-a: b\r\nSubject: c\r\n d\r\njunk\r\nTO : e\r\nX-b: f\r\n\r\nTo: body\r\n"
    header = raw[: mime.header_end(raw)]
    names = frozenset({b"to", b"subject"})
    asked = [lambda: mime.header_fields(header, names), lambda: mime.header_fields(header, names, True)]
    short = [ask() for ask in asked]
    assert short[0] == b"To: a\r\nSubject: c\r\n d\r\nTO : e\r\n\r\n"
    monkeypatch.setattr(mime, "PIECE", 8)
    assert [ask() for ask in asked] == short
