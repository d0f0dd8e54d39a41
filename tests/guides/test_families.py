"""What every guide family has to hold, over the tables: a new family is tested by being listed in them."""

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoLowRankMultivariateNormal
from torch import Tensor
from torch.distributions import Categorical, LogNormal, constraints
from torch.func import grad, jacrev, vmap

from models.exponential_normal import target as toy
from ppl_vi.guides import ANY, FAMILIES, MULTIMODAL, POSITIVE, REAL, REFUSED, RefusedFamilyError, find_family, summary
from ppl_vi.guides.autoguides import ACCEPTED, drawn_by_latents
from ppl_vi.guides.lognormal_mixture import PathwiseMixture
from ppl_vi.svi.finishing import finished
from ppl_vi.svi.fit import fit
from ppl_vi.svi.program import Program
from ppl_vi.svi.randomness import pseudo_random
from ppl_vi.svi.start import build_guide
from ppl_vi.svi.support import contains
from ppl_vi.target.isolation import isolated
from ppl_vi.target.target import Target

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(FAMILIES)
NUM_DRAWS = 20_000

# Parameters that nothing depends on for a model with one positive number under a prior of mean 1, and why.
UNIT_DIAGONAL = {"scale_tril_unconstrained"}  # of one number the triangular factor is its unit diagonal
IDLE_ON_THE_TOY = {
    "AutoMultivariateNormal": UNIT_DIAGONAL,
    "laplace": UNIT_DIAGONAL,
    "linear_response": UNIT_DIAGONAL,
    "pathfinder": UNIT_DIAGONAL,
    # multiplies the prior's mean in unconstrained space, log 1
    "AutoHierarchicalNormalMessenger": {"weights.z_unconstrained"},
    # the first of autoregressive numbers depends on none before it: the weights of the first layer are masked
    "AutoIAFNormal": {"_prototype_tensor"},
}
# Families that don't start where they are asked to, and why.
OWN_START = {
    "AutoIAFNormal": "a flow starts near the standard normal",
    "AutoRegressiveMessenger": "starts at the prior, shifted",
    "AutoHierarchicalNormalMessenger": "adds the prior's location to the one asked for",
}
ONE_PARAMETER = {"exponential", "half_normal"}  # spent on the location


def two_sites(x: Tensor) -> None:
    """Two positive sites of shape (3,): one by `to_event`, one by a plate."""
    rate = pyro.sample("rates.first", dist.Gamma(2.0, 3.0).expand([3]).to_event(1))
    with pyro.plate("items", 3):
        size = pyro.sample("sizes", dist.LogNormal(0.3, 0.8))
        pyro.sample("seen", dist.Normal(rate * size, 0.5), obs=x)


TOY = toy([1.5])
TWO_SITES = Target(two_sites, (torch.tensor([[0.5, 1.5, 3.0], [2.0, 0.25, 1.0]]),))


class Member(NamedTuple):
    """A family's program, and one of its members that has no symmetry."""

    target: Target
    program: Program
    theta: Tensor

    def log_guide(self, theta: Tensor, z: Tensor) -> Tensor:
        return self.program.log_guide(theta, self.target.row(0), {"z": z})


@cache
def member(name: str, two: bool = False) -> Member:
    """The family's initial member, moved by about 0.2 in every parameter; a Laplace guide once it is made."""
    target = TWO_SITES if two else TOY
    program = Program(target, finished(build_guide(FAMILIES[name], target), target, 0))
    generator = torch.Generator().manual_seed(11)
    noise = torch.randn(program.initial.shape, dtype=torch.float64, generator=generator)
    return Member(target, program, program.initial - 0.2 * noise)


@cache
def draws(name: str, two: bool = False) -> dict[str, Tensor]:
    target, program, theta = member(name, two)
    noise = pseudo_random(program.draws, (NUM_DRAWS,), torch.Generator().manual_seed(12))
    with isolated(), torch.no_grad():
        return vmap(lambda one: program.latents(theta, target.row(0), one))(noise)


@cache
def grid(name: str) -> tuple[Tensor, Tensor]:
    """Nodes and weights for integrals over z: equidistant in log z, or in z for a guide on the whole line.

    The trapezoid's error is below 1e-12 for densities smooth in log z; at a spline's kinks it is h^2 / 12 = 1e-5 times
    the jump of the slope.
    """
    if name in REAL:
        z = torch.linspace(-12, 15, 4001, dtype=torch.float64)
        return z, torch.full_like(z, 27 / 4000)
    u = torch.linspace(-32, 12, 4401, dtype=torch.float64)
    return u.exp(), u.exp() * 44 / 4400


