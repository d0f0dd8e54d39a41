"""Work shared among processes, so that Ctrl-C keeps what is finished.

The processes are copies of a server that has imported everything once, while the command was still getting ready, and
so start with nothing to import. They get and give back pickles by value (cloudpickle), so that a user's functions and
lambdas travel, too. What they tell of their stages reaches whoever listens here.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from itertools import islice
from multiprocessing import resource_tracker
from multiprocessing.queues import SimpleQueue
from typing import Any, TypeVar

import cloudpickle

from ppl_vi.runtime import stages
from ppl_vi.runtime.stages import Stage

WorkerKilledError = BrokenProcessPool
Job = TypeVar("Job")
Result = TypeVar("Result")

# On other systems than Linux, processes in which certain libraries are loaded must not be forked.
START_METHOD = "forkserver" if sys.platform == "linux" else "spawn"
# Modules that every worker sooner or later imports, besides those that `wake` is given.
PRELOADED_MODULES = ("torch._dynamo", "arviz_stats.base")
# The environment variables by which libraries of numbers are told how many threads to use.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
# Seconds between two looks at what the processes have told; a larger number shows it later.
EVENT_SECONDS = 0.1

# The pool of processes, one at most, kept for the next jobs, and the pipe by which they tell their stages. Its key is
# the number of processes, the folder that they work in, and the path on which they look for modules.
_pools: dict[tuple[Any, ...], tuple[ProcessPoolExecutor, SimpleQueue[Stage]]] = {}
# In a worker: the same pipe.
_told: SimpleQueue[Stage] | None = None


def num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def wake(num_workers: int, *modules: str) -> None:
    """Starts the server that the processes of `shared` are copied from, and returns while it imports modules."""
    if num_workers <= 1 or START_METHOD != "forkserver":
        return
    from multiprocessing import forkserver

    with _one_thread(), interrupts_held():
        multiprocessing.get_context(START_METHOD).set_forkserver_preload([*modules, *PRELOADED_MODULES])
        forkserver.ensure_running()


def shared(work: Callable[[Job], Result], jobs: Iterable[Job], num_workers: int) -> Iterator[Result]:
    """Yields each job's result when it is finished, whichever comes first.

    Whatever ends this early, such as Ctrl-C, ends the workers, too. Each has one thread. Whoever listens to stages here
    is told those of the workers as well, all those of a job before its result.

    Args:
        work: what is done with each job.
        jobs: each is taken from the iterator when a process is about to be free for it, one job ahead.
        num_workers: processes; with one, the work is done in this one.

    Raises:
        WorkerKilledError: a process was killed from outside; the jobs that were being worked on are lost.
    """
    if num_workers <= 1:
        yield from map(work, jobs)
        return
    packed = cloudpickle.dumps(work)
    left = iter(jobs)
    pending: set[Future[bytes]] = set()
    subject = stages.current_subject() if stages.is_heard() else None
    try:
        pool, told = _pool(num_workers, os.getcwd(), tuple(sys.path))
        while True:
            for job in islice(left, num_workers + 1 - len(pending)):
                with _one_thread(), interrupts_held():  # a process may be started here
                    pending.add(pool.submit(_done, packed, cloudpickle.dumps(job), subject))
            if not pending:
                return
            finished, pending = wait(pending, None if subject is None else EVENT_SECONDS, FIRST_COMPLETED)
            while not told.empty():
                stages.relay(told.get())
            for future in finished:
                yield cloudpickle.loads(future.result())
    except BaseException:
        _end()
        raise


def travels(value: object) -> bool:
    """Whether a value can be sent to another process."""
    try:
        cloudpickle.dumps(value)
    except Exception:  # whatever a user's object says of it
        return False
    return True


def _pool(*place: Any) -> tuple[ProcessPoolExecutor, SimpleQueue[Stage]]:
    if place not in _pools:
        _end()
        context = multiprocessing.get_context(START_METHOD)
        told: SimpleQueue[Stage] = context.SimpleQueue()
        pool = ProcessPoolExecutor(place[0], context, initializer=_begin, initargs=(*place[1:], told))
        _pools[place] = pool, told
    return _pools[place]


def _begin(folder: str, path: Sequence[str], told: SimpleQueue[Stage]) -> None:
    """Sets a worker up: it has its master's folder and path to modules, and leaves Ctrl-C to its master."""
    global _told
    _told = told
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.chdir(folder)
    sys.path[:] = path


def _done(work: bytes, job: bytes, subject: str | None) -> bytes:
    """The packed result of a packed job, whose stages are told to the master, as those of a subject, if there is one.

    An event is written to the pipe at once, and whole, because it is shorter than what a pipe takes in one piece. So it
    is there before the job's result, and a killed worker leaves no half of one, for which the master would wait.
    """
    with nullcontext() if subject is None or _told is None else stages.listening(_told.put, subject):
        packed: bytes = cloudpickle.dumps(cloudpickle.loads(work)(cloudpickle.loads(job)))
    return packed


def _end() -> None:
    """Ends all processes at once, whatever they are working on."""
    while _pools:
        _, (pool, _) = _pools.popitem()
        for process in list((pool._processes or {}).values()):  # a method from Python 3.14 on
            process.kill()
        pool.shutdown(wait=False, cancel_futures=True)


def alone(work: Callable[[Job], Result], job: Job) -> Result:
    """The result of one job that is done in a process of its own.

    Raises:
        WorkerKilledError: it was killed from outside.
    """
    (result,) = shared(work, [job], 2)
    return result


@contextmanager
def _one_thread() -> Iterator[None]:
    """Processes started meanwhile compute on one thread each."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Holds back Ctrl-C until the end of the block.

    Processes that are started in the block inherit this for good, and so leave Ctrl-C to the one that started them.
    """
    resource_tracker.ensure_running()  # which would let Ctrl-C go if it started in the block
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
