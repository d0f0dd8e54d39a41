"""The trials of faults: what goes wrong is told, and nothing goes wrong."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks import faults
from benchmarks.faults_trials import DAMAGE, Trials, damaged


def trials(folder: Path, num: int = 0) -> Trials:
    return Trials(folder, num, seed=0)


def refuse(error: BaseException) -> None:
    raise error


def test_a_trial_that_goes_wrong_is_told(tmp_path: Path) -> None:
    found = trials(tmp_path)
    found.expect_refusal("good", lambda: refuse(ValueError("one line")), ValueError)
    found.expect_refusal("two lines", lambda: refuse(ValueError("one\nline")), ValueError)
    found.expect_refusal("raw", lambda: refuse(KeyError("a")), ValueError)
    found.expect_refusal("exits", lambda: refuse(SystemExit(1)), ValueError)
    found.expect_refusal("accepted", lambda: None, ValueError)
    assert found.outcomes == {"refused in one line": 2, "raw errors": 2, "accepted": 1}
    assert [text.split(":")[0] for text in found.wrong] == ["two lines", "raw", "exits", "accepted"]


def test_every_damage_changes_the_content() -> None:
    content, draw = random.Random(1).randbytes(3000), random.Random(2)
    seen = set()
    for _ in range(200):
        kind, changed = damaged(content, draw)
        assert changed != content
        seen.add(kind)
    assert seen == set(DAMAGE)


def test_the_program_fails_where_a_trial_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(faults.CLASSES, "damaged_fits", faults.FaultClass("fits", lambda t: t.tell("lost", "a row")))
    assert faults.main(["--classes", "damaged_fits", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"fits: a row\nwritten to {tmp_path / 'table.md'}\n"
    assert "| fits | 1 | 1 lost | 1 |\n" in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize("name", ["damaged_fits", "forged_fits", "damaged_draws", "planted_families", "planted_caches"])
def test_nothing_goes_wrong(name: str, tmp_path: Path) -> None:
    found = trials(tmp_path, 60)
    faults.CLASSES[name].run(found)
    assert found.wrong == []
    assert sum(found.outcomes.values()) >= 10


@pytest.mark.slow
def test_nothing_goes_wrong_in_threads(tmp_path: Path) -> None:
    found = trials(tmp_path, 15)
    faults.CLASSES["threads"].run(found)
    assert found.wrong == []
    assert sum(found.outcomes.values()) == 15


@pytest.mark.slow
@pytest.mark.parametrize("name", ["damaged_checkpoints", "odd_outputs", "bad_numbers"])
def test_nothing_goes_wrong_in_the_shell(name: str, tmp_path: Path) -> None:
    found = trials(tmp_path, 60)
    faults.CLASSES[name].run(found)
    assert found.wrong == []
    assert sum(found.outcomes.values()) >= 10
