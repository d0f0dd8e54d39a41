"""What is written down is what torch's own `make_fx` writes down, and computes what the function computes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_vi.compiler.trace import is_in_place, trace
from ppl_vi.numerics.vmapping import decides_by_value

HELD = nn.Parameter(torch.tensor([0.3, -1.2, 0.7], dtype=torch.float64))
OUTSIDE = torch.tensor(-0.4)


def arithmetic(x: Tensor, y: Tensor) -> Tensor:
    """Constants made on the way, a tensor from outside, an operation of several values."""
    low, high = (x * HELD).split([1, 2])
    return torch.cat([high, low]) * torch.tensor(2.5, dtype=x.dtype) + torch.linspace(0, 1, 3) * y.sin()


def in_place(x: Tensor, y: Tensor) -> Tensor:
    """Writes through a view."""
    out = torch.zeros_like(x).repeat(2, 1)
    out[0].add_(x)
    return out.mul_(y).sum(0)


def of_matrices(x: Tensor, y: Tensor) -> Tensor:
    """What is made of other operations, and checks itself."""
    matrix = torch.outer(x, x) + torch.eye(3, dtype=x.dtype) * (1 + y.square())
    return torch.linalg.cholesky(matrix) @ torch.softmax(y, 0)


def numbers(x: Tensor, y: Tensor) -> Tensor:
    """Asks constants for their numbers."""
    return x * (torch.tensor(3.0) + 1).item() + y * OUTSIDE.item()


def test_a_mask_that_depends_on_no_input_is_known() -> None:
    """As torch's triangular matrices are filled: a write elsewhere in between leaves it known."""

    def triangle(x: Tensor) -> Tensor:
        mask = torch.arange(3) < torch.arange(3).view(-1, 1)
        matrix = x.new_zeros(3, 3)
        matrix[mask] = x
        return matrix.cumsum(0)[..., mask].square()

    def gradient(x: Tensor) -> Tensor:
        return vmap(grad(lambda one: triangle(one).sum()))(x)

    x, other = torch.randn((2, 4, 3), generator=torch.Generator().manual_seed(2)).unbind()
    torch.testing.assert_close(trace(gradient, [x])(other), gradient(other))


FUNCTIONS = [arithmetic, in_place, of_matrices, numbers]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_operations_are_make_fxs(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    def gradient(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return vmap(grad(lambda a, b: function(a, b).square().sum(), argnums=(0, 1)))(x, y)  # type: ignore[return-value]

    generator = torch.Generator().manual_seed(1)
    given, other = torch.randn((2, 2, 4, 3), generator=generator, dtype=torch.float64).unbind()
    for what, inputs in ((gradient, given), (function, given[:, 0])):
        graph, known = trace(what, tuple(inputs)), make_fx(what)(*inputs)
        known.graph.eliminate_dead_code(lambda node: node.is_impure() or is_in_place(node))
        nodes, expected = ([n for n in g.graph.nodes if n.op != "get_attr"] for g in (graph, known))
        assert [(n.op, n.target) for n in nodes[2:]] == [(n.op, n.target) for n in expected[2:]]
        assert any(isinstance(twin.meta.get("val"), Tensor) for twin in expected)
        for node, twin in zip(nodes, expected, strict=True):
            if isinstance(twin.meta.get("val"), Tensor):
                val, like = node.meta["val"], twin.meta["val"]
                assert (val.shape, val.stride(), val.dtype) == (like.shape, like.stride(), like.dtype)
    for _ in range(2):  # what a graph holds stays as it was
        for found, truth in zip(trace(gradient, tuple(given))(*other), gradient(*other), strict=True):
            assert torch.equal(found, truth)


def test_a_decomposition_takes_an_operations_place() -> None:
    def how(x: Tensor, dim: int, _: bool) -> Tensor:
        return x.exp() / x.exp().sum(dim, keepdim=True)

    x = torch.tensor([0.2, -3.0, 1.1])
    graph = trace(lambda t: torch.softmax(t, 0), [x], {torch.ops.aten._softmax.default: how})
    assert not any("softmax" in str(node.target) for node in graph.graph.nodes)
    torch.testing.assert_close(graph(x), torch.softmax(x, 0))


def test_one_tensor_given_twice_is_two_arguments() -> None:
    x, y = torch.tensor([1.0, 2.0]), torch.tensor([5.0, 7.0])
    assert torch.equal(trace(lambda a, b: a - b, (x, x))(y, x), y - x)


def test_numbers_of_what_a_function_holds_are_known() -> None:
    counts = torch.tensor([7.0, 3.0, 1.0])
    x = torch.tensor([0.5, 2.0])
    assert torch.equal(trace(lambda t: t * int(counts.sum()), [x])(x), 11 * x)


def written_through(x: Tensor) -> Tensor:
    """A constant that becomes another value by way of a view of it."""
    constant = torch.tensor([1.0, 2.0])
    constant[0].add_(x[0])
    return x * constant[0].item()


@pytest.mark.parametrize(
    "asks",
    [lambda x: x if bool(x.sum() > 0) else -x, lambda x: x * x[0].item(), lambda x: x[x > 0].sum(), written_through],
)
def test_a_number_that_depends_on_the_inputs_is_refused(asks: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(RuntimeError, match="data-dependent control flow") as raised:
        trace(asks, [torch.ones(2)])
    assert decides_by_value(raised.value)
