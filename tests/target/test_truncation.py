"""Distributions that declare a wider support than they have, or whose formula goes on beyond it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms
from pyro.infer.autoguide import AutoNormal
from scipy import integrate, stats
from torch import Tensor
from torch.distributions import constraints

import ppl_vi
from ppl_vi.target.supports import MovingSupport, ends
from ppl_vi.target.target import Target
from ppl_vi.target.truncation import support_of

Y = np.array([0.5, 1.0, 2.5])


def shifted(base: Any, *by: tuple[float, float]) -> Any:
    return dist.TransformedDistribution(base, [transforms.AffineTransform(loc, scale) for loc, scale in by])


@pytest.mark.parametrize(
    ("fn", "low", "high"),
    [
        (shifted(dist.Exponential(1.0), (2.0, 3.0)), 2.0, math.inf),
        (shifted(dist.Gamma(2.0, 1.0), (2.0, -1.0)), -math.inf, 2.0),
        (shifted(dist.Beta(2.0, 1.0), (1.0, 2.0), (0.0, -1.0)), -3.0, -1.0),
        (shifted(shifted(dist.Exponential(1.0), (1.0, 1.0)), (0.0, 2.0)), 2.0, math.inf),
        (shifted(dist.LogNormal(torch.zeros(2), 1.0), (2.0, 1.0)).to_event(1), 2.0, math.inf),
        (shifted(dist.Normal(0.0, 1.0), (2.0, 3.0)), -math.inf, math.inf),
        (dist.Weibull(1.0, 2.0), 0.0, math.inf),
        (dist.Gumbel(0.0, 1.0), -math.inf, math.inf),
    ],
)
def test_ends_of_what_an_affine_map_gives(fn: Any, low: float, high: float) -> None:
    found = ends(support_of(fn))
    assert found is not None
    assert [float(end) for end in found] == [low, high]
    assert support_of(fn).event_dim == len(fn.event_shape)
    draws = fn.sample((1000,))
    assert bool(support_of(fn).check(draws).all())


def delayed(y: Tensor) -> None:
    a = pyro.sample("a", shifted(dist.Exponential(1.0), (2.0, 1.0)))
    pyro.sample("y", dist.Normal(a, 1.0), obs=y[0])


def bounded(y: Tensor) -> None:
    top = pyro.sample("top", dist.Normal(0.0, 1.0))
    r = pyro.sample("r", dist.TransformedDistribution(dist.Gamma(2.0, 1.0), [transforms.AffineTransform(top, -1.0)]))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(r, 1.0), obs=y)


def least(y: Tensor) -> None:
    scale = pyro.sample("scale", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Pareto(scale, 3.0), obs=y)


def smallest(y: Tensor) -> None:
    """In no run is the scale above 1, so that a step of 1 below it is no positive number."""
    shape = pyro.sample("shape", dist.LogNormal(0.0, 1.0))
    scale = pyro.sample("scale", dist.Beta(2.0, 3.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Pareto(scale, shape), obs=y)


def by_quad_smallest() -> float:
    def joint(scale: float, shape: float) -> float:
        prior = stats.lognorm.pdf(shape, 1) * stats.beta.pdf(scale, 2, 3)
        return float(prior * stats.pareto.pdf(Y, shape, scale=scale).prod())

    return integrate.dblquad(joint, 0, 40, 0, Y.min(), epsabs=1e-12)[0]


def by_quad_delayed() -> float:
    return integrate.quad(lambda a: stats.expon.pdf(a - 2) * stats.norm.pdf(Y[0], a), 2, 30, epsabs=1e-14)[0]


def by_quad_bounded() -> float:
    def joint(r: float, top: float) -> float:
        return float(stats.norm.pdf(top) * stats.gamma.pdf(top - r, 2) * stats.norm.pdf(Y, r).prod())

    return integrate.dblquad(joint, -12, 12, lambda top: top - 40, lambda top: top, epsabs=1e-13)[0]


def by_quad_least() -> float:
    def joint(scale: float) -> float:
        return float(stats.gamma.pdf(scale, 2) * stats.pareto.pdf(Y, 3, scale=scale).prod())

    return integrate.quad(joint, 0, Y.min(), epsabs=1e-14)[0]


@pytest.mark.parametrize(
    ("model", "evidence", "tolerance"),
    [
        (delayed, by_quad_delayed, 1e-11),
        (bounded, by_quad_bounded, 1e-8),
        (least, by_quad_least, 1e-6),  # whose posterior ends in a jump, so that the tree is not certified
        (smallest, by_quad_smallest, 1e-4),
    ],
)
def test_log_evidence_stops_at_the_end(
    model: Callable[..., None], evidence: Callable[[], float], tolerance: float
) -> None:
    """Had the density gone on, the first would be e^2: SciPy's quadrature over the true support."""
    truth = ppl_vi.ground_truth(Target.of(model, (Y,)))
    assert float(truth.log_evidence[0]) == pytest.approx(math.log(evidence()), abs=tolerance)
    assert (truth.grade == "uncertified") == (model in (least, smallest))


def test_autoguides_keep_to_the_true_end() -> None:
    """Also where tails are rounded onto it: 2 + exp(u) is 2 below u = -37."""
    found = ppl_vi.compare(delayed, [AutoNormal], args=(Y,), num_replicas=2, num_steps=200)
    (record,) = found.records()
    assert record["leaked_mass"] == 0
    assert record["forward_kl"] == pytest.approx(0.252, abs=0.02)
    assert record["reverse_kl"] == pytest.approx(record["family_gap"] + record["optimization_gap"], abs=1e-6)
    assert float(found["AutoNormal"].draw(1000, seed=0)["a"].min()) > 2.0
    # rounding onto the end, where the density is not 0, hides that a lognormal's falls faster than any power there
    assert (record["chi_square"], record["chi_square_error"]) == ("inf", 0.0)
    assert record["importance_log_evidence_std_error"] == "inf"


def test_an_infinite_density_at_an_end_that_rounding_reaches_is_refused() -> None:
    """Of Gamma(1/2) shifted by 2 a mass of 1e-8 is rounded onto 2, where its density is infinite."""

    def model(y: Tensor) -> None:
        a = pyro.sample("a", shifted(dist.Gamma(0.5, 1.0), (2.0, 1.0)))
        pyro.sample("y", dist.Normal(a, 1.0), obs=y[0])

    with pytest.raises(
        ValueError, match=r"^model: the .*density is .*infinite.*: where latents are rounded onto an end"
    ):
        ppl_vi.ground_truth(Target.of(model, (Y,)))


def test_an_end_that_moves_is_a_moving_support() -> None:
    (_, site) = Target.of(bounded, (Y,)).latents
    assert isinstance(site.support, MovingSupport)
    assert type(site.support.example) is type(constraints.less_than(0.0))
