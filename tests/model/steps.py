"""What each actor is going to do: a stream of steps that the seed alone decides.

A step says what kind of thing is done and holds the dice for it. Which messages it then means depends on what the
client has been told by that time; which choice is made among them does not.
"""

import random
from dataclasses import dataclass

SHARED = ("INBOX", "Archive", "Work")
WEIGHTS = {
    "check": 8, "noop": 8, "fetch": 12, "text": 4, "store": 20, "append": 9, "copy": 5, "move": 5, "expunge": 5,
    "uid-expunge": 4, "idle": 8, "search": 6, "status": 5, "select": 4, "examine": 2, "close": 2, "unselect": 1,
    "box": 5, "beyond": 1, "again": 1,
}  # fmt: skip
FOREIGN = {"drop": 5, "seen-by-mutt": 4, "flags": 5, "remove": 2}
STORED = ("\\Seen", "\\Flagged", "\\Deleted", "\\Answered", "\\Draft", "work", "Play", "$Later")


@dataclass(frozen=True)
class Step:
    kind: str
    dice: tuple[float, ...]  # each from 0 to below 1
    flags: tuple[str, ...]

    def below(self, number, die):
        return int(self.dice[die] * number)

    def one(self, options, die):
        return options[self.below(len(options), die)]

    def chance(self, share, die):
        return self.dice[die] < share


def stream(seed, actor, weights):
    """An endless stream of steps, the same for the same seed and actor."""
    dice = random.Random(f"{seed} {actor}")
    kinds, shares = list(weights), list(weights.values())
    while True:
        [kind] = dice.choices(kinds, shares)
        chosen = dice.sample(STORED, dice.choice((1, 1, 1, 2, 3)))
        yield Step(kind, tuple(dice.random() for _ in range(8)), tuple(chosen))


def text_of(token, size):
    """A message of about that many octets that tells by its token whether it is whole."""
    line = f"{token} says what it says, and says it again.\r\n"
    body = line * max(1, size // len(line))
    return f"From: <{token}@model.example>\r\nSubject: About {token}\r\nX-Model: {token}\r\n\r\n", body
