"""The figures of a comparison: marginals, gaps, ELBO against steps, diagnostics beside the truth, and cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ppl_vi.page.charts import axis, band, drawable, level, line, log_axis, point, said
from ppl_vi.page.draws import is_of_draws
from ppl_vi.page.parts import Cell, Figure, Guide, Heading, Panel, Table, cell
from ppl_vi.report.brief import in_seconds, seconds_of
from ppl_vi.report.columns import Record, uncertainty
from ppl_vi.report.gap_bars import MEANINGS, UNKNOWN, Bar, axis_end
from ppl_vi.report.numbers import MISSING, nats, number, three_digits
from ppl_vi.report.plots import ELBO_CUT, ELBO_ROOM, MIN_DRAWN, MIN_ELBO_SPAN

# Above it, importance sampling with the guide is not to be relied on. Source: Vehtari et al. (2024), Pareto smoothed
# importance sampling.
KHAT_LIMIT = 0.7
ROWS_OF_STEPS = 12  # in the table of a figure against steps
BAR_ROW = 44  # CSS pixels of a guide's row in the figure of the gaps
DENSITY_ROOM = 1.6  # a panel of densities ends at this many times the posterior's peak

Problem = dict[str, Any]  # a problem of `ppl_vi.report.page_data`


def marginals(problem: Problem, rows: Sequence[Record], guides: Sequence[Guide]) -> Figure | None:
    """The posterior's density of each latent number, and those of the guides."""
    numbers, curves = problem["numbers"], problem["guides"]
    if not numbers:
        return None
    few = len(numbers) < 3
    panels = [_marginal(k, one, curves, guides, 340 if few else 230) for k, one in enumerate(numbers)]
    drawn = [row for row in rows if row["guide"] in curves]
    of_draws = [is_of_draws(row) for row in drawn]
    lines = "the guides, each by its replica of median reverse KL" + (", and draws" if any(of_draws) else "")
    caption = (
        f"Filled: the exact posterior. Lines: {'densities of the draws' if all(of_draws) else lines}. "
        + " ".join(problem["notes"])
    )
    return Figure(
        "Posterior and draws" if all(of_draws) else "Posterior and guides",
        caption.strip(),
        panels,
        _marginal_table(rows),
        is_wide=len(numbers) == 1,
        has_lines=True,
    )


def _marginal(k: int, one: dict[str, Any], curves: Problem, guides: Sequence[Guide], height: int) -> Panel:
    posterior = drawable(one["posterior"])
    top = DENSITY_ROOM * max((value for value in posterior if value is not None), default=0.0)
    filled = {
        "type": "scatter", "mode": "lines", "name": "posterior", "x": one["z"], "y": posterior, "fill": "tozeroy",
        "fillcolor": "@fill", "line": {"width": 0, "color": "@fill"},
    }  # fmt: skip
    lines = [
        line(guide.name, guide.line, one["z"], curves[guide.name]["density"][k])
        for guide in reversed(guides)  # the nearest on top
        if guide.name in curves
    ]
    layout = {
        "xaxis": axis("", range=[one["z"][0], one["z"][-1]], nticks=6),
        "yaxis": axis("", range=[0, top or 1.0], nticks=4, rangemode="tozero"),
    }
    return Panel(one["name"], [filled, *lines], layout, height)


def _marginal_table(rows: Sequence[Record]) -> Table:
    names = {
        "mean_error": "error of the mean [sd]", "sd_ratio": "sd, as a multiple", "wasserstein": "Wasserstein distance",
        "coverage_90": "coverage of the 90% interval",
    }  # fmt: skip
    headings = [Heading("guide", True), Heading("latent", True), *map(Heading, names.values())]
    found = [
        [cell(row["guide"], is_text=True), cell(part["name"], is_text=True)]
        + [cell(three_digits(part.get(name), uncertainty(part, name))) for name in names]
        for row in rows
        for part in row["marginals"]
    ]
    return Table("Each guide's marginals beside the posterior's", headings, found)


def gaps(bars: Sequence[Bar]) -> Figure:
    """Reverse KL as stacked bars on a linear axis, made of its causes."""
    end = axis_end(bars)
    parts = [part for part in MEANINGS if any(bar.parts.get(part) for bar in bars)]
    if any(UNKNOWN in bar.parts for bar in bars):
        parts.append(UNKNOWN)
    data = [_bar_trace(part, bars, end) for part in parts]
    names = [_bar_name(bar, i, end) for i, bar in enumerate(bars)]
    layout = {
        "barmode": "relative", "bargap": 0.55, "showlegend": True, "annotations": names,
        "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "traceorder": "normal"},
        "xaxis": axis("reverse KL [nats]", range=[0, end * 1.02], rangemode="tozero"),
        "yaxis": {"range": [len(bars) - 0.4, -0.9], "visible": False, "fixedrange": True},
        "margin": {"t": 44},
    }  # fmt: skip
    caption = "How far each guide is from the posterior, and why. " + " ".join(
        f"{meaning[0].upper()}{meaning[1:]}." for part, meaning in MEANINGS.items() if part in parts
    )
    return Figure(
        "Gaps by cause", caption, [Panel("", data, layout, 100 + BAR_ROW * len(bars))], _gap_table(bars, parts)
    )


