"""The command grammar of IMAP4rev1 and the extensions offered: the parts of one command to its dataclass.

`parse(parts)` takes line, literal, line, … and gives one value of `wire.imap_values`, or raises WireError with the
tag where it was read. `append_head` recognises an APPEND at the point where its message is announced, so that it can
be streamed.

Imports: wire.imap_tokens, wire.imap_values, wire.mutf7, values.    RFC 3501 9.
"""

from __future__ import annotations

import base64
import binascii
import datetime
from collections.abc import Callable, Sequence

from mailsrv.values import SYSTEM_FLAGS, FlagOp
from mailsrv.wire import imap_values as v
from mailsrv.wire import mutf7
from mailsrv.wire.errors import BadCharset, WireError
from mailsrv.wire.imap_tokens import Cursor

MAX_DEPTH = 50  # of parentheses, NOT and OR in a search
MAX_KEYS = 2_000
MAX_MODSEQ = (1 << 63) - 1
MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
INBOX = "INBOX"
_FLAGS = {name.upper(): bit for name, bit in SYSTEM_FLAGS.items()}
STATUS_ITEMS = frozenset({"MESSAGES", "RECENT", "UIDNEXT", "UIDVALIDITY", "UNSEEN"})
SELECT_OPTIONS = frozenset({"SUBSCRIBED", "REMOTE", "RECURSIVEMATCH", "SPECIAL-USE"})
RETURN_OPTIONS = frozenset({"SUBSCRIBED", "CHILDREN", "SPECIAL-USE", "STATUS"})
SPECIAL_USES = {
    name.upper(): name for name in ("\\All", "\\Archive", "\\Drafts", "\\Flagged", "\\Junk", "\\Sent", "\\Trash")
}


def parse(parts: Sequence[bytes | v.Literal]) -> v.Command:
    """The command; raises WireError (with `.tag` once that was readable)."""
    cursor = Cursor(parts)
    try:
        cursor.tag = cursor.read_tag()
        cursor.space()
        return _command(cursor)
    except WireError as error:
        error.tag = error.tag or cursor.tag
        raise
    except RecursionError:
        raise cursor.fail("Nested too deeply") from None


def append_head(parts: Sequence[bytes | v.Literal], announced: v.Literal) -> v.Append | None:
    """The APPEND whose message literal has just been announced at the end of `parts`; None if this is not one (yet)."""
    first = parts[0]
    if not isinstance(first, bytes) or first[:80].upper().split(b" ")[1:2] != [b"APPEND"]:
        return None
    cursor = Cursor(parts)
    try:
        cursor.tag = cursor.read_tag()
        cursor.space()
        cursor.word()
        cursor.space()
        is_literal = cursor.line.endswith(b"}") and cursor.peek(b"{") and cursor.line.count(b" ", cursor.pos) == 0
        if is_literal and len(parts) == 1:
            return None  # the mailbox name is the literal
        mailbox = _mailbox(cursor)
        cursor.space()
        flags, date = v.FlagList(0), None
        if cursor.peek(b"("):
            flags = _flag_list(cursor)
            cursor.space()
        if cursor.peek(b'"'):
            date = _date_time(cursor)
            cursor.space()
        if not cursor.peek(b"{") and not cursor.peek(b"~{"):
            raise cursor.fail("Expected the message as a literal")
        if cursor.line.find(b"}", cursor.pos) != len(cursor.line) - 1:
            raise cursor.fail("Expected the message as a literal")
        return v.Append(cursor.tag, mailbox, flags, date, announced)
    except WireError as error:
        error.tag = error.tag or cursor.tag
        raise


def _command(c: Cursor) -> v.Command:
    name = c.word()
    uid = name == "UID"
    if uid:
        c.space()
        name = c.word()
    table = _UID_COMMANDS if uid else _COMMANDS
    handler = table.get(name)
    if handler is None:
        raise c.fail("Unknown command")
    command = handler(c, uid)
    c.end()
    return command


def _tag(c: Cursor) -> str:
    assert c.tag is not None
    return c.tag


