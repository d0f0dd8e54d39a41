"""All engines are given the same problem, start and learning rule, and what is measured is shown and written."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import speed, speed_floor, speed_growth, speed_peers
from benchmarks.speed_accuracy import Distance, steps_until
from benchmarks.speed_case import ENTRY, Case, Loop, MissingError, Timing, engine
from benchmarks.speed_engines import target_of
from benchmarks.speed_problems import FORMS, OBSERVATION, PROBLEMS, RATE, rates
from benchmarks.speed_process import in_own_process, measure
from models import exponential_normal, gaussian, ppca
from ppl_vi.target.isolation import isolated
from tests.strict_json import strict

TOY = Case("toy", "lognormal", "batched", 3, dtype="float64", blocks=5, block_seconds=1e-3)
GAUSSIANS = [
    (problem, guide)
    for problem in PROBLEMS
    for guide in PROBLEMS[problem].guides
    if guide.startswith("Auto") and guide != "AutoIAFNormal"
]
PAIRS = [(problem, guide) for problem in PROBLEMS for guide in PROBLEMS[problem].guides]


def loop_of(case: Case) -> Loop:
    """The engine at its start; a peer that isn't installed skips the test."""
    try:
        return engine(case.engine)(case)
    except MissingError as error:
        pytest.skip(str(error))


@pytest.fixture
def alone() -> Iterator[None]:
    """In double precision and apart from the other tests."""
    with isolated(torch.float64, seed=0):
        yield


@pytest.fixture
def jax_in_double() -> Iterator[None]:
    """JAX, where NumPyro is installed, computing in double precision."""
    pytest.importorskip("numpyro")
    import jax

    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


# ---- the same start and rule


@pytest.mark.usefixtures("alone", "jax_in_double")
@pytest.mark.parametrize(("problem", "guide"), [("toy", "gamma"), ("eight_schools", "AutoNormal"), GAUSSIANS[-2]])
def test_numpyro_starts_where_we_start(problem: str, guide: str) -> None:
    case = Case(problem, guide, "batched", 2, dtype="float64")
    ours, theirs = (loop_of(replace(case, engine=name)).parameters() for name in ("batched", "numpyro"))
    assert set(ours) == set(theirs)
    skipped = {"factor"} if "LowRank" in guide else set()  # begins at random in Pyro, at 0 in NumPyro
    for name in set(ours) - skipped:
        torch.testing.assert_close(theirs[name].double(), ours[name], rtol=0, atol=1e-12)


@pytest.mark.usefixtures("alone", "jax_in_double")
@pytest.mark.parametrize("problem", PROBLEMS)
def test_numpyro_s_models_have_our_densities(problem: str) -> None:
    from numpyro.infer.util import log_density

    target = target_of(Case(problem, "", "", 1, dtype="float64"))
    u = torch.linspace(-0.4, 0.7, target.dim, dtype=torch.float64)
    latents, _ = target.constrain(u)
    values = {name: value.numpy() for name, value in latents.items()}
    data = [value.numpy() for value in target.row(0)]
    found, _ = log_density(speed_peers.NUMPYRO_MODELS[problem], data, {}, values)
    assert float(found) == pytest.approx(float(target.log_joint_of_row(latents, *target.row(0))), rel=1e-12)


@pytest.mark.usefixtures("jax_in_double")
@pytest.mark.parametrize("name", FORMS)
def test_numpyro_s_guides_have_our_densities(name: str) -> None:
    values = dict(zip(FORMS[name].constraints, (0.7, 3.3), strict=True))
    z = np.array([0.2, 0.9, 2.5])
    found = speed_peers.NUMPYRO_FORMS[name](**values).log_prob(z)
    tensors = {key: torch.tensor(value, dtype=torch.float64) for key, value in values.items()}
    expected = FORMS[name].distribution(**tensors).log_prob(torch.from_numpy(z))
    np.testing.assert_allclose(np.array(found), expected.numpy(), rtol=1e-10)


