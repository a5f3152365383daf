"""Every parser that reads what strangers send: a value or a WireError, nothing else, whatever the octets."""

import base64
from contextlib import suppress

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mailsrv.store import names
from mailsrv.values import Prepared
from mailsrv.wire import address, header, header_addresses, imap_responses, mime, mutf7, sasl, smtp, structure
from mailsrv.wire.errors import WireError
from mailsrv.wire.imap_commands import append_head, parse
from mailsrv.wire.imap_tokens import line_literal
from mailsrv.wire.imap_values import Command, Literal, SequenceSet
from mailsrv.wire.lines import DotDecoder, dot_stuffed

WORDS = [
    b"a ", b"UID ", b"FETCH ", b"STORE ", b"SEARCH ", b"APPEND ", b"LIST ", b"LOGIN ", b"SELECT ", b"STATUS ", b"1:*",
    b"1,2", b"*", b" ", b"(", b")", b"BODY[", b"]", b"<0.1>", b"HEADER.FIELDS", b"FLAGS", b"\\Seen", b'"', b"\\",
    b"NIL", b"NOT ", b"OR ", b"CHARSET ", b"UTF-8", b"{1}", b"{99999999999999999999}", b"&", b"&AOQ-", b"\x00", b"\xff",
    b"\r", b"\n", b"%", b"0", b"4294967296", b'"01-Jan-2000 00:00:00 +0000"', b"1-Jan-2000", b"RETURN ", b"x",
]  # fmt: skip
lines = st.one_of(st.binary(max_size=200), st.lists(st.sampled_from(WORDS), max_size=20).map(b"".join))
literals = st.builds(
    lambda data, sync, binary: Literal(len(data), sync, binary, data),
    st.binary(max_size=20),
    st.booleans(),
    st.booleans(),
)
HEADER_WORDS = [
    b"From: ", b"To: ", b"Subject: ", b"Date: ", b"Content-Type: ", b"multipart/mixed; boundary=", b"message/rfc822",
    b"text/plain; charset=", b"\r\n", b"\n", b"\r", b" ", b"\t", b"--x", b"--x--", b"x", b'"', b"\\", b"(", b")", b"<",
    b">", b",", b";", b":", b"@", b"=", b"=?utf-8?q?=C3=BC?=", b"=?x?b?AA", b"?=", b"filename*0*=utf-8''%C3",
    b"Content-Transfer-Encoding: base64", b"Content-Disposition: attachment; filename=", b"\x00", b"\xff", b"\xe4",
    b"Mon, 7 Feb 1994 21:52:25 -0800", b"99", b"[", b"]", b"group:", b"Message-ID: <a@b>", b"References: ",
]  # fmt: skip
messages = st.one_of(st.binary(max_size=300), st.lists(st.sampled_from(HEADER_WORDS), max_size=60).map(b"".join))
MANY = settings(max_examples=400, deadline=None)


@MANY
@given(st.lists(st.tuples(lines, literals), max_size=3), lines)
def test_r40_imap_command(pairs, last):
    parts = [part for pair in pairs for part in pair] + [last]
    try:
        assert isinstance(parse(parts), Command)
    except WireError as failure:
        assert failure.offset >= 0
    announced = line_literal(last)
    if announced is not None:
        with suppress(WireError):
            append_head(parts, announced)


@MANY
@given(lines)
@example(b"a LOGIN {0}\n")  # `$` of a regular expression also matches before a last LF
def test_r40_literal_announcement(line):
    found = line_literal(line)
    assert found is None or (found.size >= 0 and line.endswith(b"}"))


@MANY
@given(st.binary(max_size=60) | st.text(alphabet="&-,AaOQBcK+/=ä", max_size=40).map(lambda text: text.encode()))
def test_r18_mailbox_name(raw):
    try:
        name = mutf7.decode(raw)
    except WireError:
        return
    assert mutf7.encode(name) == raw, "one name, one spelling"


@given(st.text(max_size=40).filter(lambda name: not any(0xD800 <= ord(char) < 0xE000 for char in name)))
def test_r18_every_name_can_be_written_and_read(name):
    assert mutf7.decode(mutf7.encode(name)) == name


@MANY
@given(st.binary(max_size=200) | st.text(max_size=100).map(lambda text: text.encode()))
def test_s05_smtp_command(line):
    try:
        command = smtp.parse_command(line)
    except WireError:
        return
    assert command.verb.isalpha() and command.verb == command.verb.upper()


paths = st.lists(
    st.sampled_from(
        [
            "FROM:",
            "TO:",
            "<",
            ">",
            "@",
            "a",
            "example.com",
            '"',
            "\\",
            " ",
            ":",
            ",",
            "SIZE=",
            "1",
            "BODY=",
            "8BITMIME",
            "SMTPUTF8",
            "ü",
            "[",
            "127.0.0.1",
            "IPv6:::1",
            "]",
            ".",
            "%",
            "x" * 70,
            "AUTH=",
            "\x7f",
        ]
    ),
    max_size=14,
).map("".join)


@MANY
@given(paths | st.text(max_size=60))
def test_s09_smtp_paths(argument):
    for read in (smtp.parse_mail, lambda text: smtp.parse_rcpt(text, smtputf8=True), address.parse_mailbox):
        try:
            value = read(argument)
        except WireError:
            continue
        mailbox = getattr(value, "sender", value)
        if mailbox is not None and mailbox.domain:
            assert len(mailbox.local.encode()) <= 64 and mailbox.domain == mailbox.domain.lower()
            assert address.parse_mailbox(address.written(mailbox)) == mailbox, "what is written is read as the same"


