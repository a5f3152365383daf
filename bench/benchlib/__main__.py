"""mailsrv beside Dovecot and Postfix: the same work for each, in turn, on this machine.

    bench/run --quick                 every row at a small size; the report goes to build/benchmark
    bench/run                         the full size, three rounds; the report goes to docs
    bench/run --only push memory      some workloads
    bench/run --from one.json two.json --output docs --readme       the report of results that are there already

Exit status: 0, 1 if a workload had a wrong answer or did not end in time, 2 if something is missing here.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import targets
from targets.base import Target

from . import plan, report, work
from .results import failures, merged

HERE = Path(__file__).parent.parent
ROOT = HERE.parent
NEEDED = {"dovecot": "dovecot-imapd", "/usr/lib/dovecot/lmtp": "dovecot-lmtpd", "postfix": "postfix"}
PICTURE = "benchmark.png"
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "bench/run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*plan.WORKLOADS, *plan.ALIASES, "floor"]
    parser.add_argument("--quick", action="store_true", help=f"small sizes, one round: {plan.MINUTES['quick']} minutes")
    parser.add_argument("--only", nargs="+", choices=names, metavar="WORKLOAD", help=", ".join(names))
    parser.add_argument("--rounds", type=int, help="default: 3, with --quick 1")
    others = "also: dovecot-shared, dovecot-hibernate, external:FILE.json"
    parser.add_argument(
        "--targets",
        nargs="+",
        default=list(plan.ALL),
        metavar="TARGET",
        help=f"default: {' '.join(plan.ALL)}; {others}",
    )
    parser.add_argument("--output", type=Path, metavar="DIRECTORY", help="where benchmark.md and benchmark.png go")
    parser.add_argument("--json", type=Path, metavar="FILE", help="results; default: build/benchmark/benchmark.json")
    parser.add_argument("--from", dest="stored", nargs="+", type=Path, metavar="FILE", help="report stored results")
    parser.add_argument("--readme", action="store_true", help="write the short table into README.md too")
    parser.add_argument("--set", action="append", default=[], metavar="SIZE=NUMBER", help="another size, see plan.py")
    parser.add_argument("--keep", action="store_true", help="leave the servers' directories")
    args = parser.parse_args(argv)
    for name in args.targets:
        if not name.startswith("external:") and name not in targets.NAMES:
            parser.error(f"no target is called {name}; there are {', '.join(targets.NAMES)}, external:FILE.json")
    args.sizes = dict(plan.QUICK if args.quick else plan.FULL)
    for item in args.set:
        name, _, value = item.partition("=")
        if name not in args.sizes:
            parser.error(f"no size is called {name}; there are {', '.join(args.sizes)}")
        numbers = tuple(float(one) if "." in one else int(one) for one in value.split(",") if one)
        args.sizes[name] = numbers if isinstance(args.sizes[name], tuple) else numbers[0]
    args.rounds = args.rounds or (1 if args.quick else 3)
    build = ROOT / "build" / "benchmark"
    args.output = args.output or (build if args.quick or args.only else ROOT / "docs")
    args.json = args.json or build / "benchmark.json"
    return args


def missing(names: list[str]) -> list[str]:
    """What keeps these targets from running here, in words."""
    if not any(name.startswith("dovecot") for name in names):
        return []
    found = []
    packages = [package for program, package in NEEDED.items() if not shutil.which(program)]
    if packages:
        found.append(f"not installed; as root: apt-get install {' '.join(packages)}")
    if os.geteuid() != 0:
        found.append(
            "Dovecot and Postfix start as root only: run this as root, or mailsrv alone with --targets mailsrv"
        )
    return found


def machine() -> dict[str, Any]:
    cpu = "?"
    with open("/proc/cpuinfo") as file:
        for one in file:
            if one.startswith("model name"):
                cpu = one.split(":", 1)[1].strip()
                break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": cpu,
        "memory_gb": round(memory),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
    }


def commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True) if shutil.which("git") else None
    return done.stdout.strip() if done and done.returncode == 0 else ""


def version() -> str:
    namespace: dict[str, str] = {}
    exec((ROOT / "mailsrv" / "__init__.py").read_text(), namespace)
    return " ".join(word for word in (namespace["__version__"], commit()) if word)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All rounds. What was measured until an interruption is in the result, too."""
    begun = time.time()
    results: dict[str, Any] = {
        "machine": machine(),
        "began": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": shlex.join(["bench/run", *args.words]),
        "quick": args.quick,
        "sizes": args.sizes,
        "seconds": 0.0,
        "targets": {},
    }
    pairs = plan.chosen(args.only, args.targets, args.quick)
    try:
        if "floor" in args.only if args.only else not args.quick:
            results["floor"] = floor()
        for number in range(args.rounds):
            for entry in one_round(args, pairs, number, results):
                save(results, begun, args.json)
                if entry["errors"]:
                    say(f"    FAILED: {entry['errors'][0]}")
    except KeyboardInterrupt:
        say("interrupted: the servers are stopped")
        results["interrupted"] = True
    save(results, begun, args.json)
    return results


