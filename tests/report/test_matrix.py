"""Many models and guides at a glance: what stands in a cell, and in the same cell of the heat map."""

import math

from ppl_vi.report import matrix


def record(model, guide, divergence, family, optimization, *, upper=False, error=0.0, **other):
    scores = {"reverse_kl": divergence, "family_gap": family, "optimization_gap": optimization}
    errors = {f"{name}_error": error for name in scores}
    about = {"status": "converged", "grade": "checked", "grade_reason": "", "uncertified": [], "reason": ""}
    return {"model": model, "guide": guide, **about, **scores, **errors, "family_gap_is_upper_bound": upper, **other}


RECORDS = [
    record("near", "plain", 0.25, 0.125, 0.125),
    record("near", "flow", 0.5, 1e-9, 0.5, upper=True, error=1e-6),
    record("far", "plain", 482.6, 1.86, 480.7, grade="certified"),
    record("far", "flow", None, None, None, grade="certified", status="failed", reason="ValueError: no"),
]


def test_a_markdown_table_has_a_row_a_model_and_the_reasons_below():
    assert matrix.as_markdown(RECORDS).splitlines() == [
        "| model | plain | flow |",
        "| --- | --- | --- |",
        "| near ✓ | 0.250 = 0.125 + 0.125 | 0.500 = ≤1e-6 + ≥0.500 |",
        "| far | 483 = 1.86 + 481 | failed¹ |",
        "",
        "¹ far, flow: ValueError: no",
    ]


def test_the_heat_map_shows_two_digits_bounds_and_failures():
    axes = matrix.heat_map(RECORDS).axes[0]
    assert [text.get_text() for text in axes.texts] == [
        "0.25\n0.12",
        "0.50\n≤1e-6",
        "483\n1.9",
        "failed\n(see table.txt)",
    ]
    assert math.isclose(float(axes.images[0].get_array()[1, 0]), 482.6)
