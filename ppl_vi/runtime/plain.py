"""Results as plain JSON beside plain arrays, and back, without pickle: what a file may hold is listed by who reads it.

`plain` turns a value into one that JSON has, and collects its arrays by name. `restored` does the reverse. It makes
arrays, tensors, lists, tuples, dicts and the listed classes from their fields; it calls nothing else that a file names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch

from ppl_vi.runtime.archives import DamagedFileError

Arrays = dict[str, np.ndarray]


def plain(value: Any, arrays: Arrays) -> Any:
    """A value as JSON has it; its arrays are added to `arrays`.

    Raises:
        TypeError: a part of it is of a kind that is not kept.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, np.ndarray | torch.Tensor):
        kind = "tensor" if isinstance(value, torch.Tensor) else "array"
        array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
        if array.dtype.hasobject:
            raise TypeError("an array of objects can't be kept")
        name = f"a{len(arrays)}"
        arrays[name] = array
        return {kind: name}
    if is_dataclass(value) or hasattr(value, "_fields"):
        names = value._fields if hasattr(value, "_fields") else [field.name for field in fields(value)]
        return {"type": type(value).__name__, "fields": {name: plain(getattr(value, name), arrays) for name in names}}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [plain(one, arrays) for one in value]}
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return {"dict": {name: plain(one, arrays) for name, one in value.items()}}
    raise TypeError(f"a {type(value).__name__} can't be kept")


def restored(held: Any, arrays: Mapping[str, np.ndarray], classes: Mapping[str, type], device: Any = "cpu") -> Any:
    """The value that `plain` made `held` of.

    Args:
        held: as JSON has it.
        arrays: by name.
        classes: by name, those that may be made.
        device: where tensors lie.

    Raises:
        DamagedFileError: `plain` has not made it, or it is of a class that is not listed.
    """
    if held is None or isinstance(held, bool | int | float | str):
        return held
    if not isinstance(held, dict) or not 1 <= len(held) <= 2:
        raise DamagedFileError("its header holds what is no value")
    kind, content = next(iter(held.items()))
    try:
        if kind == "type":
            named = {name: restored(one, arrays, classes, device) for name, one in held["fields"].items()}
            return classes[content](**named)
        return _restored(kind, content, arrays, classes, device)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, DamagedFileError):
            raise
        raise DamagedFileError(f"its header holds no usable {kind}: {type(error).__name__}: {error}") from error


def _restored(
    kind: str, content: Any, arrays: Mapping[str, np.ndarray], classes: Mapping[str, type], device: Any
) -> Any:
    """A value of one of the kinds that need no class."""
    if kind == "float":
        return {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[content]
    if kind == "array":
        return arrays[content]
    if kind == "tensor":
        return torch.from_numpy(arrays[content]).to(device)
    if kind == "dict":
        return {name: restored(one, arrays, classes, device) for name, one in content.items()}
    each = [restored(one, arrays, classes, device) for one in content]
    return {"list": each, "tuple": tuple(each)}[kind]
