"""Traces and layouts of Plotly that all pages share. Its JavaScript needs no import: a trace is a plain dict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from ppl_vi.report.style import LINE_COLORS

DASHES = ("solid", "dash", "dot")  # as `style.LINE_STYLES`
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star")
MIN_WIDTH = 1.5  # CSS pixels

Trace = dict[str, Any]


def said(text: str) -> str:
    """A text for Plotly, which takes tags such as <b> for markup."""
    return escape(text, quote=False)


def line_look(number: int) -> dict[str, Any]:
    """The look of the line with this number, as `style.line_style` has it in the figures."""
    return {
        "color": f"@line{number % len(LINE_COLORS)}",
        "dash": DASHES[number // len(LINE_COLORS) % len(DASHES)],
        "width": max(MIN_WIDTH, 2.6 - 0.2 * number),
    }


def marker_look(number: int) -> dict[str, Any]:
    """The look of the mark of the guide with this number."""
    symbol = SYMBOLS[(number + number // len(LINE_COLORS)) % len(SYMBOLS)]
    return {"color": f"@line{number % len(LINE_COLORS)}", "symbol": symbol, "size": 11}


def line(name: str, number: int, x: Sequence[Any], y: Sequence[Any], **more: Any) -> Trace:
    """A guide's curve."""
    return {
        "type": "scatter", "mode": "lines", "name": said(name), "meta": number, "x": list(x), "y": drawable(y),
        "line": line_look(number), "hoverlabel": {"namelength": -1}, **more,
    }  # fmt: skip


def band(number: int, x: Sequence[Any], low: Sequence[Any], high: Sequence[Any]) -> list[Trace]:
    """The range that belongs to a guide's curve, as two edges with the room between them filled."""
    shared = {
        "type": "scatter", "mode": "lines", "meta": number, "x": list(x), "hoverinfo": "skip",
        "line": {"width": 0, "color": f"@line{number % len(LINE_COLORS)}"},
    }  # fmt: skip
    fill = {"fill": "tonexty", "fillcolor": f"@band{number % len(LINE_COLORS)}"}
    return [{**shared, "y": drawable(low)}, {**shared, **fill, "y": drawable(high)}]


def point(name: str, number: int, x: float, y: float, hover: str) -> Trace:
    """A guide's mark."""
    return {
        "type": "scatter", "mode": "markers", "name": said(name), "x": [x], "y": [y], "marker": marker_look(number),
        "text": [said(hover)], "hovertemplate": "%{text}<extra></extra>",
    }  # fmt: skip


def drawable(values: Sequence[Any]) -> list[float | None]:
    """Values of which those that can't be drawn are gaps: missing and infinite ones."""
    numbers = [None if value is None else float(value) for value in values]
    return [value if value is not None and math.isfinite(value) else None for value in numbers]


def axis(title: str, **more: Any) -> dict[str, Any]:
    """An axis with a title."""
    return {"title": {"text": said(title)}, **more}


def log_axis(title: str, values: Sequence[float], **more: Any) -> dict[str, Any]:
    """A logarithmic axis around positive values, which names no more than the powers of ten where it spans several."""
    low, high = (math.log10(min(values)), math.log10(max(values))) if values else (-1.0, 1.0)
    margin = max(0.12, 0.06 * (high - low))
    ticks = {"dtick": max(1, round((high - low) / 6))} if high - low > 1.5 else {"nticks": 6}
    found = {"type": "log", "range": [low - margin, high + margin], "exponentformat": "power", **ticks}
    return axis(title, **(found | more))


def level(text: str, y: float, color: str = "@accent2") -> dict[str, Any]:
    """A dashed horizontal line with its name, as parts of a layout."""
    shape = {
        "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y,
        "line": {"color": color, "dash": "dash", "width": 1.5},
    }  # fmt: skip
    name = {
        "xref": "paper", "x": 1, "xanchor": "right", "y": y, "yanchor": "bottom", "text": said(text),
        "showarrow": False, "font": {"color": "@ink"},
    }  # fmt: skip
    return {"shapes": [shape], "annotations": [name]}
