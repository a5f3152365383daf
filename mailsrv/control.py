"""Questions to a running server: every process answers on a socket of its own in the run directory.

A process listens on `<run_dir>/<name>-<pid>.ctl`, which only the user it runs as (and root) may open. Somebody
connects, sends one line of JSON, `{"ask": "who", ...}`, and gets one back: `{"answer": ...}` or `{"error": "..."}`.
Whatever can be asked is registered with `Control.answer`; the command line and the metrics ask all processes and put
the answers together.

Imports: store.files, log, gevent.
"""

from __future__ import annotations

import glob
import json
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gevent
from gevent.pool import Pool

from mailsrv import log
from mailsrv.store.files import unlink_if_there

REQUEST_BYTES = 64 * 1024
REPLY_BYTES = 64 * 1024 * 1024
SECONDS = 5.0  # for one question, from either side
TALKS_AT_ONCE = 16
ROWS_AT_ONCE = 100  # of an answer that is made row by row, between two turns of the others
FLUSH_BYTES = 256 * 1024

# What an answer is made of: it is given the question and returns what JSON can say, or yields rows.
Answer = Callable[[dict[str, Any]], Any]


class Misasked(Exception):
    """The question cannot be answered as it was put; the text says why."""


class Control:
    """The answering side, in one process. `run_dir` must be there when `start` is called."""

    def __init__(self, run_dir: str, name: str) -> None:
        self.name = name
        self._path = f"{run_dir}/{name}-{os.getpid()}.ctl"
        self._answers: dict[str, Answer] = {"ping": lambda question: "pong"}
        self._socket: socket.socket | None = None
        self._acceptor: gevent.Greenlet | None = None
        self._talks = Pool(TALKS_AT_ONCE)

    def answer(self, question: str, fn: Answer) -> None:
        """Let `fn` answer this question. It runs on the hub: what takes long it does in a thread, or yields rows, which
        become a list, made and sent in slices. Misasked is told to who asks.
        """
        self._answers[question] = fn

    def start(self) -> None:
        unlink_if_there(self._path)  # of a process that had this number before
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        os.fchmod(self._socket.fileno(), 0o600)  # bind(2) makes the file with this mode: nobody comes in between
        self._socket.bind(self._path)
        self._socket.listen(TALKS_AT_ONCE)
        self._acceptor = gevent.spawn(self._accept)

    def close(self) -> None:
        if self._socket is None:
            return
        if self._acceptor is not None:
            self._acceptor.kill()
        self._socket.close()
        self._socket = None
        self._talks.kill()
        unlink_if_there(self._path)

    def _accept(self) -> None:
        assert self._socket is not None
        while True:
            try:
                sock, _ = self._socket.accept()
            except OSError as failure:
                if self._socket is None or self._socket.fileno() < 0:
                    return
                log.warning("control socket failed", path=self._path, error=str(failure))
                gevent.sleep(0.1)
                continue
            self._talks.spawn(self._talk, sock)

    def _talk(self, sock: socket.socket) -> None:
        try:
            with sock, gevent.Timeout(SECONDS):
                for piece in self._reply(_read_line(sock, REQUEST_BYTES)):
                    sock.sendall(piece)
        except (OSError, gevent.Timeout) as failure:
            log.debug("control question failed", path=self._path, error=str(failure))

    def _reply(self, line: bytes) -> Iterator[bytes]:
        try:
            question = json.loads(line)
            if not isinstance(question, dict) or question.get("ask") not in self._answers:
                raise Misasked(f"Not a question that is answered here; these are: {', '.join(sorted(self._answers))}")
            answer = self._answers[question["ask"]](question)
            if isinstance(answer, Iterator):
                yield from _in_slices(answer)
            else:
                yield json.dumps({"answer": answer}).encode() + b"\n"
        except (ValueError, Misasked) as failure:
            yield json.dumps({"error": str(failure)}).encode() + b"\n"
        except Exception as failure:
            log.exception("control question failed", path=self._path)
            yield json.dumps({"error": f"internal error: {type(failure).__name__}"}).encode() + b"\n"


def _in_slices(rows: Iterator[Any]) -> Iterator[bytes]:
    """A list as JSON; other greenlets have their turn now and then."""
    pieces, size = [b'{"answer": ['], 0
    for number, row in enumerate(rows):
        text = json.dumps(row).encode()
        pieces.append(b", " + text if number else text)
        size += len(text)
        if size > FLUSH_BYTES:
            yield b"".join(pieces)
            pieces, size = [], 0
        elif number % ROWS_AT_ONCE == ROWS_AT_ONCE - 1:
            gevent.sleep(0)
    yield b"".join(pieces) + b"]}\n"


# ------------------------------------------------------------------ asking


@dataclass(frozen=True, slots=True)
class Reply:
    """What one process said: `error` is "" when it answered."""

    process: str  # its name, such as worker-0
    pid: int
    answer: Any = None
    error: str = ""


def processes(run_dir: str) -> list[tuple[str, int, str]]:
    """(name, pid, path) of every control socket there is; one whose process was killed is among them."""
    found = []
    for path in glob.glob(f"{glob.escape(run_dir)}/*.ctl"):
        name, _, pid = os.path.basename(path).removesuffix(".ctl").rpartition("-")
        if name and pid.isascii() and pid.isdigit():
            found.append((name, int(pid), path))
    return sorted(found)


def ask(path: str, question: str, *, seconds: float = SECONDS, **more: Any) -> Any:
    """One process's answer. OSError if it cannot be reached or says nothing in time, Misasked with its refusal."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(seconds)
        sock.connect(path)
        sock.sendall(json.dumps({**more, "ask": question}).encode() + b"\n")
        try:
            reply = json.loads(_read_line(sock, REPLY_BYTES))
        except ValueError:
            raise OSError("the answer was cut off") from None
    if "error" in reply:
        raise Misasked(reply["error"])
    return reply["answer"]


def ask_all(run_dir: str, question: str, *, seconds: float = SECONDS, **more: Any) -> list[Reply]:
    """The answers of all processes, asked at one time and sorted by name; killed processes are not among them."""

    def one(name: str, pid: int, path: str) -> Reply | None:
        try:
            with gevent.Timeout(seconds, TimeoutError("no answer in time")):
                return Reply(name, pid, ask(path, question, seconds=seconds, **more))
        except (ConnectionRefusedError, FileNotFoundError):
            _forget(pid, path)
            return None
        except (OSError, Misasked) as failure:
            return Reply(name, pid, error=str(failure) or type(failure).__name__)

    asked = [gevent.spawn(one, *process) for process in processes(run_dir)]
    gevent.joinall(asked)
    return [task.value for task in asked if task.value is not None]


def _forget(pid: int, path: str) -> None:
    """The socket of a process that was killed: nobody listens on it, and nobody will."""
    if not os.path.exists(f"/proc/{pid}"):
        try:
            os.unlink(path)
        except OSError:
            pass


def _read_line(sock: socket.socket, limit: int) -> bytes:
    """Up to the first line end or the end of the stream; OSError beyond the limit."""
    pieces, size = [], 0
    while True:
        data = sock.recv(256 * 1024)
        pieces.append(data)
        size += len(data)
        if not data or data.endswith(b"\n"):
            return b"".join(pieces)
        if size > limit:
            raise OSError("more than the limit was sent")
