"""The command line under real signals and with killed processes: one trial of each kind that can be run by itself."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.faults_processes import GUIDES, Run, after, interrupts_in_python, killed_workers, signal_when

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked for in /proc"),
]


def a_row_is_reported(run: Run) -> bool:
    return bool(run.records())


@pytest.mark.parametrize("signum", SIGNALS, ids=lambda signum: signum.name)
@pytest.mark.parametrize("to_group", [False, True], ids=["alone", "group"])
def test_a_signal_costs_no_reported_row_and_leaves_no_process(
    signum: signal.Signals, to_group: bool, tmp_path: Path
) -> None:
    wrong, kept = signal_when(tmp_path, a_row_is_reported, signum, to_group)
    assert wrong == ""
    assert 0 < len(kept) < len(GUIDES)


@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.3, 0.6, 1.0, 2.0])
def test_ctrl_c_while_the_program_starts_is_one_line(seconds: float, tmp_path: Path) -> None:
    assert signal_when(tmp_path, after(seconds), signal.SIGINT) == ("", set())
    assert (tmp_path / "err").read_text().splitlines()[-1] == "ppl-vi: interrupted, nothing was finished"


@pytest.mark.parametrize("trials", [killed_workers, interrupts_in_python])
def test_no_guide_is_lost(trials: Callable[..., list[str]], tmp_path: Path) -> None:
    assert list(trials(2, 7, tmp_path)) == ["", ""]


def test_a_trial_can_fail(tmp_path: Path) -> None:
    """A process that hangs is seen as an orphan, and a code that does not fit as wrong."""
    leave = "import subprocess, os, sys; subprocess.Popen(['sleep', '60']); os._exit(5)"
    run = Run(tmp_path, command=("-c", leave))
    try:
        assert run.ended().code == 5
        time.sleep(0.1)
        assert len(run.processes()) == 1
    finally:
        run.end()
    assert run.orphans() == []
