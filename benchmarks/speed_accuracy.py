"""How far a fit of `benchmarks.speed` is from the best member of its family, and how long it takes to get near.

The distance is the reverse KL minus the smallest reverse KL of the family, in nats. It is computed without noise in
float64: for the toy by the trapezoid rule in log z, and for guides that are Gaussian in unconstrained space on a fixed
quasi-random point set. The set is the same for the fits and for the best member, so that errors cancel.

The fit takes `Case.accuracy_particles` draws in each step, 16. With a single draw it would never arrive: Adam divides a
gradient by the root of a mean that includes the gradient's own square. Where gradients are skewed it therefore comes to
rest beside the optimum, whatever the step size: on the toy with a lognormal guide 5e-3 nats above it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.distributions import transform_to
from torch.func import vmap

from benchmarks.speed_case import Case, Loop, MissingError, seconds
from benchmarks.speed_engines import target_of
from benchmarks.speed_problems import FORMS, initial
from ppl_vi.target.target import Target

ACCURACY = 1e-3  # nats above the best member of the family: the tolerance of `ppl_vi.fit`
MAX_FITS_IN_MEDIAN = 64  # fits whose median distance is taken; with more the median is more precise and takes longer
NUM_POINTS = 4096  # points of the quasi-random set
TRAPEZOID = (-40.0, 6.0, 4000)  # the ends and the number of nodes of the trapezoid rule in log z
# The steps after which the distance is computed grow by this factor each time, so the number of steps that a fit needs
# is known up to this factor.
LOOK_FACTOR = 1.2

Parameters = dict[str, Tensor]
Divergence = Callable[[Parameters], Tensor]


@dataclass(frozen=True)
class Distance:
    """Nats above the best of the family.

    Attributes:
        divergence: parameters as `Loop.parameters` gives them, in float64, to the reverse KL up to a constant, `(R,)`.
        best: the smallest of the family.
        target: the problem, in float64.
    """

    divergence: Divergence
    best: float
    target: Target

    @classmethod
    def of(cls, case: Case) -> Distance:
        """The distance that belongs to a problem and a guide.

        Raises:
            MissingError: the family's best member is not known.
        """
        precise = replace(case, dtype="float64")
        target = target_of(precise)
        with target.isolated(seed=0):
            if case.guide in FORMS:
                return cls._least(target, partial(_toy, target, case.guide), *_toy_start(case.guide))
            if case.guide not in FACTORS:
                raise MissingError(f"{case.guide} is no Gaussian, and its best member is not known")
            noise = matched_noise(target.dim)
            return cls._least(target, partial(_gaussian, target, noise), *_gaussian_start(case.guide, target.dim))

    @classmethod
    def _least(
        cls, target: Target, divergence: Divergence, unpack: Callable[[Tensor], Parameters], start: Tensor
    ) -> Distance:
        def value_and_gradient(point: np.ndarray) -> tuple[float, np.ndarray]:
            theta = torch.from_numpy(point).requires_grad_()
            value = divergence(unpack(theta)).sum()
            (gradient,) = torch.autograd.grad(value, theta)
            return value.item(), gradient.numpy()

        found = minimize(value_and_gradient, start.numpy(), jac=True, method="L-BFGS-B", options={"maxiter": 2000})
        return cls(divergence, float(found.fun), target)

    def median(self, parameters: Parameters) -> float:
        """Nats of the median of the first `MAX_FITS_IN_MEDIAN` fits above the best; nan where a fit is not finite."""
        with self.target.isolated(seed=0), torch.no_grad():
            divergence = self.divergence(
                {name: value[:MAX_FITS_IN_MEDIAN].double() for name, value in parameters.items()}
            )
        return float(divergence.quantile(0.5)) - self.best


def steps_until(loop: Loop, distance: Distance, most_seconds: float) -> tuple[float, int]:
    """Seconds and steps after which the median fit is within `ACCURACY` of the best, looking ever less often.

    Raises:
        MissingError: it isn't within `most_seconds`.
    """
    taken, steps = 0.0, 0
    while taken < most_seconds:
        more = max(50, 2 * math.ceil((LOOK_FACTOR - 1) * steps / 2))
        taken, steps = taken + seconds(loop, more), steps + more
        away = distance.median(loop.parameters())
        if away <= ACCURACY:
            return taken, steps
    raise MissingError(f"still {away:.2g} nats from the best of its family after {taken:.0f} s and {steps} steps")


# ---- the toy


def _toy(target: Target, guide: str, parameters: Parameters) -> Tensor:
    low, high, num = TRAPEZOID
    u = torch.linspace(low, high, num, dtype=torch.float64)
    z = u.exp()
    log_joint = target.log_joint({"z": z[None]})[0] + u
    log_q = FORMS[guide].distribution(**{name: value[:, None] for name, value in parameters.items()}).log_prob(z) + u
    q = log_q.exp()
    present = q > 0
    return (
        torch.where(present, q * (torch.where(present, log_q, 0.0) - log_joint), 0.0).sum(-1) * (high - low) / (num - 1)
    )


def _toy_start(guide: str) -> tuple[Callable[[Tensor], Parameters], Tensor]:
    form = FORMS[guide]
    maps = {name: transform_to(constraint) for name, constraint in form.constraints.items()}
    start = torch.stack([maps[name].inv(value) for name, value in initial(form, torch.float64).items()])

    def unpack(theta: Tensor) -> Parameters:
        return {name: maps[name](theta[i])[None] for i, name in enumerate(maps)}

    return unpack, start


# ---- Gaussians in unconstrained space


def matched_noise(dim: int) -> Tensor:
    """Quasi-random points `(NUM_POINTS, dim)` with the first three moments of Normal(0, I): no member of a family gains
    by bending to them where the log density is a cubic."""
    points = torch.quasirandom.SobolEngine(dim, scramble=True, seed=1).draw(NUM_POINTS // 2, dtype=torch.float64)
    half = torch.special.ndtri(points + 2.0**-31)
    factor = torch.linalg.cholesky(half.mT @ half / len(half))
    white = torch.linalg.solve_triangular(factor, half.mT, upper=False).mT
    return torch.cat([white, -white])


def _gaussian(target: Target, noise: Tensor, parameters: Parameters) -> Tensor:
    factor = parameters["factor"]
    tril = torch.linalg.cholesky(factor @ factor.mT)

    def one(loc: Tensor, scale_tril: Tensor) -> Tensor:
        density = vmap(lambda u: target.log_density_of_row(u, *target.row(0)))(loc + noise @ scale_tril.mT)
        return -density.mean() - torch.diagonal(scale_tril).log().sum()

    constant = target.dim * (1 + math.log(2 * math.pi)) / 2
    return vmap(one, chunk_size=8)(parameters["loc"], tril) - constant


def _diagonal(theta: Tensor, dim: int) -> Tensor:
    return torch.diag(theta.exp())


def _lower(theta: Tensor, dim: int) -> Tensor:
    rows, columns = torch.tril_indices(dim, dim, -1)
    below = torch.zeros(dim, dim, dtype=theta.dtype).index_put((rows, columns), theta[dim:])
    return torch.diag(theta[:dim].exp()) + below


def _low_rank(theta: Tensor, dim: int) -> Tensor:
    scale = theta[:dim].exp()
    return torch.cat([theta[dim:].reshape(dim, -1) * scale[:, None], torch.diag(scale)], -1)


FACTORS: dict[str, tuple[Callable[[Tensor, int], Tensor], Callable[[int], int]]] = {  # and how many numbers they need
    "AutoNormal": (_diagonal, lambda dim: dim),
    "AutoMultivariateNormal": (_lower, lambda dim: dim * (dim + 1) // 2),
    "AutoLowRankMultivariateNormal": (_low_rank, lambda dim: dim * (1 + round(dim**0.5))),
}


def _gaussian_start(guide: str, dim: int) -> tuple[Callable[[Tensor], Parameters], Tensor]:
    make, count = FACTORS[guide]

    def unpack(theta: Tensor) -> Parameters:
        return {"loc": theta[None, :dim], "factor": make(theta[dim:], dim)[None]}

    generator = torch.Generator().manual_seed(0)  # not at 0, where a low-rank factor has no gradient
    return unpack, 0.1 * torch.randn(dim + count(dim), generator=generator, dtype=torch.float64)
