"""The commands that look for what is wrong: doctor, and nightly, which tidies up as well.

Imports: cli.common, cli.dns, doctor, nightly, errors.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING

from mailsrv.cli import dns
from mailsrv.cli.common import (
    DONE,
    FAILED,
    Commands,
    Failure,
    Progress,
    load_config,
    open_accounts,
    print_findings,
    printable,
    say,
)
from mailsrv.errors import MailError

if TYPE_CHECKING:
    from mailsrv.doctor import Finding

# What a finding of the DNS is to the doctor.
_DNS = {"pass": "ok", "warn": "warn", "fail": "fail", "missing": "fail"}


def doctor(args: argparse.Namespace) -> int:
    """Tells what it finds as it finds it; 1 if something is wrong, and was not repaired."""
    from mailsrv.doctor import as_root, as_server  # with most of the program: other commands do without

    args.reads = not args.repair
    settings = load_config(args, stay_root=True)
    told = _Told(args)
    for finding in as_root(settings):
        told.tell(finding)
    load_config(args)  # from here on as the server's user
    progress = Progress("mailbox", 0)
    for finding in as_server(settings, quick=args.quick, progress=progress.step):
        progress.end()
        told.tell(finding)
    if not args.quick and not args.no_dns:
        for finding in _names(args):
            told.tell(finding)
    if args.json:
        print(json.dumps(told.rows, indent=1, ensure_ascii=False))
    return FAILED if told.wrong else DONE


class _Told:
    """What was found, repaired where that was asked for."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._json, self._repair = args.json, args.repair
        self.rows: list[dict[str, str]] = []
        self.wrong = False

    def tell(self, finding: Finding) -> None:
        repaired = ""
        if self._repair and finding.repair is not None:
            try:
                finding.repair.run()
                repaired = f"repaired: {finding.repair.text}"
            except (OSError, MailError) as failure:
                repaired = f"not repaired: {failure}"
        elif finding.repair is not None:
            repaired = f"mailsrv doctor --repair would {finding.repair.text}"
        mended = repaired.startswith("repaired")
        self.wrong = self.wrong or (finding.result == "fail" and not mended)
        row = {"result": finding.result, "what": finding.what, "advice": finding.advice, "repair": repaired}
        self.rows.append(row)
        if not self._json:
            lines = [
                f"{finding.result:<5} {finding.what}",
                *(f"      {text}" for text in (finding.advice, repaired) if text),
            ]
            for line in lines:  # file names are whatever somebody gave them
                print(printable(line), flush=True)


def _names(args: argparse.Namespace) -> Iterator[Finding]:
    """The DNS records of every domain, as `mailsrv dns check` has them."""
    from mailsrv import dns_check
    from mailsrv.doctor import FAIL, OK, WARN, Finding
    from mailsrv.runner import resolver_of

    settings = load_config(args)
    if not os.path.exists(settings.accounts_path):
        return
    lookup = dns_check.lookup_by(resolver_of(settings))
    with closing(open_accounts(args)) as accounts:
        domains = [domain.name for domain in accounts.domains()]
    for domain in domains:
        try:
            lookup(domain, "MX")
        except dns_check.Unanswered as failure:
            yield Finding(
                WARN, f"dns: nobody answers for {domain}: {failure}", "check /etc/resolv.conf and the network"
            )
            return
        args.domain = domain
        try:
            wanted = dns.wanted_records(args, dns.configured_addresses(settings))
        except Failure as failure:
            yield Finding(FAIL, f"dns: {domain}: {failure}", "see mailsrv dkim list")
            continue
        for found in dns_check.check(wanted, lookup):
            what = f"dns: {domain}: {found.what}"
            advice = "; ".join(text for text in (found.advice, f"mailsrv dns check {domain} has it all") if text)
            yield Finding(_DNS[found.result], what, advice if _DNS[found.result] != OK else "")


def nightly(args: argparse.Namespace) -> int:
    """Silent when nothing is new, as cron expects; 1 if something is wrong."""
    from mailsrv import nightly as night
    from mailsrv.doctor import FAIL, as_root, as_server

    settings = load_config(args, stay_root=True)
    findings = list(as_root(settings))
    load_config(args)  # from here on as the server's user
    removed = night.tidy(settings)
    findings += as_server(settings, quick=args.quick)
    if not args.no_dns:
        findings += _names(args)
    told = night.news(settings, findings)
    args.audit = {f"removed_{kind}": count for kind, count in removed.items()}
    if args.json:
        rows = [{"result": one.result, "what": one.what, "advice": one.advice} for one in told]
        print(json.dumps({"removed": removed, "told": rows}, indent=1, ensure_ascii=False))
    else:
        print_findings(args, told)
    try:
        if told:
            night.write(settings, told)
    except MailError as failure:
        say(f"mailsrv: the postmaster was not told: {failure}")
    return FAILED if any(one.result == FAIL for one in findings) else DONE


def register(commands: Commands) -> None:
    one = commands.add("doctor", doctor, "look for what is wrong with an installation, and say what to do", reads=True)
    one.add_argument("--quick", action="store_true", help="leave out the DNS, and mailboxes against their indexes")
    one.add_argument("--no-dns", action="store_true", help="leave out the DNS")
    one.add_argument("--repair", action="store_true", help="do what is safe: owners, modes, indexes, left-over files")
    one = commands.add("nightly", nightly, "tidy up, look at everything, write the postmaster what is wrong")
    one.add_argument("--quick", action="store_true", help="leave out mailboxes against their indexes")
    one.add_argument("--no-dns", action="store_true", help="leave out the DNS")
