"""What clients do to messages: APPEND, COPY, MOVE, EXPUNGE, STORE, and what others hear of it."""

import re

import pytest

DATE = '" 7-Feb-1994 21:52:25 -0800"'  # 1994-02-08 05:52:25 UTC
TEXT = b"Subject: x\r\n\r\nText\r\n"


def copyuid(lines):
    """([source UIDs], [target UIDs]) of a COPYUID code."""
    found = re.search(rb"\[COPYUID (\d+) ([0-9:,]+) ([0-9:,]+)\]", b"\n".join(lines))
    return tuple(numbers(part) for part in found.groups()[1:])


def numbers(text):
    out = []
    for part in text.split(b","):
        first, _, last = part.partition(b":")
        out += range(int(first), int(last or first) + 1)
    return out


# ------------------------------------------------------------------ APPEND


def test_r24_append_keeps_flags_and_date(serving, dial):
    client = dial(serving, "ann", select="INBOX")
    uid = client.append(TEXT, how=f"(\\Seen \\Draft $Label Work) {DATE}")
    (line,) = client.ok(f"UID FETCH {uid} (FLAGS INTERNALDATE BODY.PEEK[])")
    assert b'INTERNALDATE " 8-Feb-1994 05:52:25 +0000"' in line
    assert b"BODY[] {%d}\r\n%b" % (len(TEXT), TEXT) in line
    assert client.flags() == {uid: {b"\\Seen", b"\\Draft", b"$Label", b"Work"}}


def test_r24_append_to_a_missing_mailbox_asks_to_create_it(serving, dial):
    client = dial(serving, "ann")
    tag = client.begin("APPEND Nowhere {10}")
    assert client.finish(tag)[-1].startswith(b"NO [TRYCREATE] ")  # without a continuation: nothing was sent in vain
    assert b"Nowhere" not in b"".join(client.ok('LIST "" *'))
    done = client.say("APPEND Nowhere {10+}\r\n0123456789")[-1]
    assert done.startswith(b"NO [TRYCREATE] ")
    client.ok("NOOP")


def test_r24_exists_at_once_where_it_is_selected(serving, dial):
    client = dial(serving, "ann", select="INBOX")
    *lines, done = client.say("APPEND INBOX", TEXT)
    assert b"* 1 EXISTS" in lines
    assert re.match(rb"OK \[APPENDUID \d+ 1\] ", done)


def test_r24_half_an_append_leaves_nothing(serving, dial, files, eventually):
    client, other = dial(serving, "ann"), dial(serving, "ann", select="INBOX")
    client.begin("APPEND INBOX {1000}")
    assert client.response().startswith(b"+ ")
    client.send(b"Subject: half\r\n")
    client.close()
    eventually(lambda: not list((serving.maildir("ann") / "tmp").iterdir()))
    assert files(serving) == []
    assert other.ok("NOOP") == []


def test_r24_append_needs_its_end(serving, dial, files):
    client = dial(serving, "ann")
    assert client.say(b"APPEND INBOX {%d+}\r\n%b junk" % (len(TEXT), TEXT))[-1].startswith(b"BAD ")
    assert files(serving) == []
    client.append()


def test_r24_large_message_is_kept_octet_for_octet(serving, dial, files):
    client = dial(serving, "ann", select="INBOX")
    text = b"Subject: large\r\n\r\n" + b"".join(b"%08d %s\r\n" % (n, b"x" * 60) for n in range(40_000))
    uid = client.append(text)
    assert client.ok(f"UID FETCH {uid} (RFC822.SIZE)") == [b"* 1 FETCH (UID 1 RFC822.SIZE %d)" % len(text)]
    (line,) = client.ok(f"UID FETCH {uid} BODY.PEEK[]")
    assert line.endswith(b"{%d}\r\n%b)" % (len(text), text))
    (path,) = files(serving)
    assert path.read_bytes() == text


def test_r25_too_large_is_refused_before_it_is_sent(serve, dial):
    server = serve(**{"smtp.message_bytes": 1024 * 1024})
    client = dial(server, "ann")
    tag = client.begin("APPEND INBOX {1048577}")
    assert client.finish(tag)[-1].startswith(b"NO [TOOBIG] ")
    client.append(b"Subject: x\r\n\r\n" + b"x" * 1000)


