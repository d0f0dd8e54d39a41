"""The command `ppl-vi check`: whether guides keep within limits, for continuous integration."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from ppl_vi import cli
from ppl_vi.commands import begin
from ppl_vi.runtime import names, verbosity
from ppl_vi.runtime.display import following
from ppl_vi.runtime.limits import LIMITS, limits_of
from ppl_vi.runtime.outputs import write_output_text
from ppl_vi.runtime.processes import travels

if TYPE_CHECKING:
    from ppl_vi.report.checks import Check

TEXT = "whether guides keep within limits, for continuous integration"
DETAILS = """Fits guides to a Pyro model and checks them against its exact posterior.

A line for each limit that is not kept goes to standard output. The exit code is 0
where all are kept, 1 where one is not, and 3 where the truth is uncertified, so that
nothing that rests on it can be said. Reverse KL, start gap and optimization gap are
those of the worst replica, other figures medians over replicas. A value within its own
error of the limit is undecided, which counts as not kept."""
EXAMPLES = """examples, for a file my_model.py in the current folder that has `model`, `data` and `my_guide`:
  ppl-vi check my_model:model --args my_model:data --guides my_guide --max-reverse-kl 0.05 --min-coverage 0.85
  ppl-vi check my_model:model --args my_model:data --guides my_guide AutoNormal --max-family-gap 0.1 --junit check.xml
  ppl-vi check my_model:model --args my_model:data --guides my_guide --as-is --max-reverse-kl 0.05"""
GUIDES = ("AutoNormal",)
NUM_REPLICAS = 4


def add(commands: Any) -> None:
    """Adds the command to those of a parser."""
    parser = cli.add_command(commands, "check", TEXT, EXAMPLES, DETAILS)
    begin.add_model(parser)
    parser.add_argument(
        "--guides", nargs="+", metavar="NAME", help=f"families, or names in the model's module ({', '.join(GUIDES)})"
    )
    parser.add_argument("--as-is", action="store_true", help=begin.AS_IS)
    limits = parser.add_argument_group("limits, of which there must be one")
    for name, limit in LIMITS.items():
        text = f"{limit.help}{limit.unit and f',{limit.unit}'}".replace("%", "%%")
        limits.add_argument(f"--{name.replace('_', '-')}", type=cli.finite, metavar="F", help=text)
    full = cli.FULL | {"num_replicas": NUM_REPLICAS}
    cli.add_fit_options(parser, full, full)
    cli.add_memory(parser)
    parser.add_argument("--device", choices=cli.DEVICES, default="cpu", help="where to compute (cpu)")
    cli.add_seed(parser)
    parser.add_argument("--junit", metavar="FILE", help="the checks as JUnit XML")
    parser.set_defaults(program=check_program, quick=False)


def check_program(arguments: argparse.Namespace) -> int:
    """Checks the guides, says which limits are not kept, and writes the JUnit file; the exit code."""
    limits = _limits(arguments)
    module = (arguments.model or "").partition(":")[0]
    arguments.guides = [names.in_module(guide, module) for guide in arguments.guides or GUIDES]
    begin.check_names(arguments)
    with cli.modules_from_here():
        cli.check_fitting(arguments)
        if arguments.junit is not None:
            cli.writable_file("--junit", arguments.junit)
        checks = _checks(arguments, limits)
    return _told(checks, arguments)


def _limits(arguments: argparse.Namespace) -> dict[str, float]:
    given = {name: getattr(arguments, name) for name in LIMITS}
    if all(value is None for value in given.values()):
        raise cli.UsageError("name a limit at least, such as --max-reverse-kl 0.05")
    try:
        return limits_of(given)
    except ValueError as error:
        name, _, problem = str(error).partition(" ")
        raise cli.UsageError(f"--{name.replace('_', '-')} {problem}") from error


def _checks(arguments: argparse.Namespace, limits: dict[str, float]) -> list[Check]:
    with following(True):
        try:
            comparison, guides, processes = begin.begun(arguments, GUIDES)
        except cli.UsageError as error:
            from ppl_vi.report.checks import without_truth
            from ppl_vi.truth import UncertifiedTruthError

            if isinstance(error.__cause__, UncertifiedTruthError):
                return without_truth(arguments.guides, limits, str(error.__cause__))
            raise
        from ppl_vi.comparison.run import compare_each
        from ppl_vi.report.checks import judged

        processes = processes if travels(comparison) else 1
        *_, done = compare_each(comparison, guides, num_workers=processes)
        return judged(done.records(), limits)


def _told(checks: Sequence[Check], arguments: argparse.Namespace) -> int:
    """Prints what is not kept, and how many checks there were; writes the JUnit file; the exit code."""
    from ppl_vi.report.checks import Outcome, not_passed
    from ppl_vi.report.junit import to_junit

    console = Console(highlight=False)
    for check in checks if verbosity.is_verbose() else not_passed(checks):
        console.print(Text(str(check), "" if check.outcome is Outcome.PASSED else "red"), soft_wrap=True)
    counts = [(sum(check.outcome is one for check in checks), one) for one in Outcome]
    told = ", ".join(f"{number} {outcome}" for number, outcome in counts if number)
    if not verbosity.is_quiet():
        console.print(Text(f"{arguments.model}: {told}", "bold"), soft_wrap=True)
    if arguments.junit is not None:
        write_output_text(Path(arguments.junit), to_junit(checks, arguments.model))
    if any(check.outcome is Outcome.UNCERTIFIED for check in checks):
        return cli.UNCERTIFIED
    return cli.FAILED if not_passed(checks) else 0
