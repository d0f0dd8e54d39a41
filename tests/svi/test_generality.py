"""What ordinary Pyro code may do: plates that take a part of their data, branches, and any autoguide in any shape."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import autoguide
from torch import Tensor
from torch.distributions import constraints

from ppl_vi.guides.autoguides import ACCEPTED, laplace
from ppl_vi.metrics import score
from ppl_vi.svi.engines.adam import step_schedule
from ppl_vi.svi.engines.batched import BatchedEngine
from ppl_vi.svi.engines.compiled import compiled_engine
from ppl_vi.svi.engines.step import State, gradients
from ppl_vi.svi.fit import UnsuitableModelError, fit
from ppl_vi.svi.objectives import find_objective, trace_elbo
from ppl_vi.svi.program import Program
from ppl_vi.svi.randomness import pseudo_random
from ppl_vi.svi.result import Fit
from ppl_vi.svi.start import build_guide
from ppl_vi.target.isolation import isolated, whole_plates
from ppl_vi.target.target import Target
from ppl_vi.truth import ground_truth

NUM, PART = 12, 4
DATA = torch.linspace(-1.0, 3.0, NUM, dtype=torch.float64) ** 2  # asymmetric
VARIANCE = 1 / (1 / 4 + NUM)  # of the posterior of `in_parts`
MEAN = VARIANCE * float(DATA.sum())


def in_parts(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", NUM, subsample_size=PART) as index:
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x[index])


def local(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", NUM, subsample_size=PART) as index:
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x[index])


def normal(site: str, *, plate: bool = False, first: Any = None) -> Any:
    """A family of normals for one site; with the model's plate; after something else has happened."""

    def family(_: Any) -> Any:
        def guide(x: Tensor) -> None:
            loc = pyro.param("loc", torch.tensor(0.25))
            scale = pyro.param("scale", torch.tensor(0.75), constraint=constraints.positive)
            if first:
                first()
            pyro.sample(site, dist.Normal(loc, scale))
            if plate:
                with pyro.plate("data", NUM, subsample_size=PART):
                    pass

        return guide

    return family


