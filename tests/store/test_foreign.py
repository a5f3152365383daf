"""The Maildir on disk is the truth: what other programs do to it, and that the index can always be made again."""

import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from mailsrv.errors import MessageGone
from mailsrv.store import base, files, metadata, names
from mailsrv.values import ANSWERED, DELETED, FLAGGED, SEEN, FlagOp

from .conftest import INBOX, account, add, everything, flags, number, on_disk, text, words


def drop(store, name, data, sub="new"):
    """As another program delivers: written to tmp/, renamed into place."""
    store.mailboxes()
    path = Path(store.maildir) / "tmp" / name
    path.write_bytes(data)
    path.rename(Path(store.maildir) / sub / name)


def forget_index(store):
    store.close()
    for suffix in ("", "-wal", "-shm"):
        Path(f"{store.home}/index.sqlite3{suffix}").unlink(missing_ok=True)


def test_b14_dropped_file_becomes_a_message(store):
    add(store)
    drop(store, "1700000000.M1P2.elsewhere", text("two"))
    snapshot = store.snapshot(INBOX)
    assert list(snapshot.uids) == [1, 2] and words(store) == {1: "one", 2: "two"}
    (path,) = on_disk(Path(store.maildir))[2]
    uidvalidity = store.mailbox("INBOX").uidvalidity
    assert path == f"new/1700000000.M1P2.elsewhere,S={len(text('two'))},U={uidvalidity}-2"
    assert list(store.snapshot(INBOX).uids) == [1, 2], "a second look finds nothing new"


def test_b14_dropped_files_come_in_order_of_arrival(store):
    for seconds in (1700000009, 1700000001, 1700000005):
        drop(store, f"{seconds}.P1.elsewhere", text(str(seconds)))
    assert words(store) == {1: "1700000001", 2: "1700000005", 3: "1700000009"}


def test_taking_in_many_files_looks_at_each_once_and_asks_the_index_seldom(store, monkeypatch):
    for count in range(300):
        drop(store, f"{1700000000 + count}.P1.elsewhere,S={len(text())},W={len(text())}", text())
    looked, asked, stat = [], [], os.stat
    monkeypatch.setattr(os, "stat", lambda path, **options: (looked.append(str(path)), stat(path, **options))[1])
    with store._reading() as index:
        index._db.set_trace_callback(asked.append)
    assert len(store.snapshot(INBOX).uids) == 300
    assert sum(".P1.elsewhere" in path for path in looked) == 300
    assert sum(statement.startswith("SELECT") for statement in asked) < 50


def test_r35_line_ends_of_both_kinds_are_sent_as_crlf(store):
    drop(store, "1700000000.P1.elsewhere", b"Subject: x\r\nTo: y\n\r\none\ntwo\r\n")
    store.snapshot(INBOX)
    assert store.read(INBOX, 1) == b"Subject: x\r\nTo: y\r\n\r\none\r\ntwo\r\n"


def test_r35_bare_line_feeds_are_sent_as_crlf_and_counted_so(store):
    stored = text("two").replace(b"\r\n", b"\n")
    drop(store, "1700000000.P1.elsewhere", stored)
    assert store.snapshot(INBOX).uids[0] == 1
    assert store.read(INBOX, 1) == text("two")
    assert store.rows(INBOX, [1])[0].size == len(text("two"))
    assert f",S={len(stored)},W={len(text('two'))},U=" in on_disk(Path(store.maildir))[1][0]
    forget_index(store)
    store.snapshot(INBOX)
    assert store.rows(INBOX, [1])[0].size == len(text("two")), "the name says both sizes"


@pytest.mark.parametrize("octets", [0, 1, 40, 100, 5000, 200_000])
def test_b07_a_file_that_was_written_to_is_read_whole(store, octets):
    """The index says how long it was, and the reader takes that for a guess."""
    add(store)
    (path,) = on_disk(Path(store.maildir))[1]
    data = (b"Subject: other\r\n\r\n" + b"x" * octets)[:octets]
    (Path(store.maildir) / path).write_bytes(data)
    assert store.read(INBOX, 1) == data


