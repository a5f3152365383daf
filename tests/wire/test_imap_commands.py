"""Each command of the grammar as the value it means; what the grammar does not allow, with the place where it ends."""

import datetime

import pytest

from mailsrv.values import ANSWERED, DELETED, FLAGGED, SEEN, FlagOp
from mailsrv.wire import imap_values as v
from mailsrv.wire.errors import BadCharset, WireError
from mailsrv.wire.imap_commands import append_head, parse
from mailsrv.wire.imap_values import Literal, SequenceSet

NONE = frozenset()


def one(line):
    return parse([line])


def ranges(*pairs):
    return SequenceSet(tuple(pairs))


def day(year, month, day):
    return datetime.date(year, month, day).toordinal()


COMMANDS = [
    (b"a capability", v.Capability("a")),
    (b"a1 NOOP", v.Noop("a1")),
    (b"A.1]x LOGOUT", v.Logout("A.1]x")),
    (b"a STARTTLS", v.StartTls("a")),
    (b"a AUTHENTICATE plain", v.Authenticate("a", "PLAIN", None)),
    (b"a AUTHENTICATE PLAIN =", v.Authenticate("a", "PLAIN", b"")),
    (b"a AUTHENTICATE PLAIN AGFubgBwdw==", v.Authenticate("a", "PLAIN", b"\0ann\0pw")),
    (b'a LOGIN ann@example.com "p w\\"\\\\"', v.Login("a", "ann@example.com", 'p w"\\')),
    ('a LOGIN "ü" "ß"'.encode(), v.Login("a", "ü", "ß")),
    (b"a ENABLE condstore QRESYNC", v.Enable("a", ("CONDSTORE", "QRESYNC"))),
    (b"a ID NIL", v.Id("a", None)),
    (b'a ID ("name" "x" "version" NIL)', v.Id("a", {"name": "x", "version": None})),
    (b"a ID ()", v.Id("a", {})),
    (b"a SELECT inbox", v.Select("a", "INBOX", False)),
    (b"a EXAMINE &AOQ-", v.Select("a", "ä", True)),
    (b'a SELECT "iNbOx/Sub"', v.Select("a", "INBOX/Sub", False)),
    (b"a CREATE x", v.Create("a", "x", None)),
    (b"a CREATE x (USE (\\sent))", v.Create("a", "x", "\\Sent")),
    (b'a DELETE "a b"', v.Delete("a", "a b")),
    (b"a RENAME a/b c", v.Rename("a", "a/b", "c")),
    (b"a SUBSCRIBE x", v.Subscribe("a", "x")),
    (b"a UNSUBSCRIBE x]", v.Unsubscribe("a", "x]")),
    (b'a LIST "" %', v.List("a", "", ("%",), False, NONE, NONE, (), False)),
    (b"a LIST a/ *", v.List("a", "a/", ("*",), False, NONE, NONE, (), False)),
    (b'a LIST "" ""', v.List("a", "", ("",), False, NONE, NONE, (), False)),
    (b'a LSUB "" "*"', v.List("a", "", ("*",), True, NONE, NONE, (), False)),
    (
        b'a LIST (SUBSCRIBED) "" (a b) RETURN (CHILDREN STATUS (MESSAGES UNSEEN))',
        v.List(
            "a", "", ("a", "b"), False, frozenset({"SUBSCRIBED"}), frozenset({"CHILDREN", "STATUS"}),
            ("MESSAGES", "UNSEEN"), True,
        ),
    ),
    (b"a STATUS x (messages UIDNEXT)", v.Status("a", "x", ("MESSAGES", "UIDNEXT"))),
    (b"a NAMESPACE", v.Namespace("a")),
    (b"a IDLE", v.Idle("a")),
    (b"a CHECK", v.Check("a")),
    (b"a CLOSE", v.Close("a")),
    (b"a UNSELECT", v.Unselect("a")),
    (b"a EXPUNGE", v.Expunge("a", None)),
    (b"a UID EXPUNGE 4:6,9", v.Expunge("a", ranges((4, 6), (9, 9)))),
    (b"a COPY 1:* x", v.Copy("a", False, ranges((1, None)), "x")),
    (b"a UID MOVE *:4 x", v.Move("a", True, ranges((None, 4)), "x")),
    (
        b"a STORE 1 +FLAGS (\\Seen Work \\FLAGGED work)",
        v.Store("a", False, ranges((1, 1)), FlagOp.ADD, False, v.FlagList(SEEN | FLAGGED, ("Work", "work"))),
    ),
    (
        b"a UID STORE 1,2 -flags.silent \\Deleted \\Answered",
        v.Store("a", True, ranges((1, 1), (2, 2)), FlagOp.REMOVE, True, v.FlagList(DELETED | ANSWERED)),
    ),
    (b"a STORE 1 FLAGS ()", v.Store("a", False, ranges((1, 1)), FlagOp.REPLACE, False, v.FlagList(0))),
    (b"a STORE 1 FLAGS \\Recent", v.Store("a", False, ranges((1, 1)), FlagOp.REPLACE, False, v.FlagList(0, (), True))),
]  # fmt: skip


