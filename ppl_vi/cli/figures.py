"""Draws and writes figures."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ppl_vi.cli.workers import num_workers
from ppl_vi.runtime import signals
from ppl_vi.runtime.files import write_bytes
from ppl_vi.runtime.outputs import write_output
from ppl_vi.runtime.processes import shared

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ppl_vi.comparison.comparison import Comparison


def write_figures(
    comparison: Comparison, arguments: argparse.Namespace, more_figures: Callable[[Comparison], dict[str, Figure]]
) -> None:
    """Writes all figures as PNG; says on standard error which could not be drawn because a truth is missing."""
    from ppl_vi.report import plots

    jobs: list[Callable[[], dict[str, Figure]]] = [partial(more_figures, comparison)]
    for problem, label in enumerate(comparison.labels):
        for name, draw in plots.FIGURES.items():
            jobs.append(partial(_named, f"{name}_x_{label:g}", draw, comparison, problem))
    processes = num_workers(len(comparison.entries), arguments.device)
    for said, drawings in shared(_drawings, jobs, processes, _left_out):
        if said:
            print(said, file=sys.stderr)
        for name, content in drawings.items():
            write_output(arguments.out / f"{name}.png", partial(write_bytes, content=content))


def _named(
    name: str, draw: Callable[[Comparison, int], Figure], comparison: Comparison, problem: int
) -> dict[str, Figure]:
    return {name: draw(comparison, problem)}


def _left_out(_: Callable[[], dict[str, Figure]], how: str) -> tuple[str, dict[str, bytes]]:
    """What is said of figures whose process was killed."""
    return f"a figure is left out: {how}", {}


def _drawings(draw: Callable[[], dict[str, Figure]]) -> tuple[str, dict[str, bytes]]:
    """Why there are no figures, or "", and PNG files by name, which the process that is told writes."""
    from ppl_vi.report import files
    from ppl_vi.truth import UncertifiedTruthError

    try:
        return "", {name: files.to_png(figure) for name, figure in draw().items()}
    except UncertifiedTruthError as error:
        return f"a figure is left out: {error}", {}


def write_figure(path: Path, figure: Figure) -> None:
    """Writes a figure, as `ppl_vi.runtime.outputs.write_output` does."""
    from ppl_vi.report import files

    write_output(path, lambda place: files.write_figure(place, figure))


def interrupted(done: int, total: int, what: str, arguments: argparse.Namespace) -> int:
    """Says what was finished, and written, before a signal; the exit code."""
    where = f"; they are in {arguments.out}" if done else ""
    print(f"{signals.word()}: {done} of {total} {what}{where}", file=sys.stderr)
    return signals.exit_code()


def drawn(draw: Callable[[], None], arguments: argparse.Namespace) -> int:
    """Draws the figures, which is the last that a program does, unless `--no-plots` is given; the exit code."""
    if arguments.no_plots:
        return 0
    try:
        with signals.working():
            draw()
    except KeyboardInterrupt:
        print(f"{signals.word()}: not all figures were drawn; the tables are in {arguments.out}", file=sys.stderr)
        return signals.exit_code()
    return 0
