"""Rows of one family share its best member: the best that the searches for any of them have found counts for all.

Two guides are of one family if they have the same parameters and, whatever values these have, the same density: so are
a class of guides and a function that makes one of them with other initial values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ppl_vi.comparison.comparison import Entry, Signature
from ppl_vi.svi.result import Fit

# The parameters and points at which densities are compared: so many of each.
NUM_MEMBERS, NUM_POINTS = 3, 4
# Densities that differ by no more than this, relative to their logarithm, are the same.
RELATIVE_DIFFERENCE = 1e-8
# Family gaps that differ by more than this, in nats, and by more than their errors, are of different optima.
OTHER_OPTIMUM = 1e-6


def signature_of(fit: Fit) -> Signature:
    """What tells the family of a fit from others: its parameters, and its density at some values of them."""
    target, layout = fit.target, fit.program.layout
    wave = torch.arange(NUM_MEMBERS * layout.size, dtype=target.dtype, device=target.device)
    theta = torch.sin(1.0 + wave).reshape(1, NUM_MEMBERS, layout.size).expand(target.num_problems, -1, -1)
    steps = torch.cos(torch.arange(NUM_POINTS * target.dim, dtype=target.dtype, device=target.device))
    u = target.start.loc[:, None] + target.start.scale[:, None] * steps.reshape(NUM_POINTS, target.dim)
    latents = {
        name: value[:, None].expand(-1, NUM_MEMBERS, *value.shape[1:]) for name, value in target.constrain(u)[0].items()
    }
    density = fit.log_prob_at(theta, latents).cpu().numpy().ravel()
    return Signature(layout.names, tuple(tuple(shape) for shape in layout.shapes), density)


def is_same_family(one: Entry, other: Entry) -> bool:
    """Whether two entries are of one family."""
    a, b = one.signature, other.signature
    if a is None or b is None or (a.names, a.shapes) != (b.names, b.shapes):
        return False
    return bool(np.allclose(a.density, b.density, rtol=RELATIVE_DIFFERENCE, atol=RELATIVE_DIFFERENCE, equal_nan=True))


def with_shared_members(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """The entries, each measured against the best member that is known of its family."""
    return tuple(_with_best(entry, [other for other in entries if is_same_family(entry, other)]) for entry in entries)


def _with_best(entry: Entry, family: list[Entry]) -> Entry:
    """An entry with the lowest family gap of the rows of its family, which all are upper bounds where these differ."""
    if len(family) < 2:
        return entry
    return replace(
        entry,
        records=tuple(_lowered(own, [one.records[b] for one in family]) for b, own in enumerate(entry.records)),
    )


def _lowered(own: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A record whose family gap is the lowest of the rows; what it had more is start gap, or what the fit left."""
    known = [row for row in rows if isinstance(row["family_gap"], float)]
    best = min(known, key=lambda row: row["family_gap"], default=None)
    if best is None or not isinstance(own["family_gap"], float):
        return own
    differ = any(row["family_gap"] - best["family_gap"] > _noise(row) + _noise(best) for row in known)
    excess = own["family_gap"] - best["family_gap"]
    bound = {"family_gap_is_upper_bound": own["family_gap_is_upper_bound"] or differ}
    if excess <= _noise(own) + _noise(best):
        return own | bound
    gap = {name: best[name] for name in best if name in ("family_gap", "family_gap_error", "family_gap_std_error")}
    to = "start_gap" if own["start_gap"] is not None else "optimization_gap"
    replicas = [_raised(replica, to, excess) for replica in own["replicas"]]
    return _raised(own, to, excess) | gap | bound | {"replicas": replicas}


def _raised(values: dict[str, Any], name: str, excess: float) -> dict[str, Any]:
    """The same values, one of them larger, if it is a number."""
    return values | {name: values[name] + excess} if isinstance(values[name], float) else values


def _noise(row: dict[str, Any]) -> float:
    """How far a family gap may be off without another optimum, nats."""
    parts = [row.get("family_gap_error"), 3 * (row.get("family_gap_std_error") or 0.0)]
    return OTHER_OPTIMUM + sum(part for part in parts if isinstance(part, float))
