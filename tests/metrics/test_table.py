"""Every metric by a second route: the trapezoid rule on densities from SciPy, at guides that miss in every way.

On the real line the trapezoid rule converges exponentially for analytic integrands that vanish at both ends, so with
`z = exp(c + w sinh t)` it gives all the digits there are. What has a kink is taken from closed-form cdfs instead.
"""

from functools import cache, partial
from itertools import pairwise

import mpmath as mp
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import optimize, special, stats

import ppl_vi
from models import exponential_normal
from ppl_vi.metrics import METRICS, Metric
from ppl_vi.metrics.exact.divergence import by_quadrature
from ppl_vi.metrics.exact.grid import quadrature_grid
from ppl_vi.metrics.sampled.sampled_fit import mean_over_rules
from ppl_vi.report.columns import BY_MODEL, BY_OBSERVATION, Footnotes
from ppl_vi.report.numbers import three_digits
from ppl_vi.report.table import as_text, show

LOG_ROOT_2PI = 0.5 * np.log(2 * np.pi)
STEP = 3e-4
T = STEP * np.arange(-30_000, 30_001)
GAUSS = np.polynomial.legendre.leggauss(40)


class Softplus:
    """softplus^-1(z) ~ Normal(loc, scale)."""

    def __init__(self, loc, scale):
        self.v = stats.norm(loc, scale)

    def _inverse(self, z):
        return z + np.log(-np.expm1(-z))

    def logpdf(self, z):
        return self.v.logpdf(self._inverse(z)) - np.log(-np.expm1(-z))

    def cdf(self, z):
        return self.v.cdf(self._inverse(z))

    def sf(self, z):
        return self.v.sf(self._inverse(z))

    def ppf(self, p):
        return np.logaddexp(0.0, self.v.ppf(p))


class Mixture:
    """Of lognormals."""

    def __init__(self, loc, scale, logits):
        self.weights = special.softmax(logits)
        self.parts = [stats.lognorm(s, scale=np.exp(l)) for l, s in zip(loc, scale, strict=True)]

    def logpdf(self, z):
        return special.logsumexp([np.log(w) + q.logpdf(z) for w, q in zip(self.weights, self.parts, strict=True)], 0)

    def cdf(self, z):
        return sum(w * q.cdf(z) for w, q in zip(self.weights, self.parts, strict=True))

    def sf(self, z):
        return sum(w * q.sf(z) for w, q in zip(self.weights, self.parts, strict=True))

    def ppf(self, p):
        ends = [q.ppf(p) for q in self.parts]
        return optimize.brentq(lambda z: self.cdf(z) - p, 0.9 * min(ends), 1.1 * max(ends), xtol=1e-15, rtol=1e-14)


def truncated(mode, curvature):
    loc, scale = mode * (1 - 1 / curvature), mode * curvature**-0.5
    return stats.truncnorm(-loc / scale, np.inf, loc, scale)


GUIDES = {
    "lognormal": lambda loc, scale: stats.lognorm(scale, scale=np.exp(loc)),
    "softplus_normal": Softplus,
    "spline_flow": Softplus,  # its spline starts out straight
    "gamma": lambda concentration, rate: stats.gamma(concentration, scale=1 / rate),
    "weibull": lambda scale, concentration: stats.weibull_min(concentration, scale=scale),
    "exponential": lambda rate: stats.expon(scale=1 / rate),
    "half_normal": lambda scale: stats.halfnorm(scale=scale),
    "folded_normal": lambda loc, scale: stats.foldnorm(loc / scale, scale=scale),
    "truncated_normal": truncated,
    "lognormal_mixture": Mixture,
}

MIXED = {"loc": [-2.0, -0.5, 0.1, 0.6, 1.1], "scale": [1.0, 0.7, 0.3, 0.4, 0.2], "logits": [-0.5, 0.0, 1.0, 0.3, -1.0]}

