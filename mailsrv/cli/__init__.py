"""The command: `mailsrv <noun> <verb>`, a few lines each over the same objects the server uses.

Data goes to standard output (`--json` for programs), words to standard error. Exit codes: 0 done, 1 failed, 2 misused;
`status` as init scripts expect: 0 running, 3 not running. Each module here registers the commands of its subject.

Imports: everything. Commands that need little import little: what only one needs is imported there.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack

from mailsrv import __version__, config
from mailsrv.cli import dkim, dns, installing, limits, mailboxes, people, queue, server, watching
from mailsrv.cli.common import FAILED, Command, Commands, Failure, say
from mailsrv.errors import MailError

SUBJECTS = (server, watching, people, mailboxes, queue, limits, installing, dkim, dns)


def parser() -> argparse.ArgumentParser:
    """All commands with their options and words of help."""
    top = argparse.ArgumentParser(
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
    top.set_defaults(config=None, json=False)
    commands = Commands(top.add_subparsers(metavar="COMMAND", required=True), shared)
    for subject in SUBJECTS:
        subject.register(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    from mailsrv.start import StartError

    args = parser().parse_args(argv)
    run: Command = args.run
    try:
        with ExitStack() as args.at_end:
            code = run(args)
        sys.stdout.flush()
        return code
    except config.ConfigError as error:
        for problem in error.problems:
            say(f"mailsrv: {problem}")
    except (Failure, MailError, StartError) as failure:
        say(f"mailsrv: {failure}")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader has seen enough; nothing more can be said
    except OSError as failure:
        say(f"mailsrv: {failure.filename or ''}: {failure.strerror or failure}".replace(": :", ":"))
    except KeyboardInterrupt:
        say("")
    return FAILED
