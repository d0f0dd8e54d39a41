"""Which latents are outer, and which fall apart given these: hierarchies written in many ways, and what has none."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.func import jacrev

from ppl_vi.target.factorisation import factorisation
from ppl_vi.target.target import Target
from ppl_vi.target.terms import Terms
from tests.hierarchies import COUNTS, REAL, SD, Y, centred, counts, non_centred

GROUP = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 5, 5])


def as_one_vector(y, sd):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    theta = pyro.sample("theta", dist.Normal(mu, tau).expand([len(y)]).to_event(1))
    pyro.sample("y", dist.Normal(theta, sd).to_event(1), obs=y)


def counts_by_index(y, group):
    a = pyro.sample("a", dist.Normal(0.0, 2.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("groups", 6):
        e = pyro.sample("e", dist.Normal(a, sigma))
    with pyro.plate("data", len(group)):
        pyro.sample("y", dist.Poisson(e[group].exp()), obs=y)


def positive_effects(y):
    shape = pyro.sample("shape", dist.LogNormal(0.0, 1.0))
    rate = pyro.sample("rate", dist.LogNormal(0.0, 1.0))
    with pyro.plate("groups", len(y)):
        lam = pyro.sample("lam", dist.Gamma(shape, rate))
        pyro.sample("y", dist.Poisson(lam), obs=y)


def two_effects(y, n):
    scales = pyro.sample("scales", dist.HalfNormal(torch.ones(2, dtype=REAL)).to_event(1))
    with pyro.plate("groups", len(y)):
        a = pyro.sample("a", dist.Normal(0.0, scales[0]))
        b = pyro.sample("b", dist.Normal(0.0, scales[1]))
        t = torch.tensor([-1.0, 0.0, 1.0], dtype=REAL)
        logits = a[..., None] + b[..., None] * t
        pyro.sample("y", dist.Binomial(n, logits=logits).to_event(1), obs=y)


def growth(y, t):
    means = pyro.sample("means", dist.Normal(0.0, 10.0).expand([2]).to_event(1))
    sd = pyro.sample("sd", dist.HalfNormal(torch.full((3,), 5.0, dtype=REAL)).to_event(1))
    with pyro.plate("groups", len(y)):
        a = pyro.sample("a", dist.Normal(means[0], sd[0]))
        b = pyro.sample("b", dist.Normal(means[1], sd[1]))
        pyro.sample("y", dist.Normal(a[..., None] + b[..., None] * t, sd[2]).to_event(1), obs=y)


def regression(x, y):
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
    pyro.sample("y", dist.Normal(x @ w, sigma).to_event(1), obs=y)


def by_factor(y):
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("groups", len(y)):
        e = pyro.sample("e", dist.Normal(0.0, sigma))
    pyro.factor("likelihood", (y * e - e.exp()).sum())


T = torch.tensor([-1.0, 0.0, 1.0], dtype=REAL)
LINES = torch.tensor([[0.0, 1.0, 2.5], [1.0, 1.2, 0.9], [-1.0, 0.0, 0.3], [2.0, 2.5, 4.0]], dtype=REAL)
TRIALS = torch.tensor([[2.0, 3.0, 5.0], [1.0, 1.0, 0.0], [0.0, 2.0, 3.0], [5.0, 4.0, 4.0]], dtype=REAL)
X = torch.randn(9, 4, generator=torch.Generator().manual_seed(1), dtype=REAL)
STRUCTURED = {
    "centred": (centred, (Y, SD), ["tau"], 1, [(8, 1)], True),
    "non-centred": (non_centred, (Y, SD), ["tau"], 1, [(8, 1)], True),
    "a vector": (as_one_vector, (Y, SD), ["tau"], 1, [(8, 1)], True),
    "counts": (counts, (COUNTS,), ["a", "sigma"], 0, [(6, 1)], False),
    "indexed": (counts_by_index, (torch.arange(10.0).to(REAL), GROUP), ["a", "sigma"], 0, [(6, 1)], False),
    "positive": (positive_effects, (COUNTS,), ["shape", "rate"], 0, [(6, 1)], False),
    "pairs": (two_effects, (TRIALS, 5.0), ["scales"], 0, [(4, 2)], False),
    "growth": (growth, (LINES, T), ["sd"], 2, [(4, 2)], True),
    "regression": (regression, (X, X[:, 0]), ["sigma"], 4, [], True),
    "a factor": (by_factor, (COUNTS,), ["sigma"], 0, [(6, 1)], False),
}


@pytest.mark.parametrize("case", STRUCTURED.values(), ids=STRUCTURED)
def test_the_structure_of_a_hierarchy_is_found(case):
    model, args, outer, num_middle, blocks, is_normal = case
    found = factorisation(Target.of(model, args), 0)
    assert found is not None
    assert [site.name for site in found.outer_sites] == outer
    assert (len(found.middle), [tuple(some.shape) for some in found.blocks]) == (num_middle, blocks)
    assert found.is_normal == is_normal


def test_pairs_that_share_data_are_one_block():
    found = factorisation(Target.of(two_effects, (TRIALS, 5.0)), 0)
    assert found.blocks[0].tolist() == [[2, 6], [3, 7], [4, 8], [5, 9]]
    assert found.summary == "2 outer latent numbers, 4 blocks of 2"


def crossed(y):
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("rows", 4, dim=-2):
        row = pyro.sample("row", dist.Normal(0.0, sigma))
    with pyro.plate("columns", 12, dim=-1):
        column = pyro.sample("column", dist.Normal(0.0, sigma))
    with pyro.plate("i", 4, dim=-2), pyro.plate("j", 12, dim=-1):
        pyro.sample("y", dist.Poisson((row + column).exp()), obs=y)


def chain(y):
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    x = torch.zeros((), dtype=REAL)
    for i in range(len(y)):
        x = pyro.sample(f"x_{i}", dist.Normal(x, sigma))
        pyro.sample(f"y_{i}", dist.Poisson(x.exp()), obs=y[i])


def walk(y):
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    x = pyro.sample("steps", dist.Normal(0.0, sigma).expand([12]).to_event(1)).cumsum(-1)
    pyro.sample("y", dist.Poisson(x.exp()).to_event(1), obs=y)


def sum_to_one(y):
    p = pyro.sample("p", dist.Dirichlet(torch.ones(6, dtype=REAL)))
    scale = pyro.sample("scale", dist.HalfNormal(10.0))
    pyro.sample("y", dist.Poisson(scale * p).to_event(1), obs=y)


TWELVE = torch.arange(12.0).to(REAL) % 4
UNSTRUCTURED = {
    "crossed": (crossed, torch.ones(4, 12, dtype=REAL)),
    "a chain": (chain, torch.cat([TWELVE, TWELVE])),
    "a random walk": (walk, TWELVE),
    "a simplex": (sum_to_one, COUNTS),
}


@pytest.mark.parametrize("case", UNSTRUCTURED.values(), ids=UNSTRUCTURED)
def test_where_latents_hang_together_there_is_no_structure(case):
    model, y = case
    found = factorisation(Target.of(model, (y,)), 0)
    # Four row effects are few enough to be held; given them and the scale the columns do fall apart.
    assert found is None or (model is crossed and [site.name for site in found.outer_sites] == ["sigma", "row"])


@pytest.mark.parametrize("name", ["centred", "counts", "indexed", "positive", "growth", "a factor"])
def test_terms_add_up_to_the_log_density_and_depend_on_what_their_derivatives_say(name):
    model, args, *_ = STRUCTURED[name]
    target = Target.of(model, args)
    terms, generator = Terms.of(target, 0), torch.Generator().manual_seed(3)
    points = torch.randn(4, target.dim, generator=generator, dtype=REAL)
    with target.isolated(0):
        for u in points:
            assert float(terms(u).sum()) == pytest.approx(
                float(target.log_density_of_row(u, *target.row(0))), rel=1e-12
            )
        by_derivatives = torch.stack([jacrev(terms)(u) != 0 for u in points]).any(0).mT
        depends = terms.dependencies(points)
    assert (depends | ~by_derivatives).all()
    # Only comparisons with the ends of a support have no derivative where a number matters.
    assert float((depends & ~by_derivatives).double().mean()) < 0.02


def test_a_number_that_only_a_comparison_sees_counts_as_a_dependence():
    def model():
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("groups", 3):
            b = pyro.sample("b", dist.Normal(0.0, 1.0))
        pyro.factor("f", torch.where(b[1] > 0, b[0], -b[0]) + a)

    target = Target.of(model)
    depends = Terms.of(target, 0).dependencies(
        torch.tensor([[0.1, 0.3, 0.5, 0.2], [0.2, -0.4, -1.0, math.pi]]).to(REAL)
    )
    assert bool((depends[1] & depends[2]).any())
