"""Where the search for a family's best member starts: at every mode of the ELBO over a lattice of simple guides.

For all diagonal Gaussians with their mean on a lattice and one of a few widths, the ELBO is the convolution of the log
likelihood on the lattice with the Gaussian, and terms in closed form. Its local maxima over the means are the modes.
"""

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

# Trial means along an axis of their lattice, and problems that are searched at once, by the number of latents. More
# means find narrower modes; the product of both numbers bounds memory.
NUM_AXIS_MEANS = {1: 401, 2: 81, 3: 25}
NUM_PROBLEMS_AT_ONCE = {1: 2000, 2: 64, 3: 16}
# Standard deviations of the trial guides, in spacings of the lattice: narrower ones fall between its nodes.
TRIAL_SCALES = (1.0, 2.0, 4.0, 8.0)
# The lattice reaches PRIOR_REACH standard deviations of the prior from 0, or MEAN_MARGIN beyond the encoder's means
# where that is farther.
PRIOR_REACH = 4.5
MEAN_MARGIN = 1.0
# The most modes of a problem that become starts, and how many nats below the best one they may lie. With larger numbers
# more searches run.
MAX_MODES = 3
MAX_MODE_DEFICIT = 10.0


def multistart(lattice: CachedLattice, head: Head, local: Tensor) -> tuple[Tensor, Tensor]:
    """Local parameters from which to maximise the ELBO.

    Each mode of the ELBO of diagonal Gaussians gives one start: that Gaussian, or Laplace's approximation at the
    posterior's mode uphill of its mean, whichever has the higher ELBO. The encoder's member gives one in the same way.

    Args:
        lattice: of the target.
        head: the family.
        local: the encoder's parameters, `(B, num_outputs)`.

    Returns:
        Starts `(N, num_outputs)` and the problem of each, `(N,)`.
    """
    target, mean = lattice.target, GaussianMixtures(*head.components(local)).mean()
    loc, scale, kept = elbo_modes(target, max(PRIOR_REACH, float(mean.abs().max()) + MEAN_MARGIN))
    problem, which = kept.nonzero(as_tuple=True)
    loc, scale = loc[problem, which], scale[problem, which]
    everyone = torch.arange(len(local), device=local.device)
    simple = torch.cat([head.initial(loc, torch.diag_embed(scale**-2)), local])
    problem, loc = torch.cat([problem, everyone]), torch.cat([loc, mean])
    laplace, usable = _laplace(target, head, loc, problem)
    gain = rough_elbo(lattice, head, laplace, problem) - rough_elbo(lattice, head, simple, problem)
    better = usable & (gain > 0)  # false where the gain is nan
    return torch.where(better[:, None], laplace, simple), problem


def mixture_starts(lattice: CachedLattice, head: Head, given: Tensor) -> tuple[Tensor, Tensor]:
    """Local parameters of mixtures fitted to each posterior, from which to maximise the ELBO.

    Args:
        lattice: of the target.
        head: a family of mixtures.
        given: the encoder's members and, last, the nearest member that is known, `(B, M, num_outputs)`; `multistart`
            adds the modes that these don't see.

    Returns:
        Starts `(B, num_outputs)` and the problem of each, `(B,)`.
    """
    num, simple = len(given), Full(lattice.dim)
    everyone = torch.arange(num, device=given.device)
    loc, covariance = mean_and_covariance(GaussianMixtures(*head.components(given)))
    one = simple.packed(loc, torch.linalg.cholesky(covariance))
    found, problem = multistart(lattice, simple, one[:, 0])
    found, problem = torch.cat([one[:, -1], found]), torch.cat([everyone, problem])
    gaussians = GaussianMixtures(*simple.components(found))
    modes = padded(torch.zeros_like(found[:, 0]), gaussians.locs[:, 0], gaussians.trils[:, 0], problem, num)
    return head.holding(*em_fit(lattice.target, modes, head.num_components)), everyone


def mean_and_covariance(mixture: GaussianMixtures) -> tuple[Tensor, Tensor]:
    """The mean `(..., D)` and the covariance `(..., D, D)` of mixtures."""
    share, loc = mixture.log_weights.exp()[..., None], mixture.mean()
    centred = mixture.locs - loc[..., None, :]
    each = mixture.trils @ mixture.trils.mT + centred[..., :, None] * centred[..., None, :]
    return loc, (share[..., None] * each).sum(-3)


