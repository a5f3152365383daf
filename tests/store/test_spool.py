"""The queue on disk: an entry is there whole or not at all, whatever happens and wherever the work ends."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mailsrv.errors import TemporaryFailure
from mailsrv.store import files
from mailsrv.store import spares as spares_module
from mailsrv.store import spool as spool_module
from mailsrv.store.entry import FAILED, SENT, Entry, EntryDamaged, Origin, Recipient, Stamp
from mailsrv.store.files import Incoming
from mailsrv.store.spares import Spares
from mailsrv.store.spool import (
    PARTS,
    EntryBusy,
    EntryGone,
    Ownership,
    QueueLocked,
    Spool,
    is_id,
    new_id,
    part_of,
    time_of,
)  # fmt: skip
from mailsrv.values import Address, Disposition, Envelope, Outcome, RecipientOptions

TEXT = b"From: ann@example.com\r\nSubject: Out\r\n\r\nOut it goes\r\n"
BO, CY = Address("bo", "example.org"), Address("cy", "example.net")


def entry(*addresses: Address, **more) -> Entry:
    recipients = [Recipient(address) for address in addresses or (BO,)]
    return Entry(new_id(), Envelope(Address("ann", "example.com")), recipients, **more)


def incoming(spool: Spool, text: bytes = TEXT, **more) -> Incoming:
    message = Incoming(spool.tmp_dir, **more)
    if message.write(text):
        message.spill()
    return message


def put(spool: Spool, one: Entry | None = None, text: bytes = TEXT) -> str:
    one = one or entry()
    spool.put(one, incoming(spool, text))
    return one.id


def fail(recipient: Address = BO, disposition=Disposition.LATER, code=451) -> Outcome:
    return Outcome(recipient, disposition, code, "4.2.0", "Not now", "mx.example.org[192.0.2.1]:25")


def tree(spool: Spool) -> list[str]:
    """Every file of the queue, but its lock and what is spare."""
    root = Path(spool.root)
    found = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return sorted(str(path) for path in found if path.name != "lock" and path.parts[0] != "spare")


def spare(spool: Spool) -> list[Path]:
    return sorted(Path(spool.spares.directory).glob("*"))


@pytest.fixture(autouse=True)
def looks_at_once(monkeypatch) -> None:
    """What became spare a moment ago is found."""
    monkeypatch.setattr(spares_module, "LOOK_SECONDS", 0.0)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    made = Spool(str(tmp_path / "queue"))
    made.prepare()
    return made


def test_an_entry_is_two_plain_files(spool):
    options = RecipientOptions(frozenset({"FAILURE", "DELAY"}), "rfc822;Bo@Example.org")
    one = entry(origin=Origin(7, "smtp-1", "submission"), not_before=time.time() + 100)
    one.recipients.append(Recipient(CY, options, via=Address("sales", "example.com")))
    spool.put(one, incoming(spool), b"Received: from x\r\n")
    part = f"{one.id[7:9]}/{one.id}"
    assert tree(spool) == [f"{part}.eml", f"{part}.json"]
    assert Path(spool.message_path(one.id)).read_bytes() == b"Received: from x\r\n" + TEXT
    value = json.loads(Path(spool.envelope_path(one.id)).read_text())
    assert value["envelope"]["sender"] == "ann@example.com"
    assert value["recipients"][1]["address"] == "cy@example.net"
    assert value["recipients"][1]["notify"] == ["DELAY", "FAILURE"]
    assert oct(os.stat(spool.envelope_path(one.id)).st_mode)[-3:] == "600"
    again = spool.load(one.id)
    assert again.recipients == one.recipients and again.envelope == one.envelope and again.origin == one.origin
    assert again.size == len(TEXT) + 18 and abs(again.not_before - one.not_before) < 0.01
    spool.check(again, thoroughly=True)


def test_an_envelope_has_a_line_for_each_field_and_recipient(spool):
    one = entry(BO, CY)
    one.recipients[1].note(fail(CY), time.time())
    id = put(spool, one)
    lines = Path(spool.envelope_path(id)).read_text().splitlines()
    assert lines[2] == f' "id": "{id}",'
    assert ['"bo@example.org"' in line for line in lines].count(True) == 1
    assert lines[-4].startswith('  {"address": "bo@example.org",') and lines[-3].startswith('  {"address": "cy@')
    assert spool.load(id) == spool.load_at_hand(id)


def test_a_large_envelope_is_not_read_at_hand(spool):
    one = entry(*(Address(f"u{number}", "example.org") for number in range(100)))
    assert spool.load_at_hand(put(spool, one)) is None
    with pytest.raises(EntryGone):
        spool.load_at_hand(new_id())


def test_names_sort_by_time():
    names = [new_id() for _ in range(200)]
    assert all(is_id(name) for name in names) and len(set(names)) == 200
    assert [name[:14] for name in sorted(names)] == [name[:14] for name in names]
    assert abs(time_of(names[0]) - time.time()) < 5
    assert not is_id("../../etc/passwd00") and not is_id(names[0] + "0")


def test_the_order_of_a_creation(spool, steps):
    one = entry()
    os.mkdir(os.path.dirname(spool.message_path(one.id)))
    steps.clear()
    spool.put(one, incoming(spool))
    message, envelope = spool.message_path(one.id), spool.envelope_path(one.id)
    assert [step for step, _ in steps] == ["create", "create", "fsync", "fsync", "rename", "rename", "fsync"]
    assert [path for _, path in steps][4:] == [message, envelope, os.path.dirname(message)]
    steps.clear()
    spool.change(one.id, lambda entry: True)
    assert [step for step, _ in steps] == ["create", "fsync", "rename", "fsync"]
    steps.clear()
    spool.change(one.id, lambda entry: False)
    assert [step for step, _ in steps] == ["rename", "unlink", "fsync", "truncate", "rename"]
    assert [path for _, path in steps][1:3] == [message, os.path.dirname(message)]
    assert not os.path.exists(envelope) and tree(spool) == []
    steps.clear()
    spool.put(one, incoming(spool))  # of the file that is left
    assert [step for step, _ in steps] == ["create", "rename", "fsync", "fsync", "rename", "rename", "fsync"]
    spool.remove(one.id)
    assert tree(spool) == [] == spare(spool)


def several(spool: Spool, count: int, part: str = "ab") -> list[Entry]:
    """Entries that are not there yet, all of one part."""
    os.makedirs(f"{spool.root}/{part}", exist_ok=True)
    made = [entry() for _ in range(count)]
    for one in made:
        one.id = one.id[:7] + part + one.id[9:]
    return made


def test_what_is_accepted_in_one_second_shares_a_directory():
    """Whose sync is then one for all; over five minutes all directories have their share."""
    second, slot = 1_764_000_000_000_000 >> 20 << 20, 1 << 20
    assert len({part_of(f"{second + number * 1000:014x}abcd") for number in range(1000)}) == 1
    assert {part_of(f"{second + number * slot:014x}abcd") for number in range(256)} == PARTS


def test_several_are_synced_before_their_directory_and_that_once(spool, steps):
    made = [*several(spool, 2), *several(spool, 1, "cd")]
    steps.clear()
    assert spool.put_all([(one, incoming(spool), b"") for one in made]) == [None] * 3
    names = [step for step, _ in steps]
    assert names == ["create"] * 6 + ["fsync"] * 6 + ["rename"] * 4 + ["fsync"] + ["rename"] * 2 + ["fsync"]
    assert len(whole(spool)) == 3
    steps.clear()
    spool.change_all([(one.id, lambda entry: False) for one in made])
    kept = ["truncate", "rename"]
    assert [step for step, _ in steps] == ["rename", "unlink"] * 3 + ["fsync", *kept, *kept] + ["fsync", *kept]
    assert tree(spool) == []


def test_of_several_each_has_an_outcome_of_its_own(spool):
    made = several(spool, 3)
    os.makedirs(f"{spool.tmp_dir}/{made[1].id}.eml")  # in the way of the second
    outcomes = spool.put_all([(one, incoming(spool), b"") for one in made])
    assert [type(outcome) for outcome in outcomes] == [type(None), TemporaryFailure, type(None)]
    assert [one.id for one in whole(spool)] == sorted(one.id for one in (made[0], made[2]))

    def result(one):
        one.recipients[0].state = FAILED
        return True

    Path(spool.envelope_path(made[2].id)).write_text("{")
    with open(spool.message_path(made[0].id), "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        busy, gone, damaged = spool.change_all([(one.id, result) for one in made])
    assert isinstance(busy, EntryBusy) and isinstance(gone, EntryGone) and isinstance(damaged, EntryDamaged)
    [changed] = spool.change_all([(made[0].id, result)])
    assert changed.recipients[0].state == FAILED == spool.load(made[0].id).recipients[0].state


def test_s25_what_was_taken_back_meanwhile_does_not_become_an_empty_message(spool):
    given, kept = several(spool, 2)
    for memory_bytes in (1000, 10):
        message = incoming(spool, memory_bytes=memory_bytes)
        message.close()
        outcomes = spool.put_all([(given, message, b"Received: x\r\n")])
        assert isinstance(outcomes[0], TemporaryFailure) and tree(spool) == []
    assert spool.put_all([(given, message, b""), (kept, incoming(spool), b"")])[1] is None
    assert [one.id for one in whole(spool)] == [kept.id]


def test_s26_a_directory_that_cannot_be_synced_fails_all_in_it(spool):
    here, there = several(spool, 2), several(spool, 1, "cd")

    def hook(step, path):
        if step == "fsync" and path.endswith("/ab"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    files.on_step(hook)
    try:
        outcomes = spool.put_all([(one, incoming(spool), b"") for one in (*here, *there)])
    finally:
        files.on_step(None)
    assert [type(outcome) for outcome in outcomes] == [TemporaryFailure, TemporaryFailure, type(None)]
    assert [one.id for one in whole(spool)] == [there[0].id] and len(tree(spool)) == 2
    spool.put_all([(one, incoming(spool), b"") for one in here])
    files.on_step(hook)
    try:
        outcomes = spool.change_all([(one.id, lambda entry: True) for one in (*here, *there)])
    finally:
        files.on_step(None)
    assert [type(outcome) for outcome in outcomes] == [TemporaryFailure, TemporaryFailure, Entry]


def test_s25_a_creation_of_several_ends_anywhere(tmp_path, dies_at_every_step):
    """Each is whole or not there; all are there when it was done."""

    def prepare(n):
        made = Spool(str(tmp_path / f"{n}"))
        made.prepare()
        return made

    def work(made):
        assert made.put_all([(one, incoming(made), b"") for one in several(made, 2)]) == [None, None]

    def check(made, done):
        assert len(whole(made)) == 2 or not done
        old(made)

    assert dies_at_every_step(prepare, work, check) >= 13


def test_a_large_message_is_placed_as_it_was_received(spool):
    text = TEXT + b"x" * 70_000 + b"\r\n"
    one = entry()
    message = incoming(spool, text, prefix=b"Received: y\r\n", memory_bytes=1000)
    assert message.path is not None
    inode = os.stat(message.path).st_ino
    spool.put(one, message, b"Received: y\r\n")
    assert os.stat(spool.message_path(one.id)).st_ino == inode
    assert Path(spool.message_path(one.id)).read_bytes() == b"Received: y\r\n" + text
    spool.check(spool.load(one.id), thoroughly=True)
    # The same text for another envelope is a copy.
    other = entry()
    message = incoming(spool, text, memory_bytes=1000)
    spool.put(other, message, b"Received: z\r\n")
    message.close()
    assert Path(spool.message_path(other.id)).read_bytes() == b"Received: z\r\n" + text


# ------------------------------------------------------------------ what was read already


def failed(one: Entry) -> bool:
    one.recipients[0].state = FAILED
    return True


def held(one: Entry) -> bool:
    one.hold = True
    return True


@pytest.mark.parametrize("at_hand", [False, True])
def test_what_was_read_before_is_changed_only_while_it_is_true(spool, at_hand):
    """Somebody else, the command line say, may have changed the entry meanwhile, or ended it."""
    id = put(spool)
    read = spool.load_at_hand if at_hand else spool.load
    same, stale, older = read(id), read(id), read(id)
    assert None not in (same, stale, older)
    spool.change_all([(id, held)], [same])
    assert spool.load(id).hold and same.hold, "it was used"
    [changed] = spool.change_all([(id, failed)], [stale])
    assert changed is not stale and not stale.hold
    assert (spool.load(id).hold, spool.load(id).recipients[0].state) == (True, FAILED)
    end(spool, id)
    other = put(spool)  # in the file that was its own
    [gone] = spool.change_all([(id, held)], [older])
    assert isinstance(gone, EntryGone) and not spool.load(other).hold


def test_one_that_is_known_among_others(spool):
    ids = [put(spool) for _ in range(3)]
    spool.change_all([(id, failed) for id in ids], [None, spool.load(ids[1])])
    assert [spool.load(id).recipients[0].state for id in ids] == [FAILED] * 3


# ------------------------------------------------------------------ files that are used again


def end(spool: Spool, *ids: str) -> None:
    assert [type(one) for one in spool.change_all([(id, lambda entry: False) for id in ids])] == [Entry] * len(ids)


def test_the_envelope_of_an_ended_entry_becomes_another_ones(spool):
    first = entry(BO, CY)
    put(spool, first)
    used = os.stat(spool.envelope_path(first.id)).st_ino
    end(spool, first.id)
    assert [(path.stat().st_ino, path.stat().st_size) for path in spare(spool)] == [(used, 0)]
    second = put(spool, entry(CY))
    assert os.stat(spool.envelope_path(second)).st_ino == used and spare(spool) == []
    assert [str(one.address) for one in spool.load(second).recipients] == [str(CY)]
    assert abs(os.stat(spool.envelope_path(second)).st_mtime - time.time()) < 5
    with pytest.raises(EntryGone):
        spool.load(first.id)


def test_b21_a_file_is_spare_only_when_the_end_of_its_entry_is_durable(spool):
    """Else a power cut could bring the entry back with the text of another one."""
    id = put(spool)

    def hook(step, path):
        if step == "fsync" and path == os.path.dirname(spool.envelope_path(id)):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    files.on_step(hook)
    try:
        [failure] = spool.change_all([(id, lambda entry: False)])
        with pytest.raises(EntryGone):
            spool.change(id, lambda entry: False)
    finally:
        files.on_step(None)
    assert isinstance(failure, TemporaryFailure) and tree(spool) == [] == spare(spool)


def test_s26_an_entry_ends_on_a_disk_that_has_no_room_for_a_name(spool):
    id = put(spool)

    def hook(step, path):
        if step == "rename":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    files.on_step(hook)
    try:
        end(spool, id)
    finally:
        files.on_step(None)
    assert tree(spool) == [] == spare(spool)


@pytest.mark.parametrize("read", [b"", b'{"version": 1, "id": "0661', None])
def test_who_reads_an_entry_that_ends_finds_that_it_has_ended(spool, monkeypatch, read):
    """And not another one's text, or half of it, in the file that was its own."""
    id, real = put(spool), spool_module._parse

    def parse(asked, text, there):
        if asked == id:
            monkeypatch.setattr(spool_module, "_parse", real)
            end(spool, id)
            other = put(spool)
            text = Path(spool.envelope_path(other)).read_bytes() if read is None else read
        return real(asked, text, there)

    monkeypatch.setattr(spool_module, "_parse", parse)
    with pytest.raises(EntryGone):
        spool.load(id)
    assert len(spool.ids()) == 1


