"""Ways of fitting other than Adam's steps, a file each; see `docs/optimisers.md`.

`METHODS` has those that are asked for as an objective, and `FAMILY_METHODS` those that are asked for as a guide.
"""

from __future__ import annotations

from ppl_vi.guides import FAMILIES, Family
from ppl_vi.svi.optimisers.dadvi import DADVI
from ppl_vi.svi.optimisers.linear_response import LINEAR_RESPONSE
from ppl_vi.svi.optimisers.method import Method
from ppl_vi.svi.optimisers.natural_gradient import NATURAL_GRADIENT
from ppl_vi.svi.optimisers.pathfinder import PATHFINDER

METHODS: dict[str, Method] = {method.name: method for method in (DADVI, NATURAL_GRADIENT)}
FAMILY_METHODS: dict[str, Method] = {method.name: method for method in (LINEAR_RESPONSE, PATHFINDER)}


def method_of(family: Family, objective: str) -> Method | None:
    """The way of fitting that a family or an objective asks for; None for Adam's steps."""
    by_family = next((method for name, method in FAMILY_METHODS.items() if FAMILIES[name] is family), None)
    return by_family or METHODS.get(objective)


__all__ = ["FAMILY_METHODS", "METHODS", "Method", "method_of"]
