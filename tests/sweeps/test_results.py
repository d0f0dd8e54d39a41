"""Reading, merging and comparing files of results, and what the command line prints."""

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ppl_vi.__main__ import main
from ppl_vi.sweeps import show
from ppl_vi.sweeps.checks import StoreError
from ppl_vi.sweeps.differences import differences
from ppl_vi.sweeps.results import load_results, merge, summary
from ppl_vi.sweeps.store import Store
from tests.sweeps.conftest import Run
from tests.sweeps.test_store import COLUMNS, TRUTH, rows, values


def write(file: Path, keys: dict[str, float], seeds: int = 2, model: str = "model-1", at: float = 1.0) -> Path:
    """A file with a task for each key, whose values begin at the number given."""
    with Store(file, COLUMNS) as store:
        for key, first in keys.items():
            task = values(store, key, model=model, seeds=json.dumps(list(range(seeds))), finished=at)
            store.write_task(task, COLUMNS, rows(first, seeds))
        store.write_truth(store.source("model", "toy", model), [{"problem": b, **TRUTH} for b in range(2)])
    return file


def by_fit(file: Path) -> dict[tuple[Any, ...], str]:
    frame = load_results(file, stale=True)
    return {(row["key"], row["problem"], row["seed"]): repr(row) for row in frame.to_dict("records")}


def test_a_condition_chooses_rows_and_a_wrong_one_is_one_line(tmp_path: Path) -> None:
    file = write(tmp_path / "a.db", {"one": 1.0, "two": 2.0})
    assert len(load_results(file, "elbo >= 2 AND problem = 0")) == len([r for r in rows(2.0) if r[0] == 0])
    for wrong in ("elbow > 2", "elbo >", "1; DROP TABLE fits", "elbo = (SELECT"):
        with pytest.raises(StoreError, match="--where") as found:
            load_results(file, wrong)
        assert "\n" not in str(found.value)
    assert len(load_results(file)) == 8


def test_merging_counts_nothing_twice(tmp_path: Path) -> None:
    one = write(tmp_path / "a.db", {"one": 1.0, "both": 2.0})
    two = write(tmp_path / "b.db", {"both": 2.0, "two": 3.0})
    assert merge([one, two], tmp_path / "c.db") == {"tasks": 3, "common": 1, "different": 0}
    assert by_fit(tmp_path / "c.db") == {**by_fit(one), **by_fit(two)}
    assert load_results(tmp_path / "c.db")["log_evidence"].eq(-1.5).all()
    with pytest.raises(StoreError, match="is there already"):
        merge([one, two], tmp_path / "c.db")
    assert sorted(path.name for path in tmp_path.iterdir() if "part" in path.name) == []


def test_merging_puts_the_seeds_of_one_task_together(tmp_path: Path) -> None:
    few = write(tmp_path / "a.db", {"one": 1.0}, seeds=2)
    more = write(tmp_path / "b.db", {"one": 1.0}, seeds=5)
    for files in ([few, more], [more, few]):
        out = tmp_path / f"{files[0].stem}-first.db"
        assert merge(files, out)["different"] == 0
        assert by_fit(out) == by_fit(more)


def test_merging_says_where_numbers_differ_and_keeps_those_of_the_first(tmp_path: Path) -> None:
    one, two = write(tmp_path / "a.db", {"one": 1.0}), write(tmp_path / "b.db", {"one": 1.5})
    assert merge([two, one], tmp_path / "c.db")["different"] == 1
    assert by_fit(tmp_path / "c.db") == by_fit(two)


def test_what_was_written_last_is_current_after_merging(tmp_path: Path) -> None:
    old = write(tmp_path / "a.db", {"old": 1.0}, model="model-1", at=10.0)
    new = write(tmp_path / "b.db", {"new": 1.0}, model="model-2", at=20.0)
    for files in ([old, new], [new, old]):
        out = tmp_path / f"{files[0].stem}-first.db"
        merge(files, out)
        assert set(load_results(out)["key"]) == {"new"}


def test_merging_refuses_a_damaged_file(tmp_path: Path) -> None:
    one, two = write(tmp_path / "a.db", {"one": 1.0}), tmp_path / "b.db"
    two.write_text("nothing" * 100)
    with pytest.raises(StoreError, match=r"b\.db"):
        merge([one, two], tmp_path / "c.db")
    assert not (tmp_path / "c.db").exists()


def measured(file: Path, groups: dict[float, list[float | None]], error: float = 0.0) -> Path:
    """A file with the reverse KL of the seeds of combinations that differ in lr."""
    with Store(file, COLUMNS) as store:
        for lr, found in groups.items():
            task = values(store, f"key-{lr}", lr=lr, block=len(found), seeds=json.dumps(list(range(len(found)))))
            one = [(0, s, "converged", "", 10, 0.0, 0.0, 0.0, value, error, 0.0) for s, value in enumerate(found)]
            store.write_task(task, COLUMNS, one)
    return file


