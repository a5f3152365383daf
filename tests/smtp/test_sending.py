"""Mail for other servers from MAIL to the last report: what is on disk before the 250, and what senders are told."""

import email
import email.policy
import errno
import json
import os
import re
from contextlib import suppress

import gevent
import pytest

from mailsrv import runner
from mailsrv.store import files
from mailsrv.store.entry import Entry, Recipient
from mailsrv.store.files import Incoming
from mailsrv.store.spool import EntryGone, new_id
from mailsrv.values import Address, Envelope

from ..conftest import until
from .elsewhere import TEXT, queue_files, runner_tell, send


@pytest.fixture
def spool(serving):
    return runner.spool_of(serving.settings)


@pytest.fixture
def ann(world, serving, dial):
    return dial(serving, "submissions", user="ann")


def parsed(data: bytes):
    message = email.message_from_bytes(data, policy=email.policy.default)
    assert not message.defects and all(not part.defects for part in message.walk())
    return message


def report_in(serving, inbox, name: str = "ann"):
    return parsed(until(lambda: inbox(serving, name), "a report")[0])


# ------------------------------------------------------------------ on the way out


def test_mail_for_another_server_is_handed_on(ann, world, serving, spool):
    id = send(ann, "bo@elsewhere.org")
    [(job, text)] = until(lambda: world.taken, "handed on")
    assert job.id == id and str(job.envelope.sender) == "ann@example.com" and job.size == len(text)
    head, body = text.split(b"\r\nFrom: ann@", 1)
    assert re.search(
        rb"(?s)^Received: from client.example.net \(\[127.0.0.1\]\)\r\n\tby mx.example.com \(mailsrv\) with ESMTPSA id "
        + id.encode() + rb"\r\n\tfor <bo@elsewhere.org>; .*\r\nDate: .*\r\nMessage-ID: <", head,
    )  # fmt: skip
    assert b"Return-Path" not in text and b"Delivered-To" not in text
    assert body.endswith(b"\r\n\r\nText.\r\n")
    until(lambda: queue_files(serving) == [], "forgotten")


def test_b21_one_message_file_for_all_recipients_elsewhere(ann, world, serving, inbox):
    """Local copies at once, one entry for the rest; each recipient has an end of its own."""
    world.open = False
    world.replies = {"no@other.org": (550, "5.1.1", "No such user"), "late@third.org": (451, "4.2.0", "Not now")}
    id = send(ann, "bo@example.com", "bo@elsewhere.org", "no@other.org", "late@third.org", "cy@example.com")
    assert len(inbox(serving, "bo")) == len(inbox(serving, "cy")) == 1
    assert queue_files(serving) == [f"{id}.eml", f"{id}.json"]
    world.open = True
    until(lambda: len(world.taken) == 3, "tried")
    spool = runner.spool_of(serving.settings)
    until(lambda: [one.state for one in spool.load(id).recipients] == ["sent", "failed", "waiting"], "each its own")
    report = report_in(serving, inbox)
    named = [one["Final-Recipient"] for one in list(report.iter_parts())[1].get_payload()[1:]]
    assert named == ["rfc822; no@other.org"]
    until(lambda: not any(one.report for one in spool.load(id).recipients), "reported")
    assert len(inbox(serving, "ann")) == 1
    assert {job.id for job, _ in world.taken} == {id}


def test_b20_every_domain_of_ours_is_delivered_here(ann, world, serving, inbox):
    serving.accounts.add_domain("second.example")
    serving.accounts.add_alias("info@second.example", ["bo@example.com"])
    send(ann, "info@second.example", "BO@Example.COM")
    assert len(inbox(serving, "bo")) == 1
    assert queue_files(serving) == [] and world.taken == []


