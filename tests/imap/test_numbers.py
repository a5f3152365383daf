"""Sequence numbers and UIDs: which message a number means, who is told of an expunge and when, and what a set of
numbers may be.
"""

import re

import pytest


def fill(client, count, flags=""):
    """Messages with the subjects 1 to `count`; their UIDs."""
    return [client.append(f"Subject: {number}\r\n\r\nBody {number}\r\n", how=flags) for number in range(1, count + 1)]


def subject(lines):
    """number -> subject, of FETCH responses."""
    found = {}
    for line in lines:
        match = re.match(rb"\* (\d+) FETCH .*Subject: (\d+)\r\n", line, re.DOTALL)
        if match:
            found[int(match[1])] = int(match[2])
    return found


PEEK = "BODY.PEEK[HEADER.FIELDS (SUBJECT)]"


def two(dial, serving, count):
    first = dial(serving, "ann", select="INBOX")
    uids = fill(first, count)
    return first, dial(serving, "ann", select="INBOX"), uids


@pytest.mark.parametrize(
    "command",
    [
        "FETCH 1 FLAGS",
        "FETCH 3 BODY.PEEK[TEXT]",
        "STORE 3 +FLAGS (\\Flagged)",
        "STORE 1 +FLAGS.SILENT (k)",
        "SEARCH ALL",
    ],
)
def test_r01_no_expunge_while_numbers_are_in_use(serving, dial, command):
    first, second, uids = two(dial, serving, 3)
    second.ok(f"UID STORE {uids[1]} +FLAGS.SILENT (\\Deleted)")
    second.ok("EXPUNGE")
    assert not [line for line in first.ok(command) if b"EXPUNGE" in line]
    assert [line for line in first.ok("NOOP") if b"EXPUNGE" in line] == [b"* 2 EXPUNGE"]


@pytest.mark.parametrize("command", ["UID FETCH 1:* FLAGS", "UID STORE 1:* +FLAGS (\\Flagged)", "UID SEARCH ALL"])
def test_r01_uid_commands_may_carry_expunges(serving, dial, command):
    first, second, uids = two(dial, serving, 3)
    second.ok(f"UID STORE {uids[1]} +FLAGS.SILENT (\\Deleted)")
    second.ok("EXPUNGE")
    assert b"* 2 EXPUNGE" in first.ok(command)
    assert first.ok("NOOP") == []


def test_r01_pending_expunge_survives_many_commands_by_number(serving, dial):
    first, second, uids = two(dial, serving, 4)
    second.ok(f"UID STORE {uids[0]},{uids[2]} +FLAGS.SILENT (\\Deleted)")
    second.ok("EXPUNGE")
    for _ in range(3):
        assert subject(first.ok(f"FETCH 2,4 ({PEEK})")) == {2: 2, 4: 4}
    new = second.append("Subject: 5\r\n\r\n")
    assert b"* 5 EXISTS" in first.ok("SEARCH ALL")
    assert subject(first.ok(f"FETCH 4:5 ({PEEK})")) == {4: 4, 5: 5}
    assert first.ok("NOOP") == [b"* 1 EXPUNGE", b"* 2 EXPUNGE"]
    assert first.uids() == [uids[1], uids[3], new]


def test_r02_numbers_are_of_the_session_not_of_the_mailbox(serving, dial):
    first, second, uids = two(dial, serving, 5)
    second.ok("STORE 1:2 +FLAGS.SILENT (\\Deleted)")
    second.ok("EXPUNGE")
    assert subject(first.ok(f"FETCH 4 ({PEEK})")) == {4: 4}
    first.ok("STORE 3 +FLAGS.SILENT (\\Flagged)")
    assert {uid for uid, flags in second.flags().items() if b"\\Flagged" in flags} == {uids[2]}


def test_r03_expunge_numbers_count_those_before(serving, dial):
    first, second, uids = two(dial, serving, 6)
    first.ok("STORE 1,3,4,6 +FLAGS.SILENT (\\Deleted)")
    assert first.ok("EXPUNGE") == [b"* 1 EXPUNGE", b"* 2 EXPUNGE", b"* 2 EXPUNGE", b"* 3 EXPUNGE"]
    assert first.uids() == [uids[1], uids[4]]
    lines = [line for line in second.ok("NOOP") if b"EXPUNGE" in line]
    assert lines == [b"* 1 EXPUNGE", b"* 2 EXPUNGE", b"* 2 EXPUNGE", b"* 3 EXPUNGE"]


def test_r04_nothing_is_told_without_a_command(serving, dial):
    first, second, _ = two(dial, serving, 2)
    second.ok("STORE 1 +FLAGS (\\Deleted)")
    second.ok("EXPUNGE")
    second.append()
    assert first.quiet()
    assert first.ok("NOOP")[:2] == [b"* 1 EXPUNGE", b"* 2 EXISTS"]


