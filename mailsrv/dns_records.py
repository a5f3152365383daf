"""The DNS records a mail domain needs, as text to paste: zone-file lines, or the fields of a provider's web form.

Nothing is looked up here; `dns_check` compares with what is published.

Imports: the standard library only.    RFC 1035 5.1 (zone files), 7208 (SPF), 6376 (DKIM), 7489 (DMARC), 8461 (MTA-STS),
8460 (TLS-RPT), 6186 and 8314 5.1 (SRV).
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

TTL = 3600
MOST_STRING = 255  # octets of one character-string of a TXT record, RFC 1035 3.3
POLICY_SECONDS = 604_800
SPF, DMARC, STS, TLSRPT, DKIM = "v=spf1", "v=DMARC1", "v=STSv1", "v=TLSRPTv1", "v=DKIM1"

# Service of the configuration -> the name clients ask for, and its priority: TLS from the first octet comes first.
CLIENT_SERVICES = {
    "imaps": ("_imaps._tcp", 0),
    "imap": ("_imap._tcp", 10),
    "submissions": ("_submissions._tcp", 0),
    "submission": ("_submission._tcp", 10),
}


@dataclass(frozen=True, slots=True)
class Record:
    """`name` and the names in `value` are without the final dot; `value` of a TXT record is its whole text."""

    name: str
    type: str
    value: str
    about: str = ""

    def zone(self) -> str:
        """As a line of a zone file."""
        return f"{self.name}.\t{TTL}\tIN\t{self.type}\t{self._zone_value()}"

    def _zone_value(self) -> str:
        if self.type == "TXT":
            return " ".join(f'"{part}"' for part in txt_strings(self.value))
        if self.type in ("MX", "SRV", "CNAME", "PTR"):
            return f"{self.value}." if not self.value.endswith(".") else self.value
        return self.value

    def relative(self, domain: str) -> str:
        """The name as a provider's form for `domain` wants it."""
        if self.name == domain:
            return "@"
        return self.name.removesuffix(f".{domain}")


def txt_strings(text: str) -> list[str]:
    """A text as the character-strings of a TXT record, escaped for a zone file."""
    octets = text.encode()
    parts = [octets[at : at + MOST_STRING] for at in range(0, len(octets), MOST_STRING)] or [b""]
    return ["".join(_escaped(octet) for octet in part) for part in parts]


def _escaped(octet: int) -> str:
    if octet in b'"\\':
        return f"\\{chr(octet)}"
    return chr(octet) if 0x20 <= octet < 0x7F else f"\\{octet:03d}"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a domain's records are made from.

    `ports` has those of CLIENT_SERVICES that are offered; `keys` are (name, text, state) of the DKIM keys; `addresses`
    are the IP addresses mail is sent from and received on, as far as they are known; `helo` is the name it is sent by,
    if that is not `hostname`.
    """

    domain: str
    hostname: str
    addresses: tuple[str, ...] = ()
    keys: tuple[tuple[str, str, str], ...] = ()
    ports: tuple[tuple[str, int], ...] = ()
    helo: str = ""
    dmarc: str = "quarantine"
    sts: str = "testing"

    @property
    def sender(self) -> str:
        """What the server calls itself when it sends: reports are judged by it, and the reverse name has to be it."""
        return self.helo or self.hostname

    @property
    def postmaster(self) -> str:
        return f"postmaster@{self.domain}"


def address_records(wanted: Wanted) -> list[Record]:
    return [
        Record(host, "AAAA" if ":" in one else "A", one, "the server")
        for host in dict.fromkeys((wanted.hostname, wanted.sender)) for one in wanted.addresses
    ]  # fmt: skip


def mx(wanted: Wanted) -> Record:
    return Record(wanted.domain, "MX", f"10 {wanted.hostname}", "where mail for the domain goes")


def spf(wanted: Wanted) -> Record:
    addresses = "".join(f" ip{ipaddress.ip_address(one).version}:{one}" for one in wanted.addresses)
    return Record(
        wanted.domain, "TXT", f"{SPF} mx{addresses} ~all", "SPF: who sends for the domain; add whoever else does"
    )  # fmt: skip


def helo_spf(wanted: Wanted) -> Record:
    return Record(wanted.sender, "TXT", f"{SPF} a -all", "SPF of reports, which have no sender (RFC 7208 2.4)")


def dkim(wanted: Wanted) -> list[Record]:
    about = {"new": "DKIM key to come", "active": "DKIM key", "old": "DKIM key of mail on its way, until retired"}
    return [Record(name, "TXT", text, about[state]) for name, text, state in wanted.keys]


def dmarc(wanted: Wanted) -> Record:
    return Record(
        f"_dmarc.{wanted.domain}", "TXT", f"{DMARC}; p={wanted.dmarc}; rua=mailto:{wanted.postmaster}",
        "DMARC: what becomes of mail that is neither; p=none first if others send for the domain",
    )  # fmt: skip


def sts_policy(wanted: Wanted) -> str:
    """The text of https://mta-sts.DOMAIN/.well-known/mta-sts.txt (RFC 8461 3.2)."""
    return f"version: STSv1\nmode: {wanted.sts}\nmx: {wanted.hostname}\nmax_age: {POLICY_SECONDS}\n"


def mta_sts(wanted: Wanted) -> Record:
    """The id is made from the policy, so that it changes with it (RFC 8461 3.1: at most 32 letters and digits)."""
    id = hashlib.sha256(sts_policy(wanted).encode()).hexdigest()[:20]
    return Record(f"_mta-sts.{wanted.domain}", "TXT", f"{STS}; id={id}", "MTA-STS: mail to us needs TLS")


def tls_rpt(wanted: Wanted) -> Record:
    text = f"{TLSRPT}; rua=mailto:{wanted.postmaster}"
    return Record(f"_smtp._tls.{wanted.domain}", "TXT", text, "TLS-RPT: where to tell of failed TLS")


def ptr(wanted: Wanted) -> list[Record]:
    about = "reverse name: set by whoever gave you the address"
    return [
        Record(ipaddress.ip_address(one).reverse_pointer, "PTR", wanted.sender, about) for one in wanted.addresses
    ]  # fmt: skip


def client_srv(wanted: Wanted) -> list[Record]:
    """For mail programs. A service that is not offered has the target "." (RFC 2782)."""
    ports = dict(wanted.ports)
    return [
        Record(
            f"{name}.{wanted.domain}", "SRV",
            f"{priority} 1 {ports[service]} {wanted.hostname}" if service in ports else "0 0 0 .", "for mail programs",
        )
        for service, (name, priority) in CLIENT_SERVICES.items()
    ]  # fmt: skip


def all_records(wanted: Wanted) -> list[Record]:
    """Every record, in the order in which they matter; PTR records, which stand in another zone, last."""
    return [
        *address_records(wanted), mx(wanted), spf(wanted), helo_spf(wanted), *dkim(wanted), dmarc(wanted),
        mta_sts(wanted), tls_rpt(wanted), *client_srv(wanted), *ptr(wanted),
    ]  # fmt: skip


def zone_text(records: Sequence[Record]) -> str:
    """Lines for a zone file, with a comment where the purpose changes."""
    lines, about = [], ""
    for record in records:
        if record.about != about:
            about = record.about
            lines.append(f"; {about}")
        lines.append(record.zone())
    return "\n".join(lines) + "\n"