@pytest.mark.parametrize("line,value", COMMANDS, ids=[line.decode(errors="replace")[:40] for line, _ in COMMANDS])
def test_r38_command_is_its_value(line, value):
    parsed = one(line)
    assert parsed == value and type(parsed) is type(value)


FETCHES = [
    (b"ALL", ["FLAGS", "INTERNALDATE", "RFC822.SIZE", "ENVELOPE"]),
    (b"fast", ["FLAGS", "INTERNALDATE", "RFC822.SIZE"]),
    (b"FULL", ["FLAGS", "INTERNALDATE", "RFC822.SIZE", "ENVELOPE", "BODY"]),
    (b"(FLAGS flags UID)", ["FLAGS", "UID"]),
    (b"RFC822.HEADER", ["RFC822.HEADER"]),
]


@pytest.mark.parametrize("items,names", FETCHES)
def test_r31_fetch_items(items, names):
    assert [item.name for item in one(b"a FETCH 1 " + items).items] == names
    uids = [item.name for item in one(b"a UID FETCH 1 " + items).items]
    assert sorted(uids) == sorted({*names, "UID"}), "UID FETCH always gives the UID"


SECTIONS = [
    (b"BODY[]", v.Section(), False, None),
    (b"BODY.PEEK[]<0.100>", v.Section(), True, (0, 100)),
    (b"body[1.2.3]", v.Section((1, 2, 3)), False, None),
    (b"BODY[HEADER]", v.Section((), "HEADER"), False, None),
    (b"BODY[2.TEXT]<7.1>", v.Section((2,), "TEXT"), False, (7, 1)),
    (b"BODY[2.1.MIME]", v.Section((2, 1), "MIME"), False, None),
    (b'BODY.PEEK[HEADER.FIELDS (To "X-A B" cc)]', v.Section((), "HEADER.FIELDS", (b"To", b"X-A B", b"cc")), True, None),
    (b"BODY[1.HEADER.FIELDS.NOT (To)]", v.Section((1,), "HEADER.FIELDS.NOT", (b"To",)), False, None),
]


@pytest.mark.parametrize("text,section,peek,partial", SECTIONS)
def test_r32_b07_sections_and_partials(text, section, peek, partial):
    (item,) = one(b"a FETCH 1 " + text).items
    assert (item.name, item.section, item.peek, item.partial) == ("BODY[]", section, peek, partial)


KEYS = [
    (b"ALL", v.All()),
    (b"unseen", v.HasFlag(SEEN, False)),
    (b"NEW", v.New()),
    (b"OLD", v.Recent(False)),
    (b"1:3,7", v.SeqSet(ranges((1, 3), (7, 7)))),
    (b"UID *", v.UidSet(ranges((None, None)))),
    (b"SUBJECT hello", v.Header("subject", "hello")),
    (b'HEADER Message-ID "<a@b>"', v.Header("message-id", "<a@b>")),
    (b'HEADER X ""', v.Header("x", "")),
    (b"BODY x", v.Body("x")),
    (b"TEXT x", v.Text("x")),
    (b"SINCE 1-Feb-2024", v.InternalDate(">=", day(2024, 2, 1))),
    (b'SENTBEFORE "29-FEB-2024"', v.SentDate("<", day(2024, 2, 29))),
    (b"ON 01-Jan-1970", v.InternalDate("=", day(1970, 1, 1))),
    (b"LARGER 10", v.Size(">", 10)),
    (b"KEYWORD Work", v.HasKeyword("Work", True)),
    (b"NOT UNKEYWORD x", v.Not(v.HasKeyword("x", False))),
    (b"OR SEEN (FLAGGED NOT 1)", v.Or(
        v.HasFlag(SEEN, True), v.And((v.HasFlag(FLAGGED, True), v.Not(v.SeqSet(ranges((1, 1)))))))),
    (b"SEEN FROM a", v.And((v.HasFlag(SEEN, True), v.Header("from", "a")))),
    (b"((SEEN))", v.HasFlag(SEEN, True)),
]  # fmt: skip


