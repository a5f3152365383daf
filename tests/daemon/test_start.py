"""What a start costs: time until it greets, memory, modules that only some commands need."""

import os
import subprocess
import sys
from pathlib import Path

from tests.daemon.conftest import ROOT

START_SECONDS = 1.5
MEMORY_MIB = 90


def family(pid):
    """The process and its children."""
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


def processor_seconds(pid):
    """Spent by these processes; other programs of the machine do not change it."""
    ticks = 0
    for one in family(pid):
        ticks += sum(map(int, Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_mib(pid):
    """PSS of these processes."""
    sizes = (Path(f"/proc/{one}/smaps_rollup").read_text().partition("\nPss:")[2].split()[0] for one in family(pid))
    return sum(map(int, sizes)) / 1024


def test_a_server_of_two_workers_starts_soon_and_is_small(daemon):
    server = daemon(**{"server.workers": 2})
    assert server.stop() == 0  # compiled now, whatever was before
    server.start()
    assert processor_seconds(server.process.pid) < START_SECONDS
    assert len(server.workers()) == 2
    assert memory_mib(server.process.pid) < MEMORY_MIB


def test_commands_do_without_what_only_one_of_them_needs():
    program = "import sys, mailsrv.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    heavy = {"mailsrv.daemon", "mailsrv.doctor", "mailsrv.runner", "mailsrv.story", "dns.resolver", "prometheus_client"}
    assert not heavy & set(loaded.stdout.split())
