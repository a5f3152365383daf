"""The command line as values: every command with its options and arguments, read from the parser that runs them.

Imports: the standard library.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Argument:
    """An option (`flags`) or a positional argument (none). `value` is its name in texts, "" for a switch."""

    flags: tuple[str, ...]
    value: str
    text: str
    choices: tuple[str, ...] = ()
    required: bool = False
    several: bool = False


@dataclass(frozen=True, slots=True)
class Command:
    """`words` lead to it: `("user", "add")`. A noun has verbs and no arguments of its own."""

    words: tuple[str, ...]
    text: str
    options: tuple[Argument, ...]
    arguments: tuple[Argument, ...]
    verbs: tuple[Command, ...]

    def walk(self) -> Iterator[Command]:
        """This one and all below, in the order of the help."""
        yield self
        for verb in self.verbs:
            yield from verb.walk()

    def called(self) -> tuple[Argument, ...]:
        """Its own options: without those that every command takes."""
        return tuple(option for option in self.options if not SHARED & set(option.flags))


SHARED = {"--help", "--config", "--json", "--version"}


def read(parser: argparse.ArgumentParser, words: tuple[str, ...] = (), text: str = "") -> Command:
    """The command of a parser, with all commands below it."""
    options, arguments, verbs = [], [], []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            verbs += [
                read(below, (*words, name), helps[name]) for name, below in action.choices.items() if name in helps
            ]
        elif action.help == argparse.SUPPRESS:
            continue
        elif action.option_strings:
            options.append(_argument(action, parser))
        else:
            arguments.append(_argument(action, parser))
    return Command(words, text, tuple(options), tuple(arguments), tuple(verbs))


def _argument(action: argparse.Action, parser: argparse.ArgumentParser) -> Argument:
    formatter = parser._get_formatter()
    default = action.dest.upper() if action.option_strings else action.dest
    metavar = action.metavar if isinstance(action.metavar, str) else default
    choices = tuple(str(choice) for choice in action.choices or ())
    if choices and action.metavar is None:
        metavar = "|".join(choices)
    return Argument(
        tuple(action.option_strings),
        "" if action.nargs == 0 else metavar,
        formatter._expand_help(action) if action.help else "",
        choices,
        required=action.required and action.nargs not in ("*", "?"),
        several=action.nargs in ("*", "+"),
    )
