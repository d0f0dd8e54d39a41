"""Functions that `vmap` knows by a loop alone: values and derivatives against torch's own, one point at a time."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import biject_to, multivariate_normal
from torch.func import jacrev, vmap

from ppl_vi.target.vmap_rules import known_to_vmap


def correlated(u: Tensor) -> Tensor:
    """The log density of a 3x3 LKJ prior in unconstrained space."""
    fn = dist.LKJCholesky(3, torch.tensor(1.7, dtype=u.dtype))
    bijector = biject_to(fn.support)
    factor = bijector(u)
    return fn.log_prob(factor) + bijector.log_abs_det_jacobian(u, factor) + factor.sum()


FACTOR = torch.tensor([[1.2, 0.0, 0.0], [-0.4, 0.3, 0.0], [2.0, 0.7, 0.05]], dtype=torch.float64)


def normal_log_density(u: Tensor, factor: Tensor = FACTOR) -> Tensor:
    """The log density of a correlated normal at `u`."""
    return dist.MultivariateNormal(torch.ones_like(u), scale_tril=factor).log_prob(u)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "LKJ": correlated,
    "cumprod": lambda u: (u.cumprod(-1) ** 2 * torch.tensor([0.3, 1.1, 2.0])).sum(),
    "cummax": lambda u: u.cummax(0).values.square().sum(),
    "cummin": lambda u: torch.cummin(u, dim=0)[0].square().sum(),
    "take": lambda u: torch.take(u, torch.tensor([2, 0, 2])).prod(),
    "normal, one factor": normal_log_density,
    "normal, a factor for each point": lambda u: normal_log_density(u.tanh(), FACTOR * (1 + u[0] ** 2)),
    "matrix times vector": lambda u: multivariate_normal._batch_mv(FACTOR, u.sin()).prod(),
    "log_ndtr": lambda u: torch.special.log_ndtr(8 * u).sum(),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_many_points_at_once_are_torchs_own_one_by_one(name: str) -> None:
    function = FUNCTIONS[name]
    points = torch.tensor([[0.4, -0.7, 1.1], [-1.3, 0.0, 0.6], [0.2, 0.9, -2.1]], dtype=torch.float64)
    ways = (function, jacrev(function), jacrev(jacrev(function)))
    before = torch.cumprod, Tensor.cumprod, torch.special.log_ndtr
    with known_to_vmap(), warnings.catch_warnings():
        warnings.simplefilter("error")  # torch's of a performance drop
        found = [vmap(way)(points) for way in ways]
    assert (torch.cumprod, Tensor.cumprod, torch.special.log_ndtr) == before
    for point, *values in zip(points, *found, strict=True):
        value, slope, curvature = values
        torch.testing.assert_close(value, function(point))  # torch's own, without vmap
        torch.testing.assert_close(slope, torch.autograd.functional.jacobian(function, point))
        torch.testing.assert_close(curvature, torch.autograd.functional.hessian(function, point))


def test_the_gradient_in_a_factor_that_all_points_share() -> None:
    points = torch.tensor([[0.4, -0.7, 1.1], [-1.3, 0.0, 0.6], [0.2, 0.9, -2.1]], dtype=torch.float64)

    def total(factor: Tensor) -> Tensor:
        return vmap(normal_log_density, in_dims=(0, None))(points, factor.tril()).sum()

    with known_to_vmap():
        found = jacrev(total)(FACTOR)
    one_by_one = [jacrev(lambda factor, u=u: normal_log_density(u, factor.tril()))(FACTOR) for u in points]
    torch.testing.assert_close(found, torch.stack(one_by_one).sum(0))


@pytest.mark.parametrize("length", [1, 2, 5, 8])
def test_whole_numbers_and_any_axis(length: int) -> None:
    x = torch.linspace(-1.5, 2.0, 3 * length * 2, dtype=torch.float64).reshape(3, length, 2)
    whole = torch.arange(1, 6)
    product, of_whole = x.cumprod(1), whole.cumprod(0)
    with known_to_vmap():
        torch.testing.assert_close(x.cumprod(1), product)
        assert torch.equal(whole.cumprod(0), of_whole)
