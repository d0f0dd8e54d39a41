"""The tables: order, widths, marks and footnotes."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from rich.cells import cell_len
from rich.console import Console
from scipy import special

from models import exponential_normal
from ppl_vi.comparison.comparison import Comparison, FitSettings
from ppl_vi.comparison.run import compare_each
from ppl_vi.metrics import METRICS
from ppl_vi.report import columns, table
from ppl_vi.report.brief import brief
from ppl_vi.report.failures import in_words
from ppl_vi.report.numbers import short, three_digits
from ppl_vi.truth import black_box_truth, ground_truth
from ppl_vi.truth.chains.criteria import chain_criteria


def record(guide: str, reverse_kl: Any, **more: Any) -> dict[str, Any]:
    """A record with the given values and nothing else measured."""
    named = {"label": "x = 1.5", "x": 1.5, "model": "toy", "problem": 0, "num_problems": 1}
    graded = {"method": "quadrature", "grade": "certified", "grade_reason": "", "assumptions": []}
    graded |= {"uncertified": [], "remarks": []}
    blank = {"guide": guide, "status": "converged", "log_evidence": -1.3689, "log_evidence_error": 4e-15}
    other = {"statuses": {}, "replicas": [], "reasons": {}, "support_mismatch": None, "reason": ""}
    return {
        **named,
        **graded,
        **dict.fromkeys(METRICS),
        **blank,
        **other,
        "family_gap_is_upper_bound": False,
        "reverse_kl": reverse_kl,
    } | more


BY_OBSERVATION = partial(table.show, layout=columns.BY_OBSERVATION)
ROWS = [
    record("skipping", None, status="skipped", reason="no density"),
    record("leaking", "inf", elbo="-inf", surrogate_elbo=-1.0, leaked_mass=0.3, support_mismatch="wrong; z"),
    record("far", 0.5, importance_log_evidence=-1.4, importance_log_evidence_std_error="inf",
           importance_log_evidence_naive_std_error=0.0213),
    record("AutoHierarchicalNormalMessenger", 1.2345e-7, family_gap=1.2e-9, family_gap_is_upper_bound=True,
           replicas=[{"reverse_kl": 1e-7}, {"reverse_kl": 3e-7}]),
    record("broken", None, status="failed", reason="ValueError: no"),
]  # fmt: skip


def test_rows_go_by_reverse_kl_then_infinite_failed_skipped() -> None:
    assert [row["guide"] for row in sorted(ROWS, key=table.sort_key)] == [
        "AutoHierarchicalNormalMessenger", "far", "leaking", "broken", "skipping",
    ]  # fmt: skip
    text = table.as_text(ROWS, BY_OBSERVATION)
    places = [text.index(f"\n{name}") for name in ("AutoHier", "far", "leaking", "broken", "skipping")]
    assert places == sorted(places)


def test_what_a_reader_must_not_miss_is_said() -> None:
    text = " ".join(table.as_text(ROWS, BY_OBSERVATION).split())
    assert "With validation off you would have read ELBO -1.000, above log p(x) = -1.369" in text
    assert "-1.400 ± inf (naive 0.021)" in text
    assert "≤1.20e-9" in text
    assert "1.23e-7 2.00e-7" in text  # the median and the range over replicas
    assert "skipping: skipped, no density" in text
    assert "broken: failed, ValueError: no" in text
    assert "log p(x) = -1.368900 ± 4e-15 nats" in text


@pytest.mark.parametrize(("width", "lines_a_guide"), [(60, 2), (80, 2), (100, 1), (120, 1)])
def test_six_columns_stand_in_one_table_at_every_usual_width(width: int, lines_a_guide: int) -> None:
    marginals = [{"name": "half_at", "coverage_90": 0.712, "coverage_90_error": 1e-3}]
    rows = [
        record("AutoMultivariateNormal", 0.234, family_gap=0.234, optimization_gap=1.2e-5, elbo=-52.6, seconds=0.46),
        record("AutoNormal", 0.616, family_gap=0.206, optimization_gap=0.41, elbo=-53.1, seconds=12.0),
    ]
    rows = [row | {"marginals": marginals, "status": "converged", "replicas": []} for row in rows]
    text = table.as_text(rows, partial(table.show, layout=brief()), width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert sum(set(line) == {"─"} for line in lines) == 1
    at = {name: i for i, line in enumerate(lines) for name in ("AutoM", "AutoN") if line.startswith(name)}
    assert at["AutoN"] - at["AutoM"] == lines_a_guide
    for shown in ("-52.600", "0.234 + 1e-5", "0.206 + 0.410", "71.2%", "half_at", "0.46 s", "12 s", "converged"):
        assert shown in text


def test_long_parts_stand_below_each_other_in_the_narrowest_terminal() -> None:
    bounds = {"family_gap_is_upper_bound": True, "optimization_gap_is_lower_bound": True, "marginals": []}
    row = record("AutoMultivariateNormal", 0.0239, family_gap=0.0197, optimization_gap=0.00426, seconds=3.0, elbo=-52.5)
    text = table.as_text([row | bounds], partial(table.show, layout=brief()), 60)
    lines = [line.split() for line in text.splitlines()]
    at = next(i for i, line in enumerate(lines) if line[:1] == ["AutoMultivariateNormal"])
    assert lines[at] == ["AutoMultivariateNormal", "-52.500", "0.0239", "–"]
    assert lines[at + 1 : at + 3] == [["converged", "=", "≤0.0197"], ["3.0", "s", "+", "≥0.00426"]]
    assert max(map(len, text.splitlines())) <= 60


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_nothing_is_cut_and_no_row_is_wider_than_the_terminal(width: int) -> None:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        BY_OBSERVATION(ROWS, console)
    text = console.export_text()
    assert "…" not in text
    assert max(cell_len(line) for line in text.splitlines()) <= width
    tables = text.count("guide ")
    assert text.count("AutoHierarchicalNormalMessenger") == tables  # no row is broken into two lines


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (None, None, "–"), ("inf", None, "inf"), ("-inf", 0.0, "-inf"), (0.0, None, "0"), (0.16009, 1e-15, "0.160"),
        (1.0e-16, 2e-15, "<2e-15"), (-0.5509, None, "-0.551"), (1983.2, None, "1.98e3"), (8.42e-4, None, "8.42e-4"),
        (2.5, "inf", "?"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits(value: Any, error: Any, text: str) -> None:
    assert three_digits(value, error) == text


def test_the_spread_is_the_range_over_replicas() -> None:
    assert columns.spread(ROWS[3], "reverse_kl") == pytest.approx(2e-7, rel=1e-12)
    assert math.isnan(columns.spread(record("one", 1.0, replicas=[{"reverse_kl": 1.0}]), "reverse_kl"))


@pytest.mark.parametrize(
    ("text", "sign", "expected"),
    [("0.62", "≤", "≤0.62"), ("<8e-9", "≤", "≤8e-9"), ("<8e-9", "≥", "≥0"), ("inf", "≥", "inf"), ("0.1", "≥", "≥0.1")],
)
def test_a_bound_is_shown_with_one_sign(text, sign, expected):
    assert columns.bound(text, sign) == expected


def test_an_error_without_bound_is_shown_as_such() -> None:
    assert short(math.inf, 1) == "inf"
    assert three_digits(-2.5, math.inf) == "?"


def test_several_problems_without_labels_say_where_they_come_from() -> None:
    rows = [
        record("mine", divergence, label=f"toy, problem {problem}", problem=problem, num_problems=12)
        for problem, divergence in enumerate((0.5, 0.25))
    ]
    text = " ".join(table.as_text(rows, width=300).split())
    for problem, divergence in enumerate(("0.500", "0.250")):
        said = (
            f"toy, problem {problem} (the target poses 12 problems, numbered from 0: one for each row of its arguments)"
        )
        _, own = text.split(said)
        assert divergence in own.split("toy, problem")[0]
    (alone,) = (columns.title(row) for row in [record("mine", 0.5, label="toy")])
    assert alone.startswith("toy    log p(x)")


def test_a_comparison_without_labels_numbers_its_problems() -> None:
    """log p(x) = 1/2 - x + log Phi(x - 1) of each problem stands beside its own number."""
    target = exponential_normal.target([1.5, -3.0])
    settings = FitSettings(num_steps=20, num_particles=8, num_replicas=2, num_draws=500)
    start = Comparison(target, ground_truth(target), settings, ())
    *_, found = compare_each(start, ["lognormal"], num_workers=1)
    text = table.as_text(found.records(), width=300)
    for problem, x in enumerate([1.5, -3.0]):
        exact = 0.5 - x + special.log_ndtr(x - 1)
        title = f"exponential_normal, problem {problem} (the target poses 2 problems, numbered from 0: one for each row"
        (line,) = [line for line in text.splitlines() if line.startswith(title)]
        assert f"log p(x) = {exact:.6f}" in line
        assert found.label(problem) == f"exponential_normal, problem {problem}"


def uncertified(reason: str, **more: Any) -> dict[str, Any]:
    resting = ["log_evidence", *(name for name, metric in METRICS.items() if metric.needs_truth)]
    return record("a", 0.25, grade="uncertified", grade_reason=reason, uncertified=resting, label="toy", **more)


def test_every_number_that_rests_on_an_uncertified_truth_is_marked() -> None:
    """The ELBO, k-hat and the effective sample size are of the guide alone."""
    reason = "chains stay in separate modes; split R-hat is 3.2 and must be at most 1.01"
    row = uncertified(reason, elbo=-2.5, family_gap=0.125, optimization_gap=0.0625, sd_ratio=0.75, khat=0.3, ess=812.0)
    text = table.as_text([row], width=300)
    title, *below = text.splitlines()
    assert title.endswith("uncertified: several modes: the chains disagree")
    assert "log p(x) = -1.368900? ±" in title
    for number in ("0.250?", "0.125?", "0.0625?", "0.750?"):
        assert number in text
    for number in ("-2.500", "0.30", "812"):
        assert number in text
        assert f"{number}?" not in text
    assert f"What failed: {reason}." in " ".join(below)
    assert "?" not in table.as_text([record("a", 0.25, elbo=-2.5, family_gap=0.125)], width=300)


def test_each_check_of_a_truth_has_words() -> None:
    """The names of the checks are those of real truths, so that a new one can't be without words."""
    numbers = torch.randn(50, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    chains = chain_criteria(numbers, numbers[..., 0], 0)
    failing = [replace(one, value=-math.inf if one.at_least else math.inf).failure for one in chains]
    toy = ground_truth(exponential_normal.target([1.5]))
    two = black_box_truth(exponential_normal.target([1.5]))
    known = [one.failure for one in (*two.checks, *(check for check in toy.checks if "tree" in check.name))]
    for reason in (*failing, *known):
        assert in_words(reason) != reason, reason
