"""`mailsrv queue …`: on the files of a queue without a server, and of one whose runner works at the same time."""

import json
import os
import time
from pathlib import Path

import gevent
import pytest

from mailsrv import cli, runner
from mailsrv.store.entry import Entry, Origin, Recipient
from mailsrv.store.files import Incoming
from mailsrv.store.spool import Spool, new_id
from mailsrv.values import Address, Disposition, Envelope, Outcome
from tests.conftest import configuration

SECONDS = 60.0
HOST = "mx.example.org[192.0.2.1]:25"


def until(condition, what: str):
    end = time.monotonic() + SECONDS
    while not (value := condition()):
        assert time.monotonic() < end, f"not in time: {what}"
        gevent.sleep(0.01)
    return value


def address(text: str) -> Address:
    local, _, domain = text.partition("@")
    return Address(local, domain)


def put(spool: Spool, *recipients: str, sender: str = "ann@example.com", age: float = 0, tried: str = "") -> str:
    """An entry that came `age` seconds ago; `tried`: one attempt was made, and this was the reply."""
    id = f"{int((time.time() - age) * 1e6):014x}{os.urandom(2).hex()}"
    made = [Recipient(address(one)) for one in recipients]
    entry = Entry(id, Envelope(address(sender) if sender else None), made, Origin(1, "smtp-1", "submission"))
    if tried:
        for one in made:
            one.note(Outcome(one.address, Disposition.LATER, 451, "4.2.0", tried, HOST, "TLSv1.3"), time.time())
            entry.delay(one, 1800.0, spool.now())
    message = Incoming(spool.tmp_dir)
    message.write(b"Subject: Hello\r\n\r\nBody\r\n")
    spool.put(entry, message)
    return id


@pytest.fixture
def settings(tmp_path):
    return configuration(tmp_path, None, {})


@pytest.fixture
def spool(settings):
    made = runner.spool_of(settings)
    made.prepare()
    return made


@pytest.fixture
def queue(settings, capsys):
    """`queue("list", "--json")`: exit code, standard output (of --json: its value), standard error."""

    def run(*words: str):
        capsys.readouterr()
        code = cli.main(["queue", *words, "--config", settings.path])
        out, err = capsys.readouterr()
        return code, json.loads(out) if "--json" in words else out, err

    return run


def test_list_shows_what_waits_and_why(spool, queue):
    first = put(spool, "bo@example.org", "cy@example.org", age=7200, tried="Greylisted, come again")
    second = put(spool, "dee@example.net", sender="")
    code, out, _ = queue("list")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == ["ID", "STATE", "AGE", "SIZE", "SENDER", "TO", "NEXT", "LAST"]
    assert lines[1].startswith(f"{first}  deferred") and "bo@example.org +1" in lines[1]
    assert "30m" in lines[1] and "451 4.2.0 Greylisted, come again" in lines[1]
    assert lines[2].startswith(f"{second}  new") and " <> " in lines[2] and len(lines) == 3
    _, rows, _ = queue("list", "--json")
    assert [row["id"] for row in rows] == [first, second]
    assert rows[0]["host"] == HOST and rows[0]["recipients"] == ["bo@example.org", "cy@example.org"]
    assert rows[0]["next_at"] > rows[1]["next_at"]


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ([], "abc"),
        (["--sender", "ann@example.com"], "ab"),
        (["--sender", "ANN@example.com"], "ab"),
        (["--sender", "@example.com"], "ab"),
        (["--sender", "<>"], "c"),
        (["--recipient", "bo@example.org"], "ac"),
        (["--domain", "example.net"], "b"),
        (["--older-than", "1h"], "a"),
        (["--newer-than", "1h"], "bc"),
        (["--newer-than", "1h", "--domain", "example.org"], "c"),
        (["--held"], ""),
    ],
)
def test_filters(spool, queue, filters, found):
    names = {
        put(spool, "bo@example.org", age=7200): "a",
        put(spool, "cy@example.net", age=2): "b",
        put(spool, "bo@example.org", sender="", age=1): "c",
    }
    _, rows, _ = queue("list", *filters, "--json")
    assert "".join(names[row["id"]] for row in rows) == found


