"""The configuration file: parsed, checked, and written as a sample and as a reference.

A configuration is YAML in sections. All that is wrong with it is told at once, each with file, line, what was expected
and, for an unknown name, the nearest one there is.

Imports: settings, yaml.
"""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterator
from typing import Any

import yaml

from mailsrv.settings import MOST_SOCKET_PATH, SECTIONS, SETTINGS, Wrong

DEFAULT_PATH = "/etc/mailsrv/mailsrv.yaml"
UMASK = 0o077  # of every process that writes mail or accounts
INSTEAD = "try `mailsrv quickstart`, make it with `mailsrv setup`, or name another one with --config"


class ConfigError(Exception):
    """What is wrong with a configuration, one line for each thing."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


_BY_NAME = {setting.name: setting for setting in SETTINGS}


class Config:
    """Checked values: `config["smtp.hops"]`. `path` is the file they came from, "" for defaults alone."""

    def __init__(self, values: dict[str, Any], path: str = "") -> None:
        self.values, self.path = values, path

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    @property
    def accounts_path(self) -> str:
        return f"{self['server.data_dir']}/accounts.sqlite3"

    @property
    def throttle_path(self) -> str:
        return f"{self['server.data_dir']}/throttle.sqlite3"

    @property
    def dkim_path(self) -> str:
        return f"{self['server.data_dir']}/dkim"

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
        reason = getattr(failure, "strerror", None) or failure
        hint = "; do it as root" if isinstance(failure, PermissionError) else ""
        raise ConfigError([f"{path}: cannot be read: {reason}{hint}"]) from None
    return parse(text, path)


def reload(old: Config) -> tuple[Config, list[str]]:
    """The file again, for a server that runs: its values as far as they can change now, and the names of those that
    were changed but need a restart. Raises ConfigError.
    """
    new = load(old.path)
    values, waiting = {}, []
    for setting in SETTINGS:
        name = setting.name
        values[name] = new[name] if setting.live else old[name]
        if values[name] != new[name]:
            waiting.append(name)
    return Config(values, old.path), waiting


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
        except Wrong as wrong:
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
    services = ("smtp", "submission", "submissions", "imap", "imaps", "metrics")
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


def yaml_value(value: Any) -> str:
    """A value as the file has it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(f'"{item}"' if isinstance(item, str) else str(item) for item in value) + "]"
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
                lines.append(f"  {setting.key}: {yaml_value(setting.default)}")
    return "\n".join(lines) + "\n"


def reference() -> str:
    """The table of settings, `docs/settings.md`."""
    lines = ["# Settings", "", "Generated from `mailsrv/settings.py` by `mailsrv config reference`.", ""]
    for section, text in SECTIONS.items():
        lines += [f"## {section}", "", text, "", "| setting | default | expects | meaning |", "|---|---|---|---|"]
        for setting in SETTINGS:
            if setting.section == section:
                default = yaml_value(setting.default)
                text = setting.text if setting.live else f"{setting.text} *Needs a restart.*"
                lines.append(f"| `{setting.name}` | `{default}` | {setting.kind.expects} | {text} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"
