"""Models and guides computed in the target's dtype, in whatever dtype their tensors were made.

A model may hold tensors that were made while torch's default dtype was single precision, such as a prior's scale. Its
latents would be drawn in single precision, and all that is computed with them, by machine code that expects doubles,
would be wrong. The logarithm of such a scale would be off by 1e-8, far more than the error of a truth.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions.distribution import COERCIONS
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn
from torch.distributions import Distribution, Transform
from torch.distributions.transforms import _InverseTransform
from torch.overrides import TorchFunctionMode

# What torch passes to `__torch_function__` where the dtype of a tensor is read.
DTYPE = Tensor.dtype.__get__  # type: ignore[attr-defined]
# The dtypes of methods that convert a tensor, by their names.
CONVERSIONS = {"float": torch.float32, "double": torch.float64, "half": torch.float16, "bfloat16": torch.bfloat16}
# Methods that end in `_` as those do that write into a tensor, but write nothing.
WRITE_NOTHING = {"requires_grad_", "detach_", "share_memory_"}
OPERATORS = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "div", "and", "or", "xor", "lshift", "rshift")
WRITING_OPERATORS = {"__setitem__", *(f"__i{operator}__" for operator in OPERATORS)}


def in_dtype(held: Any, dtype: torch.dtype) -> Any:
    """A distribution whose floating-point tensors, and those of its parts, are in `dtype`.

    It does not validate values: `expand` gives a distribution a flag of its own to do so, whatever the default is.

    Args:
        held: a distribution or any part of one, which is left as it is.
        dtype: of the copy.

    Returns:
        The converted copy, or `held` itself where it needs no change.
    """
    if isinstance(held, Tensor):
        return held.to(dtype) if _is_of_another(held, dtype) else held
    if type(held) in (list, tuple):
        parts = [in_dtype(part, dtype) for part in held]
        return held if all(map(_is, parts, held)) else type(held)(parts)
    if not isinstance(held, Distribution | Transform) or isinstance(held, nn.Module):
        return held
    if isinstance(held, _InverseTransform):
        forward = in_dtype(held.inv, dtype)
        return held if forward is held.inv else forward.inv
    # A transform also holds its inverse, which holds the transform; a copy makes its own.
    parts_of = {name: value for name, value in vars(held).items() if name != "_inv"}
    changed = {name: in_dtype(value, dtype) for name, value in parts_of.items()}
    validates = changed.get("_validate_args", False)
    if not validates and all(map(_is, changed.values(), parts_of.values())):
        return held
    copied = copy.copy(held)
    vars(copied).update(changed)
    if isinstance(copied, Transform):
        copied._inv = None
    if validates:
        del vars(copied)["_validate_args"]
    return copied


def _is(one: Any, other: Any) -> bool:
    return one is other


def _is_of_another(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether a tensor holds floating-point numbers of another dtype, whatever `ComputedIn` says of it."""
    with torch._C.DisableTorchFunction():
        return tensor.is_floating_point() and tensor.dtype != dtype


class ComputedIn(TorchFunctionMode):
    """While it is active, every function of torch gets and makes floating-point numbers of one dtype alone.

    Attributes:
        changed: whether anything had to be converted.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.changed = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if func == DTYPE:
            return self._converted(func(*args))
        if name in ("__get__", "__set__"):  # a question about the tensor itself, such as whether it takes a gradient
            return func(*args, **kwargs)
        if name in CONVERSIONS:
            return args[0].to(self._converted(CONVERSIONS[name]))
        written = kwargs.get("out", next(iter((*args, *kwargs.values())), None) if _writes(name) else None)
        if isinstance(written, Tensor) and _is_of_another(written, self.dtype):
            raise ValueError(
                f"'{name}' writes into a tensor of {written.dtype} that was made outside, and all is computed in "
                f"{self.dtype}: make that tensor inside, or in {self.dtype}"
            )
        return func(*self._converted(args), **self._converted(kwargs))

    def _converted(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if not _is_of_another(value, self.dtype):
                return value
            self.changed = True
            return value.to(self.dtype)
        if isinstance(value, torch.dtype):
            self.changed = self.changed or (value.is_floating_point and value != self.dtype)
            return self.dtype if value.is_floating_point else value
        if type(value) is dict:
            return {key: self._converted(part) for key, part in value.items()}
        return type(value)(map(self._converted, value)) if type(value) in (list, tuple) else value


def _writes(name: str) -> bool:
    """Whether a function of torch, by its name, writes into its first argument."""
    return name in WRITING_OPERATORS or (name.endswith("_") and not name.endswith("__") and name not in WRITE_NOTHING)


def refuse_densities_of_another(trace: Trace, dtype: torch.dtype) -> None:
    """Refuses a site whose distribution computes its density with tensors of another dtype that it doesn't hold.

    Args:
        trace: of a converted model.
        dtype: that all is to be computed in.

    Raises:
        ValueError: there is one.
    """
    for name, node in trace.nodes.items():
        if node["type"] != "sample":
            continue
        with ComputedIn(dtype) as computed:
            node["fn"].log_prob(node["value"])
        if computed.changed:
            raise ValueError(
                f"site '{name}': the log_prob of its {type(node['fn']).__name__} computes with tensors that are not of "
                f"{dtype}: make them in {dtype}"
            )


class DtypeConversion(Messenger):
    """Converts all that a run computes, and the distributions and the data of its sample sites, to one dtype.

    A distribution that is made in this run is made of converted arguments, so that what it computes from these, such as
    the Cholesky factor of its covariance, has the precision of the dtype. One that was made before is converted itself
    where it is a site's; what else the run computes with it is converted by `ComputedIn`.

    Attributes:
        changed: whether anything had to be converted.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self._of_sites = False
        self._computed = ComputedIn(dtype)

    @property
    def changed(self) -> bool:
        return self._of_sites or self._computed.changed

    def __enter__(self) -> Any:
        COERCIONS.append(self._made)
        self._computed.__enter__()
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self._computed.__exit__(*raised)
        COERCIONS.remove(self._made)

    def _made(self, kind: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """For Pyro's `COERCIONS`: the distribution to make in place of `kind(*args, **kwargs)`, or None."""
        given = in_dtype([*args, *kwargs.values()], self.dtype)
        if all(map(_is, given, [*args, *kwargs.values()])):
            return None
        self._of_sites = True
        return kind(*given[: len(args)], **dict(zip(kwargs, given[len(args) :], strict=True)))

    def _pyro_sample(self, msg: Any) -> None:
        fn, value = in_dtype((msg["fn"], msg["value"]), self.dtype)
        self._of_sites = self._of_sites or fn is not msg["fn"] or value is not msg["value"]
        msg["fn"], msg["value"] = fn, value


@dataclass(frozen=True, eq=False)
class ConvertedModel:
    """A Pyro model or guide whose sites are all in one dtype.

    Attributes:
        function: the model or guide.
        dtype: of its sites.
    """

    function: Callable[..., Any]
    dtype: torch.dtype

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model or guide."""
        with DtypeConversion(self.dtype):
            return self.function(*args, **kwargs)