def _bare(kind: type[v.Command]) -> Callable[[Cursor, bool], v.Command]:
    def build(c: Cursor, uid: bool) -> v.Command:
        return kind(_tag(c))

    return build


# ------------------------------------------------------------------ mailboxes


def _mailbox_name(c: Cursor, raw: bytes) -> str:
    try:
        name = mutf7.decode(raw)
    except WireError as error:
        raise c.fail(error.message) from None
    if name.upper() == INBOX:
        return INBOX
    if name[:6].upper() == INBOX + "/":
        return INBOX + name[5:]
    return name


def _mailbox(c: Cursor) -> str:
    return _mailbox_name(c, c.astring())


def _one_mailbox(kind: Callable[[str, str], v.Command]) -> Callable[[Cursor, bool], v.Command]:
    def build(c: Cursor, uid: bool) -> v.Command:
        c.space()
        return kind(_tag(c), _mailbox(c))

    return build


def _select(c: Cursor, uid: bool) -> v.Command:
    c.space()
    return v.Select(_tag(c), _mailbox(c), False)


def _examine(c: Cursor, uid: bool) -> v.Command:
    c.space()
    return v.Select(_tag(c), _mailbox(c), True)


def _create(c: Cursor, uid: bool) -> v.Command:
    c.space()
    mailbox = _mailbox(c)
    use = None
    if c.take(b" ("):  # RFC 6154 3
        if c.word() != "USE":
            raise c.fail("Expected USE")
        c.expect(b" (")
        c.expect(b"\\")
        use = SPECIAL_USES.get("\\" + c.word())
        if use is None:
            raise c.fail("Unknown special use")
        c.expect(b"))")
    return v.Create(_tag(c), mailbox, use)


def _rename(c: Cursor, uid: bool) -> v.Command:
    c.space()
    old = _mailbox(c)
    c.space()
    return v.Rename(_tag(c), old, _mailbox(c))


def _pattern(c: Cursor) -> str:
    return _mailbox_name(c, c.list_mailbox())


def _lsub(c: Cursor, uid: bool) -> v.Command:
    c.space()
    reference = _mailbox(c)
    c.space()
    nothing: frozenset[str] = frozenset()
    return v.List(_tag(c), reference, (_pattern(c),), True, nothing, nothing, (), False)


def _list(c: Cursor, uid: bool) -> v.Command:
    """RFC 3501 6.3.8 and the extended form of RFC 5258."""
    select: frozenset[str] = frozenset()
    returns: frozenset[str] = frozenset()
    status: tuple[str, ...] = ()
    c.space()
    extended = c.peek(b"(")
    if extended:
        select = frozenset(_options(c, SELECT_OPTIONS)[0])
        c.space()
    reference = _mailbox(c)
    c.space()
    if c.take(b"("):
        extended = True
        patterns = [_pattern(c)]
        while c.take(b" "):
            patterns.append(_pattern(c))
            if len(patterns) > 100:
                raise c.fail("Too many patterns")
        c.expect(b")")
    else:
        patterns = [_pattern(c)]
    if c.take(b" "):
        extended = True
        if c.word() != "RETURN":
            raise c.fail("Expected RETURN")
        c.space()
        options, status = _options(c, RETURN_OPTIONS)
        returns = frozenset(options)
    return v.List(_tag(c), reference, tuple(patterns), False, select, returns, status, extended)


def _options(c: Cursor, known: frozenset[str]) -> tuple[list[str], tuple[str, ...]]:
    c.expect(b"(")
    found: list[str] = []
    status: tuple[str, ...] = ()
    while not c.take(b")"):
        if found:
            c.space()
        option = c.word()
        if option not in known or len(found) > 10:
            raise c.fail(f"Unknown option {option}")
        if option == "STATUS":
            c.space()
            status = _status_items(c)
        found.append(option)
    return found, status


