"""Supports that move with other latents: Uniform(0, a) of a drawn a."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal, AutoNormalMessenger
from scipy import integrate, stats
from torch import Tensor
from torch.distributions import constraints
from torch.func import jacrev

import ppl_vi
from ppl_vi.svi.support import SupportMismatchError
from ppl_vi.target.target import Target

Y = np.array([0.5, 1.0])


def below(y: Tensor) -> None:
    a = pyro.sample("a", dist.HalfNormal(2.0))
    b = pyro.sample("b", dist.Uniform(0.0, a))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(b, 1.0), obs=y)


def chain(y: Tensor) -> None:
    a = pyro.sample("a", dist.Gamma(3.0, 1.0))
    with pyro.plate("groups", 2):
        b = pyro.sample("b", dist.Uniform(-a, 2 * a))
    c = pyro.sample("c", dist.Pareto(b.square().sum(), 3.0))
    pyro.sample("y", dist.Normal(c, 1.0).expand([2]).to_event(1), obs=y)


def hand_written(y: Tensor) -> None:
    loc = pyro.param("loc", torch.zeros(2))
    scale = pyro.param("scale", torch.ones(2), constraint=constraints.positive)
    a = pyro.sample("a", dist.LogNormal(loc[0], scale[0]))
    to_interval = [dist.transforms.SigmoidTransform(), dist.transforms.AffineTransform(0.0, a)]
    pyro.sample("b", dist.TransformedDistribution(dist.Normal(loc[1], scale[1]), to_interval))


def leaking(y: Tensor) -> None:
    shape = pyro.param("shape", torch.ones(3), constraint=constraints.positive)
    a = pyro.sample("a", dist.LogNormal(0.0, shape[0]))
    pyro.sample("b", dist.AffineBeta(shape[1], shape[2], 0 * a, 2 * a))


@pytest.fixture(scope="module")
def compared() -> Any:
    guides = {"mine": hand_written, "messenger": AutoNormalMessenger, "fixed": AutoNormal, "leaking": leaking}
    return ppl_vi.compare(below, guides, args=(Y,), seed=0, num_replicas=2, num_steps=400)


def test_the_map_and_its_jacobian() -> None:
    """Against automatic differentiation of the map, at points of which the supports are all different."""
    target = Target.of(chain, (Y,))
    assert target.moving == ("b", "c")
    u = torch.linspace(-1.5, 2.0, 12, dtype=torch.float64).reshape(3, 4)

    def flat(point: Tensor) -> Tensor:
        values, _ = target.constrain(point)
        return torch.cat([values[site.name].reshape(-1) for site in target.latents])

    latents, log_jacobian = target.constrain(u.reshape(3, 1, 4))
    assert latents["b"].shape == (3, 1, 2)
    assert log_jacobian.shape == (3, 1)
    for point, found in zip(u, log_jacobian[:, 0], strict=True):
        torch.testing.assert_close(found, torch.linalg.slogdet(jacrev(flat)(point))[1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(target.unconstrain(latents)[:, 0], u, rtol=1e-9, atol=1e-9)
    assert bool(target.inside(latents).all())


def test_what_is_inside_depends_on_the_others() -> None:
    target = Target.of(below, (Y,))
    latents = {"a": torch.tensor([1.0, 1.0, 3.0]).double(), "b": torch.tensor([0.5, 2.0, 2.0]).double()}
    assert target.inside(latents).tolist() == [True, False, True]
    assert bool(target.inside({name: value[0] for name, value in latents.items()}))


def test_log_evidence_by_another_route(compared: Any) -> None:
    """SciPy's nested quadrature over a and b themselves."""

    def joint(b: float, a: float) -> float:
        return float(stats.halfnorm.pdf(a, scale=2) / a * stats.norm.pdf(Y, b).prod())

    evidence, error = integrate.dblquad(joint, 0, 40, 0, lambda a: a, epsabs=1e-12, epsrel=1e-10)
    assert compared.truth.grade == "checked"
    away = abs(float(compared.truth.log_evidence[0]) - math.log(evidence))
    assert away <= float(compared.truth.log_evidence_error[0]) + error / evidence


def test_guides_that_follow_the_support_are_measured(compared: Any) -> None:
    """Mean field written by hand and Pyro's messenger are one family: their best members are equally good."""
    mine, messenger = (_record(compared, name) for name in ("mine", "messenger"))
    assert messenger["family_gap"] == pytest.approx(mine["family_gap"], abs=2e-5)
    assert messenger["family_gap"] > 0.2
    for record in (mine, messenger):
        assert record["reverse_kl"] == pytest.approx(record["family_gap"] + record["optimization_gap"], abs=1e-3)


def test_an_autoguide_that_keeps_to_one_support_is_refused_by_name(compared: Any) -> None:
    record = _record(compared, "fixed")
    assert record["status"] == "skipped"
    assert "the support of site 'b' moves with other latents, and AutoNormal keeps to that of one" in record["reason"]


def test_a_guide_whose_own_moving_support_reaches_too_far_leaks(compared: Any) -> None:
    """Uniform(0, 2 a) where the model has Uniform(0, a): half of its mass is outside."""
    record = _record(compared, "leaking")
    assert record["reverse_kl"] == "inf"
    assert record["leaked_mass"] == pytest.approx(0.5, abs=0.02)  # 4 standard errors of 10,000 draws
    with pytest.raises(SupportMismatchError, match="site 'b': the guide's support"):
        ppl_vi.fit(compared.target, lambda model: compared.target.bind(leaking))


def test_a_batch_of_problems_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the support of site 'b' moves with other latents or with the problem"):
        _ = Target(below, (torch.from_numpy(np.stack([Y, Y])),)).latents


def test_ends_of_their_own_for_each_element() -> None:
    """An interval with an end for each element is one support, not a moving one, and has a figure like any other."""

    def model(y: Tensor) -> None:
        low, high = y.new_tensor([0.0, 1.0]), y.new_tensor([2.0, 4.0])
        p = pyro.sample("p", dist.Uniform(low, high).to_event(1))
        pyro.sample("y", dist.Normal(p.sum(), 1.0).expand([2]).to_event(1), obs=y)

    found = ppl_vi.compare(model, [AutoMultivariateNormal], args=(Y,), num_replicas=1, num_steps=200)
    assert not found.target.moving
    assert found.edges[0, :, 0].tolist() == pytest.approx([0.0, 1.0], abs=0.01)
    assert found.edges.max() <= 4.0


def _record(compared: Any, guide: str) -> dict[str, Any]:
    return next(record for record in compared.records() if record["guide"] == guide)
