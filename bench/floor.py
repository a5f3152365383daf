"""The physical limits of this machine, measured in minutes: what no mail server can pass.

    .venv/bin/python bench/floor.py [--dir SCRATCH] [--json out.json]

Syncs a second of the disk below the scratch directory, file operations, round trips and streams over loopback, TLS,
memory of Python and of a bare gevent server for each connection, switches between greenlets, and 1,000 watchers told by
a loop of `send`. docs/performance.md says which of them bounds what. Median of repeats where it is cheap.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable

import gevent
import greenlet
from benchlib import proc, util
from benchlib.loop import Loop
from benchlib.watchers import Watchers
from gevent.event import Event

results: dict[str, float] = {}
MAIL = b"x" * 10240


def put(name: str, value: float) -> None:
    results[name] = value
    print(f"{name:58s} {value:12.2f}", flush=True)


def each(n: int, act: Callable[[int], object]) -> float:
    """Microseconds of one of n."""
    begun = time.perf_counter()
    for i in range(n):
        act(i)
    return (time.perf_counter() - begun) / n * 1e6


def write(path: str, sync: bool) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(fd, MAIL)
    if sync:
        os.fsync(fd)
    os.close(fd)


def read(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.read(fd, 20000)
    os.close(fd)


def durable(directory: str, with_directory: bool, n: int = 200) -> list[float]:
    """Create, write and fsync (rename, and fsync the directory) n files: what one mail each needs. Seconds of each."""
    fd = os.open(directory, os.O_RDONLY)
    mine = f"{directory}/t.{threading.get_ident()}"
    seconds = []
    for i in range(n):
        begun = time.perf_counter()
        write(f"{mine}.{i}", True)
        if with_directory:
            os.rename(f"{mine}.{i}", f"{mine}.{i}r")
            os.fsync(fd)
        seconds.append(time.perf_counter() - begun)
    os.close(fd)
    for i in range(n):
        os.unlink(f"{mine}.{i}{'r' if with_directory else ''}")
    return seconds


def disk(base: str) -> None:
    directory = tempfile.mkdtemp(prefix="mailsrv-floor-", dir=base)
    try:
        durable(directory, False, 20)
        for with_directory, name in ((False, "file"), (True, "file+dir")):
            rates, worst = [], []
            for _ in range(3):
                seconds = durable(directory, with_directory)
                rates.append(len(seconds) / sum(seconds))
                worst.append(util.pct(seconds, 99) * 1e3)
            put(f"disk.fsync 10k {name}, 1 thread [/s]", statistics.median(rates))
            put(f"disk.fsync 10k {name}, 1 thread p99 [ms]", statistics.median(worst))
            for k in (10, 50):
                threads = [
                    threading.Thread(target=durable, args=(directory, with_directory, 1000 // k)) for _ in range(k)
                ]
                begun = time.perf_counter()
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                put(f"disk.fsync 10k {name}, {k} threads [/s]", 1000 / (time.perf_counter() - begun))
        log = os.open(f"{directory}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        put(
            "disk.append 10k + fdatasync to one file [/s]",
            1e6 / each(300, lambda _: (os.write(log, MAIL), os.fdatasync(log))),
        )
        os.close(log)
        at, n = f"{directory}/n", 3000
        put(
            "fs.create+write 10k+rename, no sync [us]",
            each(n, lambda i: (write(f"{at}{i}", False), os.rename(f"{at}{i}", f"{at}{i}r"))),
        )
        put("fs.open+read 10k+close, page cache [us]", each(n, lambda i: read(f"{at}{i}r")))
        put("fs.link [us]", each(n, lambda i: os.link(f"{at}{i}r", f"{at}{i}l")))
        put("fs.rename [us]", each(n, lambda i: os.rename(f"{at}{i}l", f"{at}{i}:2,S")))
        put("fs.unlink [us]", each(n, lambda i: os.unlink(f"{at}{i}r")))
        put("fs.listdir per entry [us]", each(1, lambda _: os.listdir(directory)) / n)
    finally:
        shutil.rmtree(directory)


PEER = r"""
import socket, sys, os, ssl
s = socket.socket(); s.bind(("127.0.0.1", 0)); s.listen(5)
print(s.getsockname()[1], flush=True)
c, _ = s.accept()
c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
mode = sys.argv[1]
if mode == "echo":
    while d := c.recv(65536): c.sendall(d)
elif mode == "send":
    b = b"x" * 262144
    for _ in range(4000): c.sendall(b)
elif mode == "sendfile":
    fd = os.open(sys.argv[2], os.O_RDONLY); n = os.fstat(fd).st_size
    for _ in range(1048576000 // n):
        o = 0
        while o < n: o += os.sendfile(c.fileno(), fd, o, n - o)
elif mode == "tls":
    x = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER); x.load_cert_chain(sys.argv[2], sys.argv[3])
    c = x.wrap_socket(c, server_side=True)
    b = b"x" * 16384
    for _ in range(20000): c.sendall(b)
