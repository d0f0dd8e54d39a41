"""Draws from named columns, such as `theta[0,1]` or Stan's `theta.1.2`, as arrays by the names of their variables."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from ppl_vi.approximations.approximation import Draws

BRACKETS = re.compile(r"^(.+?)\[\s*(\d+(?:\s*,\s*\d+)*)\s*\]$")
DOTS = re.compile(r"^(.+?)\.(\d+(?:\.\d+)*)$")


def variables_of(columns: Mapping[str, np.ndarray], known: Collection[str] = ()) -> Draws:
    """Variables from columns `(chain, draw)`: for each `(chain, draw, *shape)`.

    Indices may begin at 0, as Python's do, or at 1, as Stan's do: at the smallest index of the variable.

    Args:
        columns: by name. `theta[0,1]` and `theta.1.2` are numbers of `theta`, any other name is a variable.
        known: names that are taken as they stand.

    Raises:
        ValueError: a number of a variable is missing, or is there twice.
    """
    places: dict[str, dict[tuple[int, ...], str]] = {}
    for column in columns:
        match = None if column in known else BRACKETS.match(column) or DOTS.match(column)
        name, index = (match[1], tuple(map(int, re.split(r"[.,]", match[2])))) if match else (column, ())
        if index in places.setdefault(name, {}):
            raise ValueError(f"columns '{places[name][index]}' and '{column}' are the same number of '{name}'")
        places[name][index] = column
    return {name: _assembled(name, found, columns) for name, found in places.items()}


def _assembled(name: str, found: Mapping[tuple[int, ...], str], columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """The array of one variable from its columns by index."""
    if len({len(index) for index in found}) > 1:
        raise ValueError(f"the columns of '{name}' have different numbers of indices: {_some(list(found.values()))}")
    if () in found:
        return np.asarray(columns[found[()]])
    indices = np.array(list(found))
    first = 0 if (indices == 0).any() else 1
    shape = tuple(int(length) for length in indices.max(0) - first + 1)
    if len(found) != np.prod(shape):
        every = {tuple(int(i) + first for i in index) for index in np.ndindex(*shape)}
        missing = min(every - set(found))
        raise ValueError(
            f"the columns of '{name}' lack the index {list(missing)}: there are {_some(list(found.values()))}"
        )
    values = [np.asarray(columns[found[tuple(int(i) + first for i in index)]]) for index in np.ndindex(*shape)]
    return np.stack(values, -1).reshape(*values[0].shape, *shape)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f", ... {len(names)} in all" if len(names) > 3 else "")
