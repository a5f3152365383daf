"""The command: `mailsrv <noun> <verb>`, a few lines each over the same objects the server uses.

Data goes to standard output (`--json` for programs), words to standard error. Exit codes: 0 done, 1 failed, 2 misused;
`status` as init scripts expect: 0 running, 3 not running.

Imports: everything. Commands that need little import little: what only one needs is imported there.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from mailsrv import __version__, config, log
from mailsrv.errors import MailError
from mailsrv.mail.accounts import Accounts, User, parse_address
from mailsrv.values import Account

if TYPE_CHECKING:
    from mailsrv.store.account import AccountStore

DONE, FAILED, MISUSED, NOT_RUNNING = 0, 1, 2, 3
_SIZES = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}


class Failure(Exception):
    """The command did not do what was asked; the text says why and what to do."""


# ------------------------------------------------------------------ output


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _table(args: argparse.Namespace, rows: list[dict[str, Any]], columns: Sequence[str]) -> None:
    """Rows as aligned columns, or as JSON with every field."""
    if args.json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    if not rows:
        return
    lines = [[column.replace("_", " ").upper() for column in columns]]
    lines += [["" if row[column] is None else str(row[column]) for column in columns] for row in rows]
    widths = [max(len(line[position]) for line in lines) for position in range(len(columns))]
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


class _Progress:
    """One line on a terminal that says how far long work is; lines now and then elsewhere."""

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._done = what, total, 0
        self._terminal = sys.stderr.isatty()
        self._told = -1

    def step(self, name: str = "") -> None:
        self._done += 1
        share = 100 * self._done // max(self._total, 1)
        if self._terminal:
            sys.stderr.write(f"\r\033[K{self._what} {self._done} of {self._total} {name}"[:200])
            if self._done >= self._total:
                sys.stderr.write("\r\033[K")
            sys.stderr.flush()
        elif share // 10 > self._told // 10:
            self._told = share
            _say(f"{self._what} {self._done} of {self._total}")


# ------------------------------------------------------------------ what commands share


def _config(args: argparse.Namespace) -> config.Config:
    path = args.config or os.environ.get("MAILSRV_CONFIG") or config.DEFAULT_PATH
    return config.load(path)


def _accounts(args: argparse.Namespace) -> Accounts:
    settings = _config(args)
    accounts = Accounts(settings.accounts_path, settings.mail_root)
    args.at_end.callback(accounts.close)
    return accounts


def _new_password(args: argparse.Namespace, address: str) -> str:
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


def _size(text: str) -> int:
    found = re.fullmatch(r"(\d{1,12}) ?([KMGT]?)(?:i?B)?", text, re.IGNORECASE)
    if found is None:
        raise argparse.ArgumentTypeError(f"expected a size such as 500M or 10G, or 0 for no limit, found {text!r}")
    return int(found[1]) * _SIZES[found[2].upper()]


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or not 0 <= int(text) <= 64_000:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 64000, found {text!r}")
    return int(text)


def _human(octets: int) -> str:
    value = float(octets)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


# ------------------------------------------------------------------ the server


def serve(args: argparse.Namespace) -> int:
    from mailsrv import supervisor

    settings = _config(args)
    log.configure(level=settings["log.level"], file=settings["log.file"] or None, format=settings["log.format"])
    supervisor.serve(settings)
    return DONE


def check(args: argparse.Namespace) -> int:
    from mailsrv.daemon import tls_context

    settings = _config(args)
    tls_context(settings)
    if not settings["tls.certificate"]:
        _say(f"{settings.path}: note: without tls.certificate nobody can log in")
    print(f"{settings.path}: ok")
    return DONE


def status(args: argparse.Namespace) -> int:
    from mailsrv.supervisor import running_pid

    settings = _config(args)
    pid = running_pid(f"{settings['server.run_dir']}/mailsrv.pid")
    if args.json:
        print(json.dumps({"running": pid is not None, "pid": pid}))
    else:
        print(f"mailsrv is running, pid {pid}" if pid is not None else "mailsrv is not running")
    return DONE if pid is not None else NOT_RUNNING


def quickstart(args: argparse.Namespace) -> int:
    from mailsrv import quickstart as quick

    if args.check:
        return quick.check(args.dir, args.base_port)
    return quick.run(
        args.dir or quick.default_directory(), quick.DEFAULT_PORT if args.base_port is None else args.base_port
    )


def config_sample(args: argparse.Namespace) -> int:
    sys.stdout.write(config.sample())
    return DONE


def config_reference(args: argparse.Namespace) -> int:
    sys.stdout.write(config.reference())
    return DONE


def version(args: argparse.Namespace) -> int:
    print(json.dumps({"version": __version__}) if args.json else f"mailsrv {__version__}")
    return DONE


# ------------------------------------------------------------------ domains, users, aliases


def domain_add(args: argparse.Namespace) -> int:
    _accounts(args).add_domain(args.domain)
    return DONE


def domain_list(args: argparse.Namespace) -> int:
    rows = [{"domain": d.name, "users": d.users, "catch_all": d.catch_all} for d in _accounts(args).domains()]
    _table(args, rows, ("domain", "users", "catch_all"))
    return DONE


def domain_remove(args: argparse.Namespace) -> int:
    _accounts(args).remove_domain(args.domain)
    return DONE


def domain_catch_all(args: argparse.Namespace) -> int:
    _accounts(args).set_catch_all(args.domain, None if args.target == "none" else args.target)
    return DONE


def user_add(args: argparse.Namespace) -> int:
    from mailsrv.mail.passwords import hash_password

    accounts = _accounts(args)
    accounts.require_new(args.address)  # before anybody types a password twice
    accounts.add_user(args.address, hash_password(_new_password(args, args.address)), args.quota)
    return DONE


def user_passwd(args: argparse.Namespace) -> int:
    from mailsrv.mail.passwords import hash_password

    accounts = _accounts(args)
    accounts.user(parse_address(args.address))
    accounts.set_password_hash(args.address, hash_password(_new_password(args, args.address)))
    return DONE


def user_list(args: argparse.Namespace) -> int:
    rows = [
        {
            "address": str(user.account.address), "enabled": user.enabled, "quota_bytes": user.account.quota_bytes,
            "quota": _human(user.account.quota_bytes) if user.account.quota_bytes else "none",
            "state": "enabled" if user.enabled else "disabled", "home": user.account.home,
        }
        for user in _accounts(args).users()
    ]  # fmt: skip
    _table(args, rows, ("address", "state", "quota", "home"))
    return DONE


def user_remove(args: argparse.Namespace) -> int:
    account = _accounts(args).remove_user(args.address)
    _say(f"{account.address} is no user any more; the mail stays in {account.home}")
    return DONE


def user_enable(args: argparse.Namespace) -> int:
    _accounts(args).set_enabled(args.address, True)
    return DONE


def user_disable(args: argparse.Namespace) -> int:
    _accounts(args).set_enabled(args.address, False)
    return DONE


def user_quota(args: argparse.Namespace) -> int:
    _accounts(args).set_quota(args.address, args.size)
    return DONE


def user_import(args: argparse.Namespace) -> int:
    """Lines `address:password` or `address:{SCHEME}hash`; all of them, or none if one is wrong."""
    accounts = _accounts(args)
    users: dict[str, str] = {}
    with open(args.file, encoding="utf-8") if args.file != "-" else sys.stdin as file:
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
    _say(f"{len(users)} users imported")
    return DONE


def _hashed(users: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The same with clear passwords hashed, on all cores (the hash function runs without the interpreter's lock)."""
    from gevent.threadpool import ThreadPool

    from mailsrv.mail.passwords import hash_password, is_known_scheme

    progress = _Progress("hashing password", len(users))

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
    _accounts(args).add_alias(args.address, args.targets)
    return DONE


