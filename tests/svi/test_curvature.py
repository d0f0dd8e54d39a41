"""The preconditioner and its axes against known Hessians, and fits of strongly correlated posteriors in closed form."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_vi import Target
from ppl_vi.svi.curvature import nearby, preconditioner
from ppl_vi.svi.fit import fit
from ppl_vi.svi.result import Fit

ONES = torch.ones(1, 1, 4, dtype=torch.float64)


def hessian_of(eigenvalues: list[float], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=generator)).Q
    return axes @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ axes.T


def test_along_its_axes_a_quadratic_has_the_curvature_one() -> None:
    hessian = hessian_of([1e-1, 1.0, 3e3, 1e6], seed=1)
    found = preconditioner(10 * ONES, hessian.expand(1, 1, 2, 4, 4), 0 * ONES, by_axes=True)
    axes = found.steps[0, 0]
    torch.testing.assert_close(axes.T @ hessian @ axes, torch.eye(4, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.units[0, 0], hessian.diagonal().rsqrt(), rtol=1e-12, atol=0)


def test_no_axis_moves_a_parameter_farther_than_its_own_size() -> None:
    """The flattest axis would be 1e3 long. Parameters below 1 count as 1."""
    theta = torch.tensor([[[0.1, 20.0, 0.5, 3.0]]], dtype=torch.float64)
    found = preconditioner(theta, hessian_of([1e-6, 1.0, 2.0, 4.0], seed=2).expand(1, 1, 2, 4, 4), 0 * ONES, True)
    share = (found.steps[0, 0].abs() / theta[0, 0].abs().clamp(min=1.0)[:, None]).amax(0)
    assert float(share.max()) == pytest.approx(1.0, rel=1e-12)


def test_an_axis_that_looks_flat_by_chance_has_the_length_that_the_other_half_sees() -> None:
    noisy, other = torch.diag(torch.tensor([1e-4, 1.0, 1.0, 1.0], dtype=torch.float64)), torch.eye(4).double()
    noisy = noisy + 1e-3 * (1 - other)  # so that its axes are not the parameters' own
    found = preconditioner(100 * ONES, torch.stack([noisy, other])[None, None], 0 * ONES, by_axes=True)
    axes = found.steps[0, 0]
    torch.testing.assert_close((axes.T @ other @ axes).diagonal(), torch.ones(4).double(), rtol=1e-9, atol=0)


def test_one_replica_stands_for_those_near_to_it() -> None:
    theta = torch.tensor([[[0.0], [0.2], [0.3], [5.0]], [[1.0], [1.1], [1.2], [0.9]]], dtype=torch.float64)
    chosen, group = nearby(theta, torch.ones_like(theta), 16)
    assert chosen.tolist() == [[0, 2, 3], [0, 0, 0]]
    assert group.tolist() == [[0, 1, 1, 2], [0, 0, 0, 0]]  # 0.2 is nearer to 0.3 than to 0


def test_replicas_near_none_take_the_nearest() -> None:
    theta = 10.0 * torch.tensor([[[0.0], [4.0], [1.0], [3.0]]], dtype=torch.float64)
    chosen, group = nearby(theta, torch.ones_like(theta), 2)
    assert chosen.tolist() == [[0, 1]]
    assert group.tolist() == [[0, 1, 0, 1]]


X = torch.stack([torch.ones(60), torch.linspace(100.0, 104.0, 60), torch.linspace(0.0, 1.0, 60) ** 2], 1).double()
Y = (X @ torch.tensor([3.0, -0.5, 2.0]).double() + torch.linspace(-1.0, 1.0, 60).double().sin()).double()


def regression() -> None:
    """A Gaussian posterior with a correlation of 0.9998 between intercept and slope."""
    w = pyro.sample("w", dist.Normal(torch.zeros(3, dtype=torch.float64), 100.0).to_event(1))
    with pyro.plate("rows", 60):
        pyro.sample("y", dist.Normal(X @ w, 0.7), obs=Y)


def divergence(found: Fit, replica: int) -> float:
    """KL of a fitted Gaussian to the posterior, in closed form, nats."""
    precision = torch.eye(3, dtype=torch.float64) / 100**2 + X.T @ X / 0.49
    mean = torch.linalg.solve(precision, X.T @ Y / 0.49)
    exact = torch.distributions.MultivariateNormal(mean, precision_matrix=precision)
    posterior = found.guide(replica=replica).get_posterior()
    full = torch.distributions.MultivariateNormal(posterior.mean.detach(), posterior.covariance_matrix.detach())
    return float(torch.distributions.kl_divergence(full, exact))


@pytest.mark.parametrize("engine", ["auto", "batched"])
def test_a_full_covariance_is_found_to_the_tolerance_however_correlated(engine: str) -> None:
    found = fit(Target.of(regression, ()), "AutoMultivariateNormal", num_replicas=3, engine=engine, seed=1)
    assert (found.status == "converged").all()
    for replica in range(3):
        assert 0 < divergence(found, replica) < 1e-3


def test_noise_that_keeps_fits_from_the_tolerance_gets_more_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full covariance has no noise at a Gaussian posterior; independent latents have, by the correlations."""
    from ppl_vi.svi import rounds

    drawn: list[int] = []
    before = rounds._take_round

    def noted(running, *given):  # type: ignore[no-untyped-def]
        drawn.append(running.num_particles)
        return before(running, *given)

    monkeypatch.setattr(rounds, "_take_round", noted)
    fit(Target.of(regression, ()), "AutoNormal", num_replicas=2, tolerance=1e-7, num_steps=400)
    assert drawn[0] == 16
    assert drawn == sorted(drawn)
    assert drawn[-1] == 256
