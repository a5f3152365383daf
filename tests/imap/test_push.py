"""Push: whatever changes a mailbox reaches every session that idles in it, at once, whole, and in order."""

import re
import socket
import time

import gevent
import pytest

SECONDS = 60


def told(client, *expected):
    """Read what an idling client is sent until all of `expected` came; RECENT may stand between."""
    wanted = list(expected)
    while wanted:
        line = client.response()
        if line.endswith(b" RECENT"):
            continue
        assert line == wanted[0], (line, wanted)
        wanted.pop(0)


@pytest.fixture
def serving(serve):
    """One user may have all these sessions."""
    return serve(**{"limits.connections_per_user": 100})


@pytest.fixture
def idlers(serving, dial):
    """Start `count` idling sessions in a mailbox."""

    def start(count=3, mailbox="INBOX", service="imap"):
        clients = [dial(serving, "ann", select=mailbox, service=service) for _ in range(count)]
        for client in clients:
            client.tag = client.idle()
        return clients

    return start


def done(clients):
    for client in clients:
        assert [line for line in client.done(client.tag) if not line.endswith(b" RECENT")] == [b"OK IDLE completed"]


@pytest.mark.parametrize("service", ["imap", "imaps"])
def test_r44_f04_delivery_reaches_everybody(serving, idlers, mail, service):
    clients = idlers(4, service=service)
    for count in (1, 2, 3):
        mail(serving)
        for client in clients:
            told(client, b"* %d EXISTS" % count)
    done(clients)


def test_f04_append_reaches_everybody(serving, dial, idlers):
    clients, writer = idlers(), dial(serving, "ann")
    writer.append()
    for client in clients:
        told(client, b"* 1 EXISTS")
    done(clients)


def test_f04_copy_and_move_reach_both_mailboxes(serving, dial, idlers):
    writer = dial(serving, "ann", select="INBOX")
    writer.append()
    writer.append()
    source, target = idlers(), idlers(mailbox="Archive")
    writer.ok("COPY 1 Archive")
    for client in target:
        told(client, b"* 1 EXISTS")
    writer.ok("MOVE 1 Archive")
    for client in target:
        told(client, b"* 2 EXISTS")
    for client in source:
        told(client, b"* 1 EXPUNGE")
    done(source + target)


def test_b03_flags_and_expunges_reach_everybody(serving, dial, idlers):
    writer = dial(serving, "ann", select="INBOX")
    for _ in range(3):
        writer.append()
    writer.ok("NOOP")
    clients = idlers()
    writer.ok("STORE 2 +FLAGS.SILENT (\\Flagged)")
    for client in clients:
        told(client, b"* 2 FETCH (FLAGS (\\Flagged))")
    writer.ok("STORE 2:3 FLAGS.SILENT (\\Deleted)")
    for client in clients:
        told(client, b"* 2 FETCH (FLAGS (\\Deleted))", b"* 3 FETCH (FLAGS (\\Deleted))")
    writer.ok("EXPUNGE")
    for client in clients:
        told(client, b"* 2 EXPUNGE", b"* 2 EXPUNGE")
    writer.ok("FETCH 1 BODY[]")
    for client in clients:
        told(client, b"* 1 FETCH (FLAGS (\\Seen))")
    done(clients)


def test_b14_file_dropped_by_another_program_reaches_everybody(serving, idlers):
    clients = idlers()
    maildir = serving.maildir("ann")
    (maildir / "tmp" / "1.M1P1.other").write_bytes(b"Subject: dropped\n\nText\n")
    (maildir / "tmp" / "1.M1P1.other").rename(maildir / "new" / "1.M1P1.other")
    for client in clients:
        told(client, b"* 1 EXISTS")
    done(clients)
    (line,) = [line for line in clients[0].ok("FETCH 1 BODY.PEEK[]") if b"FETCH" in line]
    assert b"Subject: dropped\r\n" in line


def test_b14_flags_and_removal_by_another_program_reach_everybody(serving, dial, idlers, files):
    dial(serving, "ann").append()
    clients = idlers()
    (path,) = files(serving)
    base = path.name.partition(":")[0]
    renamed = serving.maildir("ann") / "cur" / f"{base}:2,FS"
    path.rename(renamed)
    flags = {b"* 1 FETCH (FLAGS (\\Seen \\Flagged))", b"* 1 FETCH (FLAGS (\\Seen \\Flagged \\Recent))"}
    for client in clients:
        line = client.response()
        while line.endswith(b" RECENT"):
            line = client.response()
        assert line in flags
    renamed.unlink()
    for client in clients:
        told(client, b"* 1 EXPUNGE")
    done(clients)


@pytest.mark.parametrize("place", ["before IDLE", "before SELECT is read", "between two IDLEs"])
def test_r44_b05_nothing_is_lost_before_idle(serving, dial, mail, place):
    client = dial(serving, "ann", select="INBOX")
    if place == "before SELECT is read":
        tag = client.begin("SELECT INBOX")
        mail(serving)
        lines = client.finish(tag)
        if b"* 1 EXISTS" in lines:
            return
    elif place == "between two IDLEs":
        client.done(client.idle())
        mail(serving)
    else:
        mail(serving)
    tag = client.idle()
    told(client, b"* 1 EXISTS")
    assert client.done(tag)[-1] == b"OK IDLE completed"


