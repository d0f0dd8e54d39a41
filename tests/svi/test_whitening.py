"""The density of a normal draw by its noise is that of the distribution, with the same derivatives."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal
from torch import Tensor
from torch.func import grad

from ppl_vi import Target, fit
from ppl_vi.svi.program import Program
from ppl_vi.svi.start import build_guide
from ppl_vi.svi.whitening import Whitening

NUMBER = {AutoNormal: 3, AutoDiagonalNormal: 1, AutoMultivariateNormal: 1}


def model(y: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
    with pyro.plate("groups", 3):
        b = pyro.sample("b", dist.Normal(a.sum(), s))
        pyro.sample("y", dist.Normal(b, 1.0), obs=y)


def scaled(y: Tensor) -> None:
    """A guide whose site has a scale and a mask."""
    at = pyro.param("at", torch.tensor([0.3, -0.2, 1.0]))
    pyro.sample("a", dist.Normal(at[:2], torch.tensor([0.5, 2.0])).to_event(1))
    pyro.sample("s", dist.LogNormal(at[2], 0.5))
    with (
        pyro.plate("groups", 3),
        pyro.poutine.scale(scale=2.0),
        pyro.poutine.mask(mask=torch.tensor([True, False, True])),
    ):
        pyro.sample("b", dist.Normal(at.sum(), torch.tensor([1.0, 2.0, 3.0])))


@pytest.mark.parametrize("family", [AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal])
def test_densities_and_derivatives_are_the_distributions_own(family: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target.of(model, (torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64),))
    program = Program(target, build_guide(family, target))
    theta = fit(target, family, num_steps=20, num_particles=4, num_replicas=1, engine="batched").theta[0, 0]
    _both_agree(program, theta, NUMBER[family], monkeypatch)


def test_scales_and_masks_count(monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target.of(model, (torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64),))
    found = fit(target, lambda _: scaled, num_steps=1, num_particles=1, num_replicas=1, engine="batched")
    _both_agree(found.program, found.theta[0, 0] + 0.1, 2, monkeypatch)


def _both_agree(program: Program, theta: Tensor, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    row = program.target.row(0)
    generator = torch.Generator().manual_seed(0)
    noise = tuple(torch.randn(d.shape, dtype=d.dtype, generator=generator) for d in program.draws)
    seen: list[int] = []

    def log_guide(at: Tensor) -> Tensor:
        sites = [n for n in program.guide_trace(at, row, noise).nodes.values() if n["type"] == "sample"]
        return sum((n["log_prob_sum"] for n in sites), torch.zeros(()))

    score = Whitening.score
    monkeypatch.setattr(Whitening, "score", lambda self, trace: (seen.append(len(self.noise)), score(self, trace)))
    found = log_guide(theta), grad(log_guide)(theta)
    assert seen[0] == number  # so many sites are scored by their noise
    monkeypatch.setattr(Whitening, "score", lambda self, trace: None)
    for ours, own in zip(found, (log_guide(theta), grad(log_guide)(theta)), strict=True):
        torch.testing.assert_close(ours, own, rtol=1e-12, atol=1e-12)
    assert float(found[1].abs().max()) > 0.1  # it is no derivative of a constant
