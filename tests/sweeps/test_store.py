"""The file of results: what is done survives, and what can't be used is refused in one line."""

import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ppl_vi.sweeps.checks import StoreError, digest_of
from ppl_vi.sweeps.results import load_results, summary
from ppl_vi.sweeps.store import Store, is_written

COLUMNS = ["elbo", "elbo_error", "elbo_std_error", "reverse_kl", "reverse_kl_error", "reverse_kl_std_error"]


def values(store: Store, key: str, model: str = "model-1", **more: Any) -> dict[str, Any]:
    """A task's row."""
    return {
        "key": key, "model": store.source("model", "toy", model), "guide": store.source("guide", "gamma", "guide-1"),
        "versions": store.source("versions", "versions", "versions-1"), "objective": "trace_elbo", "engine": "auto",
        "lr": 0.1, "num_steps": 10, "num_particles": "auto", "num_draws": 10, "first_seed": 0, "block": 2,
        "seeds": "[0, 1]", "num_fits": 4, "status": "done", "reason": "", "engine_used": "batched",
        "engine_reason": "", "fit_seconds": 1.0, "score_seconds": 2.0, "notes": "{}", **more,
    }  # fmt: skip


def rows(first: float, num_seeds: int = 2) -> list[tuple[Any, ...]]:
    """The rows of a task of two problems, one value of which is infinite and one missing."""
    return [
        (b, s, "converged", "", 10, first + b + s / 7, 1e-15, 0.0, None if b else first / 3, 1e-15, float("inf"))
        for b in range(2)
        for s in range(num_seeds)
    ]


TRUTH = {
    "x": None, "log_evidence": -1.5, "log_evidence_error": 1e-12, "log_evidence_std_error": 0.0, "method": "sum",
    "grade": "checked", "grade_reason": "", "truth_seconds": 0.5,
}  # fmt: skip


def filled(file: Path, num_tasks: int = 40) -> None:
    with Store(file, COLUMNS) as store:
        for task in range(num_tasks):
            store.write_task(values(store, f"key-{task}"), COLUMNS, rows(float(task)))
        store.write_truth(store.source("model", "toy", "model-1"), [{"problem": b, **TRUTH} for b in range(2)])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("whole") / "whole.db"
    filled(file)
    return file


@pytest.fixture
def file(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(whole, tmp_path / "sweep.db"))


def test_rows_come_back_to_the_last_bit(file: Path) -> None:
    frame = load_results(file)
    assert len(frame) == 40 * 4
    wanted = {(f"key-{task}", row[0], row[1]): row for task in range(40) for row in rows(float(task))}
    for row in frame.itertuples():
        expected = wanted.pop((row.key, row.problem, row.seed))
        assert row.elbo == expected[5]
        assert (row.reverse_kl == expected[8]) if expected[8] is not None else row.reverse_kl != row.reverse_kl
        assert row.reverse_kl_std_error == float("inf")
        assert (row.fit_seconds, row.score_seconds, row.log_evidence) == (0.25, 0.5, -1.5)
    assert not wanted


def test_a_task_that_is_written_again_is_there_once(file: Path) -> None:
    with Store(file, COLUMNS) as store:
        store.write_task(values(store, "key-3", seeds="[0, 1, 2]"), COLUMNS, rows(3.0, num_seeds=3))
    frame = load_results(file)
    assert len(frame) == 40 * 4 + 2
    assert not frame.duplicated(["key", "problem", "seed"]).any()


def test_a_changed_model_leaves_its_rows_behind_as_stale(file: Path) -> None:
    with Store(file, COLUMNS) as store:
        store.write_task(values(store, "key-new", model="model-2"), COLUMNS, rows(9.0))
    assert set(load_results(file)["key"]) == {"key-new"}
    both = load_results(file, stale=True)
    assert dict(both.groupby("stale").size()) == {False: 4, True: 160}
    with Store(file, COLUMNS) as store:  # the model is as it was before
        store.source("model", "toy", "model-1")
    assert len(load_results(file)) == 160


def test_a_new_metric_is_a_new_column(file: Path) -> None:
    more = [*COLUMNS, "khat", "khat_error", "khat_std_error"]
    with Store(file, more) as store:
        assert store.damaged() == []
        store.write_task(values(store, "key-new"), more, [(*row, 0.5, 0.0, 0.0) for row in rows(9.0)])
    with Store(file, COLUMNS) as store:  # the code before, which does not know the metric
        store.write_task(values(store, "key-old"), COLUMNS, rows(10.0))
        assert store.damaged() == []
    frame = load_results(file)
    assert frame["khat"].notna().sum() == 4
    assert frame.set_index("key").loc["key-old", "reverse_kl"].notna().sum() == 2


def no_database(file: Path) -> None:
    file.write_text("models = ['x']\n" * 50)


def folder_in_place(file: Path) -> None:
    file.unlink()
    file.mkdir()


def other_program(file: Path) -> None:
    file.unlink()
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE theirs (a)")
    connection.close()


def newer(file: Path) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()


def cut(share: float) -> Callable[[Path], None]:
    return lambda file: os.truncate(file, int(file.stat().st_size * share))


