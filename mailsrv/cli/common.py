"""What commands share: their place in the parser, output, progress, the configuration, the accounts.

Imports: config, mail.accounts, errors.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from mailsrv import config
from mailsrv.mail.accounts import Accounts

DONE, FAILED, MISUSED, NOT_RUNNING = 0, 1, 2, 3
_SIZES = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
READING = {"list", "show", "check", "status", "who", "trace", "sample", "reference", "version", "why", "stats"}
Command = Callable[[argparse.Namespace], int]


class Failure(Exception):
    """The command did not do what was asked; the text says why and what to do."""


class Commands:
    """Where a module puts its commands: `add("check", check, "…")`, `noun("user", "…")`, which gives another of these.

    Every command takes `--config` and `--json`; it finds them, its own arguments and `at_end` (an ExitStack) in the
    namespace it is called with, and returns the exit code.
    """

    def __init__(self, group: Any, shared: argparse.ArgumentParser, noun: str = "") -> None:
        self._group, self._shared, self._noun = group, shared, noun

    def add(self, name: str, run: Command, text: str, *, reads: bool | None = None) -> argparse.ArgumentParser:
        """`reads`: it changes nothing, so that the audit trail need not know. By default the verbs in READING."""
        made = self._parser(name, text)
        full_name = f"{self._noun} {name}".strip()
        made.set_defaults(run=run, full_name=full_name, reads=name in READING if reads is None else reads)
        return made

    def noun(self, name: str, text: str) -> Commands:
        group = self._parser(name, text).add_subparsers(metavar="VERB", required=True)
        return Commands(group, self._shared, f"{self._noun} {name}".strip())

    def _parser(self, name: str, text: str) -> argparse.ArgumentParser:
        words = text[0].upper() + text[1:] + "."
        made: argparse.ArgumentParser = self._group.add_parser(
            name, help=text, description=words, parents=[self._shared], allow_abbrev=False
        )
        return made


# ------------------------------------------------------------------ output


def say(text: str) -> None:
    print(text, file=sys.stderr)


def printable(text: str) -> str:
    """For a terminal: what clients and other servers call themselves must not be able to command it."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(char: str) -> str:
    return f"\\x{ord(char):02x}" if ord(char) < 0x100 else char.encode("ascii", "backslashreplace").decode()


def table(args: argparse.Namespace, rows: list[dict[str, Any]], columns: Sequence[str]) -> None:
    """Rows as aligned columns, or as JSON with every field."""
    if args.json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    if not rows:
        return
    lines = [[column.replace("_", " ").upper() for column in columns]]
    lines += [["" if row[column] is None else printable(str(row[column])) for column in columns] for row in rows]
    widths = [max(len(line[position]) for line in lines) for position in range(len(columns))]
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


class Finding(Protocol):
    """What was seen, whether it is in order (ok, warn, fail), and what to do if not."""

    @property
    def result(self) -> str: ...
    @property
    def what(self) -> str: ...
    @property
    def advice(self) -> str: ...


def print_findings(args: argparse.Namespace, findings: Sequence[Finding]) -> int:
    """All of them; FAILED if one is a failure."""
    if args.json:
        rows = [{"result": one.result, "what": one.what, "advice": one.advice} for one in findings]
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    else:
        for one in findings:
            text = f"{one.result:<5} {one.what}" + (f"\n      {one.advice}" if one.advice else "")
            print("\n".join(map(printable, text.split("\n"))))
    return FAILED if any(one.result == "fail" for one in findings) else DONE


class Progress:
    """One line on a terminal that says how far long work is; lines now and then elsewhere, if `total` is known."""

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._done = what, total, 0
        self._terminal = sys.stderr.isatty()
        self._told = -1

    def step(self, name: str = "") -> None:
        self._done += 1
        share = 100 * self._done // max(self._total, 1)
        if self._terminal:
            of = f" of {self._total}" if self._total else ""
            sys.stderr.write("\r\033[K" + printable(f"{self._what} {self._done}{of} {name}")[:200])
            if self._total and self._done >= self._total:
                sys.stderr.write("\r\033[K")
            sys.stderr.flush()
        elif self._total and share // 10 > self._told // 10:
            self._told = share
            say(f"{self._what} {self._done} of {self._total}")

    def end(self) -> None:
        """Of work whose total was not known."""
        if self._terminal and self._done:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()


# ------------------------------------------------------------------ what they act on


def config_path(args: argparse.Namespace) -> str:
    return args.config or os.environ.get("MAILSRV_CONFIG") or config.DEFAULT_PATH


def load_config(args: argparse.Namespace, *, stay_root: bool = False) -> config.Config:
    """The configuration. From then on root is the server's user, so that the server owns what a command writes."""
    if args.settings is None:
        args.settings = config.load(config_path(args))
    settings: config.Config = args.settings
    if not stay_root:
        os.umask(config.UMASK)
        if os.geteuid() == 0 and settings["server.user"]:
            from mailsrv import privileges

            identity = privileges.wanted(settings)
            if identity is not None:
                privileges.drop(identity)
    return settings


def open_accounts(args: argparse.Namespace) -> Accounts:
    settings = load_config(args)
    accounts = Accounts(settings.accounts_path, settings.mail_root)
    args.at_end.callback(accounts.close)
    return accounts


def new_password(args: argparse.Namespace, address: str) -> str:
    """A new password from standard input or from two prompts; never from the command line, which others can see."""
    from mailsrv.mail.passwords import check_strength

    if args.password_stdin:
        password = sys.stdin.readline().rstrip("\r\n")
    else:
        if not sys.stdin.isatty():
            raise Failure("No terminal to ask for the password on: use --password-stdin")
        password = getpass.getpass(f"New password for {address}: ")
        if getpass.getpass("Again: ") != password:
            raise Failure("The two differ; nothing was changed")
    check_strength(password)
    return password


def size(text: str) -> int:
    found = re.fullmatch(r"(\d{1,12}) ?([KMGT]?)(?:i?B)?", text, re.IGNORECASE)
    if found is None:
        raise argparse.ArgumentTypeError(f"expected a size such as 500M or 10G, or 0 for no limit, found {text!r}")
    return int(found[1]) * _SIZES[found[2].upper()]


def port(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or not 0 <= int(text) <= 64_000:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 64000, found {text!r}")
    return int(text)


def human(octets: int) -> str:
    value = float(octets)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
