"""What is generated can be pasted, what is pasted is found in order, and what is not says what to paste."""

import re
from dataclasses import replace

import dns.zone
import pytest

from mailsrv import dns_check, dns_records, spf
from mailsrv.dns_check import FAIL, MISSING, PASS, WARN, Unanswered
from mailsrv.dns_records import Record, Wanted

RSA = "v=DKIM1; k=rsa; p=" + "MIIB" * 98
ED = "v=DKIM1; k=ed25519; p=9cZ7cQFUAbAJ2n4Bbu/x7aOUEKX60/B1zAB9FXrxAvY="
FOUR, SIX = "9.9.9.10", "2620:fe::10"
WANTED = Wanted(
    "ours.example", "mx.ours.example", (FOUR, SIX),
    (("r._domainkey.ours.example", RSA, "active"), ("e._domainkey.ours.example", ED, "active")),
    (("imaps", 993), ("submissions", 465), ("submission", 587)),
)  # fmt: skip


class Zones:
    """A DNS in a dictionary, which looks names up as the resolver does."""

    def __init__(self, text):
        self.records, self.broken = {}, set()
        zone = dns.zone.from_text(
            "$ORIGIN .\n@ 1 IN SOA a. b. 1 1 1 1 1\n@ 1 IN NS a.\n" + text, origin=".", relativize=False
        )  # fmt: skip
        for name, _, data in zone.iterate_rdatas():
            type = dns.rdatatype.to_text(data.rdtype)
            value = b"".join(data.strings).decode() if type == "TXT" else data.to_text()
            self.put(name.to_text(), type, value)

    def put(self, name, type, *values):
        self.records.setdefault((name.rstrip(".").lower(), type), []).extend(values)

    def set(self, name, type, *values):
        self.records[name, type] = list(values)

    def lookup(self, name, type):
        if name in self.broken:
            raise Unanswered(f"{name} {type}: SERVFAIL")
        return self.records.get((name.lower(), type), [])


@pytest.fixture
def zones():
    return Zones(dns_records.zone_text(dns_records.all_records(WANTED)))


def checked(zones, wanted=WANTED, fetch=None):
    return dns_check.check(wanted, zones.lookup, fetch)


def finding(zones, what, wanted=WANTED, fetch=None):
    """The one that says something else than pass about a subject, else the last."""
    found = [one for one in checked(zones, wanted, fetch) if one.what.startswith(what)]
    return next((one for one in found if one.result != PASS), found[-1])


def test_f21_what_is_generated_and_pasted_is_in_order(zones):
    findings = checked(zones)
    assert {one.result for one in findings} == {PASS}, [one for one in findings if one.result != PASS]
    assert {one.what.split(" ")[0] for one in findings} == {
        "address", "MX", "SPF", "DKIM", "DMARC", "MTA-STS", "TLS-RPT", "mail", "reverse",
    }  # fmt: skip
    assert not any(one.wrong or one.paste or one.advice for one in findings)


def test_f21_texts_are_split_at_255_octets_and_quoted():
    for text in (RSA, "x" * 255, "x" * 256, "", 'a"b\\c;d', "ü" * 200):
        line = Record("long.ours.example", "TXT", text).zone()
        strings = re.findall(r'"((?:[^"\\]|\\.)*)"', line)
        assert all(len(re.sub(r"\\\d{3}|\\.", "x", one)) <= 255 for one in strings)
        assert Zones(line + "\n").lookup("long.ours.example", "TXT") == [text]
    assert line.startswith("long.ours.example.\t3600\tIN\tTXT\t")


def test_f21_names_for_a_providers_form():
    assert Record("ours.example", "MX", "10 mx").relative("ours.example") == "@"
    assert Record("_dmarc.ours.example", "TXT", "x").relative("ours.example") == "_dmarc"
    assert Record("mx.other.example", "A", "x").relative("ours.example") == "mx.other.example"
    assert Record("mx.notours.example", "A", "x").relative("ours.example") == "mx.notours.example"


