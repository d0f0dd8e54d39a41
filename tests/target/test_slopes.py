"""The mode of much data, whose slopes come from machine code, against torch's own derivatives."""

from __future__ import annotations

import pickle
import shutil

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_vi import Target
from ppl_vi.target import slopes

pytestmark = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")


def counts(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
    size = pyro.sample("size", dist.Gamma(2.0, 0.5))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.GammaPoisson(size, size / (x @ w).exp()), obs=y)


def posed() -> Target:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(150, 3, generator=generator, dtype=torch.float64)
    y = torch.poisson((x @ torch.tensor([0.5, -0.3, 0.2], dtype=torch.float64)).exp(), generator)
    return Target.of(counts, (x, y), name="counts")


def test_mode_and_curvature_are_those_of_torchs_derivatives(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = posed()
    assert plain.laplace.converged.all()
    assert plain.slopes is None  # the data are not much
    monkeypatch.setattr(slopes, "MIN_NUMBERS", 1)
    target = posed()
    found, start = target.laplace, target.start
    assert target.slopes is not None
    torch.testing.assert_close(found.loc, plain.laplace.loc, rtol=0, atol=1e-6)  # MODE_TOLERANCE is 1e-10 nats
    torch.testing.assert_close(found.precision, plain.laplace.precision, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.log_density, plain.laplace.log_density, rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(start.loc, plain.start.loc, rtol=0, atol=1e-6)
    assert found.converged.all()


def test_a_target_with_slopes_goes_to_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slopes, "MIN_NUMBERS", 1)
    target = posed()
    assert target.laplace.converged.all()
    assert target.slopes is not None
    state = target.__reduce_ex__(4)[2]
    assert isinstance(state, dict)
    assert "slopes" not in state
    assert pickle.loads(pickle.dumps(target)) is target  # within a process it is the object itself
