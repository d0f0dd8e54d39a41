"""The entries of a plan: their names, how each is read, and the places and complaints that messages are made of."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

# Each axis is a value or a list of values; a plan has every combination of them.
AXES: dict[str, Any] = {"objective": "trace_elbo", "lr": 0.2, "num_steps": 1000, "num_particles": "auto"}
# All entries of a plan, with what holds where an entry is left out.
OPTIONS: dict[str, Any] = {
    "models": [],
    "guides": [],
    **AXES,
    "seed": range(4),
    "engine": "auto",
    "num_draws": 1000,
    "block": "auto",
    "exclude": [],
}
MAX_SEED = 2**31
MAX_SEEDS = 10**6


@dataclass(frozen=True)
class Place:
    """Where an entry stands in a plan: its name, and its number in a list."""

    name: str
    index: int | None = None

    def __str__(self) -> str:
        return self.name if self.index is None else f"{self.name}[{self.index}]"


class PlanError(ValueError):
    """A plan asks for what can't be done.

    Attributes:
        lines: a line for each wrong entry, with its place.
    """

    def __init__(self, lines: Sequence[str]) -> None:
        self.lines = tuple(lines)
        super().__init__("\n".join(self.lines))


@dataclass(frozen=True)
class Complaints:
    """What is wrong with a plan, a line for each entry."""

    where: Callable[[Place], str]
    lines: list[str]

    def __init__(self, where: Callable[[Place], str]) -> None:
        object.__setattr__(self, "where", where)
        object.__setattr__(self, "lines", [])

    def add(self, place: Place, message: str) -> None:
        """Notes that an entry is wrong."""
        self.lines.append(" ".join(f"{self.where(place)}: {message}".split()))

    def read(self, place: Place, read: Callable[[Any], T], value: Any) -> T | None:
        """What is read from a value; None where that is wrong, which is noted."""
        try:
            return read(value)
        except (ValueError, TypeError) as error:
            self.add(place, str(error))
            return None


def whole(value: Any, least: int) -> int:
    """A whole number of at least `least`.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"expected a whole number, got {value!r}")
    if not least <= value < 2**31:
        raise ValueError(f"must be at least {least} and below 2^31, got {value}")
    return value


def seeds_of(values: Sequence[Any], wrong: Complaints) -> tuple[int, ...]:
    """Seeds from numbers and from texts such as "0:100", which is 0 to 99; each once, and rising."""
    found: set[int] = set()
    for i, value in enumerate(values):
        seeds = wrong.read(Place("seed", i if len(values) > 1 else None), _seeds, value)
        found.update(seeds or ())
    if not values:
        wrong.add(Place("seed"), "expected at least one seed, got an empty list")
    return tuple(sorted(found))


def _seeds(value: Any) -> range:
    spelled = re.fullmatch(r"(\d{1,10}):(\d{1,10})", value, re.ASCII) if isinstance(value, str) else None
    if spelled:
        first, last = map(int, spelled.groups())
        if not first < last <= MAX_SEED or last - first > MAX_SEEDS:
            raise ValueError(
                f"expected FIRST:END with FIRST below END, at most {MAX_SEEDS:,} seeds below 2^31, got '{value}'"
            )
        return range(first, last)
    if isinstance(value, str):
        raise ValueError(f"expected a seed or FIRST:END such as 0:100, got '{value}'")
    seed = whole(value, 0)
    return range(seed, seed + 1)
