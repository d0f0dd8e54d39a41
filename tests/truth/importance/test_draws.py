"""Importance draws, against a tensor rule, closed forms, and posteriors that must be refused."""

import logging
import math
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, special, stats

from ppl_vi.numerics.mixtures import StudentMixture
from ppl_vi.target.evaluation import prior_draws
from ppl_vi.target.target import Target
from ppl_vi.truth import reference_truth
from ppl_vi.truth.chains.reparametrisation import Reparametrisation
from ppl_vi.truth.importance import draws as importance
from ppl_vi.truth.importance.draws import importance_draws
from ppl_vi.truth.importance.evidence import evidence_of
from ppl_vi.truth.importance.proposal import ProposalDraws, at_modes
from ppl_vi.truth.importance.searches import searched

REAL = torch.float64
NUM = 10_000


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def found(model, *args, seed=0, route=importance.FITTED):
    """The importance draws of a model, or None."""
    target = Target.of(model, args)
    with target.isolated(seed), torch.no_grad():
        coordinates = Reparametrisation.of(target, 0)
        modes = searched(coordinates, prior_draws(target, 0, 100, seed), seed)
        return importance_draws(coordinates, modes, NUM, seed, route)


# ---- logistic regression, against a tensor rule of Gauss and Hermite


def regression_data(num_rows):
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(num_rows, 4, generator=generator, dtype=REAL)
    x[:, 0], x[:, 3] = 1.0, 0.1 * x[:, 3] + x[:, 1]  # an intercept, and two columns that are nearly alike
    logits = x @ torch.tensor([0.3, -0.5, 0.8, 0.2], dtype=REAL)
    return x, torch.bernoulli(logits.sigmoid(), generator=generator)


def logistic(x, y):
    w = pyro.sample("w", dist.Normal(torch.zeros(4, dtype=REAL), 2.0).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)