def verdicts(tmp_path: Path, before: dict[float, Any], after: dict[float, Any], error: float = 0.0) -> dict[float, str]:
    for name in ("a.db", "b.db"):
        (tmp_path / name).unlink(missing_ok=True)
    one, two = measured(tmp_path / "a.db", before, error), measured(tmp_path / "b.db", after, error)
    return {found.group["lr"]: found.verdict for found in differences(one, two)}


def test_a_difference_counts_when_it_is_beyond_the_noise(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).normal(size=(6, 20))
    before = {0.1: 0.5 + 0.1 * noise[0], 0.2: 0.5 + 0.1 * noise[1], 0.3: 0.5 + 0.1 * noise[2]}
    after = {0.1: 0.9 + 0.1 * noise[3], 0.2: 0.2 + 0.1 * noise[4], 0.3: 0.5 + 0.1 * noise[5]}
    lists = [{lr: some.tolist() for lr, some in found.items()} for found in (before, after)]
    assert verdicts(tmp_path, *lists) == {0.1: "worse", 0.2: "better", 0.3: "same"}
    found = {one.group["lr"]: one for one in differences(tmp_path / "a.db", tmp_path / "b.db")}
    for lr in before:  # the second route is scipy's own test
        expected = stats.ttest_ind(before[lr], after[lr], equal_var=False)
        assert found[lr].probability == pytest.approx(expected.pvalue, rel=1e-9)
        assert found[lr].before == pytest.approx(before[lr].mean())


def test_chance_alone_is_seldom_a_difference(tmp_path: Path) -> None:
    """Of 20 pairs of files, at an error rate of 0.01 each, 3 or more alarms have a probability of 1e-3."""
    generator, alarms = np.random.default_rng(2), 0
    for _ in range(20):
        made = [{0.1 * (i + 1): generator.normal(1.0, 0.2, size=8).tolist() for i in range(10)} for _ in range(2)]
        alarms += any(verdict != "same" for verdict in verdicts(tmp_path, *made).values())
    assert alarms <= 2


@pytest.mark.parametrize(
    ("before", "after", "error", "verdict"),
    [
        ([0.5] * 4, [0.5] * 4, 0.0, "same"),
        ([0.5] * 4, [0.6] * 4, 0.0, "worse"),
        ([0.5] * 4, [0.6] * 4, 0.06, "same"),  # within the bounds on the numerical errors
        ([0.5] * 4, [0.5009] * 4, 0.0, "same"),  # less than counts
        ([0.5], [0.6], 0.0, "unknown"),  # one seed says nothing of the noise
        ([0.5] * 4, [math.inf] * 4, 0.0, "worse"),
        ([None] * 4, [0.5] * 4, 0.0, "better"),
        ([None] * 4, [None] * 4, 0.0, "same"),
    ],
)
def test_verdicts_where_there_is_no_spread(
    tmp_path: Path, before: list[float | None], after: list[float | None], error: float, verdict: str
) -> None:
    assert verdicts(tmp_path, {0.1: before}, {0.1: after}, error) == {0.1: verdict}


def test_what_is_in_one_file_alone_is_said(tmp_path: Path) -> None:
    assert verdicts(tmp_path, {0.1: [1.0, 2.0]}, {0.2: [1.0, 2.0]}) == {0.1: "only before", 0.2: "only after"}
    with pytest.raises(StoreError, match=r"has no metric 'nothing'; there are .*elbo, reverse_kl"):
        differences(tmp_path / "a.db", tmp_path / "b.db", "nothing")


def test_the_summary_has_a_line_for_each_combination(tmp_path: Path) -> None:
    file = measured(tmp_path / "a.db", {0.1: [3.0, 1.0, 2.0], 0.2: [math.inf, None, 5.0]})
    one, two = summary(file)
    assert (one["lr"], one["fits"], one["reverse_kl"], one["least"], one["most"]) == (0.1, 3, 2.0, 1.0, 3.0)
    assert (two["lr"], two["reverse_kl"], two["most"]) == (0.2, 5.0, math.inf)


