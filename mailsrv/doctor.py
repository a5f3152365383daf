"""Looks for what is wrong with an installation, and says what to do about it. Changes nothing.

Imports: config, daemon (certificates), supervisor (the pid file), certificates, mail.accounts.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

from mailsrv import certificates
from mailsrv.config import Config
from mailsrv.errors import MailError
from mailsrv.mail.accounts import Accounts
from mailsrv.pidfile import running_pid
from mailsrv.start import SERVICES, StartError, certificate_files, tls_context

EXPIRY_DAYS = 14
LOW_DISK_BYTES = 1024**3
CONNECT_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Finding:
    """`result` is ok, warn or fail; `advice` is empty for what is in order."""

    result: str
    what: str
    advice: str = ""


def examine(settings: Config) -> list[Finding]:
    """Every check in turn; the settings themselves were checked when they were loaded."""
    running = running_pid(f"{settings['server.run_dir']}/mailsrv.pid") is not None
    return [
        Finding("ok", f"settings: {settings.path}"),
        *_directories(settings),
        *_accounts(settings),
        *_certificate(settings),
        *_services(settings, running=running),
    ]


def _directories(settings: Config) -> Iterator[Finding]:
    for name in ("server.data_dir", "server.run_dir"):
        path = settings[name]
        existing = path
        while not os.path.exists(existing):
            existing = os.path.dirname(existing)
        if not os.access(existing, os.W_OK | os.X_OK):
            yield Finding("fail", f"{name}: {path} cannot be written to by this user", f"check the owner of {existing}")
        elif existing == path and os.stat(path).st_mode & 0o007:
            yield Finding("warn", f"{name}: {path} is open to every user of this machine", f"chmod o-rwx {path}")
        else:
            yield Finding("ok", f"{name}: {path}")
    data = settings["server.data_dir"]
    if os.path.exists(data):
        free = shutil.disk_usage(data).free
        text = f"disk: {free // 1024**2} MiB free for {data}"
        if free < LOW_DISK_BYTES:
            yield Finding("warn", text, "mail is refused for the time being when the disk is full; make room")
        else:
            yield Finding("ok", text)


def _accounts(settings: Config) -> Iterator[Finding]:
    if not os.path.exists(settings.accounts_path):
        yield Finding("warn", "accounts: none yet", "mailsrv domain add DOMAIN; mailsrv user add NAME@DOMAIN")
        return
    try:
        with closing(Accounts(settings.accounts_path, settings.mail_root)) as accounts:
            domains, users = accounts.domains(), accounts.users()
    except MailError as failure:
        yield Finding("fail", f"accounts: {failure}", "restore the file from a backup, or move it away and begin anew")
        return
    if not domains:
        yield Finding("warn", "accounts: no domain, so all mail is refused", "mailsrv domain add DOMAIN")
    elif not users:
        yield Finding("warn", "accounts: no users", "mailsrv user add NAME@DOMAIN")
    else:
        yield Finding("ok", f"accounts: {len(domains)} domains, {len(users)} users")


def _certificate(settings: Config) -> Iterator[Finding]:
    files = certificate_files(settings)
    if not settings["tls.certificate"] and not settings["tls.certificates"]:
        if not settings["tls.self_signed"]:
            yield Finding("warn", "tls: no certificate, so nobody can log in", "set tls.certificate and tls.key")
            return
        yield Finding("warn", "tls: self-signed, which mail programs warn of", "set tls.certificate and tls.key")
    try:
        tls_context(settings)
    except StartError as failure:
        yield Finding("fail", f"tls: {failure}", "both are PEM files that the server can read, and belong together")
    for certificate, key in files:
        yield _expiry(certificates.examine(certificate))
        if os.path.exists(key) and os.stat(key).st_mode & 0o007:
            yield Finding("warn", f"tls: {key} can be read by everybody", f"chmod o= {key}")


def _expiry(known: certificates.Known) -> Finding:
    what, left = f"tls: {known.path}", known.days_left
    if left is None:
        return Finding("fail", f"{what}: {known.problem}", "it is a PEM file that the server can read")
    if left < 0:
        return Finding("fail", f"{what} ended {-left} days ago", "renew it; the server notices within a minute")
    if left < EXPIRY_DAYS:
        return Finding("warn", f"{what} ends in {left} days", "renew it; the server notices within a minute")
    return Finding("ok", f"{what} is good for {left} days")


def _services(settings: Config, *, running: bool) -> Iterator[Finding]:
    for service in SERVICES:
        for host, port in settings[f"{service}.listen"]:
            where = f"{service}: {host}:{port}"
            answers = _answers(host, port)
            if running and answers:
                yield Finding("ok", f"{where} answers")
            elif running:
                yield Finding("fail", f"{where} does not answer", "see the log; restart the server")
            elif answers:
                yield Finding("fail", f"{where} is another program's", "`ss -ltnp` shows whose; stop it")
            else:
                yield Finding("ok", f"{where} is free; the server does not run")


def _answers(host: str, port: int) -> bool:
    target = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    try:
        with socket.create_connection((target, port), timeout=CONNECT_SECONDS):
            return True
    except OSError:
        return False
