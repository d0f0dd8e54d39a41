"""Mixtures matched to posteriors, against the moments of a closed form."""

import pytest
import torch

from models.ppca import posterior, simulate, target
from ppl_vi.metrics.decoder.mixture_em import COVARIANCE_FLOOR, em_fit, padded
from ppl_vi.numerics.mixtures import GaussianMixtures

SIGMA = 0.6


@pytest.mark.parametrize(("num_latents", "tolerance"), [(1, 0.02), (2, 0.04), (3, 0.07)])
def test_a_matched_mixture_has_the_posteriors_moments(num_latents: int, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = 0.5 * torch.randn(5, num_latents, dtype=torch.float64, generator=generator)
    bias = torch.linspace(-1, 2, 5, dtype=torch.float64)
    x, _ = simulate(weight, bias, SIGMA, 3, seed=2)
    exact, precision = posterior(weight, bias, SIGMA, x)
    cov = torch.linalg.inv(precision)
    tril = torch.linalg.cholesky(cov)
    # two Gaussians, neither on the posterior, for the first problems; one for the last
    near = torch.cat([exact - 0.7 * tril.sum(-1), exact[:2] + 0.5 * tril[:, 0]])
    trils, index = tril.expand(5, -1, -1), torch.tensor([0, 1, 2, 0, 1])
    modes = padded(torch.zeros(5).double(), near, trils, index, 3)
    mixture = em_fit(target(weight, bias, SIGMA, x), modes, 3)
    loc = mixture.mean()
    away = mixture.locs - loc[:, None]
    each = mixture.trils @ mixture.trils.mT + away[..., :, None] * away[..., None, :]
    found = (mixture.log_weights.exp()[..., None, None] * each).sum(1)
    white = torch.linalg.inv(tril)
    # an M-step keeps the points' mean and covariance, to which the floor is added; the nodes end 5 sd from a mode that
    # is 0.7 off along each axis, and of many only the heaviest are kept
    assert float((white @ (loc - exact)[..., None]).abs().max()) < 0.02
    expected = (1 + COVARIANCE_FLOOR) * torch.eye(num_latents).double().expand(3, -1, -1)
    torch.testing.assert_close(white @ found @ white.mT, expected, rtol=0, atol=tolerance)


def test_gaussians_are_gathered_by_problem() -> None:
    loc = torch.tensor([[1.0], [2.0], [3.0]]).double()
    tril = torch.tensor([0.5, 0.25, 0.75]).double()[:, None, None]
    found = padded(torch.zeros(3).double(), loc, tril, torch.tensor([1, 0, 1]), 2)
    assert isinstance(found, GaussianMixtures)
    assert found.locs[0, 0] == 2.0
    assert found.locs[1, :, 0].tolist() == [1.0, 3.0]
    torch.testing.assert_close(found.log_weights.exp(), torch.tensor([[1.0, 0.0], [0.5, 0.5]]).double())
    assert found.trils[1, :, 0, 0].tolist() == [0.5, 0.75]
