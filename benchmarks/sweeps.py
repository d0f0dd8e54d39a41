"""Measures sweeps: what they cost beside bare calls, what a second worker saves, what kills cost, what is sent.

    python -m benchmarks.sweeps overhead      # the same fits by a sweep, and by one call of `fit` for each family
    python -m benchmarks.sweeps two-workers   # a cluster of one worker, and of two
    python -m benchmarks.sweeps killed        # sweeps and workers killed at random moments, here and on a cluster
    python -m benchmarks.sweeps large --num-seeds 100    # 100,000 fits by the command line, and their page in a browser
    python -m benchmarks.sweeps messages      # bytes and seconds a task, and where a scheduler would be the limit

The toy posterior with `--num-problems` observations is fitted by `--guides`, with seeds from 0 on. Clusters are Dask's
scheduler and workers at 127.0.0.1. Processor time counts; wall time depends on what else runs, and the load is told.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.dask_cluster import processor_seconds, started
from benchmarks.sweeps_killed import killed
from benchmarks.sweeps_large import large
from ppl_vi import cli

if TYPE_CHECKING:
    from ppl_vi.target.target import Target

# Tasks that do nothing, by which the scheduler's own work is measured: so many, or with so many bytes of results.
NUM_NOTHING, BYTES_OF_NOTHING = 2000, 1e8
MANY_WORKERS = 1000
MOST_TOLD = 20  # lines of what went wrong


@dataclass(frozen=True)
class Took:
    """Seconds by the clock, and seconds of a processor."""

    wall: float
    processor: float

    @staticmethod
    def by(call: Callable[[], object]) -> Took:
        """What a call takes in this process."""
        wall, processor = time.perf_counter(), time.process_time()
        call()
        return Took(time.perf_counter() - wall, time.process_time() - processor)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = cli.Parser(prog="sweeps", description=(__doc__ or "").splitlines()[0])
    found.add_argument("what", choices=("overhead", "two-workers", "killed", "large", "messages"))
    found.add_argument("--guides", nargs="+", metavar="NAME", help="families (those on positive numbers)")
    found.add_argument("--num-problems", type=cli.whole(1), default=100, metavar="N", help="observations (100)")
    found.add_argument("--num-seeds", type=cli.whole(1), default=10, metavar="N", help="seeds (10)")
    found.add_argument("--num-kills", type=cli.whole(1), default=10, metavar="N", help="kills of each kind (10)")
    cli.add_seed(found)
    return found


def toy(arguments: argparse.Namespace) -> Target:
    """The toy posterior at as many observations as are asked for, from -2 to 4."""
    import torch

    from models import exponential_normal

    return exponential_normal.target(torch.linspace(-2, 4, arguments.num_problems).tolist())


def swept(arguments: argparse.Namespace, target: Target, folder: Path, **more: Any) -> int:
    """Runs the sweep into a new file; how many fits it has."""
    import ppl_vi

    seeds = range(arguments.num_seeds)
    file = folder / f"{time.monotonic_ns()}.db"
    return sum(1 for _ in ppl_vi.sweep({"toy": target}, arguments.guides, file=file, seed=seeds, **more))


def overhead(arguments: argparse.Namespace, folder: Path) -> list[Sequence[str]]:
    """The sweep in this process, beside one call of `fit` and of `score` for each family; both after a first round."""
    import ppl_vi
    from ppl_vi.comparison.run import one_thread

    target = toy(arguments)

    def bare() -> None:
        with one_thread():
            truth = ppl_vi.ground_truth(target)
            for guide in arguments.guides:
                fitted = ppl_vi.fit(target, guide, num_replicas=arguments.num_seeds, seed=0, modes=truth.modes)
                ppl_vi.score(fitted, truth, num_draws=1000)

    few = argparse.Namespace(**{**vars(arguments), "num_seeds": 4})
    swept(few, target, folder)  # compiles what both need
    first, plain = Took.by(lambda: swept(arguments, target, folder)), Took.by(bare)
    fits = len(arguments.guides) * arguments.num_problems * arguments.num_seeds
    return [
        ("", "fits", "processor s", "wall s"),
        ("sweep", f"{fits:,}", f"{first.processor:.1f}", f"{first.wall:.1f}"),
        ("bare calls", f"{fits:,}", f"{plain.processor:.1f}", f"{plain.wall:.1f}"),
        ("sweep / bare calls", "", f"{first.processor / plain.processor:.2f}", f"{first.wall / plain.wall:.2f}"),
    ]


def two_workers(arguments: argparse.Namespace, folder: Path) -> list[Sequence[str]]:
    """The sweep on a cluster of one worker, and of two; each worker has worked before."""
    target = toy(arguments)
    rows: list[Sequence[str]] = [("workers", "fits", "wall s", "processor s of each")]
    walls, busiest = [], []
    for num in (1, 2):
        place = folder / f"{num}"
        place.mkdir()
        with started(place, num) as cluster:
            few = argparse.Namespace(**{**vars(arguments), "num_seeds": 4 * num})
            swept(few, target, place, cluster=cluster.address)
            before = {pid: processor_seconds(pid) for pid in cluster.workers()}
            began = time.perf_counter()
            fits = swept(arguments, target, place, cluster=cluster.address)
            walls.append(time.perf_counter() - began)
            spent = sorted(processor_seconds(pid) - had for pid, had in before.items())
            spent = [one for one in spent if one > 0.5]  # the others are helpers of multiprocessing
            busiest.append(spent[-1])
        rows.append((f"{num}", f"{fits:,}", f"{walls[-1]:.1f}", ", ".join(f"{one:.1f}" for one in spent)))
    rows.append(("two / one", "", f"{walls[1] / walls[0]:.2f}", f"{busiest[1] / busiest[0]:.2f} for the busiest"))
    return rows


@dataclass(frozen=True)
class Sizes:
    """What a task takes: seconds of processors, and bytes that travel.

    Attributes:
        num_fits: in the task.
        work, write: seconds of the worker, and of the process that stores for what it stores.
        schedule, receive: seconds of Dask's scheduler, and of the process that stores for what it sends and receives.
        sent, truth, back: bytes to the worker, of the truth, once a worker, and of the result.
        wall: seconds from task to task where a task does nothing.
    """

    num_fits: int
    work: float
    write: float
    schedule: float
    receive: float
    sent: int
    truth: int
    back: int
    wall: float

    def rows(self, batch_seconds: float) -> list[Sequence[str]]:
        """The table, with what follows for many workers that are sent batches of so many seconds."""
        batch_seconds = max(batch_seconds, self.work)  # a task is never cut
        rate = MANY_WORKERS / batch_seconds  # of batches a second
        storing = self.write / self.work + self.receive / batch_seconds  # of each worker
        return [
            ("of a task", ""),
            ("fits", f"{self.num_fits:,}"),
            ("worker's processor s", f"{self.work:.2f}"),
            ("bytes to the worker", f"{self.sent:,}"),
            ("bytes of the truth, once a worker", f"{self.truth:,}"),
            ("bytes back", f"{self.back:,}"),
            ("ms of the scheduler", f"{1e3 * self.schedule:.2f}"),
            ("ms of the clock where it does nothing", f"{1e3 * self.wall:.2f}"),
            ("ms of the process that stores, to send and receive", f"{1e3 * self.receive:.2f}"),
            ("ms of the process that stores, to store", f"{1e3 * self.write:.2f}"),
            (f"with {MANY_WORKERS:,} workers and batches of {batch_seconds:.0f} s", ""),
            ("scheduler busy", f"{rate * self.schedule:.0%}"),
            ("process that stores busy", f"{MANY_WORKERS * storing:.0%}"),
            ("MB a second", f"{MANY_WORKERS / self.work * (self.sent + self.back) / 1e6:.1f}"),
            ("workers at which the scheduler is the limit", f"{batch_seconds / self.schedule:,.0f}"),
            ("the same if each task were sent alone", f"{self.work / self.schedule:,.0f}"),
            ("workers at which the process that stores is the limit", f"{1 / storing:,.0f}"),
        ]


def messages(arguments: argparse.Namespace, folder: Path) -> list[Sequence[str]]:
    """What travels for a task and how long one takes, what the scheduler computes for it, and for 1,000 workers."""
    import cloudpickle

    from ppl_vi.sweeps.dask_mapper import BATCH_SECONDS
    from ppl_vi.sweeps.plan import plan_of
    from ppl_vi.sweeps.remote import Batch
    from ppl_vi.sweeps.running import Work, run
    from ppl_vi.sweeps.schema import TASK_COLUMNS
    from ppl_vi.sweeps.store import Store
    from ppl_vi.sweeps.tasks import Job, TruthJob, compute_truth, run_task, score_columns

    target = toy(arguments)
    plan = plan_of({"models": {"toy": target}, "guides": arguments.guides[:1], "seed": range(arguments.num_seeds)})
    with Store(folder / "messages.db", score_columns()) as store:
        work = Work.of(plan, store)
        outcomes = list(run(work, 1))  # compiles
        last = outcomes[-1]
        row = dict(zip(TASK_COLUMNS, store.query("SELECT * FROM tasks")[-1][1:], strict=True))
        write = Took.by(lambda: store.write_task(row, score_columns(), last.rows)).processor
    truth = compute_truth(TruthJob("toy", cloudpickle.dumps(target)))
    job = Job(last.task, arguments.guides[0], truth.comparison, "")
    took = Took.by(lambda: run_task(job)).processor
    sent = len(cloudpickle.dumps(Batch(run_task, (replace(job, comparison=None),), (0,))))
    back = len(cloudpickle.dumps(last))
    schedule, receive, wall = scheduling(folder, sent, back)
    fits = last.task.num_problems * last.task.settings.num_replicas
    sizes = Sizes(fits, took, write, schedule, receive, sent, len(truth.comparison or b""), back, wall)
    return sizes.rows(BATCH_SECONDS)


def scheduling(folder: Path, sent: int, back: int) -> tuple[float, float, float]:
    """Seconds of the scheduler, of this process and by the clock, for a task that does nothing but be as large."""
    from distributed import Client

    num = int(min(NUM_NOTHING, BYTES_OF_NOTHING / back)) + 1
    with started(folder) as cluster, Client(cluster.address, set_as_default=False) as client:
        client.wait_for_workers(2)
        client.gather([client.submit(_nothing, i, bytes(sent), back) for i in range(100)])
        had = processor_seconds(cluster.scheduler.pid)
        took = Took.by(
            lambda: client.gather([client.submit(_nothing, i, bytes(sent), back) for i in range(100, 100 + num)])
        )
        spent = processor_seconds(cluster.scheduler.pid) - had
        return spent / num, took.processor / num, took.wall / num


def _nothing(_: int, payload: bytes, size: int) -> bytes:
    return bytes(size)


def program(arguments: argparse.Namespace) -> int:
    """Measures, and prints a table; the exit code is 1 where a kill cost something."""
    from ppl_vi.guides import POSITIVE

    arguments.guides = arguments.guides or list(POSITIVE)
    with tempfile.TemporaryDirectory(prefix="ppl_vi_sweeps_") as folder:
        before = os.getloadavg()[0]
        if arguments.what == "killed":
            rows, wrong = killed(Path(folder), arguments.num_kills, arguments.seed)
        else:
            measure = {"overhead": overhead, "two-workers": two_workers, "large": large, "messages": messages}[
                arguments.what
            ]
            rows, wrong = measure(arguments, Path(folder)), []
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        for line in wrong[:MOST_TOLD]:
            print(line)
        print(f"load of the machine: {before:.1f} before, {os.getloadavg()[0]:.1f} after")
        return int(bool(wrong))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit code."""
    return cli.run(program, parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
