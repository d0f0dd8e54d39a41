"""Mistakes in models that would pass as answers: what is refused, and what is a remark."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_vi import Target, compare, fit, ground_truth
from ppl_vi.report import table

Y = torch.tensor([0.3, 1.2, -0.4, 0.8])


def likelihood(mean: Any, y: Tensor) -> None:
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def counting(step: float) -> Any:
    calls = [0]

    def model(y: Tensor) -> None:
        calls[0] += 1
        likelihood(pyro.sample("mean", dist.Normal(0.0, 1.0 + step * calls[0])), y)

    return model


class Counter(nn.Module):
    """A module that changes itself."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def forward(self, y: Tensor) -> None:
        self.seen += len(y)
        likelihood(pyro.sample("mean", dist.Normal(0.0, 1.0)), y / self.seen)


class Flat(dist.TorchDistribution):  # type: ignore[misc, unused-ignore]
    """The density 1 along the whole line."""

    support, arg_constraints, has_rsample = constraints.real, {}, True

    def __init__(self) -> None:
        super().__init__(torch.Size(), torch.Size(), validate_args=False)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        return torch.randn(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.zeros_like(value)


class Reciprocal(Flat):
    """The density 1 / x of positive numbers."""

    support = constraints.positive

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        return torch.randn(sample_shape).exp()

    def log_prob(self, value: Tensor) -> Tensor:
        return -value.log()


class Cauchy(Flat):
    """The standard Cauchy density, whose tails are heavy and whose integral is 1."""

    def log_prob(self, value: Tensor) -> Tensor:
        return -torch.log1p(value.square()) - np.log(np.pi)


def with_prior(prior: Any) -> Any:
    def model(y: Tensor) -> None:
        likelihood(pyro.sample("mean", prior()), y)

    return model


def forgotten_obs(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0))


def leaves(y: Tensor) -> None:
    pyro.sample("mean", dist.Normal(0.0, 1.0))
    raise SystemExit(5)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (forgotten_obs, r"no site is observed.*pyro.sample\('y', ..., obs=data\)"),
        (counting(0.1), "not the same function at each call: site 'mean'"),
        (counting(1e-9), "not the same function at each call: site 'mean'"),
        (Counter(), "not the same function at each call: site 'y'"),
        (with_prior(lambda: dist.Normal(float(np.random.randn()), 1.0)), "belong to no sample site.*site 'mean'"),
        (with_prior(lambda: dist.Normal(0.0, 1 + random.random())), "belong to no sample site.*site 'mean'"),
        (with_prior(lambda: dist.Normal(torch.randn(()), 1.0)), "belong to no sample site.*site 'mean'"),
        (with_prior(Flat), "site 'mean' has an improper prior"),
        (with_prior(Reciprocal), "site 'mean' has an improper prior"),
        (leaves, r"leaves Python by SystemExit\(5\) at or after site 'mean'"),
    ],
)
def test_a_sure_mistake_is_refused_with_its_site_in_one_line(model: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        Target.of(model, (Y,))
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match=said):
        compare(model, ["AutoNormal"], (Y,))


@pytest.mark.parametrize("changes", ["prior", "likelihood", "sites"])
def test_a_model_that_is_another_function_at_its_first_call_only_is_refused(changes: str) -> None:
    calls: list[int] = []

    def model(y: Tensor) -> None:
        calls.append(1)
        is_first = len(calls) == 1
        mean = pyro.sample("mean", dist.Normal(0.0, 3.0 if changes == "prior" and is_first else 1.0))
        if changes == "sites" and is_first:
            pyro.sample("other", dist.Normal(0.0, 1.0), obs=torch.tensor(0.3))
        likelihood(mean + (changes == "likelihood" and is_first), y)

    site = {"prior": "mean", "likelihood": "y", "sites": "other"}[changes]
    with pytest.raises(ValueError, match=f"not the same function at each call: site '{site}'"):
        Target.of(model, (Y,))


def test_many_problems_of_a_model_that_changes_are_refused() -> None:
    def model(y: Tensor) -> None:
        calls.append(1)
        pyro.sample("y", dist.Normal(pyro.sample("mean", dist.Normal(0.0, 1.0 + len(calls))), 1.0), obs=y)

    calls: list[int] = []
    with pytest.raises(ValueError, match="not the same function at each call: site 'mean'"):
        _ = Target.batch(model, (Y,)).latents


def test_a_prior_of_the_users_own_with_a_finite_integral_is_used() -> None:
    """The log joint is that of the same model with Pyro's Cauchy prior."""
    own, known = (Target.of(with_prior(prior), (Y,)) for prior in (Cauchy, lambda: dist.Cauchy(0.0, 1.0)))
    at = {"mean": torch.tensor([[-2.0, 0.5]], dtype=torch.float64)}
    torch.testing.assert_close(own.log_joint(at), known.log_joint(at), rtol=1e-13, atol=1e-13)


def test_a_model_that_changes_later_is_found_out_by_its_truth_and_its_fits() -> None:
    def model(y: Tensor) -> None:
        likelihood(pyro.sample("mean", dist.Normal(centre[0], 1.0)), y)

    centre = [0.0]
    target = Target.of(model, (Y,))
    for work in (lambda: ground_truth(target), lambda: fit(target, "AutoNormal", num_steps=5, engine="batched")):
        centre[0] = 0.0
        work()
        centre[0] = 0.5
        with pytest.raises(ValueError, match="has become another function while it was used"):
            work()


def no_arguments() -> None:
    pyro.sample("mean", dist.Normal(0.0, 2.0))


def only_the_length(x: Tensor, y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    with pyro.plate("rows", x.shape[0]):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def unused_latent(y: Tensor) -> None:
    pyro.sample("mean", dist.Normal(0.0, 2.0))
    likelihood(0.5, y)


def read_as_numbers(x: Tensor, y: Tensor) -> None:
    likelihood(pyro.sample("mean", dist.Normal(0.0, 2.0)) + sum(x.tolist()), y)


@pytest.mark.parametrize(
    ("model", "given", "said"),
    [
        (no_arguments, (), "no site is observed"),
        (only_the_length, (Y, Y), "never reads the numbers of its argument 'x'"),
        (only_the_length, ({"first": Y}["first"], Y), "'x'"),
        (unused_latent, (Y,), "no observed site or factor depends on a latent"),
    ],
)
def test_what_may_be_a_mistake_is_a_remark_above_the_numbers(model: Any, given: Any, said: str) -> None:
    (remark,) = Target.of(model, given).remarks
    assert said in remark
    found = compare(model, ["AutoNormal"], given, num_steps=20, num_replicas=1, num_draws=200)
    assert found.records()[0]["remarks"] == [remark]
    assert f"Remark: {remark[:60]}" in table.as_text(found.records(), width=300)


@pytest.mark.parametrize("model", [read_as_numbers, lambda x, y: likelihood(with_slope(x), y)])
def test_data_that_are_read_in_any_way_are_no_mistake(model: Any) -> None:
    assert Target.of(model, (Y + 1, Y)).remarks == ()


def with_slope(x: Tensor) -> Tensor:
    return x * pyro.sample("slope", dist.Normal(0.0, 1.0))
