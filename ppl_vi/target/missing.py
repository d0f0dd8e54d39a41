"""Data that are missing: nan where a mask leaves them out, and latents that stand for them.

The log density of nan is left out by `torch.where`, but not its gradient, which is nan: 0 times nan. So they are
replaced by another datum of the same site, whose log density is then left out, and its gradient, too.

Pyro's `obs_mask` makes a latent for each entry of the data, with a density where the entry is missing. Where nothing
depends on these latents, the integral over them is 1, and they are left out of the model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro.poutine as poutine
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from ppl_vi.target.enumeration import is_continuous_latent, masks_of
from ppl_vi.target.inspection import UNOBSERVED_SUFFIX


class _Filling(Messenger):
    """Replaces masked nan in what sites observe."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"]:
            msg["value"] = filled(msg)


def left_out(node: Any) -> Tensor | None:
    """Where a site's masks leave its density out, of its batch shape; None where no mask does."""
    masks = [mask for mask in masks_of(node) if not bool(mask.all())]
    if not masks:
        return None
    kept = masks[0]
    for mask in masks[1:]:
        kept = kept & mask
    return ~kept.bool()


def filled(node: Any) -> Any:
    """What a site observes, where entries that are nan and left out are replaced by an entry that is not nan."""
    value = node["value"]
    if not isinstance(value, Tensor) or not value.is_floating_point() or not bool(value.isnan().any()):
        return value
    out = left_out(node)
    if out is None:
        return value
    num_event = node["fn"].event_dim
    entries = value.reshape(-1, *value.shape[value.dim() - num_event :])
    whole = entries.flatten(1).isfinite().all(1) if num_event else entries.isfinite()
    if not bool(whole.any()):
        return value
    missing = value.isnan().flatten(value.dim() - num_event).any(-1) if num_event else value.isnan()
    replaced = (out & missing).expand(missing.shape)
    return torch.where(replaced.reshape(*replaced.shape, *[1] * num_event), entries[int(whole.nonzero()[0])], value)


@dataclass(frozen=True, eq=False)
class FilledModel:
    """A Pyro model whose masked nan data are replaced by other data.

    Attributes:
        function: the model.
    """

    function: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model."""
        with _Filling():
            return self.function(*args, **kwargs)


def filled_model(model: Callable[..., Any], trace: Trace) -> Callable[..., Any]:
    """The model with masked nan data replaced; the same model if it has none, as its trace shows."""
    observed = [node for node in trace.nodes.values() if node["type"] == "sample" and node["is_observed"]]
    return model if all(filled(node) is node["value"] for node in observed) else FilledModel(model)


@dataclass(frozen=True, eq=False)
class WithoutMissing:
    """A Pyro model without the latents that stand for missing data.

    Attributes:
        function: the model.
        values: by name, any values of these latents.
    """

    function: Callable[..., Any]
    values: dict[str, Tensor]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model."""
        with poutine.block(hide=list(self.values)):
            return poutine.condition(self.function, data=self.values)(*args, **kwargs)


def without_missing(model: Callable[..., Any], trace: Trace, args: tuple[Any, ...]) -> Callable[..., Any]:
    """The model without latents for missing data; the same model if it has none, or if something depends on them.

    Args:
        model: a Pyro model.
        trace: of one run of it.
        args: of that run.
    """
    sites = {name: node for name, node in trace.nodes.items() if node["type"] == "sample"}
    names = [name for name, node in sites.items() if name.endswith(UNOBSERVED_SUFFIX) and is_continuous_latent(node)]
    if not names:
        return model
    values = [{name: sites[name]["value"] for name in names}, {name: sites[name]["fn"].sample() for name in names}]
    one, other = (_densities_of_others(model, trace, args, each) for each in values)
    same = one.keys() == other.keys() and all(torch.equal(one[site], other[site]) for site in one)
    return WithoutMissing(model, values[0]) if same else model


def _densities_of_others(
    model: Callable[..., Any], trace: Trace, args: tuple[Any, ...], values: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The log density of each site but those of some values, where all other latents are those of a trace."""
    again = poutine.trace(poutine.replay(poutine.condition(model, data=values), trace=trace)).get_trace(*args)
    again.compute_log_prob()
    return {
        name: node["log_prob_sum"]
        for name, node in again.nodes.items()
        if node["type"] == "sample" and name not in values
    }
