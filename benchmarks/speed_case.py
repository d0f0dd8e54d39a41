"""One measurement of `benchmarks.speed`, in a process of its own that is pinned to one core before it imports anything.

The process gets a `Case` as JSON and the core's number, and prints its `Timing` as JSON in the last line of standard
output.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

LONG = 3.0  # seconds, for all blocks together where two steps take more than a block should
ENTRY = {  # where each engine begins
    "pyro": "benchmarks.speed_engines:pyro_loop",
    "pyro_jit": "benchmarks.speed_engines:pyro_jit_loop",
    "batched": "benchmarks.speed_engines:batched_loop",
    "compiled": "benchmarks.speed_engines:compiled_loop",
    "numpyro": "benchmarks.speed_peers:numpyro_loop",
    "pymc": "benchmarks.speed_peers:pymc_loop",
    "floor": "benchmarks.speed_floor:floor_loop",
}


class MissingError(Exception):
    """An engine can't be measured here; the message says why in one line."""


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        problem, guide: of `benchmarks.speed_problems`.
        engine: of `ENTRY`.
        replicas: independent fits at once.
        dtype: "float32" or "float64".
        num_particles: draws of the guide a step.
        size: of the problem, None for its own.
        blocks: timed.
        block_seconds: how long a block takes about.
        accuracy: seconds that the way to the accuracy may take, 0 not to go it.
        accuracy_particles: draws a step on it.
    """

    problem: str
    guide: str
    engine: str
    replicas: int
    dtype: str = "float32"
    num_particles: int = 1
    size: int | None = None
    blocks: int = 5
    block_seconds: float = 0.3
    accuracy: float = 0.0
    accuracy_particles: int = 16


class Loop(Protocol):
    """An engine ready to take steps of one case; making it traces, compiles and starts."""

    def advance(self, num_steps: int) -> None:
        """Takes an even number of steps, and returns when they have been computed."""

    def parameters(self) -> dict[str, Tensor]:
        """The guide's parameters now, `(R, *shape)`.

        For the toy those of its form by name; for guides that are Gaussian in unconstrained space `loc` `(R, D)` and
        `factor` `(R, D, K)`, with u = loc + factor noise.

        Raises:
            MissingError: they can't be told.
        """


Engine = Callable[[Case], Loop]


@dataclass(frozen=True)
class Timing:
    """What was found.

    Attributes:
        compile_seconds: from the first call to the end of the first two steps, by the clock.
        seconds_per_step: of each block, all replicas together, in the process's own time.
        steps_per_block: in each.
        measured_replicas: fewer than asked for where an engine runs fits one by one, so that its time is proportional.
        seconds_to_accuracy: with what compiling took; None if not reached or not measured.
        steps_to_accuracy: likewise.
        no_accuracy: why `seconds_to_accuracy` is None.
        missing: why nothing was measured, or "".
    """

    compile_seconds: float | None = None
    seconds_per_step: tuple[float, ...] = ()
    steps_per_block: int = 0
    measured_replicas: int = 0
    seconds_to_accuracy: float | None = None
    steps_to_accuracy: int | None = None
    no_accuracy: str = ""
    missing: str = ""


def engine(name: str) -> Engine:
    """An engine by name."""
    import importlib

    module, _, attribute = ENTRY[name].partition(":")
    found: Engine = getattr(importlib.import_module(module), attribute)
    return found


ONE_BY_ONE = frozenset({"pyro", "pyro_jit", "pymc"})  # fits are a Python loop


def timed_blocks(loop: Loop, blocks: int, block_seconds: float) -> tuple[int, list[float]]:
    """Steps a block, and the seconds a step took in each of them; fewer blocks where a step takes long, 3 at least."""
    num_steps = 2
    while (taken := seconds(loop, num_steps)) < block_seconds / 8:
        num_steps *= 2
    blocks = max(min(blocks, 3), min(blocks, int(LONG / taken)))
    num_steps = max(2, 2 * round(num_steps * block_seconds / taken / 2))
    return num_steps, [seconds(loop, num_steps) / num_steps for _ in range(blocks)]


def seconds(loop: Loop, num_steps: int) -> float:
    """Of the steps, in the process's own time: on a core that it has to itself that is the clock's."""
    began = time.process_time()
    loop.advance(num_steps)
    return time.process_time() - began
