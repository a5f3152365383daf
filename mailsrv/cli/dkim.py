"""Commands about the keys that mail is signed with: generate, list, rotate, activate, retire.

Imports: cli.common, dns_records, mail; what only one command needs is imported there.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from mailsrv import dns_records
from mailsrv.cli.common import DONE, Commands, Failure, load_config, open_accounts, say, table
from mailsrv.mail.accounts import parse_domain

if TYPE_CHECKING:
    from mailsrv.mail.dkim import Key, Keys


def open_keys(args: argparse.Namespace) -> Keys:
    from mailsrv.mail.dkim import Keys

    return Keys(load_config(args).dkim_path)


def own_domain(args: argparse.Namespace) -> str:
    """The domain that was named, in the form it is kept in; Failure if it is none of ours."""
    domain = parse_domain(args.domain)
    if not open_accounts(args).is_local(domain):
        raise Failure(f"{domain} is not a domain of this server (mailsrv domain add {domain})")
    return domain


def _rows(keys: Keys, some: Sequence[Key]) -> list[dict[str, Any]]:
    return [
        {
            "domain": key.domain, "selector": key.selector, "algorithm": key.algorithm, "state": key.state,
            "since": datetime.fromtimestamp(key.since, UTC).isoformat(timespec="seconds"), "name": key.name,
            "record": keys.record(key),
        }
        for key in some
    ]  # fmt: skip


def _publish(args: argparse.Namespace, keys: Keys, made: Sequence[Key]) -> None:
    """What is to be published, on standard output."""
    if args.json:
        table(args, _rows(keys, made), ())
        return
    records = [dns_records.Record(key.name, "TXT", keys.record(key)) for key in made]
    print("\n".join(record.zone() for record in records))


def generate(args: argparse.Namespace) -> int:
    domain, keys = own_domain(args), open_keys(args)
    _publish(args, keys, _allowed(keys.generate, domain))
    say(f"Mail from {domain} is signed from now on; publish these two records in its zone (mailsrv dns check {domain})")
    return DONE


def rotate(args: argparse.Namespace) -> int:
    domain, keys = own_domain(args), open_keys(args)
    _publish(args, keys, _allowed(keys.rotate, domain))
    say(f"Publish these two records as well; the keys of before sign until: mailsrv dkim activate {domain}")
    return DONE


def list_keys(args: argparse.Namespace) -> int:
    keys = open_keys(args)
    domains = [parse_domain(args.domain)] if args.domain else keys.domains()
    rows = _rows(keys, [key for domain in domains for key in keys.of(domain)])
    table(args, rows, ("domain", "selector", "algorithm", "state", "since"))
    return DONE


def activate(args: argparse.Namespace) -> int:
    from mailsrv.dns_check import lookup_by, published
    from mailsrv.mail.dkim import NEW
    from mailsrv.runner import resolver_of

    domain, keys = own_domain(args), open_keys(args)
    if not args.unchecked:
        lookup = lookup_by(resolver_of(load_config(args)))
        for key in keys.of(domain, NEW):
            record = dns_records.Record(key.name, "TXT", keys.record(key))
            if not published(record, lookup):
                raise Failure(f"Not found in the DNS as it should be (--unchecked to go on):\n{record.zone()}")
    _allowed(keys.activate, domain)
    say(f"The new keys sign for {domain} from now on. Leave the records of the ones before in place for a week, then: "
        f"mailsrv dkim retire {domain}")  # fmt: skip
    return DONE


def retire(args: argparse.Namespace) -> int:
    domain, keys = own_domain(args), open_keys(args)
    gone = _allowed(partial(keys.retire, at_once=args.at_once), domain)
    table(args, [{"name": key.name, "selector": key.selector} for key in gone], ("name",))
    say("The keys are gone; take these records out of the zone")
    return DONE


def _allowed(change: Callable[[str], list[Key]], domain: str) -> list[Key]:
    from mailsrv.mail.dkim import KeysRefused

    try:
        return change(domain)
    except KeysRefused as refusal:
        raise Failure(str(refusal)) from None


def register(commands: Commands) -> None:
    group = commands.noun("dkim", "keys that mail of the domains is signed with")
    one = group.add("generate", generate, "make the first keys of a domain, and print the records to publish")
    one.add_argument("domain")
    one = group.add("list", list_keys, "list the keys; active ones sign")
    one.add_argument("domain", nargs="?")
    one = group.add("rotate", rotate, "make new keys beside those that sign, and print the records to publish")
    one.add_argument("domain")
    one = group.add("activate", activate, "sign with the new keys from now on, if their records are published")
    one.add_argument("domain")
    one.add_argument("--unchecked", action="store_true", help="without looking into the DNS")
    one = group.add("retire", retire, "forget keys that have not signed for a week")
    one.add_argument("domain")
    one.add_argument("--at-once", action="store_true", help="whenever they last signed, for keys that became known")
