"""The comparison of systems: exact scores against closed forms, and what is said of what failed."""

import math

import numpy as np
import pytest
import torch

import ppl_vi
from benchmarks import ppls_page
from benchmarks.ppls_exact import gaussian_of, score
from benchmarks.ppls_fits import LADDER, Snapshot, ladder_to
from benchmarks.ppls_process import Outcome
from benchmarks.ppls_records import density_difference, records_of
from models import ZOO, gamma_poisson, normal_normal

pytestmark = pytest.mark.slow  # marginals of a single latent take many seconds
SD_RATIO, SHIFT = 0.5, 0.3  # a Gaussian of half the posterior's sd, its mean moved by 0.3 sds


@pytest.fixture(scope="module")
def truth():
    return ppl_vi.ground_truth(ZOO["normal_normal"]())


def gaussian(truth, sd_ratio=SD_RATIO, shift=SHIFT, num=3000):
    mean, sd = (float(value[0]) for value in normal_normal.posterior(truth.target.args[0]))
    noise = np.random.default_rng(0).standard_normal(num)
    mu = mean + shift * sd + sd_ratio * sd * noise
    log_q = -(noise**2) / 2 - math.log(sd_ratio * sd) - math.log(2 * math.pi) / 2
    return ppl_vi.Approximation({"mu": mu[None]}, log_q[None], "one", "by hand 1.0")


def test_the_reverse_kl_of_a_gaussian_is_that_of_the_closed_form(truth):
    found = score(truth, gaussian(truth))
    expected = (SD_RATIO**2 + SHIFT**2 - 1) / 2 - math.log(SD_RATIO)
    assert found.is_gaussian
    assert abs(found.reverse_kl - expected) < 5 * found.reverse_kl_std_error + 1e-6
    assert abs(found.reverse_kl - expected) < 1e-3
    assert abs(found.drawn_kl - expected) < 5 * found.drawn_kl_std_error
    assert abs(found.sd_ratio - SD_RATIO) < 5 * found.sd_ratio_std_error
    assert abs(found.mean_error - SHIFT) < 5 * found.mean_error_std_error


def test_a_log_normal_is_a_gaussian_of_the_logarithm_and_a_gamma_is_none():
    truth = ppl_vi.ground_truth(gamma_poisson.target())
    one = torch.distributions.LogNormal(torch.tensor(-0.5, dtype=torch.float64), 0.1)
    torch.manual_seed(0)
    draws = one.sample((1, 2000))
    loc, scale = gaussian_of(truth, ppl_vi.Approximation({"rate": draws.numpy()}, one.log_prob(draws).numpy()))
    np.testing.assert_allclose([loc[0], scale[0, 0]], [-0.5, 0.1], atol=1e-8)
    other = torch.distributions.Gamma(torch.tensor(5.0, dtype=torch.float64), 8.0)
    draws = other.sample((1, 2000))
    assert gaussian_of(truth, ppl_vi.Approximation({"rate": draws.numpy()}, other.log_prob(draws).numpy())) is None


def outcome(truth, points, error=0.0, **kwargs):
    density = truth.target.log_joint({name: value[None] for name, value in points.items()})[0].numpy() + error
    runs = [
        Snapshot(100, 1.0, 2.0, gaussian(truth)),
        Snapshot(1000, 3.0, 2.0, gaussian(truth, 1.0, 0.0)),
        Snapshot(10_000, 9.0, 2.0, gaussian(truth, 1.0, 1e-3)),
    ]
    return Outcome({"default": runs}, {"common": "ValueError: no"}, density, **kwargs)


def test_a_record_says_from_when_on_the_tolerance_is_met_and_what_failed(truth):
    points = truth.draws(20, seed=0)
    best = {"AutoNormal": 0.0}
    default, common = records_of("normal_normal", "NumPyro AutoNormal", truth, best, points, outcome(truth, points))
    assert (default["steps_to_best"], default["seconds_to_best"]) == (1000, 5.0)
    assert default["density_difference"] == 0
    assert (common["status"], common["reason"]) == ("failed", "ValueError: no")
    lines = ppls_page.verdict([default, common])
    assert lines == [
        "normal_normal, mean field: within 0.001 nats of the family's best by its default: NumPyro AutoNormal (5 s)."
    ]
    assert "failed: ValueError: no" in ppls_page.rows([default, common])[1]


def test_a_copy_with_another_density_is_not_compared(truth):
    points = truth.draws(20, seed=0)
    assert density_difference(truth, points, None) is None
    found = records_of(
        "normal_normal", "NumPyro AutoNormal", truth, {"AutoNormal": 0.0}, points, outcome(truth, points, 1e-6)
    )
    assert [record["status"] for record in found] == ["failed", "failed"]
    assert "differs by up to 1e-06 nats" in found[0]["reason"]


def test_a_system_that_is_not_installed_is_missing(truth):
    found = records_of(
        "normal_normal", "PyMC ADVI", truth, {}, truth.draws(5, seed=0), Outcome({}, {}, missing="not installed: pymc")
    )
    assert [(record["status"], record["reason"]) for record in found] == [("missing", "not installed: pymc")]
    assert ppls_page.heat_map(found).axes


def test_the_ladder_ends_with_the_number_of_steps():
    assert ladder_to(2000) == (100, 300, 1000, 2000)
    assert ladder_to(LADDER[-1]) == LADDER
