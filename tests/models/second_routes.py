"""The zoo a second time, by NumPy, SciPy and mpmath alone: densities, log evidences and moments to hold models against.

Data are taken from the models' files; nothing else is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mpmath
import numpy as np
from scipy import integrate, special, stats

from models import (
    banana,
    beta_binomial,
    correlated_gaussian,
    eight_schools,
    gamma_poisson,
    linear_regression,
    logistic_regression,
    mixture,
    normal_normal,
    ppca,
    robust_regression,
)

Values = dict[str, np.ndarray]
Moments = dict[str, tuple[np.ndarray, np.ndarray]]  # mean and standard deviation


@dataclass(frozen=True)
class Route:
    """One model of the zoo.

    Attributes:
        log_density: of the model's latents `(S, *shape)` and its data, `(S,)`.
        log_evidence: nats, and how far it can be off.
        moments: of each latent.
    """

    log_density: Callable[[Values], np.ndarray]
    log_evidence: Callable[[], tuple[float, float]]
    moments: Callable[[], Moments]


def lattice(log_density: Callable[..., np.ndarray], *axes: np.ndarray) -> tuple[float, np.ndarray]:
    """Log of the integral and the weights of the points, by the trapezoid rule on axes that reach into nothing.

    For a smooth function that vanishes at both ends its error falls faster than any power of the spacing.
    """
    values = log_density(*np.meshgrid(*axes, indexing="ij"))
    log_cell = sum(np.log(axis[1] - axis[0]) for axis in axes)
    total = special.logsumexp(values)
    return total + log_cell, np.exp(values - total)


def moments_of(weight: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of values at weighted points."""
    mean = np.sum(weight * values)
    return mean, np.sqrt(np.sum(weight * (values - mean) ** 2))


# ---- one latent

TOY_X = 0.5


def _toy_moments() -> Moments:
    posterior = stats.truncnorm(1 - TOY_X, np.inf, loc=TOY_X - 1)
    return {"z": (posterior.mean(), posterior.std())}


def _toy_evidence() -> tuple[float, float]:
    value, error = integrate.quad(lambda z: np.exp(-z) * stats.norm.pdf(TOY_X, z), 0, np.inf, epsabs=1e-13)
    return float(np.log(value)), error / value


CAVENDISH = np.array(normal_normal.DENSITIES)


def _cavendish_evidence() -> tuple[float, float]:
    size = len(CAVENDISH)
    covariance = 4.0 * np.ones((size, size)) + 0.22**2 * np.eye(size)
    return float(stats.multivariate_normal.logpdf(CAVENDISH, np.full(size, 5.0), covariance)), 1e-9


def _cavendish_moments() -> Moments:
    """By the regression of mu on the data, both jointly Gaussian."""
    size = len(CAVENDISH)
    gain = np.linalg.solve(4.0 * np.ones((size, size)) + 0.22**2 * np.eye(size), np.full(size, 4.0))
    return {"mu": (5.0 + gain @ (CAVENDISH - 5.0), np.sqrt(4.0 - gain @ np.full(size, 4.0)))}


def _girls_moments() -> Moments:
    posterior = stats.beta(1 + 437, 1 + 543)
    return {"theta": (posterior.mean(), posterior.std())}


def _girls_density(v: Values) -> np.ndarray:
    return stats.beta.logpdf(v["theta"], 1, 1) + stats.binom.logpmf(
        beta_binomial.GIRLS, beta_binomial.BIRTHS, v["theta"]
    )


KICKS = np.repeat(list(gamma_poisson.YEARS), list(gamma_poisson.YEARS.values()))


def _kicks_evidence() -> tuple[float, float]:
    """Year by year: each is negative binomial given those before."""
    before = np.concatenate([[0], np.cumsum(KICKS)[:-1]])
    rate = 2.0 + np.arange(len(KICKS))
    return float(stats.nbinom.logpmf(KICKS, 2.0 + before, rate / (rate + 1)).sum()), 1e-9


def _kicks_moments() -> Moments:
    posterior = stats.gamma(2.0 + 122, scale=1 / 202.0)
    return {"rate": (posterior.mean(), posterior.std())}


SCALE_Y = 0.3


