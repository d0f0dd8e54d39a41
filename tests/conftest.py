"""The settings, the random state and the helpers that all tests share."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch

matplotlib.use("Agg")  # figures need no screen
torch.set_num_threads(1)  # the tests already share the cores among them

Done = subprocess.CompletedProcess[str]
ROOT = Path(__file__).resolve().parent.parent
SEED = 20
FIRST_LINE = "loading Pyro and the model\n"  # before what takes seconds, and so before some errors
FIRST_LINE_OF_SWEEPS = "loading Pyro and the models\n"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs slow tests first, so that at the end of a run no process waits for one that another has just begun."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Seeds all generators before the fixtures of a test, so that no number depends on which tests ran before."""
    _seed_everything()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Seeds all generators after the fixtures that several tests share, which were made for the first of them."""
    _seed_everything()


def _seed_everything() -> None:
    torch.manual_seed(SEED)
    np.random.seed(SEED)
    random.seed(SEED)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[[Callable[[list[str]], int], list[str]], str]:
    """Runs a program that must refuse its arguments, with one line on standard error and exit code 2; returns it."""

    def run(main: Callable[[list[str]], int], arguments: list[str]) -> str:
        try:
            code = main(arguments)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else -1
        shown = capsys.readouterr()
        assert (code, shown.out) == (2, "")
        told = shown.err.removeprefix(FIRST_LINE).removeprefix(FIRST_LINE_OF_SWEEPS)
        assert told.count("\n") == 1
        return told

    return run


@pytest.fixture
def with_ctrl_c() -> Iterator[Callable[[list[str], Path], Done]]:
    """Runs a module with its arguments and presses Ctrl-C as soon as a file exists.

    A shell lets jobs in the background ignore Ctrl-C, and their children inherit that; while this fixture is in use,
    Ctrl-C has its usual effect.
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