def test_services_that_are_not_offered_are_said_to_be_absent():
    values = {record.name: record.value for record in dns_records.client_srv(WANTED)}
    assert values["_imap._tcp.ours.example"] == "0 0 0 ." and values["_imaps._tcp.ours.example"].endswith(
        " 993 mx.ours.example"
    )


def test_f21_nothing_published_is_missing_and_says_what_to_paste():
    empty = Zones("")
    findings = checked(empty)
    results = {one.what: one.result for one in findings}
    assert {what for what, result in results.items() if result == MISSING} == {
        "address", "MX", "SPF", "DKIM (active key)", "DMARC", f"reverse name of {FOUR}", f"reverse name of {SIX}",
    }  # fmt: skip
    assert {result for result in results.values() if result != MISSING} == {WARN}
    pasted = {record.zone() for one in findings for record in one.paste}
    everything = {record.zone() for record in dns_records.all_records(WANTED)}
    assert everything - pasted == {record.zone() for record in everything_not_offered()}


def everything_not_offered():
    return [record for record in dns_records.client_srv(WANTED) if record.value == "0 0 0 ."]


CASES = [
    ("MX", "ours.example", "MX", ["10 mx.elsewhere.example."], FAIL, "goes to mx.elsewhere.example"),
    ("MX", "ours.example", "MX", ["0 ."], FAIL, "null MX"),
    ("MX", "ours.example", "MX", ["10 MX.Ours.Example.", "20 backup.example."], WARN, "other hosts too"),
    ("address", "mx.ours.example", "A", [], FAIL, f"{FOUR} is missing"),
    ("address", "mx.ours.example", "CNAME", ["x.example."], WARN, "alias of x.example"),
    ("SPF", "ours.example", "TXT", ["v=spf1 -all"], FAIL, f"{FOUR}: fail"),
    ("SPF", "ours.example", "TXT", ["v=spf1 ip4:9.9.9.10 ~all"], FAIL, f"{SIX}: softfail"),
    ("SPF", "ours.example", "TXT", ["v=spf1 mx ~all", "v=spf1 a ~all"], FAIL, "2 SPF records"),
    ("SPF", "ours.example", "TXT", ["v=spf1 mx +all"], WARN, "everybody"),
    ("SPF", "ours.example", "TXT", ["v=spf1 mx all"], WARN, "everybody"),
    ("SPF", "ours.example", "TXT", ["v=spf1 mxx ~all"], FAIL, "'mxx' is no mechanism"),
    ("SPF", "ours.example", "TXT", ["v=spf10 mx", "other"], MISSING, "publish"),
    ("SPF of the host", "mx.ours.example", "TXT", ["v=spf1 -all"], WARN, "does not let"),
    ("DKIM", "r._domainkey.ours.example", "TXT", [ED], FAIL, "not this key"),
    ("DKIM", "r._domainkey.ours.example", "TXT", [RSA, RSA], FAIL, "one record"),
    ("DKIM", "r._domainkey.ours.example", "TXT", ["v=DKIM1; k=rsa; p="], FAIL, "not this key"),
    ("DKIM", "r._domainkey.ours.example", "TXT", [RSA + "; h=sha1"], FAIL, "h= or s="),
    ("DKIM", "r._domainkey.ours.example", "TXT", [RSA + "; t=y"], WARN, "testing"),
    ("DKIM", "r._domainkey.ours.example", "TXT", [], MISSING, "publish"),
    ("DMARC", "_dmarc.ours.example", "TXT", ["v=DMARC1; p=none; rua=mailto:a@ours.example"], WARN, "protects nobody"),
    ("DMARC", "_dmarc.ours.example", "TXT", ["v=DMARC1; p=reject"], WARN, "rua="),
    ("DMARC", "_dmarc.ours.example", "TXT", ["v=DMARC1; p=reject; pct=5; rua=mailto:a@b.example"], WARN, "pct"),
    ("DMARC", "_dmarc.ours.example", "TXT", ["v=DMARC1; p=maybe"], FAIL, "must be"),
    ("DMARC", "_dmarc.ours.example", "TXT", ["v=DMARC1; p=reject", "v=DMARC1; p=none"], FAIL, "one record"),
    ("DMARC", "_dmarc.ours.example", "TXT", ["v=DMARC1; p=reject; rua=mailto:a@far.org!10m"], WARN, "far.org has not"),
    ("DMARC", "_dmarc.ours.example", "TXT", ["hello"], MISSING, "publish"),
    ("MTA-STS", "_mta-sts.ours.example", "TXT", ["v=STSv1; id=no-t"], WARN, "id of up to"),
    ("MTA-STS", "_mta-sts.ours.example", "TXT", [], WARN, "publish"),
    ("TLS-RPT", "_smtp._tls.ours.example", "TXT", ["v=TLSRPTv1; rua=postmaster"], WARN, "mailto: or https:"),
    ("mail", "_imaps._tcp.ours.example", "SRV", ["0 1 993 other.example."], WARN, "something else"),
    ("mail", "_imaps._tcp.ours.example", "SRV", [], WARN, "guess"),
    ("mail", "_imap._tcp.ours.example", "SRV", ["0 1 143 mx.ours.example."], WARN, "something else"),
    ("reverse", "10.9.9.9.in-addr.arpa", "PTR", ["host-9.provider.example."], FAIL, "FCrDNS"),
    ("reverse", "10.9.9.9.in-addr.arpa", "PTR", [], MISSING, "whoever gave you"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "name", "type", "values", "result", "advice"), CASES)
