"""Servers of other people as processes of their own, below one directory: Postfix, and its smtp-sink.

Both give up root, so the directory must be one that everybody may pass through. Nothing of the machine's own Postfix
is used but its programs.
"""

from __future__ import annotations

import json
import os
import pwd
import socket
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

SECONDS = 120.0  # for a start and a stop, of which each Postfix sleeps some

# name, type, private, unprivileged, wakeup, maxproc, command; chroot is "n" for all. master(5)
SERVICES = """
pickup unix n - 60 1 pickup
cleanup unix n - - 0 cleanup
qmgr unix n - 300 1 qmgr
tlsmgr unix - - 1000? 1 tlsmgr
rewrite unix - - - - trivial-rewrite
bounce unix - - - 0 bounce
defer unix - - - 0 bounce
trace unix - - - 0 bounce
verify unix - - - 1 verify
flush unix n - 1000? 0 flush
proxymap unix - - - - proxymap
proxywrite unix - - - 1 proxymap
smtp unix - - - - smtp
showq unix n - - - showq
error unix - - - - error
retry unix - - - - error
virtual unix - n - - virtual
anvil unix - - - 1 anvil
scache unix - - - 1 scache
postlog unix-dgram n - - 1 postlogd
"""


def wait_for(address: str, port: int) -> None:
    end = time.monotonic() + SECONDS
    while True:
        try:
            socket.create_connection((address, port), timeout=60).close()
            return
        except OSError:
            assert time.monotonic() < end, f"nothing listens at {address}:{port}"
            time.sleep(0.05)


class Postfix:
    """Delivers a domain to Maildirs, takes mail for everywhere from loopback; `ways` says where domains are."""

    def __init__(
        self, directory: Path, domain: str, users: Iterable[str], address: str, ports: Sequence[int],
        ways: dict[str, str], certificate: tuple[str, str],
    ) -> None:  # fmt: skip
        self.configuration, self.mail, self._queue = directory / "etc", directory / "mail", directory / "queue"
        self._address, self._ports, self.log = address, ports, directory / "log"
        for path in (directory, self.configuration, self.mail, self._queue, directory / "lib"):
            path.mkdir()
            path.chmod(0o755)
        nobody = pwd.getpwnam("nobody")
        os.chown(self.mail, nobody.pw_uid, nobody.pw_gid)
        os.chown(directory / "lib", pwd.getpwnam("postfix").pw_uid, -1)
        (self.configuration / "transport").write_text("".join(f"{name} {way}\n" for name, way in ways.items()))
        (self.configuration / "mailboxes").write_text(
            "".join(f"{user}@{domain} {user}/Maildir/\n" for user in users)
        )  # fmt: skip
        settings = {
            "compatibility_level": "3.6", "queue_directory": self._queue, "data_directory": directory / "lib",
            "maillog_file_prefixes": directory, "maillog_file": self.log, "myhostname": f"mx.{domain}",
            "mydestination": "", "mynetworks": "127.0.0.0/8", "alias_maps": "", "inet_interfaces": "127.0.0.1",
            "inet_protocols": "ipv4", "transport_maps": f"texthash:{self.configuration}/transport",
            "virtual_mailbox_domains": domain, "virtual_mailbox_base": self.mail,
            "virtual_mailbox_maps": f"texthash:{self.configuration}/mailboxes", "virtual_minimum_uid": 1,
            "virtual_uid_maps": f"static:{nobody.pw_uid}", "virtual_gid_maps": f"static:{nobody.pw_gid}",
            "smtpd_tls_chain_files": f"{certificate[1]}, {certificate[0]}", "smtpd_tls_security_level": "may",
            "smtp_tls_security_level": "may", "smtpd_tls_received_header": "yes", "smtputf8_enable": "yes",
        }  # fmt: skip
        (self.configuration / "main.cf").write_text("".join(f"{name} = {value}\n" for name, value in settings.items()))
        rows = [f"{address}:{port} inet n - n - - smtpd" for port in ports]
        for line in SERVICES.strip().splitlines():
            name, kind, private, unprivileged, *rest = line.split()
            rows.append(" ".join((name, kind, private, unprivileged, "n", *rest)))
        (self.configuration / "master.cf").write_text("\n".join(rows) + "\n")

    def _run(self, program: str, *words: str) -> str:
        command = [program, "-c", str(self.configuration), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        assert done.returncode == 0, (command, done.stdout, done.stderr, self.log.exists() and self.log.read_text())
        return done.stdout

    def waiting(self) -> list[dict[str, object]]:
        """The entries of its queue, as postqueue(1) tells them."""
        return [json.loads(line) for line in self._run("postqueue", "-j").splitlines()]

    def __enter__(self) -> Postfix:
        self._run("postfix", "start")
        for port in self._ports:
            wait_for(self._address, port)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._run("postfix", "stop")


class SmtpSink:
    """smtp-sink at some ports of one address; a file for each transaction: `mails` are (recipients, message)."""

    def __init__(self, directory: Path, address: str, ports: Sequence[int], *options: str) -> None:
        self._directory = directory
        directory.mkdir()
        nobody = pwd.getpwnam("nobody")
        os.chown(directory, nobody.pw_uid, nobody.pw_gid)
        self._processes = [
            subprocess.Popen(
                ["smtp-sink", "-u", "nobody", "-d", f"{port}.", *options, f"{address}:{port}", "50"], cwd=directory
            )
            for port in ports
        ]  # fmt: skip
        for port in ports:
            wait_for(address, port)

    def mails(self) -> list[tuple[list[str], bytes]]:
        found = []
        for path in self._directory.iterdir():
            try:
                written, recipients = path.read_bytes(), list[str]()
            except FileNotFoundError:
                continue  # smtp-sink has thought better of it
            if not written.endswith(b"\n\n"):
                continue  # still being written: the empty line at the end is smtp-sink's
            while written.startswith(b"X-"):  # what smtp-sink puts in front, up to its own Received line
                line, _, written = written.partition(b"\n")
                if line.startswith(b"X-Rcpt-Args:"):
                    recipients.append(line.split(b"<", 1)[1].partition(b">")[0].decode())
            found.append((recipients, written[:-1]))
        return found

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
