"""SEARCH: what each key means, alone and together."""

import pytest

CRLF = "\r\n"


def message(*lines, body=""):
    return (CRLF.join(lines) + CRLF + CRLF + body.replace("\n", CRLF)).encode()


# (flags and date, message); numbers in the tests count from 1.
MESSAGES = [
    ('(\\Seen Work) "01-Feb-2020 12:00:00 +0000"', message(
        "Date: Fri, 31 Jan 2020 23:30:00 -0800", "From: Bo Bergson <bo@example.org>", "To: ann@example.net",
        "Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?= aus Bonn", "Content-Type: text/plain; charset=iso-8859-1",
        "Content-Transfer-Encoding: quoted-printable", body="Stra=DFe und =\nWeg\n")),
    ('(\\Flagged \\Answered) "15-Mar-2020 00:00:00 +0000"', message(
        "Date: Sun, 15 Mar 2020 10:00:00 +0000", "From: cy@example.org", "To: team@example.net", "Cc: dee@example.org",
        "Subject: Quarterly", " report", "X-Empty:", "List-Id: <team.example.net>", body="Numbers, numbers.\n")),
    ('(Homework \\Deleted) "15-Mar-2020 23:59:59 +0000"', message(
        "From: bo@example.org", "Bcc: eve@example.org", "Subject: homework",
        "Content-Type: multipart/mixed; boundary=x",
        body="--x\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: base64\n\n"
        "UmVjaG51bmcgw7xiZXI=\n--x\nContent-Type: text/html\n\n<p>Kaufhaus</p>\n--x--\n")),
    ('(\\Draft) "16-Mar-2020 00:30:00 +0200"', message("Subject: last", body="x" * 2000)),
]  # fmt: skip


@pytest.fixture
def client(serving, dial):
    client = dial(serving, "ann", select="INBOX")
    for how, text in MESSAGES:
        client.append(text, how=how)
    return client


def found(client, keys, command="SEARCH"):
    lines = [line for line in client.ok(f"{command} {keys}") if line.startswith(b"* SEARCH")]
    assert len(lines) == 1  # R42: always one, empty or not
    return [int(number) for number in lines[0].split()[2:]]


KEYS = [
    ("ALL", [1, 2, 3, 4]),
    # flags and keywords
    ("SEEN", [1]), ("UNSEEN", [2, 3, 4]), ("FLAGGED", [2]), ("UNFLAGGED", [1, 3, 4]), ("ANSWERED", [2]),
    ("UNANSWERED", [1, 3, 4]), ("DELETED", [3]), ("UNDELETED", [1, 2, 4]), ("DRAFT", [4]), ("UNDRAFT", [1, 2, 3]),
    ("KEYWORD Work", [1]), ("KEYWORD work", [1]), ("UNKEYWORD Work", [2, 3, 4]), ("KEYWORD Homework", [3]),
    ("KEYWORD Nothing", []),
    ("UNKEYWORD Nothing", [1, 2, 3, 4]), ("RECENT", [1, 2, 3, 4]), ("OLD", []),
    ("NEW", [2, 3, 4]),
    # sets
    ("2:3", [2, 3]), ("*", [4]), ("3:*", [3, 4]), ("1,4", [1, 4]), ("UID 2", [2]), ("UID 3:99", [3, 4]),
    ("UID 99", []), ("UID *", [4]), ("UID 99:*", [4]), ("1:2 2:3", [2]),
    # addresses and headers
    ("FROM bo", [1, 3]), ("FROM BERGSON", [1]), ("FROM example.org", [1, 2, 3]), ("TO ann", [1]), ("CC dee", [2]),
    ("BCC eve", [3]), ("SUBJECT home", [3]), ('SUBJECT "quarterly report"', [2]), ('SUBJECT "aus bonn"', [1]),
    ("SUBJECT nothing", []), ("HEADER Subject homework", [3]), ("HEADER list-id team", [2]),
    ('HEADER X-Empty ""', [2]), ('HEADER X-None ""', []), ('HEADER Cc ""', [2]), ('HEADER Subject ""', [1, 2, 3, 4]),
    # dates: 1 is of 1 Feb 2020 (Date: 31 Jan there), 2 and 3 of 15 Mar, 4 of 15 Mar 22:30 UTC
    ("SINCE 15-Mar-2020", [2, 3, 4]), ("BEFORE 15-Mar-2020", [1]), ("ON 1-Feb-2020", [1]), ("ON 31-Jan-2020", []),
    ('ON "15-Mar-2020"', [2, 3, 4]), ("SINCE 1-Jan-1990", [1, 2, 3, 4]), ("BEFORE 1-Jan-1990", []),
    ("SENTON 31-Jan-2020", [1]), ("SENTON 1-Feb-2020", []), ("SENTON 15-MAR-2020", [2, 3, 4]),
    ("SENTBEFORE 1-Feb-2020", [1]), ("SENTSINCE 15-Mar-2020", [2, 3, 4]),
    # sizes
    ("LARGER 1000", [4]), ("SMALLER 1000", [1, 2, 3]), ("LARGER 0", [1, 2, 3, 4]), ("SMALLER 1", []),
    # text
    ("BODY numbers", [2]), ("BODY kaufhaus", [3]), ("BODY rechnung", [3]), ("BODY quarterly", []),
    ('BODY "und Weg"', [1]), ("TEXT quarterly", [2]), ("TEXT bergson", [1]), ("TEXT xxxx", [4]),
    ("TEXT nowhere", []),
    # together
    ("FROM bo SUBJECT home", [3]), ("NOT FROM bo", [2, 4]), ("NOT NOT SEEN", [1]), ("OR SEEN DRAFT", [1, 4]),
    ("OR OR SEEN DRAFT FLAGGED", [1, 2, 4]), ("OR (FROM cy FLAGGED) (DELETED KEYWORD homework)", [2, 3]),
    ("NOT (OR SEEN DRAFT)", [2, 3]), ("(1:3) NOT 2", [1, 3]), ("((SEEN))", [1]), ("NOT ALL", []),
    ("OR 1 UID 4", [1, 4]), ("OR BODY numbers SEEN", [1, 2]), ("NOT BODY numbers UNSEEN", [3, 4]),
    ("(SEEN KEYWORD Work) FROM bo", [1]),
    ("charset us-ascii subject home", [3]), ("CHARSET UTF-8 FROM bo", [1, 3]),
]  # fmt: skip


