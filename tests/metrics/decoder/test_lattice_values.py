"""Expectations on shared lattices: against closed forms of a quadratic, and against a rule that decodes for itself."""

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from models.vae import VAE, target
from ppl_vi.guides.amortized.full import Full
from ppl_vi.metrics.decoder import lattice_values as module
from ppl_vi.metrics.decoder.best_members import best_members
from ppl_vi.metrics.decoder.elbo import elbo, elbo_by
from ppl_vi.metrics.decoder.lattice_values import (
    CachedLattice,
    Gaussians,
    inverted,
    lattice_elbo,
    monomials,
    rough_elbo,
    stein,
)
from ppl_vi.numerics.mixtures import GaussianMixtures
from ppl_vi.target.decoder import Decoded
from ppl_vi.target.target import Target

CURVATURE = 2.5


def standard_normal(dim: int) -> Callable[[Tensor], None]:
    def model(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(torch.zeros(dim).double(), 1.0).to_event(1))

    return model


def quadratic(dim: int, num_problems: int = 3) -> tuple[Target, Tensor]:
    """f = -|z - x|^2 CURVATURE / 2, one x a problem."""
    x = torch.randn(num_problems, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def log_likelihood(z: Tensor, x: Tensor) -> Tensor:
        return -CURVATURE / 2 * (z - x[:, None]).square().sum(-1)

    return Target(
        standard_normal(dim), (x,), decoded=Decoded(log_likelihood, lambda x: torch.zeros(len(x)).double())
    ), x


def gaussians(dim: int, num: int = 12, num_problems: int = 3, scale: float = 1.0) -> Gaussians:
    generator = torch.Generator().manual_seed(dim)
    tril = torch.randn(num, dim, dim, dtype=torch.float64, generator=generator).tril(-1)
    size = torch.exp(0.7 / dim * torch.randn(num, dim, dtype=torch.float64, generator=generator))
    loc = (0.1 if dim == 3 else 3.0) * torch.randn(num, dim, dtype=torch.float64, generator=generator)
    return Gaussians(loc, scale * (0.7 / dim * tril + torch.diag_embed(size)), torch.arange(num) % num_problems)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 20.0])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_moments_of_a_quadratic_are_its_closed_forms(dim: int, scale: float) -> None:
    of, x = quadratic(dim)
    at = gaussians(dim, scale=scale)
    value, sums = CachedLattice(of).moments(at, CachedLattice.levels(at, 1), 4)
    away = at.loc - x[at.problem]
    trace = at.tril.square().sum((-1, -2))
    torch.testing.assert_close(value, -CURVATURE / 2 * (away.square().sum(-1) + trace), rtol=1e-11, atol=1e-11)
    first, second = stein(dim, 4)
    inverse = inverted(at.tril)
    slope = torch.einsum("mia,mk,kic->mac", inverse, sums, first)
    curvature = torch.einsum("mia,mjb,mk,kicjd->macbd", inverse, inverse, sums, second)
    # E[grad f (1, e)'] = -c [m - x, L] and E[Hess f (1, e)(1, e)'] = -c I x I; sums cancel in units of L
    expected = -CURVATURE * torch.cat([away[..., None], at.tril], -1)
    assert float((at.tril.mT @ (slope - expected)).abs().max()) < 1e-8 * max(1.0, float(expected.abs().max()) * scale)
    eye = torch.eye(dim, dtype=torch.float64)
    flat = -CURVATURE * torch.einsum("ab,cd->acbd", eye, torch.eye(1 + dim, dtype=torch.float64))
    error = torch.einsum("mai,mbj,macbd->micjd", at.tril, at.tril, curvature - flat)
    assert float(error.abs().max()) < 1e-7 * max(1.0, scale**2 * 10)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_a_decoder_that_is_not_linear_has_the_elbo_of_another_rule(dim: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        head = Full(dim)
        vae = VAE(10, head, hidden=(12,), likelihood="bernoulli").double()
    with torch.no_grad():
        vae.decoder[0].weight.mul_(2)
    x = (torch.rand(4, 10, generator=torch.Generator().manual_seed(3)) < 0.5).double()
    of = target(vae, x)
    local = 0.5 * torch.randn(4, head.num_outputs, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    index, lattice = torch.arange(4), CachedLattice(of)
    found, other = lattice_elbo(lattice, head, local, index), elbo(of, head, local, tolerance=1e-10)
    torch.testing.assert_close(found.value, other.value, rtol=0, atol=1e-8)
    assert float(found.error.max()) < 1e-6
    assert bool((found.error >= (found.value - other.value).abs() - 1e-10).all())
    torch.testing.assert_close(rough_elbo(lattice, head, local, index), other.value, rtol=0, atol=1e-2)


def test_the_spread_of_sub_lattices_bounds_the_error_of_a_function_too_rough_for_the_lattice() -> None:
    def log_likelihood(z: Tensor, x: Tensor) -> Tensor:
        return torch.cos(x[:, :1] * z[:, 0])

    x = torch.linspace(0.5, 3.1, 24, dtype=torch.float64)[:, None]  # up to Nyquist's frequency, pi
    of = Target(standard_normal(1), (x,), decoded=Decoded(log_likelihood, lambda x: torch.ones(len(x)).double()))
    everyone = torch.arange(24)
    at = Gaussians(
        torch.full((24, 1), 0.3, dtype=torch.float64), torch.full((24, 1, 1), 0.8, dtype=torch.float64), everyone
    )
    exact = torch.cos(0.3 * x[:, 0]) * torch.exp(-((0.8 * x[:, 0]) ** 2) / 2)
    for finer in (0, 1, 2):
        value, spread = CachedLattice(of).expect(at, CachedLattice.levels(at, finer))
        assert bool(((value - exact).abs() <= spread + 1e-13).all())
    assert float((value - exact).abs().max()) < 1e-10
    assert float((CachedLattice(of).expect(at, CachedLattice.levels(at, 0))[0] - exact).abs().max()) > 0.01


def test_what_no_lattice_reaches_is_nan_and_goes_to_the_other_rule() -> None:
    of, _ = quadratic(2, 1)
    thin = torch.diag_embed(torch.tensor([[1e-6, 1.0], [1.0, 1.0], [1.0, 1.0]]).double())
    loc = torch.tensor([[0.0, 0.0], [1e12, 0.0], [math.inf, 0.0]]).double()
    at = Gaussians(loc, thin, torch.zeros(3, dtype=torch.long))
    value, sums = CachedLattice(of).moments(at, CachedLattice.levels(at, 0), 2)
    assert value.isnan().all()
    assert sums.isnan().all()
    head = Full(2)
    local = head.initial(torch.zeros(1, 2).double(), torch.diag_embed(torch.tensor([[1e12, 1.0]]).double()))
    index = torch.zeros(1, dtype=torch.long)
    found = lattice_elbo(CachedLattice(of), head, local, index)
    torch.testing.assert_close(found.value, elbo(of, head, local).value, rtol=1e-9, atol=0)
    level = elbo_by(of, head, local, index, 0)
    torch.testing.assert_close(rough_elbo(CachedLattice(of), head, local, index), level, rtol=1e-12, atol=0)


def test_each_tile_is_decoded_once_and_forgetting_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    of, _ = quadratic(2)
    assert of.decoded is not None
    calls, decode = [], of.decoded.log_likelihood
    counted = Decoded(lambda z, x: (calls.append(len(z)), decode(z, x))[1], of.decoded.ceiling)
    lattice = CachedLattice(Target(of.model, of.args, decoded=counted))
    at = gaussians(2)
    value, sums = lattice.moments(at, CachedLattice.levels(at, 1), 4)
    num = len(calls)
    assert num > 0
    again, _ = lattice.moments(at, CachedLattice.levels(at, 1), 4)
    assert len(calls) == num
    torch.testing.assert_close(again, value, rtol=0, atol=0)
    monkeypatch.setattr(module, "MAX_CACHED_VALUES", 1)
    monkeypatch.setattr(module, "MAX_PAIRS", 50)
    monkeypatch.setattr(module, "MAX_SUMMED_NODES", 640)
    few, few_sums = CachedLattice(of).moments(at, CachedLattice.levels(at, 1), 4)
    torch.testing.assert_close(few, value, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(few_sums, sums, rtol=1e-11, atol=1e-11)


def test_components_of_a_mixture_are_gaussians_of_its_problem() -> None:
    locs = torch.arange(8.0).double().reshape(2, 2, 2)
    mixture = GaussianMixtures(torch.zeros(2, 2).double(), locs, torch.eye(2).double().expand(2, 2, 2, 2))
    found = Gaussians.of(mixture, torch.tensor([5, 3]))
    assert found.problem.tolist() == [5, 5, 3, 3]
    assert found.loc.tolist() == locs.reshape(4, 2).tolist()


def test_monomials_and_their_derivatives_by_hand() -> None:
    assert monomials(2, 1) == ((0, 0), (0, 1), (1, 0))
    first, _ = stein(1, 2)
    # E[f' 1] = E[f e]; E[f' e] = E[f (e^2 - 1)]
    assert first[:, 0, 0].tolist() == [0.0, 1.0, 0.0]
    assert first[:, 0, 1].tolist() == [-1.0, 0.0, 1.0]


def test_more_problems_than_keys_can_number_are_refused() -> None:
    x = torch.zeros(2**17 + 1, 2).double()
    decoded = Decoded(lambda z, x: torch.zeros(len(x), len(z)).double(), lambda x: torch.zeros(len(x)).double())
    with pytest.raises(ValueError, match="at most 131072 problems at once, target 'target' has 131073"):
        CachedLattice(Target(standard_normal(2), (x,), decoded=decoded))
    last = CachedLattice(Target(standard_normal(2), (x[:-1],), decoded=decoded))
    at = Gaussians(torch.zeros(1, 2).double(), torch.eye(2).double()[None], torch.tensor([2**17 - 1]))
    assert float(last.expect(at, CachedLattice.levels(at, 1))[0]) == 0.0


def test_a_lattice_of_another_target_is_refused() -> None:
    one, other = quadratic(2)[0], quadratic(2)[0]
    with pytest.raises(ValueError, match="the lattice is of target"):
        best_members(one, Full(2), torch.zeros(3, 5).double(), lattice=CachedLattice(other))
