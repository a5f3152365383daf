"""How long from the command to the first greeting, and how much memory the server has when nobody is there.

    .venv/bin/python bench/start.py [--runs 10] [--workers 2]

Starts `mailsrv serve --foreground` on loopback, by the interpreter this runs in, until both SMTP and IMAP have greeted
a connection; then stops it. Where Dovecot is installed it takes turns, with LMTP and IMAP. Told are the median and the
worst of the runs, and the processor time from start to greeting of all processes, which a busy machine changes little.
The memory is the PSS of all processes, `--settle` seconds after the last start.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DEADLINE_SECONDS = 30.0
TICKS = os.sysconf("SC_CLK_TCK")
DOVECOT = """protocols = imap lmtp
base_dir = {0}/run
state_dir = {0}/state
instance_name = start-bench
log_path = {0}/log
ssl = no
listen = 127.0.0.1
default_internal_user = {1}
default_login_user = {1}
default_internal_group = {2}
mail_location = maildir:{0}/mail/%u
passdb {{
  driver = static
  args = nopassword=y
}}
userdb {{
  driver = static
  args = uid={1} gid={2} home={0}/mail
}}
service imap-login {{
  chroot =
  inet_listener imap {{
    port = {3}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
service anvil {{
  chroot =
}}
service lmtp {{
  inet_listener lmtp {{
    port = {4}
  }}
}}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def family(pid: int) -> list[int]:
    """The process and all that came of it."""
    found = [pid]
    for one in found:
        try:
            for task in os.listdir(f"/proc/{one}/task"):
                with open(f"/proc/{one}/task/{task}/children") as file:
                    found += map(int, file.read().split())
        except OSError:
            pass
    return found


def cpu_seconds(pid: int) -> float:
    """Of the process, its descendants, and those of them that have ended and were waited for."""
    ticks = 0
    for one in family(pid):
        try:
            with open(f"/proc/{one}/stat") as file:
                ticks += sum(map(int, file.read().rpartition(")")[2].split()[11:15]))
        except OSError:
            pass
    return ticks / TICKS


def pss(pid: int) -> dict[int, int]:
    """KiB by process."""
    found = {}
    for one in family(pid):
        with open(f"/proc/{one}/smaps_rollup") as file:
            found[one] = next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
    return found


class Candidate:
    """A server that can be started. `ports` are those that must greet."""

    def __init__(self, name: str, command: list[str], ports: list[int]) -> None:
        self.name, self.command, self.ports = name, command, ports
        self.seconds: list[float] = []
        self.cpu: list[float] = []

    def run(self, settle: float | None = None) -> dict[int, int]:
        """One start and stop; the memory, if it was given time to settle."""
        began = time.monotonic()
        process = subprocess.Popen(self.command, cwd=ROOT)
        try:
            for port in self.ports:
                self._await_greeting(port, began + DEADLINE_SECONDS)
            self.seconds.append(time.monotonic() - began)
            self.cpu.append(cpu_seconds(process.pid))
            if settle is None:
                return {}
            time.sleep(settle)
            return pss(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(DEADLINE_SECONDS)

    def _await_greeting(self, port: int, deadline: float) -> None:
        while time.monotonic() < deadline:
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
                    if sock.recv(1):
                        return
            except OSError:
                time.sleep(0.002)
        raise TimeoutError(f"{self.name} does not greet on port {port}")

    def report(self) -> None:
        print(f"{self.name}: start to greeting: median {statistics.median(self.seconds) * 1000:.0f} ms, "
              f"worst {max(self.seconds) * 1000:.0f} ms of {len(self.seconds)}; "
              f"processor time {statistics.median(self.cpu) * 1000:.0f} ms")  # fmt: skip


def mailsrv(directory: str, workers: int) -> Candidate:
    path = f"{directory}/mailsrv.yaml"
    ports = {name: free_port() for name in ("smtp", "submission", "submissions", "imap", "imaps")}
    settings = {
        "server": {
            "hostname": "mx.bench.test",
            "data_dir": f"{directory}/data",
            "run_dir": f"{directory}/run",
            "workers": workers,
        },
        **{name: {"listen": [f"127.0.0.1:{port}"]} for name, port in ports.items()},
        "log": {"file": f"{directory}/log"},
    }
    with open(path, "w") as file:
        json.dump(settings, file)
    program = [sys.executable, "-m", "mailsrv"]
    subprocess.run([*program, "domain", "add", "bench.test", "-c", path], cwd=ROOT, check=True)
    return Candidate("mailsrv", [*program, "serve", "--foreground", "-c", path], [ports["smtp"], ports["imap"]])


def dovecot(directory: str) -> Candidate | None:
    program = shutil.which("dovecot", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None or os.geteuid() != 0:
        return None
    imap, lmtp = free_port(), free_port()
    for name in ("run", "state", "mail"):
        os.makedirs(f"{directory}/{name}")
    path = f"{directory}/dovecot.conf"
    with open(path, "w") as file:
        file.write(DOVECOT.format(directory, "nobody", "nogroup", imap, lmtp))
    return Candidate("dovecot", [program, "-F", "-c", path], [lmtp, imap])


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--runs", type=int, default=10)
    arguments.add_argument("--workers", type=int, default=2)
    arguments.add_argument("--settle", type=float, default=5.0)
    args = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="start-") as directory:
        os.chmod(directory, 0o755)
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = f"{directory}/bytecode"
        for name in ("mailsrv", "dovecot"):
            os.mkdir(f"{directory}/{name}", 0o755)
        candidates = [
            one for one in (mailsrv(f"{directory}/mailsrv", args.workers), dovecot(f"{directory}/dovecot")) if one
        ]
        for one in candidates:
            one.run()  # compiles, makes the certificate
            one.seconds.clear(), one.cpu.clear()
        for _ in range(args.runs):
            for one in candidates:
                one.run()
        for one in candidates:
            one.report()
            memory = one.run(args.settle)
            each = ", ".join(f"{size / 1024:.1f}" for size in memory.values())
            print(f"{one.name}: {sum(memory.values()) / 1024:.1f} MiB PSS in {len(memory)} processes ({each})")


if __name__ == "__main__":
    main()
