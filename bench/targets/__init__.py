"""The servers that are measured, by name."""

from .base import Target
from .dovecot import Dovecot
from .external import External

DOVECOTS = ("dovecot", "dovecot-lmtp", "dovecot-shared", "dovecot-hibernate")
# mailsrv with as many workers as cores, and with one: the same server, its users and its mail.
WORKERS = {"mailsrv": "auto", "mailsrv-1": "1"}
NAMES = (*WORKERS, *DOVECOTS)


def server_of(name: str) -> str:
    """Targets of the same server share it."""
    return "mailsrv" if name in WORKERS else name


def make(name: str, users: int, here: str) -> Target:
    """The server of a target, by name or `external:FILE.json`. `here` is the directory with mailsrv.json."""
    if name.startswith("external:"):
        return External(name[9:], users)
    if name in WORKERS:
        return External(f"{here}/mailsrv.json", users)
    return Dovecot(users, name.partition("-")[2])


def become(server: Target, name: str) -> None:
    """The stopped server is this target at its next start."""
    if name in WORKERS and isinstance(server, External):
        server.write_files(WORKERS[name])
