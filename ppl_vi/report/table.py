"""A comparison's records as tables for a terminal: one problem after another, the nearest guide first.

A table is cut into several below each other where the terminal is too narrow for all its columns.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TextIO

from rich import box
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ppl_vi.comparison.comparison import Comparison
from ppl_vi.report.columns import (
    BY_MODEL,
    BY_OBSERVATION,
    SUPERSCRIPTS,
    Column,
    Footnotes,
    Layout,
    Record,
    has_objective_gap,
    has_start_gap,
    leaves_at_least,
)
from ppl_vi.report.numbers import number
from ppl_vi.report.plain_tables import for_encoding

WIDTH = 120  # characters, of tables that are not printed to a terminal
NOTEBOOK_WIDTH = 100  # and of those that are printed in a notebook, which breaks lines of more
COLUMN_GAP = 2  # characters between columns
STYLES = {
    "diverged": "red",
    "failed": "red",
    "not converged": "yellow",
    "leaks mass": "red",
    "far from best": "yellow",
    "skipped": "dim",
}
COUNT = re.compile(r"\d+/\d+ ")  # of replicas, before a status
# What stands below a table, and of which records.
REMARKS: tuple[tuple[str, Callable[[Sequence[Record]], bool]], ...] = (
    (
        "≤: searches for the family's best member ended in different optima or had not arrived at one, so that a "
        "better member may exist: the family gap is at most this.",
        lambda rows: any(row["family_gap_is_upper_bound"] for row in rows),
    ),
    (
        "≥: the optimum near the fit was not searched for, or that search had not arrived: the optimiser left at least "
        "this.",
        lambda rows: any(leaves_at_least(row) for row in rows),
    ),
    (
        "start gap: by how much the best optimum near the fit is worse than the family's best member: another "
        "start would help, more steps would not.",
        has_start_gap,
    ),
    (
        "objective gap: by how much the optimum of what SVI maximises is worse in reverse KL than that of the ELBO: "
        "another objective would help, more steps would not.",
        has_objective_gap,
    ),
)
UNCERTIFIED = "?: rests on the uncertified truth, so do not rely on it. What failed: {}."


def sort_key(record: Record) -> tuple[int, float, str]:
    """Sorts by reverse KL: finite ones first, then infinite ones, guides without a number, and skipped ones."""
    divergence = number(record["reverse_kl"])
    rank = 3 if record["status"] == "skipped" else 2 if math.isnan(divergence) else 1 if math.isinf(divergence) else 0
    return rank, divergence if rank == 0 else 0.0, record["guide"].lower()


def layout_of(comparison: Comparison) -> Layout:
    """The layout for a comparison: by observation where its problems have labels."""
    return BY_OBSERVATION if comparison.labels else BY_MODEL


def tables(
    records: Sequence[Record], width: int, layout: Layout = BY_MODEL, verdicts: Sequence[str] = ()
) -> Iterator[RenderableType]:
    """The problems one after another, each in as many tables as `width` asks for, and its footnotes.

    The verdict on each problem, where there are verdicts, stands above its table.
    """
    problems: dict[tuple[str, int], list[Record]] = {}
    for record in records:
        problems.setdefault((record["model"], record["problem"]), []).append(record)
    for i, rows in enumerate(problems.values()):
        yield _problem(sorted(rows, key=sort_key), width, layout, verdicts[i] if verdicts else "")


def _problem(rows: list[Record], width: int, layout: Layout, verdict: str) -> Group:
    notes, filled = _fitting(rows, width, layout)
    parts: list[RenderableType] = [Text(layout.title(rows[0]), style="bold")]
    parts += [Text(f"Remark: {remark}", style="yellow") for remark in rows[0]["remarks"]]
    parts += [Text(""), Text(verdict), Text("")] if verdict else [Text("")]
    parts.extend(Padding(_table([filled[0], *some]), (0, 0, 1, 0)) for some in packed(filled, width))
    parts.extend(Text(note) for note in notes_of(rows, notes))
    return Group(*parts, Text(""))


class Filled(NamedTuple):
    """A column and its texts, one for each row."""

    column: Column
    texts: list[str]

    @property
    def width(self) -> int:
        """Its characters."""
        return max(cell_len(line) for text in (*self.column.heading, *self.texts) for line in text.split("\n"))


def _fitting(rows: Sequence[Record], width: int, layout: Layout) -> tuple[Footnotes, list[Filled]]:
    """The columns, that of the guides first, of the widest layout that fits into one table, else of the narrowest."""
    for one in (layout, *layout.narrower):
        notes = Footnotes()
        columns = [one.first, *(column for column in one.columns() if column.is_needed(rows))]
        filled = [Filled(column, [column.cell(row, notes) for row in rows]) for column in columns]
        if len(packed(filled, width)) == 1:
            break
    return notes, filled


def notes_of(rows: Sequence[Record], notes: Footnotes) -> list[str]:
    """What stands below the table of a problem: its footnotes, remarks on marks, and what the truth assumes."""
    texts = [f"{i + 1} ".translate(SUPERSCRIPTS) + text for i, text in enumerate(notes.texts)]
    if rows[0]["uncertified"]:
        texts.append(UNCERTIFIED.format(rows[0]["grade_reason"] or "a check failed"))
    texts += [text for text, applies in REMARKS if applies(rows)]
    if rows[0]["assumptions"]:
        texts.append(f"The truth assumes: {'; '.join(rows[0]['assumptions'])}.")
    return texts


def packed(filled: Sequence[Filled], width: int) -> list[list[Filled]]:
    """The columns of each table, in order, without that of the guides: as many a table as fit beside the guides."""
    used = first = filled[0].width
    groups: list[list[Filled]] = [[]]
    for one in filled[1:]:
        wide = COLUMN_GAP + one.width
        if groups[-1] and used + wide > width:
            groups.append([])
            used = first
        groups[-1].append(one)
        used += wide
    return groups


def _table(filled: Sequence[Filled]) -> Table:
    padding = (0, COLUMN_GAP - 1, 0, 0)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=padding, pad_edge=False, header_style="")
    lines = max(len(column.heading) for column, _ in filled)
    first = 0 if any(column.heading[0] for column, _ in filled) else 1  # no line of headings is blank
    for column, _ in filled:
        heading = "\n".join((*[""] * (lines - len(column.heading)), *column.heading)[first:])
        table.add_column(heading, justify="left" if column.left else "right", no_wrap=True)
    for row in zip(*(texts for _, texts in filled), strict=True):
        table.add_row(*map(_styled, row))
    return table


def _styled(text: str) -> Text:
    return Text("\n").join(Text(line, style=_style(line.lstrip())) for line in text.split("\n"))


def _style(text: str) -> str:
    return next((style for word, style in STYLES.items() if COUNT.sub("", text, count=1).startswith(word)), "")


def terminal(stderr: bool = False) -> Console:
    """The console that tables are printed to: as wide as the terminal, or `WIDTH` where there is none.

    In a notebook it writes text to the stream like any other, instead of a display of rich's own.
    """
    if Console().is_jupyter:
        return for_encoding(Console(stderr=stderr, width=NOTEBOOK_WIDTH, force_jupyter=False))
    console = Console(stderr=stderr, force_jupyter=False)
    return for_encoding(console if console.is_terminal else Console(stderr=stderr, width=WIDTH, force_jupyter=False))


def show(records: Sequence[Record], console: Console, layout: Layout = BY_MODEL, verdicts: Sequence[str] = ()) -> None:
    """Prints the tables, as wide as the console."""
    for table in tables(records, console.width, layout, verdicts):
        console.print(table, highlight=False, markup=False, emoji=False)


def as_text(
    records: Sequence[Record],
    show: Callable[[Sequence[Record], Console], None] = show,
    width: int = WIDTH,
    stream: TextIO | None = None,
) -> str:
    """The tables that `show` prints, without colour, for a file; with a stream in signs that it can take."""
    with io.StringIO() as sink:
        console = Console(file=sink, width=width, force_terminal=False, force_jupyter=False, no_color=True)
        show(records, for_encoding(console, stream or sink))
        lines = sink.getvalue().splitlines()
    return "\n".join(line.rstrip() for line in lines) + "\n"
