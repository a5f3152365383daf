"""Whether the published DNS records of a domain are what this server needs: each one pass, warn, fail or missing.

What is not as wanted says what was found, what was expected, and what to paste. Nothing is changed.

Imports: dns_records, spf, net, smtp.mta_sts.    RFC 5321 5.1, 7505 (MX), 7208 (SPF), 6376 3.6 (DKIM), 7489 6 (DMARC),
8461 3 (MTA-STS), 8460 3 (TLS-RPT), 6186 (SRV).
"""

from __future__ import annotations

import ipaddress
import re
import ssl
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mailsrv import dns_records as records
from mailsrv import spf
from mailsrv.dns_records import Record, Wanted
from mailsrv.net.https import FetchFailed, fetch
from mailsrv.net.resolver import LookupFailed, NameNotFound, Resolver
from mailsrv.smtp import mta_sts

STS_PATH = "/.well-known/mta-sts.txt"
POLICY_OCTETS = 64 * 1024  # RFC 8461 3.3
PASS, WARN, FAIL, MISSING = "pass", "warn", "fail", "missing"

Lookup = spf.Lookup
Fetch = Callable[[str], str]  # the MTA-STS policy of a domain; raises OSError


class Unanswered(LookupError):
    """Nobody could tell whether there is such a record."""


@dataclass(frozen=True, slots=True)
class Finding:
    """`what` names the subject (MX, SPF …), `name` and `type` the record; `advice` is empty for what is in order, and
    `paste` has the records that would be right.
    """

    result: str
    what: str
    name: str
    type: str
    found: tuple[str, ...] = ()
    expected: str = ""
    advice: str = ""
    paste: tuple[Record, ...] = ()

    @property
    def wrong(self) -> bool:
        return self.result in (FAIL, MISSING)


def lookup_by(resolver: Resolver) -> Lookup:
    """Asks the DNS as the server does."""

    def lookup(name: str, type: str) -> list[str]:
        try:
            values = resolver.lookup(name, type).values
        except NameNotFound:
            return []
        except LookupFailed as failure:
            raise Unanswered(str(failure)) from None
        return [" ".join(map(str, value)) if isinstance(value, tuple) else str(value) for value in values]

    return lookup


def fetch_by(resolver: Resolver) -> Fetch:
    """Fetches MTA-STS policies as other servers do: by a certificate that everybody trusts."""
    context = ssl.create_default_context()

    def policy(domain: str) -> str:
        try:
            text = fetch(f"mta-sts.{domain}", STS_PATH, resolver, context, limit=POLICY_OCTETS)
        except FetchFailed as failure:
            raise OSError(str(failure)) from None
        return text.decode("utf-8", "replace")

    return policy


def check(wanted: Wanted, lookup: Lookup, fetch: Fetch | None = None) -> list[Finding]:
    """Every record of the domain in turn."""
    subjects: Sequence[tuple[str, Callable[[], Iterator[Finding]]]] = (
        ("address", lambda: _addresses(wanted, lookup)),
        ("MX", lambda: _mx(wanted, lookup)),
        ("SPF", lambda: _spf(wanted, lookup)),
        ("SPF of the host", lambda: _helo_spf(wanted, lookup)),
        ("DKIM", lambda: _dkim(wanted, lookup)),
        ("DMARC", lambda: _dmarc(wanted, lookup)),
        ("MTA-STS", lambda: _mta_sts(wanted, lookup, fetch)),
        ("TLS-RPT", lambda: _tls_rpt(wanted, lookup)),
        ("mail programs", lambda: _client_srv(wanted, lookup)),
        ("reverse name", lambda: _ptr(wanted, lookup)),
    )
    findings: list[Finding] = []
    for what, examine in subjects:
        try:
            findings += examine()
        except Unanswered as failure:
            findings.append(
                Finding(FAIL, what, wanted.domain, "", advice=f"the DNS did not answer: {failure}; try again")
            )
    return findings


def published(key: Record, lookup: Lookup) -> bool:
    """Whether the record of a DKIM key can be found, and is that key."""
    try:
        return _dkim_key(key, "", lookup).result == PASS
    except Unanswered:
        return False


