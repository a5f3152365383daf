"""The clients of the soak, each a greenlet that goes on until it is told to stop, and comes back when it is cut off."""

import random
import re
import smtplib
import time
from collections import Counter
from contextlib import contextmanager

import gevent

from tests.conftest import DOMAIN, PASSWORD
from tests.model.responses import Fault, Wire, connect

KEPT_MESSAGES, CUT_MESSAGES = 150, 75
_TOKEN = re.compile(rb"X-Soak: (\S+)")
now = time.monotonic


class Ledger:
    """What was accepted, what is in doubt because nobody answered, and how often each was seen."""

    def __init__(self):
        self.accepted, self.doubtful, self.seen = {}, set(), Counter()
        self.counts = Counter()
        self.wrong = []

    def missing(self):
        return [token for token in self.accepted if not self.seen[token]]

    def problems(self):
        doubled = [token for token, count in self.seen.items() if count > 1]
        strange = [token for token in self.seen if token not in self.accepted and token not in self.doubtful]
        return [
            *self.wrong, *(f"lost: {token}" for token in self.missing()), *(f"twice: {token}" for token in doubled),
            *(f"from nowhere: {token}" for token in strange),
        ]  # fmt: skip


@contextmanager
def closed_if_it_fails(client):
    """A server that ends between a client's first words leaves it to nobody else."""
    try:
        yield
    except BaseException:
        client.close()
        raise


class Imap:
    """A session with a mailbox selected: what it was told of its size, and commands."""

    def __init__(self, server, user, service):
        self.service = service
        if service == "imaps":
            self.wire = Wire(server.connect("imaps"))
        else:
            self.wire = connect(server.ports["imap"])
        self.number, self.count = 0, 0
        with closed_if_it_fails(self):
            self.wire.response()
            self.say(f'LOGIN {user}@{DOMAIN} "{PASSWORD}"')

    def take(self, response):
        if response.kind == "EXISTS":
            self.count = response.number
        elif response.kind == "EXPUNGE":
            self.count -= 1
        elif response.kind == "BYE":
            raise Fault("connection", response.text)

    def say(self, text, literal=None):
        """The untagged responses and the tagged one."""
        self.number += 1
        tag = f"s{self.number}"
        self.wire.send(
            f"{tag} {text}\r\n".encode()
            if literal is None
            else f"{tag} {text} {{{len(literal)}+}}\r\n".encode() + literal + b"\r\n"
        )
        lines = []
        while (response := self.wire.response()).tag != tag:
            self.take(response)
            lines.append(response)
        if response.kind != "OK":
            raise Fault("refused", f"{text}: {response.raw!r}")
        return lines, response

    def idle(self, seconds, ended):
        self.number += 1
        tag = f"s{self.number}"
        self.wire.send(f"{tag} IDLE\r\n".encode())
        end = now() + seconds
        while now() < end and not ended():
            if self.wire.waiting(0.05):
                self.take(self.wire.response())
        self.wire.send(b"DONE\r\n")
        while (response := self.wire.response()).tag != tag:
            self.take(response)

    def close(self):
        self.wire.close()


