"""The check, before a fit, that a guide stays inside the posterior's support: SVI alone often does not notice.

A guide with mass where the posterior has none has the reverse KL +inf and the ELBO -inf. While validation is off, Pyro
evaluates the prior's formula there all the same, so SVI converges to a "bound" that may lie above log p(x).
"""

from __future__ import annotations

from typing import Any

import pyro.poutine as poutine
from pyro.distributions.transforms import biject_to
from pyro.infer.autoguide import AutoGuide, AutoMessenger
from torch import Tensor, nn
from torch.distributions import Independent, constraints
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import ComposeTransform, IndependentTransform

from ppl_vi.guides import ANY, POSITIVE, REAL, RefusedFamilyError
from ppl_vi.svi.program import guide_sites, is_delta
from ppl_vi.target.supports import LatentSite, ends
from ppl_vi.target.target import Target
from ppl_vi.target.truncation import support_of

# Pyro's autoguides that follow a support that moves with other latents.
MOVING_SUPPORT_AUTOGUIDES = ("AutoNormalMessenger", "AutoHierarchicalNormalMessenger", "AutoRegressiveMessenger")


class SupportMismatchError(ValueError):
    """A guide puts mass where the posterior has none, so its reverse KL is infinite; the message names the site."""


def contains(outer: Constraint, inner: Constraint) -> bool:
    """Whether every value of `inner` satisfies `outer`, up to the ends of intervals, which carry no mass."""
    big, small = ends(outer), ends(inner)
    if big is not None and small is not None:
        return bool((big[0] <= small[0]).all() and (small[1] <= big[1]).all())
    return type(outer) is type(inner)


def describe(support: Constraint) -> str:
    """A support in words: an interval such as `[0, inf)`, or the constraint's own name."""
    found = ends(support)
    if found is None:
        return str(support)
    low, high = (_number(end) for end in found)
    return f"{'(' if low == '-inf' else '['}{low}, {high}{')' if high == 'inf' else ']'}"


def _number(end: Tensor) -> str:
    return f"{float(end):g}" if end.numel() == 1 else str([float(f"{value:g}") for value in end.flatten().tolist()])


def families_for(support: Constraint) -> list[str]:
    """The names of the families whose support lies within a given one."""
    table = POSITIVE if contains(support, constraints.nonnegative) else {}
    return [*table, *(REAL if contains(support, constraints.real) else {}), *ANY]


def _ends_in_bijection(fn: Any, support: Constraint) -> bool:
    """Whether the last transform of a distribution is Pyro's own map to a support.

    Its draws are then inside that support, although the support that the distribution declares may be wider.
    """
    while isinstance(fn, Independent):
        fn = fn.base_dist
    own = [part for transform in getattr(fn, "transforms", ()) for part in _parts(transform)]
    last = _parts(biject_to(support))
    return own[len(own) - len(last) :] == last


def _parts(transform: Any) -> list[Any]:
    """The transforms that a transform is composed of, without wrappers that only count its dimensions."""
    while isinstance(transform, IndependentTransform):
        transform = transform.base_transform
    if isinstance(transform, ComposeTransform):
        return [part for inner in transform.parts for part in _parts(inner)]
    return [transform]


def _refuse_draw(node: Any, site: LatentSite, whole: bool) -> None:
    """Refuses a guide's draw of a site that is discrete, of another shape than the model's, or nan.

    Args:
        node: the site in the guide's trace.
        site: the site in the model.
        whole: whether the guide draws the whole of the site, and not a subsample's part.

    Raises:
        ValueError: see above.
    """
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
    """Which support of a guide's sites does not lie inside the model's, in words, or None where all do.

    Raises:
        RefusedFamilyError: the guide is an autoguide that can't follow a support that moves with other latents.
        ValueError: the guide lacks a latent site of the model, adds one, or draws one that is discrete, of another
            shape or nan; or it has no parameters.
    """
    with target.isolated(seed=0):
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
    _refuse_still(target, guide)
    for site in target.sites_at({site.name: sites[site.name]["value"].detach() for site in target.latents}):
        fn = sites[site.name]["fn"]
        support = support_of(fn)
        if is_delta(fn) or contains(site.support, support) or _ends_in_bijection(fn, site.support):
            continue
        fitting = ", ".join(MOVING_SUPPORT_AUTOGUIDES if target.moving else families_for(site.support))
        return (
            f"site '{site.name}': the guide's support {describe(support)} is not inside the model's "
            f"{describe(site.support)}, so the reverse KL is inf and the ELBO -inf; families that fit: {fitting}"
        )
    return None


def _refuse_still(target: Target, guide: nn.Module) -> None:
    """Refuses autoguides that keep each site in the support of one run, where that moves with other latents.

    Of Pyro's autoguides these are all but those that are effect handlers.

    Raises:
        RefusedFamilyError: the guide is one of them.
    """
    if target.moving and isinstance(guide, AutoGuide) and not isinstance(guide, AutoMessenger):
        name, site = type(guide).__name__, target.moving[0]
        raise RefusedFamilyError(
            f"the support of site '{site}' moves with other latents, and {name} keeps to that of one run: take "
            f"{MOVING_SUPPORT_AUTOGUIDES[0]}, which follows it, or a guide of your own; or draw the site on a fixed "
            "support, Uniform(a, b) as a + (b - a) * Uniform(0, 1)"
        )
