"""What logging and counting cost of a delivery's processor time.

    .venv/bin/python bench/observing.py [--blocks 30] [--messages 50]
    .venv/bin/python bench/observing.py --instructions [--messages 200]

Two servers of their own on loopback, one as it is configured by default, the other with a log of errors alone and a
counting that does nothing. (What reading the metrics costs: bench/scrape.py.) They are given the same messages of 10 KB
in turns, block by block, each for a client that idles. Other programs make the same work take more processor time
(caches, changes of task), so the half of the blocks that took least is compared. The goal is 5 %. With `--only log` or
`--only counters` the other server lacks only that.

With `--instructions` both run under valgrind, which counts the instructions outside the kernel: a figure that other
programs on the machine do not change. It takes some minutes.
"""

import argparse
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MESSAGE = (
    b"From: x@bench.test\r\nTo: ann@bench.test\r\nSubject: Something\r\nMessage-ID: <%d@bench.test>\r\n\r\n"
    + b"A line of text that is neither long nor short.\r\n" * 200 + b".\r\n"
)  # fmt: skip
PROGRAM = """
from gevent import monkey; monkey.patch_all()
import sys
from mailsrv import cli, counters, log, vitals
"""
NOT_COUNTING = """
counters.Counter.add = lambda self, *key, n=1: None
counters.Histogram.observe = lambda self, seconds, *key: None
counters.Times.observe = lambda self, seconds: None
"""
# Under valgrind a second is short: what is done some times in one is done as often for a message as without it.
SLOWER = """
log.BATCH_SECONDS *= 50
vitals.BUSY_SECONDS *= 50
vitals.QUIET_SECONDS *= 50
"""
START = "sys.exit(cli.main())\n"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """One that serves, a client that idles there, and a connection that delivers."""

    def __init__(self, directory: str, *, logs: bool, counts: bool, under: Sequence[str] = ()) -> None:
        os.makedirs(directory)
        ports = {name: free_port() for name in ("smtp", "imap")}
        path = f"{directory}/mailsrv.yaml"
        settings = {
            "server": {
                "hostname": "mx.bench.test", "data_dir": f"{directory}/data", "run_dir": f"{directory}/run",
                "workers": 1,
            },
            "smtp": {"listen": [f"127.0.0.1:{ports['smtp']}"]},
            "imap": {"listen": [f"127.0.0.1:{ports['imap']}"], "allow_plaintext_login": True},
            **{name: {"listen": []} for name in ("submission", "submissions", "imaps")},
            "canary": {"seconds": 0},
            "log": {"file": f"{directory}/log", "level": "info" if logs else "error"},
        }  # fmt: skip
        with open(path, "w") as file:
            json.dump(settings, file)
        run = [sys.executable, "-m", "mailsrv"]
        subprocess.run([*run, "domain", "add", "bench.test", "-c", path], cwd=ROOT, check=True)
        added = [*run, "user", "add", "ann@bench.test", "--password-stdin", "-c", path]
        subprocess.run(added, cwd=ROOT, check=True, input="bench password\n", text=True, stdout=subprocess.DEVNULL)
        changed = (SLOWER if under else "") + ("" if counts else NOT_COUNTING)
        program = [sys.executable, "-c", PROGRAM + changed + START] if changed else run
        self.process = subprocess.Popen([*under, *program, "serve", "--foreground", "-c", path], cwd=ROOT)
        self.smtp = self._connect(ports["smtp"])
        self._say(b"HELO bench.test\r\n")
        self._idle(ports["imap"])
        self.number = 0
        self.spent: list[float] = []

    def _connect(self, port: int) -> socket.socket:
        for _ in range(4000):
            try:
                sock = socket.create_connection(("127.0.0.1", port), timeout=60)
                sock.recv(4096)
                return sock
            except OSError:
                time.sleep(0.05)
        raise TimeoutError("the server does not answer")

    def _idle(self, port: int) -> None:
        sock = self._connect(port)
        for text in (b'a LOGIN ann@bench.test "bench password"', b"a SELECT INBOX", b"a IDLE"):
            sock.sendall(text + b"\r\n")
            seen = b""
            while b"a OK" not in seen and not seen.startswith(b"+"):
                seen += sock.recv(4096)
        sock.settimeout(None)
        threading.Thread(target=self._drain, args=(sock,), daemon=True).start()

    @staticmethod
    def _drain(sock: socket.socket) -> None:
        try:
            while sock.recv(65536):
                pass
        except OSError:
            pass

    def _say(self, text: bytes) -> bytes:
        self.smtp.sendall(text)
        return self.smtp.recv(4096)

    def _processor_seconds(self) -> float:
        """clock_getcpuclockid(3): of another process, to the nanosecond."""
        return time.clock_gettime((~self.process.pid << 3) | 2)

    def block(self, messages: int) -> None:
        began = self._processor_seconds()
        for _ in range(messages):
            self.number += 1
            for text in (b"MAIL FROM:<x@bench.test>\r\n", b"RCPT TO:<ann@bench.test>\r\n", b"DATA\r\n"):
                self._say(text)
            reply = self._say(MESSAGE % self.number)
            assert reply.startswith(b"250"), reply
        self.spent.append((self._processor_seconds() - began) / messages)

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(120)


def instructions(directory: str, messages: int, *, logs: bool, counts: bool) -> float:
    """For a delivery: those of a server that takes many, less those of one that takes few."""
    found = []
    for name, number in (("few", 50), ("many", 50 + messages)):
        file = f"{directory}.{name}"
        tool = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
        server = Server(f"{directory}-{name}", logs=logs, counts=counts, under=[*tool, f"--log-file={file}.%p"])
        try:
            server.block(number)
        finally:
            server.close()
        with open(f"{file}.{server.process.pid}") as log:
            found.append(int(re.findall(r"I +refs: +([0-9,]+)", log.read())[-1].replace(",", "")))
    return (found[1] - found[0]) / messages


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--blocks", type=int, default=30)
    arguments.add_argument("--messages", type=int, default=50)
    arguments.add_argument("--only", choices=("log", "counters"))
    arguments.add_argument("--instructions", action="store_true")
    args = arguments.parse_args()
    directory = tempfile.mkdtemp(prefix="observing-")
    if args.instructions:
        os.environ["PYTHONHASHSEED"] = "0"
        try:
            on = instructions(f"{directory}/on", args.messages, logs=True, counts=True)
            logs, counts = args.only == "counters", args.only == "log"
            off = instructions(f"{directory}/off", args.messages, logs=logs, counts=counts)
            print(f"instructions of a delivery outside the kernel: {on / 1e3:,.0f} thousand, without "
                  f"{args.only or 'log and counters'} {off / 1e3:,.0f} thousand: {on / off - 1:+.1%}")  # fmt: skip
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        return
    servers: list[Server] = []
    try:
        servers.append(Server(f"{directory}/on", logs=True, counts=True))
        servers.append(Server(f"{directory}/off", logs=args.only == "counters", counts=args.only == "log"))
        for number in range(args.blocks + 2):
            for one in servers if number % 2 else servers[::-1]:
                one.block(args.messages)
        on, off = (one.spent[2:] for one in servers)  # the first blocks warm up
        with_it, without = (statistics.mean(sorted(spent)[: len(spent) // 2]) for spent in (on, off))
        print(f"processor time of a delivery: {with_it * 1e6:.0f} us, "
              f"without {args.only or 'log and counters'} {without * 1e6:.0f} us: {with_it / without - 1:+.1%} "
              f"(the less disturbed half of {len(on)} blocks of {args.messages} messages each)")  # fmt: skip
    finally:
        for one in servers:
            one.close()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
