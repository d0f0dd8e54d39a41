"""The target: sites found by tracing, both ways between the spaces, the log joint against SciPy, the mode."""

import inspect
import math
from collections.abc import Callable

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from torch import Tensor
from torch.func import vmap

from models.exponential_normal import model as toy_model
from models.exponential_normal import target as toy
from ppl_vi.target.isolation import isolated
from ppl_vi.target.target import Target
from ppl_vi.truth import quadrature_truth


def two_sites(x: Tensor) -> None:
    """Two positive sites of shape (3,), one by `to_event`, one by a plate; three observations."""
    rate = pyro.sample("rate", dist.Gamma(2.0, 3.0).expand([3]).to_event(1))
    with pyro.plate("items", 3):
        size = pyro.sample("size", dist.LogNormal(0.3, 0.8))
        pyro.sample("seen", dist.Normal(rate * size, 0.5), obs=x)


def on_the_simplex(x: Tensor) -> None:
    """A constraint across elements, and one with two ends."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0])))
    share = pyro.sample("share", dist.Beta(2.0, 5.0))
    pyro.sample("seen", dist.Normal(weights[0] + share, 0.1), obs=x)


DATA = torch.tensor([[0.5, 1.5, 3.0], [2.0, 0.25, 1.0]])


def latents_of(target: Target, num: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(target.num_problems, num, target.dim, dtype=torch.float64, generator=generator)
    return target.constrain(u)[0]


def test_the_latents_are_found_by_tracing() -> None:
    def found(target: Target) -> list[tuple[object, ...]]:
        return [(site.name, tuple(site.shape), tuple(site.unconstrained_shape)) for site in target.latents]

    assert found(Target(two_sites, (DATA,))) == [("rate", (3,), (3,)), ("size", (3,), (3,))]
    simplex = Target(on_the_simplex, (torch.tensor([0.5]),))
    assert found(simplex) == [("weights", (3,), (2,)), ("share", (), ())]
    assert simplex.dim == 3


@pytest.mark.parametrize(
    "target",
    [toy([1.5, -3.0]), Target(two_sites, (DATA,)), Target(on_the_simplex, (torch.tensor([0.5, 0.75]),))],
    ids=["toy", "two sites", "simplex"],
)
def test_constrain_and_unconstrain_are_inverse_and_the_jacobian_is_autodiffs(target: Target) -> None:
    generator = torch.Generator().manual_seed(1)
    u = torch.randn(2, 4, target.dim, dtype=torch.float64, generator=generator)
    values, log_jacobian = target.constrain(u)
    for site in target.latents:
        assert values[site.name].shape == (2, 4, *site.shape)
        assert bool(site.support.check(values[site.name]).all())
    torch.testing.assert_close(target.unconstrain(values), u, rtol=1e-9, atol=1e-9)

    def free(point: Tensor) -> Tensor:  # a simplex has one number too many for a square Jacobian
        parts = target.constrain(point)[0]
        cut = {site.name: site.unconstrained_shape.numel() for site in target.latents}
        return torch.cat([value.reshape(-1)[: cut[name]] for name, value in parts.items()])

    jacobian = torch.func.vmap(torch.func.vmap(torch.func.jacrev(free)))(u)
    torch.testing.assert_close(log_jacobian, torch.linalg.slogdet(jacobian)[1], rtol=1e-9, atol=1e-9)


def test_the_log_joint_against_scipy() -> None:
    target = Target(two_sites, (DATA,))
    latents = latents_of(target, 5)
    rate, size = latents["rate"].numpy(), latents["size"].numpy()
    each = (
        scipy.stats.gamma.logpdf(rate, 2.0, scale=1 / 3.0)
        + scipy.stats.lognorm.logpdf(size, 0.8, scale=math.exp(0.3))
        + scipy.stats.norm.logpdf(DATA.numpy()[:, None], rate * size, 0.5)
    )
    found = target.log_joint(latents)
    assert found.shape == (2, 5)
    np.testing.assert_allclose(found, each.sum(-1), rtol=1e-13)


def test_an_index_says_which_problem_a_row_belongs_to() -> None:
    target = toy([1.5, -3.0, 30.0])
    z = torch.tensor([[0.5, 2.0], [0.1, 7.0], [1.0, 29.0], [3.0, 4.0]], dtype=torch.float64)
    index = torch.tensor([2, 0, 1, 2])
    x = target.args[0][index][:, None]
    expected = scipy.stats.expon.logpdf(z) + scipy.stats.norm.logpdf(x, z)
    np.testing.assert_allclose(target.log_joint({"z": z}, index), expected, rtol=1e-13)


def test_the_log_joint_is_a_pure_function() -> None:
    target = toy([1.5])
    z = torch.tensor([0.3, 1.1], dtype=torch.float64)
    x = target.args[0][0]
    with isolated():  # validation branches on data
        slope = vmap(torch.func.grad(lambda z: target.log_joint_of_row({"z": z}, x)))(z)
    torch.testing.assert_close(slope, x - 1 - z)


def nothing_to_infer(x: Tensor) -> None:
    pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


def discrete(x: Tensor) -> None:
    z = pyro.sample("z", dist.Poisson(2.0))
    pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize(
    ("model", "message"),
    [(nothing_to_infer, "no latent sample site"), (discrete, "site 'z' is discrete.*sum it out")],
)
def test_a_model_that_svi_cannot_fit_is_refused(model: Callable[..., None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _ = Target(model, (torch.zeros(1),)).latents


@pytest.mark.parametrize(
    "args",
    [
        (),
        (torch.zeros(3), torch.zeros(2)),
        (torch.zeros(0),),
        (torch.tensor(1.0),),
        (torch.zeros(3), torch.tensor(1.0)),
    ],
    ids=["none", "unequal", "empty", "scalar", "one scalar"],
)
def test_args_share_a_leading_axis(args: tuple[Tensor, ...]) -> None:
    with pytest.raises(ValueError, match=r"share a leading axis.*got shapes \["):
        Target(toy_model, args)


def in_one_plate(y: Tensor) -> None:
    """One number behind all the data, a scalar or a vector."""
    mean = pyro.sample("mean", dist.Normal(0.3, 2.0))
    pyro.sample("y", dist.Normal(mean, 0.7).expand(y.shape).to_event(y.dim()), obs=y)


Y = torch.tensor([0.5, -1.5, 3.0])


def test_a_batch_poses_a_problem_a_row_and_of_poses_one_of_all_the_data() -> None:
    """log p(y) of each point alone and of all together, from the marginal Normal(0.3, 4 + 0.49), covariance 4."""
    batch, one = Target.batch(in_one_plate, (Y,), name="batch"), Target.of(in_one_plate, (Y,))
    alone = scipy.stats.norm.logpdf(Y, 0.3, math.sqrt(4.49))
    together = scipy.stats.multivariate_normal(np.full(3, 0.3), 4 + 0.49 * np.eye(3)).logpdf(Y)
    assert (batch.num_problems, one.num_problems) == (3, 1)
    np.testing.assert_allclose(quadrature_truth(batch).log_evidence, alone, atol=1e-12)
    np.testing.assert_allclose(quadrature_truth(one).log_evidence, [together], atol=1e-12)
    assert abs(alone.sum() - together) > 0.1


def test_a_batch_is_what_the_constructor_makes() -> None:
    given = Target(in_one_plate, (Y,), torch.zeros_like, "three", torch.float32)
    batch = Target.batch(in_one_plate, (Y,), torch.zeros_like, "three", torch.float32)
    named = Target.batch(
        model=in_one_plate, args=(Y,), closed_form=torch.zeros_like, name="three", dtype=torch.float32, decoded=None,
        conditional=None,
    )  # fmt: skip
    for made in (batch, named):
        assert {**vars(made), "args": None} == {**vars(given), "args": None}
        assert torch.equal(made.args[0], given.args[0])
    constructor, posed = (list(inspect.signature(make).parameters.values()) for make in (Target, Target.batch))
    assert constructor == posed


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (
            Target(in_one_plate, (Y,), name="three"),
            "Target 'three': 3 problems of 1 latent number: one for each row of its arguments",
        ),
        (
            Target.batch(two_sites, (DATA,)),
            "Target 'target': 2 problems of 6 latent numbers: one for each row of its arguments",
        ),
        (Target.of(in_one_plate, (Y,)), "Target 'in_one_plate': 1 problem of 1 latent number"),
        (
            Target(nothing_to_infer, (Y,), name="nothing"),
            "Target 'nothing': 3 problems of a model whose latents are not found (ValueError): "
            "one for each row of its arguments",
        ),
    ],
    ids=["three", "two sites", "one", "no latents"],
)
def test_a_target_says_how_many_problems_it_poses(target: Target, text: str) -> None:
    with pyro.poutine.trace() as seen:
        assert repr(target) == text
    assert not seen.trace.nodes.keys() - {"_INPUT", "_RETURN"}  # a model that is being run meanwhile sees nothing of it


def test_floats_are_cast_and_integers_kept() -> None:
    target = Target(toy_model, (torch.zeros(3), torch.arange(3)))
    assert [arg.dtype for arg in target.args] == [torch.float64, torch.int64]
    assert [int(part) for part in target.row(2)] == [0, 2]


def test_the_toys_mode_in_log_z() -> None:
    """z q(z) is largest where z (x - 1 - z) + 1 = 0, the curvature in log z being 2 z^2 - (x - 1) z = z^2 + 1 there."""
    x = np.array([1.5, 0.0, -3.0, 4.0, 30.0, -30.0, 1e4, -1e4])
    m = x - 1
    root = np.hypot(m, 2)
    z = np.where(m > 0, (m + root) / 2, 2 / (root - m))  # of two equal forms the one that doesn't cancel
    found = toy(x).laplace
    assert bool(found.converged.all())
    density = -z - (x - z) ** 2 / 2 - math.log(2 * math.pi) / 2 + np.log(z)
    # minimize leaves at most 1e-10 + 8 eps |log density| nats to gain: that far the mode can be off, with a factor 2
    gain = 1e-10 + 8 * 2.3e-16 * np.abs(density)
    error = np.abs(found.loc[:, 0].numpy() - np.log(z))
    assert np.all(error <= 2 * np.sqrt(2 * gain / (z**2 + 1)))
    np.testing.assert_allclose(found.log_density, density, rtol=1e-13, atol=1e-10)
    # the precision moves by at most four times its own size for each unit in log z
    np.testing.assert_allclose(found.precision[:, 0, 0], z**2 + 1, rtol=1e-3)
    np.testing.assert_allclose(found.scale[:, 0], (z**2 + 1) ** -0.5, rtol=1e-3)


def test_the_mode_of_two_sites() -> None:
    target = Target(two_sites, (DATA,))
    found = target.laplace
    assert bool(found.converged.all())
    rng = np.random.default_rng(3)
    for b in range(2):

        def density(u: np.ndarray, b: int = b) -> np.ndarray:  # SciPy's densities, Jacobians added by hand
            rate, size = np.exp(u[..., :3]), np.exp(u[..., 3:])
            each = scipy.stats.gamma.logpdf(rate, 2.0, scale=1 / 3.0) + scipy.stats.norm.logpdf(u[..., 3:], 0.3, 0.8)
            likelihood = scipy.stats.norm.logpdf(DATA[b].numpy(), rate * size, 0.5)
            return (each + likelihood + u[..., :3]).sum(-1)

        mode = found.loc[b].numpy()
        assert float(found.log_density[b]) == pytest.approx(float(density(mode)), abs=1e-10)
        d = 1e-3 * rng.standard_normal((50, 6))
        quadratic = -0.5 * np.einsum("ni,ij,nj->n", d, found.precision[b].numpy(), d)
        # symmetric differences: the third order drops out, the fourth is about (3e-3)^4 times a curvature of 100
        np.testing.assert_allclose((density(mode + d) + density(mode - d)) / 2 - density(mode), quadratic, atol=1e-8)
        assert np.abs(density(mode + d) - density(mode - d)).max() < 4e-6  # 2 * 2e-3 * sqrt(2 * 1e-10 nats * 600)


def test_the_width_counts_what_a_change_point_meets() -> None:
    def change(y: Tensor) -> None:
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0).expand([2]).to_event(1))
        k = pyro.sample("k", dist.Categorical(torch.ones(5)))
        early = torch.arange(7) <= k.unsqueeze(-1)
        pyro.sample("y", dist.Poisson(torch.where(early, rate[0], rate[1])).to_event(1), obs=y)

    assert Target.of(change, (torch.ones(7),)).width == 5 * 7


@pytest.mark.parametrize(("num", "is_of_matrices"), [(9, True), (2, False)])
def test_matrices_are_told_from_rows(num: int, is_of_matrices: bool) -> None:
    """A Gaussian process at `num` points, beside a plate of 20 rows."""

    def model(x: Tensor, y: Tensor) -> None:
        length = pyro.sample("length", dist.LogNormal(0.0, 1.0))
        pyro.sample("level", dist.Normal(length, 1.0).expand([20]).to_event(1), obs=torch.zeros(20))
        covariance = (-((x[:, None] - x) ** 2) / length**2).exp() + torch.eye(len(x))
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), covariance), obs=y)

    target = Target.of(model, (torch.linspace(0.0, 1.0, num), torch.zeros(num)))
    assert target.width == max(num**2, 20)
    assert target.largest.is_matrix == is_of_matrices


@pytest.mark.parametrize("make", [lambda y: torch.tensor(y), lambda y: np.array(y, np.float32)])
def test_data_in_single_precision_are_what_they_hold_on_every_side(make: Callable[..., object]) -> None:
    """log p(x) and the log joint in closed form at 0.1 as a float32 has it: 3e-7 nats from that at 0.1."""

    def model(y: Tensor) -> None:
        m = pyro.sample("m", dist.Normal(0.0, 3.0))
        pyro.sample("y", dist.Normal(m, 0.37).expand([4]).to_event(1), obs=y)

    given = [0.1, 0.7, 1.3, -0.4]
    target = Target.of(model, (make(given),))
    held = np.asarray(given, np.float32).astype(np.float64)
    marginal = scipy.stats.multivariate_normal(np.zeros(4), 0.37**2 * np.eye(4) + 9.0)
    found = quadrature_truth(target).log_evidence[0]
    assert found == pytest.approx(marginal.logpdf(held), abs=1e-12)
    assert abs(found - marginal.logpdf(given)) > 1e-7
    log_joint = target.log_joint({"m": torch.full((1, 1), 0.3, dtype=torch.float64)}).item()
    expected = scipy.stats.norm.logpdf(0.3, 0, 3) + scipy.stats.norm.logpdf(held, 0.3, 0.37).sum()
    assert log_joint == pytest.approx(expected, abs=1e-12)