@pytest.mark.parametrize("step", ["create", "fsync", "rename"])
@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("recipients", [["bo@elsewhere.org"], ["bo@elsewhere.org", "bo@example.com"]])
def test_s26_all_or_nothing_before_the_250(ann, world, serving, traces, step, number, recipients):
    """Whatever cannot be written: a temporary failure, and nothing of the message is left anywhere."""
    serving.server.mailboxes.account(serving.accounts.users()[1].account).inbox()
    left = [number]

    def hook(name, path):
        if name == step and ("/queue/" in path or "/bo/" in path):
            left[0] -= 1
            if left[0] == -1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for command in ("MAIL FROM:<ann@example.com>", *(f"RCPT TO:<{one}>" for one in recipients), "DATA"):
        ann.say(command)
    files.on_step(hook)
    try:
        answer = ann.say(TEXT)
    finally:
        files.on_step(None)
    if left[0] >= 0:
        assert answer.startswith(b"250 "), "there were fewer such steps"
        return
    assert answer.startswith(b"451 4.3.0 ")
    assert traces(serving) == [] and queue_files(serving) == []
    gevent.sleep(0.05)
    assert world.taken == []
    send(ann, *recipients)
    until(lambda: world.taken, "the next one goes")


def test_durable_before_the_250(ann, world, serving):
    """Both files and their directory are synced when the reply comes."""
    world.open = False
    seen = []
    files.on_step(lambda step, path: seen.append((step, path)))
    try:
        id = send(ann, "bo@elsewhere.org")
        steps = [(step, path) for step, path in seen if "/queue" in path]
    finally:
        files.on_step(None)
    queue = f"{serving.directory}/queue"
    directory = f"{queue}/{id[7:9]}"
    assert [step for step, _ in steps][:4] == ["create", "create", "fsync", "fsync"]
    assert steps[4:10] == [
        ("rename", f"{directory}/{id}.eml"), ("mkdir", directory), ("fsync", queue),
        ("rename", f"{directory}/{id}.eml"), ("rename", f"{directory}/{id}.json"), ("fsync", directory),
    ]  # fmt: skip


def test_a_large_message_goes_through_a_file(ann, world, serving):
    body = "".join(f"line {n} {'x' * 80}\r\n" for n in range(8000))
    send(ann, "bo@elsewhere.org", text=f"Subject: large\r\n\r\n{body}.")
    [(_, text)] = until(lambda: world.taken, "handed on")
    assert text.endswith(body.encode()) and text.count(b"Received:") == 1
    until(lambda: queue_files(serving) == [], "forgotten")


def test_what_was_asked_for_is_kept_with_the_entry(ann, world, serving):
    world.open = False
    mail = " RET=HDRS ENVID=QQ+2B314 REQUIRETLS BODY=8BITMIME SMTPUTF8"
    id = send(ann, "bo@elsewhere.org NOTIFY=SUCCESS,DELAY ORCPT=rfc822;Bo+2Bx@elsewhere.org", mail=mail)
    value = json.loads((serving.directory / "queue" / id[7:9] / f"{id}.json").read_text())
    assert value["envelope"] == {
        "sender": "ann@example.com", "body": "8BITMIME", "smtputf8": True, "ret": "HDRS", "envid": "QQ+314",
        "require_tls": True,
    }  # fmt: skip
    assert value["recipients"][0]["notify"] == ["DELAY", "SUCCESS"]
    assert value["recipients"][0]["orcpt"] == "rfc822;Bo+x@elsewhere.org"
    assert value["origin"]["service"] == "submission" and value["origin"]["account"]


def test_s09_words_in_a_quoted_local_part_are_no_parameters(serving, dial):
    client = dial(serving)
    assert client.say('MAIL FROM:<"a SMTPUTF8 b"@elsewhere.org>').startswith(b"250 ")
    assert client.say("RSET", 'MAIL FROM:<"ü SMTPUTF8 b"@elsewhere.org>').startswith(b"501 ")
    assert client.say("RSET", 'MAIL FROM:<"ü > b"@elsewhere.org> SMTPUTF8').startswith(b"250 ")


