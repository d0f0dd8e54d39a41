"""The engines against each other on the same draws, and every gradient against quadrature."""

import math
import re
from functools import cache

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from models.exponential_normal import target as toy
from ppl_vi.guides import FAMILIES, REAL
from ppl_vi.svi.engines.adam import adam, step_schedule
from ppl_vi.svi.engines.batched import BatchedEngine
from ppl_vi.svi.engines.pyro import PyroEngine, loss_and_gradient
from ppl_vi.svi.engines.step import State, gradients
from ppl_vi.svi.objectives import find_objective, surrogate_loss, trace_elbo
from ppl_vi.svi.program import Program, load_parameters
from ppl_vi.svi.randomness import pseudo_random
from ppl_vi.svi.start import build_guide
from ppl_vi.target.isolation import isolated
from ppl_vi.target.target import Target

NAMES = sorted(FAMILIES)
NUM_PARTICLES = 4


def two_sites(x: Tensor) -> None:
    """Two positive sites of shape (3,): one by `to_event`, one by a plate."""
    rate = pyro.sample("rates.first", dist.Gamma(2.0, 3.0).expand([3]).to_event(1))
    with pyro.plate("items", 3):
        size = pyro.sample("sizes", dist.LogNormal(0.3, 0.8))
        pyro.sample("seen", dist.Normal(rate * size, 0.5), obs=x)


def two_events(x: Tensor) -> None:
    """The same without a plate: within one, Pyro gives each element's score function its own part of the bound only."""
    rate = pyro.sample("rates.first", dist.Gamma(2.0, 3.0).expand([3]).to_event(1))
    size = pyro.sample("sizes", dist.LogNormal(0.3, 0.8).expand([3]).to_event(1))
    pyro.sample("seen", dist.Normal(rate * size, 0.5).to_event(1), obs=x)


TOY = toy([1.5, -3.0])
TWO_SITES = Target(two_sites, (torch.tensor([[0.5, 1.5, 3.0], [2.0, 0.25, 1.0]]),))
TWO_EVENTS = Target(two_events, TWO_SITES.args)


def built(name: str, target: Target) -> tuple[Program, nn.Module]:
    guide = build_guide(FAMILIES[name], target)
    return Program(target, guide), guide


def moved(program: Program, seed: int = 11) -> Tensor:
    """Parameters without symmetry: the initial ones, all moved by about 0.2."""
    generator = torch.Generator().manual_seed(seed)
    return program.initial - 0.2 * torch.randn(program.initial.shape, dtype=torch.float64, generator=generator)


def assert_engines_agree(name: str, objective_name: str, target: Target) -> None:
    """Both problems in one batched call, each in a Pyro call of its own; equal but for the order of sums."""
    objective = find_objective(objective_name)
    program, guide = built(name, target)
    points = torch.stack([moved(program, seed) for seed in (1, 2)])
    noise = pseudo_random(program.draws, (2, 1, NUM_PARTICLES), torch.Generator().manual_seed(3))
    with isolated(seed=0):
        assert objective.unsuitable(program) is None
        gradient, bound = gradients(program, objective, points[:, None], target.args, noise)
        for b in range(2):
            load_parameters(guide, program.layout.unflatten(points[b]))
            given = tuple(n[b, 0] for n in noise)
            loss, expected = loss_and_gradient(program, guide, objective, target.row(b), given, NUM_PARTICLES)
            assert float(bound[b, 0]) == pytest.approx(-loss, rel=1e-12)
            assert bool(gradient[b].isfinite().all())
            torch.testing.assert_close(gradient[b, 0], expected, rtol=1e-9, atol=1e-12 * float(expected.abs().max()))
            assert float(expected.abs().max()) > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_the_elbo_and_its_gradient_are_pyros(name: str) -> None:
    assert_engines_agree(name, "trace_elbo", TOY)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in REAL])
def test_the_elbo_of_two_sites_and_its_gradient_are_pyros(name: str) -> None:
    assert_engines_agree(name, "trace_elbo", TWO_SITES)


