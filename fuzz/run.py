"""Runs targets under atheris, one after the other, and says what each did: python -m fuzz.run [--seconds N] [NAME…]

Each starts from fuzz/corpus/NAME and works in a directory of its own; `--keep` then brings what reaches more of the
program into the corpus, as few and as small files as do it. An input that is a finding goes to fuzz/crashes/NAME, where
the test suite replays it from then on.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
CORPUS, CRASHES, WORDS = HERE / "corpus", HERE / "crashes", HERE / "words.dict"
MOST_FILES = 50
LONGEST = {"message": 4096, "header": 2048, "drafts": 2048, "report": 2048, "settings": 1024, "envelope": 4096}


def main() -> int:
    from fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(
        prog="run-fuzz", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="targets, all unless named: " + ", ".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=60, help="how long each target runs (60)")
    parser.add_argument("--keep", action="store_true", help="bring what was found into the corpus")
    chosen = parser.parse_args()
    if unknown := set(chosen.names) - set(TARGETS):
        parser.error(f"no target {', '.join(sorted(unknown))}")
    print(f"{'target':<14} {'executions':>10} {'per second':>10} {'edges':>6} {'files':>6}  findings", flush=True)
    failed = [name for name in chosen.names or TARGETS if not _fuzz(name, chosen.seconds, chosen.keep)]
    return 1 if failed else 0


def _fuzz(name: str, seconds: int, keep: bool) -> bool:
    """One target; whether there was no finding."""
    seeds, crashes = CORPUS / name, CRASHES / name
    with tempfile.TemporaryDirectory(prefix="mailsrv-fuzz-") as directory:
        grown, found = Path(directory, "grown"), Path(directory, "found")
        grown.mkdir()
        found.mkdir()
        said = _atheris(
            name, f"-max_total_time={seconds}", f"-max_len={LONGEST.get(name, 512)}", f"-artifact_prefix={found}/",
            f"-dict={WORDS}", "-timeout=10", "-rss_limit_mb=1500", "-print_final_stats=1", str(grown), str(seeds),
        )  # fmt: skip
        states = re.findall(r"#(\d+)\s+\w+ +cov: (\d+) ft: \d+ corp: (\d+)/", said)
        rate = re.findall(r"exec/s: (\d+)", said)
        findings = sorted(found.iterdir())
        count, edges, files = states[-1] if states else ("0", "0", "0")
        shown = ", ".join(file.name[:20] for file in findings) or "none"
        print(f"{name:<14} {count:>10} {rate[-1] if rate else 0:>10} {edges:>6} {files:>6}  {shown}", flush=True)
        if not states:
            print(said[-4000:], file=sys.stderr)
        if findings:
            crashes.mkdir(parents=True, exist_ok=True)
            for file in findings:
                shutil.copy(file, crashes)
            print("\n".join(f"  {line}" for line in _python_error(said)), flush=True)
        if keep:
            _keep(name, seeds, grown, Path(directory))
        return bool(states) and not findings


def _python_error(said: str) -> list[str]:
    start = said.find("=== Uncaught Python exception")
    return said[start:].splitlines()[:40] if start >= 0 else said.splitlines()[-10:]


def _keep(name: str, seeds: Path, grown: Path, directory: Path) -> None:
    """The smallest set of files that reaches as much as all of them, beside those that people wrote."""
    least = directory / "least"
    least.mkdir()
    _atheris(name, "-set_cover_merge=1", "-timeout=10", str(least), str(seeds), str(grown))
    written = [file for file in seeds.iterdir() if file.name.startswith("seed-")]  # by people, and legible
    files = sorted(least.iterdir(), key=lambda file: file.stat().st_size)[: MOST_FILES - len(written)]
    if files:
        for old in set(seeds.iterdir()) - set(written):
            old.unlink()
        for file in files:
            shutil.copy(file, seeds / file.name[:12])


def _atheris(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "fuzz.one", name, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=HERE.parent, check=False,
    )  # fmt: skip
    return done.stdout.decode("utf-8", "replace")


if __name__ == "__main__":
    sys.exit(main())
