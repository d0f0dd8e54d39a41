"""The file of a saved fit: how it is written, and what is checked before it is believed.

It is an archive of plain NumPy arrays with a digest (`ppl_vi.runtime.archives`), one of which holds JSON, the header.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ppl_vi.runtime.archives import DamagedFileError, check_array, content_of, packed, read_arrays, unsealed
from ppl_vi.runtime.files import replace_file
from ppl_vi.svi.status import Status

FORMAT, FORMAT_VERSION = "ppl_vi.Fit", 1
# The attributes of a fit that are saved under their own names: in the header, and as arrays.
SCALARS = ("objective", "engine", "engine_reason", "seed", "seconds", "num_particles", "lr")
HISTORIES = ("steps", "elbo_history", "status", "stop_reason", "num_steps", "predicted_gain")
LARGEST = 1e30  # that seconds or a step size can be

_log = logging.getLogger(__name__)


def write(path: Path, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Writes a header and arrays, all or nothing, with a digest of both."""
    content = packed({"header": np.frombuffer(json.dumps(header).encode(), dtype=np.uint8), **arrays})
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda file: file.write(content))


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The header of a saved fit, whose values are of the right types, and its arrays, which are still to be checked.

    Raises:
        FileNotFoundError: there is no file.
        DamagedFileError: the file is damaged or no saved fit.
        ValueError: the file is of another version.
    """
    with errors_naming(path):
        try:
            archive, has_digest = unsealed(content_of(path))
        except FileNotFoundError:
            raise FileNotFoundError(f"no fit at {path}") from None
        arrays = read_arrays(archive)
        header = _header(arrays.pop("header", None))
    if header.get("version") != FORMAT_VERSION:
        raise ValueError(f"{path} has format version {header.get('version')}; this ppl_vi reads {FORMAT_VERSION}")
    with errors_naming(path):
        _check_header(header)
    if not has_digest:
        _log.warning("%s has no digest, as files of earlier versions: save it anew to have damage noticed", path)
    return header, arrays


@contextmanager
def errors_naming(path: Path) -> Iterator[None]:
    """Names the file in the error that it is damaged."""
    try:
        yield
    except DamagedFileError as error:
        raise DamagedFileError(f"{path} is not a fit saved by ppl_vi, or is damaged: {error}") from error


def _header(held: np.ndarray | None) -> dict[str, Any]:
    if held is None or held.dtype != np.uint8 or held.ndim != 1:
        raise DamagedFileError("it has no header")
    try:
        header = json.loads(held.tobytes())
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"its header is no JSON: {error}") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise DamagedFileError("its header is that of something else")
    return header


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return (_is_whole(value) or isinstance(value, float)) and math.isfinite(value)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value)) and len(set(value)) == len(value)


def _is_learned(value: Any) -> bool:
    if value is None:
        return True
    names = {"values", "guide", "status", "stop_reason"}
    if not isinstance(value, dict) or set(value) != names or not _is_texts(value["values"]):
        return False
    return all(map(_is_text, (value["guide"], value["status"], value["stop_reason"])))


_HEADER: dict[str, Callable[[Any], bool]] = {
    "family": _is_text,
    "objective": _is_text,
    "engine": _is_text,
    "engine_reason": _is_text,
    "seed": lambda value: _is_whole(value) and -(2**63) <= value < 2**64,
    "seconds": lambda value: _is_number(value) and 0 <= value < LARGEST,
    "num_particles": lambda value: value == "auto" or (_is_whole(value) and 1 <= value < 2**31),
    "lr": lambda value: _is_number(value) and 0 < value < LARGEST,
    "parameters": _is_texts,
    "scope": lambda value: isinstance(value, dict) and set(value.values()) <= {"per_problem", "shared"},
    "support_mismatch": _is_text,
    "versions": lambda value: isinstance(value, dict) and all(map(_is_text, value.values())),
    "target": _is_text,
    "learned": _is_learned,
    "dtype": lambda value: value in ("float32", "float64"),
}


def _check_header(header: dict[str, Any]) -> None:
    header.setdefault("learned", None)  # which the first files of this format have not
    for name, is_good in _HEADER.items():
        try:
            good = name in header and is_good(header[name])
        except (TypeError, OverflowError):  # an unhashable value, a number that is too large
            good = False
        if not good:
            raise DamagedFileError(f"its header says nothing usable of '{name}'")


def check_arrays(
    header: dict[str, Any],
    arrays: dict[str, np.ndarray],
    num_problems: int,
    shapes: Sequence[torch.Size],
    dtype: torch.dtype,
) -> None:
    """Checks that a file's arrays are those of so many problems and of parameters of such shapes, and no others.

    Args:
        header: of the file.
        arrays: of the file.
        num_problems: of the target, `B`.
        shapes: of the guide's parameters, in order.
        dtype: of the target.

    Raises:
        DamagedFileError: an array is missing, is there although it should not be, or is of another shape or dtype.
    """
    status = arrays.get("status")
    if status is None or status.ndim != 2 or status.shape[1] < 1:
        raise DamagedFileError("'status' has no axis of replicas")
    fits = (num_problems, status.shape[1])
    if set(header["scope"]) != set(header["parameters"]):
        raise DamagedFileError("its header has 'scope' of other parameters")
    real = np.dtype(str(dtype).removeprefix("torch."))
    if header["dtype"] != real.name:
        raise DamagedFileError(f"its header has dtype {header['dtype']}, its target {real.name}")
    prefixes = ("parameter", "initial") if "initial_0" in arrays else ("parameter",)
    parameters = {f"{prefix}_{i}": (*fits, *shape) for prefix in prefixes for i, shape in enumerate(shapes)}
    for name, shape in parameters.items():
        check_array(name, arrays.get(name), real, shape)
    _check_histories(arrays, fits, sum(map(math.prod, shapes)), real)
    num_learned = len(header["learned"]["values"]) if header["learned"] else 0
    expected = {*parameters, "trajectory", *HISTORIES, *(f"learned_{i}" for i in range(num_learned))}
    if set(arrays) != expected:
        raise DamagedFileError(f"it has arrays of other names: {sorted(set(arrays) ^ expected)[:5]}")


def _check_histories(arrays: dict[str, np.ndarray], fits: tuple[int, int], size: int, real: np.dtype) -> None:
    """Checks what is kept of the steps of so many problems and replicas with `size` parameters each."""
    steps, trajectory, history = (arrays.get(name) for name in ("steps", "trajectory", "elbo_history"))
    num_noted = len(steps) if steps is not None and steps.ndim == 1 else -1
    check_array("steps", steps, np.dtype(np.int64), (num_noted,))
    # where the guide that is scored is not the one that was fitted, there is no trajectory
    check_array("trajectory", trajectory, real, (num_noted, *fits, size) if num_noted else (0,))
    num_taken = len(history) if history is not None and history.ndim == 3 else -1
    kind = real if history is None or history.dtype != np.float64 else np.dtype(np.float64)
    check_array("elbo_history", history, kind, (num_taken, *fits))
    check_array("num_steps", arrays.get("num_steps"), np.dtype(np.int64), fits)
    check_array("predicted_gain", arrays.get("predicted_gain"), np.dtype(np.float64), fits)
    for name in ("stop_reason", "status"):
        check_array(name, arrays.get(name), np.str_, fits)
    if max([*arrays["num_steps"].flat, *arrays["steps"]]) > num_taken:
        raise DamagedFileError(f"'elbo_history' has {num_taken} steps, fewer than were taken")
    if not set(arrays["status"].flat) <= set(map(str, Status)):
        raise DamagedFileError("'status' holds what is no status")