def _scale_integral(power: int) -> mpmath.mpf:
    with mpmath.workdps(30):
        edges = [0, 0.02, 0.05, 0.1, 0.3, 1, 3, 10, 40]
        return mpmath.quad(
            lambda s: s**power * mpmath.sqrt(2 / mpmath.pi) * mpmath.exp(-(s**2) / 2) * mpmath.npdf(SCALE_Y, 0, s),
            edges,
        )


def _scale_moments() -> Moments:
    whole, first, second = (_scale_integral(power) for power in (0, 1, 2))
    return {"sigma": (float(first / whole), float(mpmath.sqrt(second / whole - (first / whole) ** 2)))}


# ---- two and three latents


def _banana_density(v: Values) -> np.ndarray:
    return stats.norm.logpdf(v["x"], 0, 10) + stats.norm.logpdf(v["y"], banana.BEND * (v["x"] ** 2 - 100), 1)


def _banana_moments() -> Moments:
    """E y^2 = 1 + b^2 Var x^2 and Var x^2 = 2 sd^4, by Gauss-Hermite."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    bend = banana.BEND * ((10 * nodes) ** 2 - 100)
    second = np.sum(weights * bend**2) / weights.sum()
    return {"x": (np.array(0.0), np.array(10.0)), "y": (np.array(0.0), np.sqrt(1 + second))}


SHUTTLE_X = (np.array(logistic_regression.TEMPERATURES) - 70) / 10
SHUTTLE_Y = np.array(logistic_regression.DAMAGED)


def _shuttle_density(v: Values) -> np.ndarray:
    slope, intercept = v["coefficients"][..., 0], v["intercept"]
    logits = slope[..., None] * SHUTTLE_X + intercept[..., None]
    likelihood = special.log_expit(np.where(SHUTTLE_Y == 1, logits, -logits)).sum(-1)
    return stats.norm.logpdf(slope) + stats.norm.logpdf(intercept) + likelihood


def _shuttle_lattice() -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    axis = np.linspace(-9, 9, 181)
    slope, intercept = np.meshgrid(axis, axis, indexing="ij")
    log_z, weight = lattice(lambda a, b: _shuttle_density({"coefficients": a[..., None], "intercept": b}), axis, axis)
    return log_z, weight, slope, intercept


def _shuttle_moments() -> Moments:
    _, weight, slope, intercept = _shuttle_lattice()
    mean, sd = moments_of(weight, slope)
    return {"coefficients": (np.array([mean]), np.array([sd])), "intercept": moments_of(weight, intercept)}


GEYSER = np.array(mixture.MINUTES)


def _geyser_density(v: Values) -> np.ndarray:
    one, other = (stats.norm.logpdf(GEYSER, v[name][..., None], 0.5) for name in ("mu1", "mu2"))
    prior = stats.norm.logpdf(v["mu1"], 3, 2) + stats.norm.logpdf(v["mu2"], 3, 2)
    return prior + (np.logaddexp(one, other) - np.log(2)).sum(-1)


def _geyser_lattice() -> tuple[float, np.ndarray, np.ndarray]:
    axis = np.linspace(-1, 7, 321)
    log_z, weight = lattice(lambda a, b: _geyser_density({"mu1": a, "mu2": b}), axis, axis)
    return log_z, weight, np.meshgrid(axis, axis, indexing="ij")[0]


def _geyser_moments() -> Moments:
    _, weight, one = _geyser_lattice()
    both = moments_of(weight, one)
    return {"mu1": both, "mu2": both}


CALLS_X = (np.arange(1950, 1974) - 1961.5) / 10
CALLS_Y = np.array(robust_regression.CALLS)


def _calls_density(v: Values) -> np.ndarray:
    line = v["intercept"][..., None] + v["slope"][..., None] * CALLS_X
    prior = stats.norm.logpdf(v["intercept"], 0, 10) + stats.norm.logpdf(v["slope"], 0, 10)
    likelihood = stats.t.logpdf(CALLS_Y, 4, line, v["scale"][..., None]).sum(-1)
    return prior + stats.halfnorm.logpdf(v["scale"], scale=5) + likelihood


def _calls_lattice() -> tuple[float, np.ndarray, list[np.ndarray]]:
    axes = np.linspace(-5, 13, 55), np.linspace(-7, 15, 55), np.linspace(-1.5, 3.2, 48)

    def of_log_scale(intercept: np.ndarray, slope: np.ndarray, log_scale: np.ndarray) -> np.ndarray:
        values = {"intercept": intercept, "slope": slope, "scale": np.exp(log_scale)}
        return _calls_density(values) + log_scale

    log_z, weight = lattice(of_log_scale, *axes)
    return log_z, weight, np.meshgrid(*axes, indexing="ij")


def _calls_moments() -> Moments:
    _, weight, (intercept, slope, log_scale) = _calls_lattice()
    values = {"intercept": intercept, "slope": slope, "scale": np.exp(log_scale)}
    return {name: moments_of(weight, value) for name, value in values.items()}


# ---- Gaussians: the joint one of latents and data, conditioned by its covariance


@dataclass(frozen=True)
class Linear:
    """z ~ Normal(0, I), y ~ Normal(A z + b, sigma^2 I)."""

    site: str
    design: np.ndarray
    y: np.ndarray
    sigma: float

    def log_density(self, v: Values) -> np.ndarray:
        """Of latents `(S, D)`."""
        z = v[self.site]
        likelihood = stats.norm.logpdf(self.y, z @ self.design.T, self.sigma).sum(-1)
        return stats.norm.logpdf(z).sum(-1) + likelihood

    def covariance(self) -> np.ndarray:
        """Of the data."""
        return self.design @ self.design.T + self.sigma**2 * np.eye(len(self.y))

    def log_evidence(self) -> tuple[float, float]:
        """SciPy's; its error is that of a solve."""
        value = stats.multivariate_normal.logpdf(self.y, np.zeros(len(self.y)), self.covariance(), allow_singular=False)
        return float(value), 1e-13 * np.linalg.cond(self.covariance()) * len(self.y)

    def moments(self) -> Moments:
        """By the regression of z on y."""
        gain = np.linalg.solve(self.covariance(), self.design).T
        variance = 1 - np.einsum("dn,nd->d", gain, self.design)
        return {self.site: (gain @ self.y, np.sqrt(variance))}