@cache
def density(name: str) -> Tensor:
    one = member(name)
    with isolated(), torch.no_grad():
        return vmap(lambda z: one.log_guide(one.theta, z))(grid(name)[0]).exp()


# ---- building and support


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("two", [False, True], ids=["toy", "two sites"])
def test_draws_have_the_models_shapes_and_lie_in_its_support(name: str, two: bool) -> None:
    target, _, _ = member(name, two)
    for site in target.latents:
        z = draws(name, two)[site.name]
        assert z.shape == (NUM_DRAWS, *site.shape)
        inside = site.support.check(z)
        assert bool(inside.all()) != (name in REAL)  # a guide on the whole line must be seen to leak


@pytest.mark.parametrize("name", NAMES)
def test_the_log_density_of_two_sites_sums_over_elements(name: str) -> None:
    """At its own draws `log_guide` agrees with the trace that made them, in which a flow caches its inverse."""
    target, program, theta = member(name, True)
    noise = pseudo_random(program.draws, (3,), torch.Generator().manual_seed(13))
    assert program.unsupported_density() is None
    with isolated(), torch.no_grad():
        for row in range(target.num_problems):
            for p in range(3):
                trace = program.guide_trace(theta, target.row(row), tuple(n[p] for n in noise))
                values = {site.name: trace.nodes[site.name]["value"] for site in target.latents}
                # Pyro's own statement: every site's log density, the Jacobians of deterministic maps as Delta's
                expected = sum(node["fn"].log_prob(node["value"]).sum() for node in trace.nodes.values() if drawn(node))
                found = program.log_guide(theta, target.row(row), values)
                assert float(found) == pytest.approx(float(expected), rel=1e-9)


def drawn(node: dict[str, object]) -> bool:
    """Messenger guides run the model, so that their traces hold its observations too."""
    return node["type"] == "sample" and type(node["fn"]).__name__ != "_Subsample" and not node["is_observed"]


# ---- the density


