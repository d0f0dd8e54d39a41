"""Measures one case of `benchmarks.speed` in a process of its own, with one thread on one core.

A new process starts with nothing compiled and no library's settings changed by another. `in_own_process` starts it with
the case as JSON and the core's number; `main` runs in it, and prints the `Timing` as JSON in the last line of standard
output.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.speed_case import ONE_BY_ONE, Case, Engine, MissingError, Timing, engine, fewest_steps, timed_blocks

MAIN = "import sys; from benchmarks.speed_process import main; sys.exit(main(sys.argv[1:]))"
ROOT = Path(__file__).resolve().parent.parent
INDUCTOR_CACHE = "TORCHINDUCTOR_CACHE_DIR"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
MAX_SECONDS = 900.0  # A measurement that takes longer is given up, and its row says so.


def measure(case: Case) -> Timing:
    """Measures one case in this process."""
    import torch

    from ppl_vi.target.isolation import isolated

    run = replace(case, replicas=1) if case.engine in ONE_BY_ONE else case
    make = engine(case.engine)
    with isolated(getattr(torch, case.dtype), seed=0):
        try:
            began = time.perf_counter()
            loop = make(run)
            loop.advance(fewest_steps(case))
            compiled = time.perf_counter() - began
            steps, times = timed_blocks(loop, case.blocks, case.block_seconds, fewest_steps(case))
        except MissingError as error:
            return Timing(missing=str(error))
        timing = Timing(compiled, tuple(times), steps, run.replicas)
        return _to_accuracy(case, run, make, timing) if case.accuracy else timing


def _to_accuracy(case: Case, run: Case, make: Engine, timing: Timing) -> Timing:
    """Adds the time that a new fit, with more draws a step, takes until it is accurate.

    The time to compile is that of the loop that was timed before: a process compiles faster the second time, and a user
    compiles once.
    """
    from benchmarks.speed_accuracy import Distance, steps_until

    if run != case:
        return replace(timing, no_accuracy=f"{case.replicas} fits one by one were not run")
    try:
        distance = Distance.of(case)
        loop = make(replace(case, num_particles=case.accuracy_particles))
        loop.advance(2)
        taken, steps = steps_until(loop, distance, case.accuracy)
    except MissingError as error:
        return replace(timing, no_accuracy=str(error))
    assert timing.compile_seconds is not None
    return replace(timing, seconds_to_accuracy=timing.compile_seconds + taken, steps_to_accuracy=2 + steps)


def in_own_process(case: Case, core: int | None) -> Timing:
    """Measures one case in a new process, on one core with one thread and with nothing compiled before."""
    with tempfile.TemporaryDirectory() as folder:
        return _in_own_process(case, core, {INDUCTOR_CACHE: folder})


def _in_own_process(case: Case, core: int | None, settings: dict[str, str]) -> Timing:
    one_core = {name: "1" for name in THREAD_VARIABLES} | {
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": str(int(case.dtype == "float64")),
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip(),
        "PYTENSOR_FLAGS": f"floatX={case.dtype}",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",  # where pip puts ninja
    }
    command = [sys.executable, "-c", MAIN, json.dumps(asdict(case))]
    if core is not None:
        command.append(str(core))
    environment = os.environ | one_core | settings
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=MAX_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return Timing(missing=f"not finished in {MAX_SECONDS:g} s")
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    last = lines[-1] if lines else f"exit code {done.returncode}"
    return _read(last) if done.returncode == 0 else Timing(missing=f"failed: {' '.join(last.split())[:200]}")


def _read(line: str) -> Timing:
    found: dict[str, Any] = json.loads(line)
    return Timing(**found | {"seconds_per_step": tuple(found["seconds_per_step"])})


def main(arguments: list[str]) -> int:
    """Pins the process to the core, measures the case and prints the timing."""
    if len(arguments) > 1:
        os.sched_setaffinity(0, {int(arguments[1])})
    import torch

    torch.set_num_threads(1)
    print(json.dumps(asdict(measure(Case(**json.loads(arguments[0]))))))
    return 0