def save(results: dict[str, Any], begun: float, path: Path) -> None:
    results["seconds"] = time.time() - begun
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results) + "\n")


def floor() -> dict[str, float]:
    """The limits of this machine, before the servers have filled its caches."""
    say("the limits of this machine (bench/floor.py)")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "floor.json"
        subprocess.run([sys.executable, str(HERE / "floor.py"), "--json", str(path)], check=True)
        limits: dict[str, float] = json.loads(path.read_text())
    return limits


def one_round(
    args: argparse.Namespace, pairs: list[tuple[str, str]], number: int, results: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Fresh servers with fresh mailboxes; every workload on each in turn."""
    servers: dict[str, Target] = {}
    users = plan.users(pairs, args.sizes)
    try:
        for name, target in pairs:
            key, workload = targets.server_of(target), plan.WORKLOADS[name]
            if key not in servers:
                say(f"preparing {key}: {users} users")
                servers[key] = targets.make(target, users, str(HERE))
                if key == "mailsrv":
                    servers[key].version = version()
                try:
                    servers[key].prepare()
                except (OSError, subprocess.CalledProcessError) as error:
                    say(f"    {error}")  # the workloads will fail, and say so in the report
            say(f"round {number + 1} of {args.rounds}: {name} on {target}")
            server = servers[key]
            targets.become(server, target)
            done = work.run(server, workload.run, args.sizes, 1 + number, True, workload.limit_seconds)
            server.stop()
            done["load"] = os.getloadavg()[0]
            entry = results["targets"].setdefault(target, {"info": {}, "runs": {}})
            entry["info"] = server.describe()
            entry["runs"].setdefault(name, []).append(done)
            yield done
            if not done["errors"]:
                say(f"    {done['seconds']:.0f} s. {report.line(name, results, target)}")
    finally:
        with undisturbed():
            put_away(servers, args.keep)


def put_away(servers: dict[str, Target], keep: bool) -> None:
    for server in servers.values():
        server.stop()
    for server in servers.values():
        if keep:
            say(f"left: {server.dir}")
        else:
            say(f"removing the directory of {server.name}")
            server.cleanup()


@contextmanager
def undisturbed() -> Iterator[None]:
    """What must come to its end: signals that would end the program have to wait for it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def write(args: argparse.Namespace, results: dict[str, Any]) -> None:
    from .picture import draw  # matplotlib takes a second to import

    args.output.mkdir(parents=True, exist_ok=True)
    draw(results, args.output / PICTURE)
    text = report.markdown(results, PICTURE)
    (args.output / "benchmark.md").write_text(text)
    say(f"{results['seconds'] / 60:.1f} minutes. Report: {args.output / 'benchmark.md'} and {PICTURE}")
    if args.readme:
        readme = ROOT / "README.md"
        readme.write_text(report.into_readme(readme.read_text(), report.short_table(results)))
        say("README.md has the table")


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main(argv: list[str]) -> int:
    args = arguments(argv)
    args.words = argv
    if args.stored:
        results = merged([json.loads(path.read_text()) for path in args.stored])
    else:
        wanting = missing(args.targets)
        if wanting:
            for one in wanting:
                print(f"bench/run: {one}", file=sys.stderr)
            return 2
        for number in ENDING:
            signal.signal(number, interrupt)
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        if not args.only:
            say(f"about {plan.MINUTES['quick' if args.quick else 'full']} minutes with all servers")
        results = measure(args)
    write(args, results)
    found = failures(results)
    for target, workload, error in found:
        print(f"FAILED: {workload} on {target}: {error}", file=sys.stderr)
    return 1 if found or results.get("interrupted") else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
