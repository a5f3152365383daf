"""Random walks: three sessions act on two mailboxes, and each client's picture, made of nothing but the untagged
responses it was sent, has to agree with what the server says of the mailbox, and with what the commands meant.
"""

import random
import re

import pytest

MAILBOXES = ("INBOX", "Archive")
FLAGS = ("\\Seen", "\\Flagged", "\\Deleted", "\\Answered", "work", "play")
STEPS = 100
_FETCH = re.compile(rb"\* (\d+) FETCH \((?:UID (\d+) )?FLAGS \(([^)]*)\)\)")


def flag_set(text):
    return {flag.lower() for flag in text.decode().split()} - {"\\recent"}


class Picture:
    """A session and what its client has been told: by number, the UID and the flags, None where it does not know."""

    def __init__(self, client, truth):
        self.client, self.truth = client, truth
        self.mailbox = ""
        self.messages = []
        self.idling = None

    def apply(self, lines, *, expunges=True):
        for line in lines:
            exists, gone = re.fullmatch(rb"\* (\d+) EXISTS", line), re.fullmatch(rb"\* (\d+) EXPUNGE", line)
            fetched = _FETCH.fullmatch(line)
            if exists:
                assert int(exists[1]) >= len(self.messages), "EXISTS shrank (R5)"
                self.messages += [[None, None] for _ in range(int(exists[1]) - len(self.messages))]
            elif gone:
                assert expunges, "EXPUNGE while numbers are in use (R1)"
                assert 1 <= int(gone[1]) <= len(self.messages), "EXPUNGE of a number that is not there (R3)"
                del self.messages[int(gone[1]) - 1]
            elif fetched:
                assert int(fetched[1]) <= len(self.messages), "FETCH of a number that was not told (R5)"
                message = self.messages[int(fetched[1]) - 1]
                if fetched[2]:
                    assert message[0] in (None, int(fetched[2])), "a number became another message (R2)"
                    message[0] = int(fetched[2])
                message[1] = flag_set(fetched[3])
            else:
                assert re.match(rb"\* (\d+ RECENT|OK |FLAGS |SEARCH|STATUS )", line), line

    def say(self, command, *literals, expunges=True):
        *lines, done = self.client.say(command, *literals)
        self.apply(lines, expunges=expunges)
        assert done.startswith((b"OK ", b"NO [EXPUNGEISSUED] ")), (command, done)
        return done

    def select(self, name):
        self.mailbox, self.messages = name, []
        self.say(f"SELECT {name}")
        self.check()

    def check(self):
        """The picture is what FETCH says, but for messages the server says were expunged by others."""
        *lines, done = self.client.say("FETCH 1:* (UID FLAGS)" if self.messages else "NOOP")
        answered = {}
        for line in lines:
            found = _FETCH.fullmatch(line)
            assert found and int(found[1]) not in answered, line
            answered[int(found[1])] = (int(found[2]), flag_set(found[3]))
        missing = set(range(1, len(self.messages) + 1)) - set(answered)
        assert done.startswith(b"NO [EXPUNGEISSUED] " if missing else b"OK "), (missing, done)
        assert max(answered, default=0) <= len(self.messages)
        actual = self.truth[self.mailbox]
        for seq, (uid, flags) in answered.items():
            message = self.messages[seq - 1]
            assert message[0] in (None, uid) and message[1] in (None, flags), (seq, message, uid, flags)
            message[:] = [uid, flags]
            assert actual[uid][0] == flags, (uid, actual[uid], flags)
        for seq in missing:
            assert self.messages[seq - 1][0] not in actual
        # All that is there is told: what the picture lacks of the mailbox is nothing.
        assert set(actual) <= {uid for uid, _ in self.messages}
        uids = [uid for uid, _ in self.messages if uid is not None]
        assert uids == sorted(set(uids)), "UIDs do not ascend (R7)"