def _tags(text: str) -> dict[str, str]:
    """`a=b; c=d`, names in lower case; DKIM, DMARC, MTA-STS and TLS-RPT records have this form."""
    pairs = (part.partition("=") for part in text.split(";") if part.strip())
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def _versions(name: str, version: str, lookup: Lookup) -> list[str]:
    return [text for text in lookup(name, "TXT") if re.match(rf"{version}\s*(;|$)", text.strip(), re.IGNORECASE)]


# ------------------------------------------------------------------ the host


def _host_addresses(host: str, lookup: Lookup) -> list[str]:
    return [*lookup(host, "AAAA"), *lookup(host, "A")]


def _own_addresses(wanted: Wanted, lookup: Lookup) -> list[str]:
    """Those that were named, else what the host's name has."""
    return list(wanted.addresses) or _host_addresses(wanted.hostname, lookup)


def _addresses(wanted: Wanted, lookup: Lookup) -> Iterator[Finding]:
    found = _host_addresses(wanted.hostname, lookup)
    paste = tuple(records.address_records(wanted))
    at = ("address", wanted.hostname, "A/AAAA", tuple(found), ", ".join(wanted.addresses) or "the server's addresses")
    alias = lookup(wanted.hostname, "CNAME")
    missing = [one for one in wanted.addresses if not _has(found, one)]
    if not found:
        yield Finding(MISSING, *at, "publish them (server.hostname says what this server is called)", paste)
    elif missing:
        yield Finding(FAIL, *at, f"{', '.join(missing)} is missing", paste)
    elif alias:
        yield Finding(WARN, *at, f"it is an alias of {alias[0]}; a mail host should have addresses of its own", paste)
    elif any(not ipaddress.ip_address(one).is_global for one in found):
        yield Finding(WARN, *at, "not all of them can be reached from the Internet", paste)
    else:
        yield Finding(PASS, *at)


def _has(addresses: Sequence[str], one: str) -> bool:
    return ipaddress.ip_address(one) in [ipaddress.ip_address(other) for other in addresses]


def _mx(wanted: Wanted, lookup: Lookup) -> Iterator[Finding]:
    record = records.mx(wanted)
    found = sorted(lookup(wanted.domain, "MX"), key=lambda text: int(text.split()[0]))
    hosts = [text.split()[-1].rstrip(".").lower() for text in found]
    at = ("MX", record.name, "MX", tuple(found), record.value)
    if not found:
        yield Finding(MISSING, *at, "publish it", (record,))
    elif hosts == [""]:
        yield Finding(FAIL, *at, "it says that the domain takes no mail (null MX)", (record,))
    elif wanted.hostname not in hosts:
        yield Finding(FAIL, *at, f"mail goes to {', '.join(hosts)}, not to this server", (record,))
    elif len(hosts) > 1:
        yield Finding(WARN, *at, "mail goes to other hosts too; that is right only if they bring it here")
    else:
        yield Finding(PASS, *at)


def _ptr(wanted: Wanted, lookup: Lookup) -> Iterator[Finding]:
    for address in _own_addresses(wanted, lookup):
        pointer = ipaddress.ip_address(address).reverse_pointer
        record = Record(pointer, "PTR", wanted.sender, "reverse name")
        names = [name.rstrip(".").lower() for name in lookup(pointer, "PTR")]
        confirmed = [name for name in names if _has(_host_addresses(name, lookup), address)]
        at = (f"reverse name of {address}", pointer, "PTR", tuple(names), wanted.sender)
        if not names:
            yield Finding(MISSING, *at, "ask whoever gave you the address to set it", (record,))
        elif not confirmed:
            yield Finding(FAIL, *at, f"{names[0]} does not have the address {address} (FCrDNS)", (record,))
        elif wanted.sender not in confirmed:
            yield Finding(WARN, *at, "it is confirmed, but not the name this server greets with", (record,))
        else:
            yield Finding(PASS, *at)


# ------------------------------------------------------------------ who sends


def _spf(wanted: Wanted, lookup: Lookup) -> Iterator[Finding]:
    yield _spf_of("SPF", records.spf(wanted), MISSING, FAIL, wanted, lookup)


def _helo_spf(wanted: Wanted, lookup: Lookup) -> Iterator[Finding]:
    if wanted.sender != wanted.domain:
        yield _spf_of("SPF of the host", records.helo_spf(wanted), WARN, WARN, wanted, lookup)


