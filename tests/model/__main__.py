"""`bin/run-model`: the model against a server of its own, for as long as one likes."""

# ruff: noqa: E402  (patch first, import then)

from gevent import monkey

monkey.patch_all()

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.model.driver import Run
from tests.model.responses import Fault
from tests.model.serving import serving


def main():
    parser = argparse.ArgumentParser(
        prog="bin/run-model", description="Random commands of many clients against one model."
    )
    parser.add_argument("--seconds", type=float, default=60, help="how long (default 60); a phase is ended in any case")
    parser.add_argument("--seed", type=int, default=None, help="of the commands (default: a new one, which is told)")
    parser.add_argument("--workers", type=int, default=2, help="processes of the server (default 2)")
    parser.add_argument("--sessions", type=int, default=6, help="IMAP clients (default 6)")
    parser.add_argument("--log", default="model-failure", help="directory for what was said, if it fails")
    parser.add_argument("--fault", default=None, help="break the server on purpose: one of tests/model/broken.py")
    args = parser.parse_args()
    seed = random.SystemRandom().randrange(1_000_000) if args.seed is None else args.seed
    print(f"seed {seed}", flush=True)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mailsrv-model-") as directory:
        program = ("mailsrv",) if args.fault is None else ("tests.model.broken", args.fault)
        server = serving(directory, args.workers, program)
        run = None
        try:
            run = Run(server, seed, sessions=args.sessions, log=args.log)
            run.go_on(args.seconds)
        except Fault as fault:
            print(f"after {time.monotonic() - begun:.1f} s, {run.summary() if run else ''}: {fault}", file=sys.stderr)
            print(
                f"what was said is in {args.log}/; again: bin/run-model --seed {seed} --workers {args.workers} "
                f"--sessions {args.sessions} --seconds {args.seconds:g}", file=sys.stderr,
            )  # fmt: skip
            Path(args.log).mkdir(parents=True, exist_ok=True)
            shutil.copy(server.log, f"{args.log}/server.log")
            return 1
        finally:
            if server.process is not None and server.process.poll() is None:
                server.stop()
            server.close()
        print(f"{run.summary()} in {time.monotonic() - begun:.1f} s: all agree")
    return 0


if __name__ == "__main__":
    sys.exit(main())
