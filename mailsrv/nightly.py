"""The work of a night: what was left over is removed, everything is looked at, the postmaster hears of what is wrong.

Beside a running server and without one. What was said last is kept in `<data>/nightly.json`, so that the same warning
is told once; what is wrong is told each night until it is mended.

Imports: audit, config, doctor, runner, mail, store, wire.mime.    docs/running.md, decision 37.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from contextlib import closing

from mailsrv import audit
from mailsrv.config import Config
from mailsrv.doctor import FAIL, OK, Finding
from mailsrv.mail.accounts import Accounts
from mailsrv.mail.bus import tell_everything
from mailsrv.mail.intake import Intake
from mailsrv.mail.mailbox import Mailboxes
from mailsrv.mail.notify import Registry
from mailsrv.runner import outgoing_of, spool_of
from mailsrv.store.account import AccountStore
from mailsrv.wire import mime

MOST_TOLD = 100  # findings in one letter


def tidy(settings: Config) -> dict[str, int]:
    """Remove what nobody needs any more; how many files of each kind. Raises MailError, OSError."""
    spool = spool_of(settings)
    return {
        "mailboxes": _sweep(settings),
        "queue": spool.sweep_tmp() if os.path.isdir(spool.root) else 0,
        "audit": audit.prune(audit.directory_of(settings), settings["audit.days"]),
    }


def _sweep(settings: Config) -> int:
    if not os.path.exists(settings.accounts_path):
        return 0
    removed = 0
    with closing(Accounts(settings.accounts_path, settings.mail_root)) as accounts:
        homes = [user.account for user in accounts.users() if os.path.isdir(f"{user.account.home}/Maildir")]
    for account in homes:
        host = settings["server.hostname"]
        with closing(AccountStore(account.id, account.home, prepare=mime.prepare, host=host)) as store:
            removed += store.sweep()
    return removed


def news(settings: Config, findings: Sequence[Finding]) -> list[Finding]:
    """What is to be told of them: nothing that was only a warning the night before, too. Remembers it."""
    wrong = [one for one in findings if one.result != OK]
    path = f"{settings['server.data_dir']}/nightly.json"
    try:
        with open(path, encoding="utf-8") as file:
            before = set(map(str, json.load(file)["said"]))
    except (OSError, ValueError, KeyError, TypeError):
        before = set()
    new = f"{path}.new"
    with open(new, "w", encoding="utf-8") as file:
        json.dump({"said": sorted({_kind(one) for one in wrong})}, file)
    os.replace(new, path)
    return [one for one in wrong if one.result == FAIL or _kind(one) not in before]


def _kind(finding: Finding) -> str:
    """Without its figures, which may be others tomorrow."""
    return re.sub(r"\d+", "#", f"{finding.result} {finding.what}")


def write(settings: Config, told: Sequence[Finding]) -> None:
    """A letter to the postmaster, into the mailbox here and pushed, or on its way. Raises MailError."""
    if not os.path.exists(settings.accounts_path):
        return
    with closing(Accounts(settings.accounts_path, settings.mail_root)) as accounts:
        mailboxes = Mailboxes(Registry(), prepare=mime.prepare, host=settings["server.hostname"])
        try:
            intake = Intake(mailboxes, accounts, settings.mail_root, outgoing_of(settings, accounts))
            intake.write_postmaster(_subject(settings, told), _text(told))
        finally:
            mailboxes.close_all()
    tell_everything(settings["server.run_dir"])


def _subject(settings: Config, told: Sequence[Finding]) -> str:
    failures = sum(one.result == FAIL for one in told)
    what = f"{failures} things are wrong" if failures > 1 else "something is wrong" if failures else "a warning"
    return f"{settings['server.hostname']}: {what}"


def _text(told: Sequence[Finding]) -> str:
    lines = ["The look at the mail server that is taken each night found:", ""]
    for one in sorted(told, key=lambda one: one.result != FAIL)[:MOST_TOLD]:
        lines += [f"{one.result.upper()}  {one.what}", *([f"      {one.advice}"] if one.advice else []), ""]
    if len(told) > MOST_TOLD:
        lines += [f"and {len(told) - MOST_TOLD} more.", ""]
    lines += [
        "`mailsrv doctor` shows all of it, `mailsrv doctor --repair` mends what can be mended without loss.",
        "A warning is sent once, what is wrong each night until it is mended.",
    ]
    return "".join(f"{_shown(line)}\n" for line in lines)


def _shown(line: str) -> str:
    """File names are whatever somebody gave them."""
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in line)
