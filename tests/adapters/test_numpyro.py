"""NumPyro's guides as approximations: log q against densities that are written out here."""

import numpy as np
import pytest
from scipy import stats

from ppl_vi.adapters.numpyro import approximation, log_joint

numpyro = pytest.importorskip("numpyro", reason="NumPyro is not installed")
jax = pytest.importorskip("jax", reason="JAX is not installed")
dist = pytest.importorskip("numpyro.distributions")

LOC, SCALE = 0.3, 0.4
COUNTS = np.array([2.0, 0.0, 1.0, 3.0])


@pytest.fixture(autouse=True)
def _double_precision():
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def model(counts):
    rate = numpyro.sample("rate", dist.Gamma(2.0, 2.0))
    with numpyro.plate("rows", len(counts)):
        numpyro.sample("counts", dist.Poisson(rate), obs=counts)


def set_up(guide):
    numpyro.infer.SVI(model, guide, numpyro.optim.Adam(0.01), numpyro.infer.Trace_ELBO()).init(
        jax.random.PRNGKey(0), COUNTS
    )
    return guide


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("AutoNormal", {"rate_auto_loc": LOC, "rate_auto_scale": SCALE}),
        ("AutoDiagonalNormal", {"auto_loc": np.array([LOC]), "auto_scale": np.array([SCALE])}),
        ("AutoMultivariateNormal", {"auto_loc": np.array([LOC]), "auto_scale_tril": np.array([[SCALE]])}),
    ],
)
def test_a_gaussian_of_the_logarithm_has_the_density_of_a_log_normal(name, params):
    guide = set_up(getattr(numpyro.infer.autoguide, name)(model))
    found = approximation(guide, params, (COUNTS,), num_draws=500)
    expected = stats.lognorm(s=SCALE, scale=np.exp(LOC)).logpdf(found.draws["rate"])
    assert found.draws["rate"].shape == (1, 500)
    np.testing.assert_allclose(found.log_q, expected, atol=1e-10)
    assert abs(np.log(found.draws["rate"]).mean() - LOC) < 4 * SCALE / np.sqrt(500)
    assert found.system == f"numpyro {numpyro.__version__}"


def test_a_guide_function_has_its_own_density():
    def guide(counts):
        concentration = numpyro.param("concentration", 3.0, constraint=dist.constraints.positive)
        numpyro.sample("rate", dist.Gamma(concentration, 2.0))

    found = approximation(guide, {"concentration": 5.0}, (COUNTS,), num_draws=300)
    np.testing.assert_allclose(found.log_q, stats.gamma(5.0, scale=0.5).logpdf(found.draws["rate"]), atol=1e-10)
    assert found.name == "NumPyro guide"


def test_a_guide_with_further_variables_has_no_density():
    def guide(counts):
        further = numpyro.sample("further", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        numpyro.sample("rate", dist.LogNormal(further, 1.0))

    found = approximation(guide, {}, (COUNTS,), num_draws=10)
    assert found.log_q is None
    assert list(found.draws) == ["rate"]


def test_a_guide_that_draws_nothing_is_refused():
    with pytest.raises(ValueError, match="draws no latent"):
        approximation(lambda counts: None, {}, (COUNTS,))


def test_log_joint_is_that_of_prior_and_likelihood():
    rate = np.array([0.5, 1.0, 2.5])
    expected = stats.gamma(2.0, scale=0.5).logpdf(rate) + stats.poisson(rate[:, None]).logpmf(COUNTS).sum(1)
    np.testing.assert_allclose(log_joint(model, (COUNTS,))({"rate": rate}), expected, atol=1e-10)
