"""How fast mail leaves, beside Postfix in the same run; what 100,000 waiting messages cost; who suffers from whom.

    sudo .venv/bin/python bench/sending.py [rate] [queue] [hang] [push] [--messages 10000] [--rounds 3]

rate   N messages of 4 KB to 100 domains, submitted by 20 connections over TLS, until smtp-sink has all of them:
       messages per second, seconds until the last was accepted, CPU of all processes of the server for each message.
       mailsrv and Postfix in turn, the other one first in each round; medians. With --sign mailsrv signs (DKIM),
       Postfix does not.
queue  --entries (100,000) deferred messages on disk: how long the runner takes to know them, its memory, `queue list`,
       what a retry of one message opens and lists, how late the event loops are meanwhile.
hang   N messages to 100 domains with one that accepts connections and never says a word, and without.
push   250 to EXISTS of a message to a mailbox here: with nothing else to do, while N messages go out, and, as a
       control, while Postfix sends the same: what a busy machine costs alone. Blocks in turn, N divided among them.

Needs root, Debian's `postfix` (with smtp-sink) and `strace`. The world's name server is on port 53 of a loopback
address, of which only the Postfix started here is told, by a mount of its own over /etc/resolv.conf. All is on
loopback, below one temporary directory, and ends by itself. Both servers keep their defaults, but for 100 attempts at
once instead of 200 in mailsrv, which is Postfix's number of processes; both ask the same name server and find the same
ten sinks. Postfix takes the mail by address, mailsrv after AUTH.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

NAMES = "127.0.53.1"  # the name server
SINKS = tuple(f"127.0.1.{number}" for number in range(1, 11))
SILENT = "127.0.1.99"  # accepts, and never says a word
DOMAINS = tuple(f"d{number:02d}.example" for number in range(100))
HANGING = "hangs.example"
CONNECTIONS, AT_ONCE = 20, 100
WATCHERS = 4  # by turns: their connections are with any of the workers, as are those that deliver to them
SECONDS = 300.0  # for whatever must happen
TICK = os.sysconf("SC_CLK_TCK")
HEAD = b"""From: u0@bench.test
To: %b
Subject: Number %d of many
Date: Tue, 24 Nov 2026 08:00:00 +0000
Message-ID: <%d.%d@bench.test>