def test_r04_idle_is_a_command(serving, dial):
    first, second, _ = two(dial, serving, 2)
    tag = first.idle()
    second.ok("STORE 1 +FLAGS.SILENT (\\Deleted)")
    second.ok("EXPUNGE")
    lines = [first.response()]
    while b"EXPUNGE" not in lines[-1]:
        lines.append(first.response())
    assert lines[-1] == b"* 1 EXPUNGE"
    assert first.done(tag) == [b"OK IDLE completed"]


def test_r05_exists_never_shrinks_and_comes_before_a_fetch_of_the_new(serving, dial):
    first, second, uids = two(dial, serving, 3)
    second.ok(f"UID STORE {uids[0]}:{uids[1]} +FLAGS.SILENT (\\Deleted)")
    second.ok("EXPUNGE")
    new = second.append("Subject: 4\r\n\r\n")
    second.ok(f"UID STORE {new} +FLAGS.SILENT (\\Flagged)")
    count = 3
    for line in first.ok("NOOP"):
        if line.endswith(b" EXPUNGE"):
            count -= 1
        elif line.endswith(b" EXISTS"):
            assert int(line.split()[1]) >= count
            count = int(line.split()[1])
        elif b" FETCH " in line:
            assert int(line.split()[1]) <= count
    assert count == 2
    assert first.uids() == [uids[2], new]


def test_r06_expunged_elsewhere_is_never_a_neighbour(serving, dial):
    first, second, uids = two(dial, serving, 4)
    second.ok("STORE 2 +FLAGS.SILENT (\\Deleted)")
    second.ok("EXPUNGE")
    *lines, done = first.say(f"FETCH 2 ({PEEK})")
    assert done.startswith(b"NO [EXPUNGEISSUED] ") or subject(lines) == {2: 2}
    assert subject(lines) in ({}, {2: 2})
    *lines, done = first.say("STORE 2 +FLAGS (\\Deleted)")
    assert done.startswith(b"NO [EXPUNGEISSUED] ")
    assert all(not flags & {b"\\Deleted"} for flags in second.flags().values())
    *lines, done = first.say("COPY 2 Trash")
    assert done.startswith(b"NO [EXPUNGEISSUED] ")
    assert sorted(second.flags()) == [uids[0], uids[2], uids[3]]
    third = dial(serving, "ann", select="Trash")
    assert third.flags() == {}


@pytest.mark.parametrize("items", ["FLAGS", "UID", "RFC822.SIZE", "ENVELOPE", PEEK, "BODY.PEEK[]", "BODY[TEXT]"])
def test_r06_the_rest_of_a_set_is_answered_with_its_own_numbers(serving, dial, items):
    first, second, uids = two(dial, serving, 4)
    second.ok("STORE 2 +FLAGS.SILENT (\\Deleted)")
    second.ok("EXPUNGE")
    *lines, done = first.say(f"FETCH 1:4 (UID {items})")
    found = {}
    for line in lines:
        match = re.match(rb"\* (\d+) FETCH \((?:FLAGS \([^)]*\) )?UID (\d+)", line)
        found[int(match[1])] = int(match[2])
    assert found == {1: uids[0], 3: uids[2], 4: uids[3]}
    assert done.startswith(b"NO [EXPUNGEISSUED] ")


def test_r07_uids_ascend_and_are_never_reused(serving, dial):
    first = dial(serving, "ann", select="INBOX")
    seen = fill(first, 3)
    for _ in range(3):
        first.ok("STORE * +FLAGS.SILENT (\\Deleted)")
        first.ok("EXPUNGE")
        uidnext = int(re.search(rb"UIDNEXT (\d+)", b"".join(first.ok("STATUS INBOX (UIDNEXT)")))[1])
        assert uidnext > seen[-1]
        seen.append(first.append())
        assert seen[-1] >= uidnext
    assert seen == sorted(set(seen))
    second = dial(serving, "ann", select="INBOX")
    assert second.uids() == first.uids()


