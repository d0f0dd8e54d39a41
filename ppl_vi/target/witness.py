"""Whether a model is still the same function: its log density at one point, now and when the target was first used."""

from __future__ import annotations

import math
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ppl_vi.target.mistakes import NO_STATE, SAME_DENSITY
from ppl_vi.target.target import Target, drawn_point

_witnesses: WeakKeyDictionary[Target, tuple[Tensor, float]] = WeakKeyDictionary()


def witness(target: Target) -> tuple[Tensor, float]:
    """A point `(D,)` of unconstrained space, and the log density of the first problem there when first asked for."""
    if target not in _witnesses:
        with target.isolated(seed=0):
            point = drawn_point(target)
        _witnesses[target] = point, _log_density(target, point)
    return _witnesses[target]


def refuse_changed(target: Target) -> None:
    """Refuses a model that has become another function since its target was first used.

    Raises:
        ValueError: its log density at the point of `witness` is another one.
    """
    point, before = witness(target)
    now, slack = _log_density(target, point), SAME_DENSITY * torch.finfo(target.dtype).eps
    if before != now and not math.isclose(before, now, rel_tol=slack, abs_tol=slack) and not math.isnan(before + now):
        raise ValueError(
            f"{target.name}: the model has become another function while it was used: at the same values its log "
            f"density was {before} and is {now}: {NO_STATE}"
        )


def _log_density(target: Target, point: Tensor) -> float:
    with target.isolated(seed=0), torch.no_grad():
        return float(target.log_density_of_row(point, *target.row(0)))
