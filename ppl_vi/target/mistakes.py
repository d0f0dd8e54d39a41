"""Mistakes in a model that would pass as answers, found by running it a few times before anything is computed.

A model that is another function at each call has no posterior, and one that observes nothing has its prior for one.
Both are refused where they are sure to be mistakes. What may be meant is a remark, which tables show above their
numbers.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro.poutine as poutine
import torch
from pyro.distributions import ImproperUniform
from pyro.distributions.transforms import biject_to
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ppl_vi.target.arguments import Positional, tensors_of
from ppl_vi.target.factorising import Factorising
from ppl_vi.target.isolation import isolated

# Two runs at the same values give the same log density but for the order of sums, which may differ between devices.
SAME_DENSITY = 1e4
# Seeds of the runs that must agree: the first two with each other, else the model has a state; the third with both,
# else it draws numbers of its own.
RUN_SEEDS = (0, 0, 1)
# What may be asked of a tensor without reading its numbers.
ABOUT_SHAPES = (
    Tensor.__len__,
    Tensor.size,
    Tensor.dim,
    Tensor.ndimension,
    Tensor.numel,
    Tensor.nelement,
    Tensor.is_floating_point,
    torch.is_floating_point,
    torch.numel,
    *(getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "requires_grad", "layout")),
)
# A density of the user's own is looked at this far out in unconstrained space, and twice as far. If it falls to less
# than half from there to there, it may have a finite integral; the density 1/u falls to just half.
FAR_OUT = 350.0
NO_STATE = "let it depend on its arguments and sites alone, not on a counter or anything else that it changes"
DRAWS_BESIDE = (
    "the model draws random numbers that belong to no sample site, so that its density is random (at site '{}'): draw "
    "them at a site, or before; which part of its data a plate takes, by its subsample_size"
)
LEARNS_NOTHING = (
    "no observed site or factor depends on a latent, so that the posterior is the prior: are the latents to enter the "
    "distribution of the data?"
)
LIBRARIES = ("torch.", "pyro.", "ppl_vi.")  # whose distributions have a finite integral


class MistakeError(ValueError):
    """A model can't be what its user means; the message says why, without the target's name."""


class ReadTensors(TorchFunctionMode):
    """Remembers which of some tensors torch is asked for more than their shape.

    Args:
        tensors: those that are watched.

    Attributes:
        unread: the `id` of each that was not read.
    """

    def __init__(self, tensors: list[Tensor]) -> None:
        super().__init__()
        self.unread = {id(tensor) for tensor in tensors}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.unread and func not in ABOUT_SHAPES:
            self.unread -= {id(tensor) for tensor in tensors_of([*args, *kwargs.values()])}
        return func(*args, **kwargs)


def refuse_changing(model: Callable[..., Any], trace: Trace, row: tuple[Any, ...], dtype: torch.dtype) -> None:
    """Refuses a model whose log density at given values differs from run to run.

    Args:
        model: a Pyro model.
        trace: of one run of it; its values are those at which the densities are compared.
        row: the arguments of that run.
        dtype: of the computation.

    Raises:
        MistakeError: the model is not the same function at each call; the message names the site and what may be why.
    """
    first, second, other = (_densities(model, trace, row, dtype, seed) for seed in RUN_SEEDS)
    _refuse_different(first, second)
    site = _differs(first, other)
    if site:
        raise MistakeError(DRAWS_BESIDE.format(site))


def refuse_changed_since(model: Callable[..., Any], trace: Trace, row: tuple[Any, ...], dtype: torch.dtype) -> None:
    """Refuses a model whose log density is not what it was in an earlier run; arguments as of `refuse_changing`.

    Raises:
        MistakeError: some site's log density at the values of that run is another one now.
    """
    with isolated(dtype, seed=0), Factorising():
        trace.compute_log_prob()
    _refuse_different(_by_site(trace), _densities(model, trace, row, dtype, seed=0))


def _refuse_different(before: dict[str, float], after: dict[str, float]) -> None:
    site = _differs(before, after)
    if site:
        raise MistakeError(
            f"the model is not the same function at each call: site '{site}' has log density "
            f"{before.get(site, 'none')} in one run and {after.get(site, 'none')} in the next, at the same values: "
            f"{NO_STATE}"
        )


def _densities(
    model: Callable[..., Any], trace: Trace, row: tuple[Any, ...], dtype: torch.dtype, seed: int
) -> dict[str, float]:
    """The log density of each site where all of them have the values of a trace, nats."""
    with isolated(dtype, seed):
        random.seed(seed)
        np.random.seed(seed)
        with Factorising():
            again = poutine.trace(poutine.replay(model, trace=trace)).get_trace(*row)
            again.compute_log_prob()
    return _by_site(again)


def _by_site(trace: Trace) -> dict[str, float]:
    return {site: float(node["log_prob_sum"].detach()) for site, node in trace.nodes.items() if _is_site(node)}


def _differs(one: dict[str, float], other: dict[str, float]) -> str:
    """A site whose log density is not the same in two runs; "" where there is none."""
    odd = set(one) ^ set(other)
    if odd:
        return min(odd)
    slack = SAME_DENSITY * torch.finfo(torch.float64).eps
    for site, value in one.items():
        if not np.isclose(value, other[site], rtol=slack, atol=slack, equal_nan=True):
            return site
    return ""


def _is_site(node: Any) -> bool:
    return node["type"] == "sample" and not poutine.util.site_is_subsample(node)


def possible_mistakes(model: Callable[..., Any], given: tuple[Any, ...], dtype: torch.dtype) -> tuple[str, ...]:
    """What may be a mistake in a model: it observes nothing, nothing of what it observes depends on its latents, or it
    never reads one of its arguments.

    Args:
        model, dtype: as `refuse_changing` takes them.
        given: the model's arguments.

    Raises:
        MistakeError: the model takes tensors and observes nothing.
    """
    with isolated(dtype, seed=0), Factorising(), ReadTensors(tensors_of(given)) as reading:
        trace = poutine.trace(model).get_trace(*given)
        trace.compute_log_prob()
    sites = {site: node for site, node in trace.nodes.items() if _is_site(node)}
    if sites and not any(node["is_observed"] for node in sites.values()):
        return (_observes_nothing(list(sites), given),)
    remarks = () if _learns_something(model, trace, given, dtype) else (LEARNS_NOTHING,)
    unread = [label for label, value in _labelled(model, given) if _is_unread(value, reading.unread)]
    if not unread:
        return remarks
    which = ", ".join(f"'{label}'" for label in unread)
    return (
        *remarks,
        f"the model never reads the numbers of its argument{'s'[: len(unread) > 1]} {which}: are the data to enter its "
        "density, by obs= or as covariates?",
    )


def _learns_something(model: Callable[..., Any], trace: Trace, given: tuple[Any, ...], dtype: torch.dtype) -> bool:
    """Whether the density of an observed site has a slope along some latent, or the model has discrete latents."""
    latents = {site: node for site, node in trace.nodes.items() if _is_site(node) and not node["is_observed"]}
    values = {site: node["value"].detach().clone() for site, node in latents.items()}
    if any(not value.is_floating_point() for value in values.values()) or not values:
        return True
    if any(node["fn"].support.is_discrete for node in latents.values()):
        return True
    leaves = {site: value.requires_grad_() for site, value in values.items()}
    with isolated(dtype, seed=0), torch.enable_grad(), Factorising():
        again = poutine.trace(poutine.condition(model, data=leaves)).get_trace(*given)
        again.compute_log_prob()
        total = sum(node["log_prob_sum"] for site, node in again.nodes.items() if _is_site(node) and site not in leaves)
        if not (isinstance(total, Tensor) and total.requires_grad):
            return False
        slopes = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return any(slope is not None and bool((slope != 0).any()) for slope in slopes)


def _observes_nothing(sites: list[str], given: tuple[Any, ...]) -> str:
    last = sites[-1] if sites else ""
    said = "no site is observed and there is no pyro.factor, so that the posterior is the prior"
    mend = f"give the site that holds the data its obs=, as pyro.sample('{last}', ..., obs=data)"
    if tensors_of(given):
        raise MistakeError(f"{said}, whatever the data: {mend}; if the prior is meant, let the model take no tensors")
    return f"{said}: if there are data, {mend}"


def _labelled(model: Callable[..., Any], given: tuple[Any, ...]) -> list[tuple[str, Any]]:
    """The arguments with their names, or with their numbers where these are not known."""
    # what prepares a model wraps it
    while not (inspect.isroutine(model) or isinstance(model, Positional)) and hasattr(model, "function"):
        model = model.function
    try:
        bound = inspect.signature(model).bind(*given).arguments
    except (TypeError, ValueError):
        return [(str(number), value) for number, value in enumerate(given)]
    return list(bound.items())


def _is_unread(value: Any, unread: set[int]) -> bool:
    """Whether a value holds tensors of numbers, none of which was read."""
    tensors = [tensor for tensor in tensors_of(value) if tensor.numel() and tensor.dim()]
    return bool(tensors) and all(id(tensor) in unread for tensor in tensors)


def innermost(fn: Any) -> Any:
    """The distribution inside of those that reshape, mask or transform it."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn


def is_improper(fn: Any) -> bool:
    """Whether a prior has no finite integral.

    That is so for Pyro's `ImproperUniform`, and for a distribution of the user's own over one number whose density does
    not fall off at an end of its support.
    """
    return isinstance(innermost(fn), ImproperUniform) or _ends_flat(innermost(fn))


def _ends_flat(fn: Any) -> bool:
    """Whether the density of a distribution that no library knows is as high at infinity as anywhere."""
    if fn is None or type(fn).__module__.startswith(LIBRARIES) or fn.event_dim:
        return False
    ends = torch.tensor([-2.0, -1.0, 1.0, 2.0], dtype=torch.float64) * FAR_OUT
    try:
        transform = biject_to(fn.support)
        ends = ends.reshape(-1, *[1] * len(fn.batch_shape))
        value = transform(ends)
        log_density = fn.log_prob(value) + transform.log_abs_det_jacobian(ends, value)
        left, inner_left, inner_right, right = log_density
    except Exception:  # a user's distribution may raise anything here, and is heard where the model is run
        return False
    half = np.log(0.5)
    return bool(((left - inner_left > half) | (right - inner_right > half)).any())