@pytest.mark.parametrize("target", [TOY, TWO_EVENTS], ids=["toy", "two sites"])
@pytest.mark.parametrize(
    ("name", "objective"),
    [
        ("gamma", "score_function"),
        ("truncated_normal", "score_function"),
        ("half_normal", "score_function"),
        ("lognormal_mixture", "score_function"),
        ("spline_flow", "score_function"),
        *((name, bound) for name in ("lognormal", "gamma", "weibull") for bound in ("renyi:0.5", "renyi:2", "iwae:4")),
    ],
)
def test_other_bounds_and_their_gradients_are_pyros(name: str, objective: str, target: Target) -> None:
    assert_engines_agree(name, objective, target)


@pytest.mark.parametrize("name", ["gamma", "exponential"])
def test_the_bound_with_kl_in_closed_form_is_pyros(name: str) -> None:
    assert_engines_agree(name, "trace_mean_field_elbo", TOY)


# ---- steps


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("lognormal", TOY), ("gamma", TOY), ("truncated_normal", TOY), ("lognormal_mixture", TOY), ("laplace", TOY),
        ("AutoGaussian", TOY), ("AutoIAFNormal", TOY), ("AutoNormalMessenger", TOY), ("weibull", TWO_SITES),
        ("AutoStructured", TWO_SITES),
    ],
)  # fmt: skip
def test_steps_of_the_traced_graph_are_steps_of_pyros_svi(name: str, target: Target) -> None:
    program, _ = built(name, target)
    batch, replicas, num_steps = target.num_problems, 2, 4
    rates, weights = [0.2, 0.1, 0.05, 0.025], [0.0, 0.0, 0.5, 0.5]
    start = torch.stack([torch.stack([moved(program, 2 * b + r) for r in range(replicas)]) for b in range(batch)])
    preconditioner = torch.linspace(0.5, 1.5, program.layout.size, dtype=torch.float64).expand_as(start)
    generator = torch.Generator().manual_seed(8)
    noise = pseudo_random(program.draws, (num_steps, batch, replicas, NUM_PARTICLES), generator)
    numbers = [[*step_schedule(rate, t + 1), weights[t]] for t, rate in enumerate(rates)]
    scalars = torch.tensor(numbers, dtype=torch.float64).T
    alive = torch.ones(batch, replicas, dtype=torch.bool)
    alive[0, 1] = False  # keeps its place
    with isolated(seed=0):
        engine = BatchedEngine(program, trace_elbo)
        assert engine.trace(start, tuple(n[0] for n in noise))  # not the fallback that runs untraced
        state = State.start(start, preconditioner, alive, engine.sizes)
        batched, bounds = engine.advance(state, scalars, noise)
        pyros, expected = PyroEngine(program, trace_elbo, NUM_PARTICLES).advance(state, scalars, noise)
    assert torch.equal(batched.alive, alive)
    assert torch.equal(pyros.alive, alive)
    torch.testing.assert_close(bounds[:, alive], expected[:, alive], rtol=1e-9, atol=0)
    assert bool(expected[:, ~alive].isnan().all())
    assert torch.equal(batched.whole_theta[0, 1], start[0, 1])
    assert bool((batched.whole_theta != start).any(-1)[alive].all())
    # Adam divides by the gradient's size: parameters without effect move by rounding alone, below 1e-3
    torch.testing.assert_close(pyros.whole_theta, batched.whole_theta, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(pyros.average, batched.average, rtol=1e-8, atol=1e-8)


@pytest.mark.filterwarnings("ignore:Encountered NaN")  # Pyro's own, about what is tested here
def test_pyros_engine_keeps_the_last_finite_point_of_a_fit_and_steps_the_others() -> None:
    """The scale of the first fit is exp(800), infinite."""
    program, _ = built("lognormal", TOY)
    start = torch.stack([moved(program, seed) for seed in (1, 2)])[:, None]
    start[0] = 800.0
    noise = pseudo_random(program.draws, (2, 2, 1, NUM_PARTICLES), torch.Generator().manual_seed(8))
    scalars = torch.tensor([[*step_schedule(0.1, t + 1), 0.5] for t in range(2)], dtype=torch.float64).T
    engine = PyroEngine(program, trace_elbo, NUM_PARTICLES)
    with isolated(seed=0):
        state = State.start(start, torch.ones_like(start), torch.ones(2, 1, dtype=torch.bool), engine.sizes)
        after, bounds = engine.advance(state, scalars, noise)
    assert after.alive.flatten().tolist() == [False, True]
    assert bounds.isfinite()[:, :, 0].tolist() == [[False, True]] * 2
    assert torch.equal(after.whole_theta[0], start[0])
    assert torch.equal(after.average[0], start[0])
    assert bool((after.whole_theta[1] != start[1]).all())


def test_adam_is_torchs_in_preconditioned_coordinates() -> None:
    """Where the preconditioner is 1 the update is `torch.optim.Adam`'s; else it is that in `theta / preconditioner`."""
    start = torch.tensor([0.5, -2.0, 30.0], dtype=torch.float64)
    unit = torch.tensor([1.0, 0.1, 20.0], dtype=torch.float64)
    inner = (start / unit).requires_grad_()
    reference = torch.optim.Adam([inner], lr=0.3, betas=(0.9, 0.99), eps=1e-12)
    theta, first, second = start, torch.zeros(3).double(), torch.zeros(3).double()

    def loss(theta: Tensor) -> Tensor:
        return (theta**2 / 7 + theta.sin()).sum()

    for step in range(1, 6):
        reference.zero_grad()
        loss(inner * unit).backward()
        reference.step()
        theta, first, second = adam(theta, first, second, grad(loss)(theta), unit, *step_schedule(0.3, step))
        torch.testing.assert_close(theta, inner.detach() * unit, rtol=1e-12, atol=1e-12)


# ---- gradients against quadrature


@cache
def exact_gradient(name: str) -> tuple[Program, Tensor, Tensor]:
    """A program, a member and d KL(q || p) / d theta there: the integral of dq/dtheta (log q - log p) over log z.

    The trapezoid's error is below 1e-10 for smooth densities, about 1e-5 at a spline's kinks.
    """
    program, _ = built(name, TOY)
    theta, row = moved(program), TOY.row(0)
    u = torch.linspace(-32, 12, 4401, dtype=torch.float64)
    z = u.exp()

    def log_guide(theta: Tensor, z: Tensor) -> Tensor:
        return program.log_guide(theta, row, {"z": z})

    with isolated(seed=0):
        log_p = vmap(lambda z: TOY.log_joint_of_row({"z": z}, *row))(z)
        log_q = vmap(log_guide, in_dims=(None, 0))(theta, z)
        slope = vmap(grad(log_guide), in_dims=(None, 0))(theta, z)
    mass = (log_q + u).exp() * 44 / 4400
    terms = torch.where(mass[:, None] > 0, mass[:, None] * slope * (log_q - log_p)[:, None], 0.0)
    return program, theta, terms.sum(0)


def single_gradients(program: Program, theta: Tensor, objective_name: str, num: int) -> Tensor:
    """The estimator from each of `num` single draws, `(num, D)`."""
    objective = find_objective(objective_name)
    noise = pseudo_random(program.draws, (num, 1), torch.Generator().manual_seed(4))
    with isolated(seed=0):
        return vmap(
            lambda n: grad(lambda t: surrogate_loss(program, objective, t, program.target.row(0), n)[0])(theta)
        )(noise)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in REAL and name != "laplace"])