def test_r44_b05_no_delivery_is_lost_around_idle(serving, dial, mail):
    """Deliveries fall anywhere in a quick sequence of IDLE and DONE; the number told is always right in the end."""
    client = dial(serving, "ann", select="INBOX")
    count = 25
    sender = gevent.spawn(lambda: [mail(serving) for _ in range(count)])
    known, end = 0, time.monotonic() + SECONDS
    while known < count:
        assert time.monotonic() < end
        tag = client.idle()
        line = client.response()  # in every IDLE something has to be told, at once or later
        numbers = [line, *client.done(tag)]
        known = max([known, *(int(line.split()[1]) for line in numbers if line.endswith(b" EXISTS"))])
    sender.get()
    assert len(client.uids()) == count


def test_r44_idle_is_valid_without_a_mailbox(serving, dial):
    client = dial(serving, "ann")
    tag = client.idle()
    assert client.done(tag) == [b"OK IDLE completed"]
    assert dial(serving).say("IDLE")[-1].startswith(b"BAD ")


@pytest.mark.parametrize("word", ["DONE", "done", "Done"])
def test_r44_done_in_any_case(serving, dial, word):
    client = dial(serving, "ann", select="INBOX")
    tag = client.idle()
    client.send(word + "\r\n")
    assert client.finish(tag) == [b"OK IDLE completed"]


@pytest.mark.parametrize("word", ["", "NOOP", "t9 NOOP", "DONE ", " DONE", "DONE x", "\x00", "x" * 5000])
def test_r44_anything_else_is_bad_and_in_step(serving, dial, word):
    client = dial(serving, "ann", select="INBOX")
    tag = client.idle()
    client.send(word + "\r\n")
    assert client.finish(tag)[-1].startswith(b"BAD ")
    client.ok("NOOP")


def test_r44_never_ok_early(serving, dial, mail):
    client = dial(serving, "ann", select="INBOX")
    client.idle()
    mail(serving)
    told(client, b"* 1 EXISTS")
    client.quiet()
    assert client.buffer in (b"", b"* 1 RECENT\r\n")


def test_r44_done_with_the_command_after_it(serving, dial, mail):
    client = dial(serving, "ann", select="INBOX")
    client.send(b"a IDLE\r\nDONE\r\nb NOOP\r\nc IDLE\r\n")
    assert client.response() == b"+ idling"
    assert client.response() == b"a OK IDLE completed"
    assert client.response() == b"b OK NOOP completed"
    assert client.response() == b"+ idling"
    mail(serving)
    told(client, b"* 1 EXISTS")


def test_idle_heartbeat(serve, dial):
    client = dial(serve(**{"imap.heartbeat_seconds": 1}), "ann", select="INBOX")
    tag = client.idle()
    assert client.response() == b"* OK Still here"
    assert client.response() == b"* OK Still here"
    assert client.done(tag)[-1] == b"OK IDLE completed"


def test_b12_client_that_never_reads_holds_up_nobody(serving, dial, idlers, mail):
    writer = dial(serving, "ann", select="INBOX")
    for number in range(200):
        writer.append(f"Subject: {number}\r\n\r\n" + "x" * 40_000)
    writer.ok("NOOP")
    stuck = dial(serving, "ann", select="INBOX")
    stuck.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    stuck.begin("FETCH 1:* BODY.PEEK[]")  # 8 MB that nobody reads
    clients = idlers()
    took = []
    for count in range(201, 211):
        began = time.monotonic()
        mail(serving)
        for client in clients:
            told(client, b"* %d EXISTS" % count)
        took.append(time.monotonic() - began)
    writer.ok("NOOP")
    writer.ok("STORE 1:* +FLAGS.SILENT (\\Flagged)")
    for client in clients:
        flags = {}
        while len(flags) < 210:
            found = re.fullmatch(rb"\* (\d+) FETCH \(FLAGS \(([^)]*)\)\)", client.response())
            if found:
                flags[int(found[1])] = found[2]
        assert all(b"\\Flagged" in marks for marks in flags.values())
    # The machine may hold up a few of them; the server waits for the stuck client for `limits.write_seconds`.
    assert sorted(took)[5] < 2.0 and max(took) < serving.settings["limits.write_seconds"] / 4


def test_a_thousand_changes_cost_one_look(serving, dial):
    """A session that does not look is not written to; when it looks, one line says what became of it all."""
    writer = dial(serving, "ann", select="INBOX")
    writer.append()
    writer.ok("NOOP")
    sleeper = dial(serving, "ann", select="INBOX")
    for number in range(1000):
        writer.send(f"s{number} STORE 1 {'+-'[number % 2]}FLAGS.SILENT (\\Flagged)\r\n")
    writer.send("s1000 STORE 1 +FLAGS.SILENT (\\Answered)\r\n")
    while not writer.response().startswith(b"s1000 OK"):
        pass
    assert sleeper.quiet()
    assert sleeper.ok("NOOP") == [b"* 1 FETCH (FLAGS (\\Answered))"]
    assert sleeper.ok("NOOP") == []


def test_many_watchers_are_all_told(serving, idlers, mail):
    clients = idlers(60)
    for count in (1, 2):
        mail(serving)
        for client in clients:
            told(client, b"* %d EXISTS" % count)
    done(clients)


def test_pushes_are_logged_with_their_milliseconds(serving, idlers, mail, events, eventually):
    clients = idlers(2)
    mail(serving)
    for client in clients:
        told(client, b"* 1 EXISTS")
    (fields,) = eventually(lambda: [fields for event, fields in events if event == "pushed"])
    assert fields["watchers"] == 2 and fields["uid"] == 1
    assert 0 <= fields["first_ms"] <= fields["last_ms"] < 30_000


def test_r45_server_that_stops_says_bye_to_idlers(serve, dial):
    server = serve()
    client = dial(server, "ann", select="INBOX")
    client.idle()
    server.server.stop()
    assert re.fullmatch(rb"\* BYE [^\r\n]+\r\n", client.rest())