def test_r25_too_large_without_asking_is_drained(serve, dial, files):
    server = serve(**{"smtp.message_bytes": 1024 * 1024})
    client = dial(server, "ann")
    tag = client.begin(b"APPEND INBOX {1048577+}\r\n" + b"x" * 1048577)
    assert client.finish(tag)[-1].startswith(b"NO [TOOBIG] ")
    client.ok("NOOP")
    assert files(server) == []


def test_r25_over_quota(serving, dial, files):
    serving.accounts.set_quota("ann@example.com", 100_000)
    client = dial(serving, "ann", select="INBOX")
    client.append(b"Subject: x\r\n\r\n" + b"x" * 60_000)
    tag = client.begin("APPEND INBOX {60000}")
    assert client.finish(tag)[-1].startswith(b"NO [OVERQUOTA] ")
    assert client.say("COPY 1 Trash")[-1].startswith(b"NO [OVERQUOTA] ")
    assert len(files(serving)) == 1 and files(serving, "ann", ".Trash") == []
    client.ok("MOVE 1 Trash")  # needs no room
    client.ok("NOOP")


# ------------------------------------------------------------------ COPY and MOVE


def test_r26_copy_keeps_flags_and_date(serving, dial):
    client = dial(serving, "ann", select="INBOX")
    client.append(b"Subject: 1\r\n\r\n", how=f"(\\Flagged Work) {DATE}")
    client.append(b"Subject: 2\r\n\r\n", how="(\\Seen)")
    client.append(b"Subject: 3\r\n\r\n")
    done = client.say("COPY 3,1:2 Trash")[-1]
    source, target = copyuid([done])
    client.ok("SELECT Trash")
    subjects = {}
    for line in client.ok("UID FETCH 1:* (BODY.PEEK[])"):
        subjects[int(re.search(rb"UID (\d+)", line)[1])] = int(re.search(rb"Subject: (\d)", line)[1])
    assert [subjects[uid] for uid in target] == source  # UIDs of the source are 1, 2, 3 as the subjects are
    by_source = dict(zip(source, target, strict=True))
    flags = client.flags()
    assert flags[by_source[1]] == {b"\\Flagged", b"Work"} and flags[by_source[2]] == {b"\\Seen"}
    assert b" 8-Feb-1994 05:52:25 +0000" in client.ok(f"UID FETCH {by_source[1]} INTERNALDATE")[0]


@pytest.mark.parametrize(
    "command", ["COPY 1:2 Nowhere", "UID COPY 1 Nowhere", "MOVE 1 Nowhere", "UID MOVE 1:* Nowhere"]
)
def test_r26_target_must_exist(serving, dial, command):
    client = dial(serving, "ann", select="INBOX")
    client.append()
    client.append()
    assert client.say(command)[-1].startswith(b"NO [TRYCREATE] ")
    assert sorted(client.flags()) == [1, 2]


@pytest.mark.parametrize("command", ["COPY", "MOVE"])
def test_r26_all_or_nothing_by_number(serving, dial, files, command):
    client, other = dial(serving, "ann", select="INBOX"), dial(serving, "ann", select="INBOX")
    for _ in range(3):
        client.append()
    client.ok("NOOP")
    other.ok("NOOP")
    other.ok("UID STORE 2 +FLAGS.SILENT (\\Deleted)")
    other.ok("EXPUNGE")
    *lines, done = client.say(f"{command} 1:3 Trash")
    assert done.startswith(b"NO [EXPUNGEISSUED] ")
    assert not [line for line in lines if b"COPYUID" in line]
    assert files(serving, "ann", ".Trash") == []
    assert len(files(serving)) == 2
    client.ok(f"UID {command} 1:3 Trash")
    assert len(files(serving, "ann", ".Trash")) == 2


def test_r26_no_part_of_a_copy_stays_when_a_file_is_missing(serving, dial, files):
    client = dial(serving, "ann", select="INBOX")
    for _ in range(3):
        client.append()
    files(serving)[1].unlink()  # by another program
    done = client.say("COPY 1:3 Trash")[-1]
    assert done.startswith(b"NO [EXPUNGEISSUED] ")
    assert files(serving, "ann", ".Trash") == []


