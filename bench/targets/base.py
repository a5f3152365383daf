"""What a target has to offer to the workloads."""

from __future__ import annotations

import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from benchlib import proc, util

DOMAIN = "bench.test"


class Target:
    name = "?"
    version = "?"
    fsync = "?"  # one line: what the server syncs before its 250
    smtp_proto = "smtp"
    max_idle = 5000
    can_restart = True

    def __init__(self, users: int = 1000) -> None:
        self.users = users
        self.dir = tempfile.mkdtemp(prefix="mailsrv-bench-", dir=os.environ.get("BENCH_SCRATCH"))
        os.chmod(self.dir, 0o755)
        self.certificate, self.key = util.make_certificate(self.dir)
        self.imap: util.Address = ("127.0.0.1", 0)
        self.imaps: util.Address | None = None
        self.smtp: util.Address = ("127.0.0.1", 0)
        self.notes: list[str] = []

    def login(self, i: int) -> tuple[str, str]:
        i %= self.users
        return f"u{i}", f"pw{i}"

    def address(self, i: int) -> str:
        return f"u{i % self.users}@{DOMAIN}"

    def maildir(self, i: int) -> tuple[str, int] | None:
        """Path and owner of the user's Maildir if messages may be dropped into it."""
        return None

    def prepare(self) -> None:
        """Whatever comes once, before the first start."""

    def start(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    def restart(self) -> None:
        self.stop()
        self.start()

    def roots(self) -> list[int]:
        """The processes that, with their children, are the server."""
        raise NotImplementedError

    def cleanup(self) -> None:
        """Removes the server's directory: several at a time, for each file may wait for the disk."""
        parts = [self.dir]
        while len(parts) < 16 and (deeper := [one.path for part in parts for one in os.scandir(part) if one.is_dir()]):
            parts = deeper
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(partial(shutil.rmtree, ignore_errors=True), parts))
        shutil.rmtree(self.dir, ignore_errors=True)

    def cpu(self) -> float:
        return proc.cpu_seconds(self.roots())

    def mem(self) -> dict[str, int]:
        return proc.memory(self.roots())

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "version": self.version, "fsync": self.fsync, "notes": self.notes}
