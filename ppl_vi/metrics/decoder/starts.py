"""Where the search for a family's best member starts: every hill that a lattice of simple guides can see."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor
from torch.nn import functional

from ppl_vi.guides.amortized import Head
from ppl_vi.guides.amortized.full import Full
from ppl_vi.metrics.decoder.lattice_values import CachedLattice, rough_elbo
from ppl_vi.metrics.decoder.mixture_em import em_fit, padded
from ppl_vi.numerics.mixtures import LOG_2PI, GaussianMixtures
from ppl_vi.numerics.newton import minimize
from ppl_vi.target.evaluation import decoded_of, log_likelihood_at
from ppl_vi.target.target import Target

LATTICE = {1: 401, 2: 81, 3: 25}  # nodes an axis
BLOCK = {1: 2000, 2: 64, 3: 16}  # problems at once
SCALES = (1.0, 2.0, 4.0, 8.0)  # of the trial guides, in spacings
MARGIN = 1.0  # the lattice reaches so far beyond the encoder's means, and at least to
REACH = 4.5  # prior standard deviations
NUM_HILLS = 3  # a problem
WITHIN = 10.0  # nats of its best


def multistart(tiles: CachedLattice, head: Head, local: Tensor) -> tuple[Tensor, Tensor]:
    """Local parameters from which to maximise the ELBO.

    The ELBO of every diagonal Gaussian with its mean on a lattice and one of a few widths is a convolution of the log
    likelihood there: a matrix product for all problems at once. From each local maximum comes one start, the better of
    that Gaussian and Laplace's approximation at the posterior's mode uphill; and one from the mode uphill of the
    encoder's mean.

    Args:
        target: with a decoder.
        head: the family.
        local: the encoder's parameters, `(B, num_outputs)`.

    Returns:
        Starts `(N, num_outputs)` and the problem of each, `(N,)`.
    """
    target, mean = tiles.target, GaussianMixtures(*head.components(local)).mean()
    loc, scale, kept = posterior_modes(target, max(REACH, float(mean.abs().max()) + MARGIN))
    index, which = kept.nonzero(as_tuple=True)
    loc, scale = loc[index, which], scale[index, which]
    everyone = torch.arange(len(local), device=local.device)
    simple = torch.cat([head.initial(loc, torch.diag_embed(scale**-2)), local])
    index, loc = torch.cat([index, everyone]), torch.cat([loc, mean])
    laplace, usable = _laplace(target, head, loc, index)
    gain = rough_elbo(tiles, head, laplace, index) - rough_elbo(tiles, head, simple, index)
    better = usable & (gain > 0)  # comparison with nan is false
    return torch.where(better[:, None], laplace, simple), index


def mixed(tiles: CachedLattice, head: Head, given: Tensor) -> tuple[Tensor, Tensor]:
    """Local parameters of mixtures matched to each posterior, from which to maximise the ELBO.

    Args:
        tiles: of the target.
        head: a family of mixtures.
        given: the encoder's members and, last, the nearest that is known, `(B, M, num_outputs)`; `multistart` adds the
            hills that these don't see.

    Returns:
        Starts `(B, num_outputs)` and the problem of each, `(B,)`.
    """
    num, simple = len(given), Full(tiles.dim)
    everyone = torch.arange(num, device=given.device)
    one = simple.packed(*_spread(GaussianMixtures(*head.components(given))))
    found, index = multistart(tiles, simple, one[:, 0])
    found, index = torch.cat([one[:, -1], found]), torch.cat([everyone, index])
    gaussians = GaussianMixtures(*simple.components(found))
    posterior_modes = padded(torch.zeros_like(found[:, 0]), gaussians.locs[:, 0], gaussians.trils[:, 0], index, num)
    return head.holding(*em_fit(tiles.target, posterior_modes, head.num_components)), everyone


def _spread(mixture: GaussianMixtures) -> tuple[Tensor, Tensor]:
    """Mean `(..., D)` and the covariance's Cholesky factor `(..., D, D)`."""
    share, loc = mixture.log_weights.exp()[..., None], mixture.mean()
    away = mixture.locs - loc[..., None, :]
    each = mixture.trils @ mixture.trils.mT + away[..., :, None] * away[..., None, :]
    return loc, torch.linalg.cholesky((share[..., None] * each).sum(-3))


