"""The command: `mailsrv <noun> <verb>`, a few lines each over the same objects the server uses.

Data goes to standard output (`--json` for programs), words to standard error. Exit codes: 0 done, 1 failed, 2 misused;
`status` as init scripts expect: 0 running, 3 not running. Each module here registers the commands of its subject.

Imports: everything. Commands that need little import little: what only one needs is imported there; and a server, which
stays in memory for months, does without all the others.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Protocol

from mailsrv import __version__, audit, config
from mailsrv.cli import server
from mailsrv.cli.common import FAILED, MISUSED, Command, Commands, Failure, load_config, say
from mailsrv.errors import MailError


class Subject(Protocol):
    """A module with commands."""

    def register(self, commands: Commands) -> None: ...


def subjects() -> Sequence[Subject]:
    """All of them."""
    from mailsrv.cli import dkim, dns, examining, installing, limits, mailboxes, people, queue, trail, watching

    return server, examining, watching, people, mailboxes, queue, limits, trail, installing, dkim, dns


class _Parser(argparse.ArgumentParser):
    """Names the nearest command where there is none of a name, not all of them. Its subparsers are like it."""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            close = difflib.get_close_matches(str(value), list(action.choices), n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else f"see {self.prog} --help"
            raise argparse.ArgumentError(None, f"there is no {self.prog} {value}; {hint}")
        super()._check_value(action, value)


def parser(of: Sequence[Subject] | None = None) -> argparse.ArgumentParser:
    """All commands with their options and words of help; or those of some subjects."""
    top = _Parser(
        prog="mailsrv", description="A mail server: SMTP in, IMAP with instant push, plain Maildir on disk.",
        epilog="Try it without any setup: mailsrv quickstart", allow_abbrev=False,
    )  # fmt: skip
    top.add_argument("--version", action="version", version=f"mailsrv {__version__}")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "-c", "--config", metavar="FILE", default=argparse.SUPPRESS,
        help=f"configuration file (default: $MAILSRV_CONFIG, else {config.DEFAULT_PATH})",
    )  # fmt: skip
    shared.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="answer in JSON")
    top.set_defaults(config=None, json=False, settings=None)
    commands = Commands(top.add_subparsers(metavar="COMMAND", required=True), shared)
    for subject in subjects() if of is None else of:
        subject.register(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code. What may have changed something goes into the audit trail."""
    words = sys.argv[1:] if argv is None else argv
    commands = parser([server] if words[:1] == ["serve"] else None)
    if not words:
        commands.print_help(sys.stderr)
        return MISUSED
    args = commands.parse_args(words)
    args.by = audit.whoever_runs_this()  # before root becomes the server's user
    try:
        code, error = _run(args)
    except BaseException as failure:
        _remember(args, f"{type(failure).__name__}: {failure}")
        raise
    _remember(args, error if code else None)
    return code


def _run(args: argparse.Namespace) -> tuple[int, str]:
    """The exit code, and for the trail what went wrong; all that is for the user to read is said here."""
    from mailsrv.start import StartError

    run: Command = args.run
    said = ""
    try:
        with ExitStack() as args.at_end:
            code = run(args)
        sys.stdout.flush()
        return code, f"exit code {code}"
    except config.ConfigError as error:
        said = "\n".join(f"mailsrv: {problem}" for problem in error.problems)
    except (Failure, MailError, StartError) as failure:
        said = f"mailsrv: {failure}"
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader has seen enough; nothing more can be said
        return FAILED, "the reader of the output went away"
    except OSError as failure:
        said = f"mailsrv: {failure.filename or ''}: {failure.strerror or failure}".replace(": :", ":")
    except KeyboardInterrupt:
        said = ""
    say(said)
    return FAILED, said.removeprefix("mailsrv: ") or "interrupted"


def _remember(args: argparse.Namespace, error: str | None) -> None:
    """One entry for a command that changes something. A trail that cannot be written is no reason to undo it."""
    if args.reads:
        return
    try:
        settings = load_config(args)
        if os.path.isdir(settings["server.data_dir"]):
            trail = audit.Trail(audit.directory_of(settings), audit.ADMIN, settings["audit.days"])
            trail.append([audit.command_record(args, error)], sync=True)
    except config.ConfigError:
        pass  # it was said already, and nothing was changed
    except OSError as failure:
        say(f"mailsrv: note: the audit trail was not written: {failure.filename or ''}: {failure.strerror or failure}")
