"""Mailboxes as such: SELECT and EXAMINE, \\Recent, names, LIST and LSUB, CREATE, DELETE, RENAME, STATUS, and what
becomes of a session whose mailbox is taken away.
"""

import re
import time

import gevent
import pytest

from mailsrv.imap import mailboxes
from mailsrv.imap.view import RECENT_RANGES


def code(lines, name):
    """The argument of a response code `[NAME argument]` in the lines; None if there is none."""
    found = re.search(rb"\[%b(?: ([^\]]*))?\]" % name, b"\n".join(lines))
    return found and (found[1] or b"")


def listed(client, reference, pattern, command="LIST"):
    """name -> attributes."""
    found = {}
    for line in client.ok(f'{command} "{reference}" "{pattern}"'):
        match = re.fullmatch(rb'\* (?:LIST|LSUB) \(([^)]*)\) "/" (.+)', line)
        found[match[2].strip(b'"').decode()] = set(match[1].decode().split())
    return found


# ------------------------------------------------------------------ SELECT and EXAMINE


def test_r13_select_says_everything(serving, dial, mail):
    client = dial(serving, "ann")
    mail(serving)
    mail(serving)
    *lines, done = client.say("SELECT INBOX")
    assert [line for line in lines if line.startswith(b"* FLAGS (")]
    assert b"* 2 EXISTS" in lines and b"* 2 RECENT" in lines
    assert int(code(lines, b"UIDVALIDITY")) > 0
    assert code(lines, b"UIDNEXT") == b"3"
    assert code(lines, b"UNSEEN") == b"1"
    assert b"\\*" in code(lines, b"PERMANENTFLAGS")
    assert done.startswith(b"OK [READ-WRITE] ")
    client.ok("STORE 1:2 +FLAGS.SILENT (\\Seen)")
    *lines, done = client.say("EXAMINE INBOX")
    assert code(lines, b"UNSEEN") is None
    assert done.startswith(b"OK [READ-ONLY] ")


def test_r13_b10_unseen_and_recent_are_counted(serving, dial, mail):
    client = dial(serving, "ann", select="INBOX")
    client.append(how="(\\Seen)")
    client.append()
    other = dial(serving, "ann")
    mail(serving)
    *lines, _ = other.say("SELECT INBOX")
    assert code(lines, b"UNSEEN") == b"2"
    assert b"* 3 EXISTS" in lines


def test_r14_failed_select_leaves_nothing_selected(serving, dial):
    client = dial(serving, "ann", select="INBOX")
    client.append()
    assert client.say("SELECT Nowhere")[-1].startswith(b"NO [NONEXISTENT] ")
    assert client.say("FETCH 1 FLAGS")[-1].startswith(b"BAD ")
    other = dial(serving, "ann", select="INBOX")
    other.append()
    assert client.ok("NOOP") == []


def test_r15_examine_changes_nothing(serving, dial, files):
    writer = dial(serving, "ann", select="INBOX")
    writer.append(how="(\\Deleted)")
    writer.append()
    before = {path.name: path.read_bytes() for path in files(serving)}
    client = dial(serving, "ann", examine="INBOX")
    for command in ("STORE 1 +FLAGS (\\Seen)", "STORE 1:2 FLAGS.SILENT ()", "UID STORE 2 +FLAGS (\\Deleted)", "EXPUNGE",
                    "UID EXPUNGE 1:*", "MOVE 1 Trash", "UID MOVE 2 Trash"):  # fmt: skip
        assert client.say(command)[-1].startswith(b"NO "), command
    client.ok("FETCH 1:* BODY[]")
    client.ok("FETCH 1:* RFC822")
    client.ok("COPY 1 Trash")
    assert client.ok("CLOSE") == []
    assert {path.name: path.read_bytes() for path in files(serving)} == before
    assert writer.flags() == {1: {b"\\Deleted"}, 2: set()}


def test_b04_close_after_examine_removes_nothing(serving, dial):
    client = dial(serving, "ann", select="INBOX")
    client.append(how="(\\Deleted)")
    client.ok("EXAMINE INBOX")
    client.ok("CLOSE")
    client.ok("SELECT INBOX")
    assert client.flags() == {1: {b"\\Deleted"}}


