"""Data that are missing, by masks or by `obs_mask`."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.func import grad

from ppl_vi import Target, ground_truth

NAN = float("nan")
Y = torch.tensor([1.0, NAN, 2.0, 0.4], dtype=torch.float64)


def masked(y: Tensor) -> None:
    mean, scale = pyro.sample("mean", dist.Normal(0.0, 1.0)), pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("rows", len(y)), poutine.mask(mask=~y.isnan()):
        pyro.sample("y", dist.Normal(mean, scale), obs=y)


def masked_rows(y: Tensor) -> None:
    mean, scale = pyro.sample("mean", dist.Normal(0.0, 1.0)), pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("rows", len(y)):
        density = dist.Normal(mean, scale).expand([len(y), 2]).to_event(1)
        pyro.sample("y", density.mask(~y.isnan().any(-1)), obs=y)


@pytest.mark.parametrize(
    ("model", "y", "seen"),
    [
        (masked, Y, Y[[0, 2, 3]]),
        (masked_rows, torch.stack([Y, Y + 1, Y.flip(0)], 1)[:, :2], torch.stack([Y, Y + 1], 1)[[0, 2, 3]]),
    ],
)
def test_masked_nan_count_for_nothing_in_density_and_gradient(model, y, seen) -> None:
    """The same as the model of the data that are there."""
    with_nan, without = Target.of(model, (y,)), Target.of(model, (seen,))
    u = torch.tensor([0.3, -0.7], dtype=torch.float64)
    for of in (lambda target: target.log_density_of_row, lambda target: grad(target.log_density_of_row)):
        torch.testing.assert_close(
            of(with_nan)(u, *with_nan.row(0)), of(without)(u, *without.row(0)), rtol=1e-13, atol=1e-13
        )
    one, other = ground_truth(with_nan), ground_truth(without)
    assert (one.grade, other.grade) == ("checked", "checked")
    assert one.log_evidence[0] == pytest.approx(other.log_evidence[0], abs=1e-9)


def test_nan_that_count_are_refused() -> None:
    def model(y: Tensor) -> None:
        with pyro.plate("rows", len(y)), poutine.mask(mask=torch.tensor([True, True, False, True])):
            pyro.sample("y", dist.Normal(pyro.sample("mean", dist.Normal(0.0, 1.0)), 1.0), obs=y)

    with pytest.raises(ValueError, match="the data hold nan"):
        Target.of(model, (Y,))


def test_continuous_data_that_are_partly_missing_are_those_that_are_there() -> None:
    """By Pyro's `obs_mask`, at a site of single numbers and at one of pairs; three and two entries are there."""
    y = torch.tensor([[0.3, 1.2], [2.2, torch.nan], [0.7, -0.4]], dtype=torch.float64)
    there = ~y.isnan()

    def model(y: Tensor) -> None:
        level = pyro.sample("level", dist.Normal(0.5, 2.0))
        with pyro.plate("rows", 3):
            pyro.sample("first", dist.Normal(level, 1.5), obs=y[:, 0], obs_mask=torch.tensor([True, False, True]))
            pyro.sample("pair", dist.Normal(level, y.new_ones(2)).to_event(1), obs=y, obs_mask=there.all(-1))

    target = Target.of(model, (y,))
    assert [site.name for site in target.latents] == ["level"]
    seen, sd = np.array([0.3, 0.7, 0.3, 1.2, 0.7, -0.4]), np.array([1.5, 1.5, 1.0, 1.0, 1.0, 1.0])
    exact = stats.multivariate_normal.logpdf(seen, np.full(6, 0.5), np.diag(sd**2) + 4.0)
    assert float(ground_truth(target).log_evidence[0]) == pytest.approx(exact, abs=1e-10)
