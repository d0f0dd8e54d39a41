"""Pathfinder: the best of the normals that L-BFGS passes on its way from far out to the mode.

A search for the mode knows the curvature along its path: at each of its points u its last steps s and the changes y of
the slope give an inverse Hessian H, diagonal plus low rank, and with it the normal

    N(u + H grad log p(u), H).

Early on the path these normals are far from the posterior, near the mode they may be too narrow, as where a hierarchy's
density rises to a spike. Taken is the one of highest ELBO, estimated from a few draws of each. It takes about as many
gradients as finding the mode.

Source: Zhang, Carpenter, Gelman and Vehtari (2022), Pathfinder: parallel quasi-Newton variational inference. The
replicas are its parallel paths; they are measured one by one, and not mixed by importance resampling.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import optimize
from torch import Tensor

from ppl_vi.svi.ended import EndedFit
from ppl_vi.svi.objectives import find_objective
from ppl_vi.svi.optimisers.method import Ends, Method, ended_by, statuses
from ppl_vi.svi.optimisers.normals import no_normal, normals_of, theta_of
from ppl_vi.svi.program import Program
from ppl_vi.svi.setup import Strategy
from ppl_vi.svi.start_points import Centres, conditional_scale
from ppl_vi.target.log_density import Density
from ppl_vi.target.target import Target

# Paths start at random points of unconstrained space whose numbers lie between minus this and this, as in the paper. A
# start without a density is drawn again, so many times at most.
RADIUS, MAX_STARTS = 2.0, 100
# Steps of the path of which an inverse Hessian is made: the paper's.
MEMORY = 6
# A step is left out of the inverse Hessian where it says little of the curvature: s'y at most this share of |y|^2.
LEAST_CURVATURE = 1e-12
# The path ends with a step that gains less than this, relative to max(|log p|, 1): the paper's.
VALUE_TOLERANCE = 1e-13
# Steps at most of a path by whose end a replica of another family starts.
MAX_STEPS = 1000
# Draws from which the ELBO of each normal is estimated where nobody asks for another number: as in Stan.
NUM_DRAWS = 25
REJECTED_VALUE = 1e100  # given to the line search where the log density is not finite, so that it turns back


@dataclass(frozen=True, eq=False)
class Path:
    """The points of one search for a mode.

    Attributes:
        points: `(L, D)`, the start first.
        slopes: the gradients of the log density there, `(L, D)`.
        arrived: whether the search ended where it had nothing more to gain.
        message: what the search says of its end.
    """

    points: np.ndarray
    slopes: np.ndarray
    arrived: bool
    message: str


@dataclass(frozen=True, eq=False)
class Best:
    """The normal of highest ELBO on a path.

    Attributes:
        loc, factor: of the normal, `(D,)` and `(D, D)`.
        elbo, std_error: the estimate of its ELBO, nats.
        place: the number of its point on the path.
        num: how many normals there are on the path.
    """

    loc: Tensor
    factor: Tensor
    elbo: float
    std_error: float
    place: int
    num: int


def with_draws(strategy: Strategy) -> Strategy:
    """The strategy with the number of draws that "auto" stands for; normals are chosen by their ELBO."""
    num = NUM_DRAWS if strategy.num_particles == "auto" else strategy.num_particles
    return replace(strategy, num_particles=num, objective=find_objective("trace_elbo"))


def unsuitable(program: Program, strategy: Strategy) -> str | None:
    """Says why Pathfinder can't be used with a program, or gives None where it can."""
    error = program.target.many_at_once()
    return no_normal(program) if error is None else f"the density can't be computed at many points at once: {error}"


