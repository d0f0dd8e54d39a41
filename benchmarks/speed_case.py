"""What the files of `benchmarks.speed` share: a case to measure, the engines to measure it on, and what is found.

An engine is a function from a `Case` to a `Loop` that takes SVI steps. Each is imported only when it is asked for
(`engine`), because the libraries that they are written in change one another's settings and need not be installed.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

# Where steps are slow, there are as many timed blocks as fit into this many seconds, but at least three.
MAX_SECONDS_OF_SLOW_BLOCKS = 3.0
# The function that makes the loop of each engine, as `module:attribute`.
ENTRY = {
    "pyro": "benchmarks.speed_engines:pyro_loop",
    "pyro_jit": "benchmarks.speed_engines:pyro_jit_loop",
    "batched": "benchmarks.speed_engines:batched_loop",
    "compiled": "benchmarks.speed_engines:compiled_loop",
    "fit": "benchmarks.speed_engines:whole_fits",
    "numpyro": "benchmarks.speed_peers:numpyro_loop",
    "pymc": "benchmarks.speed_peers:pymc_loop",
    "floor": "benchmarks.speed_floor:floor_loop",
}
# The engines that run one fit after another, so that one fit is measured and its time multiplied.
ONE_BY_ONE = frozenset({"pyro", "pyro_jit", "pymc"})
# The steps of an engine that makes whole fits; for others, steps are taken two by two.
WHOLE_STEPS = {"fit": 1000}


class MissingError(Exception):
    """An engine can't be measured here; the message says why in one line."""


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        problem: a name of `benchmarks.speed_problems.PROBLEMS`.
        guide: the name of one of the problem's guides.
        engine: a name of `ENTRY`.
        replicas: how many independent fits are made at once.
        dtype: "float32" or "float64".
        num_particles: draws of the guide a step.
        size: size of the problem; None is its default.
        blocks: how many blocks of steps are timed.
        block_seconds: about how long a block takes.
        accuracy: seconds that a fit may take to come within `speed_accuracy.ACCURACY` of the best of its family; where
            they are 0, that time isn't measured.
        accuracy_particles: draws a step of the fit that is followed until it is so accurate.
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
    """An engine that is ready to take the steps of one case; making it includes tracing and compiling."""

    def advance(self, num_steps: int) -> None:
        """Takes steps, a multiple of `fewest_steps`, and returns when they have been computed."""

    def parameters(self) -> dict[str, Tensor]:
        """The guide's parameters now, `(R, *shape)`.

        For a guide of the toy these are the parameters of its form by name. For a guide that is Gaussian in
        unconstrained space they are `loc` `(R, D)` and `factor` `(R, D, K)`, with u = loc + factor noise.

        Raises:
            MissingError: the guide is of neither kind.
        """


Engine = Callable[[Case], Loop]


@dataclass(frozen=True)
class Timing:
    """What was measured of a case.

    Attributes:
        compile_seconds: from the first call to the end of the first two steps, by the clock.
        seconds_per_step: seconds of processor time that a step of all replicas took, one number a block.
        steps_per_block: how many steps a block has.
        measured_replicas: how many replicas were run; one where the engine runs fits one by one, because its time is
            then proportional to their number.
        seconds_to_accuracy: seconds until the fit was accurate, compilation included; None if that was not reached or
            not measured.
        steps_to_accuracy: the number of its steps, likewise.
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
    """Imports an engine by its name."""
    module, _, attribute = ENTRY[name].partition(":")
    found: Engine = getattr(importlib.import_module(module), attribute)
    return found


def fewest_steps(case: Case) -> int:
    """How many steps an engine takes at once at least."""
    return WHOLE_STEPS.get(case.engine, 2)


def timed_blocks(loop: Loop, blocks: int, block_seconds: float, fewest: int = 2) -> tuple[int, list[float]]:
    """Times blocks of steps.

    Args:
        loop: what takes the steps.
        blocks: how many blocks are timed; fewer where steps are slow, see `MAX_SECONDS_OF_SLOW_BLOCKS`.
        block_seconds: about how long a block takes.
        fewest: how many steps it takes at once at least; blocks have multiples of it.

    Returns:
        The number of steps a block, and the seconds that a step took in each block.
    """
    num_steps = fewest
    while (taken := seconds(loop, num_steps)) < block_seconds / 8:
        num_steps *= 2
    blocks = max(min(blocks, 3), min(blocks, int(MAX_SECONDS_OF_SLOW_BLOCKS / taken)))
    num_steps = fewest * max(1, round(num_steps * block_seconds / taken / fewest))
    return num_steps, [seconds(loop, num_steps) / num_steps for _ in range(blocks)]


def seconds(loop: Loop, num_steps: int) -> float:
    """The processor time that steps take; on a core that the process has to itself, that is the time by the clock."""
    began = time.process_time()
    loop.advance(num_steps)
    return time.process_time() - began
