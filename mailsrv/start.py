"""What a server needs before it serves: bound addresses, certificates; and both kinds of settings, read again.

Imports: config, certificates, mail.accounts, net, log.
"""

from __future__ import annotations

import datetime
import errno
import os
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass

from mailsrv import config as configuration
from mailsrv import log
from mailsrv.certificates import expiry, names
from mailsrv.config import Config, ConfigError
from mailsrv.errors import MailError
from mailsrv.mail.accounts import Accounts
from mailsrv.net import listener, tls

IMPLICIT_TLS = ("submissions", "imaps")
PROBES = "metrics"
RENEWED_BEFORE = datetime.timedelta(days=30)
SERVICES = ("smtp", "submission", "submissions", "imap", "imaps")
Address = tuple[str, int]


class StartError(Exception):
    """The server cannot start; the text says what to do."""


# ------------------------------------------------------------------ listeners


@dataclass(frozen=True, slots=True)
class Bound:
    """A listening socket, the service it is for, and its address as the settings have it."""

    service: str
    address: Address
    socket: socket.socket


def bind_all(config: Config, inherited: Mapping[tuple[str, Address], socket.socket] | None = None) -> list[Bound]:
    """Every address of the configuration; those in `inherited` are bound already. StartError names the one that cannot
    be had.
    """
    bound: list[Bound] = []
    try:
        for service in (*SERVICES, PROBES):
            if service in IMPLICIT_TLS and not offers_tls(config):
                continue
            for address in config[f"{service}.listen"]:
                have = (inherited or {}).get((service, address))
                bound.append(Bound(service, address, have or _bind(service, address)))
    except BaseException:
        for one in bound:
            one.socket.close()
        raise
    if not bound:
        raise StartError("nothing to listen on: every service's `listen` is empty")
    return bound


def _bind(service: str, address: Address) -> socket.socket:
    try:
        return listener.bind(address)
    except OSError as failure:
        hint = {
            errno.EADDRINUSE: "; another program has it (`ss -ltnp` shows which)",
            errno.EACCES: "; ports below 1024 need root",
            errno.EADDRNOTAVAIL: "; this machine has no such address (`ip address` shows its own)",
        }.get(failure.errno or 0, "")
        where = f"{address[0]}:{address[1]}"
        raise StartError(f"{service}.listen: cannot listen on {where}: {failure.strerror}{hint}") from None


# ------------------------------------------------------------------ certificates


def offers_tls(config: Config) -> bool:
    return bool(config["tls.certificate"] or config["tls.certificates"] or config["tls.self_signed"])


def own_certificate(config: Config) -> tuple[str, str]:
    """Where the self-signed certificate and its key are, or would be."""
    directory = f"{config['server.data_dir']}/tls"
    return f"{directory}/{config['server.hostname']}.pem", f"{directory}/{config['server.hostname']}.key"


def make_certificate(config: Config) -> bool:
    """Whether the server made a certificate for itself: where it is to serve one of its own and there is none yet, or
    one in its last month. Logged. StartError if it cannot be written. Blocks.
    """
    own = own_certificate(config)
    if not config["tls.self_signed"] or [own] != (certificate_files(config) or [own]):
        return False
    try:
        if expiry(own[0]) - datetime.datetime.now(datetime.UTC) > RENEWED_BEFORE and os.path.exists(own[1]):
            return False
    except (OSError, ValueError):
        pass  # not there, or not what it should be
    from mailsrv.authority import self_signed  # cryptography: once in a year

    try:
        self_signed(*own, config["server.hostname"])
    except OSError as failure:
        raise StartError(f"tls.self_signed: {failure.filename}: {failure.strerror}") from None
    log.warning(
        "self-signed certificate", file=own[0],
        advice="mail programs warn of it: set tls.certificate and tls.key, or get one with certbot",
    )  # fmt: skip
    return True