""".replace(b"\n", b"\r\n")
BODY = b"A line of text that is neither long nor short.\r\n" * 83


def until(condition: Callable[[], Any], what: str, seconds: float = SECONDS, pause: float = 0.02) -> Any:
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise SystemExit(f"not in time: {what}")
        time.sleep(pause)
    return value


def free_port(address: str = "127.0.0.1") -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


# ------------------------------------------------------------------ the world


def serve_names(sock: socket.socket) -> None:
    """A name server that makes each answer once and finds it by the octets of the question from then on."""
    import dns.message
    import dns.rcode
    import dns.rdatatype
    import dns.rrset

    records = {(f"mx.{HANGING}", "A"): SILENT, (HANGING, "MX"): f"10 mx.{HANGING}."}
    for number, domain in enumerate(DOMAINS):
        records[domain, "MX"] = f"10 mx.{domain}."
        records[f"mx.{domain}", "A"] = SINKS[number % len(SINKS)]
    names = {name for name, _ in records}
    known: dict[bytes, bytes] = {}
    while True:
        wire, peer = sock.recvfrom(4096)
        answer = known.get(wire[2:])
        if answer is None:
            query = dns.message.from_wire(wire)
            question = query.question[0]
            name, kind = question.name.to_text(True).lower(), dns.rdatatype.to_text(question.rdtype)
            response = dns.message.make_response(query, recursion_available=True)
            if (name, kind) in records:
                response.answer.append(dns.rrset.from_text(f"{name}.", 3600, "IN", kind, records[name, kind]))
            elif name not in names:
                response.set_rcode(dns.rcode.NXDOMAIN)
            answer = known[wire[2:]] = response.to_wire()[2:]
        sock.sendto(wire[:2] + answer, peer)


class World:
    """The name server in a process of its own, and ten sinks; `received` is how many messages these have."""

    def __init__(self, directory: str) -> None:
        self.directory, self.port = directory, free_port(SINKS[0])
        self._rounds = 0
        self._sinks: list[subprocess.Popen[bytes]] = []
        self._counts: list[str] = []
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((NAMES, 53))
            self._names = os.fork()
            if not self._names:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                serve_names(sock)
        self._silent = socket.create_server((SILENT, self.port), backlog=500)

    def begin(self) -> None:
        """New sinks, whose count is zero."""
        self.end()
        self._rounds += 1
        for address in SINKS:
            path = f"{self.directory}/sink.{self._rounds}.{address}"
            with open(path, "wb") as out:
                words = ["smtp-sink", "-c", "-u", "nobody", f"{address}:{self.port}", "1024"]
                self._sinks.append(subprocess.Popen(words, stdout=out))
            self._counts.append(path)
        for address in SINKS:
            until(lambda address=address: self._listens(address), "smtp-sink listens")

    def _listens(self, address: str) -> bool:
        try:
            socket.create_connection((address, self.port), timeout=5).close()
            return True
        except OSError:
            return False

    def received(self) -> int:
        total = 0
        for path in self._counts:
            with open(path, "rb") as file:
                file.seek(max(0, os.path.getsize(path) - 200))
                found = re.findall(rb"mesg=(\d+)[ \r]", file.read())
                total += int(found[-1]) if found else 0
        return total

    def end(self) -> None:
        for sink in self._sinks:
            sink.kill()
            sink.wait()
        self._sinks, self._counts = [], []

    def close(self) -> None:
        self.end()
        self._silent.close()
        os.kill(self._names, signal.SIGKILL)
        os.waitpid(self._names, 0)


# ------------------------------------------------------------------ the servers


def processes(root: int) -> list[int]:
    """A process and all that came from it and are there."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError, ValueError), open(f"/proc/{name}/stat") as file:
                children.setdefault(int(file.read().rpartition(")")[2].split()[1]), []).append(int(name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def cpu_seconds(root: int) -> float:
    """Of a process and all that came from it, also those that have ended."""
    total = 0.0
    for pid in processes(root):
        with suppress(OSError):
            with open(f"/proc/{pid}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
            own, ended, threads = int(fields[11]) + int(fields[12]), int(fields[13]) + int(fields[14]), int(fields[17])
            seconds = own / TICK
            if threads == 1:  # exact; ticks of a hundred short-lived processes are not
                with open(f"/proc/{pid}/schedstat") as file:
                    seconds = int(file.read().split()[0]) / 1e9
            total += seconds + ended / TICK
    return total


def pss_mib(pid: int) -> float:
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return int(re.search(r"^Pss:\s+(\d+) kB", file.read(), re.M)[1]) / 1024  # type: ignore[index]


def make_certificate(directory: str) -> tuple[str, str]:
    paths = f"{directory}/certificate.pem", f"{directory}/key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-days", "30", "-subj", "/CN=mx.bench.test", "-out", paths[0], "-keyout", paths[1]],
        check=True, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return paths


class Mailsrv:
    """`mailsrv serve` on a directory of its own, with its defaults."""

    name = "mailsrv"

    def __init__(self, directory: str, world: World, certificate: tuple[str, str], **changes: Any) -> None:
        self.directory, self.port, self.imap, self.smtp = directory, free_port(), free_port(), free_port()
        os.makedirs(directory)
        self.path, self.log, self.queue = f"{directory}/mailsrv.yaml", f"{directory}/log", f"{directory}/data/queue"
        settings: dict[str, Any] = {
            "server": {"hostname": "mx.bench.test", "data_dir": f"{directory}/data", "run_dir": f"{directory}/run"},
            "tls": {"certificate": certificate[0], "key": certificate[1]},
            "smtp": {"listen": [f"127.0.0.1:{self.smtp}"]},
            "imap": {"listen": [f"127.0.0.1:{self.imap}"], "allow_plaintext_login": True},
            "submission": {"listen": [f"127.0.0.1:{self.port}"]},
            "submissions": {"listen": []},
            "imaps": {"listen": []},
            "dns": {"nameservers": [NAMES]},
            "relay": {"port": world.port},
            "queue": {"attempts": AT_ONCE},
            "log": {"file": self.log, "hub_delay": "hub_delay" in changes},
        }
        changes.pop("hub_delay", None)
        for name, value in changes.items():
            section, _, key = name.partition("__")
            settings[section][key] = value
        with open(self.path, "w") as file:
            json.dump(settings, file)
        self.command("domain", "add", "bench.test")
        users = "".join(f"u{number}@bench.test:password {number}\n" for number in range(WATCHERS + 1))
        self.command("user", "import", "-", input=users)
        self.process: subprocess.Popen[bytes] | None = None

    def command(self, *words: str, **more: Any) -> str:
        run = [sys.executable, "-m", "mailsrv", *words, "-c", self.path]
        return subprocess.run(run, cwd=ROOT, check=True, capture_output=True, text=True, **more).stdout

    def start(self) -> None:
        words = [sys.executable, "-m", "mailsrv", "serve", "--foreground", "-c", self.path]
        self.process = subprocess.Popen(words, cwd=ROOT, start_new_session=True)  # master(8) has one too: sched(7)
        for port in (self.port, self.imap):
            until(lambda port=port: answers(port), "mailsrv answers")

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def waiting(self) -> int:
        return sum(name.endswith(".json") for _, _, names in os.walk(self.queue) for name in names)

    def log_in(self, client: Client) -> None:
        client.authenticate("u0@bench.test", "password 0")

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Postfix:
    """Postfix with its defaults below a directory of its own; its name server is the world's."""

    name = "postfix"

    def __init__(self, directory: str, world: World, certificate: tuple[str, str]) -> None:
        import pwd

        from tests.fakes.postfix import SERVICES

        self.directory, self.port, self._etc, self.queue = (
            directory,
            free_port(),
            f"{directory}/etc",
            f"{directory}/queue",
        )
        for path in (directory, self._etc, self.queue, f"{directory}/lib"):
            os.makedirs(path, mode=0o755)
        os.chown(f"{directory}/lib", pwd.getpwnam("postfix").pw_uid, -1)
        settings = {
            "compatibility_level": "3.6", "queue_directory": self.queue, "data_directory": f"{directory}/lib",
            "maillog_file_prefixes": directory, "maillog_file": f"{directory}/log", "myhostname": "mx.bench.test",
            "mydestination": "", "mynetworks": "127.0.0.0/8", "alias_maps": "", "inet_interfaces": "127.0.0.1",
            "inet_protocols": "ipv4", "smtpd_tls_chain_files": f"{certificate[1]}, {certificate[0]}",
            "smtpd_tls_security_level": "may", "smtp_tls_security_level": "may", "smtp_tcp_port": world.port,
        }  # fmt: skip
        with open(f"{self._etc}/main.cf", "w") as file:
            file.writelines(f"{name} = {value}\n" for name, value in settings.items())
        with open(f"{self._etc}/master.cf", "w") as file:
            file.write(f"127.0.0.1:{self.port} inet n - n - - smtpd\n")
            for line in SERVICES.strip().splitlines():
                name, kind, private, unprivileged, *rest = line.split()
                file.write(" ".join((name, kind, private, unprivileged, "n", *rest)) + "\n")
        self._resolv = f"{directory}/resolv.conf"
        with open(self._resolv, "w") as file:
            file.write(f"nameserver {NAMES}\n")
        self._run: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        there = f"mount --bind {self._resolv} /etc/resolv.conf && exec postfix -c {self._etc} start-fg"
        self._run = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", there], stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        until(lambda: answers(self.port), "postfix answers")

    @property
    def pid(self) -> int:
        assert self._run is not None
        return self._run.pid

    def waiting(self) -> int:
        queues = ("maildrop", "incoming", "active", "deferred")
        return sum(len(names) for queue in queues for _, _, names in os.walk(f"{self.queue}/{queue}"))

    def log_in(self, client: Client) -> None:
        pass

    def stop(self) -> None:
        assert self._run is not None
        subprocess.run(["postfix", "-c", self._etc, "stop"], capture_output=True, timeout=60, check=False)
        self._run.wait(60)


def answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
            return bool(sock.recv(1))
    except OSError:
        return False


# ------------------------------------------------------------------ clients


class Client:
    """One connection that submits mail; every reply is as it should be, or the run ends."""

    def __init__(self, port: int, *, tls: bool = True) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._lines = self._socket.makefile("rb")
        self._expect(b"220")
        self.say(b"EHLO client.bench.test", b"250")
        if tls:
            self.say(b"STARTTLS", b"220")
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            self._socket = context.wrap_socket(self._socket)
            self._lines = self._socket.makefile("rb")
            self.say(b"EHLO client.bench.test", b"250")

    def _expect(self, code: bytes) -> None:
        line = self._lines.readline()
        while line[3:4] == b"-":
            line = self._lines.readline()
        if not line.startswith(code):
            raise ConnectionError(f"{line!r} instead of {code!r}")

    def say(self, line: bytes, code: bytes) -> None:
        self._socket.sendall(line + b"\r\n")
        self._expect(code)

    def authenticate(self, user: str, password: str) -> None:
        self.say(b"AUTH PLAIN " + base64.b64encode(f"\0{user}\0{password}".encode()), b"235")

    def send(self, recipient: bytes, number: int) -> None:
        self._socket.sendall(b"MAIL FROM:<u0@bench.test>\r\nRCPT TO:<%b>\r\nDATA\r\n" % recipient)
        for code in (b"250", b"250", b"354"):
            self._expect(code)
        self._socket.sendall(HEAD % (recipient, number, number, os.getpid()) + BODY + b".\r\n")
        self._expect(b"250")

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


def submit(server: Any, recipients: list[bytes]) -> None:
    """All of them, by CONNECTIONS connections that stand before the clock starts, in a process of its own; returns
    when it is ready, and again (by `next`) when all were accepted.
    """
    clients = []
    for _ in range(CONNECTIONS):
        clients.append(Client(server.port))
        server.log_in(clients[-1])
    failures: list[BaseException] = []

    def work(first: int) -> None:
        try:
            for number in range(first, len(recipients), CONNECTIONS):
                clients[first].send(recipients[number], number)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(CONNECTIONS)]
    print("ready", flush=True)
    sys.stdin.readline()
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise SystemExit(f"a message was not accepted: {failures[0]}")
    print(time.monotonic() - begun, flush=True)
    for client in clients:
        client.close()


@contextmanager
def submission(server: Any, messages: int, *, hanging: bool = False) -> Iterator[Callable[[], Callable[[], float]]]:
    """The submitting process, connected; what it gives begins, what that gives waits for the end and tells seconds."""
    words = [sys.executable, __file__, "submit", server.name, str(server.port), str(messages), str(int(hanging))]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    stdin, stdout = process.stdin, process.stdout
    try:
        if stdout.readline() != "ready\n":
            raise SystemExit("the submitting process could not connect")

        def begin() -> Callable[[], float]:
            stdin.write("\n")
            stdin.flush()
            return lambda: float(stdout.readline())

        yield begin
    finally:
        stdin.close()
        process.kill() if process.poll() is None and sys.exc_info()[0] else None
        process.wait()


def recipients_of(messages: int, hanging: bool) -> list[bytes]:
    domains = [*DOMAINS[1:], HANGING] if hanging else DOMAINS
    return [f"r{number}@{domains[number % 100]}".encode() for number in range(messages)]


# ------------------------------------------------------------------ how fast


def one_round(server: Any, world: World, messages: int) -> tuple[float, float, float]:
    """(messages/s until the sinks have all, seconds until all are accepted, CPU milliseconds of each)."""
    world.begin()
    server.start()
    try:
        with submission(server, messages) as begin:
            time.sleep(1)  # what the start left to do
            cpu, begun = cpu_seconds(server.pid), time.monotonic()
            accepted = begin()
            until(lambda: world.received() >= messages, f"{server.name} delivers", 60 + messages / 20, 0.01)
            seconds = time.monotonic() - begun
            submitting = accepted()
        until(lambda: not server.waiting(), f"the queue of {server.name} is empty")
        cpu = cpu_seconds(server.pid) - cpu
        time.sleep(0.5)
        if world.received() != messages:
            raise SystemExit(f"{server.name}: {world.received()} messages arrived, {messages} were sent")
        return messages / seconds, submitting, cpu / messages * 1e3
    finally:
        server.stop()


def rate(directory: str, world: World, certificate: tuple[str, str], args: argparse.Namespace) -> None:
    ours = Mailsrv(f"{directory}/mailsrv", world, certificate)
    if args.sign:
        ours.command("dkim", "generate", "bench.test")
    servers = [ours, *([] if args.alone else [Postfix(f"{directory}/postfix", world, certificate)])]
    figures: dict[str, list[tuple[float, float, float]]] = {server.name: [] for server in servers}
    for number in range(args.rounds):
        for server in servers if number % 2 else reversed(servers):
            figures[server.name].append(one_round(server, world, args.messages))
            speed, submitting, cpu = figures[server.name][-1]
            print(
                f"  {server.name}: {speed:.0f}/s, accepted after {submitting:.1f} s, {cpu:.2f} ms CPU each", flush=True
            )
    medians = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in figures.items()
    }
    for name, (speed, submitting, cpu) in medians.items():
        print(f"rate {name}: {speed:.0f} messages/s, all accepted after {submitting:.1f} s, {cpu:.2f} ms CPU each "
              f"({args.messages} messages, median of {args.rounds})")  # fmt: skip
    if not args.alone:
        print(f"rate mailsrv / postfix: {medians['mailsrv'][0] / medians['postfix'][0]:.2f}, "
              f"CPU {medians['mailsrv'][2] / medians['postfix'][2]:.2f}")  # fmt: skip


