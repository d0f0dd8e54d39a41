"""Runs the fits of one system on one model in a process of its own, on one core with one thread."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ppls_fits import Snapshot
from benchmarks.ppls_systems import DENSITIES, SETTINGS, SYSTEMS
from benchmarks.speed_process import THREAD_VARIABLES
from ppl_vi.approximations.approximation import Approximation

MAIN = "import sys; from benchmarks.ppls_process import main; sys.exit(main(sys.argv[1:]))"
ROOT = Path(__file__).resolve().parent.parent
MAX_SECONDS = 240.0  # of a process; one that takes longer is stopped, and its row says so
RUNS, ARRAYS, POINTS = "runs.json", "arrays.npz", "points.npz"


@dataclass(frozen=True)
class Outcome:
    """What a process has done: snapshots by setting, or in its own words why there are none.

    Attributes:
        snapshots: by setting.
        failures: by setting what went wrong.
        density: log p(x, z) of the system's own model at the points that it was given, `(N,)`; None of the zoo's own.
        missing: the packages that are not installed.
    """

    snapshots: Mapping[str, list[Snapshot]]
    failures: Mapping[str, str]
    density: np.ndarray | None = None
    missing: str = ""


def in_own_process(system: str, model: str, points: Mapping[str, np.ndarray]) -> Outcome:
    """The fits of one system on one model; `points` `{site: (N, *shape)}` are where its density is evaluated."""
    absent = [package for package in SYSTEMS[system].packages if importlib.util.find_spec(package) is None]
    if absent:
        return Outcome({}, {}, missing=f"not installed: {', '.join(absent)}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / POINTS, allow_pickle=False, **points)
        command = [sys.executable, "-W", "ignore", "-c", MAIN, system, model, name]
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=_environment(folder), capture_output=True, text=True, timeout=MAX_SECONDS,
                check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return Outcome({}, dict.fromkeys(SETTINGS, f"not finished in {MAX_SECONDS:g} s"))
        if done.returncode:
            return Outcome({}, dict.fromkeys(SETTINGS, _last_line(done.stderr) or f"exit code {done.returncode}"))
        return _read(folder)


def _environment(folder: Path) -> dict[str, str]:
    """One thread, double precision, and a folder of its own for compiled code: nothing is found compiled."""
    return (
        os.environ
        | {name: "1" for name in THREAD_VARIABLES}
        | {
            "JAX_PLATFORMS": "cpu",
            "JAX_ENABLE_X64": "1",
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip(),
            "PYTENSOR_FLAGS": f"floatX=float64,base_compiledir={folder / 'pytensor'}",
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
            "XDG_CACHE_HOME": str(folder / "cache"),
        }
    )


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return " ".join(lines[-1].split())[:200] if lines else ""


def main(arguments: list[str]) -> int:
    """Fits, evaluates the density, and writes both into the folder."""
    system, model, folder = arguments[0], arguments[1], Path(arguments[2])
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    import torch

    torch.set_num_threads(1)
    arrays: dict[str, np.ndarray] = {}
    runs: dict[str, Any] = {"snapshots": {}, "failures": {}}
    for setting in SETTINGS if SYSTEMS[system].has_common else SETTINGS[:1]:
        told = runs["snapshots"].setdefault(setting, [])
        try:
            for snapshot in SYSTEMS[system].fit(model, setting, SYSTEMS[system].family):
                told.append(_told(snapshot, f"{setting}:{len(told)}", arrays))
        except Exception as error:  # another system may fail in any way, and its row then says how
            runs["failures"][setting] = _last_line(f"{type(error).__name__}: {error}".splitlines()[0])
    if SYSTEMS[system].density:
        with np.load(folder / POINTS) as points:
            arrays["density"] = DENSITIES[SYSTEMS[system].density](model)(dict(points))
    np.savez(folder / ARRAYS, allow_pickle=False, **arrays)
    (folder / RUNS).write_text(json.dumps(runs))
    return 0


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


def _read(folder: Path) -> Outcome:
    runs = json.loads((folder / RUNS).read_text())
    with np.load(folder / ARRAYS) as archive:
        arrays = dict(archive)
    snapshots = {
        setting: [_snapshot(one, arrays) for one in told] for setting, told in runs["snapshots"].items() if told
    }
    return Outcome(snapshots, runs["failures"], arrays.get("density"))


def _snapshot(told: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Snapshot:
    prefix = f"{told['key']}/"
    draws = {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
    found = Approximation(draws, arrays.get(f"{told['key']} log_q"), told["name"], told["system"])
    return Snapshot(told["steps"], told["seconds"], told["compile_seconds"], found)