CASES = {  # too wide, too narrow, too high, too low, heavy and light tails, singular at 0, near and far
    "lognormal": ("lognormal", 1.5, {"loc": 0.3, "scale": 0.6}),
    "lognormal wide": ("lognormal", -3.0, {"loc": -2.0, "scale": 1.4}),
    "lognormal far": ("lognormal", 1e4, {"loc": np.log(9999.7), "scale": 1.3e-4}),
    "softplus": ("softplus_normal", 30.0, {"loc": 28.4, "scale": 1.4}),
    "gamma": ("gamma", 4.0, {"concentration": 7.2, "rate": 1.9}),
    "gamma singular": ("gamma", 0.0, {"concentration": 0.6, "rate": 0.9}),
    "weibull": ("weibull", 0.0, {"scale": 0.7, "concentration": 1.3}),
    "exponential": ("exponential", -3.0, {"rate": 5.5}),
    "exponential far": ("exponential", -1e4, {"rate": 8700.0}),
    "half normal": ("half_normal", 1.5, {"scale": 1.9}),
    "folded normal": ("folded_normal", 0.0, {"loc": 0.5, "scale": 0.9}),
    "truncated normal": ("truncated_normal", 4.0, {"mode": 2.5, "curvature": 8.0}),
    "mixture": ("lognormal_mixture", 1.5, MIXED),
    "flow": ("spline_flow", 0.0, {"loc": -0.7, "scale": 1.3}),
}
INFINITE_CHI_SQUARE = {"lognormal", "lognormal wide", "lognormal far", "softplus", "gamma", "mixture", "flow"}


class Pair:
    """The posterior and a guide by closed forms, and integrals over both."""

    def __init__(self, family, x, parameters):
        self.x, self.m = x, x - 1.0
        self.q = GUIDES[family](**parameters)
        with mp.workdps(60):
            m = mp.mpf(x) - 1
            hazard = mp.npdf(m) / mp.ncdf(m)
            self.log_hazard, self.mean = float(mp.log(hazard)), float(m + hazard)
            self.sd = float(mp.sqrt(1 - m * hazard - hazard**2))
            self.log_evidence = float(mp.mpf(1) / 2 - x + mp.log(mp.ncdf(m)))
        low, self.middle, high = (np.log(self.q.ppf(p)) for p in (0.16, 0.5, 0.84))
        self.width = high - low
        u = self.middle + self.width * np.sinh(T)
        t = T[(u > -690) & (u < 300)]
        self.z = self.z_of(t)
        self.weight = STEP * self.z * self.width * np.cosh(t)
        self.log_p, self.log_q = self.logpdf(self.z), self.q.logpdf(self.z)

    def z_of(self, t):
        return np.exp(self.middle + self.width * np.sinh(t))

    def t_of(self, z):
        return np.arcsinh((np.log(z) - self.middle) / self.width)

    def logpdf(self, z):
        return -((z - self.m) ** 2) / 2 - LOG_ROOT_2PI if self.m > 9 else self.m * z - z**2 / 2 + self.log_hazard

    def sf(self, z):
        if self.m > 0:
            return special.ndtr(self.m - z) / special.ndtr(self.m)
        scaled = special.erfcx((z - self.m) / 2**0.5) / special.erfcx(-self.m / 2**0.5)
        return np.exp(self.m * z - z**2 / 2) * scaled

    def cdf(self, z):
        return 1 - self.sf(z)

    def integral(self, values):
        return float((self.weight * np.where(np.isnan(values), 0.0, values)).sum())

    def under(self, log_density, factor):
        """Integral of exp(log_density) factor, 0 where the density has vanished."""
        density = np.exp(log_density)
        return self.integral(np.where(density > 0, density * np.where(density > 0, factor, 0.0), 0.0))

    def crossings(self, difference):
        """Where a difference of densities or cdfs changes sign, to an ulp."""
        core = self.z[(np.exp(self.log_p) > 1e-30 / self.sd) | (np.exp(self.log_q) > 1e-30 / self.sd)]
        d = difference(core)
        at = np.nonzero(d[:-1] * d[1:] < 0)[0]
        return [optimize.brentq(difference, core[i], core[i + 1], xtol=1e-300, rtol=1e-14) for i in at]


@cache
def pair(case):
    return Pair(*CASES[case])


def log_joint(p):
    return -p.z - (p.x - p.z) ** 2 / 2 - LOG_ROOT_2PI


def total_variation(p):
    at = p.crossings(lambda z: p.logpdf(z) - p.q.logpdf(z))
    masses = np.diff([0.0, *(p.cdf(z) - p.q.cdf(z) for z in at), 0.0])
    return np.abs(masses).sum() / 2


