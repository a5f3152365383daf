"""Looks at a machine before a server is set up on it: is there what it needs, and is the place free?

Imports: config, doctor (Finding), net.listener, pidfile, start.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import sys
from collections.abc import Iterator

from mailsrv.config import Config
from mailsrv.doctor import Finding
from mailsrv.installation.actions import has, systemd_runs
from mailsrv.net import listener
from mailsrv.pidfile import running_pid
from mailsrv.start import SERVICES

LEAST_MEMORY, LEAST_DISK = 256 * 1024**2, 1024**3
CONNECT_SECONDS = 5.0


def examine(settings: Config, outgoing: str = "") -> list[Finding]:
    """Every check in turn. `outgoing`: a mail server that should be reached on port 25."""
    return [*_machine(), *_disk(settings), *_ports(settings), *(_outgoing(outgoing) if outgoing else ())]


def _machine() -> Iterator[Finding]:
    if os.geteuid() == 0:
        yield Finding("ok", "root: this is root")
    else:
        yield Finding("warn", "root: this is not root", "ports below 1024 and the files in /etc need it; use sudo")
    python = ".".join(str(part) for part in sys.version_info[:3])
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        yield Finding("ok", f"python: {python}")
    else:
        yield Finding("warn", f"python: {python} is not tested", "3.11 to 3.13 are")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    text = f"memory: {memory // 1024**2} MiB"
    few = f"{LEAST_MEMORY // 1024**2} MiB are the least; set server.workers: 1"
    yield Finding("ok", text) if memory >= LEAST_MEMORY else Finding("warn", text, few)
    if systemd_runs():
        yield Finding("ok", "services: started by systemd")
    elif has(["update-rc.d"]) or has(["chkconfig"]):
        yield Finding("ok", "services: started by init scripts")
    else:
        yield Finding("warn", "services: neither systemd nor init scripts", "start it yourself: mailsrv serve")


def _disk(settings: Config) -> Iterator[Finding]:
    place = settings["server.data_dir"]
    while not os.path.exists(place):
        place = os.path.dirname(place)
    free = shutil.disk_usage(place).free
    text = f"disk: {free // 1024**2} MiB free for {settings['server.data_dir']}"
    yield Finding("ok", text) if free >= LEAST_DISK else Finding("warn", text, "make room, or set server.data_dir")


def _ports(settings: Config) -> Iterator[Finding]:
    ours = running_pid(f"{settings['server.run_dir']}/mailsrv.pid") is not None
    for service in SERVICES:
        for host, port in settings[f"{service}.listen"]:
            where = f"{service}: {host}:{port}"
            try:
                listener.bind((host, port)).close()
            except OSError as failure:
                if failure.errno == errno.EADDRINUSE and ours:
                    yield Finding("ok", f"{where} is taken; mailsrv runs")
                elif failure.errno == errno.EADDRINUSE:
                    yield Finding(
                        "fail", f"{where} is another program's", f"`ss -ltnp sport = {port}` shows whose; stop it"
                    )
                elif failure.errno == errno.EACCES:
                    yield Finding("warn", f"{where} is for root alone", "run this as root to know more")
                else:
                    yield Finding("fail", f"{where}: {failure.strerror}", f"correct {service}.listen")
            else:
                yield Finding("ok", f"{where} is free")


def _outgoing(host: str) -> Iterator[Finding]:
    try:
        with socket.create_connection((host, 25), timeout=CONNECT_SECONDS):
            yield Finding("ok", f"outgoing: {host}:25 answers")
    except OSError as failure:
        yield Finding(
            "fail", f"outgoing: {host}:25: {failure}",
            "many providers block port 25 until they are asked; a relay on port 587 is the other way",
        )  # fmt: skip
