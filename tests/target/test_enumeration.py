"""Discrete latents summed out, against sums over all their values written by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.ops.indexing import Vindex
from scipy import special, stats
from torch import Tensor
from torch.func import grad, vmap

from ppl_vi import Target, compare, fit, ground_truth
from ppl_vi.svi.setup import UnsuitableModelError
from ppl_vi.target.enumeration import einsum
from ppl_vi.target.evaluation import prior_draws
from ppl_vi.target.isolation import isolated

Y = np.array([1.2, -0.4, 2.9, 0.3])


def points(target: Target, num: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    return target.constrain(torch.randn(1, num, target.dim, dtype=torch.float64, generator=generator))[0]


def chain(y: Tensor) -> None:
    """A hidden Markov chain of three states, its transitions drawn too."""
    stay = pyro.sample("stay", dist.Dirichlet(y.new_tensor([2.0, 1.0, 3.0])))
    level = pyro.sample("level", dist.Normal(y.new_zeros(3), 2.0).to_event(1))
    table = 0.6 * torch.eye(3, dtype=y.dtype) + 0.4 * stay
    state: Tensor | int = 0
    for n in pyro.markov(range(len(y))):
        state = pyro.sample(f"state_{n}", dist.Categorical(Vindex(table)[state] if n else stay))
        pyro.sample(f"y_{n}", dist.Normal(Vindex(level)[state], 0.7), obs=y[n])


def chain_by_hand(latents: dict[str, np.ndarray]) -> float:
    stay, level = latents["stay"], latents["level"]
    table = 0.6 * np.eye(3) + 0.4 * stay
    terms = []
    for states in itertools.product(range(3), repeat=len(Y)):
        moves = [np.log(stay[states[0]])] + [np.log(table[a, b]) for a, b in itertools.pairwise(states)]
        terms.append(sum(moves) + stats.norm.logpdf(Y, level[list(states)], 0.7).sum())
    return (
        special.logsumexp(terms) + stats.dirichlet.logpdf(stay, [2.0, 1.0, 3.0]) + stats.norm.logpdf(level, 0, 2).sum()
    )


def clusters(y: Tensor) -> None:
    """A component for each point, one common switch, and a continuous latent between them in the same plate."""
    weights = pyro.sample("weights", dist.Beta(y.new_tensor(2.0), 3.0))
    switch = pyro.sample("switch", dist.Bernoulli(weights))
    with pyro.plate("points", len(y)):
        shift = pyro.sample("shift", dist.Normal(y.new_zeros(()), 1.5))
        kind = pyro.sample("kind", dist.Categorical(torch.stack([weights, 1 - weights])))
        pyro.sample("y", dist.Normal(shift + 2.0 * kind + switch, 0.5), obs=y)


def clusters_by_hand(latents: dict[str, np.ndarray]) -> float:
    weight, shift = latents["weights"], latents["shift"]
    both = []
    for switch in (0, 1):
        kinds = [
            np.log(share) + stats.norm.logpdf(Y, shift + 2.0 * kind + switch, 0.5)
            for kind, share in enumerate([weight, 1 - weight])
        ]
        both.append(stats.bernoulli.logpmf(switch, weight) + np.logaddexp(*kinds).sum())
    prior = stats.beta.logpdf(weight, 2, 3) + stats.norm.logpdf(shift, 0, 1.5).sum()
    return float(np.logaddexp(*both) + prior)


@pytest.mark.parametrize(("model", "by_hand"), [(chain, chain_by_hand), (clusters, clusters_by_hand)])
def test_the_sum_over_all_values(model: object, by_hand: object) -> None:
    target = Target.of(model, (Y,))  # type: ignore[arg-type]
    latents = points(target)
    found = target.log_joint(latents)[0]
    for s in range(3):
        one = {name: value[0, s].numpy() for name, value in latents.items()}
        assert float(found[s]) == pytest.approx(by_hand(one), rel=1e-12)  # type: ignore[operator]


def test_its_latents_are_the_continuous_ones() -> None:
    target = Target.of(clusters, (Y,))
    assert [(site.name, tuple(site.shape)) for site in target.latents] == [("weights", ()), ("shift", (4,))]


def test_it_can_be_differentiated_at_many_points_at_once() -> None:
    target = Target.of(chain, (Y,))
    u = torch.randn(2, target.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with isolated():
        slope = vmap(grad(lambda v: target.log_density_of_row(v, *target.row(0))))(u)
        step = 1e-6 * torch.eye(target.dim, dtype=torch.float64)
        both = [
            torch.stack([target.log_density_of_row(v + s * d, *target.row(0)) for v in u for d in step])
            for s in (1, -1)
        ]
    # central differences of step 1e-6: rounding of 1e-16 * 20 / 1e-6
    torch.testing.assert_close(slope, ((both[0] - both[1]) / 2e-6).reshape(2, -1), rtol=1e-6, atol=1e-7)


def test_two_plates_that_disagree_by_more_than_a_double_holds() -> None:
    """One switch, fifty points that all but rule out each of its values: Pyro's own sum finds a density of 0 here."""

    def model(one: Tensor, other: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(one.new_zeros(()), 1.0))
        switch = pyro.sample("switch", dist.Bernoulli(one.new_tensor(0.5)))
        with pyro.plate("ones", len(one)):
            pyro.sample("one", dist.Normal(mean + 10 * switch, 1.0), obs=one)
        with pyro.plate("others", len(other)):
            pyro.sample("other", dist.Normal(mean + 10 * switch, 1.0), obs=other)

    target = Target.of(model, (np.zeros(30), np.full(20, 10.0)))
    found = float(target.log_joint({"mean": torch.zeros(1, 1, dtype=torch.float64)}))
    terms = [math.log(0.5) - 20 * 50.0, math.log(0.5) - 30 * 50.0]
    assert found == pytest.approx(special.logsumexp(terms) - 51 * math.log(2 * math.pi) / 2, rel=1e-13)


