"""Commands about the machine: install, uninstall.

Imports: cli.common, installation.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from mailsrv.cli.common import DONE, Commands, Failure, say
from mailsrv.installation import install as installation
from mailsrv.installation import layout
from mailsrv.installation.actions import Actions
from mailsrv.installation.program import BuildError


def install(args: argparse.Namespace) -> int:
    doing = Actions(print, prefix=args.prefix, dry=args.dry_run)
    with _told():
        installation.install(doing, dry=args.dry_run)
    if args.dry_run:
        say("That is what would be done.")
    elif doing.here:
        say("Installed. Next: mailsrv setup")
    return DONE


def uninstall(args: argparse.Namespace) -> int:
    doing = Actions(print, prefix=args.prefix, dry=args.dry_run)
    with _told():
        installation.uninstall(doing, dry=args.dry_run, purge_config=args.purge_config)
    if args.dry_run:
        say("That is what would be done.")
    say(f"Mail and accounts stay in {doing.at(layout.DATA)}, and so does the user {layout.USER} who owns them.")
    if not args.purge_config:
        say(f"The configuration stays in {doing.at(layout.CONFIG).parent}, the logs in {doing.at(layout.LOGS)}.")
    return DONE


@contextmanager
def _told() -> Iterator[None]:
    """Failures of installing, in words."""
    try:
        yield
    except (installation.InstallError, BuildError) as failure:
        raise Failure(str(failure)) from None
    except subprocess.CalledProcessError as failure:
        raise Failure(f"{' '.join(failure.cmd)}: failed with code {failure.returncode}") from None


def register(commands: Commands) -> None:
    one = commands.add("install", install, "install the program from its source tree, as a service (root)")
    two = commands.add("uninstall", uninstall, "remove what install made; mail, accounts and configuration stay (root)")
    for command in (one, two):
        command.add_argument("--dry-run", action="store_true", help="only print what would be done")
        command.add_argument(
            "--prefix", metavar="DIR", default="", help="do it below DIR as if that were /: files alone, no service"
        )
    two.add_argument("--purge-config", action="store_true", help="remove the configuration and the logs too")
