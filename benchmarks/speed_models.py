"""The models of `benchmarks.speed_fit` and `benchmarks.speed_compare` as one writes them in Pyro, and their data.

`speed_peer_models.py` has the same densities in NumPyro and PyMC.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

NUM_GROUPS = 20  # of the hierarchy
GP_SPAN = 5.0  # the Gaussian process is seen at points that are spread evenly from 0 to here
JITTER = 1e-6  # added to the variance of its noise, in all libraries

Arrays = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Model:
    """A model by its name in the tables.

    Attributes:
        title: as it is shown.
        data: draws data of so many rows.
        model: the Pyro model of these data.
    """

    title: str
    data: Callable[[np.random.Generator, int], Arrays]
    model: Callable[..., None]


def data_of(model: str, rows: int) -> Arrays:
    """The data of a model: the same for every library, in double precision."""
    return MODELS[model].data(np.random.default_rng(0), rows)


def target_of(model: str, rows: int) -> Any:
    """The target of a model in double precision."""
    import torch

    import ppl_vi

    return ppl_vi.Target.of(MODELS[model].model, tuple(torch.from_numpy(part) for part in data_of(model, rows)))


def _poisson_data(generator: np.random.Generator, rows: int) -> Arrays:
    features = 0.3 * generator.standard_normal((rows, 5))
    return features, generator.poisson(np.exp(0.3 * features.sum(1))).astype(float)


def _poisson(features: Any, counts: Any) -> None:
    import pyro
    import pyro.distributions as dist
    import torch

    weights = pyro.sample("weights", dist.Normal(torch.zeros(5), 1.0).to_event(1))
    with pyro.plate("rows", len(counts)):
        pyro.sample("counts", dist.Poisson((features @ weights).exp()), obs=counts)


def _logistic_data(generator: np.random.Generator, rows: int) -> Arrays:
    features = generator.standard_normal((rows, 4))
    logits = features @ np.array([0.5, -0.8, 0.3, 1.0])
    return features, (generator.random(rows) < 1 / (1 + np.exp(-logits))).astype(float)


def _logistic(features: Any, labels: Any) -> None:
    import pyro
    import pyro.distributions as dist
    import torch

    weights = pyro.sample("weights", dist.Normal(torch.zeros(4), 1.0).to_event(1))
    with pyro.plate("rows", len(labels)):
        pyro.sample("labels", dist.Bernoulli(logits=features @ weights), obs=labels)


def _hierarchy_data(generator: np.random.Generator, rows: int) -> Arrays:
    group = np.arange(rows) % NUM_GROUPS
    return generator.standard_normal(NUM_GROUPS)[group] + generator.standard_normal(rows), group


def _hierarchy(y: Any, group: Any) -> None:
    import pyro
    import pyro.distributions as dist

    mean, scale = pyro.sample("mean", dist.Normal(0.0, 5.0)), pyro.sample("scale", dist.HalfCauchy(5.0))
    with pyro.plate("groups", NUM_GROUPS):
        effect = pyro.sample("effect", dist.Normal(mean, scale))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(effect[group], 1.0), obs=y)


def _negative_binomial_data(generator: np.random.Generator, rows: int) -> Arrays:
    features = 0.5 * generator.standard_normal((rows, 3))
    mean = np.exp(1 + features @ np.array([0.6, -0.4, 0.2]))
    return features, generator.poisson(mean * generator.gamma(2.0, 0.5, rows)).astype(float)


def _negative_binomial(features: Any, counts: Any) -> None:
    import pyro
    import pyro.distributions as dist
    import torch

    intercept = pyro.sample("intercept", dist.Normal(0.0, 2.0))
    weights = pyro.sample("weights", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    dispersion = pyro.sample("dispersion", dist.Gamma(2.0, 0.5))
    with pyro.plate("rows", len(counts)):
        rate = dispersion * (-intercept - features @ weights).exp()
        pyro.sample("counts", dist.GammaPoisson(dispersion, rate), obs=counts)


def _mixture_data(generator: np.random.Generator, rows: int) -> Arrays:
    return (-1 + 2.5 * (generator.random(rows) < 0.35) + 0.8 * generator.standard_normal(rows),)


def _mixture(y: Any) -> None:
    import pyro
    import pyro.distributions as dist

    share = pyro.sample("share", dist.Beta(2.0, 2.0))
    low, step = pyro.sample("low", dist.Normal(0.0, 3.0)), pyro.sample("step", dist.LogNormal(0.5, 0.7))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    with pyro.plate("rows", len(y)):
        label = pyro.sample("label", dist.Bernoulli(share), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(low + step * label, scale), obs=y)


def _gaussian_process_data(generator: np.random.Generator, rows: int) -> Arrays:
    x = np.linspace(0, GP_SPAN, rows)
    return x, np.sin(2 * x) + 0.3 * generator.standard_normal(rows)


def _gaussian_process(x: Any, y: Any) -> None:
    import pyro
    import pyro.distributions as dist
    import torch

    length = pyro.sample("length", dist.LogNormal(0.0, 0.7))
    height = pyro.sample("height", dist.LogNormal(0.0, 0.7))
    noise = pyro.sample("noise", dist.LogNormal(-1.0, 0.7))
    kernel = height**2 * (-((x[:, None] - x) ** 2) / (2 * length**2)).exp()
    covariance = kernel + (noise**2 + JITTER) * torch.eye(len(x))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), covariance_matrix=covariance), obs=y)


MODELS = {
    "poisson": Model("Poisson regression", _poisson_data, _poisson),
    "logistic": Model("logistic regression", _logistic_data, _logistic),
    "hierarchy": Model("normal hierarchy", _hierarchy_data, _hierarchy),
    "negative_binomial": Model("negative binomial", _negative_binomial_data, _negative_binomial),
    "mixture": Model("mixture of two normals", _mixture_data, _mixture),
    "gaussian_process": Model("Gaussian process", _gaussian_process_data, _gaussian_process),
}