def fit_pathfinder(program: Program, strategy: Strategy, initial: Tensor) -> EndedFit:
    """Takes the best normal on a path to the mode for each replica.

    Args:
        program: the model and a normal guide in unconstrained space.
        strategy: how; `num_particles` draws of each normal estimate its ELBO, `num_steps` bounds the path's steps.
        initial: the parameters of normals around whose locations a path starts where random starts have no density,
            `(B, R, P)`.
    """
    found, paths = normals_on_paths(program.target, normals_of(program, initial).loc, strategy)
    factor = torch.stack([one.factor for one in found]).unflatten(0, initial.shape[:2])
    loc = torch.stack([one.loc for one in found]).unflatten(0, initial.shape[:2])
    theta = theta_of(program, Centres(loc, conditional_scale(factor), factor))
    arrived = torch.tensor([path.arrived for path in paths]).reshape(initial.shape[:2])
    usable = torch.tensor([np.isfinite(one.elbo) for one in found]).reshape(initial.shape[:2])
    reasons = np.array([_reason(*pair) for pair in zip(found, paths, strict=True)], object)
    num_steps = np.array([len(path.points) - 1 for path in paths], np.int64).reshape(initial.shape[:2])
    elbo = torch.tensor([one.elbo for one in found]).to(initial).reshape(1, *initial.shape[:2])
    bounds = elbo.expand(int(num_steps.max()), -1, -1)
    gain = torch.full(initial.shape[:2], torch.inf)
    status = statuses(arrived, usable)
    ended = ended_by("lbfgs", initial, Ends(theta, bounds, gain, status, reasons.reshape(initial.shape[:2]), num_steps))
    return replace(ended, trajectory=initial.new_empty(0))


def start_on_paths(target: Target, otherwise: Tensor, strategy: Strategy) -> Centres:
    """Where replicas of any family start: at the normals that Pathfinder takes.

    Args:
        target: whose problems.
        otherwise: where paths start that find no random start with a density, `(B, R, D)`.
        strategy: how; the seed and the number of steps count.

    Raises:
        ValueError: the density can't be computed at many points at once, or no normal of a path has one.
    """
    found, _ = normals_on_paths(target, otherwise, replace(strategy, num_particles="auto", num_steps=MAX_STEPS))
    lost = [i for i, one in enumerate(found) if not np.isfinite(one.elbo)]
    if lost:
        raise ValueError(
            f"{target.name}: start='pathfinder' found no normal whose draws have a density for replica "
            f"{lost[0] % otherwise.shape[1]}: leave start at 'mode'"
        )
    factor = torch.stack([one.factor for one in found]).unflatten(0, otherwise.shape[:2])
    loc = torch.stack([one.loc for one in found]).unflatten(0, otherwise.shape[:2])
    return Centres(loc, conditional_scale(factor), factor)


def normals_on_paths(target: Target, otherwise: Tensor, strategy: Strategy) -> tuple[list[Best], list[Path]]:
    """The best normal and the path of each replica, those of the first problem first.

    Args:
        target: whose problems.
        otherwise: where paths start that find no random start with a density, `(B, R, D)`.
        strategy: how.
    """
    found, paths = [], []
    with_own = int(with_draws(strategy).num_particles)
    for problem in range(target.num_problems):
        density = Density.of(target, problem)
        for replica in range(otherwise.shape[1]):
            generator = torch.Generator().manual_seed(strategy.seed * 1_000_003 + problem * 1009 + replica)
            start = _start(density, otherwise[problem, replica], generator)
            path = path_of(density, start, max(1, strategy.num_steps))
            paths.append(path)
            found.append(best_on(density, path, with_own, generator))
    return found, paths


def _start(density: Density, otherwise: Tensor, generator: torch.Generator) -> Tensor:
    """A random point with a density; the given one where none of `MAX_STARTS` has one."""
    for _ in range(MAX_STARTS):
        drawn = torch.rand(density.dim, generator=generator, dtype=density.dtype).to(otherwise.device)
        point = RADIUS * (2 * drawn - 1)
        if bool(density(point[None]).isfinite()):
            return point
    return otherwise


