"""The real program in processes of its own, and what its tests need to reach it."""

import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mailsrv.mail.accounts import Accounts
from mailsrv.pidfile import running_pid
from mailsrv.start import SERVICES
from tests.conftest import DOMAIN, PASSWORD, USERS, configuration

ROOT = Path(__file__).parent.parent.parent
SECONDS = 90.0  # for whatever must happen, on a machine however busy


def until(condition: Callable[[], Any], what: str, seconds: float = SECONDS) -> Any:
    """The first true value of the condition; fails when it does not come in time."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not in time: {what}"
        time.sleep(0.02)
    return value


class Daemon:
    """`mailsrv serve` with users ann, bo and cy @example.com, or of another domain; password PASSWORD."""

    def __init__(
        self, directory: Path, certificate: tuple[str, str], authority_path: str, stored: str, domain: str = DOMAIN,
        **changes: Any,
    ):  # fmt: skip
        self.directory, self.domain = directory, domain
        self.log = directory / "log"
        self.authority = authority_path
        changes = {"log.file": str(self.log), "imap.allow_plaintext_login": True, **changes}
        self.settings = configuration(directory, certificate, changes)
        self.ports = {name: self.settings[f"{name}.listen"][0][1] for name in SERVICES}
        self.accounts = Accounts(self.settings.accounts_path, self.settings.mail_root)
        if not self.accounts.is_local(domain):
            self.accounts.add_domain(domain)
            for name in USERS:
                self.accounts.add_user(f"{name}@{domain}", stored)
        self.tls = ssl.create_default_context(cafile=authority_path)
        self.process: subprocess.Popen[bytes] | None = None

    def command(self, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
        """One `mailsrv` command on this configuration."""
        return subprocess.run(
            [sys.executable, "-m", "mailsrv", *words, "--config", self.settings.path],
            cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False, **more,
        )  # fmt: skip

    def start(self, *through: str, stderr: Any = None) -> None:
        """`through`: a command that runs the one behind it in its place, instead of Python's `-m mailsrv`."""
        program = through or (sys.executable, "-m", "mailsrv")
        self.process = subprocess.Popen(
            [*program, "serve", "--foreground", "--config", self.settings.path], cwd=ROOT, stderr=stderr
        )
        until(lambda: self.answers("imap") and self.answers("smtp"), "the server answers")

    def answers(self, service: str) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.ports[service]), timeout=20) as sock:
                return bool(sock.recv(1))
        except OSError:
            return False

    def connect(self, service: str) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.ports[service]), timeout=SECONDS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.tls.wrap_socket(sock, server_hostname="localhost") if service in ("imaps", "submissions") else sock

    def workers(self) -> list[int]:
        """The processes that serve connections."""
        assert self.process is not None
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")

        def named() -> dict[str, str] | None:
            """Names by pid, as soon as the log has told that of each child: it is written a moment after the fork."""
            told = re.findall(r"process-started name=(\S+) pid=(\d+)", self.log.read_text())
            names, children = {pid: name for name, pid in told}, path.read_text().split()
            return {pid: names[pid] for pid in children} if names.keys() >= set(children) else None

        return [int(pid) for pid, name in until(named, "named children").items() if name.startswith("worker-")]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End the server and wait for it; its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(SECONDS)
        self.process = None
        return code

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if pid := running_pid(f"{self.settings['server.run_dir']}/mailsrv.pid"):
            with suppress(ProcessLookupError):  # its children hold the lock for a moment longer
                os.kill(pid, signal.SIGKILL)  # one that went into the background, or took over
        self.accounts.close()

    def maildir(self, name: str) -> Path:
        return Path(self.settings["server.data_dir"]) / "mail" / self.domain / name / "Maildir"

    def files(self, name: str) -> list[Path]:
        """The message files of an INBOX, which need not be there yet."""
        return [path for sub in ("new", "cur") for path in (self.maildir(name) / sub).glob("*")]


@pytest.fixture(scope="session")
def authority_path(authority: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


@pytest.fixture
def daemon(
    tmp_path: Path, certificate: tuple[str, str], authority_path: str, password_hash: str
) -> Iterator[Callable[..., Daemon]]:
    """`daemon(**{"server.workers": 2})`: a server that was started; ended with the test."""
    made: list[Daemon] = []

    def make(**changes: Any) -> Daemon:
        one = Daemon(tmp_path, certificate, authority_path, password_hash, **changes)
        made.append(one)
        one.start()
        return one

    yield make
    for one in made:
        one.close()


class Imap:
    """A small IMAP client: sends lines, collects what comes."""

    def __init__(self, sock: socket.socket, user: str | None = "ann", mailbox: str | None = "INBOX") -> None:
        self.sock = sock
        self.file = sock.makefile("rb")
        self.greeting = self.file.readline()
        self.number = 0
        if user is not None:
            self.ok(f'LOGIN {user}@{DOMAIN} "{PASSWORD}"')
            if mailbox is not None:
                self.ok(f"SELECT {mailbox}")

    def send(self, text: str, before: bytes = b"") -> str:
        self.number += 1
        tag = f"a{self.number}"
        self.sock.sendall(before + f"{tag} {text}\r\n".encode())
        return tag

    def line(self) -> bytes:
        return self.file.readline()

    def until(self, start: bytes) -> list[bytes]:
        """Lines up to and with the one that begins so."""
        lines = []
        while True:
            line = self.line()
            assert line, f"connection closed before {start!r}; got {lines}"
            lines.append(line)
            if line.startswith(start):
                return lines

    def ok(self, text: str) -> list[bytes]:
        tag = self.send(text).encode()
        lines = self.until(tag + b" ")
        assert lines[-1].startswith(tag + b" OK"), lines
        return lines[:-1]

    def idle(self) -> None:
        self.idle_tag = self.send("IDLE").encode()
        self.until(b"+")

    def done(self) -> list[bytes]:
        self.sock.sendall(b"DONE\r\n")
        return self.until(self.idle_tag + b" ")

    def uids(self) -> dict[int, bytes]:
        """UID -> flags of everything in the mailbox."""
        found = {}
        for line in self.ok("UID FETCH 1:* (FLAGS)"):
            if match := re.match(rb"\* \d+ FETCH \(UID (\d+) FLAGS \(([^)]*)\)", line):
                found[int(match[1])] = match[2]
        return found

    def close(self) -> None:
        self.file.close()
        self.sock.close()


@pytest.fixture
def imap() -> Iterator[Callable[..., Imap]]:
    """`imap(daemon.connect("imap"))`: a client that is closed with the test."""
    made: list[Imap] = []

    def make(*args: Any, **more: Any) -> Imap:
        made.append(Imap(*args, **more))
        return made[-1]

    yield make
    for one in made:
        one.close()


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, **more}
