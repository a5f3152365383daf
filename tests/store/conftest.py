"""Real accounts on a real disk, and what a Maildir says of itself when nobody else is asked."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mailsrv.store import files, names
from mailsrv.store.account import AccountStore, Arrival, Incoming
from mailsrv.values import AccountId, Snapshot
from mailsrv.wire import mime

INBOX = 1
TEXT = b"From: bo@example.org\r\nSubject: %s\r\nMessage-ID: <%s@example.org>\r\n\r\nHello %s\r\n"


def text(word: str = "one") -> bytes:
    return TEXT % ((word.encode(),) * 3)


def account(home: Path, **options: Any) -> AccountStore:
    return AccountStore(AccountId(7), str(home), prepare=mime.prepare, host="mx.example.com", **options)


def incoming(store: AccountStore, data: bytes) -> Incoming:
    message = Incoming(store.tmp_dir)
    message.write(data)
    return message


def add(store: AccountStore, number: int = INBOX, word: str = "one", **options: Any) -> int:
    """Append a message; its UID."""
    return store.append(number, Arrival(incoming(store, text(word)), **options)).uid


def number(store: AccountStore, name: str) -> int:
    return store.mailbox(name).id.number


def words(store: AccountStore, number: int = INBOX) -> dict[int, str]:
    """UID -> the word its message was made with, by reading every message."""
    uids = list(store.snapshot(number).uids)
    return {uid: body.rpartition(b"Hello ")[2].strip().decode() for uid, body in store.read_many(number, uids, 10**9)}


def flags(snapshot: Snapshot) -> dict[int, tuple[int, tuple[str, ...]]]:
    """UID -> (system flags, keyword names)."""
    return {
        uid: (bits, tuple(name for n, name in enumerate(snapshot.keyword_names) if keywords >> n & 1))
        for uid, bits, keywords in zip(snapshot.uids, snapshot.flags, snapshot.keywords, strict=True)
    }


def on_disk(folder: Path) -> dict[int, list[str]]:
    """UID -> the files that carry it, below new/ and cur/; untagged files under 0."""
    found: dict[int, list[str]] = {}
    for sub in ("new", "cur"):
        for name in sorted(os.listdir(folder / sub)):
            tag = names.tag(names.parse(name).base)
            found.setdefault(tag[1] if tag else 0, []).append(f"{sub}/{name}")
    return found


def everything(store: AccountStore) -> dict[str, Any]:
    """All that clients can see of an account."""
    seen = {}
    for info in store.mailboxes():
        snapshot = store.snapshot(info.id.number)
        seen[info.name] = (
            info.id.number,
            info.uidvalidity,
            info.special_use,
            flags(snapshot),
            words(store, info.id.number),
        )
    return seen


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "ann"


@pytest.fixture
def store(home: Path) -> Iterator[AccountStore]:
    opened = account(home)
    yield opened
    opened.close()


@pytest.fixture
def steps() -> Iterator[list[tuple[str, str]]]:
    """What changes the disk, in order: (step, path)."""
    seen: list[tuple[str, str]] = []
    files.on_step(lambda step, path: seen.append((step, path)))
    yield seen
    files.on_step(None)


@pytest.fixture
def dies_at_every_step(tmp_path: Path) -> Callable[..., int]:
    """`run(work, check)`: a child process does `work()` and ends without warning before its n-th step; then `check()`.

    For every n, until the work is done with no step left to end at; how many there were. `work` gets a fresh number,
    to make a place of its own from.
    """

    def run(prepare: Callable[[int], Any], work: Callable[[Any], None], check: Callable[[Any, bool], None]) -> int:
        for n in range(500):
            place = prepare(n)
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    left = n

                    def hook(_step: str, _path: str) -> None:
                        nonlocal left
                        if left == 0:
                            os._exit(9)
                        left -= 1

                    files.on_step(hook)
                    work(place)
                    code = 0
                finally:
                    os._exit(code)
            _, status = os.waitpid(child, 0)
            code = os.waitstatus_to_exitcode(status)
            assert code in (0, 9), f"the child failed at step {n}"
            check(place, code == 0)
            if code == 0:
                return n
        raise AssertionError("the work does not end")

    return run
