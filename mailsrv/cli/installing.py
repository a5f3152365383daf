"""Commands about the machine: install, uninstall, preflight, setup.

Imports: cli.common, installation.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mailsrv.cli.common import DONE, FAILED, Commands, Failure, config_path, print_findings, say, table
from mailsrv.installation import install as installation
from mailsrv.installation import layout
from mailsrv.installation.actions import Actions
from mailsrv.installation.program import BuildError
from mailsrv.installation.setup import Answers, Present, SetupError


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
    from mailsrv import privileges  # noqa: F401  (for the audit trail, written when the program is gone)

    doing = Actions(print, prefix=args.prefix, dry=args.dry_run)
    with _told():
        installation.uninstall(doing, dry=args.dry_run, purge_config=args.purge_config)
    if args.dry_run:
        say("That is what would be done.")
    say(f"Mail and accounts stay in {doing.at(layout.DATA)}, and so does the user {layout.USER} who owns them.")
    if not args.purge_config:
        say(f"The configuration stays in {doing.at(layout.CONFIG).parent}, the logs in {doing.at(layout.LOGS)}.")
    return DONE


def preflight(args: argparse.Namespace) -> int:
    from mailsrv.installation import preflight as looking
    from mailsrv.installation import setup as setting_up

    return print_findings(args, looking.examine(setting_up.look(config_path(args)).settings, args.outgoing))


def setup(args: argparse.Namespace) -> int:
    from mailsrv.installation import preflight as looking
    from mailsrv.installation import setup as setting_up

    with _told():
        setting_up.require_rights(config_path(args))
        present = setting_up.look(config_path(args))
        troubles = [finding for finding in looking.examine(present.settings) if finding.result != "ok"]
        for finding in troubles:
            say(f"{finding.result:<5} {finding.what}\n      {finding.advice}")
        if any(finding.result == "fail" for finding in troubles) and not args.no_start:
            raise Failure("the server could not start; put that right first, or use --no-start")
        answers = _answers(args, present)
        if answers is None:
            say("Nothing was changed.")
            return FAILED
        changed = setting_up.changes(present, setting_up.copied(present, answers))
        setting_up.write(present, changed)
        setting_up.people(present, answers)
        present = setting_up.look(present.path)
        if not args.no_start:
            say(setting_up.start(present, changed))
        _next(args, present, answers)
    return DONE


def _answers(args: argparse.Namespace, present: Present) -> Answers | None:
    """From options, and from questions unless --yes; None if the person has thought better of it."""
    from mailsrv.installation import setup as setting_up

    password = sys.stdin.readline().rstrip("\r\n") if args.password_stdin else ""
    certificate = setting_up.SELF_SIGNED if args.self_signed else args.certificate
    given = setting_up.Answers(args.hostname, args.domain, args.user, password, certificate, args.key)
    if args.yes:
        return setting_up.checked(setting_up.defaults(present, given))
    if not sys.stdin.isatty():
        raise Failure("no terminal to ask on: give the answers as options, and --yes")
    answers = setting_up.checked(setting_up.ask(present, given))
    for name, value in setting_up.changes(present, answers).items():
        say(f"  {name}: {value or 'nothing'}")
    if answers.domain not in present.domains:
        say(f"  new domain {answers.domain}, with a key to sign its mail")
    if answers.user not in present.users:
        say(f"  new user {answers.user}")
    return answers if setting_up.confirmed() else None


def _next(args: argparse.Namespace, present: Present, answers: Answers) -> None:
    """What the administrator needs now: records for the DNS, and what to enter in a mail program."""
    from mailsrv.installation import setup as setting_up

    rows = setting_up.connection_rows(present.settings, answers)
    if args.json:
        records = json.loads(setting_up.command(present, "dns", "generate", answers.domain, "--json"))
        print(json.dumps({"connections": rows, "dns": records}, indent=1))
        return
    print("\nIn a mail program:\n")
    table(args, rows, ("to", "server", "port", "security", "user_name"))
    if answers.certificate == setting_up.SELF_SIGNED:
        print("\nMail programs will warn of the certificate, which nobody vouches for; get one: docs/install.md.")
    print(f"\nFor the DNS of {answers.domain}:\n")
    print(setting_up.command(present, "dns", "generate", answers.domain, "--form", "table"))
    print(f"When they are published: mailsrv dns check {answers.domain}")


@contextmanager
def _told() -> Iterator[None]:
    """Failures of installing, in words."""
    try:
        yield
    except (installation.InstallError, BuildError, SetupError) as failure:
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

    one = commands.add("preflight", preflight, "look at a machine before a server is set up on it", reads=True)
    one.add_argument("--outgoing", metavar="HOST", default="", help="a mail server to reach on port 25")

    one = commands.add("setup", setup, "ask what matters, write the configuration, start the server (root)")
    one.add_argument("--hostname", metavar="NAME", default="", help="name of this server, such as mx.example.org")
    one.add_argument("--domain", default="", metavar="NAME", help="domain to receive mail for")
    one.add_argument("--user", default="", metavar="ADDRESS", help="first user; the part before the @ is enough")
    one.add_argument("--password-stdin", action="store_true", help="read the user's password from standard input")
    one.add_argument("--certificate", default="", metavar="FILE", help="PEM file with the certificate chain")
    one.add_argument("--key", default="", metavar="FILE", help="PEM file with its key (default: found beside it)")
    one.add_argument("--self-signed", action="store_true", help="no certificate: the server makes its own")
    one.add_argument("--no-start", action="store_true", help="neither start the server nor have it read anything")
    one.add_argument("--yes", action="store_true", help="ask nothing: what is not given stays as it is")