c.close()
"""


def peer(code: str, *args: str) -> tuple[subprocess.Popen[str], util.Address]:
    process = subprocess.Popen([sys.executable, "-c", code, *args], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    return process, ("127.0.0.1", int(process.stdout.readline()))


def connected(address: util.Address, tls: ssl.SSLContext | None = None) -> socket.socket:
    sock = socket.create_connection(address, 10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return tls.wrap_socket(sock) if tls else sock


def round_trips(sock: socket.socket, n: int = 5000) -> list[float]:
    seconds = []
    for _ in range(n):
        begun = time.perf_counter()
        sock.sendall(b"x" * 40)
        sock.recv(100)
        seconds.append(time.perf_counter() - begun)
    return seconds


def loopback(directory: str, certificate: str, key: str) -> None:
    process, address = peer(PEER, "echo")
    with connected(address) as sock:
        seconds = round_trips(sock)
    process.wait()
    put("loopback.round trip, blocking Python echo p50 [us]", statistics.median(seconds) * 1e6)
    blob = os.path.join(directory, "blob")
    with open(blob, "wb") as file:
        file.write(os.urandom(1 << 20) * 25)
    for mode, args in (("send", ()), ("sendfile", (blob,)), ("tls", (certificate, key))):
        process, address = peer(PEER, mode, *args)
        with connected(address, util.client_tls() if mode == "tls" else None) as sock:
            begun, total = time.perf_counter(), 0
            while data := sock.recv(262144):
                total += len(data)
            rate = total / 1e6 / (time.perf_counter() - begun)
        put(f"loopback.{mode} stream, both ends on this machine [MB/s]", rate)
        process.wait()
    to, source = memoryview(bytearray(64 << 20)), memoryview(bytearray(b"y") * (64 << 20))
    put("memcpy 64 MB blocks [MB/s]", (64 << 20) / each(10, lambda _: to.__setitem__(slice(None), source)))


def handshakes(certificate: str, key: str, n: int = 200) -> None:
    """Both ends of TLS in memory: the processor time of each."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    client_context = util.client_tls()
    spent = {True: 0.0, False: 0.0}
    for _ in range(n):
        there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = client_context.wrap_bio(there, back)
        server = context.wrap_bio(back, there, server_side=True)
        done = 0
        while done < 2:
            done = 0
            for end in (client, server):
                begun = time.thread_time()
                try:
                    end.do_handshake()
                    done += 1
                except ssl.SSLWantReadError:
                    pass
                spent[end is server] += time.thread_time() - begun
    put("tls.handshake P-256, server CPU [us]", spent[True] / n * 1e6)
    put("tls.handshake P-256, client CPU [us]", spent[False] / n * 1e6)
    begun = time.thread_time()
    for i in range(20000):
        client.write(b"* 12345 EXISTS\r\n")
        if i % 500 == 0:
            back.read()
    put("tls.one small record written (memory BIO) [us]", (time.thread_time() - begun) / 20000 * 1e6)


FAN = r"""
import socket, sys, time
s = socket.socket(); s.bind(("127.0.0.1", 0)); s.listen(1024)
print(s.getsockname()[1], flush=True)
n = int(sys.argv[1]); cs = []
for _ in range(n):
    c, _a = s.accept(); c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1); cs.append(c)
    for r in (b"* OK\r\n", b"a1 OK\r\n", b"* 0 EXISTS\r\na2 OK\r\n", b"+\r\n"):
        c.sendall(r)
        if r[0] != 43: c.recv(999)
for k in range(9):
    time.sleep(0.3); t = time.perf_counter()
    for c in cs: c.send(b"* %d EXISTS\r\n" % (k + 1))
    print(t, time.perf_counter() - t, flush=True)
time.sleep(1)
"""


def fanout() -> None:
    """1,000 watchers told by a bare loop of `send`: what the benchmark's client can see at best."""
    process, address = peer(FAN, "1000")
    assert process.stdout
    loop = Loop()
    watchers = Watchers(loop, address, [("u", "p")] * 1000, parallel=1)
    watchers.open()
    got: list[float] = []
    watchers.on_exists = lambda _watcher, _count, now: got.append(now)
    sending, last, cpu = [], [], []
    for _ in range(9):
        got.clear()
        begun = time.process_time()
        while len(got) < 1000:
            loop.once(1)
        cpu.append(time.process_time() - begun)
        at, seconds = map(float, process.stdout.readline().split())
        sending.append(seconds)
        last.append(got[-1] - at)
    process.wait()
    put("fanout.1000 send() in a bare Python loop [ms]", statistics.median(sending) * 1e3)
    put("fanout.1000 last watcher told [ms]", statistics.median(last) * 1e3)
    put("fanout.1000 this client's CPU [ms]", statistics.median(cpu) * 1e3)


