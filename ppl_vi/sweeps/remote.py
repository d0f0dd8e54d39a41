"""What a worker of a cluster does: it looks whether it is fit for the work, and works on a batch of jobs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cloudpickle

from ppl_vi.sweeps.keys import all_versions


class UnfitWorkerError(RuntimeError):
    """A worker must not work on a sweep; the message is one line that says why."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Jobs that one worker does, one after the other.

    Attributes:
        work: what is done with each.
        jobs: the jobs, without the comparisons that many of them share.
        places: of each job's comparison among those that are sent apart; None for a job without one.
    """

    work: Callable[[Any], Any]
    jobs: tuple[Any, ...]
    places: tuple[int | None, ...]


def work_on(packed: bytes, expected: dict[str, str], comparisons: Sequence[bytes]) -> list[bytes]:
    """The pickled result of each job of a pickled `Batch`.

    Raises:
        UnfitWorkerError: the worker has other versions than are expected, or several threads.
    """
    require(expected)
    _require_one_thread()
    batch: Batch = cloudpickle.loads(packed)
    return [
        cloudpickle.dumps(batch.work(job if place is None else replace(job, comparison=comparisons[place])))
        for job, place in zip(batch.jobs, batch.places, strict=True)
    ]


def same(value: bytes) -> bytes:
    """The value: a task by which the cluster holds it, and makes it again when the worker that has it dies."""
    return value


def require(expected: dict[str, str]) -> None:
    """Refuses a process in which a number might be another one than where the sweep was started.

    Raises:
        UnfitWorkerError: versions differ.
    """
    found = all_versions()
    differ = [
        f"{name} is {found.get(name)} there and {version} here"
        for name, version in expected.items()
        if found.get(name) != version
    ]
    if differ:
        raise UnfitWorkerError(f"{', '.join(differ)}: install the same versions on all workers")


def _require_one_thread() -> None:
    from distributed import get_worker

    worker = get_worker()
    if worker.state.nthreads != 1:
        raise UnfitWorkerError(several_threads(worker.address, worker.state.nthreads))


def several_threads(address: str, num: int) -> str:
    """What is said of a worker that has several threads."""
    return (
        f"the worker at {address} has {num} threads, and fits need a process each: start workers with "
        "'--nthreads 1 --nworkers N', a LocalCluster with threads_per_worker = 1, jobs with as many processes as cores"
    )