def _status_items(c: Cursor) -> tuple[str, ...]:
    c.expect(b"(")
    items: list[str] = []
    while not c.take(b")"):
        if items:
            c.space()
        item = c.word()
        if item not in STATUS_ITEMS or len(items) > 20:
            raise c.fail(f"Unknown status item {item}")
        items.append(item)
    if not items:
        raise c.fail("Expected a status item")
    return tuple(dict.fromkeys(items))


def _status(c: Cursor, uid: bool) -> v.Command:
    c.space()
    mailbox = _mailbox(c)
    c.space()
    return v.Status(_tag(c), mailbox, _status_items(c))


# ------------------------------------------------------------------ who is there


def _login(c: Cursor, uid: bool) -> v.Command:
    c.space()
    user = c.text(c.astring())
    c.space()
    return v.Login(_tag(c), user, c.text(c.astring()))


def decode_base64(raw: bytes) -> bytes:
    """A response of the client; WireError unless it is strict base64 (RFC 3501 6.2.2)."""
    try:
        return base64.b64decode(raw, validate=True)
    except binascii.Error:
        raise WireError("Not base64") from None


def _authenticate(c: Cursor, uid: bool) -> v.Command:
    c.space()
    mechanism = c.word()
    initial = None
    if c.take(b" "):  # RFC 4959 3: "=" is an empty one
        raw = c.line[c.pos :]
        c.pos = len(c.line)
        try:
            initial = b"" if raw == b"=" else decode_base64(raw)
        except WireError as error:
            raise c.fail(error.message) from None
    return v.Authenticate(_tag(c), mechanism, initial)


def _enable(c: Cursor, uid: bool) -> v.Command:
    names = []
    while c.take(b" "):
        names.append(c.word())
    if not names:
        raise c.fail("Expected a capability")
    return v.Enable(_tag(c), tuple(names[:50]))


def _id(c: Cursor, uid: bool) -> v.Command:
    c.space()
    if not c.take(b"("):
        if c.word() != "NIL":
            raise c.fail("Expected NIL or a list")
        return v.Id(_tag(c), None)
    fields: dict[str, str | None] = {}
    while not c.take(b")"):
        if fields:
            c.space()
        name = c.text(c.string())
        c.space()
        value = c.nstring()
        fields[name[:30]] = None if value is None else c.text(value)[:1024]
        if len(fields) > 30:  # RFC 2971 3.3
            raise c.fail("Too many ID fields")
    return v.Id(_tag(c), fields)


# ------------------------------------------------------------------ flags and dates


def _flag_list(c: Cursor) -> v.FlagList:
    c.expect(b"(")
    found: list[str] = []
    while not c.take(b")"):
        if found:
            c.space()
        found.append(_flag(c))
    return _as_flags(c, found)


def _flag(c: Cursor) -> str:
    if c.take(b"\\"):
        return "\\" + c.atom()
    return c.atom()


def _as_flags(c: Cursor, names: list[str]) -> v.FlagList:
    system, recent = 0, False
    keywords: list[str] = []
    for name in names:
        if name.startswith("\\"):
            bit = _FLAGS.get(name.upper())
            if name.upper() == "\\RECENT":
                recent = True
            elif bit is None:
                raise c.fail(f"Unknown flag {name}")
            else:
                system |= bit
        elif len(keywords) < 100:
            keywords.append(name)
        else:
            raise c.fail("Too many keywords")
    return v.FlagList(system, tuple(dict.fromkeys(keywords)), recent)


# It is told in UTC, and a year there has four digits, too.
_FIRST_SECOND = int(datetime.datetime(1, 1, 1, tzinfo=datetime.UTC).timestamp())
_LAST_SECOND = int(datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC).timestamp())


def _two_digits(c: Cursor, text: bytes, low: int, high: int) -> int:
    if len(text) != 2 or not text.isdigit() or not low <= int(text) <= high:
        raise c.fail("Not a date and time")
    return int(text)