def test_r16_close_expunges_silently_unselect_does_not(serving, dial, files):
    client = dial(serving, "ann", select="INBOX")
    client.append(how="(\\Deleted)")
    client.append()
    client.ok("NOOP")
    watcher = dial(serving, "ann", select="INBOX")
    assert client.ok("UNSELECT") == []
    assert len(files(serving)) == 2
    client.ok("SELECT INBOX")
    assert client.ok("CLOSE") == []
    assert len(files(serving)) == 1
    assert watcher.ok("NOOP") == [b"* 1 EXPUNGE"]
    assert client.say("CLOSE")[-1].startswith(b"BAD ")


# ------------------------------------------------------------------ \Recent


def test_r12_recent_goes_to_one_session(serving, dial, mail):
    mail(serving)
    reader = dial(serving, "ann")
    assert b"* 1 RECENT" in reader.ok("EXAMINE INBOX")
    assert reader.ok("STATUS INBOX (RECENT)") == [b"* STATUS INBOX (RECENT 1)"]
    first, second = dial(serving, "ann"), dial(serving, "ann")
    assert b"* 1 RECENT" in first.ok("SELECT INBOX")
    assert b"* 0 RECENT" in second.ok("SELECT INBOX")
    assert first.ok("FETCH 1 FLAGS") == [b"* 1 FETCH (FLAGS (\\Recent))"]
    assert second.ok("FETCH 1 FLAGS") == [b"* 1 FETCH (FLAGS ())"]
    assert first.ok("SEARCH RECENT") == [b"* SEARCH 1"]
    assert second.ok("SEARCH RECENT") == [b"* SEARCH"]


def test_r12_recent_of_a_push_goes_to_one_of_the_idling(serving, dial, mail, eventually):
    clients = [dial(serving, "ann", select="INBOX") for _ in range(4)]
    tags = [client.idle() for client in clients]
    mail(serving)
    lines = [client.done(tag) for client, tag in zip(clients, tags, strict=True)]
    assert all(b"* 1 EXISTS" in found for found in lines)
    marked = [client.ok("FETCH 1 FLAGS") == [b"* 1 FETCH (FLAGS (\\Recent))"] for client in clients]
    assert sum(marked) == 1


def test_r12_sessions_that_take_turns_remember_what_is_recent_and_not_all_that_ever_was(serving, dial):
    clients = [dial(serving, "ann", select="INBOX") for _ in range(2)]
    views = [session.view for listener in serving.server.listeners for session in listener.sessions]
    kept = []
    for turn in range(120):
        kept.append((turn % 2, clients[turn % 2].append()))
        if turn % 10 == 9:  # both are told, and all but the latest three and the very first go
            going = ",".join(str(uid) for _, uid in kept[1:-3])
            clients[0].ok(f"UID STORE {going} +FLAGS.SILENT (\\Deleted)")
            for client in clients:
                client.ok(f"UID EXPUNGE {going}")
            kept = [kept[0], *kept[-3:]]
            for number, client in enumerate(clients):
                mine = [str(uid).encode() for whose, uid in kept if whose == number]
                assert client.ok("UID SEARCH RECENT") == [b" ".join([b"* SEARCH", *mine])]
                recent = [line for line in client.ok("FETCH 1:4 (UID FLAGS)") if b"\\Recent" in line]
                assert len(recent) == len(mine)
    assert [len(view.recent) <= RECENT_RANGES for view in views] == [True, True]


def test_r12_what_nobody_was_told_of_yet_is_one_range(serving, dial, mail):
    client = dial(serving, "ann", select="INBOX")
    for _ in range(5):
        mail(serving)
    [view] = [session.view for listener in serving.server.listeners for session in listener.sessions if session.view]
    assert view.mailbox._claimed == [(1, 6)]
    assert b"* 5 RECENT" in client.ok("NOOP")


@pytest.mark.parametrize("command", ["STORE 1 +FLAGS (\\Recent)", "STORE 1 FLAGS (\\Seen \\Recent)"])
def test_r12_recent_cannot_be_stored(serving, dial, command):
    client = dial(serving, "ann", select="INBOX")
    client.append()
    assert client.say(command)[-1].startswith(b"BAD ")
    assert client.flags() == {1: set()}


