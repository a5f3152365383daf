"""What a promise rests on: the order of syncs and renames, and that a process may end between any two of them."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from mailsrv.errors import TemporaryFailure
from mailsrv.store import files, metadata
from mailsrv.store.account import Arrival
from mailsrv.values import DELETED, FLAGGED, SEEN, FlagOp

from .conftest import INBOX, account, add, everything, flags, incoming, number, on_disk, text, words

OPERATIONS = ["append", "append with flags", "store", "expunge", "copy", "move", "create", "rename", "delete", "adopt"]


def filled(home: Path) -> None:
    """INBOX 1 to 4 (2 deleted, 3 flagged and of the keyword Work), one message in Archive, a folder with one inside."""
    store = account(home)
    for word in ("one", "two", "three", "four"):
        add(store, word=word)
    store.store_flags(INBOX, [2], FlagOp.ADD, DELETED, [])
    store.store_flags(INBOX, [3], FlagOp.ADD, FLAGGED, ["Work"])
    add(store, number(store, "Archive"), "kept")
    store.create("Projects/Old")
    add(store, number(store, "Projects/Old"), "old")
    store.close()


def operate(home: Path, operation: str) -> None:
    store = account(home)
    archive = number(store, "Archive")
    if operation == "append":
        add(store, word="five")
    elif operation == "append with flags":
        add(store, word="five", flags=SEEN, keywords=["Fresh"])
    elif operation == "store":
        store.store_flags(INBOX, [1, 3, 4], FlagOp.ADD, SEEN, ["New"])
    elif operation == "expunge":
        store.expunge(INBOX)
    elif operation == "copy":
        store.copy(INBOX, [1, 3], archive)
    elif operation == "move":
        store.move(INBOX, [1, 3], archive)
    elif operation == "create":
        store.create("A/B/C")
    elif operation == "rename":
        store.rename("Projects", "Plans")
    elif operation == "delete":
        store.delete("Projects/Old")
    elif operation == "adopt":
        (home / "Maildir/new/1700000000.M1P1.elsewhere").write_bytes(text("five"))
        store.snapshot(INBOX)
    store.close()


@pytest.mark.parametrize("operation", OPERATIONS)
def test_s25_b14_end_between_any_two_steps(tmp_path, dies_at_every_step, operation):
    """Whatever the step: nothing that was there is lost, no UID is given twice, disk and index agree at once."""
    filled(tmp_path / "model")
    store = account(tmp_path / "model")
    before = everything(store)
    store.close()
    operate_whole = tmp_path / "whole"
    shutil.copytree(tmp_path / "model", operate_whole, copy_function=shutil.copy2)
    operate(operate_whole, operation)
    store = account(operate_whole)
    after = everything(store)
    store.close()

    def prepare(n):
        home = tmp_path / f"at{n}"
        shutil.copytree(tmp_path / "model", home, copy_function=shutil.copy2)
        return home

    def check(home, done):
        store = account(home)
        seen = everything(store)
        if done:
            assert contents(seen) == contents(after)
        known = list(seen["INBOX"][4])
        for name, (_, uidvalidity, special_use, marks, found) in before.items():
            if name not in seen:
                assert operation in ("rename", "delete"), f"{name} is gone"
                continue
            assert seen[name][1:3] == (uidvalidity, special_use)
            for uid, word in found.items():
                if uid in seen[name][4]:
                    assert seen[name][4][uid] == word, "a UID means another message now"
                    allowed = {marks[uid], after[name][3].get(uid)} if name in after else {marks[uid]}
                    assert seen[name][3][uid] in allowed
        lost = sorted(all_words(before) - all_words(seen))
        assert lost in ([], {"expunge": ["two"], "delete": ["old"]}.get(operation)), f"lost {lost}"
        for folder in (path.parent for path in (home / "Maildir").glob("**/new")):
            assert all(len(paths) == 1 and uid for uid, paths in on_disk(folder).items())
        if operation == "create" and "A/B/C" not in seen:
            store.create("A/B/C")  # what is half made is no obstacle
        # The next message gets a UID of its own, above all that were ever seen.
        assert add(store, word="next") > max(known, default=0)
        disk = everything(store)
        store.close()
        for suffix in ("", "-wal", "-shm"):
            Path(f"{home}/index.sqlite3{suffix}").unlink(missing_ok=True)
        store = account(home)
        assert everything(store) == disk, "made anew, the index says something else"
        store.close()
        shutil.rmtree(home)

    assert dies_at_every_step(prepare, lambda home: operate(home, operation), check) >= 3


def contents(seen):
    """What clients see but for identities that come from the clock."""
    return {name: (number, use, marks, found) for name, (number, _, use, marks, found) in seen.items()}


def all_words(seen):
    return {word for _, _, _, _, found in seen.values() for word in found.values()}


def test_s25_order_of_a_delivery(store, steps):
    store.mailboxes()
    add(store)
    steps.clear()
    uid = add(store, word="two")
    assert [step for step, _ in steps] == ["create", "fsync", "rename", "commit", "fsync"]
    created, synced, renamed, _, directory = (path for _, path in steps)
    assert created == synced and created.startswith(store.tmp_dir)
    assert os.path.dirname(renamed) == directory == f"{store.maildir}/new"
    assert renamed.endswith(f"U={store.mailbox('INBOX').uidvalidity}-{uid}")


def test_s25_uids_are_reserved_durably_before_use(store, steps):
    """The first UID beyond the mark waits for a metadata file that is synced, and its directory too."""
    store.mailboxes()
    steps.clear()
    add(store)
    order = [(step, os.path.basename(path).partition(".")[0]) for step, path in steps]
    meta = order.index(("write", "mailsrv-mailbox"))
    rename = next(n for n, (step, path) in enumerate(steps) if step == "rename" and "/new/" in path)
    assert meta < rename and ("fsync", "Maildir") in order[meta:rename]


def test_s25_a_new_keyword_is_durable_before_a_name_uses_it(store, steps):
    add(store)
    steps.clear()
    store.store_flags(INBOX, [1], FlagOp.ADD, 0, ["Work"])
    names = [step for step, path in steps if step == "write" or path.endswith(":2,a")]
    assert names == ["write", "rename"]


def test_b15_flag_changes_and_expunges_are_synced(store, steps):
    add(store)
    for work in (
        lambda: store.store_flags(INBOX, [1], FlagOp.ADD, DELETED, []),
        lambda: store.expunge(INBOX),
    ):
        steps.clear()
        work()
        assert steps[-1][0] == "fsync" and steps[-1][1].startswith(store.maildir)


@pytest.mark.parametrize("at", ["create", "fsync", "rename", "commit"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_s26_failing_disk_leaves_nothing_behind(store, at, code):
    add(store)

    def fail(step, path):
        if step == at:
            raise OSError(code, os.strerror(code))

    message = incoming(store, text("two"))
    files.on_step(fail)
    try:
        with pytest.raises(TemporaryFailure):
            store.append(INBOX, Arrival(message))
    finally:
        files.on_step(None)
    assert words(store) == {1: "one"}
    assert sum(len(found) for found in on_disk(Path(store.maildir)).values()) == 1
    assert os.listdir(store.tmp_dir) == []
    assert add(store, word="three") >= 2
    assert sorted(words(store).values()) == ["one", "three"]


def test_s26_failing_sync_of_the_directory_is_no_success(store):
    """The row is committed by then: it goes again, and its UID is not used for another message."""
    add(store)

    def fail(step, path):
        if step == "fsync" and path.endswith("/new"):
            raise OSError(errno.EIO, "broken")

    files.on_step(fail)
    try:
        with pytest.raises(TemporaryFailure):
            add(store, word="two")
    finally:
        files.on_step(None)
    assert words(store) == {1: "one"}
    assert add(store, word="three") == 3


@pytest.mark.parametrize("moving", [False, True])
def test_b13_copies_are_whole_or_nothing(store, moving):
    for word in ("one", "two", "three"):
        add(store, word=word)
    archive = number(store, "Archive")
    placed = []

    def fail(step, path):
        if step in ("link", "rename") and "/.Archive/" in path:
            placed.append(path)
            if len(placed) == 3:
                raise OSError(errno.ENOSPC, "full")

    files.on_step(fail)
    try:
        with pytest.raises(TemporaryFailure):
            (store.move if moving else store.copy)(INBOX, [1, 2, 3], archive)
    finally:
        files.on_step(None)
    assert len(placed) == 3
    assert words(store) == {1: "one", 2: "two", 3: "three"}
    assert words(store, archive) == {} and on_disk(Path(store.maildir) / ".Archive") == {}


def test_b13_copies_that_cannot_be_synced_are_taken_back(store):
    """RFC 3501 6.4.7: who is told NO asks again, and must not have them twice."""
    add(store)
    archive = number(store, "Archive")

    def fail(step, path):
        if step == "fsync" and "/.Archive/" in path:
            raise OSError(errno.EIO, "broken")

    files.on_step(fail)
    try:
        with pytest.raises(TemporaryFailure):
            store.copy(INBOX, [1], archive)
    finally:
        files.on_step(None)
    assert words(store, archive) == {} and on_disk(Path(store.maildir) / ".Archive") == {}
    assert store.copy(INBOX, [1], archive).target_uids == [2]
    assert words(store, archive) == {2: "one"}


def refuse_metadata(step: str, path: str) -> None:
    if step == "write" and path.endswith(metadata.MAILBOX_FILE):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")


def test_s25_a_keyword_that_could_not_be_written_is_written_the_next_time(store):
    """The message is refused, the record is kept: it must not say that the keyword is on disk."""
    add(store)  # reserves the UIDs
    files.on_step(refuse_metadata)
    try:
        with pytest.raises(TemporaryFailure):
            add(store, word="two", keywords=["Fresh"])
    finally:
        files.on_step(None)
    uid = add(store, word="three", keywords=["Fresh"])
    assert metadata.read_mailbox(store.maildir).keywords == ("Fresh",)
    store.rebuild()
    assert flags(store.snapshot(INBOX))[uid] == (0, ("Fresh",))


def test_s25_a_reserve_of_uids_that_could_not_be_written_is_written_the_next_time(store):
    archive = number(store, "Archive")
    files.on_step(refuse_metadata)
    try:
        with pytest.raises(TemporaryFailure):
            add(store, archive)
    finally:
        files.on_step(None)
    uid = add(store, archive)
    assert metadata.read_mailbox(store.folder_of(archive)).uid_mark > uid


def test_s26_an_index_opened_while_descriptors_were_short_is_opened_again(home, tmp_path):
    """SQLite opens a file for reading only when it cannot be opened for writing, and would keep it so."""
    store = account(home)
    add(store)
    store.close()
    done = subprocess.run(
        [
            "strace", "-f", "-qq", "-o", str(tmp_path / "trace"), "-P", str(home / "index.sqlite3"),
            "-e", "trace=openat", "-e", "inject=openat:error=EMFILE:when=1", sys.executable, "-c",
            WRITER.format(root=str(Path(__file__).parents[2]), home=str(home), count=3).replace(
                "print(add(", "print(attempt("
            ), "w",
        ],
        input="\n", capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.split() == ["refused", "3", "4"], done.stdout  # UID 2 was taken for the one that was refused


def test_s26_a_mailbox_that_cannot_be_listed_is_a_temporary_failure(store, monkeypatch):
    add(store)
    monkeypatch.setattr("mailsrv.store.account._count_entries", Mock(side_effect=OSError(errno.EMFILE, "Too many")))
    with pytest.raises(TemporaryFailure):
        store.snapshot(INBOX)


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from mailsrv.errors import TemporaryFailure
from tests.store.conftest import account, add
def attempt(*args, **more):
    try:
        return add(*args, **more)
    except TemporaryFailure:
        return "refused"
store = account(Path({home!r}))
sys.stdin.readline()
for n in range({count}):
    print(add(store, word=f"{{sys.argv[1]}}-{{n}}"), flush=True)
"""


