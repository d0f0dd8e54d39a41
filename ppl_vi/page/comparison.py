"""The page of a comparison, of the toy and of the zoo: a section for each problem or model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ppl_vi.metrics.table import METRICS
from ppl_vi.page import figures
from ppl_vi.page.draws import distances, is_of_draws, notes_on
from ppl_vi.page.parts import Cell, Guide, Heading, Page, Section, Table, cell
from ppl_vi.report.brief import BRIEF
from ppl_vi.report.columns import (
    BY_MODEL,
    BY_OBSERVATION,
    GUIDE,
    Column,
    Footnotes,
    Record,
    doubted,
    metric_column,
    uncertainty,
)
from ppl_vi.report.failures import in_words
from ppl_vi.report.gap_bars import bar_of
from ppl_vi.report.numbers import MISSING, number, short, three_digits
from ppl_vi.report.standing import word_of
from ppl_vi.report.table import notes_of, sort_key
from ppl_vi.report.verdict import listed, verdict_of

MAX_SHOWN = 6  # guides whose lines are shown before the reader chooses
TONES = {
    "converged": "good", "as given": "good", "far from best": "warn", "not converged": "warn", "leaks mass": "bad",
    "diverged": "bad", "failed": "bad", "skipped": "",
}  # fmt: skip
MOST_LISTED = 6  # problems that the line below the title names
SETTINGS = {  # of a comparison, as the page names them
    "objective": "objective", "engine": "engine", "num_steps": "SVI steps, at most", "num_particles": "draws a step",
    "num_replicas": "independent fits", "lr": "first step size", "seed": "seed", "num_draws": "draws of a score",
}  # fmt: skip
# What a record holds where nothing was measured; records of earlier versions lack some of it.
BLANK: dict[str, Any] = {
    **dict.fromkeys(METRICS), "x": None, "model": "", "problem": 0, "num_problems": 1, "remarks": [], "assumptions": [],
    "reasons": {}, "replicas": [], "marginals": [], "uncertified": [], "grade": "", "grade_reason": "", "reason": "",
    "support_mismatch": None, "seconds": None, "objective": "trace_elbo", "family_gap_is_upper_bound": None,
}  # fmt: skip


def page_of(records: Sequence[Record], held: Mapping[str, Any], extra: str = "") -> Page:
    """The page.

    Args:
        records: of one comparison, or of several models.
        held: what `ppl_vi.report.page_data` has beside them; {} where there are records alone.
        extra: HTML for the end of the page.
    """
    problems: dict[tuple[str, int], list[Record]] = {}
    for record in records:
        problems.setdefault((record.get("model", ""), record.get("problem", 0)), []).append(BLANK | record)
    groups = [sorted(rows, key=sort_key) for rows in problems.values()]
    told = {one["label"]: one for one in held.get("problems", ())}
    several = len({rows[0]["model"] for rows in groups}) > 1  # whose rankings differ: the order of the records holds
    named = records if several else [row for rows in groups for row in rows]
    lines = {guide: i for i, guide in enumerate(dict.fromkeys(row["guide"] for row in named))}
    sections = [_section(rows, told.get(rows[0]["label"]), lines, len(groups) > 1) for rows in groups]
    overview = _overview(groups, lines) if several else None
    first = groups[0][0]
    if all(is_of_draws(row) for rows in groups for row in rows):  # nothing was fitted, by whatever settings
        held = {**held, "settings": {"seed": first["seed"]}}
    return Page(_title(groups), _lead(groups), sections, overview, described_run(first, held), extra)


def _title(groups: Sequence[Sequence[Record]]) -> str:
    names = list(dict.fromkeys(rows[0]["model"] for rows in groups))
    return names[0] if len(names) == 1 else f"Guides on {len(names)} models"


def _lead(groups: Sequence[Sequence[Record]]) -> str:
    every = [row for rows in groups for row in rows]
    guides, draws = ({row["guide"] for row in every if is_of_draws(row) == of_draws} for of_draws in (False, True))
    labels = [rows[0]["label"] for rows in groups]
    several = labels if len(labels) <= MOST_LISTED else [*labels[:MOST_LISTED], f"{len(labels) - MOST_LISTED} more"]
    on = f" at {listed(several)}" if groups[0][0]["x"] is not None else ""
    each = max(len(row["replicas"]) for row in every)
    fits = f" {each} independent fits of each." if each > 1 else ""
    many = ["One guide" if len(guides) == 1 else f"{len(guides)} guides"] if guides else []
    systems = "one other system" if len(draws) == 1 else f"{len(draws)} other systems"
    many += [f"draws of {systems}"] if draws else []
    question = "how far each ends, and why" if guides else "how far they are from it"
    sentence = f"{' and '.join(many)} against the exact posterior{on}: {question}.{fits}"
    return sentence[0].upper() + sentence[1:]


def described_run(first: Record, held: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How the results came about: settings, versions and the machine, by name."""
    settings = held.get("settings") or {
        name: first.get(name) for name in ("objective", "seed", "num_replicas") if first.get(name) is not None
    }
    found = [(text, str(settings[name])) for name, text in SETTINGS.items() if name in settings]
    found += [("truth", f"{first.get('method', '')}, {first['grade']}".strip(", "))]
    found += [(package, str(version)) for package, version in (first.get("versions") or {}).items()]
    return found + [
        (name, str(held[key])) for name, key in (("machine", "machine"), ("written", "written")) if key in held
    ]


