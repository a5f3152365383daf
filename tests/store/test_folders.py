"""Mailboxes by name: created, deleted, renamed, subscribed to; their identities; no name leaves the account."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailsrv.errors import MailboxExists, MailboxNameInvalid, MailboxNotFound, MailboxReserved
from mailsrv.store import names

from .conftest import INBOX, account, add, number, words

DEFAULTS = ["Archive", "Drafts", "INBOX", "Junk", "Sent", "Trash"]


def test_f10_new_account_has_the_usual_mailboxes(store):
    assert [info.name for info in store.mailboxes()] == DEFAULTS
    uses = {info.name: info.special_use for info in store.mailboxes()}
    assert uses == {name: f"\\{name}" if name != "INBOX" else None for name in DEFAULTS}
    assert len({info.id.number for info in store.mailboxes()}) == 6


@pytest.mark.parametrize(
    "name", ["..", ".", "a/../b", "../../etc", "/etc", "a//b", "", "a/", "x" * 300, "a/" * 25 + "a"]
)
def test_b11_names_that_leave_the_account_or_cannot_be(store, name):
    store.mailboxes()
    outside = sorted(os.listdir(Path(store.home).parent))
    try:
        info = store.create(name)
    except MailboxNameInvalid:
        info = None
    if info is not None:
        folder = Path(store.folder_of(info.id.number))
        assert folder.parent == Path(store.maildir) and folder.name.startswith(".") and folder.is_dir()
        store.delete(name)
    assert sorted(os.listdir(Path(store.home).parent)) == outside
    assert words(store) == {}


def test_b11_a_dot_and_a_slash_are_two_mailboxes(store):
    store.create("a.b")
    store.create("a/b")
    add(store, number(store, "a.b"))
    assert words(store, number(store, "a/b")) == {}
    store.delete("a/b")
    assert words(store, number(store, "a.b")) == {1: "one"}


@given(st.text(min_size=1, max_size=30))
def test_s24_r18_b11_every_name_has_one_directory_below_the_maildir(name):
    try:
        name = names.canonical(name)
    except MailboxNameInvalid:
        return
    directory = names.directory(name)
    assert "/" not in directory and directory not in (".", "..") and "\0" not in directory
    assert directory == "" or (directory.startswith(".") and directory.isascii())
    assert names.name_of(directory) == name


@given(st.text(alphabet="&-,./~abAB01+=:\u00e4\U0001f600", max_size=40))
def test_r18_a_directory_means_one_name_or_none(directory):
    name = names.name_of(directory)
    if name is not None:
        assert names.canonical(name) == name
        assert name == names.INBOX or names.directory(name) is not None


def test_r18_a_folder_of_another_program_that_means_a_name_of_ours_is_not_served_beside_it(store):
    """Dovecot writes `.a~b` where we write `.a&AH4-b` (found by fuzzing)."""
    foreign = Path(store.maildir) / ".a~b"
    for sub in ("cur", "new", "tmp"):
        (foreign / sub).mkdir(parents=True)
    alone = number(store, "a~b")
    assert [info.name for info in store.mailboxes()].count("a~b") == 1, "alone it is the mailbox"
    ours = Path(store.maildir) / ".a&AH4-b"
    for sub in ("cur", "new", "tmp"):
        (ours / sub).mkdir(parents=True)
    assert [info.name for info in store.mailboxes()].count("a~b") == 1
    assert number(store, "a~b") != alone and foreign.is_dir()


def test_r20_superiors_are_made_and_stay(store):
    store.create("A/B/C")
    assert {"A", "A/B", "A/B/C"} <= {info.name for info in store.mailboxes()}
    store.delete("A/B")
    assert {"A", "A/B/C"} <= {info.name for info in store.mailboxes()}
    with pytest.raises(MailboxNotFound):
        store.mailbox("A/B")
    with pytest.raises(MailboxNotFound):
        store.delete("A/B")
    with pytest.raises(MailboxReserved):
        store.delete("inbox")
    with pytest.raises(MailboxExists):
        store.create("A")


def test_r08_b16_uidvalidity_grows_even_within_a_second(store):
    seen = [info.uidvalidity for info in store.mailboxes()]
    numbers = [info.id.number for info in store.mailboxes()]
    for _ in range(5):
        info = store.create("Again")
        assert info.uidvalidity > max(seen) and info.id.number > max(numbers)
        seen.append(info.uidvalidity)
        numbers.append(info.id.number)
        store.delete("Again")


def test_r08_uidvalidity_grows_when_the_clock_goes_back(home):
    store = account(home, clock=lambda: 2_000_000_000.0)
    first = store.create("Again").uidvalidity
    store.delete("Again")
    store.close()
    store = account(home, clock=lambda: 1_000_000_000.0)
    assert store.create("Again").uidvalidity > first
    before = store.snapshot(INBOX).highest_modseq
    add(store)
    assert store.snapshot(INBOX).highest_modseq > before
    store.close()


def test_r21_rename_takes_inferiors_and_keeps_identity(store):
    store.create("A/B/C")
    add(store, number(store, "A/B"))
    before = {info.name: (info.id, info.uidvalidity) for info in store.mailboxes()}
    store.rename("A", "Z/Y")
    after = {info.name: (info.id, info.uidvalidity) for info in store.mailboxes()}
    assert after["Z/Y"] == before["A"] and after["Z/Y/B"] == before["A/B"] and after["Z/Y/B/C"] == before["A/B/C"]
    assert not [name for name in after if name.startswith("A/") or name == "A"]
    assert words(store, after["Z/Y/B"][0].number) == {1: "one"}
    for old, new, error in (
        ("Z", "Z/inside", MailboxReserved),
        ("Z", "INBOX", MailboxExists),
        ("Nothing", "Else", MailboxNotFound),
        ("Z", "Sent", MailboxExists),
        ("Z/Y", "x" * 198, MailboxNameInvalid),
    ):
        with pytest.raises(error):
            store.rename(old, new)
    assert {info.name: (info.id, info.uidvalidity) for info in store.mailboxes()} == after


def test_r22_renaming_inbox_moves_its_messages(store):
    add(store)
    add(store, word="two")
    store.rename("INBOX", "Old mail")
    assert words(store) == {}
    assert words(store, number(store, "Old mail")) == {1: "one", 2: "two"}
    assert add(store, word="three") == 3, "the UIDs of INBOX go on"


def test_b09_subscriptions_outlive_the_mailbox(store):
    assert store.subscriptions() == DEFAULTS
    store.create("A")
    store.subscribe("A")
    store.delete("A")
    assert "A" in store.subscriptions()
    store.unsubscribe("A")
    store.unsubscribe("Trash")
    assert store.subscriptions() == [name for name in DEFAULTS if name != "Trash"]


def test_folder_another_program_made_and_removed(store):
    store.mailboxes()
    folder = Path(store.maildir) / ".Other.Place"
    for sub in ("cur", "new", "tmp"):
        (folder / sub).mkdir(parents=True)
    assert "Other/Place" in [info.name for info in store.mailboxes()]
    add(store, number(store, "Other/Place"))
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()
    assert [info.name for info in store.mailboxes()] == DEFAULTS


def test_delete_in_one_process_is_seen_in_another(store, home):
    other = account(home)
    info = store.create("A")
    add(other, info.id.number)
    store.delete("A")
    with pytest.raises(MailboxNotFound):
        add(other, info.id.number, "two")
    with pytest.raises(MailboxNotFound):
        other.snapshot(info.id.number)
    assert not list(Path(store.maildir).glob("mailsrv-deleted*"))
    other.close()


def test_b11_delete_removes_links_and_not_what_they_lead_to(store, tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("x")
    folder = Path(store.folder_of(store.create("A").id.number))
    (folder / "cur/link").symlink_to(kept)
    (folder / "new/link").symlink_to(kept / "file")
    (folder / "odd/deep").mkdir(parents=True)
    store.delete("A")
    assert (kept / "file").read_text() == "x"
    assert [path.name for path in Path(store.maildir).iterdir() if "deleted" in path.name or path.name == ".A"] == []