@pytest.mark.parametrize("name", ["1700000000.P1.h,S=7", "1700000000.P1.h,S=7,W=9", "1700000000.P1.h,W=5,S=9999999"])
def test_b07_a_size_in_a_name_is_not_believed(store, name):
    drop(store, name, text("two"))
    store.snapshot(INBOX)
    assert store.rows(INBOX, [1])[0].size == len(text("two"))


def test_b14_flags_renamed_by_another_program(store):
    add(store, keywords=["Work"])
    (path,) = on_disk(Path(store.maildir))[1]
    folder = Path(store.maildir)
    before = store.snapshot(INBOX).highest_modseq
    (folder / path).rename(folder / f"{path.partition(':')[0]}:2,FRSa")
    snapshot = store.snapshot(INBOX)
    assert flags(snapshot) == {1: (FLAGGED | ANSWERED | SEEN, ("Work",))}
    assert [change.uid for change in store.changes(INBOX, before).changed] == [1]


@pytest.mark.parametrize(
    ("op", "expected"),
    [(FlagOp.ADD, FLAGGED | ANSWERED | SEEN), (FlagOp.REMOVE, FLAGGED | ANSWERED), (FlagOp.REPLACE, SEEN)],
)
def test_b14_a_store_changes_what_the_name_says_by_now(store, op, expected):
    """Another program renamed the file and nobody has looked since: its flags stay, but for those that are changed."""
    add(store, flags=SEEN)
    add(store, flags=0 if op is FlagOp.ADD else SEEN, word="two")
    folder = Path(store.maildir)
    before = store.snapshot(INBOX)
    (path,) = on_disk(folder)[2]
    (folder / path).rename(folder / "cur" / f"{Path(path).name.partition(':')[0]}:2,FR{'S' * (op is not FlagOp.ADD)}")
    keywords = ("Work",) if op is FlagOp.REPLACE else ()  # without one nothing would be changed
    stored = store.store_flags(INBOX, [2], op, SEEN, keywords)
    assert stored.changed == [2]
    assert stored.previous[0] > stored.modseq, "what others changed is told even where our own change is not (R29)"
    snapshot = store.snapshot(INBOX)
    assert snapshot.flags[1] == expected and snapshot.highest_modseq > before.highest_modseq
    (path,) = on_disk(folder)[2]
    assert names.parse(Path(path).name).flags == expected
    assert store.status(INBOX).unseen == (not expected & SEEN)


@pytest.mark.parametrize("act", ["expunge", "copy", "move"])
@pytest.mark.parametrize("others", ["renames", "removes", "unmarks"])
def test_b14_another_program_is_quicker_than_an_operation(store, monkeypatch, act, others):
    """A file that goes or changes its name between being found and being acted on fails nothing else."""
    for word in ("one", "two", "three"):
        add(store, flags=DELETED, word=word)
    archive = number(store, "Archive")
    folder = Path(store.maildir)
    (path,) = on_disk(folder)[2]
    name = {"expunge": "unlink", "copy": "link", "move": "rename_noreplace"}[act]
    real = getattr(files, name)

    def late(source, *args, **more):
        if source == str(folder / path) and (folder / path).exists():
            if others == "removes":
                (folder / path).unlink()
            else:
                (folder / path).rename(
                    f"{str(folder / path).rpartition(':')[0]}:2,{'FT' if others == 'renames' else 'F'}"
                )
        return real(source, *args, **more)

    monkeypatch.setattr(files, name, late)
    if act == "expunge":
        assert store.expunge(INBOX) == ([1, 3] if others == "unmarks" else [1, 2, 3])
        left = {2: (FLAGGED, ())} if others == "unmarks" else {}
        assert flags(store.snapshot(INBOX)) == left and set(on_disk(folder)) == set(left)
        return
    transfer = store.copy if act == "copy" else store.move
    if others == "removes":
        with pytest.raises(MessageGone):
            transfer(INBOX, [1, 2, 3], archive)
        assert not list(store.snapshot(archive).uids) and list(store.snapshot(INBOX).uids) == [1, 3]
    else:
        assert transfer(INBOX, [1, 2, 3], archive).source_uids == [1, 2, 3]
        assert len(store.snapshot(archive).uids) == 3


