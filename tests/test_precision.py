"""Models and guides that keep tensors of single precision from outside, against closed forms and the same inside."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor

from ppl_vi import Target, compare, fit, ground_truth
from ppl_vi.precision import in_dtype

Y = np.array([1.0, 2.0, 0.5, 1.5])
SINGLE = torch.float32
TWO, ONE = torch.tensor(2.0, dtype=SINGLE), torch.tensor(1.0, dtype=SINGLE)
CORRELATED = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=SINGLE)


def rows(prior: Callable[[Callable[[Tensor], Tensor]], Any], scale: float = 1.0) -> Callable[[Tensor], None]:
    """A latent for each row, its prior of tensors that `prior` passes through its argument, which is given a dtype."""

    def model(y: Tensor) -> None:
        with pyro.plate("rows", len(y)):
            k = pyro.sample("k", prior(lambda held: held))
            pyro.sample("y", dist.Normal(k, scale), obs=y)

    return model


PRIORS: dict[str, Callable[[], Any]] = {
    "Normal": lambda to: dist.Normal(0.0, to(TWO)),
    "HalfNormal": lambda to: dist.HalfNormal(to(TWO)),
    "LogNormal": lambda to: dist.LogNormal(to(ONE) / 2, to(ONE)),
    "Gamma": lambda to: dist.Gamma(to(TWO), to(ONE)),
    "StudentT": lambda to: dist.StudentT(4.0, to(ONE), to(TWO)),
    "Uniform": lambda to: dist.Uniform(-to(TWO), to(TWO)),
    "mixture": lambda to: dist.MixtureSameFamily(
        dist.Categorical(to(torch.tensor([0.25, 0.75], dtype=SINGLE))),
        dist.Normal(to(torch.tensor([-1.0, 1.0], dtype=SINGLE)), to(ONE)),
    ),
    "shifted": lambda to: dist.TransformedDistribution(
        dist.Normal(to(ONE), to(TWO)), [torch.distributions.transforms.AffineTransform(to(ONE), to(TWO))]
    ),
}
