"""What every process of the server uses, looked at from outside: memory, descriptors, threads; and greenlets, asked."""

import os
import time
from collections import defaultdict
from pathlib import Path

from mailsrv.control import ask_all
from mailsrv.metrics import sums
from mailsrv.vitals import memory_of

FIGURES = ("memory", "descriptors", "threads", "greenlets")


class Sampler:
    """`series[(process, pid)][figure]`: (seconds since the beginning, value)."""

    def __init__(self, server):
        self._server = server
        self._begun = time.monotonic()
        self._names = {}
        self.series = defaultdict(lambda: {figure: [] for figure in FIGURES})
        self.delays = None

    def pids(self):
        """pid -> name, of all that run."""
        supervisor = self._server.process.pid
        self._names[supervisor] = "supervisor"
        children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
        for reply in ask_all(self._run_dir(), "ping"):
            self._names.setdefault(reply.pid, reply.process)
        return {pid: self._names[pid] for pid in [supervisor, *map(int, children)] if pid in self._names}

    def _run_dir(self):
        return self._server.settings["server.run_dir"]

    def look(self):
        now = time.monotonic() - self._begun
        for pid, name in self.pids().items():
            try:
                descriptors = len(os.listdir(f"/proc/{pid}/fd"))
                threads = len(os.listdir(f"/proc/{pid}/task"))
            except FileNotFoundError:
                continue
            memory = memory_of(pid)
            if memory:
                for figure, value in (("memory", memory), ("descriptors", descriptors), ("threads", threads)):
                    self.series[name, pid][figure].append((now, value))

    def ask(self):
        """The figures that cost the processes something."""
        now = time.monotonic() - self._begun
        for reply in ask_all(self._run_dir(), "greenlets"):
            if not reply.error:
                self.series[self._names.get(reply.pid, reply.process), reply.pid]["greenlets"].append(
                    (now, reply.answer)
                )
        # Counters of a killed process are gone with it: what is told is of those that run.
        answers = [reply.answer for reply in ask_all(self._run_dir(), "metrics") if not reply.error]
        [self.delays] = sums(answers)["mailsrv_hub_delay_seconds"].values() or [None]