def overwritten(begin: float, end: float) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        content = bytearray(file.read_bytes())
        first, last = int(begin * len(content)), int(end * len(content))
        content[first:last] = b"\xa5" * (last - first)
        file.write_bytes(content)

    return damage


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "text": (no_database, "is no file of results"),
    "folder": (folder_in_place, "is no file"),
    "another program": (other_program, "a database of another program"),
    "newer": (newer, "written by a newer ppl_vi"),
    "cut to 10 bytes": (lambda file: os.truncate(file, 10), "is no file of results"),
    "cut to 100 bytes": (lambda file: os.truncate(file, 100), "is damaged"),
    "cut to a third": (cut(0.34), "is damaged"),
    "cut to nine tenths": (cut(0.9), "is damaged"),
    "header": (overwritten(0.0, 0.01), "is no file of results"),
    "first page": (lambda file: overwrite(file, 100, 1000), "is damaged"),
    "middle": (overwritten(0.3, 0.7), "is damaged"),
    "end": (overwritten(0.8, 1.0), "damaged"),
}


def overwrite(file: Path, begin: int, end: int) -> None:
    overwritten(begin / file.stat().st_size, end / file.stat().st_size)(file)


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_file_that_can_not_be_used_is_one_line_and_stays_as_it_is(file: Path, kind: str) -> None:
    damage, said = DAMAGES[kind]
    damage(file)
    content = None if file.is_dir() else file.read_bytes()
    for use in (load_results, summary, lambda path: Store(path, COLUMNS).damaged()):
        with pytest.raises(StoreError) as found:
            use(file)
        assert said in str(found.value) or "damaged" in str(found.value)
        assert str(file) in str(found.value)
        assert "\n" not in str(found.value)
    assert content is None or file.read_bytes() == content


def test_every_byte_of_the_rows_is_watched(file: Path) -> None:
    """A bit that flips within a number changes no structure, and is found by the digest."""
    content, damage, tried = file.read_bytes(), 0, 0
    place = content.find(b"converged")
    while place >= 0:
        flipped = bytearray(content)
        flipped[place + 20] ^= 1  # within the numbers that follow the status
        file.write_bytes(flipped)
        tried += 1
        with pytest.raises(StoreError, match="damaged"):
            load_results(file)
        damage += 1
        place = content.find(b"converged", place + 2000)
    assert tried > 3
    file.write_bytes(content)
    assert len(load_results(file)) == 160


def test_a_damaged_truth_is_found(file: Path) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE truths SET log_evidence = log_evidence + 1e-9 WHERE problem = 1")
    connection.close()
    with pytest.raises(StoreError, match="the rows of 40 of its tasks are damaged"):
        load_results(file)


def test_a_missing_and_an_empty_file_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there are no results in"):
        load_results(tmp_path / "missing.db")
    (tmp_path / "empty.db").touch()
    with pytest.raises(StoreError, match="there are no results in"):
        load_results(tmp_path / "empty.db")
    filled(tmp_path / "empty.db", 1)
    assert len(load_results(tmp_path / "empty.db")) == 4


def test_one_writer_at_a_time_while_others_read(file: Path) -> None:
    with Store(file, COLUMNS) as store:
        assert is_written(file)
        with pytest.raises(StoreError, match="is being written by another sweep"):
            Store(file, COLUMNS)
        store.write_task(values(store, "key-new"), COLUMNS, rows(1.0))
        assert len(load_results(file)) == 164
    assert not is_written(file)
    filled(file, 1)


def test_a_full_disk_costs_nothing_that_was_stored(tmp_path: Path) -> None:
    file = tmp_path / "sweep.db"
    stored = []

    def fill(store: Store) -> None:
        for task in range(10_000):
            store.write_task(values(store, f"key-{task}"), COLUMNS, rows(float(task)))
            stored.append(f"key-{task}")

    with Store(file, COLUMNS, max_pages=30) as store, pytest.raises(StoreError, match="make room") as found:
        fill(store)
    assert "\n" not in str(found.value)
    assert len(stored) > 20
    frame = load_results(file)
    assert sorted(frame["key"]) == sorted(stored * 4)
    with Store(file, COLUMNS) as store:  # there is room again
        store.write_task(values(store, "key-last"), COLUMNS, rows(1.0))
    assert len(load_results(file)) == 4 * len(stored) + 4


def test_a_transaction_that_is_broken_off_leaves_nothing(file: Path) -> None:
    with Store(file, COLUMNS) as store:
        bad = rows(5.0)
        bad[3] = (*bad[3][:2], None, *bad[3][3:])  # a status must be there
        with pytest.raises(StoreError):
            store.write_task(values(store, "key-new"), COLUMNS, bad)
        store.write_task(values(store, "key-after"), COLUMNS, rows(6.0))
    keys = set(load_results(file)["key"])
    assert "key-new" not in keys
    assert "key-after" in keys


def test_a_digest_is_of_every_value_and_of_its_last_bit() -> None:
    import numpy as np

    one = rows(1.0)
    for i, row in enumerate(one):
        for j, value in enumerate(row):
            other = [list(each) for each in one]
            other[i][j] = float(np.nextafter(value, 9.0)) if isinstance(value, float) and value < 9 else "other"
            assert digest_of(other) != digest_of(one)
    assert digest_of([(*row, None) for row in one]) == digest_of(one)
