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
    (tmp_path / "junk.npz").write_text("no archive")
    np.savez(tmp_path / "objects.npz", z=np.array([[{}]], dtype=object))
    np.savez(tmp_path / "constant.npz", z=np.ones((2, 50)))
    np.savez(tmp_path / "density.npz", z=noise, log_q=np.full((4, 500), -np.inf))
    (tmp_path / "junk.nc").write_text("no archive")
    (tmp_path / "junk.csv").write_text("z\n1.0\nx\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


ARGUMENTS = ["measure", "of_draws:model", "--args", "of_draws:data", "--draws"]


def test_the_record_has_the_right_sd_ratio(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ARGUMENTS, "draws.npz", "--json", "-"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["sd_ratio"] == pytest.approx(0.5, abs=0.03)
    assert record["elbo"] is None


def test_draws_outside_the_support_are_told_within_80_columns(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "positive.py").write_text(MODEL.replace("dist.Normal(0.0, 1.0)", "dist.Exponential(1.0)"))
    assert main(["measure", "positive:model", "--args", "positive:data", "--draws", "draws.npz"]) == 0
    told = capsys.readouterr().out
    assert "leaked mass" in told
    assert max(map(len, told.splitlines())) <= 80


def test_an_uncertified_truth_has_an_exit_code_of_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = ppl_vi.truth.ground_truth

    def doubtful(*args: object, **kwargs: object) -> Truth:
        return dataclasses.replace(right(*args, **kwargs), grade="uncertified", reasons=("chains disagree " * 9,))  # type: ignore[arg-type]

    monkeypatch.setattr(ppl_vi.truth, "ground_truth", doubtful)
    assert main([*ARGUMENTS, "draws.npz"]) == 3
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (["nothing.npz"], "there is no file 'nothing.npz'"),
        (["draws.npz", "--names", "z"], "expected THEIRS=OURS"),
        (["draws.npz", "--transforms", "z=z:cube"], "expected THEIRS=OURS:FUNCTION"),
        (["draws.npz", "--names", "w=z"], "z"),
        (["junk.npz"], "junk.npz is no .npz"),
        (["objects.npz"], "holds Python objects"),
        (["constant.npz"], "do not vary"),
        (["density.npz"], "log_q must be finite"),
        (["junk.nc"], "junk.nc is no NetCDF file"),
        (["junk.csv"], "junk.csv, line 3"),
    ],
)
def test_a_mistake_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str], more: list[str], part: str) -> None:
    assert main([*ARGUMENTS, *more]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("ppl-vi")
    assert part in last
    assert "allow_pickle" not in last
