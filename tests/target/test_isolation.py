"""`isolated` leaves the caller's process as it was, two fits in it never touch, and it is the only gate there is."""

import ast
import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch.func import vmap

from models.exponential_normal import model, target
from ppl_vi.compiler.trace import trace
from ppl_vi.svi.fit import fit
from ppl_vi.svi.program import Program
from ppl_vi.svi.result import Fit
from ppl_vi.svi.start import build_guide
from ppl_vi.target.isolation import ProgramExitError, isolated
from ppl_vi.target.target import Target

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"num_steps": 6, "num_particles": 4, "num_replicas": 2}


def snapshot() -> dict[str, Any]:
    store = pyro.get_param_store()
    return {
        "random": torch.get_rng_state().tolist(),
        "numpy": str(np.random.get_state()),
        "python": random.getstate(),
        "dtype": torch.get_default_dtype(),
        "validation": torch.distributions.Distribution._validate_args,
        "pyro validation": pyro.infer.is_validation_enabled(),
        "settings": pyro.settings.get(),
        "folder": Path.cwd(),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
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
                pyro.set_rng_seed(21)
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


def test_entered_again_it_does_nothing() -> None:
    with unusual(True), isolated(torch.float64, seed=3):
        pyro.param("inner", torch.tensor(2.5))
        pyro.enable_validation(True)
        before = snapshot()
        with isolated(torch.float64):
            assert snapshot() == before
            again = torch.rand(2)
        assert pyro.settings.get("module_local_params")
        torch.manual_seed(3)
        assert torch.equal(torch.rand(2), again)  # it went on from the same random state, and moved it


def test_entered_again_with_a_seed_it_seeds_and_puts_the_random_state_back() -> None:
    with isolated(torch.float64, seed=4):
        first = torch.rand(3)
    with isolated(torch.float64, seed=5):
        pyro.param("inner", torch.tensor(2.5))
        torch.rand(2)
        before = snapshot()
        with isolated(torch.float64, seed=4):
            assert torch.equal(torch.rand(3), first)
            assert list(pyro.get_param_store()) == ["inner"]
        assert snapshot() == before


def test_within_another_dtype_it_is_entered_whole() -> None:
    with isolated(torch.float32, seed=1):
        pyro.param("inner", torch.tensor(2.5))
        before = snapshot()
        with isolated(torch.float64):
            assert torch.get_default_dtype() == torch.float64
            assert len(pyro.get_param_store()) == 0
            with isolated(torch.float32):
                assert torch.get_default_dtype() == torch.float32
            assert torch.get_default_dtype() == torch.float64
        assert snapshot() == before
        with isolated(torch.float32):
            assert snapshot() == before


def test_another_thread_waits_before_the_gate() -> None:
    found: list[Any] = []

    def other() -> None:
        with isolated(torch.float64):
            found.append(len(pyro.get_param_store()))

    thread = threading.Thread(target=other)
    with isolated(torch.float64):
        pyro.param("inner", torch.tensor(2.5))
        thread.start()
        thread.join(0.2)
        assert found == []
        assert list(pyro.get_param_store()) == ["inner"]
    thread.join(10)
    assert found == [0]


def spoiling(x: torch.Tensor) -> None:
    """A model that changes every setting and the folder, and ends the program where its data are negative."""
    z = pyro.sample("z", pyro.distributions.Exponential(torch.ones(())))
    assert (z + torch.ones(())).dtype == torch.float64
    pyro.enable_validation(True)
    torch.set_default_dtype(torch.float16)
    pyro.set_rng_seed(13)
    pyro.get_param_store().clear()
    torch.set_grad_enabled(False)
    torch.set_num_threads(3)
    os.chdir("/")
    if x < 0:
        raise SystemExit("the model ends the process")
    pyro.sample("x", pyro.distributions.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize("ends", [False, True])
def test_a_target_runs_its_model_in_the_gate_whatever_the_model_does(ends: bool) -> None:
    whole = Target(spoiling, (torch.tensor([1.5]),))
    sites, row = whole.latents, (torch.tensor(-1.5 if ends else 1.5, dtype=torch.float64),)
    z = torch.tensor(0.5, dtype=torch.float64)
    expected = -0.5 - 0.5 * (1.5 - 0.5) ** 2 - torch.tensor(2 * torch.pi, dtype=torch.float64).log() / 2
    calls = {
        "log_joint_of_row": lambda: whole.log_joint_of_row({"z": z}, *row),
        "log_density_of_row": lambda: whole.log_density_of_row(z.log()[None], *row) - z.log(),
    }
    for call in calls.values():
        with unusual(True):
            before = snapshot()
            if ends:
                with pytest.raises(ProgramExitError, match=r"sys\.exit\('the model ends the process'\)"):
                    call()
            else:
                assert float(call()) == pytest.approx(float(expected), rel=1e-14)
            assert snapshot() == before
    assert [site.name for site in sites] == ["z"]


def test_a_program_runs_guide_and_model_in_the_gate() -> None:
    problem = target([1.5])
    program = Program(problem, build_guide(AutoNormal, problem))
    theta, row, noise = program.initial, problem.row(0), (torch.tensor(0.5, dtype=torch.float64),)
    with isolated(torch.float64, seed=0):
        expected = program.sample(theta, row, noise), program.latents(theta, row, noise)["z"]
    with unusual(True):
        before = snapshot()
        found = program.sample(theta, row, noise), program.latents(theta, row, noise)["z"]
        assert float(program.log_guide(theta, row, {"z": found[1]})) == pytest.approx(float(found[0].log_guide))
        assert snapshot() == before
    assert all(map(torch.equal, (*found[0], found[1]), (*expected[0], expected[1])))


def test_the_gate_writes_nothing_into_a_graph() -> None:
    problem, z = target([1.5]), torch.linspace(0.1, 2, 5, dtype=torch.float64)
    over_points = vmap(lambda one: problem.log_joint_of_row({"z": one}, *problem.row(0)))
    with isolated(torch.float64):
        inside = trace(over_points, (z,))
    outside = trace(over_points, (z,))
    assert len(inside.graph.nodes) > 5
    assert outside.code == inside.code


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


# Who may enter the gate itself; all others run a model or guide by methods of `Target`, `Program` and `Density`.
ENTRANCES = {
    "ppl_vi/target/inspection.py": "runs a model before there is a target of it",
    "ppl_vi/target/mistakes.py": "runs a model before there is a target of it",
    "ppl_vi/target/preparation.py": "changes a model before there is a target of it",
    "ppl_vi/target/log_density.py": "a density may be of another function than a target's model",
    "ppl_vi/target/target.py": "runs models",
    "ppl_vi/svi/minibatch.py": "trains a module that is model and guide at once, of which there is no target",
    "benchmarks/speed_process.py": "times engines of other libraries, before there is a target",
}


def entrances(source: str) -> list[int]:
    """The lines that import the gate or name it as `isolation.isolated`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").endswith("isolation"):
            found += [node.lineno for alias in node.names if alias.name in ("isolated", "*")]
        elif isinstance(node, ast.Attribute) and node.attr == "isolated":
            found += [node.lineno for name in [ast.unparse(node.value)] if name.endswith("isolation")]
    return found


def test_only_few_files_enter_the_gate_themselves() -> None:
    folders = ("ppl_vi", "models", "benchmarks", "scripts")
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    found = {str(path.relative_to(ROOT)) for path in paths if entrances(path.read_text())}
    assert found == set(ENTRANCES)


@pytest.mark.parametrize(
    "source",
    [
        "from ppl_vi.target.isolation import isolated",
        "def f():\n    from ppl_vi.target.isolation import isolated as gate",
        "from .isolation import *",
        "import ppl_vi.target.isolation\nppl_vi.target.isolation.isolated()",
        "from ppl_vi.target import isolation\nwith isolation.isolated():\n    pass",
    ],
)
def test_an_entrance_is_found(source: str) -> None:
    assert len(entrances(source)) == 1


def test_a_method_is_no_entrance() -> None:
    assert entrances("with target.isolated(seed=0), program.isolated():\n    pass") == []
