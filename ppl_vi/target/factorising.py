"""Matrices that can't be factorised: the density is 0 there.

A covariance that depends on latents may be singular, or not positive definite by rounding, at a wild point of a search
or a chain. torch then raises an error, for all points at once. `Factorising` lets such a matrix have the identity for
its factor, inverse or solution, remembers where that was so, and makes the log density -inf there.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pyro.poutine as poutine
import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

ORIGINAL = SimpleNamespace(
    cholesky=torch.linalg.cholesky,
    inv=torch.linalg.inv,
    solve=torch.linalg.solve,
    eigh=torch.linalg.eigh,
    eigvalsh=torch.linalg.eigvalsh,
)


class Factorising:
    """While it is active, no matrix makes torch raise an error because it can't be factorised.

    Attributes:
        failed: for each factorisation that was asked for, whether it failed, a scalar.
    """

    def __init__(self) -> None:
        self.failed: list[Tensor] = []
        self._places: list[tuple[Any, str, Any]] = [
            (torch.linalg, "cholesky", self._cholesky),
            (torch, "cholesky", self._cholesky),
            (Tensor, "cholesky", lambda matrix, *rest, **options: self._cholesky(matrix, *rest, **options)),
            (torch.linalg, "inv", self._inv),
            (torch, "inverse", self._inv),
            (Tensor, "inverse", lambda matrix: self._inv(matrix)),
            (torch.linalg, "solve", self._solve),
            (torch.linalg, "eigh", self._guarded(ORIGINAL.eigh)),
            (torch.linalg, "eigvalsh", self._guarded(ORIGINAL.eigvalsh)),
        ]
        self._before: list[Any] = []

    def __enter__(self) -> Factorising:
        self._before = [getattr(owner, name) for owner, name, _ in self._places]
        for owner, name, function in self._places:
            setattr(owner, name, function)
        return self

    def __exit__(self, *_: Any) -> None:
        for (owner, name, _), function in zip(self._places, self._before, strict=True):
            setattr(owner, name, function)

    def marked(self, trace: Trace) -> Trace:
        """The trace, whose log density is -inf where a factorisation has failed since this became active."""
        if not self.failed:
            return trace
        last = next(node for node in reversed(list(trace.nodes.values())) if "log_prob_sum" in node)
        failed = torch.stack(self.failed).any() if len(self.failed) > 1 else self.failed[0]
        last["log_prob_sum"] = torch.where(failed, -torch.inf, last["log_prob_sum"])
        return trace

    def _remember(self, failed: Tensor) -> None:
        self.failed.append(failed if failed.dim() == 0 else failed.any())

    def _usable(self, matrix: Tensor, failed: Tensor) -> Tensor:
        """The matrices, those that failed replaced by the identity, so that derivatives are finite, too."""
        self._remember(failed)
        eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        return torch.where(failed[..., None, None], eye, matrix)

    def _cholesky(self, matrix: Tensor, upper: bool = False, **options: Any) -> Tensor:
        info = torch.linalg.cholesky_ex(matrix.detach()).info
        return torch.linalg.cholesky_ex(self._usable(matrix, info > 0), upper=upper, **options).L

    def _inv(self, matrix: Tensor, **options: Any) -> Tensor:
        info = torch.linalg.inv_ex(matrix.detach()).info
        return torch.linalg.inv_ex(self._usable(matrix, info > 0), **options).inverse

    def _solve(self, matrix: Tensor, other: Tensor, **options: Any) -> Tensor:
        info = torch.linalg.inv_ex(matrix.detach()).info
        return torch.linalg.solve_ex(self._usable(matrix, info > 0), other, **options).result

    def _guarded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A decomposition that fails for matrices with a number that is not finite."""

        def called(matrix: Tensor, *rest: Any, **options: Any) -> Any:
            failed = ~matrix.detach().isfinite().all(-1).all(-1)
            return function(self._usable(matrix, failed), *rest, **options)

        return called


def factorising_trace(model: Callable[..., Any], row: tuple[Any, ...]) -> Trace:
    """The trace of a model with its log densities, -inf where a matrix can't be factorised."""
    with Factorising() as factorising:
        trace = poutine.trace(model).get_trace(*row)
        trace.compute_log_prob()
    return factorising.marked(trace)
