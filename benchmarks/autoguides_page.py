"""The tables of docs/autoguides.md, made of the records of `benchmarks.autoguides`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks.autoguides_published import PUBLISHED
from benchmarks.speed_page import with_table
from benchmarks.speed_whole import markdown

Record = dict[str, Any]
NONE = "–"
LARGEST_ERROR = 0.3
LARGEST_PLAIN = 1e4  # larger numbers are written with an exponent
# Our guides, each with the published columns of the same family.
SAME = {
    "AutoNormal": ("AutoNormal", "AutoDiagonalNormal", "Stan mean-field"),
    "AutoMultivariateNormal": ("AutoMultivariateNormal", "Stan full-rank"),
    "AutoLowRankMultivariateNormal": ("AutoLowRankMultivariateNormal",),
    "laplace": ("AutoLaplaceApproximation",),
    "AutoIAFNormal": ("AutoIAFNormal",),
}
SHORT = {
    "AutoMultivariateNormal": "MultivariateNormal",
    "AutoLowRankMultivariateNormal": "LowRank",
    "AutoIAFNormal": "IAF",
    "AutoNormal": "Normal",
    "laplace": "Laplace",
}
CAUSES = ("family", "family or start", "start", "optimiser", "diverged", "mode", "unknown", "failed")


def of_guide(records: Sequence[Record], guide: str) -> list[Record]:
    """The records of one guide on the published table's posteriors."""
    return [record for record in records if record["guide"] == guide and record["posterior"] in PUBLISHED]


def successes(records: Sequence[Record]) -> str:
    """For each guide ours and theirs on the posteriors that we ran, and what our failures come from."""
    rows = []
    for guide, columns in SAME.items():
        ran = of_guide(records, guide)
        if not ran:
            continue
        theirs = ", ".join(f"{_published_successes(ran, column)} ({column})" for column in columns)
        causes = Counter(record.get("cause") for record in ran if not record["success"])
        why = ", ".join(f"{causes[cause]} {cause}" for cause in CAUSES if causes[cause]) or NONE
        rows.append([guide, str(len(ran)), str(sum(record["success"] for record in ran)), theirs, why])
    return markdown(("guide", "posteriors", "successes", "theirs, on the same posteriors", "our failures"), rows)


def _published_successes(ran: Sequence[Record], column: str) -> int:
    values = (PUBLISHED[record["posterior"]][column] for record in ran)
    return sum(value is not None and value <= LARGEST_ERROR for value in values)


def by_posterior(records: Sequence[Record]) -> str:
    """The largest error of each guide, ours / theirs, with the cause where ours is above 0.3."""
    found = {(record["posterior"], record["guide"]): record for record in records}
    guides = [guide for guide in SAME if of_guide(records, guide)]
    rows = []
    for name, published in PUBLISHED.items():
        cells = [_cell(found.get((name, guide)), published[SAME[guide][0]]) for guide in guides]
        rows.append([f"`{name}`", *cells])
    return markdown(("posterior", *(SHORT[guide] for guide in guides)), rows)


def _cell(record: Record | None, theirs: float | None) -> str:
    published = "error" if theirs is None else f"{theirs:.2f}"
    if record is None:
        return f"not run / {published}"
    ours = _size(record["error"])
    return f"**{ours}** {record.get('cause', '')} / {published}" if not record["success"] else f"{ours} / {published}"


def _size(error: float | None) -> str:
    return "no answer" if error is None else f"{error:.2f}" if error < LARGEST_PLAIN else f"{error:.1e}"


def failures(records: Sequence[Record]) -> str:
    """Each failure with its gaps and the mean error of the family's best member."""
    rows = []
    for record in records:
        if record["success"] or record["posterior"] not in PUBLISHED:
            continue
        numbers = ("reverse_kl", "family_gap", "start_gap", "optimization_gap", "best_member_error")
        values = [NONE if record.get(key) is None else f"{record[key]:.2g}" for key in numbers]
        if record.get("family_gap_is_bound") and values[1] != NONE:
            values[1] = f"≤ {values[1]}"
        error = _size(record["error"])
        number, cause = record.get("number", NONE), record.get("reason") or record["cause"]
        ended = (record.get("fit") or NONE).replace("_", " ")
        rows.append([f"`{record['posterior']}`", SHORT[record["guide"]], ended, f"{error} {number}", *values, cause])
    headings = (
        "posterior", "guide", "fit", "mean error", "reverse KL", "family gap", "start gap", "optimization gap",
        "mean error of the best member", "cause",
    )  # fmt: skip
    return markdown(headings, rows)


def renewed(page: str, records: Sequence[Record]) -> str:
    """The page with its tables made anew."""
    for name, make in (("successes", successes), ("errors", by_posterior), ("failures", failures)):
        page = with_table(page, name, make(records))
    return page