@pytest.mark.usefixtures("alone", "jax_in_double")
@pytest.mark.parametrize("name", ["batched", "floor", "numpyro", "pyro"])
def test_adam_s_first_two_steps_are_of_the_same_size(name: str) -> None:
    """The first moves by the rate, whatever the gradient, and the second by no more than 1.001 rates (by the inequality
    of Cauchy and Schwarz, with the weights that two steps have in both means)."""
    loop = loop_of(replace(TOY, engine=name, replicas=1 if name == "pyro" else 3))
    loop.advance(2)
    found = loop.parameters()
    moved = torch.stack([found["loc"], (found["scale"] / 0.1).log()]).abs()
    assert (moved <= rates(0, 2).sum() * 1.001).all()
    assert (moved.max() > RATE * 0.1).all()


def test_rates_go_on_where_they_were() -> None:
    np.testing.assert_array_equal(np.concatenate([rates(0, 3), rates(3, 4)]), rates(0, 7))
    assert rates(0, 1) == RATE


# ---- the loop by hand


@pytest.fixture(scope="module")
def by_hand() -> None:
    """The compiled loop, where it can be compiled."""
    try:
        speed_floor.library()
    except (MissingError, OSError) as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("by_hand", "alone")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_loop_by_hand_arrives(dtype: str) -> None:
    case = Case("toy", "lognormal", "floor", 1000, dtype=dtype)
    distance, loop = Distance.of(case), loop_of(case)
    assert distance.median(loop.parameters()) > 0.5
    for _ in range(5):  # in parts, as it is called
        loop.advance(1000)
    found = loop.parameters()
    # Adam with one draw a step stands still about 5e-3 nats above the best
    assert 0 < distance.median(found) < 0.015
    assert found["loc"].shape == (1000,)
    assert len(found["loc"].unique()) == 1000
    assert abs(float(torch.corrcoef(torch.stack([found["loc"][:500], found["loc"][500:]]))[0, 1])) < 4 / 500**0.5


@pytest.mark.usefixtures("by_hand", "alone")
def test_the_loop_by_hand_ends_where_the_batched_engine_does() -> None:
    loops = [loop_of(replace(TOY, engine=name, replicas=2000, dtype="float32")) for name in ("floor", "batched")]
    for loop in loops:
        loop.advance(300)
    one, other = ({key: value.double().log() if key == "scale" else value.double() for key, value in
                   loop.parameters().items()} for loop in loops)  # fmt: skip
    for name in one:
        error = (one[name].var() + other[name].var()).sqrt() / 2000**0.5
        assert abs(one[name].mean() - other[name].mean()) < 4 * error
        # the standard error of a log standard deviation is about 1 / sqrt(2 R) for a normal
        assert abs((one[name].std() / other[name].std()).log()) < 4 / 2000**0.5


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("case", [replace(TOY, guide="gamma"), replace(TOY, num_particles=2)])
def test_what_the_loop_by_hand_can_not_do_is_missing(case: Case) -> None:
    assert "by hand" in measure(replace(case, engine="floor")).missing


# ---- the distance


def test_a_gaussian_s_distance_has_its_closed_form() -> None:
    case = Case("gaussian", "AutoNormal", "", 1, size=4)
    distance, target = Distance.of(case), gaussian.target(4)
    loc, precision = gaussian.posterior(*target.args)
    family_gap = ppca.diagonal_gap(precision)
    # the points have a normal's first moments, all that a quadratic asks for; L-BFGS stops at 1e-8 or so
    assert distance.best == pytest.approx(float(family_gap - gaussian.log_evidence(*target.args)), abs=1e-6)
    factor = torch.diag(torch.diagonal(precision).rsqrt())[None]
    off = torch.tensor([[0.3, -0.1, 0.0, 0.2]], dtype=torch.float64)
    expected = float(off[0] @ precision @ off[0]) / 2
    assert distance.median({"loc": loc + off, "factor": factor}) == pytest.approx(expected, abs=1e-6)


def test_the_toy_s_distance_is_0_for_the_posterior() -> None:
    distance = Distance.of(Case("toy", "truncated_normal", "", 1))
    evidence = exponential_normal.log_evidence(torch.tensor([OBSERVATION], dtype=torch.float64))
    assert distance.best == pytest.approx(-float(evidence), abs=1e-7)


