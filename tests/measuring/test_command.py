"""`ppl-vi measure` from a shell: its exit codes, one line for a mistake, and the record."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import ppl_vi.truth
from ppl_vi.__main__ import main
from ppl_vi.truth import Truth

MODEL = """
import pyro, torch
import pyro.distributions as dist

def model(y):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(z, 1.0), obs=y)

data = (torch.tensor(0.8),)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a model whose posterior is normal(0.4, 1 / 2), and draws of half its sd."""
    (tmp_path / "of_draws.py").write_text(MODEL)
    noise = np.random.default_rng(0).standard_normal((4, 500))
    np.savez(tmp_path / "draws.npz", z=0.4 + 0.5**0.5 * noise / 2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


ARGUMENTS = ["measure", "of_draws:model", "--args", "of_draws:data", "--draws"]


def test_the_record_has_the_right_sd_ratio(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ARGUMENTS, "draws.npz", "--json", "-"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["sd_ratio"] == pytest.approx(0.5, abs=0.03)
    assert record["elbo"] is None


def test_an_uncertified_truth_has_an_exit_code_of_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = ppl_vi.truth.ground_truth

    def doubtful(*args: object, **kwargs: object) -> Truth:
        return dataclasses.replace(right(*args, **kwargs), grade="uncertified", reasons=("chains disagree",))  # type: ignore[arg-type]

    monkeypatch.setattr(ppl_vi.truth, "ground_truth", doubtful)
    assert main([*ARGUMENTS, "draws.npz"]) == 3


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (["nothing.npz"], "there is no file 'nothing.npz'"),
        (["draws.npz", "--names", "z"], "expected THEIRS=OURS"),
        (["draws.npz", "--transforms", "z=z:cube"], "expected THEIRS=OURS:FUNCTION"),
        (["draws.npz", "--names", "w=z"], "z"),
    ],
)
def test_a_mistake_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str], more: list[str], part: str) -> None:
    assert main([*ARGUMENTS, *more]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("ppl-vi")
    assert part in last
