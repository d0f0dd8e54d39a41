"""Guide families by name: this package's and Pyro's from the tables below, a user's as `package.module:attribute`.

A family is a function from a model to a guide. There is one table for each kind of latent that families are made for:
positive numbers, real numbers, and any latent. Each of our families has a file of its own (`lognormal.py` is the one to
copy), `autoguides.py` has Pyro's, and `own.py` makes families of what users give as a guide. The folder `amortized` has
the families of a VAE's encoder.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from ppl_vi.guides.autoguides import ACCEPTED, AUTOGUIDES, REFUSED, laplace
from ppl_vi.guides.exponential import exponential
from ppl_vi.guides.folded_normal import folded_normal
from ppl_vi.guides.gamma import gamma
from ppl_vi.guides.half_normal import half_normal
from ppl_vi.guides.linear_response import linear_response
from ppl_vi.guides.lognormal import lognormal
from ppl_vi.guides.lognormal_mixture import lognormal_mixture
from ppl_vi.guides.normal import normal
from ppl_vi.guides.pathfinder import pathfinder
from ppl_vi.guides.softplus_normal import softplus_normal
from ppl_vi.guides.spline_flow import spline_flow
from ppl_vi.guides.truncated_normal import truncated_normal
from ppl_vi.guides.weibull import weibull
from ppl_vi.runtime.names import check_family, guide_and_file, meant, unknown

Family = Callable[..., Any]

POSITIVE: dict[str, Family] = {
    "truncated_normal": truncated_normal,
    "lognormal": lognormal,
    "softplus_normal": softplus_normal,
    "gamma": gamma,
    "weibull": weibull,
    "exponential": exponential,
    "half_normal": half_normal,
    "folded_normal": folded_normal,
    "lognormal_mixture": lognormal_mixture,
    "spline_flow": spline_flow,
}

REAL: dict[str, Family] = {"normal": normal}

ANY: dict[str, Family] = {
    "laplace": laplace,
    "linear_response": linear_response,
    "pathfinder": pathfinder,
    **AUTOGUIDES,
}

FAMILIES: dict[str, Family] = POSITIVE | REAL | ANY

# Families whose divergence has many local minima: the best member found may not be the best of all, so its divergence
# is an upper bound on the family gap.
MULTIMODAL = frozenset({"lognormal_mixture", "spline_flow"})


class RefusedFamilyError(ValueError):
    """A guide or family exists but can't be compared; the message says why."""


def find_family(name: str) -> Family:
    """A family by name or by `package.module:attribute`, which a file of values may follow after `=`.

    Raises:
        RefusedFamilyError: an autoguide of Pyro's that can't be compared, with the reason.
        ValueError: no such name, with the nearest ones; or the attribute can't be imported or called.
    """
    name, _ = guide_and_file(name)
    check_family(name)
    if name in REFUSED:
        raise RefusedFamilyError(f"{name}: {REFUSED[name]}")
    return FAMILIES[name] if name in FAMILIES else _import(name)


def _import(path: str) -> Family:
    module_name, _, attribute = path.partition(":")
    found: Any = None
    try:
        found = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        near = meant(attribute, vars(found) if found is not None else ())
        raise ValueError(f"guide '{path}' can't be imported: {error}{near}") from error
    except Exception as error:  # whatever a module does when it is imported
        raise ValueError(f"guide '{path}' can't be imported: {error}") from error
    if not callable(found):
        raise ValueError(f"guide '{path}' must be callable with a model, got {type(found).__name__}")
    return found


def summary(name: str) -> str:
    """One line about a family of `FAMILIES`."""
    if name in ACCEPTED:
        return f"Pyro's: {ACCEPTED[name]}"
    family = FAMILIES[name]
    return getattr(family, "summary", None) or (family.__doc__ or "").strip().splitlines()[0]


__all__ = [
    "ANY", "FAMILIES", "MULTIMODAL", "POSITIVE", "REAL", "REFUSED", "Family", "RefusedFamilyError",
    "find_family", "summary", "unknown",
]  # fmt: skip
