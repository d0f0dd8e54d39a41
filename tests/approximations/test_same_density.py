"""Whether another system's log density is ours: by SciPy's own densities of the same model, and changed ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor

import ppl_vi
from ppl_vi import Target

Y = torch.tensor([1.0, 0.2, 0.9, 1.6], dtype=torch.float64)
Latents = dict[str, np.ndarray]


def model(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    sigma = pyro.sample("sigma", dist.LogNormal(0.0, 0.5))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mu, sigma), obs=y)


def by_scipy(z: Latents) -> float:
    prior = stats.norm.logpdf(z["mu"], 0, 2) + stats.lognorm.logpdf(z["sigma"], 0.5)
    return float(prior + stats.norm.logpdf(Y.numpy(), z["mu"], z["sigma"]).sum())


def target() -> Target:
    return Target.of(model, (Y,), name="rows")


OTHERS: dict[str, tuple[Callable[[Latents], float], str]] = {
    "itself": (by_scipy, "same"),
    "unnormalised": (lambda z: by_scipy(z) + 2.5, "constant"),
    "of the logarithm": (lambda z: by_scipy(z) + float(np.log(z["sigma"])), "jacobian"),
    "another prior": (lambda z: by_scipy(z) + float(z["mu"]), "different"),
}


@pytest.mark.parametrize("name", list(OTHERS))
def test_each_difference_is_told(name: str) -> None:
    other, kind = OTHERS[name]
    found = ppl_vi.same_density(target(), other, num_points=60)
    assert found.kind == kind
    assert bool(found) == (kind == "same")
    assert len(found.difference) == 60
    if kind == "constant":
        assert found.constant == pytest.approx(2.5, abs=1e-10)
        assert "+2.5 nats" in str(found)
    if kind == "jacobian":
        assert found.jacobians == {"sigma": 1.0}
    if kind == "different":  # the difference is mu itself
        assert found.theirs - found.ours == pytest.approx(float(found.where["mu"]), abs=1e-9)
        assert "another model" in str(found)


def test_names_and_all_points_at_once() -> None:
    found = ppl_vi.same_density(
        target(),
        lambda z: np.array([by_scipy({"mu": m, "sigma": s}) for m, s in zip(z["m"], z["sigma"], strict=True)]),
        names={"m": "mu"},
        vectorised=True,
    )
    assert found.kind == "same"


def test_what_is_no_density_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="raised KeyError") as raised:
        ppl_vi.same_density(target(), lambda z: z["nothing"])
    assert "\n" not in str(raised.value)
    with pytest.raises(TypeError, match="expected a Target or a Truth"):
        ppl_vi.same_density(model, by_scipy)  # type: ignore[arg-type]