def test_pages_read_only_what_they_show(spool, queue, monkeypatch):
    """A page of thousands: the names are sorted, its own entries read, no others."""
    ids = sorted(new_id() for _ in range(3000))
    for id in ids:
        os.makedirs(os.path.dirname(spool.envelope_path(id)), exist_ok=True)
        Path(spool.envelope_path(id)).touch()
    kept = put(spool, "bo@example.org", age=86400)
    read = []
    load = Spool.load
    monkeypatch.setattr(Spool, "load", lambda self, id: read.append(id) or load(self, id))
    _, rows, _ = queue("list", "--limit", "1", "--json")
    assert [row["id"] for row in rows] == [kept] == read
    read.clear()
    _, rows, err = queue("list", "--limit", "20", "--page", "3", "--json")
    assert rows == [] and read == [kept, *ids][40:60] and "damaged" in err
    _, _, err = queue("list", "--limit", "1")
    assert "page 1 of 3001: 3001 entries in all" in err


def test_why_tells_every_attempt(spool, queue):
    id = put(spool, "bo@example.org", age=3600, tried="Not\x1b[31m now")
    code, out, _ = queue("why", id)
    assert code == 0 and "bo@example.org: waiting, attempts: 1" in out
    assert f"later {HOST} (TLSv1.3): 451 4.2.0 Not" in out and "next attempt: 20" in out
    assert "\x1b" not in out
    _, [value], _ = queue("why", id, "--json")
    [tried] = value["recipients"][0]["history"]
    assert (tried["host"], tried["code"], tried["disposition"]) == (HOST, 451, "later")
    assert value["next_at"] == value["recipients"][0]["next_at"]


def test_show_prints_header_or_message(spool, queue):
    id = put(spool, "bo@example.org")
    _, out, _ = queue("show", id)
    assert "Subject: Hello\n" in out and "Body" not in out
    _, out, _ = queue("show", id, "--body")
    assert out.endswith("Subject: Hello\r\n\r\nBody\r\n")


def test_changes_are_for_chosen_entries(spool, queue):
    ids = [put(spool, "bo@example.org"), put(spool, "cy@example.net")]
    code, _, err = queue("hold")
    assert code == 1 and "say --all" in err and not spool.load(ids[0]).hold
    assert queue("hold", "--domain", "example.org")[0] == 0
    assert [spool.load(id).hold for id in ids] == [True, False]
    assert "held: mailsrv queue release" in queue("why", ids[0])[1]
    assert [row["id"] for row in queue("list", "--held", "--json")[1]] == [ids[0]]
    assert queue("release", "--all", "--json")[1] == {"released": ids}
    assert not spool.load(ids[0]).hold
    assert queue("remove", ids[1])[2].startswith("1 entry removed")
    assert spool.ids() == [ids[0]]
    code, _, err = queue("remove", ids[1])
    assert code == 1 and "there is no such entry" in err
    code, _, err = queue("remove", "../../x")
    assert code == 1 and "not the name of an entry" in err


def test_retry_makes_due(spool, queue):
    id = put(spool, "bo@example.org", tried="Not now")
    assert spool.load(id).wait(spool.now()) > 1700
    assert queue("retry", id)[0] == 0
    assert spool.load(id).wait(spool.now()) == 0 and time.time() - spool.load(id).asked_at < 10
    assert os.stat(spool.envelope_path(id)).st_mtime <= time.time() + 1
    assert "next attempt: as soon as" in queue("why", id)[1]


def test_what_is_shown_to_its_sender_is_removed_by_the_runner(spool, queue):
    id = put(spool, "bo@example.org")

    def show(entry):
        entry.shown = (7, 1, 1)
        return True

    spool.change(id, show)
    assert queue("remove", id)[0] == 0
    assert spool.load(id).over
    assert queue("list", "--json")[1][0]["state"] == "ending"


