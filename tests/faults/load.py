"""What the server is killed under: deliveries to mailboxes here and to a server elsewhere, and mail clients at work.

Every step is entered in the ledger before it is sent, and again when its answer has come. A connection that ends is the
end of that worker, not an error; an answer that refuses is one.
"""

from __future__ import annotations

import random
import re
import smtplib
from collections import Counter
from collections.abc import Iterable

import gevent
from gevent.pool import Group

from tests.fakes.sink import FakeSink
from tests.faults.checker import queued, read_text
from tests.faults.ledger import BoxName, Flags, Ledger
from tests.faults.server import DOMAIN, SECONDS, USERS, Client, Refused, Server, until

AWAY, ELSEWHERE = f"away@{DOMAIN}", "x@out.test"  # an alias of ours, and where it leads
OWN = ("Work", "Done")  # mailboxes that the clients make
FLAGS = ("\\Seen", "\\Flagged", "\\Answered", "\\Draft", "$Later")
MANY = 60  # messages in a mailbox, from which on more is removed than added
GONE = (OSError, smtplib.SMTPServerDisconnected, ConnectionError, ValueError, AssertionError)


def settings(sink: FakeSink) -> dict[str, object]:
    """Of a server whose mail for elsewhere goes to the sink, at once and again soon."""
    return {
        "relay.routes": [{"recipient": ["out.test"], "host": "127.0.0.1", "port": sink.port, "tls": "none"}],
        "queue.retry_seconds": [1, 2], "queue.outbox": False,
    }  # fmt: skip


def prepare(server: Server, ledger: Ledger) -> None:
    """The mailboxes the load works in, on a server that runs."""
    server.accounts.add_alias(AWAY, [ELSEWHERE])
    for user in USERS:
        client = Client(server, user)
        for name in OWN:
            client.run(f"CREATE {name}")
        client.close()
    ledger.close(server.maildirs().boxes())


class Load:
    """Runs from `start` until the server is gone or `stop`."""

    def __init__(self, server: Server, ledger: Ledger, seed: int, *, deliverers: int = 3) -> None:
        self._server, self._ledger, self._deliverers = server, ledger, deliverers
        self._seed, self._round = seed, 0
        self._group = Group()
        self._stopping = False
        self.refused: list[str] = []
        self.counts: Counter[str] = Counter()

    def start(self) -> None:
        self._stopping = False
        self._round += 1
        for number in range(self._deliverers):
            self._group.spawn(self._deliver, random.Random(f"{self._seed} {self._round} smtp {number}"))
        for user in USERS:
            self._group.spawn(self._work, user, random.Random(f"{self._seed} {self._round} {user}"))

    def join(self) -> None:
        """After the server was killed: until everybody has seen it."""
        with gevent.Timeout(SECONDS):
            self._group.join()

    def stop(self) -> None:
        self._stopping = True
        self.join()

    # -------------------------------------------------------------- SMTP

    def _deliver(self, choice: random.Random) -> None:
        try:
            with smtplib.SMTP("127.0.0.1", self._server.ports["smtp"], "load.example", timeout=SECONDS) as client:
                while not self._stopping:
                    self._send(client, choice)
                    gevent.sleep(choice.random() * 0.01)
        except GONE:
            pass

    def _send(self, client: smtplib.SMTP, choice: random.Random) -> None:
        users = choice.sample(USERS, choice.choice((0, 1, 1, 1, 2, 3)))
        elsewhere = [ELSEWHERE] if not users or choice.random() < 0.3 else []
        token, text = self._ledger.message()
        self._ledger.sending(token, users, elsewhere)
        recipients = [f"{user}@{DOMAIN}" for user in users] + [AWAY] * len(elsewhere)
        try:
            client.sendmail(f"cy@{DOMAIN}", recipients, text)
        except smtplib.SMTPServerDisconnected:
            raise
        except smtplib.SMTPException as refusal:
            self._ledger.refused(token, users, elsewhere)
            if self._is_refusal(str(refusal)):
                return
            raise
        self._ledger.sent(token, users, elsewhere)
        self.counts["messages acknowledged"] += 1

    def _is_refusal(self, words: str) -> bool:
        self.refused.append(words)
        return True

    # -------------------------------------------------------------- IMAP

    def _work(self, user: str, choice: random.Random) -> None:
        try:
            client = Client(self._server, user)
        except GONE:
            return
        selected = ""
        acts = (self._append, self._append, self._store, self._store, self._copy, self._move, self._move, self._expunge)
        try:
            while not self._stopping:
                box = (user, choice.choice(("INBOX", *OWN)))
                if selected != box[1]:
                    client.run(f"SELECT {box[1]}")
                    selected = box[1]
                many = len(self._ledger.boxes[box].places) > MANY
                (self._expunge if many else choice.choice(acts))(client, box, choice)
                gevent.sleep(choice.random() * 0.005)
        except Refused as refusal:
            self.refused.append(str(refusal))
        except GONE:
            pass
        finally:
            client.close()

    def _some(self, box: BoxName, choice: random.Random, most: int = 4) -> list[int]:
        known = [
            uid for uid, place in self._ledger.boxes[box].places.items() if not place.may_go and len(place.flags) == 1
        ]
        return sorted(choice.sample(known, min(len(known), choice.randint(1, most))))

    def _other(self, box: BoxName, choice: random.Random) -> BoxName:
        return box[0], choice.choice([name for name in OWN if name != box[1]])

    def _append(self, client: Client, box: BoxName, choice: random.Random) -> None:
        token, text = self._ledger.message()
        flags: Flags = frozenset(choice.sample(FLAGS, choice.randint(0, 2)))
        self._ledger.appending(box, token, flags)
        lines = client.run(f"APPEND {box[1]} ({' '.join(sorted(flags))})", text)
        found = re.search(rb"\[APPENDUID \d+ (\d+)\]", lines[-1])
        assert found is not None, lines[-1]
        self._ledger.appended(box, token, int(found[1]), flags)
        self.counts["APPEND"] += 1

    def _store(self, client: Client, box: BoxName, choice: random.Random, flags: Flags | None = None) -> None:
        uids = self._some(box, choice)
        if not uids:
            return
        op = choice.choice(("+FLAGS", "-FLAGS", "FLAGS"))
        flags = frozenset(choice.sample(FLAGS, choice.randint(1, 2)))
        self._change(client, box, uids, op, flags)

    def _change(self, client: Client, box: BoxName, uids: list[int], op: str, flags: Flags) -> None:
        places = self._ledger.boxes[box].places
        change = {"+FLAGS": frozenset.union, "-FLAGS": frozenset.difference, "FLAGS": lambda old, new: new}[op]
        changes = {uid: change(places[uid].flags[0], flags) for uid in uids}
        self._ledger.storing(box, changes)
        client.run(f"UID STORE {numbers(uids)} {op} ({' '.join(sorted(flags))})")
        self._ledger.stored(box, changes)
        self.counts["STORE"] += 1

    def _copy(self, client: Client, box: BoxName, choice: random.Random) -> None:
        uids, target = self._some(box, choice), self._other(box, choice)
        if uids:
            self._ledger.copying(box, uids, target)
            self._ledger.copied(box, pairs(client.run(f"UID COPY {numbers(uids)} {target[1]}")), target)
            self.counts["COPY"] += 1

    def _move(self, client: Client, box: BoxName, choice: random.Random) -> None:
        uids, target = self._some(box, choice), self._other(box, choice)
        if uids:
            self._ledger.moving(box, uids, target)
            self._ledger.moved(box, pairs(client.run(f"UID MOVE {numbers(uids)} {target[1]}")), target)
            self.counts["MOVE"] += 1

    def _expunge(self, client: Client, box: BoxName, choice: random.Random) -> None:
        uids = self._some(box, choice, 20 if len(self._ledger.boxes[box].places) > MANY else 4)
        if choice.random() < 0.3 and (last := max(self._ledger.boxes[box].places, default=0)) in self._some(
            box, choice, 99
        ):
            uids = sorted({*uids, last})  # the newest: whoever counts messages gives its UID again
        if uids:
            self._change(client, box, uids, "+FLAGS", frozenset({"\\Deleted"}))
            self._ledger.expunging(box, uids)
            client.run(f"UID EXPUNGE {numbers(uids)}")
            self._ledger.expunged(box, uids)
            self.counts["EXPUNGE"] += 1


