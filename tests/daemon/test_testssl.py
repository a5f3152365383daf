"""What is offered to clients, examined by testssl.sh: protocols, kinds of ciphers, compression, renegotiation.

All it can find takes more than a minute for each port: docs/running.md has the command.
"""

import json
import subprocess

import pytest

from tests.daemon.conftest import environment

HARMLESS = {"OK", "INFO", "LOW", "DEBUG"}
OF_THE_CLIENT = {"engine_problem"}  # its own OpenSSL knows no GOST ciphers, and so cannot offer them


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("service", "words"), [("imaps", []), ("submission", ["--starttls", "smtp"])], ids=["imaps", "submission"]
)
def test_f22_testssl_finds_nothing_above_low(daemon, tmp_path, service, words):
    server = daemon(**{"limits.connections_per_address": 10_000})
    found = tmp_path / "found.json"
    done = subprocess.run(
        ["testssl", "--quiet", "--color", "0", "--warnings", "batch", "--nodns", "none", "--sneaky", "-p", "-s",
         "--jsonfile", str(found), *words, f"127.0.0.1:{server.ports[service]}"],
        capture_output=True, text=True, timeout=380, check=False, stdin=subprocess.DEVNULL,
        env=environment(TERM="dumb"),
    )  # fmt: skip
    assert found.exists(), done.stdout + done.stderr
    findings = {one["id"]: one for one in json.loads(found.read_text())}
    assert [
        one for name, one in findings.items() if one["severity"] not in HARMLESS and name not in OF_THE_CLIENT
    ] == []
    for old in ("SSLv2", "SSLv3", "TLS1", "TLS1_1"):
        assert findings[old]["finding"].startswith("not offered"), findings[old]
    for new in ("TLS1_2", "TLS1_3"):
        assert findings[new]["finding"].startswith("offered"), findings[new]
    assert findings["cipherlist_STRONG"]["finding"] == "offered"