# ------------------------------------------------------------------ through an address of ours


def test_s15_port_25_forwards_where_an_address_of_ours_leads_out(world, serving, dial):
    serving.accounts.add_alias("sales@example.com", ["shop@elsewhere.org", "bo@example.com"])
    client = dial(serving)
    send(client, "sales@example.com", sender="x@third.org")
    [(job, text)] = until(lambda: world.taken, "forwarded")
    assert str(job.recipients[0][0]) == "shop@elsewhere.org"
    assert job.envelope.sender.domain == "example.com" and job.envelope.sender.local.startswith("SRS0=")
    assert text.startswith(b"Delivered-To: sales@example.com\r\nReceived: ")
    # What comes back once more is in a loop (S11).
    for command in ("MAIL FROM:<x@third.org>", "RCPT TO:<sales@example.com>", "DATA"):
        client.say(command)
    assert client.say(text.decode() + ".").startswith(b"554 5.4.6 ")


def test_a_report_on_a_forward_finds_its_sender(world, serving, dial, inbox):
    """The forward fails: the report goes to the original sender, through the address that was made for it, and does
    not tell where the alias leads.
    """
    serving.accounts.add_alias("sales@example.com", ["shop@elsewhere.org"])
    world.replies = {"shop@elsewhere.org": (550, "5.1.1", "<shop@elsewhere.org>: gone")}
    send(dial(serving), "sales@example.com", sender="x@third.org")
    until(lambda: len(world.taken) == 2, "forwarded and reported")
    job, text = world.taken[1]
    assert [str(one) for one, _ in job.recipients] == ["x@third.org"] and job.envelope.sender is None
    report = parsed(text)
    assert "sales@example.com" in report.get_body().get_content()
    assert b"Final-Recipient: rfc822; sales@example.com\r\n" in text and b"Status: 5.1.1\r\n" in text
    assert b"shop" not in text and b"mx.elsewhere.org" not in text


# ------------------------------------------------------------------ reports


def test_a_sender_here_is_told_what_failed_and_why(ann, world, serving, inbox):
    world.replies = {"bo@elsewhere.org": (550, "5.1.1", "No such user\r\nBcc: evil@third.org")}
    id = send(ann, "bo@elsewhere.org ORCPT=rfc822;Bo@Elsewhere.ORG", mail=" ENVID=QQ314")
    report = report_in(serving, inbox)
    assert report["Return-Path"] == "<>" and report["Delivered-To"] == "ann@example.com"
    assert report["From"] == '"Mail system of mx.example.com" <postmaster@example.com>'
    assert report["To"] == "ann@example.com" and report["Subject"] == "Undelivered: Hello out there"
    assert report["Auto-Submitted"] == "auto-replied" and "Bcc" not in report
    assert report.get_content_type() == "multipart/report" and report.get_param("report-type") == "delivery-status"
    words, status, original = report.iter_parts()
    said = words.get_content()
    assert "Your message could not be delivered to:" in said and "There is no such mailbox there." in said
    assert "550 5.1.1 No such user Bcc: evil@third.org" in " ".join(said.split())
    assert f"as {id}" in " ".join(said.split())
    whole, one = status.get_payload()
    assert whole["Reporting-MTA"] == "dns; mx.example.com" and whole["Original-Envelope-Id"] == "QQ314"
    assert one["Original-Recipient"] == "rfc822;Bo@Elsewhere.ORG"
    assert one["Final-Recipient"] == "rfc822; bo@elsewhere.org"
    assert (one["Action"], one["Status"], one["Remote-MTA"]) == ("failed", "5.1.1", "dns; mx.elsewhere.org")
    assert one["Diagnostic-Code"].startswith("smtp; 550 5.1.1 No such user")
    assert original.get_content_type() == "message/rfc822"
    returned = original.get_payload(0)
    assert returned["Subject"] == "Hello out there" and returned.get_payload() == "Text.\r\n"
    assert report["In-Reply-To"] == returned["Message-ID"]
    until(lambda: queue_files(serving) == [], "forgotten")