def test_f21_each_fault_is_told(zones, what, name, type, values, result, advice):
    zones.set(name, type, *values)
    found = finding(zones, what)
    assert (found.result, found.name) == (result, name)
    assert advice in found.advice
    if type in ("TXT", "MX", "SRV", "PTR") and values and result != MISSING and "publish" not in advice:
        assert found.found, "what was found is shown"
    others = [one for one in checked(zones) if one.what.split(" ")[0] != what.split(" ")[0] and one.wrong]
    assert all(one.what.startswith(("SPF", "reverse")) for one in others), "one fault is not told as many"


@pytest.mark.parametrize(
    ("what", "name", "type", "values"),
    [
        ("MX", "ours.example", "MX", ["5 MX.ours.example."]),
        ("SPF", "ours.example", "TXT", ["google-site-verification=x", "V=SPF1 include:sub.example -all"]),
        ("DKIM", "r._domainkey.ours.example", "TXT", [RSA.removeprefix("v=DKIM1; ").replace("BMI", "B MI") + ";"]),
        ("DKIM", "r._domainkey.ours.example", "TXT", [RSA + "; h=sha1:sha256; s=email; n=note"]),
        ("DMARC", "_dmarc.ours.example", "TXT", ["v=DMARC1;p=reject;rua=mailto:x@agreed.org,mailto:y@ours.example"]),
        ("MTA-STS", "_mta-sts.ours.example", "TXT", ["v=STSv1; id=20261125T000000;"]),
        ("TLS-RPT", "_smtp._tls.ours.example", "TXT", ["v=TLSRPTv1;rua=https://reports.example/tls"]),
        ("mail", "_imaps._tcp.ours.example", "SRV", ["5 0 993 MX.ours.example."]),
    ],
)  # fmt: skip
def test_f21_other_ways_to_say_the_same_are_right(zones, what, name, type, values):
    zones.put("sub.example", "TXT", "v=spf1 a:far.example ip4:9.9.9.8/30 redirect=_s.example")
    zones.put("_s.example", "TXT", "v=spf1 ip6:2620:fe::/48 -all")
    zones.put("far.example", "A", "9.0.0.1")
    zones.put("ours.example._report._dmarc.agreed.org", "TXT", "v=DMARC1")
    zones.set(name, type, *values)
    assert finding(zones, what).result == PASS, finding(zones, what)


