"""The columns of the tables: what stands in a cell, which footnotes it has, and which columns a table shows.

A metric of `ppl_vi.metrics.METRICS` that has a heading has a column. `BY_MODEL` and `BY_OBSERVATION` give the order of
the columns, and say how the table of a problem is titled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ppl_vi.metrics.table import METRICS
from ppl_vi.report.failures import in_words
from ppl_vi.report.numbers import MISSING, nats, number, short, three_digits
from ppl_vi.report.standing import others_of, status_of

Record = dict[str, Any]
DOUBT = "?"  # after a number that rests on an uncertified truth
SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass
class Footnotes:
    """The footnotes of a table, numbered in the order in which they are first referred to."""

    texts: list[str] = field(default_factory=list)

    def mark(self, text: str) -> str:
        """The superscript that refers to a text, which becomes a footnote if it is not one yet."""
        if text not in self.texts:
            self.texts.append(text)
        return str(self.texts.index(text) + 1).translate(SUPERSCRIPTS)


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        heading: the two lines of its heading.
        cell: gives the text for a record, and may add footnotes.
        left: whether the texts are aligned to the left.
        is_needed: whether the column says anything about these records; a table leaves it out otherwise.
    """

    heading: tuple[str, ...]
    cell: Callable[[Record, Footnotes], str]
    left: bool = False
    is_needed: Callable[[Sequence[Record]], bool] = lambda records: True


def spread(record: Record, name: str) -> float:
    """The largest minus the smallest value over replicas; nan where there are not two finite ones to compare."""
    values = [number(replica[name]) for replica in record["replicas"]]
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return math.nan
    return max(values) - min(values)


def uncertainty(record: Record, name: str) -> float:
    """What a score may be off by: its numerical error and two standard errors; nan where neither is known."""
    error, std_error = number(record.get(f"{name}_error")), number(record.get(f"{name}_std_error"))
    return error if math.isnan(std_error) else 2 * std_error + (0.0 if math.isnan(error) else error)


def _with_reason(name: str, text_of: Callable[[Record], str]) -> Callable[[Record, Footnotes], str]:
    """The cells of a column about a metric: a value that is infinite or missing gets a footnote with the reason."""

    def cell(record: Record, notes: Footnotes) -> str:
        text, reason = text_of(record), _reason(record, name)
        shown = doubted(text) if name in record["uncertified"] else text
        return shown + notes.mark(reason) if reason and ("inf" in text or text == MISSING) else shown

    return cell


def doubted(text: str) -> str:
    """A number that rests on an uncertified truth, with the mark that says so."""
    return text if text == MISSING or text.endswith(DOUBT) else text + DOUBT


def _reason(record: Record, name: str) -> str:
    """Why a metric is infinite or missing. A guide that leaks mass gets one footnote for all that follows from it."""
    if record["support_mismatch"] and name in ("elbo", "elbo_gap", "reverse_kl", "family_gap"):
        return leak_note(record)
    return str(record["reasons"].get(name, ""))


def leak_note(record: Record) -> str:
    """What mass outside the model's support means for a guide's scores, and what its user would have read instead."""
    what = record["support_mismatch"].split("; ")[0]
    note = f"{record['guide']}: {what} (leaked mass {three_digits(record['leaked_mass'])})."
    surrogate, evidence = number(record["surrogate_elbo"]), number(record["log_evidence"])
    if not math.isfinite(surrogate):
        return note
    side = "above" if surrogate > evidence else "below"
    return (
        f"{note} With validation off you would have read ELBO {nats(surrogate)}, "
        f"{side} log p(x) = {nats(evidence)}: the model's formula, continued outside its support."
    )


def _guide(record: Record, notes: Footnotes) -> str:
    remark = record["reason"] if record["status"] in ("skipped", "failed") else ""
    return record["guide"] + (notes.mark(f"{record['guide']}: {record['status']}, {remark}") if remark else "")


def status_note(record: Record, notes: Footnotes) -> str:
    """The mark of a footnote that says how the replicas ended that did not end like most; "" where all ended alike."""
    remark = others_of(record)
    first = next((r["stop_reason"] for r in record["replicas"] if r.get("status") == "diverged"), "")
    if first:
        num, total = record["statuses"].get("diverged", 0), len(record["replicas"])
        few = f"{record['guide']}: {num} of {total} replicas diverged"
        remark = f"{remark or few}, one {first}"
    return notes.mark(remark) if remark else ""


