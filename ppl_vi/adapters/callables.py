"""Objects with `sample` and `log_prob`, as `sbi`'s posteriors, zuko's flows and torch's distributions are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ppl_vi.approximations.approximation import Approximation, Draws


def approximation(
    posterior: Any,
    sites: Mapping[str, tuple[int, ...]],
    *,
    num_draws: int = 10_000,
    seed: int | None = 0,
    name: str = "",
    system: str = "",
    seconds: float | None = None,
) -> Approximation:
    """Draws of an object with `sample((N,))` to `(N, D)` or `(N,)`, and log q of each by its `log_prob`.

    The D numbers are those of the sites one after the other, each in C order, on the sites' own supports: no Jacobian
    is added, since `log_prob` is a density of the same numbers. Where the object takes its data apart, as `sbi`'s
    posteriors do by `set_default_x`, they have been set before.

    Args:
        posterior: the object; without `log_prob` log q is unknown.
        sites: the shape of each latent site, in the order of the D numbers.
        num_draws: how many draws there are.
        seed: of torch's generator, which is put back afterwards; None leaves it as it is.
        name, system: what tables call it, and what made it.
        seconds: what the fit took.

    Raises:
        TypeError: the object has no `sample`.
        ValueError: the draws have other numbers than the sites, or log_prob other than one for each draw.
    """
    if not callable(getattr(posterior, "sample", None)):
        raise TypeError(f"expected an object with a method sample; got {type(posterior).__name__}")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        if seed is not None:
            torch.manual_seed(seed)
        drawn = posterior.sample((num_draws,))
        log_q = posterior.log_prob(drawn) if callable(getattr(posterior, "log_prob", None)) else None
    flat = _numbers(drawn).reshape(num_draws, -1)
    ends = np.cumsum([0, *(int(np.prod(shape)) for shape in sites.values())])
    if flat.shape[1] != ends[-1]:
        raise ValueError(f"the sites have {ends[-1]} numbers, and each draw has {flat.shape[1]}")
    draws: Draws = {
        key: flat[:, ends[k] : ends[k + 1]].reshape(1, num_draws, *shape)
        for k, (key, shape) in enumerate(sites.items())
    }
    density = None if log_q is None else _numbers(log_q)
    if density is not None and density.shape != (num_draws,):
        raise ValueError(f"log_prob must return a number for each draw, {(num_draws,)}; got {density.shape}")
    called = name or type(posterior).__name__
    return Approximation(draws, None if density is None else density[None], called, system, seconds)


def _numbers(value: Any) -> np.ndarray:
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value, dtype=np.float64)
