"""`mailsrv install` and `mailsrv uninstall`: program, user, directories, configuration, and the files of `etc/`.

Installing again brings everything to what this source tree has; the configuration is never overwritten. Uninstalling
never touches mail and accounts.

Imports: config, installation.
"""

from __future__ import annotations

import os
import pwd
import shutil

from mailsrv import config
from mailsrv.installation import actions, edit, layout, program
from mailsrv.installation.actions import Actions
from mailsrv.settings import SETTINGS

ETC = program.SOURCE / "etc"


class InstallError(Exception):
    """It cannot be done; the text says why and what to do."""


def first_configuration() -> str:
    """The sample, as an installed server needs it."""
    wanted = {"server.user": layout.USER, "log.file": f"{layout.LOGS}/mailsrv.log"}
    known = {setting.name for setting in SETTINGS}
    return edit.set_values(config.sample(), {name: value for name, value in wanted.items() if name in known})


def install(doing: Actions, *, dry: bool) -> None:
    """Everything, in an order in which each step finds what it needs. InstallError, BuildError, OSError."""
    _require_root(doing, dry=dry)
    if not program.is_source():
        raise InstallError("mailsrv install is run from the source tree: bin/mailsrv install")
    if _packaged(doing):
        raise InstallError("the Debian package mailsrv is installed here; upgrade that, or remove it first")
    python = program.interpreter()
    if doing.here:
        _user(doing)
    _program(doing, python)
    for directory in layout.DIRECTORIES:
        doing.directory(directory.path, directory.mode, directory.owner, directory.group)
    log = f"{layout.LOGS}/mailsrv.log"
    if not doing.at(log).exists():  # fail2ban refuses to start for a log that is not there
        doing.file(log, b"", 0o640, layout.USER, layout.USER)
    _configuration(doing)
    for one in layout.shipped(ETC):
        doing.file(one.target, (ETC / one.source).read_bytes(), one.mode)
    if doing.here:
        _enable(doing)


def uninstall(doing: Actions, *, dry: bool, purge_config: bool) -> None:
    """Take away what `install` made, but for mail and accounts, and the configuration unless that is wanted too."""
    _require_root(doing, dry=dry)
    if _packaged(doing):
        raise InstallError("this is the Debian package; remove it with: apt-get remove mailsrv")
    if doing.here:
        _disable(doing)
    for path in (*layout.installed(), layout.COMMAND, layout.RUN):
        doing.remove(path)
    if purge_config:
        doing.remove(os.path.dirname(layout.CONFIG))
        doing.remove(layout.LOGS)
    doing.remove(layout.PROGRAM)


def _packaged(doing: Actions) -> bool:
    """Is the program that is there the Debian package's?"""
    return os.path.realpath(doing.at(layout.COMMAND)).startswith(f"{doing.prefix}{layout.PACKAGED}/")


def _require_root(doing: Actions, *, dry: bool) -> None:
    if doing.here and not dry and os.geteuid() != 0:
        raise InstallError("only root can do that; see what it would do with --dry-run")


def _user(doing: Actions) -> None:
    try:
        pwd.getpwnam(layout.USER)
    except KeyError:
        doing.run(
            "useradd", "--system", "--user-group", "--no-create-home", "--home-dir", layout.DATA,
            "--shell", "/usr/sbin/nologin", "--comment", "mail server", layout.USER,
        )  # fmt: skip


def _program(doing: Actions, python: str) -> None:
    final = doing.at(layout.PROGRAM)
    new = final.with_name(final.name + ".next")

    def build() -> None:
        shutil.rmtree(new, ignore_errors=True)  # of an installation that was broken off
        program.build(new, layout.PROGRAM, python)
        program.put(final)
        program.compile_all(final)

    doing.do(f"build the program in {final} on {python} (pip installs its libraries)", build)
    doing.link(layout.COMMAND, f"{layout.PROGRAM}/bin/mailsrv")


def _configuration(doing: Actions) -> None:
    text = first_configuration().encode()
    place = doing.at(layout.CONFIG)
    if not place.exists():
        doing.file(layout.CONFIG, text, 0o640, "root", layout.USER)
    elif place.read_bytes() != text:
        doing.file(layout.CONFIG + ".new", text, 0o640, "root", layout.USER)


def _enable(doing: Actions) -> None:
    """Start it with the machine. Not now: it knows no domain yet."""
    if actions.systemd_runs():
        doing.run("systemctl", "daemon-reload")
        doing.run("systemctl", "enable", "mailsrv")
        doing.run("systemctl", "enable", "--now", layout.TIMER)
    elif actions.has(["update-rc.d"]):
        doing.run("update-rc.d", "mailsrv", "defaults")
    elif actions.has(["chkconfig"]):
        doing.run("chkconfig", "--add", "mailsrv")


def _disable(doing: Actions) -> None:
    if actions.systemd_runs():
        doing.run("systemctl", "disable", "--now", "mailsrv", layout.TIMER, may_fail=True)
    elif os.path.exists(layout.INIT):
        doing.run(layout.INIT, "stop", may_fail=True)
        if actions.has(["update-rc.d"]):
            # It removes the links of a script that is gone; with -f of one that is still there.
            doing.run("update-rc.d", "-f", "mailsrv", "remove", may_fail=True)
        elif actions.has(["chkconfig"]):
            doing.run("chkconfig", "--del", "mailsrv", may_fail=True)
