"""FETCH: what is sent of a message, octet for octet, and what reading does to it."""

import re

import pytest

from mailsrv.net.stream import Stream

ITEMS = re.compile(rb"\* (\d+) FETCH \((.*)\)\Z", re.DOTALL)


def fetched(client, items, number=1):
    """What one FETCH of one message answers, between the parentheses."""
    (line,) = client.ok(f"FETCH {number} {items}")
    found = ITEMS.fullmatch(line)
    assert found and int(found[1]) == number, line
    return found[2]


def literal(answer):
    """The octets of the last string of an answer."""
    if answer.endswith(b'""'):
        return b""
    found = re.search(rb"\{(\d+)\}\r\n", answer)
    assert found and len(answer) == found.end() + int(found[1]), answer
    return answer[found.end() :]


def crlf(text):
    return text.replace("\n", "\r\n").encode()


PLAIN = crlf("""From: Bo <bo@example.org>
Subject: folded
\tsubject line
To: ann@example.com
X-Other: 1
SUBJECT: twice

First line
Second line
""")

NESTED = crlf("""From: outer@example.org
Subject: outer
Content-Type: multipart/mixed; boundary=o

--o
Content-Type: text/plain

one
--o
Content-Type: multipart/alternative; boundary=i
X-Part: two

--i
Content-Type: text/plain

two one
--i
Content-Type: text/html; charset="utf-8"
Content-Transfer-Encoding: quoted-printable

<b>two=20two</b>
--i--
--o
Content-Type: message/rfc822
Content-Disposition: inline

From: inner@example.org
Subject: inner
Content-Type: multipart/mixed; boundary=n

--n

three one
--n
Content-Type: application/octet-stream
Content-Transfer-Encoding: base64

AAEC
--n--
--o--
""")


@pytest.fixture
def client(serving, dial):
    return dial(serving, "ann", select="INBOX")


# ------------------------------------------------------------------ \Seen


@pytest.mark.parametrize(
    ("item", "sets"),
    [
        ("BODY[]", True), ("BODY[TEXT]", True), ("BODY[HEADER]", True), ("BODY[1]", True), ("BODY[]<0.1>", True),
        ("BODY[HEADER.FIELDS (SUBJECT)]", True), ("RFC822", True), ("RFC822.TEXT", True),
        ("BODY.PEEK[]", False), ("BODY.PEEK[TEXT]", False), ("BODY.PEEK[HEADER]", False), ("RFC822.HEADER", False),
        ("BODY.PEEK[1.MIME]", False), ("BODYSTRUCTURE", False), ("BODY", False), ("ENVELOPE", False), ("ALL", False),
        ("RFC822.SIZE", False), ("FULL", False),
    ],
)  # fmt: skip
def test_r31_b07_who_sets_seen(serving, dial, client, item, sets):
    client.append(PLAIN)
    other = dial(serving, "ann", select="INBOX")
    lines = client.ok(f"FETCH 1 {item}")
    assert any(re.search(rb"FLAGS \([^)]*\\Seen", line) for line in lines) is sets
    assert client.flags() == {1: {b"\\Seen"} if sets else set()}
    assert other.ok("NOOP") == ([b"* 1 FETCH (FLAGS (\\Seen))"] if sets else [])
    again = client.ok(f"FETCH 1 {item}")
    if sets:
        assert not any(b"FLAGS (" in line for line in again)  # it is known by now


def test_r31_a_set_of_messages(client):
    client.append(PLAIN)
    client.append(PLAIN, how="(\\Seen)")
    client.append(PLAIN)
    lines = client.ok("FETCH 1:3 (UID BODY[TEXT])")
    assert [b"\\Seen" in line for line in lines] == [True, False, True]
    assert set().union(*client.flags().values()) == {b"\\Seen"}