def test_r27_move_tells_the_uids_before_the_expunges(serving, dial):
    client = dial(serving, "ann", select="INBOX")
    for _ in range(4):
        client.append()
    client.ok("NOOP")
    lines = client.ok("MOVE 2:3 Trash")
    assert [re.sub(rb"\d{3,}", b"V", line) for line in lines] == [b"* OK [COPYUID V 2:3 1:2] Moved", b"* 2 EXPUNGE",
                                                                b"* 2 EXPUNGE"]  # fmt: skip
    assert client.uids() == [1, 4]


def test_r27_moved_is_in_one_place_only(serving, dial, files):
    client = dial(serving, "ann", select="INBOX")
    client.append(TEXT, how=f"(\\Flagged Work) {DATE}")
    client.ok("UID MOVE 1 Archive")
    assert files(serving) == []
    (path,) = files(serving, "ann", ".Archive")
    assert path.read_bytes() == TEXT
    client.ok("SELECT Archive")
    assert client.flags() == {1: {b"\\Flagged", b"Work"}}
    assert b" 8-Feb-1994 05:52:25 +0000" in client.ok("FETCH 1 INTERNALDATE")[0]


def test_r27_move_within_a_mailbox(serving, dial):
    client = dial(serving, "ann", select="INBOX")
    client.append()
    client.append()
    client.ok("NOOP")
    lines = client.ok("MOVE 1 INBOX")
    assert client.uids() == [2, 3]
    assert b"* 1 EXPUNGE" in lines


def test_b13_flags_stored_at_the_same_time_are_all_kept(serving, dial):
    clients = [dial(serving, "ann", select="INBOX") for _ in range(4)]
    clients[0].append()
    for client in clients:
        client.ok("NOOP")
    tags = [client.begin(f"STORE 1 +FLAGS.SILENT (k{number})") for number, client in enumerate(clients)]
    for client, tag in zip(clients, tags, strict=True):
        assert client.finish(tag)[-1].startswith(b"OK ")
    assert clients[0].flags() == {1: {b"k0", b"k1", b"k2", b"k3"}}


# ------------------------------------------------------------------ EXPUNGE


def test_r28_b04_uid_expunge_is_of_its_set_and_of_the_deleted(serving, dial, files):
    client = dial(serving, "ann", select="INBOX")
    for number in range(5):
        client.append(how="(\\Deleted)" if number != 2 else "")
    client.ok("NOOP")
    assert client.ok("UID EXPUNGE 2:3") == [b"* 2 EXPUNGE"]
    assert client.uids() == [1, 3, 4, 5]
    assert client.ok("UID EXPUNGE 99,3") == []
    assert len(files(serving)) == 4


def test_b02_expunge_numbers_of_removed_messages_are_sent(serving, dial, files):
    client = dial(serving, "ann", select="INBOX")
    for number in range(4):
        client.append(how="(\\Deleted)" if number in (0, 3) else "")
    client.ok("NOOP")
    assert client.ok("EXPUNGE") == [b"* 1 EXPUNGE", b"* 3 EXPUNGE"]
    assert client.uids() == [2, 3]
    assert len(files(serving)) == 2
    # Numbers and UIDs differ now: neither may be taken for the other.
    client.ok("STORE 1 +FLAGS.SILENT (\\Deleted)")
    assert client.ok("EXPUNGE") == [b"* 1 EXPUNGE"]
    assert client.uids() == [3]


def test_b01_push_goes_on_after_an_expunge(serving, dial, mail):
    idler, client = dial(serving, "ann", select="INBOX"), dial(serving, "ann", select="INBOX")
    for _ in range(3):
        mail(serving)
    client.ok("NOOP")
    client.ok("STORE 1:* +FLAGS.SILENT (\\Deleted)")
    client.ok("EXPUNGE")
    idler.ok("NOOP")
    tag = idler.idle()
    mail(serving)
    assert idler.response() == b"* 1 EXISTS"
    idler.done(tag)
    assert client.append() == 5
    client.ok("COPY 1 INBOX")
    assert len(client.uids()) == 3


# ------------------------------------------------------------------ STORE


