"""Compares guides as the options ask, writes after each, and shows the tables at the end."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console

from ppl_vi.cli.checks import check_comparison
from ppl_vi.cli.codes import UNCERTIFIED
from ppl_vi.cli.figures import drawn, interrupted, write_figures
from ppl_vi.cli.guides import list_guides, prepared, woken
from ppl_vi.cli.page import has_curves, write_report
from ppl_vi.cli.parsing import UsageError
from ppl_vi.cli.records import show_comparison, write_comparison
from ppl_vi.runtime import garbage, signals, verbosity
from ppl_vi.runtime.display import following
from ppl_vi.runtime.memory import MemoryBoundError, bounded
from ppl_vi.runtime.stages import stage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ppl_vi.comparison.comparison import Comparison
    from ppl_vi.target.target import Target

SomeComparison = TypeVar("SomeComparison", bound="Comparison")


def compare_command(
    arguments: argparse.Namespace,
    make_target: Callable[[], Target],
    labels: Sequence[float],
    quick_guides: Sequence[str],
    more_figures: Callable[[Comparison], dict[str, Figure]],
) -> int:
    """Compares families on a target as the options ask, shows the tables and writes everything; the exit code.

    Args:
        arguments: the options of `add_comparison_options`.
        make_target: called once all arguments have been found good.
        labels: the number by which each of the target's problems goes.
        quick_guides: the families that `--quick` compares.
        more_figures: draws the program's own figures, by file name without ending.

    Raises:
        UsageError: the arguments ask for what can't be done.
    """
    if arguments.list_guides:
        list_guides(Console())
        return 0
    modules = ("ppl_vi.comparison.comparison", "ppl_vi.report.plots")
    default = quick_guides if arguments.quick else None
    check_comparison(arguments)
    with loading(), signals.starting(), garbage.imports_kept():
        woken(arguments, default, modules)
        guides, settings, processes = prepared(arguments, default, modules)
        from ppl_vi.comparison.comparison import Comparison
        from ppl_vi.truth import UncertifiedTruthError, ground_truth

    progress = on_terminal()
    try:
        with following(progress), bounded(settings.max_memory):
            target = make_target().to(arguments.device)
            comparison = Comparison(target, ground_truth(target), settings, tuple(labels))
    except (UncertifiedTruthError, MemoryBoundError) as error:
        raise UsageError(f"there is no truth to measure by: {error}") from error
    except ValueError as error:  # data where the model has no density
        raise UsageError(str(error)) from error
    code, _ = run_comparison(
        comparison,
        guides,
        processes,
        arguments,
        lambda done: write_figures(done, arguments, more_figures),
        "ppl_vi.report.plots",
        progress,
    )
    return code


@contextmanager
def loading() -> Iterator[None]:
    """Says, before the first import that takes seconds, that the program has begun."""
    with following(True), stage("loading Pyro and the model"):
        yield


def on_terminal() -> bool:
    """Whether standard error is a terminal, or more is to be told than usual."""
    return verbosity.is_verbose() or (sys.stderr is not None and sys.stderr.isatty())


def run_comparison(
    comparison: SomeComparison,
    guides: Sequence[str],
    processes: int,
    arguments: argparse.Namespace,
    draw: Callable[[SomeComparison], None],
    figures: str,
    progress: bool,
) -> tuple[int, SomeComparison]:
    """Compares the guides, writes after each, shows the tables and draws; the exit code and what is finished.

    Args:
        comparison: has the truth.
        guides: the guides.
        processes: how many share the guides.
        arguments: the options of `add_comparison_options`.
        draw: draws the figures.
        figures: the module that draws them, which takes a while to import.
        progress: whether to show how far it has come.
    """
    from ppl_vi.comparison.run import compare_each

    with_curves = has_curves(arguments)
    with signals.saving(last=True):
        try:
            with signals.working(), following(progress):
                for comparison in compare_each(  # noqa: B020, each has one entry more
                    comparison, guides, num_workers=processes, with_curves=with_curves
                ):
                    write_comparison(comparison, arguments)
                    if with_curves:
                        importlib.import_module(figures)  # while other processes are at work
        except KeyboardInterrupt:
            done = len(comparison.entries)
            if done:
                write_comparison(comparison, arguments)  # the signal may have cut the last writing short
                show_comparison(comparison, arguments)
            return interrupted(done, len(guides), "families were finished", arguments), comparison
        show_comparison(comparison, arguments)
        write_report(comparison, arguments)
        code = drawn(lambda: _drawn_with_progress(draw, comparison, progress), arguments)
        return code or (0 if comparison.truth.trusted.all() else UNCERTIFIED), comparison


def _drawn_with_progress(draw: Callable[[SomeComparison], None], comparison: SomeComparison, progress: bool) -> None:
    with following(progress), stage("figures"):
        draw(comparison)
