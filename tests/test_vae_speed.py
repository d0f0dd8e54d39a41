"""Both sides of the comparison take the same steps, and the step is one along the ELBO's gradient."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from benchmarks import vae_speed
from models.vae import VAE
from ppl_vi.guides.amortized import AMORTIZED
from ppl_vi.state import isolated
from tests.strict_json import strict


def test_both_sides_take_the_same_steps() -> None:
    with isolated(torch.float64, seed=2):
        x = torch.bernoulli(torch.rand(16, 5))
        module = VAE(5, AMORTIZED["diagonal"](2), hidden=(8,))
        sides = []
        for make in (vae_speed.plain_step, vae_speed.pyro_step):
            one = copy.deepcopy(module)
            step = make(one, x)
            torch.manual_seed(3)
            for _ in range(5):
                step()
            sides.append(one)
    start, plain, ours = (torch.cat([p.detach().ravel() for p in one.parameters()]) for one in (module, *sides))
    assert (plain - start).abs().mean() > 1e-3  # five steps of Adam at 1e-3
    # rounding, 1e-16, over Adam's 1e-8, times the step size
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-9)


def test_the_times_are_shown_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vae_speed, "PROBLEMS", {"tiny": (5, (8,), 4)})
    monkeypatch.setattr(vae_speed, "STEPS", 2)
    assert vae_speed.main(["--rounds", "2", "--out", str(tmp_path)]) == 0
    assert "tiny" in capsys.readouterr().out
    (record,) = strict((tmp_path / "records.json").read_text())
    assert record["pyro_ms"] > 0
    assert record["plain_ms"] > 0
