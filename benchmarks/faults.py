"""Tries what can go wrong, class by class, and says what happened: no wrong number, no raw error, nothing lost.

    python -m benchmarks.faults [--quick] [--classes NAME ...] [--out DIR]

Each class is one line in `CLASSES`: a function that takes a `Trials` and tells it the outcome of each trial. The table
goes to standard output and, in Markdown, to results/faults/table.md; `docs/reliability.md` shows it. The exit code is 1
where a trial went wrong.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.faults_code import planted_caches, planted_families
from benchmarks.faults_files import damaged_checkpoints, damaged_draws, damaged_fits, forged_fits
from benchmarks.faults_processes import interrupts_in_python, killed_workers, signals_at_random_moments
from benchmarks.faults_shell import bad_numbers, odd_outputs
from benchmarks.faults_threads import calls_in_threads
from benchmarks.faults_trials import Trials
from ppl_vi import cli
from ppl_vi.runtime.outputs import write_output_text

OUT = Path("results/faults")


@dataclass(frozen=True)
class FaultClass:
    """A class of faults.

    Attributes:
        title: what is tried, as the table says it.
        run: tries it.
        num: how many trials of it, with `--quick` a tenth; 0 where it has a fixed table of them.
    """

    title: str
    run: Callable[[Trials], None]
    num: int = 0


def each(trials_of: Callable[[int, int, Path], Iterator[str]], well: str) -> Callable[[Trials], None]:
    """A class whose trials say what went wrong, or "" where they ended `well`."""

    def run(trials: Trials) -> None:
        for fault in trials_of(trials.num, trials.seed, trials.folder):
            trials.tell("faults" if fault else well, fault)

    return run


KEPT = "ended with every reported row kept, the right exit code and no process left"
CLASSES: dict[str, FaultClass] = {
    "damaged_fits": FaultClass("saved fits: cut, flipped, overwritten, swapped, repeated", damaged_fits, 1500),
    "forged_fits": FaultClass("saved fits: other headers, shapes and dtypes, bombs, with a digest", forged_fits, 400),
    "damaged_checkpoints": FaultClass("checkpoints of a training: the same damage", damaged_checkpoints, 300),
    "damaged_draws": FaultClass("cached reference draws: the same damage", damaged_draws, 300),
    "planted_families": FaultClass("saved fits that name other people's code", planted_families),
    "planted_caches": FaultClass("compiled code in caches that others own or may write", planted_caches),
    "odd_outputs": FaultClass("outputs: devices, pipes, links, full disks, impossible names", odd_outputs),
    "bad_numbers": FaultClass("arguments that are no good, answered before torch is imported", bad_numbers),
    "signals": FaultClass(
        "Ctrl-C, SIGTERM, SIGHUP and kill -9 at random moments", each(signals_at_random_moments, KEPT), 100
    ),
    "killed_workers": FaultClass(
        "a worker process killed at a random moment", each(killed_workers, "fitted again, no row lost"), 20
    ),
    "threads": FaultClass(
        "several threads at once, some with models that fail",
        each(calls_in_threads, "each as alone, settings put back"),
        100,
    ),
    "interrupts_in_python": FaultClass(
        "Ctrl-C at random moments in `ppl_vi.compare`",
        each(interrupts_in_python, "finished rows handed over, settings put back"),
        20,
    ),
}


@dataclass(frozen=True)
class Row:
    """What came of a class of faults.

    Attributes:
        title: the class.
        outcomes: how many trials ended how.
        wrong: what should not have happened, one text a trial.
    """

    title: str
    outcomes: Counter[str]
    wrong: list[str] = field(default_factory=list)

    @property
    def cells(self) -> list[str]:
        """The row of the table."""
        what = ", ".join(f"{number} {outcome}" for outcome, number in self.outcomes.most_common())
        return [self.title, str(sum(self.outcomes.values())), what, str(len(self.wrong)) if self.wrong else "none"]


HEADINGS = ("faults", "trials", "what happened", "went wrong")


def as_markdown(rows: Sequence[Row]) -> str:
    """The table of `docs/reliability.md`."""
    lines = [HEADINGS, ("---", "---:", "---", "---"), *(row.cells for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def tried(chosen: Sequence[str], seed: int, quick: bool) -> list[Row]:
    """Tries classes of faults, each in a folder of its own."""
    rows = []
    for name in cli.followed(chosen, len(chosen), "classes of faults"):
        one = CLASSES[name]
        with tempfile.TemporaryDirectory(prefix="ppl_vi_faults_") as folder:
            trials = Trials(Path(folder), one.num // 10 if quick else one.num, seed)
            with _quiet():
                one.run(trials)
        rows.append(Row(one.title, trials.outcomes, trials.wrong))
    return rows


@contextmanager
def _quiet() -> Iterator[None]:
    """Leaves out the lines of the log, since each cache that is refused would be one."""
    log = logging.getLogger("ppl_vi")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def program(arguments: argparse.Namespace) -> int:
    """Tries, shows, writes."""
    from rich import box
    from rich.table import Table

    from ppl_vi.report import table

    cli.writable_folder("--out", arguments.out)
    rows = tried(arguments.classes or list(CLASSES), arguments.seed, arguments.quick)
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in HEADINGS:
        shown.add_column(heading, justify="right" if heading == "trials" else "left")
    for row in rows:
        shown.add_row(*row.cells)
    table.terminal().print(shown)
    for row in rows:
        for text in row.wrong[:10]:
            print(f"{row.title}: {text}", file=sys.stderr)
    write_output_text(arguments.out / "table.md", as_markdown(rows))
    return 1 if any(row.wrong for row in rows) else 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = cli.Parser(prog="faults", description=(__doc__ or "").splitlines()[0])
    found.add_argument(
        "--classes", nargs="+", metavar="NAME", choices=list(CLASSES), help=f"{', '.join(CLASSES)} (all)"
    )
    found.add_argument("--quick", action="store_true", help="a tenth of the trials")
    cli.add_seed(found)
    cli.add_out(found, OUT)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit code."""
    return cli.run(program, parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