# ------------------------------------------------------------------ sections


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ("BODY.PEEK[]", PLAIN),
        ("RFC822.HEADER", PLAIN[: PLAIN.index(b"First")]),
        ("BODY.PEEK[HEADER]", PLAIN[: PLAIN.index(b"First")]),
        ("BODY.PEEK[TEXT]", b"First line\r\nSecond line\r\n"),
        ("BODY.PEEK[1]", b"First line\r\nSecond line\r\n"),
        ("BODY.PEEK[]<0.4>", b"From"),
        ("BODY.PEEK[]<4.3>", b": B"),
        ("BODY.PEEK[TEXT]<22.1000>", b"e\r\n"),
        ("BODY.PEEK[TEXT]<25.5>", b""),
        ("BODY.PEEK[TEXT]<4294967295.4294967295>", b""),
        ("BODY.PEEK[HEADER.FIELDS (SUBJECT)]", b"Subject: folded\r\n\tsubject line\r\nSUBJECT: twice\r\n\r\n"),
        ("BODY.PEEK[HEADER.FIELDS (x-other FROM)]", b"From: Bo <bo@example.org>\r\nX-Other: 1\r\n\r\n"),
        ("BODY.PEEK[HEADER.FIELDS (None)]", b"\r\n"),
        ("BODY.PEEK[HEADER.FIELDS (subject)]<9.6>", b"folded"),
        ('BODY.PEEK[HEADER.FIELDS ("To")]', b"To: ann@example.com\r\n\r\n"),
        ("BODY.PEEK[HEADER.FIELDS.NOT (subject FROM)]", b"To: ann@example.com\r\nX-Other: 1\r\n\r\n"),
    ],
)
def test_r32_r33_r34_b07_sections_of_a_plain_message(client, item, expected):
    client.append(PLAIN)
    assert literal(fetched(client, item)) == expected


@pytest.mark.parametrize(
    ("item", "name"),
    [
        ("BODY.PEEK[]<3.4>", b"BODY[]<3> "),
        ("BODY.PEEK[TEXT]<900.4>", b"BODY[TEXT]<900> "),
        ("BODY.PEEK[HEADER.FIELDS (SuBject to)]", b"BODY[HEADER.FIELDS (SuBject to)] "),
        ("BODY.PEEK[HEADER.FIELDS.NOT (Date)]<0.3>", b"BODY[HEADER.FIELDS.NOT (Date)]<0> "),
        ("BODY.PEEK[1.MIME]", b"BODY[1.MIME] "),
        ("rfc822.header", b"RFC822.HEADER "),
        ("body.peek[text]", b"BODY[TEXT] "),
    ],
)
def test_r32_r34_the_answer_names_what_was_asked(client, item, name):
    client.append(PLAIN)
    assert fetched(client, item).startswith(name)


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("1", b"one"),
        ("1.MIME", b"Content-Type: text/plain\r\n\r\n"),
        ("2.1", b"two one"),
        ("2.2", b"<b>two=20two</b>"),
        (
            "2.2.MIME",
            b'Content-Type: text/html; charset="utf-8"\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n',
        ),
        ("2.MIME", b"Content-Type: multipart/alternative; boundary=i\r\nX-Part: two\r\n\r\n"),
        ("3.MIME", b"Content-Type: message/rfc822\r\nContent-Disposition: inline\r\n\r\n"),
        ("3.HEADER", crlf("From: inner@example.org\nSubject: inner\nContent-Type: multipart/mixed; boundary=n\n\n")),
        ("3.HEADER.FIELDS (SUBJECT)", b"Subject: inner\r\n\r\n"),
        ("3.HEADER.FIELDS.NOT (SUBJECT Content-Type)", b"From: inner@example.org\r\n\r\n"),
        ("3.1", b"three one"),
        ("3.2", b"AAEC"),
        ("3.2<1.2>", b"AE"),
    ],
)
def test_r33_parts(client, part, expected):
    client.append(NESTED)
    section, partial = (part[: part.index("<")], part[part.index("<") :]) if "<" in part else (part, "")
    assert literal(fetched(client, f"BODY.PEEK[{section}]{partial}")) == expected


def test_r33_inner_message_is_header_and_text(client):
    client.append(NESTED)
    whole = literal(fetched(client, "BODY.PEEK[3]"))
    assert whole.startswith(b"From: inner@example.org\r\n") and whole.endswith(b"--n--")
    header, text = literal(fetched(client, "BODY.PEEK[3.HEADER]")), literal(fetched(client, "BODY.PEEK[3.TEXT]"))
    assert header + text == whole


@pytest.mark.parametrize("part", ["4", "1.1", "2.3", "3.3", "1.HEADER", "2.TEXT", "1.HEADER.FIELDS (TO)", "99.99.99"])
def test_r33_parts_that_are_not_there_are_nil(client, part):
    client.append(NESTED)
    assert fetched(client, f"BODY.PEEK[{part}]") in (b"BODY[%b] NIL" % part.encode(), b'BODY[%b] ""' % part.encode())