TARGET = Target(in_parts, (DATA[None],))
FAMILIES = {
    "no plate": normal("mu"),
    "a plate": normal("mu", plate=True),
    "AutoNormal": autoguide.AutoNormal,
    "AutoNormalMessenger": autoguide.AutoNormalMessenger,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_step_on_parts_of_the_data_is_unbiased(name: str) -> None:
    """Bound and gradient over 4,000 parts against closed forms, within 5 standard errors.

    E_q log p(x, mu) is a parabola in the location m: its slope there is (MEAN - m) / VARIANCE, whatever the part.
    """
    with isolated(seed=0):
        program = Program(TARGET, build_guide(FAMILIES[name], TARGET))
        theta = program.initial.expand(1, 4000, -1)
        assert [draw.shape.numel() for draw in program.draws].count(NUM) == 1
        noise = pseudo_random(program.draws, (1, 4000, 1), torch.Generator().manual_seed(2))
        slopes, bounds = gradients(program, trace_elbo, theta, TARGET.args, noise)
        with whole_plates():
            latents = {"mu": torch.tensor([[[0.0, 1.0]]], dtype=torch.float64)}
            logs = [float(program.log_guide(theta[0, 0], TARGET.row(0), {"mu": v})) for v in latents["mu"][0, 0]]
    parts = program.layout.unflatten(theta[0, 0])
    loc, scale = (float(value) for value in parts.values())
    scale = math.log1p(math.exp(scale)) if name == "AutoNormal" else math.exp(scale)
    assert logs == pytest.approx(
        [-0.5 * ((v - loc) / scale) ** 2 - math.log(scale * math.sqrt(2 * math.pi)) for v in (0, 1)]
    )
    evidence = -0.5 * NUM * math.log(2 * math.pi) - 0.5 * math.log(1 + 4 * NUM)
    evidence -= 0.5 * float((DATA**2).sum() - VARIANCE * DATA.sum() ** 2)
    ratio = scale**2 / VARIANCE
    exact = evidence - 0.5 * (ratio + (loc - MEAN) ** 2 / VARIANCE - 1 - math.log(ratio))
    assert abs(float(bounds.mean()) - exact) < 5 * float(bounds.std()) / 4000**0.5
    slope = slopes[0, :, 0]
    assert abs(float(slope.mean()) - (loc - MEAN) / VARIANCE) < 5 * float(slope.std()) / 4000**0.5
    assert float(bounds.std()) > 1  # parts differ


def test_parts_are_drawn_without_replacement_and_evenly() -> None:
    """Each of 66 pairs of 12 among 4,000 parts of 4 as often as it should be: P = 1/11, within 5 standard errors."""
    with isolated(seed=0):
        program = Program(TARGET, build_guide(normal("mu"), TARGET))
        (noise,) = (n for n in pseudo_random(program.draws, (4000,), torch.Generator().manual_seed(5)) if n.dim() == 2)
        parts = noise.argsort()[:, :PART]
    assert all(len(set(row)) == PART for row in parts.tolist())
    member = torch.zeros(4000, NUM, dtype=torch.float64).scatter_(1, parts, 1.0)
    pairs = (member.mT @ member / 4000)[torch.triu_indices(NUM, NUM, 1).unbind()]
    assert float((pairs - 1 / 11).abs().max()) < 5 * math.sqrt(1 / 11 * 10 / 11 / 4000)


def test_a_fit_on_parts_of_the_data_finds_the_posterior_of_all() -> None:
    """Of the whole data's posterior: gradient noise of 64 particles leaves the mean within a tenth of its spread."""
    found = fit(TARGET, "AutoNormal", num_steps=300, num_particles=64, num_replicas=8, engine="batched")
    draws = found.draw(2000, seed=1)["mu"]
    assert float(draws.mean()) == pytest.approx(MEAN, abs=0.1 * VARIANCE**0.5)
    assert float(draws.std()) == pytest.approx(VARIANCE**0.5, rel=0.1)
    assert TARGET.latents[0].shape == ()
    exact = -0.5 * NUM * math.log(2 * math.pi) - 0.5 * float((DATA**2).sum()) - 0.5 * math.log(8 * math.pi)
    assert float(TARGET.log_joint({"mu": torch.zeros(1, 1, dtype=torch.float64)})) == pytest.approx(exact)


@pytest.mark.parametrize("family", ["AutoNormal", "AutoNormalMessenger"])
def test_latents_within_a_part_are_fitted_for_all_of_the_data(family: str) -> None:
    """z given x is Normal((4 x + mu) / 5, 1 / 5) at the posterior's mu, whose variance adds less than 0.02."""
    target = Target(local, (DATA[None],))
    found = fit(target, family, num_steps=400, num_particles=16, engine="batched", seed=1)
    z = found.draw(2000, seed=1)["z"][0, 0]
    assert z.shape == (2000, NUM)
    centre = float(DATA.mean()) * (NUM / 1.25) / (NUM / 1.25 + 0.25)
    torch.testing.assert_close(z.mean(0), (4 * DATA + centre) / 5, atol=0.2, rtol=0)
    assert bool(found.log_prob(found.draw(3, seed=0)).isfinite().all())


# ---- what only Pyro's own SVI can do


def branching(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z if z > 0 else 2 * z, 1.0).expand([1]).to_event(1), obs=x)


def plain(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z, 1.0).expand([1]).to_event(1), obs=x)


def now_and_then() -> None:
    if torch.rand(()) > 0.5:
        torch.randn(2)


EACH = "a branch"  # of these in the fast tests
ODD = {
    "a branch": (branching, normal("z"), "decides by a drawn value what to do"),
    "a coin": (plain, normal("z", first=lambda: torch.bernoulli(torch.tensor(0.5))), "draws by torch's 'bernoulli'"),
    "noise by chance": (
        plain,
        normal("z", first=now_and_then),
        "draws normal noise of shape () where its first run did not",
    ),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name != EACH)) for name in ODD])
def test_what_cannot_be_batched_goes_to_pyro_with_one_line(name: str, tmp_path: Any) -> None:
    model, family, reason = ODD[name]
    target = Target(model, (torch.tensor([[1.5]], dtype=torch.float64),))
    found = fit(target, family, num_steps=8, num_particles=4, seed=3)
    assert found.engine == "pyro"
    assert found.engine_reason.startswith(f"the model or guide {reason}")
    assert "\n" not in found.engine_reason
    assert not torch.equal(found.theta, Program(target, build_guide(family, target)).initial.expand_as(found.theta))
    again = fit(target, family, num_steps=8, num_particles=4, seed=3)
    assert torch.equal(found.theta, again.theta)
    draws = found.draw(5, seed=1)
    assert draws["z"].shape == (1, 1, 5)
    assert bool(found.log_prob(draws).isfinite().all())
    found.save(tmp_path / "fit.npz")
    loaded = Fit.load(tmp_path / "fit.npz", target, family)
    assert torch.equal(loaded.draw(5, seed=1)["z"], draws["z"])
    with pytest.raises(UnsuitableModelError, match=r"target: the model or guide .*; engine='pyro' can"):
        fit(target, family, engine="batched", num_steps=16, num_particles=4)


