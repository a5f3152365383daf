"""What came of a family, as a table and as a report."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Result:
    """`counts` is what was done, `wrong` what was violated; `left_out` says why nothing was done."""

    family: str
    counts: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    left_out: str = ""
    seconds: float = 0.0

    def told(self) -> str:
        if self.left_out:
            return f"left out: {self.left_out}"
        return ", ".join([f"{number} {what}" for what, number in self.counts.items()] + self.notes)


def table(results: Iterable[Result]) -> str:
    lines = ["| family | what was done | violations | seconds |", "|---|---|---|---|"]
    for one in results:
        lines.append(f"| {one.family} | {one.told()} | {'-' if one.left_out else len(one.wrong)} | {one.seconds:.0f} |")
    return "\n".join(lines) + "\n"


HEAD = """# Faults: what was tried on this server

Made by `bin/run-faults`; how to run it, and what each family does, is in [proof.md](proof.md). 0 violations means:
every message that was acknowledged was there afterwards, by its SHA-256, in a Maildir, the queue or with the next
server; no file that a reader can see was torn; no UID was given twice or moved; flags were as acknowledged; and the
server was back in time.
"""


def markdown(results: Iterable[Result], command: str, seed: int, machine: str) -> str:
    results = list(results)
    facts = (f"Command: `{command}`", f"Date: {time.strftime('%Y-%m-%d %H:%M %Z')}", f"Seed: {seed}", machine)
    text = HEAD + "".join(f"\n- {fact}" for fact in facts) + "\n\n" + table(results)
    for one in results:
        if one.wrong:
            text += f"\n## {one.family}: violations\n\n" + "".join(f"- {line}\n" for line in one.wrong[:50])
    return text
