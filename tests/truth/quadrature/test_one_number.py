"""The truth by quadrature, against closed forms in 60 digits and against SciPy's, and its refusals."""

from dataclasses import replace

import mpmath as mp
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import special, stats

from models import beta_binomial, exponential_normal
from ppl_vi.target.target import Target
from ppl_vi.truth import UncertifiedTruthError, ground_truth
from ppl_vi.truth.quadrature.one_number import QuadraturePosterior

XS = (-1e4, -3141.6, -100.0, -30.0, -3.0, 0.0, 0.7, 1.5, 4.0, 30.0, 271.8, 1e4)
LEVELS = np.array([1e-3, 0.05, 0.3, 0.5, 0.95, 0.999])


@pytest.fixture(autouse=True)
def _digits():
    with mp.workdps(60):  # 16 are lost in the variance at x = -1e4
        yield


@pytest.fixture(scope="module")
def toy():
    x = torch.tensor(XS, dtype=torch.float64)
    return ground_truth(Target(exponential_normal.model, (x,), name="toy"))  # no closed form to lean on


def exact_log_evidence(x):
    return mp.mpf(1) / 2 - mp.mpf(x) + mp.log(mp.ncdf(mp.mpf(x) - 1))


def exact_survival(z, x):
    m = mp.mpf(x) - 1
    return mp.ncdf(m - mp.mpf(z)) / mp.ncdf(m)


def exact_moments(x):
    m = mp.mpf(x) - 1
    hazard = mp.npdf(m) / mp.ncdf(m)
    return m + hazard, mp.sqrt(1 - m * hazard - hazard**2)


def tolerance(truth):
    """Of probabilities and moments: the rules' own, and that of the density, which is rounded as log p(x, z) is."""
    return 3e-12 + truth.log_evidence_error


# ---- the toy


def test_log_evidence_against_sixty_digits(toy):
    for x, found, stated in zip(XS, toy.log_evidence, toy.log_evidence_error, strict=True):
        exact = exact_log_evidence(x)
        difference = abs(mp.mpf(found) - exact)
        assert difference <= 1e-12 * abs(exact), x
        assert difference <= stated <= 1e-12 * max(1, abs(exact)), x  # the bound bounds, and says something


def test_checks_are_named_and_met(toy):
    certified = ground_truth(exponential_normal.target([1.5, -3.0]))
    assert [check.name for check in toy.checks] == ["tanh-sinh against Gauss-Kronrod"]
    assert [check.name for check in certified.checks][1:] == ["tanh-sinh against the closed form"]
    assert all(check.error <= check.tolerance <= 1e-12 for check in (*toy.checks, *certified.checks))


@pytest.mark.slow
def test_ten_thousand_observations_at_once():
    x = np.linspace(-1e4, 1e4, 10_000)
    truth = ground_truth(Target(exponential_normal.model, (torch.from_numpy(x),)))
    exact = 0.5 - x + special.log_ndtr(x - 1)  # within 1 ulp of mpmath
    assert (np.abs(truth.log_evidence - exact) <= 1e-12 * np.abs(exact)).all()
    for row in (0, 3333, 5000, 9999):
        assert abs(truth.log_evidence[row] - exact_log_evidence(x[row])) <= truth.log_evidence_error[row]


def test_density(toy):
    mean, sd = toy.mean, toy.sd
    z = np.abs(mean[:, None] + sd[:, None] * np.array([-0.9, -0.2, 1.3, 4.0]))
    found = toy.log_prob({"z": torch.from_numpy(z)}).numpy()
    for row, x in enumerate(XS):
        m = mp.mpf(x) - 1
        for column in range(z.shape[1]):
            y = mp.mpf(z[row, column]) - m
            exact = -(y**2) / 2 - mp.log(2 * mp.pi) / 2 - mp.log(mp.ncdf(m))
            # log p(x, z) and log p(x) are sums of terms as large as x^2 / 2
            assert abs(found[row, column] - exact) <= 1e-12 * (1 + x**2 / 2), (x, z[row, column])


