"""The processes of `ppl_vi.runtime.processes`, one at a time: how each starts, works, rests and ends."""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import cloudpickle

from ppl_vi.runtime import stages
from ppl_vi.runtime.environment import environment
from ppl_vi.runtime.stages import Stage

# On other systems than Linux, processes in which certain libraries are loaded must not be forked.
START_METHOD = "forkserver" if sys.platform == "linux" else "spawn"
# The environment variables by which libraries of numbers are told how many threads to use.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
# Seconds to wait for the exit code of a process whose pipe is closed. A process that takes longer is killed.
GONE_SECONDS = 5.0

# Seconds to wait before a process is started again after its server was killed.
PAUSES = (0.0, 0.1, 0.5, 2.0)

# Where a worker works: its folder, and the path on which it looks for modules.
Place = tuple[str, tuple[str, ...]]
# The subject of a worker's stages, and whether they are details.
ToldAs = tuple[str, bool]


class WorkerGoneError(Exception):
    """The process has ended in the middle of its work; the message says how."""


@dataclass(frozen=True)
class Done:
    """What became of a job: a result, or the error that it raised."""

    result: Any = None
    error: Exception | None = None

    def value(self) -> Any:
        """The result.

        Raises:
            Exception: what the job raised.
        """
        if self.error is not None:
            raise self.error
        return self.result


@dataclass(frozen=True, eq=False)
class Worker:
    """A process, as its master has it.

    Attributes:
        process: the process.
        pipe: to the process.
        place: where it works.
    """

    process: BaseProcess
    pipe: Connection
    place: Place

    @property
    def watched(self) -> tuple[Any, Any]:
        """What becomes readable when the process says something, and when it ends."""
        return self.pipe, self.process.sentinel

    def receive(self) -> Stage | Done:
        """What the process says next.

        Raises:
            WorkerGoneError: it has ended before it said anything.
        """
        try:
            if self.pipe.poll() or self.process.exitcode is None:
                message: Stage | Done = cloudpickle.loads(self.pipe.recv_bytes())
                return message
        except (EOFError, OSError):
            pass
        self.process.join(GONE_SECONDS)
        how = ending(self.process.exitcode)
        self.end()
        raise WorkerGoneError(how)

    def rest(self) -> None:
        """Waits for another job."""
        _resting.append(self)

    def end(self) -> None:
        """Ends the process at once, with what it has started, whatever it is working on."""
        with suppress(OSError, AttributeError):
            os.killpg(self.process.pid or 0, signal.SIGKILL)
        self.process.kill()  # also before it has a group of its own
        self.pipe.close()
        _living.discard(self)


# The workers of this process, and those of them that wait for a job.
_living: set[Worker] = set()
_resting: list[Worker] = []


def worker_for(work: bytes, job: bytes, told_as: ToldAs | None) -> Worker:
    """A worker that has been given a job: one that rests, in the same folder and path as this process, or a new one.

    Args:
        work: the pickled function of the job.
        job: the pickled job.
        told_as: as whose stages it is to tell its own, and whether as details; None for none.
    """
    place = os.getcwd(), tuple(sys.path)
    while True:
        worker = _rested(place) or _started(place)
        try:
            worker.pipe.send((work, job, told_as))
        except OSError:  # it was killed while it rested
            worker.end()
        else:
            return worker


def _rested(place: Place) -> Worker | None:
    while _resting:
        worker = _resting.pop()
        if worker.place == place and worker.process.is_alive():
            return worker
        worker.end()
    return None


def _started(place: Place) -> Worker:
    if not _living:
        atexit.register(_end_all)
    for seconds in PAUSES:
        try:
            worker = _new(place)
            break
        except (EOFError, OSError):  # the server was killed; the next one starts once the system says that it has ended
            time.sleep(seconds)
    else:
        worker = _new(place)
    _living.add(worker)
    return worker


def _new(place: Place) -> Worker:
    context: Any = multiprocessing.get_context(START_METHOD)
    ours, theirs = context.Pipe()
    with one_thread_each(), interrupts_held():
        process = context.Process(target=_serve, args=(theirs, *place))
        process.start()
    theirs.close()
    return Worker(process, ours, place)


def _end_all() -> None:
    for worker in list(_living):
        worker.end()


def ending(code: int | None) -> str:
    """How a process has ended, by its exit code as `multiprocessing` has it."""
    if code is None or code >= 0:
        return "its process ended in the middle of the work" + (f", with exit code {code}" if code else "")
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    perhaps = ", as the system does where memory runs out" if name == "SIGKILL" else ""
    return f"its process was killed by {name}{perhaps}"


def _serve(pipe: Connection, folder: str, path: Sequence[str]) -> None:
    """What a worker does: one job after the other, in its master's folder and with its path to modules.

    It leaves Ctrl-C to its master, and has a group of its own, in which whatever it starts dies with it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    threading.Thread(target=_die_with_master, daemon=True).start()
    gc.freeze()  # what the server has imported stays, and stays shared with it
    os.chdir(folder)
    sys.path[:] = path
    while True:
        try:
            work, job, told_as = pipe.recv()
        except EOFError:
            return
        with suppress(OSError):  # the master is gone, and `_die_with_master` sees to it
            pipe.send_bytes(_done(work, job, told_as, pipe))


def _die_with_master() -> None:
    """Waits for the end of the master, whatever ends it, and kills this process and all that it has started."""
    master = multiprocessing.parent_process()
    if master is not None:
        master.join()
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _done(work: bytes, job: bytes, told_as: ToldAs | None, pipe: Connection) -> bytes:
    """The pickled `Done` of a job, whose stages are told to the master, as those of a subject, if there is one."""

    def tell(stage: Stage) -> None:
        with suppress(OSError):
            pipe.send_bytes(cloudpickle.dumps(stage))

    try:
        with nullcontext() if told_as is None else stages.listening(tell, *told_as):
            return cloudpickle.dumps(Done(cloudpickle.loads(work)(cloudpickle.loads(job))))
    except Exception as error:
        return _failed(error)
    except SystemExit as stop:
        return _failed(RuntimeError(f"the job called sys.exit({stop.code!r})"))


def _failed(error: Exception) -> bytes:
    """The pickled `Done` of a job that raised an error."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        cloudpickle.loads(cloudpickle.dumps(error))
    except Exception:  # whatever a user's error says of it
        error = RuntimeError(f"{type(error).__name__}: {error}")
    return cloudpickle.dumps(Done(error=error))


def one_thread_each() -> AbstractContextManager[None]:
    """A context in which processes that are started compute on one thread each."""
    return environment(dict.fromkeys(THREAD_VARIABLES, "1"))


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
