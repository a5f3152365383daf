"""The story of a message, from logs that real servers wrote, and from logs as others pass them on."""

import gzip
import json
import random
import re
import smtplib
import string
import subprocess
import sys

import pytest

from mailsrv import log, story
from tests.conftest import PASSWORD
from tests.daemon.conftest import ROOT, SECONDS, until
from tests.daemon.test_status import answer, both_workers


def send(server, message_id, to="ann@example.com", sender="x@elsewhere.org"):
    """Deliver one message; the id that the 250 names."""
    with smtplib.SMTP("127.0.0.1", server.ports["smtp"]) as client:
        client.ehlo("client.test")
        client.mail(sender)
        for one in to if isinstance(to, list) else [to]:
            client.rcpt(one)
        code, text = client.data(f"Message-ID: {message_id}\r\nSubject: Hello\r\n\r\nText.\r\n")
    assert code == 250
    return text.decode().split()[-1]


def trace(server, *words):
    done = server.command("trace", *words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def events_of(told):
    return [line["event"] for line in told["lines"]]


def pushed_to(server, about, count):
    """The story once `count` workers have told of their pushes, and nobody has anything to add."""
    before = None

    def complete():
        nonlocal before
        done = server.command("trace", about, "--json")
        told, earlier = json.loads(done.stdout or "[]"), before
        before = told
        return told if told and events_of(told[0]).count("pushed") >= count and told == earlier else None

    return until(complete, "the pushes are in the log")


@pytest.mark.parametrize("form", ["logfmt", "json"])
def test_a_message_from_its_connection_to_who_was_told_and_who_removed_it(daemon, imap, form):
    server = daemon(**{"server.workers": 2, "log.level": "debug", "log.format": form})
    both_workers(server)
    idlers = [imap(server.connect("imap")) for _ in range(8)]
    for one in idlers:
        one.idle()
    processes = {row["pid"] for row in answer(server, "who", "ann@example.com")}
    identity = send(server, "<one.1@client.test>", to=["ann@example.com", "bo@example.com"])
    other = send(server, "<other@client.test>", to="bo@example.com")
    for one in idlers:
        one.until(b"* 1 EXISTS")
        one.done()
    until(lambda: len(re.findall(rf"\bdelivered\b.*{other}", server.log.read_text())) == 1, "the last one is logged")
    [told] = pushed_to(server, "<one.1@client.test>", len(processes))
    assert told["id"] == identity
    lines = {line["event"]: line["fields"] for line in told["lines"]}
    assert events_of(told)[:2] == ["connected", "received"]
    assert events_of(told).count("delivered") == 2
    assert str(lines["received"]["peer"]) == "127.0.0.1"
    assert lines["received"]["sender"] == "x@elsewhere.org"
    delivered = [line["fields"] for line in told["lines"] if line["event"] == "delivered"]
    for one, name in zip(delivered, ("ann", "bo"), strict=True):
        assert one["recipient"] == f"{name}@example.com"
        assert (server.maildir(name) / one["file"]).exists() or list(server.maildir(name).glob("cur/*,U=*-1*"))
    pushes = [line["fields"] for line in told["lines"] if line["event"] == "pushed"]
    assert sum(int(one["watchers"]) for one in pushes) == 8
    named = {session for one in pushes for session in one["sessions"].split()}
    assert named <= {row["session"] for row in answer(server, "who")}
    # Asked by any of its names it is the same story, and other messages are not in it.
    assert trace(server, identity) == [told] == trace(server, "one.1@client.test")
    assert [one["id"] for one in trace(server, "X@ELSEWHERE.org")] == [identity, other]
    assert [one["id"] for one in trace(server, "ann@example.com")] == [identity]
    assert [one["id"] for one in trace(server, "bo@example.com", "--last", "1")] == [other]
    idlers[0].ok("COPY 1 Archive")
    idlers[0].ok("STORE 1 +FLAGS (\\Deleted)")
    idlers[0].ok("EXPUNGE")

    def ended():
        [now] = trace(server, identity)
        return now if events_of(now)[-1] == "expunged" else None

    told = until(ended, "the removal is in the log")
    assert events_of(told)[-2:] == ["copied", "expunged"]
    text = server.command("trace", identity).stdout
    assert text.startswith(f"Message {identity}, 20")
    assert "\n       +0 ms  connected        connection to smtp from 127.0.0.1  [smtp-" in text
    assert "in the mailbox of ann@example.com for ann@example.com: M1-1 UID 1, file new/" in text
    assert "sessions told: first " in text
    assert "ann@example.com removed it from INBOX" in text
    assert server.stop() == 0


def test_decisions_before_the_message_are_part_of_it_and_those_of_others_are_not(daemon):
    server = daemon()
    with smtplib.SMTP("127.0.0.1", server.ports["smtp"]) as client:
        client.ehlo("client.test")
        for number in (1, 2):
            client.mail("x@elsewhere.org")
            assert client.rcpt(f"nobody{number}@example.com")[0] == 550
            client.rcpt("ann@example.com")
            assert client.data(f"Message-ID: <{number}@client.test>\r\n\r\nText.\r\n")[0] == 250
    [told] = until(lambda: _ready(server, "2@client.test"), "it is in the log")
    refused = [line["fields"]["reason"] for line in told["lines"] if line["event"] == "refused"]
    assert len(refused) == 1
    assert "nobody2" in refused[0]


def _ready(server, about):
    done = server.command("trace", about, "--json")
    return json.loads(done.stdout) if done.returncode == 0 else None


def test_mail_to_other_servers_is_followed_through_the_queue(daemon):
    server = daemon(**{"queue.attempts": 1})
    with smtplib.SMTP_SSL("localhost", server.ports["submissions"], context=server.tls) as client:
        client.login("ann@example.com", PASSWORD)
        client.sendmail("ann@example.com", ["bo@nowhere.invalid"], "Message-ID: <out@x>\r\nSubject: x\r\n\r\nText.\r\n")

    def tried():
        told = _ready(server, "<out@x>")
        return told if told and {"deferred", "undeliverable"} & set(events_of(told[0])) else None

    [told] = until(tried, "an attempt")
    assert events_of(told)[:3] == ["login", "received", "queued"]
    assert [one["id"] for one in _ready(server, "bo@nowhere.invalid")] == [told["id"]]


def test_rotated_and_compressed_logs_are_read_in_their_order(daemon):
    server = daemon()
    first = send(server, "<first@x>")
    until(lambda: first in server.log.read_text(), "logged")
    (server.directory / "log.2.gz").write_bytes(gzip.compress(server.log.read_bytes()))
    server.log.write_text("")
    second = send(server, "<second@x>")
    until(lambda: second in server.log.read_text(), "logged")
    assert [one["id"] for one in trace(server, "ann@example.com")] == [first, second]
    assert [one["id"] for one in trace(server, "first@x")] == [first]


def test_a_log_that_others_keep_is_read_from_standard_input(daemon):
    server = daemon()
    identity = send(server, '<"a b"@x>')
    until(lambda: f"delivered id={identity}" in server.log.read_text(), "logged")
    passed_on = "".join(f"Nov 25 03:00:00 mx mailsrv[77]: {line}\n" for line in server.log.read_text().splitlines())
    [told] = from_stdin(identity, "-- Boot --\n" + passed_on)
    assert events_of(told) == ["received", "delivered"]
    assert trace(server, '<"a b"@x>') == [told]
    # As the system's log has it, which leaves the time to whoever keeps it.
    bare = [line.partition(" ")[2] for line in server.log.read_text().splitlines()]
    for start in ("Nov  5 03:00:00 mx", "2026-11-05T03:00:00.123456+01:00 mx"):
        kept = "".join(f"{start} mailsrv[77]: {line}\n" for line in bare)
        assert events_of(from_stdin(identity, kept)[0]) == ["received", "delivered"]


def from_stdin(about, text):
    done = subprocess.run(
        [sys.executable, "-m", "mailsrv", "trace", about, "--log", "-", "--json"], input=text, cwd=ROOT,
        capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_what_to_do_when_there_is_no_file_or_nothing_in_it(daemon):
    server = daemon()
    done = server.command("trace", "<never@seen>")
    assert done.returncode == 1
    assert f"nothing about <never@seen> in {server.log}" in done.stderr
    server.stop()
    path = server.directory / "mailsrv.yaml"
    path.write_text(path.read_text().replace(f'"file": "{server.log}"', '"file": ""'))
    done = server.command("trace", "<never@seen>")
    assert done.returncode == 1
    assert "journalctl -u mailsrv | mailsrv trace '<never@seen>' --log -" in done.stderr


@pytest.mark.parametrize("form", [log.format_logfmt, log.format_json])
def test_every_value_reads_back(form):
    generator = random.Random(7)
    alphabet = string.printable + "äé\N{SNOWMAN}\N{PILE OF POO}\0\x7f"
    for _ in range(500):
        value = "".join(generator.choice(alphabet) for _ in range(generator.randrange(1, 40)))
        raw = form(1_700_000_000.25, "info", "message refused", {"id": "1", "reason": value, "uid": 7})
        line = story.parse(raw.encode())
        assert (line.event, line.level, line.get("id"), line.get("uid")) == ("message-refused", "info", "1", "7")
        assert line.get("reason") == value
        assert line.at.timestamp() == 1_700_000_000.25


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\n",
        b"\xff\xfe\0",
        b'{"time": 3}',
        b'{"time"',
        b"2026-11-25T03:00:00.000Z info",
        b'{"time": "x"}',
        b"x" * 99_999,
    ],
)
def test_lines_that_are_no_events_are_passed_over(raw, tmp_path):
    assert story.parse(raw) is None
    path = tmp_path / "log"
    path.write_bytes(raw + b"\n2026-11-25T03:00:00.000Z info received id=1 message_id=<m@x> session=s\n")
    [told], count = story.Tracer([str(path)]).tell("m@x", 5)
    assert (told.id, count, len(told.lines)) == ("1", 1, 1)


def test_the_last_message_is_the_youngest_whichever_process_wrote_first(tmp_path):
    path = tmp_path / "log"
    fields = {"recipient": "bo@example.com", "session": "s"}
    path.write_text("".join(log.format_logfmt(at, "info", "delivered", {"id": at, **fields}) for at in (3, 1, 2)))
    tracer = story.Tracer([str(path)])
    assert [told.id for told in tracer.tell("bo@example.com", 5)[0]] == ["1", "2", "3"]
    assert [told.id for told in tracer.tell("bo@example.com", 1)[0]] == ["3"]


def test_a_log_cannot_draw_on_the_terminal(tmp_path):
    path = tmp_path / "log"
    path.write_text(
        log.format_logfmt(0, "info", "received", {"id": "1", "helo": "\x1b[31mred\x07", "message_id": "<m@x>"})
    )
    [told], _ = story.Tracer([str(path)]).tell("1", 5)
    assert "\x1b" not in story.written(told)
    assert "[31mred" in story.written(told)