def test_b14_letters_of_others_are_kept(store):
    add(store)
    folder = Path(store.maildir)
    (path,) = on_disk(folder)[1]
    (folder / path).rename(folder / "cur" / f"{os.path.basename(path)}:2,PS")
    store.snapshot(INBOX)
    store.store_flags(INBOX, [1], FlagOp.ADD, FLAGGED, [])
    assert on_disk(folder)[1][0].endswith(":2,FPS")


def test_b14_removed_files_are_expunged_and_their_uids_gone_for_good(store):
    for word in ("one", "two", "three"):
        add(store, word=word)
    before = store.snapshot(INBOX).highest_modseq
    folder = Path(store.maildir)
    for uid in (1, 3):
        (folder / on_disk(folder)[uid][0]).unlink()
    assert words(store) == {2: "two"}
    assert [uid for uid, _ in store.changes(INBOX, before).vanished] == [1, 3]
    assert add(store, word="four") == 4


@pytest.mark.parametrize("how", ["copied", "brought back"])
def test_r07_a_uid_is_never_given_to_a_second_message(store, how):
    """A file with a tag of ours that means another message, or one that is gone, is a new message."""
    for word in ("one", "two"):
        add(store, word=word)
    folder = Path(store.maildir)
    (path,) = on_disk(folder)[1]
    if how == "copied":
        shutil.copy(folder / path, folder / "cur" / (os.path.basename(path).replace("P", "PX", 1) + ":2,S"))
        assert words(store) == {1: "one", 2: "two", 3: "one"}
    else:
        saved = (folder / path).read_bytes()
        store.store_flags(INBOX, [1], FlagOp.ADD, DELETED, [])
        store.expunge(INBOX)
        (folder / path).write_bytes(saved)
        assert words(store) == {2: "two", 3: "one"}
    assert all(len(paths) == 1 for paths in on_disk(folder).values())


def test_r07_a_file_moved_in_from_another_mailbox_gets_a_uid_of_its_own(store):
    add(store)
    add(store, word="two")
    folder = Path(store.maildir)
    (path,) = on_disk(folder)[2]
    archive = number(store, "Archive")
    (folder / path).rename(folder / ".Archive" / path)
    assert words(store) == {1: "one"}
    assert words(store, archive) == {1: "two"}
    (there,) = on_disk(folder / ".Archive")[1]
    assert names.tag(names.parse(os.path.basename(there)).base) == (store.mailbox("Archive").uidvalidity, 1)


