"""Distributions whose log density is -inf outside of their support, as Pyro's is not while validation is off.

The formulas of Exponential and Pareto are finite below the lower end of the support, and torch declares the support of
an affine map of a positive number to be the whole line. With such a density the posterior would have another integral.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import TorchDistribution, TransformedDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import AffineTransform, Independent, constraints
from torch.distributions.constraints import Constraint

from ppl_vi.target.supports import ends, same_support

# How far outside of its support a density is evaluated to see whether it is finite there: each number is taken as a
# distance from the end, and as a multiple of the end's own size.
STEPS_OUT = (1.0, 2.0**-20)

SupportKind = Callable[[Tensor, Tensor], Constraint]  # from the ends of an interval to the support


def _above(low: Tensor, high: Tensor) -> Constraint:
    return constraints.greater_than_eq(low)


def _below(low: Tensor, high: Tensor) -> Constraint:
    return constraints.less_than(high)


def support_of(fn: Any, kind: SupportKind | None = None) -> Constraint:
    """The support of a distribution, even if the distribution declares a wider one.

    A transformed distribution declares the codomain of its last transform. For an affine transform that is the whole
    line, whatever it is applied to.

    Args:
        fn: a distribution.
        kind: what `kind_of` gives for it; needed under `vmap`, where the values of the ends can't be looked at.
    """
    kind = kind or kind_of(fn)
    if kind is None:
        return fn.support
    if isinstance(fn, Independent):
        return constraints.independent(support_of(fn.base_dist, kind), fn.reinterpreted_batch_ndims)
    limits = _affine_ends(fn)
    assert limits is not None
    return kind(torch.minimum(*limits), torch.maximum(*limits))


def kind_of(fn: Any) -> SupportKind | None:
    """How to make a distribution's support from its ends if it declares a wider one; None if it does not."""
    while isinstance(fn, Independent):
        fn = fn.base_dist
    limits = _affine_ends(fn)
    if limits is None or all(bool(end.isinf().all()) for end in limits):
        return None
    if bool(torch.maximum(*limits).isinf().all()):
        return _above
    return _below if bool(torch.minimum(*limits).isinf().all()) else constraints.interval


def _affine_ends(fn: Any) -> tuple[Tensor, Tensor] | None:
    """The ends to which affine transforms map those of the base, in either order; None if there is no such map."""
    if type(fn) not in (TransformedDistribution, torch.distributions.TransformedDistribution):
        return None
    transforms = list(fn.transforms)
    affine: list[AffineTransform] = []
    while transforms and isinstance(transforms[-1], AffineTransform):
        affine.insert(0, transforms.pop())
    limits = ends(transforms[-1].codomain if transforms else support_of(fn.base_dist))
    if limits is None or not affine:
        return None
    for transform in affine:
        limits = transform(limits[0]), transform(limits[1])
    return limits


class TruncatedDistribution(TorchDistribution):
    """A distribution whose log density is -inf outside of its support.

    Args:
        base: the distribution that it is inside of the support.
        kind: see `support_of`.
    """

    arg_constraints: dict[str, Constraint] = {}

    def __init__(self, base: Any, kind: SupportKind | None) -> None:
        self.base, self.kind = base, kind
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def support(self) -> Constraint:
        return support_of(self.base, self.kind) if self.kind else self.base.support

    @property
    def has_rsample(self) -> bool:
        return bool(self.base.has_rsample)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        return self.base.sample(sample_shape)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        return self.base.rsample(sample_shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> TruncatedDistribution:
        return TruncatedDistribution(self.base.expand(batch_shape), self.kind)

    def log_prob(self, value: Tensor) -> Tensor:
        """The base's log density inside of the support and at its ends, onto which draws may be rounded, nats."""
        closed = support_of(self.base, constraints.interval) if self.kind else self.base.support
        return torch.where(closed.check(value), self.base.log_prob(value), -torch.inf)


@dataclass(frozen=True, eq=False)
class TruncatedModel:
    """A Pyro model whose distributions are truncated to their supports at some sites.

    Attributes:
        model: a Pyro model.
        sites: the names of these sites, each with the kind of its support, see `support_of`.
    """

    model: Callable[..., Any]
    sites: dict[str, SupportKind | None]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model."""
        with _Truncating(self.sites):
            return self.model(*args, **kwargs)


class _Truncating(Messenger):
    def __init__(self, sites: dict[str, SupportKind | None]) -> None:
        super().__init__()
        self.sites = sites

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.sites:
            msg["fn"] = TruncatedDistribution(msg["fn"], self.sites[msg["name"]])


def truncated_model(model: Callable[..., Any], one: Trace, other: Trace) -> Callable[..., Any]:
    """A model in which each site has density 0 outside of its support; the same model if none needs truncation.

    A site needs truncation if it declares too wide a support, or if its support moves with the latents and its formula
    is positive outside. Data whose support does not move have been found inside of it.

    Args:
        model: a Pyro model.
        one, other: traces of two runs of it, with different latents.
    """
    sites = {
        name: kind_of(node["fn"])
        for name, node in one.nodes.items()
        if node["type"] == "sample" and name in other.nodes and _needs_truncation(node["fn"], other.nodes[name]["fn"])
    }
    return TruncatedModel(model, sites) if sites else model


def _needs_truncation(fn: Any, other: Any) -> bool:
    try:
        support, again = support_of(fn), support_of(other)
    except (AttributeError, NotImplementedError):  # a plate's subsample, a density without a support
        return False
    return kind_of(fn) is not None or (not same_support(support, again) and _is_positive_outside(fn, support))


def _is_positive_outside(fn: Any, support: Constraint) -> bool:
    """Whether a distribution's formula is positive somewhere outside of its support.

    It is looked at near the ends and farther out: Pareto's is positive between 0 and its lower end, and nan below 0.
    """
    limits = ends(support)
    if limits is None:
        return False
    low, high = limits
    outside = [
        end for out in STEPS_OUT for end in (low - out, low - out * low.abs(), high + out, high + out * high.abs())
    ]
    at = (end.expand(fn.batch_shape + fn.event_shape) for end in outside if bool(end.isfinite().all()))
    return any(bool(fn.log_prob(value).isfinite().any()) for value in at)
