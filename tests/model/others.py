"""Who changes mailboxes without IMAP: senders by SMTP, and another program that works on the Maildir itself."""

import json
import os
import re
import smtplib
import time

import gevent

from tests.conftest import DOMAIN
from tests.model.ledger import SYSTEM, Act
from tests.model.steps import FOREIGN, SHARED, stream, text_of

_TAG = re.compile(r",U=(\d+)-(\d+)(?=,|$)")
_TOKEN = re.compile(rb"^X-Model: (\S+?)\r?$", re.MULTILINE)
LETTERS = {"D": "\\draft", "F": "\\flagged", "R": "\\answered", "S": "\\seen", "T": "\\deleted"}
now = time.monotonic


class Sender:
    """Sends mail to INBOX, over one connection for each phase."""

    def __init__(self, world, name):
        self.world, self.name, self.sent = world, name, 0
        self.steps = stream(world.seed, name, {"send": 1})

    def work(self, working):
        box = self.world.box("INBOX")
        with smtplib.SMTP("127.0.0.1", self.world.port("smtp"), timeout=60) as smtp:
            while working():
                step = next(self.steps)
                gevent.sleep(0.005 + 0.06 * step.dice[0])
                self.sent += 1
                token = f"s{self.name}.{self.sent}e"
                header, body = text_of(token, int(30_000 * step.dice[1] ** 4))
                self.world.made(token, body)
                delivery = box.delivery(token, now())
                smtp.sendmail("sender@model.example", [f"{self.world.user}@{DOMAIN}"], (header + body).encode())
                delivery.end = now()


class Foreign:
    """Another program: drops messages into new/, moves them to cur/, changes flags by renaming, removes files."""

    def __init__(self, world, name):
        self.world, self.name, self.dropped = world, name, 0
        self.steps = stream(world.seed, name, FOREIGN)

    def work(self, working):
        while working():
            step = next(self.steps)
            gevent.sleep(0.005 + 0.08 * step.dice[0])
            box = self.world.box(step.one(SHARED, 1))
            getattr(self, f"_{step.kind.replace('-', '_')}")(step, box, self.world.folder(box.name))

    def _drop(self, step, box, folder):
        self.dropped += 1
        token = f"f{self.name}.{self.dropped}e"
        header, body = text_of(token, int(5_000 * step.dice[2] ** 3))
        self.world.made(token, body)
        name = f"{int(time.time())}.{self.name}_{self.dropped}.elsewhere.example"
        text = (header + body).encode()
        if step.chance(0.5, 3):
            text = text.replace(b"\r\n", b"\n")
        (folder / "tmp" / name).write_bytes(text)
        delivery = box.delivery(token, now())
        os.rename(folder / "tmp" / name, folder / "new" / name)
        delivery.end = now()

    def _pick(self, step, folder, subs):
        """(a file, the token of the message in it), or None."""
        paths = sorted(path for sub in subs for path in (folder / sub).iterdir())
        if not paths:
            return None
        path = step.one(paths, 2)
        try:
            with open(path, "rb") as file:
                found = _TOKEN.search(file.read(4096))
        except FileNotFoundError:
            return None
        return path, found[1].decode()

    def _which(self, box, path, token):
        """What the ledger has of it: an instance, or a delivery nobody gave a UID yet."""
        tag = _TAG.search(path.name.partition(":")[0])
        if tag and int(tag[1]) == box.uidvalidity:
            return box.saw(int(tag[2]), token, now())
        return box.deliveries.get(token)

    def _seen_by_mutt(self, step, box, folder):
        """As a mail program does when it looks: new/ to cur/, no flags."""
        picked = self._pick(step, folder, ("new",))
        if picked:
            path, _ = picked
            _renamed(path, folder / "cur" / f"{path.name}:2,")

    def _flags(self, step, box, folder):
        picked = self._pick(step, folder, ("cur",))
        if not picked or not (which := self._which(box, *picked)):
            return
        path, _ = picked
        base, _, info = path.name.partition(":2,")
        letters = "".join(letter for letter, share in zip("DFRST", step.dice[3:], strict=False) if share < 0.35)
        kept = "".join(letter for letter in info if letter.islower())
        act = Act("=", frozenset(LETTERS[letter] for letter in letters), now(), scope=SYSTEM)
        which.acts.append(act)
        if _renamed(path, path.with_name(f"{base}:2,{letters}{kept}")):
            act.end = now()
        else:
            which.acts.remove(act)

    def _remove(self, step, box, folder):
        picked = self._pick(step, folder, ("new", "cur"))
        if not picked or not (which := self._which(box, *picked)):
            return
        taken, which.taken = which.taken, min(which.taken, now())
        try:
            os.unlink(picked[0])
            which.gone = min(which.gone, now())
        except FileNotFoundError:
            which.taken = taken


def _renamed(old, new):
    """Whether the file was still there under its old name."""
    try:
        os.rename(old, new)
    except FileNotFoundError:
        return False
    return True


def on_disk(folder, uidvalidity):
    """What the directory says: UID -> (token, flags). None while a file has no UID of ours."""
    keywords = [name.lower() for name in json.loads((folder / "mailsrv-mailbox.json").read_text())["keywords"]]
    found = {}
    for path in [*(folder / "new").iterdir(), *(folder / "cur").iterdir()]:
        base, _, letters = path.name.partition(":2,")
        tag = _TAG.search(base)
        if not tag or int(tag[1]) != uidvalidity:
            return None
        flags = {LETTERS[letter] for letter in letters if letter in LETTERS}
        flags |= {
            keywords[ord(letter) - 97] for letter in letters if letter.islower() and ord(letter) - 97 < len(keywords)
        }
        try:
            token = _TOKEN.search(path.read_bytes()[:4096])[1].decode()
        except FileNotFoundError:
            return None
        if int(tag[2]) in found:
            return None
        found[int(tag[2])] = (token, frozenset(flags))
    return found
