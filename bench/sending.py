"""How fast mail leaves, beside Postfix in the same run; what 100,000 waiting messages cost; who suffers from whom.

    sudo .venv/bin/python bench/sending.py [rate] [queue] [hang] [push] [emptying]
        [--messages 10000] [--rounds 3]

rate   N messages of 4 KB to 100 domains, submitted by 20 connections over TLS, until smtp-sink has all of them:
       messages per second, seconds until the last was accepted, CPU of all processes of the server for each message.
       mailsrv and Postfix in turn, the other one first in each round; medians. With --sign mailsrv signs (DKIM),
       Postfix does not.
queue  --entries (100,000) deferred messages on disk: how long the runner takes to know them, its memory, `queue list`,
       what a retry of one message opens and lists, how late the event loops are meanwhile.
hang   N messages to 100 domains with one that accepts connections and never says a word, and without.
push   250 to EXISTS, and end of data to EXISTS, of a message to a mailbox here, at irregular intervals: with nothing
       else to do, while N messages are accepted and go out, and, as a control, while Postfix accepts and sends the
       same: what a busy machine costs alone. Blocks in turn, N divided among them.
emptying  the same while a queue empties and nothing is accepted: N messages to 100 domains wait, because no host of
       the world was there when they came; then the hosts are back, and `mailsrv queue retry --all`, or as a control
       `postqueue -f` of Postfix, has all of them sent. Filling the queue is not measured. mailsrv shows what waits in
       the sender's Outbox, and takes it away there as it leaves; with --no-outbox it does not.

Needs root, Debian's `postfix` (with smtp-sink) and `strace`. The world's name server is on port 53 of a loopback
address, of which only the Postfix started here is told, by a mount of its own over /etc/resolv.conf. All is on
loopback, below one temporary directory, and ends by itself. Both servers keep their defaults, but for 100 attempts at
once instead of 200 in mailsrv, which is Postfix's number of processes; both ask the same name server and find the same
ten sinks. Postfix takes the mail by address, mailsrv after AUTH.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from contextlib import ExitStack
from typing import Any

from outward.clients import recipients_of, submit
from outward.long_queue import queued
from outward.pushes import emptying, push
from outward.rate import hang, rate
from outward.servers import Mailsrv, Postfix, make_certificate
from outward.world import World

PARTS = {"rate": rate, "queue": queued, "hang": hang, "push": push, "emptying": emptying}


def main() -> None:
    if sys.argv[1:2] == ["submit"]:
        name, port, messages, hanging = sys.argv[2:6]
        server: Any = type(
            "Server", (), {"port": int(port), "log_in": (Mailsrv if name == "mailsrv" else Postfix).log_in}
        )()
        submit(server, recipients_of(int(messages), hanging == "1"))
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="all of them unless named")
    parser.add_argument("--messages", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--sign", action="store_true", help="mailsrv signs what it sends")
    parser.add_argument("--no-outbox", dest="outbox", action="store_false", help="mailsrv shows nobody what waits")
    parser.add_argument("--alone", action="store_true", help="without Postfix")
    args = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("needs root: for port 53, and for Postfix")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    with ExitStack() as stack:
        directory = tempfile.mkdtemp(prefix="sending-")
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        os.chmod(directory, 0o755)
        certificate = make_certificate(directory)
        world = World(directory)
        stack.callback(world.close)
        for name in args.parts or PARTS:
            PARTS[name](directory, world, certificate, args)


if __name__ == "__main__":
    main()
