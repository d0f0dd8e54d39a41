"""Reads arguments: a parser that complains in one line, and the types of options."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NoReturn

from ppl_vi.cli.codes import USAGE
from ppl_vi.runtime import names, verbosity
from ppl_vi.runtime.memory import parsed


class UsageError(Exception):
    """The user asked for what can't be done. The message is one line and says what to ask for instead."""


class Parser(argparse.ArgumentParser):
    """An argument parser that complains in one line, and that reads -1e3 and -inf as numbers instead of options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._negative_number_matcher = re.compile(r"^-(\d|\.\d|inf|nan)")
        level: dict[str, Any] = {"action": "store_const", "dest": "verbosity", "default": argparse.SUPPRESS}
        told = self.add_mutually_exclusive_group()
        told.add_argument(
            "-q", "--quiet", const=verbosity.QUIET, help="tell results, warnings and errors only", **level
        )
        told.add_argument("-v", "--verbose", const=verbosity.VERBOSE, help="tell times and where errors are", **level)

    def error(self, message: str) -> NoReturn:
        """Says what is wrong and exits with 2."""
        _, _, unknown = message.partition("unrecognized arguments: ")
        hint = names.meant(unknown.split()[0].partition("=")[0], self._options()) if unknown.startswith("--") else ""
        self.exit(USAGE, f"{self.prog}: error: {' '.join(message.split())}{hint}\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's own; notes the arguments, so that a complaint is about the command that was given."""
        self._given = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def _options(self) -> list[str]:
        """The options of the command that was given, or of this parser."""
        parsers = [parser for parser in all_parsers(self) if parser.prog.split()[-1] in self._given] or [self]
        return list(dict.fromkeys(name for parser in parsers for name in parser._option_string_actions))


def all_parsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """A parser and those of its commands."""
    found = [parser]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found += dict.fromkeys(action.choices.values())
    return found


def add_command(commands: Any, name: str, text: str, examples: str, details: str = "") -> argparse.ArgumentParser:
    """Adds a command to those of a parser.

    Args:
        commands: what `add_subparsers` has given.
        name: of the command.
        text: what it is, in a line without a full stop.
        examples: lines that show how it is called, below its help.
        details: its description in whole sentences, where the line is not enough.
    """
    formatter = argparse.RawDescriptionHelpFormatter
    description = details or f"{text[0].upper()}{text[1:]}."
    found: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=description, epilog=examples, formatter_class=formatter
    )
    return found


def finite(text: str) -> float:
    """A finite number."""
    try:
        value = names.number(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be finite, got {text}")
    return value


def folder(text: str) -> Path:
    """A folder; an empty text, as of a variable that is not set, would be the current one."""
    if not text:
        raise argparse.ArgumentTypeError("expected a folder, got ''")
    return Path(text)


def positive(text: str) -> float:
    """A finite number above 0."""
    value = finite(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


def step_size(text: str) -> float:
    """The size of Adam's first step of a fit."""
    value = positive(text)
    if value > names.MAX_LR:
        raise argparse.ArgumentTypeError(f"must be at most {names.MAX_LR:g}, got {text}")
    return value


def whole(least: int) -> Callable[[str], int]:
    """A function that parses a whole number of at least `least`, for an option's `type`."""

    def parse(text: str) -> int:
        try:
            value = names.whole_number(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        if not least <= value < 2**31:
            raise argparse.ArgumentTypeError(f"must be at least {least} and below 2^31, got {text}")
        return value

    return parse


def engine(text: str) -> str:
    """The name of an engine."""
    try:
        names.check_engine(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def memory(text: str) -> float:
    """The bytes of an amount of memory, such as 500MB, 4GB or 4GiB."""
    try:
        return parsed(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def draws(text: str) -> int | Literal["auto"]:
    """The type of an argument that is a number of draws, or "auto"."""
    return "auto" if text == "auto" else whole(1)(text)
