"""Eight schools against densities written with SciPy."""

import numpy as np
import pytest
import torch
from scipy import stats

from models import eight_schools

MU, TAU = 4.3, 2.1
THETA = np.array([11.0, 6.5, -1.0, 5.0, 0.3, 2.0, 9.0, 7.7])


def latents(**values: float | np.ndarray) -> dict[str, torch.Tensor]:
    """As `Target.log_joint` takes them: one problem, one point."""
    return {name: torch.as_tensor(value, dtype=torch.float64)[None, None] for name, value in values.items()}


def test_the_centred_density() -> None:
    prior = stats.norm.logpdf(MU, 0, 5) + stats.halfcauchy.logpdf(TAU, 0, 5) + stats.norm.logpdf(THETA, MU, TAU).sum()
    expected = prior + stats.norm.logpdf(eight_schools.EFFECTS, THETA, eight_schools.ERRORS).sum()
    found = eight_schools.target().log_joint(latents(mu=MU, tau=TAU, theta=THETA))
    assert found.item() == pytest.approx(expected, rel=1e-13)


def test_the_non_centred_density_is_the_same_with_the_jacobian() -> None:
    centred = eight_schools.target().log_joint(latents(mu=MU, tau=TAU, theta=THETA))
    found = eight_schools.target("non_centred").log_joint(latents(mu=MU, tau=TAU, eta=(THETA - MU) / TAU))
    assert found.item() == pytest.approx(centred.item() + len(THETA) * np.log(TAU), rel=1e-13)


def test_ten_latents_and_rubin_s_data() -> None:
    target = eight_schools.target(dtype=torch.float32)
    assert (target.dim, target.num_problems, target.args[0].dtype) == (10, 1, torch.float32)
    weight = 1 / np.square(eight_schools.ERRORS)
    pooled = np.sum(weight * eight_schools.EFFECTS) / weight.sum()
    # Gelman et al. (2013), Bayesian data analysis, section 5.5: a pooled estimate of 7.7 with standard error 4.1
    assert (round(pooled, 1), round(weight.sum() ** -0.5, 1)) == (7.7, 4.1)


def test_an_unknown_parametrisation_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown parametrisation 'half'; there are centred, non_centred"):
        eight_schools.target("half")
