"""The tables of docs/posteriordb.md, made of the records of `benchmarks.posteriordb`.

What is called a *reference* there is decided here, by `shortcomings`: a posterior with none of them.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from benchmarks.speed_page import with_table
from benchmarks.speed_whole import markdown

Record = dict[str, Any]
NONE = "–"
WIDTH = 120  # of a line of the page
BEYOND = "beyond"  # the bound, of two exact routes
MOST_ERRORS = 4.0  # standard errors by which a moment or log p(x) may differ from what was computed in another way
LARGEST_ERROR = 0.02  # nats that the stated error of a reference's log p(x) may be
# Rounding of log p(x) in double precision, relative to it, by which two exact routes may differ.
ROUNDING = 1e-12
HEADINGS = (
    "posterior", "numbers", "log p(x)", "error", "grade", "seconds", "other route", "differs by", "in errors",
    "worst z of means", "of sds", "reference",
)  # fmt: skip


def difference(record: Record) -> float | None:
    """log p(x) minus that of the other route, nats."""
    other = record.get("other_route")
    if not other or record.get("log_evidence") is None:
        return None
    return float(record["log_evidence"] - other["log_evidence"])


def errors_apart(record: Record) -> float | None:
    """The difference beyond the bound of the numerical error, in standard errors of both; inf where those are 0."""
    apart = difference(record)
    if apart is None:
        return None
    beyond = abs(apart) - record["error_bound"] - ROUNDING * max(1.0, abs(record["log_evidence"]))
    if beyond <= 0:
        return 0.0
    std_error = math.hypot(record["std_error"], record["other_route"]["std_error"])
    return beyond / std_error if std_error else math.inf


def worst_z(record: Record, which: str) -> float | None:
    """The largest |z| of a posterior's means or sds against the published draws."""
    found = [abs(row[which]) for row in record.get("moments", {}).values() if row.get(which) is not None]
    return max(found, default=None)


def shortcomings(record: Record) -> list[str]:
    """Why a posterior's log p(x) is not called a reference; [] where it is."""
    if record["status"] != "answered":
        return [f"{record['status']}: {record['reason']}"]
    found = []
    if record["grade"] == "uncertified":
        found.append(f"uncertified: {'; '.join(record['reasons'])}")
    if record["log_evidence"] is None or record["error"] is None or record["error"] > LARGEST_ERROR:
        found.append(f"the error is above {LARGEST_ERROR:g} nats")
    apart = errors_apart(record)
    if apart is not None and apart > MOST_ERRORS:
        found.append(_differs(record, apart))
    for which, what in (("z_mean", "a mean"), ("z_sd", "an sd")):
        worst = worst_z(record, which)
        if worst is not None and worst > MOST_ERRORS:
            found.append(f"{what} differs from the published draws by {worst:.1f} errors")
    return found


def _differs(record: Record, apart: float) -> str:
    """A difference in standard errors, or, of two exact routes, in nats."""
    what = f"log p(x) differs from {record['other_route']['by']} by"
    if math.isinf(apart):
        return f"{what} {difference(record):.1g} nats, beyond the stated bound of {record['error_bound']:.1g}"
    return f"{what} {apart:.1f} errors"


def cells(record: Record) -> list[str]:
    """A row of the table."""
    name = f"`{record['posterior']}`"
    if record["status"] != "answered":
        return [name, *[NONE] * 4, f"{record['total_seconds']:.0f}", *[NONE] * 5, record["status"]]
    other, apart, errors = record["other_route"], difference(record), errors_apart(record)
    return [
        name,
        str(record["numbers"]),
        _log_evidence(record),
        _short(record["error"]),
        record["grade"],
        f"{record['seconds']:.1f}",
        SHORT_ROUTES.get(other["by"], other["by"]) if other else NONE,
        NONE if apart is None else _short(apart),
        NONE if errors is None else BEYOND if math.isinf(errors) else f"{errors:.1f}",
        *[NONE if (z := worst_z(record, which)) is None else f"{z:.1f}" for which in ("z_mean", "z_sd")],
        "no" if shortcomings(record) else "yes",
    ]


SHORT_ROUTES = {
    "closed form given sigma, and quadrature over sigma": "quadrature over sigma",
    "quadrature over tau, given which all is normal": "quadrature over tau",
    "bridge sampling of the published draws": "bridge",
}


def _log_evidence(record: Record) -> str:
    """log p(x) to two digits of its error, at most to 8 decimals; `*` where it is up to a flat prior's constant."""
    if record["log_evidence"] is None:
        return NONE
    error = record["error"] or 1.0
    decimals = min(8, max(0, 1 - math.floor(math.log10(error)))) if error > 0 else 8
    return f"{record['log_evidence']:.{decimals}f}{'*' if record['constant'] else ''}"


def _short(value: float | None) -> str:
    return NONE if value is None else f"{value:.1g}" if value else "0"


def notes(records: Sequence[Record]) -> str:
    """What keeps a posterior from being a reference, and how a density differs from Stan's, as lists."""
    wrong = [_item(r, "; ".join(why)) for r in records if (why := shortcomings(r))]
    written = [_item(r, r["note"]) for r in records if r.get("note")]
    parts = ["No reference:", "", *wrong, ""] if wrong else []
    return "\n".join([*parts, "Written in another way than Stan's:", "", *written, ""])


def _item(record: Record, text: str) -> str:
    return textwrap.fill(f"- `{record['posterior']}`: {text}", WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def summary(records: Sequence[Record]) -> str:
    """The counts, in sentences."""
    answered = [r for r in records if r["status"] == "answered"]
    exact = [r for r in answered if r["other_route"] and not r["other_route"]["std_error"]]
    bridged = [r for r in answered if r["other_route"] and r["other_route"]["std_error"]]
    checked = [r for r in answered if worst_z(r, "z_mean") is not None]
    within = [r for r in checked if max(worst_z(r, "z_mean") or 0, worst_z(r, "z_sd") or 0) <= MOST_ERRORS]
    num_moments = sum(2 for r in checked for row in r["moments"].values() if "z_mean" in row)
    references = [r for r in records if not shortcomings(r)]
    agree = {key: sum((errors_apart(r) or 0) <= MOST_ERRORS for r in rows) for key, rows in
             (("exact", exact), ("bridged", bridged))}  # fmt: skip
    text = (
        f"Of {len(records)} posteriors {len(answered)} were answered and {len(references)} are references. "
        f"log p(x) agrees with a closed form or SciPy's quadrature in {agree['exact']} of {len(exact)}, and with "
        f"bridge sampling of the published draws in {agree['bridged']} of {len(bridged)}. Of {len(checked)} posteriors "
        f"with published draws, {len(within)} have all moments within {MOST_ERRORS:g} standard errors "
        f"({num_moments} moments in all). Processor time of all together: "
        f"{sum(r['total_seconds'] for r in records) / 60:.0f} minutes."
    )
    return textwrap.fill(text, WIDTH) + "\n"


def renewed(page: str, records: Sequence[Record]) -> str:
    """The page with its table, counts and notes made anew."""
    rows = markdown(HEADINGS, [cells(record) for record in records])
    for name, text in (("posteriors", rows), ("counts", summary(records)), ("notes", notes(records))):
        page = with_table(page, name, text)
    return page


def line(record: Record) -> str:
    """A record as one line of the terminal."""
    why = "; ".join(shortcomings(record)) or "reference"
    if record["status"] != "answered":
        return f"{record['posterior']}: {why}"
    return (
        f"{record['posterior']}: {_log_evidence(record)} ± {_short(record['error'])}, {record['seconds']:.1f} s, {why}"
    )
