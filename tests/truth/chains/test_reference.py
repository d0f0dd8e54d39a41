"""Reference draws, against closed forms, other rules and published figures."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from models import correlated_gaussian, eight_schools
from ppl_vi.numerics.mixtures import fit_student_mixture
from ppl_vi.numerics.weights import importance_evidence
from ppl_vi.runtime.stages import listening
from ppl_vi.target.log_density import Density
from ppl_vi.target.target import Target
from ppl_vi.truth import ground_truth, reference_truth
from ppl_vi.truth.chains import cache, reference
from ppl_vi.truth.chains.bridge import bridge
from ppl_vi.truth.chains.criteria import Criterion, autocorrelation, energy_information
from ppl_vi.truth.chains.reference import ChainSettings
from ppl_vi.truth.chains.sampler import HMC, chains_at
from ppl_vi.truth.chains.starts import hopeless, started_anew

REAL = torch.float64


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def as_one(latents):
    return torch.cat([value.reshape((*value.shape[:2], -1)) for value in latents.values()], -1)


# ---- the parts


def test_bridge_and_importance_sampling_of_a_known_constant():
    """exp(-|x|) / 2 times e^1.7 in two dimensions, with a normal proposal and a heavy one."""
    rng = np.random.default_rng(3)
    draws = torch.from_numpy(rng.laplace(size=(100, 50, 2)))

    def log_p(u):
        return (1.7 - u.abs().sum(-1) - 2 * math.log(2)).numpy()

    generator = torch.Generator().manual_seed(1)
    normal = fit_student_mixture(draws[:50].flatten(0, 1), math.inf, 0)
    proposed = normal.draw(4000, generator)
    log_q = normal.log_prob(draws[50:].flatten(0, 1)).reshape(50, 50).numpy()
    found = bridge(log_p(draws[50:]), log_q, log_p(proposed), normal.log_prob(proposed).numpy())
    assert 0.001 < found.std_error < 0.02
    assert abs(found.value - 1.7) < 4 * found.std_error
    student = fit_student_mixture(draws[50:].flatten(0, 1), 5.0, 0)
    proposed = student.draw(4000, generator)
    other = importance_evidence(log_p(proposed) - student.log_prob(proposed).numpy())
    assert 0.001 < other.std_error < 0.03
    assert abs(other.value - 1.7) < 4 * other.std_error


def test_a_fitted_mixture_is_a_density():
    u = torch.from_numpy(np.random.default_rng(0).normal(size=(2000, 1)) * [2.0] + [1.0])
    line = torch.linspace(-400, 400, 160_001, dtype=REAL)[:, None]
    for degrees in (math.inf, 5.0):
        total = fit_student_mixture(u, degrees, 0).log_prob(line).exp().sum() * 0.005
        assert float(total) == pytest.approx(1.0, abs=1e-6)


def test_autocorrelation_of_an_autoregressive_chain():
    rng = np.random.default_rng(1)
    noise, chain = rng.normal(size=(400, 200, 1)), [rng.normal(size=(200, 1)) / math.sqrt(1 - 0.49)]
    for step in noise:
        chain.append(0.7 * chain[-1] + step)
    values = torch.from_numpy(np.stack(chain))
    for lag in (1, 3):
        assert float(autocorrelation(values, lag)) == pytest.approx(0.7**lag, abs=0.02)  # 80,000 values


@pytest.mark.parametrize(
    ("value", "at_least", "failure"),
    [
        (3.0, False, ""),
        (5.0, False, "size is 5 and must be at most 4"),
        (math.nan, False, "size is nan and must be at most 4"),
        (5.0, True, ""),
        (3.0, True, "size is 3 and must be at least 4"),
        (0.0, True, "size is 0 and must be at least 4"),
    ],
)
def test_a_criterion_says_what_is_wrong(value, at_least, failure):
    criterion = Criterion("size", value, 4.0, at_least)
    assert criterion.failure == failure
    assert (criterion.check.error <= criterion.check.tolerance) == (not failure)


@pytest.mark.slow
def test_a_transition_keeps_the_density():
    """Exact draws of a skewed density stay exact: the means and variances of log Gamma(3)."""
    density = Density(lambda u: 3 * u[0] - u[0].exp(), 1, REAL, lambda u: torch.ones(len(u), dtype=torch.bool))
    u = torch.from_numpy(np.log(np.random.default_rng(2).gamma(3.0, size=(20_000, 1))))
    generator = torch.Generator().manual_seed(0)
    hmc = HMC(torch.tensor(0.9), math.pi / 2, torch.tensor([[0.7]], dtype=REAL))
    state = chains_at(density, u)
    for _ in range(10):
        moved = hmc.transition(density, state, generator)
        state = moved.state
    assert 0.6 < float(moved.acceptance.mean()) < 0.99
    assert not moved.diverged.any()
    result = stats.kstest(np.exp(state.u[:, 0].numpy()), stats.gamma(3.0).cdf)
    assert result.pvalue > 1e-4
    assert float((state.u - u).abs().mean()) > 0.3  # and they have moved


# ---- reference draws


@pytest.mark.slow
def test_draws_of_a_gaussian_against_its_closed_form():
    target = correlated_gaussian.target()
    exact = target.closed_form(*target.args)
    alone = reference_truth(Target(target.model, target.args), independent=False)
    assert alone.grade == "checked", alone.reasons
    assert alone.assumptions
    assert 0 < float(alone.log_evidence_std_error[0]) < 0.01
    assert abs(float(alone.log_evidence[0] - exact[0])) < 4 * float(alone.log_evidence_std_error[0])
    (points,) = alone.points
    assert points.kind == "draws"
    assert points.u.shape == (1, 10_000, target.dim)
    certified = ground_truth(target)
    assert certified.grade == "certified"
    assert certified.log_evidence[0] == float(exact[0])


@pytest.mark.slow
def test_draws_of_eight_schools_agree_with_the_reduction_to_two_numbers():
    """posteriordb's reference draws have mean 4.41 of mu and 3.60 of tau (standard errors 0.03)."""
    target = eight_schools.target("non_centred")
    exact = ground_truth(target)
    assert exact.grade == "checked", exact.reasons
    assert exact.method == "quadrature over mu, tau"
    drawn = reference_truth(target, settings=ChainSettings(num_warmup=60), independent=False)
    assert drawn.grade == "checked", drawn.reasons
    off = drawn.log_evidence - exact.log_evidence
    assert abs(float(off[0])) < 4 * float(drawn.log_evidence_std_error[0])
    one, other = exact.expectation(as_one), drawn.expectation(as_one)
    std_error = (one.std_error.square() + other.std_error.square()).sqrt()
    assert ((one.value - other.value).abs() < 4.5 * std_error).all()
    for name, published in (("mu", 4.41), ("tau", 3.60)):
        value = float(exact.expectation(lambda latents, name=name: latents[name]).value)
        assert value == pytest.approx(published, abs=0.1)