@pytest.mark.parametrize("name", NAMES)
def test_the_density_integrates_to_one(name: str) -> None:
    mass = float((density(name) * grid(name)[1]).sum())
    assert mass == pytest.approx(1.0, abs=2e-5 if name == "spline_flow" else 1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_draws_follow_the_density(name: str) -> None:
    """Kolmogorov and Smirnov: P(sqrt(n) D > 2.4) = 2 exp(-2 * 2.4^2) = 2e-5 for each family."""
    z, weight = grid(name)
    cdf = torch.cumsum(density(name) * weight, 0) - density(name) * weight / 2  # trapezoid up to each node
    at = np.interp(np.sort(draws(name)["z"].numpy()), z.numpy(), cdf.numpy())
    n = len(at)
    distance = max((np.arange(1, n + 1) / n - at).max(), (at - np.arange(n) / n).max())
    assert distance * n**0.5 < 2.4


# ---- gradients


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("two", [False, True], ids=["toy", "two sites"])
def test_the_gradient_reaches_every_parameter(name: str, two: bool) -> None:
    target, program, theta = member(name, two)
    noise = pseudo_random(program.draws, (8,), torch.Generator().manual_seed(14))

    def loss(theta: Tensor) -> Tensor:
        particles = vmap(lambda one: program.sample(theta, target.row(0), one))(noise)
        return (particles.log_joint - particles.log_guide).sum()

    if two and name in REAL:
        pytest.skip("a prior on positive numbers need have no density below 0; this one's is nan")
    with isolated():
        slope = program.layout.unflatten(grad(loss)(theta))
    assert all(bool(part.isfinite().all()) for part in slope.values())
    without = {n for n, part in slope.items() if bool((part == 0).all())}
    assert without == (set() if two else IDLE_ON_THE_TOY.get(name, set()))


@pytest.mark.parametrize("name", NAMES)
def test_pathwise_gradients_are_those_of_expectations(name: str) -> None:
    """d E[h(z)] / d theta: averaged along the path of each draw, and as the integral of h dq/dtheta over z.

    h = z and h = sqrt(1 + z^2); both within 5 standard errors in every parameter (2e-5 for all 46 at once), plus the
    trapezoid's error at a spline's kinks.
    """
    one = member(name)
    program, theta, row = one.program, one.theta, TOY.row(0)
    noise = pseudo_random(program.draws, (NUM_DRAWS,), torch.Generator().manual_seed(15))

    def h(z: Tensor) -> Tensor:
        return torch.stack([z, (1 + z**2).sqrt()])

    z, weight = grid(name)
    with isolated():
        paths = vmap(jacrev(lambda t, n: h(program.latents(t, row, n)["z"])), in_dims=(None, 0))(theta, noise)
        slope = vmap(grad(one.log_guide), in_dims=(None, 0))(theta, z)
    mass = density(name) * weight
    slope = torch.where(mass[:, None] > 0, slope, torch.zeros_like(slope))  # 0 * inf where the density underflows
    exact = torch.einsum("n,hn,nd->hd", mass, h(z), slope)
    error = paths.std(0) / NUM_DRAWS**0.5
    assert float(exact.abs().max()) > 0.01
    assert bool(((paths.mean(0) - exact).abs() <= 5 * error + 1e-5).all())


def test_a_mixtures_draw_keeps_its_cdf_while_parameters_move() -> None:
    """dz/dtheta against differences of the draw at a fixed cdf, found by bisection."""
    theta = torch.tensor([[0.2, 0.7, -0.3], [0.3, 0.5, 0.9], [0.1, -0.4, 0.6]], dtype=torch.float64)

    def law(theta: Tensor) -> PathwiseMixture:
        return PathwiseMixture(Categorical(logits=theta[2]), LogNormal(theta[0], theta[1]))

    def quantile(theta: Tensor, probability: Tensor) -> Tensor:
        low, high = torch.tensor(1e-6).double(), torch.tensor(1e6).double()
        for _ in range(100):
            middle = (low * high).sqrt()
            low, high = (middle, high) if law(theta).cdf(middle) < probability else (low, middle)
        return middle

    for seed in range(2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            moving = theta.clone().requires_grad_()
            z = law(moving).rsample()
        (path,) = torch.autograd.grad(z, moving)
        probability = law(theta).cdf(z.detach())
        for i in range(9):
            step = torch.zeros(9, dtype=torch.float64)
            step[i] = 1e-5
            up, down = (quantile(theta + sign * step.view(3, 3), probability) for sign in (1, -1))
            # bisection to 1e-15 relative over 2e-5, and third derivatives times 1e-10
            assert float((up - down) / 2e-5) == pytest.approx(float(path.flatten()[i]), rel=1e-6, abs=1e-8)


def test_a_mixture_draws_in_the_shape_asked_for() -> None:
    law = PathwiseMixture(Categorical(torch.ones(4, 2)), LogNormal(torch.zeros(4, 2), torch.ones(4, 2)))
    assert law.rsample((3, 5)).shape == (3, 5, 4)
    assert law.has_rsample


# ---- initial values


@pytest.mark.parametrize("name", [name for name in NAMES if name not in OWN_START])
@pytest.mark.parametrize(("loc", "scale"), [(0.4, 0.3), (-1.2, 0.1)])
def test_the_initial_member_is_where_it_was_asked_to_be(name: str, loc: float, scale: float) -> None:
    """Median and spread of log z. A form only approximates them: to 0.75 of a scale, and to a factor of 2."""
    asked = (torch.tensor([loc], dtype=torch.float64), torch.tensor([scale], dtype=torch.float64))
    program = Program(TOY, build_guide(FAMILIES[name], TOY, 0, *asked))
    noise = pseudo_random(program.draws, (4000,), torch.Generator().manual_seed(16))
    with isolated(), torch.no_grad():
        if noise:
            z = vmap(lambda one: program.latents(program.initial, TOY.row(0), one)["z"])(noise)
        else:
            z = program.latents(program.initial, TOY.row(0), ())["z"]
    low, median, high = (float(q.log()) for q in torch.quantile(z, torch.tensor([0.16, 0.5, 0.84]).double()))
    if name in ONE_PARAMETER:
        assert median == pytest.approx(loc, abs=0.5)  # log log 2 = -0.37, log 0.67 = -0.39
        return
    assert median == pytest.approx(loc, abs=0.75 * scale)
    if name != "laplace":  # a point until the mode is found
        assert 0.5 < (high - low) / 2 / scale < 2


# ---- names


def test_the_tables_do_not_overlap() -> None:
    assert len(FAMILIES) == len(POSITIVE) + len(REAL) + len(ANY)
    assert not set(FAMILIES) & set(REFUSED)
    assert set(FAMILIES) >= MULTIMODAL


@pytest.mark.parametrize("name", NAMES)
def test_families_are_found_by_name_and_told_in_one_line(name: str) -> None:
    assert find_family(name) is FAMILIES[name]
    line = summary(name)
    assert 10 < len(line) < 120
    assert "\n" not in line


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_autoguides_say_why(name: str) -> None:
    with pytest.raises(RefusedFamilyError) as error:
        find_family(name)
    assert str(error.value) == f"{name}: {REFUSED[name]}"


def test_every_autoguide_of_pyros_is_accepted_or_refused() -> None:
    known = {"AutoLaplaceApproximation", *ACCEPTED, *REFUSED}
    there_are = {name for name in vars(pyro.infer.autoguide) if name.startswith("Auto")}
    assert there_are == known


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("log_normal", "unknown guide 'log_normal'.*did you mean lognormal"),
        ("autonormal", "did you mean .*AutoNormal"),
        ("xyzzy", r"unknown guide 'xyzzy' \(--list-guides"),
        ("no_such_package.module:guide", "can't be imported: No module named 'no_such_package'"),
        ("math:no_such_name", "can't be imported: .*no_such_name"),
        ("math:pi", "'math:pi' must be callable with a model, got float"),
        (":guide", "can't be imported"),
    ],
)
def test_an_unknown_name_is_a_clear_error(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_family(name)


def test_anybodys_guide_is_found_by_its_path() -> None:
    assert find_family("pyro.infer.autoguide:AutoNormal") is FAMILIES["AutoNormal"]
    assert find_family("pyro.infer:autoguide.AutoNormal") is FAMILIES["AutoNormal"]


def test_a_declared_support_is_what_the_tables_say() -> None:
    for name, family in POSITIVE.items():
        guide = build_guide(family, TOY)
        with isolated(seed=0):
            assert contains(constraints.nonnegative, guide.distribution("z").support), name


def test_importing_the_families_keeps_validation_though_zuko_turns_it_off() -> None:
    script = """
import pyro, torch
pyro.enable_validation(True)
import ppl_vi.guides
assert torch.distributions.Distribution._validate_args
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ---- low rank, drawn by as many numbers as there are latents


def test_a_low_rank_guide_is_the_same_density_drawn_by_as_many_numbers_as_latents() -> None:
    """The covariance by which it draws is W W' + D of Pyro's own formula, for factors that are not small."""
    guide = build_guide(FAMILIES["AutoLowRankMultivariateNormal"], TWO_SITES)
    same = drawn_by_latents(guide)
    plain, program = (Program(TWO_SITES, each) for each in (guide, same))
    assert [draw.shape.numel() for draw in plain.latent_draws] == [2, 6]
    assert [draw.shape.numel() for draw in program.latent_draws] == [6]
    assert program.layout == plain.layout
    noise = torch.randn(plain.initial.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    theta, row = plain.initial + noise, TWO_SITES.row(0)
    with isolated(seed=0), torch.no_grad():
        own = plain.call(theta, lambda guide: guide.get_posterior())
        one = program.call(theta, lambda guide: guide.get_posterior())
        torch.testing.assert_close(one.covariance_matrix, own.covariance_matrix, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(one.mean, own.mean, rtol=0, atol=0)
        z = plain.latents(theta, row, (noise[:2], noise[2:8]))
        torch.testing.assert_close(
            program.log_guide(theta, row, z), plain.log_guide(theta, row, z), rtol=1e-10, atol=1e-10
        )


def test_other_guides_draw_as_they_do() -> None:
    for name in ("AutoMultivariateNormal", "AutoNormal", "AutoIAFNormal"):
        guide = build_guide(FAMILIES[name], TWO_SITES)
        assert drawn_by_latents(guide) is guide


def test_a_low_rank_guide_with_plates_is_scored() -> None:
    """What its steps leave in its plates can't be copied."""

    def model(y: Tensor) -> None:
        with pyro.plate("groups", 3):
            p = pyro.sample("p", dist.Beta(2.0, 3.0))
            with pyro.plate("data", len(y)):
                pyro.sample("y", dist.Bernoulli(p), obs=y)

    y = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    found = fit(Target.of(model, (y,)), "AutoLowRankMultivariateNormal", engine="batched", num_steps=4, num_replicas=2)
    assert found.draw(5, seed=0)["p"].shape == (1, 2, 5, 3)
    assert isinstance(found.guide(0, 1), AutoLowRankMultivariateNormal)