def _flower() -> Linear:
    eigenvalues, vectors = np.linalg.eigh(np.array(ppca.IRIS_COVARIANCE))
    variance = eigenvalues[:2].mean()
    weight = vectors[:, :1:-1] * np.sqrt(eigenvalues[:1:-1] - variance)
    weight = weight * np.sign(weight[np.abs(weight).argmax(0), [0, 1]])
    return Linear("z", weight, np.array(ppca.FLOWER) - np.array(ppca.IRIS_MEAN), float(np.sqrt(variance)))


def _longley() -> Linear:
    columns = np.array([*linear_regression.SERIES.values(), linear_regression.EMPLOYED], dtype=float)
    *features, y = stats.zscore(columns, axis=1)
    return Linear("w", np.array(features).T, y, 0.1)


def _correlated() -> Linear:
    design, y = (arg[0].numpy() for arg in correlated_gaussian.target().args)
    return Linear("z", design, y, 1.0)


FLOWER, LONGLEY, CORRELATED = _flower(), _longley(), _correlated()


# ---- hierarchies


def _funnel_density(v: Values) -> np.ndarray:
    return stats.norm.logpdf(v["v"], 0, 3) + stats.norm.logpdf(v["x"], 0, np.exp(v["v"] / 2)[..., None]).sum(-1)


