"""What the doctor says of keys that are root's, of the DNS, and of a queue runner that does not know of an entry."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mailsrv.runner import spool_of
from tests.daemon.conftest import ROOT, SECONDS, until
from tests.daemon.test_doctor import doctor
from tests.daemon.test_processes_root import NOBODY, as_root, reachable  # noqa: F401
from tests.daemon.test_queue_process import NOWHERE, runner_pid, submit
from tests.fakes.dns import SERVFAIL, FakeDns

pytestmark = pytest.mark.timeout(400)  # many commands, each a start of the program
OURS = "9.9.9.10"  # an address of the Internet, so that records can be wanted for it; nothing is sent there


@as_root
def test_a_key_that_is_root_s_is_no_failure_and_one_that_does_not_belong_is(reachable, certificate, authority):  # noqa: F811
    server = reachable(**{"server.user": "nobody", "server.hostname": "localhost"})
    place = Path(server.settings["server.data_dir"]).parent
    pair = [str(place / name) for name in ("server.pem", "server.key")]
    for source, target in zip(certificate, pair, strict=True):
        shutil.copy(source, target)
    os.chmod(pair[0], 0o644)
    os.chmod(pair[1], 0o600)
    run = Path(server.settings["server.run_dir"])
    run.mkdir(0o750)
    os.chown(run, NOBODY.pw_uid, NOBODY.pw_gid)
    settings = Path(server.settings.path)
    text = settings.read_text().replace(certificate[0], pair[0]).replace(certificate[1], pair[1])
    settings.write_text(text)
    code, found = doctor(server, "--quick")
    told = [row for row in found if row["what"].startswith("tls: ")]
    assert [(row["result"], row["what"]) for row in told] == [("warn", f"tls: {pair[1]} cannot be read by nobody")]
    assert f"chgrp nogroup {pair[1]}; chmod g+r {pair[1]}" in told[0]["advice"]
    assert code == 0
    # Root sees more: whether the two belong together.
    authority.issue_cert("localhost").private_key_pem.write_to_path(pair[1])
    code, found = doctor(server, "--quick")
    assert code == 1
    assert [row["what"].partition(", ")[0] for row in found if row["result"] == "fail"] == [
        f"tls: tls.certificate {pair[0]}"
    ]
    # And whoever is neither root nor the server's user is told to come back as root.
    settings.write_text(text.replace('"nobody"', '"daemon"'))
    program = f"""
import os
from gevent import monkey; monkey.patch_all()
from mailsrv import certificates, config, doctor
settings = config.load({str(settings)!r})
os.setresuid(*[{NOBODY.pw_uid}] * 3)
for one in (*doctor.services.keys(settings), *doctor.services.certificates(settings)):
    print(one.result, one.what, one.advice, sep="|")
"""
    said = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=True
    ).stdout.splitlines()
    assert f"warn|tls: {pair[1]} cannot be read by nobody|run mailsrv doctor as root, which looks at all" in said[0]
    assert [line.partition("|")[0] for line in said] == ["warn", "ok"]


@pytest.fixture
def dns():
    with FakeDns() as made:
        yield made


def names(server):
    """(exit code, findings about the DNS)."""
    made = server.command("doctor", "--json")
    assert made.stdout, made.stderr
    return made.returncode, [row for row in json.loads(made.stdout) if row["what"].startswith("dns: ")]


def test_f21_records_are_found_missing_wrong_right_and_not_to_be_had(daemon, certificate, dns):
    os.chmod(certificate[1], 0o600)
    server = daemon(**{
        "server.hostname": "mx.example.com", "dns.nameservers": ["127.0.0.1"], "dns.port": dns.port,
        "relay.own_addresses": [OURS],
    })  # fmt: skip
    assert server.command("dkim", "generate", "example.com").returncode == 0
    dns.add("example.com", "SOA", "a.example.com. b.example.com. 1 1 1 1 1")
    code, found = names(server)
    assert code == 1
    missing = {row["what"].removeprefix("dns: example.com: ") for row in found if row["result"] == "fail"}
    assert {"MX", "SPF", "DMARC"} <= missing
    assert all("mailsrv dns check example.com has it all" in row["advice"] for row in found if row["result"] != "ok")
    made = server.command("dns", "generate", "example.com", "--json")
    records = {}
    for row in json.loads(made.stdout)["records"]:
        name, _, _, type, value = row["zone"].split(None, 4)
        records.setdefault((name, type), []).append(value)
    for (name, type), values in records.items():
        dns.add(name, type, *values)
    dns.add("10.9.9.9.in-addr.arpa", "PTR", "mx.example.com.")
    code, found = names(server)
    assert [row for row in found if row["result"] == "fail"] == []
    assert "dns: example.com: MX" in [row["what"] for row in found if row["result"] == "ok"]
    dns.add("example.com", "MX", "10 elsewhere.example.net.")
    code, found = names(server)
    assert code == 1 and [row["what"] for row in found if row["result"] == "fail"] == ["dns: example.com: MX"]
    dns.fail("example.com", "MX", SERVFAIL)
    code, found = names(server)
    assert [row["result"] for row in found] == ["warn"]
    assert found[0]["what"].startswith("dns: nobody answers for example.com: ")


def test_a_runner_that_does_not_know_of_an_entry_is_woken(daemon, certificate, tmp_path):
    """Files that were put back into the queue by hand, say from a backup."""
    os.chmod(certificate[1], 0o600)
    server = daemon(**{"server.workers": 2, "server.hostname": "localhost"})
    spool = spool_of(server.settings)
    until(lambda: "name=queue" in server.log.read_text(), "there is a runner")
    runner = runner_pid(server)
    until(lambda: os.path.isdir(spool.damaged_dir) and doctor(server, "--quick") == (0, []), "it answers")
    os.kill(runner, signal.SIGSTOP)
    submit(server, NOWHERE, "To nowhere")
    [id] = spool.ids()
    paths = [spool.message_path(id), spool.envelope_path(id)]
    for path in paths:
        os.rename(path, tmp_path / os.path.basename(path))
    os.kill(runner, signal.SIGCONT)
    until(lambda: doctor(server, "--quick") == (0, []), "it goes on, without the entry")
    for path in paths:
        back = tmp_path / os.path.basename(path)
        os.utime(back, (time.time() - 3600,) * 2)
        os.rename(back, path)
    code, found = doctor(server, "--quick")
    assert (code, [row["what"] for row in found]) == (0, ["queue: 1 entries are overdue by more than 15 minutes"])
    assert found[0]["repair"] == "mailsrv doctor --repair would wake the queue runner"
    code, found = doctor(server, "--quick", "--repair")
    assert found[0]["repair"] == "repaired: wake the queue runner"
    until(lambda: server.files("ann"), "the sender has a report")
    until(lambda: doctor(server, "--quick") == (0, []), "nothing waits")
