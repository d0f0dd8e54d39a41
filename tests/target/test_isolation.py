"""`isolated` leaves the caller's process as it was, and two fits in it never touch."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

from models.exponential_normal import model, target
from ppl_vi.svi.fit import fit
from ppl_vi.svi.result import Fit
from ppl_vi.target.isolation import isolated

SMALL = {"num_steps": 6, "num_particles": 4, "num_replicas": 2}


def snapshot() -> dict[str, Any]:
    store = pyro.get_param_store()
    return {
        "random": torch.get_rng_state().tolist(),
        "dtype": torch.get_default_dtype(),
        "validation": torch.distributions.Distribution._validate_args,
        "pyro validation": pyro.infer.is_validation_enabled(),
        "settings": pyro.settings.get(),
        "store": {name: value.tolist() for name, value in store.items()},
        "constraints": {name: str(store._constraints[name]) for name in store},
    }


@contextmanager
def unusual(validation: bool) -> Iterator[None]:
    """Every setting where no default has it, and a caller's own parameter."""
    with pyro.get_param_store().scope(), pyro.validation_enabled(validation), torch.random.fork_rng(devices=[]):
        torch.manual_seed(77)
        pyro.param("mine", torch.tensor([1.5, 2.5]), constraint=pyro.distributions.constraints.positive)
        yield


@pytest.mark.parametrize("validation", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("fails", [True, False])
def test_everything_is_put_back(validation: bool, dtype: torch.dtype, fails: bool) -> None:
    with unusual(validation):
        before = snapshot()
        try:
            with isolated(dtype, seed=3):
                assert torch.get_default_dtype() == dtype
                assert not torch.distributions.Distribution._validate_args
                assert len(pyro.get_param_store()) == 0
                assert pyro.settings.get("module_local_params")
                pyro.param("mine", torch.tensor(-1.0))
                torch.rand(5)
                pyro.enable_validation(True)
                torch.set_default_dtype(torch.float16)
                if fails:
                    raise KeyError("inside")
        except KeyError:
            assert fails
        assert snapshot() == before


def test_the_seed_counts_and_without_one_the_outer_state_goes_on() -> None:
    with isolated(seed=4):
        first = torch.rand(3)
    with isolated(seed=4):
        assert torch.equal(torch.rand(3), first)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        with isolated():
            inner = torch.rand(3)
        assert torch.equal(torch.rand(3, dtype=torch.float64), inner)


def numbers(found: Fit) -> tuple[list[Any], list[Any], list[Any]]:
    return found.theta.tolist(), found.elbo_history.tolist(), found.draw(3, seed=1)["z"].tolist()


@pytest.mark.parametrize("engine", ["batched", "pyro", pytest.param("compiled", marks=pytest.mark.slow)])
def test_fits_leave_no_trace_and_never_touch(engine: str) -> None:
    one, other = target([1.5, -3.0]), target([4.0, 0.0])
    with unusual(True):
        before = snapshot()
        first = fit(one, "AutoNormal", engine=engine, seed=1, **SMALL)
        kept = numbers(first)
        second = fit(other, "AutoNormal", engine=engine, seed=2, **SMALL)
        assert not torch.equal(first.theta, second.theta)
        assert numbers(first) == kept
        assert numbers(fit(one, "AutoNormal", engine=engine, seed=1, **SMALL)) == kept
        assert snapshot() == before


def test_a_function_guide_keeps_clear_of_the_store() -> None:
    def guide(x: torch.Tensor) -> None:
        loc = pyro.param("mine", torch.tensor(0.25))
        pyro.sample("z", pyro.distributions.LogNormal(loc, 0.5))

    def family(model: Any) -> Any:
        return guide

    with unusual(True):
        before = snapshot()
        found = fit(target([1.5]), family, **SMALL)
        assert snapshot() == before
    (initial,) = found.initial.values()
    assert initial.tolist() == [[0.25, 0.25]]


def test_the_leak_that_is_kept_out_exists() -> None:
    """Without `isolated` two `AutoNormal` of one process share their parameters: what the tests above rule out."""
    with pyro.get_param_store().scope():
        first = AutoNormal(model)
        first(torch.tensor(1.5))
        with torch.no_grad():
            first.locs.z_unconstrained += 3.25
        second = AutoNormal(model)
        second(torch.tensor(1.5))
        assert second.locs.z.item() == first.locs.z.item()