def _date_time(c: Cursor) -> int:
    """`"dd-Mon-yyyy hh:mm:ss +zzzz"` as seconds since 1970 (RFC 3501 9, date-time; the day may begin with a space)."""
    raw = c.quoted()
    if len(raw) != 26 or raw[2:3] + raw[6:7] + raw[11:12] + raw[14:15] + raw[17:18] + raw[20:21] != b"-- :: ":
        raise c.fail("Not a date and time")
    day = _two_digits(c, raw[:2].replace(b" ", b"0"), 1, 31)
    month = raw[3:6].decode("ascii", "replace").upper()
    zone = raw[22:26]
    if month not in MONTHS or not raw[7:11].isdigit() or raw[21:22] not in (b"+", b"-"):
        raise c.fail("Not a date and time")
    hours, minutes = _two_digits(c, zone[:2], 0, 23), _two_digits(c, zone[2:], 0, 59)
    offset = (hours * 60 + minutes) * (60 if raw[21:22] == b"+" else -60)
    try:
        moment = datetime.datetime(
            int(raw[7:11]), MONTHS.index(month) + 1, day, _two_digits(c, raw[12:14], 0, 23),
            _two_digits(c, raw[15:17], 0, 59), min(_two_digits(c, raw[18:20], 0, 60), 59), tzinfo=datetime.UTC,
        )  # fmt: skip
    except ValueError:
        raise c.fail("Not a date and time") from None
    seconds = int(moment.timestamp()) - offset
    if not _FIRST_SECOND <= seconds <= _LAST_SECOND:
        raise c.fail("Not a date and time")
    return seconds


def _day(c: Cursor) -> int:
    """A search date, quoted or not, as its ordinal."""
    raw = (c.quoted() if c.peek(b'"') else c.atom().encode()).decode("ascii", "replace")
    day, _, rest = raw.partition("-")
    month, _, year = rest.partition("-")
    try:
        if not (1 <= len(day) <= 2 and len(year) == 4 and day.isdigit() and year.isdigit()):
            raise ValueError
        return datetime.date(int(year), MONTHS.index(month.upper()) + 1, int(day)).toordinal()
    except ValueError:
        raise c.fail("Not a date") from None


# ------------------------------------------------------------------ fetch and store

_MACROS = {
    "ALL": ("FLAGS", "INTERNALDATE", "RFC822.SIZE", "ENVELOPE"),
    "FAST": ("FLAGS", "INTERNALDATE", "RFC822.SIZE"),
    "FULL": ("FLAGS", "INTERNALDATE", "RFC822.SIZE", "ENVELOPE", "BODY"),
}
_PLAIN_ITEMS = frozenset(
    {
        "UID",
        "FLAGS",
        "INTERNALDATE",
        "RFC822.SIZE",
        "ENVELOPE",
        "BODYSTRUCTURE",
        "RFC822",
        "RFC822.HEADER",
        "RFC822.TEXT",
    }
)


def _fetch(c: Cursor, uid: bool) -> v.Command:
    c.space()
    messages = c.sequence_set()
    c.space()
    items: list[v.FetchItem] = []
    if c.take(b"("):
        while True:
            items.append(_fetch_item(c))
            if len(items) > 200:
                raise c.fail("Too many items")
            if c.take(b")"):
                break
            c.space()
    else:
        start = c.pos
        name = c.word()
        if name in _MACROS and c.at_end():
            items = [v.FetchItem(item) for item in _MACROS[name]]
        else:
            c.pos = start
            items = [_fetch_item(c)]
    if uid and not any(item.name == "UID" for item in items):
        items.insert(0, v.FetchItem("UID"))
    return v.Fetch(_tag(c), uid, messages, tuple(dict.fromkeys(items)))


def _item_name(c: Cursor) -> str:
    start = c.pos
    line = c.line
    while c.pos < len(line) and (line[c.pos : c.pos + 1].isalnum() or line[c.pos : c.pos + 1] == b"."):
        c.pos += 1
    return line[start : c.pos].decode("ascii", "replace").upper()


