"""The fault plan in its short form (`bin/run-faults` has the long ones), and that its proofs can fail."""

import subprocess
import sys

import pytest

from tests.daemon.conftest import ROOT


def faults(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.faults", "--brief", "--back-seconds", "30", *words],
        cwd=ROOT, capture_output=True, text=True, timeout=58, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("family", ["kills", "calls", "errors"])
def test_s25_s26_nothing_acknowledged_is_lost(family):
    done = faults("--family", family)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "left out" not in done.stdout, done.stdout


BROKEN = {"reply-before-durable": ("calls", "queue entry"), "uid-from-row-count": ("calls", "MOVE")}


@pytest.mark.parametrize("build", BROKEN)
def test_a_build_that_breaks_the_rules_is_caught(build):
    family, operation = BROKEN[build]
    done = faults("--family", family, "--broken", build, "--operation", operation)
    assert done.returncode == 1 and "VIOLATED" in done.stdout, done.stdout + done.stderr
