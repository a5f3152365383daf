"""Commands about mail on its way to other servers: list, show, why, retry, hold, release, remove, bounce, stats.

They act on the files of the queue themselves, under each entry's lock, whether a runner works or not, and then wake it.

Imports: cli.common, store.{spool,entry}, mail.wakeup, runner.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import islice
from typing import Any

from mailsrv.cli.common import DONE, FAILED, Commands, Failure, human, load_config, printable, say, table
from mailsrv.store import entry as states
from mailsrv.store.entry import Attempt, Entry, EntryDamaged, Recipient, Stamp
from mailsrv.store.spool import EntryGone, Ownership, Spool, is_id, time_of
from mailsrv.values import Disposition, Outcome

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def _spool(args: argparse.Namespace) -> Spool:
    from mailsrv import runner

    return runner.spool_of(load_config(args))


def _wake(args: argparse.Namespace, ids: list[str]) -> None:
    from mailsrv import runner
    from mailsrv.mail.wakeup import tell

    tell(runner.socket_path(load_config(args)), ids)


# ------------------------------------------------------------------ choosing


def age(text: str) -> float:
    found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?) ?([smhdw])", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"expected a time such as 30m, 4h or 2d, found {text!r}")
    return float(found[1]) * _UNITS[found[2]]


def count(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, found {text!r}")
    return int(text)


def _wanted(args: argparse.Namespace, entry: Entry) -> bool:
    sender = str(entry.envelope.sender or "<>").lower()
    recipients = [one for one in entry.recipients if one.state == states.WAITING]
    if args.sender and args.sender.lower() not in (sender, f"@{sender.rpartition('@')[2]}"):
        return False
    if args.recipient and args.recipient.lower() not in (str(one.address).lower() for one in recipients):
        return False
    if args.domain and args.domain.lower() not in (one.address.domain for one in recipients):
        return False
    return not args.held or entry.hold


def _filtered(args: argparse.Namespace) -> bool:
    return bool(args.sender or args.recipient or args.domain or args.held)


def _ids(args: argparse.Namespace, spool: Spool) -> list[str]:
    """By name alone: those asked for, of the age asked for; oldest first."""
    if args.id:
        for id in args.id:
            if not is_id(id):
                raise Failure(f"{id}: not the name of an entry (mailsrv queue list shows them)")
        return list(dict.fromkeys(args.id))
    now = time.time()
    ids = spool.ids()
    if args.older_than is not None:
        ids = [id for id in ids if time_of(id) <= now - args.older_than]
    if args.newer_than is not None:
        ids = [id for id in ids if time_of(id) > now - args.newer_than]
    return ids


def _entries(args: argparse.Namespace, spool: Spool, ids: list[str]) -> Iterator[Entry]:
    """The entries that are wanted; what cannot be read is told on standard error."""
    for id in ids:
        try:
            entry = spool.load(id)
        except EntryGone:
            if args.id:
                raise Failure(f"{id}: there is no such entry") from None
            continue
        except EntryDamaged as damage:
            say(f"{id}: damaged: {damage}")
            continue
        if _wanted(args, entry):
            yield entry


# ------------------------------------------------------------------ looking


def _time(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at).astimezone().isoformat(timespec="seconds")


def _next(entry: Entry, now: Stamp) -> float | None:
    """When it is tried next, by the clock on the wall; None while it is held."""
    if entry.hold:
        return None
    due = min((entry.remaining(one.next_at, now) for one in entry.waiting), default=0.0)
    if entry.not_before is not None:
        due = max(due, entry.not_before - now.wall)
    return now.wall + due


def _span(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.0f}s"


def _state(entry: Entry) -> str:
    if entry.over:
        return "ending"
    if entry.hold:
        return "held"
    if any(one.report for one in entry.recipients):
        return "reporting"
    if any(one.history for one in entry.waiting):
        return "deferred"
    return "scheduled" if entry.not_before is not None and entry.not_before > time.time() else "new"


def _row(entry: Entry, now: Stamp) -> dict[str, Any]:
    waiting = entry.waiting
    last = max((one.last for one in waiting if one.last), key=lambda tried: tried.at, default=None)
    following = _next(entry, now)
    return {
        "id": entry.id, "state": _state(entry), "sender": str(entry.envelope.sender or "<>"),
        "recipients": [str(one.address) for one in waiting], "all_recipients": len(entry.recipients),
        "to": _some([str(one.address) for one in waiting]), "size_bytes": entry.size, "size": human(entry.size),
        "age_seconds": round(entry.age(now)), "age": _span(entry.age(now)),
        "next_at": _time(following),
        "next": "held" if following is None else "now" if following <= now.wall + 1 else _span(following - now.wall),
        "host": last.host if last else None, "reply": _reply(last) if last else None,
        "last": _reply(last)[:60] if last else None,
    }  # fmt: skip


def _some(names: list[str]) -> str:
    return "" if not names else names[0] + (f" +{len(names) - 1}" if len(names) > 1 else "")


def _reply(tried: Attempt) -> str:
    code = f"{tried.code} " if tried.code else ""
    return f"{code}{tried.enhanced + ' ' if tried.enhanced else ''}{tried.text}"


def queue_list(args: argparse.Namespace) -> int:
    """One page. Without filters only the entries of the page are read."""
    spool = _spool(args)
    ids, first = _ids(args, spool), (args.page - 1) * args.limit
    total: int | None = len(ids)
    if _filtered(args):
        chosen, total = list(islice(_entries(args, spool, ids), first, first + args.limit)), None
    else:
        chosen = list(_entries(args, spool, ids[first : first + args.limit]))
    now = Stamp.now()
    table(args, [_row(one, now) for one in chosen], ("id", "state", "age", "size", "sender", "to", "next", "last"))
    if not args.json:
        if total is None:
            more = "; more may be on the next page" if len(chosen) == args.limit else ""
            say(f"page {args.page}: {len(chosen)} entries{more}")
        elif total > len(chosen) or not total:
            say(f"page {args.page} of {max(1, -(-total // args.limit))}: {total} entries in all")
    return DONE


def queue_show(args: argparse.Namespace) -> int:
    """The envelope, and the beginning of the message."""
    spool = _spool(args)
    for entry in _entries(args, spool, _ids(args, spool)):
        if args.json:
            print(json.dumps(states.to_json(entry), indent=1, ensure_ascii=False))
            continue
        _why(entry, Stamp.now())
        print()
        with open(spool.message_path(entry.id), "rb") as file:
            text = file.read(-1 if args.body else 64 * 1024)
        if not args.body:
            text = text[: max(text.find(b"\r\n\r\n"), 0) or len(text)] + b"\n"
        sys.stdout.flush()
        if sys.stdout.isatty():
            text = "\n".join(map(_shown, text.decode("utf-8", "backslashreplace").split("\n"))).encode()
        sys.stdout.buffer.write(text.replace(b"\r\n", b"\n") if not args.body else text)
        sys.stdout.buffer.flush()
    return DONE


def _shown(line: str) -> str:
    """On a terminal, where the message must not be able to command it; tabs may stay."""
    return "\t".join(map(printable, line.removesuffix("\r").split("\t")))


def queue_why(args: argparse.Namespace) -> int:
    """Every attempt that is remembered, and when the next one is."""
    spool = _spool(args)
    now = Stamp.now()
    entries = list(_entries(args, spool, _ids(args, spool)))
    if args.json:
        print(json.dumps([_explained(entry, now) for entry in entries], indent=1, ensure_ascii=False))
        return DONE
    for number, entry in enumerate(entries):
        if number:
            print()
        _why(entry, now)
    return DONE


def _explained(entry: Entry, now: Stamp) -> dict[str, Any]:
    value = states.to_json(entry)
    for one, told in zip(entry.recipients, value["recipients"], strict=True):
        told["next_at"] = _time(_next_of(entry, one, now)) if one.state == states.WAITING else None
    return {**_row(entry, now), "recipients": value["recipients"], "origin": value["origin"]}


def _next_of(entry: Entry, one: Recipient, now: Stamp) -> float | None:
    if entry.hold:
        return None
    due = entry.remaining(one.next_at, now)
    if entry.not_before is not None:
        due = max(due, entry.not_before - now.wall)
    return now.wall + due


def _why(entry: Entry, now: Stamp) -> None:
    _print(f"{entry.id}: {_state(entry)}, from {entry.envelope.sender or '<>'}, {human(entry.size)}, "
           f"here for {_span(entry.age(now))} ({_time(entry.arrived_at)})")  # fmt: skip
    if entry.hold:
        _print(f"  held: mailsrv queue release {entry.id}")
    if entry.not_before is not None:
        _print(f"  not before {_time(entry.not_before)}")
    if entry.origin.service == states.SCHEDULED:
        _print("  lies in its sender's mailbox for scheduled mail: taken away there, it is cancelled")
    for one in entry.recipients:
        through = f" (through {one.via})" if one.via is not None else ""
        where = f" at {one.destination}" if one.destination and one.destination != one.address.domain else ""
        _print(f"  {one.address}{through}: {one.state}{where}, attempts: {one.attempts}")
        for tried in one.history:
            host = f" {tried.host}" if tried.host else ""
            tls = f" ({tried.tls})" if tried.tls else ""
            _print(f"    {_time(tried.at)} {tried.disposition}{host}{tls}: {_reply(tried)}")
        if one.state == states.WAITING and not entry.hold:
            following = _next_of(entry, one, now)
            assert following is not None
            soon = "as soon as its destination has room" if following <= now.wall + 1 else _time(following)
            _print(f"    next attempt: {soon}")


def _print(line: str) -> None:
    print(printable(line))


def queue_stats(args: argparse.Namespace) -> int:
    """Where mail waits: by destination domain, of all entries or those chosen."""
    from mailsrv import runner

    spool = _spool(args)
    found: dict[str, dict[str, Any]] = {}
    now, entries, octets, held, oldest = Stamp.now(), 0, 0, 0, 0.0
    for entry in _entries(args, spool, _ids(args, spool)):
        entries, octets, held = entries + 1, octets + entry.size, held + entry.hold
        oldest = max(oldest, entry.age(now))
        for one in entry.waiting:
            row = found.setdefault(one.address.domain, {
                "domain": one.address.domain, "recipients": 0, "deferred": 0, "oldest_seconds": 0, "last": None,
            })  # fmt: skip
            row["recipients"] += 1
            row["deferred"] += bool(one.history)
            row["oldest_seconds"] = max(row["oldest_seconds"], round(entry.age(now)))
            row["last"] = _reply(one.last) if one.last else row["last"]
    rows = sorted(found.values(), key=lambda row: -row["recipients"])[: args.limit]
    runs = Ownership(runner.spool_of(load_config(args)).root).holder()
    damaged = spool.damaged()
    if args.json:
        print(json.dumps({
            "entries": entries, "octets": octets, "held": held, "oldest_seconds": round(oldest), "runner_pid": runs,
            "damaged": [{"id": id, "reason": reason} for id, reason in damaged], "domains": rows,
        }, indent=1, ensure_ascii=False))  # fmt: skip
        return DONE
    for row in rows:
        row["oldest"], row["last"] = _span(row["oldest_seconds"]), (row["last"] or "")[:60]
    table(args, rows, ("domain", "recipients", "deferred", "oldest", "last"))
    say(f"{entries} entries, {human(octets)}, {held} held, oldest {_span(oldest)}; "
        f"runner: {f'pid {runs}' if runs is not None else 'not running'}")  # fmt: skip
    for id, reason in damaged:
        say(f"damaged: {spool.damaged_dir}/{id}: {reason}")
    return DONE


# ------------------------------------------------------------------ changing


def _chosen(args: argparse.Namespace, spool: Spool) -> list[str]:
    """Entries that a change is for: named, or chosen by a filter, or all when that is said."""
    chosen = bool(args.id) or _filtered(args) or args.older_than is not None or args.newer_than is not None
    if not chosen and not args.all:
        raise Failure("Which entries? Name them, choose them by a filter, or say --all")
    ids = _ids(args, spool)
    return [one.id for one in _entries(args, spool, ids)] if args.id or _filtered(args) else ids


def _change(args: argparse.Namespace, act: Callable[[Entry, Stamp], bool], done: str) -> int:
    """Change each chosen entry; those that ended meanwhile are left out."""
    spool = _spool(args)
    changed: list[str] = []
    failed = 0

    for id in _chosen(args, spool):
        try:
            spool.change(id, lambda entry: act(entry, spool.now()))
        except EntryGone:
            if args.id:
                say(f"{id}: there is no such entry any more")
                failed += 1
        except EntryDamaged as damage:
            say(f"{id}: damaged: {damage}")
            failed += 1
        else:
            changed.append(id)
    _wake(args, changed)
    if args.json:
        print(json.dumps({done: changed}))
    else:
        say(f"{len(changed)} {'entry' if len(changed) == 1 else 'entries'} {done}")
    return FAILED if failed else DONE


def queue_retry(args: argparse.Namespace) -> int:
    def now_due(entry: Entry, now: Stamp) -> bool:
        for one in entry.waiting:
            entry.delay(one, 0.0, now)
        entry.not_before, entry.asked_at = None, now.wall
        return True

    return _change(args, now_due, "due now")


def queue_hold(args: argparse.Namespace) -> int:
    def hold(entry: Entry, now: Stamp) -> bool:
        entry.hold = True
        return True

    return _change(args, hold, "held")


def queue_release(args: argparse.Namespace) -> int:
    def release(entry: Entry, now: Stamp) -> bool:
        entry.hold = False
        return True

    return _change(args, release, "released")


def queue_remove(args: argparse.Namespace) -> int:
    def remove(entry: Entry, now: Stamp) -> bool:
        if entry.shown is None:
            return False
        for one in entry.waiting:  # it is shown to its sender: the runner takes that away, and then the entry
            one.state = states.CANCELLED
        return True

    return _change(args, remove, "removed")


def queue_bounce(args: argparse.Namespace) -> int:
    """Give up what waits: the sender is told. The report is written by the runner."""

    def give_up(entry: Entry, now: Stamp) -> bool:
        for one in entry.waiting:
            text = "Returned by the administrator" + (f"; at last: {one.last.text}" if one.last else "")
            host = one.last.host if one.last else ""
            code = one.last.code if one.last else 0
            one.note(Outcome(one.address, Disposition.NEVER, code, "5.0.0", text, host), now.wall)
            one.state = states.FAILED
            if not one.options.notify or "FAILURE" in one.options.notify:
                one.report = "failed"
        entry.hold = False
        return True

    return _change(args, give_up, "returned")


def register(commands: Commands) -> None:
    group = commands.noun("queue", "mail on its way to other servers")
    one = _with_filters(group.add("list", queue_list, "list what waits, oldest first"))
    one.add_argument("--page", type=count, default=1, metavar="N", help="which page (1)")
    one.add_argument("--limit", type=count, default=50, metavar="N", help="entries of a page (50)")
    one = _with_filters(group.add("show", queue_show, "show an entry and the header of its message"), needed=True)
    one.add_argument("--body", action="store_true", help="the whole message, as it is")
    _with_filters(group.add("why", queue_why, "tell every attempt, and when the next one is"), needed=True)
    for name, run, text in (
        ("retry", queue_retry, "try entries now"),
        ("hold", queue_hold, "do not try entries until they are released"),
        ("release", queue_release, "have held entries go on"),
        ("remove", queue_remove, "remove entries; nobody is told"),
        ("bounce", queue_bounce, "give entries up; their senders are told"),
    ):
        one = _with_filters(group.add(name, run, text))
        one.add_argument("--all", action="store_true", help="every entry there is")
    one = _with_filters(group.add("stats", queue_stats, "tell where mail waits"))
    one.add_argument("--limit", type=count, default=20, metavar="N", help="so many domains (20)")


def _with_filters(one: argparse.ArgumentParser, *, needed: bool = False) -> argparse.ArgumentParser:
    one.add_argument("id", nargs="+" if needed else "*", help="entries, as `mailsrv queue list` names them")
    one.add_argument("--sender", metavar="ADDRESS", help="those from this address, or from @domain")
    one.add_argument("--recipient", metavar="ADDRESS", help="those that wait for this address")
    one.add_argument("--domain", metavar="DOMAIN", help="those that wait for an address in this domain")
    one.add_argument("--older-than", type=age, metavar="TIME", help="those that came before, such as 4h or 2d ago")
    one.add_argument("--newer-than", type=age, metavar="TIME", help="those that came since")
    one.add_argument("--held", action="store_true", help="those that are held")
    return one