def test_a_server_that_sends_by_another_name_needs_records_for_that(zones):
    wanted = replace(WANTED, helo="out.ours.example")
    assert {one.what for one in checked(zones, wanted) if one.result != PASS} == {
        "SPF of the host", f"reverse name of {FOUR}", f"reverse name of {SIX}",
    }  # fmt: skip
    pasted = Zones(dns_records.zone_text(dns_records.all_records(wanted)))
    assert {one.result for one in checked(pasted, wanted)} == {PASS}


def test_the_policy_of_the_organisation_holds_below_it(zones):
    wanted = Wanted("mail.ours.example", "mx.ours.example", (FOUR,))
    found = finding(zones, "DMARC", wanted)
    assert found.result == PASS
    assert "p=quarantine" in found.found[0]
    zones.set("_dmarc.ours.example", "TXT", "v=DMARC1; p=reject; sp=none")
    assert "p=none protects nobody" in finding(zones, "DMARC", wanted).advice


def test_new_and_old_keys_are_wanted_too(zones):
    keys = (*WANTED.keys, ("n._domainkey.ours.example", ED, "new"), ("o._domainkey.ours.example", ED, "old"))
    wanted = Wanted(WANTED.domain, WANTED.hostname, WANTED.addresses, keys, WANTED.ports)
    told = [one for one in checked(zones, wanted) if one.result != PASS]
    assert [(one.result, one.what) for one in told] == [(WARN, "DKIM (new key)"), (WARN, "DKIM (old key)")]
    assert "mailsrv dkim activate" in told[0].advice
    record = Record("n._domainkey.ours.example", "TXT", ED)
    assert not dns_check.published(record, zones.lookup)
    zones.put(record.name, "TXT", RSA)
    assert not dns_check.published(record, zones.lookup)
    zones.set(record.name, "TXT", ED)
    assert dns_check.published(record, zones.lookup)
    zones.broken.add(record.name)
    assert not dns_check.published(record, zones.lookup)


def test_a_domain_without_keys_is_not_in_order(zones):
    found = finding(zones, "DKIM", Wanted("ours.example", "mx.ours.example"))
    assert found.result == MISSING and "mailsrv dkim generate ours.example" in found.advice


def test_a_dns_that_does_not_answer_is_no_pass_and_no_missing(zones):
    zones.broken |= {"ours.example", "_dmarc.ours.example"}
    findings = checked(zones)
    silent = [one for one in findings if "did not answer" in one.advice]
    assert {(one.what, one.result) for one in silent} == {("MX", FAIL), ("SPF", FAIL), ("DMARC", FAIL)}
    assert not [one for one in findings if one.result == MISSING]


def test_without_addresses_those_of_the_host_are_taken(zones):
    wanted = Wanted(WANTED.domain, WANTED.hostname, (), WANTED.keys, WANTED.ports)
    assert {one.result for one in checked(zones, wanted)} == {PASS}
    zones.set("mx.ours.example", "A", "192.168.1.1")
    assert "from the Internet" in finding(zones, "address", wanted).advice


def test_the_mta_sts_policy_is_fetched_and_has_to_name_us(zones):
    def answers(text):
        def fetch(domain):
            assert domain == "ours.example"
            if isinstance(text, Exception):
                raise text
            return text

        return finding(zones, "MTA-STS policy", fetch=fetch)

    own = dns_records.sts_policy(WANTED)
    assert answers(own).result == PASS
    assert answers(own.replace("\n", "\r\n").replace("testing", "enforce")).result == PASS
    assert answers(own.replace("mx: mx.ours", "mx: *.ours")).result == PASS
    elsewhere = own.replace("mx: mx.ours", "mx: mail.far")
    assert answers(elsewhere).result == WARN
    found = answers(elsewhere.replace("testing", "enforce"))
    assert found.result == FAIL and "does not name mx.ours.example" in found.advice
    assert answers("<html>").result == WARN
    assert "no route" in answers(OSError("no route")).advice


