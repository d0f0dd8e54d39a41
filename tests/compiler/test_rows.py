"""Steps by sweeps over rows of data, against torch's own operations on all rows at once."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from ppl_vi.compiler.kernel import KernelSource, kernel_source

pytestmark = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")

Likelihood = Callable[..., Tensor]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def groups(num: int, size: int, seed: int = 1) -> Tensor:
    return torch.randint(0, size, (num,), generator=torch.Generator().manual_seed(seed))


def poisson(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """A regression: `X @ w`, and a constant of the data."""
    eta = x @ w[:5]
    return (y * eta - eta.exp() - torch.lgamma(y + 1)).sum()


def hierarchy(w: Tensor, y: Tensor, group: Tensor) -> Tensor:
    """Effects picked by group, whose gradient is added at places that the data tell."""
    effects = w[1:6] * w[0].exp()
    return -(y - effects[group]).square().sum() / 2


def mixture(w: Tensor, y: Tensor) -> Tensor:
    """A label of each row summed out."""
    logits = torch.log_softmax(w[:3], 0)
    return torch.logsumexp(logits - (y[:, None] - w[3:6]).square() / 2, -1).sum()


def masked(w: Tensor, y: Tensor, seen: Tensor) -> Tensor:
    return torch.where(seen, -(y - w[0]).abs() * w[1].exp(), torch.zeros(())).mean()


def classes(w: Tensor, x: Tensor, label: Tensor) -> Tensor:
    """A logit of each class for each row, of which the data pick one."""
    logits = torch.log_softmax(x[:, :2] @ w.reshape(2, 3), -1)
    return logits.gather(-1, label[:, None]).sum()


def pairs(w: Tensor, x: Tensor, labels: Tensor) -> Tensor:
    """Several picks in one row."""
    logits = torch.log_softmax(x[:, :2] @ w.reshape(2, 3), -1)
    return (logits.gather(-1, labels) * w[:2]).sum()


def odds(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Logarithms as terms of each sign, of which only the sums over rows are needed."""
    e = (x @ w[:5]).exp()
    return (-(y * (1 + e).log() - ((2 + e * e).log() - e)) - (3 + e).log()).sum()


