"""What `benchmarks.ppls` shows of its records: a table, a heat map, and what a user would want to know."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from benchmarks.ppls_records import TOLERANCE, Record
from ppl_vi.report.style import DARK, DPI, LIGHT

HEADINGS = (
    "model", "system", "setting", "reverse KL", "above best", "mean error, sd", "sd ratio", "steps", "fit, s",
    "compile, s", "to 1e-3 nats, s",
)  # fmt: skip
COLOURS = (1e-4, 10.0)  # nats above the best; a smaller or larger number has the colour of the end
MIN_DARK = 0.62
NONE = "—"


def rows(records: Sequence[Record]) -> list[list[str]]:
    """The cells of the table."""
    return [_row(record) for record in records]


def _row(record: Record) -> list[str]:
    cells = [record["model"], record["system"], record["setting"]]
    if record["status"] != "ok":
        return [*cells, f"{record['status']}: {record['reason']}", *[NONE] * 7]
    arrived = f"{record['seconds_to_best']:.2g}" if record["arrived"] else NONE if _no_family(record) else "not reached"
    return [
        *cells,
        _with_error(record, "reverse_kl"),
        _above(record),
        _with_error(record, "mean_error"),
        _with_error(record, "sd_ratio"),
        f"{record['steps']:,}" if record["steps"] else NONE,
        f"{record['seconds']:.2g}",
        f"{record['compile_seconds']:.2g}",
        arrived,
    ]


def _no_family(record: Record) -> bool:
    return not record["family"]


def _with_error(record: Record, name: str) -> str:
    value, std_error = record[name], record[f"{name}_std_error"]
    if value is None:
        return "no density"
    return f"{value:.3g} ± {std_error:.1g}"


def _above(record: Record) -> str:
    """Above the best, or that it is below what its standard error resolves."""
    value, std_error = record["above_best"], record["reverse_kl_std_error"]
    if value is None:
        return NONE
    return f"< {max(2 * std_error, 1e-6):.0e}" if value < 2 * std_error else f"{value:.2g}"


def verdict(records: Sequence[Record]) -> list[str]:
    """What a user would want to know: of each model, setting and family who is first, and whose fit is the nearest."""
    lines = []
    for model in dict.fromkeys(record["model"] for record in records):
        of_model = [one for one in records if one["model"] == model]
        for setting in dict.fromkeys(one["setting"] for one in of_model):
            at = [one for one in of_model if one["setting"] == setting and one["family"]]
            for family in dict.fromkeys(one["family"] for one in at):
                lines.append(_of_family([one for one in at if one["family"] == family]))
        lines += _nearest(of_model)
    return lines


def _of_family(records: Sequence[Record]) -> str:
    model, family, setting = (records[0][name] for name in ("model", "family", "setting"))
    there = sorted((one for one in records if one.get("arrived")), key=lambda one: one["seconds_to_best"])
    others = [one for one in records if one["status"] == "ok" and not one["arrived"]]
    named = ", ".join(f"{one['system']} ({one['seconds_to_best']:.2g} s)" for one in there)
    missed = ", ".join(f"{one['system']} ({_missed(one)})" for one in others)
    first = f" {there[0]['system']} is first." if len(there) > 1 else ""
    absent = ", ".join(f"{one['system']} ({one['status']})" for one in records if one["status"] != "ok")
    return (
        f"{model}, {family}, {setting}: within {TOLERANCE:g} nats of the family's best: {named or 'none'}.{first}"
        + (f" Not there: {missed}." if missed else "")
        + (f" Without a fit: {absent}." if absent else "")
    )


def _missed(record: Record) -> str:
    return f"{record['above_best']:.2g} nats above" if record["above_best"] is not None else "not a Gaussian"


def _nearest(records: Sequence[Record]) -> list[str]:
    """The row of the lowest reverse KL of all families and settings, and those that can't be told from it."""
    known = sorted(
        (one for one in records if one["status"] == "ok" and one["reverse_kl"] is not None),
        key=lambda one: one["reverse_kl"],
    )
    if not known:
        return []
    first, *rest = known
    near = [one for one in rest if one["reverse_kl"] - first["reverse_kl"] < 2 * _spread(first, one)]
    also = f"; within two standard errors of it: {', '.join(_named(one) for one in near)}" if near else ""
    return [f"{first['model']}: the lowest reverse KL is that of {_named(first)}{also}."]


def _spread(one: Record, other: Record) -> float:
    return math.hypot(one["reverse_kl_std_error"], other["reverse_kl_std_error"])


def _named(record: Record) -> str:
    return f"{record['system']} ({record['setting']}, {_with_error(record, 'reverse_kl')})"


def heat_map(records: Sequence[Record]) -> Figure:
    """Nats above the family's best, at each system's default: models in rows, systems in columns."""
    of_default = [one for one in records if one["setting"] == "default" and (one["family"] or one["status"] != "ok")]
    models = list(dict.fromkeys(one["model"] for one in of_default))
    systems = list(dict.fromkeys(one["system"] for one in of_default))
    at = {(one["model"], one["system"]): one for one in of_default}
    values = np.array([[_value(at.get((model, system))) for system in systems] for model in models])
    size = 3.0 + 1.05 * len(systems), 2.0 + 0.55 * len(models)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    axes, norm = figure.subplots(), LogNorm(*COLOURS, clip=True)
    image = axes.imshow(np.ma.masked_invalid(values), cmap="YlOrRd", norm=norm, aspect="auto")
    image.cmap.set_bad(LIGHT)
    for i, model in enumerate(models):
        for j, system in enumerate(systems):
            dark = math.isfinite(values[i, j]) and float(norm(values[i, j])) > MIN_DARK
            axes.text(j, i, _text(at.get((model, system))), ha="center", va="center", fontsize=7,
                      color="white" if dark else DARK)  # fmt: skip
    axes.set_xticks(range(len(systems)), systems, fontsize=8, rotation=20, ha="right")
    axes.set_yticks(range(len(models)), models, fontsize=8)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label="nats above the family's best", shrink=0.8, extend="both")
    axes.set_title(
        "Reverse KL above the best member of the family, at each system's default; below: seconds to 1e-3 nats",
        fontsize=9,
    )
    return figure


def _value(record: Record | None) -> float:
    if record is None or record["status"] != "ok" or record["above_best"] is None:
        return math.nan
    return max(float(record["above_best"]), COLOURS[0])


def _text(record: Record | None) -> str:
    if record is None:
        return NONE
    if record["status"] != "ok":
        return str(record["status"])
    seconds = f"{record['seconds_to_best']:.2g} s" if record["arrived"] else "not reached"
    return f"{_above(record)}\n{seconds}"