# ------------------------------------------------------------------ names


@pytest.mark.parametrize("name", ["INBOX", "inbox", "Inbox", "iNbOx", '"inBOX"'])
def test_r17_inbox_in_any_case(serving, dial, name):
    client = dial(serving, "ann", select="INBOX")
    client.append()
    assert b"* 1 EXISTS" in client.ok(f"SELECT {name}")
    assert client.ok(f"STATUS {name} (MESSAGES)") == [b"* STATUS INBOX (MESSAGES 1)"]
    assert client.say(f"DELETE {name}")[-1].startswith(b"NO ")
    assert client.say(f"CREATE {name}")[-1].startswith(b"NO ")
    assert list(listed(client, "", name.strip('"'))) == ["INBOX"]


def test_r17_rename_inbox_moves_its_messages_and_keeps_it(serving, dial):
    client = dial(serving, "ann")
    client.append("Subject: a\r\n\r\n", how='(\\Flagged) " 1-Feb-2003 04:05:06 +0000"')
    client.append("Subject: b\r\n\r\n")
    client.ok("CREATE INBOX/Sub")
    client.ok("RENAME INBOX Old/Mail")
    assert client.ok("STATUS INBOX (MESSAGES)") == [b"* STATUS INBOX (MESSAGES 0)"]
    assert set(listed(client, "", "*")) >= {"INBOX", "INBOX/Sub", "Old", "Old/Mail"}  # RFC 3501 6.3.5: inferiors stay
    client.ok("SELECT Old/Mail")
    assert list(client.flags().values()) == [{b"\\Flagged"}, set()]
    assert b'INTERNALDATE " 1-Feb-2003 04:05:06 +0000"' in client.ok("FETCH 1 INTERNALDATE")[0]
    assert client.append() == 3  # INBOX goes on counting
    assert b"* 1 EXISTS" in client.ok("SELECT INBOX")


def test_r17_rename_inbox_is_told_to_its_sessions(serving, dial):
    first, second = dial(serving, "ann", select="INBOX"), dial(serving, "ann")
    second.append()
    second.append()
    first.ok("NOOP")
    tag = first.idle()
    second.ok("RENAME INBOX Old")
    assert [first.response(), first.response()] == [b"* 1 EXPUNGE", b"* 1 EXPUNGE"]
    first.done(tag)
    second.append()
    assert b"* 1 EXISTS" in first.ok("NOOP")


def test_list_of_many_names_gives_way():
    """Names and patterns are the client's choice: together they may cost seconds, in which others have their turns."""
    turns = []

    def others():
        while True:
            turns.append(time.perf_counter())
            time.sleep(0)

    spawned = gevent.spawn(others)
    try:
        names = [f"{number}{'a' * 180}" for number in range(100)]
        pace = mailboxes._Pace()
        assert not [name for name in names if mailboxes._matches_one(["*a" * 300] * 2, name, pace)]
    finally:
        spawned.kill()
    assert len(turns) > 10


@pytest.mark.parametrize("pattern", ["*", "%", "*b*", "a%", "%/b", "*%"])
def test_the_short_way_of_the_usual_patterns_finds_the_same(pattern):
    for name in ("", "a", "a/b", "b/a/b", "/", "ab"):
        slowly = re.fullmatch(pattern.replace("*", ".*").replace("%", "[^/]*"), name) is not None
        assert mailboxes.matches(pattern, name) == slowly, name


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ('"Entw&APw-rfe"', "Entw&APw-rfe"),
        ('"Tom &- Jerry"', "Tom &- Jerry"),
        ('"~peter/mail/&U,BTFw-/&ZeVnLIqe-"', "~peter/mail/&U,BTFw-/&ZeVnLIqe-"),  # RFC 3501 5.1.3
        ('"&2D3eAA-"', "&2D3eAA-"),  # beyond the first 65,536
        ('"a\\"b\\\\c"', 'a\\"b\\\\c'),
        ('"with space"', "with space"),
        ('"per%cent*star"', "per%cent*star"),
        ("a.b", "a.b"),
        ("..", ".."),
        (".", "."),
        ('"&AC8-"', None),  # a slash that is encoded: not canonical
        ('"&AGE-"', None),  # "a" needs no encoding
        ('"&U,BTFw"', None),  # no end
        ('"&U,BTFw-&ZeVnLIqe-"', None),  # two shifts in a row
        ('"&2D0-"', None),  # half a surrogate pair
        ('"&*-"', None),
        ('"Entw\u00fcrfe"', None),  # 8 bit before ENABLE
    ],
)
def test_r18_modified_utf7(serving, dial, sent, shown):
    client = dial(serving, "ann")
    done = client.say(f"CREATE {sent}")[-1]
    if shown is None:
        assert done.startswith((b"BAD ", b"NO ")), done
        assert len(listed(client, "", "*")) == 6
    else:
        assert done.startswith(b"OK "), done
        assert shown in listed(client, "", "*")
        assert client.ok(f"STATUS {sent} (MESSAGES)")[0].endswith(b" (MESSAGES 0)")
        client.ok(f"SELECT {sent}")
        client.ok(f"DELETE {sent}")
        assert shown not in listed(client, "", "*")


