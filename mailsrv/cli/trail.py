"""Commands about the audit trail: list.

Imports: cli.common, audit.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import time
from collections import deque

from mailsrv import audit
from mailsrv.cli.common import DONE, Commands, load_config, table

_UNITS = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


def moment(text: str) -> str:
    """`2026-01-31`, `2026-01-31T12:00`, or so long ago: `30m`, `12h`, `7d`, `4w`. UTC, as it stands in the entries."""
    ago = re.fullmatch(r"(\d{1,6})([mhdw])", text)
    if ago is not None:
        return audit.timestamp(time.time() - int(ago[1]) * _UNITS[ago[2]])
    try:
        when = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a date such as 2026-01-31 or 2026-01-31T12:00, or 30m, 12h, 7d, 4w, found {text!r}"
        ) from None
    return audit.timestamp((when if when.tzinfo else when.replace(tzinfo=datetime.UTC)).timestamp())


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < len(text) < 10):
        raise argparse.ArgumentTypeError(f"expected a whole number, found {text!r}")
    return int(text)


def audit_list(args: argparse.Namespace) -> int:
    query = audit.Query(args.user or "", args.action_is or "", args.since or "", args.until or "")
    records = deque(audit.read(audit.directory_of(load_config(args)), query), args.last)
    if args.json:
        print(json.dumps(list(records), indent=1, ensure_ascii=False))
        return DONE
    rows = [
        {
            "time": record.get("time"), "action": record.get("action"), "outcome": record.get("outcome"),
            "by": _by(record), "target": _target(record), "more": _more(record),
        }
        for record in records
    ]  # fmt: skip
    table(args, rows, ("time", "action", "outcome", "by", "target", "more"))
    return DONE


def _by(record: audit.Record) -> str:
    by = record.get("by")
    if not isinstance(by, dict):
        return str(record.get("user") or "")
    behind = by.get("sudo_user") or by.get("login")
    user = str(by.get("user"))
    return f"{user} ({behind})" if behind and behind != user else user


def _target(record: audit.Record) -> str:
    return str(record.get("target") or record.get("peer") or record.get("network") or "")


def _more(record: audit.Record) -> str:
    parts = [f"{name}={record[name]}" for name in ("service", "count", "since", "error") if record.get(name)]
    details = record.get("details")
    if isinstance(details, dict):
        parts += [f"{name}={value}" for name, value in details.items()]
    return " ".join(parts)


def register(commands: Commands) -> None:
    group = commands.noun("audit", "what administrators did, and who logged in")
    one = group.add("list", audit_list, "list the entries of the audit trail, the newest last")
    one.add_argument("--user", metavar="NAME", help="of or about this account, administrator or address")
    one.add_argument(
        "--action", dest="action_is", metavar="WORDS", help='such as user, "user add", login, "login failed"'
    )
    one.add_argument("--since", type=moment, metavar="WHEN", help="2026-01-31, 2026-01-31T12:00 (UTC), or 12h, 7d")
    one.add_argument("--until", type=moment, metavar="WHEN", help="before then")
    one.add_argument("--last", type=_number, metavar="N", help="only the last so many")
