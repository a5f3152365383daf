"""The init script, on a whole system of its own: real ports, the real user, LSB exit codes.

Linux Standard Base 3.1, "Init Script Actions".
"""

import re
import time

import pytest

from .private import PrivateRoot

pytestmark = pytest.mark.timeout(600)
SCRIPT = "/etc/init.d/mailsrv"
PID_FILE = "/run/mailsrv/mailsrv.pid"


@pytest.fixture(scope="module")
def machine(installed: PrivateRoot) -> PrivateRoot:
    """With a domain, on all the usual ports."""
    installed.run("mailsrv", "domain", "add", "example.org")
    return installed


@pytest.fixture
def stopped(machine: PrivateRoot):
    yield machine
    machine.run(SCRIPT, "stop")
    assert machine.run("pgrep", "-u", "mailsrv", code=1).stdout == ""


def pid_of(machine: PrivateRoot) -> int:
    return int(machine.run("cat", PID_FILE).stdout)


def greeting(machine: PrivateRoot) -> str:
    script = "import socket; s = socket.create_connection(('127.0.0.1', 25), 20); print(s.recv(99).decode())"
    return machine.run("/usr/bin/python3", "-c", script).stdout


def logged(machine: PrivateRoot, text: str) -> str:
    """The line of the log that has it, waited for."""
    deadline = time.monotonic() + 120
    while True:
        lines = [
            line for line in machine.run("cat", "/var/log/mailsrv/mailsrv.log").stdout.splitlines() if text in line
        ]
        if lines:
            return lines[-1]
        assert time.monotonic() < deadline, f"{text} is not in the log"
        time.sleep(0.05)


def test_script_begins_with_what_lsb_asks_for(machine):
    text = machine.run("cat", SCRIPT).stdout
    block = re.search(r"### BEGIN INIT INFO\n(.*?)### END INIT INFO\n", text, re.DOTALL)
    assert block is not None
    names = re.findall(r"^# ([A-Z][\w-]+):", block[1], re.MULTILINE)
    assert {"Provides", "Required-Start", "Required-Stop", "Default-Start", "Default-Stop", "Short-Description",
            "Description"} <= set(names)  # fmt: skip
    assert re.search(r"S\d\dmailsrv", machine.shell("ls /etc/rc2.d"))
    assert re.search(r"K\d\dmailsrv", machine.shell("ls /etc/rc0.d"))


def test_start_status_reload_restart_stop(stopped):
    assert stopped.run(SCRIPT, "status", code=3).stderr.strip() == "mailsrv: does not run"
    stopped.run(SCRIPT, "start")
    assert greeting(stopped).startswith("220 "), "it listens when start returns"
    pid = pid_of(stopped)
    assert stopped.run(SCRIPT, "status").stdout.strip() == f"mailsrv is running, pid {pid}"
    stopped.run("mailsrv", "status")
    stopped.run(SCRIPT, "reload")
    stopped.run(SCRIPT, "force-reload")
    assert pid_of(stopped) == pid, "a reload keeps the process"
    stopped.run(SCRIPT, "restart")
    assert pid_of(stopped) != pid
    assert greeting(stopped).startswith("220 ")
    stopped.run(SCRIPT, "stop")
    assert stopped.run(SCRIPT, "status", code=3).stderr.strip() == "mailsrv: does not run"
    stopped.run("mailsrv", "status", code=3)
    stopped.run(SCRIPT, "try-restart")
    stopped.run(SCRIPT, "status", code=3)


def test_what_keeps_it_from_starting_stands_on_a_line_of_its_own(stopped):
    script = "import socket, time; held = socket.create_server(('0.0.0.0', 25)); time.sleep(300)"
    stopped.shell(f'/usr/bin/python3 -c "{script}" >/dev/null 2>&1 & echo $! > /run/other')
    stopped.shell("until ss -ltn sport = 25 | grep -q :25; do sleep 0.05; done")
    failed = stopped.run(SCRIPT, "start", code=1)
    assert failed.stdout.endswith(" failed!\n")
    assert failed.stderr.startswith("mailsrv: smtp.listen: cannot listen on 0.0.0.0:25: Address already in use")
    stopped.shell("kill $(cat /run/other); while ss -ltn sport = 25 | grep -q :25; do sleep 0.05; done")


def test_start_twice_and_stop_twice_are_no_failures(stopped):
    stopped.run(SCRIPT, "start")
    pid = pid_of(stopped)
    assert "is running already" in stopped.run(SCRIPT, "start").stdout
    assert pid_of(stopped) == pid
    stopped.run(SCRIPT, "stop")
    assert "does not run" in stopped.run(SCRIPT, "stop").stdout


