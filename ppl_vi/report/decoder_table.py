"""The gaps of amortized guides as tables: a row for each figure, with its mean, interval, median and maximum.

There is a table for each guide and split of the data. Where log p(x) could not be certified, the table has bounds on
log p(x) and on the gaps instead, whose means carry a Monte Carlo error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ppl_vi.report import table
from ppl_vi.report.numbers import MISSING, nats, short, three_digits

Record = dict[str, Any]
ROWS = (
    ("log p(x)", "log_evidence"),
    ("ELBO", "elbo"),
    ("gap: log p(x) - ELBO", "total"),
    ("  of it the family (approximation)", "approximation"),
    ("  of it the encoder (amortization)", "amortization"),
    ("log p(x) - IWAE", "iwae_bias"),
    ("forward KL(p || q)", "forward_kl"),
    ("total variation (no unit)", "total_variation"),
    ("KL(q || prior)", "prior_kl"),
)
BOUNDS = (
    ("log p(x)", "log_evidence"),
    ("log p(x) by AIS, at least", "ais_lower"),
    ("log p(x) by IWAE, at least", "iwae"),
    ("ELBO", "elbo"),
    ("gap: log p(x) - ELBO", "total"),
    ("gap: log p(x) - ELBO, at least", "total_lower"),
    ("KL(q || prior)", "prior_kl"),
    ("AIS on simulated data: upper - lower", "sandwich_width"),
)
HEADINGS = ("mean", "95% interval", "median", "maximum")
# Figures of this size are shown with three decimals; the others are gaps, of which three significant digits are shown.
IN_NATS = ("log_evidence", "ais_lower", "iwae", "elbo", "prior_kl")


def show(records: Sequence[Record], console: Console) -> None:
    """Prints a table for each guide and split, in nats a data point."""
    for record in records:
        bounds = "ais_lower" in record
        console.print(_bounds_table(record) if bounds else _table(record), highlight=False, markup=False, emoji=False)
        remarks = _bounds_remarks(record) if bounds else _remarks(record)
        console.print(remarks, highlight=False, markup=False, emoji=False)
        console.print()


def as_text(records: Sequence[Record]) -> str:
    """The tables without colour, for a file."""
    return table.as_text(records, show)


def _table(record: Record) -> Table:
    title = f"{record['guide']}, {record['split']}: {record['num_certified']} data points of {_data(record)}"
    shown = _empty(title, HEADINGS)
    for text, name in ROWS:
        shown.add_row(text, *_cells(record, name))
    return shown


def _data(record: Record) -> str:
    """Which data were modelled, and on which scale: log densities depend on it."""
    noise = "" if record["sigma"] is None else f", sigma {three_digits(record['sigma'])}"
    return f"{record['data']}, {record['preparation']}{noise}"


def _bounds_table(record: Record) -> Table:
    title = f"{record['guide']}, {record['split']}: {_averaged(record)} data points of {_data(record)}, bounds"
    shown = _empty(title, (HEADINGS[0], "± error", *HEADINGS[1:]))
    for text, name in BOUNDS:
        if record[name] is None:
            continue
        mean, *others = _cells(record, name)
        error = record[name].get("std_error")
        shown.add_row(text, mean, MISSING if error is None else short(error, 2), *others)
    return shown


def _averaged(record: Record) -> int:
    """How many data points the figures of a table of bounds are averaged over."""
    return record["elbo"]["num"] if record["elbo"] else 0


def _empty(title: str, headings: Sequence[str]) -> Table:
    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    shown.add_column("nats a data point", min_width=36)
    for heading in headings:
        shown.add_column(heading, justify="right", min_width=10)
    return shown


def _cells(record: Record, name: str) -> list[str]:
    """Mean, interval, median and maximum of a figure."""
    cell = nats if name in IN_NATS else three_digits
    value = record[name]
    if value is None:
        return [MISSING] * len(HEADINGS)
    interval = f"{cell(value['low'])} to {cell(value['high'])}"
    return [cell(value["mean"]), interval, cell(value["median"]), cell(value["maximum"])]


def _remarks(record: Record) -> str:
    """What a reader of the table must know besides: errors, active units, and data points that are missing."""
    missing = record["num_points"] - record["num_certified"]
    families = record["approximation_by_family"]
    divergences = ", ".join(f"{value:.2f}" for value in record["kl_per_latent"])
    evidence, gap, forward, variation = (
        MISSING if record[name] is None else three_digits(record[name])
        for name in ("log_evidence_error", "reverse_kl_difference", "forward_kl_error", "total_variation_error")
    )
    noise = MISSING if record["iwae_std_error"] is None else short(record["iwae_std_error"], 2)
    lines = [
        f"active units {record['active_units']} of {record['latent_dim']}; KL per latent {divergences}; "
        f"IWAE with {record['num_particles']} particles, its mean ± {noise}",
        f"largest errors: log p(x) {evidence}, gap (by KL(q || p) on another lattice) {gap}, forward KL {forward}, "
        f"TV {variation}",
    ]
    known = {name: value for name, value in families.items() if value["approximation"] is not None}
    if len(known) > 1:
        each = ", ".join(f"{name} {three_digits(value['approximation']['mean'])}" for name, value in known.items())
        lines.append(f"with this decoder, log p(x) - ELBO of the best member: {each} (mean)")
    if missing:
        lines.append(f"{missing} of {record['num_points']} data points are not certified and not in these figures")
    for name, value in families.items():
        stuck = record["num_points"] - value["num_converged"]
        if stuck:
            lines.append(
                f"the search for the best {name} member did not converge for {stuck} data points: "
                "their approximation gap is an upper bound"
            )
    return "\n".join(lines)


def _bounds_remarks(record: Record) -> str:
    """What a reader of the bounds must know besides: how AIS went, active units, and data points that are missing."""
    width = record["sandwich_width"]
    lines = [f"{record['reason']}; these bounds hold on average, ± is the standard error of sampling"]
    if record["acceptance"] is not None:
        lines.append(
            f"AIS of {record['num_chains']} chains over {record['num_temperatures']} temperatures: "
            f"{record['acceptance']:.0%} accepted, weight on {record['effective_chains']:.1f} chains, "
            f"{record['least_effective_chains']:.1f} at least"
        )
    if width is not None:
        lines.append(
            f"on {width['num']} data points simulated from this model AIS's upper bound lies "
            f"{three_digits(width['mean'])} nats above its lower on average: what it may lack"
        )
    lines.append(
        f"active units {record['active_units']} of {record['latent_dim']}; "
        f"IWAE with {record['num_particles']} particles"
    )
    uncertified = record["num_points"] - record.get("num_certified", record["num_points"])
    if uncertified:
        lines.append(f"{uncertified} of {record['num_points']} data points are not certified and not in these figures")
    for what, known in (("data", record["num_finite"]), ("simulated", width["num"] if width else 0)):
        missing = record["num_points"] - known
        if missing:
            lines.append(f"{missing} of {record['num_points']} {what} points have no finite bound and are left out")
    return "\n".join(lines)
