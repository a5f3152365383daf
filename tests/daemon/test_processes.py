"""The server as processes: workers, signals, sudden ends. What was answered 250 is there once, whatever happened."""

import os
import re
import signal
import smtplib
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mailsrv.store.account import AccountStore
from mailsrv.values import AccountId
from mailsrv.wire import mime
from tests.daemon.conftest import ROOT, SECONDS, until

TEXT = b"From: x@elsewhere.org\r\nSubject: Number %d\r\nMessage-ID: <%d@test>\r\n\r\n" + b"Some text.\r\n" * 20


def send(sock, *lines):
    for line in lines:
        sock.sendall(line + b"\r\n")
        reply = sock.recv(4096)
    return reply


def smtp_connection(server):
    sock = server.connect("smtp")
    sock.recv(4096)
    send(sock, b"EHLO client.test")
    return sock


def deliver(server, to="ann@example.com", subject="Hello"):
    with smtplib.SMTP("127.0.0.1", server.ports["smtp"]) as client:
        client.sendmail("x@elsewhere.org", [to], f"Subject: {subject}\r\n\r\nText.\r\n")


@pytest.mark.parametrize("workers", [1, 2])
def test_f02_sigterm_drains_imap_gets_bye_and_data_is_finished(daemon, imap, workers):
    server = daemon(**{"server.workers": workers, "server.shutdown_seconds": 20})
    idler, waiter = imap(server.connect("imap")), imap(server.connect("imaps"))
    idler.idle()
    quiet = smtp_connection(server)
    busy = smtp_connection(server)
    assert send(busy, b"MAIL FROM:<x@elsewhere.org>", b"RCPT TO:<ann@example.com>", b"DATA").startswith(b"354")
    busy.sendall(b"Subject: Half of it\r\n\r\n")
    server.process.send_signal(signal.SIGTERM)
    assert idler.until(b"* BYE")[-1] == b"* BYE Server is shutting down\r\n"
    assert waiter.until(b"* BYE")
    assert quiet.recv(4096).startswith(b"421 4.3.2 ")
    with pytest.raises(OSError):  # nobody new is let in
        until(lambda: socket.create_connection(("127.0.0.1", server.ports["smtp"]), 1).close() or False, "refused")
    busy.sendall(b"The rest.\r\n.\r\n")
    assert busy.recv(4096).startswith(b"250 2.0.0 ")
    assert server.process.wait(SECONDS) == 0
    [path] = server.files("ann")
    assert path.read_bytes().endswith(b"Subject: Half of it\r\n\r\nThe rest.\r\n")
    assert server.command("status").returncode == 3
    for sock in (quiet, busy):
        sock.close()


def test_f02_second_server_on_the_same_directory_is_refused(daemon):
    server = daemon()
    assert server.command("status").returncode == 0
    second = server.command("serve")
    assert second.returncode == 1
    assert f"mailsrv is running already (pid {server.process.pid}" in second.stderr
    assert server.answers("imap")
    assert server.stop() == 0
    assert server.command("status").returncode == 3


def test_f02_port_in_use_is_named(daemon):
    server = daemon()
    taken = socket.socket()
    try:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert server.stop() == 0
        path = Path(server.settings.path)
        path.write_text(path.read_text().replace(str(server.ports["imap"]), str(port)))
        refused = server.command("serve")
        assert refused.returncode == 1
        assert f"imap.listen: cannot listen on 127.0.0.1:{port}: Address already in use" in refused.stderr
    finally:
        taken.close()


def test_killed_worker_is_replaced_and_the_others_go_on(daemon, imap):
    server = daemon(**{"server.workers": 2})
    before = until(lambda: server.workers() if len(server.workers()) == 2 else None, "two workers")
    os.kill(before[0], signal.SIGKILL)
    after = until(lambda: now if len(now := server.workers()) == 2 and before[0] not in now else None, "a new worker")
    assert before[1] in after
    until(lambda: "process-died name=worker-" in server.log.read_text(), "the log says so")
    for _ in range(8):  # whoever takes the connection
        client = imap(server.connect("imap"))
        assert client.uids() == {}
    assert server.stop() == 0


def test_hung_worker_is_killed_and_replaced(daemon, imap):
    server = daemon(**{"server.workers": 2, "server.hang_seconds": 5})
    before = until(lambda: server.workers() if len(server.workers()) == 2 else None, "two workers")
    os.kill(before[0], signal.SIGSTOP)  # as if its event loop did not turn
    after = until(lambda: now if len(now := server.workers()) == 2 and before[0] not in now else None, "a new worker")
    assert before[1] in after
    hung = rf"process-hangs name=worker-\d pid={before[0]} silent_s=([\d.]+)"
    assert float(until(lambda: re.search(hung, server.log.read_text()), "told")[1]) >= 5
    time.sleep(6)  # longer than the limit: nobody else is taken to hang
    assert server.workers() == after
    assert imap(server.connect("imap")).uids() == {}
    assert server.stop() == 0


