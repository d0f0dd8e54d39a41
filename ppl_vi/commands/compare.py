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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ppl_vi import cli
from ppl_vi.commands import begin
from ppl_vi.runtime.display import following
from ppl_vi.runtime.processes import travels
from ppl_vi.sweeps.stored import check_store, sweep_into_store

if TYPE_CHECKING:
    from ppl_vi.model_comparison import ModelComparison

OUT = Path("results")
GUIDES = ("AutoNormal", "AutoMultivariateNormal")
NUM_REPLICAS = 4
EXAMPLES = """examples, for a file my_model.py in the current folder that has `model`, `data` and `guide`:
  ppl-vi compare my_model:model --args my_model:data
  ppl-vi compare my_model:model --args my_model:data --guides AutoNormal AutoStructured my_model:guide
  ppl-vi compare my_model:model --args my_model:data --guides my_model:guide --as-is
  ppl-vi compare my_model:model --args my_model:data --guides my_model:guide=params.pt
  ppl-vi compare my_model:model --args my_model:data --store fits.db
  ppl-vi compare --list-guides"""
TEXT = "guides on one model: how far each is from its exact posterior, and why"


def add(commands: Any) -> None:
    """Adds the command to those of a parser."""
    compare = cli.add_command(commands, "compare", TEXT, EXAMPLES, (__doc__ or "").splitlines()[0])
    begin.add_model(compare)
    compare.add_argument("--as-is", action="store_true", help=begin.AS_IS)
    cli.add_comparison_options(compare, OUT, GUIDES, GUIDES, cli.FULL | {"num_replicas": NUM_REPLICAS})
    compare.set_defaults(unlisted_is_own=False)  # what lies in the default folder may be of any model
    compare.set_defaults(program=compare_program)


def compare_program(arguments: argparse.Namespace) -> int:
    """Compares the guides as asked; the exit code."""
    if arguments.list_guides:
        cli.list_guides(Console())
        return 0
    begin.check_names(arguments)
    with cli.modules_from_here():
        if arguments.store is not None:
            return _store(arguments)
        arguments.whose = arguments.model + (f" with {arguments.args}" if arguments.args else "")
        cli.check_comparison(arguments)
        return _compare(arguments)


def _store(arguments: argparse.Namespace) -> int:
    """The same fits as a sweep."""
    check_store(arguments)
    cli.check_fitting(arguments)
    with cli.loading():
        guides, settings = cli.chosen_guides(arguments.guides, GUIDES), cli.settings_of(arguments)
        models = [{"model": begin.target_of(arguments)}]
    return sweep_into_store(arguments, models, guides, settings)


def _compare(arguments: argparse.Namespace) -> int:
    with following(True):
        comparison, guides, processes = begin.begun(arguments, GUIDES)
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


def write_figures(comparison: ModelComparison, arguments: argparse.Namespace) -> None:
    """Writes all figures as PNG."""
    for name, figure in comparison.plot().items():
        cli.write_figure(arguments.out / f"{figure.get_label() or name}.png", figure)
