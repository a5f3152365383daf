"""How long a scrape of the metrics takes while many clients are connected, and what it does to them.

    .venv/bin/python bench/scrape.py [--connections 5000] [--scrapes 100] [--workers 2] [--load]

Starts a server of its own on loopback, has so many IMAP clients log in and idle, and asks for /metrics again and again,
ten times a second. `--load` delivers mail from four connections meanwhile, as fast as it is taken. Told are median,
99th percentile and worst of the scrapes, the server's processor time for one, and how late its event loops were by the
figures it exports. The goal is 50 ms.
"""

from gevent import monkey

monkey.patch_all()

import argparse  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import resource  # noqa: E402
import shutil  # noqa: E402
import signal  # noqa: E402
import socket  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402

import gevent  # noqa: E402
from gevent.pool import Pool  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
USERS = 50
MESSAGE = b"From: x@bench.test\r\nSubject: Load\r\n\r\n" + b"A line of text.\r\n" * 100 + b".\r\n"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def prepare(directory: str, workers: int) -> tuple[str, dict[str, int]]:
    ports = {name: free_port() for name in ("smtp", "imap", "metrics")}
    path = f"{directory}/mailsrv.yaml"
    settings = {
        "server": {
            "hostname": "mx.bench.test",
            "data_dir": f"{directory}/data",
            "run_dir": f"{directory}/run",
            "workers": workers,
        },
        **{name: {"listen": [f"127.0.0.1:{port}"]} for name, port in ports.items()},
        **{name: {"listen": []} for name in ("submission", "submissions", "imaps")},
        "limits": {"connections_per_user": 10_000},
        "log": {"file": f"{directory}/log"},
    }
    settings["imap"]["allow_plaintext_login"] = True
    with open(path, "w") as file:
        json.dump(settings, file)
    run = [sys.executable, "-m", "mailsrv"]
    subprocess.run([*run, "domain", "add", "bench.test", "-c", path], cwd=ROOT, check=True)
    users = "".join(f"u{number}@bench.test:bench password\n" for number in range(USERS))
    subprocess.run([*run, "user", "import", "-", "-c", path], cwd=ROOT, input=users, text=True, check=True)
    return path, ports


def idle(port: int, number: int) -> socket.socket:
    """A client that has logged in and idles."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=60)
    for text, end in (
        (b"", b"* OK"), (b'a LOGIN u%d@bench.test "bench password"\r\n' % (number % USERS), b"a OK"),
        (b"b SELECT INBOX\r\n", b"b OK"), (b"c IDLE\r\n", b"+ "),
    ):  # fmt: skip
        sock.sendall(text)
        seen = b""
        while not any(line.startswith(end) for line in seen.split(b"\r\n")):
            data = sock.recv(4096)
            assert data, seen
            seen += data
            assert b" NO " not in seen and b" BAD " not in seen, seen
    return sock


def deliver(port: int, number: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as sock, sock.makefile("rb") as lines:
        lines.readline()
        sock.sendall(b"HELO bench.test\r\n")
        lines.readline()
        while True:
            to = b"RCPT TO:<u%d@bench.test>\r\n" % (number % USERS)
            for text in (b"MAIL FROM:<x@bench.test>\r\n", to, b"DATA\r\n", MESSAGE):
                sock.sendall(text)
                lines.readline()
            number += 1


def scrape(port: int) -> tuple[float, str]:
    began = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
        sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: text/plain\r\n\r\n")
        pieces = []
        while data := sock.recv(65536):
            pieces.append(data)
    text = b"".join(pieces).decode()
    assert text.startswith("HTTP/1.1 200 "), text[:200]
    return time.perf_counter() - began, text


def value(text: str, start: str) -> float:
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(start))


def late(text: str) -> dict[str, float]:
    """How often the event loops were so late at most."""
    rows = [line for line in text.splitlines() if line.startswith("mailsrv_hub_delay_seconds_bucket")]
    return {line.partition('le="')[2].partition('"')[0]: float(line.rpartition(" ")[2]) for line in rows}


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--connections", type=int, default=5000)
    arguments.add_argument("--scrapes", type=int, default=100)
    arguments.add_argument("--workers", type=int, default=2)
    arguments.add_argument("--load", action="store_true")
    args = arguments.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    directory = tempfile.mkdtemp(prefix="scrape-")
    server = None
    try:
        path, ports = prepare(directory, args.workers)
        server = subprocess.Popen([sys.executable, "-m", "mailsrv", "serve", "--foreground", "-c", path], cwd=ROOT)
        while True:
            try:
                socket.create_connection(("127.0.0.1", ports["imap"])).close()
                break
            except OSError:
                time.sleep(0.05)
        clients = Pool(20).map(lambda number: idle(ports["imap"], number), range(args.connections))
        loads = [gevent.spawn(deliver, ports["smtp"], number) for number in range(4 if args.load else 0)]
        drains = [gevent.spawn(drain, sock) for sock in clients] if args.load else []
        scrape(ports["metrics"])
        seconds, before = [], scrape(ports["metrics"])[1]
        for _ in range(args.scrapes):
            took, text = scrape(ports["metrics"])
            seconds.append(took)
            time.sleep(0.1)
        gevent.killall([*loads, *drains])
        seconds.sort()
        cpu = value(text, "mailsrv_process_cpu_seconds_total{") - value(before, "mailsrv_process_cpu_seconds_total{")
        median, tail, worst = (seconds[min(len(seconds) - 1, int(len(seconds) * share))] for share in (0.5, 0.99, 1.0))
        there = value(text, "mailsrv_connections{")
        print(f"{there:.0f} connections, {len(seconds)} scrapes of {len(text) // 1024} KiB: "
              f"median {median * 1e3:.1f} ms, p99 {tail * 1e3:.1f} ms, worst {worst * 1e3:.1f} ms")  # fmt: skip
        if not args.load:
            print(f"processor time of each: {cpu / len(seconds) * 1e3:.2f} ms, with what connections cost meanwhile")
        was, now = late(before), late(text)
        print("event loops late by at most:", ", ".join(f"{le} s {now[le] - was.get(le, 0):.0f}" for le in now))
        for sock in clients:
            sock.close()
        server.send_signal(signal.SIGTERM)
        server.wait(60)
    finally:
        if server is not None and server.poll() is None:
            server.kill()
            server.wait()
        shutil.rmtree(directory, ignore_errors=True)


def drain(sock: socket.socket) -> None:
    sock.settimeout(None)
    while sock.recv(65536):
        pass


if __name__ == "__main__":
    main()