def test_no_more_is_kept_than_is_used_and_each_is_used_once(spool, monkeypatch):
    monkeypatch.setattr(spares_module, "MOST_SPARE", 20)
    end(spool, *[put(spool) for _ in range(10)])
    assert len(spare(spool)) == 10
    made = several(spool, 30)
    assert not any(spool.put_all([(one, incoming(spool), b"") for one in made]))
    end(spool, *[one.id for one in made])
    assert len(spare(spool)) == 20 and tree(spool) == []

    taken: list[int] = []
    others = [Spares(spool.spares.directory) for _ in range(4)]  # as of other processes

    def take(number):
        for count in range(10):
            fd = others[number % 4].take(f"{spool.tmp_dir}/{number}.{count}")
            if fd >= 0:
                taken.append(os.fstat(fd).st_ino)
                os.close(fd)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == len(set(taken)) and len(taken) + len(spare(spool)) == 20


def test_what_lies_among_the_spare_files_does_no_harm(spool):
    directory = Path(spool.spares.directory)
    (directory / "other").write_text("of somebody else")
    (directory / "text.ended").write_text("of somebody else " * 1000)
    (directory / "link.ended").symlink_to("/etc/passwd")
    alive = put(spool)
    os.link(spool.envelope_path(alive), directory / "alive.ended")
    made = [put(spool) for _ in range(4)]
    assert [one.id for one in whole(spool)] == [alive, *made] and [path.name for path in spare(spool)] == ["other"]
    assert [path for path in tree(spool) if path.startswith("tmp/")] == []


