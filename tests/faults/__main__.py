"""bin/run-faults: breaks the server in every way of the fault plan and says whether anything acknowledged was lost."""

from gevent import monkey

monkey.patch_all()

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from mailsrv import log
from tests.faults import calls, clients, clock, disk, kills, names, parts, power, pushes
from tests.faults.context import Context
from tests.faults.report import Result, markdown, table

FAMILIES: dict[str, Callable[[Context], Result]] = {
    "kills": kills.run,
    "calls": calls.kills,
    "errors": calls.errors,
    "disk": disk.run,
    "slow": pushes.slow,
    "pushes": pushes.lost,
    "power": power.run,
    "clients": clients.run,
    "clock": clock.run,
    "dns": names.run,
    "parts": parts.run,
}
# Which family catches a build that is broken on purpose, and which of its operations.
CAUGHT: dict[str, list[tuple[str, str | None]]] = {
    "no-fsync": [("calls", "delivery"), ("power", None)],
    "publish-before-commit": [("pushes", None)],
    "look-before-subscribe": [("pushes", None)],
    "uid-from-row-count": [("calls", "MOVE")],
    "reply-before-durable": [("calls", "queue entry")],
}
CYCLES = {"brief": 5, "quick": 40, "long": 500}


def main(words: Sequence[str]) -> int:
    args = _arguments(words)
    _enter_namespace(words)
    extent = "brief" if args.brief else "quick" if args.quick else "long"
    log.configure(level="error", format="logfmt")  # what the driver itself does with a store is not of interest
    directory = Path(tempfile.mkdtemp(prefix="mailsrv-faults-"))
    directory.chmod(0o755)
    context = Context(directory, args.seed, extent, args.cycles or CYCLES[extent], args.back_seconds)
    if args.broken:
        return _prove(args.broken, context)
    context.operation = args.operation
    results = [_run(name, context) for name in args.family or FAMILIES]
    sys.stdout.write("\n" + table(results))
    if args.output:
        command = " ".join(["bin/run-faults", *words])
        machine = f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}"
        args.output.write_text(markdown(results, command, args.seed, machine))
    wrong = any(one.wrong for one in results)
    if wrong or args.keep:
        print(f"run-faults: kept: {directory}")
    else:
        shutil.rmtree(directory, ignore_errors=True)
    return 1 if wrong else 0


def _prove(broken: str, context: Context) -> int:
    """0 if each of those builds was caught, by what was meant to catch it."""
    escaped = []
    for build in CAUGHT if broken == "all" else [broken]:
        caught = []
        for family, operation in CAUGHT[build]:
            own = replace(
                context, directory=context.directory / f"{build}-{family}", broken=build, operation=operation
            )  # fmt: skip
            own.directory.mkdir(mode=0o755)
            result = _run(family, own)
            if not result.left_out:
                caught.append(bool(result.wrong))
                print(
                    f"run-faults: the build {build} {'is caught' if result.wrong else 'ESCAPED'} by {family}",
                    flush=True,
                )
        escaped += [] if caught and all(caught) else [build]
    shutil.rmtree(context.directory, ignore_errors=True)
    return 1 if escaped else 0


def _enter_namespace(words: Sequence[str]) -> None:
    """Go on in a mount namespace of our own, where that may be made: whatever is mounted goes with the run, however it
    ends.
    """
    unshare = ["unshare", "-m", "--propagation", "private"]
    if os.geteuid() or os.environ.get(power.OWN_NAMESPACE) or shutil.which("unshare") is None:
        return
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode == 0:
        os.environ[power.OWN_NAMESPACE] = "1"
        os.execvp("unshare", [*unshare, sys.executable, "-m", "tests.faults", *words])


def _run(name: str, context: Context) -> Result:
    print(f"run-faults: {name} …", flush=True)
    begun = time.monotonic()
    try:
        result = FAMILIES[name](context)
    except Exception:  # a server that cannot even be asked any more
        result = Result(name, wrong=[traceback.format_exc()])
    result.seconds = time.monotonic() - begun
    print(f"run-faults: {name}: {result.told()}; {len(result.wrong)} violations, {result.seconds:.0f} s", flush=True)
    for line in result.wrong[:20]:
        print(f"run-faults:   VIOLATED: {line}", flush=True)
    return result


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run-faults", description=__doc__)
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument("--quick", action="store_true", help="some minutes")
    extent.add_argument("--brief", action="store_true", help="under a minute, as within the tests")
    parser.add_argument("--family", action="append", choices=FAMILIES, help="only this one; may be repeated")
    parser.add_argument("--cycles", type=int, help="kills of the whole server (5, 40 or 500)")
    parser.add_argument("--seed", type=int, default=1, help="the same seed, the same load and the same moments")
    parser.add_argument("--back-seconds", type=float, default=5.0, help="how soon a server must be back")
    parser.add_argument("--broken", choices=[*CAUGHT, "all"], help="run a build that is broken on purpose; 0 if caught")
    parser.add_argument("--operation", help="in calls and errors only this one: delivery, APPEND, COPY …")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write a report in Markdown")
    parser.add_argument("--keep", action="store_true", help="keep the directory, violations or not")
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
