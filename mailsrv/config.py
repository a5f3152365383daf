"""Every setting, declared once: from these lines come the defaults, the checks, the sample file and the reference.

A configuration is YAML in sections. All that is wrong with it is told at once, each with file, line, what was expected
and, for an unknown name, the nearest one there is.

Imports: yaml, gevent.monkey.
"""

from __future__ import annotations

import difflib
import os
import socket
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from gevent.monkey import get_original

DEFAULT_PATH = "/etc/mailsrv/mailsrv.yaml"
INSTEAD = "try `mailsrv quickstart`, or begin with the output of `mailsrv config sample`"


class ConfigError(Exception):
    """What is wrong with a configuration, one line for each thing."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class _Wrong(Exception):
    """A value is not what its setting takes; the text says what would be."""


# ------------------------------------------------------------------ kinds of values


@dataclass(frozen=True, slots=True)
class Kind:
    """`expects` completes "expected …"; `read` gives the value or raises _Wrong."""

    expects: str
    read: Callable[[Any], Any]


def _whole(least: int, most: int, unit: str) -> Kind:
    expects = f"a whole number of {unit} from {least} to {most}" if unit else f"a whole number from {least} to {most}"

    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise _Wrong(expects)
        return value

    return Kind(expects, read)


def _number(least: float, most: float, unit: str) -> Kind:
    expects = f"a number of {unit} from {least:g} to {most:g}"

    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise _Wrong(expects)
        return float(value)

    return Kind(expects, read)


def _choice(*words: str) -> Kind:
    expects = "one of " + ", ".join(words)

    def read(value: Any) -> str:
        if value not in words:
            raise _Wrong(expects)
        return str(value)

    return Kind(expects, read)


def _read_flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Wrong(FLAG.expects)
    return value


def _read_text(value: Any) -> str:
    if not isinstance(value, str) or any(ord(char) < 32 for char in value):
        raise _Wrong(TEXT.expects)
    return value


def _read_path(value: Any) -> str:
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
        raise _Wrong(PATH.expects)
    return os.path.normpath(value)


def _read_optional_path(value: Any) -> str:
    if value in (None, ""):
        return ""
    return _read_path(value)


def _read_host(value: Any) -> str:
    if value in (None, ""):
        return _own_name()
    if not isinstance(value, str) or len(value) > 253 or not all(_is_label(label) for label in value.split(".")):
        raise _Wrong(HOST.expects)
    return value.lower()


def _own_name() -> str:
    """The full name of this machine, as far as it knows."""
    name = os.uname().nodename
    if "." not in name:
        # The resolver itself, not gevent's: that would start threads, and a supervisor forks after this.
        try:
            name = get_original("socket", "getaddrinfo")(name, None, flags=socket.AI_CANONNAME)[0][3] or name
        except OSError:
            pass
    return name.lower()


def _is_label(label: str) -> bool:
    return 0 < len(label) < 64 and label.isascii() and label.replace("-", "a").isalnum() and label.strip("-") == label


def parse_listen(value: str) -> tuple[str, int]:
    """`host:port` or `[v6]:port`; ValueError otherwise."""
    host, colon, port = value.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(value)
    if not colon or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise ValueError(value)
    return host or "0.0.0.0", int(port)


def _read_listen(value: Any) -> tuple[tuple[str, int], ...]:
    if not isinstance(value, list):
        raise _Wrong(LISTEN.expects)
    try:
        return tuple(parse_listen(item) for item in value)
    except (ValueError, AttributeError, TypeError):
        raise _Wrong(LISTEN.expects) from None


def _read_workers(value: Any) -> int:
    if value == "auto":
        return min(os.cpu_count() or 1, 64)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 64:
        raise _Wrong(WORKERS.expects)
    return value


FLAG = Kind("true or false", _read_flag)
TEXT = Kind("a text", _read_text)
PATH = Kind("an absolute path", _read_path)
OPTIONAL_PATH = Kind("an absolute path, or nothing", _read_optional_path)
HOST = Kind("a host name such as mx.example.org", _read_host)
LISTEN = Kind('a list of "host:port", such as ["0.0.0.0:25", "[::]:25"]', _read_listen)
WORKERS = Kind("auto, or a whole number from 1 to 64", _read_workers)

MIB = 1024 * 1024
MOST_SOCKET_PATH = 90  # of 107 that the system allows, without the name in the directory; unix(7)


@dataclass(frozen=True, slots=True)
class Setting:
    """`name` is `section.key`; `default` as it stands in the file."""

    name: str
    kind: Kind
    default: Any
    text: str

    @property
    def section(self) -> str:
        return self.name.partition(".")[0]

    @property
    def key(self) -> str:
        return self.name.partition(".")[2]


SECTIONS = {
    "server": "The program as a whole.",
    "tls": "Certificate and key, used by every service.",
    "smtp": "Mail from other servers, and limits of everything that receives mail.",
    "submission": "Mail from our own users, with STARTTLS. Authentication is required.",
    "submissions": "Mail from our own users, with TLS from the first octet. Authentication is required.",
    "imap": "Reading mail, with STARTTLS.",
    "imaps": "Reading mail, with TLS from the first octet.",
    "limits": "How many connections there may be.",
    "log": "One event, one line.",
}

SETTINGS = (
    Setting("server.hostname", HOST, "", "Name of this server in greetings, Received lines and file names. "
            "Nothing: the name the system gives."),
    Setting("server.data_dir", PATH, "/var/lib/mailsrv", "Where mail and accounts are kept."),
    Setting("server.run_dir", PATH, "/run/mailsrv", "Pid file and sockets between the processes."),
    Setting("server.workers", WORKERS, "auto", "Processes that serve connections; auto is one for each core. "
            "With 1 everything runs in one process."),
    Setting("server.shutdown_seconds", _number(0, 3600, "seconds"), 30, "How long sessions may finish what they do "
            "after SIGTERM."),
    Setting("tls.certificate", OPTIONAL_PATH, "", "PEM file with the certificate chain, the server's own first. "
            "Without it nobody can log in."),
    Setting("tls.key", OPTIONAL_PATH, "", "PEM file with the private key."),
    Setting("smtp.listen", LISTEN, ["0.0.0.0:25"], "Addresses for mail from other servers."),
    Setting("smtp.message_bytes", _whole(1024, 1024 * MIB, "octets"), 50 * MIB, "Largest message. RFC 1870."),
    Setting("smtp.recipients", _whole(100, 100_000, ""), 1000, "Recipients of one message. RFC 5321 4.5.3.1.8 asks for "
            "100 at least."),
    Setting("smtp.command_seconds", _number(10, 3600, "seconds"), 300, "How long a client may think between commands. "
            "RFC 5321 4.5.3.2.7."),
    Setting("smtp.data_seconds", _number(60, 86400, "seconds"), 3600, "How long one message may take in all."),
    Setting("smtp.bytes_per_second", _number(0, 1_000_000, "octets per second"), 500, "A client that sends a message "
            "more slowly than this for over a minute is cut off."),
    Setting("smtp.bare_newline", _choice("reject", "normalize"), "reject", "What becomes of a message with lone CR or "
            "LF. They never end a message either way."),
    Setting("smtp.hops", _whole(20, 1000, ""), 100, "Received lines after which a message is taken to be in a loop. "
            "RFC 5321 6.3."),
    Setting("submission.listen", LISTEN, ["0.0.0.0:587"], "Addresses. RFC 6409."),
    Setting("submission.save_sent", FLAG, False, "File a copy of each submitted message in the sender's Sent mailbox, "
            "for programs that do not do so themselves."),
    Setting("submissions.listen", LISTEN, ["0.0.0.0:465"], "Addresses. RFC 8314."),
    Setting("imap.listen", LISTEN, ["0.0.0.0:143"], "Addresses."),
    Setting("imap.heartbeat_seconds", _number(1, 1740, "seconds"), 120, "How often an idling client is sent a sign of "
            "life, so that networks on the way keep the connection."),
    Setting("imap.idle_seconds", _number(1800, 86400, "seconds"), 1800, "How long a logged-in client may say nothing. "
            "RFC 3501 5.4 asks for 30 minutes at least."),
    Setting("imap.login_seconds", _number(5, 600, "seconds"), 60, "How long a client may take to log in."),
    Setting("imap.allow_plaintext_login", FLAG, False, "Let clients on this machine's loopback address log in without "
            "TLS. Others never can."),
    Setting("imaps.listen", LISTEN, ["0.0.0.0:993"], "Addresses. RFC 8314."),
    Setting("limits.connections", _whole(10, 1_000_000, ""), 10_000, "Connections of one worker, all services."),
    Setting("limits.connections_per_address", _whole(1, 1_000_000, ""), 100, "Connections of one worker from one IP "
            "address. An office behind one address has many."),
    Setting("limits.write_seconds", _number(1, 600, "seconds"), 60, "A client that does not read for this long while "
            "something is sent to it is cut off."),
    Setting("log.level", _choice("debug", "info", "warning", "error"), "info", "What is logged: this and graver."),
    Setting("log.file", OPTIONAL_PATH, "", "File to append to. Nothing: standard error."),
    Setting("log.hub_delay", FLAG, False, "Log how late the event loop was, the worst of each second."),
    Setting("log.format", _choice("logfmt", "json"), "logfmt", "How a line is written."),
)  # fmt: skip
_BY_NAME = {setting.name: setting for setting in SETTINGS}


class Config:
    """Checked values: `config["smtp.hops"]`. `path` is the file they came from, "" for defaults alone."""

    def __init__(self, values: dict[str, Any], path: str = "") -> None:
        self._values, self.path = values, path

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    @property
    def accounts_path(self) -> str:
        return f"{self['server.data_dir']}/accounts.sqlite3"

    @property
    def mail_root(self) -> str:
        return f"{self['server.data_dir']}/mail"


def load(path: str) -> Config:
    """The configuration in a file. Raises ConfigError with everything that is wrong."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError:
        raise ConfigError([f"{path}: there is no such file; {INSTEAD}"]) from None
    except (OSError, UnicodeDecodeError) as failure:
        raise ConfigError([f"{path}: cannot be read: {failure}"]) from None
    return parse(text, path)