def test_r41_r42_b06_keys(client):
    for keys, expected in KEYS:
        assert (keys, found(client, keys)) == (keys, expected)
        assert (keys, found(client, keys, "UID SEARCH")) == (keys, expected)  # UIDs are the numbers here


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("SUBJECT", "Gr\u00fc\u00dfe", [1]), ("SUBJECT", "GR\u00dcSSE", [1]), ("BODY", "Stra\u00dfe", [1]),
        ("BODY", "\u00fcber", [3]), ("TEXT", "\u00dcBER", [3]), ("FROM", "\u00fc", []),
    ],
)  # fmt: skip
def test_r41_utf8_finds_what_is_decoded(client, key, text, expected):
    *lines, done = client.say(f"SEARCH CHARSET UTF-8 {key}", text.encode())
    assert done.startswith(b"OK ")
    assert lines == [b"* SEARCH" + b"".join(b" %d" % number for number in expected)]


@pytest.mark.parametrize("charset", ["KOI8-R", "ISO-8859-1", '"x"'])
def test_r41_other_charsets_are_refused_with_a_list(client, charset):
    *lines, done = client.say(f"SEARCH CHARSET {charset} SUBJECT x")
    assert lines == []
    assert done.startswith(b"NO [BADCHARSET (") and b"UTF-8" in done
    assert found(client, "ALL") == [1, 2, 3, 4]


BAD = [
    "", "NONSENSE", "SUBJECT", "OR SEEN", "NOT", "()", "(SEEN", "SEEN)", "SINCE yesterday", "ON 32-Jan-2020",
    "SINCE 30-Feb-2020", "LARGER x", "LARGER -1", "KEYWORD", "HEADER Subject", "UID", "UID x", "5", "1:9", "0",
    "SEEN  DRAFT", "CHARSET UTF-8", "SEEN CHARSET UTF-8",
]  # fmt: skip


@pytest.mark.parametrize("first", [0, 12])
def test_r40_b06_what_cannot_be_asked_is_bad(client, first):
    for keys in BAD[first : first + 12]:  # in two: too many errors in a row end a session
        *lines, done = client.say(f"SEARCH {keys}".rstrip())
        assert (keys, done[:4], lines) == (keys, b"BAD ", [])
    assert found(client, "ALL") == [1, 2, 3, 4]


def test_r42_numbers_of_the_view(serving, dial, client):
    """UIDs and numbers differ after an expunge; a set means numbers, UID a set of UIDs."""
    client.ok("STORE 1 +FLAGS.SILENT (\\Deleted)")
    client.ok("UID EXPUNGE 1")
    assert found(client, "FROM cy") == [1]
    assert found(client, "FROM cy", "UID SEARCH") == [2]
    assert found(client, "2:*") == [2, 3]
    assert found(client, "2:*", "UID SEARCH") == [3, 4]
    assert found(client, "UID 2:3") == [1, 2]


def test_r42_an_expunged_message_is_not_a_neighbour(serving, dial, client):
    other = dial(serving, "ann", select="INBOX")
    other.ok("UID STORE 1 +FLAGS.SILENT (\\Deleted)")
    other.ok("UID EXPUNGE 1")
    assert found(client, "FROM cy") == [2]  # by the numbers this session was told
    assert set(found(client, "NOT FROM cy")) - {1} == {3, 4}
    client.ok("NOOP")
    assert found(client, "FROM cy") == [1]


def test_r42_in_an_empty_mailbox(serving, dial):
    client = dial(serving, "ann", select="INBOX")
    for keys in ("ALL", "NOT ALL", "UID 1:*", "TEXT x", "SEEN", "OR SEEN DRAFT"):
        assert found(client, keys) == []


def test_mail_that_just_arrived_is_found(serving, dial, mail):
    client = dial(serving, "ann", select="INBOX")
    mail(serving, "ann", "From: zoe@example.org\r\nSubject: zebra\r\n\r\nstripes\r\n")
    client.ok("NOOP")
    for keys in ("FROM zoe", "SUBJECT zebra", "BODY stripes", "TEXT zebra", "UNSEEN"):
        assert found(client, keys) == [1]


def test_long_and_deep_searches(client):
    assert found(client, "NOT " * 40 + "SEEN") == [1]
    assert found(client, "(" * 40 + "SEEN" + ")" * 40) == [1]
    assert found(client, "OR SEEN " * 40 + "DRAFT") == [1, 4]
    assert found(client, " ".join(["UNKEYWORD x"] * 500)) == [1, 2, 3, 4]
    assert found(client, "UID " + ",".join(str(number) for number in range(2, 6000, 2))) == [2, 4]
    for keys in ("NOT " * 5000 + "SEEN", "(" * 5000 + "SEEN" + ")" * 5000, "OR SEEN " * 5000 + "SEEN"):
        assert client.say(f"SEARCH {keys}")[-1].startswith(b"BAD ")
    assert found(client, "ALL") == [1, 2, 3, 4]
