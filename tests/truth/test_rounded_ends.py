"""The mass that rounding hides at the ends of supports, against the incomplete beta function."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor

from ppl_vi import Target, ground_truth
from ppl_vi.truth.rounded_ends import missing_mass, rounded_ends


def flipped(a: float, b: float) -> Target:
    """A coin of Beta(a, b) that fell on its head: the posterior is Beta(a + 1, b), and p(x) is a / (a + b)."""

    def model() -> None:
        p = pyro.sample("p", dist.Beta(torch.tensor(a).double(), torch.tensor(b).double()))
        pyro.sample("x", dist.Bernoulli(p), obs=torch.tensor(1.0).double())

    return Target.of(model)


@pytest.mark.parametrize(("a", "b"), [(1.0, 0.05), (0.3, 0.2), (0.5, 0.5)])
def test_the_missing_mass_is_that_of_the_incomplete_beta_function(a: float, b: float) -> None:
    target = flipped(a, b)
    nearer = stats.beta(b, a + 1).rvs(16, random_state=0)  # draws of 1 - p, which need not be rounded
    u = torch.from_numpy(np.log1p(-nearer) - np.log(nearer))[:, None]
    (end,) = [end for end in rounded_ends(target) if end.sign == 1]
    assert 36 <= end.distance <= 38  # log 2^-53 = -36.7
    found = missing_mass(target, 0, u)
    # the density falls as exp(-b u), up to terms of exp(-u); the trapezoidal rule is right to a few percent
    assert found["p"] == pytest.approx(stats.beta(b, a + 1).cdf(math.exp(-end.distance)), rel=0.05)


@pytest.mark.parametrize(("a", "b", "grade"), [(1.0, 0.05, "uncertified"), (0.5, 0.5, "checked")])
def test_the_error_of_log_evidence_holds_what_is_missing(a: float, b: float, grade: str) -> None:
    truth = ground_truth(flipped(a, b))
    off = abs(float(truth.log_evidence[0]) - math.log(a / (a + b)))
    assert 1e-10 < off <= truth.log_evidence_error[0]
    assert truth.grade == grade
    assert ("nearer to an end of its support" in "".join(truth.reasons)) == (grade == "uncertified")


@pytest.mark.parametrize(
    "prior", [dist.Normal(0.0, 1.0), dist.Gamma(0.3, 1.0), dist.LogNormal(0.0, 1.0)], ids=["real", "gamma", "positive"]
)
def test_ends_at_0_and_at_infinity_are_not_rounded_onto(prior: dist.Distribution) -> None:
    def model(x: Tensor) -> None:
        pyro.sample("x", dist.Normal(pyro.sample("z", prior), 1.0), obs=x)

    assert rounded_ends(Target.of(model, (torch.tensor(1.0),))) == []
