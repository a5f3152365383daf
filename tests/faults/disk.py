"""The disk of a running server fails, or is full: what clients are told meanwhile, and that all is well afterwards."""

from __future__ import annotations

import os
import smtplib
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.fakes.sink import FakeSink
from tests.faults import power, tracing
from tests.faults.context import Context
from tests.faults.ledger import NO_FLAGS, Ledger
from tests.faults.load import AWAY, ELSEWHERE, Elsewhere, deliver, numbers, pairs, prepare, settings
from tests.faults.pushes import strace
from tests.faults.report import Result
from tests.faults.server import DOMAIN, SECONDS, USERS, Client, Refused, Server

FAULTS = (
    "fsync:error=EIO", "fsync:error=ENOSPC", "fsync:error=EDQUOT", "openat:error=EMFILE", "openat:error=ENOSPC",
    "rename,renameat2:error=EDQUOT", "rename,renameat2:error=EIO",
)  # fmt: skip
TMPFS_BYTES = 6 * 1024 * 1024


def run(context: Context) -> Result:
    result = Result("failing and full disk under a server")
    if reason := tracing.available():
        result.left_out = reason
        return result
    with FakeSink() as sink:
        server, ledger = Server(context.place("disk"), **settings(sink)), Ledger(context.seed, "d")
        try:
            server.start()
            prepare(server, ledger)
            tries = _Tries(server, ledger, Elsewhere(sink), result)
            tries.well("before")
            for fault in FAULTS[:: context.of(3, 1, 1)]:
                with strace(server, fault):
                    tries.refused(fault)
                tries.well(f"after {fault}")
            result.wrong += tries.elsewhere.drained(ledger, server) + server.bugs()
        finally:
            server.close()
    if reason := power.unavailable():
        result.notes.append(f"no full disk: {reason}")
    else:
        _full(context, result)
    return result


class _Tries:
    """Every kind of change once, refused or done."""

    def __init__(self, server: Server, ledger: Ledger, elsewhere: Elsewhere, result: Result) -> None:
        self._server, self._ledger, self.elsewhere, self._result = server, ledger, elsewhere, result

    def well(self, when: str) -> None:
        """Everything works, nothing is left of what was refused."""
        server, ledger = self._server, self._ledger
        maildirs = server.maildirs()
        wrong = ledger.close(maildirs.boxes()) + maildirs.wrong
        wrong += [f"left behind: {path}" for path in maildirs.temporary()]
        wrong += [f"left behind: {path}" for path in (server.data / "queue" / "tmp").iterdir()]
        try:
            deliver(server, ledger, USERS, [ELSEWHERE])
            client = Client(server, "ann", "Work")
            token, text = ledger.message(900)
            ledger.appending(("ann", "Work"), token, NO_FLAGS)
            client.run("APPEND Work", text)
            client.close()
        except (Refused, OSError, smtplib.SMTPException) as failure:
            wrong.append(f"still refused: {failure}")
        wrong += ledger.close(maildirs.boxes()) + maildirs.wrong
        self._result.counts["recoveries"] += 1
        self._result.wrong += [f"{when}: {one}" for one in wrong]

    def refused(self, fault: str) -> None:
        """Each is answered, none by a crash; what is answered 250 or OK is there like anything else."""
        wrong: list[str] = []
        for users, away in ((["bo"], []), (["bo", "cy"], []), ([], [ELSEWHERE]), (["bo"], [ELSEWHERE])):
            wrong += self._send(users, away)
        wrong += self._imap()
        self._result.wrong += [f"{fault}: {one}" for one in wrong]

    def _send(self, users: list[str], away: list[str]) -> list[str]:
        ledger = self._ledger
        token, text = ledger.message(900)
        ledger.sending(token, users, away)
        try:
            with smtplib.SMTP("127.0.0.1", self._server.ports["smtp"], "load.example", timeout=SECONDS) as client:
                client.sendmail("", [f"{user}@{DOMAIN}" for user in users] + [AWAY] * len(away), text)
            ledger.sent(token, users, away)
            self._result.counts["accepted all the same"] += 1
            return []
        except (smtplib.SMTPException, OSError) as failure:
            ledger.refused(token, users, away)
            codes = {code for code, _ in failure.recipients.values()} if isinstance(
                failure, smtplib.SMTPRecipientsRefused) else {getattr(failure, "smtp_code", 0)}  # fmt: skip
            self._result.counts["refused by 4xx"] += 1
            return [] if all(400 <= code < 500 for code in codes) else [f"to {users + away}: {failure!r}"]

    def _imap(self) -> list[str]:
        ledger, box, target = self._ledger, ("ann", "Work"), ("ann", "Done")
        try:
            client = Client(self._server, "ann", "Work")
        except (Refused, OSError) as failure:
            return [] if "[UNAVAILABLE]" in str(failure) or "NO" in str(failure) else [f"no session: {failure!r}"]
        wrong = []
        uids = sorted(ledger.boxes[box].places)[:2]
        token, text = ledger.message(900)
        flags = {uid: ledger.boxes[box].places[uid].flags[0] | {"\\Flagged"} for uid in uids}
        steps: list[tuple[str, bytes | None, Callable[[], None], Callable[[list[bytes]], None], Callable[[], None]]] = [
            ("APPEND Work", text, lambda: ledger.appending(box, token, NO_FLAGS), lambda _: None,
             lambda: ledger.not_appended(box, token)),
            (f"UID COPY {numbers(uids)} Done", None, lambda: ledger.copying(box, uids, target),
             lambda lines: ledger.copied(box, pairs(lines), target), lambda: ledger.not_copied(box, uids, target)),
            # Refused, these may have been done in part.
            (f"UID STORE {numbers(uids)} +FLAGS (\\Flagged)", None, lambda: ledger.storing(box, flags), lambda _: None,
             lambda: None),
            ("CREATE Other", None, lambda: None, lambda _: None, lambda: None),
            ("DELETE Other", None, lambda: None, lambda _: None, lambda: None),
        ]  # fmt: skip
        for command, literal, begin, done, refused in steps:
            if "UID" in command and not uids:
                continue
            begin()
            try:
                done(client.run(command, literal))
                self._result.counts["done all the same"] += 1
            except Refused as failure:
                refused()
                self._result.counts["refused by NO"] += 1
                if " NO " not in str(failure):
                    wrong.append(f"{command}: {failure}")
            except OSError as failure:
                wrong.append(f"{command}: the connection ended: {failure}")
                return wrong
        client.close()
        return wrong


def _full(context: Context, result: Result) -> None:
    """A file system of some MiB, filled to the last octet beside the server, and emptied again."""
    place = context.place("full")
    disk = place / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={TMPFS_BYTES}", "tmpfs", str(disk)], check=True)
    with FakeSink() as sink:
        server = Server(
            place / "server", **{"server.data_dir": f"{disk}/data", "smtp.message_bytes": 65536, **settings(sink)}
        )
        ledger = Ledger(context.seed, "f")
        try:
            server.start()
            prepare(server, ledger)
            tries = _Tries(server, ledger, Elsewhere(sink), result)
            tries.well("before")
            for left in (0, 20_000, 0)[: context.of(1, 3, 3)]:
                _fill(disk / "filler", left)
                tries.refused(f"full but for {left}")
                (disk / "filler").unlink()
                tries.well("after the disk was full")
            result.wrong += tries.elsewhere.drained(ledger, server) + server.bugs()
        finally:
            server.close()
            subprocess.run(["umount", "-l", str(disk)], check=True)


def _fill(path: Path, left: int) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass
    if left:
        os.truncate(path, max(0, path.stat().st_size - left))