@pytest.mark.parametrize(
    "items",
    ["BODY[MIME]", "BODY[0]", "BODY[1.]", "BODY[.1]", "BODY[1..2]", "BODY[HEADER.FIELDS]", "BODY[HEADER.FIELDS ()]",
     "BODY[]<0>", "BODY[]<0.0>", "BODY[]<.5>", "BODY[]<-1.5>", "BODY[", "BODY.PEEK", "NONSENSE", "()", "(FLAGS",
     "FLAGS)", "(FLAGS  UID)", "(ALL)", "BODY[TEXT.1]"],
)  # fmt: skip
def test_r40_b07_what_cannot_be_asked_is_bad(client, items):
    client.append(PLAIN)
    assert client.say(f"FETCH 1 {items}")[-1].startswith(b"BAD ")
    assert client.flags() == {1: set()}


# ------------------------------------------------------------------ structure


def test_r35_bodystructure(client):
    client.append(NESTED)
    inner = NESTED[NESTED.index(b"From: inner") : NESTED.index(b"\r\n--o--")]
    assert fetched(client, "BODY") == (
        b'BODY (("TEXT" "PLAIN" ("CHARSET" "US-ASCII") NIL NIL "7BIT" 3 0)'
        b'(("TEXT" "PLAIN" ("CHARSET" "US-ASCII") NIL NIL "7BIT" 7 0)'
        b'("TEXT" "HTML" ("CHARSET" "utf-8") NIL NIL "QUOTED-PRINTABLE" 16 0) "ALTERNATIVE")'
        b'("MESSAGE" "RFC822" NIL NIL NIL "7BIT" %d (NIL "inner" ((NIL NIL "inner" "example.org")) '
        b'((NIL NIL "inner" "example.org")) ((NIL NIL "inner" "example.org")) NIL NIL NIL NIL NIL) '
        b'(("TEXT" "PLAIN" ("CHARSET" "US-ASCII") NIL NIL "7BIT" 9 0)'
        b'("APPLICATION" "OCTET-STREAM" NIL NIL NIL "BASE64" 4) "MIXED") %d) "MIXED")'
        % (len(inner), inner.count(b"\r\n"))
    )
    structure = fetched(client, "BODYSTRUCTURE")
    assert b'"ALTERNATIVE" ("BOUNDARY" "i") NIL NIL NIL)' in structure
    assert b'("INLINE" NIL) NIL NIL)' in structure
    assert structure.endswith(b'"MIXED" ("BOUNDARY" "o") NIL NIL NIL)')


@pytest.mark.parametrize(
    "text",
    [
        "", "\n", "no header at all\n", "Subject: x", "Content-Type: multipart/mixed\n\nno boundary\n",
        "Content-Type: multipart/mixed; boundary=x\n\nnever used\n", "Content-Type: text\n\nx", "Content-Type: /\n\nx",
        "Content-Type: multipart/mixed; boundary=x\n\n--x\n\nno end\n", "Content-Type: message/rfc822\n\n",
        "Content-Type: text/plain; charset=\"unended\n\nx", "From: \"a\" <\nTo: ,,,;:<>@\nCc: (((\n\nx",
        "Content-Type: multipart/mixed; boundary=x\n\n--x\nContent-Type: multipart/mixed; boundary=x\n\n--x--\n",
        "\u00fc: x\nSubject: \u00fc\nFrom: \u00fc@\u00fc\nContent-Type: t\u00fc/x; n\u00e4me=\u00fc\n\nx",
        "Subject: \x00\x01\x7f\nFrom: \x00 <a@b>\n\n\x00", "Content-Transfer-Encoding: \"q\\p\"\n\nx",
        "Date: " + "x" * 3000 + "\nSubject: \\\"\\\\\"\n\nx",
    ],
)  # fmt: skip
def test_r35_r36_broken_messages_are_answered_in_form(serving, dial, client, text, tmp_path):
    """The file comes from another program: nobody could have refused it."""
    (serving.maildir("ann") / "new" / "1.M1P1.host").write_bytes(crlf(text))
    client.ok("SELECT INBOX")
    answer = fetched(client, "(UID RFC822.SIZE ENVELOPE BODY BODYSTRUCTURE)")
    assert not re.search(rb"[\x00\x80-\xff]", re.sub(rb"\{\d+\}\r\n.*", b"", answer, flags=re.DOTALL))
    envelope = parsed(answer)
    assert envelope[0] == b"UID" and len(envelope[5]) == 10
    size = int(envelope[3])
    assert len(literal(fetched(client, "BODY.PEEK[]"))) == size
    header, body = literal(fetched(client, "BODY.PEEK[HEADER]")), literal(fetched(client, "BODY.PEEK[TEXT]"))
    assert len(header) + len(body) == size


