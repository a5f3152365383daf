"""Messages of one account: appended, flagged, copied, moved, expunged, searched; counters, quota, modseqs, growth."""

import os
import sqlite3
from pathlib import Path

import gevent
import pytest

from mailsrv.errors import KeywordRefused, MailboxNotFound, MessageGone, ModSeqTooOld, OverQuota, TemporaryFailure
from mailsrv.store import sqlite
from mailsrv.store.account import AccountStore, Arrival, Incoming
from mailsrv.values import DELETED, DRAFT, FLAGGED, SEEN, AccountId, FlagOp, Prepared
from mailsrv.wire import mime

from .conftest import INBOX, account, add, flags, incoming, number, on_disk, text, words


def test_f10_appended_message_is_a_file_with_its_uid(store):
    appended = store.append(
        INBOX, Arrival(incoming(store, text()), b"Return-Path: <>\r\n", internal_date=1_000_000_000)
    )
    (path,) = on_disk(Path(store.maildir))[1]
    file = Path(store.maildir) / path
    assert path.startswith("new/") and ":" not in path
    assert file.read_bytes() == b"Return-Path: <>\r\n" + text() == store.read(INBOX, appended.uid)
    assert (int(file.stat().st_mtime), file.stat().st_mode & 0o777) == (1_000_000_000, 0o600)
    (row,) = store.rows(INBOX, [1])
    assert (row.path, row.size, row.internal_date) == (path, file.stat().st_size, 1_000_000_000)
    assert appended.durable_at < appended.committed_at


@pytest.mark.parametrize("what", ["changes", "snapshot"])
def test_r44_what_is_read_of_a_mailbox_is_of_one_commit(store, home, what):
    """Another worker adds and removes messages between any two statements. A message that was both there and gone, or
    there and not counted, is one that some clients are told of and others are not.
    """
    left = [add(store) for _ in range(20)]
    known = store.snapshot(INBOX).highest_modseq
    other = account(home)
    rounds = []

    def meanwhile(statement):
        if statement.startswith("SELECT") and left:
            rounds.append(statement)
            other.remove(INBOX, [left.pop(0)])
            other.remove(INBOX, [add(other)])
            add(other)

    with store._reading() as index:
        index._db.set_trace_callback(meanwhile)
    if what == "snapshot":
        found = store.snapshot(INBOX)
        assert max(found.modseqs) == found.highest_modseq
        assert found.uids[-1] + 1 == found.uidnext
    else:
        delta = store.changes(INBOX, known)
        appeared, gone = [one.uid for one in delta.changed], [uid for uid, _ in delta.vanished]
        assert not {*appeared} & {*gone}
        modseqs = [one.modseq for one in delta.changed] + [modseq for _, modseq in delta.vanished]
        assert max(modseqs, default=known) == delta.highest_modseq
    with store._reading() as index:
        index._db.set_trace_callback(None)
    other.close()
    assert len(rounds) > 1 and left


def test_b15_flags_in_a_name_are_sorted_and_in_cur(store):
    add(store, flags=SEEN | DRAFT | FLAGGED, keywords=["B", "A"])
    (path,) = on_disk(Path(store.maildir))[1]
    assert path.startswith("cur/") and path.endswith(":2,DFSab")
    store.store_flags(INBOX, [1], FlagOp.REPLACE, 0, [])
    assert on_disk(Path(store.maildir))[1][0].endswith(":2,"), "a seen message never goes back to new/"


def test_f06_large_message_goes_to_the_disk_while_it_comes(store):
    message = Incoming(store.tmp_dir, b"Received: x\r\n", memory_bytes=1000)
    store.mailboxes()
    body = b"".join(b"line %d\r\n" % n for n in range(5000))
    for start in range(0, len(body), 700):
        if message.write(body[start : start + 700]):
            message.spill()
    assert message.path is not None and message.text() is None
    uid = store.append(INBOX, Arrival(message, b"Received: x\r\n")).uid
    message.close()
    assert store.read(INBOX, uid) == b"Received: x\r\n" + body
    assert os.listdir(store.tmp_dir) == []