def alias_list(args: argparse.Namespace) -> int:
    rows = [{"address": str(address), "targets": targets} for address, targets in _accounts(args).aliases().items()]
    if not args.json:
        rows = [{**row, "targets": ", ".join(row["targets"])} for row in rows]
    _table(args, rows, ("address", "targets"))
    return DONE


def alias_remove(args: argparse.Namespace) -> int:
    _accounts(args).remove_alias(args.address)
    return DONE


# ------------------------------------------------------------------ mail


def _chosen(args: argparse.Namespace, accounts: Accounts) -> list[User]:
    if args.address:
        return [accounts.user(parse_address(address)) for address in args.address]
    return accounts.users()


def _store(args: argparse.Namespace, account: Account) -> AccountStore:
    from mailsrv.store.account import AccountStore
    from mailsrv.wire import mime

    host = _config(args)["server.hostname"]
    store = AccountStore(account.id, account.home, prepare=mime.prepare, host=host)
    args.at_end.callback(store.close)
    return store


def mailbox_list(args: argparse.Namespace) -> int:
    accounts = _accounts(args)
    rows = []
    for user in _chosen(args, accounts):
        store = _store(args, user.account)
        for info in store.mailboxes():
            found = store.status(info.id.number)
            rows.append({
                "user": str(user.account.address), "mailbox": info.name, "id": str(info.id),
                "messages": found.messages, "unseen": found.unseen, "size_bytes": found.size,
                "size": _human(found.size),
                "uidvalidity": found.uidvalidity, "uidnext": found.uidnext, "special_use": info.special_use,
            })  # fmt: skip
    _table(args, rows, ("user", "mailbox", "messages", "unseen", "size", "id"))
    return DONE


def reindex(args: argparse.Namespace) -> int:
    """Read the index anew from the Maildir, then tell a running server to look at everything."""
    from mailsrv.mail.bus import tell_everything

    settings = _config(args)
    chosen = _chosen(args, _accounts(args))
    rows = []
    for position, user in enumerate(chosen, 1):
        progress = _Progress(f"{user.account.address} ({position} of {len(chosen)}): mailbox", 0)

        def step(name: str, done: int, total: int, progress: _Progress = progress) -> None:
            progress._total = total
            progress.step(name)

        store = _store(args, user.account)
        store.reindex(step)
        found = [store.status(info.id.number) for info in store.mailboxes()]
        rows.append({
            "user": str(user.account.address), "mailboxes": len(found), "messages": sum(one.messages for one in found),
        })  # fmt: skip
    tell_everything(settings["server.run_dir"])
    _table(args, rows, ("user", "mailboxes", "messages"))
    return DONE


