"""Members of a family that lie where the posterior lies: where searches for its best member start, beside the fits.

A family is placed at the moments of the posterior as a whole and, where it has several modes, at the moments and at the
peak of each. A family that can't be placed, such as a guide that was written by hand, is fitted to the posterior's
points there by maximum likelihood, which finds the posterior from afar.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import optimize
from torch import Tensor
from torch.func import grad_and_value, vmap

from ppl_vi.svi.result import Fit
from ppl_vi.svi.start import is_placeable, placed_parameters
from ppl_vi.svi.start_points import Centres, conditional_scale
from ppl_vi.truth import Truth
from ppl_vi.truth.modes import Modes

# The most modes of a posterior from which searches start, the heaviest ones: each costs two searches.
MAX_MODES = 8
# A fit by maximum likelihood takes this many normal points with the moments of the posterior, in pairs of opposites,
# and at most so many iterations. It is only a start, so that few will do.
NUM_POINTS, MAX_ITERATIONS = 64, 100
# The value that the line search is given where the likelihood is not finite, so that it turns back.
REJECTED_VALUE = 1e100


def search_starts(fit: Fit, truth: Truth) -> Tensor:
    """Members where the posterior lies, for each problem, `(B, K, D)`; `K` is 0 where none are known."""
    if not truth.modes:
        return fit.theta[:, :0]
    places = [_places(modes) for modes in truth.modes]
    num = max(len(one.loc) for one in places)
    at = Centres(*(torch.stack([_filled(part, num) for part in parts]) for parts in zip(*places, strict=True)))
    if is_placeable(fit.family, fit.program.guide):
        theta = placed_parameters(fit.family, fit.target, fit.program.guide, fit.program.layout, at, fit.seed)
        return _usable(fit, theta.to(fit.theta))
    if fit.program.one_by_one or fit.program.unsupported_density():
        return fit.theta[:, :0]
    rows = [
        torch.stack([_likeliest(fit, b, at.loc[b, k], at.factor[b, k]) for k in range(num)]) for b in range(len(places))
    ]
    return _usable(fit, torch.stack(rows).to(fit.theta))


def _places(modes: Modes) -> Centres:
    """The moments of the whole posterior and, where it has several modes, the moments and the peak of each."""
    loc, factor = [modes.loc[-1:]], [modes.spread[-1:]]
    if len(modes) > 1:
        some = slice(0, min(len(modes), MAX_MODES))
        loc, factor = [*loc, modes.loc[some], modes.peak[some]], [*factor, modes.spread[some], modes.factor[some]]
    where, spread = torch.cat(loc), torch.cat(factor)
    return Centres(where, conditional_scale(spread), spread)


def _filled(part: Tensor, num: int) -> Tensor:
    """The places of a problem of fewer modes, with the whole posterior, which comes first, again and again."""
    return torch.cat([part, part[:1].expand(num - len(part), *part.shape[1:])])


def _usable(fit: Fit, theta: Tensor) -> Tensor:
    """Members `(B, K, D)`, with the first replica in place of those whose parameters are not finite."""
    return torch.where(theta.isfinite().all(-1, keepdim=True), theta, fit.theta[:, :1])


def _likeliest(fit: Fit, problem: int, loc: Tensor, factor: Tensor) -> Tensor:
    """The member `(D,)` under which points with a mean `(D,)` and a covariance are likeliest."""
    half = torch.special.ndtri(
        torch.quasirandom.SobolEngine(len(loc), scramble=True, seed=0).draw(NUM_POINTS // 2, dtype=loc.dtype) + 2.0**-31
    )
    points = loc + torch.cat([half, -half]) @ factor.mT
    latents = fit.target.constrain(points)[0]
    row, start = fit.target.row(problem), fit.theta[problem, 0]

    def loss(theta: Tensor) -> Tensor:
        return -vmap(lambda one: fit.program.log_guide(theta, row, one))(latents).mean()

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        gradient, value = grad_and_value(loss)(torch.from_numpy(x).to(start))
        if not (bool(value.isfinite()) and bool(gradient.isfinite().all())):
            return REJECTED_VALUE, np.zeros_like(x)
        return float(value), gradient.cpu().double().numpy()

    with fit.program.isolated():
        begin = start.detach().cpu().double().numpy()
        found = optimize.minimize(objective, begin, jac=True, method="L-BFGS-B", options={"maxiter": MAX_ITERATIONS})
    return torch.from_numpy(found.x).to(start)