def parse(text: str, path: str = "<text>") -> Config:
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as failure:
        mark = getattr(failure, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else path
        raise ConfigError([f"{where}: not YAML: {getattr(failure, 'problem', None) or failure}"]) from None
    values: dict[str, Any] = {}
    problems: list[str] = []
    seen: dict[str, int] = {}
    for name, value, line in _pairs(root, path, problems):
        setting = _BY_NAME.get(name)
        if setting is None:
            problems.append(f"{path}:{line}: unknown setting {name}{_nearest(name, list(_BY_NAME))}")
            continue
        if name in seen:
            problems.append(f"{path}:{line}: {name} was set in line {seen[name]} already")
        seen[name] = line
        try:
            values[name] = setting.kind.read(value)
        except _Wrong as wrong:
            problems.append(f"{path}:{line}: {name}: expected {wrong}, found {value!r}")
    for setting in SETTINGS:
        if setting.name not in values:
            values[setting.name] = setting.kind.read(setting.default)
    problems += _together(values, path, seen)
    if problems:
        raise ConfigError(problems)
    return Config(values, path)


def _pairs(root: yaml.Node | None, path: str, problems: list[str]) -> Iterator[tuple[str, Any, int]]:
    """(name, value, line) of everything in the file."""
    if root is None:
        return
    if not isinstance(root, yaml.MappingNode):
        problems.append(f"{path}:1: expected sections such as `smtp:`")
        return
    for section_node, body in root.value:
        section, line = str(section_node.value), section_node.start_mark.line + 1
        if section not in SECTIONS:
            problems.append(f"{path}:{line}: unknown section {section}{_nearest(section, list(SECTIONS))}")
        elif isinstance(body, yaml.MappingNode):
            for key_node, value_node in body.value:
                yield f"{section}.{key_node.value}", _plain(value_node), key_node.start_mark.line + 1
        elif _plain(body) is not None:
            problems.append(f"{path}:{line}: expected settings below {section}:, one on each line")


def _plain(node: yaml.Node) -> Any:
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node, deep=True)
    except (yaml.YAMLError, ValueError):
        return None
    finally:
        loader.dispose()


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _together(values: dict[str, Any], path: str, seen: dict[str, int]) -> list[str]:
    """What single settings cannot know: a key belongs to a certificate, and two services cannot share a port."""
    problems = []
    if bool(values["tls.certificate"]) != bool(values["tls.key"]):
        line = seen.get("tls.certificate") or seen.get("tls.key") or 1
        problems.append(f"{path}:{line}: tls.certificate and tls.key are set together, or neither")
    if len(values["server.run_dir"].encode()) > MOST_SOCKET_PATH:
        line = seen.get("server.run_dir", 1)
        problems.append(
            f"{path}:{line}: server.run_dir: a path of at most {MOST_SOCKET_PATH} octets is needed for sockets"
        )
    services = ("smtp", "submission", "submissions", "imap", "imaps")
    owners: dict[tuple[str, int], str] = {}
    for service in services:
        for address in values[f"{service}.listen"]:
            other = owners.setdefault(address, service)
            if other != service:
                line = seen.get(f"{service}.listen", 1)
                problems.append(
                    f"{path}:{line}: {service}.listen: {address[0]}:{address[1]} is {other}.listen's already"
                )
    return problems


