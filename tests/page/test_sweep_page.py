"""The page of a sweep: medians and ranges over seeds by a second route, and nothing that failed left unsaid."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

import pandas
import pytest

from ppl_vi import cli
from ppl_vi.__main__ import main
from ppl_vi.page.render import html_of
from ppl_vi.sweeps.page import page_of
from ppl_vi.sweeps.page_figures import against_setting
from ppl_vi.sweeps.page_numbers import over_seeds
from ppl_vi.sweeps.results import load_results
from tests.page.reading import Document
from tests.page.results import HOSTILE, one_combination, reverse_kl, small_store

SEEDS, PROBLEMS = range(10), range(5)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_store(tmp_path_factory.mktemp("sweep") / "sweep.db")


@pytest.fixture(scope="module")
def document(file: Path) -> Document:
    return Document(html_of(page_of(file)))


def over_problems(guide: int, lr: float, seed: int) -> float:
    return statistics.median(reverse_kl(guide, lr, problem, seed) for problem in PROBLEMS)


def test_each_combination_has_its_median_and_range_over_seeds(document: Document) -> None:
    rows = document.table("s1-table")
    assert len(rows) == 4
    for g, guide in enumerate(("gamma", HOSTILE)):
        for lr in (0.02, 0.2):
            (row,) = [one for one in rows if (one["guide"], float(one["step size"])) == (guide, lr)]
            values = sorted(over_problems(g, lr, seed) for seed in SEEDS)
            assert float(row["reverse KL [nats]"]) == pytest.approx(statistics.median_low(values), rel=6e-3)
            low, high = map(float, row["over seeds"].split(" to "))
            assert (low, high) == pytest.approx((values[0], values[-1]), rel=6e-3)  # 10% and 90% of ten values
            assert (row["fits"], row["converged"]) == ("50", "100%")


def test_the_verdict_names_the_nearest_with_its_settings(document: Document) -> None:
    said = document.one("p", class_="verdict").text
    assert "gamma comes nearest, with step size 0.2:" in said
    shown = float(said.split("step size 0.2: ")[1].split(" nats")[0])
    assert shown == pytest.approx(statistics.median_low([over_problems(0, 0.2, seed) for seed in SEEDS]), rel=6e-3)


def test_failures_stale_rows_and_missing_fits_are_said(document: Document) -> None:
    (lost,) = document.table("s1-failures")
    assert lost == {"guide": "failing", "status": "failed", "fits": "50", "reason": "ValueError: <i>no</i> luck"}
    warnings = [one.text for one in document.all("p", class_="warning")]
    assert any(text.startswith("250 of 257 planned fits are done.") for text in warnings)
    assert any(text.startswith("1 row is stale") for text in warnings)
    assert "123" not in document.one("table", id="s1-table").text, "a stale row is not mixed in"


def test_the_figures_have_the_same_numbers(document: Document) -> None:
    plots = document.plots().values()
    (steps,) = [one for one in plots if one["layout"]["xaxis"]["title"]["text"] == "step size"]
    lines = {trace["name"]: trace for trace in steps["data"] if "name" in trace}
    for i, lr in enumerate((0.02, 0.2)):
        values = [over_problems(0, lr, seed) for seed in SEEDS]
        assert lines["gamma"]["x"][i] == lr
        assert lines["gamma"]["y"][i] == pytest.approx(statistics.median_low(values))
    (over_x,) = [one for one in plots if one["layout"]["xaxis"]["title"]["text"] == "x"]
    gamma = next(trace for trace in over_x["data"] if trace.get("name") == "gamma")
    assert gamma["x"] == [-1.0, -0.5, 0.0, 0.5, 1.0]
    best = [statistics.median_low(reverse_kl(0, 0.2, problem, seed) for seed in SEEDS) for problem in PROBLEMS]
    assert gamma["y"] == pytest.approx(best)
    names = json.dumps([trace.get("name") for one in plots for trace in one["data"]])
    assert "<" not in names


def test_the_page_does_not_grow_with_the_fits(file: Path, tmp_path: Path) -> None:
    many = small_store(tmp_path / "many.db", num_seeds=200)
    sizes = [len(html_of(page_of(one)).encode()) for one in (file, many)]
    assert sizes[1] < sizes[0] + 1000  # 20 times as many fits


def test_infinite_and_missing_values_are_told_and_not_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "tests.page.results.reverse_kl", lambda guide, lr, problem, seed: float("inf") if guide else 0.1
    )
    document = Document(html_of(page_of(small_store(tmp_path / "sweep.db"))))
    infinite = [row for row in document.table("s1-table") if row["guide"] == HOSTILE]
    assert {row["reverse KL [nats]"] for row in infinite} == {"inf"}
    drawn = [y for plot in document.plots().values() for trace in plot["data"] for y in trace["y"] if y is not None]
    assert all(abs(y) < 1e300 for y in drawn)


@pytest.mark.parametrize(
    ("values", "status", "said"),
    [
        ([None, None], "failed", "No combination has a finite reverse KL."),
        ([math.inf, math.inf], "done", "No combination has a finite reverse KL."),
        ([0.125], "done", "gamma comes nearest: 0.125 nats."),
        ([0.0, 0.5, 1.0], "done", "gamma comes nearest: 0.500 nats, from 0 to 1.00 over seeds."),
        ([1.0, math.inf], "done", "gamma comes nearest: 1.00 nats, from 1.00 to inf over seeds."),
    ],
)
def test_a_sweep_of_one_combination(values: list[float | None], status: str, said: str, tmp_path: Path) -> None:
    file = one_combination(tmp_path / "one.db", values, status)
    document = Document(html_of(page_of(file)))
    assert document.one("p", class_="verdict").text == f"Verdict. {said}"
    assert bool(document.plots()) == any(value is not None and value < math.inf for value in values)


def test_a_value_within_its_error_is_not_shown_as_one(tmp_path: Path) -> None:
    file = one_combination(tmp_path / "one.db", [-1e-12], errors={"reverse_kl_error": 3e-12})
    (row,) = Document(html_of(page_of(file))).table("s1-table")
    assert row["reverse KL [nats]"] == "<3e-12"


def test_the_command_writes_the_page(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "page.html"
    assert main(["report", str(file), "-o", str(out)]) == 0
    assert capsys.readouterr() == ("", f"written to {out}\n")
    assert Document(out.read_text(encoding="utf-8")).one("h1").text == "sweep.db"
    broken = tmp_path / "broken.db"
    broken.write_bytes(file.read_bytes()[:5000])
    assert main(["report", str(broken), "-o", str(tmp_path / "no.html")]) == cli.USAGE
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_settings_that_are_words_have_an_axis_of_words(file: Path) -> None:
    frame = load_results(file).query("guide == 'gamma'")
    both = pandas.concat([frame, frame.assign(objective="iwae:8", reverse_kl=2 * frame["reverse_kl"])])
    found = against_setting(over_seeds(both), "objective", {"gamma": 0})
    assert found is not None
    assert found.title == "What the objective does"
    assert [panel.title for panel in found.panels] == ["step size 0.02", "step size 0.2"]
    for panel, lr in zip(found.panels, (0.02, 0.2), strict=True):
        assert panel.layout["xaxis"]["type"] == "category"
        trace = panel.data[-1]
        middle = statistics.median_low([over_problems(0, lr, seed) for seed in SEEDS])
        assert (trace["x"], trace["y"]) == (["iwae:8", "trace_elbo"], pytest.approx([2 * middle, middle]))