class Walk:
    def __init__(self, random_, clients):
        self.random = random_
        self.truth = {name: {} for name in MAILBOXES}  # UID -> [flags, subject]
        self.highest = dict.fromkeys(MAILBOXES, 0)
        self.number = 0
        self.pictures = [Picture(client, self.truth) for client in clients]

    def some(self, picture):
        """(a set as the client may write it, UIDs meant, whether by UID); None if there is nothing to name."""
        if not picture.messages:
            return None
        count = len(picture.messages)
        seqs = sorted(self.random.sample(range(1, count + 1), self.random.randint(1, min(count, 4))))
        by_uid = self.random.random() < 0.5
        uids = [picture.messages[seq - 1][0] for seq in seqs]
        if not by_uid and self.random.random() < 0.2:
            return f"{count}:*", [picture.messages[-1][0]], False
        names = uids if by_uid else seqs
        self.random.shuffle(names)
        return ",".join(str(name) for name in names), sorted(uids), by_uid

    def arrived(self, mailbox, uid, flags, subject):
        assert uid > self.highest[mailbox], "a UID was reused (R7)"
        self.highest[mailbox] = uid
        self.truth[mailbox][uid] = [set(flags), subject]

    def append(self, picture):
        mailbox, flags = self.random.choice(MAILBOXES), self.random.sample(FLAGS, self.random.randint(0, 2))
        self.number += 1
        text = f"Subject: {self.number}\r\n\r\n"
        done = picture.say(f"APPEND {mailbox} ({' '.join(flags)})", text)
        uid = int(re.search(rb"APPENDUID \d+ (\d+)", done)[1])
        self.arrived(mailbox, uid, {flag.lower() for flag in flags}, self.number)

    def store(self, picture):
        chosen = self.some(picture)
        if chosen is None:
            picture.say("NOOP")
            return
        names, uids, by_uid = chosen
        flags = self.random.sample(FLAGS, self.random.randint(1, 2))
        op, silent = self.random.choice(("+", "-", "")), self.random.random() < 0.5
        actual = self.truth[picture.mailbox]
        lowered = {flag.lower() for flag in flags}
        for uid in uids:
            if uid in actual:
                old = actual[uid][0]
                actual[uid][0] = old | lowered if op == "+" else old - lowered if op == "-" else set(lowered)
        before = [list(message) for message in picture.messages]
        done = picture.say(
            f"{'UID ' * by_uid}STORE {names} {op}FLAGS{'.SILENT' * silent} ({' '.join(flags)})", expunges=by_uid
        )
        if silent:  # the client does by itself what it asked not to be told of
            for uid, old in before:
                if uid in uids:
                    for message in picture.messages:
                        if message[0] == uid and message[1] == old:
                            message[1] = old | lowered if op == "+" else old - lowered if op == "-" else set(lowered)
        assert done.startswith(b"OK ") or (not by_uid and not set(uids) <= set(actual))

    def transfer(self, picture, moving):
        chosen = self.some(picture)
        if chosen is None:
            picture.say("NOOP")
            return
        names, uids, by_uid = chosen
        source, target = picture.mailbox, self.random.choice(MAILBOXES)
        *lines, done = picture.client.say(f"{'UID ' * by_uid}{'MOVE' if moving else 'COPY'} {names} {target}")
        actual = self.truth[source]
        there = [uid for uid in uids if uid in actual]
        if not by_uid and len(there) < len(uids):
            assert done.startswith(b"NO [EXPUNGEISSUED] ") and b"COPYUID" not in b"".join(lines)
        elif there:
            found = re.search(rb"\[COPYUID \d+ (\S+) (\S+)\]", b"\n".join([*lines, done]))
            old, new = (self.numbers(part) for part in found.groups())
            assert sorted(old) == there
            if moving:  # COPYUID comes before the EXPUNGEs (R27)
                kinds = [b"COPYUID" in line for line in lines if b"EXPUNGE" in line or b"COPYUID" in line]
                assert kinds[0]
            copies = [actual[uid] for uid in old]
            for uid, (flags, subject) in sorted(zip(new, copies, strict=True), key=lambda pair: pair[0]):
                self.arrived(target, uid, flags, subject)
            if moving:
                for uid in old:
                    del actual[uid]
        picture.apply(lines)

    @staticmethod
    def numbers(text):
        found = []
        for part in text.split(b","):
            first, _, last = part.partition(b":")
            found += range(int(first), int(last or first) + 1)
        return found

    def expunge(self, picture):
        actual = self.truth[picture.mailbox]
        chosen = self.some(picture) if self.random.random() < 0.5 else None
        within = set(actual)
        command = "EXPUNGE"
        if chosen is not None and chosen[2]:
            command, within = f"UID EXPUNGE {chosen[0]}", set(chosen[1])
        for uid in [uid for uid, (flags, _) in actual.items() if "\\deleted" in flags and uid in within]:
            del actual[uid]
        picture.say(command)

    def step(self):
        picture = self.random.choice(self.pictures)
        if picture.idling is not None:
            picture.apply(picture.client.done(picture.idling)[:-1])
            picture.idling = None
            picture.check()
            return
        act = self.random.choices(
            ("append", "store", "copy", "move", "expunge", "noop", "search", "status", "select", "idle", "close"),
            (20, 25, 8, 8, 10, 6, 4, 3, 3, 10, 2),
        )[0]
        if act == "append":
            self.append(picture)
        elif act == "store":
            self.store(picture)
        elif act in ("copy", "move"):
            self.transfer(picture, act == "move")
        elif act == "expunge":
            self.expunge(picture)
        elif act == "search":
            picture.say("SEARCH NOT DELETED", expunges=False)
        elif act == "status":
            picture.say(f"STATUS {self.random.choice(MAILBOXES)} (MESSAGES UNSEEN)")
        elif act == "select":
            picture.select(self.random.choice(MAILBOXES))
            return
        elif act == "close":
            actual = self.truth[picture.mailbox]
            for uid in [uid for uid, (flags, _) in actual.items() if "\\deleted" in flags]:
                del actual[uid]
            picture.client.ok("CLOSE")
            picture.select(self.random.choice(MAILBOXES))
            return
        elif act == "idle":
            picture.idling = picture.client.idle()
            return
        else:
            picture.say("NOOP")
        picture.check()


@pytest.mark.parametrize("seed", range(12))
def test_r02_r03_r05_r06_walk(serving, dial, files, seed):
    walk = Walk(random.Random(seed), [dial(serving, "ann") for _ in range(3)])
    for picture in walk.pictures:
        picture.select("INBOX" if picture is not walk.pictures[2] or seed % 3 else "Archive")
    for _ in range(STEPS):
        walk.step()
    for picture in walk.pictures:
        if picture.idling is not None:
            picture.client.done(picture.idling)
    for name, folder in zip(MAILBOXES, ("", ".Archive"), strict=True):
        fresh = dial(serving, "ann", select=name)
        assert {uid: {flag.decode().lower() for flag in flags} for uid, flags in fresh.flags().items()} == {
            uid: flags for uid, (flags, _) in walk.truth[name].items()
        }
        for uid, (_, subject) in walk.truth[name].items():
            assert b"Subject: %d\r\n" % subject in fresh.ok(f"UID FETCH {uid} BODY.PEEK[HEADER]")[0]
        assert len(files(serving, "ann", folder)) == len(walk.truth[name])