def parsed(data):
    """IMAP parentheses as nested lists; strings as bytes, NIL as None."""
    stack, position = [[]], 0
    while position < len(data):
        char = data[position : position + 1]
        if char == b"(":
            stack.append([])
            position += 1
        elif char == b")":
            done = stack.pop()
            stack[-1].append(done)
            position += 1
        elif char == b" ":
            position += 1
        elif char == b'"':
            found = re.compile(rb'"((?:[^"\\]|\\.)*)"', re.DOTALL).match(data, position)
            stack[-1].append(re.sub(rb"\\(.)", rb"\1", found[1]))
            position = found.end()
        elif char == b"{":
            found = re.compile(rb"\{(\d+)\}\r\n").match(data, position)
            stack[-1].append(data[found.end() : found.end() + int(found[1])])
            position = found.end() + int(found[1])
        else:
            found = re.compile(rb"[^ ()]+").match(data, position)
            stack[-1].append(None if found[0] == b"NIL" else found[0])
            position = found.end()
    assert len(stack) == 1
    return stack[0]


def envelope(client, header):
    client.append(crlf(header + "\nx\n"))
    name, fields = parsed(fetched(client, "ENVELOPE"))
    assert name == b"ENVELOPE" and len(fields) == 10
    keys = ("date", "subject", "from", "sender", "reply-to", "to", "cc", "bcc", "in-reply-to", "message-id")
    return dict(zip(keys, fields, strict=True))


BO = [None, None, b"bo", b"example.org"]


def test_r36_sender_and_reply_to_are_from_where_they_are_missing(client):
    found = envelope(client, "From: bo@example.org\n")
    assert found["from"] == found["sender"] == found["reply-to"] == [BO]
    assert [found[key] for key in ("date", "subject", "to", "cc", "bcc", "in-reply-to", "message-id")] == [None] * 7


def test_r36_b08_all_ten_fields(client):
    found = envelope(
        client,
        "Date: Mon, 7 Feb 1994\n 21:52:25 -0800 (PST)\nSubject: a\n folded\n\tsubject\nFrom: bo@example.org\n"
        'Sender: <cy@example.org>\nReply-To: Dee <dee@example.org>\nTo: "Doe, John" <john@example.org>, e@example.org\n'
        "Cc: f@example.org\nBcc: g@example.org\nIn-Reply-To: <1@x>\nMessage-ID: <2@x>\n",
    )
    assert found["date"] == b"Mon, 7 Feb 1994 21:52:25 -0800 (PST)"
    assert re.sub(rb"\s", b" ", found["subject"]) == b"a folded subject"
    assert found["sender"] == [[None, None, b"cy", b"example.org"]]
    assert found["reply-to"] == [[b"Dee", None, b"dee", b"example.org"]]
    assert found["to"] == [[b"Doe, John", None, b"john", b"example.org"], [None, None, b"e", b"example.org"]]
    assert found["cc"] == [[None, None, b"f", b"example.org"]] and found["bcc"] == [[None, None, b"g", b"example.org"]]
    assert found["in-reply-to"] == b"<1@x>" and found["message-id"] == b"<2@x>"


def test_r36_groups_have_their_markers(client):
    found = envelope(client, "From: bo@example.org\nTo: friends: a@example.org, B <b@example.org>;, c@example.org\n")
    assert found["to"] == [
        [None, None, b"friends", None],
        [None, None, b"a", b"example.org"],
        [b"B", None, b"b", b"example.org"],
        [None, None, None, None],
        [None, None, b"c", b"example.org"],
    ]


def test_r36_encoded_words_stay_as_they_are(client):
    found = envelope(client, "From: =?utf-8?q?B=C3=B6?= <bo@example.org>\nSubject: =?utf-8?b?R3LDvMOfZQ==?=\n")
    assert found["from"] == [[b"=?utf-8?q?B=C3=B6?=", None, b"bo", b"example.org"]]
    assert found["subject"] == b"=?utf-8?b?R3LDvMOfZQ==?="


def test_r36_no_8_bit_in_an_envelope(client):
    client.append("From: B\u00f6 <b\u00f6@example.org>\r\nSubject: Gr\u00fc\u00dfe\r\n\r\n")
    answer = fetched(client, "(ENVELOPE BODYSTRUCTURE)")
    assert answer.isascii()


