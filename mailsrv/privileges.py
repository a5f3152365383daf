"""Gives up being root: directories are made while it can be done, then the user and groups are changed for good.

As root nothing is opened in a directory that others may write to (S26): the pid file and the log are opened afterwards.

Imports: start (StartError), config, log.    setresuid(2), prctl(2) PR_SET_NO_NEW_PRIVS, S27.
"""

from __future__ import annotations

import ctypes
import grp
import os
import pwd
import resource
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass

from mailsrv import log
from mailsrv.config import UMASK, Config
from mailsrv.start import StartError
from mailsrv.store.files import close

_PR_SET_NO_NEW_PRIVS = 38
DESCRIPTORS = 262_144  # what root asks for; connections, files and watches each take one


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom the server runs as."""

    user: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


def wanted(config: Config) -> Identity | None:
    """The configured user, if it is not the present one. StartError if there is none or it cannot be had."""
    user, group = config["server.user"], config["server.group"]
    if not user:
        if group:
            raise StartError("server.group: is set without server.user")
        return None
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise StartError(
            f"server.user: there is no user {user}; make one: adduser --system --group --home /nonexistent {user}"
        ) from None
    try:
        gid = grp.getgrnam(group).gr_gid if group else entry.pw_gid
    except KeyError:
        raise StartError(f"server.group: there is no group {group}; addgroup --system {group}") from None
    if os.geteuid() == entry.pw_uid:
        return None
    if os.geteuid() != 0:
        raise StartError(f"server.user: only root can become {user}; start as root or as {user}")
    return Identity(user, entry.pw_uid, gid, tuple(sorted({gid, *os.getgrouplist(user, gid)})), entry.pw_dir)


def raise_descriptor_limit() -> None:
    """As far as the kernel lets us; root may raise the hard limit too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in (max(hard, DESCRIPTORS), hard) if os.geteuid() == 0 else (hard,):
        if soft >= limit:
            return
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        except (OSError, ValueError):
            continue
        return


def prepare(config: Config, identity: Identity | None) -> None:
    """Make the directories that are missing, owned by whom the server will be. StartError if that cannot be."""
    os.umask(UMASK)
    directories = [("server.data_dir", config["server.data_dir"]), ("server.run_dir", config["server.run_dir"])]
    if config["log.file"].startswith("/"):
        directories.append(("log.file", os.path.dirname(config["log.file"])))
    for name, path in directories:
        try:
            made = _make(path)
            if identity is not None:
                _give(path, identity, made=made)
        except OSError as failure:
            raise StartError(f"{name}: {path}: {failure.strerror}") from None


def _make(path: str) -> bool:
    if os.path.isdir(path):
        return False
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    os.mkdir(path, 0o750)
    os.chmod(path, 0o750)
    return True


def _give(path: str, identity: Identity, *, made: bool) -> None:
    """What was just made, or is root's and empty as systemd and tmpfiles make it, becomes the user's."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(fd).st_uid == 0 and (made or not os.listdir(fd)):
            os.fchown(fd, identity.uid, identity.gid)
    finally:
        close(fd)


def drop(identity: Identity) -> None:
    """Become that user, with its groups, and make sure there is no way back. StartError otherwise."""
    uid, gid = identity.uid, identity.gid
    try:
        os.setgroups(identity.groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    except OSError as failure:
        raise StartError(f"server.user: cannot become {identity.user}: {failure.strerror}") from None
    if os.getresuid() != (uid,) * 3 or os.getresgid() != (gid,) * 3 or set(os.getgroups()) != set(identity.groups):
        raise StartError(f"server.user: the kernel did not make this process {identity.user} entirely")
    if uid != 0:
        for regain in (lambda: os.setresuid(0, 0, 0), lambda: os.seteuid(0), lambda: os.setgroups([0])):
            _must_fail(regain, identity.user)
    os.environ.update(HOME=identity.home, USER=identity.user, LOGNAME=identity.user)


def _must_fail(regain: Callable[[], None], user: str) -> None:
    try:
        regain()
    except PermissionError:
        return
    raise StartError(f"server.user: having become {user}, this process could become root again")


def no_new_privileges() -> None:
    """No program that is started from here on can gain rights by its file's mode. Inherited by all children."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        log.warning("no-new-privs not set", error=os.strerror(ctypes.get_errno()))


def check(config: Config) -> None:
    """Can the server work where it must, as whom it is now? StartError says what to do."""
    me = pwd_name(os.geteuid())
    for name in ("server.data_dir", "server.run_dir"):
        path = config[name]
        if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            owner = pwd_name(os.stat(path).st_uid)
            raise StartError(f"{name}: {path} belongs to {owner}, and {me} cannot write there; chown -R {me}: {path}")


def advise(config: Config) -> None:
    """Warns of what works, but not as well as it could."""
    me = pwd_name(os.geteuid())
    if not os.access(sys.executable, os.X_OK):
        log.warning(
            "python cannot be started again", path=sys.executable, user=me,
            advice="SIGUSR2 and slow password schemes need it: install mailsrv where that user may read",
        )  # fmt: skip
    if os.geteuid() == 0:
        log.warning("running as root", advice="set server.user, so that a fault in the server is not one in the system")
    elif config["tls.key"] and not os.access(config["tls.key"], os.R_OK):
        log.warning(
            "private key cannot be read again", path=config["tls.key"], user=me,
            advice=f"let group {grp_name(os.getegid())} read it, else a renewed certificate needs a restart",
        )  # fmt: skip
    if stat.S_IMODE(os.stat(config["server.data_dir"]).st_mode) & 0o007:
        log.warning("mail can be read by every user of this machine", path=config["server.data_dir"], advice="chmod o=")


def pwd_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def grp_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
