"""What a start costs: time until it greets, memory, modules that only some commands need."""

import json
import os
import signal
import smtplib
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.conftest import free_ports
from tests.daemon.conftest import ROOT, SECONDS, until

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
    until(lambda: len(server.workers()) == 2, "the second worker")  # the first may answer before it is there
    assert memory_mib(server.process.pid) < MEMORY_MIB


def mapped(pid):
    """Names of all files in the memory of these processes."""
    return {
        line.split(None, 5)[-1] for one in family(pid) for line in Path(f"/proc/{one}/maps").read_text().splitlines()
    }


@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_that_signs_nothing_has_no_library_for_keys(daemon, imap, workers):
    [port] = free_ports(1)
    server = daemon(**{"server.workers": workers, "metrics.listen": [f"127.0.0.1:{port}"]})
    watcher = imap(server.connect("imaps"))
    watcher.idle()
    sender = smtplib.SMTP("127.0.0.1", server.ports["smtp"], timeout=SECONDS)
    sender.sendmail("bo@example.org", ["ann@example.com"], "Subject: one\n\ntext\n")
    watcher.until(b"* 1 EXISTS")
    sender.quit()
    # All that knows the certificates does without it.
    shown = json.loads(server.command("status", "--json").stdout)["certificates"]
    assert [one["error"] for one in shown] == [None] and shown[0]["days_left"] > 0
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=SECONDS) as answer:
        assert b"mailsrv_certificate_expiry_seconds{" in answer.read()
    server.process.send_signal(signal.SIGHUP)
    until(lambda: server.log.read_text().count("certificates-loaded") >= workers, "the certificates are read again")
    assert not [path for path in mapped(server.process.pid) if "cryptography" in path]


def test_a_server_that_signs_has_it_from_the_start(daemon):
    server = daemon(**{"server.workers": 1})
    assert server.command("dkim", "generate", "example.com").returncode == 0
    assert server.stop() == 0
    server.start()
    assert [path for path in mapped(server.process.pid) if "cryptography" in path]


def test_a_server_does_without_what_it_may_never_need():
    program = """
import sys
from mailsrv import cli
cli._run = lambda args: (0, "")
cli.main(["serve"])
import mailsrv.supervisor
print(*sys.modules)
"""
    loaded = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    modules = set(loaded.stdout.split())
    assert {name for name in modules if name.startswith("mailsrv.cli.")} == {"mailsrv.cli.common", "mailsrv.cli.server"}
    assert not modules & {"cryptography", "dns", "idna", "mailsrv.quickstart", "mailsrv.doctor", "mailsrv.installation"}


def test_commands_do_without_what_only_one_of_them_needs():
    program = "import sys, mailsrv.cli; mailsrv.cli.parser(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    heavy = {"mailsrv.daemon", "mailsrv.doctor", "mailsrv.runner", "mailsrv.story", "dns.resolver", "prometheus_client"}
    assert not heavy & set(loaded.stdout.split())
