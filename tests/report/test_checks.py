"""Limits: what passes, fails or is undecided, what is said of it, and the JUnit file."""

from __future__ import annotations

import math
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppl_vi.metrics.table import METRICS
from ppl_vi.report.checks import Check, Outcome, judged, not_passed, without_truth
from ppl_vi.report.junit import to_junit
from ppl_vi.runtime.limits import LIMITS, limits_of
from tests.report.made import failed_record, infinite_record, made_record

numbers = st.floats(-10, 10)
PASSED, FAILED, UNDECIDED, UNCERTIFIED = Outcome


def record(**more: Any) -> dict[str, Any]:
    return made_record("mine", {"family": 0.25, "optimization": 0.5}, **more)


def one(found: list[Check]) -> Check:
    (check,) = found
    return check


@pytest.mark.parametrize("name", ["max_sd_ratio", "min_sd_ratio"])
@given(value=numbers, error=st.floats(0, 5), std_error=st.floats(0, 5), asked=numbers)
def test_a_value_passes_or_fails_only_beyond_its_error(
    name: str, value: float, error: float, std_error: float, asked: float
) -> None:
    """By a thousand numbers within the error: all of them keep to the limit, or none does, or it is undecided."""
    part = {"name": "z", "sd_ratio": value, "sd_ratio_error": error, "sd_ratio_std_error": std_error}
    outcome = one(judged([record(marginals=[part])], {name: asked})).outcome
    reach = error + 2 * std_error
    may_be = [value + reach * (i / 500 - 1) for i in range(1001)]
    kept = {number <= asked if name == "max_sd_ratio" else number >= asked for number in may_be}
    assert outcome is (UNDECIDED if len(kept) == 2 else PASSED if kept == {True} else FAILED)


def test_each_latent_number_is_a_line_that_says_what_came_and_what_was_asked() -> None:
    parts = [
        {"name": "a", "coverage_90": 0.91, "coverage_90_error": 0.0, "coverage_90_std_error": 0.01},
        {"name": "b[1]", "coverage_90": 0.7123, "coverage_90_error": 0.001, "coverage_90_std_error": 0.01},
        {"name": "c", "coverage_90": 0.84, "coverage_90_error": 0.0, "coverage_90_std_error": 0.01},
    ]
    found = judged([record(marginals=parts)], {"min_coverage": 0.85})
    assert [check.outcome for check in found] == [PASSED, FAILED, UNDECIDED]
    asked = "at least 0.85 was asked"
    assert [str(check) for check in not_passed(found)] == [
        f"mine, b[1]: coverage of the 90% interval is 0.712 ± 0.02, {asked}",
        f"mine, c: coverage of the 90% interval is 0.840 ± 0.02, {asked}: undecided, since the limit lies within the "
        "error",
    ]


@pytest.mark.parametrize(
    ("value", "asked", "text"),
    [
        (0.050004, 0.05, "reverse KL is 0.050004 nats, at most 0.05 nats was asked"),
        (0.0500014, 0.0500013, "reverse KL is 0.0500014 nats, at most 0.0500013 nats was asked"),
        (0.2, 0.05, "reverse KL is 0.200 nats, at most 0.05 nats was asked"),
        (12.0, 11.0, "reverse KL is 12.0 nats, at most 11 nats was asked"),
        (0.0, 1.0, "reverse KL is 0 nats, at most 1 nats was asked"),
    ],
)
def test_a_value_is_shown_in_as_many_digits_as_tell_it_from_the_limit(value: float, asked: float, text: str) -> None:
    assert one(judged([record(reverse_kl=value, reverse_kl_error=0.0)], {"max_reverse_kl": asked})).text == text


def test_a_bound_decides_on_its_own_side_alone() -> None:
    """A family gap of at most 0.25 keeps within 0.3; whether it does within 0.2 is not known."""
    bounded = record(family_gap_is_upper_bound=True, optimization_gap_is_lower_bound=True, optimization_gap_error=1e-9)
    for limits, outcome in [
        ({"max_family_gap": 0.3}, PASSED),
        ({"max_family_gap": 0.2}, UNDECIDED),
        ({"max_optimization_gap": 0.6}, UNDECIDED),
        ({"max_optimization_gap": 0.4}, FAILED),
    ]:
        found = one(judged([bounded], limits))
        assert found.outcome is outcome
        assert ("bound is known" in found.text) == (outcome is UNDECIDED)


def test_a_reverse_kl_and_its_gaps_are_those_of_the_worst_replica() -> None:
    """Three replicas have a reverse KL of 0.75, 0.8 and 1.25; the median would keep within 1."""
    three = made_record("mine", {"family": 0.25, "optimization": 0.5}, replicas=(0.0, 0.05, 0.5))
    outcomes = {
        (name, asked): one(judged([three], {name: asked})).outcome
        for name, values in [("max_reverse_kl", (1.24, 1.26)), ("max_optimization_gap", (0.99, 1.01))]
        for asked in values
    }
    assert list(outcomes.values()) == [FAILED, PASSED] * 2
    text = "reverse KL is 1.25 ± 1e-12 nats in the worst of 3 replicas, at most 1 nats was asked"
    assert one(judged([three], {"max_reverse_kl": 1.0})).text == text
    lost = three | {"replicas": [*three["replicas"], {"reverse_kl": None}], "reasons": {"reverse_kl": "it diverged"}}
    missing = one(judged([lost], {"max_reverse_kl": 100.0}))
    assert (missing.outcome, "undecided, since it diverged" in missing.text) == (UNDECIDED, True)


