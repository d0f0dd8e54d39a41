"""Data that are nan where a mask leaves them out.

Their log density is left out by `torch.where`, but not its gradient, which is nan: 0 times nan. So they are replaced by
another datum of the same site, whose log density is then left out, and its gradient, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from ppl_vi.target.enumeration import masks_of


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
