"""A model, a plan and the command line, as a user has them in a folder."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ppl_vi.sweeps.checks import StoreError
from ppl_vi.sweeps.results import load_results

ROOT = Path(__file__).resolve().parents[2]
MODEL = """
import pyro
import pyro.distributions as dist
import torch

import ppl_vi

SCALE = 1.0


def noise():
    return SCALE


def model(x):
    z = pyro.sample("z", dist.Exponential(1.0))
    pyro.sample("x", dist.Normal(z, noise()), obs=x)


def data_model(x):
    model(x)


data = torch.tensor(1.5)
target = ppl_vi.Target.batch(model, (torch.tensor([0.5, 1.5]),), name="toy")
"""
PLAN = """
models = ["toy_model:target"]
guides = ["lognormal", "exponential"]
lr = [0.05, 0.2]
num_steps = 40
engine = "batched"
num_draws = 50
seed = "0:6"
block = 3
"""
Run = Callable[..., subprocess.CompletedProcess[str]]


class Deadly:
    """A family whose process is killed, except in the process that made it."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.__name__ = "deadly"

    def __call__(self, model: Any) -> Any:
        if os.getpid() != self.pid:
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError("in the process of the tests")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a model and a plan."""
    (tmp_path / "toy_model.py").write_text(MODEL)
    (tmp_path / "plan.toml").write_text(PLAN)
    return tmp_path


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "ppl_vi", *arguments]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture
def run(folder: Path) -> Run:
    """Runs `ppl-vi` in the folder."""

    def ran(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*arguments), cwd=folder, env=environment(), capture_output=True, text=True, timeout=300, **options
        )

    return ran


def rows_of(file: Path) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    """What a file has now, without what it took: {} where there is no file yet."""
    try:
        frame = load_results(file)
    except StoreError as error:
        if "there are no results" not in str(error):
            raise
        return {}
    assert not frame.duplicated(["key", "problem", "seed"]).any()
    frame = frame.drop(columns=[name for name in frame if name.endswith("_seconds")])
    return {
        (row["key"], row["problem"], row["seed"]): tuple(map(repr, row.values())) for row in frame.to_dict("records")
    }


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    """The rows of the plan's sweep in one process that nothing disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "toy_model.py").write_text(MODEL)
    (folder / "plan.toml").write_text(PLAN)
    done = subprocess.run(
        command("sweep", "plan.toml", "--workers", "1"), cwd=folder, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = rows_of(folder / "plan.db")
    assert len(found) == 2 * 2 * 2 * 6
    return found
