"""The Gaussian's closed forms against SciPy's multivariate normal and against each other."""

import numpy as np
import pytest
import torch
from scipy import stats

from models import gaussian


@pytest.mark.parametrize("dim", [1, 2, 7])
def test_the_log_evidence(dim: int) -> None:
    target = gaussian.target(dim, seed=3)
    design = np.eye(dim) + np.eye(dim, k=-1)
    y = target.args[0][0].numpy()
    expected = stats.multivariate_normal.logpdf(y, np.zeros(dim), np.eye(dim) + design @ design.T)
    assert gaussian.log_evidence(*target.args).item() == pytest.approx(expected, rel=1e-12)
    assert target.closed_form is gaussian.log_evidence


def test_the_joint_is_the_evidence_times_the_posterior() -> None:
    target = gaussian.target(5, seed=4)
    loc, precision = gaussian.posterior(*target.args)
    z = loc[0] + torch.linspace(-1, 2, 5, dtype=torch.float64)
    posterior = torch.distributions.MultivariateNormal(loc[0], precision_matrix=precision).log_prob(z)
    found = target.log_joint({"z": z[None, None]})
    assert found.item() == pytest.approx((gaussian.log_evidence(*target.args) + posterior).item(), rel=1e-12)


def test_no_dimension_is_refused() -> None:
    with pytest.raises(ValueError, match="dim must be at least 1, got 0"):
        gaussian.target(0)