def by_tensor_rule(x, y, num_nodes):
    """log p(x) and the posterior means by a product of Gauss-Hermite rules about the mode, in NumPy alone."""
    x, y = x.numpy(), y.numpy()

    def log_joint(w):
        logits = w @ x.T
        prior = -(w**2).sum(1) / 8 - 4 * math.log(2) - 2 * math.log(2 * math.pi)
        return logits @ y - np.logaddexp(0, logits).sum(1) + prior

    mode = np.zeros(4)
    for _ in range(50):
        p = special.expit(x @ mode)
        hessian = (x * (p * (1 - p))[:, None]).T @ x + np.eye(4) / 4
        mode = mode + np.linalg.solve(hessian, x.T @ (y - p) - mode / 4)
    factor = np.linalg.cholesky(np.linalg.inv(hessian))
    t, weight = np.polynomial.hermite_e.hermegauss(num_nodes)
    nodes = np.stack(np.meshgrid(*[t] * 4, indexing="ij"), -1).reshape(-1, 4)
    log_weight = sum(np.meshgrid(*[np.log(weight) + t**2 / 2] * 4, indexing="ij")).reshape(-1)
    w = mode + nodes @ factor.T
    value = log_weight + np.concatenate([log_joint(part) for part in np.array_split(w, 1 + w.size * len(y) // 10**7)])
    log_evidence = special.logsumexp(value) + np.log(np.diag(factor)).sum()
    return log_evidence, np.exp(value - special.logsumexp(value)) @ w


def test_logistic_regression_against_a_tensor_rule():
    """Over some seeds the errors are as large as they are said to be, and no larger."""
    x, y = regression_data(150)
    exact, mean = by_tensor_rule(x, y, 20)
    assert exact == pytest.approx(by_tensor_rule(x, y, 17)[0], abs=1e-7)
    away = []
    for seed in range(6):
        truth = reference_truth(Target.of(logistic, (x, y)), seed=seed)
        assert (truth.method, truth.grade) == ("importance sampling", "checked")
        assert 1e-4 < truth.log_evidence_std_error[0] < 0.005
        (points,) = truth.points
        assert points.u.shape == (1, NUM, 4)
        assert float(points.log_weight.logsumexp(1)) == pytest.approx(0, abs=1e-12)
        average = truth.expectation(lambda latents: latents["w"])
        # effective sizes of 5,000 and more, and deviations of 0.2 to 2
        assert (average.std_error > 0.001).all()
        assert (average.std_error < 0.03).all()
        off = (average.value[0] - torch.from_numpy(mean)) / average.std_error[0]
        away.append([(truth.log_evidence[0] - exact) / truth.log_evidence_std_error[0], *off.tolist()])
    # 30 standard normal numbers, some of them correlated: their mean square is within 0.3 and 2.5
    assert 0.3 < np.square(away).mean() < 2.5
    assert np.abs(away).max() < 4.5


@pytest.mark.slow
def test_logistic_regression_on_many_rows_against_a_tensor_rule():
    x, y = regression_data(20_000)
    exact, mean = by_tensor_rule(x, y, 9)
    truth = reference_truth(Target.of(logistic, (x, y)))
    assert truth.method == "importance sampling"
    assert truth.log_evidence_std_error[0] < 0.001
    assert abs(truth.log_evidence[0] - exact) < 4 * truth.log_evidence_std_error[0] + 1e-6  # the rule has 1e-7
    average = truth.expectation(lambda latents: latents["w"])
    assert ((average.value[0] - torch.from_numpy(mean)).abs() < 4.5 * average.std_error[0]).all()


MANY_ROWS = """
import re, sys
from pathlib import Path
sys.path.insert(0, "{folder}")
from test_draws import logistic, regression_data
from ppl_vi.target.target import Target
from ppl_vi.truth import ground_truth
truth = ground_truth(Target.of(logistic, regression_data(100_000)))
# Not resource.getrusage: its maximum holds that of the process this one was forked from.
print(truth.method, re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1], sep=",")
"""


@pytest.mark.slow
def test_the_truth_of_100_000_rows_takes_less_than_a_gigabyte(request):
    script = MANY_ROWS.format(folder=request.path.parent)
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    method, kibibytes = printed.split(",")
    assert method == "importance sampling"
    assert int(kibibytes) < 2**20


# ---- separate modes


def two_labellings():
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0).expand([4]).to_event(1))
    swapped = mu.flip(0)
    both = torch.stack([dist.Normal(torch.arange(4.0), 0.1).log_prob(v).sum() for v in (mu, swapped)])
    pyro.factor("data", both.logsumexp(0))


def two_hills(heights):
    """Two modes, of deviation 0.5 and 6 apart in each of four numbers, with factors of exp(heights)."""
    z = pyro.sample("z", dist.Normal(0.0, 5.0).expand([4]).to_event(1))
    parts = torch.stack([dist.Normal(at, 0.5).log_prob(z).sum() + log for at, log in zip(PLACES, heights, strict=True)])
    pyro.factor("data", parts.logsumexp(0))


PLACES = (2.0, -4.0)


def of_hills(heights):
    """log p(x) of `two_hills` in closed form, and the mean of each number: of Normal(0, 5) times Normal(at, 0.5)."""
    each = [log + 4 * stats.norm.logpdf(at, scale=math.hypot(5, 0.5)) for at, log in zip(PLACES, heights, strict=True)]
    shrunk = [at * 25 / 25.25 for at in PLACES]
    return special.logsumexp(each), float(special.softmax(each) @ shrunk)


def of_labellings():
    """The same of `two_labellings`: both have the integral of Normal(0, 5) times Normal(k, 0.1), k = 0, 1, 2, 3."""
    return math.log(2) + stats.norm.logpdf(np.arange(4), scale=math.hypot(5, 0.1)).sum(), 1.5 * 25 / 25.01


# The one criterion that only draws from separate modes have to meet.
JUDGED_BY_REGION = "largest weight where short chains from dispersed starts came"
MASSES = (math.log(0.8), math.log(0.2))
ALONE = (0.0, -50.0)  # chains stay in the second mode, although it has no mass


@pytest.mark.parametrize(
    ("model", "exact"),
    [
        (two_labellings, of_labellings()),
        (partial(two_hills, MASSES), of_hills(MASSES)),
        (partial(two_hills, ALONE), of_hills(ALONE)),
    ],
)
def test_separate_modes_are_weighed(model, exact):
    truth = reference_truth(Target.of(model))
    assert (truth.method, truth.grade) == ("importance sampling", "checked")
    assert any(check.name == JUDGED_BY_REGION for check in truth.checks)
    log_evidence, mean = exact
    assert abs(truth.log_evidence[0] - log_evidence) < 4 * truth.log_evidence_std_error[0] < 0.1
    average = truth.expectation(lambda latents: next(iter(latents.values())).mean(-1))
    assert float((average.value[0] - mean).abs()) < 4 * float(average.std_error[0]) < 0.2


def test_a_mode_without_mass_keeps_a_little_of_the_proposal():
    """Else the weight there is e^28 times as large: that of the proposal's tails, 24 deviations away in each number."""
    target = Target.of(partial(two_hills, ALONE))
    with target.isolated(0), torch.no_grad():
        density = Reparametrisation.of(target, 0).density
        modes, _ = at_modes(density, torch.linspace(-6, 6, 40, dtype=REAL)[:, None].expand(-1, 4))
        fitted = importance.FITTED.propose(density, modes, 0)
        far = torch.full((1, 4), PLACES[1] * 25 / 25.25, dtype=REAL)
        weight = density(far) - fitted.proposal.log_prob(far)
    assert float(weight - fitted.draws.log_ratio.max()) < -40


# ---- posteriors that are refused, each for its reason


def funnel():
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
    pyro.factor("width", dist.Normal(0.0, (v / 2).exp()).log_prob(z).sum() - dist.Normal(0.0, 1.0).log_prob(z).sum())


def banana():
    z = pyro.sample("z", dist.Normal(0.0, 3.0).expand([4]).to_event(1))
    pyro.factor("bend", dist.Normal(z[:2] ** 2, 0.1).log_prob(z[2:]).sum())


def bent(y):
    z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
    pyro.sample("y", dist.Normal(z[:2] ** 2 - z[2:], 0.6).to_event(1), obs=y)


def test_a_bent_posterior_is_followed_in_several_rounds():
    """Each pair of numbers: z2 given z1 is normal, so that one integral remains."""
    y = torch.tensor([0.4, -0.7], dtype=REAL)

    def over_first(z, at):
        return stats.norm.pdf(z) * stats.norm.pdf(z * z - at, scale=math.hypot(1.0, 0.6))

    exact = sum(math.log(integrate.quad(over_first, -9, 9, args=(at,), epsabs=1e-13)[0]) for at in y.tolist())
    truth = reference_truth(Target.of(bent, (y,)))
    assert (truth.method, truth.grade) == ("importance sampling", "checked")
    assert abs(truth.log_evidence[0] - exact) < 4 * truth.log_evidence_std_error[0] < 0.1


def heavy_tails():
    z = pyro.sample("z", dist.StudentT(1.0, torch.zeros(4, dtype=REAL), 1.0).to_event(1))
    pyro.sample("y", dist.StudentT(2.0, z.sum(), 1.0), obs=torch.tensor(0.7, dtype=REAL))


def narrow_in_broad(prior_sd):
    """Half of the mass is a hundred times as broad as the other half, about the same mode."""
    z = pyro.sample("z", dist.Normal(0.0, prior_sd).expand([4]).to_event(1))
    parts = torch.stack([dist.Normal(0.3, sd).log_prob(z).sum() for sd in (0.1, 10.0)])
    pyro.factor("data", parts.logsumexp(0))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (partial(narrow_in_broad, 20.0), "between modes and dispersed starts"),
        (partial(narrow_in_broad, 1e4), "between modes and dispersed starts"),
        (funnel, "worth"),
        (banana, "worth"),
        (heavy_tails, "worth"),
    ],
)
def test_what_a_fitted_density_does_not_hold_is_refused(model, reason, caplog):
    with caplog.at_level(logging.INFO, "ppl_vi.truth.importance.draws"):
        assert found(model) is None
    assert reason in caplog.text