def _funnel_moments() -> Moments:
    """E x^2 = E exp(v), by Gauss-Hermite."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    sd = np.sqrt(np.sum(weights * np.exp(3 * nodes)) / weights.sum())
    return {"v": (np.array(0.0), np.array(3.0)), "x": (np.zeros(9), np.full(9, sd))}


EFFECTS, ERRORS = np.array(eight_schools.EFFECTS), np.array(eight_schools.ERRORS)


def _hyper(mu: np.ndarray, tau: np.ndarray) -> np.ndarray:
    return stats.norm.logpdf(mu, 0, 5) + stats.halfcauchy.logpdf(tau, 0, 5)


def _centred_density(v: Values) -> np.ndarray:
    schools = stats.norm.logpdf(v["theta"], v["mu"][..., None], v["tau"][..., None])
    return _hyper(v["mu"], v["tau"]) + (schools + stats.norm.logpdf(EFFECTS, v["theta"], ERRORS)).sum(-1)


def _non_centred_density(v: Values) -> np.ndarray:
    theta = v["mu"][..., None] + v["tau"][..., None] * v["eta"]
    schools = stats.norm.logpdf(v["eta"]) + stats.norm.logpdf(EFFECTS, theta, ERRORS)
    return _hyper(v["mu"], v["tau"]) + schools.sum(-1)


def _schools_lattice() -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """Over mu and log tau, the effects integrated out; tau's tail is that of a Cauchy times a Gaussian's power -8."""
    axes = np.linspace(-32, 40, 361), np.linspace(-34, 9, 861)
    mu, log_tau = np.meshgrid(*axes, indexing="ij")

    def marginal(mu: np.ndarray, log_tau: np.ndarray) -> np.ndarray:
        tau = np.exp(log_tau)
        out = _hyper(mu, tau) + log_tau
        for effect, error in zip(EFFECTS, ERRORS, strict=True):
            out = out + stats.norm.logpdf(effect, mu, np.hypot(tau, error))
        return out

    log_z, weight = lattice(marginal, *axes)
    return log_z, weight, mu, np.exp(log_tau)


def _schools_moments(centred: bool) -> Moments:
    _, weight, mu, tau = _schools_lattice()
    means, sds = [], []
    for effect, error in zip(EFFECTS, ERRORS, strict=True):
        variance = tau**2 + error**2
        loc, spread = tau * (effect - mu) / variance, error**2 / variance
        if centred:
            loc, spread = mu + tau * loc, tau**2 * spread
        mean = np.sum(weight * loc)
        means.append(mean)
        sds.append(np.sqrt(np.sum(weight * (spread + (loc - mean) ** 2))))
    effects = np.array(means), np.array(sds)
    return {"mu": moments_of(weight, mu), "tau": moments_of(weight, tau), "theta" if centred else "eta": effects}


def _exact() -> tuple[float, float]:
    return 0.0, 1e-12  # a product of normalised conditionals


def _schools_evidence() -> tuple[float, float]:
    return _schools_lattice()[0], 1e-9


ROUTES: dict[str, Route] = {
    "exponential_normal": Route(
        lambda v: stats.expon.logpdf(v["z"]) + stats.norm.logpdf(TOY_X, v["z"]), _toy_evidence, _toy_moments
    ),
    "normal_normal": Route(
        lambda v: stats.norm.logpdf(v["mu"], 5, 2) + stats.norm.logpdf(CAVENDISH, v["mu"][..., None], 0.22).sum(-1),
        _cavendish_evidence,
        _cavendish_moments,
    ),
    "beta_binomial": Route(
        _girls_density, lambda: (float(stats.betabinom.logpmf(437, 980, 1, 1)), 1e-9), _girls_moments
    ),
    "gamma_poisson": Route(
        lambda v: (
            stats.gamma.logpdf(v["rate"], 2, scale=0.5) + stats.poisson.logpmf(KICKS, v["rate"][..., None]).sum(-1)
        ),
        _kicks_evidence,
        _kicks_moments,
    ),
    "half_normal": Route(
        lambda v: stats.halfnorm.logpdf(v["sigma"]) + stats.norm.logpdf(SCALE_Y, 0, v["sigma"]),
        lambda: (float(mpmath.log(_scale_integral(0))), 1e-12),
        _scale_moments,
    ),
    "banana": Route(_banana_density, _exact, _banana_moments),
    "logistic_regression": Route(_shuttle_density, lambda: (_shuttle_lattice()[0], 1e-10), _shuttle_moments),
    "mixture": Route(_geyser_density, lambda: (_geyser_lattice()[0], 1e-10), _geyser_moments),
    "ppca": Route(FLOWER.log_density, FLOWER.log_evidence, FLOWER.moments),
    "robust_regression": Route(_calls_density, lambda: (_calls_lattice()[0], 1e-8), _calls_moments),
    "linear_regression": Route(LONGLEY.log_density, LONGLEY.log_evidence, LONGLEY.moments),
    "correlated_gaussian": Route(CORRELATED.log_density, CORRELATED.log_evidence, CORRELATED.moments),
    "funnel": Route(_funnel_density, _exact, _funnel_moments),
    "eight_schools_centred": Route(_centred_density, _schools_evidence, lambda: _schools_moments(True)),
    "eight_schools_non_centred": Route(_non_centred_density, _schools_evidence, lambda: _schools_moments(False)),
}
