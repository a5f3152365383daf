"""The ground the server stands on: owners and modes, disk, clock.

Imports: doctor.finding, config, privileges.    S27.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import stat
import time
from collections.abc import Iterator
from functools import partial

from mailsrv.config import Config
from mailsrv.doctor.finding import FAIL, OK, WARN, Finding, Repair

LOW_DISK_BYTES = 1024**3
LOW_FILES = 10_000
MOST_NAMED = 5
EARLIEST = 1_767_225_600  # 2026: before that, a clock has lost its battery
AHEAD_SECONDS = 120
_TIME_ERROR = 5  # adjtimex(2)
_TIMEX_OCTETS = 512  # more than the structure has anywhere


def owners(settings: Config) -> Iterator[Finding]:
    """All that is in the data directory belongs to the server's user, and nobody else can get in."""
    data = settings["server.data_dir"]
    if not os.path.isdir(data):
        return
    owner = _server_uid(settings, data)
    foreign = [path for path in _below(data) if os.lstat(path).st_uid != owner]
    name = _user_name(owner)
    if not foreign:
        yield Finding(OK, f"owners: all of {data} belongs to {name}")
        return
    named = ", ".join(foreign[:MOST_NAMED]) + (f" and {len(foreign) - MOST_NAMED} more" if foreign[MOST_NAMED:] else "")
    yield Finding(
        FAIL, f"owners: {len(foreign)} files or directories of {data} do not belong to {name}: {named}",
        f"the server cannot read or change them; as root: chown -R -h {name} {data}, or mailsrv doctor --repair",
        Repair(f"give them to {name}", partial(_give, data, owner)),
    )  # fmt: skip


def _server_uid(settings: Config, data: str) -> int:
    try:
        return pwd.getpwnam(settings["server.user"]).pw_uid
    except KeyError:
        return os.stat(data).st_uid


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _below(directory: str) -> Iterator[str]:
    yield directory
    for path, folders, names in os.walk(directory):
        yield from (f"{path}/{name}" for name in (*folders, *names) if os.path.lexists(f"{path}/{name}"))


def _give(data: str, uid: int) -> None:
    """Not by paths: who can write in the directory could make one lead elsewhere between the look and the deed (S26).
    Where the kernel lets anybody give a second name to any file, files with two are left: they may be the system's.
    """
    second_names, left = _foreign_links(), 0
    os.chown(data, uid, -1, follow_symlinks=False)
    for _, folders, names, fd in os.fwalk(data):
        for name in (*folders, *names):
            try:
                found = os.stat(name, dir_fd=fd, follow_symlinks=False)
                if found.st_uid == uid:
                    continue
                if second_names and not stat.S_ISDIR(found.st_mode) and found.st_nlink > 1:
                    left += 1
                else:
                    os.chown(name, uid, -1, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                pass  # gone meanwhile
    if left:
        raise OSError(f"{left} files have a second name elsewhere, which may be the system's")


def _foreign_links() -> bool:
    """May a user link to what is not theirs? proc(5), fs.protected_hardlinks."""
    try:
        with open("/proc/sys/fs/protected_hardlinks", encoding="ascii") as file:
            return file.read().strip() == "0"
    except OSError:
        return True


def directories(settings: Config) -> Iterator[Finding]:
    for name in ("server.data_dir", "server.run_dir"):
        path = settings[name]
        existing = path
        while not os.path.exists(existing):
            existing = os.path.dirname(existing)
        if not os.access(existing, os.W_OK | os.X_OK):
            yield Finding(FAIL, f"{name}: {path} cannot be written to by this user", f"check the owner of {existing}")
        elif existing == path and os.stat(path).st_mode & 0o007:
            closing = Repair("close it to others", partial(_close_to_others, path))
            yield Finding(WARN, f"{name}: {path} is open to every user of this machine", f"chmod o-rwx {path}", closing)
        else:
            yield Finding(OK, f"{name}: {path}")


def _close_to_others(path: str) -> None:
    os.chmod(path, stat.S_IMODE(os.stat(path).st_mode) & ~0o007)


def disk(settings: Config) -> Iterator[Finding]:
    data = settings["server.data_dir"]
    if not os.path.exists(data):
        return
    found = os.statvfs(data)
    free = found.f_bavail * found.f_frsize
    text = f"disk: {free // 1024**2} MiB free for {data}"
    if free < LOW_DISK_BYTES:
        yield Finding(WARN, text, "mail is refused for the time being when the disk is full; make room")
    else:
        yield Finding(OK, text)
    if found.f_files:  # some file systems do not count
        text = f"disk: room for {found.f_favail} more files in {data}"
        if found.f_favail < LOW_FILES:
            yield Finding(WARN, text, "each message is a file: without free inodes mail is refused; make room (df -i)")
        else:
            yield Finding(OK, text)


def clock(settings: Config) -> Iterator[Finding]:
    """The time goes into UIDVALIDITYs, modseqs, signatures and the queue: a wrong clock harms them all."""
    now = time.time()
    said = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now < EARLIEST:
        yield Finding(
            FAIL, f"clock: {said} is in the past", "set the clock and have it kept (chrony, systemd-timesyncd)"
        )
        return
    ahead = max((stamp - now for stamp in _stamps(settings)), default=0.0)
    if ahead > AHEAD_SECONDS:
        yield Finding(
            FAIL, f"clock: {said}, but files of the server were written {round(ahead)} seconds later than that",
            "the clock is wrong now, or was wrong then; set it, and restart the server when it is right",
        )  # fmt: skip
    elif _adjtimex() == _TIME_ERROR:
        yield Finding(
            WARN, f"clock: {said}; the system does not know whether that is right",
            "nothing keeps the clock (chrony, systemd-timesyncd), or not yet: timedatectl shows it",
        )  # fmt: skip
    else:
        yield Finding(OK, f"clock: {said}")


def _stamps(settings: Config) -> Iterator[float]:
    data = settings["server.data_dir"]
    for path in (settings.accounts_path, settings.throttle_path, f"{data}/audit/admin.jsonl", f"{data}/queue"):
        try:
            yield os.stat(path).st_mtime
        except OSError:
            pass


def _adjtimex() -> int:
    try:
        return int(ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_OCTETS)))  # zeros: only to look
    except (OSError, AttributeError):
        return 0
