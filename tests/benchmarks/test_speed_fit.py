"""All libraries are given the same models and data; the time of whole verbs is measured, split, shown and written."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import speed_compare, speed_fit, speed_peer_models, speed_split
from benchmarks.speed_fit_cases import FULL, QUICK, Case
from benchmarks.speed_models import MODELS, data_of, target_of
from benchmarks.speed_whole import fresh_folder, in_own_process, markdown, rounds, spread_cell
from ppl_vi.runtime.stages import Stage, listening, stage
from tests.strict_json import strict

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def jax_in_double() -> Iterator[None]:
    """JAX, where NumPyro is installed, computing in double precision."""
    pytest.importorskip("numpyro")
    import jax

    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def point(model: str) -> tuple[float, dict[str, np.ndarray]]:
    """The log joint of a model at a point that has no special place, and the latents there."""
    target = target_of(model, 7)
    u = torch.linspace(-0.4, 0.7, target.dim, dtype=torch.float64)
    latents, _ = target.constrain(u)
    log_joint = float(target.log_joint_of_row(latents, *target.row(0)))
    return log_joint, {name: value.numpy() for name, value in latents.items()}


# ---- the models


@pytest.mark.usefixtures("jax_in_double")
@pytest.mark.parametrize("model", MODELS)
def test_numpyro_s_models_have_our_densities(model: str) -> None:
    from numpyro.infer.util import log_density

    expected, latents = point(model)
    found, _ = log_density(speed_peer_models.NUMPYRO_MODELS[model], data_of(model, 7), {}, latents)
    # JAX's logarithm of the beta function, in the negative binomial, is off by 3e-8
    assert float(found) == pytest.approx(expected, rel=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.filterwarnings("ignore::UserWarning")  # PyTensor's, that there is no BLAS
def test_pymc_s_models_have_our_densities(model: str) -> None:
    pytest.importorskip("pymc")
    expected, latents = point(model)
    made = speed_peer_models.pymc_model(model, 7)
    named = {variable.name: variable for variable in made.free_RVs}
    value = made.compile_logp(jacobian=False)
    at = {}
    for name, variable in named.items():
        transform, owner = made.rvs_to_transforms[variable], variable.owner
        whole = np.asarray(latents[name])
        moved = whole if transform is None else transform.forward(whole, *owner.inputs).eval()
        at[made.rvs_to_values[variable].name] = moved
    assert float(value(at)) == pytest.approx(expected, rel=1e-6)


def test_the_data_are_drawn_from_the_models() -> None:
    """The counts have the mean and, where it is dispersed, the larger variance that their model gives them."""
    features, counts = data_of("negative_binomial", 40_000)
    mean = np.exp(1 + features @ np.array([0.6, -0.4, 0.2]))
    away = (counts - mean) / np.sqrt(mean + mean**2 / 2)
    assert abs(away.mean()) < 4 / 200
    assert away.std() == pytest.approx(1, abs=0.05)  # 4 standard errors with the kurtosis of a gamma mixture
    (y,) = data_of("mixture", 40_000)
    assert y.mean() == pytest.approx(-1 + 2.5 * 0.35, abs=4 * y.std() / 200)


# ---- the split


def told(*times: float) -> Callable[[], float]:
    """A clock that gives these times one after another."""
    left = iter(times)
    return lambda: next(left)


def test_the_time_between_two_events_belongs_to_the_innermost_stage() -> None:
    # begun at 0; "fitting" from 1 to 15, in it a check from 4 to 9; the truth from 16 to 26; asked at 30
    split = speed_split.Split(told(0.0, 1.0, 4.0, 9.0, 15.0, 16.0, 26.0, 30.0))
    for subject, name, done in (
        ("A", "fitting", 0), ("A", "checking convergence", 0), ("A", "checking convergence", None),
        ("A", "fitting", None), ("truth", "importance sampling", 0), ("truth", "importance sampling", None),
    ):  # fmt: skip
        split(Stage(subject, name, 0, None if done == 0 else 0, "", 0.0, None))
    expected = {"steps": 3.0 + 6.0, "checks": 5.0, "truth": 10.0, "rest": 1.0 + 1.0 + 4.0}
    assert split.seconds() == dict.fromkeys(speed_split.PARTS, 0.0) | expected


def test_a_split_ends_work_that_takes_too_long() -> None:
    split = speed_split.Split(told(0.0, 1.0, 6.0), most=5.0)
    said = "not finished in 5 s; the last stage was 'truth: tree'"
    with pytest.raises(speed_split.OverTimeError, match=said), listening(split, "truth"), stage("tree"):
        pass


def test_every_stage_that_is_told_has_a_part() -> None:
    """Those of the truth are known by their subject, and only sweeps have those of sweeps; the rest must be listed."""
    files = [file for file in (ROOT / "ppl_vi").rglob("*.py") if not {"truth", "sweeps"} & set(file.parts)]
    calls = [node for file in files for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    names = {
        call.args[0].value
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id == "stage" and isinstance(call.args[0], ast.Constant)
    }
    assert names <= set(speed_split.PART_OF)
    assert {"fitting", "checking convergence", "best member", "scoring"} <= names


# ---- the measurement


def test_rounds_take_turns_and_end_when_the_time_is_spent() -> None:
    calls: list[str] = []
    runs: dict[str, Callable[[], Any]] = {name: lambda name=name: calls.append(name) for name in ("a", "b")}  # type: ignore[misc]
    assert [len(times) for times in rounds(runs, 3, 100.0).values()] == [3, 3]
    assert calls == ["a", "b"] * 3
    assert [len(times) for times in rounds(runs, 3, 0.0).values()] == [1, 1]


def failing() -> dict[str, Any]:
    raise ValueError("no such\nthing")


def test_a_measurement_that_fails_says_why_in_a_line() -> None:
    with fresh_folder() as folder:
        assert in_own_process(folder, failing) == {"missing": "ValueError: no such thing"}


@pytest.mark.parametrize("particles", [1, "auto"])
def test_a_whole_fit_is_measured(particles: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed_fit, "installed", lambda *packages: False)
    record = speed_fit.measure(Case("hierarchy", 40, 3, particles, 60), 2)
    ours = record["ours"]
    assert len(ours["later"]) == 2
    assert min(ours["later"]) > 0
    assert sum(ours["first_split"].values()) == pytest.approx(ours["first"], rel=0.05, abs=0.02)
    assert min(ours["later_split"][part] for part in ("ready", "steps", "checks")) > 0
    assert ours["num_steps"] == 60 if particles == 1 else ours["num_steps"] <= 1000
    assert "numpyro" not in record


@pytest.mark.usefixtures("jax_in_double")
def test_numpyro_s_runs_are_measured() -> None:
    loop = speed_peer_models.numpyro_loop("mixture", 30, 4, 2, 5)
    import jax

    assert all(leaf.shape[:1] == (4,) for leaf in jax.tree.leaves(loop()))
    speed_peer_models.numpyro_run("mixture", 30, 2, 5)()


# ---- the tables and programs


def record(model: str, particles: Any = 16, **more: Any) -> dict[str, Any]:
    parts = dict.fromkeys(speed_split.PARTS, 0.25)
    ours = {
        "first": 2.5, "first_split": parts, "later": [0.2, 0.1, 0.4], "later_split": parts | {"checks": 0.125},
        "engine": "compiled", "num_steps": 375, "num_converged": 1,
    }  # fmt: skip
    return {"model": model, "rows": 20_000, "replicas": 1, "particles": particles, "steps": 500, "ours": ours} | more


def test_the_tables_show_what_the_records_say() -> None:
    numpyro, run = {"first": 3.0, "later": [0.1, 0.2, 0.1]}, {"later": [1.5]}
    full = record("poisson", numpyro=numpyro, kept={"first": 0.5}, numpyro_run=run)
    alone, failed, auto = record("mixture"), record("poisson", missing="E: why"), record("hierarchy", "auto")
    first, second, third = speed_fit.fit_rows([full, alone, failed, auto])
    sizes = ["20,000", "1 x 16 x 500"]
    warm = ["0.2 (0.1 to 0.4)", "0.1 (0.1 to 0.2)", "2"]  # the median of 2, 0.5 and 4
    assert first == ["Poisson regression", *sizes, "2.5", "0.5", "3", *warm, "1.5", "–"]
    assert second[3:] == ["2.5", "–", "not installed", "0.2 (0.1 to 0.4)", "not installed", "–", "–", "–"]
    assert third[3:] == ["E: why", *["–"] * 7]
    assert {len(cells) for cells in (first, second, third)} == {len(speed_fit.HEADINGS)}
    split, _ = speed_fit.split_rows([full, alone, failed, auto])
    assert split[3:] == ["0.25"] * 4 + ["0.25", "0.25", "0.12", "0.25", "0.1"]
    (default,) = speed_fit.default_rows([full, auto])
    assert default[:6] == ["normal hierarchy", "20,000", "1", "compiled", "375", "1 of 1"]
    assert len(default) == len(speed_fit.DEFAULT_HEADINGS)
    assert len(split) == len(speed_fit.SPLIT_HEADINGS)


def test_a_table_for_a_page() -> None:
    assert markdown(("a", "b"), [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"
    assert spread_cell([3.0]) == "3"
    assert spread_cell([]) == "–"


def test_the_program_writes_records_and_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed_fit, "in_own_process", lambda folder, work, *arguments: work(*arguments))
    monkeypatch.setattr(speed_fit, "QUICK", (Case("hierarchy", 40, 2, 1, 40),))
    monkeypatch.setattr(speed_fit, "installed", lambda *packages: False)
    assert speed_fit.main(["--quick", "--rounds", "1", "--out", str(tmp_path)]) == 0
    assert "normal" in capsys.readouterr().out
    (found,) = strict((tmp_path / "records.json").read_text())
    assert (found["model"], found["threads"]) == ("hierarchy", 1)
    assert found["ours"]["first"] > 0
    assert "| normal hierarchy | 40 | 2 x 1 x 40 |" in (tmp_path / "fits.md").read_text()


@pytest.mark.slow
def test_the_comparison_s_program_writes_its_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        speed_compare, "QUICK", (speed_compare.Case("poisson", 30), speed_compare.Case("poisson", 30, 0.1))
    )
    assert speed_compare.main(["--quick", "--rounds", "1", "--out", str(tmp_path)]) == 0
    whole, broken_off = strict((tmp_path / "records.json").read_text())
    assert min(whole["split"][part] for part in speed_split.PARTS) > 0
    assert whole["seconds"] == [pytest.approx(sum(whole["split"].values()))]
    assert len(whole["status"]) == 2
    assert broken_off["missing"].startswith("not finished in 0 s; the last stage was ")
    assert broken_off["split"]["scores"] == 0


@pytest.mark.parametrize("program", [speed_fit, speed_compare])
def test_a_model_that_is_unknown_is_refused_in_a_line(
    refused: Callable[[Callable[[list[str]], int], list[str]], str], program: Any
) -> None:
    assert "unknown model 'nobody'; there are poisson, " in refused(program.main, ["--models", "nobody"])


def test_the_cases_are_those_of_the_page() -> None:
    assert {case.model for case in FULL} == set(MODELS)
    assert len(set(FULL)) == len(FULL)
    assert {case.replicas for case in FULL} == {1, 100, 1000}
    assert min(case.rows for case in FULL) == 20
    assert max(case.rows for case in FULL) == 1_000_000
    assert all(case.model in MODELS for case in QUICK)