def certificate_files(config: Config) -> list[tuple[str, str]]:
    """(certificate, key) of everything that is served, the first for whoever asks for none of the others' names."""
    first = [(config["tls.certificate"], config["tls.key"])] if config["tls.certificate"] else []
    files = [*first, *config["tls.certificates"]]
    if not files and config["tls.self_signed"] and os.path.exists(own_certificate(config)[0]):
        files.append(own_certificate(config))
    return files


def _pairs(config: Config) -> list[tls.Pair]:
    """With the names that each is for. Raises OSError or ValueError."""
    files = certificate_files(config)
    return [tls.Pair(certificate, key, names(certificate)) for certificate, key in files]


def tls_context(config: Config) -> tls.ServerContext | None:
    """The context of the certificates; None without any. StartError if one cannot be used."""
    if not certificate_files(config):
        return None
    return _checked(config, None)


def _checked(config: Config, context: tls.ServerContext | None) -> tls.ServerContext:
    """A new context, or this one with the certificates loaded again. StartError says which file is at fault."""
    try:
        pairs = _pairs(config)
        if context is None:
            return tls.server_context(pairs)
        context.load(pairs)
        return context
    except (OSError, ssl.SSLError, ValueError) as failure:
        raise StartError(_blame(config, failure)) from None


def _blame(config: Config, failure: Exception) -> str:
    for certificate, key in certificate_files(config):
        for setting, path in (("certificate", certificate), ("key", key)):
            try:
                with open(path, "rb"):
                    pass
            except OSError as problem:
                return f"tls.{setting} {path}: {problem.strerror}"
        try:
            tls.server_context([tls.Pair(certificate, key)])
        except (OSError, ssl.SSLError) as problem:
            reason = getattr(problem, "reason", None) or problem
            if reason == "KEY_VALUES_MISMATCH":
                return f"tls.certificate {certificate}, tls.key {key}: the key is another certificate's"
            return f"tls.certificate {certificate}, tls.key {key}: {reason}; both are PEM, and belong together"
    return f"tls.certificate: {failure}"


def check_accounts(config: Config) -> None:
    """StartError if the accounts that are there cannot be used: every process would fail, again and again."""
    if os.path.exists(config.accounts_path):
        try:
            Accounts(config.accounts_path, config.mail_root).close()
        except MailError as failure:
            raise StartError(str(failure)) from None


# ------------------------------------------------------------------ while it runs


def load_certificates(config: Config, context: tls.ServerContext) -> bool:
    """Use what the files have now; if that cannot be, log why and stay with what was. Blocks."""
    try:
        _checked(config, context)
    except StartError as failure:
        log.error("certificate refused", problem=str(failure), advice="the one that was loaded before stays in use")
        return False
    log.info("certificates loaded", files=" ".join(certificate for certificate, _ in certificate_files(config)))
    return True


def reread(old: Config, context: tls.ServerContext | None, *, first: bool = True) -> Config | None:
    """The settings of the file, with certificates and log as they say; None if they are refused, which is logged. What
    needs a restart keeps its value, and the `first` process to read names it in the log. Blocks.
    """
    try:
        config, waiting = configuration.reload(old)
    except ConfigError as failure:
        for problem in failure.problems:
            log.error("settings refused", problem=problem, advice="the old ones stay in use")
        return None
    if context is None and offers_tls(config):
        waiting.append("tls.certificate")
    for name in waiting if first else ():
        log.warning("needs a restart", setting=name)
    if context is not None and not (certificate_files(config) and load_certificates(config, context)):
        return None
    try:
        log.configure(level=config["log.level"], file=config["log.file"] or None, format=config["log.format"])
    except OSError as failure:
        log.error("settings refused", problem=f"log.file: {config['log.file']}: {failure.strerror}")
        return None
    log.info("settings loaded", file=config.path)
    return config


def reopen_log() -> None:
    """After the log was rotated. Blocks."""
    try:
        log.reopen()
    except OSError as failure:
        log.error("log not opened again", path=str(failure.filename), error=str(failure.strerror))
