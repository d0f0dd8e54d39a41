"""Ways of fitting other than Adam's steps, a file each; see `docs/optimisers.md`.

`METHODS` has those that are asked for as an objective, and `FAMILY_METHODS` those that are asked for as a guide.
"""

from __future__ import annotations

from ppl_vi.guides import Family
from ppl_vi.svi.optimisers.dadvi import DADVI
from ppl_vi.svi.optimisers.method import Method

METHODS: dict[str, Method] = {method.name: method for method in (DADVI,)}


def method_of(family: Family, objective: str) -> Method | None:
    """The way of fitting that a family or an objective asks for; None for Adam's steps."""
    return METHODS.get(objective)


__all__ = ["METHODS", "Method", "method_of"]
