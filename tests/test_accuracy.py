"""The bars the project promises of `fit` at its default settings, on the toy where the truth is known exactly."""

import numpy as np
import pytest

from models.exponential_normal import target
from ppl_vi.metrics.exact.best_member import best_member
from ppl_vi.metrics.exact.divergence import reverse_kl
from ppl_vi.metrics.exact.grid import quadrature_grid
from ppl_vi.metrics.family_gap import optimization_gap
from ppl_vi.svi.fit import fit
from ppl_vi.truth import ground_truth

NEAR = (1.5, 0.0, -3.0, 4.0)  # the posterior's mode inside, on the boundary, beyond it, and far inside
FAR = (30.0, -30.0, 1e4, -1e4)
NUM_REPLICAS, FEW_REPLICAS = 8, 4  # few where a fit is dear
MEDIAN_GAP, WORST_GAP = 1e-4, 1e-3  # nats
FAMILIES = (
    "lognormal", "softplus_normal", "gamma", "weibull", "exponential", "half_normal", "folded_normal", "AutoNormal",
    "AutoIAFNormal",
)  # fmt: skip

pytestmark = pytest.mark.slow


def fitted(family, xs, objective="trace_elbo", num_replicas=NUM_REPLICAS):
    """A fit at default settings, its truth, and the reverse KL of its replicas and of the same guides untrained."""
    found = fit(target(xs), family, objective=objective, num_replicas=num_replicas, seed=1)
    truth = ground_truth(found.target)
    initial = found.program.layout.flatten(found.initial)
    return found, truth, reverse_kl(quadrature_grid(found, truth)), reverse_kl(quadrature_grid(found, truth, initial))


def medians(values):
    return np.median(values, 1)


@pytest.mark.parametrize(("objective", "bar"), [("trace_elbo", 1e-4), ("stl", 1e-8)])
def test_a_family_that_contains_the_posterior_finds_it(objective, bar):
    found, _, trained, untrained = fitted("truncated_normal", NEAR, objective)
    assert (medians(untrained.value) > bar).any()
    assert (medians(trained.value) <= bar).all(), (medians(trained.value), found.status)
    assert (trained.error <= bar / 10).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_replicas_come_near_the_best_member(family):
    found, truth, trained, untrained = fitted(family, NEAR)
    best = best_member(found, truth, trained)
    assert best.converged.all()
    assert (medians(optimization_gap(untrained, best).value) > MEDIAN_GAP).any()
    gap = optimization_gap(trained, best)
    assert (medians(gap.value) <= MEDIAN_GAP).all(), (medians(gap.value), found.status)
    assert (gap.value <= WORST_GAP).all(), (gap.value.max(1), found.status)
    assert (gap.error <= MEDIAN_GAP / 10).all()


@pytest.mark.parametrize("family", ["lognormal_mixture", "spline_flow"])
def test_rich_families_come_near_the_posterior(family):
    found, _, trained, untrained = fitted(family, NEAR, num_replicas=FEW_REPLICAS)
    assert (medians(untrained.value) > 5e-3).any()
    assert (medians(trained.value) <= 5e-3).all(), (medians(trained.value), found.status)


@pytest.mark.parametrize("family", ["truncated_normal", *FAMILIES])
def test_far_out_a_replica_is_near_the_best_member_or_says_so(family):
    found, truth, trained, _ = fitted(family, FAR, num_replicas=FEW_REPLICAS)
    gap = optimization_gap(trained, best_member(found, truth, trained))
    short = ~(gap.value <= WORST_GAP)
    assert not (short & (found.status == "converged")).any(), (gap.value, found.status)
