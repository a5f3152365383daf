"""One thing the doctor looked at.

Imports: nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True, slots=True)
class Repair:
    """`text` says what `run` does; it may be run twice and loses nothing. It raises OSError or MailError."""

    text: str
    run: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Finding:
    """`result` is ok, warn (mail flows) or fail; `advice` says what it means and what to do, and is empty for ok."""

    result: str
    what: str
    advice: str = ""
    repair: Repair | None = None