def test_an_infinite_divergence_fails_and_says_why() -> None:
    leak = infinite_record("normal") | {"leaked_mass": 0.16, "surrogate_elbo": -1.0, "log_evidence": -1.2}
    found = one(judged([leak | {"reverse_kl_error": "inf"}], {"max_reverse_kl": 100.0}))
    assert found.outcome is FAILED
    asked = "normal: reverse KL is inf nats in the worst of 2 replicas, at most 100 nats was asked"
    assert str(found).startswith(f"{asked}: site 'z': wider (leaked mass 0.160)")


def test_a_guide_without_scores_fails_and_a_missing_score_is_undecided() -> None:
    skipped = failed_record("AutoDelta", "skipped", "AutoDelta: a point mass has no density")
    found = judged([skipped, record(start_gap=None, khat=None, reasons={"khat": "too few draws"})], {"max_khat": 0.7})
    assert [(check.outcome, check.text) for check in found] == [
        (FAILED, "no k-hat, at most 0.7 was asked: skipped, a point mass has no density"),
        (UNDECIDED, "no k-hat, at most 0.7 was asked: undecided, since too few draws"),
    ]
    missing = one(judged([record(start_gap=None)], {"max_start_gap": 0.1}))
    assert (missing.outcome, "it is not computed" in missing.text) == (UNDECIDED, True)


def test_what_rests_on_an_uncertified_truth_is_neither_kept_nor_not() -> None:
    doubted = record(uncertified=["reverse_kl"], grade_reason="split R-hat is 1.2", khat=0.4)
    kl, khat = judged([doubted], {"max_reverse_kl": 100.0, "max_khat": 0.7})
    assert (kl.outcome, khat.outcome) == (UNCERTIFIED, PASSED)
    assert "uncertified, since the truth is: the chains disagree" in kl.text
    (none,) = without_truth(["mine"], ["max_khat"], "too many latents")
    assert (none.outcome, str(none)) == (
        UNCERTIFIED, "mine: uncertified: there is no truth to measure by: too many latents"
    )  # fmt: skip


def test_limits_are_on_metrics_of_records_and_need_a_number_that_can_be_meant() -> None:
    assert {limit.metric for limit in LIMITS.values()} <= set(METRICS)
    assert limits_of({"max_khat": -0.5, "min_coverage": 1, "max_reverse_kl": None}) == {
        "max_khat": -0.5,
        "min_coverage": 1.0,
    }
    for given_limits, error, message in [
        ({"max_reverse_kl": None}, ValueError, "expected a limit at least"),
        ({"max_reverse_kl": -0.1}, ValueError, "max_reverse_kl must be a finite number of at least 0, got -0.1"),
        ({"min_coverage": 85}, ValueError, "of at least 0 and at most 1, got 85"),
        ({"max_khat": math.nan}, ValueError, "must be a finite number, got nan"),
        ({"max_khat": "0.7"}, TypeError, "must be a number, got '0.7'"),
        ({"max_khat": True}, TypeError, "must be a number, got True"),
    ]:
        with pytest.raises(error, match=message):
            limits_of(given_limits)  # type: ignore[arg-type]


EVIL = "<script>&\"'\x1b[31m\x00]]>\ud800"


@given(st.text(min_size=1))
def test_any_name_stands_in_the_junit_file_as_it_is_or_with_what_xml_can_not_hold_written_out(name: str) -> None:
    checks = [Check(name, "max_khat", "", FAILED, name), Check("b", "max_khat", name, PASSED, "")]
    root = ElementTree.fromstring(to_junit(checks, f"{name}:model"))
    assert [len(suite) for suite in root] == [2]
    for evil in (EVIL, name):
        text = to_junit([Check(evil, "max_khat", "", UNDECIDED, evil)], evil)
        case = ElementTree.fromstring(text.encode())[0][0]
        if all(character.isprintable() for character in evil):
            assert case.attrib["name"] == f"{evil} max_khat"


def test_the_junit_file_counts_what_it_holds() -> None:
    checks = [
        Check("a", "max_khat", "", PASSED, "fine", 1.5),
        Check("a", "min_coverage", "z", FAILED, "too low", 1.5),
        Check("b", "max_khat", "", UNDECIDED, "who knows", math.nan),
        Check("b", "max_reverse_kl", "", UNCERTIFIED, "no truth", math.nan),
    ]
    root = ElementTree.fromstring(to_junit(checks, "my.module:model"))
    (suite,) = root
    for element in (root, suite):
        assert [element.attrib[name] for name in ("tests", "failures", "errors", "time")] == ["4", "2", "1", "1.500"]
    assert [[child.tag for child in case] for case in suite] == [[], ["failure"], ["failure"], ["error"]]
    assert [case.attrib["time"] for case in suite] == ["1.500", "0.000", "0.000", "0.000"]
    assert {case.attrib["classname"] for case in suite} == {"my.module.model"}
    assert (suite[1].attrib["name"], suite[1][0].attrib["message"]) == ("a min_coverage z", "too low")
    assert suite[1][0].text == "a, z: too low"