GEVENT = r"""
import sys, socket
from gevent import ssl
from gevent.server import StreamServer
mode = sys.argv[1]
def handle(s, a):
    if mode.startswith("echo"):
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while d := s.recv(4096): s.sendall(d)
    else:
        s.sendall(b"* OK\r\n")
        while s.recv(4096): pass
kw = {}
if mode.endswith("tls"):
    kw["ssl_context"] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    kw["ssl_context"].load_cert_chain(sys.argv[2], sys.argv[3])
s = StreamServer(("127.0.0.1", 0), handle, backlog=1024, **kw)
s.start()
print(s.server_port, flush=True)
s.serve_forever()
"""


def switches(n: int = 200000) -> None:
    def spin() -> None:
        for _ in range(n // 2):
            gevent.sleep(0)

    begun = time.perf_counter()
    gevent.joinall([gevent.spawn(spin), gevent.spawn(spin)])
    put("gevent.sleep(0) switch through the hub [us]", (time.perf_counter() - begun) / n * 1e6)
    main = greenlet.getcurrent()

    def pong() -> None:
        while True:
            main.switch()

    other = greenlet.greenlet(pong)
    put("greenlet.switch there and back [us]", each(n, lambda _: other.switch()))
    begun, k = time.perf_counter(), 20000
    gevent.joinall([gevent.spawn(int) for _ in range(k)])
    put("gevent.spawn + run an empty greenlet [us]", (time.perf_counter() - begun) / k * 1e6)
    events = [Event() for _ in range(1000)]
    waiting = [gevent.spawn(event.wait) for event in events]
    gevent.sleep(0)
    begun = time.perf_counter()
    for event in events:
        event.set()
    gevent.joinall(waiting)
    put("gevent.wake 1000 waiting greenlets [us each]", (time.perf_counter() - begun) / 1000 * 1e6)


def gevent_server(mode: str, certificate: str, key: str) -> None:
    process, address = peer(GEVENT, mode, certificate, key)
    tls = util.client_tls() if mode.endswith("tls") else None
    try:
        if mode.startswith("echo"):
            with connected(address, tls) as sock:
                seconds = round_trips(sock)
            put(f"gevent.{mode} round trip p50 [us]", statistics.median(seconds) * 1e6)
            put(f"gevent.{mode} round trip p99 [us]", util.pct(seconds, 99) * 1e6)
        else:
            idle_memory(mode, process.pid, address, tls)
    finally:
        process.terminate()
        process.wait()


def idle_memory(mode: str, pid: int, address: util.Address, tls: ssl.SSLContext | None) -> None:
    time.sleep(0.3)
    base = proc.memory([pid])["pss_kb"]
    put(f"gevent.{mode} server, no connections, PSS [MB]", base / 1024)
    open_ones: list[socket.socket] = []
    for n in (1000, 5000):
        try:
            while len(open_ones) < n:
                sock = connected(address, tls)
                sock.recv(10)
                open_ones.append(sock)
        except OSError as error:
            print(f"gevent.{mode}: connection {len(open_ones)} of {n}: {error}")
            break
        time.sleep(0.5)
        put(f"gevent.{mode} PSS per connection at {n} [KB]", (proc.memory([pid])["pss_kb"] - base) / n)
    for sock in open_ones:
        sock.close()


def pythons() -> None:
    for name, code in (
        ("-c pass", "import time"),
        ("+ ssl, socket, email", "import ssl, socket, email.parser, time"),
        ("+ gevent", "import gevent, gevent.server, gevent.ssl, time"),
    ):
        process, _ = peer(f"{code}\nprint(1, flush=True)\ntime.sleep(60)")
        time.sleep(0.1)
        put(f"python {name}: PSS [MB]", proc.memory([process.pid])["pss_kb"] / 1024)
        process.kill()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", default=os.environ.get("BENCH_SCRATCH") or tempfile.gettempdir())
    parser.add_argument("--json")
    args = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(f"Python {platform.python_version()}, Linux {platform.release()}, {os.cpu_count()} cores")
    directory = tempfile.mkdtemp(prefix="mailsrv-floor-", dir=args.dir)
    try:
        certificate, key = util.make_certificate(directory)
        disk(args.dir)
        loopback(directory, certificate, key)
        handshakes(certificate, key)
        fanout()
        pythons()
        switches()
        for mode in ("echo", "echotls", "idle", "idletls"):
            gevent_server(mode, certificate, key)
    finally:
        shutil.rmtree(directory)
    if args.json:
        with open(args.json, "w") as out:
            json.dump(results, out, indent=1)


if __name__ == "__main__":
    main()
