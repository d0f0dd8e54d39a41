"""The zoo's sweep: every model gets its row, whatever becomes of a process."""

import os
import signal

import pytest

from benchmarks.zoo import Measured, main, measured
from tests.strict_json import strict

MODELS = ["normal_normal", "half_normal", "banana", "funnel"]


def deadly(model):
    if model == "half_normal":
        os.kill(os.getpid(), signal.SIGKILL)
    return Measured(model, ({"model": model},))


@pytest.mark.slow
def test_a_killed_process_costs_its_own_model_alone():
    *_, last = measured(MODELS, deadly, 2)
    assert [one.model for one in last] == MODELS
    assert [bool(one.reason) for one in last] == [False, True, False, False]
    assert "was killed" in last[1].reason


@pytest.mark.slow
def test_a_model_is_measured_by_its_certified_truth(tmp_path, capsys):
    arguments = ["--models", "half_normal", "--guides", "AutoNormal", "--quick", "--out", str(tmp_path), "--json", "-"]
    assert main([*arguments, "--html"]) == 0
    shown = capsys.readouterr()
    (record,) = strict(shown.out)
    assert (record["model"], record["grade"]) == ("half_normal", "certified")
    # the best lognormal: see tests/models/test_zoo.py for the direct optimisation
    assert record["family_gap"] == pytest.approx(0.0228514, abs=1e-6)
    assert "half_normal: AutoNormal is 0.0229 nats from the posterior" in " ".join(shown.err.split())
    assert "leaked" in (tmp_path / "table.txt").read_text()
    assert {file.name for file in tmp_path.iterdir()} == {
        "records.json", "records.csv", "table.txt", "table.md", "heat_map.png", "manifest.json",
        "report.html",
    }  # fmt: skip


def test_an_unknown_model_is_named_with_those_there_are(refused):
    assert "'half_norml'" in refused(main, ["--models", "half_norml"])
