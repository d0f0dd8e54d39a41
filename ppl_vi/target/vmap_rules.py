"""Functions of torch's and Pyro's for which `torch.func.vmap` has no rule, made of others for which it has.

Without a rule, `vmap` runs a function, or its derivative, in a loop over the points, which is slow. The functions here
give the same values and derivatives of any order, at all points together. `cumprod` is the one that matters most: every
Cholesky factor of correlations and every stick-breaking map takes it.

Where all points share a matrix, the rules for its products with vectors, and for solving with it, copy it for each
point. The functions by which torch's multivariate normal distributions take these products do without: a triangular
matrix that all points share is inverted once. The density of `Kumaraswamy` is here, too, whose formula in torch rounds
to 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from pyro.distributions import hmm
from pyro.ops import special
from torch import Tensor
from torch.distributions import Kumaraswamy, lowrank_multivariate_normal, multivariate_normal

LOG_SQRT_2PI = math.log(2 * math.pi) / 2
TORCH_FUNCTIONS = SimpleNamespace(
    cumprod=torch.cumprod,
    cummax=torch.cummax,
    cummin=torch.cummin,
    take=torch.take,
    log_ndtr=torch.special.log_ndtr,
    _batch_mv=multivariate_normal._batch_mv,
    _batch_mahalanobis=multivariate_normal._batch_mahalanobis,
)


def cumprod(x: Tensor, dim: int) -> Tensor:
    """Running products along an axis, first of up to 2 factors, then of up to 4, 8, ..., each as a product of two."""
    out, num_factors = x.movedim(dim, -1), 1
    while num_factors < x.shape[dim]:
        out = torch.cat([out[..., :num_factors], out[..., num_factors:] * out[..., :-num_factors]], -1)
        num_factors *= 2
    return out.movedim(-1, dim)


def _running_extreme(which: Callable[..., Any], x: Tensor, dim: int) -> Any:
    """`cummax` or `cummin` along an axis, where derivatives are those of picking the extreme element."""
    found = which(x.detach(), dim)
    return type(found)((x.gather(dim, found.indices), found.indices))


def take(x: Tensor, index: Tensor) -> Tensor:
    """Elements by their number in the flattened tensor."""
    return x.reshape(-1)[index]


class _LogNdtr(torch.autograd.Function):
    """log Phi(x) of the standard normal, whose derivative is phi(x) / Phi(x)."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return TORCH_FUNCTIONS.log_ndtr(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        x, log_mass = ctx.saved_tensors
        return upstream * (-x.square() / 2 - LOG_SQRT_2PI - log_mass).exp()

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int], x: Tensor) -> tuple[Tensor, int]:
        return _LogNdtr.apply(x), in_dims[0]


def _matrix_times_vector(matrix: Tensor, vector: Tensor) -> Tensor:
    """A product `(..., n)` of a matrix `(..., n, m)` and a vector `(..., m)`."""
    if matrix.dim() == 2 and vector.dim() == 1:
        return matrix @ vector
    return TORCH_FUNCTIONS._batch_mv(matrix, vector)


def _squared_mahalanobis(factor: Tensor, vector: Tensor) -> Tensor:
    """`|L^-1 x|^2` for a lower triangular factor L `(..., n, n)` and a vector x `(..., n)`."""
    if factor.dim() == 2 and vector.dim() == 1 and _is_mapped(vector) and not _is_mapped(factor):
        identity = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
        return (torch.linalg.solve_triangular(factor, identity, upper=False) @ vector).square().sum(-1)
    return TORCH_FUNCTIONS._batch_mahalanobis(factor, vector)


def _is_mapped(x: Tensor) -> bool:
    """Whether the innermost `vmap` maps over this tensor."""
    is_batched = torch._C._functorch.is_batchedtensor(x)
    return is_batched and torch._C._functorch.maybe_get_level(x) == torch._C._functorch.maybe_current_level()


class _SafeLog(torch.autograd.Function):
    """Pyro's logarithm, as its `DiscreteHMM` takes it, whose derivative at 0 is finite: 1 / max(x, smallest number)."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.log()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return upstream / x.clamp(min=torch.finfo(x.dtype).tiny)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int], x: Tensor) -> tuple[Tensor, int]:
        return _SafeLog.apply(x), in_dims[0]


def kumaraswamy_log_prob(self: Any, value: Tensor) -> Tensor:
    """log(a b) + (a - 1) log x + (b - 1) log(1 - x^a): torch's goes by 1 - x^a and is -inf or nan near 0 and at 1."""
    a, b = self.concentration1, self.concentration0
    return (a * b).log() + torch.xlogy(a - 1, value) + torch.special.xlog1py(b - 1, -(value**a))


def log_matmul_exp(x: Tensor, y: Tensor) -> Tensor:
    """log(exp(x) exp(y)), as Pyro's hidden Markov models take it, but without writing in place."""
    least = torch.finfo(x.dtype).min
    x_shift = x.detach().amax(-1, keepdim=True).clamp(min=least)
    y_shift = y.detach().amax(-2, keepdim=True).clamp(min=least)
    total = torch.matmul((x - x_shift).exp(), (y - y_shift).exp())
    some = total > 0  # where no path leads, the logarithm is -inf, and its slope 0
    return torch.where(some, torch.where(some, total, 1.0).log(), -torch.inf) + x_shift + y_shift


# By name, the classes and modules that have the function, and what takes its place.
REPLACEMENTS: dict[str, tuple[tuple[Any, ...], Callable[..., Any]]] = {
    "cumprod": ((torch, Tensor), cumprod),
    "cummax": ((torch, Tensor), partial(_running_extreme, TORCH_FUNCTIONS.cummax)),
    "cummin": ((torch, Tensor), partial(_running_extreme, TORCH_FUNCTIONS.cummin)),
    "take": ((torch, Tensor), take),
    "log_ndtr": ((torch.special,), _LogNdtr.apply),
    "_batch_mv": ((multivariate_normal, lowrank_multivariate_normal), _matrix_times_vector),
    "_batch_mahalanobis": ((multivariate_normal, lowrank_multivariate_normal), _squared_mahalanobis),
}


def _for_floating_point(function: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    """The function for tensors of floating-point numbers, the original for all else, such as other options."""

    def called(*args: Any, **kwargs: Any) -> Any:
        x = args[0] if args else None
        usual = isinstance(x, Tensor) and x.is_floating_point() and x.dim() > 0 and kwargs.keys() <= {"dim", "index"}
        return (function if usual else original)(*args, **kwargs)

    return called


# Each place that has one of the functions: the owner, the name, and what to put there.
PLACES = [
    (owner, name, _for_floating_point(function, getattr(TORCH_FUNCTIONS, name)))
    for name, (owners, function) in REPLACEMENTS.items()
    for owner in owners
] + [
    (special, "_SafeLog", _SafeLog),
    (Kumaraswamy, "log_prob", kumaraswamy_log_prob),
    (hmm, "_logmatmulexp", log_matmul_exp),
]


@contextmanager
def known_to_vmap() -> Iterator[None]:
    """Puts these functions in the place of torch's until the end of the block."""
    before = [getattr(owner, name) for owner, name, _ in PLACES]
    try:
        for owner, name, function in PLACES:
            setattr(owner, name, function)
        yield
    finally:
        for (owner, name, _), function in zip(PLACES, before, strict=True):
            setattr(owner, name, function)
