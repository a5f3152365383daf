"""Commands about mailboxes: list, reindex.

Imports: cli.common, mail.accounts; the store where a command needs it.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from mailsrv.cli.common import DONE, Commands, Progress, human, load_config, open_accounts, table
from mailsrv.mail.accounts import Accounts, User, parse_address
from mailsrv.values import Account

if TYPE_CHECKING:
    from mailsrv.store.account import AccountStore


def _chosen(args: argparse.Namespace, accounts: Accounts) -> list[User]:
    if args.address:
        return [accounts.user(parse_address(address)) for address in args.address]
    return accounts.users()


def _store(args: argparse.Namespace, account: Account) -> AccountStore:
    from mailsrv.store.account import AccountStore
    from mailsrv.wire import mime

    host = load_config(args)["server.hostname"]
    store = AccountStore(account.id, account.home, prepare=mime.prepare, host=host)
    args.at_end.callback(store.close)
    return store


def mailbox_list(args: argparse.Namespace) -> int:
    accounts = open_accounts(args)
    rows = []
    for user in _chosen(args, accounts):
        store = _store(args, user.account)
        for info in store.mailboxes():
            found = store.status(info.id.number)
            rows.append({
                "user": str(user.account.address), "mailbox": info.name, "id": str(info.id),
                "messages": found.messages, "unseen": found.unseen, "size_bytes": found.size,
                "size": human(found.size),
                "uidvalidity": found.uidvalidity, "uidnext": found.uidnext, "special_use": info.special_use,
            })  # fmt: skip
    table(args, rows, ("user", "mailbox", "messages", "unseen", "size", "id"))
    return DONE


def reindex(args: argparse.Namespace) -> int:
    """Read the index anew from the Maildir, then tell a running server to look at everything."""
    from mailsrv.mail.bus import tell_everything

    settings = load_config(args)
    chosen = _chosen(args, open_accounts(args))
    rows = []
    for position, user in enumerate(chosen, 1):
        progress = Progress(f"{user.account.address} ({position} of {len(chosen)}): mailbox", 0)

        def step(name: str, done: int, total: int, progress: Progress = progress) -> None:
            progress._total = total
            progress.step(name)

        store = _store(args, user.account)
        store.reindex(step)
        found = [store.status(info.id.number) for info in store.mailboxes()]
        rows.append({
            "user": str(user.account.address), "mailboxes": len(found), "messages": sum(one.messages for one in found),
        })  # fmt: skip
    tell_everything(settings["server.run_dir"])
    table(args, rows, ("user", "mailboxes", "messages"))
    return DONE


def register(commands: Commands) -> None:
    group = commands.noun("mailbox", "mailboxes of the users")
    one = group.add("list", mailbox_list, "list mailboxes with their sizes")
    one.add_argument("address", nargs="*", help="these users only")
    one = commands.add("reindex", reindex, "make the index anew from the Maildir")
    one.add_argument("address", nargs="*", help="these users only")