def test_a_pid_file_that_names_a_process_of_the_system_harms_nobody(stopped):
    """The server's user owns the file: whoever took over that user must not have root end what it likes."""
    stopped.shell("sleep 600 >/dev/null 2>&1 & echo $! > /run/victim")
    victim = int(stopped.run("cat", "/run/victim").stdout)
    stopped.shell(f"""
        echo {victim} > {PID_FILE}; chown mailsrv: {PID_FILE}
        setpriv --reuid mailsrv --clear-groups flock {PID_FILE} sleep 600 >/dev/null 2>&1 & echo $! > /run/holder
        until ! flock --nonblock --shared {PID_FILE} true; do sleep 0.05; done
    """)
    stopped.run(SCRIPT, "status")
    stopped.run(SCRIPT, "reload", code=1)
    stopped.shell("""
        mkdir -p /root/live/x && cp /etc/mailsrv/mailsrv.yaml /root/live/x/privkey.pem
        cp /etc/mailsrv/mailsrv.yaml /root/live/x/fullchain.pem
        RENEWED_LINEAGE=/root/live/x MAILSRV_TLS_DIR=/root/tls /etc/letsencrypt/renewal-hooks/deploy/mailsrv
    """)
    rotate = "logrotate -f -s /root/rotated /etc/logrotate.d/mailsrv"
    stopped.shell(f"touch /var/log/mailsrv/mailsrv.log; echo x >> /var/log/mailsrv/mailsrv.log; {rotate} || true")
    stopped.run("kill", str(victim))  # it lived through all of that
    stopped.shell(f"pkill -u mailsrv; rm -f {PID_FILE}; while pgrep -u mailsrv; do sleep 0.05; done")


def test_a_pid_file_that_goes_while_the_script_looks_is_not_made_again(stopped):
    """The server removes it when it ends, at any moment. One that belonged to root would stop the next server."""
    stopped.shell(f"""
        setpriv --reuid mailsrv --clear-groups sh -c 'echo 1 > {PID_FILE}'
        printf '#!/bin/sh\nrm -f {PID_FILE}\nexec /usr/bin/flock "$@"\n' > /usr/local/sbin/flock
        chmod 755 /usr/local/sbin/flock
    """)
    try:
        stopped.run(SCRIPT, "status", code=1)
        stopped.run("test", "!", "-e", PID_FILE)
        stopped.run(SCRIPT, "status", code=3)
    finally:
        stopped.run("rm", "/usr/local/sbin/flock")
    stopped.run(SCRIPT, "start")


def test_stale_pid_file(stopped):
    """Left behind by a server that was killed; the number is another process's by now, which must not be touched."""
    stopped.shell(f"sleep 600 >/dev/null 2>&1 & echo $! > {PID_FILE}; chown mailsrv: {PID_FILE}")
    other = pid_of(stopped)
    assert "is there" in stopped.run(SCRIPT, "status", code=1).stderr
    stopped.run(SCRIPT, "stop")
    stopped.run(SCRIPT, "reload", code=7)
    stopped.run(SCRIPT, "start")
    assert pid_of(stopped) != other
    stopped.run(SCRIPT, "status")
    stopped.run("kill", str(other))  # it lived through all of that


def test_what_must_run_and_does_not(machine):
    for action in ("reload", "force-reload", "upgrade"):
        machine.run(SCRIPT, action, code=7)


def test_misuse_and_missing_things(machine):
    assert "Usage" in machine.run(SCRIPT, "dance", code=2).stderr
    machine.run(SCRIPT, code=2)
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    for action in ("start", "stop", "reload", "restart"):
        machine.run(*nobody, SCRIPT, action, code=4)
    machine.run(*nobody, SCRIPT, "status", code=4)
    machine.shell("mv /etc/mailsrv/mailsrv.yaml /root/kept.yaml")
    assert "mailsrv setup" in machine.run(SCRIPT, "start", code=6).stderr
    machine.shell("mv /root/kept.yaml /etc/mailsrv/mailsrv.yaml; mv /usr/sbin/mailsrv /root/kept")
    machine.run(SCRIPT, "start", code=5)
    machine.shell("mv /root/kept /usr/sbin/mailsrv")


def test_wrong_settings_stop_no_server(stopped):
    stopped.run(SCRIPT, "start")
    pid = pid_of(stopped)
    stopped.shell("cp -a /etc/mailsrv/mailsrv.yaml /root/kept.yaml; echo 'smpt: {}' >> /etc/mailsrv/mailsrv.yaml")
    for action in ("reload", "restart", "try-restart"):
        assert "unknown section smpt; did you mean smtp?" in stopped.run(SCRIPT, action, code=6).stderr
    assert pid_of(stopped) == pid
    stopped.run(SCRIPT, "status")
    stopped.run(SCRIPT, "stop")
    failed = stopped.run(SCRIPT, "start", code=1)
    assert "unknown section smpt" in failed.stdout + failed.stderr
    stopped.shell("cp -a /root/kept.yaml /etc/mailsrv/mailsrv.yaml")


