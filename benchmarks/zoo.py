"""Guides on a zoo of models whose posteriors are known: the family gap and the optimization gap of each.

    python -m benchmarks.zoo [--models NAME ...] [--guides NAME ...] [--quick]

Every guide is fitted to every model of `models.ZOO` in several independent replicas, and measured against the truth.
The table goes to standard output, with a verdict on each model. Tables (one also in Markdown), records and a heat map
are written to results/zoo/.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from ppl_vi import cli
from ppl_vi.runtime import signals
from ppl_vi.runtime.outputs import write_output_text
from ppl_vi.runtime.processes import shared, wake
from ppl_vi.sweeps.stored import check_store, sweep_into_store

if TYPE_CHECKING:
    from ppl_vi.comparison.comparison import FitSettings

OUT = Path("results/zoo")
GUIDES = (
    "AutoNormal", "AutoMultivariateNormal", "AutoLowRankMultivariateNormal", "AutoIAFNormal", "AutoStructured",
    "laplace",
)  # fmt: skip
# The names in `models.ZOO`, in the same order, which a test compares: to import them takes seconds.
MODELS = (
    "exponential_normal", "normal_normal", "beta_binomial", "gamma_poisson", "half_normal", "banana",
    "logistic_regression", "mixture", "ppca", "robust_regression", "linear_regression", "correlated_gaussian", "funnel",
    "eight_schools_centred", "eight_schools_non_centred",
)  # fmt: skip
QUICK_MODELS = ("normal_normal", "half_normal", "linear_regression")
QUICK_GUIDES = ("AutoNormal", "AutoMultivariateNormal")
FULL = {"num_steps": 1000, "num_particles": "auto", "num_replicas": 4, "num_draws": 10_000}  # without --quick


@dataclass(frozen=True)
class Measured:
    """The records of one model and the verdict on them, or the reason why there are none."""

    model: str
    records: tuple[dict[str, Any], ...]
    reason: str = ""
    verdict: str = ""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = cli.Parser(prog="zoo", description=(__doc__ or "").splitlines()[0])
    few = ", ".join(QUICK_MODELS)
    found.add_argument("--models", nargs="+", metavar="NAME", choices=MODELS, help=f"models (all, with --quick {few})")
    found.add_argument("--guides", nargs="+", metavar="NAME", help=f"families ({', '.join(GUIDES)})")
    cli.add_full(found)
    cli.add_memory(found)
    cli.add_run_options(found, OUT, "few models, guides and steps")
    cli.add_html(found)
    cli.add_store(found)
    return found


def measure(guides: Sequence[str], settings: FitSettings, model: str) -> Measured:
    """The records of all guides on one model, or the error with which the model is refused as the reason for none."""
    from models import ZOO
    from ppl_vi.comparison.run import compare_each
    from ppl_vi.model_comparison import begun
    from ppl_vi.truth import UncertifiedTruthError

    try:
        found = begun(ZOO[model](), list(guides), (), settings)
    except (UncertifiedTruthError, ValueError) as error:
        return Measured(model, (), str(error))
    for step in compare_each(found, list(guides)):
        found = step
    records = tuple(record | {"model": model, "label": model} for record in found.records())
    return Measured(model, records, verdict=found.verdict().text)


def measured(models: Sequence[str], work: Callable[[str], Measured], workers: int) -> Iterator[list[Measured]]:
    """After each model that is finished, all that are finished by then, in the order of `models`."""
    done: dict[str, Measured] = {}
    results = shared(work, models, workers, _killed)
    for one in cli.followed(results, len(models), "models"):
        done[one.model] = one
        yield [done[model] for model in models if model in done]


def _killed(model: str, how: str) -> Measured:
    return Measured(model, (), f"{how}, also when it was tried again")


def program(arguments: argparse.Namespace) -> int:
    """Measures the chosen models, prints the table and writes the files."""
    if arguments.store is not None:
        check_store(arguments)
    else:
        cli.check_outputs(arguments)
    cli.check_guides(arguments.guides)
    with cli.loading():
        from ppl_vi.comparison.comparison import FitSettings
        from ppl_vi.report import matrix
        from ppl_vi.runtime.memory import share

        guides = cli.chosen_guides(arguments.guides, QUICK_GUIDES if arguments.quick else GUIDES)
    models = list(dict.fromkeys(arguments.models or (QUICK_MODELS if arguments.quick else MODELS)))
    counts: dict[str, Any] = cli.QUICK if arguments.quick else FULL
    workers = cli.num_workers_within(arguments.max_memory, cli.num_workers(len(models), "cpu"))
    settings = FitSettings(seed=arguments.seed, max_memory=share(arguments.max_memory, workers), **counts)
    if arguments.store is not None:
        return _store(arguments, models, guides, settings)
    found: list[Measured] = []
    with signals.saving(last=True):
        try:
            with signals.working():
                wake(workers, "ppl_vi.model_comparison")
                for found in measured(models, partial(measure, guides, settings), workers):
                    cli.write_records(_records(found), arguments)
        except KeyboardInterrupt:
            if _records(found):
                _show(found, arguments)
            return cli.interrupted(len(found), len(models), "models were finished", arguments)
        for one in found:
            if one.reason:
                print(f"{one.model} is not measured: {one.reason}", file=sys.stderr)
        if not _records(found):
            raise cli.UsageError("none of the models could be measured")
        _show(found, arguments)
        heat_map = arguments.out / "heat_map.png"
        return cli.drawn(lambda: cli.write_figure(heat_map, matrix.heat_map(_records(found))), arguments)


def _store(arguments: argparse.Namespace, models: Sequence[str], guides: Sequence[str], settings: FitSettings) -> int:
    """The same fits as a sweep."""
    with cli.loading():
        from models import ZOO
    return sweep_into_store(arguments, [{"target": ZOO[name], "name": name} for name in models], guides, settings)


def _show(found: Sequence[Measured], arguments: argparse.Namespace) -> None:
    """Writes the tables and prints that of all models, with a verdict on each, or by `--full` all columns of each."""
    from ppl_vi.report import files, matrix, table

    records, done = _records(found), [one for one in found if one.records]
    full = partial(table.show, verdicts=[one.verdict for one in done])
    both = partial(_show_both, verdicts={one.model: one.verdict for one in done})
    cli.write_records(records, arguments)
    write_output_text(arguments.out / "records.csv", files.to_csv(records))
    write_output_text(arguments.out / "table.txt", table.as_text(records, both) + "\n" + table.as_text(records, full))
    write_output_text(arguments.out / "table.md", matrix.as_markdown(records))
    cli.show_records(records, arguments, full if arguments.full_table else both)
    cli.write_page(records, arguments)


def _show_both(records: Sequence[dict[str, Any]], console: Console, verdicts: dict[str, str]) -> None:
    """Prints the table of all models, and below it the verdict on each."""
    from ppl_vi.report import matrix

    matrix.show(records, console)
    for model, verdict in verdicts.items():
        if verdict:
            console.print(Text(f"\n{model}: {verdict}"), highlight=False)


def _records(found: Sequence[Measured]) -> list[dict[str, Any]]:
    return [record for one in found for record in one.records]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit code."""
    return cli.run(program, parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