@pytest.mark.parametrize("objective", ["trace_elbo", "score_function", "stl"])
def test_every_estimator_is_unbiased(name: str, objective: str) -> None:
    """Within 5 standard errors of 20,000 draws in every parameter: 2e-5 for the 40 of the largest family."""
    program, theta, exact = exact_gradient(name)
    found = single_gradients(program, theta, objective, 20_000)
    error = found.std(0) / 20_000**0.5
    assert bool(((found.mean(0) - exact).abs() <= 5 * error + 2e-5).all())
    assert (
        float((exact / (error + 1e-9)).abs().max()) > 5.5
    )  # so that a gradient of 0, or of the wrong sign, would fail


@pytest.mark.parametrize("name", ["gamma", "exponential"])
def test_the_bound_with_kl_in_closed_form_is_unbiased(name: str) -> None:
    program, theta, exact = exact_gradient(name)
    found = single_gradients(program, theta, "trace_mean_field_elbo", 20_000)
    assert bool(((found.mean(0) - exact).abs() <= 5 * found.std(0) / 20_000**0.5 + 1e-6).all())


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("lognormal", TOY), ("gamma", TOY), ("lognormal_mixture", TOY), ("AutoRegressiveMessenger", TOY),
        ("AutoGaussian", TWO_SITES), ("AutoStructured", TWO_SITES), ("AutoIAFNormal", TWO_SITES),
    ],
)  # fmt: skip
def test_sticking_the_landing_differs_by_nothing_on_average(name: str, target: Target) -> None:
    """Paired draws: the difference is the score, whose mean is 0; 5 standard errors of 20,000 draws or more."""
    program, _ = built(name, target)
    theta, num = moved(program), 100_000 if target is TOY else 20_000
    stl, plain = (single_gradients(program, theta, objective, num) for objective in ("stl", "trace_elbo"))
    error = (stl - plain).std(0) / num**0.5
    assert bool(((stl - plain).mean(0).abs() <= 5 * error + 1e-6).all())
    assert 1e-4 < float(error.max()) < 0.15  # not blind: a location's score is as large as its guide is narrow


