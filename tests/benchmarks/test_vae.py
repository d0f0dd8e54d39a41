"""`python -m benchmarks.vae` as a user tries it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import amortized_toy, vae
from models.vae import VAE
from ppl_vi.guides.amortized import AMORTIZED
from ppl_vi.report import decoder_table, files
from ppl_vi.report.decoder_plots import Portrait
from ppl_vi.svi.minibatch import TrainingSettings, train
from ppl_vi.target.isolation import isolated
from tests.strict_json import strict

SMALL = ["--num-epochs", "3", "--num-points", "6", "--hidden", "8"]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run."""
    out: Path = tmp_path_factory.mktemp("vae")
    assert vae.main([*SMALL, "--guides", "diagonal", "full", "--per-point", "--out", str(out), "--html"]) == 0
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
        assert (record["alpha"], record["alpha_warmup"]) == (1, 0)
        assert 0 < record["log_evidence_error"] <= 1e-6
        assert record["total"]["low"] <= record["total"]["mean"] <= record["total"]["high"]
    table = (ran / "table.txt").read_text()
    assert "amortization" in table
    assert "active units" in table
    page = (ran / "report.html").read_text(encoding="utf-8")
    assert "<h1>VAE on digits</h1>" in page
    assert all(f">{split} data</h2>" in page for split in ("train", "test"))


def test_figures_are_drawn(ran: Path) -> None:
    drawn = {path.stem for path in ran.glob("*.png")}
    assert {"training", "gap_histograms", "gap_against_evidence", "latent_space_full", "manifold_diagonal",
            "reconstructions_full", "worst_points_diagonal"} <= drawn  # fmt: skip


def test_json_alone_goes_to_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*SMALL, "--guides", "full", "--likelihood", "gaussian", "--no-plots", "--json", "-"]
    assert vae.main([*arguments, "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert shown.out == (tmp_path / "records.json").read_text()
    assert len(strict(shown.out)) == 2
    assert "active units" in shown.err  # the table
    assert "of digits, 17 grey levels dequantised to [0, 1], sigma 0.100" in shown.err
    assert not list(tmp_path.glob("*.png"))


def test_the_alpha_that_trains_grows_as_asked(tmp_path: Path) -> None:
    def trained(*more: str, out: str) -> torch.Tensor:
        arguments = [*SMALL, "--guides", "diagonal", "--no-plots", "--alpha", "2", *more, "--out", str(tmp_path / out)]
        parsed = vae.parser().parse_args(arguments)
        vae.cli.check_outputs(parsed)
        found = vae.train_guide(parsed, "diagonal", *vae.load_data(parsed))
        return torch.cat([value.ravel() for value in found.module.parameters()])

    warm, cold = trained("--alpha-warmup", "3", out="warm"), trained(out="cold")
    assert not torch.equal(warm, cold)
    assert torch.equal(warm, trained("--alpha-warmup", "3", "--resume", out="warm"))
    with pytest.raises(vae.cli.UsageError, match=r"alpha 0\.66.* in epoch 0, not 1: remove it"):
        trained("--alpha-warmup", "2", "--resume", out="warm")


def test_ctrl_c_while_scoring_leaves_what_was_finished(tmp_path: Path, with_ctrl_c: Callable[..., Any]) -> None:
    guides = ["diagonal", "full"]
    small = ["--num-epochs", "2", "--num-points", "30", "--hidden", "8", "--per-point"]
    command = ["benchmarks.vae", *small, "--guides", *guides, "--out", str(tmp_path)]
    done = with_ctrl_c(command, once=tmp_path / "points.json")
    assert done.returncode == 130, done.stderr
    assert "of 4 guides and splits were scored; they are in" in done.stderr
    assert "Traceback" not in done.stderr
    records = strict((tmp_path / "records.json").read_text())
    assert 0 < len(records) < 2 * len(guides)
    assert len(strict((tmp_path / "points.json").read_text())) == sum(record["num_points"] for record in records)
    for record in records:
        assert f"{record['guide']}, {record['split']}: {record['num_points']} data points" in done.stdout
    assert [line.rstrip() for line in done.stdout.splitlines()] == (tmp_path / "table.txt").read_text().splitlines()
    assert not list(tmp_path.glob("*.png"))


def press(*_: object) -> None:
    raise KeyboardInterrupt


def test_ctrl_c_while_training_points_to_the_checkpoints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vae, "train_guide", press)
    assert vae.main([*SMALL, "--guides", "diagonal", "--out", str(tmp_path)]) == 130
    assert f"--resume goes on from the checkpoints in {tmp_path}" in capsys.readouterr().err


def test_ctrl_c_while_figures_are_drawn_leaves_the_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vae, "write_figures", press)
    monkeypatch.setattr("ppl_vi.cli.workers.num_cores", lambda: 1)
    assert vae.main([*SMALL, "--guides", "diagonal", "--out", str(tmp_path)]) == 130
    assert "not all figures were drawn; the tables are in" in capsys.readouterr().err
    assert len(strict((tmp_path / "records.json").read_text())) == 2


