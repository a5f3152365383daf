"""How long the event loop is held while 100 sessions fetch, search, store and deliver.

    .venv/bin/python bench/hub_delay.py [--seconds 20] [--sessions 100] [--messages 5000] [--ahead]

Starts a server of its own on loopback with `log.hub_delay`, drives it from this process, and prints how late a tick of
one millisecond was as the server measured it: median and worst of the seconds, the 99.9th percentile of all ticks, and
of the worst ones how long the loop itself ran, how long the system let it wait for a processor, and how long it waited
for the interpreter. The sessions connect one after the other and begin within a second; the seconds before are not
counted. The goal is 20 ms.

Every other program on the machine makes the loop wait for a processor, and the thread that has the interpreter, too.
`--ahead` (as root) gives the server's threads real-time priority, the loop's above the others', so that what is left is
ours.
"""

from gevent import monkey

monkey.patch_all()

import argparse  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import random  # noqa: E402
import re  # noqa: E402
import shutil  # noqa: E402
import signal  # noqa: E402
import socket  # noqa: E402
import statistics  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections import Counter  # noqa: E402

import gevent  # noqa: E402
from gevent.event import Event  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TEXT = b"""From: Bo <bo@bench.test>
To: ann@bench.test
Subject: Number %d of many
Date: Tue, 24 Nov 2026 08:00:00 +0000
Message-ID: <%d@bench.test>

""".replace(b"\n", b"\r\n")
BODY = b"A line of text that is neither long nor short.\r\n" * 200
COMMANDS = (
    "FETCH %d:* (UID FLAGS)", "FETCH %d:* (ENVELOPE RFC822.SIZE)", "FETCH %d (BODY.PEEK[])", "SEARCH SUBJECT many",
    "SEARCH UNSEEN", "STORE %d +FLAGS (\\Seen)", "FETCH %d:* (BODY.PEEK[HEADER.FIELDS (FROM SUBJECT DATE)])", "NOOP",
    "SEARCH BODY neither",
)  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def prepare(directory: str, messages: int) -> tuple[str, int, int]:
    smtp, imap = free_port(), free_port()
    path = f"{directory}/mailsrv.yaml"
    settings = {
        "server": {
            "hostname": "mx.bench.test",
            "data_dir": f"{directory}/data",
            "run_dir": f"{directory}/run",
            "workers": 1,
        },
        "smtp": {"listen": [f"127.0.0.1:{smtp}"]},
        "imap": {"listen": [f"127.0.0.1:{imap}"], "allow_plaintext_login": True},
        **{name: {"listen": []} for name in ("submission", "submissions", "imaps")},
        "limits": {"connections_per_address": 1000, "connections_per_user": 1000},
        "log": {"hub_delay": True, "file": f"{directory}/log"},
    }
    with open(path, "w") as file:
        json.dump(settings, file)
    run = [sys.executable, "-m", "mailsrv"]
    subprocess.run([*run, "domain", "add", "bench.test", "-c", path], cwd=ROOT, check=True)
    users = "".join(f"u{number}@bench.test:password {number}\n" for number in range(4))
    subprocess.run([*run, "user", "import", "-", "-c", path], cwd=ROOT, input=users, text=True, check=True)
    for user in range(4):
        folder = f"{directory}/data/mail/bench.test/u{user}/Maildir"
        for name in ("cur", "new", "tmp"):
            os.makedirs(f"{folder}/{name}")
        for number in range(messages):
            with open(f"{folder}/cur/{1700000000 + number}.{number}.bench:2,", "wb") as out:
                out.write(TEXT % (number, number) + BODY)
    return path, smtp, imap