# ------------------------------------------------------------------ SPF


def spf_of(record, address=FOUR, **more):
    zones = Zones("")
    zones.put("d.example", "TXT", record)
    for name, values in more.items():
        type, name = name.split("_", 1)
        zones.put(name.replace("_", "."), type.upper(), *([values] if isinstance(values, str) else values))
    return spf.result(address, "d.example", zones.lookup)


def test_spf_mechanisms():
    assert spf_of("v=spf1 ip4:9.9.9.10 -all") == "pass"
    assert spf_of("v=spf1 ip4:9.9.8.0/23 -all") == "pass"
    assert spf_of("v=spf1 ip4:9.9.9.0/29 -all") == "fail"
    assert spf_of("v=spf1 ip6:2620:fe::/32 ~all", SIX) == "pass"
    assert spf_of("v=spf1 ip6:2620:fe::/32 ?all") == "neutral"
    assert spf_of("v=spf1 a -all", a_d_example=FOUR) == "pass"
    assert spf_of("v=spf1 a:x.example/24 -all", a_x_example="9.9.9.77") == "pass"
    assert spf_of("v=spf1 a:x.example/24//64 -all", SIX, aaaa_x_example="2620:fe::77") == "pass"
    assert spf_of("v=spf1 a//64 -all", SIX, aaaa_d_example="2620:fe:1::77") == "fail"
    assert spf_of("v=spf1 mx -all", mx_d_example="10 x.example.", a_x_example=FOUR) == "pass"
    assert spf_of("v=spf1 -ip4:9.9.9.10 +all") == "fail", "the first that matches counts"
    assert spf_of("v=spf1 exists:x.example -all", a_x_example="127.0.0.2") == "pass"
    assert spf_of("v=spf1 include:x.example -all", txt_x_example="v=spf1 ip4:9.9.9.10 -all") == "pass"
    assert spf_of("v=spf1 include:x.example ~all", txt_x_example="v=spf1 -all") == "softfail"
    assert spf_of("v=spf1 redirect=x.example", txt_x_example="v=spf1 ip4:9.9.9.10 -all") == "pass"
    assert spf_of("v=spf1 redirect=x.example -all", txt_x_example="v=spf1 +all") == "fail"
    assert spf_of("v=spf1 exp=e.example unknown=x") == "neutral"
    assert spf_of("v=spf1 exists:%{i}.x.example ptr -all") == "fail"
    assert spf_of("nothing") == "none"
    hosts = [f"10 h{n}.example." for n in range(4)]
    assert spf_of("v=spf1 mx ip6:2620:fe::10 -all", SIX, mx_d_example=hosts) == "pass", (
        "hosts without IPv6 are no fault"
    )


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ("v=spf1 include:d.example -all", "more than 10"), ("v=spf1 redirect=d.example", "more than 10"),
        ("v=spf1 " + "a:x.example " * 11, "more than 10"),
        ("v=spf1 a:n1.example a:n2.example a:n3.example", "more than 2"),
        ("v=spf1 mx", "10 MX"), ("v=spf1 include:none.example", "no SPF record"),
        ("v=spf1 redirect=none.example", "no SPF"),
        ("v=spf1 ip4:9.9.9", "no network"), ("v=spf1 ip4:2620:fe::", "no IPv4"), ("v=spf1 a/99", "no prefix"),
        ("v=spf1 foo:x", "no mechanism"),
    ],
)  # fmt: skip
def test_s30_spf_records_that_cannot_be_used(record, says):
    with pytest.raises(spf.SpfError, match=says):
        spf_of(record, mx_d_example=[f"10 h{n}.example." for n in range(11)], a_x_example="9.0.0.1")
