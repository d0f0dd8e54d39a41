"""What every test runs under."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib
import pytest
import torch

matplotlib.use("Agg")  # figures need no screen
torch.set_num_threads(1)  # the tests already share the cores among them

Done = subprocess.CompletedProcess[str]
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[[Callable[[list[str]], int], list[str]], str]:
    """Runs a program that is to refuse its arguments with one line on standard error and exit code 2: that line."""

    def run(main: Callable[[list[str]], int], arguments: list[str]) -> str:
        try:
            code = main(arguments)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else -1
        shown = capsys.readouterr()
        assert (code, shown.out) == (2, "")
        assert shown.err.count("\n") == 1
        return shown.err

    return run


@pytest.fixture
def with_ctrl_c() -> Iterator[Callable[[list[str], Path], Done]]:
    """Runs a module with its arguments and presses Ctrl-C once a file is there.

    Children of a job in the background ignore Ctrl-C, since their parents do; here they don't.
    """

    def run(module: list[str], once: Path) -> Done:
        command = [sys.executable, "-m", *module]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
            try:
                deadline = time.monotonic() + 120
                while not once.exists() and running.poll() is None and time.monotonic() < deadline:
                    time.sleep(0.1)
                running.send_signal(signal.SIGINT)
                shown, errors = running.communicate(timeout=60)
            finally:
                running.kill()
        return Done(command, running.returncode, shown, errors)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield run
    signal.signal(signal.SIGINT, before)