def test_r29_silent_is_for_oneself(serving, dial):
    first, second = dial(serving, "ann", select="INBOX"), dial(serving, "ann", select="INBOX")
    first.append()
    first.ok("NOOP")
    second.ok("NOOP")
    assert first.ok("STORE 1 +FLAGS.SILENT (\\Flagged)") == []
    assert first.ok("NOOP") == []
    assert second.ok("NOOP") == [b"* 1 FETCH (FLAGS (\\Flagged))"]


def test_r29_silence_does_not_hide_the_others(serving, dial):
    first, second = dial(serving, "ann", select="INBOX"), dial(serving, "ann", select="INBOX")
    first.append()
    first.append()
    for client in (first, second):
        client.ok("NOOP")
    second.ok("STORE 1 +FLAGS.SILENT (\\Answered)")
    second.ok("STORE 2 +FLAGS.SILENT (\\Answered)")
    lines = first.ok("STORE 1 +FLAGS.SILENT (\\Flagged)") + first.ok("NOOP")
    assert [line for line in lines if line.startswith(b"* 2 FETCH (FLAGS (\\Answered")]
    second.ok("STORE 1 -FLAGS.SILENT (\\Flagged)")
    assert [line for line in first.ok("NOOP") if line.startswith(b"* 1 FETCH") and b"\\Flagged" not in line]


def test_r29_silence_does_not_hide_what_others_changed_in_the_same_message(serving, dial):
    first, second = dial(serving, "ann", select="INBOX"), dial(serving, "ann", select="INBOX")
    first.append()
    for client in (first, second):
        client.ok("NOOP")
    second.ok("STORE 1 +FLAGS.SILENT (\\Answered)")
    lines = first.ok("STORE 1 +FLAGS.SILENT (\\Flagged)") + first.ok("NOOP")
    assert lines == [b"* 1 FETCH (FLAGS (\\Answered \\Flagged \\Recent))"]


def test_r29_replacing_leaves_recent_alone(serving, dial):
    client = dial(serving, "ann", select="INBOX")
    client.append()
    assert client.ok("STORE 1 FLAGS (\\Seen)") == [b"* 1 FETCH (FLAGS (\\Seen \\Recent))"]
    assert client.ok("STORE 1 FLAGS ()") == [b"* 1 FETCH (FLAGS (\\Recent))"]


@pytest.mark.parametrize(
    ("before", "change", "after"),
    [
        ("", "+FLAGS (\\Seen \\Flagged)", {b"\\Seen", b"\\Flagged"}),
        ("\\Seen \\Flagged", "-FLAGS (\\Seen)", {b"\\Flagged"}),
        ("\\Seen Work", "FLAGS (\\Deleted Play)", {b"\\Deleted", b"Play"}),
        ("\\Seen Work", "FLAGS ()", set()),
        ("Work", "-FLAGS (WORK)", set()),
        ("Work", "+FLAGS (work)", {b"Work"}),
        ("", "+FLAGS \\Seen \\Draft", {b"\\Seen", b"\\Draft"}),
        ("\\Seen", "+flags (\\sEEN \\answered)", {b"\\Seen", b"\\Answered"}),
        ("", "+FLAGS ($Forwarded NonJunk)", {b"$Forwarded", b"NonJunk"}),
        ("\\Seen", "-FLAGS (Never)", {b"\\Seen"}),
    ],
)
def test_r30_store(serving, dial, before, change, after):
    client = dial(serving, "ann", select="INBOX")
    client.append(how=f"({before})")
    client.ok("NOOP")
    assert [line for line in client.ok(f"STORE 1 {change}") if b"FETCH" in line]
    assert client.flags() == {1: after}
    other = dial(serving, "ann", select="INBOX")
    assert other.flags() == {1: after}


def test_r30_new_keyword_is_told_as_a_flag_of_the_mailbox(serving, dial):
    first, second = dial(serving, "ann", select="INBOX"), dial(serving, "ann", select="INBOX")
    first.append()
    second.ok("NOOP")
    told = b"* FLAGS (\\Seen \\Answered \\Flagged \\Deleted \\Draft Work)"
    assert told in first.ok("STORE 1 +FLAGS (Work)")
    lines = second.ok("NOOP")
    assert told in lines and lines.index(told) < lines.index(b"* 1 FETCH (FLAGS (Work))")
    assert told not in first.ok("STORE 1 +FLAGS (WORK \\Seen)")