def test_without_a_place_for_them_one_is_made(spool):
    """A queue of an older version."""
    os.rmdir(spool.spares.directory)
    end(spool, put(spool))
    assert len(spare(spool)) == 1 and os.stat(spool.spares.directory).st_mode & 0o777 == 0o700


# ------------------------------------------------------------------ ends at every step


def whole(spool: Spool) -> list[Entry]:
    """All entries, each with its message as it was accepted."""
    found = [spool.load(id) for id in spool.ids()]
    for one in found:
        spool.check(one, thoroughly=True)
    return found


def old(spool: Spool) -> None:
    """What was left behind is swept when it is old, and no entry with it."""
    before = spool.ids()
    later = Spool(spool.root, now=lambda: Stamp(time.time() + 3 * 86400, "later", 0.0))
    for part in PARTS:
        later.sweep(part)
    later.sweep_tmp()
    assert spool.ids() == before
    assert tree(spool) == sorted(f"{id[7:9]}/{id}.{kind}" for id in before for kind in ("eml", "json"))


def test_s25_creation_ends_anywhere(tmp_path, dies_at_every_step):
    """Whole or not there; there for sure when it was done."""

    def prepare(n):
        made = Spool(str(tmp_path / f"{n}"))
        made.prepare()
        put(made)
        return made

    def check(made, done):
        found = whole(made)
        assert len(found) in ((2,) if done else (1, 2))
        old(made)

    assert dies_at_every_step(prepare, put, check) >= 7


