"""Mixtures of normal and heavy-tailed densities, against numerical integration and SciPy."""

import math

import numpy as np
import torch
from scipy import stats

from ppl_vi.numerics.mixtures import DEGREES, WIDENING, StudentMixture, fit_student_mixture

REAL = torch.float64


def two_hills():
    share = torch.tensor([0.3, 0.7], dtype=REAL)
    loc, factor = torch.tensor([[-1.0], [2.0]], dtype=REAL), torch.tensor([[[0.5]], [[1.5]]], dtype=REAL)
    return StudentMixture(share.log(), loc, factor, (math.inf, math.inf))


def exact_cdf(z):
    normal = sum(0.8 * s * stats.norm(m, d).cdf(z) for s, m, d in ((0.3, -1.0, 0.5), (0.7, 2.0, 1.5)))
    parts = ((0.3, -1.0, 0.5 * WIDENING), (0.7, 2.0, 1.5 * WIDENING))
    return normal + sum(0.2 * s * stats.t(DEGREES, m, d).cdf(z) for s, m, d in parts)


def test_a_defended_mixture_has_heavy_copies_of_its_components():
    mixture = two_hills().defended(0.2)
    z = torch.linspace(-9.0, 11.0, 200_001, dtype=REAL)
    density = mixture.log_prob(z[:, None]).exp()
    np.testing.assert_allclose(float(density.sum()) * 1e-4, exact_cdf(11.0) - exact_cdf(-9.0), atol=1e-6)
    draws = mixture.draw(20_000, torch.Generator().manual_seed(2))[:, 0].numpy()
    assert stats.kstest(draws, exact_cdf).pvalue > 1e-3
    total = (mixture.log_share.exp() * mixture.component_log_prob(z[:, None]).exp()).sum(1)
    torch.testing.assert_close(total, density)


def test_a_mixture_whose_components_collapse_is_fitted_with_fewer():
    """A third of the draws are one and the same point, and the scales of the coordinates lie 12 powers of 10 apart."""
    generator = torch.Generator().manual_seed(4)
    draws = torch.randn(600, 2, generator=generator, dtype=REAL) * torch.tensor([1e-6, 1e6], dtype=REAL)
    draws[:200] = torch.tensor([0.0, 0.0], dtype=REAL)
    for some in (draws, draws[:200], draws[:, :1].expand(-1, 2)):
        mixture = fit_student_mixture(some, math.inf, 0)
        assert bool(torch.isfinite(mixture.log_prob(some)).all())
        assert float(mixture.log_share.exp().sum()) == 1.0 or abs(float(mixture.log_share.logsumexp(0))) < 1e-12
    one = fit_student_mixture(draws[200:], math.inf, 0)
    mean = (one.log_share.exp()[:, None] * one.loc).sum(0)
    np.testing.assert_allclose(mean / draws.std(0), draws[200:].mean(0) / draws.std(0), atol=1e-9)