def test_cdf_in_both_tails(toy):
    z = np.maximum(toy.mean, toy.sd)[:, None] + toy.sd[:, None] * np.array([-0.99, -0.3, 0.5, 3.0])
    found = toy.cdf(z)
    for row, x in enumerate(XS):
        for column in range(z.shape[1]):
            difference = abs(found[row, column] - (1 - exact_survival(z[row, column], x)))
            assert difference <= tolerance(toy)[row], (x, z[row, column])


def test_cdf_keeps_its_digits_in_the_lower_tail(toy):
    z = toy.quantile(np.full((len(XS), 1), 0.05)) * 1e-3  # probability 1e-4 to 1e-300 and below
    for row, (x, found) in enumerate(zip(XS, toy.cdf(z)[:, 0], strict=True)):
        m = mp.mpf(x) - 1
        below = mp.ncdf(mp.mpf(z[row, 0]) - m) - mp.ncdf(-m) if m > 0 else mp.ncdf(m) - mp.ncdf(m - mp.mpf(z[row, 0]))
        exact = below / mp.ncdf(m)
        assert abs(found - exact) <= 10 * tolerance(toy)[row] * exact + mp.mpf(10) ** -300, x


def test_cdf_at_and_beyond_the_ends(toy):
    found = toy.cdf(np.tile([-1.0, 0.0, 1e9, np.inf], (len(XS), 1)))
    np.testing.assert_allclose(found, np.tile([0.0, 0.0, 1.0, 1.0], (len(XS), 1)), rtol=0, atol=1e-15)


def test_quantiles_have_their_probabilities(toy):
    found = toy.quantile(np.tile(LEVELS, (len(XS), 1)))
    assert (np.diff(found) > 0).all()
    for row, x in enumerate(XS):
        for z, level in zip(found[row], LEVELS, strict=True):
            # |dp| = density |dz|: z has 1e-16 of at most 1e4 sd, far below the cdf's own error
            assert abs(1 - exact_survival(z, x) - level) <= 2 * tolerance(toy)[row], (x, level)


def test_a_median_that_is_the_mode_is_found_as_soon_as_others(monkeypatch):
    """Its t is 0, of which no tolerance relative to t is ever met."""
    truth = ground_truth(Target.of(on_the_line, (torch.tensor(0.4, dtype=torch.float64),)))
    evaluated, density = [], QuadraturePosterior.density

    def counted(self, t, problem):
        evaluated.append(t.size)
        return density(self, t, problem)

    monkeypatch.setattr(QuadraturePosterior, "density", counted)
    beside = truth.quantile(np.array([[0.25]]))
    num_beside = len(evaluated)
    median = truth.quantile(np.array([[0.5]]))
    exact = line_exact(0.4)[1]
    np.testing.assert_allclose([beside[0, 0], median[0, 0]], exact.ppf([0.25, 0.5]), rtol=1e-12)
    assert len(evaluated) - num_beside < 2 * num_beside


@pytest.mark.parametrize("level", [0.0, 1.0, -0.1, np.nan])
def test_quantiles_refuse_what_is_no_probability(level):
    truth = ground_truth(exponential_normal.target([1.5]))
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        truth.quantile(np.array([[level]]))


def test_mean_and_sd(toy):
    for x, mean, sd, relative in zip(XS, toy.mean, toy.sd, tolerance(toy), strict=True):
        exact_mean, exact_sd = exact_moments(x)
        assert abs(mean - exact_mean) <= relative * exact_mean, x
        assert abs(sd - exact_sd) <= relative * exact_sd, x


# ---- other lines, other names


def on_the_line(y):
    theta = pyro.sample("theta", dist.Normal(1.0, 2.0))
    pyro.sample("y", dist.Normal(theta, 0.5), obs=y)


def on_the_unit_interval(heads):
    rate = pyro.sample("rate", dist.Beta(2.0, 3.5))
    pyro.sample("heads", dist.Binomial(10, rate), obs=heads)