# ------------------------------------------------------------------ a long queue


def make_entries(root: str, count: int) -> list[str]:
    """Deferred entries as the queue leaves them, due in some hours; their ids."""
    from mailsrv.store.entry import Entry, Origin, Recipient, Stamp, to_text
    from mailsrv.store.spool import Spool
    from mailsrv.values import Address, Disposition, Envelope, Outcome

    spool, now, text = Spool(root), Stamp.now(), b"From: u0@bench.test\r\nSubject: waits\r\n\r\n" + BODY[:500]
    spool.prepare()
    digest = hashlib.sha256(text).hexdigest()
    accepted = [now.wall - 3600 * (1 - number / count) for number in range(count)]  # over the last hour
    ids = [f"{int(wall * 1e6):014x}{number & 0xFFFF:04x}" for number, wall in enumerate(accepted)]
    for number, id in enumerate(ids):
        address = Address(f"r{number}", DOMAINS[number % 100])
        one = Recipient(address, destination=address.domain, next_at=now.wall + 7200 + number % 3600)
        one.note(Outcome(address, Disposition.LATER, 451, "4.7.1", "Greylisted, come again"), now.wall)
        entry = Entry(
            id, Envelope(Address("u0", "bench.test")), [one], Origin(0, "s", "smtp"), len(text), digest, now.wall
        )
        entry.touch(now)
        os.makedirs(f"{root}/{id[7:9]}", exist_ok=True)
        with open(spool.message_path(id), "wb") as file:
            file.write(text)
        with open(spool.envelope_path(id), "wb") as file:
            file.write(to_text(entry))
        os.utime(spool.envelope_path(id), (one.next_at, one.next_at))
    return ids


