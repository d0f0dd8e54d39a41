"""Sweeps: a sweep that was broken off and goes on equals an undisturbed one, row by row and bit by bit."""

import math
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

import ppl_vi
from models import exponential_normal
from ppl_vi import Target
from ppl_vi.comparison.comparison import Comparison, FitSettings
from ppl_vi.comparison.run import compare_one
from ppl_vi.metrics.table import METRICS
from ppl_vi.sweeps.checks import StoreError
from ppl_vi.sweeps.plan import plan_of
from ppl_vi.sweeps.results import load_results, progress_of
from ppl_vi.sweeps.running import Work, run, run_by
from ppl_vi.sweeps.store import Store
from ppl_vi.sweeps.tasks import SourceChangedError, score_columns
from tests.sweeps.conftest import Deadly

X = [0.5, 1.5]
ENTRIES: dict[str, Any] = {
    "models": {"toy": exponential_normal.target(X)},
    "guides": ["lognormal", "exponential"],
    "lr": [0.05, 0.2],
    "num_steps": 40,
    "engine": "batched",
    "num_draws": 50,
    "seed": range(6),
    "block": 3,
}


def swept(file: Path, **more: Any) -> list[dict[str, Any]]:
    return list(ppl_vi.sweep(**{**ENTRIES, "file": file, **more}))


