"""Commands about who has mail here: domains, users, aliases.

Imports: cli.common, mail.accounts, errors; what only one command needs is imported there.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mailsrv.cli.common import DONE, Commands, Failure, Progress, human, new_password, open_accounts, say, size, table
from mailsrv.errors import MailError
from mailsrv.mail.accounts import parse_address


def domain_add(args: argparse.Namespace) -> int:
    open_accounts(args).add_domain(args.domain)
    return DONE


def domain_list(args: argparse.Namespace) -> int:
    rows = [{"domain": d.name, "users": d.users, "catch_all": d.catch_all} for d in open_accounts(args).domains()]
    table(args, rows, ("domain", "users", "catch_all"))
    return DONE


def domain_remove(args: argparse.Namespace) -> int:
    open_accounts(args).remove_domain(args.domain)
    return DONE


def domain_catch_all(args: argparse.Namespace) -> int:
    open_accounts(args).set_catch_all(args.domain, None if args.target == "none" else args.target)
    return DONE


def user_add(args: argparse.Namespace) -> int:
    from mailsrv.mail.passwords import hash_password

    accounts = open_accounts(args)
    accounts.require_new(args.address)  # before anybody types a password twice
    accounts.add_user(args.address, hash_password(new_password(args, args.address)), args.quota)
    return DONE


def user_passwd(args: argparse.Namespace) -> int:
    from mailsrv.mail.passwords import hash_password

    accounts = open_accounts(args)
    accounts.user(parse_address(args.address))
    accounts.set_password_hash(args.address, hash_password(new_password(args, args.address)))
    return DONE


def user_list(args: argparse.Namespace) -> int:
    rows = [
        {
            "address": str(user.account.address), "enabled": user.enabled, "quota_bytes": user.account.quota_bytes,
            "quota": human(user.account.quota_bytes) if user.account.quota_bytes else "none",
            "state": "enabled" if user.enabled else "disabled", "home": user.account.home,
        }
        for user in open_accounts(args).users()
    ]  # fmt: skip
    table(args, rows, ("address", "state", "quota", "home"))
    return DONE


def user_remove(args: argparse.Namespace) -> int:
    account = open_accounts(args).remove_user(args.address)
    say(f"{account.address} is no user any more; the mail stays in {account.home}")
    return DONE


def user_enable(args: argparse.Namespace) -> int:
    open_accounts(args).set_enabled(args.address, True)
    return DONE


def user_disable(args: argparse.Namespace) -> int:
    open_accounts(args).set_enabled(args.address, False)
    return DONE


def user_quota(args: argparse.Namespace) -> int:
    open_accounts(args).set_quota(args.address, args.size)
    return DONE


def user_import(args: argparse.Namespace) -> int:
    """Lines `address:password` or `address:{SCHEME}hash`; all of them, or none if one is wrong."""
    users: dict[str, str] = {}
    with open(args.file, encoding="utf-8") if args.file != "-" else sys.stdin as file:
        accounts = open_accounts(args)  # after the file, which may be root's
        for number, line in enumerate(file, 1):
            if not line.strip() or line.startswith("#"):
                continue
            address, colon, secret = line.rstrip("\r\n").partition(":")
            if "@" not in address and args.domain:
                address = f"{address}@{args.domain}"
            try:
                if not colon or not secret:
                    raise Failure("expected address:password")
                address = str(accounts.require_new(address))
                if address in users:
                    raise Failure(f"{address} stands there twice")
                users[address] = secret
            except (MailError, Failure) as failure:
                raise Failure(f"{args.file}:{number}: {failure}; nothing was imported") from None
    accounts.add_users(_hashed(list(users.items())))
    say(f"{len(users)} users imported")
    return DONE


def _hashed(users: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The same with clear passwords hashed, on all cores (the hash function runs without the interpreter's lock)."""
    from gevent.threadpool import ThreadPool

    from mailsrv.mail.passwords import hash_password, is_known_scheme

    progress = Progress("hashing password", len(users))

    def stored(user: tuple[str, str]) -> tuple[str, str]:
        address, secret = user
        return address, secret if secret.startswith("{") and is_known_scheme(secret) else hash_password(secret)

    done = []
    with _closing(ThreadPool(os.cpu_count() or 1)) as pool:
        for user in pool.imap(stored, users):
            progress.step()
            done.append(user)
    return done


@contextmanager
def _closing(pool: Any) -> Iterator[Any]:
    try:
        yield pool
    finally:
        pool.kill()


def alias_add(args: argparse.Namespace) -> int:
    open_accounts(args).add_alias(args.address, args.targets)
    return DONE


def alias_list(args: argparse.Namespace) -> int:
    accounts = open_accounts(args)
    ours = {domain.name for domain in accounts.domains()}
    rows: list[dict[str, Any]] = [
        {
            "address": str(address), "targets": targets,
            "forwarded": [target for target in targets if parse_address(target).domain not in ours],
        }
        for address, targets in accounts.aliases().items()
    ]  # fmt: skip
    if not args.json:
        rows = [{name: ", ".join(v) if isinstance(v, list) else v for name, v in row.items()} for row in rows]
    table(args, rows, ("address", "targets", "forwarded"))
    return DONE


def alias_remove(args: argparse.Namespace) -> int:
    open_accounts(args).remove_alias(args.address, args.targets)
    return DONE


def register(commands: Commands) -> None:
    group = commands.noun("domain", "domains this server receives mail for")
    group.add("add", domain_add, "receive mail for a domain").add_argument("domain")
    group.add("list", domain_list, "list the domains")
    group.add("remove", domain_remove, "receive no mail for a domain any more").add_argument("domain")
    one = group.add("catch-all", domain_catch_all, "give mail for unknown addresses of a domain to one address")
    one.add_argument("domain")
    one.add_argument("target", help="the address, here or elsewhere, or none")

    group = commands.noun("user", "people with mailboxes")
    one = group.add("add", user_add, "add a user")
    one.add_argument("address")
    one.add_argument("--password-stdin", action="store_true", help="read the password from standard input")
    one.add_argument("--quota", type=size, default=0, metavar="SIZE", help="such as 10G (default: no limit)")
    one = group.add("passwd", user_passwd, "change a user's password")
    one.add_argument("address")
    one.add_argument("--password-stdin", action="store_true", help="read the password from standard input")
    group.add("list", user_list, "list the users")
    group.add("remove", user_remove, "forget a user; the mail stays on disk").add_argument("address")
    group.add("disable", user_disable, "refuse a user's logins and mail").add_argument("address")
    group.add("enable", user_enable, "undo disable").add_argument("address")
    one = group.add("quota", user_quota, "limit the size of a user's mail")
    one.add_argument("address")
    one.add_argument("size", type=size, help="such as 10G, or 0 for no limit")
    one = group.add("import", user_import, "add many users from lines address:password or address:{SCHEME}hash")
    one.add_argument("file", help="- is standard input")
    one.add_argument("--domain", help="for names without a domain")

    group = commands.noun("alias", "addresses that stand for others")
    one = group.add("add", alias_add, "deliver mail for an address to others")
    one.add_argument("address")
    one.add_argument("targets", nargs="+", metavar="target", help="an address here or elsewhere")
    group.add("list", alias_list, "list the aliases; what goes to other servers stands under forwarded too")
    one = group.add("remove", alias_remove, "remove an alias, or some of its targets")
    one.add_argument("address")
    one.add_argument("targets", nargs="*", metavar="target", help="only these (default: the whole alias)")