@pytest.mark.parametrize("equation", ["ab,b->a", "ab,bc->ac", "a,b->ba", "abc->b", "ab->ab", ",a->"])
def test_sums_of_products_of_logarithms(equation: str) -> None:
    sizes = {"a": 2, "b": 3, "c": 4}
    generator = np.random.default_rng(1)
    logs = [generator.normal(size=[sizes[d] for d in dims]) for dims in equation.split("->")[0].split(",")]
    found = einsum(equation, *(torch.tensor(log) for log in logs))
    np.testing.assert_allclose(
        found, np.log(np.einsum(equation, *(np.exp(log) for log in logs))), rtol=1e-12, atol=1e-14
    )


def test_a_guide_sees_the_continuous_latents_and_ends_at_the_truth() -> None:
    """p ~ Beta(3, 2), k_n ~ Bernoulli(p), and y_n all but says k_n: the posterior is Beta(3 + 5, 2 + 2)."""

    def model(y: Tensor) -> None:
        p = pyro.sample("p", dist.Beta(y.new_tensor(3.0), 2.0))
        with pyro.plate("points", len(y)):
            k = pyro.sample("k", dist.Bernoulli(p))
            pyro.sample("y", dist.Normal(10 * k, 1.0), obs=y)

    target = Target.of(model, (np.array([10.0, 0, 10, 10, 0, 10, 10]),))
    fitted = fit(target, "AutoNormal", engine="batched", num_steps=200, num_particles=64)
    draws = fitted.draw(4000, seed=2)["p"]
    # logit-normal against beta: means within 0.005, and 4 standard errors of 0.13 / sqrt(4000)
    assert float(draws.mean()) == pytest.approx(8 / 12, abs=0.005 + 4 * 0.13 / 4000**0.5)


