"""Whether what was measured of guides keeps within limits.

`ppl-vi check` and `ppl_vi.testing` both judge by `judged`. A reverse KL and its gaps have to be small in each replica;
other figures are medians over replicas, as in the tables. A value passes or fails only beyond its own error; within it,
it is undecided, which is no success.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from ppl_vi.report.columns import Record, leak_note, uncertainty
from ppl_vi.report.failures import in_words
from ppl_vi.report.numbers import number, short
from ppl_vi.runtime.limits import LIMITS, Limit

MOST_DIGITS = 17  # tell any two numbers of float64 apart

BOUNDS = {"family_gap": "family_gap_is_upper_bound", "optimization_gap": "optimization_gap_is_lower_bound"}


class Outcome(StrEnum):
    """How a check ended: `UNDECIDED` where the limit lies within the error, `UNCERTIFIED` where the truth is."""

    PASSED = "passed"
    FAILED = "failed"
    UNDECIDED = "undecided"
    UNCERTIFIED = "uncertified"


@dataclass(frozen=True)
class Check:
    """One limit for one guide and, where it is on each latent number, one of these.

    Attributes:
        guide: the guide.
        limit: its name in `ppl_vi.runtime.limits.LIMITS`.
        latent: the latent number, such as `theta[3]`, or "".
        outcome: how it ended.
        text: what was asked and what came, in words.
        seconds: what the guide's fit took; nan where there was none.
    """

    guide: str
    limit: str
    latent: str
    outcome: Outcome
    text: str
    seconds: float = math.nan

    def __str__(self) -> str:
        """The check as one line: whose it is, what came and what was asked."""
        return " ".join(f"{self.guide}{self.latent and f', {self.latent}'}: {self.text}".split())


def judged(records: Iterable[Record], limits: Mapping[str, float]) -> list[Check]:
    """Whether the guides keep within the limits.

    Args:
        records: one for each guide, of one problem.
        limits: the limits by name, as `ppl_vi.runtime.limits.limits_of` gives them.
    """
    return [check for record in records for name, asked in limits.items() for check in _checks(record, name, asked)]


def without_truth(guides: Iterable[str], limits: Iterable[str], reason: str) -> list[Check]:
    """The same where there is no truth to measure by, for the reason."""
    text = f"uncertified: there is no truth to measure by: {reason}"
    return [Check(guide, limit, "", Outcome.UNCERTIFIED, text) for guide in guides for limit in limits]


def not_passed(checks: Sequence[Check]) -> list[Check]:
    """Those that failed, and those of which it can't be said."""
    return [check for check in checks if check.outcome is not Outcome.PASSED]


def _checks(record: Record, name: str, asked: float) -> list[Check]:
    """A limit of one guide: a check for each latent number, if it is on them, else one."""
    limit = LIMITS[name]
    parts = [("", record)]
    if limit.by_latent and record["marginals"]:
        parts = [(part["name"], part) for part in record["marginals"]]
    found = []
    for latent, part in parts:
        outcome, text = _judged(record, part, name, asked)
        found.append(Check(record["guide"], name, latent, outcome, text, number(record.get("seconds"))))
    return found


def _judged(record: Record, part: Record, name: str, asked: float) -> tuple[Outcome, str]:
    """How a value stands to its limit, and what is to be said."""
    limit = LIMITS[name]
    (value, where), error = _value(record, part, limit), uncertainty(part, limit.metric)
    wanted = f"{'at least' if limit.is_least else 'at most'} {str(asked).removesuffix('.0')}{limit.unit} was asked"
    if math.isnan(value):
        return _without(record, limit, wanted)
    came = f"{limit.words} is {_shown(value, error, asked)}{limit.unit}{where}, {wanted}"
    if limit.metric in record["uncertified"]:
        return Outcome.UNCERTIFIED, f"{came}: uncertified, since the truth is: {in_words(record['grade_reason'])}"
    outcome = _outcome(value, 0.0 if math.isnan(error) else error, asked, limit.is_least)
    bound = record.get(BOUNDS.get(limit.metric, ""))
    if bound and outcome is (Outcome.FAILED if limit.metric == "family_gap" else Outcome.PASSED):
        side = "upper" if limit.metric == "family_gap" else "lower"
        return Outcome.UNDECIDED, f"{came}: undecided, since only this {side} bound is known"
    if outcome is Outcome.UNDECIDED:
        return outcome, f"{came}: undecided, since the limit lies within the error"
    leaks = math.isinf(value) and record["support_mismatch"]
    return outcome, f"{came}: {leak_note(record).removeprefix(record['guide'] + ': ')}" if leaks else came


def _value(record: Record, part: Record, limit: Limit) -> tuple[float, str]:
    """The value that has to keep to a limit: that of the worst replica, where it is known of each, and the words so."""
    each = [number(replica[limit.metric]) for replica in record["replicas"] if limit.metric in replica]
    if len(each) < 2 or part is not record:
        return number(part.get(limit.metric)), ""
    return max(each, key=lambda value: (math.isnan(value), value)), f" in the worst of {len(each)} replicas"


def _outcome(value: float, error: float, asked: float, is_least: bool) -> Outcome:
    """A value is as good as its limit, or not, whatever it is within its error; else that is undecided."""
    if math.isinf(value) and not math.isfinite(error):
        error = 0.0  # an infinite divergence is one for a reason
    low, high = value - error, value + error
    good, bad = (low >= asked, high < asked) if is_least else (high <= asked, low > asked)
    return Outcome.PASSED if good else Outcome.FAILED if bad else Outcome.UNDECIDED


def _without(record: Record, limit: Limit, wanted: str) -> tuple[Outcome, str]:
    """The same of a guide without such a value: it failed where it has none at all."""
    if record["elbo"] is None:
        reason = record["reason"].removeprefix(f"{record['guide']}: ")
        return Outcome.FAILED, f"no {limit.words}, {wanted}: {record['status']}, {reason}"
    reason = record["reasons"].get(limit.metric) or "it is not computed for this guide and model"
    return Outcome.UNDECIDED, f"no {limit.words}, {wanted}: undecided, since {reason}"


def _shown(value: float, error: float, asked: float) -> str:
    """A value with its error, in as many digits as tell it from the limit."""
    digits = 3
    while digits < MOST_DIGITS and _hides(short(value, digits), value, asked):
        digits += 1
    shown = "0" if value == 0 else short(value, digits)
    return shown + ("" if math.isnan(error) or error == 0 or math.isinf(value) else f" ± {short(error, 1)}")


def _hides(text: str, value: float, asked: float) -> bool:
    """Whether a text does not show on which side of the limit its value is."""
    return value != asked and (float(text) == asked or (float(text) > asked) != (value > asked))
