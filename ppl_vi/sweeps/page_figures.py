"""The figures of a sweep's page: reverse KL by guide, against each setting, against x, and against cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ppl_vi.page.charts import Trace, axis, band, line, log_axis, marker_look, point, said
from ppl_vi.page.parts import Figure, Guide, Heading, Panel, Table, cell, number_cell
from ppl_vi.report.numbers import short, three_digits
from ppl_vi.report.plots import MIN_DRAWN
from ppl_vi.sweeps.page_numbers import HIGH, KEYS, LOW, SETTINGS, in_words, over_seeds, varied

if TYPE_CHECKING:
    from pandas import DataFrame

ROW = 44  # CSS pixels of a guide
NUM_OPEN = 6  # panels that are not folded
MAX_PANELS = 60
MAX_ROWS = 500  # of a table beside a figure
MAX_MARKS = 2000
SPREAD = f"Bands: from {LOW:.0%} to {HIGH:.0%} of the seeds. What is infinite is not drawn."


def counted(number: int, name: str) -> str:
    """Such as `1 guide` or `12 guides`."""
    return f"{number:,} {name}{'' if number == 1 else 's'}"


def drawn(value: float) -> float:
    """A value on a logarithmic axis, on which 0 has no place; nan where it has none."""
    return max(value, MIN_DRAWN) if math.isfinite(value) else math.nan


def _all_drawn(summed: DataFrame) -> list[float]:
    """All values on the axis of a figure with bands."""
    values = [drawn(value) for name in ("low", "middle", "high") for value in summed[name]]
    return [value for value in values if not math.isnan(value)]


def by_guide(best: DataFrame) -> Figure | None:
    """Each guide with its best settings: the median, and the range over seeds."""
    if not len(best):
        return None
    rows = best.to_dict("records")
    data = [_range_trace(row, i) for i, row in enumerate(rows)]
    names = [
        {
            "xref": "paper", "x": 0, "xanchor": "left", "y": i - 0.2, "yanchor": "bottom", "showarrow": False,
            "text": f"<b>{said(row['guide'])}</b>  {three_digits(row['middle'], row['error'])} nats",
            "font": {"size": 12},
        }
        for i, row in enumerate(rows)
    ]  # fmt: skip
    layout = {
        "annotations": names,
        "xaxis": log_axis("reverse KL [nats]", _all_drawn(best)),
        "yaxis": {"range": [len(rows) - 0.5, -0.9], "visible": False},
    }
    caption = f"The median over seeds, and the range from {LOW:.0%} to {HIGH:.0%} of them."
    panel = Panel("", data, layout, 80 + ROW * len(rows))
    return Figure("Each guide with its best settings", caption, [panel], _table_of(best, []))


def _range_trace(row: dict[str, Any], place: int) -> Trace:
    middle, low, high = (drawn(row[name]) for name in ("middle", "low", "high"))
    high = middle if math.isnan(high) else high
    text = f"{row['guide']} with {in_words(row, SETTINGS)}: {three_digits(row['middle'], row['error'])} nats"
    return {
        **point(row["guide"], place, middle, place, text),
        "error_x": {
            "type": "data", "symmetric": False, "array": [high - middle], "arrayminus": [middle - low], "width": 4,
            "color": marker_look(place)["color"],
        },
    }  # fmt: skip


def against_setting(summed: DataFrame, name: str, lines: Mapping[str, int]) -> Figure | None:
    """Reverse KL against one setting, a panel for each combination of the others; None where it has one value."""
    if summed[name].astype(str).nunique() < 2:
        return None
    others = [one for one in SETTINGS if one != name]
    groups = [some for _, some in summed.groupby(others, sort=True) if some[name].astype(str).nunique() > 1]
    if not groups:
        return None
    kept = _all_drawn(summed)
    told = [one for one in varied(summed) if one != name]
    panels = [_setting_panel(some, name, told, lines, kept) for some in groups[:MAX_PANELS]]
    caption = f"Median over seeds. {SPREAD}"
    if len(groups) > MAX_PANELS:
        caption += f" {MAX_PANELS} of {len(groups)} combinations of the other settings are shown."
    title = f"What the {'number of ' if name.startswith('num_') else ''}{SETTINGS[name]} does"
    return Figure(
        title, caption, panels, _table_of(summed, [name, *others]), NUM_OPEN, len(panels) == 1, has_lines=True
    )


def _setting_panel(
    some: DataFrame, name: str, others: Sequence[str], lines: Mapping[str, int], kept: Sequence[float]
) -> Panel:
    are_numbers = all(not isinstance(value, str) for value in some[name])
    data: list[Trace] = []
    for guide, rows in some.groupby("guide", sort=False):
        ordered = rows.sort_values(name, key=None if are_numbers else lambda values: values.astype(str))
        places = ordered[name].tolist() if are_numbers else ordered[name].astype(str).tolist()
        data += curve(str(guide), lines[str(guide)], places, ordered)
    values = sorted(set(some[name])) if are_numbers else []
    title = SETTINGS[name]
    ticks = {"tickvals": values, "ticktext": [f"{value:g}" for value in values]} if 1 < len(values) <= 7 else {}
    x = log_axis(title, [float(value) for value in values], **ticks) if values else axis(title, type="category")
    first = some.iloc[0]
    layout = {"xaxis": x, "yaxis": log_axis("reverse KL [nats]", kept)}
    return Panel(in_words(first, others), data, layout, 320)


def curve(guide: str, number: int, x: Sequence[Any], rows: DataFrame) -> list[Trace]:
    """A guide's median over seeds with the band between `low` and `high`."""
    low, middle, high = ([drawn(value) for value in rows[name]] for name in ("low", "middle", "high"))
    spread = band(number, x, low, high) if (rows["seeds"] > 1).all() else []
    return [*spread, line(guide, number, x, middle, mode="lines+markers", marker={"size": 5})]


