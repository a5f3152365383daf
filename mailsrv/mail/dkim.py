"""The keys mail is signed with: made, published, used, replaced, forgotten; per domain, an RSA and an Ed25519 one each.

A key is in one of three states. *new*: its record is to be published, nothing is signed with it. *active*: it signs.
*old*: it signs no more, and its record is still wanted by those who verify mail on its way. The first keys of a domain
are active at once: without their records mail is as good as unsigned, as it was before.

    <directory>/<domain>/keys.json           selector, algorithm and state of each key
    <directory>/<domain>/<selector>.pem      the private key (PKCS #8), mode 0600

Imports: mail.private_key, store.files.    RFC 6376 3.6.1 (record), RFC 8463 (Ed25519).
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from mailsrv.mail.private_key import ED25519, RSA, PrivateKey
from mailsrv.store import files

NEW, ACTIVE, OLD = "new", "active", "old"
STATES = (NEW, ACTIVE, OLD)
KEPT_SECONDS = 7 * 86400.0  # after its last use: our queue holds mail for 5 days, others may be slower
VERSION = 1


class KeysRefused(Exception):
    """What was asked cannot be done with these keys; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Key:
    """`since` is when it came into its state, in seconds since 1970."""

    domain: str
    selector: str
    algorithm: str
    state: str
    since: float

    @property
    def name(self) -> str:
        """Where its record stands."""
        return f"{self.selector}._domainkey.{self.domain}"