@pytest.mark.parametrize("text,key", KEYS, ids=[text.decode() for text, _ in KEYS])
def test_r41_b06_search_keys(text, key):
    assert one(b"a SEARCH " + text) == v.Search("a", False, None, key)
    assert one(b"a UID SEARCH CHARSET utf-8 " + text) == v.Search("a", True, "UTF-8", key)


def test_r41_other_charsets_are_refused_as_such():
    with pytest.raises(BadCharset):
        one(b"a SEARCH CHARSET ISO-8859-1 ALL")


WRONG = [
    b"", b"a", b"a ", b"+ NOOP", b"a(b NOOP", b" NOOP", b"a  NOOP", b"a NOOP ", b"a NOOP x", b"a UID NOOP", b"a XYZZY",
    b"a UID", b"a UID ", b"a LOGIN x", b"a LOGIN x y z", b'a LOGIN "x y', b"a LOGIN x\x00 y", b'a LOGIN "\xff" y',
    b'a LOGIN "a\\b" c', b"a AUTHENTICATE", b"a AUTHENTICATE PLAIN ====", b"a AUTHENTICATE PLAIN a b", b"a ENABLE",
    b"a ID", b"a ID x", b'a ID ("x")', b"a SELECT", b"a SELECT ", b"a SELECT a b", b"a SELECT &", b"a SELECT &AAA",
    b"a SELECT &AGE-", b"a SELECT a*", b'a SELECT "a\r"', b"a CREATE x (USE (\\bad))", b"a CREATE x (USE)", b"a LIST x",
    b'a LIST (BAD) "" *', b'a LIST "" * RETURN (BAD)', b'a LIST "" ()', b"a STATUS x", b"a STATUS x ()",
    b"a STATUS x (BAD)", b"a STATUS x MESSAGES", b"a FETCH 1", b"a FETCH 0 ALL", b"a FETCH 1: ALL", b"a FETCH ,1 ALL",
    b"a FETCH 1,,2 ALL", b"a FETCH 4294967296 ALL", b"a FETCH 1:2:3 ALL", b"a FETCH x ALL", b"a FETCH 1 ()",
    b"a FETCH 1 (ALL FLAGS)", b"a FETCH 1 BAD", b"a FETCH 1 (FLAGS", b"a FETCH 1 BODY[", b"a FETCH 1 BODY[0]",
    b"a FETCH 1 BODY[1.]", b"a FETCH 1 BODY[MIME]", b"a FETCH 1 BODY[]<0>", b"a FETCH 1 BODY[]<0.0>",
    b"a FETCH 1 BODY[HEADER.FIELDS]", b"a FETCH 1 BODY[HEADER.FIELDS ()]", b"a FETCH 1 RFC822.PEEK",
    b"a STORE 1 FLAGS", b"a STORE 1 *FLAGS ()", b"a STORE 1 FLAGS (\\Bad)", b"a STORE 1 FLAGS (\\)", b"a STORE FLAGS x",
    b"a COPY 1", b"a COPY x y", b"a EXPUNGE 1", b"a UID EXPUNGE", b"a SEARCH", b"a SEARCH BAD", b"a SEARCH NOT",
    b"a SEARCH OR SEEN", b"a SEARCH (SEEN", b"a SEARCH SEEN)", b"a SEARCH ()", b"a SEARCH SINCE 31-Feb-2024",
    b"a SEARCH SINCE 1-Foo-2024", b"a SEARCH SINCE 1-Feb-24", b"a SEARCH LARGER x", b"a SEARCH SUBJECT",
    b"a SEARCH CHARSET UTF-8", b'a SEARCH SUBJECT "\xff"', b"a SEARCH LARGER 99999999999999999999",
    b"a APPEND INBOX", b"a IDLE now",
]  # fmt: skip


@pytest.mark.parametrize("line", WRONG, ids=[repr(line)[2:42] for line in WRONG])
def test_r40_what_the_grammar_does_not_allow(line):
    with pytest.raises(WireError) as failure:
        one(line)
    assert 0 <= failure.value.offset <= len(line)
    if line.startswith(b"a "):
        assert failure.value.tag == "a"