def test_killed_supervisor_takes_its_workers_along_and_the_ports_are_free(daemon):
    server = daemon(**{"server.workers": 2})
    workers = until(lambda: server.workers() if len(server.workers()) == 2 else None, "two workers")
    server.process.kill()
    server.process.wait()
    until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in workers), "the workers end")
    server.start()
    assert server.answers("imap")
    assert server.stop() == 0


def test_f04_b05_every_idling_session_of_every_worker_is_told(daemon, imap):
    server = daemon(**{"server.workers": 2})
    until(lambda: len(server.workers()) == 2, "two workers")
    clients = [imap(server.connect("imap")) for _ in range(12)]
    for client in clients:
        client.idle()
    for number in range(1, 6):
        deliver(server, subject=f"Number {number}")  # a connection each: any worker may have it
        for client in clients:
            assert client.until(b"* %d EXISTS" % number)
    # Another program's file, a flag change, an expunge, a copy: by the same road.
    (server.maildir("ann") / "tmp/1.foreign").write_bytes(b"Subject: Foreign\n\nText.\n")
    (server.maildir("ann") / "tmp/1.foreign").rename(server.maildir("ann") / "new/1.foreign")
    for client in clients:
        assert client.until(b"* 6 EXISTS")
    actor = imap(server.connect("imap"))
    actor.ok("STORE 2 +FLAGS (\\Flagged \\Deleted work)")
    for client in clients:
        assert b"\\Flagged" in client.until(b"* 2 FETCH")[-1]
    actor.ok("EXPUNGE")
    for client in clients:
        assert client.until(b"* 2 EXPUNGE")
    actor.ok("COPY 1:2 INBOX")
    for client in clients:
        assert client.until(b"* 7 EXISTS")
        client.done()
    seen = [client.uids() for client in clients]
    assert sorted(seen[0]) == [1, 3, 4, 5, 6, 7, 8]
    for one in seen:
        assert sorted(one) == sorted(seen[0])
    served = set(re.findall(r"login session=\S+", server.log.read_text()))
    assert len(served) >= 1
    assert server.stop() == 0


class Ledger:
    """A sender that writes down every 250, over connections that may break at any moment."""

    def __init__(self, server):
        self.server = server
        self.acknowledged = []
        self.tried = 0
        self.stopping = False
        self.lock = threading.Lock()

    def run(self, name):
        number = 0
        while not self.stopping:
            try:
                with self.server.connect("smtp") as sock:
                    sock.recv(4096)
                    send(sock, b"EHLO ledger.test")
                    while not self.stopping:
                        number += 1
                        key = name * 1_000_000 + number
                        send(sock, b"MAIL FROM:<x@elsewhere.org>", b"RCPT TO:<ann@example.com>")
                        if not send(sock, b"DATA").startswith(b"354"):
                            break
                        with self.lock:
                            self.tried += 1
                        if send(sock, TEXT % (number, key) + b".").startswith(b"250"):
                            self.acknowledged.append(key)
            except OSError:
                time.sleep(0.01)  # until the server is back


def uids_by_message(server):
    """Message key -> UIDs, read from the files alone."""
    found = {}
    for path in server.files("ann"):
        text = path.read_bytes()
        assert text.endswith(b"Some text.\r\n" * 20), f"torn: {path}"
        key = int(re.search(rb"Message-ID: <(\d+)@test>", text)[1])
        tag = re.search(r",U=(\d+)-(\d+)", path.name)
        found.setdefault(key, []).append((int(tag[1]), int(tag[2])))
    return found


def test_a_start_waits_for_what_a_killed_server_has_left(daemon):
    """Its processes end by themselves, and have ports and pid file until then."""
    server = daemon(**{"server.workers": 2})
    workers = server.workers()
    os.kill(workers[0], signal.SIGSTOP)
    server.process.kill()
    server.process.wait()
    words = [sys.executable, "-m", "mailsrv", "serve", "--foreground", "--config", server.settings.path]
    second = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert f"waiting-for-the-processes-of-a-killed-server killed={server.process.pid} " in second.stderr.readline()
    os.kill(workers[0], signal.SIGCONT)
    second.stderr.close()
    server.process = second
    until(lambda: server.answers("imap") and server.answers("smtp"), "the server answers")
    assert server.stop() == 0
    assert server.command("status").returncode == 3