def numbers(uids: list[int]) -> str:
    return ",".join(map(str, uids))


def pairs(lines: list[bytes]) -> dict[int, int]:
    """Old UID -> new UID, as COPYUID says (RFC 4315)."""
    found = re.search(rb"\[COPYUID \d+ (\S+) (\S+)\]", b"".join(lines))
    assert found is not None, lines
    return dict(zip(_spread(found[1].decode()), _spread(found[2].decode()), strict=True))


def _spread(text: str) -> list[int]:
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition(":")
        found.extend(range(int(first), int(last or first) + 1))
    return found


class Elsewhere:
    """The other side of the ledger for what left: how often each message came, with which text."""

    def __init__(self, sink: FakeSink) -> None:
        self.sink, self.came, self.wrong = sink, Counter[tuple[str, str]](), list[str]()

    def look(self, ledger: Ledger) -> None:
        while self.sink.messages:
            message = self.sink.messages.pop(0)
            token, text = read_text(message.text)
            if ledger.digests.get(token) != text:
                self.wrong.append(f"elsewhere: {token or 'no token'} came torn or strange")
            self.came.update((token, one) for one in message.recipients)

    def close(self, ledger: Ledger, server: Server) -> list[str]:
        """What is neither elsewhere nor on its way there, though it was acknowledged."""
        waiting, wrong = queued(server.data / "queue")
        self.look(ledger)  # after the queue: what left it meanwhile has come
        wrong += self.wrong
        self.wrong = []
        for (token, address), text in waiting.items():
            if ledger.digests.get(token) != text:
                wrong.append(f"queue: {token or 'no token'} to {address} is torn or strange")
        for (token, address), acknowledged in ledger.outward.items():
            if acknowledged and (token, address) not in waiting and not self.came[token, address]:
                wrong.append(f"{address}: {token} was acknowledged by 250 and is neither queued nor elsewhere")
        return wrong

    def drained(self, ledger: Ledger, server: Server) -> list[str]:
        """The same when the queue is empty, for which a server that runs is given time."""
        until(lambda: not queued(server.data / "queue")[0], "the queue is empty")
        return self.close(ledger, server)

    @property
    def doubled(self) -> int:
        return sum(count - 1 for count in self.came.values())


def deliver(server: Server, ledger: Ledger, users: Iterable[str], elsewhere: Iterable[str] = ()) -> str:
    """One message that must be taken: to these users, and by the alias to those elsewhere. Its token."""
    token, text = ledger.message(900)
    users, elsewhere = list(users), list(elsewhere)
    ledger.sending(token, users, elsewhere)
    with smtplib.SMTP("127.0.0.1", server.ports["smtp"], "load.example", timeout=SECONDS) as client:
        client.sendmail(f"cy@{DOMAIN}", [f"{user}@{DOMAIN}" for user in users] + [AWAY] * len(elsewhere), text)
    ledger.sent(token, users, elsewhere)
    return token
