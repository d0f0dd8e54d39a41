"""The page of a sweep: for each model, what guides and settings do to the reverse KL, with the spread over seeds.

Fits are summed up before they reach the page, so that its size depends on the number of combinations, not of fits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppl_vi.page.parts import Cell, Guide, Heading, Page, Section, Table, cell, number_cell
from ppl_vi.report.numbers import MISSING, short, three_digits
from ppl_vi.sweeps import page_figures as figures
from ppl_vi.sweeps.page_numbers import HIGH, LOW, SETTINGS, best_of, in_words, over_seeds, varied
from ppl_vi.sweeps.results import load_results, progress_of
from ppl_vi.sweeps.store import Reader

if TYPE_CHECKING:
    from pandas import DataFrame, Series

MAX_ROWS = 1000  # of a table; a page with many more would be slow to open
MAX_SHOWN = 6  # guides whose lines are shown before the reader chooses
MORE = {  # medians that the table has on demand
    "family_gap": "family gap", "optimization_gap": "optimization gap", "coverage_90": "coverage of 90% intervals",
    "khat": "k-hat",
}  # fmt: skip


def page_of(file: Path) -> Page:
    """The page.

    Raises:
        StoreError: the file can't be used.
    """
    every = load_results(file, stale=True)
    frame = every[~every["stale"]]
    models = list(dict.fromkeys(frame["model"]))
    sections = [_section(model, frame[frame["model"] == model]) for model in models]
    guides = frame["guide"].nunique()
    lead = (
        f"{len(frame):,} fits: {figures.counted(guides, 'guide')} on {figures.counted(len(models), 'model')}, "
        f"{figures.counted(frame['seed'].nunique(), 'seed')}. How far each ends from the exact posterior, and what the "
        "settings do."
    )
    overview = _overview(frame) if len(models) > 1 else None
    return Page(file.name, lead, sections, overview, _made(file, frame), "", _warnings(file, len(every) - len(frame)))


def _warnings(file: Path, num_stale: int) -> list[str]:
    """What a reader must know before the numbers: fits that are missing, and rows that are left out."""
    done, planned, _ = progress_of(file)
    found = []
    if done < planned:
        found.append(f"{done:,} of {planned:,} planned fits are done. The same command goes on from there.")
    if num_stale:
        are = "1 row is" if num_stale == 1 else f"{num_stale:,} rows are"
        found.append(f"{are} stale: of an earlier model, guide or version. This page leaves out what is stale.")
    return found


def _made(file: Path, frame: DataFrame) -> list[tuple[str, str]]:
    """How the results came about, by name."""
    with Reader(file) as reader:
        held = reader.query("SELECT details FROM sources WHERE kind = 'versions' AND current")
        first, last = reader.query("SELECT min(finished), max(finished) FROM tasks")[0]
    seeds = sorted(set(frame["seed"]))
    made = [("file", file.name), ("fits", f"{len(frame):,}")]
    made += [("seeds", f"{seeds[0]} to {seeds[-1]}")] if seeds else []
    for name, text in {**SETTINGS, "num_draws": "draws of a score", "engine": "engine"}.items():
        made.append(
            (
                text,
                ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in _values(frame[name])),
            )
        )
    versions = json.loads(held[0][0] or "{}") if held else {}
    made += [(package, str(version)) for package, version in (versions or {}).items()]
    days = [datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC") for at in (first, last) if at]
    return made + list(zip(("first stored", "last stored"), days, strict=False))


def _values(column: Series) -> list[Any]:
    """The values of a column, each once, in order."""
    values = [value for value in set(column.dropna()) if value != ""]
    return sorted(values, key=lambda value: (isinstance(value, str), value))


def _section(model: str, frame: DataFrame) -> Section:
    every = over_seeds(frame)
    summed = every[every["seeds"] > 0]  # the others are in the table of what has no score
    best = best_of(summed)
    lines = {guide: i for i, guide in enumerate(best["guide"])}
    lines |= {guide: len(lines) + i for i, guide in enumerate(sorted(set(frame["guide"]) - set(lines)))}
    guides = [Guide(name, number, number < MAX_SHOWN) for name, number in lines.items() if name in set(best["guide"])]
    shown = [
        figures.by_guide(best),
        *(figures.against_setting(summed, name, lines) for name in ("lr", "num_steps", "num_particles", "objective")),
        figures.against_x(frame, best, lines),
        figures.against_cost(summed, guides),
    ]
    return Section(
        model,
        _facts(frame),
        _verdict(best, varied(summed)),
        _doubts(frame),
        _table(summed),
        _notes(summed),
        guides,
        [figure for figure in shown if figure is not None],
        _failures(frame),
    )


def _facts(frame: DataFrame) -> list[str]:
    problems = frame.drop_duplicates("problem")
    counts = frame["status"].value_counts()
    facts = [f"{number:,} {str(status).replace('_', ' ')}" for status, number in counts.items()]
    if len(problems) > 1:
        return [f"{len(problems):,} problems", *facts]
    first = problems.iloc[0]
    known = math.isfinite(first["log_evidence"])
    return [*([f"log p(x) = {first['log_evidence']:.6f} nats, {first['grade']}"] if known else []), *facts]


def _doubts(frame: DataFrame) -> list[str]:
    doubted = frame.loc[frame["grade"] == "uncertified", "problem"].nunique()
    if not doubted:
        return []
    return [f"The truth of {figures.counted(doubted, 'problem')} is uncertified: do not rely on what rests on it."]


def _verdict(best: DataFrame, names: Sequence[str]) -> str:
    if not len(best):
        return "No combination has a finite reverse KL."
    first = best.iloc[0]
    spread = ""
    if first["seeds"] > 1:
        low, high = (three_digits(first[end], first["error"]) for end in ("low", "high"))
        spread = f", from {low} to {high} over seeds"
    settings = f", with {in_words(first, names)}" if names else ""
    return f"{first['guide']} comes nearest{settings}: {three_digits(first['middle'], first['error'])} nats{spread}."


def _notes(summed: DataFrame) -> list[str]:
    notes = [
        f"reverse KL: the median over seeds of each seed's median over problems; the range is from {LOW:.0%} to "
        f"{HIGH:.0%} of the seeds. Seconds are a fit's share of what its batch took, scores included."
    ]
    if len(summed) > MAX_ROWS:
        notes.append(
            f"The table has the {MAX_ROWS:,} nearest of {len(summed):,} combinations; 'ppl-vi results FILE' has all."
        )
    return notes


def _table(summed: DataFrame) -> Table:
    names = varied(summed)
    more = [name for name in MORE if summed[name].notna().any()]
    headings = [
        Heading("guide", True), *(Heading(SETTINGS[name]) for name in names), Heading("fits"), Heading("converged"),
        Heading("reverse KL [nats]"), Heading("over seeds"), Heading("seconds a fit"),
        *(Heading(MORE[name], is_more=True) for name in more),
    ]  # fmt: skip
    rows = []
    for row in summed.sort_values("middle", na_position="last").head(MAX_ROWS).to_dict("records"):
        rows.append(
            [
                cell(row["guide"], is_text=True),
                *(_setting(row[name]) for name in names),
                number_cell(row["fits"], f"{row['fits']:,}"),
                number_cell(row["converged"], f"{row['converged']:.0%}"),
                number_cell(row["middle"], three_digits(row["middle"], row["error"])),
                _range(row),
                number_cell(row["seconds"], short(row["seconds"], 2)),
                *(number_cell(row[name], three_digits(row[name])) for name in more),
            ]
        )
    return Table("Each combination of guide and settings, the nearest first", headings, rows, is_tool=True)


def _setting(value: Any) -> Cell:
    return cell(str(value), is_text=True) if isinstance(value, str) else number_cell(float(value), f"{value:g}")


def _range(row: dict[str, Any]) -> Cell:
    low, high = row["low"], row["high"]
    known = row["seeds"] > 1 and not math.isnan(low)
    return (
        number_cell(high, " to ".join(three_digits(end, row["error"]) for end in (low, high)))
        if known
        else Cell(MISSING)
    )


def _failures(frame: DataFrame) -> Table | None:
    """What has no scores, with its reason; None where all has some."""
    lost = frame[frame["reverse_kl"].isna()]
    if not len(lost):
        return None
    lost = lost.assign(reason=lost["reason"].fillna("").where(lost["reason"].fillna("") != "", lost["stop_reason"]))
    counts = lost.groupby(["guide", "status", "reason"], dropna=False).size().reset_index(name="fits")
    rows = [
        [
            cell(one["guide"], is_text=True),
            cell(one["status"].replace("_", " "), is_text=True, tone="bad"),
            number_cell(one["fits"], f"{one['fits']:,}"),
            cell(one["reason"] or "no score", is_text=True),
        ]
        for one in counts.sort_values("fits", ascending=False).head(MAX_ROWS).to_dict("records")
    ]
    headings: Sequence[Heading] = (
        Heading("guide", True), Heading("status", True), Heading("fits"), Heading("reason", True)
    )  # fmt: skip
    return Table("Fits without a score, and why", headings, rows)


def _overview(frame: DataFrame) -> Table:
    """The reverse KL of each guide on each model, with the settings that are best for it there."""
    guides = list(dict.fromkeys(frame["guide"]))
    rows = []
    for model in dict.fromkeys(frame["model"]):
        best = best_of(over_seeds(frame[frame["model"] == model]))
        found = dict(zip(best["guide"], best["middle"], strict=True))
        rows.append([cell(model, is_text=True), *(cell(three_digits(found.get(guide))) for guide in guides)])
    caption = "Reverse KL of each guide on each model with its best settings, in nats"
    return Table(caption, [Heading("model", True), *map(Heading, guides)], rows, is_tool=True)