def _laplace(target: Target, head: Head, loc: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """The family's member at the mode uphill of `loc` `(N, D)`, and whether there is one."""

    def loss(z: Tensor, row: Tensor) -> Tensor:
        return z.square().sum() / 2 - log_likelihood_at(target, z[None, None], row[None])[0, 0]

    found = minimize(loss, loc, args=(index,), tolerance=1e-6, max_steps=50)
    usable = found.converged & (torch.linalg.cholesky_ex(found.hessian).info == 0)
    eye = torch.eye(loc.shape[-1], dtype=loc.dtype, device=loc.device)
    return head.initial(found.x, torch.where(usable[:, None, None], found.hessian, eye)), usable


@torch.no_grad()
def posterior_modes(target: Target, reach: float) -> tuple[Tensor, Tensor, Tensor]:
    """Local maxima of the ELBO over a lattice of diagonal Gaussians.

    Args:
        target: with a decoder.
        reach: half the lattice's width.

    Returns:
        Means `(B, M, D)`, standard deviations `(B, M, D)`, and which of the M are within reach of the best, `(B, M)`.
    """
    decoded, dim, num = decoded_of(target), target.dim, LATTICE[target.dim]
    axis = torch.linspace(-reach, reach, num, dtype=target.dtype, device=target.device)
    scales = (axis[1] - axis[0]) * torch.tensor(SCALES, dtype=axis.dtype, device=axis.device)
    kernels = torch.softmax(-((axis[:, None] - axis) / scales[:, None, None]).square() / 2, -1)
    z = torch.cartesian_prod(*[axis] * dim).reshape(-1, dim)
    found = []
    for first in range(0, target.num_problems, BLOCK[dim]):
        rows = tuple(arg[first : first + BLOCK[dim]] for arg in target.args)
        log_likelihood = decoded.log_likelihood(z, *rows).reshape(-1, *[num] * dim)
        value, choice = _profile(log_likelihood, axis, scales, kernels)
        found.append(_tops(value, choice, z, scales))
    loc, scale, value = (torch.cat(parts) for parts in zip(*found, strict=True))
    return loc, scale, value >= value[:, :1] - WITHIN


def _profile(log_likelihood: Tensor, axis: Tensor, scales: Tensor, kernels: Tensor) -> tuple[Tensor, Tensor]:
    """At each mean the best of the widths: the ELBO `(b, n, ..., n)` and which combination it was."""
    dim = log_likelihood.dim() - 1
    squares = sum(torch.meshgrid(*[axis.square()] * dim, indexing="ij"), torch.zeros((), dtype=axis.dtype))
    best, choice = torch.full_like(log_likelihood, -math.inf), torch.zeros_like(log_likelihood, dtype=torch.long)
    blurred: dict[tuple[int, ...], Tensor] = {(): log_likelihood}
    for place in range(1, dim + 1):
        blurred = {
            (*before, which): (value.movedim(place, -1) @ kernels[which].mT).movedim(-1, place)
            for before, value in blurred.items()
            for which in range(len(scales))
        }
    for number, combination in enumerate(itertools.product(range(len(scales)), repeat=dim)):
        width = scales[list(combination)]
        entropy = (width.log() + (1 + LOG_2PI) / 2).sum()
        value = blurred[combination] - squares / 2 - width.square().sum() / 2 - dim * LOG_2PI / 2 + entropy
        higher = value > best
        best, choice = torch.where(higher, value, best), choice.masked_fill(higher, number)
    return best, choice


def _tops(value: Tensor, choice: Tensor, z: Tensor, scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The highest local maxima: means `(b, M, D)`, widths `(b, M, D)`, ELBOs `(b, M)`, -inf where there are fewer."""
    dim = value.dim() - 1
    pool = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[dim - 1]
    maximum = value >= pool(value[:, None], 3, stride=1, padding=1)[:, 0]
    height, place = value.masked_fill(~maximum, -math.inf).flatten(1).topk(NUM_HILLS, -1)
    combinations = torch.tensor(list(itertools.product(range(len(scales)), repeat=dim)), device=z.device)
    width = scales[combinations[choice.flatten(1).gather(1, place)]]
    return z[place], width, height
