"""The fault plan in its short form (`bin/run-faults` has the long ones); its proofs can fail: docs/proof.md."""

import subprocess
import sys

import pytest

from tests.daemon.conftest import ROOT


def faults(*words: str) -> subprocess.CompletedProcess[str]:
    """bin/run-faults in this environment. How soon a server is back is not measured beside other tests."""
    return subprocess.run(
        [sys.executable, "-m", "tests.faults", "--back-seconds", "90", *words],
        cwd=ROOT, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("family", ["kills", "calls", "errors", "power"])
def test_s25_s26_nothing_acknowledged_is_lost(family):
    done = faults("--brief", "--family", family)
    assert done.returncode == 0, done.stdout + done.stderr
    if family == "power" and "left out: " in done.stdout:  # nothing can be mounted: not root, or a container
        pytest.skip(done.stdout.partition("left out: ")[2].partition(";")[0])
    assert "left out" not in done.stdout, done.stdout


@pytest.mark.parametrize(
    "build",
    ["no-fsync", "publish-before-commit", "look-before-subscribe", "uid-from-row-count", "reply-before-durable"],
)
def test_a_build_without_one_of_the_rules_is_caught(build):
    done = faults("--quick", "--broken", build)
    assert done.returncode == 0 and "is caught" in done.stdout, done.stdout + done.stderr
