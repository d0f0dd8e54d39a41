"""Discrete latents summed out of a model, exactly, by Pyro's enumeration and tensor variable elimination."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyro
import pyro.poutine as poutine
import torch
from opt_einsum import shared_intermediates
from pyro.distributions import TorchDistribution
from pyro.infer import config_enumerate
from pyro.ops.contract import contract_to_tensor
from pyro.ops.einsum.util import Tensordot
from pyro.ops.rings import LogRing
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor

# A model with at most this many combinations of discrete values is checked by summing over them one by one.
MAX_CHECKED_COMBINATIONS = 64
# The `pyro.factor` that holds the log density of all sites but the continuous latents.
FACTOR_NAME = "_summed_out"


def einsum(equation: str, *operands: Tensor) -> Tensor:
    """Sums of products of numbers that are given by their logarithms: an `einsum` whose result is a logarithm, too.

    The terms of a sum may differ by any factor. Pyro's own function first divides each operand by its largest value, so
    that where the largest values of two operands belong to different terms, all products may underflow to 0.
    """
    inputs, output = equation.split("->")
    symbols = output + "".join(sorted(set(inputs) - set(output) - {","}))
    total, *others = (
        _aligned(operand, dims, symbols) for operand, dims in zip(operands, inputs.split(","), strict=True)
    )
    for other in others:
        total = total + other
    summed = tuple(range(len(output), len(symbols)))
    return torch.logsumexp(total, summed) if summed else total.clone()


def _aligned(operand: Tensor, dims: str, symbols: str) -> Tensor:
    """An operand with axes `dims`, given an axis for each of `symbols`: one of length 1 for those that it lacks."""
    present = [dims.index(symbol) for symbol in symbols if symbol in dims]
    permuted = operand.permute(present)
    index = tuple(slice(None) if symbol in dims else None for symbol in symbols)
    return permuted[index]


def transpose(operand: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The operand with its axes in another order."""
    return operand.permute(axes)


tensordot = Tensordot(einsum)


class UnsuitableSiteError(ValueError):
    """A discrete site can't be summed out, or another site prevents it; the message says why."""


class _Enumerate(EnumMessenger):
    """Pyro's messenger, but for the shape of a value: Pyro reads it from `Tensor.data`, which fails under `vmap`."""

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["value"] is None or not hasattr(msg["fn"], "event_dim"):
            return
        dims = msg["infer"].setdefault("_dim_to_id", {})
        dims.update(self._param_dims.get(msg["name"], {}))
        shape = msg["value"].shape[: msg["value"].dim() - msg["fn"].event_dim]
        self._value_dims[msg["name"]] = {
            dim: number for dim, number in dims.items() if len(shape) >= -dim and shape[dim] > 1
        }


class _Ring(LogRing):
    """Pyro's arithmetic of logarithms, by this module's `einsum`, `tensordot` and `transpose`."""

    _backend = __name__  # the module in which opt_einsum looks for these


