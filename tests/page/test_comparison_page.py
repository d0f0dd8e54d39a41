"""The page of a comparison says what the records say, harms nobody, needs no network, and reads without a screen."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppl_vi import cli
from ppl_vi.__main__ import main
from ppl_vi.cli.page import write_page, write_report
from ppl_vi.model_comparison import ModelComparison
from ppl_vi.page import charts, parts
from ppl_vi.page.render import html_of
from ppl_vi.page.results import NoResultsError, page_at, page_of
from ppl_vi.report.page_data import data_of, to_text
from ppl_vi.runtime.outputs import noting_failures
from tests.page.reading import Document
from tests.page.results import GUIDES, HOSTILE, small_comparison
from tests.strict_json import strict

ROOT = Path(__file__).resolve().parent.parent.parent
MEGABYTE = 10**6


@pytest.fixture(scope="module")
def comparison() -> ModelComparison:
    return small_comparison()


@pytest.fixture(scope="module")
def held(comparison: ModelComparison) -> dict[str, Any]:
    found: dict[str, Any] = strict(to_text(data_of(comparison)))
    return found


@pytest.fixture(scope="module")
def document(held: dict[str, Any]) -> Document:
    return Document(html_of(page_of(held["records"], held)))


def test_the_table_has_what_the_records_say(document: Document, held: dict[str, Any]) -> None:
    rows = {re.sub("[¹²³⁴⁵⁶⁷⁸⁹]", "", row["guide"]): row for row in document.table("s1-table")}
    assert rows.keys() == GUIDES.keys()
    for record in held["records"]:
        shown = next(text for name, text in rows[record["guide"]].items() if name.startswith("reverse KL"))
        if isinstance(record["reverse_kl"], float) and record["reverse_kl"] >= 1e-3:
            assert float(shown.split(" ")[0]) == pytest.approx(record["reverse_kl"], rel=6e-3)  # three digits
    assert rows["normal"]["ELBO"].startswith("-inf")
    assert rows["</script><b>point</b>"]["status"] == "skipped"
    notes = document.one("div", class_="notes").text
    assert "a point mass has no density" in notes
    assert "outside its support" in notes


def test_what_was_run_is_said(document: Document, held: dict[str, Any], comparison: ModelComparison) -> None:
    said = {one.inside[0].text: one.inside[1].text for one in document.one("dl").inside if one.tag == "div"}
    assert said["torch"] == held["records"][0]["versions"]["torch"]
    assert (said["SVI steps, at most"], said["independent fits"], said["seed"]) == ("40", "2", "0")
    assert comparison.verdict().text in document.one("p", class_="verdict").text
    facts = document.one("p", class_="facts").text
    assert f"log p(x) = {float(comparison.truth.log_evidence[0]):.6f}" in facts
    assert held["records"][0]["grade"] in facts


def test_gaps_add_up_to_the_reverse_kl(document: Document, held: dict[str, Any]) -> None:
    bars = [one for one in document.plots().values() if one["layout"].get("barmode")]
    assert len(bars) == 1
    parts_of = np.array([[x or 0.0 for x in trace["x"]] for trace in bars[0]["data"]])
    finite = [record for record in held["records"] if isinstance(record["reverse_kl"], float)]
    middle = sorted(float(np.mean([one["reverse_kl"] for one in record["replicas"]])) for record in finite)
    assert sorted(total for total in parts_of.sum(0) if total) == pytest.approx(middle)
    assert bars[0]["layout"]["xaxis"].get("type") is None, "the axis is linear"


def test_elbo_curves_end_at_log_evidence_minus_the_reverse_kl(document: Document, held: dict[str, Any]) -> None:
    evidence = held["records"][0]["log_evidence"]
    plots = [one for one in document.plots().values() if "ELBO" in json.dumps(one["layout"]["yaxis"])]
    assert len(plots) == 1
    ends = {trace["name"]: trace["y"][-1] for trace in plots[0]["data"] if "name" in trace}
    gamma = next(record for record in held["records"] if record["guide"] == "gamma")
    kl = [replica["reverse_kl"] for replica in gamma["replicas"]]
    assert ends["gamma"] == pytest.approx(evidence - np.mean(kl), abs=1e-4)  # curves have five digits
    assert plots[0]["layout"]["shapes"][0]["y0"] == evidence
    assert max(y for trace in plots[0]["data"] for y in trace["y"] if y is not None) <= evidence + 1e-4


def test_marginals_are_densities_and_the_posterior_is_the_exact_one(document: Document) -> None:
    found = next(one for one in document.plots().values() if one["data"][0].get("name") == "posterior")
    z, density = (np.array(found["data"][0][name], float) for name in ("x", "y"))
    assert np.trapezoid(density, z) == pytest.approx(1.0, abs=2e-3)  # the axis leaves out 0.1% of the mass
    # z ~ Exponential(1), x = 1.5 ~ Normal(z, 1): the posterior is Normal(x - 1, 1) cut off below 0
    above = z > 0.01
    ratio = density[above] / np.exp(-0.5 * (z[above] - 0.5) ** 2)
    assert ratio == pytest.approx(ratio[0], rel=1e-3)
    shown = {trace["name"] for trace in found["data"][1:]}
    assert shown == {charts.said(guide) for guide in GUIDES if "point" not in guide}


def test_hostile_names_are_text(document: Document) -> None:
    assert not [one for one in document.elements if {"onerror", "onload", "onclick"} & one.attributes.keys()]
    assert not document.all("img")
    assert {one.text.strip()[:1] for one in document.all("script")} <= {"(", "{", '"', "H"}, (
        "a script of the page's own"
    )
    assert "<script>alert" not in document.raw
    assert "{{ 7 * 7 }}" in document.raw
    plots = re.search(r'<script type="application/json" id="plots">(.*?)</script>', document.raw, re.DOTALL)
    assert plots
    assert "<" not in plots.group(1)
    names = {trace.get("name") for plot in document.plots().values() for trace in plot["data"]}
    assert charts.said(HOSTILE) in names, "Plotly would read < as markup"
    assert HOSTILE not in names


def test_a_name_that_ends_the_script_does_not() -> None:
    record = {"guide": "</script><script>alert(3)</script>", "model": "<!--", "label": "<!-- <script>"}
    blank = {"status": "failed", "reason": "</title><script>alert(4)</script>", "versions": {"<b>": "</dd><script>"}}
    page = Document(html_of(page_of([record | blank | NOTHING], {})))
    assert len(page.all("script")) == 4
    assert "alert(3)" in page.table("s1-table")[0]["guide"]


NOTHING = {
    "log_evidence": -1.0, "log_evidence_error": 0.0, "method": "quadrature", "grade": "certified",
    "optimization_gap_is_lower_bound": False,
}  # fmt: skip


def test_the_page_is_whole_and_needs_no_network(document: Document) -> None:
    assert len(document.raw.encode()) < 6 * MEGABYTE
    assert not document.all("link")
    assert not [one for one in document.elements if one.attributes.get("src")]
    assert {one.attributes["href"][:1] for one in document.all("a")} == {"#"}
    assert not re.search(r"url\(|@import", document.one("style").text)
    policy = document.one("meta", **{"http-equiv": "Content-Security-Policy"}).attributes["content"]
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy


def test_it_reads_without_a_screen(document: Document) -> None:
    assert document.unclosed == []
    assert document.one("html").attributes["lang"] == "en"
    assert document.one("title").text
    assert [len(document.all(tag)) for tag in ("h1", "main", "nav", "header", "footer")] == [1] * 5
    levels = [int(one.tag[1]) for one in document.elements if re.fullmatch(r"h[1-6]", one.tag)]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = [one.attributes["id"] for one in document.elements if "id" in one.attributes]
    assert len(ids) == len(set(ids))
    told = [
        one.attributes[name] for one in document.elements for name in ("aria-labelledby",) if name in one.attributes
    ]
    assert set(told) <= set(ids)
    assert {one.attributes["href"][1:] for one in document.all("a")} <= set(ids)
    for figure in document.all("figure"):
        assert [one for one in figure.inside if one.tag == "table"], "a figure has its numbers beside it"
        plots = [one for one in figure.inside if one.attributes.get("class") == "plot"]
        assert all(one.attributes["role"] == "img" and one.attributes["aria-label"] for one in plots)
    heads = [
        one for one in document.one("table", id="s1-table").inside if one.tag == "th" and "aria-sort" in one.attributes
    ]
    assert heads
    assert all(next(one.tag for one in head.inside) == "button" for head in heads)


def test_every_colour_that_a_plot_names_is_the_pages(document: Document) -> None:
    style = document.one("style").text
    named = set(re.findall(r'"@(\w+)"', json.dumps(document.plots())))
    assert named
    for theme in (style.split("data-theme")[0], style.split("data-theme", 1)[1]):
        assert {name for name in named if f"--{name}:" not in theme} <= {"ink", "paper"}
    assert all(f"--{name}:" in style for name in named)


@pytest.mark.parametrize(
    ("text", "key"),
    [("0.123 = 0.1 + 0.02", 0.123), ("≤1.5", 1.5), ("-1.37", -1.37), ("6.06e-6", 6.06e-6), ("inf¹", 1e308), ("–", None),
     ("-inf", -1e308), ("1,234", 1234.0), ("90.0% z", 90.0), ("<1e-9", 1e-9)],
)  # fmt: skip
def test_a_cell_is_sorted_by_its_number(text: str, key: float | None) -> None:
    assert parts.cell(text).key == key


@pytest.mark.parametrize(("low", "high"), [(1e-6, 2.0), (0.13, 0.17), (3.0, 8.0), (1e-9, 1e-8), (40.0, 900.0)])
def test_ticks_of_a_logarithmic_axis_lie_on_it(low: float, high: float) -> None:
    axis = charts.log_axis("", [low, high])
    ticks = axis.get("tickvals", [])
    assert all(axis["range"][0] <= math.log10(tick) <= axis["range"][1] for tick in ticks)
    assert len(ticks) <= 9
    assert len(ticks) > 1 or axis["nticks"]
    assert axis["range"][0] < math.log10(low) < math.log10(high) < axis["range"][1]


def test_a_saved_comparison_and_a_folder_of_compare_give_the_page(
    comparison: ModelComparison, held: dict[str, Any], tmp_path: Path
) -> None:
    comparison.save(tmp_path / "saved")
    arguments = argparse.Namespace(out=tmp_path / "written", html=True, no_plots=True)
    arguments.out.mkdir()
    with noting_failures() as failed:
        write_report(comparison, arguments)
    assert failed == {}
    expected = page_of(held["records"], held)
    for folder in ("saved", "written", "written/report.json"):
        found = page_at(tmp_path / folder)
        assert found.sections == expected.sections
    assert (tmp_path / "written" / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_without_html_or_figures_nothing_more_is_written(comparison: ModelComparison, tmp_path: Path) -> None:
    write_report(comparison, argparse.Namespace(out=tmp_path, html=False, no_plots=True))
    write_page(comparison.records(), argparse.Namespace(out=tmp_path, html=False, no_plots=True))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "told"),
    [("{", "is no JSON"), ('{"format": "other"}', "expected what"), ("[1]", "expected what"), ("[]", "no records"),
     ('{"format": "ppl_vi.report", "version": 99}', "version 99"), ('[{"guide": "a"}]', "not as ppl_vi writes them")],
)  # fmt: skip
def test_other_files_are_refused_in_one_line(
    content: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "records.json").write_text(content)
    with pytest.raises(NoResultsError, match=told):
        page_at(tmp_path)
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "page.html")]) == cli.USAGE
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert told in lines[0]
    assert not (tmp_path / "page.html").exists()


def test_a_place_without_results_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for what, told in (("", "there is no report.json or records.json"), ("nothing.db", "there is no file or folder")):
        assert main(["report", str(tmp_path / what), "-o", str(tmp_path / "page.html")]) == cli.USAGE
        assert told in capsys.readouterr().err
    (tmp_path / "records.json").write_text("[]")
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "missing" / "page.html")]) == cli.USAGE
    assert "--out: there is no folder" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["zoo", "vae_digits", "vae_mnist"])
def test_the_benchmarks_records_give_a_page(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = ROOT / "docs" / "results" / f"{name}.json"
    out = tmp_path / "page.html"
    assert main(["report", str(file), "-o", str(out)]) == 0
    page, records = Document(out.read_text(encoding="utf-8")), json.loads(file.read_text())
    assert out.stat().st_size < 6 * MEGABYTE
    assert page.unclosed == []
    sections = {record.get("split") or record["label"] for record in records}
    assert len([one for one in page.all("section") if re.fullmatch(r"s\d+", one.attributes["id"])]) == len(sections)
    if name == "zoo":
        row = next(one for one in page.table("overview-table") if one["model"] == "funnel")
        (funnel,) = [one for one in records if (one["model"], one["guide"]) == ("funnel", "AutoNormal")]
        assert float(row["AutoNormal"]) == pytest.approx(funnel["reverse_kl"], rel=6e-3)
    else:
        row = page.table("s1-table")[0]
        assert float(row["gap: log p(x) - ELBO"]) == pytest.approx(records[0]["total"]["mean"], rel=6e-3)
