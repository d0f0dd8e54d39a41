"""`python -m benchmarks.vae` as a user tries it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import amortized_toy, vae
from ppl_vi.report import vae_table

SMALL = ["--num-epochs", "3", "--num-points", "6", "--hidden", "8"]


def strict(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run."""
    out: Path = tmp_path_factory.mktemp("vae")
    assert vae.main([*SMALL, "--guides", "diagonal", "full", "--per-point", "--out", str(out)]) == 0
    return out


def test_gaps_add_up_at_every_point_and_none_is_negative(ran: Path) -> None:
    points = strict((ran / "points.json").read_text())
    assert len(points) == 2 * (3 + 6)
    for point in points:
        assert point["certified"]
        assert point["converged"]
        assert math.isclose(point["total"], point["approximation"] + point["amortization"], abs_tol=1e-12)
        assert math.isclose(point["total"], point["log_evidence"] - point["elbo"], abs_tol=1e-9)
        assert math.isclose(point["total"], point["reverse_kl"], abs_tol=1e-6)  # another rule
        assert min(point["approximation"], point["amortization"]) >= -1e-6


def test_records_hold_the_table(ran: Path) -> None:
    records = strict((ran / "records.json").read_text())
    assert [(r["guide"], r["split"]) for r in records] == [
        ("diagonal", "train"), ("diagonal", "test"), ("full", "train"), ("full", "test"),
    ]  # fmt: skip
    for record in records:
        assert record["num_certified"] == record["num_points"] == (3 if record["split"] == "train" else 6)
        assert 0 < record["log_evidence_error"] <= 1e-6
        assert record["total"]["low"] <= record["total"]["mean"] <= record["total"]["high"]
    table = (ran / "table.txt").read_text()
    assert "amortization" in table
    assert "active units" in table


def test_figures_are_drawn(ran: Path) -> None:
    drawn = {path.stem for path in ran.glob("*.png")}
    assert {"training", "gap_histograms", "gap_against_evidence", "latent_space_full", "manifold_diagonal",
            "reconstructions_full", "worst_points_diagonal"} <= drawn  # fmt: skip


def test_json_alone_goes_to_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*SMALL, "--guides", "flow", "--likelihood", "gaussian", "--no-plots", "--json", "-"]
    code = vae.main([*arguments, "--out", str(tmp_path)])
    shown = capsys.readouterr()
    if code == 2:  # a family without a best member has no gaps to show
        assert "flow" in shown.err
        assert shown.out == ""
    else:
        assert len(strict(shown.out)) == 2


@pytest.fixture(scope="module")
def bounded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run with more latents than quadrature reaches."""
    out: Path = tmp_path_factory.mktemp("bounded")
    arguments = [*SMALL, "--latent-dim", "5", "--guides", "full", "flow", "--num-temperatures", "30", "--per-point"]
    assert vae.main([*arguments, "--out", str(out)]) == 0
    return out


def test_beyond_three_latents_there_are_bounds_and_nothing_is_certified(bounded: Path) -> None:
    records = strict((bounded / "records.json").read_text())
    assert [(r["guide"], r["split"], r["num_points"]) for r in records] == [
        ("full", "train", 3), ("full", "test", 6), ("flow", "train", 3), ("flow", "test", 6),
    ]  # fmt: skip
    for record in records:
        for name in ("log_evidence", "total", "approximation", "amortization", "forward_kl"):
            assert record[name] is None
        assert record["reason"] == "log p(x) is certified for at most 3 latents"
        assert record["num_finite"] == record["sandwich_width"]["num"] == record["num_points"]
        assert record["num_temperatures"] == 30
        assert record["elbo"]["mean"] < record["iwae"]["mean"]
        # three temperatures a latent are few, yet the bounds are no more than some standard errors apart
        slack = 5 * math.hypot(record["iwae"]["std_error"], record["ais_lower"]["std_error"]) + 0.5
        assert abs(record["ais_lower"]["mean"] - record["iwae"]["mean"]) < slack
        difference = record["ais_lower"]["mean"] - record["elbo"]["mean"]
        assert math.isclose(record["total_lower"]["mean"], difference, abs_tol=1e-9)
        assert record["total_lower"]["std_error"] > 0
    table = (bounded / "table.txt").read_text()
    for text in (
        "log p(x) by AIS, at least",
        "± error",
        "not certified",
        "log p(x) is certified for at most 3 latents",
    ):
        assert (text in table) == (text != "not certified")


def test_bounds_of_each_point_and_what_can_be_drawn(bounded: Path) -> None:
    points = strict((bounded / "points.json").read_text())
    assert len(points) == 2 * (3 + 6)
    for point in points:
        assert math.isclose(point["total_lower"], point["ais_lower"] - point["elbo"], abs_tol=1e-9)
        assert min(point["ais_std_error"], point["iwae_std_error"], point["elbo_std_error"]) > 0
    assert {path.stem for path in bounded.glob("*.png")} == {"training"}


def test_the_table_tells_points_without_bounds(bounded: Path) -> None:
    record = strict((bounded / "records.json").read_text())[1]
    width = record["sandwich_width"] | {"num": 4}
    text = vae_table.as_text([record | {"num_finite": 5, "sandwich_width": width}])
    assert "1 of 6 data points have no finite bound" in text
    assert "2 of 6 simulated points have no finite bound" in text
    assert "have no finite bound" not in vae_table.as_text([record])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--guides", "fulll"], "unknown guide 'fulll'"),
        (["--sigma", "0"], "must be above 0"),
        (["--num-temperatures", "1"], "at least 2"),
        (["--num-epochs", "0"], "at least 1"),
        (["--data", "digitz"], "unknown images"),
        (["--data", "missing.npy"], "missing.npy"),
        (["--alpha", "nan"], "finite"),
    ],
)
def test_bad_input_gets_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = vae.main([*arguments, "--out", str(tmp_path)])
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else -1
    shown = capsys.readouterr()
    assert (code, shown.out) == (2, "")
    assert message in shown.err
    assert shown.err.count("\n") == 1


def test_the_amortized_toys_gaps_add_up(tmp_path: Path) -> None:
    arguments = ["--quick", "--num-epochs", "3", "--guides", "lognormal", "--out", str(tmp_path)]
    assert amortized_toy.main(arguments) == 0
    records = strict((tmp_path / "records.json").read_text())
    x = np.array([record["x"] for record in records])
    assert (x[0], x[-1]) == (-3, 6)
    for record in records:
        assert record["amortization"] > -1e-9
        assert math.isclose(record["total"], record["family_gap"] + record["amortization"], abs_tol=1e-12)
    middle = next(record for record in records if record["x"] == 0)
    assert math.isclose(middle["family_gap"], 0.1315985, abs_tol=1e-6)  # as the toy benchmark finds it
    assert (tmp_path / "gaps_over_x.png").stat().st_size > 0
