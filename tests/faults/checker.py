"""Reads what a server left: Maildirs and queue as plain files, mailboxes through a foreign IMAP client.

Nothing of mailsrv is imported here. What the names say (`U=<uidvalidity>-<uid>`, `S=<size>`, flags) is read from the
names, what the messages are from their octets.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

from imapclient import IMAPClient

from tests.faults.ledger import MARK, BoxName, Found, Ledger, digest

LETTERS = {"D": "\\Draft", "F": "\\Flagged", "R": "\\Answered", "S": "\\Seen", "T": "\\Deleted"}
_TAG = re.compile(r",U=(\d+)-(\d+)(?=[,:]|$)")
_SIZE = re.compile(r",S=(\d+)(?=[,:]|$)")
Boxes = dict[BoxName, tuple[int, dict[int, list[Found]]]]


def read_text(data: bytes) -> tuple[str, str]:
    """(token, digest) of a message, without the lines that servers put before it."""
    start = 0 if data.startswith(MARK) else data.find(b"\n" + MARK) + 1
    text = data[start:]
    return text[len(MARK) :].partition(b"\r\n")[0].decode("ascii", "replace") if text.startswith(MARK) else "", digest(
        text
    )


class Maildirs:
    """The mailboxes of some accounts as files. Unchanged files are not read twice unless `thoroughly`."""

    def __init__(self, homes: Mapping[str, Path]) -> None:
        self._homes = homes
        self._read: dict[str, tuple[str, str]] = {}
        self.wrong: list[str] = []

    def boxes(self, *, thoroughly: bool = True) -> Boxes:
        if thoroughly:
            self._read.clear()
        self.wrong = []
        found: Boxes = {}
        for user, home in self._homes.items():
            maildir = home / "Maildir"
            folders = [maildir, *sorted(one for one in maildir.glob(".*") if (one / "cur").is_dir())]
            for folder in folders:
                name = "INBOX" if folder == maildir else folder.name[1:].replace(".", "/")
                found[user, name] = self._box(folder)
        return found

    def _box(self, folder: Path) -> tuple[int, dict[int, list[Found]]]:
        try:
            about = json.loads((folder / "mailsrv-mailbox.json").read_text())
        except (OSError, ValueError) as problem:
            self.wrong.append(f"{folder.name}/mailsrv-mailbox.json cannot be read: {problem}")
            return 0, {}
        found: dict[int, list[Found]] = {}
        for sub in ("new", "cur"):
            for name in os.listdir(folder / sub):
                tag = _TAG.search(name)
                if tag is None or int(tag[1]) != about["uidvalidity"]:
                    self.wrong.append(f"{folder.name}/{sub}/{name}: no UID of this mailbox")
                    continue
                base, _, info = name.partition(":2,")
                token, text = self._message(folder / sub / name, base)
                keywords = {about["keywords"][ord(one) - 97] for one in info if "a" <= one <= "z"}
                flags = frozenset(LETTERS[one] for one in info if one in LETTERS) | keywords
                found.setdefault(int(tag[2]), []).append(Found(token, text, frozenset(flags)))
        return about["uidvalidity"], found

    def _message(self, path: Path, base: str) -> tuple[str, str]:
        if base not in self._read:
            data = path.read_bytes()
            size = _SIZE.search(base)
            if size is None or int(size[1]) != len(data):
                self.wrong.append(f"{path.name}: has {len(data)} octets")
            self._read[base] = read_text(data)
        return self._read[base]

    def temporary(self) -> list[Path]:
        """What is left in the tmp/ of any mailbox."""
        return [path for home in self._homes.values() for path in (home / "Maildir").rglob("tmp/*")]


def queued(queue: Path) -> tuple[dict[tuple[str, str], str], list[str]]:
    """((token, address elsewhere) -> digest for what still waits in the queue, what is wrong with it)."""
    found: dict[tuple[str, str], str] = {}
    wrong = [f"queue: {path.read_text().strip()}" for path in (queue / "damaged").glob("*.why")]
    for path in queue.glob("??/*.json"):
        try:
            entry = json.loads(path.read_text())
            data = path.with_suffix(".eml").read_bytes()
        except FileNotFoundError:
            if path.exists():
                wrong.append(f"queue: {path.name} has no message")
            continue  # it ended meanwhile
        except ValueError:
            wrong.append(f"queue: {path.name} is torn")
            continue
        token, text = read_text(data)
        for one in entry["recipients"]:
            found[token, one["address"]] = text
    return found, wrong


def over_imap(port: int, password: str, ledger: Ledger, boxes: Boxes, users: Iterable[str]) -> list[str]:
    """What a foreign client sees that is not what the files say, or not what was promised of UIDs."""
    wrong: list[str] = []
    for user in users:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            client = IMAPClient("127.0.0.1", port, ssl=False, timeout=30)
        with client:
            client.login(f"{user}@example.com", password)
            for name in sorted(name for owner, name in boxes if owner == user):
                wrong += [f"{user}/{name} by IMAP: {one}" for one in _box(client, ledger, boxes, (user, name))]
    return wrong


def _box(client: IMAPClient, ledger: Ledger, boxes: Boxes, name: BoxName) -> Iterable[str]:
    uidvalidity, found = boxes[name]
    box = ledger.boxes[name]
    state = client.select_folder(name[1], readonly=True)
    if state[b"UIDVALIDITY"] != uidvalidity:
        yield f"UIDVALIDITY {state[b'UIDVALIDITY']}, in the files {uidvalidity}"
    highest = max(box.history, default=0)
    if state[b"UIDNEXT"] <= highest or state[b"UIDNEXT"] < box.uidnext:
        yield f"UIDNEXT {state[b'UIDNEXT']}, though UID {highest} was given and UIDNEXT was {box.uidnext}"
    box.uidnext = state[b"UIDNEXT"]
    uids = client.search("ALL")
    seen = client.fetch(uids, ["FLAGS"]) if uids else {}
    if set(seen) != set(found):
        yield f"UIDs {sorted(set(seen) ^ set(found))} are not in both, files and answers"
    for uid, answer in seen.items():
        flags = frozenset(flag.decode() for flag in answer[b"FLAGS"]) - {"\\Recent"}
        if uid in found and found[uid][0].flags != flags:
            yield f"UID {uid} has flags {set(flags)}, in the files {set(found[uid][0].flags)}"
    new = sorted(set(seen) & set(found))[-40:]
    for uid, answer in (client.fetch(new, ["BODY.PEEK[]"]) if new else {}).items():
        if read_text(answer[b"BODY[]"]) != (found[uid][0].token, found[uid][0].digest):
            yield f"UID {uid} reads otherwise than its file"
