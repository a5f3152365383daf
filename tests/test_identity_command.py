"""`mailsrv dkim` and `mailsrv dns`: what they print can be pasted, and their exit codes say how it is."""

import json
import re

import dns.zone
import pytest

from mailsrv import cli
from mailsrv.mail.accounts import Accounts
from tests.conftest import configuration
from tests.fakes.dns import SERVFAIL, FakeDns


@pytest.fixture
def published():
    """The DNS as the command finds it."""
    with FakeDns() as made:
        yield made


@pytest.fixture
def command(tmp_path, capsys, published):
    dns = {"dns.nameservers": ["127.0.0.1"], "dns.port": published.port, "dns.seconds": 2}
    settings = configuration(tmp_path, None, {"server.hostname": "mx.ours.example", **dns})
    accounts = Accounts(settings.accounts_path, settings.mail_root)
    accounts.add_domain("ours.example")
    accounts.close()

    def run(*words, code=0):
        done = cli.main([*words, "--config", settings.path])
        out, err = capsys.readouterr()
        assert done == code, err
        return out, err

    return run


def zone(text):
    """name -> texts of a pasted zone."""
    parsed = dns.zone.from_text(
        "$ORIGIN .\n@ 1 IN SOA a. b. 1 1 1 1 1\n@ 1 IN NS a.\n" + text, origin=".", relativize=False
    )
    found = {}
    for name, _, data in parsed.iterate_rdatas():
        if name == dns.name.root:
            continue
        type = dns.rdatatype.to_text(data.rdtype)
        values = [b"".join(data.strings).decode()] if type == "TXT" else [data.to_text()]
        found.setdefault((name.to_text().rstrip("."), type), []).extend(values)
    return found


def selectors(command, *words):
    return {key["selector"]: key["state"] for key in json.loads(command("dkim", "list", *words, "--json")[0])}


def publish(published, text):
    for (name, type), values in zone(text).items():
        published.add(name, type, *[f'"{value[:255]}" "{value[255:]}"' if type == "TXT" else value for value in values])


def test_b21_keys_from_the_first_to_the_last(command, published):
    records = zone(command("dkim", "generate", "ours.example")[0])
    first = set(selectors(command))
    assert {name for name, _ in records} == {f"{one}._domainkey.ours.example" for one in first} and len(first) == 2
    assert "mailsrv dkim rotate ours.example" in command("dkim", "generate", "ours.example", code=1)[1]
    pasted = command("dkim", "rotate", "OURS.example.")[0]
    new = zone(pasted)
    refused = command("dkim", "activate", "ours.example", code=1)[1]
    assert "--unchecked" in refused and any(name in refused for name, _ in new)
    publish(published, pasted)
    published.fail(next(iter(new))[0], "TXT", SERVFAIL)
    command("dkim", "activate", "ours.example", code=1)
    assert {one for one, state in selectors(command).items() if state == "active"} == first, "not while one is not seen"
    publish(published, pasted)
    command("dkim", "activate", "ours.example")
    states = selectors(command, "ours.example")
    assert {one for one, state in states.items() if state == "old"} == first
    assert "nothing" not in command("dkim", "retire", "ours.example", code=1)[0]
    gone = command("dkim", "retire", "ours.example", "--at-once")[0]
    assert all(one in gone for one in first) and set(selectors(command).values()) == {"active"}


def test_dkim_for_a_domain_that_is_not_ours(command):
    for verb in ("generate", "rotate", "activate", "retire"):
        assert "mailsrv domain add far.example" in command("dkim", verb, "far.example", code=1)[1]
    assert selectors(command) == {} and command("dkim", "list", "far.example") == ("", "")
    assert "Not a domain name" in command("dkim", "generate", "../x", code=1)[1]


def test_f21_generated_in_every_form(command):
    command("dkim", "generate", "ours.example")
    options = ("ours.example", "--ip", "9.9.9.10", "--ip", "2620:FE:0::10", "--dmarc", "reject", "--mta-sts", "enforce")
    out, err = command("dns", "generate", *options, "--form", "zone")
    records = zone(out.partition("; the policy")[0])
    assert records["ours.example", "MX"] == ["10 mx.ours.example."]
    assert records["mx.ours.example", "AAAA"] == ["2620:fe::10"]
    assert records["_dmarc.ours.example", "TXT"] == ["v=DMARC1; p=reject; rua=mailto:postmaster@ours.example"]
    assert len([name for name, _ in records if "_domainkey" in name]) == 2
    assert "mode: enforce\nmx: mx.ours.example\n" in out and err == ""
    shown = json.loads(command("dns", "generate", *options, "--json")[0])
    assert "".join(one["zone"] + "\n" for one in shown["records"]) == re.sub(
        r"(?m)^;.*\n|^\n", "", out.partition("; the policy")[0]
    )
    assert {"name": "@", "type": "MX", "priority": "10", "value": "mx.ours.example"}.items() <= shown["records"][
        2
    ].items()
    table = command("dns", "generate", *options, "--form", "table")[0]
    assert re.search(r"(?m)^_imaps\._tcp +SRV +0 +1 \d+ mx\.ours\.example$", table)
    assert re.search(r"(?m)^\d+-rsa\._domainkey +TXT +v=DKIM1; k=rsa; p=[^ \"]{390,}$", table), "one piece, for a form"


def test_f21_check_says_how_it_is(command, published):
    command("dkim", "generate", "ours.example")
    out, _ = command("dns", "check", "ours.example", code=1)
    assert re.search(r"(?m)^missing MX: ours\.example MX\n +found: +nothing\n +expected: 10 mx\.ours\.example\n", out)
    assert "v=DKIM1; k=ed25519" in out
    options = ("ours.example", "--ip", "9.9.9.10")
    publish(published, command("dns", "generate", *options, "--form", "zone")[0].partition("; the policy")[0])
    rows = json.loads(command("dns", "check", *options, "--json")[0])
    told = [row for row in rows if row["result"] != "pass"]
    assert [row["what"] for row in told] == ["MTA-STS policy"], "there is no web server for it"
    assert "not found" in told[0]["advice"]
    published.add("ours.example", "MX", "10 mx.ours.example.")
    published.add("_dmarc.ours.example", "TXT", '"v=DMARC1; p=\\027[31mred"')
    out, _ = command("dns", "check", *options, code=1)
    assert "p=\\x1b[31mred" in out, "what others publish does not reach the terminal as it is"
    published.fail("ours.example", "TXT", SERVFAIL)
    assert re.search(r"fail +SPF.*\n.*\n* +.*did not answer", command("dns", "check", *options, code=1)[0])
    with pytest.raises(SystemExit) as misuse:
        command("dns", "check", "ours.example", "--ip", "999.1.1.1")
    assert misuse.value.code == 2
