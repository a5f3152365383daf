"""Power cuts: the disk as it is at one instant under load, mounted elsewhere, served by another server.

The data directory is an ext4 file system in an image file. What ext4 and the loop device have not written when the
image is copied is lost in the copy, as it would be on a disk without power. The server stands still while it is
copied, and a copy during which the kernel wrote to the device is thrown away, so each copy is one moment. Everything
acknowledged up to then must be in it, by hash. The second server is told of another start of the system (`boot_id`).
"""

from __future__ import annotations

import copy
import os
import random
import shutil
import signal
import subprocess
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gevent

from tests.fakes.sink import FakeSink
from tests.faults.checker import over_imap
from tests.faults.context import Context
from tests.faults.ledger import Ledger
from tests.faults.load import Elsewhere, Load, deliver, prepare, settings
from tests.faults.report import Result
from tests.faults.server import PASSWORD, USERS, Server

OWN_NAMESPACE = "MAILSRV_FAULTS_NAMESPACE"  # set where what is mounted goes with the run (__main__)
IMAGE_BYTES = 192 * 1024 * 1024
OTHER_BOOT = 'mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"'


def run(context: Context) -> Result:
    result = Result("power cut")
    if reason := unavailable():
        result.left_out = reason
        return result
    place = context.place("power")
    image = place / "image"
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    with mounted(image, place / "disk") as disk:
        _cuts(context, result, place, image, disk)
    return result


def unavailable() -> str:
    if os.geteuid() != 0:
        return "only root may mount"
    for program in ("mkfs.ext4", "unshare", "mount"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    return "" if os.environ.get(OWN_NAMESPACE) else "no mount namespace can be made here"


@contextmanager
def mounted(image: Path, at: Path) -> Iterator[Path]:
    at.mkdir()
    subprocess.run(["mount", "-o", "loop", str(image), str(at)], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)


def _cuts(context: Context, result: Result, place: Path, image: Path, disk: Path) -> None:
    moment, ledger = random.Random(f"{context.seed} cuts"), Ledger(context.seed, "p")
    with FakeSink() as sink:
        server = Server(
            place / "first", broken=context.broken, **{"server.data_dir": f"{disk}/data", **settings(sink)}
        )  # fmt: skip
        elsewhere, load, maildirs = Elsewhere(sink), Load(server, ledger, context.seed), server.maildirs()
        try:
            server.start()
            prepare(server, ledger)
            for cut in range(context.of(1, 8, 60)):
                load.start()
                gevent.sleep(moment.uniform(0.2, 1.5))
                seen, came = _cut(server, ledger, elsewhere, image, place / "cut", disk, result)
                load.stop()
                wrong = ledger.close(maildirs.boxes()) + maildirs.wrong + load.refused
                with mounted(place / "cut", place / f"after-{cut}") as after:
                    wrong += _after(context, place / f"second-{cut}", after, seen, came, result)
                result.counts["cuts"] += 1
                result.wrong += [f"cut {cut}: {one}" for one in wrong]
                if wrong:
                    return
                shutil.rmtree(place / f"second-{cut}")
        finally:
            server.close()
            result.counts.update(load.counts)


def _cut(
    server: Server, ledger: Ledger, elsewhere: Elsewhere, image: Path, to: Path, disk: Path, result: Result
) -> tuple[Ledger, Counter[tuple[str, str]]]:
    """The image as it is now, and what was acknowledged until now."""
    device = os.stat(disk).st_dev
    writes = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat")
    while True:
        server.signal(signal.SIGSTOP)
        try:
            gevent.sleep(0.05)  # what was answered before is read by whoever asked
            elsewhere.look(ledger)
            seen, came = copy.deepcopy(ledger), Counter(elsewhere.came)
            before = writes.read_text()
            subprocess.run(["cp", "--sparse=always", str(image), str(to)], check=True)
            if before == writes.read_text():
                return seen, came
            result.counts["copies that were no moment"] += 1
        finally:
            server.signal(signal.SIGCONT)
        gevent.sleep(0.2)


def _after(
    context: Context, place: Path, disk: Path, ledger: Ledger, came: Counter[tuple[str, str]], result: Result
) -> list[str]:
    boot = place.parent / "boot_id"
    boot.write_text(f"{uuid.uuid4()}\n")
    with FakeSink() as sink:
        before = ["unshare", "-m", "sh", "-c", OTHER_BOOT, str(boot)]
        server = Server(place, before=before, **{"server.data_dir": f"{disk}/data", **settings(sink)})
        elsewhere, maildirs = Elsewhere(sink), server.maildirs()
        elsewhere.came = came
        try:
            wrong = ledger.close(maildirs.boxes()) + maildirs.wrong + elsewhere.close(ledger, server)
            server.start()
            boxes = maildirs.boxes()
            wrong += ledger.close(boxes) + maildirs.wrong
            wrong += over_imap(server.ports["imap"], PASSWORD, ledger, boxes, USERS)
            deliver(server, ledger, USERS)
            wrong += ledger.close(maildirs.boxes()) + maildirs.wrong
            wrong += elsewhere.drained(ledger, server) + server.bugs()
            if server.back_seconds[-1] > context.back_seconds:
                wrong.append(f"the server was back after {server.back_seconds[-1]:.1f} s")
            result.counts["messages looked at"] += ledger.counts["looked at"]
            return wrong
        finally:
            server.close()
