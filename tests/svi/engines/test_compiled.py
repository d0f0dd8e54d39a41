"""The compiled engine against the batched one on the same draws, and what it does where it can't compile."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor
from torch._inductor import config
from torch.distributions import constraints

from models.exponential_normal import target as toy
from ppl_vi.compiler import inductor
from ppl_vi.guides import FAMILIES
from ppl_vi.svi.engines import compiled
from ppl_vi.svi.engines.adam import step_schedule
from ppl_vi.svi.engines.batched import BatchedEngine
from ppl_vi.svi.engines.choice import choose
from ppl_vi.svi.engines.compiled import KernelEngine, Plan, compiled_engine, inductor_engine, num_unrolled
from ppl_vi.svi.engines.step import Engine, State
from ppl_vi.svi.fit import fit
from ppl_vi.svi.objectives import find_objective, trace_elbo
from ppl_vi.svi.program import Program
from ppl_vi.svi.randomness import pseudo_random
from ppl_vi.svi.start import build_guide
from ppl_vi.target.isolation import isolated
from ppl_vi.target.target import Target

pytestmark = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")

ROOT = Path(__file__).resolve().parents[3]
FEW = ["lognormal", "gamma", "AutoGaussian"]  # pointwise, by rejection, with linear algebra
NUM_STEPS = 4


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    """Compiles in a cache folder of these tests' own, and keeps torch's trace of it out of pytest's records."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.getLogger("torch.__trace"), "propagate", False)
        patch.setenv(inductor.CACHE_VARIABLE, str(tmp_path_factory.mktemp("inductor")))
        yield


def start_of(program: Program, num_problems: int, num_replicas: int) -> Tensor:
    """Parameters without symmetry: the initial ones, all moved by about 0.2."""
    shape = (num_problems, num_replicas, program.layout.size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(11), dtype=program.target.dtype)
    return program.initial - 0.2 * noise


def steps_by_both(
    name: str,
    dtype: torch.dtype,
    objective: str = "trace_elbo",
    num_steps: int = NUM_STEPS,
    num_particles: int = 4,
    long_run: int = NUM_STEPS,
    make: Callable[..., Engine] = compiled_engine,
) -> tuple[list[Tensor], list[Tensor]]:
    """The state and bounds after the same steps from the same start on the same draws: batched, compiled."""
    target = toy([1.5, -3.0], dtype=dtype)
    wanted = find_objective(objective)
    with isolated(dtype, seed=0):
        program = Program(target, build_guide(FAMILIES[name], target))
        start = start_of(program, 2, 3)
        unit = torch.linspace(0.5, 1.5, program.layout.size).expand_as(start)
        noise = pseudo_random(program.draws, (8, 2, 3, num_particles), torch.Generator().manual_seed(8))
        scalars = torch.tensor([[*step_schedule(0.1, t + 1), 0.25] for t in range(num_steps)]).T
        alive = torch.ones(2, 3, dtype=torch.bool)
        alive[1, 2] = False  # keeps its place
        both = []
        for engine in (
            BatchedEngine(program, wanted),
            make(program, wanted, start, noise, num_steps=long_run),
        ):
            if make is compiled_engine and not isinstance(engine, BatchedEngine):
                assert isinstance(engine, KernelEngine)
            state, bounds = engine.advance(State.start(start, unit, alive, engine.sizes), scalars, noise)
            joined = state.resized([program.layout.size])
            both.append([*joined.tensors, bounds])
        assert not torch.equal(both[0][1], start)
        torch.testing.assert_close(both[1][1][1, 2], start[1, 2], rtol=0, atol=0)
    return both[0], both[1]


TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, torch.float64) for name in FEW]
    + [("lognormal", torch.float32)]
    + [
        pytest.param(name, dtype, marks=pytest.mark.slow)
        for name in FAMILIES
        for dtype in TOLERANCE
        if name not in FEW or (dtype == torch.float32 and name != "lognormal")
    ],
)
def test_compiled_steps_are_batched_steps(name: str, dtype: torch.dtype) -> None:
    """The state holds loss and gradient: Adam's first moment is 0.1 times the gradient after one step."""
    batched, compiled = steps_by_both(name, dtype, num_steps=1 if dtype == torch.float32 else NUM_STEPS)
    for one, other in zip(batched, compiled, strict=True):
        torch.testing.assert_close(one, other, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def weighted(x: Tensor) -> None:
    """Scaled, masked, in a plate."""
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    mask = torch.tensor([True, True, False, True, True, True])
    with pyro.plate("data", 6), poutine.mask(mask=mask), poutine.scale(scale=2.0):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def shaped(x: Tensor) -> None:
    """A vector on the simplex and a matrix of positive numbers."""
    weight = pyro.sample("weight", dist.Dirichlet(torch.ones(3)))
    rate = pyro.sample("rate", dist.Gamma(torch.full((2, 3), 2.0), 1.0).to_event(2))
    pyro.sample("x", dist.Normal((rate @ weight).sum(), 1.0).expand([6]).to_event(1), obs=x)


def in_place(model: Any) -> Any:
    """A guide whose draws come from `exponential_`."""

    def guide(x: Tensor) -> None:
        rate = pyro.param("rate", torch.tensor(1.0), constraint=constraints.positive)
        pyro.sample("z", dist.Exponential(rate))

    return guide


def positive(x: Tensor) -> None:
    z = pyro.sample("z", dist.Exponential(1.0))
    pyro.sample("x", dist.Normal(z, 1.0).expand([6]).to_event(1), obs=x)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "family"), [(weighted, "AutoNormal"), (shaped, "AutoNormal"), (positive, in_place)])
def test_ordinary_pyro_code_compiles(model: Any, family: Any) -> None:
    target = Target(model, (torch.linspace(-1.0, 2.0, 6, dtype=torch.float64)[None],))
    batched, compiled = (
        fit(target, family, engine=engine, num_steps=8, num_particles=4) for engine in ("batched", "compiled")
    )
    assert (compiled.engine, compiled.engine_reason) == ("compiled", "")
    torch.testing.assert_close(batched.theta, compiled.theta, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["score_function", "stl", "renyi:0.5", "iwae:2"])