def tracer(pid: int) -> int:
    with open(f"/proc/{pid}/status") as file:
        return int(file.read().partition("TracerPid:")[2].split()[0])


def traced(pid: int, act: Callable[[], Any]) -> Counter[str]:
    """How often the process listed a directory or opened a file while `act` ran and two seconds after."""
    with tempfile.NamedTemporaryFile("r") as out:
        calls = "trace=getdents64,openat,newfstatat,statx"
        strace = subprocess.Popen(
            ["strace", "-f", "-qq", "-e", calls, "-o", out.name, "-p", str(pid)], stderr=subprocess.DEVNULL
        )
        try:
            until(lambda: tracer(pid) == strace.pid, "strace is attached")
            act()
            time.sleep(2)
        finally:
            strace.send_signal(signal.SIGINT)
            strace.wait()
        return Counter(re.findall(r"^\d+ +(\w+)\(", out.read(), re.M))


def queued(directory: str, world: World, certificate: tuple[str, str], args: argparse.Namespace) -> None:
    made = f"{directory}/entries/queue"
    os.makedirs(os.path.dirname(made))
    ids = make_entries(made, args.entries)
    for workers in ("auto", 1):
        ours = Mailsrv(f"{directory}/queue-{workers}", world, certificate, server__workers=workers, hub_delay=True)
        shutil.rmtree(ours.queue, ignore_errors=True)
        os.rename(made, ours.queue)
        world.begin()
        try:
            long_queue(ours, world, workers, ids.pop())
        finally:
            ours.stop()
        os.rename(ours.queue, made)


