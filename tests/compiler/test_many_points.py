"""Machine code for a function at many points, held to torch one point at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_vi.compiler import toolchain
from ppl_vi.compiler.many_points import NUM_CHECKED, WORTH_NUMBERS, AtPoints, WeightedSum, pays
from ppl_vi.numerics.vmapping import vmap_or_loop
from ppl_vi.target import evaluation
from ppl_vi.target.isolation import isolated
from ppl_vi.target.target import Target

pytestmark = pytest.mark.filterwarnings("ignore:Found vars in model but not guide")
WIDE = WORTH_NUMBERS  # a temporary so wide that machine code pays for 64 points
COUNTS = torch.tensor([4.0, 5, 3, 6, 1, 0, 1, 2])


def changing(counts: Tensor) -> None:
    """Two rates, and a change between them at a time that is summed out."""
    early, late = pyro.sample("early", dist.Gamma(2.0, 1.0)), pyro.sample("late", dist.Gamma(2.0, 1.0))
    when = pyro.sample("when", dist.Categorical(torch.ones(len(counts) - 1)))
    rate = torch.where(torch.arange(len(counts)) <= when.unsqueeze(-1), early, late)
    pyro.sample("counts", dist.Poisson(rate).to_event(1), obs=counts)


def mixed(x: Tensor) -> None:
    """Two means, a weight, a plate of labels that are summed out."""
    weight = pyro.sample("weight", dist.Beta(2.0, 3.0))
    mean = pyro.sample("mean", dist.Normal(torch.tensor([-1.0, 1.0]), 2.0).to_event(1))
    with pyro.plate("data", len(x)):
        label = pyro.sample("label", dist.Bernoulli(weight))
        pyro.sample("x", dist.Normal(torch.where(label == 1, mean[0], mean[1]), 0.8), obs=x)


def correlated(x: Tensor) -> None:
    """A correlation and two scales."""
    factor = pyro.sample("factor", dist.LKJCholesky(2, 1.5))
    scale = pyro.sample("scale", dist.LogNormal(torch.zeros(2), 0.5).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), scale_tril=scale[:, None] * factor), obs=x)


MODELS: dict[str, tuple[Callable[..., None], Tensor]] = {
    "changing": (changing, COUNTS),
    "mixed": (mixed, COUNTS - 2.5),
    "correlated": (correlated, COUNTS.reshape(4, 2) / 3),
}


@pytest.mark.parametrize("name", list(MODELS))
def test_the_log_joint_by_machine_code_is_the_models(name: str) -> None:
    model, data = MODELS[name]
    target = Target.of(model, (data,))
    num = WORTH_NUMBERS // target.width  # so many that machine code is made
    generator = torch.Generator().manual_seed(1)
    u = target.laplace.loc[:1] + torch.randn((num, target.dim), generator=generator, dtype=torch.float64)
    latents = {name: value[None] for name, value in target.constrain(u)[0].items()}
    got = evaluation.log_joint(target, latents)
    assert made(evaluation.evaluator(target))
    some = {name: value[:, -500:] for name, value in latents.items()}
    torch.testing.assert_close(got[:, -500:], target.log_joint(some), rtol=1e-12, atol=1e-12)


def test_each_problem_has_its_own_data() -> None:
    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Exponential(1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    target = Target(model, (torch.tensor([1.5, -3.0, 0.2]),))
    z = torch.rand((2, WORTH_NUMBERS // 40), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    index = torch.tensor([2, 0])
    got = evaluation.log_joint(target, {"z": z}, index)
    assert made(evaluation.evaluator(target))
    want = torch.distributions.Normal(z, 1.0).log_prob(target.args[0][index][:, None]) - z
    torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-13)


def test_outside_a_support_the_formula_goes_on_as_the_models() -> None:
    points = torch.tensor([-2.0, 0.0, 1.0, torch.inf, -torch.inf, torch.nan], dtype=torch.float64).repeat(20)[:, None]

    def of_one(point: Tensor) -> Tensor:
        return dist.Gamma(2.0, torch.tensor(1.0, dtype=point.dtype), validate_args=False).log_prob(point[0])

    many = AtPoints(of_one, WIDE, 10_000)
    (got,) = many((points[None],))
    assert made(many)
    want = torch.stack([of_one(point) for point in points])
    torch.testing.assert_close(got[0], want, equal_nan=True, rtol=1e-13, atol=1e-13)


def made(many: AtPoints) -> bool:
    """Whether machine code was made and is used."""
    assert len(many.kernels) == 1
    return many.kernels[0] is not None


def at(function: Callable[[Tensor], Tensor]) -> AtPoints:
    """The function at 64 points, where it has been asked for its values and right ones have come."""
    points = torch.rand((NUM_CHECKED, 3), dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    many = AtPoints(function, WIDE, 10_000, vectorise=vmap_or_loop)
    (got,) = many((points[None],))
    torch.testing.assert_close(got[0], torch.stack([function(point) for point in points]))
    return many


def test_what_can_not_be_had_runs_by_torchs_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not made(at(lambda p: p.sum() if p[0] > 0.5 else p.prod()))  # decides by a value
    assert not made(at(lambda p: torch.linalg.eigvalsh(torch.diag(p)).sum()))  # no translation
    assert made(at(lambda p: p.sum()))
    monkeypatch.setattr(toolchain, "COMPILERS", ())
    monkeypatch.delenv("CXX", raising=False)
    assert not made(at(lambda p: p.sum()))  # no compiler


def test_machine_code_that_disagrees_with_the_function_is_not_used() -> None:
    calls = []

    def fickle(point: Tensor) -> Tensor:
        calls.append(None)
        return point.sum() + (1e-8 if len(calls) > 1 else 0.0)

    many = AtPoints(fickle, WIDE, 10_000)
    many((torch.rand((1, NUM_CHECKED, 3), dtype=torch.float64),))
    assert not made(many)
    assert len(calls) > 1


def test_few_points_do_not_pay() -> None:
    assert not pays(NUM_CHECKED - 1, WORTH_NUMBERS)
    assert pays(NUM_CHECKED, WORTH_NUMBERS)
    assert not pays(1000, 1)


def test_a_graph_makes_tensors_in_the_dtype_of_the_gate() -> None:
    """A function may make tensors of the default dtype, which its graph then does each time it runs."""
    points, weight = torch.tensor([[0.3, -1.2], [0.7, 2.0]], dtype=torch.float64), torch.tensor([1.5, -0.5]).double()
    x, gate = torch.tensor([2.0, 3.0], dtype=torch.float64), partial(isolated, torch.float64)

    def function(x: torch.Tensor, point: torch.Tensor) -> torch.Tensor:
        return (torch.eye(2) @ x) @ (torch.full((2,), 2.0) * point)

    (values,) = AtPoints(partial(function, x), 4, 2, gate=gate, sizes=(2,))((points[None],))
    assert torch.equal(values, 2 * (points @ x)[None])
    gradient, total = WeightedSum(function, 4, 2, gate)(x, (points,), weight)
    torch.testing.assert_close(gradient, 2 * weight @ points, rtol=1e-15, atol=0)
    torch.testing.assert_close(total, 2 * weight @ points @ x, rtol=1e-15, atol=0)