def _fetch_item(c: Cursor) -> v.FetchItem:
    name = _item_name(c)
    if name in _PLAIN_ITEMS:
        return v.FetchItem(name)
    if name == "BODY" and not c.peek(b"["):
        return v.FetchItem("BODY")
    if name in ("BODY", "BODY.PEEK") and c.take(b"["):
        section = _section(c)
        c.expect(b"]")
        partial = None
        if c.take(b"<"):
            origin = c.number()
            c.expect(b".")
            partial = (origin, c.nz_number())
            c.expect(b">")
        return v.FetchItem("BODY[]", section, name == "BODY.PEEK", partial)
    raise c.fail("Unknown fetch item")


def _section(c: Cursor) -> v.Section:
    path: list[int] = []
    while c.line[c.pos : c.pos + 1].isdigit():
        path.append(c.nz_number())
        if len(path) > 100:
            raise c.fail("Part number too deep")
        if not c.take(b"."):
            return v.Section(tuple(path))
    if c.peek(b"]"):
        if path:
            raise c.fail("Part number ends in a dot")
        return v.Section()
    kind = _item_name(c)
    if kind == "MIME" and path:
        return v.Section(tuple(path), kind)
    if kind in ("HEADER", "TEXT"):
        return v.Section(tuple(path), kind)
    if kind in ("HEADER.FIELDS", "HEADER.FIELDS.NOT"):
        c.expect(b" (")
        fields: list[bytes] = []
        while True:
            fields.append(c.astring())
            if len(fields) > 500:
                raise c.fail("Too many header fields")
            if c.take(b")"):
                break
            c.space()
        return v.Section(tuple(path), kind, tuple(fields))
    raise c.fail("Unknown section")


def _store(c: Cursor, uid: bool) -> v.Command:
    c.space()
    messages = c.sequence_set()
    c.space()
    op = FlagOp.ADD if c.take(b"+") else FlagOp.REMOVE if c.take(b"-") else FlagOp.REPLACE
    name = _item_name(c)
    if name not in ("FLAGS", "FLAGS.SILENT"):
        raise c.fail("Expected FLAGS")
    c.space()
    if c.peek(b"("):
        flags = _flag_list(c)
    else:
        found = [_flag(c)]
        while c.take(b" "):
            found.append(_flag(c))
        flags = _as_flags(c, found)
    return v.Store(_tag(c), uid, messages, op, name == "FLAGS.SILENT", flags)


def _copy(c: Cursor, uid: bool) -> v.Command:
    c.space()
    messages = c.sequence_set()
    c.space()
    return v.Copy(_tag(c), uid, messages, _mailbox(c))


def _move(c: Cursor, uid: bool) -> v.Command:
    c.space()
    messages = c.sequence_set()
    c.space()
    return v.Move(_tag(c), uid, messages, _mailbox(c))


def _expunge(c: Cursor, uid: bool) -> v.Command:
    if not uid:
        return v.Expunge(_tag(c), None)
    c.space()
    return v.Expunge(_tag(c), c.sequence_set())


# ------------------------------------------------------------------ search

_FLAG_KEYS: dict[str, v.SearchKey] = {
    "ALL": v.All(),
    "NEW": v.New(),
    "OLD": v.Recent(False),
    "RECENT": v.Recent(True),
}
for _name in ("ANSWERED", "DELETED", "DRAFT", "FLAGGED", "SEEN"):
    _FLAG_KEYS[_name] = v.HasFlag(_FLAGS["\\" + _name], True)
    _FLAG_KEYS["UN" + _name] = v.HasFlag(_FLAGS["\\" + _name], False)
_DATE_KEYS: dict[str, tuple[type[v.InternalDate] | type[v.SentDate], str]] = {
    "BEFORE": (v.InternalDate, "<"), "ON": (v.InternalDate, "="), "SINCE": (v.InternalDate, ">="),
    "SENTBEFORE": (v.SentDate, "<"), "SENTON": (v.SentDate, "="), "SENTSINCE": (v.SentDate, ">="),
}  # fmt: skip
_HEADER_KEYS = frozenset({"BCC", "CC", "FROM", "SUBJECT", "TO"})


