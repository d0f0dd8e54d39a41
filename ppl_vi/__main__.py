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
from ppl_vi.commands import check, compare, completion, listing, measure, report
from ppl_vi.sweeps import commands as sweep_commands

TEXT = "The ruler for variational inference in Pyro: how far a guide is from the exact posterior, and why."
EXAMPLES = """examples, for a file my_model.py in the current folder that has `model`, `data` and `guide`:
  ppl-vi compare my_model:model --args my_model:data --guides AutoNormal my_model:guide
  ppl-vi measure my_model:model --args my_model:data --draws draws.nc
  ppl-vi check my_model:model --args my_model:data --guides guide --max-reverse-kl 0.05
  ppl-vi sweep my_model:model --args my_model:data --guides AutoNormal --lr 0.05 0.2 --seed 0:100
  ppl-vi results sweep.db
  ppl-vi report sweep.db -o report.html
  ppl-vi list guides

ppl-vi COMMAND --help shows the options of a command, with more examples."""


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    formatter = argparse.RawDescriptionHelpFormatter
    found = cli.Parser(prog="ppl-vi", description=TEXT, epilog=EXAMPLES, formatter_class=formatter)
    found.add_argument("--version", action="version", version=f"ppl-vi {__version__}")
    commands = found.add_subparsers(dest="command", metavar="COMMAND")
    for command in (compare, measure, sweep_commands, report, check, listing):
        command.add(commands)
    completion.add(commands, found)
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
