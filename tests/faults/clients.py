"""Clients that stop, close one side, or vanish: their messages come once or not at all, and nobody else waits.

A stopped client is a connection on which its side does nothing any more, which is all that a server sees of a SIGSTOP.
"""

from __future__ import annotations

import random
import smtplib
import socket
import struct
import time

import gevent

from tests.faults.context import Context
from tests.faults.ledger import Ledger
from tests.faults.load import deliver
from tests.faults.pushes import Watcher, told
from tests.faults.report import Result
from tests.faults.server import DOMAIN, SECONDS, USERS, Client, Server, until

PATIENCE_SECONDS = 10  # the server's, the least that may be set


def run(context: Context) -> Result:
    result = Result("clients that stop or vanish")
    server = Server(context.place("clients"), **{
        "smtp.command_seconds": PATIENCE_SECONDS, "imap.login_seconds": 5, "limits.write_seconds": 2,
        "queue.outbox": False,
    })  # fmt: skip
    ledger = Ledger(context.seed, "v")
    try:
        server.start()
        deliver(server, ledger, USERS)
        maildirs = server.maildirs()
        result.wrong += ledger.close(maildirs.boxes())
        _vanish(context, server, ledger, result)
        result.wrong += ledger.close(maildirs.boxes()) + maildirs.wrong
        _stop(context, server, ledger, result)
        result.wrong += ledger.close(maildirs.boxes()) + maildirs.wrong
        until(lambda: not maildirs.temporary(), "nothing is left in tmp/")
        result.wrong += server.bugs()
    except AssertionError as failure:
        result.wrong.append(str(failure))
    finally:
        server.close()
    return result


def _dialogue(server: Server, user: str) -> socket.socket:
    """A connection that may now send the text."""
    sock = server.connect("smtp")
    file = sock.makefile("rb")
    assert file.readline().startswith(b"220")
    for line, code in (
        (b"EHLO load.example", b"250"), (b"MAIL FROM:<>", b"250"), (f"RCPT TO:<{user}@{DOMAIN}>".encode(), b"250"),
        (b"DATA", b"354"),
    ):  # fmt: skip
        sock.sendall(line + b"\r\n")
        answer = file.readline()
        while answer[3:4] == b"-":
            answer = file.readline()
        assert answer.startswith(code), answer
    file.close()
    return sock


def _reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def _vanish(context: Context, server: Server, ledger: Ledger, result: Result) -> None:
    """After the dot and before it, by FIN and by RST, and with only one side closed."""
    choice = random.Random(f"{context.seed} vanish")
    for number in range(context.of(4, 25, 200)):
        for how in ("half-close after the dot", "RST after the dot", "FIN in the text", "RST in the text"):
            user = choice.choice(USERS)
            token, text = ledger.message(choice.choice((200, 5_000, 400_000)))
            ledger.sending(token, [user])
            text = text.replace(b"\r\n.", b"\r\n..")
            sock = _dialogue(server, user)
            result.counts[how] += 1
            if how.endswith("dot"):
                sock.sendall(text + b".\r\n")
                if how.startswith("half"):
                    sock.shutdown(socket.SHUT_WR)
                    answer = sock.recv(4096)
                    if answer.startswith(b"250"):
                        ledger.sent(token, [user])
                    else:
                        result.wrong.append(f"{how}: answered {answer!r}")
                    sock.close()
                else:
                    gevent.sleep(choice.choice((0, 0, 0.001, 0.003)))
                    _reset(sock)
                continue
            cut = choice.randrange(1, len(text))
            sock.sendall(text[:cut] if number % 3 else text + b".\r")
            ledger.refused(token, [user])
            sock.close() if how.startswith("FIN") else _reset(sock)
    _settled(server)


def _settled(server: Server) -> None:
    """The server has seen every end: nothing is on its way into a mailbox any more."""
    maildirs = server.maildirs()

    def sizes() -> list[int]:
        return [sum(len(found) for _, found in maildirs.boxes(thoroughly=False).values()), len(maildirs.temporary())]

    before = sizes()
    for _ in range(100):
        gevent.sleep(0.3)
        now = sizes()
        if now == before and now[1] == 0:
            return
        before = now


def _stop(context: Context, server: Server, ledger: Ledger, result: Result) -> None:
    """In the text, in the TLS handshake, and while idling without reading; each place is free again in time."""
    stopped: dict[str, socket.socket] = {}
    begun = time.monotonic()
    for number in range(context.of(3, 10, 40)):
        _, text = ledger.message(5_000)
        sock = _dialogue(server, "ann")
        sock.sendall(text[:2_500])
        stopped[f"in the text {number}"] = sock
        hello = socket.create_connection(("127.0.0.1", server.ports["imaps"]), timeout=SECONDS)
        hello.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        stopped[f"in the handshake {number}"] = hello
    deaf = Client(server, "ann", "INBOX")
    deaf.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.idle()
    result.counts["stopped"] = len(stopped) + 1
    watcher = Watcher(server, "ann")
    count = ledger_count = len(server.files("ann"))
    for _ in range(context.of(5, 20, 100)):
        deliver(server, ledger, ["ann"])
        count += 1
        if not told([watcher], count):
            result.wrong.append(f"{watcher.count} of {count} messages were announced beside stopped clients")
            break
    result.counts["pushes meanwhile"] = count - ledger_count
    watcher.close()
    deaf.close()
    for where, sock in stopped.items():
        sock.settimeout(SECONDS)
        try:
            while sock.recv(4096):
                pass
        except (ConnectionError, smtplib.SMTPException):
            pass
        except TimeoutError:
            result.wrong.append(f"stopped {where}: not ended after {SECONDS:.0f} s")
        sock.close()
    result.notes.append(f"places free after {time.monotonic() - begun:.0f} s (set: {PATIENCE_SECONDS} s)")
