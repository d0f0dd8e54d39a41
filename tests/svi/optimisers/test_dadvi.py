"""Deterministic ADVI: its optimum by a second route, its closed form, what it is measured by, and what it refuses."""

from functools import cache

import numpy as np
import pytest
import scipy.optimize
import torch
from pyro.infer.autoguide import AutoIAFNormal
from torch import Tensor

from models import ZOO
from ppl_vi import fit, score
from ppl_vi.svi.fit import UnsuitableObjectiveError
from ppl_vi.svi.objectives import find_objective, surrogate_loss
from ppl_vi.svi.optimisers import sampled
from ppl_vi.svi.optimisers.dadvi import NUM_DRAWS
from ppl_vi.svi.optimisers.normals import as_noise, fixed_draws, normals_of, theta_of
from ppl_vi.svi.optimisers.sampled import GAIN_TOLERANCE, SampledElbo
from ppl_vi.svi.result import Fit
from ppl_vi.target.target import Target
from tests.svi.optimisers.conjugate import CENTRE, PRECISION, target, truth


@cache
def logistic() -> tuple[Target, Fit]:
    posed = ZOO["logistic_regression"]()
    return posed, fit(posed, "AutoNormal", objective="dadvi", num_replicas=3, seed=4)


def test_the_result_says_what_was_done() -> None:
    _, found = logistic()
    assert found.objective == "dadvi"
    assert found.num_particles == NUM_DRAWS == 30  # the paper's
    assert (found.status == "converged").all()
    assert "the gradient on the fixed draws vanishes" in found.stop_reason[0, 0]
    assert (found.predicted_gain <= 1e-12).all()  # GAIN_TOLERANCE and the rounding of some 10 nats
    assert found.elbo_history.shape == (int(found.num_steps.max()), 1, 3)
    assert (np.diff(found.elbo_history, axis=0) >= 0).all()


def test_its_optimum_is_that_of_an_independent_search_on_the_same_draws() -> None:
    """SciPy's BFGS on Pyro's own ELBO of the guide, from another start, with numbers that Newton's method never saw."""
    posed, found = logistic()
    program, noise = found.program, as_noise(found.program, fixed_draws(posed, NUM_DRAWS, 3, found.seed))
    for replica in range(3):
        draws = tuple(part[0, replica] for part in noise)

        def loss(x: np.ndarray, draws: tuple[Tensor, ...] = draws) -> tuple[float, np.ndarray]:
            theta = torch.from_numpy(x).requires_grad_()
            value, _ = surrogate_loss(program, find_objective("trace_elbo"), theta, posed.row(0), draws)
            value.backward()
            assert theta.grad is not None
            return float(value.detach()), theta.grad.numpy()

        start = np.full(program.layout.size, 0.3)
        best = scipy.optimize.minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-9})
        # a gradient of 1e-9 at a curvature of about 1 leaves 1e-8 or so in the parameters
        np.testing.assert_allclose(found.theta[0, replica], best.x, atol=1e-6)


def test_on_a_gaussian_the_optimum_has_a_closed_form() -> None:
    """With draws of mean m and second moments, the sampled ELBO is quadratic in the location for any scales.

    Setting the gradient in the location to 0 gives loc = centre - diag(m) s, and the gradient in log s then gives
    s_i sum_j P_ij C_ij s_j = 1 with the draws' covariance C.
    """
    found = fit(target(), "AutoNormal", objective="dadvi", seed=2)
    e = fixed_draws(found.target, NUM_DRAWS, 1, found.seed)[0, 0].numpy()
    mean, cov = e.mean(0), np.cov(e.T, bias=True)
    at = normals_of(found.program, found.theta)
    loc, scale = at.loc[0, 0].numpy(), at.scale[0, 0].numpy()
    np.testing.assert_allclose(loc, CENTRE.numpy() - mean * scale, atol=1e-7)
    np.testing.assert_allclose(scale * ((PRECISION.numpy() * cov) @ scale), np.ones(3), atol=1e-7)


def test_the_seed_fixes_the_draws_and_replicas_have_their_own() -> None:
    one, same, other = (fit(target(), "AutoNormal", objective="dadvi", num_replicas=2, seed=s) for s in (1, 1, 2))
    assert torch.equal(one.theta, same.theta)
    assert float((one.theta - other.theta).abs().min()) > 1e-6
    assert float((one.theta[0, 0] - one.theta[0, 1]).abs().min()) > 1e-6


