"""What is synced for each accepted message: strace on all server processes.

The figures are information only. A server that accepts mail without any sync fails: its 250 would be cheap.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import tempfile

from .imap import Imap
from .loop import Loop
from .proc import tree
from .smtp import Job, SmtpPool
from .work import U_PUSH, Work, spin

SYNCS = ("fsync", "fdatasync", "sync", "syncfs", "sync_file_range", "msync", "io_uring_enter")


def durability(work: Work) -> None:
    strace = shutil.which("strace")
    if not strace:
        work.say("no strace: left out")
        return
    target, n = work.target, 30
    loop = Loop()
    Imap(target.imap).login(*target.login(U_PUSH + 2)).close()
    pool = SmtpPool(target, loop, 1)
    for _ in range(3):
        pool.submit(Job(target.address(U_PUSH + 2), work.mail()))
    pool.wait(20)
    spin(loop, 1)
    with tempfile.NamedTemporaryFile("r", prefix="mailsrv-bench-strace") as out:
        pids = [word for pid in tree(target.roots()) for word in ("-p", str(pid))]
        command = [strace, "-f", "-qq", "-e", "trace=" + ",".join(SYNCS), "-o", out.name, *pids]
        tracer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            spin(loop, 1.5)
            for _ in range(n):
                pool.submit(Job(target.address(U_PUSH + 2), work.mail()))
                pool.wait(20)
            spin(loop, 1.5)
        finally:
            tracer.send_signal(signal.SIGINT)
            try:
                tracer.wait(5)
            except subprocess.TimeoutExpired:
                tracer.kill()
                tracer.wait()
        text = out.read()
    work.check(not pool.failed, f"{pool.failed} refused: {pool.first_error}")
    pool.close()
    total = 0
    for call in SYNCS:
        calls = len(re.findall(rf"(?m)^\d+ +{call}\(", text))
        if calls:
            work.put(f"durability.{call}_per_msg", calls / n)
            total += calls
    work.put("durability.syncs_per_msg", total / n)
    work.check(total > 0, "mail accepted without any sync")