def against_x(frame: DataFrame, best: DataFrame, lines: Mapping[str, int]) -> Figure | None:
    """Reverse KL against the number by which the problems differ, each guide with its best settings."""
    if frame["x"].nunique() < 2 or not len(best):
        return None
    summed = over_seeds(_chosen(frame, best), ("x",)).sort_values("x")
    data: list[Trace] = []
    for guide in best["guide"]:
        rows = summed[summed["guide"] == guide]
        data += curve(guide, lines[guide], rows["x"].tolist(), rows)
    kept = _all_drawn(summed)
    layout = {"xaxis": axis("x"), "yaxis": log_axis("reverse KL [nats]", kept)}
    caption = f"Each guide with its best settings; the median over seeds. {SPREAD}"
    table = _table_of(summed, ["x"])
    return Figure("Over the problems", caption, [Panel("", data, layout, 380)], table, has_lines=True)


def _chosen(frame: DataFrame, best: DataFrame) -> DataFrame:
    """The fits of each guide's best combination."""
    wanted = {tuple(map(str, row)) for row in best[KEYS].itertuples(index=False)}
    keys = frame[KEYS].astype(str).apply(tuple, axis=1)
    return frame[keys.isin(wanted)]


def against_cost(summed: DataFrame, guides: Sequence[Guide]) -> Figure | None:
    """Reverse KL against the seconds of a fit, a mark for each combination."""
    known = summed[(summed["middle"] < math.inf) & (summed["seconds"] > 0)].sort_values("middle").head(MAX_MARKS)
    if not len(known):
        return None
    data = []
    for guide in guides:
        rows = known[known["guide"] == guide.name].to_dict("records")
        texts = [
            said(f"{guide.name}, {in_words(row, SETTINGS)}: {three_digits(row['middle'], row['error'])} nats")
            for row in rows
        ]
        marks = point(guide.name, guide.line, 0, 0, "")
        data.append(marks | {"x": [row["seconds"] for row in rows], "y": [drawn(row["middle"]) for row in rows]})
        data[-1]["text"] = texts
    layout = {
        "xaxis": log_axis("seconds a fit", known["seconds"].tolist()),
        "yaxis": log_axis("reverse KL [nats]", [drawn(value) for value in known["middle"]]),
    }
    caption = "A mark for each combination of guide and settings. Low and left is better."
    panel = Panel("", data, layout, 380)
    return Figure("Distance against cost", caption, [panel], _table_of(known, []), marks=guides)


def _table_of(summed: DataFrame, more: Sequence[str]) -> Table:
    """The same in numbers: guide, settings, and the reverse KL over seeds."""
    names = list(dict.fromkeys([*more, *SETTINGS]))
    shown = summed.head(MAX_ROWS)
    caption = "Reverse KL of each combination, in nats"
    if len(summed) > MAX_ROWS:
        caption += f": the first {MAX_ROWS} of {len(summed):,}"
    texts = SETTINGS | {"x": "x"}
    headings = [Heading("guide", True), *(Heading(texts[name]) for name in names)]
    headings += [Heading("median"), Heading(f"{LOW:.0%}"), Heading(f"{HIGH:.0%}"), Heading("seconds a fit")]
    rows = [
        [cell(row["guide"], is_text=True)]
        + [cell(f"{row[name]:g}" if not isinstance(row[name], str) else row[name]) for name in names]
        + [cell(three_digits(row[name], row["error"])) for name in ("middle", "low", "high")]
        + [number_cell(row["seconds"], short(row["seconds"], 2))]
        for row in shown.to_dict("records")
    ]
    return Table(caption, headings, rows)
