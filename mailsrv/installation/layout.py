"""What an installation consists of: which file of `etc/` goes where, which directories there are and whose they are.

Imports: the standard library.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

USER = "mailsrv"
PROGRAM = "/opt/mailsrv"
COMMAND = "/usr/sbin/mailsrv"
PACKAGED = "/usr/lib/mailsrv"  # where Debian's package has the program
CONFIG = "/etc/mailsrv/mailsrv.yaml"
DATA = "/var/lib/mailsrv"
LOGS = "/var/log/mailsrv"
RUN = "/run/mailsrv"
INIT = "/etc/init.d/mailsrv"
UNIT = "/etc/systemd/system/mailsrv.service"
TIMER = "mailsrv-nightly.timer"


@dataclass(frozen=True, slots=True)
class Directory:
    path: str
    mode: int
    owner: str
    group: str


# The server may read its configuration and keys, and not change them.
DIRECTORIES = (
    Directory("/etc/mailsrv", 0o750, "root", USER),
    Directory("/etc/mailsrv/tls", 0o750, "root", USER),
    Directory(DATA, 0o750, USER, USER),
    Directory(LOGS, 0o750, USER, USER),
    Directory(RUN, 0o750, USER, USER),
)


@dataclass(frozen=True, slots=True)
class Shipped:
    """A file of `etc/` and its place."""

    source: str
    target: str
    mode: int = 0o644


_SHIPPED = (
    Shipped("mailsrv.init", INIT, 0o755),
    Shipped("mailsrv.service", UNIT),
    Shipped("mailsrv-nightly.service", "/etc/systemd/system/mailsrv-nightly.service"),
    Shipped(TIMER, f"/etc/systemd/system/{TIMER}"),
    Shipped("mailsrv.cron", "/etc/cron.d/mailsrv"),
    Shipped("mailsrv.logrotate", "/etc/logrotate.d/mailsrv"),
    Shipped("man/mailsrv.8", "/usr/share/man/man8/mailsrv.8"),
    Shipped("man/mailsrv.yaml.5", "/usr/share/man/man5/mailsrv.yaml.5"),
    Shipped("completion/mailsrv.bash", "/usr/share/bash-completion/completions/mailsrv"),
    Shipped("completion/_mailsrv", "/usr/share/zsh/vendor-completions/_mailsrv"),
    Shipped("certbot-deploy-hook", "/etc/letsencrypt/renewal-hooks/deploy/mailsrv", 0o755),
)


def shipped(etc: Path) -> Iterator[Shipped]:
    """The files to install from the directory `etc` of the source tree; below fail2ban/ all there are."""
    yield from (one for one in _SHIPPED if (etc / one.source).exists())
    for path in sorted((etc / "fail2ban").rglob("*")):
        if path.is_file():
            name = str(path.relative_to(etc))
            yield Shipped(name, f"/etc/{name}")


def installed() -> Iterator[str]:
    """Where files of ours can be, for whoever removes them."""
    yield from (one.target for one in _SHIPPED)
    for directory in ("filter.d", "jail.d"):
        yield from (f"/etc/fail2ban/{directory}/{name}" for name in ("mailsrv.conf", "mailsrv.local"))
