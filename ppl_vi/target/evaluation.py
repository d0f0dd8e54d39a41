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

# The most numbers that points decoded together may be decoded to, 128 MB in double precision.
MAX_DECODED_NUMBERS = 1 << 24
NUM_PRIOR_DRAWS = 256
# The most numbers that the latents, or the data, of the points that are evaluated together may have: 4 MiB in double
# precision, which stay in the processor's cache.
MAX_DATA_NUMBERS = 2**19
# The most numbers that the largest temporary of these points may have: from 2^22 on, memory for it is fetched anew from
# the operating system each time.
MAX_NUMBERS = 2**21
# At least this many points are evaluated together, unless they have more than MAX_NUMBERS numbers: fewer would cost
# more in overhead than they save in memory.
MIN_POINTS = 64

_evaluators: WeakKeyDictionary[Target, AtPoints] = WeakKeyDictionary()


def drawn_at_once(target: Target) -> int:
    """How many points to take together where a guide is run on them, and no data are."""
    return max(MIN_POINTS, MAX_DATA_NUMBERS // sum(site.shape.numel() for site in target.latents))


def points_at_once(target: Target) -> int:
    """How many points to take together where the model is run on each of them, with its data."""
    given = tensors_of(target.model.given) if isinstance(target.model, BoundModel) else []
    data = sum(arg[0].numel() for arg in target.args) + sum(tensor.numel() for tensor in given)
    most = max(1, MAX_NUMBERS // target.width)
    return min(most, max(MIN_POINTS, min(drawn_at_once(target), MAX_DATA_NUMBERS // max(1, data))))


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
    """What evaluates the log joint at many points, made once for each target.

    A point is given by the numbers of its latents, one after another, see `ppl_vi.target.sites.numbers_of`.
    """
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


def prior_draws(target: Target, problem: int, num: int = NUM_PRIOR_DRAWS, seed: int = 0) -> Tensor:
    """Draws of the latents from the prior, in unconstrained space, `(N, D)`.

    N is `num`, less the draws that are not finite in unconstrained space: those lie on an edge of their support.
    """
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
    """What is known of the target's decoder.

    Raises:
        ValueError: the target has no decoder, or too many latents for quadrature.
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
    """How many points may be decoded together, where each takes as many numbers as a problem has data."""
    return max(1, MAX_DECODED_NUMBERS // sum(arg[0].numel() for arg in target.args))
