"""Runs the jobs of a sweep on a Dask cluster, in the place of `ppl_vi.runtime.processes.shared`.

Dask does the scheduling. Here jobs are put together to batches by what such jobs have cost, results are received, and
it is decided what becomes of a job whose worker dies. Dask itself runs a task on other workers until as many as its
setting `distributed.scheduler.allowed-failures` says, and one more, have died. It blames all tasks that a worker had at
hand for its death, though, so that a job is then done once more by itself before it is recorded as one that kills.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from typing import Any
from uuid import uuid4

import cloudpickle
from distributed import Client, Future, KilledWorker

from ppl_vi.sweeps.cluster import ClusterError
from ppl_vi.sweeps.estimate import Cost
from ppl_vi.sweeps.models import imported, sendable
from ppl_vi.sweeps.remote import Batch, UnfitWorkerError, same, work_on
from ppl_vi.sweeps.tasks import Job, Outcome

# Jobs are put together until a batch takes about so many seconds. Dask's scheduler needs up to a millisecond for each,
# so that with 1,000 workers it is a tenth busy; what is lost when the sweep is killed is one batch a worker.
BATCH_SECONDS = 10.0
# So many batches a worker are left at least, so that no worker is idle while others have many jobs left.
BATCHES_LEFT = 4
# So many batches are sent ahead, and two a worker where that is more.
MIN_AHEAD = 100
# Seconds between two looks at how many workers there are, and whether the scheduler is.
LOOK_SECONDS = 2.0


@dataclass(frozen=True, eq=False)
class DaskMapper:
    """Lets a cluster do work on jobs; called as `ppl_vi.runtime.processes.shared`.

    Attributes:
        client: the connection.
        expected: the versions that a worker must have.
    """

    client: Client
    expected: dict[str, str]

    def __call__(
        self,
        work: Callable[[Any], Any],
        jobs: Iterable[Any],
        num_workers: int,
        killed: Callable[[Any, str], Any],
    ) -> Iterator[Any]:
        """Yields each job's result, in any order; `num_workers` does not count, since the cluster has its workers.

        Raises:
            ClusterError: the cluster can't go on.
        """
        run = _Run(self.client, self.expected, work, killed, deque(jobs))
        try:
            yield from run.results()
        except BaseException:
            run.cancel()
            raise


@dataclass(frozen=True, eq=False)
class _Sent:
    """A batch that was sent: its jobs, and whether nothing else was sent beside it."""

    jobs: tuple[Any, ...]
    alone: bool = False


@dataclass(eq=False)
class _Run:
    """A run of jobs.

    Attributes:
        left: the jobs that were not sent yet.
        singles: the jobs of batches whose workers died, which are sent one by one.
        suspects: the jobs whose workers died, which are sent by themselves when all others are done.
        sent: the batches that are at work.
    """

    client: Client
    expected: dict[str, str]
    work: Callable[[Any], Any]
    killed: Callable[[Any, str], Any]
    left: deque[Any]
    singles: deque[Any] = field(default_factory=deque)
    suspects: deque[Any] = field(default_factory=deque)
    sent: dict[Future, _Sent] = field(default_factory=dict)
    finished: SimpleQueue[Future] = field(default_factory=SimpleQueue)
    costs: dict[tuple[str, str], Cost] = field(default_factory=dict)
    held: dict[int, tuple[bytes, Future]] = field(default_factory=dict)
    num_threads: int = 1
    looked: float = -LOOK_SECONDS
    is_told: bool = False

    def results(self) -> Iterator[Any]:
        """The result of each job."""
        while True:
            self._look()
            while (self.left or self.singles) and len(self.sent) < max(MIN_AHEAD, 2 * self.num_threads):
                self._send(_Sent((self.singles.popleft(),) if self.singles else self._batch()))
            if not self.sent and self.suspects:
                self._send(_Sent((self.suspects.popleft(),), alone=True))
            if not self.sent:
                return
            future = self._next()
            batch = self.sent.pop(future)
            if future.status == "error" and isinstance(error := future.exception(), KilledWorker):
                yield from self._after_deaths(batch, error)
            else:
                yield from self._received(future)

    def cancel(self) -> None:
        """Takes back what was sent; a job that a worker is at runs to its end, and its result is dropped."""
        with suppress(Exception):  # as where the scheduler is gone
            self.client.cancel(list(self.sent), force=True)

    def _look(self) -> None:
        if time.monotonic() - self.looked < LOOK_SECONDS:
            return
        with _explained():
            found = sum(self.client.nthreads().values())
        self.looked, self.num_threads = time.monotonic(), max(1, found)
        if not found and not self.is_told:
            print("the cluster has no workers left: waiting for others", file=sys.stderr)
        self.is_told = not found

    def _batch(self) -> tuple[Any, ...]:
        """The next jobs, as many as take about `BATCH_SECONDS`; one alone where it is not known how long they take."""
        found, seconds = [self.left.popleft()], 0.0
        most = len(self.left) // (BATCHES_LEFT * self.num_threads)
        while self.left and len(found) < most:
            cost = self._cost(found[-1])
            seconds += cost or BATCH_SECONDS
            if cost is None or self._cost(self.left[0]) is None or seconds + cost > BATCH_SECONDS:
                break
            found.append(self.left.popleft())
        return tuple(found)

    def _cost(self, job: Any) -> float | None:
        """How many seconds a job takes, by what was measured of its model and guide; None before that."""
        if not isinstance(job, Job):
            return None
        cost = self.costs.get((job.task.setting.model, job.task.setting.guide))
        return None if cost is None else cost.of(job.task)

    def _send(self, batch: _Sent) -> None:
        jobs: list[Any] = []
        places: list[int | None] = []
        held: list[Future] = []
        for job in batch.jobs:
            apart = job.comparison if isinstance(job, Job) else None
            places.append(None if apart is None else len(held))
            held += [] if apart is None else [self._held(apart)]
            jobs.append(_to_be_sent(job) if isinstance(job, Job) else job)
        try:
            packed = cloudpickle.dumps(Batch(self.work, tuple(jobs), tuple(places)))
        except Exception as error:  # whatever a user's object says of it
            raise ClusterError(
                f"what the plan names can't be sent to the cluster: {type(error).__name__}: {error}; code that is "
                "installed here and on all workers is not sent"
            ) from error
        future = self._submit(work_on, packed, self.expected, held)
        self.sent[future] = batch
        future.add_done_callback(self.finished.put)

    def _submit(self, function: Callable[..., Any], *arguments: Any) -> Future:
        with _explained(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large messages
            return self.client.submit(function, *arguments, key=f"ppl_vi-{function.__name__}-{uuid4().hex}")

    def _held(self, comparison: bytes) -> Future:
        """A comparison as the cluster holds it, for all jobs that share it."""
        if id(comparison) not in self.held:
            self.held[id(comparison)] = comparison, self._submit(same, comparison)
        return self.held[id(comparison)][1]

    def _next(self) -> Future:
        """The next batch that has come to an end."""
        while True:
            try:
                return self.finished.get(timeout=LOOK_SECONDS)
            except Empty:
                self._look()
                if self.client.status in ("closing", "closed"):
                    raise ClusterError(GONE) from None

    def _after_deaths(self, batch: _Sent, error: KilledWorker) -> Iterator[Any]:
        if len(batch.jobs) > 1:
            self.singles.extend(batch.jobs)
        elif not batch.alone:
            self.suspects.extend(batch.jobs)
        else:
            how = f"{error.allowed_failures + 1} workers of the cluster died one after the other at work on it"
            yield self.killed(batch.jobs[0], how)

    def _received(self, future: Future) -> Iterator[Any]:
        with _explained():
            results: list[bytes] = future.result()
        for packed in results:
            result = cloudpickle.loads(packed)
            if isinstance(result, Outcome) and result.status == "done":
                self.costs[result.task.setting.model, result.task.setting.guide] = _cost_of(result)
            yield result


def _cost_of(outcome: Outcome) -> Cost:
    num = outcome.task.num_problems * outcome.task.settings.num_replicas
    return Cost(outcome.fit_seconds / num / outcome.task.settings.num_steps, outcome.score_seconds / num)


def _to_be_sent(job: Job) -> Job:
    """A job with the guide itself in place of the name of a module that workers need not have.

    The code of the model is sent, too, and so it can't be another one there: there is no digest to compare it with.
    """
    named = isinstance(job.family, str) and ":" in job.family
    return replace(job, family=sendable(imported(job.family)) if named else job.family, comparison=None, source="")


GONE = "the scheduler of the cluster is gone: start it again, and the same command goes on from what is finished"


@contextmanager
def _explained() -> Iterator[None]:
    """Raises what Dask raises where the cluster can't go on as `ClusterError`."""
    try:
        yield
    except UnfitWorkerError as error:
        raise ClusterError(f"a worker of the cluster: {error}") from error
    except ModuleNotFoundError as error:
        raise ClusterError(f"a worker of the cluster has no {error.name}: install it there") from error
    except (CancelledError, OSError, TimeoutError) as error:
        raise ClusterError(GONE) from error