class Load:
    def __init__(self, smtp: int, imap: int, seconds: float, messages: int) -> None:
        self.smtp, self.imap, self.seconds, self.messages = smtp, imap, seconds, messages
        self.begun, self.end = Event(), 0.0
        self.ready = 0
        self.done: Counter[str] = Counter()

    def begin(self, sessions: int) -> None:
        while self.ready < sessions:
            time.sleep(0.01)
        self.end = time.monotonic() + self.seconds
        self.begun.set()

    def wait(self, number: int) -> None:
        self.ready += 1
        self.begun.wait()
        time.sleep(random.Random(number).random())  # not all in the same instant

    def read(self, number: int) -> None:
        dice = random.Random(number)
        with socket.create_connection(("127.0.0.1", self.imap)) as sock, sock.makefile("rb") as lines:
            lines.readline()

            def run(text: str) -> None:
                sock.sendall(f"a {text}\r\n".encode())
                while not (line := lines.readline()).startswith(b"a "):
                    if not line:
                        raise ConnectionError("closed")
                assert line.startswith(b"a OK"), (text, line)
                self.done[text.split()[0]] += 1

            run(f'LOGIN u{number % 4}@bench.test "password {number % 4}"')
            run("SELECT INBOX")
            self.wait(number)
            while time.monotonic() < self.end:
                text = dice.choice(COMMANDS)
                run(text % dice.randrange(1, self.messages) if "%d" in text else text)

    def write(self, number: int) -> None:
        with socket.create_connection(("127.0.0.1", self.smtp)) as sock, sock.makefile("rb") as lines:
            lines.readline()
            for text in (b"HELO bench.test\r\n",):
                sock.sendall(text)
                lines.readline()
            self.wait(number)
            while time.monotonic() < self.end:
                to = b"RCPT TO:<u%d@bench.test>\r\n" % (self.done["DATA"] % 4)
                message = TEXT % (number, number) + BODY + b".\r\n"
                for text in (b"MAIL FROM:<x@bench.test>\r\n", to, b"DATA\r\n", message):
                    sock.sendall(text)
                    reply = lines.readline()
                assert reply.startswith(b"250"), reply
                self.done["DATA"] += 1


def go_ahead(pid: int) -> None:
    """All threads of the process, and those that it starts later."""
    while True:
        for thread in os.listdir(f"/proc/{pid}/task"):
            priority = os.sched_param(2 if thread == str(pid) else 1)
            os.sched_setscheduler(int(thread), os.SCHED_RR | os.SCHED_RESET_ON_FORK, priority)
        time.sleep(0.2)


def report(log: str) -> None:
    lines = [line for line in log.splitlines() if " hub-delay " in line][1:]
    seconds = [dict(re.findall(r"(\w+)=\"?([\d. ]*\d)", line)) for line in lines]
    worst = sorted(seconds, key=lambda second: -float(second["longest_ms"]))
    late = sorted((float(ms) for second in seconds for ms in second.get("late_ms", "").split()), reverse=True)
    ticks = sum(int(second["ticks"]) for second in seconds)
    rank = ticks // 1000
    print(f"hub delay: worst {worst[0]['longest_ms']} ms, "
          f"median of the seconds' worst {statistics.median(float(one['longest_ms']) for one in seconds):.1f} ms, "
          f"p99.9 {late[rank] if rank < len(late) else 0.0} ms, {ticks} ticks in {len(seconds)} s")  # fmt: skip
    for one in worst[:5]:
        late_ms, own, queued = (float(one[name]) for name in ("longest_ms", "own_ms", "queued_ms"))
        print(f"  {late_ms:6.1f} ms: ran {own:.1f}, waited for a processor {queued:.1f}, "
              f"for the interpreter {max(0.0, late_ms - own - queued):.1f}")  # fmt: skip


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--seconds", type=float, default=20)
    arguments.add_argument("--sessions", type=int, default=100)
    arguments.add_argument("--messages", type=int, default=5000)
    arguments.add_argument("--ahead", action="store_true")
    args = arguments.parse_args()
    directory = tempfile.mkdtemp(prefix="hub-delay-")
    server = None
    try:
        path, smtp, imap = prepare(directory, args.messages)
        server = subprocess.Popen([sys.executable, "-m", "mailsrv", "serve", "--foreground", "-c", path], cwd=ROOT)
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", imap)).close()
                break
            except OSError:
                time.sleep(0.05)
        load = Load(smtp, imap, args.seconds, args.messages)
        writers = max(1, args.sessions // 10)
        jobs = []
        for number in range(args.sessions):
            work = load.write if number < writers else load.read
            jobs.append(gevent.spawn(work, number))
            while load.ready <= number:
                time.sleep(0.005)
                if jobs[-1].ready():
                    jobs[-1].get()
        if args.ahead:
            gevent.spawn(go_ahead, server.pid)
        seen = os.path.getsize(f"{directory}/log")
        load.begin(args.sessions)
        gevent.joinall(jobs, raise_error=True)
        with open(f"{directory}/log") as log:
            log.seek(seen)
            report(log.read())
        print(", ".join(f"{name} {count}" for name, count in sorted(load.done.items())))
        server.send_signal(signal.SIGTERM)
        server.wait(60)
    finally:
        if server is not None and server.poll() is None:
            server.kill()
            server.wait()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