def test_b11_links_and_odd_files_are_left_alone(store, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("not mail")
    add(store)
    folder = Path(store.maildir)
    (folder / "new/1.P1.link").symlink_to(secret)
    (folder / "new/.hidden").write_text("x")
    (folder / "cur/directory").mkdir()
    assert words(store) == {1: "one"}
    assert (folder / "new/1.P1.link").is_symlink() and (folder / "new/.hidden").exists()


def test_b11_a_message_replaced_by_a_link_is_not_followed(store, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("not mail")
    add(store)
    folder = Path(store.maildir)
    (path,) = on_disk(folder)[1]
    (folder / path).unlink()
    (folder / path).symlink_to(secret)
    with pytest.raises(MessageGone):
        store.read(INBOX, 1)


# ------------------------------------------------------------------ opening by the direct path


def test_f10_direct_path_and_the_three_fallbacks_are_counted(store):
    for word in ("one", "two", "three", "four"):
        add(store, word=word)
    folder = Path(store.maildir)
    paths = {uid: found[0] for uid, found in on_disk(folder).items()}
    store.snapshot(INBOX)
    store.opens.clear()
    assert store.read(INBOX, 1) == text("one")
    assert dict(store.opens) == {"direct": 1}
    (folder / paths[2]).rename(folder / "cur" / (os.path.basename(paths[2]) + ":2,"))  # seen by another program
    assert store.read(INBOX, 2) == text("two")
    assert dict(store.opens) == {"direct": 1, "other_subdirectory": 1}
    (folder / paths[3]).rename(folder / "cur" / (os.path.basename(paths[3]) + ":2,FS"))
    assert store.read(INBOX, 3) == text("three")
    assert dict(store.opens) == {"direct": 1, "other_subdirectory": 1, "scan": 1}
    (folder / paths[4]).unlink()
    with pytest.raises(MessageGone):
        store.read(INBOX, 4)
    assert store.opens["missing"] == 1
    store.opens.clear()
    assert [body for _, body in store.read_many(INBOX, [1, 2, 3], 10**9)] == [text("one"), text("two"), text("three")]
    assert dict(store.opens) == {"direct": 3}, "a scan mends the index"


# ------------------------------------------------------------------ the index made again


def filled(store):
    for word in ("one", "two", "three"):
        add(store, word=word)
    store.store_flags(INBOX, [1], FlagOp.ADD, SEEN | ANSWERED, ["Work", "$Forwarded"])
    store.store_flags(INBOX, [2], FlagOp.ADD, DELETED, [])
    store.expunge(INBOX)
    store.create("Projekte/Gr\u00fcn")
    store.copy(INBOX, [1, 3], number(store, "Projekte/Gr\u00fcn"))
    store.rename("Projekte", "Plans")
    store.subscribe("Plans")
    return everything(store)


def test_f10_reindex_gives_the_same_account(store):
    before = filled(store)
    progress = []
    store.reindex(lambda name, done, total: progress.append((name, done, total)))
    assert everything(store) == before
    assert [name for name, _, _ in progress] == sorted(before) and progress[-1][1:] == (len(before) - 1, len(before))


def test_r07_uids_after_the_index_was_deleted_are_above_all_that_were_given(store):
    before = filled(store)
    add(store, word="last")
    store.store_flags(INBOX, [4], FlagOp.ADD, DELETED, [])
    store.expunge(INBOX)  # a UID that no file shows any more
    modseq = store.snapshot(INBOX).highest_modseq
    forget_index(store)
    assert everything(store) == before
    assert store.snapshot(INBOX).highest_modseq > modseq
    assert add(store) > 4


@pytest.mark.parametrize("damage", ["garbage", "empty", "other schema", "directory gone", "deleted while open"])
def test_f10_damaged_index(store, damage):
    before = filled(store)
    path = Path(store.home) / "index.sqlite3"
    if damage != "deleted while open":
        store.close()
    if damage == "garbage":
        path.write_bytes(b"not a database " * 1000)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "other schema":
        path.unlink()
        with sqlite3.connect(path) as other:
            other.execute("CREATE TABLE something (a)")
            other.execute("PRAGMA user_version=1")
        other.close()
        for _ in range(2):  # found when it is used: that one command is told to try again
            try:
                store.mailboxes()
            except Exception as failure:
                assert "rebuilt" in str(failure)
    elif damage == "directory gone":
        path.unlink()
    else:
        forget = [Path(f"{path}{suffix}") for suffix in ("", "-wal", "-shm")]
        for one in forget:
            one.unlink()
    assert everything(store) == before


def test_s25_pages_damaged_under_an_open_index(store, home):
    before = filled(store)
    store.close()
    path = home / "index.sqlite3"
    data = bytearray(path.read_bytes())
    data[8192:] = b"\xa5" * (len(data) - 8192)  # everything but the first page
    path.write_bytes(data)
    again = account(home)
    for _ in range(3):
        try:
            seen = everything(again)
            break
        except Exception as failure:
            assert "rebuilt" in str(failure), failure
    assert seen == before
    again.close()


def test_r07_another_start_of_the_system_compares_before_it_gives_uids(store, home, monkeypatch):
    """After a power cut the index may lack its last commits: files it does not know, UIDs it would give again."""
    add(store)
    store.close()
    saved = (home / "index.sqlite3").read_bytes()
    again = account(home)
    assert add(again, word="two") == 2
    again.close()
    (home / "index.sqlite3").write_bytes(saved)  # the commit was lost, the file was not
    (home / "lock").write_bytes(b"")
    monkeypatch.setattr(base, "BOOT", "another")
    monkeypatch.setattr("mailsrv.store.arrivals.BOOT", "another")
    after = account(home)
    assert add(after, word="three") > 2
    assert list(words(after).values()) == ["one", "two", "three"]
    assert all(len(paths) == 1 for paths in on_disk(home / "Maildir").values())
    after.close()


@pytest.mark.parametrize("damage", ["deleted", "broken"])
@pytest.mark.parametrize("file", [metadata.MAILBOX_FILE, metadata.ACCOUNT_FILE])
def test_f10_lost_metadata_is_made_again_from_the_index(store, damage, file):
    before = filled(store)
    path = Path(store.maildir) / file
    numbers = {number for number, *_ in before.values()}
    if damage == "deleted":
        path.unlink()
    else:
        path.write_text("{broken")
    store.reconcile(INBOX, full=True)
    assert everything(store) == before
    info = store.create("After")
    assert info.id.number not in numbers and info.uidvalidity > max(entry[1] for entry in before.values())
    forget_index(store)
    after = everything(store)
    del after["After"]
    assert after == before


def test_adopted_maildir(home):
    """A Maildir++ of another server: everything is there, under identities of our own, and nothing is lost."""
    for sub in ("cur", "new", "tmp", ".Work/cur", ".Work/new", ".Work/tmp", ".Work.2026/cur"):
        (home / "Maildir" / sub).mkdir(parents=True)
    (home / "Maildir/cur/1600000000.M1P1.old,S=3:2,FS").write_bytes(text("one"))
    (home / "Maildir/new/1600000001.M1P1.old").write_bytes(text("two"))
    (home / "Maildir/.Work/cur/1600000002.M1P1.old:2,T").write_bytes(text("three"))
    store = account(home)
    assert [info.name for info in store.mailboxes()] == ["INBOX", "Work", "Work/2026"]
    assert flags(store.snapshot(INBOX)) == {1: (FLAGGED | SEEN, ()), 2: (0, ())}
    assert words(store) == {1: "one", 2: "two"}
    assert flags(store.snapshot(number(store, "Work"))) == {1: (DELETED, ())}
    assert len({info.uidvalidity for info in store.mailboxes()}) == 3
    store.close()


def test_copied_folder_is_a_mailbox_of_its_own(store):
    add(store, number(store, "Archive"))
    shutil.copytree(Path(store.maildir) / ".Archive", Path(store.maildir) / ".Copy")
    infos = {info.name: info for info in store.mailboxes()}
    assert infos["Copy"].id != infos["Archive"].id and infos["Copy"].uidvalidity != infos["Archive"].uidvalidity
    assert words(store, infos["Copy"].id.number) == {1: "one"} == words(store, infos["Archive"].id.number)


def test_many_dropped_files_come_in_batches_and_other_work_goes_on(store, monkeypatch):
    monkeypatch.setattr("mailsrv.store.reconcile.BATCH", 10)
    for n in range(35):
        drop(store, f"{1700000000 + n}.P1.elsewhere", text(str(n)))
    assert list(words(store).values()) == [str(n) for n in range(35)]


def test_temporary_files_are_swept_after_a_day_and_a_half(store):
    old, young = Path(store.tmp_dir) / "old", Path(store.tmp_dir) / "young"
    for path in (old, young):
        store.mailboxes()
        path.write_bytes(b"x")
    now = base.time.time
    try:
        base.time.time = lambda: now() + 37 * 3600
        os.utime(young, (now() + 37 * 3600,) * 2)
        assert store.sweep() == 1
    finally:
        base.time.time = now
    assert young.exists() and not old.exists()


HALF = b"Subject: =?utf-7?q?half+2AA-?=\r\nFrom: =?utf-7?b?KzJBQS0=?= <bo@example.org>\r\n\r\nbody\r\n"


def test_b14_words_that_are_no_text_keep_nobody_from_the_mailbox(store):
    """UTF-7 can say half of a surrogate pair, which the index does not take (found by fuzzing)."""
    drop(store, "1700000000.M1P2.elsewhere", HALF)
    add(store, word="two")
    assert list(store.snapshot(INBOX).uids) == [1, 2] and store.read(INBOX, 1) == HALF


def test_b14_a_file_name_that_is_no_text_keeps_nobody_from_the_mailbox(store):
    store.mailboxes()
    (Path(store.maildir) / "new" / os.fsdecode(b"1700000000.M1P2.\xff\xfe")).write_bytes(text("one"))
    add(store, word="two")
    assert sorted(words(store).values()) == ["one", "two"]
    add(store, word="three")
    assert sorted(words(store).values()) == ["one", "three", "two"]