@pytest.mark.parametrize(
    ("max_weight", "reason"),
    [(3.0, "between modes and dispersed starts"), (math.inf, "largest weight where short chains")],
)
def test_a_mode_that_the_proposal_misses_is_found(max_weight, reason, monkeypatch, caplog):
    """The draws alone meet every criterion: their weights do not tell of mass that no draw has reached."""
    monkeypatch.setattr(importance, "MAX_OTHER_WEIGHT", max_weight)
    fitted_proposal = importance.FITTED.propose

    def of_one_mode(density, modes, seed):
        fitted = fitted_proposal(density, modes, seed)
        near = fitted.proposal.loc[:, 0] > 0
        whole = fitted.proposal
        one = StudentMixture(
            whole.log_share[near].log_softmax(0),
            whole.loc[near],
            whole.factor[near],
            tuple(k for k, is_near in zip(whole.degrees, near, strict=True) if is_near),
        )
        draws = ProposalDraws.of(one, density, 2000, torch.Generator().manual_seed(1))
        return replace(fitted, proposal=one, draws=draws)

    with caplog.at_level(logging.INFO, "ppl_vi.truth.importance.draws"):
        assert found(partial(two_hills, MASSES), route=replace(importance.FITTED, propose=of_one_mode)) is None
    assert reason in caplog.text
    assert "effective sample size" not in caplog.text
    assert "k-hat" not in caplog.text


