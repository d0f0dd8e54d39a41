"""What a page shows of draws from other systems: how far they are from the posterior, each distance with its error.

Draws have no family, no steps and often no density, so that the columns of fitted guides say little of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ppl_vi.page.parts import Cell, Heading, Table, cell
from ppl_vi.report.columns import Record, doubted
from ppl_vi.report.draws_table import LISTED
from ppl_vi.report.numbers import MISSING, number, three_digits

CAPTION = "How far draws are from the exact posterior"
ERRORS = "± is one standard error."
NOISE = "Noise alone is how far from its ideal the worst score would be if the draws were of the posterior itself."
UNITLESS = ("1", "z", "")
# What a score is where the draws are of the posterior itself, where that is not 0; these two are then log p(x).
OF_EVIDENCE = ("elbo", "importance_log_evidence")
IDEALS = {"sd_ratio": "1", "coverage_90": "0.9", "c2st": "0.5", "khat": MISSING, "ess": MISSING}


def is_of_draws(record: Record) -> bool:
    """Whether a row is of draws that another system has made: no objective has been optimised for it here."""
    return bool(record["status"] == "as_given" and not record["objective"])


def distances(rows: Sequence[Record]) -> Table:
    """A row for each distance that is known for any of these draws, a column for each system."""
    known = [name for name in LISTED if any(not math.isnan(number(row.get(name))) for row in rows)]
    headings, columns = [Heading("distance", True)], [[cell(_called(name), is_text=True) for name in known]]
    for row in rows:
        headings.append(Heading(row["guide"]))
        columns.append([_distance(row, name) for name in known])
        if row.get("noise"):
            headings.append(Heading("noise alone" if len(rows) == 1 else f"noise alone of {row['guide']}"))
            columns.append([cell(three_digits(row["noise"].get(name))) for name in known])
    headings.append(Heading("ideal"))
    evidence = f"{number(rows[0]['log_evidence']):.6f}"
    columns.append([cell(evidence if name in OF_EVIDENCE else IDEALS.get(name, "0")) for name in known])
    return Table(CAPTION, headings, list(zip(*columns, strict=True)))


def _called(name: str) -> str:
    return LISTED[name].removesuffix(" (0.5 is none told apart)")


def _distance(row: Record, name: str) -> Cell:
    value, std_error = number(row.get(name)), number(row.get(f"{name}_std_error"))
    if math.isnan(value):
        return Cell(MISSING)
    unit = row.get("units", {}).get(name, "")
    text = three_digits(value)
    text += f" ± {std_error:.2g}" if std_error > 0 else ""
    text += "" if unit in UNITLESS else f" {unit}"
    return cell(doubted(text) if name in row["uncertified"] else text)


def notes_on(rows: Sequence[Record]) -> list[str]:
    """What the table's figures mean, and which distances are not known, and why."""
    unknown: dict[str, list[str]] = {}
    for row in rows:
        for name, called in LISTED.items():
            reason = row["reasons"].get(name)
            if reason and math.isnan(number(row.get(name))):
                unknown.setdefault(f"{row['guide']}: {reason}", []).append(called.partition(" (")[0])
    made = [f"{row['guide']}{row['engine'] and ' by '}{row['engine']}: {row['engine_reason']}." for row in rows]
    meaning = f"{ERRORS} {NOISE}" if any(row.get("noise") for row in rows) else ERRORS
    return [*made, meaning, *(f"Not known of {reason} ({', '.join(names)})." for reason, names in unknown.items())]