def wasserstein(p):
    """int |F - G| dz, by Gauss's rule in t between the crossings of the cdfs."""

    def difference(z):
        return np.where(z > p.mean, p.q.sf(z) - p.sf(z), p.cdf(z) - p.q.cdf(z))

    core = (p.sf(p.z) > 1e-25) | (p.q.sf(p.z) > 1e-25)
    clear = p.z[core & (np.abs(difference(p.z)) > 1e-13)]  # ripples of rounding where cdfs agree are no crossings
    sign = np.sign(difference(clear))
    at = np.nonzero(sign[:-1] != sign[1:])[0]
    cuts = [optimize.brentq(difference, clear[i], clear[i + 1], xtol=1e-300, rtol=1e-14) for i in at]
    edges = np.array([p.t_of(p.z[0]), *(p.t_of(z) for z in cuts), p.t_of(p.z[core][-1])])
    total = 0.0
    for a, b in pairwise(edges):
        points = np.linspace(a, b, 101)
        t = (points[1:] + points[:-1])[:, None] / 2 + (points[1] - points[0]) / 2 * GAUSS[0]
        z = p.z_of(t)
        total += abs(((points[1] - points[0]) / 2 * GAUSS[1] * difference(z) * z * p.width * np.cosh(t)).sum())
    return total


def sd_ratio(p):
    mean = p.under(p.log_q, p.z)
    return np.sqrt(p.under(p.log_q, (p.z - mean) ** 2)) / p.sd


REFERENCES = {
    "elbo": lambda p: p.under(p.log_q, log_joint(p) - p.log_q),
    "elbo_gap": lambda p: p.log_evidence - p.under(p.log_q, log_joint(p) - p.log_q),
    "reverse_kl": lambda p: p.under(p.log_q, p.log_q - p.log_p),
    "forward_kl": lambda p: p.under(p.log_p, p.log_p - p.log_q),
    "total_variation": total_variation,
    "hellinger": lambda p: np.sqrt(p.integral((np.exp(p.log_p / 2) - np.exp(p.log_q / 2)) ** 2) / 2),
    "wasserstein": wasserstein,
    "mean_error": lambda p: p.under(p.log_q, p.z - p.mean) / p.sd,
    "sd_ratio": sd_ratio,
    "coverage_90": lambda p: float(p.cdf(p.q.ppf(0.95)) - p.cdf(p.q.ppf(0.05))),
    "leaked_mass": lambda p: 0.0,
    "chi_square": lambda p: p.under(2 * p.log_p - p.log_q, 1.0) - 1,
}
UNITS = {
    "elbo": "nats", "elbo_gap": "nats", "reverse_kl": "nats", "forward_kl": "nats", "total_variation": "1",
    "hellinger": "1", "wasserstein": "z", "mean_error": "sd", "sd_ratio": "1", "coverage_90": "1", "leaked_mass": "1",
    "chi_square": "1",
}  # fmt: skip
# The surrogate ELBO exists only for guides that leak mass, which none here does: test_divergence.py. The gaps need the
# family's best member: test_best_member.py.
ELSEWHERE = {"surrogate_elbo", "family_gap", "start_gap", "optimization_gap", "objective_gap"}
ON_GRID = {name: metric.on_grid for name, metric in METRICS.items() if metric.on_grid and name not in ELSEWHERE}


def test_every_metric_has_its_lines_here():
    assert set(ON_GRID) == set(REFERENCES) == set(UNITS)


@pytest.mark.parametrize("name", ON_GRID)
def test_contract(name, fits, truths):
    """One value a problem and replica, finite errors, no Monte Carlo, a unit; infinities stand with their reason."""
    xs = (1.5, -3.0, 40.0)
    found, truth = fits("lognormal", xs), truths(xs)
    theta = found.theta + 0.1 * torch.arange(4)[:, None]  # (3, 4, 2): problems and replicas can't be mixed up
    estimate = ON_GRID[name](quadrature_grid(found, truth, theta))
    assert estimate.value.shape == estimate.std_error.shape == estimate.error.shape == (3, 4)
    assert (estimate.std_error == 0).all()
    assert np.isfinite(estimate.error).all()
    assert (estimate.error >= 0).all()
    assert estimate.unit == UNITS[name]
    assert not np.isnan(estimate.value).any()
    assert bool(estimate.reason) == bool(np.isinf(estimate.value).any())
    for replica in range(4):  # each member as if it were alone
        alone = ON_GRID[name](quadrature_grid(found, truth, theta[:, replica : replica + 1]))
        np.testing.assert_allclose(alone.value[:, 0], estimate.value[:, replica], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ON_GRID)
