"""Draws from files: Stan's CSV, NetCDF as ArviZ writes it, and NumPy's `.npz`."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, is_zipfile

import numpy as np

from ppl_vi.approximations.approximation import Draws
from ppl_vi.approximations.columns import variables_of

LOG_Q = "log_q"  # a variable of this name in a file is log q of each draw
ENDINGS = (".csv", ".nc", ".npz")


@dataclass(frozen=True, eq=False)
class Read:
    """What was read.

    Attributes:
        draws: by the names of their variables, `(chain, draw, *shape)`.
        log_q: of each draw, `(chain, draw)`, where it is there.
        remarks: what was left out and why, in a line each.
    """

    draws: Draws
    log_q: np.ndarray | None = None
    remarks: tuple[str, ...] = ()


def read_files(paths: Sequence[Path], known: Collection[str]) -> Read:
    """Draws from one file, or from several of Stan, one a chain.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no file of draws; the message says what is wrong with it.
    """
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"there is no file of draws '{path}'")
    endings = {path.suffix.lower() for path in paths}
    if endings == {".csv"}:
        return _of_stan(paths, known)
    if len(paths) == 1 and endings == {".npz"}:
        return _of_npz(paths[0])
    if len(paths) == 1 and endings == {".nc"}:
        return _of_netcdf(paths[0])
    named = ", ".join(str(path) for path in paths)
    raise ValueError(f"draws are read from one file {' or '.join(ENDINGS)}, or from several .csv; got {named}")


def of_tree(tree: Any, where: str) -> Read:
    """Draws from the group `posterior` of ArviZ's InferenceData or DataTree, or from a Dataset.

    Raises:
        ValueError: there is no group `posterior`, or a variable lacks the dimensions chain and draw.
    """
    group = tree if hasattr(tree, "data_vars") and "posterior" not in getattr(tree, "children", {}) else None
    if group is None or not len(group.data_vars):
        group = getattr(tree, "posterior", None)
    if group is None:
        raise ValueError(f"{where} must have a group 'posterior', as ArviZ's files have")
    stats = getattr(tree, "sample_stats", None)
    draws: Draws = {}
    for name, variable in group.data_vars.items():
        if not {"chain", "draw"} <= set(variable.dims):
            raise ValueError(f"'{name}' of {where} must have the dimensions chain and draw; it has {variable.dims}")
        draws[str(name)] = np.asarray(variable.transpose("chain", "draw", ...).values)
    log_q = draws.pop(LOG_Q, None)
    if log_q is None and stats is not None and LOG_Q in stats.data_vars:
        log_q = np.asarray(stats[LOG_Q].transpose("chain", "draw").values)
    return Read(draws, log_q)


def _of_netcdf(path: Path) -> Read:
    from xarray import open_datatree  # importing it takes a second

    try:
        with open_datatree(path, engine="h5netcdf") as tree:
            return of_tree(tree.load(), str(path))
    except OSError as error:
        raise ValueError(f"{path} is no NetCDF file: {str(error).splitlines()[0]}") from error


def _of_npz(path: Path) -> Read:
    if not is_zipfile(path):  # of which NumPy would say to unpickle it
        raise ValueError(f"{path} is no .npz, as numpy.savez writes it: expected an array (chain, draw, *shape) a site")
    try:
        with np.load(path, allow_pickle=False) as archive:
            draws = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, BadZipFile, zlib.error) as error:
        why = "one of them holds Python objects" if "pickle" in str(error) else str(error).splitlines()[0]
        raise ValueError(f"{path} is no .npz of plain arrays of numbers: {why}") from error
    return Read(draws, draws.pop(LOG_Q, None))


def _of_stan(paths: Sequence[Path], known: Collection[str]) -> Read:
    """Chains from Stan's CSV files, which must have the same columns and as many draws each."""
    headers, tables, remarks = [], [], []
    for path in paths:
        header, table, comments = _csv(path)
        first, why = _first_draw(comments, len(table))
        if why:
            remarks.append(f"{path.name}: {why}")
        headers.append(header)
        tables.append(table[first:])
        if not len(tables[-1]):
            raise ValueError(f"{path} has no draws")
    for path, header, table in zip(paths, headers, tables, strict=True):
        if header != headers[0] or len(table) != len(tables[0]):
            raise ValueError(
                f"the files of several chains must have the same columns and as many draws; {paths[0]} has "
                f"{len(headers[0])} and {len(tables[0])}, {path} {len(header)} and {len(table)}"
            )
    values = np.stack(tables)
    own = {name: values[:, :, k] for k, name in enumerate(headers[0]) if not name.endswith("__") or name in known}
    log_q = own.pop(LOG_Q, None)
    return Read(variables_of(own, known), log_q, tuple(remarks))


def _csv(path: Path) -> tuple[list[str], np.ndarray, list[str]]:
    """The names of the columns, the rows, and the comments of a CSV file."""
    header: list[str] = []
    rows, comments = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if line.startswith("#"):
            comments.append(line.lstrip("# ").strip())
        elif line.strip() and not header:
            header = _named(line)
        elif line.strip():
            try:
                row = [float(part) for part in line.split(",")]
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
            if len(row) != len(header):
                raise ValueError(f"{path}, line {number}: {len(row)} numbers, where there are {len(header)} columns")
            rows.append(row)
    if not header or not rows:
        raise ValueError(
            f"{path} has no draws: a line of names and lines of numbers were expected, as Stan writes them"
        )
    return header, np.array(rows), comments


def _named(line: str) -> list[str]:
    """The names in the first line of a CSV, of which those with indices may hold commas: theta[0,1]."""
    names: list[str] = []
    for part in line.split(","):
        open_before = bool(names) and names[-1].count("[") > names[-1].count("]")
        if open_before:
            names[-1] += "," + part
        else:
            names.append(part)
    return [name.strip().strip('"') for name in names]


def _first_draw(comments: Sequence[str], num_rows: int) -> tuple[int, str]:
    """How many rows come before the draws, and why, as the comments of CmdStan or rstan tell."""
    told = {line.partition("=")[0].strip(): line.partition("=")[2].strip() for line in comments if "=" in line}
    of_cmdstan = any(line.startswith("method") and "variational" in line for line in comments)
    if of_cmdstan or any("(Variational Bayes)" in line for line in comments):  # the latter is rstan's
        return 1, "the first row is the mean of Stan's approximation, not a draw: left out"
    if told.get("save_warmup", "").split(" ")[0].lower() in ("1", "true"):
        num = -(-int(told.get("num_warmup", "0").split(" ")[0]) // int(told.get("thin", "1").split(" ")[0]))
        return min(num, num_rows), f"{num} draws of the warm-up: left out"
    return 0, ""