# ------------------------------------------------------------------ sample file and reference


def _yaml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(f'"{item}"' for item in value) + "]"
    return '""' if value == "" else str(value)


def sample() -> str:
    """The documented default configuration, `etc/mailsrv.yaml`."""
    lines = ["# The configuration of mailsrv. Every setting is here with its default; what is left out has it too."]
    lines.append("# Check a change with: mailsrv check --config FILE")
    for section, text in SECTIONS.items():
        lines += ["", f"# {text}", f"{section}:"]
        for setting in SETTINGS:
            if setting.section == section:
                lines += [
                    f"  # {line}" for line in textwrap.wrap(f"{setting.text} Expects {setting.kind.expects}.", 108)
                ]
                lines.append(f"  {setting.key}: {_yaml_value(setting.default)}")
    return "\n".join(lines) + "\n"


def reference() -> str:
    """The table of settings, `docs/settings.md`."""
    lines = ["# Settings", "", "Generated from `mailsrv/config.py` by `mailsrv config reference`.", ""]
    for section, text in SECTIONS.items():
        lines += [f"## {section}", "", text, "", "| setting | default | expects | meaning |", "|---|---|---|---|"]
        for setting in SETTINGS:
            if setting.section == section:
                default = _yaml_value(setting.default)
                lines.append(f"| `{setting.name}` | `{default}` | {setting.kind.expects} | {setting.text} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"