def test_s25_the_first_entry_of_a_directory(spool, steps):
    """The directory is durable before the entry is acknowledged; another process may make it meanwhile."""
    one = entry()
    spool.put(one, incoming(spool))
    names = [(step, os.path.basename(path)) for step, path in steps][4:]
    part, message, envelope = one.id[7:9], f"{one.id}.eml", f"{one.id}.json"
    assert names == [
        ("rename", message), ("mkdir", part), ("fsync", "queue"), ("rename", message), ("rename", envelope),
        ("fsync", part),
    ]  # fmt: skip
    assert spool.parts() == [part] and spool.ids() == [one.id]


@pytest.mark.parametrize("large", [False, True])
def test_s25_a_result_is_written_or_it_is_as_before(tmp_path, dies_at_every_step, large):
    text = TEXT * (10_000 if large else 1)

    def prepare(n):
        made = Spool(str(tmp_path / f"{n}"))
        made.prepare()
        put(made, entry(BO, CY), text)
        return made

    def work(made):
        def result(one):
            one.recipients[0].state = SENT
            one.recipients[1].note(fail(CY), 0.0)
            one.delay(one.recipients[1], 300, made.now())
            return True

        made.change(made.ids()[0], result)

    def check(made, done):
        [one] = whole(made)
        changed = (one.recipients[0].state == SENT, one.recipients[1].attempts == 1)
        assert changed in ([(True, True)] if done else [(True, True), (False, False)])
        old(made)

    assert dies_at_every_step(prepare, work, check) == 4


