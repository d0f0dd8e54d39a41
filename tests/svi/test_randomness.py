"""Randomness as an argument: the right laws from given noise, in the order of the recording, for any engine."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_vi.svi.randomness import (
    GENERATORS,
    UNSUPPORTED,
    Draw,
    Recorder,
    Replay,
    UnsupportedRandomnessError,
    pseudo_random,
    quasi_random,
    shifted_nets,
)
from ppl_vi.target.isolation import isolated

NUM = 20_000
CRITICAL = 2.4  # of sqrt(n) D: P = 2 exp(-2 * 2.4^2) = 2e-5 for each law


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def draws_of(program: Callable[[], Tensor], num: int = NUM, seed: int = 3) -> Tensor:
    with Recorder() as recorder:
        program()
    noise = pseudo_random(recorder.draws, (num,), torch.Generator().manual_seed(seed))

    def one(given: tuple[Tensor, ...]) -> Tensor:
        with Replay(given):
            return program()

    return vmap(one)(noise)


norm, uniform, expon, gamma = scipy.stats.norm, scipy.stats.uniform, scipy.stats.expon, scipy.stats.gamma
cauchy, lognorm = scipy.stats.cauchy, scipy.stats.lognorm
LAWS: dict[str, tuple[Callable[[], Tensor], list[object]]] = {
    "normal": (lambda: torch.normal(double(1.5, -2.0), double(0.5, 3.0)), [norm(1.5, 0.5), norm(-2, 3)]),
    "normal of numbers": (lambda: torch.normal(0.5, 2.0, (1,), dtype=torch.float64), [norm(0.5, 2)]),
    "normal_": (lambda: torch.empty(2, dtype=torch.float64).normal_(1.5, 0.25), [norm(1.5, 0.25)] * 2),
    "uniform_": (lambda: torch.empty(2, dtype=torch.float64).uniform_(-1.0, 3.0), [uniform(-1, 4)] * 2),
    "exponential_": (lambda: torch.empty(2, dtype=torch.float64).exponential_(2.5), [expon(scale=0.4)] * 2),
    "cauchy_": (lambda: torch.empty(2, dtype=torch.float64).cauchy_(1.5, 0.5), [cauchy(1.5, 0.5)] * 2),
    "log_normal_": (
        lambda: torch.empty(2, dtype=torch.float64).log_normal_(0.3, 0.8),
        [lognorm(0.8, scale=math.exp(0.3))] * 2,
    ),
    "randn": (lambda: torch.randn(2, dtype=torch.float64), [norm()] * 2),
    "rand": (lambda: torch.rand((2,), dtype=torch.float64), [uniform()] * 2),
    "randn_like": (lambda: torch.randn_like(double(7.0)), [norm()]),
    "rand_like": (lambda: torch.rand_like(double(7.0)), [uniform()]),
    "_standard_gamma": (
        lambda: torch._standard_gamma(double(0.1, 0.9, 1.0, 5.0, 100.0)),
        [gamma(c) for c in (0.1, 0.9, 1.0, 5.0, 100.0)],
    ),
}


@pytest.mark.parametrize("name", LAWS)
def test_given_noise_follows_the_law(name: str) -> None:
    program, laws = LAWS[name]
    found = draws_of(program).numpy()
    assert found.shape == (NUM, len(laws))
    for column, law in zip(found.T, laws, strict=True):
        assert scipy.stats.kstest(column, law.cdf).statistic * NUM**0.5 < CRITICAL


@pytest.mark.parametrize("num", [1, 4])
def test_given_noise_makes_every_order_equally_likely(num: int) -> None:
    """Pearson's test over all orders of so many."""
    orders = draws_of(lambda: torch.randperm(num))
    counts = np.unique(orders.numpy(), axis=0, return_counts=True)[1]
    assert len(counts) == math.factorial(num)
    assert num == 1 or scipy.stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("concentration", [(0.3, 2.0, 1.5), (1.5, 4.0)])
