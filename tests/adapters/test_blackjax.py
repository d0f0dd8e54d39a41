"""BlackJAX's states as approximations: log q against densities that are written out here."""

import numpy as np
import pytest
from scipy import stats

from ppl_vi.adapters.blackjax import approximation_of_meanfield, approximation_of_pathfinder

jax = pytest.importorskip("jax", reason="JAX is not installed")
blackjax = pytest.importorskip("blackjax", reason="BlackJAX is not installed")


@pytest.fixture(autouse=True)
def _double_precision():
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def constrain(u):
    return {"rate": jax.numpy.exp(u["rate"]), "mu": u["mu"]}


def test_the_mean_field_has_the_density_of_its_gaussian():
    mu = {"rate": np.array(0.3), "mu": np.array([1.0, -1.0])}
    rho = {"rate": np.log(0.4), "mu": np.log(np.array([0.5, 2.0]))}
    state = blackjax.vi.meanfield_vi.MFVIState(mu, rho, None)
    found = approximation_of_meanfield(state, constrain, num_draws=300)
    expected = stats.lognorm(s=0.4, scale=np.exp(0.3)).logpdf(found.draws["rate"][0])
    expected = expected + stats.norm([1.0, -1.0], [0.5, 2.0]).logpdf(found.draws["mu"][0]).sum(1)
    np.testing.assert_allclose(found.log_q[0], expected, atol=1e-10)


def test_pathfinder_of_a_gaussian_is_normalised():
    def log_density(u):
        return -((u["rate"] - 0.3) ** 2) / 2 / 0.16 - (u["mu"] ** 2).sum() / 2

    start = {"rate": np.array(1.0), "mu": np.array([1.0, -1.0])}
    state, _ = blackjax.vi.pathfinder.approximate(jax.random.PRNGKey(0), log_density, start)
    found = approximation_of_pathfinder(state, constrain, num_draws=4000)
    log_p = stats.lognorm(s=0.4, scale=np.exp(0.3)).logpdf(found.draws["rate"][0])
    log_p = log_p + stats.norm.logpdf(found.draws["mu"][0]).sum(1)
    ratio = np.exp(log_p - found.log_q[0])  # its mean is 1 where both are normalised
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / np.sqrt(len(ratio)) + 1e-3


def test_a_function_that_changes_how_many_numbers_there_are_is_refused():
    state = blackjax.vi.meanfield_vi.MFVIState({"a": np.zeros(2)}, {"a": np.zeros(2)}, None)
    with pytest.raises(ValueError, match="as many numbers"):
        approximation_of_meanfield(state, lambda u: {"a": u["a"].sum()}, num_draws=10)
