"""Files with a guide's values: their digits come back, and no code that a file holds is run."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_vi import Target, fitted
from ppl_vi.guides.given import store_names
from ppl_vi.guides.parameter_files import parameters_in
from ppl_vi.svi.fit import fit

Y = torch.tensor([0.3, 1.2, -0.4])


def model(y: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 2.0))
    b = pyro.sample("b", dist.HalfNormal(1.0))
    pyro.sample("y", dist.Normal(a, b).expand([3]).to_event(1), obs=y)


def guide(y: Tensor) -> None:
    pyro.sample("a", dist.Normal(pyro.param("loc"), pyro.param("scale")))  # these are nowhere but in the file
    pyro.sample("b", dist.LogNormal(0.0, pyro.param("other", torch.tensor(0.5), constraint=constraints.positive)))


TARGET = Target.of(model, (Y,))


@pytest.fixture(autouse=True)
def empty_store() -> Iterator[None]:
    with pyro.get_param_store().scope():
        yield


@pytest.fixture
def store_file(tmp_path: Path) -> Path:
    """A store with the values of `guide` and of two guides of Pyro's, as Pyro saves it."""
    pyro.param("loc", torch.tensor(0.7))
    pyro.param("scale", torch.tensor(0.3), constraint=constraints.interval(0.0, 2.0))
    pyro.param("other", torch.tensor(0.2), constraint=constraints.positive)
    for kind in (AutoNormal, AutoMultivariateNormal):
        kind(model)(Y)
    pyro.get_param_store().save(str(tmp_path / "store.pt"))
    return tmp_path / "store.pt"


def test_a_function_has_the_values_of_the_file_and_not_of_the_store(store_file: Path) -> None:
    pyro.clear_param_store()
    pyro.param("loc", torch.tensor(-5.0))
    for found in (fit(TARGET, fitted(guide, store_file)), fit(TARGET, fitted(f"{__name__}:guide={store_file}"))):
        latents = {"a": torch.tensor(0.4, dtype=torch.float64), "b": torch.tensor(1.3, dtype=torch.float64)}
        here = found.log_prob({name: value[None, None, None] for name, value in latents.items()})
        expected = dist.Normal(0.7, 0.3).log_prob(latents["a"]) + dist.LogNormal(0.0, 0.2).log_prob(latents["b"])
        assert float(here) == pytest.approx(float(expected), rel=1e-6)
    assert list(pyro.get_param_store()) == ["loc"]


@pytest.mark.parametrize("kind", [AutoNormal, AutoMultivariateNormal])
@pytest.mark.parametrize("by", ["store", "state"])
@pytest.mark.parametrize("is_called", [False, True])
def test_an_autoguide_has_the_digits_of_the_file(
    kind: Any, by: str, is_called: bool, store_file: Path, tmp_path: Path
) -> None:
    saved = kind(model)
    saved(Y)
    state = {name: value.clone() for name, value in saved.state_dict().items()}
    torch.save(saved.state_dict(), tmp_path / "state.pt")
    pyro.clear_param_store()
    new = kind(model)
    if is_called:
        new(Y)
        with torch.no_grad():
            next(new.parameters()).add_(1.0)
    found = fit(TARGET, fitted(new, tmp_path / f"{by}.pt"))
    assert all(torch.equal(found.parameters[name][0, 0], value.double()) for name, value in state.items())


class Nested(PyroModule):
    """A network of plain layers, one of Pyro's, and parameters with and without a constraint."""

    def __init__(self) -> None:
        super().__init__("outer")
        self.net = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))
        self.own = PyroModule[nn.Linear](1, 1)
        self.scale = PyroParam(torch.tensor(0.3), constraint=constraints.positive)
        self.bias = nn.Parameter(torch.tensor(0.1))

    def forward(self, y: Tensor) -> None:
        loc = self.own(self.net(y)) + self.bias
        pyro.sample("a", dist.Normal(loc.squeeze(), self.scale))
        pyro.sample("b", dist.LogNormal(0.0, self.scale))


def test_the_store_s_names_of_a_module_s_parameters_are_those_that_pyro_gives_them() -> None:
    module = Nested()
    module(Y)
    held = {name: dict(module.named_parameters())[path] for path, name in store_names(module).items()}
    store = dict(pyro.get_param_store().named_parameters())
    assert held.keys() == store.keys()
    assert all(held[name] is value for name, value in store.items())


def test_a_module_has_the_digits_of_a_store_file(tmp_path: Path) -> None:
    module = Nested()
    module(Y)
    pyro.get_param_store().save(str(tmp_path / "store.pt"))
    pyro.clear_param_store()
    found = fit(TARGET, fitted(Nested(), tmp_path / "store.pt"))
    for name, value in module.named_parameters():
        assert torch.equal(found.parameters[f"guide.held.{name}"][0, 0], value.double())


class Trap:
    """What a hostile file would run."""

    def __reduce__(self) -> Any:
        return pyro.set_rng_seed, (1,)


@pytest.mark.parametrize("content", ["pickle", "torch", "store", "guide", "numbers", "text", "zip", "empty"])
def test_a_file_of_anything_else_is_one_line_and_nothing_is_run(content: str, tmp_path: Path) -> None:
    file, sink = tmp_path / "file.pt", io.BytesIO()
    made: dict[str, Any] = {
        "torch": Trap(),
        "store": {"params": {"loc": torch.tensor(0.1)}, "constraints": {"loc": Trap()}},
        "guide": AutoNormal(model),
        "numbers": [1.0, 2.0],
        "empty": {},
    }
    if content == "pickle":
        file.write_bytes(pickle.dumps(Trap()))
    elif content == "text":
        file.write_text("not a file of torch's")
    elif content == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("data.pkl", pickle.dumps(Trap()))
    else:
        torch.save(made[content], sink)
        file.write_bytes(sink.getvalue())
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=r"file\.pt holds (no|other things than) parameters") as raised:
        parameters_in(file)
    assert "\n" not in str(raised.value)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_missing_file_and_one_of_another_guide_are_one_line(store_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.pt can't be read: No such file"):
        fitted(guide, tmp_path / "none.pt")
    torch.save({"loc": torch.tensor(0.1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt holds the state of a module, and the guide is a function"):
        fitted(guide, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt has no 'bias', which the guide has; it has loc"):
        fitted(Nested(), tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt has no parameter 'locs.a_unconstrained'; there are loc"):
        fit(TARGET, fitted(AutoNormal(model), tmp_path / "other.pt"))
    with pytest.raises(ValueError, match=r"store\.pt has none of the guide's parameters; it has loc, "):
        fitted(Nested(), store_file)
