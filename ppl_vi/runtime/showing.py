"""How results are shown at a prompt and in a notebook: a line for `repr`, a small table as HTML.

The HTML sets no colours, so that it can be read on a light page and on a dark one, and every text in it is escaped.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import fields
from html import escape
from typing import Any

LONGEST_TEXT = 60  # characters of a text in a short repr
MOST_NUMBERS = 8  # of an array that is shown as such
CELL = "padding: 0.15em 0.8em 0.15em 0; border: none; background: none; text-align: {align}; vertical-align: top"
TABLE = "border-collapse: collapse; border: none; margin: 0.5em 0; font-variant-numeric: tabular-nums"


class Summarized:
    """A result whose `repr` is a line, and which a notebook shows as a table: from `heading` and `summary`."""

    def heading(self) -> str:
        """What it is of, such as `Fit of AutoNormal to eight_schools`."""
        raise NotImplementedError

    def summary(self) -> Mapping[str, str]:
        """What there is to tell in a line: by the name of each thing, in words."""
        raise NotImplementedError

    def __repr__(self) -> str:
        told = ", ".join(f"{name} {text}" if name else text for name, text in self.summary().items() if text)
        return f"<{self.heading()}: {told}>"

    def _repr_html_(self) -> str:
        rows = [(name, text) for name, text in self.summary().items() if text]
        return f"<div>{paragraph(self.heading(), bold=True)}{table((), rows)}</div>"


def short_repr(self: Any) -> str:
    """A `__repr__` for a dataclass that holds arrays: their shapes stand for them."""
    parts = (f"{field.name}={shortened(getattr(self, field.name))}" for field in fields(self) if field.repr)
    return f"{type(self).__name__}({', '.join(parts)})"


def shortened(value: Any) -> str:
    """A value in few characters: an array as its shape, a long text cut, a collection as its length."""
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple):
        size = 1
        for length in shape:
            size *= length
        return repr(value) if size <= MOST_NUMBERS else f"<{type(value).__name__} of shape {tuple(shape)}>"
    if isinstance(value, str):
        return repr(value if len(value) <= LONGEST_TEXT else f"{value[: LONGEST_TEXT - 1]}…")
    if isinstance(value, list | tuple | dict | set | frozenset):
        num = len(value)
        return f"<{type(value).__name__} of {num}>" if num else repr(value)
    text = repr(value)
    return text if len(text) <= LONGEST_TEXT else f"<{type(value).__name__}>"


def paragraph(text: str, *, bold: bool = False) -> str:
    """A paragraph of plain text as HTML."""
    inner = escape(text)
    return f'<p style="max-width: 60em; margin: 0.4em 0">{f"<b>{inner}</b>" if bold else inner}</p>'


def table(headings: Sequence[Sequence[str]], rows: Sequence[Sequence[str]], left: Sequence[bool] = ()) -> str:
    """A table as HTML.

    Args:
        headings: the lines of each column's heading; () for a table without headings.
        rows: the texts of each row.
        left: whether each column is aligned to the left; all are by default.
    """
    align = ["left" if on else "right" for on in left] or ["left"] * max(map(len, rows), default=0)
    head = "".join(
        f'<th style="{CELL.format(align=side)}; border-bottom: 1px solid">{"<br>".join(map(escape, lines))}</th>'
        for lines, side in zip(headings, align, strict=False)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f'<td style="{CELL.format(align=side)}">{escape(text)}</td>' for text, side in zip(row, align, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return f'<table style="{TABLE}">{f"<thead><tr>{head}</tr></thead>" if head else ""}<tbody>{body}</tbody></table>'


def picture(png: bytes, description: str) -> str:
    """A PNG as HTML that holds it."""
    data = base64.b64encode(png).decode()
    return f'<img alt="{escape(description)}" src="data:image/png;base64,{data}" style="max-width: 100%">'
