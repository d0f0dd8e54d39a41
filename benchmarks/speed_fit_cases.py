"""The cases of `benchmarks.speed_fit`: which fits are measured, and in which order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MAX_SMALL_ROWS = 20_000  # on more rows, a step has one draw


@dataclass(frozen=True)
class Case:
    """One row of the tables.

    Attributes:
        model: a name of `speed_models.MODELS`.
        rows: of the data.
        replicas: fits of the same problem.
        particles: draws in each step; "auto" is our fit at its default settings, which has no like elsewhere.
        steps: SVI steps, or the most of them.
    """

    model: str
    rows: int
    replicas: int
    particles: int | Literal["auto"]
    steps: int


def _case_of(model: str, rows: int, replicas: int) -> Case:
    """Several draws a step for one fit, as one would take, but one where fits or rows are many."""
    particles, steps = STEPS.get(model, (16, 500))
    return Case(model, rows, replicas, particles if replicas == 1 and rows <= MAX_SMALL_ROWS else 1, steps)


STEPS = {"hierarchy": (1, 1000), "gaussian_process": (4, 200)}  # draws and steps of one fit, where not 16 and 500
# The most telling come first, so that a run that is broken off has them.
CASES = tuple(
    _case_of(model, rows, replicas)
    for model, rows, replicas in (
        ("poisson", 200, 1), ("logistic", 500, 1), ("hierarchy", 160, 1), ("negative_binomial", 200, 1),
        ("mixture", 200, 1), ("gaussian_process", 50, 1),
        ("poisson", 200, 100), ("hierarchy", 160, 100), ("poisson", 20_000, 1), ("poisson", 2_000, 1),
        ("poisson", 20, 1), ("negative_binomial", 200, 100), ("mixture", 200, 100), ("logistic", 500, 100),
        ("gaussian_process", 50, 100), ("mixture", 20_000, 1), ("negative_binomial", 20_000, 1),
        ("poisson", 200, 1000), ("hierarchy", 160, 1000), ("hierarchy", 800, 100), ("logistic", 100_000, 1),
        ("hierarchy", 100_000, 1), ("poisson", 1_000_000, 1), ("logistic", 1_000_000, 1),
        ("negative_binomial", 1_000_000, 1), ("mixture", 1_000_000, 1),
    )
)  # fmt: skip
DEFAULTS = tuple(
    Case(model, rows, replicas, "auto", 1000)
    for model, rows, replicas in (
        ("poisson", 200, 1), ("poisson", 20_000, 1), ("poisson", 200, 100), ("logistic", 500, 1),
        ("logistic", 100_000, 1), ("hierarchy", 160, 1), ("hierarchy", 160, 100), ("negative_binomial", 200, 1),
        ("mixture", 200, 1), ("gaussian_process", 50, 1),
    )
)  # fmt: skip
NUM_BEFORE_DEFAULTS = 9  # so many of `CASES` come before `DEFAULTS`
FULL = (*CASES[:NUM_BEFORE_DEFAULTS], *DEFAULTS, *CASES[NUM_BEFORE_DEFAULTS:])
QUICK = (Case("poisson", 200, 1, 16, 500), Case("mixture", 200, 100, 1, 200), Case("hierarchy", 160, 1, "auto", 1000))
