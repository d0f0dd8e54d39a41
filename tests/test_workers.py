"""Work shared among processes."""

import signal

import pytest

from ppl_vi.workers import interrupts_held, shared, woken


def squared(number: int) -> int:
    if number < 0:
        raise ValueError(f"{number} is negative")
    return number**2


@pytest.mark.parametrize("num_workers", [1, 2])
def test_every_job_is_done_once(num_workers: int) -> None:
    with woken("json", num_workers):
        pass
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
