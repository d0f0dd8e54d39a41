"""Monte Carlo figures: on weights whose answer is known, and against the exact ones within their standard errors."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import special

from ppl_vi.metrics.exact import divergence
from ppl_vi.metrics.exact.grid import quadrature_grid
from ppl_vi.metrics.sampled import importance as imp
from ppl_vi.numerics.weights import log_mean_error

NUM = 20_000


def of(*weights):
    return imp.Weights(np.log(np.array(weights, dtype=float))[None])


# ---- effective sample size


def test_equal_weights_count_fully():
    assert imp.effective_sample_size(of(np.full(137, 3e-7))).value == pytest.approx(137, rel=1e-13)


def test_two_valued_weights():
    """n of weight a and k of weight b: (na + kb)^2 / (n a^2 + k b^2)."""
    w = np.repeat([2.0, 5.0], [30, 7])
    found = imp.effective_sample_size(of(w, np.r_[1.0, np.zeros(36) + 1e-300]))
    np.testing.assert_allclose(found.value, [[(60 + 35) ** 2 / (30 * 4 + 7 * 25), 1.0]], rtol=1e-13)
    assert found.unit == "draws"


def test_figures_do_not_overflow():
    w = imp.Weights(np.log([[[2.0, 5.0, 5.0]]]) + 5e4)
    assert imp.effective_sample_size(w).value == pytest.approx(144 / 54, rel=1e-10)
    assert imp.importance_log_evidence(w).value == pytest.approx(5e4 + np.log(4), rel=1e-15)


# ---- k-hat


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9])
def test_khat_on_an_exact_pareto_tail(k):
    """Weights at the quantiles of a Pareto: only the estimator's own bias is left.

    It fits min(N/5, 3 sqrt N) = 424 exceedances, with a prior worth 10 draws at 0.5: the shrinkage is below
    10 * 0.4 / 434 = 0.01, the fit's own deviation on quantiles of that order.
    """
    u = (np.arange(NUM) + 0.5) / NUM
    log_weights = np.random.default_rng(3).permutation(-k * np.log1p(-u))
    found = imp.khat(imp.Weights(log_weights[None, None])).value
    assert found.shape == (1, 1)
    assert abs(found[0, 0] - k) <= 0.03
    assert imp.khat(imp.Weights(-log_weights[None, None])).value[0, 0] < 0  # the other sign is bounded above


def test_khat_on_random_draws():
    k, rng = 0.7, np.random.default_rng(11)
    found = imp.khat(imp.Weights(-k * np.log1p(-rng.random((1, 20, NUM))))).value
    # the maximum-likelihood shape has standard deviation (1 + k) / sqrt(424) = 0.083; of 20, four standard errors
    assert abs(found.mean() - k) <= 4 * 0.083 / 20**0.5


# ---- the evidence and the bound


def wide_half_normal(fits, truths, place):
    """A guide whose weights have a finite variance: scale 1.3 at x = 0.7."""
    pair = place("half_normal", 0.7, scale=1.3)
    found = fits("half_normal", (0.7,))
    values = {name: pair.theta[..., 0] for name in found.program.layout.names}
    return replace(found, parameters=values), pair


def test_weights_are_unbiased_and_their_errors_right(fits, truths, place):
    found, pair = wide_half_normal(fits, truths, place)
    chi_square = divergence.chi_square(pair)
    exact = truths((0.7,)).log_evidence[0]
    elbo = divergence.elbo(pair).value[0, 0]
    scores = []
    for seed in range(30):
        w = imp.weights(found, 4000, seed)
        evidence = imp.importance_log_evidence(w, chi_square.value)
        bound = imp.elbo_estimate(w)
        np.testing.assert_allclose(evidence.std_error, log_mean_error(w.log), rtol=0.15)
        scores.append([(e.value[0, 0] - t) / e.std_error[0, 0] for e, t in ((evidence, exact), (bound, elbo))])
    scores = np.array(scores)
    assert np.abs(scores).max() < 4.5
    # 30 standard normals: their mean within 4 / sqrt(30), their mean square within 1 +- 4 sqrt(2/30)
    assert (np.abs(scores.mean(0)) < 4 / 30**0.5).all()
    assert (np.abs((scores**2).mean(0) - 1) < 4 * (2 / 30) ** 0.5).all()
    # and the bound is no evidence: they are many standard errors apart
    assert exact - elbo > 10 * bound.std_error[0, 0]


def test_ess_is_that_of_the_chi_square(fits, truths, place):
    """ESS / N tends to 1 / (1 + chi-square), here within a few percent."""
    found, pair = wide_half_normal(fits, truths, place)
    ess = imp.effective_sample_size(imp.weights(found, NUM, 5)).value[0, 0]
    assert ess / NUM == pytest.approx(1 / (1 + divergence.chi_square(pair).value[0, 0]), rel=0.03)
    assert ess / NUM < 0.97


def test_std_error_is_infinite_where_the_variance_is(fits, truths):
    found = fits("lognormal", (1.5,))
    chi_square = divergence.chi_square(quadrature_grid(found, truths((1.5,)))).value
    w = imp.weights(found, 1000)
    evidence = imp.importance_log_evidence(w, chi_square)
    assert np.isinf(evidence.std_error).all()
    assert "infinite variance" in evidence.reason
    assert np.isfinite(imp.importance_log_evidence(w).std_error).all()


def test_draws_outside_the_support_have_no_weight(fits):
    found = fits("normal", (-3.0,))
    z = found.draw(2000, 4)["z"].numpy()
    w = imp.weights(found, 2000, 4)
    assert (np.isneginf(w.log) == (z < 0)).all()
    assert (z < 0).any(-1).all()
    bound = imp.elbo_estimate(w)
    assert np.isneginf(bound.value).all()
    assert "no mass" in bound.reason


def test_weights_are_the_log_ratio(fits):
    found = fits("gamma", (1.5,))
    name = {n.partition(".")[0]: float(v[0, 0].exp()) for n, v in found.parameters.items()}
    z = found.draw(50, 9)["z"].numpy()[0, 0]
    c, r = name["concentration"], name["concentration"] / name["mean"]
    log_q = c * np.log(r) - special.gammaln(c) + (c - 1) * np.log(z) - r * z
    log_joint = -z - (1.5 - z) ** 2 / 2 - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(imp.weights(found, 50, 9).log[0, 0], log_joint - log_q, rtol=0, atol=1e-12)


def test_where_no_draw_has_weight_nothing_is_claimed():
    """The estimate of log p(x) is -inf, its error and the effective sample size are not known."""
    w = imp.Weights(np.array([[[-np.inf] * 5, [0.0, -1.0, -2.0, -np.inf, -1.0]]]))
    found, ess = imp.importance_log_evidence(w), imp.effective_sample_size(w)
    assert found.value[0, 0] == -np.inf
    assert np.isnan(found.std_error[0, 0])
    assert np.isnan(ess.value[0, 0])
    assert np.isfinite([found.value[0, 1], found.std_error[0, 1], ess.value[0, 1]]).all()
    assert found.reason == ess.reason == "no draw fell where the posterior has mass"