def one_prior_of_two(y: Tensor) -> None:
    """One level, whose prior's location and scale are those of a discrete latent."""
    kind = pyro.sample("kind", dist.Categorical(y.new_tensor([0.3, 0.7])))
    level = pyro.sample("level", dist.Normal(y.new_tensor([-2.0, 3.0])[kind], y.new_tensor([0.5, 1.5])[kind]))
    with pyro.plate("points", len(y)):
        pyro.sample("y", dist.Normal(level, 1.0), obs=y)


def a_prior_for_each(y: Tensor) -> None:
    """A level for each point, in whose plate its own discrete latent is drawn, beside one of them all."""
    shift = pyro.sample("shift", dist.Bernoulli(y.new_tensor(0.4)))
    with pyro.plate("points", len(y)):
        kind = pyro.sample("kind", dist.Categorical(y.new_tensor([0.3, 0.7])))
        level = pyro.sample("level", dist.Normal(y.new_tensor([-2.0, 3.0])[kind] + shift, 1.0))
        pyro.sample("y", dist.Normal(level, 1.0), obs=y)


def test_a_prior_that_depends_on_a_discrete_latent() -> None:
    """The evidence is that of a mixture of two conjugate models."""
    truth = ground_truth(Target.of(one_prior_of_two, (Y,)))
    parts = []
    for share, loc, sd in ((0.3, -2.0, 0.5), (0.7, 3.0, 1.5)):
        covariance = np.eye(len(Y)) + np.full((len(Y), len(Y)), sd**2)
        parts.append(math.log(share) + stats.multivariate_normal.logpdf(Y, np.full(len(Y), loc), covariance))
    assert truth.grade == "checked"
    assert float(truth.log_evidence[0]) == pytest.approx(np.logaddexp(*parts), abs=1e-10)


def test_priors_in_a_plate_that_depend_on_discrete_latents() -> None:
    """One level is integrated out by a lattice, exact to 1e-8 for normals this wide, the other levels are given."""
    target = Target.of(a_prior_for_each, (Y,))
    line = torch.arange(-12, 14, 0.5, dtype=torch.float64) + 0.1
    near = torch.from_numpy(Y[None]) / 2 + 0.5
    levels = near.repeat(len(line), 1)[None]
    levels[0, :, 0] = line
    by_rule = target.log_joint({"level": levels})[0].logsumexp(0) + math.log(0.5)
    rest = Y[1:], near[0, 1:].numpy()
    both = []
    for shift, share in ((0, 0.6), (1, 0.4)):
        parts = ((0.3, -2.0 + shift), (0.7, 3.0 + shift))
        whole = np.logaddexp(*(math.log(p) + stats.norm.logpdf(Y[0], loc, math.sqrt(2)) for p, loc in parts))
        priors = np.logaddexp(*(math.log(p) + stats.norm.logpdf(rest[1], loc, 1.0) for p, loc in parts)).sum()
        both.append(math.log(share) + whole + priors)
    by_hand = np.logaddexp(*both) + stats.norm.logpdf(rest[0], rest[1], 1.0).sum()
    assert float(by_rule) == pytest.approx(by_hand, abs=1e-8)


def test_a_latent_with_such_a_prior_is_drawn_from_the_even_mixture() -> None:
    target = Target.of(one_prior_of_two, (Y,))
    drawn = prior_draws(target, 0, 2000, seed=1)
    share = float((drawn[:, 0] < 0).double().mean())
    expected = 0.5 * stats.norm.cdf(4.0) + 0.5 * stats.norm.cdf(-2.0)
    assert share == pytest.approx(expected, abs=4 * 0.5 / 2000**0.5)


def infinite(y: Tensor) -> None:
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    count = pyro.sample("count", dist.Poisson(rate))
    pyro.sample("y", dist.Normal(count, 1.0), obs=y)


def mixed(y: Tensor) -> None:
    kind = pyro.sample("kind", dist.Bernoulli(0.3))
    level = pyro.sample("level", dist.Uniform(0.0, 4 + kind))
    pyro.sample("y", dist.Normal(level, 1.0), obs=y)


