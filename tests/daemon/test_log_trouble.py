"""A log that cannot be written holds up nobody: it is told elsewhere, and goes on when it can."""

import os
import socket
import sys
from pathlib import Path

import pytest

from mailsrv.control import ask_all
from tests.daemon.conftest import SECONDS, Daemon, until
from tests.daemon.test_processes import deliver
from tests.daemon.test_processes_root import as_root

OWN_DISK = 'mount -t tmpfs -o size=256k log "$0" && exec "$@"'
OTHER_SYSLOG = """
from gevent import monkey; monkey.patch_all()
import sys
from mailsrv import cli, log
log.SYSLOG_PATH = sys.argv.pop(1)
sys.exit(cli.main())
"""


@pytest.fixture
def made(tmp_path, certificate, authority_path, password_hash):
    """A server that is not started yet."""
    servers = []

    def make(**changes):
        servers.append(Daemon(tmp_path, certificate, authority_path, password_hash, **changes))
        return servers[-1]

    yield make
    for one in servers:
        one.close()


def log_problems(server):
    replies = ask_all(server.settings["server.run_dir"], "status", seconds=SECONDS)
    return {reply.answer["log_problem"] for reply in replies} - {""}


def serves(server, idler):
    """A message is taken and pushed."""
    deliver(server)
    while not idler.line().endswith(b" EXISTS\r\n"):
        pass


@as_root
def test_a_full_log_disk_is_told_and_logging_goes_on_when_there_is_room(made, imap, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    server = made(**{"log.file": f"{disk}/log", "server.workers": 2})
    with open(tmp_path / "stderr", "wb") as stderr:
        server.start(
            "unshare", "--mount", "sh", "-c", OWN_DISK, str(disk), sys.executable, "-m", "mailsrv", stderr=stderr
        )
    seen = Path(f"/proc/{server.process.pid}/root{disk}")
    idler = imap(server.connect("imap"))
    idler.idle()
    serves(server, idler)
    until(lambda: "delivered" in (seen / "log").read_text(), "the log says so")
    with pytest.raises(OSError, match="No space left"), open(seen / "fill", "wb", buffering=0) as fill:
        while True:
            fill.write(b"x" * 1024)
    until(lambda: serves(server, idler) or log_problems(server), "the log cannot be written")
    assert log_problems(server) == {f"{disk}/log: No space left on device"}
    assert any(
        line.startswith("ALARM  The log cannot be written") for line in server.command("status").stdout.split("\n")
    )
    told = (tmp_path / "stderr").read_text()
    assert f'error log-not-written log={disk}/log error="No space left on device"' in told
    serves(server, idler)
    os.unlink(seen / "fill")
    until(lambda: serves(server, idler) or not log_problems(server), "the log is written again")
    until(lambda: "warning log-written-again" in (tmp_path / "stderr").read_text(), "told")
    before = (seen / "log").read_text().count(" delivered ")
    serves(server, idler)
    until(lambda: (seen / "log").read_text().count(" delivered ") > before, "logged again")
    assert server.stop() == 0


def test_a_syslog_that_nobody_reads_holds_up_nobody(made, imap, tmp_path):
    path = str(tmp_path / "syslog")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as system, open(tmp_path / "stderr", "wb") as stderr:
        system.bind(path)
        system.settimeout(60)
        server = made(**{"log.file": "syslog", "log.level": "debug"})
        server.start(sys.executable, "-c", OTHER_SYSLOG, path, stderr=stderr)
        idler = imap(server.connect("imap"))
        idler.idle()
        until(lambda: serves(server, idler) or log_problems(server), "the socket is full")
        serves(server, idler)
        assert log_problems(server) == {f"{path}: nobody reads"}
        assert "error log-not-written" in (tmp_path / "stderr").read_text()
        while log_problems(server):  # until somebody reads again
            system.recv(4096)
        until(lambda: "warning log-written-again" in (tmp_path / "stderr").read_text(), "told")
        serves(server, idler)
        while b" delivered " not in system.recv(4096):
            pass
        assert server.stop() == 0