def test_f06_spilled_message_to_several_mailboxes(store):
    store.mailboxes()
    message = Incoming(store.tmp_dir, b"A: 1\r\n", memory_bytes=10)
    message.write(text())
    message.spill()
    other = store.append(number(store, "Archive"), Arrival(message, b"B: 2\r\n")).uid
    uid = store.append(INBOX, Arrival(message, b"A: 1\r\n")).uid
    assert store.read(INBOX, uid) == b"A: 1\r\n" + text()
    assert store.read(number(store, "Archive"), other) == b"B: 2\r\n" + text()


def test_r30_keywords_have_a_limit_and_one_spelling(store):
    add(store)
    store.store_flags(INBOX, [1], FlagOp.ADD, 0, ["Work", "work", "WORK"])
    assert flags(store.snapshot(INBOX))[1] == (0, ("Work",))
    store.store_flags(INBOX, [1], FlagOp.ADD, 0, [f"k{n}" for n in range(25)])
    with pytest.raises(KeywordRefused):
        store.store_flags(INBOX, [1], FlagOp.ADD, SEEN, ["one too many"])
    assert flags(store.snapshot(INBOX))[1][0] == 0, "refused as a whole"
    store.store_flags(INBOX, [1], FlagOp.REMOVE, 0, ["never seen", "k3"])
    assert len(flags(store.snapshot(INBOX))[1][1]) == 25


@pytest.mark.parametrize("sequence", [(FlagOp.ADD, SEEN), (FlagOp.REMOVE, SEEN), (FlagOp.REPLACE, FLAGGED)])
def test_b13_nothing_to_change_is_no_change(store, sequence):
    op, bits = sequence
    add(store)
    first = store.store_flags(INBOX, [1], op, bits, [])
    second = store.store_flags(INBOX, [1], op, bits, [])
    assert second.changed == [] and second.modseq == first.modseq


def test_b14_flags_of_a_file_another_program_took_away(store):
    add(store)
    add(store, word="two")
    folder = Path(store.maildir)
    (folder / on_disk(folder)[1][0]).unlink()
    result = store.store_flags(INBOX, [1, 2, 99], FlagOp.ADD, SEEN, [])
    assert result.changed == [2] and result.gone == [1, 99]


def test_r48_unchanged_since_refuses_what_changed_later(store):
    add(store)
    add(store, word="two")
    modseq = store.snapshot(INBOX).highest_modseq
    store.store_flags(INBOX, [1], FlagOp.ADD, SEEN, [])
    result = store.store_flags(INBOX, [1, 2], FlagOp.ADD, DELETED, [], modseq)
    assert result.modified == [1] and result.changed == [2]


def test_f10_copy_is_a_hard_link_and_move_a_rename(store):
    for word in ("one", "two"):
        add(store, word=word, flags=SEEN, keywords=["Work"])
    archive = number(store, "Archive")
    folder = Path(store.maildir)
    inodes = {uid: (folder / found[0]).stat().st_ino for uid, found in on_disk(folder).items()}
    copied = store.copy(INBOX, [1], archive)
    moved = store.move(INBOX, [2], archive)
    assert (copied.source_uids, copied.target_uids, moved.source_uids, moved.target_uids) == ([1], [1], [2], [2])
    there = {uid: folder / ".Archive" / found[0] for uid, found in on_disk(folder / ".Archive").items()}
    assert {uid: path.stat().st_ino for uid, path in there.items()} == inodes
    assert there[1].stat().st_nlink == 2 and there[2].stat().st_nlink == 1
    assert flags(store.snapshot(archive)) == {1: (SEEN, ("Work",)), 2: (SEEN, ("Work",))}
    assert words(store) == {1: "one"}


def test_r26_whole_copies_refuse_what_is_gone(store):
    add(store)
    archive = number(store, "Archive")
    with pytest.raises(MessageGone):
        store.copy(INBOX, [1, 2], archive, whole=True)
    assert words(store, archive) == {}
    assert store.copy(INBOX, [1, 2], archive).source_uids == [1]