def on_an_interval(y):
    place = pyro.sample("place", dist.Uniform(-2.0, 5.0))
    pyro.sample("y", dist.Normal(place, 1.5), obs=y)


def line_exact(y):
    precision = 1 / 4 + 1 / 0.25
    posterior = stats.norm((1.0 / 4 + y / 0.25) / precision, precision**-0.5)
    return stats.norm(1.0, np.sqrt(4.25)).logpdf(y), posterior


def unit_exact(k):
    evidence = np.log(special.comb(10, k)) + special.betaln(2 + k, 13.5 - k) - special.betaln(2.0, 3.5)
    return evidence, stats.beta(2 + k, 13.5 - k)


def interval_exact(y):
    low, high = (-2.0 - y) / 1.5, (5.0 - y) / 1.5
    return np.log((special.ndtr(high) - special.ndtr(low)) / 7), stats.truncnorm(low, high, loc=y, scale=1.5)


OTHERS = {
    "line": (on_the_line, "theta", [-7.3, 0.4, 25.0], line_exact),
    "unit interval": (on_the_unit_interval, "rate", [0.0, 3.0, 10.0], unit_exact),
    "interval": (on_an_interval, "place", [-3.1, 0.6, 5.5], interval_exact),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_supports(case):
    model, site, data, exact = OTHERS[case]
    truth = ground_truth(Target(model, (torch.tensor(data, dtype=torch.float64),)))
    evidence = np.array([exact(value)[0] for value in data])
    posteriors = [exact(value)[1] for value in data]
    difference = np.abs(truth.log_evidence - evidence)
    assert (difference <= truth.log_evidence_error + 4e-15 * np.abs(evidence)).all()  # SciPy's own rounding
    assert (truth.log_evidence_error <= 1e-12 * np.maximum(1, np.abs(evidence))).all()
    z = np.stack([p.ppf([0.01, 0.2, 0.7, 0.99]) for p in posteriors])
    density = np.stack([p.logpdf(row) for p, row in zip(posteriors, z, strict=True)])
    np.testing.assert_allclose(truth.log_prob({site: torch.from_numpy(z)}), density, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(truth.cdf(z), np.tile([0.01, 0.2, 0.7, 0.99], (3, 1)), rtol=1e-10)
    np.testing.assert_allclose(truth.quantile(np.tile([0.01, 0.2, 0.7, 0.99], (3, 1))), z, rtol=1e-10)
    np.testing.assert_allclose(truth.mean, [p.mean() for p in posteriors], rtol=1e-10)
    np.testing.assert_allclose(truth.sd, [p.std() for p in posteriors], rtol=1e-10)


# ---- refusals


def test_a_wrong_closed_form_is_refused_for_the_one_problem_where_it_is_wrong():
    def wrong(x):
        return exponential_normal.log_evidence(x) + torch.tensor([0.0, 1e-9, 0.0])

    x = torch.tensor([4.0, 1.5, -3.0], dtype=torch.float64)
    with pytest.raises(UncertifiedTruthError, match=r"closed form: they differ by .*e-10 for problem 1"):
        ground_truth(Target(exponential_normal.model, (x,), closed_form=wrong))


def test_a_closed_form_that_is_nan_is_refused():
    x = torch.tensor([4.0, 1.5], dtype=torch.float64)
    with pytest.raises(UncertifiedTruthError, match=r"closed form.*problem 1"):
        ground_truth(Target(exponential_normal.model, (x,), closed_form=lambda x: torch.where(x > 2, -3.5, torch.nan)))


def test_a_jump_is_refused():
    def jump(y):
        z = pyro.sample("z", dist.Normal(y, 1.0))
        pyro.factor("jump", torch.where(z > y + 0.7381, 3.0, 0.0))

    truth = ground_truth(Target(jump, (torch.tensor([0.3, 2.0]),)))
    assert truth.grade == "uncertified"
    assert all("jump" in reason for reason in truth.reasons)


def spiky(width):
    def model(y):
        z = pyro.sample("z", dist.Normal(y, 1.0))
        bump = -0.5 * ((z - y - 2.1) / width) ** 2
        pyro.factor("spike", torch.log1p(torch.exp(bump) / width))

    return model


@pytest.mark.parametrize("width", [1e-2, 1e-3])
def test_a_spike_that_one_rule_sees_is_found_by_the_search(width):
    y = torch.tensor([0.3], dtype=torch.float64)
    exact = np.log1p(np.exp(-0.5 * 2.1**2 / (1 + width**2)) / np.sqrt(1 + width**2))
    truth = ground_truth(Target(spiky(width), (y,)))
    assert truth.grade == "checked", truth.reasons
    assert abs(truth.log_evidence[0] - exact) <= truth.log_evidence_error[0]


def test_a_spike_that_all_rules_miss_is_refused_where_a_closed_form_is_known():
    def closed_form(y):
        return torch.full_like(y, float(np.log1p(np.exp(-0.5 * 2.1**2))))

    y = torch.tensor([0.3], dtype=torch.float64)
    with pytest.raises(UncertifiedTruthError):
        ground_truth(Target(spiky(1e-7), (y,), closed_form=closed_form))


# ---- points


def test_points_give_moments_and_probabilities(toy):
    """Both rules, and `expectation` with their difference, against the exact moments in 60 digits."""
    assert [points.kind for points in toy.points] == ["rule", "rule"]
    for points in toy.points:
        assert points.u.shape == (len(XS), points.group.shape[0], 1)
        np.testing.assert_allclose(points.log_weight.logsumexp(1), 0.0, atol=1e-13)
    mean = toy.expectation(lambda latents: latents["z"])
    second = toy.expectation(lambda latents: (latents["z"] - mean.value[:, None]).square())
    for row, x in enumerate(XS):
        exact_mean, exact_sd = exact_moments(x)
        # at x = -1e4 the log joint, of size 5e7, is rounded to 7e-9
        assert abs(float(mean.value[row]) - exact_mean) <= (1e-11 + 10 * toy.log_evidence_error[row]) * exact_mean
        assert abs(float(second.value[row]) - exact_sd**2) <= (1e-10 + 10 * toy.log_evidence_error[row]) * exact_sd**2
    assert (mean.error <= 1e-9 * mean.value + 10 * torch.from_numpy(toy.log_evidence_error) * mean.value).all()
    assert (mean.std_error == 0).all()


def test_grades(toy):
    assert toy.grade == "checked"
    assert "narrow" in toy.assumptions[0]
    certified = ground_truth(exponential_normal.target([1.5]))
    assert (certified.grade, certified.assumptions) == ("certified", ())


def test_a_closed_form_certifies_what_agreeing_routes_only_check(toy):
    """One word a grade: both are trusted, one is certified; a problem that fails is neither."""
    in_closed_form = ground_truth(exponential_normal.target([1.5, -3.0]))
    assert (in_closed_form.trusted.tolist(), in_closed_form.certified.tolist()) == ([True] * 2, [True] * 2)
    num_problems = len(toy.log_evidence)
    assert (toy.trusted.tolist(), toy.certified.tolist()) == ([True] * num_problems, [False] * num_problems)
    failed = replace(in_closed_form, grade="uncertified", reasons=("a jump", ""))
    assert (failed.trusted.tolist(), failed.certified.tolist()) == ([False, True], [False, False])
    unexplained = replace(in_closed_form, grade="uncertified")
    assert not (unexplained.trusted | unexplained.certified).any()


def test_the_stated_error_knows_of_the_densitys_own_rounding():
    """Log factorials of 980 births leave 5e-13 in the density, which both rules integrate alike: p(y) = 1 / 981."""
    truth = ground_truth(beta_binomial.target())
    away = abs(float(truth.log_evidence[0] + mp.log(981)))
    assert 1e-13 < away <= truth.log_evidence_error[0] < 2e-12