def test_a_flow_has_none() -> None:
    with pytest.raises(MissingError, match="AutoIAFNormal is no Gaussian"):
        Distance.of(Case("logistic_regression", "AutoIAFNormal", "", 1))


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(("problem", "guide"), GAUSSIANS)
def test_the_parameters_of_a_fit_are_those_of_its_density(problem: str, guide: str) -> None:
    """At the start all guides are Normal(0, 0.1^2), a low-rank one with something added."""
    found = loop_of(Case(problem, guide, "batched", 2, dtype="float64")).parameters()
    covariance = found["factor"] @ found["factor"].mT
    assert found["loc"].abs().max() == 0
    if "LowRank" not in guide:
        torch.testing.assert_close(covariance, 0.01 * torch.eye(covariance.shape[-1]).expand_as(covariance))


@pytest.mark.usefixtures("alone")
def test_the_way_to_the_accuracy_ends_there_or_says_how_far_it_got() -> None:
    case = replace(TOY, replicas=50, num_particles=64)
    distance, loop = Distance.of(case), loop_of(case)
    with pytest.raises(MissingError, match=r"still .* nats from the best"):
        steps_until(loop, replace(distance, best=distance.best - 1), 0.01)
    seconds, steps = steps_until(loop, replace(distance, best=distance.best + 0.01), 60.0)
    assert seconds > 0
    assert steps > 0


# ---- the measurement


@pytest.mark.usefixtures("alone")
def test_whole_fits_are_made_of_the_steps_that_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr("benchmarks.speed_engines.fit", lambda *_, **settings: made.append(settings))
    timing = measure(replace(TOY, engine="fit", num_particles=2))
    assert timing.steps_per_block % 1000 == 0
    assert len(made) > TOY.blocks
    assert {(one["num_steps"], one["num_replicas"], one["num_particles"]) for one in made} == {(1000, 3, 2)}
    monkeypatch.undo()
    loop_of(replace(TOY, engine="fit", replicas=1)).advance(1000)  # a real one


def test_a_measurement_in_a_process_of_its_own() -> None:
    timing = in_own_process(TOY, None)
    assert timing.missing == ""
    assert len(timing.seconds_per_step) == TOY.blocks
    assert min(timing.seconds_per_step) > 0
    assert timing.compile_seconds is not None
    assert timing.measured_replicas == 3


def test_a_measurement_that_fails_says_why_in_a_line() -> None:
    timing = in_own_process(replace(TOY, guide="nobody"), None)
    assert timing.missing == "failed: KeyError: 'nobody'"


@pytest.mark.usefixtures("alone")
def test_fits_one_by_one_are_measured_on_one() -> None:
    timing = measure(replace(TOY, engine="pyro", replicas=50))
    assert timing.measured_replicas == 1
    record = speed.record_of(replace(TOY, engine="pyro", replicas=50), timing, {})
    assert record["extrapolated_from"] == 1
    assert record["us_per_step"] == pytest.approx(np.median(timing.seconds_per_step) * 50e6)
    assert record["ns_per_fit_step"] == pytest.approx(np.median(timing.seconds_per_step) * 1e9)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", ["numpyro", "pymc"])
def test_a_peer_that_is_not_installed_is_missing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed_peers.importlib.util, "find_spec", lambda package: None)
    assert measure(replace(TOY, engine=name)).missing.startswith("not installed: ")


