"""Commands about the server and its configuration: serve, check, quickstart, config, version.

Imports: cli.common, config, log; what only one needs is imported there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

from mailsrv import __version__, config, log
from mailsrv.cli.common import DONE, Commands, load_config, port, say


def serve(args: argparse.Namespace) -> int:
    from mailsrv import handover, supervisor
    from mailsrv.start import StartError

    before = handover.inherited()
    try:
        settings = load_config(args, stay_root=True)
        settings.path = os.path.abspath(settings.path)  # it is read again, maybe from elsewhere
        log.configure(level=settings["log.level"], format=settings["log.format"])
        supervisor.serve(settings, before, foreground=args.foreground)
    except (config.ConfigError, StartError) as failure:
        before.failed(str(failure))
        raise
    return DONE


def check(args: argparse.Namespace) -> int:
    from mailsrv.start import check_accounts, tls_context

    settings = load_config(args, stay_root=True)
    tls_context(settings)  # keys are root's to read
    check_accounts(load_config(args))  # as the server's user, whose files these are
    if not settings["tls.certificate"]:
        say(f"{settings.path}: note: without tls.certificate the server makes its own, which mail programs warn of")
    print(f"{settings.path}: ok")
    return DONE


def quickstart(args: argparse.Namespace) -> int:
    from mailsrv import quickstart as quick

    if args.check:
        return quick.check(args.dir, args.base_port)
    return quick.run(
        args.dir or quick.default_directory(), quick.DEFAULT_PORT if args.base_port is None else args.base_port
    )


def config_sample(args: argparse.Namespace) -> int:
    sys.stdout.write(config.sample())
    return DONE


def config_reference(args: argparse.Namespace) -> int:
    sys.stdout.write(config.reference())
    return DONE


def version(args: argparse.Namespace) -> int:
    print(json.dumps({"version": __version__}) if args.json else f"mailsrv {__version__}")
    return DONE


def register(commands: Commands) -> None:
    one = commands.add(
        "quickstart", quickstart, "run a private server on loopback that shows how mail is pushed", reads=True
    )
    one.add_argument("--dir", metavar="DIR", help="where it keeps everything (default: in your data directory)")
    one.add_argument("--base-port", type=port, metavar="N", help="ports are N+25, N+143, N+465, N+587, N+993 (2000)")
    one.add_argument("--check", action="store_true", help="send one message through it, print the latencies, and end")

    one = commands.add(
        "serve", serve, "run the server; without --foreground it returns when the server is ready", reads=True
    )
    one.add_argument("--foreground", action="store_true", help="stay in the foreground, as systemd and the like expect")
    commands.add("check", check, "check the configuration")

    group = commands.noun("config", "the configuration file")
    group.add("sample", config_sample, "print the documented default configuration")
    group.add("reference", config_reference, "print all settings as a table")
    commands.add("version", version, "print the version")