def test_s27_the_server_is_not_root_and_can_still_be_administered(stopped):
    stopped.run(SCRIPT, "start")
    pids = stopped.run("pgrep", "-f", "mailsrv serve").stdout.split()
    assert len(pids) >= 1
    uid = stopped.run("id", "-u", "mailsrv").stdout.strip()
    for pid in pids:
        status = stopped.run("cat", f"/proc/{pid}/status").stdout
        assert re.search(rf"^Uid:\t{uid}\t{uid}\t{uid}\t{uid}$", status, re.MULTILINE)
        assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
    stopped.run("mailsrv", "user", "add", "ann@example.org", "--password-stdin", text="correct horse\n")
    assert stopped.run("find", "/var/lib/mailsrv", "!", "-user", "mailsrv").stdout == "", "root left a file of its own"
    stopped.run("mailsrv", "user", "remove", "ann@example.org")


def test_rotated_log_is_opened_anew(stopped):
    stopped.run(SCRIPT, "start")
    logged(stopped, "listening")
    stopped.run("logrotate", "--force", "--state", "/root/state", "/etc/logrotate.d/mailsrv")
    greeting(stopped)
    stopped.run(SCRIPT, "stop")
    logged(stopped, "stopped")
    assert "listening" in stopped.run("cat", "/var/log/mailsrv/mailsrv.log.1").stdout


def test_cron_runs_the_work_of_a_night_where_systemd_does_not(stopped):
    stopped.run(SCRIPT, "start")
    [line] = [line for line in stopped.shell("cat /etc/cron.d/mailsrv").splitlines() if not line.startswith("#")]
    minute, hour, *days, user, command = line.split(" ", 6)
    assert (minute.isdigit(), hour, days, user) == (True, "3", ["*", "*", "*"], "root")
    said = stopped.shell(f"{{ {command}; }} 2>&1 || true")
    assert "accounts: no users" in said and "the postmaster was not told: There is no mailbox postmaster@" in said
    assert stopped.run("stat", "-c", "%U", "/var/lib/mailsrv/nightly.json").stdout == "mailsrv\n"
    assert stopped.run("find", "/var/lib/mailsrv", "!", "-user", "mailsrv").stdout == ""
    stopped.shell("mkdir -p /run/systemd/system; rm /var/lib/mailsrv/nightly.json")
    assert stopped.shell(command) == ""
    stopped.shell("rm -r /run/systemd; test ! -e /var/lib/mailsrv/nightly.json")


def upgrade(machine: PrivateRoot) -> None:
    """Start the installed program on the same sockets; ends when the new processes alone are left."""
    pid = pid_of(machine)
    machine.run(SCRIPT, "upgrade")
    deadline = time.monotonic() + 120
    while pid_of(machine) == pid:
        assert greeting(machine).startswith("220 ")
        assert time.monotonic() < deadline, machine.run("cat", "/var/log/mailsrv/mailsrv.log").stdout[-3000:]
    logged(machine, f"next-server-serves pid={pid_of(machine)}")
    while machine.shell(f"kill -0 {pid} 2>/dev/null && echo there || true"):
        assert time.monotonic() < deadline, "the old server stays"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_upgrade_refuses_no_connection_though_root_is_left_behind(stopped, workers):
    """SIGUSR2 with `server.user`: ports below 1024 and the pid file go from one unprivileged server to the next."""
    stopped.shell(f"sed -i 's/^  workers: .*/  workers: {workers}/' /etc/mailsrv/mailsrv.yaml")
    stopped.run(SCRIPT, "start")
    user = stopped.run("id", "-u", "mailsrv").stdout.strip()
    for _ in range(2):  # the one that took over can be replaced, too
        upgrade(stopped)
        assert greeting(stopped).startswith("220 ")
        status = stopped.run("cat", f"/proc/{pid_of(stopped)}/status").stdout
        assert re.search(rf"^Uid:\t{user}\t{user}\t{user}\t{user}$", status, re.MULTILINE)
        assert stopped.run("stat", "-c", "%u", PID_FILE).stdout.strip() == user
    stopped.run(SCRIPT, "status")


def test_uninstall_leaves_the_mail(machine):
    """Last in this file: the program is gone afterwards."""
    machine.run(SCRIPT, "start")
    done = machine.run("mailsrv", "uninstall")
    assert "/var/lib/mailsrv" in done.stderr
    assert machine.run("pgrep", "-u", "mailsrv", code=1).stdout == "", "it was stopped first"
    for path in ("/usr/sbin/mailsrv", "/opt/mailsrv", SCRIPT, "/etc/systemd/system/mailsrv.service", "/run/mailsrv"):
        machine.run("test", "!", "-e", path)
    assert "mailsrv" not in machine.shell("ls /etc/rc2.d")
    machine.run("test", "-s", "/var/lib/mailsrv/accounts.sqlite3")
    machine.run("test", "-s", "/etc/mailsrv/mailsrv.yaml")
    assert "mailsrv" in machine.run("getent", "passwd", "mailsrv").stdout