class Keys:
    """The keys of all domains. Blocking; changes are whole, and seen by every process at its next look."""

    def __init__(self, directory: str, *, now: Callable[[], float] = time.time) -> None:
        self._directory, self._now = directory, now
        self._read: dict[str, tuple[tuple[int, int], tuple[Key, ...]]] = {}
        self._loaded: dict[tuple[str, int, int], PrivateKey] = {}

    # -------------------------------------------------------------- looking

    @property
    def there(self) -> bool:
        """False where nobody ever made keys: nothing need be read to know that nothing is signed."""
        return os.path.isdir(self._directory)

    def domains(self) -> list[str]:
        """The domains that have keys."""
        try:
            return sorted(name for name in os.listdir(self._directory) if self.of(name))
        except FileNotFoundError:
            return []

    def of(self, domain: str, state: str = "") -> tuple[Key, ...]:
        """A domain's keys, oldest first; those in one state only, if it is named. Raises OSError, KeysRefused."""
        path = f"{self._directory}/{domain}/keys.json"
        try:
            found = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return ()
        version = (found.st_mtime_ns, found.st_ino)
        known = self._read.get(domain)
        if known is None or known[0] != version:
            known = self._read[domain] = (version, self._parse(domain, path))
        return tuple(key for key in known[1] if not state or key.state == state)

    def _parse(self, domain: str, path: str) -> tuple[Key, ...]:
        value = files.read_json(path)
        try:
            if value is None or value["version"] != VERSION:
                raise KeyError("version")
            keys = [
                Key(
                    domain,
                    one["selector"],
                    one["algorithm"],
                    one["state"],
                    datetime.fromisoformat(one["since"]).timestamp(),
                )
                for one in value["keys"]
            ]
            if not all(
                key.state in STATES and key.algorithm in (RSA, ED25519) and "/" not in key.selector for key in keys
            ):
                raise ValueError("state")
        except (KeyError, TypeError, ValueError):
            raise KeysRefused(f"{path} is damaged: restore it from a backup, or remove it and generate keys") from None
        return tuple(keys)

    def private(self, key: Key) -> PrivateKey:
        """Raises OSError or ValueError if it cannot be read."""
        path = self._path(key)
        found = os.stat(path)
        name = (path, found.st_mtime_ns, found.st_ino)
        loaded = self._loaded.get(name)
        if loaded is None:
            with open(path, "rb") as file:
                pem = file.read(64 * 1024)
            try:
                loaded = self._loaded[name] = PrivateKey.load(key.algorithm, pem)
            except ValueError as failure:
                raise ValueError(f"{path}: {failure}") from None
        return loaded

    def record(self, key: Key) -> str:
        """The text of the TXT record at `key.name`."""
        return self.private(key).record()

    def _path(self, key: Key) -> str:
        return f"{self._directory}/{key.domain}/{key.selector}.pem"

    # -------------------------------------------------------------- changing

    @contextmanager
    def _changing(self, domain: str) -> Iterator[list[Key]]:
        """The keys of a domain, to be changed by one process at a time; written when the block ends well."""
        directory = f"{self._directory}/{domain}"
        files.make_private(directory)
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            keys = list(self.of(domain))
            yield keys
            files.write_json(f"{directory}/keys.json", {"version": VERSION, "keys": [_told(key) for key in keys]})
        finally:
            files.close(fd)

    def generate(self, domain: str) -> list[Key]:
        """The first keys of a domain, active at once."""
        with self._changing(domain) as keys:
            if keys:
                raise KeysRefused(f"{domain} has keys already; to replace them: mailsrv dkim rotate {domain}")
            return self._make(domain, keys, ACTIVE)

    def rotate(self, domain: str) -> list[Key]:
        """New keys beside the active ones, to be published and then activated."""
        with self._changing(domain) as keys:
            if not keys:
                raise KeysRefused(f"{domain} has no keys yet: mailsrv dkim generate {domain}")
            if any(key.state == NEW for key in keys):
                raise KeysRefused(f"{domain} has new keys already; when published: mailsrv dkim activate {domain}")
            return self._make(domain, keys, NEW)

    def _make(self, domain: str, keys: list[Key], state: str) -> list[Key]:
        day = datetime.fromtimestamp(self._now(), UTC).strftime("%Y%m%d")
        taken = {key.selector for key in keys}
        made = []
        for algorithm, word in ((RSA, "rsa"), (ED25519, "ed25519")):
            selector = next(name for name in _selectors(day, word) if name not in taken)
            key = Key(domain, selector, algorithm, state, self._now())
            files.write_text(self._path(key), PrivateKey.generate(algorithm).pem())
            made.append(key)
        keys.extend(made)
        return made

    def activate(self, domain: str) -> list[Key]:
        """Sign with the new keys from now on; the active ones become old. The keys that sign now."""
        with self._changing(domain) as keys:
            if not any(key.state == NEW for key in keys):
                raise KeysRefused(f"{domain} has no new keys: mailsrv dkim rotate {domain}")
            following = {NEW: ACTIVE, ACTIVE: OLD}
            keys[:] = [
                replace(key, state=following[key.state], since=self._now()) if key.state in following else key
                for key in keys
            ]
            return [key for key in keys if key.state == ACTIVE]

    def retire(self, domain: str, *, at_once: bool = False) -> list[Key]:
        """Forget the old keys, those that have not signed for KEPT_SECONDS; what was forgotten."""
        with self._changing(domain) as keys:
            old = [key for key in keys if key.state == OLD]
            gone = [key for key in old if at_once or self._now() - key.since >= KEPT_SECONDS]
            if not gone:
                days = KEPT_SECONDS / 86400
                raise KeysRefused(
                    f"The old keys of {domain} signed less than {days:.0f} days ago: mail may still be on its way"
                    if old
                    else f"{domain} has no old keys"
                )
            keys[:] = [key for key in keys if key not in gone]
        for key in gone:  # after the list: a key in it has its file
            files.unlink_quietly(self._path(key))
        return gone


def _selectors(day: str, word: str) -> Iterator[str]:
    yield f"{day}-{word}"
    number = 2
    while True:
        yield f"{day}-{number}-{word}"
        number += 1


def _told(key: Key) -> dict[str, Any]:
    since = datetime.fromtimestamp(key.since, UTC).isoformat(timespec="seconds")
    return {"selector": key.selector, "algorithm": key.algorithm, "state": key.state, "since": since}
