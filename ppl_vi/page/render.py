"""Writes a page as one HTML file that needs nothing else: styles, script, data and Plotly's JavaScript stand in it.

Plotly draws the figures: it is maintained, installs from PyPI with its JavaScript inside, and takes colours from the
page's theme. Compressed it is 2 MB of the page, which the browser unpacks when the text is shown already; what a
screen reader needs stands beside each figure as a table.
"""

from __future__ import annotations

import base64
import gzip
import json
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from ppl_vi._version import __version__
from ppl_vi.page.charts import symbol_of
from ppl_vi.page.parts import Page
from ppl_vi.report.style import BLUE, DARK, GREY, LIGHT, LINE_COLORS, PART_COLORS, VERMILION

# In the dark theme the line that is dark grey would not be seen.
DARK_LINE = "#d9dde3"
BAND_ALPHA = "24"  # of 256, in hexadecimal


def html_of(page: Page) -> str:
    """The page as HTML."""
    template = _environment().get_template("page.html")
    plots: dict[str, Any] = {}
    return template.render(
        page=page,
        version=__version__,
        plot=lambda panel: _noted(plots, panel),
        plots=lambda: _script_json(plots),  # at the end of the page, when all are known
        plotly=lambda: plotly() if plots else "",
    )


def _noted(plots: dict[str, Any], panel: Any) -> str:
    """Keeps what a panel draws, and gives the name under which the script finds it."""
    name = f"plot{len(plots)}"
    plots[name] = {"data": panel.data, "layout": panel.layout}
    return name


@cache
def _environment() -> Environment:
    found = Environment(
        loader=PackageLoader("ppl_vi.page", "template"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.globals.update(style=_file("page.css"), script=_file("page.js"), colors=_colors(), symbol_of=symbol_of)
    return found


def _file(name: str) -> str:
    return resources.files("ppl_vi.page").joinpath("template", name).read_text(encoding="utf-8")


def _colors() -> dict[str, dict[str, str]]:
    """The colours of the figures in each theme, by name: those of `ppl_vi.report.style`."""
    lines = {f"line{i}": color for i, color in enumerate(LINE_COLORS)}
    parts = {**PART_COLORS, "not_split": GREY, "accent2": VERMILION}
    light = {**lines, **parts, "fill": LIGHT, "accent": BLUE}
    dark = {**light, f"line{LINE_COLORS.index(DARK)}": DARK_LINE, "fill": "#3d4654"}
    for theme in (light, dark):
        theme |= {f"band{i}": theme[f"line{i}"] + BAND_ALPHA for i in range(len(LINE_COLORS))}
    return {"light": light, "dark": dark}


def _script_json(value: Any) -> str:
    """JSON that can stand in a script: no text in it can end the script, or begin a comment."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@cache
def plotly() -> str:
    """Plotly's JavaScript, compressed, as text."""
    source = resources.files("plotly").joinpath("package_data", "plotly.min.js").read_bytes()
    return base64.b64encode(gzip.compress(source, 9, mtime=0)).decode("ascii")