def test_dirichlet_and_beta_draws_follow_their_laws(concentration: tuple[float, ...]) -> None:
    """Each part of a Dirichlet draw is a beta draw; the path's derivative has the mean's, (1 - share) / total."""
    total, given = sum(concentration), double(*concentration)
    if len(concentration) == 2:
        found = draws_of(lambda: torch.distributions.Beta(given[0], given[1]).rsample()[None])
    else:
        found = draws_of(lambda: torch.distributions.Dirichlet(given).rsample())
    for c, column in zip(concentration, found.numpy().T, strict=False):
        assert scipy.stats.kstest(column, scipy.stats.beta(c, total - c).cdf).statistic * NUM**0.5 < CRITICAL
    with Recorder() as recorder:
        torch.distributions.Dirichlet(given).rsample()
    noise = pseudo_random(recorder.draws, (NUM,), torch.Generator().manual_seed(6))

    def first(c: Tensor, draws: tuple[Tensor, ...]) -> Tensor:
        with Replay(draws):
            return torch.distributions.Dirichlet(c).rsample()[0]

    with isolated(seed=0):
        slope = vmap(grad(first), in_dims=(None, 0))(given, noise)[:, 0]
    exact = (1 - concentration[0] / total) / total
    # torch's own derivative of a gamma draw claims 5e-4 relative
    assert abs(float(slope.mean()) - exact) < 5 * float(slope.std()) / NUM**0.5 + 1e-3 * exact


def test_torchs_own_dirichlet_is_put_back() -> None:
    before = torch.distributions.dirichlet._Dirichlet

    def failing() -> None:
        with Recorder():
            assert torch.distributions.dirichlet._Dirichlet is not before
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert torch.distributions.dirichlet._Dirichlet is before


def test_every_generator_is_tested() -> None:
    assert set(GENERATORS) == {name.removesuffix(" of numbers") for name in LAWS} | {"randperm"}


def test_replay_gives_back_what_the_recorder_listed_in_its_order() -> None:
    def program() -> tuple[Tensor, ...]:
        return torch.randn(2, dtype=torch.float64), torch.rand(3), torch.zeros(2).normal_(10.0, 1.0)

    with Recorder() as recorder:
        program()
    assert recorder.draws == [
        Draw("normal", torch.Size([2]), torch.float64),
        Draw("uniform", torch.Size([3]), torch.float32),
        Draw("normal", torch.Size([2]), torch.float32),
    ]
    noise = (double(0.5, 0.25), torch.tensor([0.1, 0.2, 0.3]), torch.tensor([-1.0, 2.0]))
    with Replay(noise):
        first, second, third = program()
    assert first.tolist() == [0.5, 0.25]
    assert torch.equal(second, noise[1])
    assert third.tolist() == [9.0, 12.0]


@pytest.mark.parametrize("noise", [(torch.zeros(3),), ()], ids=["shape", "too little"])
def test_noise_of_another_shape_is_refused(noise: tuple[Tensor, ...]) -> None:
    with (
        pytest.raises(
            UnsupportedRandomnessError, match=r"normal noise of shape \(2,\) where its first run did not: draw 0"
        ),
        Replay(noise),
    ):
        torch.randn(2)


@pytest.mark.parametrize(
    ("name", "draw"),
    [
        ("bernoulli", lambda: torch.bernoulli(torch.tensor([0.5]))),
        ("poisson", lambda: torch.poisson(torch.tensor([2.0]))),
        ("multinomial", lambda: torch.multinomial(torch.tensor([0.5, 0.5]), 1)),
        ("randint", lambda: torch.randint(0, 5, (2,))),
        ("_sample_dirichlet", lambda: torch._sample_dirichlet(torch.ones(3))),
    ],
)
@pytest.mark.parametrize("source", [Recorder, lambda: Replay(())])
def test_what_cannot_be_given_is_refused_by_name(
    name: str, draw: Callable[[], Tensor], source: Callable[[], Recorder | Replay]
) -> None:
    assert name in UNSUPPORTED
    with pytest.raises(UnsupportedRandomnessError, match=f"torch's '{name}'"), source():
        draw()