def test_every_objective_compiles(objective: str) -> None:
    batched, compiled = steps_by_both("lognormal", torch.float64, objective)
    for one, other in zip(batched, compiled, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("name", FEW)
def test_inductors_steps_are_batched_steps(name: str) -> None:
    batched, compiled = steps_by_both(name, torch.float64, make=inductor_engine)
    for one, other in zip(batched, compiled, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


WRONG: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "parameters of another dtype": lambda given: given | {"theta": given["theta"].float()},
    "too few parameters": lambda given: given | {"theta": given["theta"][..., :-1]},
    "rates of another dtype": lambda given: given | {"scalars": given["scalars"].float()},
    "noise of another dtype": lambda given: given | {"noise": tuple(n.float() for n in given["noise"])},
    "noise of too few steps": lambda given: given | {"noise": tuple(n[:-1] for n in given["noise"])},
    "no noise": lambda given: given | {"noise": ()},
    "data of another dtype": lambda given: given | {"args": tuple(arg.float() for arg in given["args"])},
    "data of one problem": lambda given: given | {"args": tuple(arg[:1] for arg in given["args"])},
}


@pytest.mark.parametrize(
    ("make", "wrong"),
    [(compiled_engine, wrong) for wrong in WRONG] + [(inductor_engine, "no noise")]
    + [(inductor_engine, wrong) for wrong in WRONG if "dtype" in wrong],
)  # fmt: skip
def test_what_machine_code_would_misread_is_refused(make: Callable[..., Engine], wrong: str) -> None:
    """It takes whatever lies at an address for what it was made for: such calls had ended the process."""
    target = toy([1.5, -3.0])
    with isolated(torch.float64, seed=0):
        program = Program(target, build_guide(FAMILIES["lognormal"], target))
        theta = start_of(program, 2, 3)
        noise = pseudo_random(program.draws, (2, 2, 3, 4), torch.Generator().manual_seed(8))
        engine: Any = make(program, trace_elbo, theta, noise, 2)
        given = WRONG[wrong]({"theta": theta, "scalars": torch.ones(3, 2), "noise": noise, "args": target.args})
        sizes = engine.sizes if given["theta"].shape == theta.shape else [1]
        alive = torch.ones(2, 3, dtype=torch.bool)
        state = State.start(given["theta"], torch.ones_like(given["theta"]), alive, sizes)
        with pytest.raises(ValueError, match="machine code reads"):
            replace(engine, args=given["args"]).advance(state, given["scalars"], given["noise"])


@pytest.mark.slow
def test_unrolled_steps_are_steps_one_by_one() -> None:
    """Six steps by calls of eight: the last two are idle."""
    batched, compiled = steps_by_both(
        "lognormal", torch.float64, num_steps=6, num_particles=1, long_run=10**7, make=inductor_engine
    )
    for one, other in zip(batched[-1:] + batched[:2], compiled[-1:] + compiled[:2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_steps_are_unrolled_where_calls_are_many_and_graphs_small() -> None:
    usual = {"num_nodes": 150, "max_unrolled": 8, "num_steps": 10**7}
    assert num_unrolled(**usual) == 8
    assert num_unrolled(**usual | {"num_steps": 1000}) == 1
    assert num_unrolled(**usual | {"max_unrolled": 1}) == 1
    assert num_unrolled(**usual | {"num_nodes": 500}) == 2


def test_a_compiled_fit_is_the_batched_fit() -> None:
    """The same noise from the same seed: all that differs is rounding."""
    target = toy([1.5, -3.0])
    batched, compiled, again = (
        fit(target, "lognormal", engine=engine, num_steps=100, num_particles=16, num_replicas=3, seed=4)
        for engine in ("batched", "compiled", "compiled")
    )
    assert (compiled.engine, compiled.engine_reason) == ("compiled", "")
    torch.testing.assert_close(batched.theta, compiled.theta, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        torch.from_numpy(batched.elbo_history), torch.from_numpy(compiled.elbo_history), rtol=1e-8, atol=1e-8
    )
    assert batched.steps.tolist() == compiled.steps.tolist()
    assert batched.status.tolist() == compiled.status.tolist()
    assert torch.equal(compiled.theta, again.theta)
    assert len({tuple(row) for row in compiled.theta.flatten(0, 1).tolist()}) == 6  # no two fits alike


def test_a_compiled_fit_that_diverges_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppl_vi.svi.validation.MAX_LR", 1e6)
    found = fit(toy([1.5]), "lognormal", engine="compiled", lr=1e6, num_steps=8, num_particles=8, num_replicas=2)
    assert found.engine == "compiled"
    assert (found.status == "diverged").all()
    assert all(reason.startswith("diverged at step 2: guide site 'z' has") for reason in found.stop_reason.flat)
    assert bool(found.theta.isfinite().all())


def test_auto_compiles_where_it_saves_more_than_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without looking at the clock; machine code that is kept costs next to nothing."""
    target = toy([1.5])
    with isolated(seed=0):
        program = Program(target, build_guide(FAMILIES["lognormal"], target))
        theta = program.initial.expand(1, 4, -1).contiguous()

        def chosen(num_steps: int, kept: bool = False) -> tuple[str, str]:
            def planned(*_: object) -> Plan:
                return Plan(lambda: BatchedEngine(program, trace_elbo), kept, 5.0, 1e-3)

            monkeypatch.setattr("ppl_vi.svi.engines.choice.plan", planned)
            found = choose("auto", program, trace_elbo, theta, 16, num_steps)
            return found.name, found.reason

        assert chosen(100)[0] == chosen(100, kept=True)[0] == "batched"
        assert chosen(100)[1] == "100 steps are too few to be compiled"
        assert chosen(5000)[0] == "batched"
        assert re.fullmatch(r"compiling would take about 5 s and save [\d.]+ s", chosen(5000)[1])
        assert chosen(5000, kept=True)[0] == "compiled"
        assert re.fullmatch(r"saves about [\d.]+ s of 5000 steps, its code is kept", chosen(5000, kept=True)[1])
        assert chosen(10**6)[0] == "compiled"

        def reached(*_: object) -> Plan:
            raise RuntimeError("reached\nand more")

        monkeypatch.setattr("ppl_vi.svi.engines.choice.plan", reached)
        found = choose("auto", program, trace_elbo, theta, 16, 10**6)
    assert (found.name, found.reason) == ("batched", "can't be compiled here: reached")


# ---- where it can't compile


def small_fit(engine: str = "compiled") -> object:
    return fit(toy([1.5]), "exponential", engine=engine, num_steps=4, num_particles=4)


def test_an_unknown_torch_falls_back_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "9.9.0")
    found = small_fit()
    assert (found.engine, found.engine_reason) == (
        "batched", "can't be compiled here: torch 9.9.0 has not been tried, only 2.13",
    )  # fmt: skip


def test_without_a_compiler_it_falls_back_with_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(inductor.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with config.patch({"cpp.cxx": (None, "no-such-compiler")}):  # monkeypatch can't put such a setting back
        found = small_fit()
    assert found.engine == "batched"
    assert found.engine_reason.startswith("can't be compiled here: ")
    assert "\n" not in found.engine_reason


# ---- the cache


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(inductor.CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert inductor.cache_folder() == tmp_path / "ppl_vi" / "inductor"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert inductor.cache_folder() == Path.home() / ".cache" / "ppl_vi" / "inductor"
    monkeypatch.setenv(inductor.CACHE_VARIABLE, str(tmp_path / "mine"))
    assert inductor.cache_folder() == tmp_path / "mine"


PROGRAM = """
import json
import sys
from torch._inductor import cpp_builder
from models.exponential_normal import target
from ppl_vi.compiler import toolchain
from ppl_vi.svi.engines import compiled
from ppl_vi.svi.fit import fit

builds, run, build = [], cpp_builder.run_compile_cmd, toolchain.build


def counted(command, cwd):
    builds.append("-shared" in command)
    return run(command, cwd)


def counted_too(*arguments):
    builds.append(True)
    return build(*arguments)


cpp_builder.run_compile_cmd, toolchain.build = counted, counted_too
if sys.argv[2] == "inductor":  # as where a step has no translation
    compiled.written_step = None
found = fit(target([1.5]), sys.argv[1], engine="compiled", num_steps=4, num_particles=4)
print(json.dumps([sum(builds), found.engine, found.engine_reason, found.theta.flatten().tolist()]))
"""


def in_a_process(cache: Path, by: str) -> list[Any]:
    """Compiler runs, engine, reason and result of a fit in a process of its own, with warnings as errors."""
    environment = os.environ | {inductor.CACHE_VARIABLE: str(cache), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "exponential", by],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def damage(folder: Path, how: Callable[[bytes], bytes]) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(how(path.read_bytes()))


CACHED = ["translation", "inductor"]


@pytest.mark.slow
@pytest.mark.parametrize("by", CACHED)
def test_two_processes_share_a_cache_nothing_is_compiled_twice_and_damage_is_mended(tmp_path: Path, by: str) -> None:
    cache = tmp_path / "cache"  # which is not there at first
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(in_a_process, [cache, cache], [by, by])
    first = one[1:]
    assert one[0] + other[0] > 0
    assert first[:2] == ["compiled", ""]
    assert other[1:] == first
    assert in_a_process(cache, by) == [0, *first]
    damage(cache, lambda held: b"damaged")
    assert in_a_process(cache, by)[1:] == first
    damage(cache, lambda held: held[: len(held) // 2])
    assert in_a_process(cache, by)[1:] == first


def test_an_unwritable_cache_is_no_obstacle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.delenv(inductor.CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    found = small_fit()
    assert (found.engine, found.engine_reason) == ("compiled", "")
    assert "ppl_vi" not in os.environ.get(
        inductor.CACHE_VARIABLE, ""
    )  # torch sets it to its own default, where nothing does


def test_a_later_fit_to_the_same_target_takes_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only of Pyro's plain guides: a function may be another one at its next call."""
    written: list[str] = []
    before = compiled.written_step

    def counted(program: Program, *given: Any) -> Any:
        written.append(type(program.guide).__name__)
        return before(program, *given)

    monkeypatch.setattr(compiled, "written_step", counted)
    problem = toy([1.5])
    fits = [fit(problem, "AutoNormal", engine="compiled", num_steps=16, seed=seed) for seed in (1, 1, 2)]
    assert written == ["AutoNormal"]
    assert torch.equal(fits[0].theta, fits[1].theta)
    assert not torch.equal(fits[0].theta, fits[2].theta)
    fit(toy([1.5]), "AutoNormal", engine="compiled", num_steps=16)
    assert written == ["AutoNormal"] * 2
    for _ in range(2):
        fit(problem, "lognormal", engine="compiled", num_steps=16)
    assert len(written) == 4
