"""Compares guides on your own Pyro model against its exact posterior.

    ppl-vi compare my_package.my_model:model --args my_package.my_model:data --guides AutoNormal my_package.guides:mine

Modules are found from the current folder. `--args` names one value, a tuple of the model's positional arguments, or a
dict of its keyword arguments; a dict is one positional argument where the model has no arguments of the names of its
keys. A guide is a family by name, or a family or guide of your own. A guide of your own that is fitted already is
measured as it is with `--as-is`, or with a file of its values, as in `my_package.guides:mine=params.pt`. Tables go to
standard output; tables, records and figures to the folder of `--out`. Standard error shows what is being done: on lines
that move in a terminal, else one line for each stage.

The exit code is 0, or 2 where the arguments or the model can't be used, 3 where the truth is uncertified, so that the
numbers marked with `?` must not be relied on, and 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ppl_vi import cli
from ppl_vi.runtime import garbage, signals
from ppl_vi.runtime.display import following
from ppl_vi.runtime.processes import travels
from ppl_vi.runtime.stages import stage

if TYPE_CHECKING:
    from ppl_vi.model_comparison import ModelComparison

OUT = Path("results")
GUIDES = ("AutoNormal", "AutoMultivariateNormal")
WORKERS_MODULES = ("ppl_vi.model_comparison",)  # what the processes that share the guides import
NUM_REPLICAS = 4
EXAMPLES = """examples, for a file my_model.py in the current folder that has `model`, `data` and `guide`:
  ppl-vi compare my_model:model --args my_model:data
  ppl-vi compare my_model:model --args my_model:data --guides AutoNormal AutoStructured my_model:guide
  ppl-vi compare my_model:model --args my_model:data --guides my_model:guide --as-is
  ppl-vi compare my_model:model --args my_model:data --guides my_model:guide=params.pt
  ppl-vi compare --list-guides"""
AS_IS = "measure guides of your own, named MODULE:GUIDE, with the values that they have, without fitting them"
TEXTS: dict[str, Any] = {
    "description": (__doc__ or "").splitlines()[0],
    "epilog": EXAMPLES,
    "formatter_class": argparse.RawDescriptionHelpFormatter,
}


def add(commands: Any) -> None:
    """Adds the command to those of a parser."""
    compare = commands.add_parser("compare", help="guides on one model", **TEXTS)
    compare.add_argument("model", metavar="MODULE:MODEL", nargs="?", help="a Pyro model, or a Target made of one")
    compare.add_argument(
        "--args", metavar="MODULE:DATA", help="its arguments: one value, a tuple, or a dict of them by name"
    )
    compare.add_argument(
        "--full", dest="full_table", action="store_true", help="print all columns, not six (table.txt has all)"
    )
    compare.add_argument("--as-is", action="store_true", help=AS_IS)
    cli.add_comparison_options(compare, OUT, GUIDES, GUIDES, cli.FULL | {"num_replicas": NUM_REPLICAS})
    compare.set_defaults(unlisted_is_own=False)  # what lies in the default folder may be of any model
    compare.set_defaults(program=compare_program)


def compare_program(arguments: argparse.Namespace) -> int:
    """Compares the guides as asked; the exit code."""
    if arguments.list_guides:
        cli.list_guides(Console())
        return 0
    if arguments.model is None:
        raise cli.UsageError("name the model as package.module:attribute")
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        arguments.whose = arguments.model + (f" with {arguments.args}" if arguments.args else "")
        cli.check_comparison(arguments)
        if arguments.as_is and not any(":" in guide for guide in arguments.guides or ()):
            raise cli.UsageError("--as-is is about guides of your own: name one by --guides package.module:attribute")
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
        model = cli.imported("model", arguments.model)
        args, kwargs = _arguments_of(model, cli.imported("--args", arguments.args) if arguments.args else ())
        guides, settings, processes = cli.prepared(arguments, GUIDES, WORKERS_MODULES)
        from ppl_vi.guides.given import fitted
        from ppl_vi.model_comparison import begun, target_of
    try:
        asked = {guide: fitted(guide) if arguments.as_is and ":" in guide else guide for guide in guides}
        target = target_of(model, args, kwargs).to(arguments.device)
        return begun(target, asked, (), settings), guides, processes
    except Exception as error:  # a model may raise anything
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        name = arguments.model.rpartition(":")[2]  # with which most of these errors begin
        raise cli.UsageError(f"{arguments.model}: {kind}{str(error).removeprefix(f'{name}: ')}") from error


def _arguments_of(model: Any, given: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A model's positional and keyword arguments, as `--args` names them; a dict is what the model can take it for."""
    if isinstance(given, dict) and given and all(isinstance(name, str) for name in given):
        try:
            inspect.signature(model).bind(**given)
        except (TypeError, ValueError):
            return (given,), {}
        return (), given
    return (given if isinstance(given, tuple) else (given,)), {}


def write_figures(comparison: ModelComparison, arguments: argparse.Namespace) -> None:
    """Writes all figures as PNG."""
    for name, figure in comparison.plot().items():
        cli.write_figure(arguments.out / f"{figure.get_label() or name}.png", figure)