def test_b21_an_end_that_is_cut_off_is_an_end_or_none(tmp_path, dies_at_every_step):
    def prepare(n):
        made = Spool(str(tmp_path / f"{n}"))
        made.prepare()
        put(made)
        put(made)
        return made

    def check(made, done):
        assert len(whole(made)) in ((1,) if done else (1, 2))
        old(made)

    assert dies_at_every_step(prepare, lambda made: made.change(made.ids()[0], lambda _: False), check) == 5


def test_s25_quarantine_ends_anywhere(tmp_path, dies_at_every_step):
    def prepare(n):
        made = Spool(str(tmp_path / f"{n}"))
        made.prepare()
        Path(made.envelope_path(put(made))).write_text("{")
        put(made)
        return made

    def damaged(made):
        for id in made.ids():
            try:
                made.load(id)
            except EntryDamaged as damage:
                made.quarantine(id, str(damage))

    def check(made, done):
        damaged(made)  # the next runner comes to the same conclusion
        assert len(whole(made)) == 1
        names = {path.rpartition(".")[2] for path in tree(made) if path.startswith("damaged/")}
        assert {"why", "eml"} <= names or not done
        assert not [path for path in tree(made) if path.endswith(".json") and "damaged" not in path][1:]

    assert dies_at_every_step(prepare, damaged, check) >= 4


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("at", range(7))
def test_s26_failing_disk_while_an_entry_is_made(spool, at, code):
    put(spool)
    one = entry()
    os.makedirs(os.path.dirname(spool.message_path(one.id)), exist_ok=True)
    before = tree(spool)
    left = [at]

    def hook(step, path):
        left[0] -= 1
        if left[0] == -1:
            raise OSError(code, os.strerror(code))

    files.on_step(hook)
    try:
        with pytest.raises(TemporaryFailure):
            put(spool, one)
    finally:
        files.on_step(None)
    assert left[0] < 0 and tree(spool) == before and len(whole(spool)) == 1


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("at", ["create", "fsync", "rename"])
def test_s26_failing_disk_leaves_the_entry_as_it_was(spool, at, code):
    id = put(spool)
    before = Path(spool.envelope_path(id)).read_bytes()

    def hook(step, path):
        if step == at:
            raise OSError(code, os.strerror(code))

    def result(one):
        one.recipients[0].state = FAILED
        return True

    files.on_step(hook)
    try:
        with pytest.raises(TemporaryFailure):
            spool.change(id, result)
    finally:
        files.on_step(None)
    assert Path(spool.envelope_path(id)).read_bytes() == before
    assert len(tree(spool)) == 2


