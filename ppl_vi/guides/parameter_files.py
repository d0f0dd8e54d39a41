"""Files that hold the values of a guide, read without running any code that they may hold.

Pyro's `get_param_store().save(file)` writes parameters and their constraints, torch's `save(guide.state_dict(), file)`
writes tensors by name. Both are pickles, which may name any code. They are read by torch's own unpickler for weights,
which makes nothing but tensors and plain containers, and here the constraints of torch and Pyro as well.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyro.distributions.constraints as pyro_constraints
import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_vi.target.statements import Stored

CONSTRAINTS: list[Any] = [
    kind
    for module in (constraints, pyro_constraints)
    for kind in vars(module).values()
    if inspect.isclass(kind) and issubclass(kind, constraints.Constraint)
]
MADE_BY = "pyro.get_param_store().save(file) or torch.save(guide.state_dict(), file)"


@dataclass(frozen=True)
class FileParameters:
    """What a file holds: either of the two is empty.

    Attributes:
        stored: the content of a parameter store, by the names of the statements.
        state: the state of a module, by the names of its parameters and buffers.
    """

    stored: dict[str, Stored] = field(default_factory=dict)
    state: dict[str, Tensor] = field(default_factory=dict)


def parameters_in(file: Path) -> FileParameters:
    """The parameters that a file holds.

    Raises:
        ValueError: there is no such file, or it holds anything but parameters and their constraints.
    """
    try:
        with torch.serialization.safe_globals(CONSTRAINTS):
            held = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"{file} can't be read: {error.strerror or error}") from error
    except Exception as error:  # what torch raises for a file that is no archive, is damaged, or names other code
        raise ValueError(
            f"{file} holds other things than parameters, which are not read: write it by {MADE_BY}"
        ) from error
    found = _found(held)
    if found is None:
        raise ValueError(f"{file} holds no parameters: write it by {MADE_BY}")
    return found


def _found(held: Any) -> FileParameters | None:
    if not isinstance(held, Mapping) or not held:
        return None
    if set(held) == {"params", "constraints"}:
        kinds, values = held["constraints"], held["params"]
        if not (isinstance(values, Mapping) and isinstance(kinds, Mapping) and _are_tensors(values)):
            return None
        if any(not isinstance(kinds.get(name, constraints.real), constraints.Constraint) for name in values):
            return None
        return FileParameters(stored={n: Stored(v.detach(), kinds.get(n, constraints.real)) for n, v in values.items()})
    return FileParameters(state={n: v.detach() for n, v in held.items()}) if _are_tensors(held) else None


def _are_tensors(values: Mapping[Any, Any]) -> bool:
    return bool(values) and all(isinstance(n, str) and isinstance(v, Tensor) for n, v in values.items())
