"""Every system call of an operation: the process killed before it, or the call failing.

One operation of `operations.py` at a time, in a child under strace. First it runs whole, which gives the list of calls;
then once for each of them. Afterwards the files are compared with the ledger, another process opens the store, must
see the same, and goes on working.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from mailsrv.store.account import Arrival
from tests.faults import tracing
from tests.faults.broken import BUILDS
from tests.faults.checker import Maildirs, queued
from tests.faults.context import Context
from tests.faults.ledger import Ledger
from tests.faults.operations import INBOX, NONE, OPERATIONS, Operation, fresh, home, make, number, spool, store
from tests.faults.report import Result
from tests.faults.tracing import Call, Ended
from tests.store.conftest import incoming

_QUOTED = re.compile(r'"(/[^"]*)"')
_OF_FD = re.compile(r"\d+<(/[^>]*)>")
FULL = ("write", "pwrite64", "openat", "rename", "renameat2", "link", "linkat", "mkdir", "fsync", "fdatasync")


def kills(context: Context) -> Result:
    result = Result("kill before every system call")
    for try_ in _tries(context, result):
        calls = [call for call in try_.whole.calls if call.changes]
        for call in calls[try_.number % context.of(10, 1, 1) :: context.of(10, 1, 1)]:
            ended = try_.run(f"{call.name}:signal=KILL:when={call.number}")
            result.counts["kills"] += ended.killed
            result.counts["other ends"] += not ended.killed
            if context.broken and result.wrong:
                return result
    return result


def errors(context: Context) -> Result:
    """EIO everywhere; a full disk and a used-up quota where something is written; no descriptors where one is taken."""
    result = Result("every system call fails")
    for try_ in _tries(context, result, again=True):
        wanted = [
            (call, error)
            for call in try_.whole.calls
            if str(try_.place) in call.text
            for error in ("EIO", "ENOSPC", "EDQUOT", "EMFILE")
            if error == "EIO" or ((call.name == "openat") == (error == "EMFILE") and call.name in FULL)
            or (error in ("ENOSPC", "EDQUOT") and call.name == "openat" and call.changes)
        ]  # fmt: skip
        stride = context.of(25, 3, 1)
        for call, error in wanted[try_.number % stride :: stride]:
            ended = try_.run(f"{call.name}:error={error}:when={call.number}")
            result.counts[f"{error}"] += 1
            result.counts["refused"] += any(kind == "refused" for kind, _ in ended.answers)
    return result


def _tries(context: Context, result: Result, *, again: bool = False) -> Iterator[_Try]:
    if reason := tracing.available():
        result.left_out = reason
        return
    root = context.place("errors" if again else "calls")
    ledger = Ledger(context.seed, "c")
    make(root / "made", ledger)
    if context.broken:
        BUILDS[context.broken]()
    for position, operation in enumerate(OPERATIONS):
        if context.operation not in (None, operation.name):
            continue
        if again and operation.threads:
            continue  # the pool's own calls must not fail, and cannot be told from the store's
        yield _Try(root, ledger, operation, result, position, again)


class _Try:
    """One operation, again and again on a fresh copy of the same place."""

    def __init__(
        self, root: Path, ledger: Ledger, operation: Operation, result: Result, position: int, again: bool
    ) -> None:
        self._root, self._ledger, self._operation, self._result, self._again = root, ledger, operation, result, again
        self.number = position
        self.place = root / "place"
        self.whole = self.run(None)
        assert self.whole.calls, f"{operation.name} makes no calls"
        result.counts["operations"] += 1
        result.wrong += [f"{operation.name}: {one}" for one in _unsynced(self.whole.calls, self.place)]

    def run(self, inject: str | None) -> Ended:
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self._root / "made", self.place)
        ledger = fresh(self._ledger)
        token, text = ledger.message(900)
        ended = tracing.run(self.place, lambda place: self._operation.act(place, text), inject, again=self._again)
        wrong = [ended.trouble] if ended.trouble else []
        if inject is None and [kind for kind, _ in ended.answers] != ["done"]:
            wrong.append(f"without any fault: {ended.answers}")
        if self._again and ended.answers and ended.answers[-1][0] == "refused":
            wrong.append(f"refused again, though nothing was wrong any more: {ended.answers}")
        try:
            wrong += self._check(ledger, token, ended)
        except Exception as failure:
            wrong.append(f"{type(failure).__name__}: {failure}")
        if wrong:
            kept = self._root / f"violated-{len(self._result.wrong)}"
            shutil.copytree(self.place, kept)
            self._result.wrong += [f"{self._operation.name}, {inject}: {one}" for one in wrong]
        return ended

    def _check(self, ledger: Ledger, token: str, ended: Ended) -> list[str]:
        operation = self._operation
        for kind, answer in ended.answers:
            operation.begin(ledger, token)
            if kind == "done":
                pairs = {int(key): value for key, value in answer.items()} if isinstance(answer, dict) else answer
                operation.done(ledger, token, pairs)
            else:
                operation.refused(ledger, token)
        done = any(kind == "done" for kind, _ in ended.answers)
        if not done:
            operation.begin(ledger, token)
        maildirs = Maildirs({"ann": home(self.place)})
        boxes = maildirs.boxes()
        wrong = _follow_rename(ledger, operation, {name for _, name in boxes}, done)
        wrong += ledger.close(boxes) + maildirs.wrong + self._queue(ledger)
        if self._again:
            left = [*maildirs.temporary(), *(self.place / "queue" / "tmp").iterdir(), *self.place.rglob("*.tmp")]
            wrong += [f"left behind: {path.relative_to(self.place)}" for path in left]
        return wrong + self._goes_on(ledger, maildirs)

    def _queue(self, ledger: Ledger) -> list[str]:
        waiting, wrong = queued(self.place / "queue")
        for (token, address), acknowledged in ledger.outward.items():
            text = waiting.pop((token, address), None)
            if acknowledged and text is None:
                wrong.append(f"{token} to {address} was acknowledged and is not in the queue")
            if text is not None and text != ledger.digests[token]:
                wrong.append(f"{token} to {address} is torn")
        return wrong + [f"{token} to {address} was refused and is in the queue" for token, address in waiting]

    def _goes_on(self, ledger: Ledger, maildirs: Maildirs) -> list[str]:
        """Another process sees what the files say, and gives UIDs that nothing ever had."""
        wrong: list[str] = []
        one = store(self.place)
        try:
            for (_, name), (_, found) in maildirs.boxes().items():
                snapshot = one.snapshot(number(one, name))
                if list(snapshot.uids) != sorted(found):
                    wrong.append(f"the index of {name} has {list(snapshot.uids)}, the files are {sorted(found)}")
                texts = dict(one.read_many(number(one, name), list(snapshot.uids), 10**9))
                if set(texts) != set(snapshot.uids):
                    wrong.append(f"{name}: {set(snapshot.uids) - set(texts)} cannot be read")
            token, text = ledger.message(900)
            ledger.appending(INBOX, token, NONE)
            uid = one.append(number(one, "INBOX"), Arrival(incoming(one, text))).uid
            if uid <= max(ledger.boxes[INBOX].history):
                wrong.append(f"UID {uid} was given after {max(ledger.boxes[INBOX].history)}")
            ledger.appended(INBOX, token, uid, NONE)
        finally:
            one.close()
        for id in (queue := spool(self.place)).ids():
            queue.check(queue.load(id), thoroughly=True)
        return wrong + ledger.close(maildirs.boxes()) + maildirs.wrong


def _unsynced(calls: list[Call], place: Path) -> list[str]:
    """What an operation had not synced when it was answered: a file before its name, a directory after a change of it;
    and before it gave a file away to be used again.

    What is in tmp/ or spare/ is nobody's yet, and the index is made again from the files.
    """
    synced: set[str] = set()
    changed: dict[str, str] = {}  # directory -> what was changed in it last
    wrong: list[str] = []
    for call in calls:
        paths = [path for path in _QUOTED.findall(call.text) if path.startswith(f"{place}/") and not _passing(path)]
        if " = -1 " in call.text:
            continue
        if call.name in ("fsync", "fdatasync") and (path := _OF_FD.match(call.text)):
            synced.add(path[1])
            changed.pop(path[1], None)
        elif call.name.startswith(("rename", "link", "unlink")):
            source, *_ = all_paths = _QUOTED.findall(call.text)
            whole = "/tmp/" in source.removeprefix(str(place)) or source.endswith(".tmp")
            if len(all_paths) > 1 and paths and whole and source not in synced:
                wrong.append(f"{call.name} gives {paths[-1]} its name before it is synced")
            if len(all_paths) > 1 and "/spare/" in all_paths[-1] and changed:
                wrong.append(f"{all_paths[-1]} is given away before {' and '.join(changed)} is synced")
            if call.name.startswith("link"):
                paths = paths[-1:]  # the other name stays
            changed.update((os.path.dirname(path), path) for path in paths)
    return wrong + [f"{directory} is not synced after {path}" for directory, path in changed.items()]


def _passing(path: str) -> bool:
    below = path.partition("/place/")[2]
    return (
        "/tmp/" in below or "/spare/" in below or path.endswith(".tmp") or os.path.basename(path).startswith("index.")
    )


def _follow_rename(ledger: Ledger, operation: Operation, names: set[str], done: bool) -> list[str]:
    if operation.boxes is None:
        return []
    old, new = operation.boxes
    if new in names:
        ledger.boxes["ann", new] = ledger.boxes.pop(("ann", old))
    if Counter(name in names for name in (old, new)) != {True: 1, False: 1}:
        return [f"of {old} and {new} there are {names & {old, new}}"]
    return [f"{old} was renamed, and still is {old}"] if done and new not in names else []
