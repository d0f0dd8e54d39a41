"""Pathfinder: the posterior itself where that is normal, its inverse Hessian by a second route, its choice by ELBO."""

import numpy as np
import pytest
import scipy.stats
import torch

from models import ZOO
from ppl_vi import fit, score
from ppl_vi.svi.optimisers.normals import normals_of
from ppl_vi.svi.optimisers.pathfinder import Path, best_on, inverse_hessian, normals_along, path_of
from ppl_vi.target.log_density import Density
from tests.svi.optimisers.conjugate import CENTRE, COVARIANCE, PRECISION, target, truth


def test_on_a_normal_posterior_it_is_the_posterior() -> None:
    """BFGS has the Hessian of a parabola after as many exact steps as numbers; L-BFGS of few numbers nearly so."""
    posed = target()
    found = fit(posed, "pathfinder", num_replicas=3)
    at = normals_of(found.program, found.theta)
    assert (found.status == "converged").all()
    for replica in range(3):
        factor = at.factor[0, replica]
        assert torch.allclose(at.loc[0, replica], CENTRE, atol=1e-2)
        assert torch.allclose(factor @ factor.mT, COVARIANCE, rtol=0.1, atol=0.01)
    assert np.median(score(found, truth()).scores["reverse_kl"].value) < 0.01


def test_the_result_says_what_was_chosen() -> None:
    found = fit(ZOO["logistic_regression"](), "pathfinder", num_replicas=2, seed=1)
    assert found.engine == "lbfgs"
    assert found.objective == "trace_elbo"
    assert found.num_particles == 25
    assert found.is_laplace
    assert "along the path has the highest ELBO" in found.stop_reason[0, 0]
    again = fit(ZOO["logistic_regression"](), "pathfinder", num_replicas=2, seed=1)
    assert torch.equal(found.theta, again.theta)
    assert not torch.equal(found.theta[0, 0], found.theta[0, 1])


def test_the_inverse_hessian_is_that_of_the_papers_compact_formula() -> None:
    """Zhang et al. (2022), equations for alpha, beta and gamma: diag + beta gamma beta' over all steps at once."""
    generator = np.random.default_rng(0)
    diagonal = generator.uniform(0.5, 2.0, 4)
    s = generator.normal(size=(3, 4))
    y = s @ np.diag([1.0, 2.0, 0.5, 1.5]) + 0.1 * generator.normal(size=(3, 4))
    upper = np.triu(s @ y.T)
    inverse = np.linalg.inv(upper)
    middle = inverse.T @ (np.diag(np.diag(s @ y.T)) + y @ np.diag(diagonal) @ y.T) @ inverse
    beta = np.concatenate([diagonal[:, None] * y.T, s.T], 1)
    gamma = np.block([[np.zeros((3, 3)), -inverse], [-inverse.T, middle]])
    expected = np.diag(diagonal) + beta @ gamma @ beta.T
    np.testing.assert_allclose(inverse_hessian(diagonal, list(zip(s, y, strict=True))), expected, atol=1e-10)


def test_the_normal_of_highest_elbo_is_taken() -> None:
    """Of three normals whose ELBO is known in closed form, the middle one is nearest to the posterior."""
    density = Density.of(target(), 0)
    centre, precision = CENTRE.numpy(), PRECISION.numpy()

    def slope_for(point: np.ndarray) -> np.ndarray:
        return precision @ (centre - point)

    far, near = centre + np.array([3.0, 1.0, -2.0]), centre + np.array([0.1, -0.05, 0.02])
    path = Path(np.stack([far, near, far]), np.stack([slope_for(far), slope_for(near), slope_for(far)]), True, "")
    locs, factors = normals_along(path)
    elbos = []
    for loc, factor in zip(locs, factors, strict=True):
        away, cov = loc - centre, factor @ factor.T
        elbos.append((np.linalg.slogdet(cov)[1] - np.trace(precision @ cov) - away @ precision @ away) / 2)
    best = best_on(density, path, 400, torch.Generator().manual_seed(0))
    assert best.place == int(np.argmax(elbos))
    exact = scipy.stats.multivariate_normal(best.loc, best.factor @ best.factor.mT)
    draws = exact.rvs(4000, random_state=1)
    log_ratio = density(torch.from_numpy(draws)).numpy() - exact.logpdf(draws)
    assert best.elbo == pytest.approx(
        log_ratio.mean(), abs=4 * (best.std_error + log_ratio.std() / 4000**0.5)
    )  # four standard errors of both


def test_the_path_ends_at_the_mode_with_its_slope() -> None:
    density = Density.of(target(), 0)
    path = path_of(density, torch.tensor([1.5, -1.0, 0.5], dtype=torch.float64), 100)
    assert path.arrived
    np.testing.assert_allclose(path.points[-1], CENTRE, atol=1e-5)
    np.testing.assert_allclose(path.slopes[0], PRECISION.numpy() @ (CENTRE.numpy() - path.points[0]), atol=1e-9)


def test_a_path_that_is_cut_short_has_not_converged() -> None:
    found = fit(target(), "pathfinder", num_steps=1)
    assert found.status[0, 0] == "not_converged"
    assert "did not reach a mode" in found.stop_reason[0, 0]


@pytest.mark.parametrize("family", ["AutoNormal", "AutoMultivariateNormal", "AutoIAFNormal"])
def test_any_family_that_can_be_placed_starts_at_the_ends_of_paths(family: str) -> None:
    posed = ZOO["logistic_regression"]()
    taken = fit(posed, "pathfinder", num_replicas=2, seed=3)
    started = fit(posed, family, num_steps=0, num_replicas=2, seed=3, start="pathfinder")
    if family == "AutoIAFNormal":
        assert bool(started.theta.isfinite().all())
        return
    one, other = (normals_of(each.program, each.theta) for each in (taken, started))
    assert torch.allclose(one.loc, other.loc, atol=1e-10)
    assert torch.allclose(one.scale, other.scale, atol=1e-8)


def test_a_fit_from_a_path_ends_where_the_others_do() -> None:
    posed = target()
    found = fit(posed, "AutoMultivariateNormal", start="pathfinder", num_replicas=2)
    assert (found.status == "converged").all()
    assert (np.abs(score(found, truth()).scores["reverse_kl"].value) < 1e-3).all()  # the tolerance


def test_an_unknown_start_is_refused() -> None:
    with pytest.raises(
        ValueError, match="unknown start 'pathfider'; there are mode and pathfinder; did you mean pathf"
    ):
        fit(target(), "AutoNormal", start="pathfider")
