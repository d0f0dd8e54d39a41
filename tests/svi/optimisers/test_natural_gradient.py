"""Natural-gradient steps: the posterior in few steps where it is normal, the formula by a second route, what stops."""

import numpy as np
import pytest
import torch
from pyro.infer.autoguide import AutoIAFNormal, AutoMultivariateNormal, init_to_value

from models import ZOO
from ppl_vi import fit, ground_truth, score
from ppl_vi.svi.fit import UnsuitableObjectiveError
from ppl_vi.svi.optimisers.natural_gradient import FIRST_CHECK, matched_draws, moved
from ppl_vi.svi.optimisers.normals import normals_of
from tests.svi.optimisers.conjugate import CENTRE, COVARIANCE, PRECISION, regression, target, truth


def test_a_normal_posterior_is_reached_in_few_steps() -> None:
    """From another scale and location, of a guide without correlations; a step's error is squared, but for 1 - t."""
    guide = AutoMultivariateNormal(
        regression, init_loc_fn=init_to_value(values={"weights": CENTRE + 2}), init_scale=0.3
    )
    before = fit(target(), guide, num_steps=0)
    found = fit(target(), guide, objective="natural_gradient", num_steps=12)
    start, at = (normals_of(one.program, one.theta) for one in (before, found))
    assert float((start.loc - CENTRE).abs().min()) > 1
    factor = at.factor[0, 0]
    assert torch.allclose(at.loc[0, 0], CENTRE, atol=1e-3)
    assert torch.allclose(factor @ factor.mT, COVARIANCE, atol=1e-3)


def test_it_converges_by_the_same_check_as_the_default() -> None:
    found = fit(target(), "AutoMultivariateNormal", objective="natural_gradient", num_replicas=2)
    assert found.engine == "natural_gradient"
    assert (found.status == "converged").all()
    assert (found.num_steps == FIRST_CHECK).all()
    assert (found.predicted_gain < 1e-9).all()
    assert "nats to gain nearby (tolerance 0.001)" in found.stop_reason[0, 1]
    assert found.elbo_history.shape == (FIRST_CHECK, 1, 2)


def test_a_mean_field_arrives_at_its_own_optimum() -> None:
    """That of a normal posterior has its mean and the inverses of the precision's diagonal."""
    found = fit(target(), "AutoNormal", objective="natural_gradient")
    at = normals_of(found.program, found.theta)
    # at most a fifth of 1e-3 nats is left, so 0.02 standard deviations, none of which is above 0.4
    assert torch.allclose(at.loc[0, 0], CENTRE, atol=0.008)
    assert torch.allclose(at.scale[0, 0], torch.diagonal(PRECISION).rsqrt(), atol=0.008)
    assert float((at.scale[0, 0] - torch.diagonal(COVARIANCE).sqrt()).abs().max()) > 0.05


@pytest.mark.parametrize("family", ["AutoNormal", "AutoMultivariateNormal"])
def test_where_the_posterior_is_not_normal_it_is_near_the_best_member(family: str) -> None:
    posed = ZOO["logistic_regression"]()
    found = fit(posed, family, objective="natural_gradient", num_replicas=2, seed=1)
    card = score(found, ground_truth(posed))
    assert (found.status == "converged").all()
    assert (np.abs(card.scores["optimization_gap"].value) < 1e-3).all()  # the tolerance


def test_an_unfitted_guide_is_not_near_the_best_member() -> None:
    posed = target()
    found = fit(posed, "AutoNormal", objective="natural_gradient", num_steps=1)
    assert found.status[0, 0] == "not_converged"
    assert "all 1 steps taken" in found.stop_reason[0, 0]
    assert float(score(found, truth()).scores["optimization_gap"].value[0, 0]) > 0.01


def test_draws_are_matched_to_mean_0_and_covariance_1() -> None:
    e = matched_draws(torch.zeros(1, 2, 3, dtype=torch.float64), 64, torch.Generator().manual_seed(0))
    assert torch.allclose(e.mean(2), torch.zeros(1, 2, 3, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(e.mT @ e / 64, torch.eye(3, dtype=torch.float64).expand(1, 2, 3, 3), atol=1e-12)


@pytest.mark.parametrize("mean_field", [False, True])
def test_a_step_is_the_formula_of_the_rule(mean_field: bool) -> None:
    """By numpy's inverses in place of the Cholesky factors, with f'' from f' by differences over many draws."""
    generator = torch.Generator().manual_seed(3)
    precision = torch.tensor([[3.0, 0.4], [0.4, 1.5]], dtype=torch.float64)
    if mean_field:
        precision = torch.diag(torch.diagonal(precision))
    covariance = torch.linalg.inv(precision)
    factor, loc = torch.linalg.cholesky(covariance), torch.tensor([0.3, -0.2], dtype=torch.float64)
    e = torch.randn(7, 2, generator=generator, dtype=torch.float64)
    slope = torch.randn(7, 2, generator=generator, dtype=torch.float64)
    new_loc, new = moved(loc, precision, factor, e, slope, 0.5, mean_field)
    u = (e @ factor.mT).numpy()
    stein = precision.numpy() @ (u[:, :, None] * slope.numpy()[:, None]).mean(0)
    curvature = (stein + stein.T) / 2
    if mean_field:
        curvature = np.diag(np.diag(curvature))
    away = curvature - precision.numpy()
    expected = precision.numpy() + 0.5 * away + 0.125 * away @ covariance.numpy() @ away
    np.testing.assert_allclose(new, expected, atol=1e-12)
    assert np.linalg.eigvalsh(expected).min() > 0
    step = np.linalg.solve(expected, slope.numpy().mean(0))
    np.testing.assert_allclose(new_loc, loc.numpy() - 0.5 * step, atol=1e-12)


def test_other_guides_are_refused_with_the_reason() -> None:
    with pytest.raises(UnsuitableObjectiveError, match="natural_gradient: it is for normals in unconstrained space"):
        fit(target(), AutoIAFNormal, objective="natural_gradient")