def test_r30_a_new_keyword_is_told_before_a_fetch_has_it(serving, dial):
    one, other = (dial(serving, "ann", select="INBOX") for _ in range(2))
    one.append(TEXT)
    other.ok("NOOP")
    for number, items in enumerate(("FLAGS", "(FLAGS RFC822.SIZE)", "(FLAGS BODY.PEEK[TEXT])")):
        one.ok(f"STORE 1 FLAGS (new{number})")
        lines = other.ok(f"FETCH 1 {items}")
        assert lines[0].startswith(b"* FLAGS (") and b"new%d" % number in lines[0], lines
        assert b"new%d" % number in lines[1]
        assert not any(line.startswith(b"* FLAGS") for line in lines[1:])


def test_r30_no_star_when_no_keyword_can_be_made(serving, dial):
    client = dial(serving, "ann", select="INBOX")
    client.append()
    keywords = " ".join(f"k{number}" for number in range(26))
    client.ok(f"STORE 1 +FLAGS.SILENT ({keywords})")
    assert client.say("STORE 1 +FLAGS (onemore)")[-1].startswith(b"NO [LIMIT] ")
    client.ok("STORE 1 -FLAGS.SILENT (k3)")
    (permanent,) = [line for line in client.ok("SELECT INBOX") if b"PERMANENTFLAGS" in line]
    assert b"\\*" not in permanent and b"k25" in permanent


def test_flags_that_change_nothing_wake_nobody(serving, dial):
    idler, client = dial(serving, "ann", select="INBOX"), dial(serving, "ann", select="INBOX")
    client.append(how="(\\Seen)")
    tag = idler.idle()
    assert idler.response() == b"* 1 EXISTS"
    idler.quiet()
    idler.buffer = b""
    client.ok("STORE 1 +FLAGS (\\Seen)")
    assert idler.quiet()
    idler.done(tag)


def test_b12_a_slow_append_holds_up_nobody(serving, dial, mail):
    slow, other = dial(serving, "ann", select="INBOX"), dial(serving, "ann", select="INBOX")
    other.append()
    slow.ok("NOOP")
    tag = slow.begin("APPEND INBOX {1000}")
    assert slow.response().startswith(b"+ ")
    slow.send(b"x" * 500)
    mail(serving)
    mail(serving, "bo")
    other.ok("STORE 1 +FLAGS (\\Flagged)")
    assert other.append() == 3
    slow.send(b"y" * 500 + b"\r\n")
    assert b"[APPENDUID" in slow.finish(tag)[-1]


def test_b03_numbers_of_a_stale_session_hit_no_other_message(serving, dial):
    first, second = dial(serving, "ann", select="INBOX"), dial(serving, "ann", select="INBOX")
    for _ in range(4):
        first.append()
    for client in (first, second):
        client.ok("NOOP")
    first.ok("STORE 1 +FLAGS.SILENT (\\Deleted)")
    first.ok("EXPUNGE")
    second.ok("STORE 2 +FLAGS.SILENT (\\Deleted)")  # the second session still counts the first message
    assert first.flags()[2] == {b"\\Deleted"} and first.flags()[3] == set()
    assert second.ok("EXPUNGE") == [b"* 1 EXPUNGE", b"* 1 EXPUNGE"]
    assert second.uids() == [3, 4]


def test_store_answers_for_each_of_many_once_while_others_act(serving, dial, monkeypatch):
    client = dial(serving, "ann", select="INBOX")
    monkeypatch.setattr("mailsrv.imap.messages.LINES_PER_TURN", 2)
    for flags in ("", "\\Seen") * 4:
        client.append(how=f"({flags})")
    client.ok("NOOP")
    other = dial(serving, "ann", select="INBOX")
    other.ok("STORE 1:8 +FLAGS.SILENT (Work)")
    lines = client.ok("STORE 1:8 +FLAGS (\\Seen)")
    told = [line for line in lines if b" FETCH " in line]
    assert sorted(int(line.split()[1]) for line in told) == list(range(1, 9))
    assert all(b"\\Seen" in line and b"Work" in line for line in told)
    assert [line for line in lines if line.startswith(b"* FLAGS ")] and lines.index(told[0]) > 0