# ------------------------------------------------------------------ LIST


@pytest.fixture
def tree(serving, dial):
    client = dial(serving, "ann")
    for name in ("a", "a/b", "a/b/c", "a/x", "ab", "deep/er/est"):
        client.ok(f"CREATE {name}")
    return client


@pytest.mark.parametrize(
    ("reference", "pattern", "expected"),
    [
        ("", "a", {"a"}),
        ("", "a%", {"a", "ab"}),
        ("", "a*", {"a", "a/b", "a/b/c", "a/x", "ab"}),
        ("", "a/%", {"a/b", "a/x"}),
        ("", "a/*", {"a/b", "a/b/c", "a/x"}),
        ("", "%/%", {"a/b", "a/x", "deep/er"}),
        ("", "*c", {"a/b/c"}),
        ("", "%c", set()),
        ("", "*b*", {"INBOX", "a/b", "a/b/c", "ab"} - {"INBOX"}),
        ("", "d%/e%/e%", {"deep/er/est"}),
        ("", "deep/%", {"deep/er"}),
        ("a/", "%", {"a/b", "a/x"}),
        ("a/", "*", {"a/b", "a/b/c", "a/x"}),
        ("a", "b", {"ab"}),
        ("a/b", "/%", set()),
        ("nothing/", "%", set()),
        ("", "InBoX", {"INBOX"}),
        ("", "**%%*%*inbox", set()),
        ("../", "*", set()),
        ("", "../%", set()),
        ("/", "%", set()),
    ],
)
def test_r19_b09_list_patterns(tree, reference, pattern, expected):
    assert set(listed(tree, reference, pattern)) == expected


def test_r19_b09_empty_pattern_is_the_delimiter(tree):
    assert tree.ok('LIST "" ""') == [b'* LIST (\\Noselect) "/" ""']
    assert tree.ok('LIST "a/b" ""')[0].startswith(b'* LIST (\\Noselect) "/" ')


@pytest.mark.parametrize(
    "name",
    ['"../../../escape"', '"/etc/escape"', '"a/../../escape"', "..", "../bo", ".", '"a//escape"', '"/"', '"a/./b"'],
)
def test_r19_b11_no_name_leaves_the_account(serving, dial, files, name):
    neighbour = dial(serving, "bo", select="INBOX")
    neighbour.append()
    client = dial(serving, "ann", select="INBOX")
    client.append()
    known = {path for path in serving.directory.rglob("*") if "/ann/" not in f"{path}/"}
    client.say(f"CREATE {name}")
    client.say(f"SUBSCRIBE {name}")
    assert {path for path in serving.directory.rglob("*") if "/ann/" not in f"{path}/"} == known
    client.say(f"RENAME Trash {name}")
    client.say(f"DELETE {name}")
    assert {path for path in serving.directory.rglob("*") if "/ann/" not in f"{path}/"} == known
    assert len(files(serving, "bo")) == len(files(serving, "ann")) == 1
    assert neighbour.flags() == {1: set()}
    client.ok("SELECT INBOX")
    assert client.flags() == {1: set()}