# ------------------------------------------------------------------ several at work


CHANGER = """
import sys
sys.path.insert(0, {root!r})
from mailsrv.store.spool import Spool
spool = Spool({queue!r})
sys.stdin.readline()
for n in range(40):
    def count(one):
        one.recipients[0].attempts += 1
        return True
    spool.change({id!r}, count)
"""


def test_b21_changes_of_several_processes_are_all_kept(spool):
    id = put(spool)
    code = CHANGER.format(root=str(Path(__file__).parent.parent.parent), queue=spool.root, id=id)
    running = [subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, text=True) for _ in range(4)]
    for one in running:
        one.communicate("\n", timeout=120)
        assert one.returncode == 0
    assert spool.load(id).recipients[0].attempts == 160
    assert len(tree(spool)) == 2


def test_b21_one_runner_at_a_time(spool):
    first = Ownership(spool.root)
    assert first.holder() is None
    first.acquire()
    second = Ownership(spool.root)
    with pytest.raises(QueueLocked, match=f"pid {os.getpid()}"):
        second.acquire()
    assert second.holder() == os.getpid()
    first.release()
    second.acquire()
    second.release()


def test_what_has_ended_cannot_be_changed(spool):
    id = put(spool)
    spool.remove(id)
    assert tree(spool) == []
    for act in (spool.load, spool.remove, lambda id: spool.change(id, lambda one: True)):
        with pytest.raises(EntryGone):
            act(id)


# ------------------------------------------------------------------ damage


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: b"", "not JSON"),
        (lambda text: text[: len(text) // 2], "not JSON"),
        (lambda text: b"[]", "not an object"),
        (lambda text: b"\xff\xfe" + text, "not JSON"),
        (lambda text: b"[" * 100_000, "not JSON"),
        (lambda text: text.replace(b'"version": 1', b'"version": 99'), "version 99"),
        (lambda text: text.replace(b"bo@example.org", b"bo at home"), "address"),
        (lambda text: text.replace(b"bo@example.org", rb"bo\r\nX: y@example.org"), "address"),
        (lambda text: text.replace(b'"waiting"', b'"thinking"'), "state"),
        (lambda text: text.replace(b'"attempts": 0', b'"attempts": -1'), "below 0"),
        (lambda text: text.replace(b'"attempts": 0', b'"attempts": true'), "attempts"),
        (lambda text: text.replace(b'"waited_seconds": 0.0', b'"waited_seconds": Infinity'), "waited_seconds"),
        (lambda text: text.replace(b'"waited_seconds": 0.0', b'"waited_seconds": 1' + b"0" * 400), "waited_seconds"),
        (lambda text: text.replace(b'"next_at": "', b'"next_at": "x'), "next_at"),
        (lambda text: text.replace(b'"not_before": null', b'"not_before": "9999-12-31T23:59:59-01:00"'), "not_before"),
        (lambda text: text.replace(b'"envid": ""', rb'"envid": "\ud800"'), "envid"),
        (lambda text: text.replace(b'"notify": []', rb'"notify": ["\ud800"]'), "notify"),
        (lambda text: text.replace(b'"id": "', b'"id": "0'), "says it is"),
    ],
)  # fmt: skip
def test_s23_damaged_envelopes_are_known(spool, change, reason):
    id = put(spool)
    path = Path(spool.envelope_path(id))
    text = path.read_bytes()
    assert change(text) != text
    path.write_bytes(change(text))
    with pytest.raises(EntryDamaged, match=reason):
        spool.load(id)


