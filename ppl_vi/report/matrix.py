"""Many models and many guides together: a table and a heat map of reverse KL with its two causes.

Models stand below each other and guides side by side; each cell says `reverse KL = family gap + optimization gap`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ppl_vi.report.columns import (
    Footnotes,
    Record,
    bound,
    doubted,
    family_gap,
    optimization_gap,
    uncertainty,
)
from ppl_vi.report.failures import in_words
from ppl_vi.report.numbers import MISSING, number, short, three_digits
from ppl_vi.report.style import DARK, DPI, LIGHT

COLOR_RANGE = (1e-4, 10.0)  # nats; a smaller or larger reverse KL has the colour of the end
# On cells that are darker than this share of the colour scale the text is white.
MIN_DARK = 0.62
GRADES = {"certified": "", "checked": " ✓", "uncertified": " ?"}
LEGEND = (
    "Each cell: reverse KL = family gap + optimization gap, nats, medians over replicas. The truth is in closed form "
    "or by a proved bound, checked (✓) by independent routes that agree, or uncertified (?)."
)


def show(records: Sequence[Record], console: Console) -> None:
    """Prints the table, cut into several below each other where the console is too narrow for all guides."""
    guides, names, cells, notes = _cells(records)
    first = max(map(len, names.values()))
    for some in _guides_by_table(guides, cells, console.width - first):
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="")
        for i, heading in enumerate(("model", *some)):
            table.add_column(heading, justify="right" if i else "left", no_wrap=True)
        for model, name in names.items():
            table.add_row(Text(name), *(Text(cells.get((model, guide), MISSING)) for guide in some))
        console.print(table)
        console.print()
    for text in tuple(notes.texts):
        console.print(Text(f"{notes.mark(text)} {text}"), highlight=False)
    console.print(Text(LEGEND), highlight=False)


def as_markdown(records: Sequence[Record]) -> str:
    """The table in Markdown, for a page, with its footnotes below."""
    guides, names, cells, notes = _cells(records)
    rows = [("model", *guides), ("---",) * (1 + len(guides))]
    rows += [(name, *(cells.get((model, guide), MISSING) for guide in guides)) for model, name in names.items()]
    table = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*table, *(f"\n{notes.mark(text)} {text}" for text in tuple(notes.texts))]) + "\n"


def _cells(
    records: Sequence[Record],
) -> tuple[list[str], dict[str, str], dict[tuple[str, str], str], Footnotes]:
    """The guides, the name of each model in the table, the cells by model and guide, and the footnotes."""
    notes = Footnotes()
    cells = {(r["model"], r["guide"]): cell(r, notes) for r in records}
    names = {r["model"]: _name(r, notes) for r in records}
    return list(dict.fromkeys(r["guide"] for r in records)), names, cells, notes


def _guides_by_table(guides: Sequence[str], cells: dict[tuple[str, str], str], room: int) -> list[list[str]]:
    """The guides of each table, in order: as many as fit into `room` characters."""
    groups: list[list[str]] = [[]]
    used = 0
    for guide in guides:
        wide = 2 + max(len(text) for text in (guide, *(text for (_, g), text in cells.items() if g == guide)))
        if groups[-1] and used + wide > room:
            groups.append([])
            used = 0
        groups[-1].append(guide)
        used += wide
    return groups


def _name(record: Record, notes: Footnotes) -> str:
    name = record["model"] + GRADES.get(record["grade"], "")
    reason = record["grade_reason"]
    return name + (notes.mark(f"{record['model']}: {in_words(reason)} ({reason})") if reason else "")


def cell(record: Record, notes: Footnotes) -> str:
    """`KL = family + optimization`, or why there is none.

    Where there is a start gap or an objective gap, `family + start (start) + optimization + objective (objective)`.
    """
    if record["reverse_kl"] is None:
        return record["status"] + notes.mark(f"{record['model']}, {record['guide']}: {record['reason']}")
    whole = three_digits(record["reverse_kl"], uncertainty(record, "reverse_kl"))
    values = [whole, family_gap(record), optimization_gap(record)]
    values = [doubted(value) for value in values] if record["uncertified"] else values
    start, objective = (_part(record, name) for name in ("start", "objective"))
    return f"{values[0]} = {values[1]}{start} + {values[2]}{objective}"


def _part(record: Record, name: str) -> str:
    """A gap that few records have, with its name; "" where it is none."""
    value = record.get(f"{name}_gap")
    return f" + {three_digits(value, uncertainty(record, f'{name}_gap'))} ({name})" if value else ""


def heat_map(records: Sequence[Record]) -> Figure:
    """Reverse KL as a colour and a number, with the family gap below it, for each model (row) and guide (column)."""
    models = list(dict.fromkeys(record["model"] for record in records))
    guides = list(dict.fromkeys(record["guide"] for record in records))
    at = {(record["model"], record["guide"]): record for record in records}
    values = np.array([[_color_value(at.get((model, guide))) for guide in guides] for model in models])
    size = max(6.5, 3.0 + 1.35 * len(guides)), max(3.0, 1.7 + 0.42 * len(models))
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    axes = figure.subplots()
    norm = LogNorm(*COLOR_RANGE, clip=True)
    image = axes.imshow(np.ma.masked_invalid(values), cmap="YlOrRd", norm=norm, aspect="auto")
    image.cmap.set_bad(LIGHT)
    for i, model in enumerate(models):
        for j, guide in enumerate(guides):
            dark = math.isfinite(values[i, j]) and float(norm(values[i, j])) > MIN_DARK
            axes.text(j, i, _text(at.get((model, guide))), ha="center", va="center", fontsize=7,
                      color="white" if dark else DARK)  # fmt: skip
    axes.set_xticks(range(len(guides)), guides, fontsize=8, rotation=20, ha="right")
    axes.set_yticks(range(len(models)), models, fontsize=8)
    axes.set_xticks(np.arange(1, len(guides)) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, len(models)) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label="reverse KL [nats]", shrink=0.8, extend="both")
    axes.set_title("Reverse KL to the posterior, nats; below it: the best that its family can do", fontsize=10)
    return figure


def _color_value(record: Record | None) -> float:
    value = number(record["reverse_kl"]) if record else math.nan
    return max(value, COLOR_RANGE[0]) if math.isfinite(value) else math.nan


def _text(record: Record | None) -> str:
    if record is None:
        return MISSING
    if record["reverse_kl"] is None:
        return f"{record['status']}\n(see table.txt)"
    fitted, best = (_two_digits(record, name) for name in ("reverse_kl", "family_gap"))
    return f"{fitted}\n{bound(best, '≤') if record['family_gap_is_upper_bound'] else best}"


def _two_digits(record: dict[str, Any], name: str) -> str:
    value, error = number(record[name]), uncertainty(record, name)
    if not math.isfinite(value) or abs(value) <= (0.0 if math.isnan(error) else error):
        return three_digits(record[name], error)
    return short(value, 2 if abs(value) < 99.5 else 3)  # 480 is as long as 4.8e2