def test_scoring_leaves_the_trained_module_as_it_was() -> None:
    with isolated(torch.float32, seed=4):
        x = torch.bernoulli(torch.rand(3, 5))
        module = VAE(5, AMORTIZED["full"](2), hidden=(4,))
    trained = train(module, x, x, TrainingSettings(num_epochs=1))
    before = {name: value.clone() for name, value in trained.module.state_dict().items()}
    portrait = vae.score(vae.Job("full", "test", trained, x, None, (1, 5), seed=0))
    after = trained.module.state_dict()
    assert all(after[name].dtype == torch.float32 and torch.equal(after[name], value) for name, value in before.items())
    assert {value.dtype for value in portrait.trained.module.state_dict().values()} == {torch.float64}


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
    text = decoder_table.as_text([record | {"num_finite": 5, "sandwich_width": width}])
    assert "1 of 6 data points have no finite bound" in text
    assert "2 of 6 simulated points have no finite bound" in text
    assert "have no finite bound" not in decoder_table.as_text([record])


def test_a_job_without_a_certified_point_is_a_row_of_nulls(ran: Path) -> None:
    module = VAE(4, AMORTIZED["full"](2), hidden=(3,))
    x = torch.ones(2, 4)
    portrait = vae.score(
        vae.Job("full", "test", train(module, x, x, TrainingSettings(num_epochs=1)), x, None, (2, 2), seed=0)
    )
    assert isinstance(portrait, Portrait)
    nothing = np.zeros(2, dtype=bool)
    card = replace(portrait.card, trusted=nothing, reverse_kl=np.full(2, np.inf))
    arguments = vae.parser().parse_args([])
    record = vae.record(replace(portrait, card=card), arguments)
    assert record["num_certified"] == 0
    assert record["total"] is record["log_evidence_error"] is None
    text = decoder_table.as_text(strict(files.to_json([record])))
    assert "2 of 2 data points are not certified" in text
    points = strict(files.to_json(list(vae.points(replace(portrait, card=card)))))
    assert points[0]["reverse_kl"] == "inf"


def test_a_flow_has_its_gap_to_the_certified_evidence_but_no_best_member(tmp_path: Path) -> None:
    arguments = [*SMALL, "--guides", "flow", "--num-temperatures", "100", "--no-plots", "--out", str(tmp_path)]
    assert vae.main(arguments) == 0
    records = strict((tmp_path / "records.json").read_text())
    assert [record["num_points"] for record in records] == [3, 6]
    for record in records:
        assert record["num_certified"] == record["num_points"]
        assert record["approximation"] is record["amortization"] is None
        assert "flow is no mixture of Gaussians" in record["reason"]
        total, error = record["total"], record["total"]["std_error"]
        assert total["mean"] == pytest.approx(record["log_evidence"]["mean"] - record["elbo"]["mean"], abs=1e-9)
        assert total["mean"] > -4 * error
        assert record["ais_lower"]["mean"] < record["log_evidence"]["mean"] + 6 * record["ais_lower"]["std_error"]
    assert "gap: log p(x) - ELBO  " in (tmp_path / "table.txt").read_text()


def test_each_decoder_is_scored_under_the_diagonal_and_the_full_family(ran: Path) -> None:
    for record in strict((ran / "records.json").read_text()):
        found = record["approximation_by_family"]
        assert set(found) >= {"diagonal", "full"}
        assert found[record["guide"]]["approximation"] == record["approximation"]
        assert found["full"]["approximation"]["mean"] <= found["diagonal"]["approximation"]["mean"] + 1e-9
        assert record["reverse_kl_difference"] < 1e-6
    assert "with this decoder, log p(x) - ELBO of the best member: diagonal" in (ran / "table.txt").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--guides", "fulll"], "unknown guide 'fulll'; did you mean full"),
        (["--guides", "full", "xyz"], "unknown guide 'xyz' (there are diagonal, full, mixture, flow)"),
        (["--sigma", "0"], "must be above 0"),
        (["--num-temperatures", "1"], "at least 2"),
        (["--num-epochs", "0"], "at least 1"),
        (["--data", "digitz"], "unknown images"),
        (["--data", "missing.npy"], "missing.npy"),
        (["--alpha", "nan"], "finite"),
        (["--alpha-warmup", "-1"], "must be at least 0"),
    ],
)
def test_bad_input_gets_one_line(
    arguments: list[str], message: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    assert message in refused(vae.main, [*arguments, "--out", str(tmp_path)])


def test_the_amortized_toy_names_the_nearest_guide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert amortized_toy.main(["--guides", "lognorml", "--out", str(tmp_path)]) == 2
    shown = capsys.readouterr()
    assert "unknown guide 'lognorml'; did you mean lognormal" in shown.err
    assert (shown.out, shown.err.count("\n")) == ("", 1)


def test_the_amortized_toys_gaps_add_up(tmp_path: Path) -> None:
    file = tmp_path / "also.json"
    arguments = ["--quick", "--num-epochs", "3", "--guides", "lognormal", "--out", str(tmp_path), "--json", str(file)]
    assert amortized_toy.main(arguments) == 0
    assert file.read_text() == (tmp_path / "records.json").read_text()
    records = strict(file.read_text())
    x = np.array([record["x"] for record in records])
    assert (x[0], x[-1]) == (-3, 6)
    for record in records:
        assert record["amortization"] > -1e-9
        assert math.isclose(record["total"], record["family_gap"] + record["amortization"], abs_tol=1e-12)
    middle = next(record for record in records if record["x"] == 0)
    assert math.isclose(middle["family_gap"], 0.1315985, abs_tol=1e-6)  # as the toy benchmark finds it
    assert (tmp_path / "gaps_over_x.png").stat().st_size > 0
