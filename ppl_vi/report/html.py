"""A comparison as a notebook shows it: title, verdict, table, notes and the figure of the gaps, as HTML."""

from __future__ import annotations

import io
import math
from html import escape
from typing import TYPE_CHECKING

from ppl_vi.comparison.comparison import Comparison
from ppl_vi.report.brief import brief
from ppl_vi.report.columns import GUIDE, Footnotes, Layout
from ppl_vi.report.numbers import number
from ppl_vi.report.table import layout_of, notes_of, sort_key
from ppl_vi.runtime.showing import paragraph, picture, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Figures(dict[str, "Figure"]):
    """Figures by name. A notebook shows all of them."""

    def _repr_html_(self) -> str:
        return "".join(f"<div>{picture(png_of(figure), name)}</div>" for name, figure in self.items())

    def __repr__(self) -> str:
        return f"<{len(self)} figures: {', '.join(self)}>"


def png_of(figure: Figure) -> bytes:
    """A figure as PNG."""
    with io.BytesIO() as held:
        figure.savefig(held, format="png")
        return held.getvalue()


def of_comparison(comparison: Comparison, verdict: str, layout: Layout | None = None) -> str:
    """The HTML of a comparison of one problem.

    Args:
        comparison: what is shown.
        verdict: stands above the table.
        layout: of the table; the brief one by default.
    """
    rows = sorted((entry.records[0] for entry in comparison.entries), key=sort_key)
    if not rows:
        return f"<div>{paragraph(f'{comparison.label(0)}: no guide is finished', bold=True)}</div>"
    layout, notes = layout or brief(layout_of(comparison)), Footnotes()
    columns = [GUIDE, *(column for column in layout.columns() if column.is_needed(rows))]
    cells = [[column.cell(row, notes) for column in columns] for row in rows]
    parts = [paragraph(layout.title(rows[0]).replace("    ", ": "), bold=True)]
    parts += [paragraph(f"Remark: {remark}") for remark in rows[0]["remarks"]]
    parts += [paragraph(verdict)] if verdict else []
    parts.append(table([column.heading for column in columns], cells, [column.left for column in columns]))
    texts = "".join(paragraph(text) for text in notes_of(rows, notes))
    parts.append(f"<details><summary>{escape('Notes')}</summary>{texts}</details>" if texts else "")
    return f"<div>{''.join(parts)}{_gaps(comparison)}</div>"


def _gaps(comparison: Comparison) -> str:
    """The figure of the gaps, where a guide has a reverse KL to split."""
    from ppl_vi.report.plots import gaps  # importing matplotlib takes a second

    if not any(math.isfinite(number(entry.records[0]["reverse_kl"])) for entry in comparison.entries):
        return ""
    return picture(png_of(gaps(comparison, 0)), "reverse KL of each guide, split into its causes")
