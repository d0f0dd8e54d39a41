"""Tidying a traced graph changes what it costs and not what it computes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_vi.svi.graph import tidy


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
    given = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)

    def gradient(x: Tensor, y: Tensor) -> Tensor:
        return vmap(grad(lambda a, b: function(a, b).sum()))(x[:, None], y[:, None])  # type: ignore[operator]

    traced = make_fx(gradient)(*given)
    before = len(traced.graph.nodes)
    tidied = tidy(traced, given)
    assert len(tidied.graph.nodes) < 0.8 * before
    other = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    assert torch.equal(tidied(*other), gradient(*other))


@pytest.mark.parametrize("shape", [(1,), (3, 1), (3, 4)])
def test_what_changes_a_shape_or_a_dtype_stays(shape: tuple[int, ...]) -> None:
    def function(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x + torch.zeros(3, 4), (y * 1).to(torch.float64) * torch.ones(1, dtype=torch.float64)

    given = torch.randn(shape, dtype=torch.float64), torch.randn(shape)
    tidied = tidy(make_fx(function)(*given), given)
    for found, expected in zip(tidied(*given), function(*given), strict=True):
        assert torch.equal(found, expected)
        assert found.dtype == expected.dtype
