"""Stages: what is told, to whom, and what becomes of a callback that fails."""

import os
import signal
import threading
import time

import pytest

from ppl_vi.runtime import stages
from ppl_vi.runtime.processes import WorkerKilledError, shared
from ppl_vi.runtime.stages import Stage, is_heard, listening, stage


def counted(num: int, unit: str = "step", total: bool = True) -> None:
    with stage("counting", unit, num if total else None) as running:
        for _ in range(num):
            running.advance()


def told_by(work, subject: str = "me") -> list[Stage]:
    told: list[Stage] = []
    with listening(told.append, subject):
        work()
    return told


@pytest.fixture
def without_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets every event be told."""
    monkeypatch.setattr(stages, "MIN_SECONDS", 0.0)


@pytest.mark.usefixtures("without_pause")
def test_every_unit_is_told_once_and_the_last_event_alone_is_the_end() -> None:
    told = told_by(lambda: counted(5))
    assert [(one.done, one.total) for one in told] == [(done, 5) for done in range(6)]
    assert [one.is_over for one in told] == [False] * 5 + [True]
    assert {(one.subject, one.name, one.unit) for one in told} == {("me", "counting", "step")}


@pytest.mark.usefixtures("without_pause")
def test_a_total_that_is_not_known_is_known_in_the_end() -> None:
    told = told_by(lambda: counted(3, total=False))
    assert [(one.done, one.total) for one in told] == [(0, None), (1, None), (2, None), (3, None), (3, 3)]


def test_events_have_a_pause_between_them() -> None:
    told = told_by(lambda: counted(100_000))
    assert len(told) <= 2 + told[-1].seconds / stages.MIN_SECONDS
    assert (told[0].done, told[-1].done) == (0, 100_000)


def test_the_rate_forgets_a_slow_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def work() -> None:
        with stage("counting", "step", 101) as running:
            for seconds in [100.0, *[1.0] * 100]:  # 1 step in 100 seconds, then one in each second
                now[0] += seconds
                running.advance()

    told = {one.done: one for one in told_by(work)}
    assert told[1].rate == pytest.approx(0.01)
    assert told[1].seconds_left == pytest.approx(100 * 100)
    assert told[60].rate == pytest.approx(1.0)
    assert told[60].seconds_left == pytest.approx(41.0)


def test_an_error_ends_a_stage_too() -> None:
    told: list[Stage] = []

    def divide() -> None:
        with listening(told.append), stage("dividing", "step", 10) as running:
            running.advance(3)
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        divide()
    assert (told[-1].done, told[-1].total) == (3, 3)


def test_the_outermost_name_is_the_subject_and_an_inner_callback_has_its_own() -> None:
    told: list[Stage] = []
    inner: list[Stage] = []
    with listening(told.append):
        counted(1)
        with listening(None, "outer"), listening(None, "inner"):
            counted(1)
        with listening(inner.append, "inner"):
            counted(1)
    assert [one.subject for one in told] == ["", "", "outer", "outer"]
    assert [one.subject for one in inner] == ["inner", "inner"]
    assert not is_heard()


def test_nobody_hears_another_thread_or_what_a_callback_does() -> None:
    told: list[Stage] = []

    def nested(one: Stage) -> None:
        told.append(one)
        counted(1)

    with listening(nested):
        thread = threading.Thread(target=counted, args=(3,))
        thread.start()
        thread.join()
        counted(1)
    assert len(told) == 2


def test_what_a_callback_raises_passes_those_who_catch_every_exception() -> None:
    cause = KeyError("why")

    def full(one: Stage) -> None:
        raise OSError("no space left") from cause

    def careless() -> None:
        try:
            counted(3)
        except Exception:
            pytest.fail("the callback's error was taken for one of the work")

    with pytest.raises(OSError, match="no space left") as raised, listening(full):
        careless()
    assert raised.value.__cause__ is cause
    assert not is_heard()


def test_work_is_cut_where_somebody_listens() -> None:
    def spans() -> list[tuple[int, int]]:
        with stage("counting") as running:
            return list(running.spans(20, 8))

    assert spans() == [(0, 20)]
    with listening(lambda one: None):
        assert spans() == [(0, 8), (8, 20)]  # the first took no time, so that the second takes all that is left


def counting(num: int) -> int:
    if num < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    with listening(None, f"job {num}"):
        counted(num)
    return num


@pytest.mark.parametrize("num_workers", [1, 2])
def test_all_that_a_worker_tells_arrives_before_its_result(num_workers: int) -> None:
    told: list[Stage] = []
    jobs, finished = [5, 3, 700, 8, 1], []
    with listening(told.append):
        for num in shared(counting, jobs, num_workers):
            finished.append(num)
            assert [one.done for one in told if one.subject == f"job {num}"][-1] == num
    assert sorted(finished) == sorted(jobs)
    for num in jobs:
        events = [(one.done, one.total) for one in told if one.subject == f"job {num}"]
        assert events[0] == (0, num)
        assert events == sorted(events)


def test_a_callback_that_fails_ends_the_workers() -> None:
    def full(one: Stage) -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"), listening(full):
        list(shared(counting, [1, 2, 3], 2))
    assert sorted(shared(counting, [1, 2], 2)) == [1, 2]  # workers can be had again, and nobody listens


def test_a_worker_that_is_killed_leaves_nobody_waiting() -> None:
    told: list[Stage] = []
    with pytest.raises(WorkerKilledError), listening(told.append):
        list(shared(counting, [50, -1, 50, 50], 2))
    with listening(told.append):
        assert list(shared(counting, [4], 2)) == [4]
    assert (told[-1].subject, told[-1].done) == ("job 4", 4)