def test_r08_a_new_mailbox_of_an_old_name_has_a_larger_uidvalidity(serving, dial):
    client = dial(serving, "ann")

    def validity(name):
        value = int(re.search(rb"UIDVALIDITY (\d+)", b"".join(client.ok(f"STATUS {name} (UIDVALIDITY)")))[1])
        assert 0 < value < 1 << 32
        return value

    client.ok("CREATE Work")
    seen = [validity("Work")]
    for _ in range(3):
        client.ok("DELETE Work")
        client.ok("CREATE Work")
        seen.append(validity("Work"))
    client.ok("CREATE Other")
    client.ok("DELETE Work")
    client.ok("RENAME Other Work")
    seen.append(validity("Work"))
    assert seen == sorted(set(seen))


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("UID FETCH 900:1000 FLAGS", b"OK "),
        ("UID STORE 900 +FLAGS (\\Seen)", b"OK "),
        ("UID COPY 900 Trash", b"OK "),
        ("UID MOVE 900 Trash", b"OK "),
        ("UID EXPUNGE 900", b"OK "),
        ("FETCH 4 FLAGS", b"BAD "),
        ("FETCH 1:4 FLAGS", b"BAD "),
        ("FETCH 4:* FLAGS", b"BAD "),
        ("STORE 4 +FLAGS (\\Seen)", b"BAD "),
        ("COPY 4 Trash", b"BAD "),
        ("MOVE 4 Trash", b"BAD "),
        ("SEARCH 4", b"BAD "),
        ("FETCH 0 FLAGS", b"BAD "),
        ("UID FETCH 0 FLAGS", b"BAD "),
        ("FETCH 4294967296 FLAGS", b"BAD "),
        ("FETCH 1,,2 FLAGS", b"BAD "),
        ("FETCH 1: FLAGS", b"BAD "),
    ],
)
def test_r09_unknown_uids_are_ignored_and_unknown_numbers_are_bad(serving, dial, command, answer):
    client = dial(serving, "ann", select="INBOX")
    fill(client, 3)
    client.ok("NOOP")
    assert [client.say(command)[-1][: len(answer)]] == [answer]
    assert len(client.say(command)) == 1
    assert set().union(*client.flags().values()) == set()


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ("*", [5]), ("5:*", [5]), ("*:4", [4, 5]), ("4:2", [2, 3, 4]), ("1:*", [1, 2, 3, 4, 5]),
        ("5,1,3", [1, 3, 5]), ("2:4,3:5", [2, 3, 4, 5]), ("*,1", [1, 5]), ("*:*", [5]),
    ],
)  # fmt: skip
def test_r10_sets_of_numbers(serving, dial, numbers, expected):
    client = dial(serving, "ann", select="INBOX")
    fill(client, 5)
    assert sorted(subject(client.ok(f"FETCH {numbers} ({PEEK})"))) == expected
    # UIDs of a fresh mailbox are 1 to 5 as well, and there n:* may begin past the end.
    assert sorted(subject(client.ok(f"UID FETCH {numbers} ({PEEK})"))) == expected


def test_r10_uid_range_past_the_end_is_the_last_message(serving, dial):
    client = dial(serving, "ann", select="INBOX")
    fill(client, 3)
    for numbers in ("900:*", "*:900", "*"):
        assert sorted(subject(client.ok(f"UID FETCH {numbers} ({PEEK})"))) == [3], numbers


@pytest.mark.parametrize(
    "command",
    ["UID FETCH 1:* FLAGS", "UID FETCH * FLAGS", "UID STORE 1:* +FLAGS (\\Seen)", "UID COPY 1:* Trash",
     "UID EXPUNGE 1:*", "EXPUNGE", "SEARCH ALL", "SEARCH UID 1:*", "UID SEARCH *:*"],
)  # fmt: skip
def test_r10_empty_mailbox(serving, dial, command):
    client = dial(serving, "ann", select="INBOX")
    *lines, done = client.say(command)
    assert done.startswith(b"OK ")
    assert lines == ([b"* SEARCH"] if "SEARCH" in command else [])


@pytest.mark.parametrize("command", ["FETCH 1 FLAGS", "FETCH 1:* FLAGS", "FETCH * FLAGS", "STORE * +FLAGS (\\Seen)"])
def test_r10_numbers_in_an_empty_mailbox_do_no_harm(serving, dial, command):
    client = dial(serving, "ann", select="INBOX")
    *lines, done = client.say(command)
    assert not lines
    assert done.startswith((b"OK ", b"BAD "))
    assert client.ok("NOOP") == []


def test_r11_uid_commands_answer_with_uids(serving, dial):
    first, second, uids = two(dial, serving, 2)
    for command in ("UID FETCH 1:* FLAGS", "UID STORE 1:* +FLAGS (\\Flagged)", "UID FETCH 1:* RFC822.SIZE"):
        lines = first.ok(command)
        assert [re.search(rb"UID (\d+)", line)[1] for line in lines] == [b"%d" % uid for uid in uids], lines
    second.ok("NOOP")
    second.ok("STORE 1 +FLAGS.SILENT (\\Answered)")
    (line,) = first.ok("NOOP")
    assert b"UID %d " % uids[0] in line