def branching(y: Tensor) -> None:
    kind = pyro.sample("kind", dist.Bernoulli(0.3))
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(level if kind == 1 else -level, 1.0), obs=y)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (infinite, "infinite: site 'count' is discrete and Poisson has no finite list of values.*cut it off"),
        (mixed, "mixed: the support of site 'level' depends on a discrete latent.*choose among them"),
        (branching, "branching: the model raised RuntimeError at or after site 'level': Boolean value"),
    ],
)
def test_what_cannot_be_summed_out_is_refused_by_name(model: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Target.of(model, (np.array(1.5),))  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_a_model_that_mixes_dimensions_up_is_found_out() -> None:
    """Three values of one switch, and three data points that take them for their own dimension."""

    def mixed_up(y: Tensor) -> None:
        level = pyro.sample("level", dist.Normal(y.new_zeros(3), 1.0).to_event(1))
        switch = pyro.sample("switch", dist.Categorical(y.new_tensor([0.2, 0.3, 0.5])))
        pyro.sample("y", dist.Normal(level[switch].expand(3), 1.0).to_event(1), obs=y)

    def apart(y: Tensor) -> None:
        level = pyro.sample("level", dist.Normal(y.new_zeros(3), 1.0).to_event(1))
        switch = pyro.sample("switch", dist.Categorical(y.new_tensor([0.2, 0.3, 0.5])))
        pyro.sample("y", dist.Normal(level[switch][..., None], 1.0).to_event(1), obs=y)

    y = np.array([1.0, -0.5, 2.0])
    with pytest.raises(
        ValueError, match=r"mixed_up: summed out at once the log density is .*, value by value .*Vindex"
    ):
        Target.of(mixed_up, (y,))
    target = Target.of(apart, (y[:1],))
    level = np.array([0.5, 1.5, -1.0])
    terms = np.log([0.2, 0.3, 0.5]) + stats.norm.logpdf(y[0], level)
    expected = special.logsumexp(terms) + stats.norm.logpdf(level).sum()
    assert float(target.log_joint({"level": torch.tensor(level)[None, None]})) == pytest.approx(expected, rel=1e-12)


TOSSES = np.array([1.0, 0.0, 1.0, 1.0])
HINTS = np.array([0.8, -0.3, 0.1, 1.4])


def half_seen(toss: Tensor, seen: Tensor, hint: Tensor) -> None:
    """Tosses of which some are missing, each with a hint that depends on the toss, observed or imputed."""
    b = pyro.sample("b", dist.Beta(2.0, 3.0))
    with pyro.plate("tosses", len(toss)):
        face = pyro.sample("toss", dist.Bernoulli(b), obs=toss, obs_mask=seen)
        pyro.sample("hint", dist.Normal(2.0 * face, 1.5), obs=hint)


def three_faces(toss: Tensor, seen: Tensor, hint: Tensor) -> None:
    """The same of a die of three faces."""
    b = pyro.sample("b", dist.Beta(2.0, 3.0))
    with pyro.plate("tosses", len(toss)):
        shares = torch.stack([(1 - b) ** 2, 2 * b * (1 - b), b**2])
        face = pyro.sample("toss", dist.Categorical(shares), obs=toss.long(), obs_mask=seen)
        pyro.sample("hint", dist.Normal(2.0 * face, 1.5), obs=hint)


def half_seen_by_hand(b: float, faces: int, seen: np.ndarray) -> float:
    """log p(b, data): an observed entry counts once, a missing one is summed over its faces."""
    shares = np.log(stats.binom.pmf(np.arange(faces), faces - 1, b))
    terms = shares + stats.norm.logpdf(HINTS[:, None], 2.0 * np.arange(faces), 1.5)
    once = terms[np.arange(4), TOSSES.astype(int)][seen]
    return float(stats.beta.logpdf(b, 2, 3) + once.sum() + special.logsumexp(terms[~seen], 1).sum())


@pytest.mark.parametrize("seen", [[True, False, True, False], [True] * 4, [False] * 4])
@pytest.mark.parametrize(("model", "faces"), [(half_seen, 2), (three_faces, 3)])
def test_data_of_which_some_are_missing(model: object, faces: int, seen: list[bool]) -> None:
    target = Target.of(model, (TOSSES, np.array(seen), HINTS))  # type: ignore[arg-type]
    for b in (0.2, 0.7):
        found = float(target.log_joint({"b": torch.full((1, 1), b, dtype=torch.float64)}))
        assert found == pytest.approx(half_seen_by_hand(b, faces, np.array(seen)), rel=1e-12)


@pytest.mark.parametrize("num", [1, 3])
def test_the_evidence_of_data_that_are_all_there(num: int) -> None:
    """b ~ Beta(2, 2) and `num` heads: p(x) = E b^num, 1/2 of one and 1/5 of three."""

    def masked_coin(toss: Tensor) -> None:
        b = pyro.sample("b", dist.Beta(2.0, 2.0))
        with pyro.plate("tosses", len(toss)):
            pyro.sample("toss", dist.Bernoulli(b), obs=toss, obs_mask=torch.ones(len(toss), dtype=torch.bool))

    truth = ground_truth(Target.of(masked_coin, (np.ones(num),)))
    assert float(truth.log_evidence[0]) == pytest.approx(math.log({1: 1 / 2, 3: 1 / 5}[num]), abs=1e-9)


@pytest.mark.parametrize("by", ["poutine", "distribution"])
def test_a_step_that_is_masked_with_all_that_depends_on_it_changes_nothing(by: str) -> None:
    """A chain of three states, padded by two steps after its end: the density is that of the chain alone."""

    def padded(y: Tensor, length: int) -> None:
        level = pyro.sample("level", dist.Normal(y.new_zeros(2), 2.0).to_event(1))
        table = y.new_tensor([[0.8, 0.2], [0.3, 0.7]])
        state: Tensor | int = 0
        for n in pyro.markov(range(len(y))):
            mask = torch.tensor(n < length)
            if by == "poutine":
                with pyro.poutine.mask(mask=mask):
                    state = pyro.sample(f"state_{n}", dist.Categorical(Vindex(table)[state]))
                    pyro.sample(f"y_{n}", dist.Normal(Vindex(level)[state], 0.7), obs=y[n])
            else:
                state = pyro.sample(f"state_{n}", dist.Categorical(Vindex(table)[state]).mask(mask))
                pyro.sample(f"y_{n}", dist.Normal(Vindex(level)[state], 0.7).mask(mask), obs=y[n])

    whole, alone = Target.of(padded, (np.append(Y[:3], [7.0, 8.0]), 3)), Target.of(padded, (Y[:3], 3))
    latents = points(alone)
    torch.testing.assert_close(whole.log_joint(latents), alone.log_joint(latents), rtol=1e-13, atol=0)


def all_discrete(x):
    """A cause of three values and an effect of two."""
    cause = pyro.sample("cause", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
    effect = pyro.sample("effect", dist.Bernoulli(torch.tensor([0.1, 0.5, 0.9])[cause]))
    pyro.sample("x", dist.Normal(cause + 2 * effect, 1.5), obs=x)


def test_a_model_of_discrete_latents_alone_is_summed_and_no_guide_is_fitted():
    x = 1.3
    shares = [0.2, 0.3, 0.5], [0.1, 0.5, 0.9]
    total = sum(
        prior * (p if effect else 1 - p) * stats.norm.pdf(x, cause + 2 * effect, 1.5)
        for cause, (prior, p) in enumerate(zip(*shares, strict=True))
        for effect in (0, 1)
    )
    found = compare(all_discrete, ["AutoNormal"], (torch.tensor(x, dtype=torch.float64),))
    (record,) = found.records()
    assert record["log_evidence"] == pytest.approx(math.log(total), abs=1e-13)
    assert (record["grade"], record["status"]) == ("checked", "skipped")
    assert "nothing to fit a guide to" in str(found)
    with pytest.raises(UnsuitableModelError, match="nothing to fit a guide to"):
        fit(found.target, "AutoNormal")
