"""What connections cost: memory while they wait, processor time while they wait, and logins a second."""

from __future__ import annotations

import select
import socket
import ssl
import time

from .imap import ImapError
from .loop import Loop
from .proc import Meter, mem_available_kb
from .util import client_tls, pct
from .watchers import Watchers
from .work import U_LOGIN, Work, spin


def memory(work: Work) -> None:
    """PSS of all server processes with more and more idle connections, without and with TLS."""
    target = work.target
    for kind in ("plain", "tls") if work.sizes["mem_tls"] and target.imaps else ("plain",):
        target.restart()
        time.sleep(1.5)
        base = target.mem()
        available = mem_available_kb()
        work.put(f"memory.{kind}.0.pss_mb", base["pss_kb"] / 1024)
        work.put(f"memory.{kind}.0.procs", base["procs"])
        loop = Loop()
        tls = client_tls() if kind == "tls" else None
        address = target.imaps if tls and target.imaps else target.imap
        have: int = 0
        groups = []
        for n in work.sizes["mem_levels"]:
            if n > target.max_idle:
                work.say(f"memory {n}: above the target's limit, skipped")
                continue
            watchers = Watchers(loop, address, [target.login(i) for i in range(have, n)], tls)
            groups.append(watchers)
            try:
                work.put(f"memory.{kind}.{n}.open_s", watchers.open(timeout=150))
            except (ImapError, OSError) as error:
                work.check(False, f"{n} {kind} connections: {error}")
                break
            have = n
            time.sleep(work.sizes.get("mem_settle", 2.0))
            now = target.mem()
            work.put(f"memory.{kind}.{n}.pss_mb", now["pss_kb"] / 1024)
            work.put(f"memory.{kind}.{n}.per_conn_kb", (now["pss_kb"] - base["pss_kb"]) / n)
            work.put(f"memory.{kind}.{n}.procs", now["procs"])
            # Of the whole machine, less what the client holds: with the kernel's memory; disturbed by other programs.
            work.put(f"memory.{kind}.{n}.machine_per_conn_kb", (available - mem_available_kb()) / n)
            loop.once(0)
            dead = sum(group.dead for group in groups)
            work.check(dead == 0, f"{dead} idle connections dropped by the server")
        for watchers in groups:
            watchers.close()
        time.sleep(1)


class Login:
    """One connection through greeting, LOGIN, SELECT and LOGOUT."""

    def __init__(self, logins: Logins, user: str, password: str) -> None:
        self.logins = logins
        self.begun = time.perf_counter()
        sock = socket.create_connection(logins.address, 30)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        self.handshake = logins.tls is not None
        self.sock: socket.socket | ssl.SSLSocket = (
            logins.tls.wrap_socket(sock, do_handshake_on_connect=False) if logins.tls else sock
        )
        self.buffer, self.exists = b"", False
        self.steps: list[tuple[bytes, bytes | None]] = [
            (b"* OK", b"a1 LOGIN %s %s\r\n" % (user.encode(), password.encode())),
            (b"a1 OK", b"a2 SELECT INBOX\r\n"),
            (b"a2 OK", b"a3 LOGOUT\r\n"),
            (b"a3 OK", None),
        ]
        logins.loop.add(self.sock, self.event)
        if self.handshake:
            self.event(0)

    def event(self, _mask: int) -> None:
        try:
            if self.handshake and isinstance(self.sock, ssl.SSLSocket):
                self.sock.do_handshake()
                self.handshake = False
                self.logins.loop.mask(self.sock, select.EPOLLIN)
            while True:
                data = self.sock.recv(8192)
                if not data:
                    return self.end(False)
                self.buffer += data
                while b"\n" in self.buffer:
                    line, self.buffer = self.buffer.split(b"\n", 1)
                    if b" EXISTS" in line:
                        self.exists = True
                    expected, following = self.steps[0]
                    if line.startswith(expected):
                        if following is None:
                            return self.end(self.exists)
                        self.sock.sendall(following)
                        self.steps.pop(0)
                    elif line[:1] == b"a":
                        return self.end(False)
        except (ssl.SSLWantReadError, BlockingIOError):
            return
        except ssl.SSLWantWriteError:
            self.logins.loop.mask(self.sock, select.EPOLLOUT)
        except OSError:
            self.end(False)

    def end(self, good: bool) -> None:
        self.logins.loop.drop(self.sock)
        self.sock.close()
        self.logins.ended(time.perf_counter() - self.begun, good)


class Logins:
    """n logins, some of them at a time."""

    def __init__(self, work: Work, address: tuple[str, int], n: int, tls: ssl.SSLContext | None) -> None:
        self.work, self.address, self.n, self.tls = work, address, n, tls
        self.loop = Loop()
        self.started = self.done = self.bad = 0
        self.seconds: list[float] = []

    def run(self) -> None:
        for _ in range(min(self.work.sizes["login_conc"], self.n)):
            self.start()
        end = time.time() + 120
        while self.done < self.n and time.time() < end:
            self.loop.once(0.5)

    def start(self) -> None:
        user = U_LOGIN + self.started % 200
        self.started += 1
        Login(self, *self.work.target.login(user))

    def ended(self, seconds: float, good: bool) -> None:
        self.done += 1
        if good:
            self.seconds.append(seconds)
        else:
            self.bad += 1
        if self.started < self.n:
            self.start()


def login(work: Work) -> None:
    """connect + LOGIN + SELECT + LOGOUT, twenty at a time."""
    for kind, address, n in (
        ("plain", work.target.imap, work.sizes["login_n"]),
        ("tls", work.target.imaps, work.sizes["login_tls_n"]),
    ):
        if not address:
            continue
        logins = Logins(work, address, n, client_tls() if kind == "tls" else None)
        with Meter(work.target) as meter:
            logins.run()
        time.sleep(0.3)
        work.check(
            logins.bad == 0 and logins.done == n,
            f"login {kind}: {logins.done} of {n} done, {logins.bad} of them failed",
        )
        work.put(f"login.{kind}.per_s", n / meter.wall)
        work.put(f"login.{kind}.p50_ms", pct(logins.seconds, 50) * 1e3)
        work.put(f"login.{kind}.p99_ms", pct(logins.seconds, 99) * 1e3)
        work.put(f"login.{kind}.server_cpu_ms_each", meter.server * 1e3 / n)
        work.put(f"login.{kind}.client_cpu_ms_each", meter.client * 1e3 / n)


def idlecpu(work: Work) -> None:
    """Processor time of connections that wait."""
    n = min(work.sizes["idle_conns"], work.target.max_idle)
    loop = Loop()
    watchers = Watchers(loop, work.target.imap, [work.target.login(i) for i in range(n)])
    watchers.open()
    spin(loop, 2.0)
    with Meter(work.target) as meter:
        spin(loop, work.sizes["idle_secs"])
    work.check(watchers.dead == 0, f"{watchers.dead} connections dropped")
    work.put("idlecpu.server_cpu_ms_per_s", meter.server * 1e3 / meter.wall)
    work.put("idlecpu.conns", n)
    watchers.close()
