"""Commands about the DNS of the domains: generate what to publish, check what is published.

Imports: cli.common, cli.dkim, dns_records, dns_check; what only one command needs is imported there.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import socket
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mailsrv import dns_records
from mailsrv.cli.common import DONE, FAILED, Commands, Failure, load_config, open_accounts, say, table
from mailsrv.cli.dkim import open_keys
from mailsrv.config import Config
from mailsrv.dns_records import CLIENT_SERVICES, Record, Wanted
from mailsrv.mail.accounts import parse_domain

if TYPE_CHECKING:
    from mailsrv.dns_check import Finding

_FAR = (("192.0.2.1", socket.AF_INET), ("2001:db8::1", socket.AF_INET6))  # documentation addresses: nothing is sent


def wanted_records(args: argparse.Namespace, addresses: list[str]) -> Wanted:
    from mailsrv.mail.dkim import KeysRefused

    settings, domain = load_config(args), parse_domain(args.domain)
    if not open_accounts(args).is_local(domain):
        say(f"note: {domain} is not a domain of this server yet (mailsrv domain add {domain})")
    keys = open_keys(args)
    try:
        known = tuple((key.name, keys.record(key), key.state) for key in keys.of(domain))
    except (OSError, ValueError, KeysRefused) as failure:
        raise Failure(f"DKIM keys: {failure}") from None
    listens = {service: settings[f"{service}.listen"] for service in CLIENT_SERVICES}
    return Wanted(
        domain, settings["server.hostname"], tuple(addresses), known,
        ports=tuple((service, where[0][1]) for service, where in listens.items() if where),
        helo=settings["relay.helo"],
        dmarc=getattr(args, "dmarc", "quarantine"), sts=getattr(args, "mta_sts", "testing"),
    )  # fmt: skip


def configured_addresses(settings: Config) -> list[str]:
    """The public addresses that the configuration names."""
    sources = (settings["relay.source_ipv4"], settings["relay.source_ipv6"])
    named = dict.fromkeys([*settings["relay.own_addresses"], *(one for one in sources if one)])
    return [str(one) for one in named if ipaddress.ip_address(one).is_global]


def _own_addresses() -> list[str]:
    """The addresses this machine would send from, as far as they are the Internet's."""
    found = []
    for far, family in _FAR:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((far, 53))
                found.append(str(probe.getsockname()[0]))
        except OSError:
            pass
    return [address for address in found if ipaddress.ip_address(address).is_global]


def generate(args: argparse.Namespace) -> int:
    addresses = args.ip or configured_addresses(load_config(args)) or _own_addresses()
    wanted = wanted_records(args, addresses)
    everything = dns_records.all_records(wanted)
    if not addresses:
        say("note: the public addresses of this server are not known here: add --ip ADDRESS, for IPv4 and IPv6 each")
    if not wanted.keys:
        say(f"note: there are no DKIM keys yet (mailsrv dkim generate {wanted.domain})")
    rows = [_form_row(record, wanted.domain) for record in everything]
    if args.json:
        zone = [{**row, "zone": record.zone()} for row, record in zip(rows, everything, strict=True)]
        print(json.dumps({"records": zone, "mta_sts_policy": dns_records.sts_policy(wanted)}, indent=1))
        return DONE
    if args.form in ("zone", "both"):
        print(dns_records.zone_text(everything))
    if args.form in ("table", "both"):
        table(args, rows, ("name", "type", "priority", "value"))
        print()
    print(f"; the policy of MTA-STS, to be served at https://mta-sts.{wanted.domain}/.well-known/mta-sts.txt")
    print(dns_records.sts_policy(wanted), end="")
    return DONE


def _form_row(record: Record, domain: str) -> dict[str, Any]:
    """As the fields of a provider's form: MX and SRV have their priority in a field of its own."""
    priority, value = "", record.value
    if record.type in ("MX", "SRV"):
        priority, _, value = record.value.partition(" ")
    return {"name": record.relative(domain), "type": record.type, "priority": priority, "value": value,
            "about": record.about}  # fmt: skip


def check(args: argparse.Namespace) -> int:
    from mailsrv import dns_check
    from mailsrv.runner import resolver_of

    settings = load_config(args)
    wanted = wanted_records(args, args.ip or configured_addresses(settings))
    resolver = resolver_of(settings)
    findings = dns_check.check(wanted, dns_check.lookup_by(resolver), dns_check.fetch_by(resolver))
    if args.json:
        rows = [
            {**asdict(finding), "paste": [record.zone() for record in finding.paste]} for finding in findings
        ]  # fmt: skip
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    else:
        for finding in findings:
            _tell(finding)
    return FAILED if any(finding.wrong for finding in findings) else DONE


def _tell(finding: Finding) -> None:
    lines = [f"{finding.result:<7} {finding.what}: {finding.name} {finding.type}"]
    if finding.result != "pass":
        if finding.type:
            lines += [f"        found:    {text}" for text in finding.found or ("nothing",)]
        if finding.expected:
            lines.append("        expected: " + finding.expected.rstrip().replace("\n", " / "))
        if finding.advice:
            lines.append(f"        {finding.advice}")
        lines += [f"        {record.zone()}" for record in finding.paste]
    for line in lines:  # what others publish is not for the terminal as it is
        print("".join(char if char.isprintable() or char == "\t" else f"\\x{ord(char):02x}" for char in line))


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected an IP address, found {text!r}") from None


def register(commands: Commands) -> None:
    group = commands.noun("dns", "what has to stand in the DNS for a domain")
    one = group.add("generate", generate, "print the records of a domain, to paste into its zone", reads=True)
    one.add_argument("domain")
    one.add_argument("--ip", action="append", type=_address, help="a public address of this server; may be repeated")
    one.add_argument(
        "--form", choices=("both", "zone", "table"), default="both", help="lines of a zone file, or fields"
    )
    one.add_argument("--dmarc", choices=("none", "quarantine", "reject"), default="quarantine",
                     help="what becomes of forged mail (default: quarantine)")  # fmt: skip
    one.add_argument("--mta-sts", choices=("testing", "enforce", "none"), default="testing",
                     help="mode of the MTA-STS policy (default: testing)")  # fmt: skip
    one = group.add("check", check, "compare the published records of a domain with what is needed; 1 if one is wrong")
    one.add_argument("domain")
    one.add_argument("--ip", action="append", type=_address, help="a public address of this server; may be repeated")