def test_the_objective_gap_is_what_the_fixed_draws_cost() -> None:
    """On a Gaussian posterior reverse KLs are closed forms, and so are both gaps."""
    posed = target()
    found = fit(posed, "AutoNormal", objective="dadvi", num_particles=12, num_replicas=2, seed=3)
    card = score(found, truth())
    at, precision = normals_of(found.program, found.theta), PRECISION.numpy()
    best = (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1]) / 2
    for r in range(2):
        away, scale = at.loc[0, r].numpy() - CENTRE.numpy(), at.scale[0, r].numpy()
        trace = (np.diag(precision) * scale**2).sum() + away @ precision @ away
        kl = (trace - 3 - np.linalg.slogdet(precision)[1]) / 2 - np.log(scale).sum()
        wanted = {"reverse_kl": kl, "family_gap": best, "objective_gap": kl - best, "optimization_gap": 0.0}
        for name, value in wanted.items():
            score_of, at_replica = card.scores[name], (0, min(r, card.scores[name].value.shape[1] - 1))
            # four standard errors, the stated error, and what a gain of 1e-14 nats may leave beside the optimum
            allowed = 4 * score_of.std_error[at_replica] + score_of.error[at_replica] + 1e-6
            assert score_of.value[at_replica] == pytest.approx(value, abs=allowed)
            assert allowed < 1e-3
        assert kl - best > 0.01  # 12 draws cost something


def test_too_few_steps_are_told() -> None:
    found = fit(ZOO["logistic_regression"](), "AutoNormal", objective="dadvi", num_steps=1)
    assert found.status[0, 0] == "not_converged"
    assert "does not vanish" in found.stop_reason[0, 0]
    assert f"{GAIN_TOLERANCE:g}" in found.stop_reason[0, 0]


@pytest.mark.parametrize(
    ("family", "num", "why"),
    [
        ("AutoMultivariateNormal", 3, "with 3 draws of 3 latent numbers a full covariance has no optimum"),
        (AutoIAFNormal, 30, "it is for normals in unconstrained space"),
        ("laplace", 30, "it is for normals in unconstrained space"),
    ],
)
def test_guides_it_is_not_for_are_refused_with_the_reason(family: object, num: int, why: str) -> None:
    with pytest.raises(UnsuitableObjectiveError, match=f"dadvi: {why}"):
        fit(target(), family, objective="dadvi", num_particles=num)


def test_a_full_covariance_is_taken_where_the_draws_span_the_space() -> None:
    """With more draws than numbers the optimum is that of the sampled moments: the factor L has L' P L C = 1."""
    found = fit(target(), "AutoMultivariateNormal", objective="dadvi", num_particles=20, seed=1)
    e = fixed_draws(found.target, 20, 1, found.seed)[0, 0].numpy()
    mean, cov = e.mean(0), np.cov(e.T, bias=True)
    at = normals_of(found.program, found.theta)
    loc, factor = at.loc[0, 0].numpy(), at.factor[0, 0].numpy()
    np.testing.assert_allclose(loc, CENTRE.numpy() - factor @ mean, atol=1e-6)
    # the gradient in the lower triangle vanishes: tril(P L C) = diag(1 / L_ii)
    slope = np.tril(PRECISION.numpy() @ factor @ cov) - np.diag(1 / np.diag(factor))
    np.testing.assert_allclose(slope, np.zeros((3, 3)), atol=1e-6)


def test_another_engine_is_refused() -> None:
    with pytest.raises(ValueError, match="engine must be 'auto' with the objective 'dadvi'"):
        fit(target(), "AutoNormal", objective="dadvi", engine="compiled")


@pytest.mark.parametrize("family", ["AutoNormal", "AutoDiagonalNormal", "AutoMultivariateNormal"])
def test_the_numbers_of_a_normal_are_those_of_its_guide(family: str) -> None:
    posed = ZOO["logistic_regression"]()
    found = fit(posed, family, num_steps=8, num_replicas=2)
    at = normals_of(found.program, found.theta)
    elbo = SampledElbo(posed, family != "AutoMultivariateNormal", torch.zeros(1, 2, 1, posed.dim, dtype=posed.dtype))
    back = elbo.unpacked(elbo.packed(at))
    assert torch.allclose(theta_of(found.program, back), found.theta, atol=1e-10)
    latents = found.draw(5, seed=0)
    exact = torch.distributions.MultivariateNormal(at.loc[0, 1], scale_tril=at.factor[0, 1])
    u = posed.unconstrain({name: value[0, 1] for name, value in latents.items()})
    _, log_jacobian = posed.constrain(u)
    expected = exact.log_prob(u) - log_jacobian.reshape(5)
    assert torch.allclose(found.log_prob(latents)[0, 1], expected, atol=1e-8)


def test_many_numbers_are_solved_by_products_with_the_hessian_to_the_same_optimum(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    posed, found = logistic()
    monkeypatch.setattr(sampled, "MAX_HESSIAN_NUMBERS", 0)
    same = fit(posed, "AutoNormal", objective="dadvi", num_replicas=3, seed=4)
    assert (same.status == "converged").all()
    # a slope of 1e-7 at curvatures of about 1
    assert torch.allclose(same.theta, found.theta, atol=1e-6)
    assert not torch.equal(same.theta, found.theta)
