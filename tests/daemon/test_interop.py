"""Mail between two mailsrv servers, Postfix and smtp-sink, over loopback: a ledger of what became of every recipient.

    a.test  mailsrv, two workers  127.0.0.2     d.test     smtp-sink that takes everything, no MX    127.0.0.5
    b.test  mailsrv               127.0.0.3     soft.test  smtp-sink that answers RCPT with 450      127.0.0.6
    c.test  Postfix               127.0.0.4     hard.test  smtp-sink that answers RCPT with 500      127.0.0.7
            its best MX is dead   127.0.0.9     dead.test  nobody listens                            127.0.0.8

and null.test (null MX), broken.test (SERVFAIL), nowhere.test (no such domain). A server that finds an address of its
machine at a port where it takes mail takes it for itself, rightly; so there are two ports. A listens at one and sends
to the other, B the other way round, and everybody else listens at both.
"""

from __future__ import annotations

import email
import email.policy
import hashlib
import json
import random
import smtplib
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from datetime import datetime, timedelta
from email.message import EmailMessage
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import PASSWORD, USERS, free_ports
from tests.daemon.conftest import SECONDS, Daemon
from tests.fakes.dns import SERVFAIL, FakeDns
from tests.fakes.postfix import Postfix, SmtpSink

SUBMISSIONS = 60
DELIVERED, REPORTED, QUEUED = "delivered", "reported", "queued"
# Who can be written to, and what must become of it.
FATES = {
    **{f"{user}@{domain}": DELIVERED for domain in ("a.test", "b.test") for user in USERS},
    "pat@c.test": DELIVERED, "quin@c.test": DELIVERED, "x@d.test": DELIVERED, "y@d.test": DELIVERED,
    "away@a.test": DELIVERED, "gone@a.test": REPORTED,  # aliases: to forwarded@c.test, and to nobody there
    "unknown@a.test": REPORTED, "unknown@b.test": REPORTED, "unknown@c.test": REPORTED, "x@hard.test": REPORTED,
    "x@null.test": REPORTED, "x@nowhere.test": REPORTED,
    "x@soft.test": QUEUED, "x@broken.test": QUEUED, "x@dead.test": QUEUED, "y@dead.test": QUEUED,
}  # fmt: skip
BEHIND = {"forwarded@c.test": "away@a.test", "nobody@c.test": "gone@a.test"}  # where the aliases lead to
BODIES = (
    "Text.\r\n",
    ".\r\n..\r\n.dots\r\n\r\n\r\n",
    "Grüße aus Zürich, 8 bits each.\r\n",
    "x" * 998 + "\r\n" + "From here\r\n" * 2_000,
)


def digest(body: bytes) -> str:
    """Of a body as sent, or as kept by a server that writes LF."""
    return hashlib.sha256(body.replace(b"\r\n", b"\n")).hexdigest()