def two_hills(y):
    z = pyro.sample("z", dist.Normal(0.0, 5.0).expand([4]).to_event(1))
    far = torch.stack([dist.Normal(side, 0.1).log_prob(z).sum() for side in (-5.0, 5.0)])
    pyro.factor("hills", far.logsumexp(0))


@pytest.mark.slow
def test_chains_in_separate_modes_are_refused():
    target = Target(two_hills, (torch.zeros(1, 1, dtype=REAL),))
    truth = reference_truth(
        target, settings=ChainSettings(num_chains=20, num_draws=25, num_warmup=20, num_proposed=1000), independent=False
    )
    assert truth.grade == "uncertified"
    assert "given up after a pilot" in truth.reasons[0]
    assert "R-hat" in truth.reasons[0]
    assert truth.reasons[0].startswith("chains stay in separate modes")


VAGUE = torch.tensor([0.8, 1.9, 2.7, 4.4, 4.9, 6.2], dtype=REAL)


def vague_line():
    """A line whose priors are so wide that their draws have log densities down to -1e80."""
    x = torch.arange(6.0, dtype=REAL)
    a = pyro.sample("a", dist.Normal(0.0, 100.0))
    b = pyro.sample("b", dist.Normal(0.0, 100.0))
    log_sd = pyro.sample("log_sd", dist.Normal(0.0, 30.0))
    pyro.sample("beside", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", 6):
        pyro.sample("y", dist.Normal(a + b * x, log_sd.exp()), obs=VAGUE)


@pytest.mark.slow
def test_chains_that_start_at_hopeless_draws_of_a_vague_prior_are_started_anew():
    """Given the noise's scale the data are normal, so that log p(x) is an integral over one number."""
    drawn = reference_truth(Target.of(vague_line), independent=False)
    assert drawn.grade == "checked", drawn.reasons
    design = np.stack([np.ones(6), np.arange(6.0)], 1)
    axis = np.linspace(
        -4.0, 12.0, 1601
    )  # of log_sd: the residuals are about e^-1, and beyond 12 lies e^-30 of the mass
    values = []
    for u in axis:
        covariance = 1e4 * design @ design.T + math.exp(2 * u) * np.eye(6)
        square = VAGUE.numpy() @ np.linalg.solve(covariance, VAGUE.numpy())
        log_det = np.linalg.slogdet(covariance)[1]
        values.append(stats.norm.logpdf(u, 0, 30.0) - (square + log_det + 6 * math.log(2 * math.pi)) / 2)
    exact = np.logaddexp.reduce(values) + math.log(axis[1] - axis[0])
    assert abs(float(drawn.log_evidence[0]) - exact) < 4 * float(drawn.log_evidence_std_error[0])


def test_hopeless_starts_are_left_out_where_there_are_better_ones():
    generator = torch.Generator().manual_seed(1)
    value = torch.tensor([-3.0, -4e68, -20.0, math.nan, -130.0, -math.inf], dtype=REAL)
    assert hopeless(value, 1).tolist() == [False, True, False, True, True, True]
    assert hopeless(value, 2).tolist() == [False, True, False, True, False, True]
    place = started_anew(value, 1, generator).tolist()
    assert (place[0], place[2]) == (0, 2)
    assert set(place) == {0, 2}


def test_the_energy_information_of_a_chain_that_stays_is_0():
    """Of independent energies E-FMI is 2: the variance of a difference of two is twice that of one."""
    energy = np.random.default_rng(0).normal(size=200_000)
    assert energy_information(energy) == pytest.approx(2.0, rel=0.02)
    assert energy_information(np.ones(10)) == 0.0


# ---- the cache


def plain(y):
    z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
    pyro.sample("y", dist.Normal(z.sum(), 1.0), obs=y[0])


@pytest.mark.slow
def test_draws_are_found_again_unless_anything_differs_or_is_damaged(monkeypatch):
    few = ChainSettings(num_chains=10, num_draws=20, num_warmup=20, num_proposed=500)  # too few for importance sampling
    target = Target(plain, (torch.ones(1, 1, dtype=REAL),))
    first = reference_truth(target, settings=few)
    (path,) = cache.folder().iterdir()
    computed = []
    sampled = reference.sampled_reference
    monkeypatch.setattr(reference, "sampled_reference", lambda *args: computed.append(1) or sampled(*args))
    again = reference_truth(target, settings=few)
    assert not computed
    assert torch.equal(first.points[0].u, again.points[0].u)
    assert (again.checks, again.reasons) == (first.checks, first.reasons)
    for content in (b"", path.read_bytes()[:-40], b"x" + path.read_bytes()):
        path.write_bytes(content)
        computed.clear()
        mended = reference_truth(target, settings=few)
        assert computed, "a damaged file was believed"
        assert torch.equal(first.points[0].u, mended.points[0].u)

    def plain_too(y):
        z = pyro.sample("z", dist.Normal(0.0, 1.1).expand([4]).to_event(1))
        pyro.sample("y", dist.Normal(z.sum(), 1.0), obs=y[0])

    computed.clear()
    reference_truth(Target(plain_too, target.args), settings=few)
    reference_truth(target, settings=few, seed=1)
    assert len(computed) == 2


def test_every_transition_of_the_chains_is_told():
    settings = ChainSettings(num_chains=20, num_draws=30, num_warmup=10, num_windows=3, num_proposed=500)
    told = []
    with listening(told.append, "truth"):
        reference_truth(eight_schools.target(), settings=settings)
    names = list(dict.fromkeys(one.name for one in told))
    draws = ["warming up 20 chains", "pilot run", "reference draws"]
    assert names == ["looking for saved draws", "importance sampling", *draws, "log p(x) by bridge sampling"]
    for name in draws:
        events = [one for one in told if one.name == name]
        first_run = events[: 1 + next(i for i, one in enumerate(events) if one.is_over)]
        assert first_run[-1].done == first_run[0].total > 0
    assert next(one.total for one in told if one.name == draws[0]) == (2 + 3 + 1) * 10
