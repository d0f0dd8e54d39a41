"""What the programs that measure whole verbs share: a process of its own for each measurement, clocks, cells.

Each process has one thread on one core, and a folder of its own for what ppl_vi keeps: compiled code and truths.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks import speed
from benchmarks.speed_models import MODELS
from benchmarks.speed_process import INDUCTOR_CACHE, THREAD_VARIABLES
from benchmarks.speed_split import processor_seconds
from benchmarks.vae_speed import one_core
from ppl_vi import cli
from ppl_vi.runtime.environment import environment
from ppl_vi.runtime.outputs import write_output_text

Record = dict[str, Any]
Rows = Sequence[Sequence[str]]
MISSING = "–"


def in_own_process(folder: Path, measure: Callable[..., Record], *arguments: Any) -> Record:
    """What `measure` finds in a new process; where it fails, why, as `{"missing": reason}`.

    Args:
        folder: where the process keeps compiled code; what was kept there before is found again.
        measure: a function at the top of a module.
        arguments: what it is given.
    """
    with environment(_own_folder(folder)), one_core(), multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_reported, (measure, *arguments))


def _reported(measure: Callable[..., Record], *arguments: Any) -> Record:
    """The record; what libraries print meanwhile goes nowhere."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return measure(*arguments)
    except Exception as error:  # one measurement that fails becomes a row that says so
        return {"missing": " ".join(f"{type(error).__name__}: {error}".split())[:200]}


@contextmanager
def fresh_folder() -> Iterator[Path]:
    """A folder in which nothing is kept yet."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def _own_folder(folder: Path) -> dict[str, str]:
    """The variables by which a process keeps its files in this folder, and computes on one thread.

    Matplotlib's list of the fonts, which it makes once on each machine, stays where it is.
    """
    caches = {
        "XDG_CACHE_HOME": str(folder),
        INDUCTOR_CACHE: str(folder / "inductor"),
        "MPLCONFIGDIR": matplotlib.get_cachedir(),
    }
    return caches | dict.fromkeys(THREAD_VARIABLES, "1")


def timed(run: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of processor time and by the clock that a run takes."""
    processor, clock = processor_seconds(), time.perf_counter()
    run()
    return processor_seconds() - processor, time.perf_counter() - clock


def rounds(runs: dict[str, Callable[[], Any]], most: int, seconds: float) -> dict[str, list[float]]:
    """Processor seconds of runs that take turns: `most` of each, fewer once `seconds` are spent, but at least one."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    spent = 0.0
    for number in range(most):
        if number and spent > seconds:
            break
        for name, run in runs.items():
            found[name].append(timed(run)[0])
        spent += sum(times[-1] for times in found.values())
    return found


def seconds_cell(value: float | None) -> str:
    """Three digits, at most microseconds."""
    if value is None:
        return MISSING
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def spread_cell(times: Sequence[float]) -> str:
    """The median, and the range of several times."""
    if not times:
        return MISSING
    median = seconds_cell(statistics.median(times))
    return f"{median} ({min(times):.2g} to {max(times):.2g})" if len(times) > 1 else median


def markdown(headings: Sequence[str], rows: Rows) -> str:
    """A table for a page."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def show(title: str, headings: Sequence[str], rows: Rows) -> None:
    """Prints a table."""
    from rich import box
    from rich.table import Table

    from ppl_vi.report import table

    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, title=title, title_justify="left")
    for place, heading in enumerate(headings):
        shown.add_column(heading, justify="right" if place else "left")
    for cells in rows:
        shown.add_row(*cells)
    table.terminal().print(shown, "", markup=False, highlight=False)


def followed(cases: Sequence[Any], measure: Callable[[Any], Record]) -> Iterator[Record]:
    """The records of cases, with a bar."""
    for case in cli.followed(cases, len(cases), "measured"):
        yield measure(case) | speed.environment(speed._core())


def measured(
    arguments: argparse.Namespace,
    cases: Sequence[Any],
    measure: Callable[[Any], Record],
    tables: Sequence[tuple[str, str, Sequence[str], Callable[[list[Record]], Rows]]],
) -> int:
    """Measures the cases of the models that are asked for, shows and writes records and tables; the exit code.

    Args:
        arguments: the options `models` and `out`.
        cases: each has a `model`.
        measure: the record of a case.
        tables: the file, the title, the headings and the cells of each table.

    Raises:
        UsageError: no such model.
    """
    from ppl_vi.report import files

    models = arguments.models or list(MODELS)
    for name in models:
        if name not in MODELS:
            raise cli.UsageError(f"unknown model '{name}'; there are {', '.join(MODELS)}")
    cli.writable_folder("--out", arguments.out)
    records: list[Record] = []
    for record in followed([case for case in cases if case.model in models], measure):
        records.append(record)
        write_output_text(arguments.out / "records.json", files.to_json(records))
    for name, title, headings, cells in tables:
        show(title, headings, cells(records))
        write_output_text(arguments.out / f"{name}.md", markdown(headings, cells(records)))
    return 0
