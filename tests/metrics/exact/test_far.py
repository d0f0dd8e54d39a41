"""Posteriors and guides far from 0: scores against closed forms; and what rounding swallows is nan with its reason."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.nn.functional import softplus

import ppl_vi
from ppl_vi.metrics import Estimate
from ppl_vi.report.numbers import three_digits


def far(x, scale=1.0):
    """z ~ Normal(0, s), x | z ~ Normal(z, s), whose posterior is Normal(x / 2, s / sqrt(2))."""
    z = pyro.sample("z", dist.Normal(torch.zeros_like(x), scale))
    pyro.sample("x", dist.Normal(z, scale), obs=x)


def scored(x, scale=1.0, num_steps=1000):
    target = ppl_vi.Target.of(far, (torch.tensor(x, dtype=torch.float64), scale))
    found = ppl_vi.fit(target, "AutoNormal", num_steps=num_steps)
    return found, ppl_vi.score(found, ppl_vi.ground_truth(target)).scores


def gaussian_kl(mean, sd, other_mean, other_sd):
    return math.log(other_sd / sd) + (sd**2 + (mean - other_mean) ** 2) / (2 * other_sd**2) - 0.5


@pytest.mark.parametrize("num_steps", [1, 1000])
@pytest.mark.parametrize(
    ("x", "scale"), [(100.0, 1.0), (1e3, 1.0), (-1e3, 1.0), (-1e5, 1.0), (3e6, 1e6), (-1e-3, 1e-6)]
)
def test_scores_are_the_closed_forms_wherever_the_posterior_lies(x, scale, num_steps):
    """A Gaussian guide over a Gaussian posterior, near it and, after a single step, away from it."""
    found, scores = scored(x, scale, num_steps)
    loc, free = found.theta[0, 0].tolist()
    sd, mean, posterior_sd = float(softplus(torch.tensor(free, dtype=torch.float64))), x / 2, scale / math.sqrt(2)
    reverse, forward = gaussian_kl(loc, sd, mean, posterior_sd), gaussian_kl(mean, posterior_sd, loc, sd)
    evidence = -((x / scale) ** 2) / 4 - math.log(4 * math.pi) / 2 - math.log(scale)
    exact = {
        "elbo": evidence - reverse, "elbo_gap": reverse, "reverse_kl": reverse, "forward_kl": forward,
        "family_gap": 0.0, "optimization_gap": reverse, "mean_error": (loc - mean) / posterior_sd,
        "sd_ratio": sd / posterior_sd,
    }  # fmt: skip
    size = max(1.0, abs(evidence))
    for name, value in exact.items():
        found_value, error = float(scores[name].value[0, 0]), float(scores[name].error[0, 0])
        assert abs(found_value - value) <= error + 1e-11 * max(1.0, abs(value)), (name, found_value, value, error)
        # the log joint is rounded to 1e-16 of its size at each node
        assert error <= 1e-10 * max(1.0, abs(value)) + 1e-12 * size, name


@pytest.mark.parametrize("x", [-1e8, 1e8])
def test_what_the_rounding_of_a_log_evidence_of_1e15_swallows_is_null_with_its_reason(x):
    result = ppl_vi.compare(far, ["AutoNormal"], args=(torch.tensor(x, dtype=torch.float64),), num_replicas=2)
    (record,) = result.records()
    assert (record["status"], record["grade"]) == ("converged", "uncertified")
    assert record["grade_reason"]
    assert abs(record["elbo"] + x**2 / 4 + math.log(4 * math.pi) / 2) <= record["elbo_error"] <= 10
    missing = ("reverse_kl", "elbo_gap", "forward_kl", "family_gap", "mean_error", "sd_ratio", "coverage_90")
    for name in missing:
        assert record[name] is None, name
        assert "lost in its numerical error" in record["reasons"][name]
    assert [replica["reverse_kl"] for replica in record["replicas"]] == [None, None]
    assert "lost in its numerical error" in " ".join(str(result).split())


def test_only_a_value_below_an_error_of_one_or_more_is_swamped():
    value = np.array([[0.0, 0.5, 3.0, 1e-13, 0.2, -0.3, np.inf, -2.0]])
    error = np.array([[2.0, 0.4, 2.0, 2e-12, 0.9, 1.0, np.inf, np.inf]])
    found = Estimate(value, np.zeros_like(value), error, "nats").without_swamped()
    np.testing.assert_array_equal(found.value, [[np.nan, 0.5, 3.0, 1e-13, 0.2, np.nan, np.inf, np.nan]])
    np.testing.assert_array_equal(found.error, error)
    assert found.reason == "the value is lost in its numerical error, which has no bound"
    assert three_digits(found.value[0, 3], found.error[0, 3]) == "<2e-12"
    small = Estimate(value[:, 1:5], np.zeros((1, 4)), error[:, 1:5], "nats", "as it was")
    assert small.without_swamped() is small
    large = Estimate(value[:, :2], np.zeros((1, 2)), error[:, :2], "nats", "as it was").without_swamped()
    assert large.reason == "as it was; the value is lost in its numerical error, of up to 2 nats"