def long_queue(ours: Mailsrv, world: World, workers: str | int, retried: str) -> None:
    def log() -> str:
        with open(ours.log) as file:
            return file.read()

    began = time.monotonic()
    ours.start()
    serves = time.monotonic() - began
    pattern = re.compile(r" queue-read .*found=(\d+) .*ms=([\d.]+)")
    read = until(lambda: pattern.search(log()), "the runner has read the queue")
    knows = time.monotonic() - began
    time.sleep(3)
    late, own = (max(map(float, re.findall(rf" {name}=([\d.]+)", log()))) for name in ("longest_ms", "own_ms"))
    with open(f"{ours.queue}/lock") as file:
        runner = int(file.read())
    print(f"queue of {read[1]}, workers {workers}: serves after {serves:.2f} s, has read it after {knows:.2f} s "
          f"(in {float(read[2]) / 1e3:.2f} s); event loops at most {late:.0f} ms late, of which they ran {own:.0f}; "
          f"PSS of the runner's process {pss_mib(runner):.0f} MiB, of all {sum(map(pss_mib, processes(ours.pid))):.0f}"
    )  # fmt: skip
    began = time.monotonic()
    lines = ours.command("queue", "list").splitlines()
    print(f"queue list: first page of {len(lines) - 1} in {time.monotonic() - began:.2f} s")
    calls = traced(runner, lambda: ours.command("queue", "retry", retried))
    until(lambda: world.received() == 1, "the retried message arrives", 30)
    told = ", ".join(f"{name} {count}" for name, count in sorted(calls.items()))
    print(f"queue retry of one: {told} in the runner's process, with all else it did in two seconds")