def test_stats_tell_where_mail_waits(spool, queue):
    for n in range(3):
        put(spool, f"u{n}@example.org", "cy@example.net", age=100, tried="Not now")
    damaged = put(spool, "bo@example.org")
    spool.quarantine(damaged, "it was a test")
    _, value, _ = queue("stats", "--json")
    assert value["entries"] == 3 and value["runner_pid"] is None
    assert value["damaged"] == [{"id": damaged, "reason": "it was a test"}]
    assert [(row["domain"], row["recipients"], row["deferred"]) for row in value["domains"]] == [
        ("example.org", 3, 3), ("example.net", 3, 3),
    ]  # fmt: skip
    _, out, err = queue("stats")
    assert out.splitlines()[1].startswith("example.org  3") and "runner: not running" in err and "it was a test" in err


def test_wrong_times_and_numbers_are_refused(queue, capsys):
    for words in (["--older-than", "soon"], ["--page", "0"], ["--limit", "x"]):
        with pytest.raises(SystemExit) as ended:
            queue("list", *words)
        assert ended.value.code == 2


# ------------------------------------------------------------------ while the runner works


class Elsewhere:
    """Every other server: not now, until it is told to take mail."""

    def __init__(self):
        self.taken, self.takes = [], False

    def destination(self, envelope, address):
        return address.domain

    def close(self):
        pass

    def __call__(self, job):
        self.taken.append(job.id)
        disposition, code = (Disposition.SENT, 250) if self.takes else (Disposition.LATER, 451)
        return [Outcome(one, disposition, code, f"{code // 100}.0.0", "So", HOST) for one, _ in job.recipients]


@pytest.fixture
def elsewhere(monkeypatch):
    made = Elsewhere()
    monkeypatch.setattr(runner, "way_out", lambda config, accounts: made)
    return made


@pytest.fixture
def running(elsewhere, serve, capsys):
    """(server, its spool, `queue(...)`), the runner at work."""
    server = serve()
    spool = runner.spool_of(server.settings)

    def run(*words: str):
        capsys.readouterr()
        code = cli.main(["queue", *words, "--config", server.settings.path])
        out, err = capsys.readouterr()
        return code, json.loads(out) if "--json" in words else out, err

    until(lambda: run("stats", "--json")[1]["runner_pid"], "the runner works")
    return server, spool, run


def test_a_running_server_acts_at_once(running, elsewhere):
    _, spool, queue = running
    id = put(spool, "bo@example.org")
    assert queue("retry", id)[0] == 0
    until(lambda: spool.load(id).recipients[0].attempts == 1, "tried")
    assert queue("hold", id)[0] == 0
    assert queue("retry", id)[0] == 0
    gevent.sleep(0.1)
    assert len(elsewhere.taken) == 1 and spool.load(id).hold
    elsewhere.takes = True
    assert queue("release", id)[0] == 0
    until(lambda: spool.ids() == [], "sent")
    assert queue("stats", "--json")[1]["runner_pid"] == os.getpid()


def test_bounce_tells_the_sender(running, elsewhere):
    server, spool, queue = running
    id = put(spool, "bo@example.org", tried="Not now")
    assert queue("bounce", id)[2].startswith("1 entry returned")
    inbox = server.maildir("ann") / "new"
    [report] = until(lambda: inbox.is_dir() and list(inbox.iterdir()), "a report")
    text = report.read_bytes()
    assert b"Returned by the administrator" in text and b"Status: 5.0.0" in text
    until(lambda: spool.ids() == [], "ended")
    assert elsewhere.taken == []


def test_removed_while_running_is_gone(running, elsewhere):
    _, spool, queue = running
    ids = [put(spool, "bo@example.org", tried="Not now") for _ in range(5)]
    queue("retry", "--all")
    until(lambda: len(elsewhere.taken) == 5, "tried")
    assert queue("remove", "--sender", "ann@example.com", "--json")[1] == {"removed": ids}
    until(lambda: spool.ids() == [], "gone, when the runner has taken the copies in the sender's Outbox away")
    queue("retry", "--all")
    gevent.sleep(0.1)
    assert len(elsewhere.taken) == 5
