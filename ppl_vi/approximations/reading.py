"""`approximation_of`: an `Approximation` from what people hold, as arrays, tables, ArviZ's results and files."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ppl_vi.approximations.approximation import Approximation, Draws, LogDensity
from ppl_vi.approximations.columns import variables_of
from ppl_vi.approximations.files import LOG_Q, Read, of_tree, read_files

CHAIN = ("chain", ".chain")
DRAW = ("draw", ".iteration", "iteration", ".draw")
FORMS = (
    "an Approximation, a dict of arrays (chain, draw, *shape), a pandas DataFrame, ArviZ's InferenceData or DataTree, "
    "or the path of a .csv, .nc or .npz"
)


def approximation_of(
    data: Any,
    *,
    log_q: np.ndarray | LogDensity | None = None,
    name: str = "",
    known: Collection[str] = (),
) -> tuple[Approximation, tuple[str, ...]]:
    """An approximation from draws in any of the forms that people hold, and remarks on what was left out.

    Args:
        data: see `FORMS`; a list of paths of Stan's CSV files, one a chain.
        log_q: log q of each draw, `(chain, draw)`, or a function; in place of one that the data have.
        name: what tables call it.
        known: names of variables that are not taken apart, although they end like `theta.1`.

    Raises:
        TypeError: the data have another form.
        ValueError: they are not usable; the message says why.
        FileNotFoundError: there is no such file.
    """
    if isinstance(data, Approximation):
        found = data if log_q is None else replace(data, log_q=log_q)
        return (replace(found, name=name) if name else found), ()
    read, default = _read(data, known)
    given = read.log_q if log_q is None else log_q
    return Approximation(read.draws, given, name=name or default), read.remarks


def _read(data: Any, known: Collection[str]) -> tuple[Read, str]:
    """The draws, and what they are called where nobody says."""
    if isinstance(data, str | Path):
        return read_files([Path(data)], known), Path(data).stem
    if isinstance(data, list | tuple) and data and all(isinstance(one, str | Path) for one in data):
        return read_files([Path(one) for one in data], known), Path(data[0]).stem
    if hasattr(data, "iloc") and hasattr(data, "columns"):
        return _of_table(data, known), "draws"
    if hasattr(data, "posterior") or hasattr(data, "data_vars"):
        return of_tree(data, f"the {type(data).__name__}"), "draws"
    if isinstance(data, Mapping):
        return Read(dict(data)), "draws"
    raise TypeError(f"draws must be {FORMS}; got {type(data).__name__}")


def _of_table(frame: Any, known: Collection[str]) -> Read:
    """Draws from a pandas DataFrame, a row a draw; columns or levels of the index may say which chain it is of."""
    if {"chain", "draw"} & set(frame.index.names):
        frame = frame.reset_index()
    columns = {_flat(name): frame[name].to_numpy() for name in frame.columns}
    chains = next((columns[name] for name in CHAIN if name in columns and name not in known), np.zeros(len(frame)))
    order = next((columns[name] for name in DRAW if name in columns and name not in known), np.arange(len(frame)))
    if not len(frame):
        raise ValueError("the DataFrame has no rows, where each is a draw")
    labels, counts = np.unique(chains, return_counts=True)
    if len(set(counts)) > 1:
        told = ", ".join(f"{chain}: {count}" for chain, count in zip(labels, counts, strict=True))
        raise ValueError(f"all chains must have as many draws; the DataFrame has {told}")
    texts = [name for name, value in columns.items() if value.dtype.kind not in "iuf" and name not in {*CHAIN, *DRAW}]
    for name in texts:
        if name in known:
            raise TypeError(f"the column '{name}' must hold numbers; it holds {columns[name].dtype}")
    place = np.lexsort((order, chains)).reshape(len(labels), -1)
    skipped = {*CHAIN, *DRAW} - set(known)
    own = {
        name: np.asarray(value, dtype=np.float64)[place]
        for name, value in columns.items()
        if name not in skipped and (not name.endswith("__") or name in known) and name not in texts
    }
    log_q = own.pop(LOG_Q, None)
    draws: Draws = variables_of(own, known)
    remarks = (f"columns without numbers: {', '.join(texts)}: ignored",) if texts else ()
    return Read(draws, log_q, remarks)


def _flat(name: Any) -> str:
    """The name of a column; ArviZ's are pairs of a group and a name."""
    if isinstance(name, tuple):
        parts = [str(part) for part in name if str(part)]
        return parts[-1] if parts else ""
    return str(name)