# ------------------------------------------------------------------ a destination that hangs


def hang(directory: str, world: World, certificate: tuple[str, str], args: argparse.Namespace) -> None:
    for number, hanging in enumerate((False, True) * args.rounds):
        ours = Mailsrv(f"{directory}/hang-{number}", world, certificate)
        world.begin()
        ours.start()
        try:
            arriving = args.messages - args.messages // 100 * hanging
            with submission(ours, args.messages, hanging=hanging) as begin:
                begun = time.monotonic()
                accepted = begin()
                until(
                    lambda n=arriving: world.received() >= n, "the others' mail arrives", 60 + args.messages / 20, 0.01
                )
                seconds = time.monotonic() - begun
                accepted()
            print(f"hang: {'one of the 100 domains hangs' if hanging else 'all 100 domains answer'}: "
                  f"{arriving / seconds:.0f} messages/s to those that answer")  # fmt: skip
        finally:
            ours.process.kill() if ours.process else None
            ours.stop()


# ------------------------------------------------------------------ push meanwhile


class Probe:
    """Sends messages to a mailbox here, one after the other, and measures 250 to EXISTS at an idling client."""

    def __init__(self, server: Mailsrv, number: int) -> None:
        self._address = f"u{number}@bench.test".encode()
        self._smtp = Client(server.smtp, tls=False)
        self._imap = socket.create_connection(("127.0.0.1", server.imap), timeout=30)
        self._imap.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._lines = self._imap.makefile("rb")
        self._lines.readline()
        for text in (b'a LOGIN %b "password %d"' % (self._address, number), b"a SELECT INBOX"):
            self._imap.sendall(text + b"\r\n")
            while not self._lines.readline().startswith(b"a OK"):
                pass
        self._imap.sendall(b"a IDLE\r\n")
        self._lines.readline()
        self._imap.settimeout(None)  # another one may have its turn for long
        self._seen = 0
        self._times: dict[int, float] = {}
        self._arrived = threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in self._lines:
            if line.endswith(b"EXISTS\r\n"):
                with self._arrived:
                    self._seen = int(line.split()[1])
                    self._times[self._seen] = time.monotonic()
                    self._arrived.notify()

    def once(self) -> float:
        """Milliseconds from 250 to EXISTS; a push before the 250 is none."""
        with self._arrived:
            count = self._seen + 1
        self._smtp.send(self._address, count)
        answered = time.monotonic()
        with self._arrived:
            if not self._arrived.wait_for(lambda: count in self._times, 30):
                raise SystemExit("no EXISTS within 30 s")
        return max(0.0, self._times.pop(count) - answered) * 1e3


