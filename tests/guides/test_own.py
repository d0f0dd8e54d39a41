"""What users may give as a guide: which functions are guides and which are families, and what is said of neither."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch import Tensor

from ppl_vi import Target, fit
from ppl_vi.guides import RefusedFamilyError
from ppl_vi.guides.gamma import gamma
from ppl_vi.guides.own import OwnGuide, family_of
from ppl_vi.svi.setup import UnsuitableModelError
from ppl_vi.svi.start import build_guide


def model(y: Tensor) -> None:
    z = pyro.sample("z", dist.Exponential(0.7))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def of_two(y: Tensor, sd: float) -> None:
    pyro.sample("y", dist.Normal(pyro.sample("z", dist.Exponential(0.7)), sd).expand(y.shape).to_event(1), obs=y)


DATA = torch.tensor([0.4, 1.7, 0.9], dtype=torch.float64)
TARGET = Target.of(model, (DATA,))


def draws(y: Tensor) -> None:
    pyro.sample("z", dist.LogNormal(pyro.param("loc", torch.tensor(0.3)), 0.5))


def fails_after(y: Tensor) -> None:
    draws(y)
    raise LookupError("no row\nof that name")


def fails_in_a_plate(y: Tensor) -> None:
    with pyro.plate("rows", len(y)):
        raise LookupError("no row")


def fails_at_once(given: Tensor) -> None:
    raise LookupError("no row")


def fails_on_a_model(y: Tensor) -> None:
    """A guide that can do nothing with a model in place of data."""
    draws(y.exp())


def fails_by_itself(given: Tensor) -> None:
    """A guide with a slip of the pen before its first site."""
    draws(given.exponential_of_it())  # type: ignore[attr-defined]


def returns_nothing(given: Any) -> None:
    """Fails on data before its first site, and is no family either."""
    if isinstance(given, Tensor):
        raise LookupError("no row")


class NoDensity(dist.LogNormal):
    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value) + torch.zeros(2) * torch.zeros(3)


def with_no_density(y: Tensor) -> None:
    pyro.sample("z", NoDensity(pyro.param("loc", torch.tensor(0.3)), 0.5))


def family(model: Any) -> Any:
    return AutoNormal(model)


def blocked(model: Any) -> Any:
    """A family that can do nothing with data in place of a model."""
    return AutoNormal(pyro.poutine.block(model, hide=["rows"]))


class Chooser:
    """A family as an object that can be called."""

    def __call__(self, model: Any) -> Any:
        return AutoNormal(model, init_scale=0.2)

    def guide(self, y: Tensor) -> None:
        draws(y)


@pytest.mark.parametrize("guide", [draws, fails_on_a_model, Chooser().guide, partial(draws)])
def test_a_function_that_draws_is_a_guide(guide: Callable[..., Any]) -> None:
    found = family_of(TARGET, guide)
    assert isinstance(found, OwnGuide)
    trace = pyro.poutine.trace(build_guide(found, TARGET)).get_trace(*TARGET.row(0))
    assert float(trace.nodes["z"]["fn"].base_dist.loc.detach()) == pytest.approx(
        0.3, abs=1e-7
    )  # given in single precision


@pytest.mark.parametrize("given", [family, blocked, AutoNormal, Chooser(), partial(AutoNormal, init_scale=0.3), gamma])
def test_a_function_of_a_model_is_a_family(given: Any) -> None:
    assert family_of(TARGET, given) is given
    assert "z" in pyro.poutine.trace(build_guide(given, TARGET)).get_trace(*TARGET.row(0)).nodes


def test_a_function_of_more_than_a_model_is_a_guide_even_if_it_draws_nothing() -> None:
    def silent(y: Tensor, sd: float) -> None:
        raise LookupError("no row")

    target = Target.of(of_two, (DATA, 0.8))
    with pytest.raises(
        ValueError, match=r"the guide '.*silent' raised LookupError before its first sample site: no row"
    ):
        build_guide(family_of(target, silent), target)


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (fails_after, "raised LookupError at or after site 'z': no row of that name"),
        (fails_in_a_plate, "raised LookupError at or after site 'rows': no row"),
        (with_no_density, "raised .* at or after site 'z': .*: do the data have the shape that the guide '.*' takes?"),
    ],
)
def test_a_guide_that_fails_is_named_with_its_own_error_and_site(guide: Callable[..., Any], message: str) -> None:
    found = family_of(TARGET, guide)
    assert isinstance(found, OwnGuide)
    with pytest.raises(ValueError, match=f"^the guide '{__name__}:{guide.__name__}' {message}") as raised:
        build_guide(found, TARGET)
    assert "\n" not in str(raised.value)
    assert raised.value.__cause__ is not None


@pytest.mark.parametrize(
    ("function", "as_family"),
    [
        (fails_at_once, "raised LookupError: no row"),
        (fails_by_itself, "raised AttributeError: .* has no attribute 'exponential_of_it'"),
        (returns_nothing, "returned no guide but None"),
    ],
)
def test_a_function_that_is_neither_is_refused_with_both_of_its_errors(function: Any, as_family: str) -> None:
    as_guide = "called as the model is, it raised (LookupError|AttributeError) before its first sample site: .*"
    message = f"^'{__name__}:{function.__name__}' is neither a guide nor a family of guides: {as_guide}"
    message += f"; called with the model, it {as_family}"
    with pytest.raises(ValueError, match=message) as raised:
        family_of(TARGET, function)
    assert "\n" not in str(raised.value)


def test_what_is_no_guide_at_all_is_refused() -> None:
    with pytest.raises(TypeError, match="must be a family, its name, a function or a module; got float"):
        family_of(TARGET, 0.5)
    with pytest.raises(RefusedFamilyError, match=r"^AutoDelta: a point mass has no density"):
        family_of(TARGET, AutoDelta)


def test_a_function_with_the_models_parameter_names_is_a_guide_whose_error_is_its_own() -> None:
    """The network takes two numbers, gets one, and is called before the first site."""
    network = torch.nn.Linear(2, 1)

    def guide(y: Tensor) -> None:
        mean = network(y.reshape(-1, 1)).mean()
        pyro.sample("z", dist.Normal(mean, 1.0))

    def model(y: Tensor) -> None:
        pyro.sample("y", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=y)

    target = Target.of(model, (torch.tensor(0.4, dtype=torch.float64),))
    family = family_of(target, guide)
    assert isinstance(family, OwnGuide)
    with pytest.raises(ValueError, match=r"the guide '.*' raised RuntimeError.*shapes cannot be multiplied"):
        build_guide(family, target)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (torch.nn.BatchNorm1d(1), "a batch normalisation is in training mode.*net.eval"),
        (torch.nn.Dropout(0.5), "the model or guide draws random numbers.*net.eval"),
    ],
)
def test_a_network_in_training_mode_is_refused_with_the_mend(layer: torch.nn.Module, message: str) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(1, 1), layer)

    def guide(y: Tensor) -> None:
        pyro.module("network", network)
        with pyro.plate("rows", len(y)):
            pyro.sample("z", dist.Normal(network(y.reshape(-1, 1)).squeeze(-1), 0.5))

    def model(y: Tensor) -> None:
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 0.5), obs=y)

    target = Target.of(model, (torch.tensor([0.9, -0.3, 1.1], dtype=torch.float64),))
    with pytest.raises(UnsuitableModelError, match=message):
        fit(target, family_of(target, guide), num_steps=20, num_particles=4)
    network.eval()
    assert fit(target, family_of(target, guide), num_steps=20, num_particles=4).status[0, 0] != "diverged"
