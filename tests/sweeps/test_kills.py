"""Sweeps as processes: killed, interrupted, two on one file, and on a full disk, nothing is lost or counted twice."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from benchmarks.dask_cluster import descendants
from tests.sweeps.conftest import Run, command, environment, rows_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `ppl-vi` in the folder, as the leader of a session of its own, which is ended with the test."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command(*arguments), cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, start_new_session=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def wait_for_tasks(file: Path, process: subprocess.Popen[str], num_fits: int) -> None:
    """Waits until so many fits are stored, or the process has ended."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline and len(rows_of(file)) < num_fits:
        time.sleep(0.1)


def wait_for_end(pids: list[int]) -> None:
    """Waits until all of some processes are gone: none of them outlives its master."""
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}/stat").exists() and not is_zombie(pid) for pid in pids):
        assert time.monotonic() < deadline, "a process has outlived its master"
        time.sleep(0.05)


def is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def is_part_of(found: dict[Any, Any], whole: dict[Any, Any]) -> bool:
    return all(whole[key] == row for key, row in found.items())


Kill = Callable[[subprocess.Popen[str], random.Random], None]


def kill_parent(process: subprocess.Popen[str], _: random.Random) -> None:
    children = descendants(process.pid)
    process.kill()
    process.communicate()
    wait_for_end(children)


def kill_worker(process: subprocess.Popen[str], chance: random.Random) -> None:
    """Kills one of the processes that the sweep has started, whichever it is; the sweep must go on to its end."""
    children = descendants(process.pid)
    if children and process.poll() is None:
        with suppress(ProcessLookupError):
            os.kill(chance.choice(children), signal.SIGKILL)
    shown, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "48 fits are in plan.db" in shown


def trial(
    folder: Path,
    start: Callable[..., subprocess.Popen[str]],
    whole: dict[Any, Any],
    kill: Kill,
    num_fits: int,
) -> None:
    """Starts the sweep, kills something at a random moment after so many fits more, and looks at what is there."""
    chance, file = random.Random(f"{kill.__name__} after {num_fits}"), folder / "plan.db"
    before = rows_of(file)
    process = start("sweep", "plan.toml", "--workers", "2")
    wait_for_tasks(file, process, min(len(before) + num_fits, 48))
    time.sleep(chance.uniform(0.0, 1.5))
    reported = rows_of(file)
    kill(process, chance)
    after = rows_of(file)
    assert before.keys() <= reported.keys() <= after.keys(), "a row that was there is lost"
    assert is_part_of(after, whole)


@pytest.mark.parametrize(("kill", "num_fits"), [(kill_parent, 6), (kill_worker, 0)])
def test_a_sweep_that_is_killed_goes_on_to_the_same_rows(
    folder: Path, run: Run, start: Any, undisturbed: dict[Any, Any], kill: Kill, num_fits: int
) -> None:
    trial(folder, start, undisturbed, kill, num_fits)
    done = run("sweep", "plan.toml", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert rows_of(folder / "plan.db") == undisturbed


# With those above, either is killed at the beginning, early, in the middle and late.
KILLS = [(kill_parent, 0), (kill_parent, 12), (kill_worker, 6), (kill_parent, 18), (kill_worker, 12), (kill_worker, 18)]


@pytest.mark.slow
def test_a_sweep_that_is_killed_again_and_again_ends_with_the_same_rows(
    folder: Path, run: Run, start: Any, undisturbed: dict[Any, Any]
) -> None:
    for kill, num_fits in KILLS:
        if len(rows_of(folder / "plan.db")) == 48:
            (folder / "plan.db").unlink()  # it was done before it could be killed, so it begins anew
        trial(folder, start, undisturbed, kill, num_fits)
    assert run("sweep", "plan.toml").returncode == 0
    assert rows_of(folder / "plan.db") == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "word"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "ended by SIGTERM")])
def test_a_signal_ends_a_sweep_with_one_line_and_nothing_lost(
    folder: Path, run: Run, start: Any, undisturbed: dict[Any, Any], sent: signal.Signals, word: str
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell may have told to be ignored
    process = start("sweep", "plan.toml", "--workers", "2")
    signal.signal(signal.SIGINT, before)
    wait_for_tasks(folder / "plan.db", process, 6)
    process.send_signal(sent)
    _, errors = process.communicate(timeout=60)
    lines = [line for line in errors.splitlines() if "fits were finished" in line]
    assert process.returncode == 128 + sent, errors
    assert len(lines) == 1
    assert lines[0].startswith(word)
    assert "Traceback" not in errors
    found = rows_of(folder / "plan.db")
    assert int(lines[0].split(": ")[1].split()[0]) == len(found)
    assert is_part_of(found, undisturbed)
    assert run("sweep", "plan.toml", "--workers", "2").returncode == 0
    assert rows_of(folder / "plan.db") == undisturbed


def test_two_sweeps_on_one_file(folder: Path, run: Run, start: Any, undisturbed: dict[Any, Any]) -> None:
    first = start("sweep", "plan.toml", "--workers", "1")
    wait_for_tasks(folder / "plan.db", first, 6)
    first.send_signal(signal.SIGSTOP)  # so that it can't be done before the second begins
    second = run("sweep", "plan.toml", "--workers", "1")
    watched = run("results", "plan.db")
    first.send_signal(signal.SIGCONT)
    assert (second.returncode, second.stdout) == (2, "")
    assert second.stderr.splitlines()[-1].startswith("ppl-vi: error: 'plan.db' is being written by another sweep")
    assert watched.returncode == 0
    _, errors = first.communicate(timeout=120)
    assert first.returncode == 0, errors
    assert rows_of(folder / "plan.db") == undisturbed


@pytest.mark.slow
def test_a_full_disk_ends_a_sweep_with_one_line(folder: Path, run: Run, undisturbed: dict[Any, Any]) -> None:
    def no_large_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    done = run("sweep", "plan.toml", "--workers", "1", preexec_fn=no_large_files)
    lines = done.stderr.splitlines()
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "make room" in lines[-1]
    kept = rows_of(folder / "plan.db")
    assert is_part_of(kept, undisturbed)
    assert run("sweep", "plan.toml", "--workers", "1").returncode == 0
    assert rows_of(folder / "plan.db") == undisturbed
    assert kept
