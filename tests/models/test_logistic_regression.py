"""Logistic regression against densities written with SciPy."""

import numpy as np
import pytest
import torch
from scipy import special, stats

from models import logistic_regression


def test_the_density() -> None:
    features, labels = (value.numpy() for value in logistic_regression.simulated(7, 2, seed=5))
    coefficients, intercept = np.array([0.8, -1.7]), 0.3
    logits = features @ coefficients + intercept
    likelihood = special.log_expit(np.where(labels == 1, logits, -logits)).sum()
    expected = stats.norm.logpdf([*coefficients, intercept]).sum() + likelihood
    latents = {
        "coefficients": torch.from_numpy(coefficients)[None, None],
        "intercept": torch.tensor([[intercept]], dtype=torch.float64),
    }
    found = logistic_regression.target(7, 2, seed=5).log_joint(latents)
    assert found.item() == pytest.approx(expected, rel=1e-13)


def test_the_labels_follow_the_model() -> None:
    features, labels = logistic_regression.simulated(20_000, 3, seed=1)
    generator = torch.Generator().manual_seed(1)
    truth = torch.randn(4, generator=generator, dtype=torch.float64)
    chance = torch.sigmoid(features @ truth[:-1] + truth[-1])
    excess = (labels - chance).sum() / (chance * (1 - chance)).sum().sqrt()
    assert abs(excess) < 4  # standard errors
    assert ((labels == 0) | (labels == 1)).all()


def test_shapes_and_seeds() -> None:
    target = logistic_regression.target(dtype=torch.float32)
    assert (target.dim, target.args[0].shape, target.args[0].dtype) == (4, (1, 20, 3), torch.float32)
    one, same, other = (logistic_regression.simulated(seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("sizes", [(0, 3), (20, 0)])
def test_an_empty_data_set_is_refused(sizes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least one point and one feature"):
        logistic_regression.simulated(*sizes)