def test_vmap_and_a_traced_graph_are_the_loop() -> None:
    scale = double(0.7, 1.3)

    def program(noise: tuple[Tensor, ...], concentration: Tensor) -> Tensor:
        with Replay(noise):
            return torch.randn(2, dtype=torch.float64) * scale + torch._standard_gamma(concentration)

    with Recorder() as recorder:
        torch.randn(2, dtype=torch.float64)
        torch._standard_gamma(double(1.0, 2.0))
    sets = [pseudo_random(recorder.draws, (4,), torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    concentration = double(0.5, 3.0)

    def slope(noise: tuple[Tensor, ...], concentration: Tensor) -> Tensor:
        return grad(lambda c: program(noise, c).sum())(concentration)

    for function in (program, slope):
        batched = vmap(function, in_dims=(0, None))
        graph = make_fx(batched)(sets[0], concentration)
        for noise in sets:
            loop = torch.stack([function(tuple(n[i] for n in noise), concentration) for i in range(4)])
            torch.testing.assert_close(batched(noise, concentration), loop, rtol=1e-14, atol=0)
            torch.testing.assert_close(graph(noise, concentration), loop, rtol=1e-14, atol=0)


@pytest.mark.parametrize("c", [0.1, 0.9, 1.0, 5.0, 100.0])
def test_a_gamma_draw_keeps_its_cdf_while_the_concentration_moves(c: float) -> None:
    """dz/dc by differences of SciPy's quantile at the draw's own cdf, and averages with closed forms.

    d E[z] / dc = 1 and d E[log z] / dc = trigamma(c).
    """
    concentration = double(c)[0]
    with Recorder() as recorder:
        torch._standard_gamma(concentration)
    noise = pseudo_random(recorder.draws, (NUM,), torch.Generator().manual_seed(6))

    def draw(c: Tensor, noise: tuple[Tensor, ...]) -> Tensor:
        with Replay(noise):
            return torch._standard_gamma(c)

    z = vmap(draw, in_dims=(None, 0))(concentration, noise)
    path = vmap(grad(draw), in_dims=(None, 0))(concentration, noise)
    cdf = scipy.special.gammainc(c, z.numpy())
    usable = (cdf > 1e-3) & (cdf < 0.999) & (z.numpy() > 1e-100)
    step = 1e-4 * c
    up, down = (scipy.special.gammaincinv(c + sign * step, cdf) for sign in (1, -1))
    expected = (up - down) / (2 * step)
    # torch's own formula claims 5e-4 relative; differences are right to (step / c)^2 times a third derivative
    np.testing.assert_allclose(path.numpy()[usable], expected[usable], rtol=2e-3)
    for slope, exact in ((path, 1.0), (path / z, float(scipy.special.polygamma(1, c)))):
        error = float(slope.std()) / NUM**0.5
        assert abs(float(slope.mean()) - exact) < 5 * error + 5e-4 * exact


def test_pseudo_random_noise_has_its_prefix_and_its_seed() -> None:
    draws = [Draw("normal", torch.Size([2]), torch.float32), Draw("uniform", torch.Size([]), torch.float64)]
    first, again, other = (pseudo_random(draws, (3, 4), torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert [(tuple(n.shape), n.dtype) for n in first] == [((3, 4, 2), torch.float32), ((3, 4), torch.float64)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_quasi_random_noise_is_unbiased_and_varies_less() -> None:
    """E[exp(v) u^2] = sqrt(e) / 3 for v normal and u uniform."""
    draws = [Draw("normal", torch.Size([]), torch.float64), Draw("uniform", torch.Size([2, 1]), torch.float64)]
    scrambles, points = 64, 256
    v, u = quasi_random(draws, points, scrambles, seed=5)
    assert (v.shape, u.shape) == ((scrambles, points), (scrambles, points, 2, 1))
    assert bool(v.isfinite().all())
    assert 0 < float(u.min()) < float(u.max()) < 1
    means = (v.exp() * u[..., 1, 0] ** 2).mean(1)
    exact = math.exp(0.5) / 3
    assert abs(float(means.mean()) - exact) < 5 * float(means.std()) / scrambles**0.5
    # the integrand's variance: E[exp(2v)] E[u^4] - exact^2
    pseudo = (math.exp(2) / 5 - exact**2) / points
    assert float(means.var()) < pseudo / 10
    assert not torch.equal(quasi_random(draws, points, 2, seed=6)[0], v[:2])


def test_nothing_drawn_needs_no_noise() -> None:
    assert quasi_random([], 8, 2, seed=0) == ()
    (empty,) = quasi_random([Draw("normal", torch.Size([0]), torch.float64)], 8, 2, seed=0)
    assert empty.shape == (2, 8, 0)


@pytest.mark.parametrize(("kind", "law"), [("normal", scipy.stats.norm), ("uniform", scipy.stats.uniform)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_follows_its_law_and_replicas_are_independent(kind: Any, law: Any, dtype: torch.dtype) -> None:
    """8 steps of 16 replicas: Kolmogorov's test over all, no value twice, correlations within 5 standard errors."""
    draws = [Draw(kind, torch.Size([5]), dtype)]
    (noise,) = pseudo_random(draws, (8, 16, 400), torch.Generator().manual_seed(21))
    assert scipy.stats.kstest(noise.flatten().double().numpy(), law.cdf).pvalue > 1e-3
    rows = noise.movedim(1, 0).flatten(1).double().numpy()
    off = np.corrcoef(rows)[np.triu_indices(16, 1)]
    assert np.abs(off).max() < 5 / rows.shape[1] ** 0.5
    along = noise.flatten(1).double().numpy()
    assert np.abs(np.corrcoef(along)[np.triu_indices(8, 1)]).max() < 5 / along.shape[1] ** 0.5
    if dtype == torch.float64:
        assert len(np.unique(noise.numpy())) == noise.numel()


NETS = (Draw("normal", torch.Size([3]), torch.float64), Draw("uniform", torch.Size([]), torch.float64))


def test_shifted_nets_follow_their_laws_and_sets_are_independent() -> None:
    """Over 2,000 sets, at a thousandth by Kolmogorov and Smirnov; a point of one set says nothing of another's."""
    normal, uniform = shifted_nets(NETS, (2000, 16), torch.Generator().manual_seed(5))
    assert normal.shape == (2000, 16, 3)
    assert uniform.shape == (2000, 16)
    for values, law in ((normal[:, 3, 1], "norm"), (uniform[:, 7], "uniform")):
        assert scipy.stats.kstest(values.numpy(), law).pvalue > 1e-3
    neighbours = np.corrcoef(normal[:-1, 0, 0], normal[1:, 0, 0])[0, 1]
    assert abs(neighbours) < 4 / 2000**0.5


@pytest.mark.parametrize("num_points", [16, 64])
def test_a_mean_over_a_shifted_net_is_unbiased_and_varies_less(num_points: int) -> None:
    """E exp(0.3 (z1 + z2 + z3)) u = exp(0.135) / 2, whose variance for independent points is in closed form."""
    normal, uniform = shifted_nets(NETS, (3000, num_points), torch.Generator().manual_seed(6))
    values = ((0.3 * normal.sum(-1)).exp() * uniform).mean(1)
    mean, independent = math.exp(0.135) / 2, math.exp(0.54) / 3 - math.exp(0.27) / 4
    assert abs(float(values.mean()) - mean) < 4 * float(values.std()) / 3000**0.5
    assert float(values.var()) < 0.25 * independent / num_points


def test_no_two_dimensions_of_shifted_nets_stay_in_step() -> None:
    """Sobol points of 60 dimensions have pairs that move together; in a random order no pair does for long.

    The mean over 32 points of z_i z_j has variance 1 / 32 for independent points. In a fixed order some pairs have 17
    times as much, and here none has three times.
    """
    (normal,) = shifted_nets((Draw("normal", torch.Size([60]), torch.float64),), (400, 32), torch.Generator())
    products = torch.einsum("npi,npj->nij", normal, normal) / 32
    spread = products.square().mean(0) * 32
    assert float(spread[~torch.eye(60, dtype=torch.bool)].max()) < 3


def test_seeds_in_shifted_nets_are_independent() -> None:
    draws = (Draw("seed", torch.Size([]), torch.int64), NETS[0])
    seeds, normal = shifted_nets(draws, (4, 8), torch.Generator().manual_seed(1))
    assert len(set(seeds.flatten().tolist())) == 32
    assert normal.shape == (4, 8, 3)
