"""Commands that look at a running server: status, who, kick, loglevel, trace.

Imports: cli.common, control, config; what only one needs is imported there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mailsrv.cli.common import DONE, FAILED, NOT_RUNNING, Commands, Failure, load_config, printable, say, table
from mailsrv.config import Config

CLEAR = "\033[H\033[2J"  # ECMA-48: the cursor to the corner, the screen empty


def status(args: argparse.Namespace) -> int:
    from mailsrv.cli import report

    settings = load_config(args)
    try:
        while True:
            found = report.collect(settings)
            if args.json:
                text = json.dumps(found, ensure_ascii=False, indent=None if args.watch else 1)
            else:
                shown = "\n".join(map(printable, report.written(found).split("\n")))
                text = (CLEAR if args.watch and sys.stdout.isatty() else "") + shown
            print(text, flush=True)
            if not args.watch:
                break
            time.sleep(args.seconds)
    except KeyboardInterrupt:
        pass
    return DONE if found["running"] else NOT_RUNNING


def _ask_all(settings: Config, question: str, **more: Any) -> list[Any]:
    """What the processes answered; Failure if none is there or one does not answer."""
    from mailsrv.control import ask_all

    replies = ask_all(settings["server.run_dir"], question, **more)
    if not replies:
        raise Failure(f"No server runs on this configuration ({settings['server.run_dir']})")
    for reply in replies:
        if reply.error:
            say(f"mailsrv: {reply.process} (pid {reply.pid}): {reply.error}")
    answers = [reply.answer for reply in replies if not reply.error]
    if not answers:
        raise Failure("No process answered")
    return answers


def who(args: argparse.Namespace) -> int:
    rows = [row for answer in _ask_all(load_config(args), "who") for row in answer]
    if args.whom:
        rows = [row for row in rows if args.whom in (row["user"], row["peer"], row["session"], row["service"])]
    _show(args, sorted(rows, key=_order))
    return DONE


COLUMNS = ("session", "service", "user", "peer", "tls", "mailbox", "state", "for", "client")


def _order(row: dict[str, Any]) -> tuple[str, str, float]:
    return row["user"] or "", row["service"], row["connected_at"]


def _show(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    from mailsrv.cli.report import lasting

    if not args.json:
        now = time.time()
        for row in rows:
            row["for"] = lasting(now - (row["idling_since"] or row["connected_at"]))
            row["tls"] = "yes" if row["tls"] else "no"
    table(args, rows, COLUMNS)


def kick(args: argparse.Namespace) -> int:
    rows = [row for answer in _ask_all(load_config(args), "kick", whom=args.whom, reason=args.reason) for row in answer]
    _show(args, rows)
    if not rows:
        say(f"mailsrv: no session of {args.whom}; `mailsrv who` lists all")
        return FAILED
    return DONE


def loglevel(args: argparse.Namespace) -> int:
    answers = _ask_all(load_config(args), "loglevel", level=args.level)
    levels = sorted({answer["level"] for answer in answers})
    print(json.dumps({"level": levels[0]}) if args.json else " ".join(levels))
    return DONE


def trace(args: argparse.Namespace) -> int:
    from mailsrv import story

    with _logs(args) as paths:
        told, count = story.Tracer(paths).tell(args.about, args.last)
    if args.json:
        print(json.dumps([story.as_json(one) for one in told], indent=1, ensure_ascii=False))
    elif told:
        print("\n\n".join(story.written(one) for one in told))
    if not told:
        say(f"mailsrv: nothing about {args.about} in {', '.join(args.log or paths)}")
        return FAILED
    if count > len(told):
        say(f"mailsrv: {count} messages; these are the last {len(told)} (--last N)")
    return DONE


@contextmanager
def _logs(args: argparse.Namespace) -> Iterator[list[str]]:
    """The files to read; standard input is kept in one meanwhile, since it is read several times."""
    from mailsrv.story import log_files

    if args.log and "-" not in args.log:
        yield args.log
    elif args.log:
        with tempfile.NamedTemporaryFile() as kept:
            shutil.copyfileobj(sys.stdin.buffer, kept)
            kept.flush()
            yield [kept.name if path == "-" else path for path in args.log]
    else:
        path = load_config(args)["log.file"]
        if path in ("", "syslog"):
            raise Failure(
                f"The log goes to {path or 'standard error'}, not to a file (log.file). Where systemd keeps it: "
                f"journalctl -u mailsrv | mailsrv trace '{args.about}' --log -"
            )
        paths = log_files(path)
        if not paths:
            raise Failure(f"log.file: there is no {path}, nor anything rotated away of it")
        yield paths


def register(commands: Commands) -> None:
    one = commands.add("status", status, "show how the server is: exit code 0 if it runs, 3 if not")
    one.add_argument("--watch", action="store_true", help="show it again and again")
    one.add_argument("--seconds", type=float, default=2.0, metavar="N", help="how often with --watch (2)")
    one = commands.add("who", who, "list the sessions of clients")
    one.add_argument("whom", nargs="?", help="of this user, address or service only")
    one = commands.add("kick", kick, "end sessions: the client is told why")
    one.add_argument("whom", help="a user, an IP address, or a session as `who` names it")
    one.add_argument("--reason", metavar="TEXT", help="what the client is told")
    one = commands.add("loglevel", loglevel, "show or set what a running server logs, until its next start")
    one.add_argument("level", nargs="?", choices=("debug", "info", "warning", "error"))
    one = commands.add("trace", trace, "tell the story of a message from the log: whence, where, who was told when")
    one.add_argument("about", help="a Message-ID, an address, a session, or the id that is in its Received line")
    one.add_argument(
        "--log", metavar="FILE", action="append",
        help="read this, - is standard input (default: log.file and what was rotated away of it)",
    )  # fmt: skip
    one.add_argument("--last", type=int, default=5, metavar="N", help="of several messages, the last N (5)")
