"""How long the event loop is held while 100 sessions fetch, search, store and deliver.

    .venv/bin/python bench/hub_delay.py [--seconds 20] [--sessions 100] [--messages 5000]

Starts a server of its own on loopback with `log.hub_delay`, drives it from this process, and prints the longest delay
of each second as the server measured it (median, worst), with the work done. The goal is 20 ms.
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
            "hostname": "mx.bench.test", "data_dir": f"{directory}/data", "run_dir": f"{directory}/run", "workers": 1,
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
        self.smtp, self.imap, self.end, self.messages = smtp, imap, time.monotonic() + seconds, messages
        self.done: Counter[str] = Counter()

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
            while time.monotonic() < self.end:
                text = dice.choice(COMMANDS)
                run(text % dice.randrange(1, self.messages) if "%d" in text else text)

    def write(self, number: int) -> None:
        with socket.create_connection(("127.0.0.1", self.smtp)) as sock, sock.makefile("rb") as lines:
            lines.readline()
            for text in (b"HELO bench.test\r\n",):
                sock.sendall(text)
                lines.readline()
            while time.monotonic() < self.end:
                to = b"RCPT TO:<u%d@bench.test>\r\n" % (self.done["DATA"] % 4)
                message = TEXT % (number, number) + BODY + b".\r\n"
                for text in (b"MAIL FROM:<x@bench.test>\r\n", to, b"DATA\r\n", message):
                    sock.sendall(text)
                    reply = lines.readline()
                assert reply.startswith(b"250"), reply
                self.done["DATA"] += 1


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--seconds", type=float, default=20)
    arguments.add_argument("--sessions", type=int, default=100)
    arguments.add_argument("--messages", type=int, default=5000)
    args = arguments.parse_args()
    directory = tempfile.mkdtemp(prefix="hub-delay-")
    server = None
    try:
        path, smtp, imap = prepare(directory, args.messages)
        server = subprocess.Popen([sys.executable, "-m", "mailsrv", "serve", "-c", path], cwd=ROOT)
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", imap)).close()
                break
            except OSError:
                time.sleep(0.05)
        load = Load(smtp, imap, args.seconds, args.messages)
        writers = max(1, args.sessions // 10)
        jobs = [gevent.spawn(load.read, number) for number in range(args.sessions - writers)]
        jobs += [gevent.spawn(load.write, number) for number in range(writers)]
        gevent.joinall(jobs, raise_error=True)
        server.send_signal(signal.SIGTERM)
        server.wait(60)
        with open(f"{directory}/log") as log:
            delays = [float(found[1]) for line in log if (found := re.search(r"hub-delay longest_ms=([\d.]+)", line))]
        print(", ".join(f"{name} {count}" for name, count in sorted(load.done.items())))
        print(f"longest hub delay of a second: median {statistics.median(delays):.1f} ms, worst {max(delays):.1f} ms, "
              f"{len(delays)} seconds")  # fmt: skip
    finally:
        if server is not None and server.poll() is None:
            server.kill()
            server.wait()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
