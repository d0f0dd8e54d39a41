"""Guides whose curves are the same to the eye, which figures draw once with all their names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from ppl_vi.comparison.comparison import Entry
from ppl_vi.report.failures import in_words
from ppl_vi.report.numbers import three_digits
from ppl_vi.report.style import shortened

# Curves are the same if they are nowhere farther apart than this share of the panel's height, about a line's width.
SAME = 0.01
TITLE_LENGTH = 40  # characters of a panel's title on a line
NOTE = "Guides whose curves differ by less than the width of a line are drawn once."

T = TypeVar("T")


def grouped(items: Sequence[T], same: Callable[[T, T], bool]) -> list[list[T]]:
    """Items in order, each with all later ones that are the same as it; the first of a group stands for it."""
    groups: list[list[T]] = []
    for item in items:
        for group in groups:
            if same(group[0], item):
                group.append(item)
                break
        else:
            groups.append([item])
    return groups


def near(one: np.ndarray, other: np.ndarray, height: float) -> bool:
    """Whether two curves on the same points are the same in a panel of this height; nan is the same as nan."""
    if one.shape != other.shape:
        return False
    with np.errstate(invalid="ignore"):
        apart = np.where((one == other) | (np.isnan(one) & np.isnan(other)), 0.0, np.abs(one - other))
    return bool(np.all(apart <= SAME * height))


def divergence_of(group: Sequence[Entry], problem: int) -> str:
    """The reverse KL of the guides of a group, as one number or from the smallest to the largest."""
    records = [entry.records[problem] for entry in group]
    texts = list(dict.fromkeys(three_digits(record["reverse_kl"], record["reverse_kl_error"]) for record in records))
    return texts[0] if len(texts) == 1 else f"{texts[0]} to {texts[-1]}"


def titled(group: Sequence[Entry], number: int) -> tuple[str, str]:
    """The names of a group as a panel's title, and a note that gives them all where the title has no room, or "".

    Args:
        group: the guides.
        number: of the note.
    """
    names = [entry.guide for entry in group]
    lines: list[str] = []
    for name in names:
        if lines and len(lines[-1]) + len(name) + 2 <= TITLE_LENGTH:
            lines[-1] += f", {name}"
        else:
            lines.append(name)
    if len(lines) <= 2 and max(map(len, lines)) <= TITLE_LENGTH:
        return ",\n".join(lines), ""
    mark, first = f"({number})", shortened(names[0], TITLE_LENGTH - 5)
    title = f"{first}\nand {len(names) - 1} more {mark}" if len(names) > 1 else f"{first} {mark}"
    return title, f"{mark} {', '.join(names)}"


def doubts(entries: Sequence[Entry], problem: int) -> list[str]:
    """A note that the figure rests on an uncertified truth, and what failed; [] where it is trusted."""
    failed = [entry.records[problem] for entry in entries if entry.records[problem].get("uncertified")]
    why = in_words(failed[0]["grade_reason"]) if failed else ""
    return [f"The truth is uncertified, so do not rely on this: {why}."] if failed else []


def not_drawn(entries: Sequence[Entry], problem: int) -> list[str]:
    """A note on the guides that have no curve, with the reasons; [] where all have one."""
    reasons = []
    for entry in entries:
        record = entry.records[problem]
        why = str(record["reason"]).removeprefix(f"{entry.guide}: ")
        reasons.append(f"{entry.guide} ({record['status']}: {why})".replace(": )", ")"))
    return [f"Without a curve: {'; '.join(reasons)}."] if reasons else []
