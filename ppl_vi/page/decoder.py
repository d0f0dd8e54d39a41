"""The page of the VAE benchmark: for each split of the data, the gaps of amortized guides."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ppl_vi.page import figures
from ppl_vi.page.comparison import described_run
from ppl_vi.page.parts import Cell, Heading, Page, Section, Table, number_cell
from ppl_vi.report.decoder_table import BOUNDS, IN_NATS, ROWS
from ppl_vi.report.gap_bars import Bar
from ppl_vi.report.numbers import MISSING, nats, short, three_digits

Record = dict[str, Any]
PARTS = ("family", "amortization")  # the parts of a gap, and the figures of a record that they are
FIGURES = ("approximation", "amortization")
FACTS = {"data": "data", "likelihood": "likelihood", "preparation": "preparation", "latent_dim": "latent numbers"}
TRAINING = {"best_epoch": "best epoch", "num_epochs": "epochs", "train_seconds": "seconds of training"}


def is_decoder(records: Sequence[Record]) -> bool:
    """Whether records are of the VAE benchmark."""
    return bool(records) and all("split" in record and "num_points" in record for record in records)


def page_of(records: Sequence[Record], held: Mapping[str, Any], extra: str = "") -> Page:
    """The page."""
    splits: dict[str, list[Record]] = {}
    for record in records:
        splits.setdefault(record["split"], []).append(record)
    first = records[0]
    facts = [(text, str(first[name])) for name, text in FACTS.items() if first.get(name) is not None]
    made = [*facts, *described_run({"grade": "", **first}, held)]
    lead = "How far amortized guides end from the exact posterior of each data point, and why. Nats a data point."
    sections = [_section(split, rows) for split, rows in splits.items()]
    return Page(f"VAE on {first['data']}", lead, sections, None, [pair for pair in made if pair[1]], extra)


def _section(split: str, rows: Sequence[Record]) -> Section:
    bars = [_bar(row) for row in rows]
    notes = [f"{row['guide']}: {row['reason']}" for row in rows if row.get("reason")]
    return Section(
        f"{split} data",
        [f"{rows[0]['num_points']:,} data points"],
        table=_table(rows),
        notes=[*notes, "Means over data points; all columns have their 95% bootstrap intervals, medians and maxima."],
        figures=[figures.gaps(bars)] if any(math.isfinite(bar.total) for bar in bars) else [],
    )


def _bar(row: Record) -> Bar:
    total = _mean(row, "total")
    if math.isnan(total):
        return Bar(row["guide"], math.nan, reason=str(row.get("reason") or "there are bounds alone"))
    known = {part: _mean(row, name) for part, name in zip(PARTS, FIGURES, strict=True)}
    parts = {part: value for part, value in known.items() if not math.isnan(value)}
    rest = total - sum(parts.values())
    parts |= {"not split": rest} if abs(rest) > 1e-9 * max(1.0, abs(total)) else {}
    texts = {part: three_digits(value) for part, value in parts.items()} | {"reverse KL": three_digits(total)}
    return Bar(row["guide"], total, parts, texts)


def _mean(row: Record, name: str) -> float:
    found = row.get(name)
    return float(found["mean"]) if found else math.nan


def _table(rows: Sequence[Record]) -> Table:
    shown = dict((name, text.strip()) for text, name in (*ROWS, *BOUNDS))
    needed = [name for name in shown if any(row.get(name) for row in rows)]
    headings = [Heading("guide", True), *(Heading(shown[name]) for name in needed)]
    for name in needed:
        headings += [Heading(f"{shown[name]}: {part}", is_more=True) for part in ("95% interval", "median", "maximum")]
    headings += [Heading(text, is_more=True) for text in TRAINING.values()]
    return Table(
        "Gaps of each guide",
        headings,
        [
            [Cell(row["guide"], row["guide"].lower())]
            + [_figure(row.get(name), name, "mean") for name in needed]
            + [one for name in needed for one in _spread(row.get(name), name)]
            + [_plain(row.get(name)) for name in TRAINING]
            for row in rows
        ],
        is_tool=True,
    )


def _text(value: float, name: str) -> str:
    return nats(value) if name in IN_NATS else three_digits(value)


def _figure(summary: dict[str, Any] | None, name: str, part: str) -> Cell:
    return number_cell(summary[part], _text(summary[part], name)) if summary else Cell(MISSING)


def _spread(summary: dict[str, Any] | None, name: str) -> list[Cell]:
    """The interval of the mean, and median and maximum over data points."""
    if not summary:
        return [Cell(MISSING)] * 3
    interval = f"{_text(summary['low'], name)} to {_text(summary['high'], name)}"
    return [number_cell(summary["low"], interval), _figure(summary, name, "median"), _figure(summary, name, "maximum")]


def _plain(value: Any) -> Cell:
    return Cell(MISSING) if value is None else number_cell(float(value), short(float(value), 4))
