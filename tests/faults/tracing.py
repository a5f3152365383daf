"""A child process under strace: which system calls it makes, and what becomes of it when one of them goes wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mailsrv.errors import MailError

CHANGING = (
    "openat", "write", "pwrite64", "fsync", "fdatasync", "rename", "renameat", "renameat2", "link", "linkat", "unlink",
    "unlinkat", "mkdir", "mkdirat", "ftruncate", "utimensat",
)  # fmt: skip
SECONDS = 90.0
_LINE = re.compile(r"(\d+) +(\w+)\((.*)")


@dataclass(frozen=True)
class Call:
    """The n-th call of that name by its thread."""

    name: str
    number: int
    text: str

    @property
    def changes(self) -> bool:
        return self.name != "openat" or "O_CREAT" in self.text


@dataclass(frozen=True)
class Ended:
    """`answers` are what the child told, in order; `killed` whether the fault ended it; `calls` what it had done."""

    answers: list[tuple[str, Any]]
    killed: bool
    calls: list[Call]
    trouble: str


def available() -> str:
    """Nothing, or why children cannot be traced here."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    done = subprocess.run(["strace", "-qq", "-e", "trace=none", "true"], capture_output=True, check=False)
    return "" if done.returncode == 0 else "strace may not trace here"


def run(place: Path, act: Callable[[Path], Any], inject: str | None = None, *, again: bool = False) -> Ended:
    """`act` in a child, with strace's `inject`; `again`: once more in the same process if it was refused."""
    told, trace, trouble = (place.parent / name for name in ("told", "trace", "trouble"))
    for old in (told, trouble):
        old.unlink(missing_ok=True)
    begin, go = os.pipe()
    fd = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    child = os.fork()
    if child == 0:
        _child(place, act, begin, fd, trouble, again)
    os.close(fd)
    os.close(begin)
    try:
        command = ["strace", "-f", "-y", "-o", str(trace), "-e", f"trace={','.join(CHANGING)}"]
        command += ["-e", f"inject={inject}"] if inject else []
        tracer = subprocess.Popen([*command, "-p", str(child)], stderr=subprocess.PIPE)
        assert tracer.stderr is not None
        attached = tracer.stderr.readline()
        assert b"attached" in attached, attached
        os.write(go, b"x")
        status = _wait(child)
        tracer.stderr.close()
        tracer.wait(SECONDS)
    finally:
        os.close(go)
    answers = [tuple(json.loads(line)) for line in told.read_text().splitlines()] if told.exists() else []
    return Ended(
        answers, os.WIFSIGNALED(status), list(_calls(trace)), trouble.read_text() if trouble.exists() else ""
    )  # fmt: skip


def _wait(child: int) -> int:
    end = time.monotonic() + SECONDS
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            raise AssertionError("the child does not end")
        time.sleep(0.002)


def _child(
    place: Path, act: Callable[[Path], Any], begin: int, fd: int, trouble: Path, again: bool
) -> None:  # pragma: no cover
    """Never returns. What was told before the end is on disk, as if a client had read it."""
    code = 1
    try:
        os.read(begin, 1)
        for _ in range(2 if again else 1):
            try:
                os.write(fd, json.dumps(["done", act(place)]).encode() + b"\n")
                break
            except MailError as failure:
                os.write(fd, json.dumps(["refused", f"{type(failure).__name__}: {failure}"]).encode() + b"\n")
        code = 0
    except BaseException:
        trouble.write_text(traceback.format_exc())
    finally:
        os._exit(code)


def _calls(trace: Path) -> Iterator[Call]:
    counts: Counter[tuple[str, str]] = Counter()
    for line in trace.read_text(errors="replace").splitlines():
        found = _LINE.match(line)
        if found:
            counts[found[1], found[2]] += 1
            yield Call(found[2], counts[found[1], found[2]], found[3])