def parsed(text: bytes) -> EmailMessage:
    message = email.message_from_bytes(text, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    return message


Outcome = tuple[str, str, str]  # token, recipient as the sender wrote it, what became of it


class Sent(NamedTuple):
    sender: str
    digest: str


class Ledger:
    """What was accepted, and what has become of it; each as (token, recipient as the sender wrote it)."""

    def __init__(self) -> None:
        self.sent: dict[str, Sent] = {}
        self.fates: dict[tuple[str, str], str] = {}
        self.refused: set[tuple[str, str]] = set()
        self._read: dict[tuple[str, bytes], list[Outcome]] = {}

    def send(self, client: smtplib.SMTP, sender: str, recipients: list[str], *, refused: set[str]) -> None:
        token = f"t{len(self.sent)}"
        body = (BODIES[len(self.sent) % len(BODIES)] + f"{token}\r\n").encode()
        header = f"From: {sender}\r\nTo: {', '.join(recipients)}\r\nSubject: Mail {token}\r\nX-Token: {token}\r\n"
        mime = "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
        answers = client.sendmail(sender, recipients, (header + mime).encode() + body, ["BODY=8BITMIME"])
        assert set(answers) == refused and all(code == 550 for code, _ in answers.values())
        self.sent[token] = Sent(sender, digest(body))
        self.refused |= {(token, one) for one in refused}
        self.fates |= {(token, one): FATES[one] for one in recipients if one not in refused}

    def of_mail(self, recipient: str, text: bytes) -> list[Outcome]:
        """What one message in a mailbox says about one that was sent."""
        if (recipient, text) not in self._read:
            self._read[recipient, text] = self._of_mail(recipient, text)
        return self._read[recipient, text]

    def _of_mail(self, recipient: str, text: bytes) -> list[Outcome]:
        token = parsed(text)["X-Token"]
        if token is None:
            return self._of_report(recipient, text)
        head, _, body = text.replace(b"\r\n", b"\n").partition(b"\n\n")
        assert digest(body) == self.sent[token].digest, (recipient, head)
        return [(str(token), BEHIND.get(recipient, recipient), DELIVERED)]

    def _of_report(self, reader: str, text: bytes) -> list[Outcome]:
        """RFC 3464, as Python's email package understands it."""
        report = parsed(text)
        assert report.get_content_type() == "multipart/report", text
        assert report.get_param("report-type") == "delivery-status" and report["Return-Path"] == "<>", text
        assert [part.defects for part in report.walk() if part.defects] == [], text
        words, status, returned = report.iter_parts()
        assert words.get_content_type() == "text/plain" and status.get_content_type() == "message/delivery-status"
        if returned.get_content_type() == "message/rfc822":
            [original] = returned.get_payload()
        else:
            original = parsed(returned.get_payload(decode=True))
        token = str(original["X-Token"])
        assert self.sent[token].sender == reader, text
        of_message, *of_recipients = status.get_payload()
        assert of_message["Reporting-MTA"] is not None and of_recipients != []
        found = []
        for fields in of_recipients:
            final = str(fields["Final-Recipient"]).partition(";")[2].strip()
            assert fields["Action"] == "failed" and fields["Status"].startswith("5.") and final in words.get_content()
            written = str(fields["Original-Recipient"] or "").partition(";")[2].strip() or final
            if reader.endswith("@a.test"):  # to others a report does not say where an alias leads to
                written = BEHIND.get(written, written)
            found.append((token, written, REPORTED))
        return found


class World:
    """Everybody, and what can be seen of them from outside."""

    def __init__(self, a: Daemon, b: Daemon, postfix: Postfix, sinks: list[SmtpSink]) -> None:
        self.daemons, self.postfix, self.sinks, self.ledger = (a, b), postfix, sinks, Ledger()

    def submit(self, server: Daemon, user: str, recipients: list[str], refused: set[str]) -> None:
        with smtplib.SMTP_SSL("127.0.0.1", server.ports["submissions"], context=server.tls) as client:
            client.login(f"{user}@{server.domain}", PASSWORD)
            self.ledger.send(client, f"{user}@{server.domain}", recipients, refused=refused)

    def arrived(self) -> list[Outcome]:
        """Deliveries and reports, an entry for each: one too many shows."""
        found = []
        for server in self.daemons:
            for user in USERS:
                for path in server.files(user):
                    found += self.ledger.of_mail(f"{user}@{server.domain}", path.read_bytes())
        for path in self.postfix.mail.glob("*/Maildir/new/*"):
            found += self.ledger.of_mail(f"{path.parts[-4]}@c.test", path.read_bytes())
        for sink in self.sinks:
            for recipients, text in sink.mails():
                for one in recipients:
                    found += self.ledger.of_mail(one, text)
        return found

    def queued(self) -> list[Outcome]:
        """What waits with an attempt behind it and none soon. Raises Busy while anything is on its way."""
        found = []
        for server in self.daemons:
            soon = datetime.now().astimezone() + timedelta(seconds=20)
            for entry in json.loads(server.command("queue", "list", "--limit", "1000", "--json").stdout):
                if entry["state"] != "deferred" or datetime.fromisoformat(entry["next_at"]) < soon:
                    raise Busy(entry)
                spool = Path(server.settings["server.data_dir"]) / "queue"
                [path] = spool.glob(f"??/{entry['id']}.eml")
                token = str(parsed(path.read_bytes())["X-Token"])
                found += [(token, one, QUEUED) for one in entry["recipients"]]
        if waiting := self.postfix.waiting():
            raise Busy(waiting)
        return found

    def at_rest(self) -> Counter[Outcome]:
        """What has become of everything that was accepted, as soon as no more can come."""
        wanted = {(*pair, fate) for pair, fate in self.ledger.fates.items() if fate != QUEUED}
        end = time.monotonic() + 2 * SECONDS
        while True:
            arrived = self.arrived()
            try:
                if wanted <= set(arrived):
                    return Counter(self.queued() + self.arrived())
            except Busy as busy:
                assert time.monotonic() < end, f"not at rest: {busy}"
            assert time.monotonic() < end, (
                f"not in time: {wanted - set(arrived)}; {set(arrived) - wanted}; {self.states()}"
            )
            time.sleep(0.2)

    def states(self) -> list[str]:
        """For whoever has to find out why a test failed."""
        return [server.command("queue", "list").stdout for server in self.daemons]

    def balance(self) -> Counter[Outcome]:
        """The ledger closed: what each accepted recipient must come to, once."""
        return Counter((*pair, fate) for pair, fate in self.ledger.fates.items())


class Busy(Exception):
    """Something is still on its way."""


@pytest.fixture
def directory() -> Iterator[Path]:
    """One that programs which gave up root may pass through, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="mailsrv-interop-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def two_ports() -> tuple[int, int]:
    """Free at every address."""
    one, other = free_ports(2, "0.0.0.0")
    return one, other


def fill(dns: FakeDns) -> None:
    for number, domain in ((2, "a.test"), (3, "b.test"), (4, "c.test"), (6, "soft.test"), (7, "hard.test"),
                           (8, "dead.test")):  # fmt: skip
        dns.add(domain, "MX", f"10 mx.{domain}.")
        dns.add(f"mx.{domain}", "A", f"127.0.0.{number}")
    dns.add("c.test", "MX", "10 mx.c.test.", "5 away.c.test.")
    dns.add("away.c.test", "A", "127.0.0.9")
    dns.add("d.test", "A", "127.0.0.5")
    dns.add("null.test", "MX", "0 .")
    dns.fail("broken.test", "MX", SERVFAIL)


@pytest.mark.timeout(400)
def test_whatever_was_accepted_is_delivered_reported_or_queued_once(
    directory, certificate, authority_path, password_hash
):
    ports = two_ports()
    with ExitStack() as stack:
        dns = stack.enter_context(FakeDns())
        fill(dns)

        def daemon(domain: str, address: str, mine: int, others: int, workers: int) -> Daemon:
            (directory / domain).mkdir()
            one = Daemon(directory / domain, certificate, authority_path, password_hash, domain, **{
                "server.hostname": f"mx.{domain}", "server.workers": workers, "relay.port": others,
                "smtp.listen": [f"127.0.0.1:{free_ports(1)[0]}", f"{address}:{mine}"],
                "dns.nameservers": ["127.0.0.1"], "dns.port": dns.port,
            })  # fmt: skip
            stack.callback(one.close)
            return one

        def sink(domain: str, address: str, *options: str) -> SmtpSink:
            one = SmtpSink(directory / domain, address, ports, *options)
            stack.callback(one.close)
            return one

        a, b = daemon("a.test", "127.0.0.2", *ports, 2), daemon("b.test", "127.0.0.3", *reversed(ports), 1)
        a.accounts.add_alias("away@a.test", ["forwarded@c.test"])
        a.accounts.add_alias("gone@a.test", ["nobody@c.test"])
        ways = {"a.test": f"smtp:[127.0.0.2]:{ports[0]}", "b.test": f"smtp:[127.0.0.3]:{ports[1]}"}
        users = ("pat", "quin", "forwarded")
        postfix = stack.enter_context(
            Postfix(directory / "c.test", "c.test", users, "127.0.0.4", ports, ways, certificate)
        )  # fmt: skip
        sinks = [sink("d.test", "127.0.0.5"), sink("soft.test", "127.0.0.6", "-r", "RCPT"),
                 sink("hard.test", "127.0.0.7", "-f", "RCPT")]  # fmt: skip
        a.start()
        b.start()
        world = World(a, b, postfix, sinks)

        write_to_everybody(world, ports)
        assert world.at_rest() == world.balance()
        assert not world.ledger.refused & {outcome[:2] for outcome in world.arrived()}
        assert_protected(world)
        assert {fate for _, _, fate in world.balance()} == {DELIVERED, REPORTED, QUEUED}

        assert [server.stop() for server in world.daemons] == [0, 0]
        assert Counter(world.arrived()) == Counter(one for one in world.balance().elements() if one[2] != QUEUED)


def write_to_everybody(world: World, ports: Sequence[int]) -> None:
    """Each recipient is written to from both servers; most messages have several, always the same ones."""
    choice = random.Random(3)
    for number in range(SUBMISSIONS):
        server, user = world.daemons[number % 2], USERS[number // 2 % 3]
        recipients = choice.sample(sorted(FATES), choice.randint(1, 5))
        unknown = f"unknown@{server.domain}"
        if unknown in recipients and len(recipients) == 1:
            recipients.append("x@d.test")
        world.submit(server, user, recipients, {unknown} & set(recipients))
    of_ours = [one for one in sorted(FATES) if one.endswith(("@a.test", "@b.test"))]
    for port in ports * 6:
        with smtplib.SMTP("127.0.0.4", port) as client:
            world.ledger.send(client, "pat@c.test", choice.sample(of_ours, choice.randint(1, 3)), refused=set())
    for kind in (DELIVERED, REPORTED, QUEUED):
        assert kind in world.ledger.fates.values()
    assert {one for _, one in world.ledger.fates} == set(FATES)


def hops(texts: Iterable[bytes], by: str) -> list[str]:
    """The newest Received lines of messages that came from that host."""
    newest = [str(parsed(text)["Received"]) for text in texts]
    return [line for line in newest if line.startswith(f"from {by} ")]


def assert_protected(world: World) -> None:
    """The three servers talk to each other in TLS, whoever begins."""
    in_a, in_b = ([path.read_bytes() for user in USERS for path in one.files(user)] for one in world.daemons)
    in_c = [path.read_bytes() for path in world.postfix.mail.glob("*/Maildir/new/*")]
    for texts, by, said in (
        (in_b, "mx.a.test", "with ESMTPS"), (in_a, "mx.b.test", "with ESMTPS"), (in_a, "mx.c.test", "with ESMTPS"),
        (in_b, "mx.c.test", "with ESMTPS"), (in_c, "mx.a.test", "using TLSv1.3"), (in_c, "mx.b.test", "using TLSv1.3"),
    ):  # fmt: skip
        found = hops(texts, by)
        assert found and all(said in line for line in found), (by, said, found)
