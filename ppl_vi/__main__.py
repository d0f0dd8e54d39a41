"""The command `ppl-vi`: its parser, and the start of the program."""

from __future__ import annotations

from ppl_vi.runtime import signals

if __name__ == "__main__":
    signals.take_over("ppl-vi")  # before the rest is imported, which takes a while

import argparse
import sys
from collections.abc import Sequence

from ppl_vi import cli
from ppl_vi._version import __version__
from ppl_vi.commands import check, compare
from ppl_vi.sweeps import commands as sweep_commands


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    found = cli.Parser(prog="ppl-vi", **compare.TEXTS)
    found.add_argument("--version", action="version", version=f"ppl-vi {__version__}")
    commands = found.add_subparsers(dest="command", metavar="COMMAND")
    compare.add(commands)
    sweep_commands.add(commands)
    check.add(commands)
    return found


def program(arguments: argparse.Namespace) -> int:
    """Runs the command that is asked for; the exit code."""
    if arguments.command is None:
        parser().print_help()
        return 0
    return int(arguments.program(arguments))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit code."""
    return cli.run(program, parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
