"""Kills sweeps, and workers of sweeps, at random moments: the rows must be those of a sweep that nothing disturbed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.dask_cluster import ROOT, Cluster, descendants, started

MODEL = """
from models import exponential_normal

target = exponential_normal.target([0.5, 1.5])
"""
PLAN = """
models = ["toy_model:target"]
guides = ["lognormal", "gamma", "exponential"]
lr = [0.05, 0.1, 0.2]
num_steps = 100
engine = "batched"
num_draws = 100
seed = "0:10"
"""
NUM_FITS = 3 * 3 * 2 * 10
LIMIT_SECONDS = 300.0
# A kill comes so many seconds, at most, after a number of fits that is drawn, too.
MOST_SECONDS = 1.5

Rows = dict[tuple[Any, ...], tuple[str, ...]]


@dataclass
class Trials:
    """What happened: how many sweeps were killed, how many workers, how many sweeps were run, and what went wrong."""

    way: str
    parents: int = 0
    workers: int = 0
    sweeps: int = 0
    wrong: list[str] = field(default_factory=list)


def killed(folder: Path, num_kills: int, seed: int) -> tuple[list[Sequence[str]], list[str]]:
    """A table of the ways of running and what was killed, and a line for each thing that went wrong."""
    whole = rows_of(_undisturbed(folder / "undisturbed"))
    found = [_trials("processes of this machine", folder / "local", whole, num_kills, seed, None)]
    (folder / "dask").mkdir()
    with started(folder / "dask", allowed_failures=3) as cluster:
        found.append(_trials("Dask cluster", folder / "cluster", whole, num_kills, seed, cluster))
    table = [("", "sweeps killed", "workers killed", "fits", "other than undisturbed")]
    table += [
        (one.way, f"{one.parents}", f"{one.workers}", f"{len(whole)}", f"{len(one.wrong)}" if one.wrong else "none")
        for one in found
    ]
    return list(table), [f"{one.way}: {line}" for one in found for line in one.wrong]


def rows_of(file: Path) -> Rows:
    """What a file has now, without what it took; {} where there is no file yet."""
    from ppl_vi.sweeps.checks import StoreError
    from ppl_vi.sweeps.results import table_of

    try:
        names, rows = table_of(file)
    except StoreError as error:
        if "there are no results" not in str(error):
            raise
        return {}
    at = [names.index(name) for name in ("key", "problem", "seed")]
    kept = [i for i, name in enumerate(names) if not name.endswith("_seconds")]
    found = {tuple(row[i] for i in at): tuple(repr(row[i]) for i in kept) for row in rows}
    if len(found) != len(rows):
        raise RuntimeError("a row is there twice")
    return found


def _undisturbed(folder: Path) -> Path:
    _prepare(folder)
    with _sweep(folder, "--workers", "1") as process:
        _, errors = process.communicate(timeout=LIMIT_SECONDS)
    if process.returncode:
        raise RuntimeError(f"the sweep that nothing disturbs fails: {errors}")
    return folder / "plan.db"


def _prepare(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "toy_model.py").write_text(MODEL)
    (folder / "plan.toml").write_text(PLAN)


@contextmanager
def _sweep(folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """The command line at work on the plan, which is ended at the end of the block."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-m", "ppl_vi", "sweep", "plan.toml", *options],
        cwd=folder, env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _trials(way: str, folder: Path, whole: Rows, num_kills: int, seed: int, cluster: Cluster | None) -> Trials:
    """As many kills as are asked for, of sweeps and of workers in turn; one that is whole begins anew."""
    trials, chance = Trials(way), random.Random(seed)
    options = ("--workers", "2") if cluster is None else ("--cluster", cluster.address)
    _prepare(folder)
    while trials.parents + trials.workers < num_kills:
        if len(rows_of(folder / "plan.db")) == len(whole):
            _prepare(folder)
        _trial(trials, folder, whole, options, cluster, chance)
    with _sweep(folder, *options) as process:
        process.communicate(timeout=LIMIT_SECONDS)
    if rows_of(folder / "plan.db") != whole:
        trials.wrong.append("at the end the rows are not those of an undisturbed sweep")
    return trials


def _trial(
    trials: Trials, folder: Path, whole: Rows, options: Sequence[str], cluster: Cluster | None, chance: random.Random
) -> None:
    file = folder / "plan.db"
    before = rows_of(file)
    with _sweep(folder, *options) as process:
        trials.sweeps += 1
        _wait(file, process, min(len(before) + chance.randrange(60), len(whole) - 1))
        time.sleep(chance.uniform(0, MOST_SECONDS))
        reported = rows_of(file)
        if process.poll() is not None:
            return
        if chance.random() < 0.5:
            process.kill()
            trials.parents += 1
        else:
            victims = descendants(process.pid) if cluster is None else cluster.workers()
            if victims:
                with suppress(ProcessLookupError):
                    os.kill(chance.choice(victims), signal.SIGKILL)
                    trials.workers += 1
        _, errors = process.communicate(timeout=LIMIT_SECONDS)
        if process.returncode not in (0, -signal.SIGKILL):
            trials.wrong.append(f"exit code {process.returncode}: {errors.strip()[-200:]}")
    after = rows_of(file)
    if not before.keys() <= reported.keys() <= after.keys():
        trials.wrong.append("a row that was there is lost")
    trials.wrong += [f"{key} has other numbers" for key, row in after.items() if whole.get(key) != row]


def _wait(file: Path, process: subprocess.Popen[str], num_fits: int) -> None:
    """Waits until so many fits are stored, or the process has ended."""
    until = time.monotonic() + LIMIT_SECONDS
    while process.poll() is None and time.monotonic() < until and len(rows_of(file)) < num_fits:
        time.sleep(0.05)
