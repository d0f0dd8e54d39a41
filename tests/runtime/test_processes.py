"""Work shared among processes."""

import os
import signal

import pytest

from ppl_vi.runtime.processes import shared, travels, wake
from ppl_vi.runtime.workers import interrupts_held


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