def _bar_trace(part: str, bars: Sequence[Bar], end: float) -> dict[str, Any]:
    shown = [bar if math.isfinite(bar.total) else None for bar in bars]
    values = [bar.parts.get(part) if bar else None for bar in shown]
    hover = [said(f"{bar.name}: {part} {bar.texts.get(part, MISSING)} nats") for bar in bars]
    patterns = ["/" if bar and part in bar.bounds else "" for bar in shown]
    pattern = {"shape": patterns, "fillmode": "overlay", "fgcolor": "@paper", "size": 6}
    marker = {"color": f"@{part.replace(' ', '_')}", "pattern": pattern}
    return {
        "type": "bar", "orientation": "h", "name": f"{part} gap" if part in MEANINGS else part, "x": drawable(values),
        "y": list(range(len(bars))), "marker": marker, "text": hover, "textposition": "none",
        "hovertemplate": "%{text}<extra></extra>",
    }  # fmt: skip


def _bar_name(bar: Bar, place: int, end: float) -> dict[str, Any]:
    """A guide's name above its bar, with its reverse KL or why there is none."""
    tail = f"{bar.texts['reverse KL']} nats" if "reverse KL" in bar.texts else bar.reason.partition(":")[0]
    if bar.reason and "reverse KL" in bar.texts:
        tail += f": {bar.reason}"
    if math.isfinite(bar.total) and bar.total > end:
        tail += ", longer than this axis"
    return {
        "xref": "paper", "x": 0, "xanchor": "left", "y": place - 0.28, "yanchor": "bottom", "showarrow": False,
        "text": f"<b>{said(bar.name)}</b>  {said(tail)}", "font": {"size": 12},
    }  # fmt: skip


def _gap_table(bars: Sequence[Bar], parts: Sequence[str]) -> Table:
    headings = [Heading("guide", True), Heading("reverse KL [nats]"), *map(Heading, parts), Heading("remark", True)]
    rows = [
        [cell(bar.name, is_text=True)]
        + [cell(bar.texts.get(part, MISSING)) for part in ("reverse KL", *parts)]
        + [cell(bar.reason, is_text=True)]
        for bar in bars
    ]
    return Table("Reverse KL of each guide and its parts, in nats", headings, rows)


