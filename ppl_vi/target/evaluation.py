"""The log joint, and what a decoder decodes, at many points of many problems."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import pyro.poutine as poutine
import torch
from torch import Tensor

from ppl_vi.compiler.many_points import AtPoints, chunks
from ppl_vi.numerics.rules import SPACINGS
from ppl_vi.numerics.vmapping import vmap_or_loop
from ppl_vi.runtime.memory import at_once
from ppl_vi.target.arguments import BoundModel, tensors_of
from ppl_vi.target.decoder import Decoded
from ppl_vi.target.factorising import Factorising
from ppl_vi.target.sites import Latents, latents_of, numbers_of
from ppl_vi.target.target import Target

# The most numbers that points decoded together may be decoded to, 128 MB in double precision.
MAX_DECODED_NUMBERS = 1 << 24
NUM_PRIOR_DRAWS = 256
# Bytes that the temporaries of a point are taken to need at once, for each number of the largest of them: some five of
# that size in double precision.
BYTES_PER_NUMBER = 40
# The same where a guide is run, for each number of the latents: Pyro's autoguides compute a draw of all of them for
# each site.
BYTES_PER_GUIDE_NUMBER = 400
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
    numbers = sum(site.shape.numel() for site in target.latents)
    return at_once(max(MIN_POINTS, MAX_DATA_NUMBERS // numbers), BYTES_PER_GUIDE_NUMBER * numbers)


def points_at_once(target: Target) -> int:
    """How many points to take together where the model is run on each of them, with its data."""
    given = tensors_of(target.model.given) if isinstance(target.model, BoundModel) else []
    data = sum(arg[0].numel() for arg in target.args) + sum(tensor.numel() for tensor in given)
    most = max(1, MAX_NUMBERS // target.width)
    fastest = min(most, max(MIN_POINTS, min(drawn_at_once(target), MAX_DATA_NUMBERS // max(1, data))))
    return at_once(fastest, BYTES_PER_NUMBER * target.width)


def log_joint(target: Target, latents: Latents, index: Tensor | None = None) -> Tensor:
    """log p(x, z) at many points, nats.

    Args:
        target: the problems.
        latents: for each site `(B, S, *site.shape)`.
        index: which problem each leading row belongs to, `(B,)`; all of them in order by default.

    Returns:
        `(B, S)`.
    """
    points = numbers_of(target.latents, latents)
    if index is None:
        return evaluator(target)((points,), target.args)[0]
    if target.num_problems == 1:  # all points together are then many, for which machine code pays
        return evaluator(target)((points.flatten(0, 1)[None],), target.args)[0].reshape(points.shape[:2])
    size = at_once(len(index), BYTES_PER_NUMBER * sum(arg[0].numel() for arg in target.args))
    found = []
    for some in chunks(len(index), size):
        rows = [arg[index[some]] for arg in target.args]
        found.append(evaluator(target)((points[some],), rows)[0])
    return torch.cat(found)


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
    with target.isolated(seed), torch.no_grad(), Factorising():
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
    numbers = sum(arg[0].numel() for arg in target.args)
    return at_once(max(1, MAX_DECODED_NUMBERS // numbers), BYTES_PER_NUMBER * numbers)