def test_f10_processes_deliver_at_once(home, tmp_path):
    """Four processes, one mailbox, begun together on an account that nobody has opened: every UID once."""
    root = str(Path(__file__).parent.parent.parent)
    code = WRITER.format(root=root, home=str(home), count=25)
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for n in range(4)
    ]
    given = []
    for writer in writers:
        writer.stdin.write("\n")
        writer.stdin.flush()
    for writer in writers:
        out, _ = writer.communicate(timeout=120)
        assert writer.returncode == 0
        assert out.split() == sorted(out.split(), key=int)
        given += map(int, out.split())
    assert sorted(given) == list(range(1, 101))
    store = account(home)
    assert sorted(words(store)) == sorted(given)
    assert len(set(words(store).values())) == 100
    store.close()


def test_b13_flags_set_by_several_processes_are_all_kept(home):
    store = account(home)
    add(store)
    children = []
    for keyword in ("a", "b", "c", "d", "e", "f"):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                other = account(home)
                for _ in range(5):
                    other.store_flags(INBOX, [1], FlagOp.ADD, 0, [keyword])
                    other.store_flags(INBOX, [1], FlagOp.REMOVE, 0, [keyword])
                other.store_flags(INBOX, [1], FlagOp.ADD, 0, [keyword])
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    for child in children:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert sorted(flags(store.snapshot(INBOX))[1][1]) == ["a", "b", "c", "d", "e", "f"]
    store.close()


def test_s25_b14_end_between_any_two_steps_of_several_arrivals(tmp_path, dies_at_every_step):
    """What was answered is there whole; what was not is there whole or not at all; no UID is given twice."""
    names = ("one", "two", "three")

    def work(home):
        store = account(home)
        outcomes = store.append_all(INBOX, [Arrival(incoming(store, text(name))) for name in names])
        (home / "answered").write_text(" ".join(str(one.uid) for one in outcomes))
        store.close()

    def check(home, finished):
        store = account(home)
        there = words(store)
        assert set(there.values()) <= set(names) and len(set(there.values())) == len(there)
        for uid in there:
            assert store.read(INBOX, uid) == text(there[uid])
        if finished:
            assert there == dict(zip((1, 2, 3), names, strict=True))
            assert (home / "answered").read_text() == "1 2 3"
        later = add(store, word="later")
        assert later not in there and words(store) == {**there, later: "later"}
        assert [uid for uid, found in on_disk(home / "Maildir").items() if len(found) > 1] == []
        store.close()

    def prepare(n):
        home = tmp_path / str(n)
        store = account(home)
        store.snapshot(INBOX)
        store.close()
        return home

    assert dies_at_every_step(prepare, work, check) >= 10
