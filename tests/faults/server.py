"""The real server as other processes, to be killed; and what every family needs around it."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import trustme

from mailsrv.mail.passwords import hash_password
from tests.conftest import DOMAIN, PASSWORD, USERS
from tests.daemon.conftest import ROOT, SECONDS, Daemon, Imap, until
from tests.faults.checker import Maildirs

__all__ = ["DOMAIN", "PASSWORD", "SECONDS", "USERS", "Client", "Server", "until"]


PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class Server(Daemon):
    """`mailsrv serve` as a process group of its own. `broken` names a build of `broken.py`, `before` a command that
    the server is started by (strace, faketime, unshare)."""

    module = "mailsrv"

    def __init__(
        self, directory: Path, *, broken: str | None = None, before: Sequence[str] = (),
        environment: dict[str, str] | None = None, **changes: Any,
    ) -> None:  # fmt: skip
        directory.mkdir(parents=True, exist_ok=True)
        authority = trustme.CA()
        issued = authority.issue_cert("localhost", "127.0.0.1")
        chain, key, trusted = (str(directory / name) for name in ("server.pem", "server.key", "ca.pem"))
        issued.private_key_pem.write_to_path(key)
        for blob in issued.cert_chain_pems:
            blob.write_to_path(chain, append=True)
        authority.cert_pem.write_to_path(trusted)
        self.broken, self.before, self.environment = broken, list(before), environment or {}
        self.output = directory / "output"
        changes = {
            # The driver is one address, and always right: none of this is what is to be seen here.
            "limits.connections_per_address": 1000, "limits.connections_per_user": 1000, "queue.notice_hours": 0,
            **changes,
        }  # fmt: skip
        super().__init__(directory, (chain, key), trusted, hash_password(PASSWORD), **changes)
        self.back_seconds: list[float] = []

    @property
    def data(self) -> Path:
        return Path(self.settings["server.data_dir"])

    def program(self) -> list[str]:
        module = ["tests.faults.broken", self.broken] if self.broken else [self.module]
        return [*self.before, sys.executable, "-m", *module, "serve", "--foreground", "--config", self.settings.path]

    def start(self) -> None:
        with self.output.open("ab") as output:
            begun = time.monotonic()
            self.process = subprocess.Popen(
                self.program(), cwd=ROOT, stdout=output, stderr=output, start_new_session=True,
                env={**os.environ, **self.environment}, preexec_fn=_end_with_the_driver,
            )  # fmt: skip
        until(self._serves, "the server answers")
        self.back_seconds.append(time.monotonic() - begun)

    def _serves(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the server ended: {self.output.read_text()[-2000:]}"
        return self.answers("imap") and self.answers("smtp")

    def kill(self, number: int = signal.SIGKILL) -> None:
        """The whole server, at once and without warning."""
        assert self.process is not None
        group = self.process.pid
        self.signal(number)
        self.process.wait(SECONDS)
        self.process = None
        until(lambda: not _group_exists(group), "the killed processes are gone")

    def spread(self, service: str, count: int) -> list[socket.socket]:
        """That many connections, as many to each worker. Whichever is quicker accepts one, and on a busy machine that
        may be always the same: the others have yet to start.
        """
        workers = self.workers()
        kept: dict[int, list[socket.socket]] = {pid: [] for pid in workers}
        end = time.monotonic() + SECONDS
        while any(len(those) * len(workers) < count for those in kept.values()):
            assert time.monotonic() < end, f"connections to each worker: {[len(those) for those in kept.values()]}"
            sock = self.connect(service)
            those = kept[until(lambda sock=sock: _holder(sock, workers), "a worker has accepted")]
            if len(those) * len(workers) < count:
                those.append(sock)
            else:
                sock.close()
        return [sock for those in kept.values() for sock in those]

    def signal(self, number: int) -> None:
        assert self.process is not None
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.signal(signal.SIGCONT)
            self.kill()
        super().close()

    def maildirs(self, root: Path | None = None) -> Maildirs:
        """The files of all users; `root` is another place where the data directory is to be read."""
        return Maildirs({name: (root or self.data) / "mail" / DOMAIN / name for name in USERS})

    def bugs(self) -> list[str]:
        """What the server says of itself that no fault of a disk or a client may bring about."""
        text = self.output.read_text(errors="replace") + (
            self.log.read_text(errors="replace") if self.log.exists() else ""
        )
        return [line[:2000] for line in text.splitlines() if "traceback" in line.lower()]


def _end_with_the_driver() -> None:
    """A run that is cut off leaves no server behind (prctl(2))."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
        return True
    except ProcessLookupError:
        return False


def _holder(sock: socket.socket, processes: list[int]) -> int | None:
    """Which of the processes has the other end of a connection on this machine; None before it is accepted."""
    (_, here), (_, there) = sock.getsockname(), sock.getpeername()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if words[1].endswith(f":{there:04X}") and words[2].endswith(f":{here:04X}"):
            for pid in processes:
                for file in Path(f"/proc/{pid}/fd").iterdir():
                    with suppress(FileNotFoundError):  # closed meanwhile
                        if os.readlink(file) == f"socket:[{words[9]}]":
                            return pid
    return None


class Client(Imap):
    """Imap that sends literals, gives the completion too, and says so when the server is gone or refuses."""

    def __init__(
        self, server: Server, user: str, mailbox: str | None = None, sock: socket.socket | None = None
    ) -> None:
        super().__init__(sock or server.connect("imap"), None)
        self.run(f'LOGIN {user}@{DOMAIN} "{PASSWORD}"')
        if mailbox is not None:
            self.run(f"SELECT {mailbox}")

    def run(self, text: str, literal: bytes | None = None) -> list[bytes]:
        """The lines of the answer, with its completion. Raises Refused; OSError when the connection ends."""
        if literal is None:
            tag = self.send(text).encode()
        else:
            tag = self.send(f"{text} {{{len(literal)}+}}").encode()
            self.sock.sendall(literal + b"\r\n")
        lines: list[bytes] = []
        while True:
            line = self.line()
            if not line.endswith(b"\n"):
                raise ConnectionError("the server is gone")
            lines.append(line)
            if line.startswith(tag + b" "):
                if not line.startswith(tag + b" OK"):
                    raise Refused(line.decode("utf-8", "replace").strip())
                return lines


class Refused(Exception):
    """NO or BAD."""