# ------------------------------------------------------------------ size, date, the files of others


@pytest.mark.parametrize("text", [b"Subject: x\r\n\r\nText\r\n", PLAIN, NESTED, b"\r\n", b"x" * 70_000])
def test_r37_size_is_what_body_returns(client, text):
    client.append(text)
    sizes = [parsed(fetched(client, "RFC822.SIZE"))[1] for _ in range(2)]
    assert sizes == [b"%d" % len(text)] * 2
    assert literal(fetched(client, "BODY.PEEK[]")) == text
    assert literal(fetched(client, "RFC822")[len(b"FLAGS (\\Seen \\Recent) ") :]) == text


def test_r37_file_with_lf_is_sent_with_crlf(serving, client):
    (serving.maildir("ann") / "cur" / "1.M1P1.host:2,F").write_bytes(b"Subject: lf\n\nOne\nTwo\r\nThree\n")
    client.ok("SELECT INBOX")
    expected = b"Subject: lf\r\n\r\nOne\r\nTwo\r\nThree\r\n"
    assert literal(fetched(client, "BODY.PEEK[]")) == expected
    assert fetched(client, "RFC822.SIZE") == b"RFC822.SIZE %d" % len(expected)
    assert client.flags() == {1: {b"\\Flagged"}}


@pytest.mark.parametrize(
    ("date", "shown"),
    [
        ('" 1-Jan-1990 00:00:00 +0000"', b'" 1-Jan-1990 00:00:00 +0000"'),
        ('"31-Dec-2019 23:30:00 -0100"', b'" 1-Jan-2020 00:30:00 +0000"'),
        ('"01-Mar-2020 00:30:00 +0130"', b'"29-Feb-2020 23:00:00 +0000"'),
    ],
)
def test_r51_internal_date(client, date, shown):
    client.append(how=date)
    assert fetched(client, "INTERNALDATE") == b"INTERNALDATE " + shown


def test_b07_order_is_of_the_numbers_and_star_is_the_last(client):
    for number in range(5):
        client.append(f"Subject: {number}\r\n\r\n")
    assert [line.split()[1] for line in client.ok("FETCH 5,1,3,2:4 (FLAGS)")] == [b"1", b"2", b"3", b"4", b"5"]
    assert b"Subject: 4" in fetched(client, "BODY.PEEK[HEADER]", 5)
    (line,) = client.ok("FETCH * BODY.PEEK[HEADER]")
    assert line.startswith(b"* 5 ") and b"Subject: 4" in line


def test_b07_message_without_its_file_is_said(serving, client, files):
    for _ in range(3):
        client.append()
    client.ok("NOOP")
    (path,) = [path for path in files(serving) if "-2:2," in path.name or path.name.endswith("-2")]
    path.unlink()
    *lines, done = client.say("FETCH 1:3 (UID BODY.PEEK[])")
    assert [re.search(rb"UID (\d+)", line)[1] for line in lines if b"BODY[]" in line] == [b"1", b"3"]
    assert done.startswith(b"NO [EXPUNGEISSUED] ")
    assert client.ok("NOOP") == [b"* 2 EXPUNGE"]


def test_many_messages_come_in_order_and_whole(serving, client):
    for number in range(60):
        client.append(f"Subject: {number}\r\n\r\n" + "x" * 50_000)
    lines = client.ok("FETCH 1:* (UID BODY.PEEK[])")
    assert [int(re.search(rb"Subject: (\d+)", line)[1]) for line in lines] == list(range(60))
    assert all(len(line) > 50_000 for line in lines)


@pytest.mark.parametrize(
    "items", ["BODY.PEEK[]", "(UID FLAGS)", "(UID ENVELOPE)", "BODY.PEEK[HEADER.FIELDS (SUBJECT)]"]
)
def test_a_short_answer_and_its_completion_are_one_write(client, monkeypatch, items):
    client.append()
    client.ok("NOOP")
    written, write = [], Stream.write
    monkeypatch.setattr(Stream, "write", lambda stream, data: (written.append(data), write(stream, data))[1])
    client.ok(f"FETCH 1 {items}")
    assert len(written) == 1


def test_the_last_chunk_is_with_the_ones_before_it(client):
    client.append(f"Subject: large\r\n\r\n{'x' * 600_000}")
    client.append("Subject: small\r\n\r\nx")
    assert [len(line) > 600_000 for line in client.ok("FETCH 1:* BODY.PEEK[]")] == [True, False]
