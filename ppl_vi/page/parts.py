"""What a page is made of: sections with tables and figures, as plain data that the template shows.

All texts are plain; the template escapes them. A colour is the name of one of the page's own, such as `@line0`, which
the page's script replaces by that of the theme.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ppl_vi.report.numbers import MISSING

NUMBER = re.compile(r"[-−]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?")
MOST_UNFOLDED = 4  # sections of a page whose figures are shown at once
INFINITE = 1e308  # what an infinite number is sorted by


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its text, what it is sorted by, and its tone: "good", "warn", "bad" or ""."""

    text: str
    key: float | str | None = None
    tone: str = ""


@dataclass(frozen=True)
class Heading:
    """A heading of a table; `is_more` columns are shown on demand."""

    text: str
    is_left: bool = False
    is_more: bool = False


@dataclass(frozen=True)
class Table:
    """A table. Its first column names the rows. `is_tool` is whether it can be sorted and filtered."""

    caption: str
    headings: Sequence[Heading]
    rows: Sequence[Sequence[Cell]]
    is_tool: bool = False

    @property
    def has_more(self) -> bool:
        """Whether some columns are shown on demand."""
        return any(heading.is_more for heading in self.headings)


@dataclass(frozen=True)
class Panel:
    """One plot: Plotly's traces and layout. `title` stands above it, `height` is in CSS pixels."""

    title: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    height: int = 300


@dataclass(frozen=True)
class Guide:
    """A guide as the choice of guides names it: with the number of its line, and whether that is shown at first."""

    name: str
    line: int
    is_shown: bool


@dataclass(frozen=True)
class Figure:
    """Plots with one heading.

    Attributes:
        title: the heading.
        caption: what there is to see, in a sentence or two.
        panels: the plots.
        table: the same in numbers, for those who can't see the plots.
        num_open: how many panels are shown at once; the others are folded.
        is_wide: whether a panel takes the whole width.
        has_lines: whether its lines follow the section's choice of guides.
        marks: the guides whose marks it shows, for the key above it.
    """

    title: str
    caption: str
    panels: Sequence[Panel]
    table: Table
    num_open: int = 9
    is_wide: bool = True
    has_lines: bool = False
    marks: Sequence[Guide] = ()


@dataclass(frozen=True)
class Section:
    """A part of the page, with an entry in its contents. `draws` has what is measured of draws from other systems."""

    title: str
    facts: Sequence[str] = ()
    verdict: str = ""
    warnings: Sequence[str] = ()
    table: Table | None = None
    notes: Sequence[str] = ()
    guides: Sequence[Guide] = ()
    figures: Sequence[Figure] = ()
    failures: Table | None = None
    draws: Table | None = None
    draws_notes: Sequence[str] = ()


@dataclass(frozen=True)
class Page:
    """The whole page. `made` says how the results came about, by name; `extra` is HTML that stands before it."""

    title: str
    lead: str
    sections: Sequence[Section]
    overview: Table | None = None
    made: Sequence[tuple[str, str]] = ()
    extra: str = ""
    warnings: Sequence[str] = ()

    @property
    def is_long(self) -> bool:
        """Whether there are so many sections that their figures are folded."""
        return len(self.sections) > MOST_UNFOLDED


def cell(text: str, *, is_text: bool = False, tone: str = "") -> Cell:
    """A cell that is sorted by the first number in its text, or by the text itself; a missing number comes last."""
    if is_text:
        return Cell(text, text.lower(), tone)
    return Cell(text, key_of(text), tone)


def number_cell(value: float | None, text: str) -> Cell:
    """A cell that is sorted by a number."""
    if value is None or math.isnan(value):
        return Cell(MISSING)
    return Cell(text, max(-INFINITE, min(INFINITE, value)))


def key_of(text: str) -> float | None:
    """The first number in a text, None where there is none."""
    bare = text.lstrip("≤≥< ")
    if bare.startswith(("inf", "-inf")):
        return INFINITE if bare.startswith("inf") else -INFINITE
    found = NUMBER.match(bare)
    return float(found.group().replace(",", "").replace("−", "-")) if found else None
