"""Distributions that end where their support does: Pyro's go on beyond it where validation is off, as it is here.

Exponential and Pareto have a finite formula below their lower end, and torch declares what an affine map of a positive
number gives to lie anywhere on the line. A density that went on there would have another integral.
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

OUT = (1.0, 2.0**-20)  # how far outside of a support its density is looked at, absolutely and in units of the end


Kind = Callable[[Tensor, Tensor], Constraint]


def _above(low: Tensor, high: Tensor) -> Constraint:
    return constraints.greater_than_eq(low)


def _below(low: Tensor, high: Tensor) -> Constraint:
    return constraints.less_than(high)


def support_of(fn: Any, kind: Kind | None = None) -> Constraint:
    """The support of a distribution, also where it declares a wider one.

    A transformed distribution declares its last transform's codomain, which of an affine transform is the whole line.

    Args:
        fn: a distribution.
        kind: what `kind_of` says of it, for use under `vmap`, where ends can't be looked at.
    """
    kind = kind or kind_of(fn)
    if kind is None:
        return fn.support
    if isinstance(fn, Independent):
        return constraints.independent(support_of(fn.base_dist, kind), fn.reinterpreted_batch_ndims)
    limits = _limits(fn)
    assert limits is not None
    return kind(torch.minimum(*limits), torch.maximum(*limits))


def kind_of(fn: Any) -> Kind | None:
    """How to make a distribution's support from its ends, where it declares a wider one; else None."""
    while isinstance(fn, Independent):
        fn = fn.base_dist
    limits = _limits(fn)
    if limits is None or all(bool(end.isinf().all()) for end in limits):
        return None
    if bool(torch.maximum(*limits).isinf().all()):
        return _above
    return _below if bool(torch.minimum(*limits).isinf().all()) else constraints.interval


def _limits(fn: Any) -> tuple[Tensor, Tensor] | None:
    """Where affine transforms put the ends of what they transform, in either order; None where there are none."""
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
        base: what it is inside.
        kind: see `support_of`.
    """

    arg_constraints: dict[str, Constraint] = {}

    def __init__(self, base: Any, kind: Kind | None) -> None:
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
        """That of the base inside of the support or at its ends, where small numbers are rounded to, nats."""
        closed = support_of(self.base, constraints.interval) if self.kind else self.base.support
        return torch.where(closed.check(value), self.base.log_prob(value), -torch.inf)


@dataclass(frozen=True, eq=False)
class TruncatedModel:
    """A Pyro model some of whose sites end where their supports do.

    Attributes:
        model: a Pyro model.
        sites: their names, each with the kind of its support, see `support_of`.
    """

    model: Callable[..., Any]
    sites: dict[str, Kind | None]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model."""
        with _End(self.sites):
            return self.model(*args, **kwargs)


class _End(Messenger):
    def __init__(self, sites: dict[str, Kind | None]) -> None:
        super().__init__()
        self.sites = sites

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.sites:
            msg["fn"] = TruncatedDistribution(msg["fn"], self.sites[msg["name"]])


def truncated_model(model: Callable[..., Any], one: Trace, other: Trace) -> Callable[..., Any]:
    """A model whose sites end where their supports do: the same one where they do so by themselves.

    Data whose support stays put are inside of it, or refused; so it is data in a support that moves, and latents whose
    declared support is too wide, that need an end.

    Args:
        model: a Pyro model.
        one, other: traces of two runs of it, with different latents.
    """
    sites = {
        name: kind_of(node["fn"])
        for name, node in one.nodes.items()
        if node["type"] == "sample" and name in other.nodes and _needs_an_end(node["fn"], other.nodes[name]["fn"])
    }
    return TruncatedModel(model, sites) if sites else model


def _needs_an_end(fn: Any, other: Any) -> bool:
    try:
        support, again = support_of(fn), support_of(other)
    except (AttributeError, NotImplementedError):  # a plate's subsample, a density without a support
        return False
    return kind_of(fn) is not None or (not same_support(support, again) and _goes_on(fn, support))


def _goes_on(fn: Any, support: Constraint) -> bool:
    """Whether the density is more than 0 beyond an end: Pareto's is so between 0 and its own, and no number below."""
    limits = ends(support)
    if limits is None:
        return False
    low, high = limits
    outside = [end for out in OUT for end in (low - out, low - out * low.abs(), high + out, high + out * high.abs())]
    at = (end.expand(fn.batch_shape + fn.event_shape) for end in outside if bool(end.isfinite().all()))
    return any(bool(fn.log_prob(value).isfinite().any()) for value in at)
