"""Policies of other domains, one small JSON file for each, as they were fetched.

Imports: store.files.
"""

from __future__ import annotations

import os
from typing import Any

from mailsrv.store.files import read_json, write_json


class PolicyFiles:
    """`directory` is made with the first policy. Domains are given in lower case, ASCII, without anything but letters,
    digits, dot and hyphen."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def _path(self, domain: str) -> str:
        return f"{self._directory}/{domain.strip('.')}.json"

    def load(self, domain: str) -> dict[str, Any] | None:
        return read_json(self._path(domain))

    def save(self, domain: str, value: dict[str, Any]) -> None:
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        write_json(self._path(domain), value)
