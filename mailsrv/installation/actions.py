"""What installing does to a machine, one step at a time: each is told, and done unless only the telling is wanted.

With a prefix everything happens below another root: no users, owners or services there, for they are of this machine.

Imports: the standard library.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path


class Actions:
    """`tell` is called with each step; with `dry` nothing else happens."""

    def __init__(self, tell: Callable[[str], None], *, prefix: str = "", dry: bool = False) -> None:
        self._tell, self._dry = tell, dry
        self.prefix = os.path.abspath(prefix) if prefix else ""

    @property
    def here(self) -> bool:
        """Is it this machine that is changed?"""
        return not self.prefix

    def at(self, path: str) -> Path:
        """An absolute path below the prefix."""
        return Path(self.prefix + path)

    def do(self, text: str, act: Callable[[], object]) -> None:
        self._tell(text)
        if not self._dry:
            act()

    def directory(self, path: str, mode: int, owner: str, group: str) -> None:
        place = self.at(path)
        if place.is_dir():
            return

        def make() -> None:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.mkdir()
            place.chmod(mode)
            self._give(place, owner, group)

        self.do(f"make {place} ({owner}:{group}, {mode:04o})", make)

    def file(self, path: str, content: bytes, mode: int, owner: str = "root", group: str = "root") -> None:
        """Write a file, whole or not at all; nothing if it is there with this content."""
        place = self.at(path)
        if place.exists() and place.read_bytes() == content:
            return

        def write() -> None:
            place.parent.mkdir(parents=True, exist_ok=True)
            temporary = place.with_name(f".{place.name}.{os.getpid()}")
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            try:
                with os.fdopen(fd, "wb") as file:
                    file.write(content)
                    file.flush()
                    # Not by its name: in a directory of the server's user that may lead elsewhere by now (S26).
                    os.fchmod(fd, mode)
                    self._give(fd, owner, group)
                    os.fsync(fd)
                os.rename(temporary, place)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise

        self.do(f"write {place} ({owner}:{group}, {mode:04o})", write)

    def link(self, path: str, target: str) -> None:
        place = self.at(path)
        if place.is_symlink() and os.readlink(place) == target:
            return

        def make() -> None:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.unlink(missing_ok=True)
            place.symlink_to(target)

        self.do(f"link {place} -> {target}", make)

    def run(self, *command: str, may_fail: bool = False) -> None:
        """A command of the system's. CalledProcessError if it fails and may not."""
        self.do("run " + " ".join(command), lambda: subprocess.run(command, check=not may_fail, timeout=300))

    def remove(self, path: str) -> None:
        place = self.at(path)
        if place.is_symlink() or place.is_file():
            self.do(f"remove {place}", place.unlink)
        elif place.is_dir():
            self.do(f"remove {place}/", lambda: shutil.rmtree(place))

    def _give(self, place: Path | int, owner: str, group: str) -> None:
        if self.here:
            shutil.chown(place, owner, group)


def has(commands: Sequence[str]) -> bool:
    """Are these programs on the path?"""
    return all(shutil.which(command) for command in commands)


def systemd_runs() -> bool:
    """Is systemd what starts services here? sd_booted(3)."""
    return os.path.isdir("/run/systemd/system")
