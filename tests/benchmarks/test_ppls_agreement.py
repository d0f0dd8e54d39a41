"""NumPyro's and PyMC's mean field, fitted well, are the one that ppl_vi finds, by what `measure` tells of them."""

import pytest

from benchmarks.ppls_agreement import CHOSEN, PEERS, differences, measurements_of

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # the libraries' own warnings
MOST = 4.0  # standard errors, of up to 21 numbers


@pytest.fixture(autouse=True)
def _precision():
    jax = pytest.importorskip("jax", exc_type=ImportError)
    before = jax.config.jax_enable_x64
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.mark.parametrize("model", CHOSEN)
def test_the_same_family_fitted_well_is_the_same_fit(model):
    for package, _ in PEERS.values():
        pytest.importorskip(package, exc_type=ImportError)
    ours, *theirs = measurements_of(model).values()
    for found in theirs:
        apart = differences(ours, found)
        assert len(apart) == 1 + 2 * len(ours.marginals.names)
        assert {name: size for name, size in apart.items() if abs(size) > MOST} == {}, found.heading()
