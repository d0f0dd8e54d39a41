"""The ELBO of an amortized guide, a mixture of Gaussians, by deterministic quadrature with a stated error.

Each component has a tensor rule of its own, nodes for a standard normal number carried to the component. Rules of
growing level are used until they agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vi.guides.amortized import Head
from ppl_vi.numerics.mixtures import GaussianMixtures
from ppl_vi.numerics.rules import gaussian_rule, num_rule_levels
from ppl_vi.target.evaluation import decoded_of, log_likelihood_at
from ppl_vi.target.target import Target

# Points decoded at once: their activations stay in the processor's cache. More would be slower, not different.
NUM_DECODED_POINTS = 8192


@dataclass(frozen=True)
class Elbo:
    """The ELBO of each problem, or a part of it.

    Attributes:
        value: `(N,)`, nats.
        error: the difference between the last two rules, or the square of the difference before that where it is
            larger, `(N,)`, nats.
    """

    value: Tensor
    error: Tensor


def row_blocks(num_rows: int, num_points: int) -> Iterator[slice]:
    """Slices of rows that have about `NUM_DECODED_POINTS` points together."""
    size = max(1, NUM_DECODED_POINTS // num_points)
    return (slice(first, first + size) for first in range(0, num_rows, size))


def expect(
    mixture: GaussianMixtures, function: Callable[[Tensor, slice], Tensor], nodes: Tensor, weights: Tensor
) -> Tensor:
    """E_q of a function, `(N,)`, by one rule for every component.

    Args:
        mixture: `N` guides q.
        function: `(points (M, S, D), slice of the N rows)` to its values, `(M, S)`.
        nodes: of the rule, for a standard normal number, `(S', D)`.
        weights: of the nodes, `(S',)`.
    """
    out = []
    for block in row_blocks(len(mixture.locs), mixture.locs.shape[1] * len(nodes)):
        part = mixture.rows(block)
        z = part.points(nodes)
        value = function(z.flatten(1, 2), block).unflatten(1, z.shape[1:3])
        out.append((part.log_weights.exp() * (value @ weights)).sum(-1))
    return torch.cat(out)


@torch.no_grad()
def elbo_by(target: Target, head: Head, local: Tensor, problem: Tensor, level: int) -> Tensor:
    """The ELBO of each row by the rule of that level, `(N,)`, nats; the arguments are those of `elbo`."""
    mixture = GaussianMixtures(*head.components(local))
    nodes, weights = (part.to(local) for part in gaussian_rule(level, target.dim))
    likelihood = expect(mixture, lambda z, block: log_likelihood_at(target, z, problem[block]), nodes, weights)
    return likelihood - mixture.prior_kl(level)


def elbo(
    target: Target,
    head: Head,
    local: Tensor,
    *,
    problem: Tensor | None = None,
    tolerance: float = 1e-8,
) -> Elbo:
    """E_q[log p(x | z)] - KL(q || Normal(0, I)) by deterministic quadrature, for any mixture of Gaussians.

    Tensor rules around each component grow until three in a row agree. The KL is in closed form for one
    Gaussian; for a mixture, log q is that of the whole mixture at every node.

    Args:
        target: with a decoder.
        head: the guide's family.
        local: its local parameters, `(N, num_outputs)`, float64.
        problem: that of each row, `(N,)`; all in order by default.
        tolerance: two rules agree when they differ by less, relative to max(1, |ELBO|).

    Raises:
        ValueError: the target has no decoder or more latents than quadrature reaches.
    """
    decoded_of(target)
    problem = torch.arange(len(local), device=local.device) if problem is None else problem
    return _settled(
        lambda rows, level: elbo_by(target, head, local[rows], problem[rows], level),
        len(local), target.dim, tolerance,
    )  # fmt: skip


def settled_prior_kl(mixture: GaussianMixtures, tolerance: float = 1e-8) -> Elbo:
    """KL(q || Normal(0, I)) and its error, `(N,)`, nats: closed form for one Gaussian, else by rules that agree."""
    if mixture.locs.shape[1] == 1:
        value = mixture.prior_kl(0)
        return Elbo(value, torch.zeros_like(value))
    dim = mixture.locs.shape[-1]
    return _settled(lambda rows, level: mixture.rows(rows).prior_kl(level), len(mixture.locs), dim, tolerance)


def _settled(evaluate: Callable[[Tensor, int], Tensor], num_rows: int, dim: int, tolerance: float) -> Elbo:
    """Evaluates rows by finer and finer rules until three in a row agree.

    Two rules may agree by chance. Rules converge no faster than that a change is the square of the one before, so that
    the error is no smaller than that square.
    """
    everyone = torch.arange(num_rows)
    value = evaluate(everyone, 0)
    error, change = torch.full_like(value, torch.inf), torch.full_like(value, torch.inf)
    for level in range(1, num_rule_levels(dim)):
        pending = (error > tolerance * value.abs().clamp(min=1)).nonzero()[:, 0]
        if not len(pending):
            break
        new = evaluate(pending, level)
        new_change = (new - value[pending]).abs()
        error = error.index_copy(0, pending, torch.maximum(new_change, change[pending].square()))
        change = change.index_copy(0, pending, new_change)
        value = value.index_copy(0, pending, new)
    return Elbo(value, error)