def plain():
    z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
    pyro.sample("y", dist.Normal(z.sum(), 0.5), obs=torch.tensor(1.3, dtype=REAL))


def test_a_posterior_in_single_precision_is_left_to_chains():
    target = Target.of(plain, (), dtype=torch.float32)
    with target.isolated(0), torch.no_grad():
        coordinates = Reparametrisation.of(target, 0)
        assert importance_draws(coordinates, searched(coordinates, prior_draws(target, 0, 100), 0), NUM, 0) is None


def test_importance_draws_are_found_again_in_the_cache(monkeypatch):
    target = Target.of(plain)
    first = reference_truth(target)
    monkeypatch.setattr("ppl_vi.truth.chains.reference.importance_draws", None)  # would raise if it were called
    again = reference_truth(target)
    assert again.method == first.method == "importance sampling"
    assert torch.equal(first.points[0].u, again.points[0].u)
    assert torch.equal(first.points[0].log_weight, again.points[0].log_weight)
    assert again.checks == first.checks
    assert again.log_evidence_std_error == first.log_evidence_std_error
    # y ~ Normal(0, sqrt(4 + 0.25))
    exact = -(1.3**2) / 8.5 - math.log(2 * math.pi * 4.25) / 2
    assert abs(first.log_evidence[0] - exact) <= 4 * first.log_evidence_std_error[0] + 1e-9


# ---- the parts


def test_control_variates_leave_the_error_that_the_mixture_does_not_make():
    """A normal posterior whose proposal holds it: log p(x) is exact, whatever the proposal has beside it."""
    loc, factor = torch.tensor([[1.0, -2.0]], dtype=REAL), torch.tensor([[[0.5, 0.0], [0.3, 2.0]]], dtype=REAL)
    normal = StudentMixture(torch.zeros(1, dtype=REAL), loc, factor, (math.inf,))
    proposal, generator = normal.defended(0.3), torch.Generator().manual_seed(0)
    u = proposal.draw(4000, generator)
    draws = ProposalDraws(u, normal.log_prob(u) + 3.7, proposal.log_prob(u))
    estimate = evidence_of(draws, proposal)
    assert estimate.value == pytest.approx(3.7, abs=1e-12)
    assert estimate.std_error < 1e-12
    wide = StudentMixture(normal.log_share, loc + 0.2, 1.2 * factor, (math.inf,))
    away = []
    for _ in range(200):
        u = proposal.draw(1000, generator)
        one = evidence_of(ProposalDraws(u, wide.log_prob(u) - 1.1, proposal.log_prob(u)), proposal)
        away.append((one.value + 1.1) / one.std_error)
    # the mean of 200 standard normal numbers, and the mean of their squares, within 4 standard errors
    assert abs(np.mean(away)) < 0.3
    assert abs(np.mean(np.square(away)) - 1) < 0.5
