"""Imports point one way, protocols do not know each other, and only some modules know of gevent and of SQL."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "mailsrv"

# Each layer may import itself and these.
ALLOWED = {
    "values": set(),
    "errors": set(),
    "log": set(),
    "counters": set(),
    "wire": {"values"},
    "at_hand": set(),
    "libraries": set(),
    "store": {"at_hand", "values", "errors", "log", "counters"},
    "mail": {"libraries", "networks", "store", "values", "errors", "log", "counters"},
    "networks": set(),
    "net": {"libraries", "networks", "wire", "log", "counters"},
    "smtp": {"at_hand", "libraries", "mail", "net", "wire", "values", "errors", "log", "counters"},
    "imap": {"mail", "net", "wire", "values", "errors", "log", "counters"},
}
# The rest is the top: the program, its command line, its configuration.
TOP = {
    "__init__",
    "__main__",
    "audit",
    "authority",
    "behind",
    "certificates",
    "cli",
    "config",
    "control",
    "daemon",
    "detach",
    "dns_check",
    "dns_records",
    "doctor",
    "expiry",
    "generate",
    "handover",
    "heartbeat",
    "installation",
    "metrics",
    "nightly",
    "pidfile",
    "privileges",
    "probes",
    "quickstart",
    "reference",
    "route_settings",
    "rotation",
    "runner",
    "schedstat",
    "settings",
    "spf",
    "start",
    "story",
    "supervisor",
    "systemd",
    "ticker",
    "vitals",
}
GEVENT = {
    "__main__", "audit", "behind", "cli.people", "control", "daemon", "detach", "expiry", "handover", "imap.beats",
    "imap.idle", "imap.mailboxes", "imap.session", "libraries", "log", "mail.bus", "mail.canary", "mail.delivery",
    "mail.gate", "mail.mailbox", "mail.notify", "mail.outbox", "mail.passwords", "mail.pushes", "mail.queue",
    "mail.scheduled", "mail.together", "mail.turns", "mail.upkeep", "mail.wakeup", "mail.watch", "net.dial",
    "net.https", "net.listener", "net.resolver", "net.stream", "quickstart", "rotation", "settings", "store.arrivals",
    "store.base", "store.entry", "store.files", "store.spool", "supervisor", "systemd", "ticker", "vitals",
}  # fmt: skip


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        yield name, ast.parse(path.read_text(encoding="utf-8"))


def imports(tree):
    """(module, names) of every import, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written out"
            yield node.module or "", [alias.name for alias in node.names]


def layers_of(tree):
    """The parts of mailsrv that a module imports."""
    for module, names in imports(tree):
        if module == "mailsrv":
            yield from (name for name in names if name != "__version__")
        elif module.startswith("mailsrv."):
            yield module.split(".")[1]


def test_imports_point_one_way():
    wrong = []
    for name, tree in modules():
        own = name.split(".")[0]
        if own in TOP:
            continue
        wrong += [f"{name} imports {layer}" for layer in layers_of(tree) if layer != own and layer not in ALLOWED[own]]
    assert wrong == []


def test_net_stream_is_below_net_listener():
    for name, tree in modules():
        if name == "net.listener":
            continue
        if name.split(".")[0] in ("smtp", "imap"):
            assert not [module for module, _ in imports(tree) if module == "mailsrv.net.listener"], name


def test_only_some_modules_know_gevent():
    known = {name for name, tree in modules() if any(module.split(".")[0] == "gevent" for module, _ in imports(tree))}
    assert known <= GEVENT, known - GEVENT
    assert not {name for name in known if name.startswith(("wire", "values", "errors", "smtp"))}


def test_one_module_knows_sql_and_one_more_the_accounts():
    known = {name for name, tree in modules() if any(module == "sqlite3" for module, _ in imports(tree))}
    assert known == {"store.sqlite", "mail.accounts", "mail.throttle"}


def test_every_module_says_what_it_is_for():
    assert [name for name, tree in modules() if not name.startswith("__init__") and "." in name
            and tree.body and not ast.get_docstring(tree)] == []  # fmt: skip
