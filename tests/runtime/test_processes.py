"""Work shared among processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ppl_vi.runtime import workers
from ppl_vi.runtime.processes import shared, travels, wake
from ppl_vi.runtime.workers import interrupts_held

ROOT = Path(__file__).resolve().parents[2]


def squared(number: int) -> int:
    if number < 0:
        raise ValueError(f"{number} is negative")
    return number**2


@pytest.mark.parametrize("num_workers", [1, 2])
def test_every_job_is_done_once(num_workers: int) -> None:
    wake(num_workers, "json")
    assert sorted(shared(squared, iter(range(7)), num_workers)) == [number**2 for number in range(7)]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_an_error_in_a_worker_is_the_callers(num_workers: int) -> None:
    with pytest.raises(ValueError, match="-3 is negative"):
        list(shared(squared, [1, -3, 2], num_workers))
    assert sorted(shared(squared, [1, 2], num_workers)) == [1, 4]  # workers can be had again


def test_ctrl_c_is_held_back_and_let_go() -> None:
    with interrupts_held():
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def threads(_: int) -> tuple[int, bool]:
    import torch

    return torch.get_num_threads(), signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_worker_has_one_thread_and_leaves_ctrl_c_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKL_NUM_THREADS", "7")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    assert list(shared(threads, range(3), 2)) == [(1, True)] * 3
    assert os.environ["MKL_NUM_THREADS"] == "7"
    assert "OPENBLAS_NUM_THREADS" not in os.environ


def test_what_has_no_name_travels() -> None:
    (found,) = shared(lambda number: lambda: number + 1, [4], 2)
    assert found() == 5


def test_what_can_not_be_sent_is_told() -> None:
    assert travels(lambda: 1)
    assert not travels(number for number in range(3))


def deadly(task: tuple[Path, int, int]) -> tuple[int, int]:
    """The number of a job, and the try at which it is done: the first so many tries are killed."""
    folder, number, deaths = task
    tries = len(list(folder.glob(f"{number}-*"))) + 1
    (folder / f"{number}-{tries}").touch()
    if tries <= deaths:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.3)
    return number, tries


def test_a_job_whose_process_is_killed_is_done_again_and_no_other_is_touched(tmp_path: Path) -> None:
    deaths = [0, 1, 0, 2, 0]
    jobs = [(tmp_path, number, deaths[number]) for number in range(5)]
    done = dict(shared(deadly, jobs, 2, lambda job, how: (job[1], how)))
    assert [done[number] for number in (0, 1, 2, 4)] == [1, 2, 1, 1]
    assert done[3] == "its process was killed by SIGKILL, as the system does where memory runs out"


def leaving(code: int) -> int:
    if code < 0:
        sys.exit("enough")
    os._exit(code) if code else time.sleep(0.1)
    return code


def test_a_job_that_ends_its_process_says_with_which_code() -> None:
    done = list(shared(leaving, [7, 0], 2, lambda job, how: how))
    assert done == [0, "its process ended in the middle of the work, with exit code 7"]
    with pytest.raises(RuntimeError, match=r"the job called sys.exit\('enough'\)"):
        list(shared(leaving, [-1], 2))


def test_a_worker_that_is_killed_while_it_rests_costs_nothing() -> None:
    first = set(shared(process_of, range(2), 2))
    for process in first:
        os.kill(process, signal.SIGKILL)
    assert not first & set(shared(process_of, range(2), 2))


def process_of(_: int) -> int:
    time.sleep(0.2)
    return os.getpid()


MASTER = """
import os, signal, subprocess, sys, time
from ppl_vi.runtime.processes import shared

def work(job):
    child = subprocess.Popen(["sleep", "60"])
    print(os.getpid(), child.pid, flush=True)
    time.sleep(60)

signal.signal(signal.SIGTERM, signal.default_int_handler)
try:
    list(shared(work, [1, 2], 2))
except KeyboardInterrupt:
    sys.exit(3)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked for in /proc")
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 3)])
def test_workers_and_what_they_started_die_with_their_master_whatever_ends_it(
    signum: signal.Signals, code: int
) -> None:
    with subprocess.Popen([sys.executable, "-c", MASTER], cwd=ROOT, stdout=subprocess.PIPE, text=True) as master:
        assert master.stdout is not None
        started = [int(word) for _ in range(2) for word in master.stdout.readline().split()]
        assert all(map(is_running, started))
        master.send_signal(signum)
        assert master.wait(20) == code
    until = time.monotonic() + 20
    while any(map(is_running, started)) and time.monotonic() < until:
        time.sleep(0.05)
    left = [process for process in started if is_running(process)]
    for process in left:
        os.kill(process, signal.SIGKILL)
    assert len(started) == 4
    assert left == []


def is_running(process: int) -> bool:
    """Whether there is such a process, and it is no zombie that waits for somebody to read its exit code."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_server_that_was_killed_and_is_not_yet_gone_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its socket refuses for a moment in which the system still counts it among the living."""
    new, refusals = workers._new, [ConnectionRefusedError(), EOFError(), ConnectionRefusedError()]

    def refused_at_first(place: workers.Place) -> workers.Worker:
        if refusals:
            raise refusals.pop()
        return new(place)

    monkeypatch.setattr(workers, "_new", refused_at_first)
    monkeypatch.setattr(workers, "PAUSES", (0.0, 0.0, 0.0))
    monkeypatch.setattr(workers, "_resting", [])
    assert sorted(shared(str, [1, 2], 2)) == ["1", "2"]
    assert refusals == []
