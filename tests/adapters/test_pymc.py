"""PyMC's and pymc-extras' results as approximations: log q against densities that are written out here."""

import numpy as np
import pytest
from scipy import stats

from ppl_vi.adapters.pymc import approximation, approximation_of_dadvi, approximation_of_draws, log_joint

pm = pytest.importorskip("pymc", reason="PyMC is not installed", exc_type=ImportError)

COUNTS = np.array([2, 0, 1, 3])
pytestmark = pytest.mark.filterwarnings("ignore")  # PyMC's and its libraries' own


@pytest.fixture(scope="module")
def model():
    with pm.Model() as made:
        rate = pm.Gamma("rate", alpha=2.0, beta=2.0)
        pm.Normal("mu", 0.0, 1.0, shape=2)
        pm.Poisson("counts", rate, observed=COUNTS)
    return made


def density(draws, mean, covariance):
    """log q of a Gaussian of (log rate, mu), as a density over (rate, mu)."""
    u = np.column_stack([np.log(draws["rate"][0]), draws["mu"][0]])
    return stats.multivariate_normal(mean, covariance).logpdf(u) - u[:, 0]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["advi", "fullrank_advi"])
def test_advi_has_the_density_of_its_gaussian(model, method):
    fitted = pm.fit(50, method=method, model=model, progressbar=False, random_seed=0)
    names = list(fitted.groups[0].ordering)
    assert names[0].startswith("rate")
    found = approximation(fitted, num_draws=200)
    covariance = fitted.cov.eval()
    np.testing.assert_allclose(found.log_q[0], density(found.draws, fitted.mean.eval(), covariance), atol=1e-9)
    assert found.draws["mu"].shape == (1, 200, 2)


@pytest.mark.slow
def test_dadvi_has_the_density_of_its_optimum(model):
    extras = pytest.importorskip("pymc_extras", reason="pymc-extras is not installed")
    tree = extras.fit(method="dadvi", model=model, random_seed=0, progressbar=False)
    found = approximation_of_dadvi(tree, model, num_draws=4000)
    mean, log_sd = np.split(np.asarray(tree.optimizer_result["x"].values), 2)
    expected = density(found.draws, mean, np.diag(np.exp(2 * log_sd)))
    np.testing.assert_allclose(found.log_q[0], expected, atol=1e-9)
    assert abs(found.draws["mu"].std() - 1) < 0.3  # its prior, which the counts do not tell of, from 30 draws
    own = approximation_of_draws(tree, model, name="draws of DADVI")
    assert own.log_q is None
    assert own.draws["mu"].shape[2:] == (2,)


@pytest.mark.slow
def test_log_joint_is_that_of_prior_and_likelihood(model):
    rate, mu = np.array([0.5, 1.0, 2.5]), np.array([[0.1, 0.2], [0.0, -1.0], [2.0, 0.3]])
    expected = stats.gamma(2.0, scale=0.5).logpdf(rate) + stats.poisson(rate[:, None]).logpmf(COUNTS).sum(1)
    expected = expected + stats.norm.logpdf(mu).sum(1)
    np.testing.assert_allclose(log_joint(model)({"rate": rate, "mu": mu}), expected, atol=1e-10)