def test_b11_a_dot_and_a_slash_are_two_mailboxes(serving, dial):
    client = dial(serving, "ann")
    client.ok("CREATE a.b")
    client.ok("CREATE a/b")
    client.append("Subject: dot\r\n\r\n", mailbox="a.b")
    assert client.ok("STATUS a/b (MESSAGES)") == [b"* STATUS a/b (MESSAGES 0)"]
    assert client.ok("STATUS a.b (MESSAGES)") == [b"* STATUS a.b (MESSAGES 1)"]
    client.ok("DELETE a/b")
    assert client.ok("STATUS a.b (MESSAGES)") == [b"* STATUS a.b (MESSAGES 1)"]


def test_r20_a_parent_that_is_deleted_stays_as_a_name(tree):
    tree.ok("DELETE a/b")
    assert listed(tree, "", "a/b*") == {"a/b": {"\\Noselect", "\\HasChildren"}, "a/b/c": {"\\HasNoChildren"}}
    assert tree.say("SELECT a/b")[-1].startswith(b"NO ")
    tree.ok("SELECT a/b/c")
    tree.ok("DELETE a/b/c")
    assert listed(tree, "", "a/b*") == {}
    assert listed(tree, "", "a") == {"a": {"\\HasChildren"}}
    tree.ok("DELETE a/x")
    assert listed(tree, "", "a") == {"a": {"\\HasNoChildren"}}


def test_r20_a_name_without_mailbox_can_be_created_again(tree):
    tree.ok("DELETE a/b")
    tree.ok("CREATE a/b")
    assert listed(tree, "", "a/b") == {"a/b": {"\\HasChildren"}}
    tree.ok("SELECT a/b")


def test_r21_b09_rename_carries_inferiors(tree):
    tree.append("Subject: kept\r\n\r\n", mailbox="a/b/c")
    tree.ok("RENAME a new/place/a")
    assert set(listed(tree, "", "new*")) == {"new", "new/place", "new/place/a", "new/place/a/b", "new/place/a/b/c",
                                             "new/place/a/x"}  # fmt: skip
    assert set(listed(tree, "", "a/*")) == set()
    assert tree.ok("STATUS new/place/a/b/c (MESSAGES)") == [b"* STATUS new/place/a/b/c (MESSAGES 1)"]


def test_r21_rename_of_a_name_without_mailbox_carries_inferiors(tree):
    tree.ok("DELETE deep/er")
    *_, done = tree.say("RENAME deep/er moved")
    if done.startswith(b"OK "):
        assert "moved/est" in listed(tree, "", "*")
    else:
        assert done.startswith(b"NO ")
        assert "deep/er/est" in listed(tree, "", "*")


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("RENAME a ab", b"ALREADYEXISTS"),
        ("RENAME nowhere somewhere", b"NONEXISTENT"),
        ("RENAME a a/b/z", b"CANNOT"),
        ("RENAME a INBOX", b"ALREADYEXISTS"),
        ("CREATE a/b", b"ALREADYEXISTS"),
        ("DELETE nowhere", b"NONEXISTENT"),
        ("STATUS nowhere (MESSAGES)", b"NONEXISTENT"),
        ("EXAMINE nowhere", b"NONEXISTENT"),
    ],
)
def test_r21_refusals_say_why_and_change_nothing(tree, command, code):
    before = listed(tree, "", "*")
    assert tree.say(command)[-1].startswith(b"NO [%b] " % code)
    assert listed(tree, "", "*") == before


def test_r21_create_with_a_trailing_delimiter(serving, dial):
    client = dial(serving, "ann")
    client.ok("CREATE one/two/")
    assert set(listed(client, "", "one*")) == {"one", "one/two"}
    client.ok("SELECT one/two")


def test_r22_b09_subscriptions_outlive_the_mailbox(serving, dial):
    client = dial(serving, "ann")
    client.ok("CREATE Work")
    client.ok("SUBSCRIBE Work")
    client.ok("DELETE Work")
    assert "Work" in listed(client, "", "*", "LSUB")
    assert "Work" in listed(client, "", "*", "LIST (SUBSCRIBED)")
    assert "Work" not in listed(client, "", "*")
    client.ok("SUBSCRIBE Never/There")
    other = dial(serving, "ann")
    assert "Never/There" in listed(other, "", "*", "LSUB")
    assert listed(other, "", "N%", "LSUB") == {"Never": {"\\Noselect", "\\HasNoChildren"}}
    client.ok("UNSUBSCRIBE Work")
    assert "Work" not in listed(other, "", "*", "LSUB")
    client.ok("CREATE Work")
    assert "Work" not in listed(other, "", "*", "LSUB")
    assert (serving.maildir("ann") / "subscriptions").exists()