def numbers(rows: Any) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Rows by what tells them apart, without what they took."""
    found = {}
    for row in rows:
        key = (row["key"], row["problem"], row["seed"])
        assert key not in found, "counted twice"
        found[key] = {name: value for name, value in row.items() if not name.endswith("_seconds")}
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[tuple[Any, ...], dict[str, Any]]]:
    file = tmp_path_factory.mktemp("undisturbed") / "sweep.db"
    return file, numbers(swept(file))


@pytest.fixture
def file(undisturbed: tuple[Path, Any], tmp_path: Path) -> Path:
    return Path(shutil.copy(undisturbed[0], tmp_path / "sweep.db"))


def test_every_fit_is_a_row(undisturbed: tuple[Path, Any]) -> None:
    file, rows = undisturbed
    assert len(rows) == 2 * 2 * 2 * 6
    frame = load_results(file)
    assert set(frame["x"]) == set(X)
    assert set(zip(frame["guide"], frame["lr"], frame["problem"], frame["seed"], strict=True)) == {
        (guide, lr, problem, seed)
        for guide in ENTRIES["guides"]
        for lr in ENTRIES["lr"]
        for problem in range(2)
        for seed in range(6)
    }
    assert progress_of(file)[:2] == (48, 48)


def test_results_are_a_tree_too(undisturbed: tuple[Path, Any]) -> None:
    """Each number of the DataFrame stands at its place in the tree, and nothing else does."""
    file, _ = undisturbed
    frame, tree = load_results(file), load_results(file, "not (lr < 0.1 and seed = 5)", datatree=True)
    assert set(tree["toy"].children) == {"lognormal", "exponential"}
    found = 0
    for row in frame.to_dict("records"):
        data = tree[f"toy/{row['guide']}"].dataset
        place = {name: row[name] for name in ("objective", "lr", "num_steps", "problem", "seed")}
        cell = data.sel(**place, num_particles=str(row["num_particles"]))
        left_out = row["lr"] < 0.1 and row["seed"] == 5
        assert math.isnan(cell["reverse_kl"]) if left_out else cell["reverse_kl"] == row["reverse_kl"]
        assert cell["status"] == ("" if left_out else row["status"])
        assert cell["x"] == row["x"]
        found += not left_out
    sizes = [tree[f"toy/{guide}"]["reverse_kl"].notnull().sum() for guide in ENTRIES["guides"]]
    assert sum(map(int, sizes)) == found == 44
    with pytest.raises(ValueError, match="leave out stale"):
        load_results(file, stale=True, datatree=True)


def test_two_fits_of_one_place_are_no_tree(undisturbed: tuple[Path, Any], tmp_path: Path) -> None:
    file = Path(shutil.copy(undisturbed[0], tmp_path / "sweep.db"))
    swept(file, guides=["exponential"], lr=0.2, block=2, seed=[0])
    with pytest.raises(ValueError, match="exponential on toy: two fits have one place"):
        load_results(file, datatree=True)
    assert len(load_results(file, "block = 3", datatree=True)["toy/exponential"]["seed"]) == 6


def test_the_numbers_are_those_of_fit_and_score(undisturbed: tuple[Path, Any]) -> None:
    """The second route: `fit` and `score` called by hand for one block."""
    frame = load_results(undisturbed[0], "guide = 'exponential' and lr = 0.05 and seed >= 3")
    target = exponential_normal.target(X)
    truth = ppl_vi.ground_truth(target)
    fitted = ppl_vi.fit(
        target, "exponential", engine="batched", num_steps=40, lr=0.05, num_replicas=3, seed=3, modes=truth.modes,
        allow_support_mismatch=True,
    )  # fmt: skip
    card = ppl_vi.score(fitted, truth, num_draws=50)
    table = frame.sort_values(["problem", "seed"])
    for name in METRICS:
        for part, suffix in (("value", ""), ("error", "_error"), ("std_error", "_std_error")):
            found = table[name + suffix].to_numpy(dtype=float).reshape(2, 3)
            there = name in card.scores
            expected = np.broadcast_to(getattr(card.scores[name], part), (2, 3)) if there else np.full((2, 3), np.nan)
            np.testing.assert_array_equal(found, expected, err_msg=name + suffix)
    assert (table["status"].to_numpy().reshape(2, 3) == fitted.status).all()
    assert len(set(table["elbo"])) == 6
    x = torch.tensor(X, dtype=torch.float64)
    evidence = exponential_normal.log_evidence(x).repeat_interleave(3).numpy()
    np.testing.assert_allclose(table["log_evidence"], evidence, atol=1e-12)
    np.testing.assert_allclose(table["reverse_kl"], evidence - table["elbo"], atol=1e-9)


def test_a_second_run_computes_nothing(file: Path, undisturbed: tuple[Path, Any]) -> None:
    before = file.read_bytes()
    with Store(file, score_columns()) as store:
        work = Work.of(plan_of({name: value for name, value in ENTRIES.items()}), store)
        assert work.missing == ()
        assert list(run(work, 1)) == []
    assert numbers(swept(file)) == undisturbed[1]
    assert len(load_results(file)) == 48
    assert len(before) == file.stat().st_size


@pytest.mark.parametrize("num_workers", [1, 2])
def test_what_is_missing_is_computed_to_the_same_bits(
    file: Path, undisturbed: tuple[Path, Any], num_workers: int
) -> None:
    with Store(file, score_columns()) as store:
        ids = [task.id for task in store.tasks().values()]
        store.drop(random.Random(num_workers).sample(ids, 5))
    assert len(load_results(file)) == 18
    assert numbers(swept(file, num_workers=num_workers)) == undisturbed[1]
    assert numbers(load_results(file).astype(object).to_dict("records")).keys() == undisturbed[1].keys()


def test_damaged_rows_are_computed_again(file: Path, undisturbed: tuple[Path, Any]) -> None:
    import sqlite3

    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE fits SET elbo = elbo + 1e-12 WHERE task = 2 AND seed = 4")
    connection.close()
    with pytest.raises(StoreError, match="damaged"):
        load_results(file)
    assert numbers(swept(file)) == undisturbed[1]


def test_more_seeds_leave_those_that_are_there_as_they_are(tmp_path: Path, undisturbed: tuple[Path, Any]) -> None:
    file = tmp_path / "sweep.db"
    few = numbers(swept(file, seed=[4, 1]))
    assert {key[2] for key in few} == {1, 4}
    assert few == {key: row for key, row in undisturbed[1].items() if key[2] in (1, 4)}
    assert numbers(swept(file, seed=[5])) == {key: row for key, row in undisturbed[1].items() if key[2] == 5}
    assert set(load_results(file)["seed"]) == {1, 4, 5}
    assert len(swept(file, seed=range(6))) == 48
    assert numbers(load_results(file).astype(object).to_dict("records")).keys() == undisturbed[1].keys()
    assert numbers(swept(file, seed=range(6))) == undisturbed[1]


def scaled(scale: float) -> Target:
    def model(x: torch.Tensor) -> None:
        z = pyro.sample("z", dist.Exponential(1.0))
        pyro.sample("x", dist.Normal(z, scale), obs=x)

    return Target.batch(model, (torch.tensor(X),), name="toy")


def test_a_changed_model_is_computed_anew_and_its_old_rows_are_stale(tmp_path: Path) -> None:
    file = tmp_path / "sweep.db"
    short = {"guides": ["lognormal"], "lr": 0.2, "seed": range(3)}
    first = numbers(swept(file, models=[scaled(1.0)], **short))
    second = numbers(swept(file, models=[scaled(2.0)], **short))
    assert not first.keys() & second.keys()
    assert set(load_results(file)["key"]) == {key[0] for key in second}
    both = load_results(file, stale=True)
    assert dict(both.groupby("stale").size()) == {False: 6, True: 6}
    assert numbers(swept(file, models=[scaled(1.0)], **short)) == {k: v | {"stale": 0} for k, v in first.items()}
    assert set(load_results(file)["key"]) == {key[0] for key in first}


def test_a_fit_that_kills_its_process_is_recorded_and_the_others_go_on(
    tmp_path: Path, undisturbed: tuple[Path, Any]
) -> None:
    file = tmp_path / "sweep.db"
    rows = swept(file, guides=["lognormal", Deadly()], lr=0.2, seed=range(3), num_workers=2)
    by_guide = {guide: [row for row in rows if row["guide"] == guide] for guide in ("lognormal", "deadly")}
    assert {row["status"] for row in by_guide["deadly"]} == {"killed"}
    assert "killed by SIGKILL" in by_guide["deadly"][0]["reason"]
    assert len(by_guide["deadly"]) == len(by_guide["lognormal"]) == 6
    assert all(undisturbed[1][key] == row for key, row in numbers(by_guide["lognormal"]).items())
    again = swept(file, guides=["lognormal", Deadly()], lr=0.2, seed=range(3), retry=True)
    assert {row["status"] for row in again if row["guide"] == "deadly"} == {"failed"}
    assert len(load_results(file)) == 12


def test_progress_is_told_in_fits(tmp_path: Path) -> None:
    told: list[ppl_vi.Stage] = []
    short = {"guides": ["exponential"], "lr": 0.2, "seed": range(6)}
    rows = swept(tmp_path / "sweep.db", **short, progress=told.append)
    found = [one for one in told if one.name == "sweep"]
    assert (found[0].done, found[-1].done, found[-1].total, found[-1].unit) == (0, 12, 12, "fit")
    assert {one.name for one in told if not one.is_detail} == {"truths", "sweep"}
    assert len(rows) == 12


@pytest.mark.parametrize("num_workers", [1, 2])
def test_the_stages_of_a_task_are_told_and_change_no_number(
    tmp_path: Path, undisturbed: tuple[Path, Any], num_workers: int
) -> None:
    """Where somebody follows a fit, its steps are cut into pieces by the clock; those of a sweep are not."""
    told: list[ppl_vi.Stage] = []
    rows = swept(tmp_path / "sweep.db", guides=["exponential"], num_workers=num_workers, progress=told.append)
    details = [one for one in told if one.is_detail]
    subjects = [f"exponential, seeds {first} to {first + 2}" for first in (0, 3)]
    assert {one.subject for one in details if one.name == "fitting"} == set(subjects)
    assert max(one.done for one in details if one.name == "fitting") == 40
    assert numbers(rows) == {key: row for key, row in undisturbed[1].items() if row["guide"] == "exponential"}


def failing(model: Any) -> Any:
    raise ValueError("no guide today")


def test_an_autoguide_of_ones_own_travels(tmp_path: Path) -> None:
    """Pyro's autoguides leave their model behind when they are pickled."""
    target = exponential_normal.target([1.5])
    entries: dict[str, Any] = {
        "models": target, "guides": {"own": AutoNormal(target.model, init_scale=0.3)}, "num_steps": 20,
        "engine": "batched", "num_draws": 50, "seed": range(2), "block": 1,
    }  # fmt: skip
    one = numbers(ppl_vi.sweep(**entries, file=tmp_path / "one.db"))
    two = numbers(ppl_vi.sweep(**entries, file=tmp_path / "two.db", num_workers=2))
    assert {row["status"] for row in one.values()} <= {"converged", "not_converged"}
    assert len(one) == 2
    assert one == two