GRU = torch.nn.GRU(1, 2)


def recurrent(model: Any) -> Any:
    def guide(x: Tensor) -> None:
        net = pyro.module("net", GRU)
        loc, scale = net(x.reshape(-1, 1, 1))[0][-1, 0]
        pyro.sample("z", dist.Normal(loc, scale.exp()))

    return guide


@pytest.mark.slow
def test_a_guide_with_an_operation_that_vmap_has_no_rule_for_is_scored() -> None:
    """The posterior is Normal(0.75, sqrt(1/2)) and log p(x) that of 1.5 under Normal(0, sqrt 2)."""
    target = Target.of(plain, (torch.tensor([1.5], dtype=torch.float64),))
    found = fit(target, recurrent, num_steps=60, num_particles=8)
    exact = -(1.5**2) / 4 - math.log(4 * math.pi) / 2
    card = score(found, ground_truth(target))
    assert 0 < card.scores["reverse_kl"].value[0, 0] < 0.1
    assert card.scores["elbo"].value[0, 0] + card.scores["reverse_kl"].value[0, 0] == pytest.approx(exact, abs=1e-6)


def test_pyro_must_have_the_objective_that_it_is_left_with() -> None:
    target = Target(branching, (torch.tensor([[1.5]], dtype=torch.float64),))
    with pytest.raises(ValueError, match="Pyro has no ELBO for 'stl'"):
        fit(target, normal("z"), objective="stl", num_steps=16, num_particles=4)


# ---- every autoguide in several dimensions


def shapes(x: Tensor) -> None:
    """A simplex, a positive matrix, a correlated vector and a plate."""
    weight = pyro.sample("weight", dist.Dirichlet(torch.tensor([2.0, 3.0, 1.5])))
    rate = pyro.sample("rate", dist.Gamma(torch.full((2, 3), 2.0), 1.0).to_event(2))
    loc = pyro.sample("loc", dist.MultivariateNormal(torch.zeros(2), torch.tensor([[2.0, 0.5], [0.5, 1.0]])))
    with pyro.plate("rows", 2):
        size = pyro.sample("size", dist.LogNormal(0.3, 0.8))
        pyro.sample("x", dist.Normal(((rate * weight).sum(-1) + loc) * size, 1.0), obs=x)


SHAPES = Target(shapes, (torch.tensor([[1.0, 2.5], [0.3, -0.2]], dtype=torch.float64),))
AUTOGUIDES = {**{name: getattr(autoguide, name) for name in ACCEPTED}, "laplace": laplace}


@pytest.mark.slow
@pytest.mark.parametrize("name", AUTOGUIDES)
def test_every_autoguide_compiles_in_several_dimensions(name: str) -> None:
    """Two compiled steps are two batched steps, to rounding."""
    objective = find_objective("trace_elbo")
    with isolated(seed=0):
        program = Program(SHAPES, build_guide(AUTOGUIDES[name], SHAPES))
        theta = program.initial + 0.05 * torch.randn((2, 2, program.layout.size), dtype=torch.float64)
        noise = pseudo_random(program.draws, (8, 2, 2, 2), torch.Generator().manual_seed(8))
        scalars = torch.tensor([[*step_schedule(0.01, t + 1), 0.5] for t in range(2)]).T
        alive = torch.ones(2, 2, dtype=torch.bool)
        found = []
        for engine in (BatchedEngine(program, objective), compiled_engine(program, objective, theta, noise, 2)):
            state, bounds = engine.advance(
                State.start(theta, torch.ones_like(theta), alive, engine.sizes), scalars, noise
            )
            found.append([*state.resized([program.layout.size]).tensors, bounds])
    assert bool(found[0][0].all())
    assert not torch.equal(found[0][1], theta)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
