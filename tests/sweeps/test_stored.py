"""`--store` of `compare`, the toy and the zoo: the same rows, under the same keys, as those of a sweep."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import toy_posterior, zoo
from ppl_vi.__main__ import main
from ppl_vi.sweeps.results import load_results

FEW = ["--guides", "lognormal", "exponential", "--num-steps", "40", "--num-draws", "50", "--engine", "batched"]


@pytest.fixture
def told(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """What a command prints, run in the folder in one process."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr("ppl_vi.cli.workers.MAX_WORKERS", 1)  # others would import Pyro first

    def ran(program: Any, *arguments: str) -> str:
        assert program(list(arguments)) == 0
        return capsys.readouterr().out

    return ran


@pytest.mark.slow
def test_a_comparison_that_is_stored_is_a_sweep(told: Any) -> None:
    compared = ["compare", "toy_model:model", "--args", "toy_model:data", *FEW, "--store", "fits.db"]
    assert "8 fits are in fits.db, 8 of them new" in told(main, *compared)
    rows = load_results("fits.db")
    assert "8 fits are in fits.db, 0 of them new" in told(main, *compared)
    swept = ["sweep", "toy_model:model", "--args", "toy_model:data", *FEW, "--file", "fits.db", "--workers", "1"]
    assert "0 of them new" in told(main, *swept)
    assert load_results("fits.db").equals(rows)
    assert not Path("results").exists()
    assert "4 of them new" in told(main, *compared, "--guides", "lognormal", "gamma")
    assert len(load_results("fits.db")) == 12


def test_benchmarks_share_a_file(told: Any) -> None:
    told(toy_posterior.main, "--x", "0.5", "1.5", *FEW, "--num-replicas", "2", "--store", "fits.db")
    told(zoo.main, "--quick", "--models", "normal_normal", "--guides", "AutoNormal", "--store", "fits.db")
    rows = load_results("fits.db")
    assert dict(rows.groupby("model").size()) == {"exponential_normal": 8, "normal_normal": 4}
    assert set(rows[rows.model == "exponential_normal"]["x"]) == {0.5, 1.5}


def test_what_a_stored_comparison_has_not_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = ["--store", str(folder / "fits.db")]
    assert main(["compare", "toy_model:model", *store, "--out", str(folder / "out"), "--json", "-"]) == 2
    assert "--store goes without --json, --out: 'ppl-vi results" in capsys.readouterr().err
    assert zoo.main([*store, "--full"]) == 2
    assert not any(folder.glob("fits*"))