def elbos(problem: Problem, rows: Sequence[Record], guides: Sequence[Guide]) -> Figure | None:
    """ELBO against SVI steps, under the line of log p(x)."""
    ways = {name: held for name, held in problem["guides"].items() if held["steps"]}
    if not ways:
        return None
    evidence = number(rows[0]["log_evidence"])
    elbo = {name: evidence - np.array([list(map(number, one)) for one in ways[name]["reverse_kl"]]) for name in ways}
    ends = sorted(evidence - float(np.median(way[:, -1])) for way in elbo.values() if np.isfinite(way[:, -1]).all())
    middle = ends[(len(ends) - 1) // 2] if ends else 0.0
    span = max(MIN_ELBO_SPAN, ELBO_ROOM * max((end for end in ends if end <= ELBO_CUT * middle), default=0.0))
    data = []
    for guide in reversed([guide for guide in guides if guide.name in ways]):
        steps, way = ways[guide.name]["steps"], elbo[guide.name]
        data += band(guide.line, steps, way.min(0).tolist(), way.max(0).tolist()) if len(way) > 1 else []
        mode = "lines" if len(steps) > 1 else "markers"
        data.append(line(guide.name, guide.line, steps, np.median(way, 0).tolist(), mode=mode))
    last = max(held["steps"][-1] for held in ways.values())
    first = min(held["steps"][0] for held in ways.values())
    layout = {
        "xaxis": log_axis("SVI steps", [first, last]),
        "yaxis": axis("ELBO [nats]", range=[evidence - span, evidence + 0.12 * span]),
        **level(f"log p(x) = {nats(evidence)}", evidence),
    }
    caption = (
        "The ELBO can't exceed log p(x); what is missing is the reverse KL. Line and band: the median and the range of "
        "the best, the middle and the worst replica."
    )
    table = _steps_table(ways, elbo)
    return Figure("ELBO against steps", caption, [Panel("", data, layout, 380)], table, has_lines=True)


def _steps_table(ways: Problem, elbo: dict[str, np.ndarray]) -> Table:
    """Some of the steps, evenly chosen, each with the median ELBO."""
    rows = []
    for name, held in ways.items():
        at = np.unique(np.linspace(0, len(held["steps"]) - 1, ROWS_OF_STEPS).round().astype(int))
        median = np.median(elbo[name], 0)
        rows += [[cell(name, is_text=True), cell(f"{held['steps'][i]:,}"), cell(nats(median[i]))] for i in at]
    headings = [Heading("guide", True), Heading("step"), Heading("ELBO [nats]")]
    return Table("Median ELBO of each guide after some of its steps", headings, rows)


def diagnostics(rows: Sequence[Record], guides: Sequence[Guide]) -> Figure | None:
    """What can be known without the truth, k-hat and ESS, beside the exact reverse KL."""
    known = [row for row in rows if _is_drawn(row) and math.isfinite(number(row["khat"]))]
    if not known:
        return None
    lines = {guide.name: guide.line for guide in guides}
    khats = [_against_kl(row, lines, number(row["khat"]), f"k-hat {number(row['khat']):.2f}") for row in known]
    ess = [
        _against_kl(row, lines, max(number(row["ess"]), 1e-3), f"ESS {number(row['ess']):,.0f}")
        for row in known
        if math.isfinite(number(row["ess"]))
    ]
    kl = log_axis("reverse KL, exact [nats]", [_drawn_kl(row) for row in known])
    values = [number(row["khat"]) for row in known]
    low, high = min(*values, 0.0), max(*values, 1.0)
    around = [low - 0.08 * (high - low), high + 0.08 * (high - low)]
    draws = [trace["y"][0] for trace in ess]
    panels = [
        Panel(
            "k-hat", khats, {"xaxis": kl, "yaxis": axis("k-hat", range=around)} | level("0.7: not reliable", KHAT_LIMIT)
        ),
        Panel("Effective sample size", ess, {"xaxis": kl, "yaxis": log_axis("draws", draws)}),
    ]
    caption = (
        "Both are computed without the truth, from importance weights. Beside the exact distance they show how far to "
        "trust them: a guide far from the posterior should stand high on the left and low on the right."
    )
    headings = [Heading("guide", True), Heading("reverse KL [nats]"), Heading("k-hat"), Heading("ESS [draws]")]
    cells = [
        [cell(row["guide"], is_text=True), cell(three_digits(row["reverse_kl"], uncertainty(row, "reverse_kl")))]
        + [cell(three_digits(row[name])) for name in ("khat", "ess")]
        for row in rows
    ]
    table = Table("Diagnostics of each guide beside its exact reverse KL", headings, cells)
    return Figure("Diagnostics beside the truth", caption, panels, table, is_wide=False, marks=_marks(guides, known))


def cost(rows: Sequence[Record], guides: Sequence[Guide]) -> Figure | None:
    """Reverse KL against the seconds of a fit."""
    known = [row for row in rows if _is_drawn(row) and seconds_of(row) > 0]
    if not known:
        return None
    lines = {guide.name: guide.line for guide in guides}
    data = [
        point(
            row["guide"], lines[row["guide"]], seconds_of(row), _drawn_kl(row),
            f"{row['guide']}: {three_digits(row['reverse_kl'])} nats after {in_seconds(seconds_of(row))}",
        )
        for row in known
    ]  # fmt: skip
    layout = {
        "xaxis": log_axis("seconds of all replicas", [seconds_of(row) for row in known]),
        "yaxis": log_axis("reverse KL [nats]", [_drawn_kl(row) for row in known]),
    }
    cells: list[list[Cell]] = [
        [
            cell(row["guide"], is_text=True),
            cell(three_digits(row["reverse_kl"], uncertainty(row, "reverse_kl"))),
            cell(MISSING if math.isnan(seconds_of(row)) else in_seconds(seconds_of(row))),
        ]
        for row in rows
    ]
    headings = [Heading("guide", True), Heading("reverse KL [nats]"), Heading("time")]
    table = Table("Reverse KL of each guide and what its fit cost", headings, cells)
    return Figure(
        "Distance against cost",
        "Low and left is better.",
        [Panel("", data, layout, 360)],
        table,
        marks=_marks(guides, known),
    )


def _marks(guides: Sequence[Guide], drawn: Sequence[Record]) -> list[Guide]:
    names = {row["guide"] for row in drawn}
    return [guide for guide in guides if guide.name in names]


def _is_drawn(row: Record) -> bool:
    return math.isfinite(number(row["reverse_kl"]))


def _drawn_kl(row: Record) -> float:
    return max(number(row["reverse_kl"]), MIN_DRAWN)


def _against_kl(row: Record, lines: dict[str, int], y: float, text: str) -> dict[str, Any]:
    hover = f"{row['guide']}: {three_digits(row['reverse_kl'])} nats, {text}"
    return point(row["guide"], lines[row["guide"]], _drawn_kl(row), y, hover)