def test_r23_status_agrees_with_select_and_alters_nothing(serving, dial, mail, files):
    client = dial(serving, "ann")
    client.append(how="(\\Seen)")
    client.append(how="(\\Deleted)")
    mail(serving)
    before = [path.name for path in files(serving)]
    line = client.ok("STATUS INBOX (MESSAGES RECENT UIDNEXT UIDVALIDITY UNSEEN)")[0]
    values = {name: int(value) for name, value in re.findall(rb"([A-Z]+) (\d+)", line)}
    assert client.ok("STATUS INBOX (MESSAGES RECENT UIDNEXT UIDVALIDITY UNSEEN)") == [line]
    assert [path.name for path in files(serving)] == before
    lines = client.ok("SELECT INBOX")
    assert b"* %d EXISTS" % values[b"MESSAGES"] in lines
    assert b"* %d RECENT" % values[b"RECENT"] in lines
    assert int(code(lines, b"UIDNEXT")) == values[b"UIDNEXT"] == 4
    assert int(code(lines, b"UIDVALIDITY")) == values[b"UIDVALIDITY"]
    assert client.ok("SEARCH UNSEEN") == [b"* SEARCH 2 3"]
    assert values[b"UNSEEN"] == 2 and values[b"MESSAGES"] == 3


def test_r23_status_of_the_selected_mailbox(serving, dial):
    client, other = dial(serving, "ann", select="INBOX"), dial(serving, "ann")
    other.append()
    lines = client.ok("STATUS INBOX (MESSAGES UNSEEN)")
    assert b"* STATUS INBOX (MESSAGES 1 UNSEEN 1)" in lines and b"* 1 EXISTS" in lines


@pytest.mark.parametrize("items", ["()", "(NONSENSE)", "MESSAGES", "(MESSAGES"])
def test_r40_status_wants_items(serving, dial, items):
    client = dial(serving, "ann")
    assert client.say(f"STATUS INBOX {items}")[-1].startswith(b"BAD ")
    client.ok("NOOP")


# ------------------------------------------------------------------ taken away


def test_r52_deleted_while_selected_ends_the_session(serving, dial):
    first, idling, second = (dial(serving, "ann") for _ in range(3))
    second.ok("CREATE Work")
    second.append(mailbox="Work")
    first.ok("SELECT Work")
    idling.ok("SELECT Work")
    idling.idle()
    second.ok("DELETE Work")
    assert idling.rest().startswith(b"* BYE ")
    second.ok("CREATE Work")
    second.append("Subject: other\r\n\r\n", mailbox="Work")
    first.begin("FETCH 1 BODY.PEEK[]")
    rest = first.rest()
    assert rest.startswith(b"* BYE ") or b"Subject: other" not in rest


def test_r52_renamed_while_selected_goes_on(serving, dial):
    first, second = dial(serving, "ann"), dial(serving, "ann")
    second.ok("CREATE Work")
    second.append("Subject: mine\r\n\r\n", mailbox="Work")
    first.ok("SELECT Work")
    second.ok("RENAME Work Play")
    second.ok("CREATE Work")
    second.append("Subject: other\r\n\r\n", mailbox="Work")
    assert b"Subject: mine" in first.ok("FETCH 1 BODY.PEEK[]")[0]
    second.append("Subject: more\r\n\r\n", mailbox="Play")
    assert b"* 2 EXISTS" in first.ok("NOOP")
    first.ok("STORE 1 +FLAGS (\\Flagged)")
    second.ok("EXAMINE Play")
    assert second.flags() == {1: {b"\\Flagged"}, 2: set()}


