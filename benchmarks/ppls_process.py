"""One fit of one system on one model, or its log density, in a process of its own, on one core with one thread."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.limited_process import answer, limit_this_process, run
from benchmarks.ppls_fits import Snapshot
from benchmarks.ppls_systems import DENSITIES, SYSTEMS
from benchmarks.speed_process import THREAD_VARIABLES
from ppl_vi.approximations.approximation import Approximation

MAX_SECONDS = 900.0  # of processor time, of one fit; one that takes longer is stopped, and its row says so
MEMORY = 12e9  # bytes
FIT, DENSITY = "fit", "density"
ARRAYS, POINTS = "arrays.npz", "points.npz"


@dataclass(frozen=True)
class Outcome:
    """What a process has fitted, or in its own words why it has not.

    Attributes:
        snapshots: in the order of their steps.
        failure: what went wrong; "" where nothing did.
    """

    snapshots: Sequence[Snapshot]
    failure: str = ""


def fit_in_own_process(system: str, model: str, setting: str) -> Outcome:
    """The fit of one system on one model at one setting."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            told = _run(folder, FIT, system, model, setting)
        except RuntimeError as error:
            return Outcome((), str(error))
        with np.load(Path(folder, ARRAYS)) as archive:
            arrays = dict(archive)
        return Outcome([_snapshot(one, arrays) for one in told])


def density_in_own_process(copy: str, model: str, points: Mapping[str, np.ndarray]) -> np.ndarray:
    """log p(x, z) of a copy of a model, a key of `DENSITIES`, at points `{site: (N, *shape)}`: `(N,)`, nats.

    Raises:
        RuntimeError: in the other system's words why there is none.
    """
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder, POINTS), allow_pickle=False, **points)
        return np.array(_run(folder, DENSITY, copy, model))


def _run(folder: str, *arguments: str) -> Any:
    found = run(
        "benchmarks.ppls_process", [*arguments, "--folder", folder], seconds=MAX_SECONDS, memory=MEMORY,
        environment=_environment(Path(folder)),
    )  # fmt: skip
    if found.status == "out of time":
        raise RuntimeError(f"not finished: {found.reason} of processor time")
    if found.status != "answered":
        raise RuntimeError(" ".join(found.reason.split())[:200])
    return found.value


def _environment(folder: Path) -> dict[str, str]:
    """One thread, double precision, and a folder of its own for compiled code: nothing is found compiled."""
    return {name: "1" for name in THREAD_VARIABLES} | {
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": "1",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip(),
        "PYTENSOR_FLAGS": f"floatX=float64,base_compiledir={folder / 'pytensor'}",
        "PYTHONWARNINGS": "ignore",
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "XDG_CACHE_HOME": str(folder / "cache"),
    }


def main(arguments: Sequence[str]) -> int:
    """Fits or evaluates; arrays are written into the folder, and the rest is answered."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=(FIT, DENSITY))
    parser.add_argument("names", nargs="+")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--bytes", type=float)
    found = parser.parse_args(arguments)
    limit_this_process(found.seconds, found.bytes)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    import torch

    torch.set_num_threads(1)
    try:
        answer((_fit if found.what == FIT else _density)(found.folder, *found.names))
    except Exception as error:  # another system may fail in any way, and its row then says how
        first, *_ = str(error).splitlines() or [""]
        print(f"{type(error).__name__}: {first}", file=sys.stderr)
        return 1
    return 0


def _density(folder: Path, copy: str, model: str) -> list[float]:
    with np.load(folder / POINTS) as points:
        return [float(value) for value in DENSITIES[copy](model)(dict(points))]


def _fit(folder: Path, system: str, model: str, setting: str) -> list[dict[str, Any]]:
    arrays: dict[str, np.ndarray] = {}
    snapshots = SYSTEMS[system].fit(model, setting, SYSTEMS[system].family)
    told = [_told(snapshot, str(k), arrays) for k, snapshot in enumerate(snapshots)]
    np.savez(folder / ARRAYS, allow_pickle=False, **arrays)
    return told


def _told(snapshot: Snapshot, key: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """A snapshot in JSON; its arrays are put beside, by name."""
    found = snapshot.approximation
    arrays |= {f"{key}/{name}": value for name, value in found.draws.items()}
    if isinstance(found.log_q, np.ndarray):
        arrays[f"{key} log_q"] = found.log_q
    return {
        "key": key,
        "steps": snapshot.steps,
        "seconds": snapshot.seconds,
        "compile_seconds": snapshot.compile_seconds,
        "name": found.name,
        "system": found.system,
    }


def _snapshot(told: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Snapshot:
    prefix = f"{told['key']}/"
    draws = {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
    found = Approximation(draws, arrays.get(f"{told['key']} log_q"), told["name"], told["system"])
    return Snapshot(told["steps"], told["seconds"], told["compile_seconds"], found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