def test_a_sender_elsewhere_is_told_through_the_queue(world, serving, dial):
    """A foreign sender's mail, forwarded without rewriting (its domain is ours no more): a report with the null sender,
    which is itself never answered."""
    world.replies = {"shop@elsewhere.org": (550, "5.1.1", "Gone"), "x@third.org": (550, "5.1.1", "Unknown")}
    serving.accounts.add_alias("sales@example.com", ["shop@elsewhere.org"])
    send(dial(serving), "sales@example.com", sender="x@third.org")
    until(lambda: len(world.taken) == 2 and queue_files(serving) == [], "ended")
    assert world.taken[1][0].envelope.sender is None and world.taken[1][0].ours


def test_s13_the_null_sender_is_not_answered_but_the_postmaster_hears(world, serving, dial, inbox):
    serving.accounts.add_alias("sales@example.com", ["shop@elsewhere.org"])
    serving.accounts.add_alias("postmaster@example.com", ["cy@example.com"])
    world.replies = {"shop@elsewhere.org": (550, "5.1.1", "Gone")}
    send(dial(serving), "sales@example.com", sender="")
    report = report_in(serving, inbox, "cy")
    assert report["To"] == "postmaster@example.com" and report["Subject"] == "Undeliverable report: Hello out there"
    assert "The sender of this message cannot be told" in report.get_body().get_content()
    until(lambda: queue_files(serving) == [], "ended")
    assert len(world.taken) == 1


def test_s13_a_report_to_a_postmaster_elsewhere_ends_there(serve, dial, world, monkeypatch):
    server = serve(**{"queue.postmaster": "root@elsewhere.org"})
    server.accounts.add_alias("sales@example.com", ["shop@elsewhere.org"])
    world.replies = dict.fromkeys(("shop@elsewhere.org", "root@elsewhere.org"), (550, "5.1.1", "Gone"))
    send(dial(server), "sales@example.com", sender="")
    until(lambda: len(world.taken) == 2 and queue_files(server) == [], "ended")
    gevent.sleep(0.1)
    assert [str(job.recipients[0][0]) for job, _ in world.taken] == ["shop@elsewhere.org", "root@elsewhere.org"]


@pytest.mark.parametrize("ret", ["", "FULL", "HDRS"])
@pytest.mark.parametrize("large", [False, True])
def test_the_message_is_returned_as_asked_and_as_large_as_may_be(ann, world, serving, inbox, ret, large):
    world.replies = {"bo@elsewhere.org": (554, "5.7.1", "Spam")}
    body = "x" * 70 + "\r\n"
    text = f"Subject: A\r\nX-Long: {'y' * 500}\r\n\r\n{body * (1000 if large else 1)}."
    send(ann, "bo@elsewhere.org", mail=f" RET={ret}" if ret else "", text=text)
    original = list(report_in(serving, inbox).iter_parts())[2]
    if ret == "HDRS" or large:
        assert original.get_content_type() == "text/rfc822-headers"
        assert b"xxxx" not in original.get_payload(decode=True) and b"X-Long" in original.get_payload(decode=True)
    else:
        assert original.get_content_type() == "message/rfc822"
        assert original.get_payload(0).get_payload() == body


def test_success_is_told_when_asked_for(ann, world, serving, inbox):
    send(ann, "bo@elsewhere.org NOTIFY=SUCCESS", "bo@example.com NOTIFY=SUCCESS,FAILURE", "cy@example.com")
    until(lambda: len(inbox(serving, "ann")) == 2, "both told")
    actions = {}
    for data in inbox(serving, "ann"):
        report = parsed(data)
        assert report["Subject"] == "Delivered: Hello out there"
        for one in list(report.iter_parts())[1].get_payload()[1:]:
            actions[one["Final-Recipient"]] = (one["Action"], one["Status"])
        assert list(report.iter_parts())[2].get_content_type() == "text/rfc822-headers"
    assert actions == {
        "rfc822; bo@elsewhere.org": ("relayed", "2.0.0"), "rfc822; bo@example.com": ("delivered", "2.0.0"),
    }  # fmt: skip


