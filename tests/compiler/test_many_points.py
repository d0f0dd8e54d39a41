"""Machine code for a function at many points, held to torch one point at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_vi.compiler import many_points, toolchain
from ppl_vi.compiler.many_points import (
    MIN_CALL_NUMBERS,
    MIN_KERNEL_POINTS,
    NUM_CHECKED,
    AtPoints,
    WeightedSum,
    agree,
    chunks,
    pays,
)
from ppl_vi.numerics.vmapping import vmap_or_loop
from ppl_vi.target import evaluation
from ppl_vi.target.isolation import isolated
from ppl_vi.target.target import Target

pytestmark = pytest.mark.filterwarnings("ignore:Found vars in model but not guide")
WIDE = MIN_CALL_NUMBERS  # a temporary so wide that machine code pays for 64 points
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
    num = MIN_CALL_NUMBERS // target.width  # so many that machine code is made
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
    z = torch.rand((2, MIN_CALL_NUMBERS // 40), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
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
    assert many.is_tried
    return many.kernel is not None


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
    assert not pays(MIN_KERNEL_POINTS - 1, MIN_CALL_NUMBERS)
    assert pays(NUM_CHECKED, MIN_CALL_NUMBERS)
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


# ---- functions of several tensors, at points of several problems

REAL = torch.float64


def draw(*shape: int, seed: int = 4) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=REAL)


def of_two(matrix: Tensor, scale: Tensor, shift: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    """Of two tensors of a point and two of a problem, a vector and a number."""
    return (matrix @ row) * scale.exp() + shift, (matrix * row).square().sum().log() - scale


def of_two_at(num_problems: int, num_points: int) -> tuple[list[Tensor], list[Tensor]]:
    points = [draw(num_problems, num_points, 2, 3), draw(num_problems, num_points, seed=5)]
    return points, [draw(num_problems, seed=6), draw(num_problems, 3, seed=7)]


def one_by_one(points: list[Tensor], data: list[Tensor]) -> list[Tensor]:
    """`of_two` at one point of one problem after another."""
    num_problems, num_points = points[0].shape[:2]
    values = [
        of_two(*(part[b, s] for part in points), *(part[b] for part in data))
        for b in range(num_problems)
        for s in range(num_points)
    ]
    return [torch.stack(parts).unflatten(0, (num_problems, num_points)) for parts in zip(*values, strict=True)]


def check(found: tuple[Tensor, ...], expected: list[Tensor]) -> None:
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("width", [1, WIDE], ids=["operations", "machine code"])
@pytest.mark.parametrize(("num_problems", "num_points"), [(1, NUM_CHECKED), (3, NUM_CHECKED + 13)])
def test_points_have_several_tensors_and_problems_several_data(width: int, num_problems: int, num_points: int) -> None:
    points, data = of_two_at(num_problems, num_points)
    many = AtPoints(of_two, width, 20)
    check(many(points, data), one_by_one(points, data))
    assert (many.kernel is not None) == (width == WIDE)


@pytest.mark.parametrize("chunk_size", [1, 5, 7, 14, 15, 1000])
def test_chunks_of_points_and_of_problems_do_not_matter(chunk_size: int) -> None:
    seen = []

    def counted(*given: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(None)
        return of_two(*given)

    points, data = of_two_at(5, 7)
    check(AtPoints(counted, 1, chunk_size)(points, data), one_by_one(points, data))
    num_calls = {1: 5 * 7, 5: 5 * 2, 7: 5, 14: 3, 15: 3, 1000: 1}  # chunks of problems times chunks of points
    assert len(seen) == num_calls[chunk_size]


def test_a_kernel_serves_other_points_and_data() -> None:
    many = AtPoints(of_two, WIDE, 1000)
    for num_problems, num_points in ((2, NUM_CHECKED), (1, 200), (4, NUM_CHECKED + 1)):
        points, data = of_two_at(num_problems, num_points)
        check(many(points, data), one_by_one(points, data))
    assert made(many)
    points, data = of_two_at(300, MIN_KERNEL_POINTS - 1)  # fewer points than a kernel is checked at
    check(many(points, data), one_by_one(points, data))


def test_without_compiling_no_machine_code_is_made() -> None:
    points, data = of_two_at(1, NUM_CHECKED)
    many = AtPoints(of_two, WIDE, 1000, compiles=False)
    check(many(points, data), one_by_one(points, data))
    assert not many.is_tried


@pytest.mark.parametrize("num_points", [1, 3, 4, 5, 8, 9, 21])
def test_one_graph_of_each_size_serves_all_calls(num_points: int) -> None:
    runs = []

    def counted(*given: Tensor) -> tuple[Tensor, Tensor]:
        runs.append(None)
        return of_two(*given)

    many = AtPoints(counted, 1, 1000, sizes=(4, 8))
    for num in (num_points, num_points, 2):
        points, data = of_two_at(1, num)
        check(many(points, [part + num for part in data]), one_by_one(points, [part + num for part in data]))
    assert len(runs) == (1 if num_points <= 4 else 2)  # it runs while it is traced, and never again
    points, data = of_two_at(2, num_points)  # of several problems there is no graph
    check(many(points, data), one_by_one(points, data))


def test_a_function_that_can_not_be_traced_is_padded_all_the_same() -> None:
    def deciding(point: Tensor) -> Tensor:
        return point.sum() if point[0] > 0 else point.prod()

    many = AtPoints(deciding, 1, 1000, vectorise=vmap_or_loop, sizes=(4,))
    points = draw(11, 3)
    (got,) = many((points[None],))
    torch.testing.assert_close(got[0], torch.stack([deciding(point) for point in points]), rtol=0, atol=0)


def test_no_points_are_refused() -> None:
    for shape in ((1, 0, 3), (0, 5, 3)):
        with pytest.raises(ValueError, match=r"expected at least one point, got \d points of \d problems"):
            AtPoints(lambda point: point.sum(), 1, 10)((torch.zeros(shape),))


@pytest.mark.parametrize("num_points", [6, NUM_CHECKED], ids=["operations", "machine code"])
@pytest.mark.parametrize("sizes", [(), (8,)])
def test_the_function_runs_only_inside_the_gate(num_points: int, sizes: tuple[int, ...]) -> None:
    is_open = [False]

    @contextmanager
    def gate() -> Iterator[None]:
        is_open[0] = True
        yield
        is_open[0] = False

    def guarded(*given: Tensor) -> tuple[Tensor, Tensor]:
        assert is_open[0]
        return of_two(*given)

    points, data = of_two_at(1, num_points)
    many = AtPoints(guarded, WIDE, 20, gate=gate, sizes=sizes)
    check(many(points, data), one_by_one(points, data))
    assert (many.kernel is not None) == (num_points == NUM_CHECKED)


# ---- weighted sums


def energy(x: Tensor, matrix: Tensor, scale: Tensor, row: Tensor) -> Tensor:
    return (matrix @ (x * row)).cosh().log().sum() * (1 + scale.square()) + x.square().sum() / 2


def gradient_and_sum(x: Tensor, points: list[Tensor], weight: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    """By autograd through a loop over the points."""
    at = x.clone().requires_grad_()
    values = [energy(at, *(part[i] for part in points), row) for i in range(len(weight))]
    total = sum(w * value for w, value in zip(weight, values, strict=True))
    assert isinstance(total, Tensor)
    (gradient,) = torch.autograd.grad(total, at)
    return gradient, total.detach()


@pytest.mark.parametrize("compiles", [False, True], ids=["operations", "machine code"])
@pytest.mark.parametrize(("num_points", "chunk_size"), [(96, 1000), (96, 20), (75, 20)])
def test_a_weighted_sum_and_its_gradient_are_a_loops(compiles: bool, num_points: int, chunk_size: int) -> None:
    points = [draw(num_points, 2, 3), draw(num_points, seed=5)]
    weight, x, row = draw(num_points, seed=6), draw(3, seed=7), draw(3, seed=8)
    found = WeightedSum(energy, 6, chunk_size)
    if compiles:
        found.compile(x, points, weight, (row,))
    assert (found.kernel is not None) == compiles
    for shift in (0.0, 0.7):  # the function is traced at the first, and serves the second
        got, want = (how(x + shift, points, weight, data) for how, data in (
            (found, (row - shift,)), (gradient_and_sum, row - shift)))  # type: ignore[operator]  # fmt: skip
        for part, truth in zip(got, want, strict=True):
            torch.testing.assert_close(part, truth, rtol=1e-12, atol=1e-12)


def test_a_large_sum_is_added_up_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    points, weight, x, row = [draw(100, 2, 3), draw(100, seed=5)], draw(100, seed=6), draw(3, seed=7), draw(3, seed=8)
    found = WeightedSum(energy, 6, 1000)
    found.compile(x, points, weight, (row,))
    monkeypatch.setattr(many_points, "MAX_GRADIENT_NUMBERS", 3 * 30)
    for part, truth in zip(found(x, points, weight, (row,)), gradient_and_sum(x, points, weight, row), strict=True):
        torch.testing.assert_close(part, truth, rtol=1e-12, atol=1e-12)


def test_a_sum_without_machine_code_runs_by_operations() -> None:
    points, weight, x = [draw(NUM_CHECKED, 2)], draw(NUM_CHECKED, seed=6), draw(2, seed=7)

    def untranslated(x: Tensor, point: Tensor) -> Tensor:
        return torch.linalg.eigvalsh(torch.diag(x + point)).square().sum()

    found = WeightedSum(untranslated, 4, 1000)
    found.compile(x, points, weight)
    assert found.kernel is None
    gradient, total = found(x, points, weight)  # the eigenvalues of a diagonal matrix are its entries
    torch.testing.assert_close(gradient, (weight[:, None] * 2 * (x + points[0])).sum(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(total, (weight[:, None] * (x + points[0]).square()).sum(), rtol=1e-12, atol=1e-12)


def test_a_sum_whose_machine_code_differs_runs_by_operations() -> None:
    calls = []

    def fickle(x: Tensor, point: Tensor) -> Tensor:
        calls.append(None)
        return (x * point).sum() * (1.0 if len(calls) == 1 else 1 + 1e-7)

    points, weight, x = [draw(NUM_CHECKED, 2)], draw(NUM_CHECKED, seed=6), draw(2, seed=7)
    found = WeightedSum(fickle, 2, 1000)
    found.compile(x, points, weight)
    assert len(calls) > 1
    assert found.kernel is None


# ---- small parts


@pytest.mark.parametrize(("num", "size"), [(0, 3), (1, 3), (7, 3), (9, 3), (4, 0), (4, -2)])
def test_chunks_cover_everything_once(num: int, size: int) -> None:
    lengths = [len(range(num)[some]) for some in chunks(num, size)]
    assert [i for some in chunks(num, size) for i in range(num)[some]] == list(range(num))
    assert all(length == max(size, 1) for length in lengths[:-1])


def test_agreement_is_relative_to_a_points_largest_number() -> None:
    want = torch.tensor([[1e6, 1.0], [0.0, torch.nan], [torch.inf, -2.0]], dtype=REAL)
    assert agree([want], [want.clone()])
    assert agree([want + torch.tensor([[0, 5e-5], [5e-11, 0], [0, 2e-10]], dtype=REAL)], [want])
    for place, other in (((0, 1), 1.0 + 2e-4), ((1, 0), 2e-10), ((1, 1), 0.0), ((2, 0), -torch.inf), ((2, 0), 1.0)):
        got = want.clone()
        got[place] = other
        assert not agree([got], [want])
    single = torch.ones(3, 1)
    assert agree([single + 3e-2], [single])  # 1e-10 * (eps of float32 / eps of float64) * 2 = 0.107
    assert not agree([single + 0.2], [single])