def _section(
    rows: Sequence[Record], problem: dict[str, Any] | None, lines: Mapping[str, int], several: bool
) -> Section:
    first, notes = rows[0], Footnotes()
    drawn = problem["guides"] if problem else {}
    guides = [Guide(row["guide"], lines[row["guide"]], _is_shown(row, rows, drawn)) for row in rows]
    of_draws = [row for row in rows if is_of_draws(row)]
    table = comparison_table(rows, notes) if len(of_draws) < len(rows) else None
    verdict = problem["verdict"] if problem else verdict_of(rows).text
    shown = [figures.marginals(problem, rows, guides) if problem else None]
    shown += [figures.gaps([bar_of(row) for row in rows]) if any(map(_has_bar, rows)) else None]
    shown += [figures.elbos(problem, rows, guides) if problem else None]
    shown += [figures.diagnostics(rows, guides), figures.cost(rows, guides)]
    return Section(
        first["label"] if several else "Results",
        _facts(first),
        verdict,
        [f"Remark: {remark}" for remark in first["remarks"]],
        table,
        notes_of(rows, notes),
        [guide for guide in guides if guide.name in drawn],
        [figure for figure in shown if figure is not None],
        draws=distances(of_draws) if of_draws else None,
        draws_notes=notes_on(of_draws) if of_draws else (),
    )


def _has_bar(row: Record) -> bool:
    """Whether there is a reverse KL to show, or a fit whose failure is to be shown."""
    return not is_of_draws(row) or not math.isnan(number(row["reverse_kl"]))


def _facts(record: Record) -> list[str]:
    error = uncertainty(record, "log_evidence")
    doubt = "?" if record["uncertified"] else ""
    return [
        f"log p(x) = {number(record['log_evidence']):.6f}{doubt} ± {short(error, 1) if error else '0'} nats",
        f"truth by {record.get('method', 'an unknown method')}",
        ": ".join(filter(None, (record["grade"], record["grade_reason"] and in_words(record["grade_reason"])))),
    ]


def _is_shown(row: Record, rows: Sequence[Record], drawn: Mapping[str, Any]) -> bool:
    """Whether a guide's line is shown before the reader chooses: those of the nearest guides that have one."""
    return row["guide"] in [one["guide"] for one in rows if one["guide"] in drawn][:MAX_SHOWN]


def comparison_table(rows: Sequence[Record], notes: Footnotes) -> Table:
    """The six columns, and all others on demand."""
    full = (BY_MODEL if rows[0]["x"] is None else BY_OBSERVATION).all_shown()
    brief = [one for one in BRIEF if isinstance(one, Column)]
    named = {one for one in BRIEF if isinstance(one, str)}
    columns = [(column, False) for column in (GUIDE, *_columns(BRIEF))]
    headings = {column.heading for column, _ in columns}
    rest = [one for one in full if one not in named]
    columns += [(column, True) for column in _columns(rest) if column.heading not in headings and column not in brief]
    columns = [(column, is_more) for column, is_more in columns if column.is_needed(rows)]
    return Table(
        "Guides, the nearest to the posterior first",
        [Heading(" ".join(filter(None, column.heading)), column.left, is_more) for column, is_more in columns],
        [[_cell(column, row, notes) for column, _ in columns] for row in rows],
        is_tool=True,
    )


def _columns(shown: Sequence[Column | str]) -> list[Column]:
    return [one if isinstance(one, Column) else metric_column(one) for one in shown]


def _cell(column: Column, row: Record, notes: Footnotes) -> Cell:
    text = column.cell(row, notes)
    tone = TONES.get(word_of(row), "") if column.left and column is not GUIDE else ""
    return cell(text, is_text=column.left, tone=tone)


def _overview(groups: Sequence[Sequence[Record]], lines: Mapping[str, int]) -> Table:
    """Reverse KL of each guide on each model."""
    guides = list(lines)
    cells = []
    for rows in groups:
        by_guide = {row["guide"]: row for row in rows}
        cells.append([cell(rows[0]["label"], is_text=True), *(_distance(by_guide.get(guide)) for guide in guides)])
    headings = [Heading("model", True), *map(Heading, guides)]
    return Table("Reverse KL of each guide on each model, in nats", headings, cells, is_tool=True)


def _distance(row: Record | None) -> Cell:
    if row is None:
        return Cell(MISSING)
    if row["reverse_kl"] is None:
        return Cell(str(row["status"]))
    text = three_digits(row["reverse_kl"], uncertainty(row, "reverse_kl"))
    return cell(doubted(text) if row["uncertified"] else text)