def _spf_of(what: str, record: Record, absent: str, wrong: str, wanted: Wanted, lookup: Lookup) -> Finding:
    at = (what, record.name, "TXT")
    try:
        text = spf.find_record(record.name, lookup)
        if not text:
            return Finding(absent, *at, (), record.value, "publish it", (record,))
        results = {one: spf.result(one, record.name, lookup) for one in _own_addresses(wanted, lookup)}
    except spf.SpfError as error:
        found = tuple(one for one in lookup(record.name, "TXT") if one.lower().startswith(records.SPF))
        return Finding(wrong, *at, found, record.value, f"it cannot be used: {error}", (record,))
    refused = [f"{one}: {result}" for one, result in results.items() if result != "pass"]
    if refused or not results:
        advice = f"it does not let this server send ({', '.join(refused) or 'whose address is not known; use --ip'})"
        return Finding(wrong, *at, (text,), record.value, advice, (record,))
    if re.search(r"(?i)\s\+?all\b", text):
        return Finding(WARN, *at, (text,), record.value, "it lets everybody send for the domain", (record,))
    return Finding(PASS, *at, (text,), record.value)


def _dkim(wanted: Wanted, lookup: Lookup) -> Iterator[Finding]:
    if not wanted.keys:
        advice = f"mail is not signed: mailsrv dkim generate {wanted.domain}"
        yield Finding(MISSING, "DKIM", wanted.domain, "TXT", advice=advice)
    for record, (_, _, state) in zip(records.dkim(wanted), wanted.keys, strict=True):
        yield _dkim_key(record, state, lookup)


def _dkim_key(record: Record, state: str, lookup: Lookup) -> Finding:
    """Only what an active key lacks makes signatures fail."""
    found = tuple(lookup(record.name, "TXT"))
    at = (f"DKIM ({state} key)", record.name, "TXT", found, record.value)
    if not found:
        words = {"new": "publish it; then: mailsrv dkim activate", "old": "mail still on its way cannot be verified"}
        return Finding(WARN if state in words else MISSING, *at, words.get(state, "publish it"), (record,))
    wrong = FAIL if state == "active" else WARN
    if len(found) > 1:
        return Finding(wrong, *at, "there may be one record", (record,))
    given, own = _tags(found[0]), _tags(record.value)
    if given.get("v", "DKIM1") != "DKIM1" or given.get("k", "rsa") != own["k"] or _key(given) != own["p"]:
        return Finding(wrong, *at, "it is not this key; replace it", (record,))
    if "sha256" not in given.get("h", "sha256").split(":") or not {"*", "email"} & set(given.get("s", "*").split(":")):
        return Finding(wrong, *at, "its h= or s= does not allow our signatures", (record,))
    if "y" in given.get("t", "").split(":"):
        return Finding(WARN, *at, "t=y says that the domain is only testing", (record,))
    return Finding(PASS, *at)


def _key(tags: dict[str, str]) -> str:
    return re.sub(r"\s", "", tags.get("p", ""))


# ------------------------------------------------------------------ policies


def _dmarc(wanted: Wanted, lookup: Lookup) -> Iterator[Finding]:
    record = records.dmarc(wanted)
    found = _versions(record.name, records.DMARC, lookup)
    above = "" if found else _inherited(wanted.domain, lookup)
    at = ("DMARC", record.name, "TXT", tuple(found) or ((above,) if above else ()), record.value)
    tags = _tags(found[0] if found else above)
    policy = tags.get("p", "").lower() if found else tags.get("sp", tags.get("p", "")).lower()
    if not tags:
        yield Finding(MISSING, *at, "publish it", (record,))
    elif len(found) > 1:
        yield Finding(FAIL, *at, "there may be one record", (record,))
    elif policy not in ("none", "quarantine", "reject"):
        yield Finding(FAIL, *at, "its p= must be none, quarantine or reject", (record,))
    elif policy == "none":
        yield Finding(WARN, *at, "p=none protects nobody: forged mail is taken as before", (record,))
    elif tags.get("pct", "100") != "100":
        yield Finding(WARN, *at, "pct= applies it to some mail only", (record,))
    elif "rua" not in tags:
        yield Finding(WARN, *at, "without rua= you are told of no failures", (record,))
    else:
        strangers = [one for one in _report_domains(tags["rua"], wanted.domain) if not _agrees(one, wanted, lookup)]
        advice = f"{', '.join(strangers)} has not agreed to take reports for {wanted.domain} (RFC 7489 7.1)"
        yield Finding(WARN, *at, advice) if strangers else Finding(PASS, *at)


