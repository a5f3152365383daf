"""What clients meet: accounts, certificates, ports.

Imports: doctor.finding, certificates, privileges, start, mail.accounts, config, errors.
"""

from __future__ import annotations

import glob
import os
import socket
from collections.abc import Iterator
from contextlib import closing
from functools import partial

from mailsrv import privileges
from mailsrv.certificates import examine, names
from mailsrv.config import Config
from mailsrv.doctor.finding import FAIL, OK, WARN, Finding, Repair
from mailsrv.errors import MailError
from mailsrv.mail.accounts import Accounts
from mailsrv.start import SERVICES, StartError, certificate_files, tls_context

EXPIRY_DAYS = 14
CONNECT_SECONDS = 3.0
_LISTEN = "0A"  # proc(5), net/tcp


def accounts(settings: Config) -> Iterator[Finding]:
    if not os.path.exists(settings.accounts_path):
        yield Finding(WARN, "accounts: none yet", "mailsrv domain add DOMAIN; mailsrv user add NAME@DOMAIN")
        return
    try:
        with closing(Accounts(settings.accounts_path, settings.mail_root)) as found:
            domains, users = found.domains(), found.users()
    except MailError as failure:
        advice = "restore the file from a backup, or, if it is a newer mailsrv's, install that again (docs/upgrade.md)"
        yield Finding(FAIL, f"accounts: {failure}", advice)
        return
    if not domains:
        yield Finding(WARN, "accounts: no domain, so all mail is put off", "mailsrv domain add DOMAIN")
    elif not users:
        yield Finding(WARN, "accounts: no users", "mailsrv user add NAME@DOMAIN")
    else:
        yield Finding(OK, f"accounts: {len(domains)} domains, {len(users)} users")


def certificates(settings: Config) -> Iterator[Finding]:
    if not settings["tls.certificate"] and not settings["tls.certificates"]:
        if not settings["tls.self_signed"]:
            yield Finding(WARN, "tls: no certificate, so nobody can log in", "set tls.certificate and tls.key")
            return
        yield Finding(WARN, "tls: self-signed, which mail programs warn of", "set tls.certificate and tls.key")
    pairs = certificate_files(settings)
    for path in _closed(settings):
        yield _closed_to_us(settings, path)
    covered: set[str] = set()
    for certificate, key in pairs:
        yield from _certificate(certificate, key, covered)
    host = settings["server.hostname"]
    if pairs and not any(map(_is_closed, dict(pairs))) and not any(_covers(name, host) for name in covered):
        yield Finding(
            WARN, f"tls: no certificate is for {host} (they are for {', '.join(sorted(covered)) or 'no name'})",
            f"clients that connect to {host} warn their users; get one with this name, or set server.hostname",
        )  # fmt: skip


def keys(settings: Config) -> Iterator[Finding]:
    """Each key belongs to its certificate. Looked at with the rights that the server starts with; silent of files that
    `certificates` tells of.
    """
    if _closed(settings) or any(examine(certificate).problem for certificate, _ in certificate_files(settings)):
        return
    try:
        tls_context(settings)
    except StartError as failure:
        yield Finding(FAIL, f"tls: {failure}", "both are PEM files that the server can read, and belong together")


def _closed(settings: Config) -> list[str]:
    """Files of certificates and keys that are not for this user to read."""
    return [path for pair in certificate_files(settings) for path in pair if _is_closed(path)]


def _is_closed(path: str) -> bool:
    try:
        with open(path, "rb"):
            return False
    except OSError as failure:
        return isinstance(failure, PermissionError)


def _closed_to_us(settings: Config, path: str) -> Finding:
    me, user = privileges.pwd_name(os.geteuid()), settings["server.user"]
    what = f"tls: {path} cannot be read by {me}"
    if not user:
        return Finding(FAIL, what, f"the server runs as whoever starts it, and must read it: chgrp {_group()} {path}")
    if me != user:
        return Finding(WARN, what, "run mailsrv doctor as root, which looks at all that the server reads")
    return Finding(
        WARN, what,
        "a server that root starts reads it before it becomes this user; a renewed one needs a restart, and systemd's "
        f"unit cannot start: chgrp {_group()} {path}; chmod g+r {path}",
    )  # fmt: skip


def _group() -> str:
    """Of the group this runs with."""
    return privileges.grp_name(os.getegid())


def _certificate(certificate: str, key: str, covered: set[str]) -> Iterator[Finding]:
    known = examine(certificate)
    what, left = f"tls: {known.path}", known.days_left
    if left is None and _is_closed(certificate):
        return  # said already
    if left is None:
        yield Finding(FAIL, f"{what}: {known.problem}", "it is a PEM file that the server can read")
        return
    covered.update(name.lower() for name in names(certificate))
    if left < 0:
        yield Finding(FAIL, f"{what} ended {-left} days ago", "renew it; the server notices within a minute")
    elif left < EXPIRY_DAYS:
        yield Finding(WARN, f"{what} ends in {left} days", "renew it; the server notices within a minute")
    else:
        yield Finding(OK, f"{what} is good for {left} days")
    if os.path.exists(key) and os.stat(key).st_mode & 0o007:
        mine = os.stat(key).st_uid == os.geteuid()
        repair = Repair("close it to others", partial(_close_to_others, key)) if mine else None
        yield Finding(WARN, f"tls: {key} can be read by everybody", f"chmod o= {key}", repair)


def _close_to_others(path: str) -> None:
    os.chmod(path, os.stat(path).st_mode & 0o770)


def _covers(name: str, host: str) -> bool:
    """RFC 6125 6.4.3: a star stands for the first label."""
    return name == host or (name.startswith("*.") and host.partition(".")[2] == name[2:])


def ports(settings: Config, *, running: bool) -> Iterator[Finding]:
    for service in SERVICES:
        for host, port in settings[f"{service}.listen"]:
            where = f"{service}: {host}:{port}"
            answers = _answers(host, port)
            if running and answers:
                yield Finding(OK, f"{where} answers")
            elif running:
                yield Finding(FAIL, f"{where} does not answer", "see the log; restart the server")
            elif answers:
                whose = listener_of(port) or "`ss -ltnp` shows whose"
                yield Finding(FAIL, f"{where} is another program's", f"{whose}; stop it")
            else:
                yield Finding(OK, f"{where} is free; the server does not run")


def _answers(host: str, port: int) -> bool:
    target = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    try:
        with socket.create_connection((target, port), timeout=CONNECT_SECONDS):
            return True
    except OSError:
        return False


def listener_of(port: int) -> str:
    """`name (pid n)` of the process that listens there, "" when that cannot be seen."""
    sockets = {f"socket:[{inode}]" for inode in _listening(port)}
    for path in glob.iglob("/proc/[0-9]*/fd/*") if sockets else ():
        try:
            if os.readlink(path) in sockets:
                pid = path.split("/")[2]
                with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
                    return f"{file.read().strip()} (pid {pid})"
        except OSError:
            continue  # it ended, or is not ours to see
    return ""


def _listening(port: int) -> Iterator[str]:
    for name in ("tcp", "tcp6"):
        try:
            with open(f"/proc/net/{name}", encoding="ascii") as file:
                rows = [line.split() for line in file.readlines()[1:]]
        except OSError:
            continue
        yield from (row[9] for row in rows if row[3] == _LISTEN and int(row[1].rpartition(":")[2], 16) == port)