def _laplace(target: Target, head: Head, loc: Tensor, problem: Tensor) -> tuple[Tensor, Tensor]:
    """Laplace's approximation at the posterior's mode uphill of `loc`, and whether there is one.

    Args:
        target: with a decoder.
        head: the family.
        loc: where each search starts, `(N, D)`.
        problem: that of each, `(N,)`.

    Returns:
        The family's members `(N, num_outputs)`, and whether the search converged at a maximum, `(N,)`.
    """

    def loss(z: Tensor, row: Tensor) -> Tensor:
        return z.square().sum() / 2 - log_likelihood_at(target, z[None, None], row[None])[0, 0]

    found = minimize(loss, loc, args=(problem,), tolerance=1e-6, max_steps=50)
    usable = found.converged & (torch.linalg.cholesky_ex(found.hessian).info == 0)
    eye = torch.eye(loc.shape[-1], dtype=loc.dtype, device=loc.device)
    return head.initial(found.x, torch.where(usable[:, None, None], found.hessian, eye)), usable


@torch.no_grad()
def elbo_modes(target: Target, reach: float) -> tuple[Tensor, Tensor, Tensor]:
    """Local maxima of the ELBO over a lattice of diagonal Gaussians.

    Args:
        target: with a decoder.
        reach: half the lattice's width.

    Returns:
        Means `(B, M, D)`, standard deviations `(B, M, D)`, and whether a mode is no more than `MAX_MODE_DEFICIT` lower
        than the best one, `(B, M)`.
    """
    decoded, dim, num = decoded_of(target), target.dim, NUM_AXIS_MEANS[target.dim]
    axis = torch.linspace(-reach, reach, num, dtype=target.dtype, device=target.device)
    scales = (axis[1] - axis[0]) * torch.tensor(TRIAL_SCALES, dtype=axis.dtype, device=axis.device)
    kernels = torch.softmax(-((axis[:, None] - axis) / scales[:, None, None]).square() / 2, -1)
    z = torch.cartesian_prod(*[axis] * dim).reshape(-1, dim)
    found = []
    for first in range(0, target.num_problems, NUM_PROBLEMS_AT_ONCE[dim]):
        rows = tuple(arg[first : first + NUM_PROBLEMS_AT_ONCE[dim]] for arg in target.args)
        log_likelihood = decoded.log_likelihood(z, *rows).reshape(-1, *[num] * dim)
        value, choice = _profile(log_likelihood, axis, scales, kernels)
        found.append(_highest_modes(value, choice, z, scales))
    loc, scale, value = (torch.cat(parts) for parts in zip(*found, strict=True))
    return loc, scale, value >= value[:, :1] - MAX_MODE_DEFICIT


def _profile(log_likelihood: Tensor, axis: Tensor, scales: Tensor, kernels: Tensor) -> tuple[Tensor, Tensor]:
    """The best of all combinations of widths at each mean.

    Args:
        log_likelihood: on the lattice, `(b, n, ..., n)`.
        axis: of the lattice, `(n,)`.
        scales: standard deviations that are tried along each axis.
        kernels: for each of them the matrix that convolves along an axis, `(len(scales), n, n)`.

    Returns:
        The highest ELBO and the number of its combination of widths, `(b, n, ..., n)` each.
    """
    dim = log_likelihood.dim() - 1
    squares = sum(torch.meshgrid(*[axis.square()] * dim, indexing="ij"), torch.zeros((), dtype=axis.dtype))
    best, choice = torch.full_like(log_likelihood, -math.inf), torch.zeros_like(log_likelihood, dtype=torch.long)
    blurred: dict[tuple[int, ...], Tensor] = {(): log_likelihood}
    for dimension in range(1, dim + 1):
        blurred = {
            (*before, which): (value.movedim(dimension, -1) @ kernels[which].mT).movedim(-1, dimension)
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


def _highest_modes(value: Tensor, choice: Tensor, z: Tensor, scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The highest local maxima of the ELBO over the means.

    Args:
        value: the ELBO on the lattice, `(b, n, ..., n)`.
        choice: the number of each mean's combination of widths, likewise.
        z: the lattice's nodes, `(n^D, D)`.
        scales: standard deviations that were tried along each axis.

    Returns:
        Means `(b, M, D)`, standard deviations `(b, M, D)` and ELBOs `(b, M)`, which are -inf where there are fewer.
    """
    dim = value.dim() - 1
    pool = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[dim - 1]
    maximum = value >= pool(value[:, None], 3, stride=1, padding=1)[:, 0]
    height, place = value.masked_fill(~maximum, -math.inf).flatten(1).topk(MAX_MODES, -1)
    combinations = torch.tensor(list(itertools.product(range(len(scales)), repeat=dim)), device=z.device)
    width = scales[combinations[choice.flatten(1).gather(1, place)]]
    return z[place], width, height
