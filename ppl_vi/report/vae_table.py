"""The gaps of amortized guides as a table: one row a figure, mean with its interval, median and maximum."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ppl_vi.report.numbers import MISSING, nats, three_digits
from ppl_vi.report.table import WIDTH

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
HEADINGS = ("mean", "95% interval", "median", "maximum")
PLAIN = ("log_evidence", "elbo", "prior_kl")  # figures of some nats; the others are gaps, shown by significant digits


def show(records: Sequence[Record], console: Console) -> None:
    """Prints a table a guide and split, nats a data point."""
    for record in records:
        console.print(_table(record), highlight=False, markup=False, emoji=False)
        console.print(_remarks(record), highlight=False, markup=False, emoji=False)
        console.print()


def as_text(records: Sequence[Record]) -> str:
    """The tables without colour, for a file."""
    with io.StringIO() as sink:
        show(records, Console(file=sink, width=WIDTH, force_terminal=False, no_color=True))
        return "\n".join(line.rstrip() for line in sink.getvalue().splitlines()) + "\n"


def _table(record: Record) -> Table:
    title = f"{record['guide']}, {record['split']}: {record['num_certified']} data points of {record['data']}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("nats a data point", min_width=36)
    for heading in HEADINGS:
        table.add_column(heading, justify="right", min_width=10)
    for text, name in ROWS:
        cell = nats if name in PLAIN else three_digits
        value = record[name]
        if value is None:
            table.add_row(text, *([MISSING] * len(HEADINGS)))
            continue
        interval = f"{cell(value['low'])} to {cell(value['high'])}"
        table.add_row(text, cell(value["mean"]), interval, cell(value["median"]), cell(value["maximum"]))
    return table


def _remarks(record: Record) -> str:
    """What else bears on how to read the table."""
    missing = record["num_points"] - record["num_certified"]
    divergences = ", ".join(f"{value:.2f}" for value in record["kl_per_latent"])
    error = three_digits(record["log_evidence_error"])
    lines = [
        f"active units {record['active_units']} of {record['latent_dim']}; KL per latent {divergences}; "
        f"IWAE with {record['num_particles']} particles; largest error of a log p(x) {error} nats"
    ]
    if missing:
        lines.append(f"{missing} of {record['num_points']} data points are not certified and not in these figures")
    stuck = record["num_points"] - record["num_converged"]
    if stuck:
        lines.append(
            f"the search for the family's best did not converge for {stuck} data points: "
            "their approximation gap is an upper bound"
        )
    return "\n".join(lines)
