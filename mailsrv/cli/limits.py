"""Commands about who has to wait: list, clear.

Imports: cli.common, mail.throttle.
"""

from __future__ import annotations

import argparse
import os
import time

from mailsrv.cli.common import DONE, Commands, Failure, load_config, say, table
from mailsrv.config import Config
from mailsrv.mail.throttle import Throttle


def _throttle(args: argparse.Namespace, settings: Config) -> Throttle | None:
    from mailsrv.daemon import throttle_limits

    if not os.path.exists(settings.throttle_path):
        return None  # nobody failed yet: and the server makes the file, as its own user
    throttle = Throttle(settings.throttle_path, throttle_limits(settings))
    args.at_end.callback(throttle.close)
    return throttle


def limits_list(args: argparse.Namespace) -> int:
    throttle = _throttle(args, load_config(args))
    rows = [
        {
            "kind": entry.kind, "who": entry.who, "failures": round(entry.failures, 1),
            "wait_seconds": round(entry.wait_seconds),
            "last": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(entry.last_at)),
        }
        for entry in (throttle.entries() if throttle is not None else [])
    ]  # fmt: skip
    table(args, rows, ("kind", "who", "failures", "wait_seconds", "last"))
    return DONE


def limits_clear(args: argparse.Namespace) -> int:
    """Forgive, at once."""
    if bool(args.who) == args.all:
        raise Failure("Say whom to forgive: a user, an address, a network, or --all")
    throttle = _throttle(args, load_config(args))
    went = 0
    for who in args.who or [None]:
        went += throttle.clear(who) if throttle is not None else 0
    say(f"{went} entries forgotten")
    return DONE


def register(commands: Commands) -> None:
    group = commands.noun("limits", "who has to wait after failed logins or for guessing addresses")
    group.add("list", limits_list, "list who failed lately, and for how long they have to wait")
    one = group.add("clear", limits_clear, "forgive a user, an address or a network, at once")
    one.add_argument("who", nargs="*", metavar="who", help="ann@example.org, 192.0.2.7, 192.0.2.0/24, 2001:db8::1")
    one.add_argument("--all", action="store_true", help="forgive everybody")
