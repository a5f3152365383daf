"""Changes single settings in the text of a configuration: everything else stays as it was written, comments above all.

Imports: config, yaml.
"""

from __future__ import annotations

import json
from typing import Any

import yaml

from mailsrv import config


def set_values(text: str, changes: dict[str, Any], path: str = "<text>") -> str:
    """The text with these settings (by whole name). Raises ConfigError if it, or what comes of it, is wrong."""
    for name, value in changes.items():
        text = _set(text, name, value)
    config.parse(text, path)
    return text


def _set(text: str, name: str, value: Any) -> str:
    section, _, key = name.partition(".")
    written = _written(value)
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is None:
        return f"{_ended(text)}{section}:\n  {key}: {written}\n"
    if not isinstance(root, yaml.MappingNode):
        return text  # parse says what is wrong
    found = _child(root, section)
    if found is None:
        if root.flow_style:
            return _insert(text, root.start_mark.index + 1, f'"{section}": {{"{key}": {written}}}', root)
        return f"{_ended(text)}\n{section}:\n  {key}: {written}\n"
    head, body = found
    if not isinstance(body, yaml.MappingNode):
        return _after_line(text, head.end_mark.index, f"{' ' * (head.start_mark.column + 2)}{key}: {written}")
    old = _child(body, key)
    if old is not None:
        return _replace(text, *old, written)
    if body.flow_style:
        return _insert(text, body.start_mark.index + 1, f'"{key}": {written}', body)
    return _after_line(text, head.end_mark.index, f"{' ' * body.start_mark.column}{key}: {written}")


def _replace(text: str, key: yaml.Node, old: yaml.Node, written: str) -> str:
    start, end = old.start_mark.index, _end(old)
    if start == end:  # nothing stands there
        return f"{text[:start].rstrip(' ')} {written}{text[end:]}"
    if old.start_mark.line != key.end_mark.line:  # a list below its key
        start = text.index(":", key.end_mark.index) + 1
        written = " " + written
    kept = text[start:end]
    tail = kept[len(kept.rstrip()) :]  # a folded text ends with its line
    return text[:start] + written + tail + text[end:]


def _end(node: yaml.Node) -> int:
    """Where a value ends. A list in lines ends, for the parser, where the next thing begins: after comments."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    end: int = node.end_mark.index
    return end


def _child(mapping: yaml.MappingNode, name: str) -> tuple[yaml.Node, yaml.Node] | None:
    return next(((key, value) for key, value in mapping.value if key.value == name), None)


def _insert(text: str, index: int, entry: str, mapping: yaml.MappingNode) -> str:
    comma = ", " if mapping.value else ""
    return text[:index] + entry + comma + text[index:]


def _after_line(text: str, index: int, line: str) -> str:
    end = text.find("\n", index)
    if end < 0:
        return f"{text}\n{line}\n"
    return f"{text[: end + 1]}{line}\n{text[end + 1 :]}"


def _ended(text: str) -> str:
    return text if not text or text.endswith("\n") else text + "\n"


def _written(value: Any) -> str:
    """JSON, which is YAML on one line."""
    return json.dumps(value, ensure_ascii=False)