@pytest.fixture
def swept(run: Run, folder: Path) -> Path:
    (folder / "plan.toml").write_text((folder / "plan.toml").read_text().replace("lr = [0.05, 0.2]", "lr = 0.2"))
    done = run("sweep", "plan.toml", "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert "24 fits are in plan.db, 24 of them new" in done.stdout
    return folder


def test_the_command_line_from_plan_to_tables(swept: Path, run: Run) -> None:
    table = run("results", "plan.db").stdout
    assert [line.split()[1] for line in table.splitlines()[2:]] == ["exponential", "lognormal"]
    listed = list(csv.DictReader(io.StringIO(run("results", "plan.db", "--csv").stdout)))
    records = json.loads(run("results", "plan.db", "--json", "--where", "guide = 'lognormal'").stdout)
    frame = load_results(swept / "plan.db")
    assert [float(row["reverse_kl"]) for row in listed] == frame["reverse_kl"].tolist()
    assert [r["elbo"] for r in records] == frame[frame["guide"] == "lognormal"]["elbo"].tolist()
    assert run("results", "plan.db", "--watch").stdout == "24 of 24 fits\n"
    assert run("results", "plan.db", "--csv", "-o", "rows.csv").stdout == ""
    assert len((swept / "rows.csv").read_text().splitlines()) == 25

    told = run("sweep", "plan.toml", "--dry-run", "--seed", "0:9")
    assert "36 fits in 6 tasks" in told.stdout
    assert "24 fits are in plan.db, 12 are missing in 2 tasks" in told.stdout
    assert "by the fits in 'plan.db'" in told.stdout

    same = run("results", "diff", "plan.db", "plan.db")
    assert (same.returncode, same.stdout) == (0, "reverse_kl: 4 same\n")
    merged = run("results", "merge", "plan.db", "plan.db", "-o", "both.db")
    assert merged.stdout.startswith("4 tasks are in both.db; 4 were in several")
    assert len(load_results(swept / "both.db")) == 24


@pytest.mark.slow
def test_the_same_by_options(folder: Path, run: Run) -> None:
    options = ["--guides", "lognormal", "exponential", "--lr", "0.2", "--num-steps", "40", "--engine", "batched",
               "--num-draws", "50", "--seed", "0:6", "--block", "3"]  # fmt: skip
    assert run("sweep", "toy_model:target", *options, "--workers", "1").returncode == 0
    (folder / "plan.toml").write_text((folder / "plan.toml").read_text().replace("lr = [0.05, 0.2]", "lr = 0.2"))
    told = run("sweep", "plan.toml", "--file", "sweep.db", "--workers", "1")
    assert "24 fits are in sweep.db, 0 of them new" in told.stdout
    made = run("sweep", "toy_model:data_model", "--args", "toy_model:data", *options, "--dry-run")
    assert "12 fits in 4 tasks" in made.stdout


def test_wrong_entries_are_told_in_a_line_each(folder: Path, run: Run) -> None:
    (folder / "bad.toml").write_text('models = ["toy_model:none"]\nguides = ["gama"]\nlr = -1\n')
    done = run("sweep", "bad.toml")
    assert (done.returncode, done.stdout) == (2, "")
    found = [line.partition(": error: ")[2].partition(": ")[0] for line in done.stderr.splitlines() if "error" in line]
    assert found == ["bad.toml:3", "bad.toml:2", "bad.toml:1"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("results foreign.db", "is no file of results"),
        ("results missing.db", "there are no results in"),
        ("results missing.db --watch", "there are no results in"),
        ("results diff foreign.db missing.db", "is no file of results"),
        ("results diff foreign.db", "expected diff A B"),
        ("results merge foreign.db", "expected merge A B"),
        ("results merge foreign.db missing.db -o c.db", "is no file of results"),
        ("results a.db b.db", "expected one file, got 2"),
        ("results foreign.db --csv -o nowhere/x.csv", "is no file of results"),
        ("sweep good.toml --file foreign.db", "is no file of results"),
        ("sweep good.toml --file nowhere/sweep.db", "can't write 'nowhere/sweep.db'"),
        ("sweep good.toml --exclude guide=lognormal", "--exclude[0]: nothing in the plan matches"),
        ("sweep good.toml --exclude gamma", "expected NAME=VALUE"),
        ("sweep good.toml --lr 0", "must be above 0"),
        ("sweep good.toml --seed 4:2", "--seed: expected FIRST:END"),
        ("sweep missing.toml", "can't read 'missing.toml'"),
        ("sweep --guides gamma", "models: expected at least one"),
    ],
)
def test_what_can_not_be_done_is_refused(
    folder: Path, refused: Any, monkeypatch: pytest.MonkeyPatch, arguments: str, said: str
) -> None:
    (folder / "foreign.db").write_text("not a database" * 100)
    (folder / "good.toml").write_text(
        'models = [{target = "models.exponential_normal:target", args = [[0.5]]}]\nguides = ["gamma"]\n'
    )
    monkeypatch.chdir(folder)
    assert said in refused(main, arguments.split())
    assert (folder / "foreign.db").read_text() == "not a database" * 100


def test_parquet_has_what_the_frame_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    write(tmp_path / "plan.db", {"one": 1.0, "two": 2.0})
    monkeypatch.chdir(tmp_path)
    assert main(["results", "plan.db", "--parquet", "-o", "rows.parquet", "--where", "seed = 1"]) == 0
    expected = load_results("plan.db", "seed = 1").astype({"num_particles": str})
    assert len(expected) == 4
    pd.testing.assert_frame_equal(pd.read_parquet("rows.parquet"), expected)


def test_parquet_without_pyarrow_or_a_file_is_one_line(
    tmp_path: Path, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "plan.db", {"one": 1.0})
    monkeypatch.chdir(tmp_path)
    assert "--parquet: expected -o FILE" in refused(main, ["results", "plan.db", "--parquet"])
    monkeypatch.setattr(show, "find_spec", lambda name: None)
    told = refused(main, ["results", "plan.db", "--parquet", "-o", "rows.parquet"])
    assert "--parquet needs pyarrow, which is not installed" in told
    assert not Path("rows.parquet").exists()
