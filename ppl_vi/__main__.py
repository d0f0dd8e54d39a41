"""Compares guides on your own Pyro model against its exact posterior.

    ppl-vi compare my_package.my_model:model --args my_package.my_model:data --guides AutoNormal my_package.guides:mine

Modules are found from the current folder. `--args` names one value or a tuple of the model's positional arguments; a
guide is a family by name, or a family or guide of your own. Tables go to standard output; tables, records and figures
to the folder of `--out`. Standard error shows what is being done: on lines that move in a terminal, else one line for
each stage.

The exit code is 0, or 2 where the arguments or the model can't be used, 3 where the truth is uncertified, so that the
numbers marked with `?` must not be relied on, and 130 after Ctrl-C.
"""

from __future__ import annotations

from ppl_vi.runtime import signals

if __name__ == "__main__":
    signals.take_over("ppl-vi")  # before the rest is imported, which takes a while

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ppl_vi import cli
from ppl_vi.runtime import garbage
from ppl_vi.runtime.display import following
from ppl_vi.runtime.processes import travels
from ppl_vi.runtime.stages import stage

if TYPE_CHECKING:
    from ppl_vi.model_comparison import ModelComparison

OUT = Path("results")
GUIDES = ("AutoNormal", "AutoMultivariateNormal")
WORKERS_MODULES = ("ppl_vi.model_comparison",)  # what the processes that share the guides import
NUM_REPLICAS = 4


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    found = cli.Parser(prog="ppl-vi", description=(__doc__ or "").splitlines()[0])
    commands = found.add_subparsers(dest="command", required=True, metavar="COMMAND")
    compare = commands.add_parser("compare", help="guides on one model", description=found.description)
    compare.add_argument("model", metavar="MODULE:MODEL", nargs="?", help="a Pyro model, or a Target made of one")
    compare.add_argument("--args", metavar="MODULE:DATA", help="its positional arguments: one value, or a tuple")
    compare.add_argument(
        "--full", dest="full_table", action="store_true", help="print all columns, not six (table.txt has all)"
    )
    cli.add_comparison_options(compare, OUT, GUIDES, GUIDES, cli.FULL | {"num_replicas": NUM_REPLICAS})
    return found


def imported(what: str, path: str) -> Any:
    """The object at `module:attribute`, in the folder in which the program was started, where its outputs go.

    Raises:
        UsageError: it can't be imported.
    """
    module, colon, attribute = path.partition(":")
    if not (module and colon and attribute):
        raise cli.UsageError(f"{what}: expected package.module:attribute, got '{path}'")
    folder = Path.cwd()
    try:
        found = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:  # a module may raise anything when it is imported
        raise cli.UsageError(f"{what}: '{path}' can't be imported: {type(error).__name__}: {error}") from error
    finally:
        os.chdir(folder)
    return found


def program(arguments: argparse.Namespace) -> int:
    """Compares the guides as asked."""
    if arguments.list_guides:
        cli.list_guides(Console())
        return 0
    if arguments.model is None:
        raise cli.UsageError("name the model as package.module:attribute")
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        cli.check_comparison(arguments)
        return _compare(arguments)
    finally:
        if folder in sys.path:  # which a module may have changed
            sys.path.remove(folder)


def _compare(arguments: argparse.Namespace) -> int:
    with following(True):
        comparison, guides, processes = _begun(arguments)
    processes = processes if travels(comparison) else 1
    code, done = cli.run_comparison(
        comparison,
        guides,
        processes,
        arguments,
        lambda done: write_figures(done, arguments),
        "ppl_vi.report.model_plots",
        progress=True,
    )
    if (
        done.target.dim
        and code in (0, cli.UNCERTIFIED)
        and all(entry.records[0]["elbo"] is None for entry in done.entries)
    ):
        reasons = "; ".join(f"{entry.guide}: {entry.records[0]['reason']}" for entry in done.entries)
        raise cli.UsageError(f"no guide could be compared: {reasons}")
    return code


def _begun(arguments: argparse.Namespace) -> tuple[ModelComparison, list[str], int]:
    """The comparison with its truth, the guides that are asked for, and the number of processes that share them."""
    with signals.starting(), garbage.imports_kept(), stage("loading Pyro and the model"):
        cli.woken(arguments, GUIDES, WORKERS_MODULES)
        model = imported("model", arguments.model)
        given = imported("--args", arguments.args) if arguments.args else ()
        guides, settings, processes = cli.prepared(arguments, GUIDES, WORKERS_MODULES)
        from ppl_vi.model_comparison import begun, target_of
    try:
        target = target_of(model, given if isinstance(given, tuple) else (given,)).to(arguments.device)
        return begun(target, guides, (), settings), guides, processes
    except Exception as error:  # a model may raise anything
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        name = arguments.model.rpartition(":")[2]  # with which most of these errors begin
        raise cli.UsageError(f"{arguments.model}: {kind}{str(error).removeprefix(f'{name}: ')}") from error


def write_figures(comparison: ModelComparison, arguments: argparse.Namespace) -> None:
    """Writes all figures as PNG."""
    for name, figure in comparison.plot().items():
        cli.write_figure(arguments.out / f"{name}.png", figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit code."""
    return cli.run(program, parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