def test_what_fails_or_is_skipped_is_a_row_with_its_reason(tmp_path: Path) -> None:
    rows = swept(tmp_path / "sweep.db", guides=[failing, "AutoDelta", "exponential"], lr=0.2, seed=range(3))
    found = {row["guide"]: (row["status"], row["reason"]) for row in rows}
    assert found["failing"][0] == "failed"
    assert "no guide today" in found["failing"][1]
    assert found["AutoDelta"] == ("skipped", "AutoDelta: a point mass has no density, so no KL to the posterior")
    assert found["exponential"][0] in ("converged", "not_converged")
    assert len(rows) == 18


def test_a_model_without_a_truth_costs_no_other_model(tmp_path: Path) -> None:
    def flat(x: torch.Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    wrong = Target.batch(flat, (torch.tensor([1.0]),), closed_form=lambda x: 0 * x + 5.0, name="wrong")
    rows = swept(tmp_path / "sweep.db", models=[wrong, exponential_normal.target(X)], lr=0.2, seed=range(3))
    statuses = {(row["model"], row["status"]) for row in rows}
    assert ("wrong", "failed") in statuses
    assert all(model != "wrong" or status == "failed" for model, status in statuses)
    assert "the truth can't be computed: UncertifiedTruthError" in next(
        r["reason"] for r in rows if r["model"] == "wrong"
    )
    assert len(rows) == 6 + 12 - 6 + 6


def test_a_model_that_changes_while_a_sweep_runs_ends_it(tmp_path: Path) -> None:
    """Here the other code comes by a mapper that hands on a job with another digest, as a new process would find."""
    from dataclasses import replace as changed

    def mapper(work: Any, jobs: Any, num_workers: int, killed: Any) -> Iterator[Any]:
        for job in jobs:
            yield work(changed(job, source="other") if hasattr(job, "source") else job)

    with Store(tmp_path / "sweep.db", score_columns()) as store:
        work = Work.of(plan_of(ENTRIES), store)
        with pytest.raises(SourceChangedError, match="has changed while the sweep was running"):
            list(run_by(mapper, work, 1))


def test_a_choice_of_engine_does_not_depend_on_what_was_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """With "auto" the engine of a sweep is the same whether its machine code is in the cache or not."""
    from dataclasses import replace as changed

    from ppl_vi.svi.engines import choice
    from ppl_vi.sweeps import tasks

    made, plan = [], choice.plan
    for is_cached in (False, True):
        monkeypatch.setattr(
            choice, "plan", lambda *given, is_cached=is_cached: changed(plan(*given), is_cached=is_cached)
        )
        with tasks.many_fits():
            settings = FitSettings(num_steps=120, num_replicas=3, num_particles=32)
            target = exponential_normal.target(X)
            entry = compare_one(Comparison(target, ppl_vi.ground_truth(target), settings, ()), "exponential")
        assert entry.card is not None
        made.append((entry.card.fit.engine, entry.card.fit.elbo_history.tobytes()))
    assert made[0] == made[1]
