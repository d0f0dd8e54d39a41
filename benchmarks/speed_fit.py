"""What a user waits for: a whole `fit`, beside whole runs of NumPyro and PyMC with as many steps and draws.

    python -m benchmarks.speed_fit [--quick] [--rounds N] [--models NAME ...]

Ours is `ppl_vi.fit`: its start, its preconditioners, its steps and its convergence checks. NumPyro is timed on two
paths, neither of which checks anything: `SVI.init` and a `fori_loop` of `SVI.update`, mapped over the fits and jitted
as a whole, the fastest that can be had; and, for one fit, `SVI.run` as a user calls it, without its progress bar, which
compiles anew at every call. PyMC's is `pm.fit` by ADVI, for one fit, which compiles at every call, too.

All compute in double precision with AutoNormal on one core and one thread. Each case has processes of its own: a first
run of each side with nothing compiled before, then rounds in which the sides take turns. All times are seconds of
processor time, the C++ compiler's included. A last table has our fits at their default settings, alone. A library that
is not installed has columns that say so.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.speed_fit_cases import FULL, QUICK, Case
from benchmarks.speed_models import MODELS, target_of
from benchmarks.speed_split import Split
from benchmarks.speed_whole import (
    MISSING,
    Record,
    fresh_folder,
    in_own_process,
    measured,
    rounds,
    seconds_cell,
    spread_cell,
    timed,
)
from ppl_vi import cli

OUT = Path("results/speed_fit")
ROUND_SECONDS = 10.0  # no round begins once so many seconds are spent; the first always does
RUN_ROUNDS = 2  # runs of `SVI.run` and `pm.fit` after the first; they compile each time, so they vary little
# Fits with kept code, `SVI.run` and `pm.fit` are measured on one fit of so many rows: they show what it costs to begin.
MIN_PEER_ROWS, MAX_PEER_ROWS = 50, 500
FIT_PARTS = ("ready", "steps", "checks", "rest")
NOT_INSTALLED = "not installed"


# ---- the measurement


def our_run(case: Case) -> Callable[..., Any]:
    """A whole fit of ours; by the compiled engine where the number of steps is given, else by what `fit` chooses."""
    from pyro.infer.autoguide import AutoNormal

    import ppl_vi

    settings: dict[str, Any] = {"num_replicas": case.replicas, "seed": 0}
    if case.particles != "auto":
        settings |= {"num_particles": case.particles, "num_steps": case.steps, "engine": "compiled"}
    return partial(ppl_vi.fit, target_of(case.model, case.rows), AutoNormal, **settings)


def first_of_ours(case: Case, run: Callable[..., Any]) -> Record:
    """The first fit of a process, and what its time was spent on."""
    split = Split()
    fitted: list[Any] = []
    seconds, clock = timed(lambda: fitted.append(run(progress=split)))
    return {
        "first": seconds,
        "first_clock": clock,
        "first_split": split.seconds(),
        "engine": fitted[0].engine,
        "num_steps": int(statistics.median(fitted[0].num_steps.ravel().tolist())),
        "num_converged": int((fitted[0].status == "converged").sum()),
    }


def measure(case: Case, num_rounds: int) -> Record:
    """Our fits and, where the case has a like there, NumPyro's compiled loop, in this process."""
    ours = our_run(case)
    runs: dict[str, Callable[[], Any]] = {"ours": ours}
    found: dict[str, Record] = {"ours": first_of_ours(case, ours)}
    if case.particles != "auto" and installed("jax", "numpyro"):
        from benchmarks.speed_peer_models import numpyro_loop

        runs["numpyro"] = numpyro_loop(case.model, case.rows, case.replicas, case.particles, case.steps)
        seconds, clock = timed(runs["numpyro"])
        found["numpyro"] = {"first": seconds, "first_clock": clock}
    for side, times in rounds(runs, num_rounds, ROUND_SECONDS).items():
        found[side]["later"] = times
    split = Split()
    ours(progress=split)
    found["ours"]["later_split"] = split.seconds()
    return found


def measure_kept(case: Case) -> Record:
    """Our first fit in a process that finds its code compiled."""
    return first_of_ours(case, our_run(case))


def measure_peer(case: Case, peer: str) -> Record:
    """Runs of NumPyro's `SVI.run` or PyMC's `pm.fit` in this process."""
    from benchmarks import speed_peer_models

    assert case.particles != "auto"
    make = {"numpyro_run": speed_peer_models.numpyro_run, "pymc": speed_peer_models.pymc_run}[peer]
    run = make(case.model, case.rows, case.particles, case.steps)
    first, clock = timed(run)
    return {"first": first, "first_clock": clock, "later": [timed(run)[0] for _ in range(RUN_ROUNDS)]}


PEERS = {"numpyro_run": ("jax", "numpyro"), "pymc": ("pymc",)}


