"""What every process of the server uses, looked at from outside: memory, descriptors, threads; and greenlets, asked.

Memory is what a process has of its own: its anonymous pages, whether a process it was forked from or has forked shares
them or not, and what is swapped out of them. Nobody else can move that figure. PSS, which the server tells of itself,
says what the server costs, but divides each page among all that map it: it rises when another program with the same
libraries ends, or a sibling with the same pages. Private pages alone rise as well when the last one to share them ends,
and while a worker writes to what it had in common with the supervisor; an anonymous page that is written to makes room
for its copy. Not seen are mapped files and shared memory: libraries, an index's -shm, the tables of a fixed size
that the processes share. proc_pid_smaps(5).
"""

import os
import time
from collections import defaultdict
from pathlib import Path

from mailsrv.control import ask_all
from mailsrv.metrics import sums

FIGURES = ("memory", "descriptors", "threads", "greenlets")


def own_memory(pid):
    """Octets in anonymous pages of a process; 0 where that is not told, or the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("Anonymous:", "Swap:")))


def age_of(pid):
    """Seconds since a process started. proc_pid_stat(5), starttime."""
    begun = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - begun / os.sysconf("SC_CLK_TCK")


class Sampler:
    """`series[(process, pid)][figure]`: (seconds since the beginning, value). `started`: when, in the same seconds."""

    def __init__(self, server):
        self._server = server
        self._begun = time.monotonic()
        self._names = {}
        self.series = defaultdict(lambda: {figure: [] for figure in FIGURES})
        self.started = {}
        self.restarts = {}  # process -> how often it had to be started again
        self.delays = None

    def pids(self):
        """pid -> name, of all that run."""
        supervisor = self._server.process.pid
        self._names[supervisor] = "supervisor"
        children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
        for reply in ask_all(self._run_dir(), "ping"):
            self._names.setdefault(reply.pid, reply.process)
        return {pid: self._names[pid] for pid in [supervisor, *map(int, children)] if pid in self._names}

    def seconds(self):
        return time.monotonic() - self._begun

    def _run_dir(self):
        return self._server.settings["server.run_dir"]

    def look(self):
        now = self.seconds()
        for pid, name in self.pids().items():
            try:
                descriptors = len(os.listdir(f"/proc/{pid}/fd"))
                threads = len(os.listdir(f"/proc/{pid}/task"))
                self.started.setdefault((name, pid), now - age_of(pid))
            except (FileNotFoundError, ProcessLookupError):
                continue
            memory = own_memory(pid)
            if memory:
                for figure, value in (("memory", memory), ("descriptors", descriptors), ("threads", threads)):
                    self.series[name, pid][figure].append((now, value))

    def ask(self):
        """The figures that cost the processes something."""
        now = self.seconds()
        for reply in ask_all(self._run_dir(), "greenlets"):
            if not reply.error:
                self.series[self._names.get(reply.pid, reply.process), reply.pid]["greenlets"].append(
                    (now, reply.answer)
                )
        # Counters of a killed process are gone with it: what is told is of those that run.
        replies = [reply for reply in ask_all(self._run_dir(), "metrics") if not reply.error]
        for reply in replies:
            self.restarts[reply.process] = reply.answer["process"]["mailsrv_process_restarts_total"]
        answers = [reply.answer for reply in replies]
        [self.delays] = sums(answers)["mailsrv_hub_delay_seconds"].values() or [None]