def exact_posterior(program: Program) -> Tensor:
    """Normal(0.5, 1) truncated to z >= 0 by mode m and curvature c: m (1 - 1/c) = 0.5 and m / sqrt(c) = 1."""
    m = (0.5 + math.sqrt(4.25)) / 2
    assert m * (1 - 1 / m**2) == pytest.approx(0.5)
    values = {"mode.z_unconstrained": math.log(m), "curvature.z_unconstrained": math.log(m**2)}
    return program.layout.flatten({name: torch.tensor(v, dtype=torch.float64) for name, v in values.items()})


def test_at_the_posterior_sticking_the_landing_has_no_noise() -> None:
    program, _ = built("truncated_normal", TOY)
    theta = exact_posterior(program)
    assert float(single_gradients(program, theta, "stl", 2000).abs().max()) < 1e-8  # rounding of derivatives of size 10
    assert float(single_gradients(program, theta, "trace_elbo", 2000).std(0).min()) > 0.1


def test_at_the_posterior_every_draws_bound_is_the_log_evidence() -> None:
    program, _ = built("truncated_normal", TOY)
    noise = pseudo_random(program.draws, (1, 1, 1000), torch.Generator().manual_seed(4))
    evidence = float(TOY.closed_form(TOY.args[0])[0])
    with isolated(seed=0):
        particle = vmap(lambda *n: program.sample(exact_posterior(program), TOY.row(0), n))(*(n[0, 0] for n in noise))
    spread = (particle.log_joint - particle.log_guide - evidence).abs().max()
    assert float(spread) < 1e-12
    assert evidence == pytest.approx(-1.3689, abs=1e-4)


# ---- what can't be done is said


@pytest.mark.parametrize(
    ("name", "objective", "reason"),
    [
        ("lognormal", "trace_mean_field_elbo", r"site 'z' has no registered KL\(LogNormal \|\| Exponential\)"),
        ("AutoNormal", "trace_mean_field_elbo", "site 'z' has no KL in closed form"),
        ("laplace", "trace_mean_field_elbo", "site 'z' has no KL in closed form"),
        ("laplace", "iwae:4", "the guide draws nothing"),
        ("laplace", "stl", "a point mass"),
    ],
)
def test_an_objective_that_does_not_suit_says_why(name: str, objective: str, reason: str) -> None:
    program, _ = built(name, TOY)
    with isolated(seed=0):
        assert re.search(reason, find_objective(objective).unsuitable(program) or "")
