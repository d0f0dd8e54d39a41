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
MOST_TICKS, FEW_DECADES = 6, 2.2  # of a logarithmic axis; below so many decades it has ticks at 2 and 5, too
SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")

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
    return {"color": f"@line{number % len(LINE_COLORS)}", "symbol": symbol_of(number), "size": 11}


def symbol_of(number: int) -> str:
    """The symbol of the guide with this number: with its colour, another one for each of 49."""
    return SYMBOLS[(number + number // len(LINE_COLORS)) % len(SYMBOLS)]


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
    """A logarithmic axis around positive values."""
    low, high = (math.log10(min(values)), math.log10(max(values))) if values else (-1.0, 1.0)
    margin = max(0.15, 0.08 * (high - low))
    low, high = low - margin, high + margin
    found = {"type": "log", "range": [low, high], **_log_ticks(low, high)}
    return axis(title, **(found | more))


def _log_ticks(low: float, high: float) -> dict[str, Any]:
    """Ticks at powers of ten, also at 2 and 5 times these where few lie between the two; their texts."""
    stride = max(1, round((high - low) / MOST_TICKS))
    powers = [10.0**k for k in range(math.ceil(low), math.floor(high) + 1) if k % stride == 0]
    if high - low < FEW_DECADES:
        each = [factor * 10.0**k for k in range(math.floor(low), math.ceil(high) + 1) for factor in (1, 2, 5)]
        powers = [value for value in each if low <= math.log10(value) <= high]
    return {"tickvals": powers, "ticktext": [_tick(value) for value in powers]} if len(powers) > 1 else {"nticks": 4}


def _tick(value: float) -> str:
    if 1e-3 <= value < 1e6:
        return f"{value:,.0f}" if value >= 1 else f"{value:g}"
    factor, exponent = f"{value:.0e}".split("e")
    power = f"10{str(int(exponent)).translate(SUPERSCRIPTS)}"
    return power if factor == "1" else f"{factor}·{power}"


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