def test_a_start_does_not_wait_for_ever(daemon):
    server = daemon(**{"server.workers": 2, "server.shutdown_seconds": 0})
    stopped = server.workers()[0]
    os.kill(stopped, signal.SIGSTOP)
    server.process.kill()
    server.process.wait()
    second = server.command("serve")
    assert second.returncode == 1
    assert f"mailsrv was killed (pid {server.process.pid}, " in second.stderr
    assert "its processes have not ended yet" in second.stderr
    os.kill(stopped, signal.SIGKILL)
    server.start()
    assert server.stop() == 0


@pytest.mark.timeout(400)
@pytest.mark.parametrize("whole", [False, True], ids=["worker", "supervisor"])
def test_b14_r07_kill_9_during_delivery_loses_nothing_and_keeps_uids(daemon, whole):
    server = daemon(**{"server.workers": 2, "limits.connections_per_address": 1000})
    ledger = Ledger(server)
    senders = [threading.Thread(target=ledger.run, args=(name,)) for name in range(1, 5)]
    for sender in senders:
        sender.start()
    known = {}
    try:
        for _ in range(6):
            enough = len(ledger.acknowledged) + 25
            until(lambda enough=enough: len(ledger.acknowledged) >= enough, "mail goes in")
            if whole:
                server.process.kill()
                server.process.wait()
                for key, uids in uids_by_message(server).items():
                    known.setdefault(key, uids)
                server.start()
            else:
                until(lambda: len(server.workers()) == 2, "two workers")
                os.kill(server.workers()[0], signal.SIGKILL)
    finally:
        ledger.stopping = True
        for sender in senders:
            sender.join()
    found = uids_by_message(server)
    assert set(ledger.acknowledged) <= set(found)
    assert [key for key in ledger.acknowledged if len(found[key]) != 1] == []
    for key, uids in known.items():
        assert found[key] == uids, "a UID changed"
    every = [uid for uids in found.values() for uid in uids]
    assert len(set(every)) == len(every), "a UID was given twice"
    assert server.stop() == 0
    store = AccountStore(AccountId(1), str(server.maildir("ann").parent), prepare=mime.prepare, host="x")
    snapshot = store.snapshot(1)
    assert sorted(uid for _, uid in every) == list(snapshot.uids)
    store.close()


def test_f10_indexes_deleted_under_a_running_server(daemon, imap):
    server = daemon(**{"server.workers": 2})
    for number in range(6):
        deliver(server, subject=f"Number {number}")
    first = imap(server.connect("imap"))
    first.ok("STORE 1:3 +FLAGS (\\Seen $Label1)")
    first.ok("STORE 4 +FLAGS (\\Deleted)")
    first.ok("EXPUNGE")
    before = {uid: flags.replace(b"\\Recent", b"").split() for uid, flags in first.uids().items()}
    status = first.ok("STATUS INBOX (UIDVALIDITY UIDNEXT MESSAGES)")
    for path in server.maildir("ann").parent.glob("index.sqlite3*"):
        path.unlink()
    second = imap(server.connect("imap"))
    after = {uid: flags.replace(b"\\Recent", b"").split() for uid, flags in second.uids().items()}
    assert {uid: sorted(flags) for uid, flags in after.items()} == {uid: sorted(flags) for uid, flags in before.items()}
    validity = re.search(rb"UIDVALIDITY (\d+)", status[0])[1]
    assert validity in second.ok("STATUS INBOX (UIDVALIDITY)")[0]
    deliver(server, subject="After")
    assert b"* 6 EXISTS\r\n" in second.ok("NOOP")
    assert max(second.uids()) > max(before)
    first.ok("NOOP")
    assert sorted(first.uids()) == sorted(second.uids())
    reindexed = server.command("reindex", "--json")
    assert reindexed.returncode == 0, reindexed.stderr
    assert sorted(first.uids()) == sorted(second.uids())
    assert server.stop() == 0


def test_f12_slow_password_schemes_in_workers(daemon, imap):
    """Verified by a process that a forked worker starts; then the password is kept as argon2id."""
    server = daemon(**{"server.workers": 2})
    stored = "$6$saltsalt$qFmFH.bQmmtXzyBY0s9v7Oicd2z4XSIecDzlB5KiA2/jctKu9YterLp8wwnSq.qc.eoxqOmSuNp2xS0ktL3nh/"
    for name in ("ann", "bo", "cy"):
        server.accounts.set_password_hash(f"{name}@example.com", "{SHA512-CRYPT}" + stored)
    for name in ("ann", "bo", "cy"):
        client = imap(server.connect("imaps"), user=None, mailbox=None)
        client.ok(f"LOGIN {name}@example.com password")
        assert server.accounts.by_login(f"{name}@example.com").hash.startswith("{ARGON2ID}")