def _search(c: Cursor, uid: bool) -> v.Command:
    c.space()
    charset = None
    if c.line[c.pos : c.pos + 8].upper() == b"CHARSET ":
        c.pos += 8
        charset = c.text(c.astring()).upper()
        c.space()
        if charset not in ("UTF-8", "US-ASCII"):
            raise BadCharset("Only UTF-8 and US-ASCII are offered", c.pos, c.tag)
    budget = [MAX_KEYS]
    keys = [_search_key(c, 0, budget)]
    while c.take(b" "):
        keys.append(_search_key(c, 0, budget))
    return v.Search(_tag(c), uid, charset, keys[0] if len(keys) == 1 else v.And(tuple(keys)))


def _search_key(c: Cursor, depth: int, budget: list[int]) -> v.SearchKey:
    budget[0] -= 1
    if depth > MAX_DEPTH or budget[0] < 0:
        raise c.fail("The search is too complex")
    if c.take(b"("):
        keys = [_search_key(c, depth + 1, budget)]
        while c.take(b" "):
            keys.append(_search_key(c, depth + 1, budget))
        c.expect(b")")
        return keys[0] if len(keys) == 1 else v.And(tuple(keys))
    first = c.line[c.pos : c.pos + 1]
    if first.isdigit() or first == b"*":
        return v.SeqSet(c.sequence_set())
    name = c.word()
    if name in _FLAG_KEYS:
        return _FLAG_KEYS[name]
    if name == "NOT":
        c.space()
        return v.Not(_search_key(c, depth + 1, budget))
    c.space()
    if name == "OR":
        left = _search_key(c, depth + 1, budget)
        c.space()
        return v.Or(left, _search_key(c, depth + 1, budget))
    if name in _HEADER_KEYS:
        return v.Header(name.lower(), c.text(c.astring()))
    if name == "HEADER":
        field = c.text(c.astring()).lower()
        c.space()
        return v.Header(field, c.text(c.astring()))
    if name in ("BODY", "TEXT"):
        text = c.text(c.astring())
        return v.Body(text) if name == "BODY" else v.Text(text)
    if name in _DATE_KEYS:
        kind, op = _DATE_KEYS[name]
        return kind(op, _day(c))
    if name in ("KEYWORD", "UNKEYWORD"):
        return v.HasKeyword(c.atom(), name == "KEYWORD")
    if name in ("LARGER", "SMALLER"):
        return v.Size(">" if name == "LARGER" else "<", c.number((1 << 63) - 1))
    if name == "UID":
        return v.UidSet(c.sequence_set())
    raise c.fail(f"Unknown search key {name}")


_COMMANDS: dict[str, Callable[[Cursor, bool], v.Command]] = {
    "CAPABILITY": _bare(v.Capability), "NOOP": _bare(v.Noop), "LOGOUT": _bare(v.Logout), "STARTTLS": _bare(v.StartTls),
    "NAMESPACE": _bare(v.Namespace), "CHECK": _bare(v.Check), "CLOSE": _bare(v.Close), "UNSELECT": _bare(v.Unselect),
    "IDLE": _bare(v.Idle), "AUTHENTICATE": _authenticate, "LOGIN": _login, "ENABLE": _enable, "ID": _id,
    "SELECT": _select, "EXAMINE": _examine, "CREATE": _create, "DELETE": _one_mailbox(v.Delete), "RENAME": _rename,
    "SUBSCRIBE": _one_mailbox(v.Subscribe), "UNSUBSCRIBE": _one_mailbox(v.Unsubscribe), "LIST": _list, "LSUB": _lsub,
    "STATUS": _status, "EXPUNGE": _expunge, "SEARCH": _search, "FETCH": _fetch, "STORE": _store, "COPY": _copy,
    "MOVE": _move,
}  # fmt: skip
_UID_COMMANDS = {name: _COMMANDS[name] for name in ("EXPUNGE", "SEARCH", "FETCH", "STORE", "COPY", "MOVE")}