def test_b04_expunge_is_of_the_marked_among_the_named(store):
    for word in ("one", "two", "three", "four"):
        add(store, word=word)
    store.store_flags(INBOX, [1, 2, 4], FlagOp.ADD, DELETED, [])
    assert store.expunge(INBOX, [2, 3, 77]) == [2]
    assert store.expunge(INBOX) == [1, 4]
    assert store.expunge(INBOX) == []
    assert words(store) == {3: "three"}


def test_b17_usage_is_what_is_there(store):
    size = len(text())
    for _ in range(3):
        add(store)
    assert store.usage() == 3 * size
    store.copy(INBOX, [1], number(store, "Archive"))
    assert store.usage() == 4 * size
    store.store_flags(INBOX, [1], FlagOp.ADD, DELETED, [])
    store.expunge(INBOX)
    assert store.usage() == 3 * size
    store.move(INBOX, [2], number(store, "Archive"))
    assert store.usage() == 3 * size
    store.delete("Archive")
    assert store.usage() == size


def test_r25_quota_refuses_before_anything_is_placed(store):
    size = len(text())
    add(store, quota_bytes=size)
    with pytest.raises(OverQuota):
        add(store, quota_bytes=2 * size - 1)
    with pytest.raises(OverQuota):
        store.copy(INBOX, [1], number(store, "Archive"), quota_bytes=2 * size - 1)
    assert words(store) == {1: "one"} and os.listdir(store.tmp_dir) == []
    assert add(store, quota_bytes=2 * size) == 2


def test_f10_counters_agree_with_the_rows(store):
    for n in range(6):
        add(store, flags=SEEN if n % 2 else 0)
    store.store_flags(INBOX, [1, 2, 3], FlagOp.ADD, DELETED, [])
    store.store_flags(INBOX, [3, 4], FlagOp.REMOVE, SEEN | DELETED, [])
    store.expunge(INBOX, [1])
    status = store.status(INBOX)
    seen = flags(store.snapshot(INBOX))
    assert status.messages == len(seen) == 5
    assert status.unseen == sum(not bits & SEEN for bits, _ in seen.values())
    assert status.deleted == sum(bool(bits & DELETED) for bits, _ in seen.values())
    assert (status.uidnext, status.size) == (7, 5 * len(text()))


def test_r12_recent_is_claimed_once(store, home):
    add(store)
    add(store)
    other = account(home)
    assert store.status(INBOX).recent == 2
    assert store.claim_recent(INBOX) == (1, 3)
    assert other.claim_recent(INBOX) == (3, 3)
    add(other)
    assert other.claim_recent(INBOX) == (3, 4) and store.claim_recent(INBOX) == (4, 4)
    other.close()


def test_r48_r49_journal_tells_all_that_was_committed_since(store):
    for word in ("one", "two", "three"):
        add(store, word=word)
    modseq = store.snapshot(INBOX).highest_modseq
    store.store_flags(INBOX, [1, 3], FlagOp.ADD, DELETED, [])
    store.expunge(INBOX, [3])
    add(store, word="four")
    delta = store.changes(INBOX, modseq)
    assert [(change.uid, change.flags) for change in delta.changed] == [(1, DELETED), (4, 0)]
    assert [uid for uid, _ in delta.vanished] == [3]
    assert delta.uidnext == 5 and delta.highest_modseq == store.snapshot(INBOX).highest_modseq
    assert store.changes(INBOX, delta.highest_modseq).changed == []


def test_r48_r49_journal_forgets_old_expunges_and_says_so(store, monkeypatch):
    monkeypatch.setattr(sqlite, "KEEP_EXPUNGED", 3)
    for _ in range(8):
        add(store)
    start = store.snapshot(INBOX).highest_modseq
    for uid in range(1, 8):
        store.store_flags(INBOX, [uid], FlagOp.ADD, DELETED, [])
        store.expunge(INBOX)
    with pytest.raises(ModSeqTooOld):
        store.changes(INBOX, start)
    recent = store.snapshot(INBOX).highest_modseq
    store.store_flags(INBOX, [8], FlagOp.ADD, DELETED, [])
    store.expunge(INBOX)
    assert [uid for uid, _ in store.changes(INBOX, recent).vanished] == [8]