def status_cell(record: Record, notes: Footnotes) -> str:
    """How the replicas ended, with a footnote where some ended otherwise."""
    return status_of(record) + status_note(record, notes)


def _spread(record: Record) -> str:
    value = spread(record, "reverse_kl")
    noise = 2 * uncertainty(record, "reverse_kl")
    return MISSING if math.isnan(value) else "0" if value == 0 else three_digits(value, noise)


def _khats(record: Record) -> str:
    few, many = number(record["khat_1000"]), number(record["khat"])
    return MISSING if math.isnan(many) else f"{MISSING if math.isnan(few) else f'{few:.2f}'}, {many:.2f}"


def bound(text: str, sign: str) -> str:
    """A value as a bound: `≤` or `≥` before it. One that is below its own error, `<e`, is at most e and at least 0."""
    if text in (MISSING, "inf"):
        return text
    if text.startswith("<"):
        return f"≤{text[1:]}" if sign == "≤" else "≥0"
    return sign + text


def _importance(record: Record) -> str:
    error = number(record.get("importance_log_evidence_std_error"))
    naive = number(record.get("importance_log_evidence_naive_std_error"))
    if math.isnan(number(record["importance_log_evidence"])):
        return MISSING
    shown = nats(record["importance_log_evidence"])
    if math.isinf(error):
        hint = "" if math.isnan(naive) else f" (naive {short(naive, 2)})"
        return f"{shown} ± inf{hint}"
    return shown if math.isnan(error) else f"{shown} ± {short(error, 2)}"


def _three_digits(name: str) -> Callable[[Record], str]:
    """Three significant digits."""
    return lambda record: three_digits(record[name], uncertainty(record, name))


def family_gap(record: Record) -> str:
    """The family gap, with `≤` where it is an upper bound."""
    shown = three_digits(record["family_gap"], uncertainty(record, "family_gap"))
    return bound(shown, "≤") if record["family_gap_is_upper_bound"] else shown


def leaves_at_least(record: Record) -> bool:
    """Whether the optimization gap is a lower bound; earlier records say so of the family gap alone."""
    return bool(record.get("optimization_gap_is_lower_bound", record["family_gap_is_upper_bound"]))


def optimization_gap(record: Record) -> str:
    """The optimization gap, with `≥` where it is a lower bound."""
    shown = three_digits(record["optimization_gap"], uncertainty(record, "optimization_gap"))
    return bound(shown, "≥") if leaves_at_least(record) else shown


def start_gaps(record: Record) -> list[float]:
    """The start gap of each replica, as far as it is known."""
    values = [number(replica.get("start_gap")) for replica in record["replicas"]]
    return [value for value in values if math.isfinite(value)]


def has_start_gap(records: Sequence[Record]) -> bool:
    """Whether another start would do for any replica of these records."""
    return any(max(start_gaps(record), default=0.0) > 0 for record in records)


def has_objective_gap(records: Sequence[Record]) -> bool:
    """Whether the records are of an objective whose optimum is not the ELBO's."""
    return any(record.get("objective_gap") is not None or "objective_gap" in record["reasons"] for record in records)


def _start_gap(record: Record) -> str:
    """The median and the largest start gap over replicas."""
    middle, largest = record["start_gap"], max(start_gaps(record), default=math.nan)
    if middle is None or math.isnan(largest):
        return MISSING
    noise = uncertainty(record, "start_gap")
    return f"{three_digits(middle, noise)}, {three_digits(largest, noise)}"


def _nats(name: str) -> Callable[[Record], str]:
    return lambda record: nats(record[name])


def _decimals(name: str, decimals: int, factor: int = 1, unit: str = "") -> Callable[[Record], str]:
    """A fixed number of decimals, of `factor` times the value."""

    def text(record: Record) -> str:
        value = number(record[name])
        return f"{factor * value:.{decimals}f}{unit}" if math.isfinite(value) else three_digits(record[name])

    return text


# How the cells of a metric are written, where it is not by three significant digits.
CELLS: dict[str, Callable[[Record], str]] = {
    "elbo": _nats("elbo"),
    "family_gap": family_gap,
    "optimization_gap": optimization_gap,
    "coverage_90": _decimals("coverage_90", 1, factor=100, unit="%"),
    "khat": _decimals("khat", 2),
    "ess": _decimals("ess", 0),
    "iwae_bound": _nats("iwae_bound"),
    "importance_log_evidence": _importance,
}
GUIDE = Column(("", "guide"), _guide, left=True)
STATUS = Column(("", "status"), status_cell, left=True)
SPREAD = Column(("max-min over", "replicas"), _with_reason("reverse_kl", _spread))
KHATS = Column(("k-hat of 1,000", "and all draws"), _with_reason("khat", _khats))