class Actor:
    """Does `step` again and again; a connection that breaks is made anew."""

    def __init__(self, soak, name, user):
        self.soak, self.server, self.ledger = soak, soak.server, soak.ledger
        self.name, self.user = name, user
        self.dice = random.Random(f"{soak.seed} {name}")
        self.client = None
        self.sent = 0

    def run(self):
        while not self.soak.ending:
            try:
                if self.client is None:
                    self.client = self.begin()
                self.step()
                self.ledger.counts[type(self).__name__.lower()] += 1
            except Fault as fault:
                if fault.kind != "connection":
                    self.ledger.wrong.append(f"{self.name}: {fault}")
                self._broken()
            except (OSError, smtplib.SMTPException):
                self._broken()

    def _broken(self):
        self.ledger.counts["connections lost"] += 1
        self.drop()
        gevent.sleep(0.1 + self.dice.random() * 0.3)

    def drop(self):
        if self.client is not None:
            self.client.close()
            self.client = None

    def pause(self, seconds):
        gevent.sleep(seconds * (0.5 + self.dice.random()))

    def service(self):
        return self.dice.choice(("imap", "imaps"))

    def begin(self):
        client = Imap(self.server, self.user, self.service())
        with closed_if_it_fails(client):
            client.say("SELECT INBOX")
        return client

    def message(self, size):
        self.sent += 1
        token = f"{self.name}.{self.sent}"
        head = f"From: <soak@elsewhere.example>\r\nTo: <{self.user}@{DOMAIN}>\r\nSubject: {token}\r\n"
        return token, (
            f"{head}X-Soak: {token}\r\n\r\n" + "What is said goes on for some time.\r\n" * (size // 37 + 1)
        ).encode()

    def handing_over(self, token, act):
        """An acceptance that may be cut off: then nobody knows."""
        self.ledger.doubtful.add(token)
        act()
        self.ledger.doubtful.discard(token)
        self.ledger.accepted[token] = now()


class Idler(Actor):
    def step(self):
        self.client.idle(10 + 30 * self.dice.random(), lambda: self.soak.ending)
        if self.dice.random() < 0.3 and not self.soak.ending:
            self.drop()


class Fetcher(Actor):
    def step(self):
        asked = self.dice.choice((
            "FETCH 1:* (UID FLAGS)", "FETCH 1:* ENVELOPE", "UID FETCH 1:* (BODYSTRUCTURE RFC822.SIZE)", "NOOP",
            "UID FETCH * BODY.PEEK[]", "UID STORE * +FLAGS (\\Seen)", "STATUS Archive (MESSAGES UNSEEN)",
            "SELECT Archive", "SELECT INBOX",
        ))  # fmt: skip
        if asked.startswith("FETCH") and not self.client.count:
            asked = "NOOP"
        try:
            self.client.say(asked)
        except Fault as fault:
            if "EXPUNGEISSUED" not in str(fault):
                raise
        self.pause(0.15)


class Searcher(Actor):
    def step(self):
        key = self.dice.choice(("TEXT goes", "SUBJECT M", "UNSEEN", "BODY nowhere", "NOT DELETED LARGER 4000"))
        self.client.say(f"UID SEARCH {key}")
        self.pause(0.4)


class Appender(Actor):
    def step(self):
        token, text = self.message(int(30_000 * self.dice.random() ** 4))
        self.handing_over(token, lambda: self.client.say("APPEND INBOX (\\Draft work)", text))
        self.pause(0.3)


class Sender(Actor):
    """To INBOX by SMTP, ten messages on a connection; a third of them as a user, through submission under TLS."""

    def begin(self):
        if self.dice.random() < 1 / 3:
            client = smtplib.SMTP_SSL(
                "127.0.0.1", self.server.ports["submissions"], timeout=60, context=self.server.tls
            )
            with closed_if_it_fails(client):
                client.login(f"{self.user}@{DOMAIN}", PASSWORD)
            self.origin = f"{self.user}@{DOMAIN}"
        else:
            client = smtplib.SMTP("127.0.0.1", self.server.ports["smtp"], timeout=60)
            self.origin = "soak@elsewhere.example"
        return client

    def step(self):
        token, text = self.message(int(60_000 * self.dice.random() ** 4))
        if self.origin.endswith(DOMAIN):
            text = text.replace(b"<soak@elsewhere.example>", f"<{self.origin}>".encode())
        self.handing_over(token, lambda: self.client.sendmail(self.origin, [f"{self.user}@{DOMAIN}"], text))
        if self.sent % 10 == 0:
            self.drop()
        self.pause(0.2)


class Comer(Actor):
    """Logs in and goes, over and over, with and without TLS."""

    def step(self):
        self.client.say('LIST "" *')
        self.drop()
        self.pause(0.5)


class Keeper(Actor):
    """Reads which messages arrived, each once, and removes the oldest so that the mailbox stays as large as it is."""

    def __init__(self, *args):
        super().__init__(*args)
        self.last, self.uids = 0, []

    def step(self):
        self.look()
        self.pause(0.3)

    def look(self):
        self.client.say("NOOP")  # a UID names what the client was told of, `*` the last of that
        lines, _ = self.client.say(f"UID FETCH {self.last + 1}:* (UID BODY.PEEK[HEADER.FIELDS (X-SOAK)])")
        for line in lines:
            if line.kind != "FETCH" or "BODY[HEADER.FIELDS (X-SOAK)]" not in line.items:
                continue
            uid = int(line.items["UID"])
            if uid <= self.last:  # `n:*` names the last message in any case
                continue
            self.ledger.seen[_TOKEN.search(line.items["BODY[HEADER.FIELDS (X-SOAK)]"])[1].decode()] += 1
            self.uids.append(uid)
        self.last = max([self.last, *self.uids])
        if len(self.uids) > KEPT_MESSAGES:
            going = self.uids[:CUT_MESSAGES]
            self.client.say(f"UID STORE {going[0]}:{going[-1]} +FLAGS.SILENT (\\Deleted)")
            self.client.say(f"UID EXPUNGE {going[0]}:{going[-1]}")
            del self.uids[:CUT_MESSAGES]  # not before: the connection may be cut, and all is done again