def path_of(density: Density, start: Tensor, max_steps: int) -> Path:
    """The path of L-BFGS from a start to a mode of the log density."""
    slopes: dict[bytes, np.ndarray] = {}

    def negative(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = density.slope(torch.from_numpy(x).to(start)[None])
        if not (bool(value.isfinite().all()) and bool(slope.isfinite().all())):
            return REJECTED_VALUE, np.zeros_like(x)
        slopes[x.tobytes()] = slope[0].cpu().double().numpy()
        return -float(value), -slopes[x.tobytes()]

    points = [start.cpu().double().numpy()]
    options = {"maxcor": MEMORY, "maxiter": max_steps, "ftol": VALUE_TOLERANCE, "gtol": 1e-8, "maxfun": 20 * max_steps}

    def note(x: np.ndarray) -> None:
        points.append(x.copy())

    with torch.no_grad():
        found = optimize.minimize(negative, points[0], jac=True, method="L-BFGS-B", callback=note, options=options)
    known = [point for point in points if point.tobytes() in slopes]
    return Path(
        np.stack(known or points[:1]),
        np.stack([slopes[point.tobytes()] for point in known] or [np.zeros_like(points[0])]),
        bool(found.success),
        str(found.message),
    )


def best_on(density: Density, path: Path, num_draws: int, generator: torch.Generator) -> Best:
    """The normal of highest ELBO on a path, by so many draws of each."""
    locs, factors = normals_along(path)
    loc, factor = (torch.from_numpy(part).to(density.dtype) for part in (locs, factors))
    shape = len(loc), num_draws, density.dim
    e = torch.randn(shape, generator=generator, dtype=density.dtype)
    u = loc[:, None] + e @ factor.mT
    with torch.no_grad():
        log_p = density(u.flatten(0, 1)).unflatten(0, shape[:2])
    log_q = -e.square().sum(-1) / 2 - torch.diagonal(factor, dim1=1, dim2=2).log().sum(-1)[:, None]
    each = log_p - log_q + density.dim / 2 * float(np.log(2 * np.pi))
    elbo = torch.where(each.isfinite().all(-1), each.mean(-1), -torch.inf)
    place = int(elbo.argmax())
    error = float(each[place].std() / num_draws**0.5) if num_draws > 1 else float("nan")
    return Best(loc[place], factor[place], float(elbo[place]), error, place, len(loc))


def normals_along(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Locations `(L, D)` and Cholesky factors `(L, D, D)` of the normals at the points of a path.

    The diagonal of the inverse Hessian is that of Gilbert and Lemarechal (1989), updated step by step, and the last
    steps are added to it by the formulas of BFGS. The first point has the identity for its inverse Hessian.
    """
    dim = path.points.shape[1]
    diagonal, locs, factors = np.ones(dim), [], []
    kept: list[tuple[np.ndarray, np.ndarray]] = []
    for i, (point, slope) in enumerate(zip(path.points, path.slopes, strict=True)):
        if i:
            s, y = point - path.points[i - 1], path.slopes[i - 1] - slope
            if s @ y > LEAST_CURVATURE * (y @ y):
                diagonal = _updated(diagonal, s, y)
                kept = [*kept, (s, y)][-MEMORY:]
        inverse = inverse_hessian(diagonal, kept)
        try:
            factor = np.linalg.cholesky(inverse)
        except np.linalg.LinAlgError:  # lost to rounding where the scales of steps are far apart
            continue
        locs.append(point + inverse @ slope)
        factors.append(factor)
    return np.stack(locs), np.stack(factors)


def _updated(diagonal: np.ndarray, s: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The diagonal of the inverse Hessian after a step s in which the slope of minus the log density rose by y."""
    a, b, c = y @ (diagonal * y), y @ s, s @ (s / diagonal)
    return 1 / (a / (b * diagonal) + y**2 / b - a * s**2 / (b * c * diagonal**2))


def inverse_hessian(diagonal: np.ndarray, steps: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """BFGS's inverse Hessian `(D, D)`: a diagonal, updated by steps s and changes y of the slope, the oldest first."""
    inverse = np.diag(diagonal)
    for s, y in steps:
        along = np.eye(len(s)) - np.outer(s, y) / (s @ y)
        inverse = along @ inverse @ along.T + np.outer(s, s) / (s @ y)
    return (inverse + inverse.T) / 2


def _reason(best: Best, path: Path) -> str:
    """What was chosen, and how the path ended."""
    if not np.isfinite(best.elbo):
        return "diverged at step 0: no normal on the path has draws that all have a density"
    chosen = (
        f"normal {best.place + 1} of {best.num} along the path has the highest ELBO, {best.elbo:.6g} nats with a "
        f"standard error of {best.std_error:.2g}"
    )
    return chosen if path.arrived else f"{chosen}; the path did not reach a mode: {path.message}"


PATHFINDER = Method("pathfinder", "following a path to the mode", fit_pathfinder, unsuitable, with_draws)