START = Column(("start gap:", "median, max"), _with_reason("start_gap", _start_gap), is_needed=has_start_gap)
OBJECTIVE = Column(
    METRICS["objective_gap"].heading,
    _with_reason("objective_gap", _three_digits("objective_gap")),
    is_needed=has_objective_gap,
)


def title(record: Record) -> str:
    """The model or problem, its log evidence with its error, how that was computed, and how far it can be trusted."""
    several = f"the target poses {record['num_problems']} problems, numbered from 0: one for each row of its arguments"
    which = f" ({several})" if record["num_problems"] > 1 else ""
    why = f": {in_words(record['grade_reason'])}" if record["uncertified"] else ""
    how = f"by {record['method']}, {record['grade']}{why}"
    return f"{record['label']}{which}    {_evidence(record)}, {how}{_objective(record)}"


def short_title(record: Record) -> str:
    """The observation and its log evidence with its error."""
    return f"{record['label']}    {_evidence(record)}{_objective(record)}"


def _objective(record: Record) -> str:
    """What SVI maximised, where that is not the ELBO by its plain estimator."""
    name = record.get("objective") or "trace_elbo"
    return "" if name == "trace_elbo" else f"; SVI maximises {name}"


def _evidence(record: Record) -> str:
    evidence, error = number(record["log_evidence"]), uncertainty(record, "log_evidence")
    doubt = DOUBT if record["uncertified"] else ""
    return f"log p(x) = {evidence:.6f}{doubt} ± {short(error, 1) if error else '0'} nats"


@dataclass(frozen=True)
class Layout:
    """Which columns a table has, and how the table of a problem is titled.

    Attributes:
        title: gives the line above a problem's table.
        shown: the columns in order; a string is the name of a metric.
        is_full: whether metrics with a heading that no layout places are columns as well.
        first: the column of the guides, which each of several tables begins with.
        narrower: layouts that say the same in fewer characters, the widest first, for places where this one does not
            fit.
    """

    title: Callable[[Record], str]
    shown: tuple[Column | str, ...]
    is_full: bool = True
    first: Column = GUIDE
    narrower: tuple[Layout, ...] = ()

    def columns(self) -> tuple[Column, ...]:
        """All columns: those of the layout, then the metrics with a heading that no layout places."""
        return tuple(column if isinstance(column, Column) else metric_column(column) for column in self.all_shown())

    def all_shown(self) -> tuple[Column | str, ...]:
        """`shown`, and in a full layout the names of the metrics that have a heading and no place in any layout."""
        if not self.is_full:
            return self.shown
        placed = {*BY_OBSERVATION.shown, *BY_MODEL.shown, "start_gap", "objective_gap"}
        return (*self.shown, *(name for name, metric in METRICS.items() if metric.heading and name not in placed))


def metric_column(name: str) -> Column:
    """The column of a metric of the table."""
    metric, cell = METRICS[name], _with_reason(name, CELLS.get(name, _three_digits(name)))
    if metric.on_grid or metric.on_points or metric.on_draws:
        return Column(metric.heading, cell)
    return Column(metric.heading, cell, is_needed=lambda rows: any(row.get(name) is not None for row in rows))


# Problems that differ in one number, as the toy's observations do: their reader knows the model and has one latent.
BY_OBSERVATION = Layout(
    short_title,
    (
        STATUS, "elbo", "reverse_kl", SPREAD, "family_gap", START, "optimization_gap", OBJECTIVE, "forward_kl",
        "total_variation", "wasserstein", "mean_error", "sd_ratio", "coverage_90", "leaked_mass", "khat", "ess",
        "importance_log_evidence",
    ),
)  # fmt: skip
# Any model. Where it has several latent numbers, the marginal scores are those of the worst number.
BY_MODEL = Layout(
    title,
    (
        STATUS, "elbo", "reverse_kl", SPREAD, "family_gap", START, "optimization_gap", OBJECTIVE, "forward_kl",
        "mean_error", "sd_ratio", "relative_covariance_error", "wasserstein", "coverage_90", "leaked_mass", KHATS,
        "ess", "iwae_bound", "importance_log_evidence",
    ),
)  # fmt: skip
