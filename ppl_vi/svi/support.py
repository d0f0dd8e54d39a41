"""Whether a guide stays inside the posterior's support: checked before fitting, since SVI often never notices.

A guide with mass where the posterior has none has reverse KL = +inf and ELBO = -inf. With validation off Pyro
evaluates the prior's formula there all the same, so SVI converges, to a "bound" above log p(x).
"""

from __future__ import annotations

import math
from typing import Any

import pyro.poutine as poutine
from pyro.distributions.transforms import biject_to
from torch import nn
from torch.distributions import Independent, constraints
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import IndependentTransform

from ppl_vi.guides import ANY, POSITIVE, REAL
from ppl_vi.state import isolated
from ppl_vi.svi.pure import guide_sites, is_delta
from ppl_vi.target import LatentSite, Target


class SupportMismatchError(ValueError):
    """A guide puts mass where the posterior has none."""


def bounds(support: Constraint) -> tuple[float, float] | None:
    """The ends of a support that is an interval of the line, None for any other."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if support is constraints.real:
        return (-math.inf, math.inf)
    low = getattr(support, "lower_bound", None)
    high = getattr(support, "upper_bound", None)
    if low is None and high is None:
        return None
    return (float(low if low is not None else -math.inf), float(high if high is not None else math.inf))


def contains(outer: Constraint, inner: Constraint) -> bool:
    """Whether every value of `inner` satisfies `outer`, up to the ends of intervals, which carry no mass."""
    big, small = bounds(outer), bounds(inner)
    if big is not None and small is not None:
        return big[0] <= small[0] and small[1] <= big[1]
    return type(outer) is type(inner)


def describe(support: Constraint) -> str:
    """A support in words: `[0, inf)` or the constraint's own name."""
    ends = bounds(support)
    if ends is None:
        return str(support)
    return f"{'(' if math.isinf(ends[0]) else '['}{ends[0]:g}, {ends[1]:g}{')' if math.isinf(ends[1]) else ']'}"


def families_for(support: Constraint) -> list[str]:
    """Names of the families whose support lies within a given one."""
    table = POSITIVE if contains(support, constraints.nonnegative) else {}
    return [*table, *(REAL if contains(support, constraints.real) else {}), *ANY]


def _ends_in_bijection(fn: Any, support: Constraint) -> bool:
    """Whether a distribution's last step is Pyro's own map to a support: its declared one may be wider."""
    while isinstance(fn, Independent):
        fn = fn.base_dist
    transforms = getattr(fn, "transforms", None) or [None]
    return bool(_elementwise(transforms[-1]) == _elementwise(biject_to(support)))


def _elementwise(transform: Any) -> Any:
    """A transform without what only counts its dimensions."""
    while isinstance(transform, IndependentTransform):
        transform = transform.base_transform
    return transform


def _refuse_draw(node: Any, site: LatentSite, whole: bool) -> None:
    value, fn = node["value"], node["fn"]
    if fn.support.is_discrete:
        raise ValueError(f"site '{site.name}': the guide draws from a {type(fn).__name__}, which is discrete")
    if whole and value.numel() != site.shape.numel():
        raise ValueError(
            f"site '{site.name}': the guide draws shape {tuple(value.shape)}, the model {tuple(site.shape)}"
        )
    if bool(value.isnan().any()) or bool(node["log_prob"].isnan().any()):
        raise ValueError(
            f"site '{site.name}': the guide's draw or density is nan before the first step: look at the initial values "
            f"of the parameters of its {type(fn).__name__}"
        )


def mismatch(target: Target, guide: nn.Module) -> str | None:
    """What is wrong with the guide's sites or supports for this target, or None.

    Raises:
        ValueError: the guide misses a latent site of the model, adds one, draws one in another shape or where it has no
            density; or has nothing to fit.
    """
    with isolated(target.dtype, seed=0):
        trace = poutine.trace(guide).get_trace(*target.row(0))
        trace.compute_log_prob()
    sites = guide_sites(trace)
    missing = [site.name for site in target.latents if site.name not in sites]
    if missing:
        raise ValueError(f"the guide has no site '{missing[0]}', which the model draws; it has {sorted(sites)}")
    known = {site.name for site in target.latents}
    added = [name for name, node in sites.items() if name not in known and not node["infer"].get("is_auxiliary")]
    if added:
        raise ValueError(f"the guide draws site '{added[0]}', which the model has not; the model has {sorted(known)}")
    for site in target.latents:
        _refuse_draw(sites[site.name], site, whole=not target.parts)
    if not any(value.requires_grad for value in guide.parameters()):
        raise ValueError("the guide has no parameters, so there is nothing to fit: make some by pyro.param")
    for site in target.latents:
        fn = sites[site.name]["fn"]
        if is_delta(fn) or contains(site.support, fn.support) or _ends_in_bijection(fn, site.support):
            continue
        fitting = ", ".join(families_for(site.support))
        return (
            f"site '{site.name}': the guide's support {describe(fn.support)} is not inside the model's "
            f"{describe(site.support)}, so the reverse KL is inf and the ELBO -inf; families that fit: {fitting}"
        )
    return None