def record_of(case: Case, num_rounds: int) -> Record:
    """One case, in processes of its own."""
    with fresh_folder() as folder:
        found = in_own_process(folder, measure, case, num_rounds)
        if case.particles == "auto" or "missing" in found:
            return asdict(case) | found
        if case.replicas == 1 and MIN_PEER_ROWS <= case.rows <= MAX_PEER_ROWS:
            found["kept"] = in_own_process(folder, measure_kept, case)
            for peer in [name for name, needed in PEERS.items() if installed(*needed)]:
                found[peer] = in_own_process(folder, measure_peer, case, peer)
    return asdict(case) | found


def installed(*packages: str) -> bool:
    """Whether all packages can be imported."""
    return all(find_spec(package) is not None for package in packages)


# ---- the tables

HEADINGS = (
    "model, AutoNormal", "rows", "fits x draws x steps", "first fit, s", "code kept", "NumPyro's loop",
    "a later fit, s", "NumPyro's loop, compiled", "ours / NumPyro's", "NumPyro's `SVI.run`", "PyMC's `pm.fit`",
)  # fmt: skip
SPLIT_HEADINGS = (
    "model, AutoNormal", "rows", "fits x draws x steps", "first: ready", "steps", "checks", "rest", "later: ready",
    "steps", "checks", "rest", "NumPyro's loop",
)  # fmt: skip
DEFAULT_HEADINGS = (
    "model, AutoNormal, default settings", "rows", "fits", "engine", "steps", "converged", "first fit, s",
    "a later fit, s", "ready", "steps", "checks", "rest",
)  # fmt: skip


def fit_rows(records: Sequence[Record]) -> list[list[str]]:
    """The cells of whole fits beside the other libraries'."""
    return [[*_case(record), *_fit_cells(record)] for record in records if record["particles"] != "auto"]


def _fit_cells(record: Record) -> list[str]:
    if "missing" in record:
        return [record["missing"], *[MISSING] * (len(HEADINGS) - 4)]
    ours, kept, theirs = record["ours"], record.get("kept", {}), record.get("numpyro")
    first = [seconds_cell(ours["first"]), seconds_cell(kept.get("first"))]
    peers = [spread_cell(record[peer].get("later", ())) if peer in record else MISSING for peer in PEERS]
    if theirs is None:
        return [*first, NOT_INSTALLED, spread_cell(ours["later"]), NOT_INSTALLED, MISSING, *peers]
    ratio = statistics.median(a / b for a, b in zip(ours["later"], theirs["later"], strict=True))
    warm = [spread_cell(side["later"]) for side in (ours, theirs)]
    return [*first, seconds_cell(theirs["first"]), *warm, f"{ratio:.2g}", *peers]


def split_rows(records: Sequence[Record]) -> list[list[str]]:
    """The cells that say what our fits spend their time on."""
    return [
        [*_case(record), *_parts(record, "first_split"), *_parts(record, "later_split"), _loop(record)]
        for record in records
        if record["particles"] != "auto" and "missing" not in record
    ]


def default_rows(records: Sequence[Record]) -> list[list[str]]:
    """The cells of our fits at their default settings."""
    return [_default_row(record) for record in records if record["particles"] == "auto"]


def _default_row(record: Record) -> list[str]:
    title, rows, _ = _case(record)
    start = [title, rows, f"{record['replicas']:,}"]
    if "missing" in record:
        return [*start, record["missing"], *[MISSING] * (len(DEFAULT_HEADINGS) - 4)]
    ours = record["ours"]
    taken = [f"{ours['num_steps']:,}", f"{ours['num_converged']:,} of {record['replicas']:,}"]
    times = [seconds_cell(ours["first"]), spread_cell(ours["later"])]
    return [*start, ours["engine"], *taken, *times, *_parts(record, "later_split")]


def _case(record: Record) -> list[str]:
    sizes = f"{record['replicas']:,} x {record['particles']} x {record['steps']}"
    return [MODELS[record["model"]].title, f"{record['rows']:,}", sizes]


def _parts(record: Record, which: str) -> list[str]:
    return [f"{record['ours'][which][part]:.2g}" for part in FIT_PARTS]


def _loop(record: Record) -> str:
    return seconds_cell(statistics.median(record["numpyro"]["later"])) if "numpyro" in record else NOT_INSTALLED


TABLES = (
    ("fits", "Whole fits, seconds of processor time", HEADINGS, fit_rows),
    ("split", "What they are spent on, seconds of processor time", SPLIT_HEADINGS, split_rows),
    ("defaults", "Whole fits at default settings, seconds of processor time", DEFAULT_HEADINGS, default_rows),
)

# ---- the program


def program(arguments: argparse.Namespace) -> int:
    """Measures, shows, writes."""
    cases = QUICK if arguments.quick else FULL
    return measured(arguments, cases, partial(record_of, num_rounds=arguments.rounds), TABLES)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = cli.Parser(prog="speed_fit", description=(__doc__ or "").splitlines()[0])
    found.add_argument("--models", nargs="+", metavar="NAME", help=f"{', '.join(MODELS)} (all)")
    found.add_argument("--quick", action="store_true", help="three cases")
    found.add_argument("--rounds", type=cli.whole(1), default=5, metavar="N", help="later runs of each side (5)")
    cli.add_out(found, OUT)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit code."""
    return cli.run(program, parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
