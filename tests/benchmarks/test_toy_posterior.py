"""The toy benchmark from the command line, at tiny settings."""

import contextlib
import io
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import toy_posterior
from models.exponential_normal import target
from ppl_vi import cli
from ppl_vi.comparison.axes import NUM_POINTS
from ppl_vi.comparison.comparison import Comparison, FitSettings
from ppl_vi.comparison.run import compare_each
from ppl_vi.report.gap_bars import UNKNOWN, bar_of
from ppl_vi.truth import ground_truth
from tests.strict_json import strict

KEYS = (
    "x", "guide", "status", "stop_reason", "log_evidence", "log_evidence_error", "elbo", "elbo_gap", "reverse_kl",
    "forward_kl", "total_variation", "hellinger", "wasserstein", "mean_error", "sd_ratio", "coverage_90",
    "leaked_mass", "chi_square", "family_gap", "optimization_gap", "surrogate_elbo", "khat", "ess", "num_steps",
    "seconds", "seed", "num_replicas", "versions", "replicas",
)  # fmt: skip
TINY = ["--num-steps", "30", "--num-particles", "8", "--num-replicas", "2"]


def broken(model: Any) -> Any:
    """A guide family that fails."""
    raise RuntimeError("no such luck\nand more")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run writes."""
    folder = tmp_path_factory.mktemp("toy")
    guides = ["--guides", "half_normal", "normal", "AutoDelta", "lognormal"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert toy_posterior.main(["--x", "1.5", "-2", *guides, *TINY, "--out", str(folder), "--html"]) == 0
    (folder / "printed").write_text(printed.getvalue())
    return folder


def test_records_have_all_keys_and_strict_values(out: Path) -> None:
    records = strict((out / "records.json").read_text())
    assert [(r["x"], r["guide"]) for r in records] == [
        (x, guide) for x in (1.5, -2.0) for guide in ("half_normal", "normal", "AutoDelta", "lognormal")
    ]
    for row in records:
        assert set(KEYS) <= set(row)
        # the closed form: 1/2 - x + log Phi(x - 1)
        exact = 0.5 - row["x"] + math.log(math.erfc((1 - row["x"]) / 2**0.5) / 2)
        assert abs(row["log_evidence"] - exact) < 1e-12
        if row["status"] == "skipped":
            assert row["elbo"] is None
            assert "point mass" in row["reason"]
        elif row["guide"] == "normal":
            assert (row["reverse_kl"], row["elbo"], row["family_gap"]) == ("inf", "-inf", "inf")
            assert row["leaked_mass"] > 0
            assert isinstance(row["surrogate_elbo"], float)
        else:
            assert row["elbo"] + row["reverse_kl"] == pytest.approx(row["log_evidence"], abs=1e-9)
            assert len(row["replicas"]) == 2


def test_a_verdict_stands_above_six_columns_for_each_observation_and_all_columns_are_in_the_file(out: Path) -> None:
    printed, written = (out / "printed").read_text(), (out / "table.txt").read_text()
    for text in (printed, written):
        first, second = text.split("x = -2 ")
        assert "Take half_normal: " in first
        assert "Take lognormal: " in second or "Take half_normal: " in second
        assert "With validation off" in text
    assert "= family + optimiz." in printed
    assert "W1" not in printed
    assert "W1" in written


def test_figures_are_written(out: Path) -> None:
    figures = {path.name for path in out.glob("*.png") if path.read_bytes().startswith(b"\x89PNG")}
    kinds = ("densities", "reverse_kl", "elbo", "gaps")
    assert {f"{kind}_x_{x}.png" for kind in kinds for x in ("1.5", "-2")} <= figures
    assert min(path.stat().st_size for path in out.glob("*.png")) > 10_000


def test_the_page_has_every_observation_and_the_explorer(out: Path) -> None:
    page = (out / "report.html").read_text(encoding="utf-8")
    assert all(f">x = {x}</h2>" in page for x in ("1.5", "-2"))
    assert 'class="explorer"' in page
    curves = strict((out / "report.json").read_text())["problems"][1]
    assert set(curves["guides"]) == {"half_normal", "normal", "lognormal"}
    assert len(curves["numbers"][0]["z"]) == len(curves["guides"]["lognormal"]["density"][0]) == NUM_POINTS


def test_bars_of_the_gaps_add_up_to_the_reverse_kl_of_the_table(out: Path) -> None:
    for record in strict((out / "records.json").read_text()):
        bar = bar_of(record)
        assert bar.name == record["guide"]
        if isinstance(record["reverse_kl"], float):
            assert bar.total == pytest.approx(record["reverse_kl"], rel=1e-12)
            assert sum(bar.parts.values()) == pytest.approx(bar.total, rel=1e-9)
            assert UNKNOWN not in bar.parts
        else:
            assert not bar.parts
            assert bar.reason


def test_the_same_seed_gives_the_same_numbers_whoever_computes_them(out: Path) -> None:
    problems = target([1.5, -2.0])
    settings = FitSettings(num_steps=30, num_particles=8, num_replicas=2)
    start = Comparison(problems, ground_truth(problems), settings, (1.5, -2.0))
    *_, last = compare_each(start, ["half_normal", "lognormal"], num_workers=2)
    written = {(r["x"], r["guide"]): r for r in strict((out / "records.json").read_text())}
    rows = strict(json.dumps(last.records()))
    assert len(rows) == 4
    for row in rows:
        assert row | {"seconds": 0} == written[row["x"], row["guide"]] | {"seconds": 0}


def test_a_family_that_fails_becomes_a_row_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "broken_family", sys.modules[__name__])
    monkeypatch.setattr(cli.workers, "MAX_WORKERS", 1)  # another process would not find the module
    guides = ["--guides", "broken_family:broken", "half_normal"]
    arguments = ["--x", "0", *guides, *TINY, "--out", str(tmp_path), "--no-plots", "--json", "-"]
    assert toy_posterior.main(arguments) == 0
    shown = capsys.readouterr()
    failed, fine = strict(shown.out)
    assert failed["status"] == "failed"
    assert failed["reason"].startswith("ValueError: 'broken_family:broken' is neither a guide nor a family of guides: ")
    assert failed["reason"].endswith("; called with the model, it raised RuntimeError: no such luck and more")
    assert fine["reverse_kl"] > 0
    assert "half_normal" in shown.err  # the table
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--x", "inf"], "--x: must be finite, got inf"),
        (["--x", "-inf"], "--x: must be finite, got -inf"),
        (["--x", "1.5", "1e200"], "--x: must lie between -1e+15 and 1e+15, got 1e200"),
        (["--x", "one"], "expected a number, got 'one'"),
        (["--guides", "lognorml"], "did you mean lognormal"),
        (["--guides", "no.such:thing"], "can't be imported"),
        (["--num-steps", "-1"], "--num-steps: must be at least 0"),
        (["--num-replicas", "1.5"], "expected a whole number"),
        (["--lr", "-1e-3"], "--lr: must be above 0, got -1e-3"),
        (["--lr", "nan"], "--lr: must be finite"),
        (["--objective", "elbow"], "unknown objective 'elbow'"),
        (["--objective", "iwae:7", "--num-particles", "64"], "must be a multiple of K = 7"),
        (["--out", "/dev/null/toy"], "--out: can't write to '/dev/null/toy'"),
        (["--json", "/dev/null/toy.json"], "--json: there is no folder"),
        (["--device", "cuda"], "no CUDA device"),
        (["--nonsense"], "unrecognized arguments"),
    ],
)
def test_a_bad_argument_is_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("ppl_vi.truth.ground_truth", lambda target: pytest.fail("it began to compute"))
    out = [] if "--out" in arguments else ["--out", str(tmp_path)]
    said = refused(toy_posterior.main, [*arguments, *out])
    assert message in said
    assert "Traceback" not in said


def test_listing_the_guides_gives_reasons_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert toy_posterior.main(["--list-guides"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert {"lognormal", "AutoNormal", "refused:"} <= set(lines)
    assert "point mass" in lines["AutoDelta"]


def test_ctrl_c_leaves_what_was_finished(tmp_path: Path, with_ctrl_c: Callable[..., Any]) -> None:
    guides = ["half_normal", "AutoGaussian", "spline_flow", "lognormal_mixture", "AutoIAFNormal"]
    command = ["benchmarks.toy_posterior", "--x", "0", "--guides", *guides, "--out", str(tmp_path)]
    done = with_ctrl_c(command, once=tmp_path / "records.csv")
    assert done.returncode == 130, done.stderr
    assert "families were finished; they are in" in done.stderr
    assert "Traceback" not in done.stderr
    finished = [row["guide"] for row in strict((tmp_path / "records.json").read_text())]
    assert 0 < len(finished) < len(guides)
    assert all(guide in done.stdout for guide in finished)