def doctor(args: argparse.Namespace) -> int:
    from mailsrv import doctor as examination

    findings = examination.examine(_config(args))
    rows = [{"result": f.result, "what": f.what, "advice": f.advice} for f in findings]
    if args.json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    else:
        for finding in findings:
            print(f"{finding.result:<5} {finding.what}" + (f"\n      {finding.advice}" if finding.advice else ""))
    return FAILED if any(finding.result == "fail" for finding in findings) else DONE


# ------------------------------------------------------------------ the command line


Command = Callable[[argparse.Namespace], int]


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
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    def add(group: Any, name: str, run: Command, text: str) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = group.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + ".", parents=[shared], allow_abbrev=False
        )
        made.set_defaults(run=run)
        return made

    def noun(name: str, text: str) -> Any:
        made = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", parents=[shared])
        return made.add_subparsers(metavar="VERB", required=True)

    one = add(commands, "quickstart", quickstart, "run a private server on loopback that shows how mail is pushed")
    one.add_argument("--dir", metavar="DIR", help="where it keeps everything (default: in your data directory)")
    one.add_argument("--base-port", type=_port, metavar="N", help="ports are N+25, N+143, N+465, N+587, N+993 (2000)")
    one.add_argument("--check", action="store_true", help="send one message through it, print the latencies, and end")

    one = add(commands, "serve", serve, "run the server")
    one.add_argument("--foreground", action="store_true", help="stay in the foreground (always so for now)")
    add(commands, "check", check, "check the configuration")
    add(commands, "status", status, "tell whether the server runs: exit code 0 if so, 3 if not")
    add(commands, "doctor", doctor, "look for what is wrong with an installation, and say what to do")

    group = noun("domain", "domains this server receives mail for")
    add(group, "add", domain_add, "receive mail for a domain").add_argument("domain")
    add(group, "list", domain_list, "list the domains")
    add(group, "remove", domain_remove, "receive no mail for a domain any more").add_argument("domain")
    one = add(group, "catch-all", domain_catch_all, "give mail for unknown addresses of a domain to one address")
    one.add_argument("domain")
    one.add_argument("target", help="the address, or none")

    group = noun("user", "people with mailboxes")
    one = add(group, "add", user_add, "add a user")
    one.add_argument("address")
    one.add_argument("--password-stdin", action="store_true", help="read the password from standard input")
    one.add_argument("--quota", type=_size, default=0, metavar="SIZE", help="such as 10G (default: no limit)")
    one = add(group, "passwd", user_passwd, "change a user's password")
    one.add_argument("address")
    one.add_argument("--password-stdin", action="store_true", help="read the password from standard input")
    add(group, "list", user_list, "list the users")
    add(group, "remove", user_remove, "forget a user; the mail stays on disk").add_argument("address")
    add(group, "disable", user_disable, "refuse a user's logins and mail").add_argument("address")
    add(group, "enable", user_enable, "undo disable").add_argument("address")
    one = add(group, "quota", user_quota, "limit the size of a user's mail")
    one.add_argument("address")
    one.add_argument("size", type=_size, help="such as 10G, or 0 for no limit")
    one = add(group, "import", user_import, "add many users from lines address:password or address:{SCHEME}hash")
    one.add_argument("file", help="- is standard input")
    one.add_argument("--domain", help="for names without a domain")

    group = noun("alias", "addresses that stand for others")
    one = add(group, "add", alias_add, "deliver mail for an address to others")
    one.add_argument("address")
    one.add_argument("targets", nargs="+", metavar="target")
    add(group, "list", alias_list, "list the aliases")
    add(group, "remove", alias_remove, "remove an alias").add_argument("address")

    group = noun("mailbox", "mailboxes of the users")
    one = add(group, "list", mailbox_list, "list mailboxes with their sizes")
    one.add_argument("address", nargs="*", help="these users only")
    one = add(commands, "reindex", reindex, "make the index anew from the Maildir")
    one.add_argument("address", nargs="*", help="these users only")

    group = noun("config", "the configuration file")
    add(group, "sample", config_sample, "print the documented default configuration")
    add(group, "reference", config_reference, "print all settings as a table")
    add(commands, "version", version, "print the version")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    from mailsrv.daemon import StartError

    args = parser().parse_args(argv)
    run: Command = args.run
    try:
        with ExitStack() as args.at_end:
            code = run(args)
        sys.stdout.flush()
        return code
    except config.ConfigError as error:
        for problem in error.problems:
            _say(f"mailsrv: {problem}")
    except (Failure, MailError, StartError) as failure:
        _say(f"mailsrv: {failure}")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader has seen enough; nothing more can be said
    except OSError as failure:
        _say(f"mailsrv: {failure.filename or ''}: {failure.strerror or failure}".replace(": :", ":"))
    except KeyboardInterrupt:
        _say("")
    return FAILED
