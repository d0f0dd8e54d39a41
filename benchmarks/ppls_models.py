"""The models of `benchmarks.ppls`: names of the zoo, their data, and each system's copy of them by name."""

from __future__ import annotations

import numpy as np

# Names of `models.ZOO`: two conjugate ones, a correlated posterior, one with outliers, and a hierarchy of ten numbers.
MODELS = (
    "normal_normal", "gamma_poisson", "logistic_regression", "robust_regression", "eight_schools_non_centred",
)  # fmt: skip
QUICK = ("normal_normal", "logistic_regression")


def data_of(model: str) -> tuple[np.ndarray, ...]:
    """The arguments of a model's Pyro function, of its one problem."""
    from models import ZOO

    return tuple(part.numpy() for part in ZOO[model]().row(0))