def test_damaged_messages_are_known(spool):
    id = put(spool)
    one, path = spool.load(id), Path(spool.message_path(id))
    path.write_bytes(TEXT.replace(b"goes", b"went"))
    spool.check(one, thoroughly=False)
    with pytest.raises(EntryDamaged, match="SHA-256"):
        spool.check(one, thoroughly=True)
    path.write_bytes(TEXT[:-1])
    with pytest.raises(EntryDamaged, match="octets"):
        spool.check(one, thoroughly=False)
    path.unlink()
    with pytest.raises(EntryDamaged, match="missing"):
        spool.check(one, thoroughly=False)
    spool.quarantine(id, "the message file is missing")
    assert spool.damaged() == [(id, "the message file is missing")]
    assert tree(spool) == [f"damaged/{id}.json", f"damaged/{id}.why"]


# ------------------------------------------------------------------ time


def at(wall: float, clock: float, boot: str = "one") -> Stamp:
    return Stamp(wall, boot, clock)


@pytest.mark.parametrize("jump", [-3650 * 86400.0, -86400.0, 0.0, 86400.0, 3650 * 86400.0])
def test_a_jump_of_the_clock_neither_ages_nor_hurries(tmp_path, jump):
    now = [at(1.8e9, 1000.0)]
    spool = Spool(str(tmp_path / "queue"), now=lambda: now[0])
    spool.prepare()
    id = put(spool)

    def later(one):
        one.delay(one.recipients[0], 300.0, now[0])
        return True

    spool.change(id, later)
    now[0] = at(1.8e9 + 100 + jump, 1100.0)
    one = spool.load(id)
    assert one.age(now[0]) == pytest.approx(100, abs=0.1)
    assert one.wait(now[0]) == pytest.approx(200, abs=0.1)
    # Written again by the clock that jumped, it means the same.
    one = spool.change(id, lambda one: True)
    assert os.stat(spool.envelope_path(id)).st_mtime == pytest.approx(now[0].wall + 200, abs=0.1)
    now[0] = at(now[0].wall + 50, 1150.0)
    again = spool.load(id)
    assert again.age(now[0]) == pytest.approx(150, abs=0.1) and again.wait(now[0]) == pytest.approx(150, abs=0.1)


@pytest.mark.parametrize(
    ("passed", "age", "wait"),
    [(60.0, 60.0, 240.0), (7200.0, 7200.0, 0.0), (3650 * 86400.0, 86400.0, 0.0), (-3650 * 86400.0, 0.0, 300.0)],
)
def test_another_boot_with_another_clock(tmp_path, passed, age, wait):
    """Only the wall clock knows what passed; it may be wrong by years, and expires nothing by itself."""
    now = [at(1.8e9, 1000.0)]
    spool = Spool(str(tmp_path / "queue"), now=lambda: now[0])
    spool.prepare()
    id = put(spool)

    def later(one):
        one.delay(one.recipients[0], 300.0, now[0])
        return True

    spool.change(id, later)
    one, now[0] = spool.load(id), at(1.8e9 + passed, 5.0, "two")
    assert one.age(now[0]) == pytest.approx(age, abs=0.1)
    assert one.wait(now[0]) == pytest.approx(wait, abs=0.1)


def test_what_is_held_waits_for_a_word(spool):
    id = put(spool, entry(hold=True))
    assert spool.load(id).wait(spool.now()) == float("inf")
    [(found, due)] = spool.scan(id[7:9])
    assert found == id and due > time.time() + 300 * 86400
