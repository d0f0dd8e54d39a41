"""The log joint, and what a decoder decodes, at many points of many problems."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import pyro.poutine as poutine
import torch
from torch import Tensor

from ppl_vi.compiler.many_points import AtPoints
from ppl_vi.numerics.rules import SPACINGS
from ppl_vi.numerics.vmapping import vmap_or_loop
from ppl_vi.target.arguments import BoundModel, tensors_of
from ppl_vi.target.decoder import Decoded
from ppl_vi.target.sites import Latents, latents_of, numbers_of
from ppl_vi.target.target import Target

DECODED_NUMBERS = 1 << 24  # of decoded points held at once: 128 MB

NUM_PRIOR = 256  # draws of the prior

NUMBERS = 2**19  # of a temporary as large as the data
MOST_NUMBERS = 2**21  # of any: from 2^22 on each is fetched from the system anew

_evaluators: WeakKeyDictionary[Target, AtPoints] = WeakKeyDictionary()


def drawn_at_once(target: Target) -> int:
    """How many points to take together where a guide meets them, and no data."""
    return max(64, NUMBERS // sum(site.shape.numel() for site in target.latents))


def points_at_once(target: Target) -> int:
    """How many points to take together where each meets the data."""
    given = tensors_of(target.model.given) if isinstance(target.model, BoundModel) else []
    data = sum(arg[0].numel() for arg in target.args) + sum(tensor.numel() for tensor in given)
    return max(64, min(drawn_at_once(target), NUMBERS // max(1, data), MOST_NUMBERS // target.width))


def log_joint(target: Target, latents: Latents, index: Tensor | None = None) -> Tensor:
    """log p(x, z) at many points, nats.

    Args:
        target: the problems.
        latents: for each site `(B, S, *site.shape)`.
        index: which problem each leading row belongs to, `(B,)`; all of them in order by default.

    Returns:
        `(B, S)`.
    """
    rows = target.args if index is None else tuple(arg[index] for arg in target.args)
    (value,) = evaluator(target)((numbers_of(target.latents, latents),), rows)
    return value


def evaluator(target: Target) -> AtPoints:
    """The log joint of one problem at one point, whose latents' numbers stand one after another, at many points."""
    if target not in _evaluators:

        def of_one(point: Tensor, *row: Tensor) -> Tensor:
            return target.log_joint_of_row(latents_of(target.latents, point), *row)

        _evaluators[target] = AtPoints(
            of_one,
            target.width,
            points_at_once(target),
            vectorise=vmap_or_loop,
            gate=target.isolated,
            compiles=target.decoded is None,  # torch multiplies a decoder's large matrices faster
        )
    return _evaluators[target]


def prior_draws(target: Target, problem: int, num: int = NUM_PRIOR, seed: int = 0) -> Tensor:
    """Draws of the model's latents before the data are seen, in unconstrained space, `(num, D)`; non-finite ones go."""
    row, drawn = target.row(problem), []
    with target.isolated(seed), torch.no_grad():
        for _ in range(num):
            with poutine.block():
                trace = poutine.trace(target.model).get_trace(*row)
            latents = {site.name: trace.nodes[site.name]["value"].detach()[None] for site in target.latents}
            drawn.append(target.unconstrain(latents)[0])
    u = torch.stack(drawn)
    return u[u.isfinite().all(1)]


def decoded_of(target: Target) -> Decoded:
    """What the target decodes.

    Raises:
        ValueError: it decodes nothing, or too many latents for quadrature.
    """
    if target.decoded is None:
        raise ValueError(f"target '{target.name}' has no decoder: amortized gaps need z ~ Normal(0, I) and one decoder")
    if target.dim not in SPACINGS:
        raise ValueError(f"quadrature reaches {max(SPACINGS)} latents, target '{target.name}' has {target.dim}")
    return target.decoded


def log_likelihood_at(target: Target, z: Tensor, index: Tensor) -> Tensor:
    """log p(x | z) at each problem's own points, nats.

    Args:
        target: with a decoder.
        z: `(N, S, D)`.
        index: the problem of each row, `(N,)`.

    Returns:
        `(N, S)`.
    """
    decoded, out, points = decoded_of(target), [], decoded_at_once(target)
    for few in torch.arange(len(z), device=z.device).split(max(1, points // z.shape[1])):
        rows = tuple(arg[index[few]] for arg in target.args)
        out.append(torch.cat([decoded.log_likelihood_at(part, *rows) for part in z[few].split(points, 1)], 1))
    return torch.cat(out)


def decoded_at_once(target: Target) -> int:
    """How many points may be decoded together: each takes as many numbers as its problem has data, several times."""
    return max(1, DECODED_NUMBERS // sum(arg[0].numel() for arg in target.args))
