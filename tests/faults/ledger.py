"""What the driver sent and saw acknowledged, and what must therefore be on disk.

A *box* is one mailbox of one user. A *place* is one UID in it: which message, with which flags. Before a command is
sent its possible outcomes are entered, when the answer has come the one that was promised. A server that dies leaves
the possible ones; `close` compares all of it with what an independent reader found (`checker.py`), says what was
violated, and goes on from what is there.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

BoxName = tuple[str, str]  # user, mailbox
Flags = frozenset[str]
NO_FLAGS: Flags = frozenset()
MARK = b"X-Token: "


def digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


@dataclass(frozen=True)
class Found:
    """One message as a reader found it."""

    token: str
    digest: str
    flags: Flags


@dataclass
class Place:
    token: str
    flags: list[Flags]  # any of them may be found
    may_go: bool = False


@dataclass
class Box:
    uidvalidity: int = 0
    places: dict[int, Place] = field(default_factory=dict)
    arriving: dict[str, list[Flags]] = field(default_factory=lambda: defaultdict(list))  # token -> flags of each copy
    history: dict[int, str] = field(default_factory=dict)  # every UID that was ever seen, and its message
    uidnext: int = 1


class Ledger:
    def __init__(self, seed: int, run: str = "t") -> None:
        self._random, self._run, self._count = random.Random(seed), run, 0
        self.digests: dict[str, str] = {}  # token -> digest of the text
        self.boxes: dict[BoxName, Box] = defaultdict(Box)
        self.acknowledged: set[tuple[str, str]] = set()  # (token, local user), by 250, not found yet
        self.outward: dict[tuple[str, str], bool] = {}  # (token, address elsewhere) -> acknowledged
        self.moves: list[tuple[BoxName, int, BoxName, str]] = []  # under way
        self.counts: Counter[str] = Counter()

    def message(self, size: int | None = None) -> tuple[str, bytes]:
        """(token, text) of a new message; most are small, some begin their life in a file."""
        self._count += 1
        token = f"{self._run}{self._count}"
        if size is None:
            size = self._random.choice((40, 900, 3_000, 3_000, 9_000, 30_000, 300_000 if self._count % 9 == 0 else 500))
        filler = b"".join(
            b"%064x\r\n" % self._random.getrandbits(256) for _ in range(max(1, size // 66))
        )  # no two lines are the same: a missing page shows
        text = MARK + token.encode() + (
            b"\r\nFrom: bo@example.com\r\nTo: ann@example.com\r\nSubject: Mail " + token.encode() + b"\r\n\r\n"
        ) + filler + b".end " + token.encode() + b"\r\n"  # fmt: skip
        self.digests[token] = digest(text)
        return token, text

    # -------------------------------------------------------------- SMTP

    def sending(self, token: str, users: Iterable[str], elsewhere: Iterable[str] = ()) -> None:
        for user in users:
            self.boxes[user, "INBOX"].arriving[token].append(NO_FLAGS)
        for address in elsewhere:
            self.outward[token, address] = False

    def refused(self, token: str, users: Iterable[str], elsewhere: Iterable[str] = ()) -> None:
        """A refusal that was answered: nothing of it may be there."""
        for user in users:
            self._arrived(self.boxes[user, "INBOX"], token)
        for address in elsewhere:
            del self.outward[token, address]

    def sent(self, token: str, users: Iterable[str], elsewhere: Iterable[str] = ()) -> None:
        """250: from here on it may not be lost."""
        self.acknowledged |= {(token, user) for user in users}
        self.outward |= {(token, address): True for address in elsewhere}
        self.counts["acknowledged"] += 1

    # -------------------------------------------------------------- IMAP

    def appending(self, box: BoxName, token: str, flags: Flags) -> None:
        self.boxes[box].arriving[token].append(flags)

    def appended(self, box: BoxName, token: str, uid: int, flags: Flags) -> None:
        self._arrived(self.boxes[box], token)
        self._enter(box, uid, token, flags)
        self.counts["acknowledged"] += 1

    def not_appended(self, box: BoxName, token: str) -> None:
        self._arrived(self.boxes[box], token)

    def storing(self, box: BoxName, changes: Mapping[int, Flags]) -> None:
        for uid, flags in changes.items():
            self.boxes[box].places[uid].flags.append(flags)

    def stored(self, box: BoxName, changes: Mapping[int, Flags]) -> None:
        for uid, flags in changes.items():
            self.boxes[box].places[uid].flags = [flags]
        self.counts["acknowledged"] += 1

    def not_stored(self, box: BoxName, uids: Iterable[int]) -> None:
        for uid in uids:
            del self.boxes[box].places[uid].flags[1:]

    def copying(self, box: BoxName, uids: Iterable[int], target: BoxName) -> None:
        for uid in uids:
            place = self.boxes[box].places[uid]
            self.boxes[target].arriving[place.token].append(place.flags[0])

    def copied(self, box: BoxName, pairs: Mapping[int, int], target: BoxName) -> None:
        for old, new in pairs.items():
            place = self.boxes[box].places[old]
            self._arrived(self.boxes[target], place.token)
            self._enter(target, new, place.token, place.flags[0])
        self.counts["acknowledged"] += 1

    def not_copied(self, box: BoxName, uids: Iterable[int], target: BoxName) -> None:
        for uid in uids:
            self._arrived(self.boxes[target], self.boxes[box].places[uid].token)

    def moving(self, box: BoxName, uids: Iterable[int], target: BoxName) -> None:
        uids = list(uids)
        self.copying(box, uids, target)
        for uid in uids:
            place = self.boxes[box].places[uid]
            place.may_go = True
            self.moves.append((box, uid, target, place.token))

    def moved(self, box: BoxName, pairs: Mapping[int, int], target: BoxName) -> None:
        self.copied(box, pairs, target)
        self.moves = [move for move in self.moves if move[0] != box or move[1] not in pairs]
        for uid in pairs:
            del self.boxes[box].places[uid]

    def not_moved(self, box: BoxName, uids: Iterable[int], target: BoxName) -> None:
        uids = set(uids)
        self.not_copied(box, uids, target)
        self.moves = [move for move in self.moves if move[0] != box or move[1] not in uids]
        for uid in uids:
            self.boxes[box].places[uid].may_go = False

    def expunging(self, box: BoxName, uids: Iterable[int]) -> None:
        for uid in uids:
            self.boxes[box].places[uid].may_go = True

    def expunged(self, box: BoxName, uids: Iterable[int]) -> None:
        for uid in uids:
            del self.boxes[box].places[uid]
        self.counts["acknowledged"] += 1

    def not_expunged(self, box: BoxName, uids: Iterable[int]) -> None:
        for uid in uids:
            self.boxes[box].places[uid].may_go = False

    @staticmethod
    def _arrived(box: Box, token: str) -> None:
        box.arriving[token].pop(0)
        if not box.arriving[token]:
            del box.arriving[token]

    def _enter(self, name: BoxName, uid: int, token: str, flags: Flags) -> None:
        box = self.boxes[name]
        if uid in box.history:
            raise AssertionError(f"{name}: UID {uid} was given again, to {token}; it was {box.history[uid]}'s")
        box.history[uid] = token
        box.places[uid] = Place(token, [flags])

    # -------------------------------------------------------------- closing

    def close(self, boxes: Mapping[BoxName, tuple[int, Mapping[int, list[Found]]]]) -> list[str]:
        """What was violated, given (UIDVALIDITY, UID -> messages) of every box; afterwards what is there is true."""
        wrong: list[str] = []
        for name in [one for one in self.boxes if one not in boxes]:
            wrong.append(f"{name}: the mailbox is gone")
        known = {name: set(box.places) for name, box in self.boxes.items()}
        for name, (uidvalidity, found) in boxes.items():
            wrong += [f"{name}: {one}" for one in self._close(self.boxes[name], uidvalidity, found, name[0])]
        for source, uid, target, token in self.moves:
            stays = uid in self.boxes[source].places
            came = any(
                place.token == token for new, place in self.boxes[target].places.items() if new not in known[target]
            )
            if stays == came and source != target:
                wrong.append(f"{source}: a MOVE of UID {uid} ({token}) to {target} {'doubled' if stays else 'lost'} it")
        self.moves.clear()
        for token, user in sorted(self.acknowledged):
            wrong.append(f"{user}: {token} was acknowledged by 250 and is not there")
        self.acknowledged.clear()
        return wrong

    def _close(self, box: Box, uidvalidity: int, found: Mapping[int, list[Found]], user: str) -> Iterable[str]:
        self.counts["looked at"] += len(found)
        if box.uidvalidity not in (0, uidvalidity):
            yield f"UIDVALIDITY was {box.uidvalidity}, is {uidvalidity}"
        box.uidvalidity = uidvalidity
        for uid, messages in sorted(found.items()):
            if len(messages) != 1:
                yield f"UID {uid} has {len(messages)} files: {[one.token for one in messages]}"
            yield from self._close_message(box, uid, messages[0], user)
        for uid, place in list(box.places.items()):
            if uid not in found:
                if not place.may_go:
                    yield f"UID {uid} ({place.token}) is lost"
                del box.places[uid]
        box.arriving.clear()

    def _close_message(self, box: Box, uid: int, one: Found, user: str) -> Iterable[str]:
        if self.digests.get(one.token) != one.digest:
            yield f"UID {uid} ({one.token or 'no token'}) is torn or strange"
        if box.history.setdefault(uid, one.token) != one.token:
            yield f"UID {uid} was {box.history[uid]}'s, is {one.token}'s: reused or moved"
        place = box.places.get(uid)
        if place is not None:
            if one.flags not in place.flags:
                yield f"UID {uid} ({one.token}) has flags {set(one.flags)}, acknowledged were {place.flags}"
        elif one.token in box.arriving:
            expected = box.arriving[one.token]
            if one.flags not in expected:
                yield f"UID {uid} ({one.token}) arrived with flags {set(one.flags)}, not {expected}"
            self._arrived(box, one.token)
            self.acknowledged.discard((one.token, user))
        else:
            yield f"UID {uid} ({one.token}) should not be there (any more)"
        box.places[uid] = Place(one.token, [one.flags])