@pytest.mark.parametrize(
    "line",
    [
        b"a SEARCH " + b"(" * 5000,
        b"a SEARCH " + b"NOT " * 5000 + b"SEEN",
        b"a SEARCH " + b"OR SEEN " * 5000 + b"SEEN",
        b"a SEARCH " + b"SEEN " * 5000 + b"SEEN",
        b"a FETCH " + b"1," * 30_000 + b"1 ALL",
        b"a FETCH 1 BODY[" + b"1." * 5000 + b"1]",
        b"a FETCH 1 (" + b"FLAGS " * 5000 + b"FLAGS)",
        b"a STORE 1 FLAGS (" + b" ".join(b"k%d" % n for n in range(5000)) + b")",
        b"a ID (" + b" ".join(b'"k%d" NIL' % n for n in range(5000)) + b")",
    ],
)
def test_r40_size_and_depth_are_bounded(line):
    with pytest.raises(WireError):
        one(line)


# ------------------------------------------------------------------ literals


def literal(data, *, sync=True, binary=False):
    return Literal(len(data), sync, binary, data)


def test_r38_literals_anywhere_a_string_may_stand():
    assert parse([b"a LOGIN {3}", literal(b"ann"), b" {2+}", literal(b"\xc3\xbc", sync=False), b""]) == v.Login(
        "a", "ann", "ü"
    )
    assert parse([b"a SELECT {7}", literal(b"x \\ \"y'"), b""]) == v.Select("a", "x \\ \"y'", False)
    assert parse([b"a SEARCH SUBJECT {2}", literal(b"hi"), b" SEEN"]).key == v.And(
        (v.Header("subject", "hi"), v.HasFlag(SEEN, True))
    )
    fields = parse([b"a FETCH 1 BODY[HEADER.FIELDS ({2}", literal(b"To"), b")]"]).items[0].section.fields
    assert fields == (b"To",)


@pytest.mark.parametrize(
    "parts",
    [
        [b"a LOGIN {3}", literal(b"a\0b"), b" x"],
        [b"a NOOP {1}", literal(b"x"), b""],
        [b"a LOGIN x{1}", literal(b"x"), b" y"],
        [b"a LOGIN {1} ", literal(b"x"), b" y"],
        [b"a LOGIN {1}"],
        [b"a LOGIN {1}", literal(b"x")],
        [b"a {4}", literal(b"NOOP"), b""],
        [b"{1}", literal(b"a"), b" NOOP"],
        [literal(b"a")],
    ],
)
def test_r38_literals_where_none_may_stand(parts):
    with pytest.raises(WireError):
        parse(parts)


APPENDS = [
    ([b"a APPEND INBOX {5}"], v.FlagList(0), None),
    ([b"a append inbox (\\Seen Work) {5+}"], v.FlagList(SEEN, ("Work",)), None),
    ([b'a APPEND INBOX " 1-Feb-2003 04:05:06 +0100" {5}'], v.FlagList(0), 1044068706),
    ([b'a APPEND INBOX () "31-Dec-1999 23:59:59 -0001" ~{5}'], v.FlagList(0), 946684859),
    ([b"a APPEND {5}", literal(b"INBOX"), b" (\\Seen) {5}"], v.FlagList(SEEN), None),
]


@pytest.mark.parametrize("parts,flags,date", APPENDS)
def test_r24_append_is_known_when_its_message_is_announced(parts, flags, date):
    announced = Literal(5, True, False)
    assert append_head(parts, announced) == v.Append("a", "INBOX", flags, date, announced)


def test_r24_the_literal_of_a_mailbox_name_is_not_the_message():
    assert append_head([b"a APPEND {5}"], Literal(5, True, False)) is None
    assert append_head([b"a LOGIN {5}"], Literal(5, True, False)) is None
    assert append_head([b"append {5}"], Literal(5, True, False)) is None


@pytest.mark.parametrize(
    "line",
    [
        b"a APPEND INBOX (\\Bad) {5}",
        b'a APPEND INBOX "1-Feb-2003 04:05:06 +0100" {5}',
        b'a APPEND INBOX "32-Feb-2003 04:05:06 +0100" {5}',
        b'a APPEND INBOX "01-Feb-2003 25:05:06 +0100" {5}',
        b'a APPEND INBOX "31-Dec-9999 23:59:59 -0100" {5}',  # the year 10000 in UTC
        b'a APPEND INBOX "01-Jan-0001 00:00:00 +0100" {5}',
        b"a APPEND INBOX x {5}",
        b"a APPEND & {5}",
        b"a APPEND INBOX (\\Seen {5}",
    ],
)
def test_r24_append_that_is_wrong_is_refused_before_its_message_comes(line):
    with pytest.raises(WireError) as failure:
        append_head([line], Literal(5, True, False))
    assert failure.value.tag == "a"
