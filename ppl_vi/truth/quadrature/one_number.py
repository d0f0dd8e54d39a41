"""The truth of a target with one latent number, by two independent quadrature rules of SciPy's.

The unconstrained latent u is measured from the posterior mode in widths of the posterior, t = (u - mode) / width.
Tanh-sinh quadrature integrates the density over t, and adaptive Gauss-Kronrod quadrature must find the same. The class
`QuadraturePosterior` gives the distribution function, quantiles, moments and weighted points of the posterior.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.integrate import cubature, tanhsinh
from scipy.optimize import elementwise

from ppl_vi.target.evaluation import log_joint
from ppl_vi.target.target import Target
from ppl_vi.truth.result import Check, Points, Truth, UncertifiedTruthError

# The most that independent rules may differ by, relative to max(1, |log p(x)|).
MAX_RELATIVE_DIFFERENCE = 1e-12
# SciPy's tanh-sinh rule halves its spacing from level to level. Two coarse levels may agree by chance, each wrong by
# 2e-9 (so for the toy at x = 10.3). Hence there is no answer before level 6, or before level 5 where Gauss-Kronrod must
# confirm it.
TANH_SINH = {"rtol": MAX_RELATIVE_DIFFERENCE / 10, "atol": 0.0, "minlevel": 6, "maxlevel": 7}
TANH_SINH_TO_BE_CONFIRMED = TANH_SINH | {"minlevel": 5}
# An integral for which tanh-sinh reports no success passes if its error estimate is within this multiple of the
# tolerance: near the end of double precision the rule's own criterion is too strict.
MAX_ERROR_MULTIPLE = 1e3
EPS = float(np.finfo(np.float64).eps)
# A density that sums more numbers than this is taken to have as many times the rounding error: on a million equal
# numbers it was found 50 times as large. With a larger number, quadrature would refine what is only rounding.
ACCURATE_SUM = 10_000
# The density is evaluated at this many points at once, so that temporaries stay in the processor's cache.
MAX_POINTS_AT_ONCE = 65536
# Nats by which a log density may exceed its value at the mode. Exponentials of more than 709 overflow, and a density
# that rises so far was not highest at the mode.
MAX_NATS_ABOVE_MODE = 700.0
# A nan of the density farther than this from the mode, in widths, counts as 0: there the latent overflows, and the
# density has long vanished.
MIN_OVERFLOW_DISTANCE = 60.0
# The points that are handed out are a trapezoid lattice after the substitution t = sinh(pi/2 sinh s). At this spacing
# in s every other point gives the toy's moments to 1e-10. At the ends, s = 4.25, |t| is 1e24.
POINT_SPACING = 1 / 48
POINT_REACH = 4.25
# Points whose weight lies more nats than this below the largest one's, a factor of 1e-20, are not handed out.
MAX_NATS_BELOW_LARGEST_WEIGHT = 46.0
# The search for a quantile begins this many widths on either side of the mode.
FIRST_BRACKET = 2.0
# A quantile is found when its bracket is so many widths across: the rounding of a t of size 1. Where the quantile is
# the mode itself, as a normal's median is, a tolerance relative to t alone takes a thousand bisections towards 0.
QUANTILE_WIDTHS = EPS

ASSUMPTIONS = ("no part of the posterior is so narrow that both quadrature rules miss it",)

Integrand = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (t, problem) to values, all of one shape


class QuadraturePosterior:
    """Each problem's posterior of its unconstrained latent u, in units t = (u - mode) / width.

    In these units every problem looks alike, so that one rule serves the toy at x = -1e4 and at 1e4 at once. On the
    unscaled half line the same rule fails for nearly all such x.

    Attributes:
        target: whose posterior.
        mode: the u at which the density is highest, `(B,)`.
        width: the posterior's standard deviation as estimated from the curvature at the mode, `(B,)`.
        peak: log density of u at the mode, `(B,)`, nats.
        rounding: relative rounding error of `density`, `(B,)`.
        log_mass: log of the integral of `density` over t, `(B,)`, nats; 0 until it is known.
    """

    def __init__(self, target: Target) -> None:
        laplace = target.laplace
        self.target = target
        self.mode = laplace.loc[:, 0].cpu().numpy()
        self.width = laplace.scale[:, 0].cpu().numpy()
        self.peak = laplace.log_density.cpu().numpy()
        self.rounding = 4 * EPS * (np.abs(self.peak) + 1) * max(1.0, target.width / ACCURATE_SUM)
        self.log_mass = np.zeros_like(self.peak)

    @property
    def problems(self) -> np.ndarray:
        """`0 .. B-1`, as floats: SciPy's vectorised routines pass arguments along as such."""
        return np.arange(len(self.mode), dtype=np.float64)

    def latent(self, t: np.ndarray, problem: np.ndarray) -> np.ndarray:
        """The latent at `t`; arrays of one shape."""
        rows = _rows(problem)
        u = torch.from_numpy(self.mode[rows] + self.width[rows] * t).to(self.target.device)
        values, _ = self.target.constrain(u[..., None])
        return next(iter(values.values())).reshape(t.shape).cpu().numpy()

    def standardized(self, z: np.ndarray, problem: np.ndarray) -> np.ndarray:
        """The t of latents `z`, the inverse of `latent`; -inf below the support and inf above it."""
        site = self.target.latents[0]
        rows = _rows(problem)
        values = torch.from_numpy(z).to(self.target.device).reshape((*z.shape, *site.shape))
        with np.errstate(divide="ignore"):
            u = self.target.unconstrain({site.name: values})[..., 0].cpu().numpy()
        inside = site.support.check(values).reshape(z.shape).cpu().numpy()
        below = z < self.latent(np.zeros_like(z), problem)
        return np.where(inside, (u - self.mode[rows]) / self.width[rows], np.where(below, -np.inf, np.inf))

    def density(self, t: np.ndarray, problem: np.ndarray) -> np.ndarray:
        """The density of t relative to that at the mode; `(N, S)` with one problem a row, or `(N,)`.

        Raises:
            UncertifiedTruthError: the density rises without bound.
        """
        flat = t.reshape(len(t), -1)
        rows = _rows(np.broadcast_to(problem.reshape(len(t), -1), flat.shape)[:, 0])
        step = max(1, MAX_POINTS_AT_ONCE // max(1, flat.shape[1]))
        blocks = [self._density(flat[i : i + step], rows[i : i + step]) for i in range(0, len(flat), step)]
        return np.concatenate(blocks).reshape(t.shape) if blocks else np.empty_like(t)

    def _density(self, t: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """`density` at `(N, S)` points, of problems `rows` `(N,)`."""
        u = torch.from_numpy(self.mode[rows, None] + self.width[rows, None] * t).to(self.target.device)
        values, log_jacobian = self.target.constrain(u[..., None])
        log_density = (log_joint(self.target, values, torch.from_numpy(rows).to(u.device)) + log_jacobian).cpu().numpy()
        overflown = np.isnan(log_density) & (np.abs(t) > MIN_OVERFLOW_DISTANCE)
        relative = np.where(overflown, -np.inf, log_density) - self.peak[rows, None]
        if (relative > MAX_NATS_ABOVE_MODE).any():
            raise UncertifiedTruthError(f"the density of '{self.target.name}' rises without bound")
        return np.exp(relative)

    def integral(self, integrand: Integrand, low: np.ndarray, high: np.ndarray, problem: np.ndarray) -> np.ndarray:
        """The integral of `integrand(t, problem)` from `low` to `high` by tanh-sinh quadrature, arrays of one shape.

        Raises:
            UncertifiedTruthError: the rule did not converge.
        """
        found = tanhsinh(integrand, low, high, args=(problem,), **TANH_SINH)
        allowed = (MAX_ERROR_MULTIPLE * MAX_RELATIVE_DIFFERENCE + self.rounding[_rows(problem)]) * np.abs(
            found.integral
        )
        bad = ~found.success & (found.error > allowed) & (found.integral != 0)
        if np.any(bad):
            raise UncertifiedTruthError(f"tanh-sinh quadrature did not converge for problem {_rows(problem[bad])[0]}")
        return found.integral

    def cdf(self, z: np.ndarray) -> np.ndarray:
        """P(Z <= z), `(B, S)`."""
        problem = np.broadcast_to(self.problems[:, None], z.shape)
        return self._cdf(self.standardized(z, problem).ravel(), problem.ravel()).reshape(z.shape)

    def _cdf(self, t: np.ndarray, problem: np.ndarray) -> np.ndarray:
        """P(T <= t) of problems `(N,)`, `(N,)`, by the integral over the tail that does not hold the mode."""
        lower = t <= 0
        low, high = np.where(lower, -np.inf, t), np.where(lower, t, np.inf)
        empty = np.isinf(t)
        tail = self.integral(self.density, np.where(empty, 0.0, low), np.where(empty, 0.0, high), problem)
        tail = tail / np.exp(self.log_mass[_rows(problem)])
        return np.where(lower, tail, 1.0 - tail)

    def quantile(self, probability: np.ndarray) -> np.ndarray:
        """The z with `P(Z <= z) = probability`, `(B, S)`.

        Raises:
            ValueError: a probability is not strictly between 0 and 1.
            UncertifiedTruthError: the search failed.
        """
        outside = ~((probability > 0) & (probability < 1))
        if outside.any():
            raise ValueError(f"a quantile needs a probability strictly between 0 and 1, got {probability[outside][0]}")
        problem = np.broadcast_to(self.problems[:, None], probability.shape).ravel()

        def excess(t: np.ndarray, p: np.ndarray, index: np.ndarray) -> np.ndarray:
            return (self._cdf(t.ravel(), index.ravel()) - p.ravel()).reshape(t.shape)

        p = probability.ravel()
        bracket = elementwise.bracket_root(
            excess, np.full_like(p, -FIRST_BRACKET), np.full_like(p, FIRST_BRACKET), args=(p, problem)
        )
        found = elementwise.find_root(excess, bracket.bracket, args=(p, problem), tolerances={"xatol": QUANTILE_WIDTHS})
        if not np.all(found.success):
            lost = int(np.argmax(~found.success))
            where = f"problem {problem[lost]:.0f} at probability {p[lost]:g}"
            raise UncertifiedTruthError(f"no quantile was found for {where}")
        return self.latent(found.x, problem).reshape(probability.shape)

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the latent, `(B,)` each.

        The mean is computed as a distance from the latent one width below the mode: far from 0, a relative error of the
        latent itself would be many standard deviations.
        """
        infinity = np.full_like(self.mode, np.inf)
        mass = self.integral(self.density, -infinity, infinity, self.problems)
        near = self.latent(np.full_like(self.mode, -1.0), self.problems)
        distance = self._times_density(lambda z, rows: z - near[rows])
        mean = near + self.integral(distance, -infinity, infinity, self.problems) / mass
        square = self._times_density(lambda z, rows: (z - mean[rows]) ** 2)
        variance = self.integral(square, -infinity, infinity, self.problems) / mass
        return mean, np.sqrt(variance)

    def _times_density(self, factor: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Integrand:
        """`factor(latent, row)` times the density, 0 where the density is: there the factor may overflow."""

        def product(t: np.ndarray, problem: np.ndarray) -> np.ndarray:
            index = np.broadcast_to(problem, t.shape)
            density = self.density(t, problem)
            z = self.latent(t, index)
            with np.errstate(over="ignore", invalid="ignore"):
                return np.where(density == 0, 0.0, factor(z, _rows(index)) * density)

        return product

    def points(self) -> tuple[Points, Points]:
        """Two trapezoid lattices in s with t = sinh(pi/2 sinh s): all nodes, and every other one.

        Source: Takahasi and Mori (1974), Double exponential formulas for numerical integration.
        """
        num = round(POINT_REACH / POINT_SPACING)
        s = POINT_SPACING * (np.arange(-num, num) + 0.5)
        half_pi = np.pi / 2
        t = np.broadcast_to(np.sinh(half_pi * np.sinh(s)), (len(self.mode), len(s)))
        log_slope = np.log(half_pi * np.cosh(s)) + np.log(np.cosh(half_pi * np.sinh(s)))
        with np.errstate(divide="ignore"):
            log_weight = np.log(self.density(t, self.problems)) + log_slope
        log_weight -= log_weight.max(1, keepdims=True)
        u = torch.from_numpy(self.mode[:, None] + self.width[:, None] * t)[..., None]
        return self._every(1, u, log_weight), self._every(2, u, log_weight)

    def _every(self, step: int, u: torch.Tensor, log_weight: np.ndarray) -> Points:
        """One node in `step`, without those whose weight is negligible in all problems; largest log weight 0."""
        matters: np.ndarray = np.any(log_weight > -MAX_NATS_BELOW_LARGEST_WEIGHT, axis=0)
        matters[np.arange(len(matters)) % step > 0] = False
        kept = torch.from_numpy(log_weight[:, matters])
        group = torch.zeros(kept.shape[1], dtype=torch.int64)
        device = self.target.device
        normalized = kept - kept.logsumexp(1, keepdim=True)
        return Points(u[:, matters].to(device), normalized.to(device), group.to(device), "rule")


def _rows(problem: np.ndarray) -> np.ndarray:
    """Indices of problems from the floats as which SciPy passes them."""
    return np.rint(problem).astype(np.int64)


def quadrature_truth(target: Target) -> Truth:
    """The posterior of one latent number, by tanh-sinh quadrature that adaptive Gauss-Kronrod quadrature confirms.

    log p(x) = log int exp(log density(t) - peak) dt + peak + log width, with t measured from the mode in widths. The
    stated error covers what the rules differ by and rounding, and also the distance from the closed form if there is
    one: it shows the density's own rounding, which both rules share (log factorials of 1,000 that cancel leave 1e-12).

    Raises:
        UncertifiedTruthError: the mode was not found, a rule did not converge, or the checks disagree.
        ValueError: the target has more than one latent number.

    Source: Takahasi and Mori (1974), Double exponential formulas for numerical integration.
    """
    if target.dim != 1:
        raise ValueError(f"this quadrature takes one latent number; '{target.name}' has {target.dim}")
    if not bool(target.laplace.converged.all()):
        lost = int((~target.laplace.converged).nonzero()[0])
        raise UncertifiedTruthError(f"the posterior mode of problem {lost} of '{target.name}' was not found")
    posterior = QuadraturePosterior(target)
    mass, rule_error, between_rules = _masses(posterior)
    posterior.log_mass = np.log(mass)
    log_evidence = posterior.log_mass + posterior.peak + np.log(posterior.width)
    size = np.maximum(1.0, np.abs(log_evidence))
    checks = [_checked("tanh-sinh against Gauss-Kronrod", between_rules / size, target)]
    error = np.maximum(rule_error / mass, between_rules) + posterior.rounding + 4 * EPS * size
    certified = target.closed_form is not None
    if target.closed_form is not None:
        away = np.abs(target.closed_form(*target.args).cpu().numpy() - log_evidence)
        checks.append(_checked("tanh-sinh against the closed form", away / size, target))
        error = error + away
    return Truth(
        target,
        "quadrature",
        log_evidence,
        error,
        tuple(checks),
        posterior,
        grade="certified" if certified else "checked",
        assumptions=() if certified else ASSUMPTIONS,
        make_points=posterior.points,
    )


def _masses(posterior: QuadraturePosterior) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Integrals of the densities, tanh-sinh's own error estimates, and relative differences of the rules, `(B,)` each.

    Where Gauss-Kronrod does not confirm the integral of a problem, a finer level of tanh-sinh takes its place.
    """
    mass, error = _tanh_sinh(posterior, posterior.problems, TANH_SINH_TO_BE_CONFIRMED)
    rounding = posterior.rounding
    second = _gauss_kronrod(posterior, allowed=(MAX_RELATIVE_DIFFERENCE / 4 + rounding) * mass)
    doubtful = np.abs(second - mass) > (MAX_RELATIVE_DIFFERENCE / 2 + rounding) * mass
    if doubtful.any():
        mass[doubtful], error[doubtful] = _tanh_sinh(posterior, posterior.problems[doubtful], TANH_SINH)
    return mass, error, np.abs(second - mass) / mass


def _tanh_sinh(
    posterior: QuadraturePosterior, problems: np.ndarray, rule: dict[str, float]
) -> tuple[np.ndarray, np.ndarray]:
    """The integrals of some problems' densities and the rule's own error estimates, `(N,)` each."""
    infinity = np.full_like(problems, np.inf)
    found = tanhsinh(posterior.density, -infinity, infinity, args=(problems,), **rule)
    return found.integral, found.error


def _gauss_kronrod(posterior: QuadraturePosterior, allowed: np.ndarray) -> np.ndarray:
    """The same integrals by an adaptive 21-point rule, to errors `allowed`, `(B,)`; one partition for all problems."""
    num = len(posterior.mode)

    def density(t: np.ndarray) -> np.ndarray:
        everywhere = np.broadcast_to(t[:, 0], (num, len(t)))
        return (posterior.density(everywhere, posterior.problems[:, None]) / allowed[:, None]).T

    found = cubature(density, [-np.inf], [np.inf], rule="gk21", rtol=0.0, atol=1.0, max_subdivisions=200)
    return np.atleast_1d(found.estimate) * allowed


def _checked(name: str, difference: np.ndarray, target: Target) -> Check:
    """The check of the problem that is worst off; `difference` `(B,)` is relative to max(1, |log p(x)|).

    Raises:
        UncertifiedTruthError: the check fails.
    """
    worst = int(np.argmax(np.where(np.isnan(difference), np.inf, difference)))
    check = Check(name, float(difference[worst]), MAX_RELATIVE_DIFFERENCE)
    if not check.passed:
        raise UncertifiedTruthError(
            f"{name}: they differ by {check.error:.1e} for problem {worst} of '{target.name}', more than "
            f"{MAX_RELATIVE_DIFFERENCE:g}, so that log p(x) is not known"
        )
    return check
