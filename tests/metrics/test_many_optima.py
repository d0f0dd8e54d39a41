"""`score` itself knows which families have many local optima, so that their family gap is an upper bound."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms import affine_coupling, iterated
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormalizingFlow

import ppl_vi
from models.exponential_normal import target as toy

SMALL = {"num_steps": 40, "num_particles": 16}


def assert_bounded(card, upper_bound):
    assert card.best.upper_bound is upper_bound
    assert ("an upper bound" in card.scores["family_gap"].reason) is upper_bound


@pytest.mark.parametrize(("family", "upper_bound"), [("lognormal", False), ("spline_flow", True)])
def test_over_one_number_the_named_families_of_many_optima_are_bounded(family, upper_bound):
    target = toy((1.5,))
    found, truth = ppl_vi.fit(target, family, **SMALL), ppl_vi.ground_truth(target)
    assert_bounded(ppl_vi.score(found, truth), upper_bound)
    assert_bounded(ppl_vi.score(found, truth, upper_bound=not upper_bound), not upper_bound)  # the caller's word


def correlated(y):
    a = pyro.sample("a", dist.Normal(0.5, 1.0))
    b = pyro.sample("b", dist.Normal(a, 2.0))
    pyro.sample("y", dist.Normal(a + b, 1.0), obs=y)


def coupling(model):
    return AutoNormalizingFlow(model, partial(iterated, 1, affine_coupling))


@pytest.mark.parametrize(("family", "upper_bound"), [(AutoMultivariateNormal, False), (coupling, True)])
def test_over_two_numbers_guides_with_a_network_are_bounded(family, upper_bound):
    target = ppl_vi.Target.of(correlated, (torch.tensor(1.7),))
    found, truth = ppl_vi.fit(target, family, **SMALL), ppl_vi.ground_truth(target)
    assert_bounded(ppl_vi.score(found, truth), upper_bound)
