"""What all figures share: colours that colour-blind readers can tell apart, and pages laid out in inches.

A page has a heading above, panels in rows and columns, and notes below. Its margins are set by hand, because
matplotlib's layout engines take seconds for many panels. Names of guides and latents are the user's, so they are never
read as mathematics.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend

# Source of the eight colours without grey: Okabe and Ito (2008), Color universal design.
BLUE, SKY, GREEN = "#0072B2", "#56B4E9", "#009E73"
ORANGE, VERMILION, PURPLE = "#E69F00", "#D55E00", "#CC79A7"
GREY, LIGHT, DARK = "#8c8c8c", "#d4d4d4", "#333333"
# The parts of the reverse KL, which have the same colour in every figure.
PART_COLORS = {
    "family": BLUE,
    "start": GREEN,
    "optimization": ORANGE,
    "amortization": PURPLE,
    "objective": VERMILION,
}
# Lines of several guides in one panel: seven colours, first those that colour-blind readers tell apart best, then
# the same dashed, then dotted.
LINE_COLORS = (BLUE, ORANGE, DARK, SKY, VERMILION, GREEN, PURPLE)
LINE_STYLES = ("-", "--", ":")
MIN_LINE = 1.0  # points
# The ten digits. Source: Petroff (2021), Accessible color sequences for data visualization.
DIGIT_COLORS = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip

DPI = 130
MIN_WIDTH = 7.5  # inches, so that a heading has room above a single panel
NOTE_SIZE, AXIS_SIZE, HEADING_SIZE = 8, 10, 11  # points
POINTS_PER_INCH = 72
CHARACTER = 0.55  # the mean width of a character, as a multiple of the font's size
LINE_HEIGHT = 1.35  # of a line of text, as a multiple of the font's size


def plain(axes: Axes, *, label_size: float | None = None) -> None:
    """Removes the frame's upper and right lines, and sets the size of the ticks' labels if one is given."""
    axes.spines[["top", "right"]].set_visible(False)
    if label_size is not None:
        axes.tick_params(labelsize=label_size)


def line_style(number: int) -> dict[str, Any]:
    """The look of the line with this number, from 0; after 21 of them colours and dashes begin anew.

    Each line is thinner than the one before, so that a line which lies under another one is seen.
    """
    return {
        "linewidth": max(MIN_LINE, 2.6 - 0.4 * number),
        "color": LINE_COLORS[number % len(LINE_COLORS)],
        "linestyle": LINE_STYLES[number // len(LINE_COLORS) % len(LINE_STYLES)],
    }


def wrapped(text: str, inches: float, size: float) -> list[str]:
    """A text in lines of at most so many inches, at a font size in points."""
    wide = max(12, int(inches * POINTS_PER_INCH / (CHARACTER * size)))
    return textwrap.wrap(text, wide, break_on_hyphens=False) or [""]


def shortened(name: str, length: int) -> str:
    """A name of at most so many characters: without its middle where it is longer."""
    half = (length - 3) // 2
    return name if len(name) <= length else f"{name[:half]}...{name[-half:]}"


def height_of(num_lines: int, size: float) -> float:
    """The height of lines of text in inches, at a font size in points."""
    return num_lines * LINE_HEIGHT * size / POINTS_PER_INCH


@dataclass(frozen=True)
class Grid:
    """Panels in rows and columns, in inches.

    Attributes:
        columns: how many stand side by side.
        panel: the width and height of one.
        between: the room between two, across and down; down it holds the panels' titles.
        left, below: the room for the labels of the axes.
    """

    columns: int
    panel: tuple[float, float]
    between: tuple[float, float]
    left: float
    below: float
    right: float = 0.15


@dataclass(frozen=True)
class Page:
    """A figure and its panels, in order; `top` is where the room above the panels begins, in inches from below."""

    figure: Figure
    panels: tuple[Axes, ...]
    top: float


def page(
    num_panels: int,
    grid: Grid,
    heading: str,
    notes: Sequence[str] = (),
    *,
    names: tuple[str, str] = ("", ""),
    above: float = 0.0,
    share: bool = False,
) -> Page:
    """A figure with a heading, panels, and notes; the panels that are not needed are left out.

    Args:
        num_panels: how many panels are needed.
        grid: how they are laid out.
        heading: the text above all.
        notes: texts below all; each begins a line.
        names: of the x and of the y axis, once for all panels.
        above: the height in inches that is kept free between heading and panels, as for a legend.
        share: whether the panels share both axes.
    """
    columns = min(grid.columns, max(num_panels, 1))
    rows = max(1, math.ceil(num_panels / columns))
    width = max(MIN_WIDTH, grid.left + columns * (grid.panel[0] + grid.between[0]) - grid.between[0] + grid.right)
    head = wrapped(heading, width - 0.3, HEADING_SIZE)
    foot = [line for note in notes for line in wrapped(note, width - 0.3, NOTE_SIZE)]
    floor = 0.08 + (height_of(len(foot), NOTE_SIZE) + 0.08 if foot else 0.0)  # below it are the notes
    bottom = floor + grid.below
    top = bottom + rows * (grid.panel[1] + grid.between[1]) + above
    figure = Figure(figsize=(width, top + height_of(len(head), HEADING_SIZE) + 0.1), dpi=DPI)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=share, sharey=share)
    _spaced(figure, grid, (rows, columns), bottom)
    for unused in axes.flat[num_panels:]:
        unused.set_axis_off()
    for lowest in axes.flat[max(0, num_panels - columns) : num_panels]:
        lowest.tick_params(labelbottom=True)
    _text(figure, (width / 2, top + 0.03), "\n".join(head), HEADING_SIZE, ha="center", va="bottom")
    _text(figure, (0.15, 0.08), "\n".join(foot), NOTE_SIZE, va="bottom", linespacing=1.25)
    _text(figure, ((width + grid.left - grid.right) / 2, floor), names[0], AXIS_SIZE, ha="center", va="bottom")
    _text(figure, (0.08, (bottom + top - above) / 2), names[1], AXIS_SIZE, rotation=90, va="center")
    return Page(figure, tuple(axes.flat[:num_panels]), top)


def _spaced(figure: Figure, grid: Grid, shape: tuple[int, int], bottom: float) -> None:
    """Sets the margins of panels in `shape` rows and columns; each row has its room for titles above it."""
    width, height = figure.get_size_inches()
    rows, columns = shape
    wide = (width - grid.left - grid.right - (columns - 1) * grid.between[0]) / columns
    figure.subplots_adjust(
        left=grid.left / width,
        right=1 - grid.right / width,
        bottom=bottom / height,
        top=(bottom + rows * (grid.panel[1] + grid.between[1]) - grid.between[1]) / height,
        wspace=grid.between[0] / wide,
        hspace=grid.between[1] / grid.panel[1],
    )


def _text(figure: Figure, at: tuple[float, float], text: str, size: float, **options: Any) -> None:
    """Writes a text at a place in inches from below on the left."""
    width, height = figure.get_size_inches()
    if text:
        figure.text(at[0] / width, at[1] / height, text, fontsize=size, color=DARK, parse_math=False, **options)


def legend(figure: Figure, handles: Sequence[Artist], labels: Sequence[str], top: float, columns: int) -> Legend:
    """A legend whose upper edge is at `top` inches, with every label as it stands, also where it begins with `_`."""
    _, height = figure.get_size_inches()
    made = figure.legend(
        handles,
        labels,
        loc="upper center",
        bbox_to_anchor=(0.5, top / height),
        ncols=columns,
        frameon=False,
        fontsize=NOTE_SIZE,
        borderaxespad=0,
    )
    for text in made.get_texts():
        text.set_parse_math(False)
    return made


def legend_height(labels: Sequence[str], columns: int) -> float:
    """The height in inches of a legend of so many columns, whose labels may have several lines."""
    lines = [1 + label.count("\n") for label in labels]
    rows = -(-len(lines) // columns)
    return max(height_of(sum(lines[i : i + rows]), NOTE_SIZE) for i in range(0, len(lines), rows)) + 0.03 * rows + 0.05