def _inherited(domain: str, lookup: Lookup) -> str:
    """The record of the organisation a sub-domain belongs to: the nearest domain above it that has one."""
    parts = domain.split(".")
    for at in range(1, len(parts) - 1):
        found = _versions(f"_dmarc.{'.'.join(parts[at:])}", records.DMARC, lookup)
        if len(found) == 1:
            return found[0]
    return ""


def _report_domains(rua: str, domain: str) -> list[str]:
    """Domains elsewhere that reports go to."""
    found = re.findall(r"mailto:[^@,!\s]+@([^,!\s]+)", rua, re.IGNORECASE)
    return [one.lower() for one in dict.fromkeys(found) if not f".{domain}".endswith(f".{one.lower()}")]


def _agrees(stranger: str, wanted: Wanted, lookup: Lookup) -> bool:
    if stranger.endswith(f".{wanted.domain}"):
        return True
    return bool(_versions(f"{wanted.domain}._report._dmarc.{stranger}", records.DMARC, lookup))


def _mta_sts(wanted: Wanted, lookup: Lookup, fetch: Fetch | None) -> Iterator[Finding]:
    record = records.mta_sts(wanted)
    found = _versions(record.name, records.STS, lookup)
    at = ("MTA-STS", record.name, "TXT", tuple(found), record.value)
    where = f"https://mta-sts.{wanted.domain}{STS_PATH}"
    if not found:
        yield Finding(WARN, *at, f"publish it, and the policy at {where}", (record,))
    elif len(found) > 1 or not re.fullmatch(r"[A-Za-z0-9]{1,32}", _tags(found[0]).get("id", "")):
        yield Finding(WARN, *at, "there may be one record, with an id of up to 32 letters and digits", (record,))
    else:
        yield Finding(PASS, *at)
        if fetch is not None:
            yield _sts_policy(wanted, where, fetch)


def _sts_policy(wanted: Wanted, where: str, fetch: Fetch) -> Finding:
    try:
        text = fetch(wanted.domain)
    except OSError as failure:
        return Finding(WARN, "MTA-STS policy", where, "HTTPS", (), records.sts_policy(wanted), f"not found: {failure}")
    at = ("MTA-STS policy", where, "HTTPS", (text,), records.sts_policy(wanted))
    try:
        policy = mta_sts.parse_policy(text, "")
    except mta_sts.PolicyWrong as wrong:
        return Finding(WARN, *at, f"it is no policy: {wrong}")
    if policy.mode != "none" and not policy.allows(wanted.hostname):
        refused = policy.mode == "enforce"
        return Finding(
            FAIL if refused else WARN, *at, f"it does not name {wanted.hostname}: no mail is sent here by it"
        )
    return Finding(PASS, *at)


def _tls_rpt(wanted: Wanted, lookup: Lookup) -> Iterator[Finding]:
    record = records.tls_rpt(wanted)
    found = _versions(record.name, records.TLSRPT, lookup)
    at = ("TLS-RPT", record.name, "TXT", tuple(found), record.value)
    if not found:
        yield Finding(WARN, *at, "publish it", (record,))
    elif len(found) > 1 or not re.match(r"(?i)mailto:.+@.+|https://.+", _tags(found[0]).get("rua", "")):
        yield Finding(WARN, *at, "there may be one record, whose rua= has a mailto: or https: address", (record,))
    else:
        yield Finding(PASS, *at)


def _client_srv(wanted: Wanted, lookup: Lookup) -> Iterator[Finding]:
    for record in records.client_srv(wanted):
        found = tuple(lookup(record.name, "SRV"))
        offered = not record.value.endswith(" .")
        at = ("mail programs", record.name, "SRV", found, record.value)
        if [_target(text) for text in found] == [_target(record.value)] or not (found or offered):
            yield Finding(PASS, *at)
        else:
            yield Finding(WARN, *at, "they are told something else" if found else "they have to guess", (record,))


def _target(value: str) -> list[str]:
    """Port and host: priority and weight are the administrator's."""
    return value.lower().rstrip(".").split()[2:]
