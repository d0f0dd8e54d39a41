"""The log density of a normal draw by the noise that it was made of.

A draw z = mu + L e of a normal distribution has log q(z) = -e'e / 2 - log det L - D log(2 pi) / 2. By the
distribution's own formula (z - mu)' (L L')^-1 (z - mu) stands in the place of e'e: the same number with the same
derivatives, but for a solution with L at every draw, and for what is rounded off where z has fewer digits than e.
"""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions.score_parts import ScoreParts
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal

from ppl_vi.numerics.mixtures import LOG_2PI
from ppl_vi.svi.randomness import Replay


class Whitening(Messenger):
    """Notes the noise of each normal site that is drawn from given noise.

    Attributes:
        noise: by the name of the site.
    """

    def __init__(self, replay: Replay) -> None:
        super().__init__()
        self.noise: dict[str, Tensor] = {}
        self._replay = replay
        self._begins: dict[str, int] = {}

    def _pyro_sample(self, msg: Any) -> None:
        self._begins[msg["name"]] = self._replay.position

    def _pyro_post_sample(self, msg: Any) -> None:
        taken = self._replay.noise[self._begins.pop(msg["name"]) : self._replay.position]
        if (
            not msg["is_observed"]
            and len(taken) == 1
            and taken[0].shape == msg["value"].shape
            and _is_normal(msg["fn"])
        ):
            self.noise[msg["name"]] = taken[0]

    def score(self, trace: Trace) -> None:
        """Gives the sites whose noise is known their log densities, as `Trace.compute_score_parts` gives them."""
        for name, noise in self.noise.items():
            node = trace.nodes[name]
            own = _log_density(node["fn"], noise)
            parts = ScoreParts(own, 0, own).scale_and_mask(node["scale"], node["mask"])
            node |= {"unscaled_log_prob": own, "score_parts": parts}
            node |= {"log_prob": parts.log_prob, "log_prob_sum": parts.log_prob.sum()}


def _base(fn: Any) -> tuple[Any, int]:
    """The distribution without wrappings that make axes part of an event, and how many axes these are."""
    count = 0
    while isinstance(fn, Independent):
        fn, count = fn.base_dist, count + fn.reinterpreted_batch_ndims
    return fn, count


def _is_normal(fn: Any) -> bool:
    """Whether draws are mu + L e of a distribution that is normal itself, and no other kind of it."""
    return type(_base(fn)[0]).rsample in (Normal.rsample, MultivariateNormal.rsample) and fn.has_rsample


def _log_density(fn: Any, noise: Tensor) -> Tensor:
    base, count = _base(fn)
    each = -noise.square() / 2 - LOG_2PI / 2
    if isinstance(base, MultivariateNormal):
        diagonal = torch.diagonal(base._unbroadcasted_scale_tril, dim1=-2, dim2=-1)
        found = each.sum(-1) - diagonal.log().sum(-1)
    else:
        found = each - base.scale.log()
    return found.flatten(found.dim() - count).sum(-1) if count else found