@pytest.mark.parametrize("seconds", [1.9e9, 1.7e9, 0.0], ids=["as it is", "set back", "at its beginning"])
def test_r48_modseq_grows_with_every_commit_whatever_the_clock_says(home, seconds):
    """Strictly, in the order of commits, over two processes; an expunge counts like every change (RFC 7162 3.1)."""
    clock = [1.8e9]
    one, two = (account(home, clock=lambda: clock[0]) for _ in range(2))
    seen = []

    for number_, store in enumerate((one, two, one, two)):
        add(store, word=str(number_))
        clock[0] = seconds
        seen.append(store.snapshot(INBOX).highest_modseq)
    for uid, store in ((1, two), (2, one)):
        seen.append(store.store_flags(INBOX, [uid], FlagOp.ADD, DELETED, []).modseq)
        store.expunge(INBOX, [uid])
        seen.append(one.snapshot(INBOX).highest_modseq)
        assert seen[-1] == two.snapshot(INBOX).highest_modseq
    assert seen == sorted(set(seen)) and seen[0] > 0 and seen[-1] < 1 << 63
    told = one.changes(INBOX, seen[3])
    assert [uid for uid, _ in told.vanished] == [1, 2] and told.highest_modseq == seen[-1]
    assert [modseq for _, modseq in told.vanished] == [seen[5], seen[7]]
    modseqs = list(one.snapshot(INBOX).modseqs)
    assert modseqs == [seen[2], seen[3]]
    one.close()
    two.close()


def test_withdrawn_message_is_gone_with_its_file(store):
    appended = store.append(INBOX, Arrival(incoming(store, text())))
    store.withdraw(appended)
    assert words(store) == {} and on_disk(Path(store.maildir)) == {}
    assert add(store) == 2


def test_prepared_columns_are_made_once_and_asked_by_name(store):
    add(store)
    big = b"Subject: big\r\nMessage-ID: <big@example.org>\r\n\r\n" + b"x" * 300_000
    store.append(INBOX, Arrival(incoming(store, big)))
    rows = store.prepared(INBOX, [1, 2, 3], ("message_id", "subject"))
    assert rows == [
        (1, len(text()), rows[0][2], "<one@example.org>", "one"),
        (2, len(big), rows[1][2], "<big@example.org>", "big"),
    ]
    assert len(store.prepared(INBOX, [1])[0]) == 3 + len(Prepared._fields)
    assert store.find_message_id(INBOX, "<big@example.org>") == 2
    assert store.search_text(INBOX, [1, 2], "subject", "bi") == [2]


def test_many_messages_are_copied_and_removed_without_a_look_at_each(store, monkeypatch):
    for count in range(40):
        add(store, word=str(count))
    uids = list(store.snapshot(INBOX).uids)
    store.store_flags(INBOX, uids, FlagOp.ADD, DELETED, ())
    looked, lstat, stat = [], os.lstat, os.stat
    monkeypatch.setattr(os, "lstat", lambda path, **options: (looked.append(path), lstat(path, **options))[1])
    monkeypatch.setattr(os, "stat", lambda path, **options: (looked.append(path), stat(path, **options))[1])
    assert len(store.copy(INBOX, uids, number(store, "Archive")).target_uids) == 40
    assert store.expunge(INBOX) == uids
    assert len(looked) < 40
    assert len(words(store, number(store, "Archive"))) == 40