@pytest.mark.slow
@pytest.mark.usefixtures("alone")
def test_each_step_of_pymc_has_draws_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing moves, the loss changes with the draws alone."""
    monkeypatch.setattr(speed_peers, "RATE", 0.0)
    loop = loop_of(replace(TOY, engine="pymc", replicas=1))
    losses = [float(loop._step()) for _ in range(5)]  # type: ignore[attr-defined]
    assert len(set(losses)) == 5


# ---- the program


def _fake(case: Case, core: int | None) -> Timing:
    if case.engine == "numpyro":
        return Timing(missing="not installed: jax, numpyro")
    if case.engine == "pymc":
        return Timing(missing="no guide like it")
    one = case.engine.startswith("pyro")
    replicas = 1 if one else case.replicas
    return Timing(0.5, (1e-6, 2e-6, 4e-6, 2e-6, 3e-6), 10, replicas, None if one else 1.5, no_accuracy="not run" * one)


def test_the_records_and_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "in_own_process", _fake)
    assert speed.main(["--problems", "toy", "--quick", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "not installed" in shown
    assert "no guide like it" in shown
    assert "~2.00e3" in shown  # microseconds of 1,000 fits one by one
    records = strict((tmp_path / "records.json").read_text())
    keys = ("problem", "guide", "replicas", "engine")
    assert len({tuple(record[key] for key in keys) for record in records}) == len(records)
    pyro, peer = (next(r for r in records if (r["engine"], r["replicas"]) == (name, 1)) for name in ("pyro", "numpyro"))
    assert (pyro["us_per_step"], pyro["us_per_step_range"], pyro["threads"]) == (2.0, [1.0, 4.0], 1)
    assert (peer["us_per_step"], peer["missing"]) == (None, "not installed: jax, numpyro")


def test_fits_one_by_one_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Case] = []

    def noted(case: Case, core: int | None) -> Timing:
        asked.append(case)
        return _fake(case, core)

    monkeypatch.setattr(speed, "in_own_process", noted)
    chosen = [replace(TOY, engine=name, replicas=n, accuracy=1.0) for name in ("pyro", "batched") for n in (1, 50, 9)]
    records = list(speed.measured(chosen))
    assert [(case.engine, case.replicas) for case in asked] == [("pyro", 1), *(("batched", n) for n in (1, 50, 9))]
    assert [record["us_per_step"] for record in records[:3]] == pytest.approx([2.0, 100.0, 18.0])
    assert records[1]["no_accuracy"] == "50 fits one by one were not run"


def test_records_go_to_standard_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "in_own_process", _fake)
    arguments = ["--problems", "eight_schools", "--replicas", "7", "--engines", "batched", "--json", "-"]
    assert speed.main([*arguments, "--dtype", "float64", "--out", str(tmp_path)]) == 0
    records = strict(capsys.readouterr().out)
    assert [(record["guide"], record["replicas"], record["dtype"]) for record in records] == [
        ("AutoNormal", 7, "float64"),
        ("AutoMultivariateNormal", 7, "float64"),
    ]


def test_growth_draws_a_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "in_own_process", _fake)
    assert speed.main(["--growth", "--quick", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "growth.png").stat().st_size > 10_000
    axes = {record["axis"] for record in strict((tmp_path / "records.json").read_text())}
    assert axes == set(speed_growth.AXES)


def test_labels_that_would_overlap_are_moved_apart() -> None:
    assert speed_growth._apart([0.0, 0.1, 2.0, 2.4], 0.5) == [0.0, 0.5, 2.0, 2.5]


def test_the_slope_is_that_of_the_largest_points() -> None:
    assert speed_growth.slope([1, 10, 100, 1000], [7, 7, 10, 10 * 10**1.5]) == pytest.approx(
        np.polyfit([1, 2, 3], [np.log10(7), 1, 2.5], 1)[0]
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--problems", "nine_schools"], "unknown problem 'nine_schools'; there are toy, "),
        (["--engines", "warp"], "unknown engine 'warp'; there are pyro, "),
        (["--growth", "--engines", "warp"], "unknown engine 'warp'"),
        (["--replicas", "0"], "must be at least 1"),
        (["--dtype", "float16"], "invalid choice: 'float16'"),
    ],
)
def test_what_can_not_be_done_is_refused_in_a_line(
    refused: Callable[[Callable[[list[str]], int], list[str]], str], arguments: list[str], said: str
) -> None:
    assert said in refused(speed.main, arguments)


def test_every_engine_has_a_title() -> None:
    assert list(speed.TITLES) == list(ENTRY)


def test_the_floor_is_measured_for_the_lognormal_guide_and_pymc_with_one_fit() -> None:
    arguments: dict[str, Any] = {name: None for name in ("problems", "replicas", "engines")}
    options = argparse.Namespace(**arguments, quick=False, dtype="float32", num_particles=1, no_accuracy=False)
    chosen = speed.cases(options)
    assert {case.guide for case in chosen if case.engine == "floor"} == {"lognormal"}
    assert {case.replicas for case in chosen if case.engine == "pymc"} == {1}
    assert {(case.problem, case.guide) for case in chosen} == {
        pair for pair in PAIRS if pair[0] in speed.MEASURED_PROBLEMS
    }
    assert {case.replicas for case in chosen if case.problem == "toy"} == {1, 1000, 10_000, 100_000}
    assert all(case.blocks >= 5 for case in chosen)


@pytest.mark.skipif(sys.platform != "linux", reason="cores can be chosen on Linux alone")
def test_one_core_for_all() -> None:
    import os

    assert speed._core() in os.sched_getaffinity(0)
