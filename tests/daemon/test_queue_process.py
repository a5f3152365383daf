"""The queue runner as a process beside two workers: what it delivers is pushed, and its end loses nothing."""

import json
import os
import re
import signal
import smtplib

from tests.conftest import DOMAIN, PASSWORD
from tests.daemon.conftest import until

# At an address of this machine, where we take mail ourselves: known to be a loop without asking anybody.
NOWHERE = "bo@[127.0.0.2]"


def submit(server, recipient: str, subject: str) -> None:
    with smtplib.SMTP_SSL("127.0.0.1", server.ports["submissions"], context=server.tls) as client:
        client.login(f"ann@{DOMAIN}", PASSWORD)
        client.sendmail(f"ann@{DOMAIN}", [recipient], f"From: ann@{DOMAIN}\r\nSubject: {subject}\r\n\r\nText.\r\n")


def runner_pid(server) -> int:
    pids = until(lambda: re.findall(r"process-started name=queue pid=(\d+)", server.log.read_text()), "logged")
    return int(pids[-1])


def schedulers(pid: int) -> set[int]:
    """How the threads of a process are scheduled."""
    return {os.sched_getscheduler(int(thread)) for thread in os.listdir(f"/proc/{pid}/task")}


def waiting(server) -> dict:
    return json.loads(server.command("queue", "stats", "--json").stdout)


def test_a_report_of_the_runner_is_pushed_to_whoever_idles(daemon, imap):
    server = daemon(**{"server.workers": 2})
    idler = imap(server.connect("imap"))
    idler.idle()
    submit(server, NOWHERE, "To nowhere")
    assert idler.until(b"* 1 EXISTS")
    idler.done()
    text = b"".join(idler.ok("UID FETCH 1 (BODY[HEADER.FIELDS (SUBJECT AUTO-SUBMITTED)])"))
    assert b"Subject: Undelivered: To nowhere" in text and b"Auto-Submitted: auto-replied" in text
    until(lambda: waiting(server)["entries"] == 0, "the entry ended")
    assert server.stop() == 0


def test_b21_a_killed_runner_is_replaced_and_goes_on(daemon, imap):
    """What is accepted while there is no runner waits for the next one; a second one is never let in."""
    server = daemon(**{"server.workers": 2})
    first = until(lambda: waiting(server)["runner_pid"], "the runner works")
    assert first == runner_pid(server)
    os.kill(first, signal.SIGSTOP)
    for number in range(5):
        submit(server, NOWHERE, f"Number {number}")
    assert waiting(server)["entries"] == 5
    os.kill(first, signal.SIGKILL)
    until(lambda: len(list(server.maildir("ann").glob("new/*"))) == 5, "all reported")
    until(lambda: waiting(server)["entries"] == 0, "all ended")
    assert waiting(server)["runner_pid"] == runner_pid(server) != first
    reported = b"".join(path.read_bytes() for path in server.files("ann"))
    assert sorted(re.findall(rb"(?m)^Subject: Undelivered: (Number \d)", reported)) == [
        b"Number %d" % number for number in range(5)
    ]
    assert server.stop() == 0
    assert waiting(server)["runner_pid"] is None


def test_no_thread_of_the_runner_takes_the_processor_from_a_worker(daemon):
    """It runs behind the workers, or beside them where the machine has no room, or the system no way back."""
    server = daemon(**{"server.workers": 2})
    submit(server, NOWHERE, "To nowhere")
    until(lambda: waiting(server)["entries"] == 0, "the entry ended")
    until(lambda: schedulers(runner_pid(server)) in ({os.SCHED_IDLE}, {os.SCHED_BATCH}), "all threads have gone there")
    if os.geteuid() == 0:
        until(lambda: schedulers(runner_pid(server)) == {os.SCHED_IDLE}, "it is behind the workers")
    until(lambda: len(server.workers()) == 2, "two workers")
    assert [schedulers(pid) for pid in server.workers()] == [{os.SCHED_OTHER}] * 2
    assert server.stop() == 0


def test_what_a_worker_puts_into_the_mailbox_for_scheduled_mail_the_runner_sends(daemon, imap):
    server = daemon(**{"server.workers": 2, "submission.scheduled_mailbox": "Scheduled"})
    client = imap(server.connect("imap"))
    client.ok("CREATE Scheduled")
    text = f"From: ann@{DOMAIN}\r\nTo: bo@{DOMAIN}\r\nSubject: Later\r\n\r\nText.\r\n"
    client.ok(f"APPEND Scheduled {{{len(text)}+}}\r\n{text}")
    [row] = until(lambda: json.loads(server.command("queue", "list", "--json").stdout), "an entry")
    assert row["state"] == "scheduled" and row["sender"] == f"ann@{DOMAIN}" and row["recipients"] == [f"bo@{DOMAIN}"]
    assert "lies in its sender's mailbox for scheduled mail" in server.command("queue", "why", row["id"]).stdout
    until(lambda: "scheduled id=" in server.log.read_text(), "logged")
    server.command("queue", "retry", row["id"])
    until(lambda: list(server.maildir("bo").glob("new/*")), "delivered")
    until(lambda: list((server.maildir("ann") / ".Sent" / "cur").glob("*")), "put away")
    assert b"".join(client.ok("STATUS Scheduled (MESSAGES)")).count(b"MESSAGES 0") == 1
    assert server.stop() == 0
