"""A model's keyword arguments, and what stands for its one positional argument."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam
from torch import Tensor
from torch.distributions import constraints

import ppl_vi
from ppl_vi import Target, ground_truth
from ppl_vi.target.freezing import frozen_target
from ppl_vi.target.learned import Learned

Y = torch.tensor([0.3, 1.2, -0.4, 0.8])


def model(y: Tensor, *, sd: float, wide: float = 2.0, names: list[str] | None = None) -> None:
    centre = pyro.sample("centre", dist.Normal(0.0, wide))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(centre, sd), obs=y)


class Model(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.shift = torch.tensor(0.0)

    def forward(self, y: Tensor, sd: float = 1.0, wide: float = 2.0) -> None:
        model(y - self.shift, sd=sd, wide=wide)


def guide(y: Tensor, *, sd: float, wide: float = 2.0) -> None:
    scale = pyro.param("scale", torch.tensor(0.3), constraint=constraints.positive)
    pyro.sample("centre", dist.Normal(pyro.param("loc", torch.tensor(0.1)) + 0 * y.sum(), scale * sd / wide))


class Guide(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.loc = PyroParam(torch.tensor(0.1))

    def forward(self, y: Tensor, *, sd: float, wide: float = 2.0) -> None:
        pyro.sample("centre", dist.Normal(self.loc, sd / wide))


def log_evidence(sd: float, wide: float) -> float:
    covariance = torch.eye(4).double() * sd**2 + wide**2
    return float(dist.MultivariateNormal(torch.zeros(4).double(), covariance).log_prob(Y.double()))


@pytest.mark.parametrize("given", [model, Model()])
def test_keyword_arguments_reach_the_model(given: Any) -> None:
    target = Target.of(given, (Y,), kwargs={"wide": 3.0, "sd": 1.5})
    assert float(ground_truth(target).log_evidence[0]) == pytest.approx(log_evidence(1.5, 3.0), abs=1e-9)
    assert "forward" not in vars(given)


def test_keyword_arguments_reach_guides_and_the_three_verbs() -> None:
    guides = {"function": guide, "module": Guide(), "class": AutoNormal}
    kwargs = {"sd": 1.5, "wide": 3.0}
    result = ppl_vi.compare(model, guides, Y, kwargs=kwargs, num_steps=0, num_replicas=1, num_draws=100)
    assert float(result.truth.log_evidence[0]) == pytest.approx(log_evidence(1.5, 3.0), abs=1e-9)
    precision = 1 / 3.0**2 + 4 / 1.5**2
    exact = dist.Normal(Y.double().sum() / 1.5**2 / precision, precision**-0.5)
    for record, scale in zip(result.records(), (0.3 * 1.5 / 3.0, 1.5 / 3.0), strict=False):
        q = dist.Normal(torch.tensor(0.1).double(), torch.tensor(scale).double())
        assert record["reverse_kl"] == pytest.approx(float(torch.distributions.kl_divergence(q, exact)), rel=1e-6)
    assert ppl_vi.fit(model, ppl_vi.fitted(Guide()), Y, kwargs=kwargs).status.tolist() == [["as_given"]]


def test_a_model_with_parameters_of_its_own_keeps_its_keywords_when_these_are_frozen() -> None:
    def learns(y: Tensor, *, sd: float) -> None:
        model(y, sd=sd, wide=pyro.param("wide", torch.tensor(1.0), constraint=constraints.positive))

    target = Target.of(learns, (Y,), kwargs={"sd": 1.5})
    frozen = frozen_target(target, Learned({"wide": torch.tensor(3.0).double()}, "none", "converged", ""))
    assert float(ground_truth(frozen).log_evidence[0]) == pytest.approx(log_evidence(1.5, 3.0), abs=1e-9)
    assert frozen.bind(lambda y, *, sd: (len(y), sd))(torch.zeros(1)) == (4, 1.5)


class Table:
    """Stands for a table of pandas, which is told by where its class comes from."""

    __module__ = "pandas.core.frame"

    def __init__(self, y: np.ndarray) -> None:
        self.y = y


@pytest.mark.parametrize("given", [Y, Y.numpy(), Table(Y.numpy())])
def test_one_tensor_array_or_table_is_the_one_positional_argument(given: Any) -> None:
    def of_any(data: Any) -> None:
        model(torch.as_tensor(data.y if isinstance(data, Table) else data).double(), sd=1.5)

    assert float(ground_truth(Target.of(of_any, given)).log_evidence[0]) == pytest.approx(log_evidence(1.5, 2.0))


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        ([Y], {"sd": 1.0}, TypeError, r"positional arguments, got list: write args=\(data,\) for one argument"),
        ({"y": Y}, None, TypeError, r"got dict: kwargs=\.\.\. takes arguments by name"),
        (3.0, None, TypeError, r"got float: write args=\(data,\)"),
        (Y, [1.0], TypeError, "kwargs must be a dict of the model's arguments by name, got list"),
        (Y, {1: 1.0}, TypeError, "kwargs must be a dict of the model's arguments by name"),
        (Y, {"std": 1.0}, ValueError, "got an unexpected keyword argument 'std'"),
        (Y, None, ValueError, "missing 1 required keyword-only argument: 'sd'"),
    ],
)
def test_what_is_no_argument_is_one_line(args: Any, kwargs: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Target.of(model, args, kwargs=kwargs)


def test_arguments_beside_a_target_are_refused() -> None:
    target = Target.of(model, (Y,), kwargs={"sd": 1.0})
    for args, kwargs in (((Y,), None), (Y, None), ((), {"sd": 1.0})):
        with pytest.raises(ValueError, match="args and kwargs go with a model; a target has its own"):
            ppl_vi.compare(target, ["AutoNormal"], args, kwargs=kwargs)


def test_an_argument_that_is_never_read_is_named() -> None:
    def unread(y: Tensor, *, weights: Tensor) -> None:
        model(y, sd=1.0)

    remarks = " ".join(Target.of(unread, (Y,), kwargs={"weights": torch.ones(4)}).remarks)
    assert "weights" in remarks
