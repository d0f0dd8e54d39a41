"""The masses of regions by chains: right ones are found right where a posterior ends as at a wall, wrong ones wrong."""

import math
from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import special

from ppl_vi.target.target import Target
from ppl_vi.truth import ground_truth
from ppl_vi.truth.quadrature import adaptive
from ppl_vi.truth.quadrature.adaptive import MAX_STANDARD_ERRORS
from ppl_vi.truth.quadrature.cross_checks import largest_region_deviation

SEEN, MOST = torch.tensor([16.0, 19.0, 22.0, 25.0, 27.0]), 500


def answered(seen):
    """How many of equally many people answer, each with probability theta; any number up to MOST has been asked.

    The posterior of theta ends as at a wall where MOST are needed, and has a long tail on the other side.
    """
    theta = pyro.sample("theta", dist.Uniform(0.0, 1.0))
    asked = torch.arange(float(seen.max()), MOST + 1)[:, None]
    ways = torch.lgamma(asked + 1) - torch.lgamma(seen + 1) - torch.lgamma(asked - seen + 1)
    log_p = ways + seen * theta.log() + (asked - seen) * torch.log1p(-theta)
    pyro.factor("answers", log_p.sum(1).logsumexp(0) - math.log(MOST))


def log_evidence():
    """A beta integral for each number of people asked."""
    seen, asked = SEEN.numpy().astype(float), np.arange(float(SEEN.max()), MOST + 1)[:, None]
    ways = special.gammaln(asked + 1) - special.gammaln(seen + 1) - special.gammaln(asked - seen + 1)
    each = ways.sum(1) + special.betaln(1 + seen.sum(), 1 + (asked - seen).sum(1))
    return special.logsumexp(each) - math.log(MOST)


@pytest.fixture(scope="module")
def regions():
    """The truth, and what the check of its regions was given: density, sample and tree."""
    given = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            adaptive, "largest_region_deviation", lambda *args: given.append(args) or largest_region_deviation(*args)
        )
        truth = ground_truth(Target.of(answered, (SEEN,)))
    return truth, given[0][:3]


def test_it_is_certified_and_right(regions):
    truth, _ = regions
    assert truth.grade == "checked"
    rounding = 16 * np.finfo(float).eps * special.gammaln(MOST) * len(SEEN)  # of the logarithms of factorials
    exact, error = log_evidence(), float(truth.log_evidence_error[0])
    assert error < rounding < 1e-10
    assert float(truth.log_evidence[0]) == pytest.approx(exact, rel=0, abs=error + rounding)


def test_chains_enter_the_wall_with_every_seed(regions):
    _, given = regions
    assert max(largest_region_deviation(*given, seed) for seed in range(4)) < MAX_STANDARD_ERRORS


@pytest.mark.parametrize("left", [True, False])
def test_wrong_masses_are_told(regions, left):
    """Half of the mass on one side of the posterior's middle is missing."""
    _, (standardized, sample, tree) = regions
    leaves, middle = tree.leaves, float(standardized.inverse(sample).median())
    side = (leaves.center[:, 0] < middle) == left
    log_mass = leaves.log_mass - side * math.log(2)
    wrong = replace(tree, leaves=replace(leaves, log_mass=log_mass), log_mass=float(log_mass.logsumexp(0)))
    assert largest_region_deviation(standardized, sample, wrong, 0) > MAX_STANDARD_ERRORS