@dataclass(frozen=True, eq=False)
class SummedOut:
    """A Pyro model whose discrete latents are summed out, so that its only latents are the continuous ones.

    Attributes:
        model: a Pyro model that can be enumerated, see Pyro's `config_enumerate`.
        max_plate_nesting: how many dimensions its plates take.
    """

    model: Callable[..., Any]
    max_plate_nesting: int

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Draws the continuous latents, and adds the log density of all other sites as one `pyro.factor`.

        A continuous latent whose prior depends on discrete ones is drawn from the even mixture of its priors. The
        factor then takes the mixture's density away again, and has that of the prior for each of the discrete values.

        Raises:
            UnsuitableSiteError: the support of a continuous latent depends on a discrete one.
        """
        continuous: list[str] = []
        mixing = _Mixing(self.max_plate_nesting)

        def hide(message: Any) -> bool:
            shown = message["type"] == "sample" and is_continuous_latent(message)
            if shown:
                continuous.append(message["name"])
            return message["type"] == "sample" and not shown

        enumerated = _Enumerate(first_available_dim=-1 - self.max_plate_nesting)(config_enumerate(self.model))
        with poutine.block(hide_fn=hide), mixing:
            trace = poutine.trace(enumerated).get_trace(*args, **kwargs)
        drawn_from = pyro.poutine.Trace()
        for name in continuous:
            if name not in mixing.priors:
                trace.remove_node(name)
                continue
            drawn_from.add_node(name, **trace.nodes[name])
            trace.nodes[name]["fn"] = mixing.priors[name]
        drawn_from.compute_log_prob()
        pyro.factor(FACTOR_NAME, _log_density(trace) - drawn_from.log_prob_sum())


class _EvenMixture(TorchDistribution):  # type: ignore[misc, unused-ignore]
    """The mixture, in equal shares, of distributions along the leading axes of a batch.

    Args:
        parts: the distributions.
        num_axes: how many axes, from the left, are those of the parts.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, parts: Any, num_axes: int) -> None:
        self.parts, self.num_axes = parts, num_axes
        super().__init__(parts.batch_shape[num_axes:], parts.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """That of all parts."""
        return self.parts.support

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        """A draw of one of the parts, for each entry of the batch."""
        drawn = self.parts.sample(sample_shape)
        first = len(sample_shape)
        drawn = drawn.flatten(first, first + self.num_axes - 1).movedim(first, 0)
        chosen = torch.randint(len(drawn), torch.Size(sample_shape) + self.batch_shape)
        chosen = chosen.reshape(1, *chosen.shape, *[1] * self.event_dim).expand(1, *drawn.shape[1:])
        return drawn.gather(0, chosen)[0]

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density."""
        each = self.parts.log_prob(value)
        each = each.expand(self.parts.batch_shape).flatten(0, self.num_axes - 1)
        return each.logsumexp(0) - math.log(len(each))


class _Mixing(Messenger):
    """Draws continuous latents whose priors depend on discrete ones from even mixtures of these priors.

    Args:
        max_plate_nesting: how many dimensions plates take; enumeration adds its own on the left.

    Attributes:
        priors: by name, the priors of the latents that it has met.
    """

    def __init__(self, max_plate_nesting: int) -> None:
        super().__init__()
        self.max_plate_nesting = max_plate_nesting
        self.priors: dict[str, Any] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if not is_continuous_latent(msg):
            return
        shape = msg["fn"].batch_shape
        num_axes = max(0, len(shape) - self.max_plate_nesting)
        if all(size == 1 for size in shape[:num_axes]):
            return
        mixture = _EvenMixture(msg["fn"], num_axes)
        anywhere = torch.zeros(mixture.batch_shape + mixture.event_shape)
        if msg["fn"].support.check(anywhere).dim() > len(mixture.batch_shape):
            raise UnsuitableSiteError(
                f"the support of site '{msg['name']}' depends on a discrete latent, which can't be summed out then: "
                "draw one such site for each value of the discrete one and choose among them in the likelihood"
            )
        self.priors[msg["name"]], msg["fn"] = msg["fn"], mixture


def is_continuous_latent(node: Any) -> bool:
    """Whether a sample site is neither observed nor discrete nor a plate's subsample."""
    if node["is_observed"] or poutine.util.site_is_subsample(node):
        return False
    return not node["fn"].support.is_discrete


def _log_density(trace: Trace) -> Tensor:
    """The log density of a trace, summed over its enumerated dimensions, a scalar."""
    _score(trace, [node["name"] for node in _discrete_latents(trace)])
    trace.pack_tensors()
    factors: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
    for node in trace.nodes.values():
        if node["type"] == "sample" and not poutine.util.site_is_subsample(node):
            plates = frozenset(trace.plate_to_symbol[f.name] for f in node["cond_indep_stack"] if f.vectorized)
            factors.setdefault(plates, []).append(node["packed"]["log_prob"])
    summed = set(trace.symbol_to_dim) - set(trace.plate_to_symbol.values())
    with shared_intermediates() as cache:
        return contract_to_tensor(factors, summed, ring=_Ring(cache))


def _score(trace: Trace, discrete: Sequence[str]) -> None:
    """Computes the log density of each site. Where a discrete latent is masked, each of its K values gets the mass 1/K.

    Pyro gives each value of a masked site the mass 1, so that summing out a latent on which nothing depends would give
    K instead of 1. Pyro's `obs_mask` makes such latents: one for each entry of the data, masked where that is observed.

    Args:
        trace: of a model; its sites get their `log_prob` and `log_prob_sum`.
        discrete: names of the discrete latents.
    """
    trace.compute_log_prob()
    for node in map(trace.nodes.__getitem__, discrete):
        for mask in masks_of(node):
            flat = -math.log(len(node["fn"].enumerate_support(expand=False)))
            node["log_prob"] = torch.where(mask, node["log_prob"], flat)
        node["log_prob_sum"] = node["log_prob"].sum()


def masks_of(node: Any) -> list[Tensor]:
    """The masks that say where a site's density counts: that of `poutine.mask` and that of the distribution."""
    masks = (node["mask"], getattr(node["fn"], "_mask", None))
    return [torch.as_tensor(mask) for mask in masks if mask is not None]


def summed_out(model: Callable[..., Any], trace: Trace, args: tuple[Any, ...], name: str) -> Callable[..., Any]:
    """A model whose discrete latents are summed out; the same model if it has none.

    Args:
        model: a Pyro model.
        trace: of one run of it.
        args: of that run.
        name: the target's, for messages.

    Raises:
        ValueError: a discrete latent can take infinitely many values, or Pyro's enumeration gives another sum than
            that over all values one by one.
    """
    nodes = [node for node in trace.nodes.values() if node["type"] == "sample"]
    discrete = _discrete_latents(trace)
    for node in discrete:
        if not node["fn"].has_enumerate_support:
            kind = type(node["fn"]).__name__
            raise ValueError(
                f"{name}: site '{node['name']}' is discrete and {kind} has no finite list of values, so it can't be "
                "summed out: cut it off to a Categorical, or write the sum into the likelihood"
            )
    depth = max((-frame.dim for node in nodes for frame in node["cond_indep_stack"] if frame.vectorized), default=0)
    if not discrete:
        return model
    summed = SummedOut(model, depth)
    if math.prod(map(_num_values, discrete)) <= MAX_CHECKED_COMBINATIONS:
        _verify(summed, trace, args, name)
    return summed


def _discrete_latents(trace: Trace) -> list[Any]:
    nodes = [node for node in trace.nodes.values() if node["type"] == "sample"]
    latent = [node for node in nodes if not node["is_observed"] and not poutine.util.site_is_subsample(node)]
    return [node for node in latent if node["fn"].support.is_discrete]


def _num_values(node: Any) -> int:
    return int(len(node["fn"].enumerate_support(expand=False)) ** node["fn"].batch_shape.numel())


def _verify(summed: SummedOut, trace: Trace, args: tuple[Any, ...], name: str) -> None:
    """Compares the sum by enumeration with that over all values one by one.

    Pyro's enumeration gives a site all of its values at once, along a new dimension, which the model must not mix with
    dimensions of its own. A model that mixes them may still run, and then has another density.

    Raises:
        ValueError: the sums differ.
    """
    discrete = _discrete_latents(trace)
    nodes = [node for node in trace.nodes.values() if node["type"] == "sample" and is_continuous_latent(node)]
    fixed = {node["name"]: node["value"] for node in nodes}
    names = [node["name"] for node in discrete]
    try:
        at_once = _log_joint(summed, fixed, args)
    except Exception:
        return  # `latent_sites` runs the model next, and reports the error with the site
    terms = [
        _log_joint(summed.model, fixed | dict(zip(names, values, strict=True)), args, names)
        for values in itertools.product(*map(_values, discrete))
    ]
    one_by_one = torch.logsumexp(torch.stack(terms), 0)
    tolerance = torch.finfo(at_once.dtype).eps ** 0.5
    if not bool(torch.isclose(at_once, one_by_one, rtol=tolerance, atol=tolerance, equal_nan=True)):
        raise ValueError(
            f"{name}: summed out at once the log density is {float(at_once):.9g}, value by value "
            f"{float(one_by_one):.9g}: the model mixes the dimension that enumeration adds on the left with its own; "
            "index by Vindex, and see Pyro's tutorial on discrete latent variables"
        )


def _values(node: Any) -> list[Tensor]:
    """All values that a discrete site can take, each of the shape of the site."""
    fn = node["fn"]
    one = fn.enumerate_support(expand=False).reshape(-1, *fn.event_shape)
    indices = itertools.product(range(len(one)), repeat=fn.batch_shape.numel())
    return [one[list(index)].reshape(fn.batch_shape + fn.event_shape) for index in indices]


def _log_joint(
    model: Callable[..., Any], values: dict[str, Tensor], args: tuple[Any, ...], discrete: Sequence[str] = ()
) -> Tensor:
    trace = poutine.trace(poutine.condition(model, data=values)).get_trace(*args)
    _score(trace, discrete)
    return torch.as_tensor(trace.log_prob_sum())