def normalised(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """A softmax over rows: what is done to a row needs the sum over all rows."""
    scores = x @ w[:5]
    return (torch.log_softmax(scores, 0) * y).sum()


def two_plates(w: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return -(y - w[0]).square().sum() - (z - w[1] * w[0]).square().sum() / 2


def data(num: int, dtype: torch.dtype = torch.float64) -> dict[str, tuple[Tensor, ...]]:
    y = random(num, seed=2, dtype=dtype)
    x = random(num, 5, seed=3, dtype=dtype) / 3
    counts = torch.poisson(torch.full((num,), 2.0, dtype=dtype), torch.Generator().manual_seed(4))
    return {
        "poisson": (x, counts),
        "hierarchy": (y, groups(num, 5)),
        "mixture": (y,),
        "masked": (y, y > -0.3),
        "classes": (x, groups(num, 3)),
        "pairs": (x, groups(2 * num, 3).reshape(num, 2)),
        "normalised": (x, counts),
        "odds": (x, counts),
        "two_plates": (y, random(2 * num + 1, seed=5, dtype=dtype)),
    }


LIKELIHOODS: dict[str, Likelihood] = {
    "poisson": poisson, "hierarchy": hierarchy, "mixture": mixture, "masked": masked, "classes": classes,
    "pairs": pairs, "normalised": normalised, "odds": odds, "two_plates": two_plates,
}  # fmt: skip
NUM_DRAWS, SIZE = 3, 6


def one_step(likelihood: Likelihood, held: tuple[Tensor, ...]) -> Callable[..., tuple[Tensor, ...]]:
    """Gradient ascent by the mean over draws near `w`; `held` is data that the function has from elsewhere."""

    def loss(w: Tensor, noise: Tensor, *rows: Tensor) -> Tensor:
        return vmap(lambda e: likelihood(w + 0.1 * e, *rows))(noise).mean()

    def step(rate: Tensor, w: Tensor, *given: Tensor) -> tuple[Tensor, Tensor]:
        *rows, noise = given
        gradient, value = grad_and_value(loss)(w, noise, *(held or rows))
        return w + rate * gradient, value

    return step


def other(part: Tensor, problem: int) -> Tensor:
    """The data of another problem."""
    return (problem + 1) * part if part.is_floating_point() else part.roll(problem, 0)


def both(
    name: str, num: int, lanes: int, batch: int = 1, as_arguments: bool = True, dtype: torch.dtype = torch.float64
) -> tuple[KernelSource, float]:
    """Two steps of a kernel and of torch: the kernel's code, and the largest difference of anything."""
    rows = data(num, dtype)[name]
    step = one_step(LIKELIHOODS[name], () if as_arguments else rows)
    rows = rows if as_arguments else ()
    noise = random(2, batch, lanes, NUM_DRAWS, SIZE, seed=6, dtype=dtype)
    w = random(batch, lanes, SIZE, seed=7, dtype=dtype) / 3
    many = [
        torch.stack([(b + 1) * part if part.is_floating_point() else part.roll(b, 0) for b in range(batch)])
        for part in rows
    ]
    code = kernel_source(
        step, lanes, num_scalars=1, carried=[w[0, 0]], data=[part[0] for part in many], noise=[noise[0, 0, 0]]
    )
    rates = torch.full((1, 2), 0.01, dtype=dtype)
    (got,), (value,) = code.compile()((batch, lanes), scalars=rates, carried=[w], data=many, noise=[noise])
    off = 0.0
    for b in range(batch):
        for r in range(lanes):
            at = w[b, r]
            for t in range(2):
                at, expected = step(rates[0, t], at, *(part[b] for part in many), noise[t, b, r])
                off = max(off, float((value[t, b, r] - expected).abs() / (1 + expected.abs())))
            off = max(off, float((got[b, r] - at).abs().max() / (1 + at.abs().max())))
    return code, off


@pytest.mark.parametrize("name", list(LIKELIHOODS))
@pytest.mark.parametrize(("num", "lanes"), [(64, 1), (97, 3), (200, 11)])
def test_sweeps_give_what_torch_does(name: str, num: int, lanes: int) -> None:
    """Rows that fill whole vectors and rows that do not, lanes likewise."""
    code, off = both(name, num, lanes)
    assert code.rows.lengths == ([2 * num + 1, num] if name == "two_plates" else [num])
    assert off < 1e-12


def summed_logarithms(rows: Tensor, dtype: torch.dtype) -> tuple[KernelSource, Tensor]:
    """A kernel of the sum of log(w row) - w over rows, and what it gives at w = 1."""
    rows = rows.to(dtype)
    code = kernel_source(
        lambda rate, w, x: (w, ((x * w).log() - w).sum()), 1, num_scalars=1, carried=[rows.new_ones(())], data=[rows]
    )
    scalars, one = torch.zeros((1, 1), dtype=dtype), torch.ones((1, 1), dtype=dtype)
    _, (value,) = code.compile()((1, 1), scalars=scalars, carried=[one], data=[rows[None]])
    return code, value[0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_logarithms_of_rows_are_summed_as_that_of_their_product(dtype: torch.dtype) -> None:
    """The product of 3,001 numbers of all sizes is far out of range, and its logarithm is not."""
    size = torch.finfo(dtype).max ** 0.9
    rows = (random(3001, seed=8).double() * torch.log(torch.tensor(size)) / 4).exp().clamp(1 / size, size)
    code, got = summed_logarithms(rows, dtype)
    assert "_exponents[0]" in code.code
    exact = float((rows.to(dtype).double().log() - 1).sum())
    assert float(got) == pytest.approx(exact, rel=20 * torch.finfo(dtype).eps, abs=3001 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("last", [0.0, -1.0, float("inf"), float("nan"), 1e-310])
def test_logarithms_of_numbers_out_of_range(last: float) -> None:
    rows = torch.cat([torch.linspace(0.5, 2.0, 130, dtype=torch.float64), torch.tensor([last], dtype=torch.float64)])
    _, got = summed_logarithms(rows, torch.float64)
    torch.testing.assert_close(got, (rows.log() - 1).sum(), rtol=1e-13, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("name", ["poisson", "hierarchy", "masked"])
def test_data_that_the_step_holds_are_swept_too(name: str) -> None:
    code, off = both(name, 130, 2, as_arguments=False)
    assert code.rows.lengths == [130]
    assert off < 1e-12


@pytest.mark.parametrize("name", ["poisson", "hierarchy", "mixture"])
def test_each_problem_has_its_own_rows(name: str) -> None:
    code, off = both(name, 100, 4, batch=3)
    assert code.rows.lengths == [100]
    assert off < 1e-11


def test_in_single_precision() -> None:
    code, off = both("poisson", 300, 5, dtype=torch.float32)
    assert code.rows.lengths == [300]
    assert off < 1e-5


def test_the_code_does_not_depend_on_the_number_of_rows() -> None:
    assert both("poisson", 97, 3)[0].code == both("poisson", 250, 3)[0].code


UNSUITED: dict[str, Likelihood] = {
    "a walk from row to row": lambda w, y: -(y - w[0] * torch.cumsum(y * w[1], 0)).square().sum(),
    "a covariance of all pairs of rows": lambda w, y: -(y @ torch.exp(-(y[:, None] - y).square() * w[0].exp()) @ y),
    "neighbours": lambda w, y: -(y[1:] - w[0] * y[:-1]).square().sum(),
    "part of the rows": lambda w, y: -(y[:70] - w[0]).square().sum(),
}


@pytest.mark.parametrize("name", list(UNSUITED))
def test_what_mixes_rows_is_not_swept_and_still_right(name: str) -> None:
    y = random(80, seed=2)
    step = one_step(UNSUITED[name], ())
    w, noise = random(1, 2, SIZE, seed=7) / 3, random(1, 1, 2, NUM_DRAWS, SIZE, seed=6)
    code = kernel_source(step, 2, num_scalars=1, carried=[w[0, 0]], data=[y], noise=[noise[0, 0, 0]])
    rate = torch.full((1, 1), 0.01, dtype=torch.float64)
    (got,), _ = code.compile()((1, 2), scalars=rate, carried=[w], data=[y[None]], noise=[noise])
    for r in range(2):
        torch.testing.assert_close(got[0, r], step(rate[0, 0], w[0, r], y, noise[0, 0, r])[0], rtol=1e-10, atol=1e-10)


def test_places_in_values_of_two_sizes_are_not_swept_and_still_right() -> None:
    y, index = random(80, seed=2), groups(80, 3)
    step = one_step(lambda w, y: -(y - w[:3][index] - 2 * w[:5][index]).square().sum(), ())
    w, noise = random(1, 2, SIZE, seed=7) / 3, random(1, 1, 2, NUM_DRAWS, SIZE, seed=6)
    code = kernel_source(step, 2, num_scalars=1, carried=[w[0, 0]], data=[y], noise=[noise[0, 0, 0]])
    assert code.rows.axes == ()
    rate = torch.full((1, 1), 0.01, dtype=torch.float64)
    (got,), _ = code.compile()((1, 2), scalars=rate, carried=[w], data=[y[None]], noise=[noise])
    for r in range(2):
        torch.testing.assert_close(got[0, r], step(rate[0, 0], w[0, r], y, noise[0, 0, r])[0], rtol=1e-10, atol=1e-10)


def test_a_parameter_of_each_row_is_not_swept_and_still_right() -> None:
    y = random(70, seed=2)

    def step(w: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        gradient, value = grad_and_value(lambda w: -(rows - w).square().sum())(w)
        return w + 0.1 * gradient, value

    w = random(1, 3, 70, seed=7)
    code = kernel_source(step, 3, carried=[w[0, 0]], data=[y])
    (got,), _ = code.compile()((1, 3), carried=[w], data=[y[None]])
    torch.testing.assert_close(got, w + 0.2 * (y - w), rtol=1e-12, atol=1e-12)


def picked(index: Tensor) -> Tensor:
    """What a step gives that picks one of five numbers for each row, and adds them up."""
    code = kernel_source(
        lambda w, i: (w[i].sum(),), 1, fixed=[torch.zeros(5, dtype=torch.float64)], data=[groups(70, 5)]
    )
    assert code.rows.lengths == [70]
    _, (total,) = code.compile()((1, 1), fixed=[torch.arange(5.0, dtype=torch.float64)[None, None]], data=[index[None]])
    return total[0, 0, 0]


def test_an_index_may_count_from_the_end_and_is_checked() -> None:
    """Machine code would read whatever lies there."""
    index = groups(70, 5, seed=2)
    assert picked(index) == picked(index - 5) == index.sum()
    with pytest.raises(ValueError, match=r"an index of the data is out of range for 5 elements: 0 to 5"):
        picked(index.clamp(max=3) + (torch.arange(70) == 69) * (5 - index.clamp(max=3)))


def test_what_depends_on_data_and_constants_alone_is_computed_once() -> None:
    """1 - y of a Bernoulli's density comes from a constant and the data, by an operation that writes in place."""

    def step(w: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        eta = x @ w
        loss = torch.nn.functional.binary_cross_entropy_with_logits(eta, y, reduction="none").sum()
        return w - 0.01 * x.mT @ (torch.sigmoid(eta) - y), loss

    x, y = random(150, 4, seed=3), (random(150, seed=2) > 0).double()
    w = random(1, 2, 4, seed=7)
    code = kernel_source(step, 2, carried=[w[0, 0]], data=[x, y])
    assert code.rows.lengths == [150]
    (got,), (value,) = code.compile()((1, 2), carried=[w], data=[x[None], y[None]])
    for r in range(2):
        expected, loss = step(w[0, r], x, y)
        torch.testing.assert_close(got[0, r], expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(value[0, 0, r], loss, rtol=1e-12, atol=1e-12)


def test_rows_are_prepared_once_while_the_data_that_they_come_from_stay_the_same():
    """A second tensor of data, which changes from call to call, is read but prepares no row."""

    def step(u: Tensor, factor: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return ((factor @ u).sum() - (y.exp() * u[0]).sum(),)

    y, u = random(200, seed=3), random(1, 8, 2, seed=4)
    kernel = kernel_source(step, 8, fixed=[u[0, 0]], data=[random(2, 2), y]).compile()
    prepared = []
    for seed in (5, 6):
        factor = random(2, 2, seed=seed)
        _, (found,) = kernel((1, 8), fixed=[u], data=[factor[None], y[None]])
        expected = torch.stack([step(point, factor, y)[0] for point in u[0]])
        torch.testing.assert_close(found[0, 0], expected, rtol=1e-12, atol=1e-12)
        prepared.append(kernel.source.prepared._last)
    assert prepared[0] is prepared[1] is not None
    other = y + 1
    _, (found,) = kernel((1, 8), fixed=[u], data=[factor[None], other[None]])
    expected = torch.stack([step(point, factor, other)[0] for point in u[0]])
    torch.testing.assert_close(found[0, 0], expected, rtol=1e-12, atol=1e-12)