@pytest.mark.parametrize("case", CASES)
def test_second_route(place, case, name):
    family, x, parameters = CASES[case]
    shaped = {k: v if np.ndim(v) != 1 else np.asarray(v)[None] for k, v in parameters.items()}
    estimate = ON_GRID[name](place(family, x, **shaped))
    value, error = float(estimate.value[0, 0]), float(estimate.error[0, 0])
    if name == "chi_square" and case in INFINITE_CHI_SQUARE:
        assert value == np.inf
        return
    exact = REFERENCES[name](pair(case))
    p = pair(case)
    # z and log p(x, z) are rounded themselves, here and there
    in_nats = abs(p.log_evidence)
    size = {"elbo": in_nats, "elbo_gap": in_nats, "wasserstein": p.mean}.get(name, p.mean / p.sd)
    assert abs(value - exact) <= error + 1e-13 * max(1.0, abs(exact)) + 1e-15 * size, (value, exact, error)
    # the posterior is known to eps |log p(x)|, and nothing can be known better
    eps = np.finfo(float).eps
    scale = max(abs(exact), 1.0, in_nats if name == "elbo_gap" else 0.0)  # that gap is a difference of two such values
    assert error <= 1e-11 * scale + 20 * eps * (abs(p.log_evidence) + size), (value, error)


# ---- a line in the table reaches everything that lists metrics


def mean_squared(grid):
    """E_q[z^2], by quadrature."""
    return by_quadrature(grid, lambda g: g.integral(g.q * g.z**2), "1", only_guide=True)


def mean_squared_on_points(sampled):
    """E_q[|z|^2], over the guide's Sobol points."""
    nodes = sampled.marginal_nodes
    return mean_over_rules(nodes.rules.mean(nodes.z.square().sum(-1)), "1")


def two_normals(y):
    a = pyro.sample("a", dist.Normal(0.5, 1.0))
    b = pyro.sample("b", dist.Normal(0.0, 2.0))
    pyro.sample("y", dist.Normal(a + b, 1.0), obs=y)


def mean_square_of_normals(parameters):
    """The sum of loc^2 + scale^2 over the sites of an `AutoNormal`, which holds its scales by softplus."""
    locs = [value for name, value in parameters.items() if "loc" in name]
    scales = [torch.nn.functional.softplus(value) for name, value in parameters.items() if "scale" in name]
    return float(sum(value.square().sum() for value in locs + scales))


def mean_square_of_lognormal(parameters):
    """exp(2 loc + 2 scale^2)."""
    loc, log_scale = (float(value) for value in parameters.values())
    return float(np.exp(2 * loc + 2 * np.exp(log_scale) ** 2))


@pytest.mark.parametrize(
    ("model", "args", "guide", "exact"),
    [
        (exponential_normal.target([1.5]), (), "lognormal", mean_square_of_lognormal),
        (two_normals, (torch.tensor(1.7),), "AutoNormal", mean_square_of_normals),
    ],
)
def test_a_new_metric_is_a_score_a_key_of_the_records_and_a_column(monkeypatch, model, args, guide, exact):
    new = Metric(mean_squared, mean_squared_on_points, heading=("mean", "square"), per_replica=True)
    monkeypatch.setitem(METRICS, "mean_square", new)
    settings = {"num_steps": 30, "num_particles": 16, "num_replicas": 1, "num_draws": 500}
    result = ppl_vi.compare(model, [guide, "AutoDelta"], args=args, **settings)
    value = float(result.entries[0].card.scores["mean_square"].value[0, 0])
    assert value == pytest.approx(exact(result[guide].parameters), rel=1e-3)  # of points on Sobol noise
    fitted, skipped = result.records()
    assert fitted["mean_square"] == fitted["replicas"][0]["mean_square"] == value
    assert (fitted["units"]["mean_square"], skipped["mean_square"]) == ("1", None)
    for layout in (BY_MODEL, BY_OBSERVATION):
        (column,) = [column for column in layout.columns() if column.heading == ("mean", "square")]
        assert column.cell(fitted, Footnotes()) == three_digits(value)
        assert " square" in as_text(result.records(), partial(show, layout=layout))
