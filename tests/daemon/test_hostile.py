"""Clients that mean ill or are broken, against the real server: others are unaffected, memory stays bounded."""

import errno
import os
import random
import smtplib
import socket
import time
from pathlib import Path

import gevent
import pytest

from tests.daemon.conftest import until

MIB = 1024 * 1024


def resident(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no such process")


def works(server, imap, number):
    """Somebody else is served meanwhile: a message in, and seen."""
    with smtplib.SMTP("127.0.0.1", server.ports["smtp"], timeout=60) as client:
        client.sendmail("x@elsewhere.org", ["bo@example.com"], f"Subject: Number {number}\r\n\r\nText.\r\n")
    reader = imap(server.connect("imaps"), "bo")
    assert len(reader.uids()) == number
    reader.close()


def drain(sock, seconds=60):
    """Everything up to the end of the connection."""
    sock.settimeout(seconds)
    received = b""
    try:
        while data := sock.recv(65536):
            received += data
    except (ConnectionResetError, BrokenPipeError):
        pass
    return received


def pour(sock, chunks):
    """Send until all is sent or the server has had enough; what it answered."""
    received = b""
    sock.settimeout(60)
    try:
        for chunk in chunks:
            sock.sendall(chunk)
            sock.setblocking(False)
            try:
                while data := sock.recv(65536):
                    received += data
            except BlockingIOError:
                pass
            sock.settimeout(60)
        sock.shutdown(socket.SHUT_WR)
    except (ConnectionResetError, BrokenPipeError, TimeoutError):
        pass
    except OSError as error:  # the reset came between two calls: the next one is not about a connection any more
        if error.errno != errno.ENOTCONN:
            raise
    return received + drain(sock)


@pytest.mark.parametrize("service", ["smtp", "imap"])
def test_ten_megabytes_of_garbage_end_in_an_error(daemon, imap, service):
    server = daemon()
    before = resident(server.process.pid)
    dice = random.Random(4)
    kinds = {
        "random octets": [dice.randbytes(MIB) for _ in range(10)],
        "one endless line": [b"a" * MIB] * 10,
        "NULs": [b"\0" * MIB] * 10,
        "line ends": [b"\r\n" * (MIB // 2)] * 10,
        "bare LF": [b"x\n" * (MIB // 2)] * 10,
    }

    def answer_to(chunks):
        with server.connect(service) as sock:
            assert sock.recv(4096).startswith(b"220 " if service == "smtp" else b"* OK ")
            return b"\r\n" + pour(sock, chunks)

    pouring = {name: gevent.spawn(answer_to, chunks) for name, chunks in kinds.items()}
    for name, one in pouring.items():
        answer = one.get()
        errors = (b"\r\n500 5.5", b"\r\n421 ") if service == "smtp" else (b" BAD ", b"* BYE ")
        # The last words to somebody who has not stopped talking may be lost with the connection.
        assert any(error in answer for error in errors) or (
            answer == b"\r\n" and name in ("one endless line", "NULs")
        ), name
    works(server, imap, 1)
    assert resident(server.process.pid) - before < 60 * MIB
    assert "session-failed" not in server.log.read_text()


def test_s16_fifty_stalled_handshakes_hold_up_nobody(daemon, imap):
    server = daemon(**{"limits.connections_per_address": 200})
    stalled = [socket.create_connection(("127.0.0.1", server.ports["imaps"])) for _ in range(50)]
    for sock in stalled[:25]:
        sock.sendall(b"\x16\x03\x01\x02\x00\x01")  # the first octets of a ClientHello, and no more
    for sock in stalled[40:]:
        sock.sendall(b"no TLS at all\r\n")
    begun = time.monotonic()
    works(server, imap, 1)
    assert time.monotonic() - begun < 25  # not behind the 30 s that a handshake may take
    for sock in stalled:
        sock.close()
    works(server, imap, 2)


def test_b12_client_that_never_reads_holds_only_itself(daemon, imap):
    server = daemon(**{"limits.write_seconds": 2})
    before = resident(server.process.pid)
    message = b"Subject: Large\r\n\r\n" + b"0123456789abcdef" * 4 * 1024 * 16 + b"\r\n"
    with smtplib.SMTP("127.0.0.1", server.ports["smtp"]) as client:
        for _ in range(20):
            client.sendmail("x@elsewhere.org", ["ann@example.com"], message)
    deaf = []
    for _ in range(5):
        client = imap(server.connect("imap"))
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.send("FETCH 1:* (BODY.PEEK[])")
        client.send("FETCH 1:* (BODY.PEEK[])")
        deaf.append(client)
    works(server, imap, 1)
    # While they do not read, mail for their own mailbox is taken and told to others too.
    watcher = imap(server.connect("imap"))
    watcher.idle()
    with smtplib.SMTP("127.0.0.1", server.ports["smtp"]) as client:
        client.sendmail("x@elsewhere.org", ["ann@example.com"], b"Subject: Small\r\n\r\nText.\r\n")
    assert watcher.until(b"* 21 EXISTS")
    until(lambda: server.log.read_text().count("logout") >= 6, "those who do not read are cut off")
    assert resident(server.process.pid) - before < 100 * MIB


def test_s33_connections_over_the_limit_are_told_so(daemon):
    server = daemon(**{"limits.connections_per_address": 5, "limits.trusted_networks": []})
    held = [server.connect("imap") for _ in range(5)]
    assert all(sock.recv(100).startswith(b"* OK ") for sock in held)
    with server.connect("imap") as over:
        assert over.recv(100).startswith(b"* BYE [LIMIT]")
    with server.connect("smtp") as over:
        assert over.recv(100).startswith(b"421 4.7.0 ")
    with server.connect("imaps") as over:  # inside TLS, too
        assert over.recv(100).startswith(b"* BYE [LIMIT]")
    with server.connect("submissions") as over:
        assert over.recv(100).startswith(b"421 4.7.0 ")
    held.pop().close()
    until(lambda: server.answers("smtp"), "there is room again")
    for sock in held:
        sock.close()


def test_s28_mime_bombs_are_answered(daemon, imap):
    server = daemon()
    deep = b"".join(b'Content-Type: multipart/mixed; boundary="b%d"\r\n\r\n--b%d\r\n' % (n, n) for n in range(1000))
    wide = b'Content-Type: multipart/mixed; boundary="b"\r\n\r\n' + b"--b\r\n\r\nx\r\n" * 10_000 + b"--b--\r\n"
    with smtplib.SMTP("127.0.0.1", server.ports["smtp"]) as client:
        for message in (b"Subject: deep\r\n" + deep, b"Subject: wide\r\n" + wide):
            client.sendmail("x@elsewhere.org", ["ann@example.com"], message)
    reader = imap(server.connect("imap"))
    lines = reader.ok("FETCH 1:2 (BODYSTRUCTURE ENVELOPE BODY.PEEK[1.1.1])")
    assert len([line for line in lines if b" FETCH (" in line]) == 2
    assert len(reader.uids()) == 2
    assert b"* SEARCH 1 2" in b"".join(reader.ok("SEARCH NOT TEXT nothing-of-the-kind"))
    assert os.path.exists(f"/proc/{server.process.pid}")