def test_r52_own_mailbox_deleted(serving, dial):
    client = dial(serving, "ann")
    client.ok("CREATE Work")
    client.ok("SELECT Work")
    done = client.say("DELETE Work")[-1]
    assert done.startswith(b"OK ")
    assert client.say("FETCH 1 FLAGS")[-1].startswith(b"BAD ")
    client.ok("SELECT INBOX")


def test_b10_capabilities_and_special_use(serving, dial):
    client = dial(serving, "ann")
    words = client.ok("CAPABILITY")[0].split()
    assert {b"IMAP4rev1", b"IDLE", b"UIDPLUS", b"MOVE", b"NAMESPACE", b"ID", b"SPECIAL-USE", b"UNSELECT"} <= set(words)
    uses = {name: marks & {"\\Sent", "\\Trash", "\\Drafts", "\\Junk", "\\Archive"} for name, marks in
            listed(client, "", "*").items()}  # fmt: skip
    assert uses == {"INBOX": set(), "Archive": {"\\Archive"}, "Drafts": {"\\Drafts"}, "Junk": {"\\Junk"},
                    "Sent": {"\\Sent"}, "Trash": {"\\Trash"}}  # fmt: skip
    assert client.ok("NAMESPACE") == [b'* NAMESPACE (("" "/")) NIL NIL']


# ------------------------------------------------------------------ names and the file system

PATHS = [
    "..", "../bo", "../../bo", "/etc", "/", "//", "a/../../b", "a/..", "./a", ".", ".hidden", "a//b", "/a", "a\0b", "~",
    "~root", "~/x", "%2e%2e", "..%2f..", "&AC4ALg-/x", "&AC8-etc", "..\\..\\x", "new", "cur", "tmp", "INBOX/../..",
    "mailsrv-mailbox.json", "index.sqlite3", "a:2,S", "x" * 300, "a/" * 40 + "b", "\u2024\u2024/x", "a\u2028b", "-rf",
    "*",
]  # fmt: skip


def contents(directory):
    return {str(path.relative_to(directory)): path.is_file() and path.read_bytes() for path in directory.rglob("*")}


def test_s24_b11_no_mailbox_name_leads_out_of_its_account(serving, dial, mail):
    """Created, renamed to, written to, asked for, deleted: nothing outside the own Maildir is made, changed or read."""
    mail(serving, "bo", "Subject: secret\r\n\r\nof bo\r\n")
    dial(serving, "bo", select="INBOX").ok("LOGOUT")
    client = dial(serving, "ann")
    client.append(b"Subject: mine\r\n\r\nText\r\n")
    own, others = serving.maildir("ann"), serving.maildir("bo")
    before, around = contents(others), {path.name for path in own.parent.iterdir()}
    taken = 0
    for name in PATHS:
        raw = name.encode()
        made = client.say("CREATE", raw)[-1]
        taken += made.startswith(b"OK ")
        client.ok("CREATE Work")
        moved = client.say("RENAME Work", raw)
        for command in ("STATUS", "SELECT"):
            answer = b"\n".join(client.say(command, raw, *([" (MESSAGES)"] if command == "STATUS" else [])))
            assert b"secret" not in answer
            if made.startswith(b"OK ") and command == "SELECT":
                assert b" 0 EXISTS" in answer or b" 1 EXISTS" in answer
        client.say("UNSELECT")
        client.say("APPEND", raw, " ", b"Subject: x\r\n\r\nText\r\n")
        assert contents(others) == before, name
        assert {path.name for path in own.parent.iterdir()} == around, name
        folders = [path for path in own.iterdir() if path.is_dir() and path.name not in ("cur", "new", "tmp")]
        assert all(path.name.startswith(".") and path.name.isascii() for path in folders), name
        assert all(
            not path.is_symlink() and {"cur", "new", "tmp"} <= {p.name for p in path.iterdir()} for path in folders
        )
        for unwanted in (raw, b"Work"):
            client.say("DELETE", unwanted)
        assert contents(others) == before and (own / "cur").is_dir() and (own / "new").is_dir(), name
        assert moved[-1][:3] in (b"OK ", b"NO ", b"BAD"), name
    assert 5 < taken < len(PATHS), "some are names like any other, some are none"
    assert client.ok("STATUS INBOX (MESSAGES)") == [b"* STATUS INBOX (MESSAGES 1)"]
