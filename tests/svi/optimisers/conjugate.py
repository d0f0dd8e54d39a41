"""A linear regression whose posterior is a normal of known mean and precision."""

from functools import cache

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vi.target.target import Target
from ppl_vi.truth import Truth, ground_truth

FEATURES = torch.tensor(
    [[1.0, 0.4, -0.8], [1.0, 1.3, 0.1], [1.0, -0.7, 0.6], [1.0, 2.1, 1.9], [1.0, 0.2, -1.5]], dtype=torch.float64
)
RESPONSES = torch.tensor([1.2, 2.9, -0.4, 4.8, 0.3], dtype=torch.float64)
NOISE, PRIOR_SCALE = 0.7, 2.0

PRECISION = FEATURES.mT @ FEATURES / NOISE**2 + torch.eye(3, dtype=torch.float64) / PRIOR_SCALE**2
CENTRE = torch.linalg.solve(PRECISION, FEATURES.mT @ RESPONSES / NOISE**2)
COVARIANCE = torch.linalg.inv(PRECISION)


def regression(features: Tensor, responses: Tensor) -> None:
    """Three weights with independent normal priors, and normal noise."""
    weights = pyro.sample("weights", dist.Normal(features.new_zeros(3), PRIOR_SCALE).to_event(1))
    with pyro.plate("rows", len(responses)):
        pyro.sample("response", dist.Normal(features @ weights, NOISE), obs=responses)


@cache
def target() -> Target:
    """The regression as one problem."""
    return Target.of(regression, (FEATURES, RESPONSES), name="regression")


@cache
def truth() -> Truth:
    """Its truth, computed once for all tests."""
    return ground_truth(target())
