"""What a run is given: how much, where, from which seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass
class Context:
    """`extent`: brief (in the tests), quick (minutes) or long."""

    directory: Path
    seed: int
    extent: str = "quick"
    cycles: int = 60
    back_seconds: float = 5.0
    broken: str | None = None
    operation: str | None = None

    def place(self, name: str) -> Path:
        """A directory of a family's own, which other users may pass through."""
        path = self.directory / name
        path.mkdir(parents=True)
        return path

    def of(self, brief: int, quick: int, long: int) -> int:
        return {"brief": brief, "quick": quick, "long": long}[self.extent]
