"""The truth of a target with one latent number, by two independent rules of SciPy's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.integrate import cubature, tanhsinh
from scipy.optimize import elementwise

from ppl_vi.target.target import Target
from ppl_vi.truth.result import Check, Points, Truth, UncertifiedTruthError

TOLERANCE = 1e-12  # what independent rules must agree to, relative to max(1, |log p(x)|)
# two coarse levels may agree by chance, each wrong by 2e-9 (the toy at x = 10.3): so no answer before the sixth,
# or before the fifth where a second rule must confirm it
RULE = {"rtol": TOLERANCE / 10, "atol": 0.0, "minlevel": 6, "maxlevel": 7}
TO_BE_CONFIRMED = RULE | {"minlevel": 5}
EPS = float(np.finfo(np.float64).eps)
BLOCK = 65536  # points evaluated at once: their temporaries stay in the cache
HIGHEST = 700.0  # nats above the mode: e to more than that is no number
FAR = 60.0  # widths from the mode beyond which a latent may overflow
SPACING = 1 / 48  # of the points handed out: so that every other one is good to 1e-10 for the toy
REACH = 4.25  # of them: t = 1e24
NEGLIGIBLE = 46.0  # nats below the largest: weights of 1e-20

ASSUMED = ("no part of the posterior is so narrow that both rules step over it",)

Integrand = Callable[[np.ndarray, np.ndarray], np.ndarray]


class QuadraturePosterior:
    """Each problem's posterior of its unconstrained latent `u`, in units of its own mode and width.

    With `t = (u - mode) / width` every problem looks alike, and one rule serves x = -1e4 and 1e4 at once; on the
    unscaled half line the same rule fails for nearly all such x.
    """

    def __init__(self, target: Target) -> None:
        laplace = target.laplace
        self.target = target
        self.mode = laplace.loc[:, 0].cpu().numpy()
        self.width = laplace.scale[:, 0].cpu().numpy()
        self.peak = laplace.log_density.cpu().numpy()
        self.rounding = 4 * EPS * (np.abs(self.peak) + 1)  # of `density`, relative
        self.log_mass = np.zeros_like(self.peak)  # of `density` over t, once known

    @property
    def problems(self) -> np.ndarray:
        """`0 .. B-1`, as floats: SciPy's vectorised routines pass arguments along as such."""
        return np.arange(len(self.mode), dtype=np.float64)

    def _unconstrained(self, t: np.ndarray, problem: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
        rows = np.rint(problem).astype(np.int64)
        u = self.mode[rows] + self.width[rows] * t
        return torch.from_numpy(u).to(self.target.device)[..., None], rows

    def latent(self, t: np.ndarray, problem: np.ndarray) -> np.ndarray:
        """The latent at `t`; arrays of one shape."""
        u, _ = self._unconstrained(t, problem)
        values, _ = self.target.constrain(u)
        return next(iter(values.values())).reshape(t.shape).cpu().numpy()

    def standardized(self, z: np.ndarray, problem: np.ndarray) -> np.ndarray:
        """The inverse of `latent`; -inf below the support and inf above it."""
        site = self.target.latents[0]
        rows = np.rint(problem).astype(np.int64)
        values = torch.from_numpy(z).to(self.target.device).reshape((*z.shape, *site.shape))
        with np.errstate(divide="ignore"):
            u = self.target.unconstrain({site.name: values})[..., 0].cpu().numpy()
        inside = site.support.check(values).reshape(z.shape).cpu().numpy()
        below = z < self.latent(np.zeros_like(z), problem)
        return np.where(inside, (u - self.mode[rows]) / self.width[rows], np.where(below, -np.inf, np.inf))

    def density(self, t: np.ndarray, problem: np.ndarray) -> np.ndarray:
        """The density of `t`, of which `exp(log_mass)` is the integral; `(N, S)` with one problem a row, or `(N,)`."""
        flat = t.reshape(len(t), -1)
        rows = np.rint(np.broadcast_to(problem.reshape(len(t), -1), flat.shape)[:, 0]).astype(np.int64)
        step = max(1, BLOCK // max(1, flat.shape[1]))
        blocks = [self._density(flat[i : i + step], rows[i : i + step]) for i in range(0, len(flat), step)]
        return np.concatenate(blocks).reshape(t.shape) if blocks else np.empty_like(t)

    def _density(self, t: np.ndarray, rows: np.ndarray) -> np.ndarray:
        u = torch.from_numpy(self.mode[rows, None] + self.width[rows, None] * t).to(self.target.device)
        values, log_jacobian = self.target.constrain(u[..., None])
        log_joint = self.target.log_joint(values, torch.from_numpy(rows).to(u.device))
        log_density = (log_joint + log_jacobian).cpu().numpy()
        # where the latent overflows, a density has long vanished
        overflown = np.isnan(log_density) & (np.abs(t) > FAR)
        relative = np.where(overflown, -np.inf, log_density) - self.peak[rows, None]
        if (relative > HIGHEST).any():
            raise UncertifiedTruthError(f"the density of '{self.target.name}' has no bound")
        return np.exp(relative)

    def integral(self, integrand: Integrand, low: np.ndarray, high: np.ndarray, problem: np.ndarray) -> np.ndarray:
        """`integrand(t, problem)` from `low` to `high`, arrays of one shape, by tanh-sinh quadrature.

        Raises:
            UncertifiedTruthError: the rule did not converge.
        """
        found = tanhsinh(integrand, low, high, args=(problem,), **RULE)
        allowed = (1e3 * TOLERANCE + self.rounding[np.rint(problem).astype(np.int64)]) * np.abs(found.integral)
        bad = ~found.success & (found.error > allowed) & (found.integral != 0)
        if np.any(bad):
            where = int(np.rint(problem[bad][0]))
            raise UncertifiedTruthError(f"tanh-sinh quadrature did not converge for problem {where}")
        return found.integral

    def cdf(self, z: np.ndarray) -> np.ndarray:
        """P(Z <= z), `(B, S)`."""
        problem = np.broadcast_to(self.problems[:, None], z.shape)
        return self._cdf(self.standardized(z, problem).ravel(), problem.ravel()).reshape(z.shape)

    def _cdf(self, t: np.ndarray, problem: np.ndarray) -> np.ndarray:
        """By the integral of the nearer tail, `(N,)`."""
        lower = t <= 0
        low, high = np.where(lower, -np.inf, t), np.where(lower, t, np.inf)
        empty = np.isinf(t)
        tail = self.integral(self.density, np.where(empty, 0.0, low), np.where(empty, 0.0, high), problem)
        tail = tail / np.exp(self.log_mass[np.rint(problem).astype(np.int64)])
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
        bracket = elementwise.bracket_root(excess, np.full_like(p, -2.0), np.full_like(p, 2.0), args=(p, problem))
        found = elementwise.find_root(excess, bracket.bracket, args=(p, problem))
        if not np.all(found.success):
            lost = int(np.argmax(~found.success))
            where = f"problem {problem[lost]:.0f} at probability {p[lost]:g}"
            raise UncertifiedTruthError(f"no quantile was found for {where}")
        return self.latent(found.x, problem).reshape(probability.shape)

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the latent, `(B,)` each."""
        everywhere = np.full_like(self.mode, np.inf)
        mass = self.integral(self.density, -everywhere, everywhere, self.problems)
        # from a width below the mode: far from 0, a relative error of the latent itself is many standard deviations
        near = self.latent(np.full_like(self.mode, -1.0), self.problems)

        def first(t: np.ndarray, problem: np.ndarray) -> np.ndarray:
            return self._times(t, problem, lambda z, rows: z - near[rows])

        mean = near + self.integral(first, -everywhere, everywhere, self.problems) / mass

        def second(t: np.ndarray, problem: np.ndarray) -> np.ndarray:
            return self._times(t, problem, lambda z, rows: (z - mean[rows]) ** 2)

        variance = self.integral(second, -everywhere, everywhere, self.problems) / mass
        return mean, np.sqrt(variance)

    def points(self) -> tuple[Points, Points]:
        """Two interleaved trapezoid lattices in `s` with t = sinh(pi/2 sinh s), all nodes and every other one.

        Source: Takahasi and Mori (1974), Double exponential formulas for numerical integration.
        """
        num = round(REACH / SPACING)
        s = SPACING * (np.arange(-num, num) + 0.5)
        half_pi = np.pi / 2
        t = np.broadcast_to(np.sinh(half_pi * np.sinh(s)), (len(self.mode), len(s)))
        log_slope = np.log(half_pi * np.cosh(s)) + np.log(np.cosh(half_pi * np.sinh(s)))
        with np.errstate(divide="ignore"):
            log_weight = np.log(self.density(t, self.problems)) + log_slope
        log_weight -= log_weight.max(1, keepdims=True)
        u = torch.from_numpy(self.mode[:, None] + self.width[:, None] * t)[..., None]
        return self._rule(u, log_weight, 1), self._rule(u, log_weight, 2)

    def _rule(self, u: torch.Tensor, log_weight: np.ndarray, every: int) -> Points:
        matters: np.ndarray = np.any(log_weight > -NEGLIGIBLE, axis=0)
        matters[np.arange(len(matters)) % every > 0] = False
        kept = torch.from_numpy(log_weight[:, matters])
        group = torch.zeros(kept.shape[1], dtype=torch.int64)
        device = self.target.device
        normalized = kept - kept.logsumexp(1, keepdim=True)
        return Points(u[:, matters].to(device), normalized.to(device), group.to(device), "rule")

    def _times(
        self, t: np.ndarray, problem: np.ndarray, factor: Callable[[np.ndarray, np.ndarray], np.ndarray]
    ) -> np.ndarray:
        index = np.broadcast_to(problem, t.shape)
        density = self.density(t, problem)
        z = self.latent(t, index)
        rows = np.rint(index).astype(np.int64)
        with np.errstate(over="ignore", invalid="ignore"):
            return np.where(density == 0, 0.0, factor(z, rows) * density)


def quadrature_truth(target: Target) -> Truth:
    """The posterior of one latent number, by tanh-sinh quadrature, checked by adaptive Gauss-Kronrod.

    log p(x) = log int exp(log density(t) - peak) dt + peak + log width, with t measured from the mode in widths. Its
    stated error is what the rules differ by, and rounding; where there is a closed form, what that differs by, too.

    Raises:
        UncertifiedTruthError: the mode was not found, a rule did not converge, or the checks disagree.
        ValueError: the target has more than one latent number.

    Source: Takahasi and Mori (1974), Double exponential formulas for numerical integration.
    """
    if target.dim != 1:
        raise ValueError(f"quadrature here takes one latent number; the target has {target.dim}")
    if not bool(target.laplace.converged.all()):
        lost = int((~target.laplace.converged).nonzero()[0])
        raise UncertifiedTruthError(f"the posterior mode of problem {lost} was not found")
    posterior = QuadraturePosterior(target)
    mass, error = _tanh_sinh(posterior, posterior.problems, TO_BE_CONFIRMED)
    rounding = posterior.rounding
    second = _gauss_kronrod(posterior, allowed=(TOLERANCE / 4 + rounding) * mass)
    doubtful = np.abs(second - mass) > (TOLERANCE / 2 + rounding) * mass
    if doubtful.any():
        mass[doubtful], error[doubtful] = _tanh_sinh(posterior, posterior.problems[doubtful], RULE)
    posterior.log_mass = np.log(mass)
    log_evidence = posterior.log_mass + posterior.peak + np.log(posterior.width)
    differences = {"tanh-sinh against Gauss-Kronrod": np.abs(second - mass) / mass}
    if target.closed_form is not None:
        exact = target.closed_form(*target.args).cpu().numpy()
        differences["tanh-sinh against the closed form"] = np.abs(exact - log_evidence)
    size = np.maximum(1.0, np.abs(log_evidence))
    checks = tuple(_checked(name, difference / size, target) for name, difference in differences.items())
    error = np.maximum(error / mass, differences["tanh-sinh against Gauss-Kronrod"]) + rounding + 4 * EPS * size
    certified = target.closed_form is not None
    if certified:  # both rules share the density's own rounding: log factorials of 1,000 that cancel leave 1e-12
        error = error + differences["tanh-sinh against the closed form"]
    return Truth(
        target,
        "quadrature",
        log_evidence,
        error,
        checks,
        posterior,
        grade="certified" if certified else "checked",
        assumptions=() if certified else ASSUMED,
        make_points=posterior.points,
    )


def _tanh_sinh(
    posterior: QuadraturePosterior, problems: np.ndarray, rule: dict[str, float]
) -> tuple[np.ndarray, np.ndarray]:
    """The integrals of the posterior densities of some problems and the rule's own error estimates, `(N,)` each."""
    everywhere = np.full_like(problems, np.inf)
    found = tanhsinh(posterior.density, -everywhere, everywhere, args=(problems,), **rule)
    return found.integral, found.error


def _gauss_kronrod(posterior: QuadraturePosterior, allowed: np.ndarray) -> np.ndarray:
    """The same integrals by an adaptive 21-point rule, all problems on one partition, to errors `allowed`, `(B,)`."""
    num = len(posterior.mode)

    def density(t: np.ndarray) -> np.ndarray:
        everywhere = np.broadcast_to(t[:, 0], (num, len(t)))
        return (posterior.density(everywhere, posterior.problems[:, None]) / allowed[:, None]).T

    found = cubature(density, [-np.inf], [np.inf], rule="gk21", rtol=0.0, atol=1.0, max_subdivisions=200)
    return np.atleast_1d(found.estimate) * allowed


def _checked(name: str, difference: np.ndarray, target: Target) -> Check:
    worst = int(np.argmax(np.where(np.isnan(difference), np.inf, difference)))
    if not difference[worst] <= TOLERANCE:
        raise UncertifiedTruthError(
            f"{name}: they differ by {difference[worst]:.1e} for problem {worst} of '{target.name}', "
            f"more than {TOLERANCE:g}: no truth to measure by"
        )
    return Check(name, float(difference[worst]), TOLERANCE)