def test_success_of_an_address_that_stands_for_several_is_told_once(ann, world, serving, inbox):
    serving.accounts.add_alias("team@example.com", ["bo@example.com", "cy@example.com", "x@elsewhere.org"])
    send(ann, "team@example.com NOTIFY=SUCCESS")
    report = report_in(serving, inbox)
    [one] = list(report.iter_parts())[1].get_payload()[1:]
    assert (one["Final-Recipient"], one["Action"]) == ("rfc822; team@example.com", "expanded")
    until(lambda: world.taken and queue_files(serving) == [], "ended")
    assert world.taken[0][0].recipients[0][1].notify == {"NEVER"} and len(inbox(serving, "ann")) == 1


def test_a_full_mailbox_gets_its_report_later(ann, world, serving, inbox):
    serving.accounts.set_quota("ann@example.com", 10)
    world.replies = {"bo@elsewhere.org": (550, "5.1.1", "No")}
    send(ann, "bo@elsewhere.org")
    spool = runner.spool_of(serving.settings)

    def tried_reports():
        found = []
        for id in spool.ids():
            with suppress(EntryGone):  # what was sent ends about now
                entry = spool.load(id)
                if entry.envelope.sender is None and entry.recipients[0].attempts == 1:
                    found.append(id)
        return found

    [id] = until(tried_reports, "the report waits")
    assert spool.load(id).recipients[0].last.code == 452 and spool.load(id).recipients[0].destination == "local"
    serving.accounts.set_quota("ann@example.com", 0)

    def now(entry):
        entry.delay(entry.recipients[0], 0, spool.now())
        return True

    spool.change(id, now)
    runner_tell(serving, id)
    assert report_in(serving, inbox)["Subject"] == "Undelivered: Hello out there"


def test_a_local_recipient_in_the_queue_is_delivered_when_due(world, serving, inbox):
    """As mail that was to be sent later is: from the queue into the mailbox, with the trace lines of a delivery."""
    spool = runner.spool_of(serving.settings)
    gone = Recipient(Address("gone", "example.com"))
    entry = Entry(new_id(), Envelope(Address("ann", "example.com")), [Recipient(Address("bo", "example.com")), gone])
    message = Incoming(spool.tmp_dir)
    message.write(b"Subject: Later\r\n\r\n" + b"x" * 300_000 + b"\r\n")
    spool.put(entry, message)
    runner_tell(serving, entry.id)
    [text] = until(lambda: inbox(serving, "bo"), "delivered")
    assert text.startswith(b"Return-Path: <ann@example.com>\r\nDelivered-To: bo@example.com\r\nSubject: Later\r\n")
    assert text.endswith(b"x" * 300_000 + b"\r\n")
    report = report_in(serving, inbox)
    assert list(report.iter_parts())[1].get_payload()[1]["Status"] == "5.1.1"
    until(lambda: queue_files(serving) == [], "ended")


def test_a_server_that_ended_holds_no_socket(serve, dial, world):
    """Neither the one that wakes the runner."""
    before = sockets()
    server = serve()
    client = dial(server, "submissions", user="ann")
    send(client, "bo@elsewhere.org")
    until(lambda: world.taken, "handed on")
    assert len(sockets() - before) > 5
    client.close()
    server.close()
    until(lambda: not sockets() - before, "all are closed")


def sockets() -> set[str]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if (name := os.readlink(f"/proc/self/fd/{fd}")).startswith("socket:"):
                found.add(name)
    return found