def probed(probes: list[Probe], goes_on: Callable[[int], bool]) -> list[float]:
    """What the probes, in turn, measure while it goes on."""
    found: list[float] = []
    while goes_on(len(found)):
        found.append(probes[len(found) % len(probes)].once())
        time.sleep(0.02)
    return found


def probed_while_sending(probes: list[Probe], server: Any, world: World, messages: int) -> list[float]:
    world.begin()
    with submission(server, messages) as begin:
        time.sleep(1)
        accepted = begin()
        end = time.monotonic() + 60 + messages / 20
        found = probed(probes, lambda count: world.received() < messages and time.monotonic() < end)
        accepted()
    until(lambda: world.received() >= messages, "the messages arrive")
    until(lambda: not server.waiting(), f"the queue of {server.name} is empty")
    return found


def push(directory: str, world: World, certificate: tuple[str, str], args: argparse.Namespace) -> None:
    ours = Mailsrv(f"{directory}/push", world, certificate)
    others = [] if args.alone else [Postfix(f"{directory}/push-postfix", world, certificate)]
    messages = args.messages // args.rounds
    quiet = "with nothing else to do"
    figures: dict[str, list[float]] = {quiet: []}
    with ExitStack() as stack:
        for server in (ours, *others):
            server.start()
            stack.callback(server.stop)
        probes = [Probe(ours, number) for number in range(1, WATCHERS + 1)]
        probed(probes, lambda count: count < 50)
        for number in range(args.rounds):
            for server in (ours, *others) if number % 2 else (*others, ours):
                figures[quiet] += probed(probes, lambda count: count < 200)
                found = probed_while_sending(probes, server, world, messages)
                figures.setdefault(f"while {server.name} sends", []).extend(found)
                print(f"  while {server.name} sends: p50 {percentile(found, 0.5):.2f} ms, "
                      f"p95 {percentile(found, 0.95):.2f} ms", flush=True)  # fmt: skip
    for what, times in figures.items():
        p50, p95, p99 = (percentile(times, share) for share in (0.5, 0.95, 0.99))
        print(f"push {what}: 250 to EXISTS p50 {p50:.2f} ms, p95 {p95:.2f} ms, p99 {p99:.2f} ms, "
              f"worst {max(times):.2f} ms ({len(times)} messages)")  # fmt: skip
        if times is not figures[quiet]:
            print(f"push {what} / {quiet}: p50 {_ratio(times, figures[quiet], 0.5)}, "
                  f"p95 {_ratio(times, figures[quiet], 0.95)}")  # fmt: skip
    if others:
        pair = [figures[f"while {server.name} sends"] for server in (ours, *others)]
        print(f"push while mailsrv sends / while postfix sends: p50 {_ratio(*pair, 0.5)}, p95 {_ratio(*pair, 0.95)}")


def _ratio(times: list[float], others: list[float], share: float) -> str:
    return f"{percentile(times, share) / max(1e-3, percentile(others, share)):.2f}"


PARTS = {"rate": rate, "queue": queued, "hang": hang, "push": push}


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
