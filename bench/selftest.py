"""The benchmark on toy servers: one that does what it should, and broken ones, which must fail.

    .venv/bin/python bench/selftest.py          exits 0 if every one came out as it should

`mute` announces nothing, `lazy` says nothing of the mailbox, `slow` does not end in time.
"""

from __future__ import annotations

import json
import os
import socketserver
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from benchlib import connections, deliveries, plan, work
from targets.base import Target

SIZES: dict[str, Any] = plan.QUICK | {
    "push_n": 3, "push_gap": 0.02, "push_isolated": 1, "push_wait": 1, "login_n": 20,
}  # fmt: skip


class Connection(socketserver.StreamRequestHandler):
    """IMAP and SMTP with as little as the benchmark's clients ask for."""

    toy: Toy

    def handle(self) -> None:
        try:
            self.talk()
        except OSError:
            pass  # clients hang up at will


class Imap(Connection):
    def talk(self) -> None:
        self.wfile.write(b"* OK toy\r\n")
        for line in self.rfile:
            tag, command = line.split()[:2]
            if command == b"SELECT" and self.toy.mode != "lazy":
                self.wfile.write(b"* %d EXISTS\r\n" % self.toy.messages)
            if command == b"IDLE":
                self.wfile.write(b"+ idling\r\n")
                self.toy.idlers.append(self.wfile)
                self.rfile.readline()
                self.toy.idlers.remove(self.wfile)
            self.wfile.write(tag + b" OK done\r\n")
            if command == b"LOGOUT":
                return


class Smtp(Connection):
    def talk(self) -> None:
        self.wfile.write(b"220 toy\r\n")
        for line in self.rfile:
            if line.startswith(b"DATA"):
                self.wfile.write(b"354 go\r\n")
                while self.rfile.readline() not in (b".\r\n", b""):
                    pass
                self.toy.messages += 1
                self.wfile.write(b"250 taken\r\n")
                if self.toy.mode == "good":
                    for idler in list(self.toy.idlers):
                        idler.write(b"* %d EXISTS\r\n" % self.toy.messages)
            else:
                self.wfile.write(b"250 ok\r\n")


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
    request_queue_size = 128


class Toy(Target):
    name = "toy"
    can_restart = False

    def __init__(self, mode: str) -> None:
        super().__init__(400)
        self.mode, self.messages = mode, 0
        self.idlers: list[BinaryIO] = []
        self.servers = [Server(("127.0.0.1", 0), type(one.__name__, (one,), {"toy": self})) for one in (Imap, Smtp)]
        self.imap, self.smtp = (server.server_address for server in self.servers)

    def roots(self) -> list[int]:
        return [os.getpid()]


@contextmanager
def toy(mode: str) -> Iterator[Toy]:
    target = Toy(mode)
    threads = [threading.Thread(target=one.serve_forever, args=(0.05,)) for one in target.servers]
    for thread in threads:
        thread.start()
    try:
        yield target
    finally:
        for server in target.servers:
            server.shutdown()
            server.server_close()
        for thread in threads:
            thread.join()
        target.cleanup()


def never(_: work.Work) -> None:
    threading.Event().wait(30)


CASES: tuple[tuple[str, str, Callable[[work.Work], None]], ...] = (
    ("good", "push", deliveries.push),
    ("good", "login", connections.login),
    ("mute", "push", deliveries.push),
    ("lazy", "login", connections.login),
    ("slow", "push", never),
)


def main() -> int:
    """Prints the outcome of each case as a line of JSON."""
    wrong = 0
    for mode, name, workload in CASES:
        with toy(mode) as target:
            done = work.run(target, workload, SIZES, verbose=False, limit_seconds=0.1 if mode == "slow" else 20)
        wrong += bool(done["errors"]) == (mode == "good")
        print(json.dumps({"mode": mode, "workload": name, **done}), flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
