"""What fuzzing found interesting, and what it found wrong, is given to every parser again; bin/run-fuzz finds more."""

from pathlib import Path

import pytest

from fuzz.run import MOST_FILES
from fuzz.targets import TARGETS, TooSlow, run

HOME = Path(__file__).parent.parent / "fuzz"


def inputs(name: str) -> list[Path]:
    return sorted(path for kind in ("corpus", "crashes") for path in (HOME / kind / name).glob("*"))


@pytest.mark.parametrize("name", TARGETS)
def test_every_known_input_is_answered(name):
    known = inputs(name)
    assert known, "a target without a corpus"
    for path in known:
        try:
            run(name, path.read_bytes())
        except Exception as failure:
            raise AssertionError(f"fuzz/{path.relative_to(HOME)}") from failure


@pytest.mark.parametrize("name", TARGETS)
def test_few_octets_are_answered(name):
    for octet in range(256):
        run(name, bytes((octet,)))
    run(name, b"")


def test_every_corpus_has_a_target_and_stays_small():
    for kind in ("corpus", "crashes"):
        assert {path.name for path in (HOME / kind).iterdir()} <= set(TARGETS)
    for name in TARGETS:
        files = list((HOME / "corpus" / name).iterdir())
        assert len(files) <= MOST_FILES and all(file.stat().st_size <= 4096 for file in files)


def test_a_target_that_takes_long_is_a_finding(monkeypatch):
    monkeypatch.setattr("fuzz.targets.SECONDS", -1.0)
    with pytest.raises(TooSlow):
        run("dsn", b"a")
