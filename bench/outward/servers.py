"""mailsrv and Postfix, each below a directory of its own, and what they cost."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from outward.common import ROOT, answers, free_port, until
from outward.world import NAMES, World

if TYPE_CHECKING:
    from outward.clients import Client

AT_ONCE = 100
WATCHERS = 4  # by turns: their connections are with any of the workers, as are those that deliver to them
TICK = os.sysconf("SC_CLK_TCK")


def processes(root: int) -> list[int]:
    """A process and all that came from it and are there."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError, ValueError), open(f"/proc/{name}/stat") as file:
                children.setdefault(int(file.read().rpartition(")")[2].split()[1]), []).append(int(name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def cpu_seconds(root: int) -> float:
    """Of a process and all that came from it, also those that have ended."""
    total = 0.0
    for pid in processes(root):
        with suppress(OSError):
            with open(f"/proc/{pid}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
            own, ended, threads = int(fields[11]) + int(fields[12]), int(fields[13]) + int(fields[14]), int(fields[17])
            seconds = own / TICK
            if threads == 1:  # exact; ticks of a hundred short-lived processes are not
                with open(f"/proc/{pid}/schedstat") as file:
                    seconds = int(file.read().split()[0]) / 1e9
            total += seconds + ended / TICK
    return total


def pss_mib(pid: int) -> float:
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return int(re.search(r"^Pss:\s+(\d+) kB", file.read(), re.M)[1]) / 1024  # type: ignore[index]


def make_certificate(directory: str) -> tuple[str, str]:
    paths = f"{directory}/certificate.pem", f"{directory}/key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-days", "30", "-subj", "/CN=mx.bench.test", "-out", paths[0], "-keyout", paths[1]],
        check=True, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return paths


class Mailsrv:
    """`mailsrv serve` on a directory of its own, with its defaults."""

    name = "mailsrv"

    def __init__(self, directory: str, world: World, certificate: tuple[str, str], **changes: Any) -> None:
        self.directory, self.port, self.imap, self.smtp = directory, free_port(), free_port(), free_port()
        os.makedirs(directory, mode=0o755)
        self.path, self.log, self.queue = f"{directory}/mailsrv.yaml", f"{directory}/log", f"{directory}/data/queue"
        settings: dict[str, Any] = {
            "server": {"hostname": "mx.bench.test", "data_dir": f"{directory}/data", "run_dir": f"{directory}/run"},
            "tls": {"certificate": certificate[0], "key": certificate[1]},
            "smtp": {"listen": [f"127.0.0.1:{self.smtp}"]},
            "imap": {"listen": [f"127.0.0.1:{self.imap}"], "allow_plaintext_login": True},
            "submission": {"listen": [f"127.0.0.1:{self.port}"]},
            "submissions": {"listen": []},
            "imaps": {"listen": []},
            "dns": {"nameservers": [NAMES]},
            "relay": {"port": world.port},
            "queue": {"attempts": AT_ONCE},
            "log": {"file": self.log, "hub_delay": "hub_delay" in changes},
        }
        changes.pop("hub_delay", None)
        for name, value in changes.items():
            section, _, key = name.partition("__")
            settings[section][key] = value
        with open(self.path, "w") as file:
            json.dump(settings, file)
        self.command("domain", "add", "bench.test")
        users = "".join(f"u{number}@bench.test:password {number}\n" for number in range(WATCHERS + 1))
        self.command("user", "import", "-", input=users)
        self.process: subprocess.Popen[bytes] | None = None

    def command(self, *words: str, **more: Any) -> str:
        run = [sys.executable, "-m", "mailsrv", *words, "-c", self.path]
        return subprocess.run(run, cwd=ROOT, check=True, capture_output=True, text=True, **more).stdout

    def start(self) -> None:
        words = [sys.executable, "-m", "mailsrv", "serve", "--foreground", "-c", self.path]
        self.process = subprocess.Popen(words, cwd=ROOT, start_new_session=True)  # master(8) has one too: sched(7)
        for port in (self.port, self.imap):
            until(lambda port=port: answers(port), "mailsrv answers")

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def waiting(self) -> int:
        return sum(name.endswith(".json") for _, _, names in os.walk(self.queue) for name in names)

    def flush(self) -> None:
        """Whatever waits is to be tried now."""
        self.command("queue", "retry", "--all")

    def log_in(self, client: Client) -> None:
        client.authenticate("u0@bench.test", "password 0")

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Postfix:
    """Postfix with its defaults below a directory of its own; its name server is the world's."""

    name = "postfix"

    def __init__(self, directory: str, world: World, certificate: tuple[str, str]) -> None:
        import pwd

        from tests.fakes.postfix import SERVICES

        self.directory, self.port, self._etc, self.queue = (
            directory,
            free_port(),
            f"{directory}/etc",
            f"{directory}/queue",
        )
        for path in (directory, self._etc, self.queue, f"{directory}/lib"):
            os.makedirs(path, mode=0o755)
        os.chown(f"{directory}/lib", pwd.getpwnam("postfix").pw_uid, -1)
        settings = {
            "compatibility_level": "3.6", "queue_directory": self.queue, "data_directory": f"{directory}/lib",
            "maillog_file_prefixes": directory, "maillog_file": f"{directory}/log", "myhostname": "mx.bench.test",
            "mydestination": "", "mynetworks": "127.0.0.0/8", "alias_maps": "", "inet_interfaces": "127.0.0.1",
            "inet_protocols": "ipv4", "smtpd_tls_chain_files": f"{certificate[1]}, {certificate[0]}",
            "smtpd_tls_security_level": "may", "smtp_tls_security_level": "may", "smtp_tcp_port": world.port,
        }  # fmt: skip
        with open(f"{self._etc}/main.cf", "w") as file:
            file.writelines(f"{name} = {value}\n" for name, value in settings.items())
        with open(f"{self._etc}/master.cf", "w") as file:
            file.write(f"127.0.0.1:{self.port} inet n - n - - smtpd\n")
            for line in SERVICES.strip().splitlines():
                name, kind, private, unprivileged, *rest = line.split()
                file.write(" ".join((name, kind, private, unprivileged, "n", *rest)) + "\n")
        self._resolv = f"{directory}/resolv.conf"
        with open(self._resolv, "w") as file:
            file.write(f"nameserver {NAMES}\n")
        self._run: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        there = f"mount --bind {self._resolv} /etc/resolv.conf && exec postfix -c {self._etc} start-fg"
        self._run = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", there], stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        until(lambda: answers(self.port), "postfix answers")

    @property
    def pid(self) -> int:
        assert self._run is not None
        return self._run.pid

    def waiting(self) -> int:
        queues = ("maildrop", "incoming", "active", "deferred")
        return sum(len(names) for queue in queues for _, _, names in os.walk(f"{self.queue}/{queue}"))

    def flush(self) -> None:
        """Whatever waits is to be tried now."""
        subprocess.run(["postqueue", "-c", self._etc, "-f"], check=True)

    def log_in(self, client: Client) -> None:
        pass

    def stop(self) -> None:
        assert self._run is not None
        subprocess.run(["postfix", "-c", self._etc, "stop"], capture_output=True, timeout=60, check=False)
        self._run.wait(60)