def test_structures_are_made_when_they_are_asked_for(tmp_path):
    made = []

    def prepare(raw, *, structure=True):
        made.append(structure)
        return mime.prepare(raw, structure=structure)

    store = AccountStore(AccountId(7), str(tmp_path / "ann"), prepare=prepare, host="mx.example.com")
    for _ in range(3):
        store.append(INBOX, Arrival(incoming(store, b"Subject: big\r\n\r\n" + b"x" * 300_000)))
    assert made == [], "large messages are prepared when they are first asked for"
    envelopes = store.prepared(INBOX, [1, 2, 3], ("envelope",))
    assert made == [False] * 3
    assert [row[0] for row in store.prepared(INBOX, [2], ("bodystructure",), alone=True)] == [2]
    rows = store.prepared(INBOX, [1, 2, 3], ("fields", "bodystructure"), alone=True)
    assert made == [False] * 3 + [True] * 3
    assert {row[4][:16] for row in rows} == {b'("TEXT" "PLAIN" '}
    assert store.prepared(INBOX, [1, 2, 3], ("envelope",)) == envelopes
    assert store.prepared(INBOX, [1, 2, 3], ("bodystructure", "fields")) == [(*row[:3], row[4], row[3]) for row in rows]
    assert len(made) == 6
    store.close()


def test_no_such_mailbox(store):
    for work in (
        lambda: store.snapshot(99),
        lambda: add(store, 99),
        lambda: store.status(99),
        lambda: store.expunge(99),
    ):
        with pytest.raises(MailboxNotFound):
            work()
    assert os.listdir(store.tmp_dir) == []


def test_index_that_another_program_holds_is_waited_for(store, home):
    add(store)
    other = sqlite3.connect(home / "index.sqlite3", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert words(store) == {1: "one"}, "readers do not wait"
    other.execute("COMMIT")
    other.close()
    assert add(store) == 2


@pytest.mark.parametrize("operation", ["append", "read", "store", "copy"])
def test_growth_a_step_costs_the_same_in_a_mailbox_ten_times_as_large(home, steps, operation):
    """Counted in steps on the disk and in directory listings, not in time."""

    def cost(store, uid):
        store.snapshot(INBOX)
        listings = []
        real = os.listdir
        steps.clear()
        store.opens.clear()
        os.listdir = lambda path: listings.append(path) or real(path)
        try:
            if operation == "append":
                add(store)
            elif operation == "read":
                store.read(INBOX, uid)
            elif operation == "store":
                store.store_flags(INBOX, [uid], FlagOp.ADD, SEEN, [])
            else:
                store.copy(INBOX, [uid], number(store, "Archive"))
        finally:
            os.listdir = real
        return [step for step, _ in steps], len(listings), dict(store.opens)

    store = account(home)
    for _ in range(20):
        add(store)
    store.copy(INBOX, [1], number(store, "Archive"))  # the UIDs there are reserved
    small = cost(store, 10)
    for _ in range(180):
        add(store)
    assert cost(store, 150) == small
    store.close()


def test_no_descriptor_stays_open(store):
    """Not even with an event loop in this thread, whose cooperative `close` may be late."""
    gevent.get_hub()
    add(store)
    store.snapshot(INBOX)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        add(store)
        store.store_flags(INBOX, [1], FlagOp.ADD, SEEN, [])
        store.store_flags(INBOX, [1], FlagOp.REMOVE, SEEN, [])
        store.read(INBOX, 1)
        store.create("A")
        store.delete("A")
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_large_message_that_is_placed_as_it_was_received_has_its_own_envelope(store):
    add(store, word="first")  # makes the directories
    message = Incoming(store.tmp_dir, b"Received: x\r\n", memory_bytes=10)
    assert message.write(text())
    message.spill()
    uid = store.append(INBOX, Arrival(message, b"Received: x\r\n")).uid
    assert store.read(INBOX, uid) == b"Received: x\r\n" + text()
    assert b"Hello" not in store.prepared(INBOX, [uid], ("envelope",))[0][3]
    assert b'"one"' in store.prepared(INBOX, [uid], ("envelope",))[0][3]  # its Subject


def test_s25_what_was_taken_back_meanwhile_does_not_become_an_empty_message(store):
    message = incoming(store, text())
    message.close()
    outcomes = store.append_all(INBOX, [Arrival(message, b""), Arrival(incoming(store, text("two")), b"")])
    assert isinstance(outcomes[0], TemporaryFailure)
    assert list(words(store).values()) == ["two"]
