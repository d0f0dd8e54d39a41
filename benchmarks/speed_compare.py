"""What a user waits for: a whole `compare` of two guides, and what its time is spent on.

    python -m benchmarks.speed_compare [--quick] [--long] [--rounds N] [--models NAME ...]

`ppl_vi.compare` with AutoNormal and AutoMultivariateNormal at its default settings, in double precision: starts, steps,
convergence checks, the truth, the best member of each family, and all scores. Each run has a process of its own with
one thread on one core, nothing compiled and no truth kept from before. The times are seconds of processor time, the C++
compiler's included. The command line shares the guides between two processes; this does not.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from benchmarks.speed_models import MODELS, target_of
from benchmarks.speed_split import PARTS, OverTimeError, Split
from benchmarks.speed_whole import (
    MISSING,
    Record,
    fresh_folder,
    in_own_process,
    measured,
    seconds_cell,
    spread_cell,
)
from ppl_vi import cli

OUT = Path("results/speed_compare")
MAX_SECONDS = 300.0  # of processor time that a comparison may take; with --long it has LONG_SECONDS
LONG_SECONDS = 1800.0
REPEATED_SECONDS = 20.0  # a comparison that took longer is not run again


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        model: a name of `speed_models.MODELS`.
        rows: of the data.
        most: seconds of processor time after which it is broken off.
    """

    model: str
    rows: int
    most: float = MAX_SECONDS


CASES = (
    Case("logistic", 500),
    Case("poisson", 200),
    Case("hierarchy", 160),
    Case("negative_binomial", 200),
    Case("mixture", 200),
    Case("logistic", 5_000),
    Case("logistic", 100_000),
    Case("gaussian_process", 50),
)
LONG = (Case("logistic", 1_000_000, LONG_SECONDS),)
QUICK = (Case("poisson", 200),)
HEADINGS = ("model", "rows", "whole, s", *PARTS, "truth by", "its grade", "log p(x)")


def measure(case: Case) -> Record:
    """One comparison, in this process."""
    import numpy as np

    import ppl_vi

    target, compare = target_of(case.model, case.rows), ppl_vi.compare  # imported before the time begins
    split = Split(most=case.most)
    try:
        found = compare(target, ["AutoNormal", "AutoMultivariateNormal"], seed=0, progress=split)
    except OverTimeError as error:
        return {"split": split.seconds(), "missing": str(error)}
    seconds, truth = split.seconds(), found.truth
    return {
        "split": seconds,
        "status": [record["status"] for record in found.records()],
        "truth": truth.method,
        "grade": str(truth.grade),
        "log_evidence": float(truth.log_evidence[0]),
        "log_evidence_error": float(truth.log_evidence_error[0]),
        "log_evidence_std_error": float(np.broadcast_to(truth.log_evidence_std_error, 1)[0]),
    }


def record_of(case: Case, num_rounds: int) -> Record:
    """One case: its runs, each in a process that finds nothing kept; the split is that of the median run."""
    runs: list[Record] = []
    for _ in range(num_rounds):
        with fresh_folder() as folder:
            runs.append(in_own_process(folder, measure, case))
        if "missing" in runs[-1] or _whole(runs[-1]) > REPEATED_SECONDS:
            break
    done = sorted((run for run in runs if "split" in run), key=_whole)
    chosen = runs[-1] if "missing" in runs[-1] else done[(len(done) - 1) // 2]
    return asdict(case) | chosen | {"seconds": [_whole(run) for run in done]}


def _whole(run: Record) -> float:
    return sum(run["split"].values()) if "split" in run else float("nan")


def rows(records: Sequence[Record]) -> list[list[str]]:
    """The cells of all comparisons."""
    return [_row(record) for record in records]


def _row(record: Record) -> list[str]:
    cells = [MODELS[record["model"]].title, f"{record['rows']:,}"]
    parts = [f"{record['split'][part]:.2g}" for part in PARTS] if "split" in record else [MISSING] * len(PARTS)
    if "missing" in record:
        spent = f"> {seconds_cell(statistics.median(record['seconds']))}" if record["seconds"] else MISSING
        return [*cells, spent, *parts, record["missing"], MISSING, MISSING]
    error = max(record["log_evidence_error"], record["log_evidence_std_error"])
    value = f"{record['log_evidence']:.6g} ± {error:.1g}"
    return [*cells, spread_cell(record["seconds"]), *parts, record["truth"], record["grade"], value]


TABLES = (("compare", "Whole comparisons of two guides, seconds of processor time", HEADINGS, rows),)


def program(arguments: argparse.Namespace) -> int:
    """Measures, shows, writes."""
    cases = QUICK if arguments.quick else (*CASES, *(LONG if arguments.long else ()))
    return measured(arguments, cases, partial(record_of, num_rounds=arguments.rounds), TABLES)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = cli.Parser(prog="speed_compare", description=(__doc__ or "").splitlines()[0])
    found.add_argument("--models", nargs="+", metavar="NAME", help=f"{', '.join(MODELS)} (all)")
    found.add_argument("--quick", action="store_true", help="one case")
    found.add_argument("--long", action="store_true", help="a million rows, too")
    found.add_argument("--rounds", type=cli.whole(1), default=3, metavar="N", help="runs of each case (3)")
    cli.add_out(found, OUT)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit code."""
    return cli.run(program, parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
