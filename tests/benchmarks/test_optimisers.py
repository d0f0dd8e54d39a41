"""The table of ways of fitting: what it is made of, targets of one's own, and what fails."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import optimisers
from benchmarks.optimisers import Record, main, moment_errors, table_of_medians
from ppl_vi import fit, score
from ppl_vi.svi.optimisers.normals import normals_of
from tests.svi.optimisers import conjugate

NAMES = ("DADVI", "ELBO + linear response")


def test_it_measures_targets_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--targets", "tests.svi.optimisers.conjugate:target", "--num-replicas", "2"]
    given += ["--out", str(tmp_path / "out")]
    assert main([*given, "--strategies", *NAMES]) == 0
    records = {one["strategy"]: one for one in json.loads((tmp_path / "out" / "records.json").read_text())}
    assert list(records) == list(NAMES)
    assert records["DADVI"]["excess"] > 0.001  # the fixed draws cost something
    # linear response is exact on a normal posterior, up to the truth's own standard error
    assert abs(records["ELBO + linear response"]["reverse_kl"]) < 1e-3
    out = capsys.readouterr().out
    assert "| medians over 1 models |" in out
    assert out.strip() == (tmp_path / "out" / "table.md").read_text().strip()


def test_the_moments_errors_are_root_mean_squares() -> None:
    """On a normal posterior both are closed forms of the fitted normal."""
    posed = conjugate.target()
    found = fit(posed, "AutoNormal", objective="dadvi", num_particles=8)
    mean, sd = moment_errors(score(found, conjugate.truth()))
    at, scale = normals_of(found.program, found.theta), np.sqrt(np.diag(conjugate.COVARIANCE.numpy()))
    away = (at.loc[0, 0].numpy() - conjugate.CENTRE.numpy()) / scale
    wide = at.scale[0, 0].numpy() / scale - 1
    # the posterior's points know means and sds to about 1/sqrt(number of points) sds
    assert mean[0, 0] == pytest.approx(np.sqrt((away**2).mean()), abs=0.02)
    assert sd[0, 0] == pytest.approx(np.sqrt((wide**2).mean()), abs=0.02)


def test_medians_are_over_the_models_that_all_strategies_answer() -> None:
    records = [
        Record("a", "DADVI", 2, 1.0, 0.5, 0.1, 0.2, 1.0, 3, 1.0),
        Record("b", "DADVI", 2, 3.0, 0.7, 0.3, 0.4, 2.0, 3, 1.0),
        Record("a", "SVI", 2, 2.0, 0.1, 0.01, 0.02, 5.0, 3, 1.0),
        Record("b", "SVI", 2, reason="ValueError: no"),
    ]
    lines = table_of_medians(records, ["DADVI", "SVI"]).splitlines()
    assert lines[0].startswith("| medians over 1 models |")
    assert lines[2] == "| DADVI | 0.5 | 1 | 0.1 | 0.2 | 1 | 0.184 | 0.21 |"
    assert lines[3] == "| SVI | 0.1 | 2 | 0.01 | 0.02 | 5 | – | – |"
    assert lines[4] == "| RAABBVI | – | – | – | – | – | 0.053 | 0.182 |"


def test_what_fails_is_a_row_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(optimisers.STRATEGIES, "DADVI", optimisers.Strategy("laplace", "dadvi"))
    posed = conjugate.target()
    one = optimisers.measured("regression", posed, conjugate.truth(), "DADVI", 1, 0)
    assert one.reason.startswith("UnsuitableObjectiveError: dadvi: it is for normals")
    assert one.reverse_kl is None


def test_a_target_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--targets", "models:nothing", "--out", str(tmp_path)]) == 2
    assert "--targets models:nothing: expected MODULE:NAME" in capsys.readouterr().err
