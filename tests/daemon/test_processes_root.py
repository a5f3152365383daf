"""Started as root, the server is root no more when it serves (S27). As root alone can this be tested."""

import os
import pwd
import re
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from mailsrv import privileges
from mailsrv.start import StartError
from tests.conftest import configuration
from tests.daemon.conftest import SECONDS, Daemon, until
from tests.daemon.test_processes import deliver

NOBODY = pwd.getpwnam("nobody")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


@pytest.fixture
def reachable(certificate, authority_path, password_hash):
    """A server below a directory that everybody may pass through, unlike pytest's own; made but not started."""
    made = []
    with tempfile.TemporaryDirectory(prefix="mailsrv-root-") as name:
        directory = Path(name)
        directory.chmod(0o755)

        def make(**changes):
            log = directory / "log" / "mailsrv.log"
            one = Daemon(directory, certificate, authority_path, password_hash, **{"log.file": str(log), **changes})
            one.log = log
            made.append(one)
            for path in (directory / "data").rglob("*"):  # what root's command line made
                os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
            os.chown(directory / "data", NOBODY.pw_uid, NOBODY.pw_gid)
            return one

        yield make
        for one in made:
            one.close()


def processes(pid):
    """The process and its children, as /proc has them."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for one in (str(pid), *children):
        yield dict(line.split(":\t", 1) for line in Path(f"/proc/{one}/status").read_text().splitlines())


@as_root
@pytest.mark.parametrize("workers", [1, 2])
def test_s27_started_as_root_every_process_is_the_user_for_good(reachable, workers):
    server = reachable(**{"server.user": "nobody", "server.workers": workers})
    server.start()
    deliver(server)
    found = list(processes(server.process.pid))
    assert len(found) >= workers
    for status in found:
        assert status["Uid"].split() == [str(NOBODY.pw_uid)] * 4
        assert status["Gid"].split() == [str(NOBODY.pw_gid)] * 4
        groups = set(map(int, status["Groups"].split()))
        assert groups == set(os.getgrouplist("nobody", NOBODY.pw_gid))
        for kind in ("CapPrm", "CapEff", "CapInh", "CapAmb"):
            assert int(status[kind], 16) == 0
        assert status["NoNewPrivs"] == "1"
        assert status["Umask"] == "0077"
    limits = Path(f"/proc/{server.process.pid}/limits").read_text()
    soft, hard = re.search(r"Max open files +(\d+) +(\d+)", limits).groups()
    assert soft == hard
    [path] = server.files("ann")
    for one in (path, path.parent, Path(server.settings["server.run_dir"]) / "mailsrv.pid", server.log):
        status = one.stat()
        assert (status.st_uid, stat.S_IMODE(status.st_mode) & 0o077) == (NOBODY.pw_uid, 0), one
    assert server.stop() == 0


@as_root
def test_s27_privileges_that_could_be_regained_are_noticed(tmp_path):
    """In a child: root leaves, then cannot return by any of the calls."""
    program = f"""
import os, sys
from gevent import monkey; monkey.patch_all()
from mailsrv import privileges
me = privileges.Identity("nobody", {NOBODY.pw_uid}, {NOBODY.pw_gid}, ({NOBODY.pw_gid},), "/nonexistent")
if sys.argv[1] == "half":
    os.setresuid = lambda r, e, s: os.seteuid(e)  # the saved id stays root's
try:
    privileges.drop(me)
except privileges.StartError as failure:
    sys.exit(str(failure))
assert os.environ["USER"] == "nobody"
for regain in (lambda: os.seteuid(0), lambda: os.setegid(0), lambda: os.setgroups([0])):
    try:
        regain()
    except PermissionError:
        continue
    sys.exit("regained")
"""

    def run(how):
        return subprocess.run(
            [sys.executable, "-c", program, how], capture_output=True, text=True, timeout=SECONDS, check=False
        )

    assert run("whole").returncode == 0
    assert "the kernel did not make this process nobody entirely" in run("half").stderr


@as_root
def test_s26_nothing_is_opened_as_root_where_the_user_may_write(reachable, tmp_path):
    """A user who owns the run directory cannot have root write elsewhere through a link there."""
    server = reachable(**{"server.user": "nobody"})
    victim = tmp_path / "victim"
    victim.write_text("precious")
    run = Path(server.settings["server.run_dir"])
    run.mkdir()
    os.chown(run, NOBODY.pw_uid, NOBODY.pw_gid)
    (run / "mailsrv.pid").symlink_to(victim)
    refused = server.command("serve", "--foreground")
    assert refused.returncode == 1
    assert "server.run_dir: cannot write" in refused.stderr
    assert victim.read_text() == "precious"
    # And data that belongs to somebody else is named before anything is served.
    (run / "mailsrv.pid").unlink()
    data = Path(server.settings["server.data_dir"])
    os.chown(data, 0, 0)
    data.chmod(0o755)
    refused = server.command("serve", "--foreground")
    assert refused.returncode == 1
    assert f"server.data_dir: {data} belongs to root, and nobody cannot write there; chown -R" in refused.stderr


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"server.user": "nobody-at-all"}, "server.user: there is no user nobody-at-all; make one: adduser"),
        ({"server.user": "nobody", "server.group": "no-such-group"}, "server.group: there is no group no-such-group"),
        ({"server.group": "nogroup"}, "server.group: is set without server.user"),
    ],
)
def test_users_that_cannot_be_become_are_named(tmp_path, certificate, changes, says):
    settings = configuration(tmp_path, certificate, changes)
    with pytest.raises(StartError) as failure:
        privileges.wanted(settings)
    assert says in str(failure.value)


@as_root
def test_root_without_a_user_is_warned(daemon):
    server = daemon()
    until(lambda: "warning running-as-root advice=" in server.log.read_text(), "the log says so")
    assert server.stop(signal.SIGINT) == 0
