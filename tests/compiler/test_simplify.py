"""Tidying a traced graph changes what it costs and not what it computes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from ppl_vi.compiler.eager import eager
from ppl_vi.compiler.simplify import simplify
from ppl_vi.compiler.trace import trace


def two_of(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two tensors of standard normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn((2, *shape), generator=generator, dtype=torch.float64)
    return x, y


def wasteful(x: Tensor, y: Tensor) -> Tensor:
    """Takes the same sine twice, adds 0, multiplies by 1, looks at what it drops."""
    _ = x.exp().sum()
    one = torch.sin(x + 0.0) * torch.tensor(1, dtype=x.dtype)
    return (one.reshape(x.shape) ** 1.0) * y + torch.sin(x) / 1


def writes(x: Tensor, y: Tensor) -> Tensor:
    """Writes into a fresh tensor."""
    out = torch.zeros_like(x)
    out.add_(x).mul_(y)
    return out + wasteful(x, y)


@pytest.mark.parametrize("function", [wasteful, writes])
def test_fewer_operations_give_the_same_numbers(function: object) -> None:
    given = two_of(5)

    def gradient(x: Tensor, y: Tensor) -> Tensor:
        return vmap(grad(lambda a, b: function(a, b).sum()))(x[:, None], y[:, None])  # type: ignore[operator]

    traced = trace(gradient, given)
    before = len(traced.graph.nodes)
    tidied = simplify(traced, given)
    assert len(tidied.graph.nodes) < 0.8 * before
    other = two_of(5, seed=1)
    assert torch.equal(tidied(*other), gradient(*other))


@pytest.mark.parametrize("shape", [(1,), (3, 1), (3, 4)])
def test_what_changes_a_shape_or_a_dtype_stays(shape: tuple[int, ...]) -> None:
    def function(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x + torch.zeros(3, 4), (y * 1).to(torch.float64) * torch.ones(1, dtype=torch.float64)

    x, y = two_of(*shape)
    given = x, y.float()
    tidied = simplify(trace(function, given), given)
    for found, expected in zip(tidied(*given), function(*given), strict=True):
        assert torch.equal(found, expected)
        assert found.dtype == expected.dtype


def constants(x: Tensor, y: Tensor) -> Tensor:
    """Signs, means and numbers that a gradient meets before it meets a variable."""
    scale = torch.ones_like(x) * 3.0
    return (-(x - y).square() / (2 * scale**2) - scale.log() + 0.25 / y).mean() * -2.0


def of_one_number(x: Tensor, y: Tensor) -> Tensor:
    """Linear algebra in one dimension."""
    matrix = (y.square() + 1).tril()
    solved = torch.linalg.solve_triangular(matrix, x, upper=False)
    return (solved @ (matrix - 0.5)).squeeze(-1).sum(-1) + matrix.diagonal(0, -2, -1).log().sum()


@pytest.mark.parametrize(
    ("function", "shape", "share"), [(constants, (7, 3), 0.6), (of_one_number, (7, 1, 1), 0.9)], ids=["sums", "1x1"]
)
def test_what_is_known_is_not_computed(function: object, shape: tuple[int, ...], share: float) -> None:
    def gradient(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return vmap(grad(lambda a, b: function(a, b).sum(), argnums=(0, 1)))(x, y)  # type: ignore[operator]

    given = two_of(*shape)
    traced = trace(gradient, given)
    before = len(traced.graph.nodes)
    tidied = simplify(traced, given)
    assert len(tidied.graph.nodes) < share * before
    assert not any("triangular" in str(node.target) or "tril" in str(node.target) for node in tidied.graph.nodes)
    other = two_of(*shape, seed=1)
    for module in (tidied, eager(tidied)):
        for found, expected in zip(module(*other), gradient(*other), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-14)  # to rounding


def test_a_larger_triangle_and_one_off_the_diagonal_stay() -> None:
    def function(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        solved = torch.linalg.solve_triangular(x.tril(), y, upper=False)
        return solved, x[:1, :1].tril(-1) + x[:1, :1].triu(1)

    x, y = two_of(3, 3)
    given = x, y[:, :2].clone()
    tidied = simplify(trace(function, given), given)
    for found, expected in zip(tidied(*given), function(*given), strict=True):
        assert torch.equal(found, expected)
    assert torch.equal(tidied(*given)[1], torch.zeros(1, 1, dtype=torch.float64))


def test_an_exponential_that_is_factor_and_divisor_cancels() -> None:
    """As in the derivative of a Poisson's density: also where the exponential is lost, the other part is left."""

    def density(eta: Tensor, y: Tensor) -> Tensor:
        rate = eta.exp().mT
        return (torch.xlogy(y.mT, rate) - rate).sum()

    def gradient(eta: Tensor, y: Tensor) -> Tensor:
        return grad(density)(eta, y)

    given = two_of(3, 4)
    tidied = simplify(trace(gradient, given), given)
    assert not any("div" in str(node.target) for node in tidied.graph.nodes)
    eta, y = two_of(3, 4, seed=1)
    torch.testing.assert_close(tidied(eta, y), y - eta.exp())
    torch.testing.assert_close(tidied(eta - 800, y), y)  # y / exp(-800), times exp(-800), would be nan


def test_labels_by_logits_take_one_exponential() -> None:
    def density(logits: Tensor, label: Tensor) -> Tensor:
        return torch.distributions.Bernoulli(logits=logits, validate_args=False).log_prob(label).sum()

    def both(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        return vmap(density)(logits, label), vmap(grad(density))(logits, label)

    logits = torch.tensor([[0.3, -2.0], [40.0, -50.0], [800.0, -800.0]], dtype=torch.float64)
    label = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    tidied = simplify(trace(both, (logits, label)), (logits, label))
    assert sum("exp." in str(node.target) for node in tidied.graph.nodes) == 1
    value, slope = tidied(logits, label)
    signed = torch.where(label > 0, logits, -logits)
    torch.testing.assert_close(value, torch.nn.functional.logsigmoid(signed).sum(1), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(slope, label - torch.sigmoid(logits), rtol=1e-13, atol=1e-14)