@MANY
@given(st.binary(max_size=100))
def test_f12_sasl(response):
    for mechanism in (sasl.Plain(), sasl.Login()):
        with suppress(WireError):
            assert isinstance(mechanism.start(response), bytes | sasl.Credentials)
            assert isinstance(mechanism.step(response), bytes | sasl.Credentials)


@MANY
@given(messages)
def test_b08_header(raw):
    """A header is never refused: what cannot be read is shown as well as it can be."""
    fields = header.parse_fields(raw)
    for value in (value for values in fields.values() for value in values):
        header.decode_field(value)
        header.day_number(value)
        header.parse_parameters(value)
        header.strip_comments(value)
        for one in header_addresses.parse_addresses(value):
            assert len(one) == 4
        assert header.encode_8bit(value).isascii()


@MANY
@given(messages)
def test_b07_message(raw):
    prepared = mime.prepare(raw)
    assert isinstance(prepared, Prepared)
    for text in (prepared.envelope, prepared.bodystructure):
        assert text.startswith(b"(") and text.endswith(b")")
        assert balanced(text)
    assert mime.section(raw, ()) == raw
    for path in ((1,), (1, 1), (2,), (1, 2, 3)):
        for kind in (None, "HEADER", "TEXT", "MIME"):
            found = mime.section(raw, path, kind)
            assert found is None or isinstance(found, bytes)
    mime.search_text(raw)
    mime.search_body(raw)
    part = structure.parse(raw)
    assert balanced(structure.body(part, raw))


def balanced(text):
    """Parentheses outside strings match; literals and quoted strings are skipped by their own rules."""
    depth = position = 0
    while position < len(text):
        octet = text[position : position + 1]
        if octet == b'"':
            position += 1
            while text[position : position + 1] != b'"':
                position += 2 if text[position : position + 1] == b"\\" else 1
                if position >= len(text):
                    return False
        elif octet == b"{":
            end = text.index(b"}\r\n", position)
            position = end + 2 + int(text[position + 1 : end])
        elif octet == b"(":
            depth += 1
        elif octet == b")":
            depth -= 1
            if depth < 0:
                return False
        position += 1
    return depth == 0


@MANY
@given(st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b".", b"..", b"a", b"\r\n.\r\n", b"\0", b"\xff"]), max_size=30))
def test_s01_the_end_of_a_text_does_not_depend_on_how_it_was_cut(pieces):
    whole = b"".join(pieces)
    results = []
    for cut in ([whole], pieces, [whole[n : n + 1] for n in range(len(whole))]):
        decoder, text = DotDecoder(), b""
        for piece in cut:
            if decoder.done:
                decoder.rest += piece
            else:
                text += decoder.feed(piece)
        results.append((text if decoder.done else None, decoder.done, decoder.rest if decoder.done else None))
    assert results[0] == results[1] == results[2]
    end = (b"\r\n" + whole).find(b"\r\n.\r\n")
    assert results[0][1] is (end >= 0), "CRLF . CRLF ends the text and nothing else does"


@given(st.lists(st.sampled_from([b"a", b".", b"..", b"\r\n", b"\r\n.", b"x.y"]), max_size=20))
def test_s02_stuffed_text_comes_back_as_it_was(pieces):
    text = b"".join(pieces)
    decoder = DotDecoder()
    received = decoder.feed(dot_stuffed(text) + b"NEXT")
    assert decoder.done and decoder.rest == b"NEXT" and not decoder.bare
    assert received == (text if text.endswith(b"\r\n") or not text else text + b"\r\n")


@MANY
@given(st.text(max_size=60))
def test_b14_file_name(name):
    parsed = names.parse(name)
    assert 0 <= parsed.flags < 32 and 0 <= parsed.keywords < 1 << 26
    names.tag(parsed.base)
    names.sizes(parsed.base)
    names.arrival(parsed.base)
    names.name_of(name)


@MANY
@given(st.binary(max_size=80) | st.text(max_size=40))
def test_r45_every_string_can_be_sent_and_read_again(value):
    raw = value.encode("utf-8", "replace") if isinstance(value, str) else value
    sent = imap_responses.quoted_or_literal(value)
    if sent.startswith(b"{"):
        assert sent == b"{%d}\r\n%b" % (len(raw), raw)
    else:
        assert sent[1:-1].replace(b'\\"', b'"').replace(b"\\\\", b"\\") == raw
        assert b"\r" not in sent and b"\n" not in sent and sent.isascii()


@given(st.lists(st.integers(1, 60), max_size=30, unique=True).map(sorted))
def test_number_set_names_the_same_numbers(numbers):
    text = imap_responses.number_set(numbers)
    if not numbers:
        assert text == b""
        return
    parsed = parse([b"a FETCH " + text + b" ALL"]).set
    assert isinstance(parsed, SequenceSet)
    assert [n for low, high in parsed.ranges for n in range(low, high + 1)] == numbers
    assert all(high + 1 < low for (_, high), (low, _) in zip(parsed.ranges, parsed.ranges[1:], strict=False))


@pytest.mark.parametrize("depth", [1000, 10_000])
def test_nested_deep(depth):
    raw = b"Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n" * depth
    assert balanced(mime.prepare(raw).bodystructure)
    wrapped = b"Content-Type: message/rfc822\r\n\r\n" * depth
    assert balanced(mime.prepare(wrapped).bodystructure)


def test_base64_of_the_client_is_strict():
    from mailsrv.wire.imap_commands import decode_base64

    assert decode_base64(base64.b64encode(b"\0a\0b")) == b"\0a\0b"
    for wrong in (b"====", b"AAA", b"AA A=", b"\xff", b"AAAA\n"):
        with pytest.raises(WireError):
            decode_base64(wrong)
