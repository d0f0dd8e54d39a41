"""Which engine takes the steps of a fit, and why."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vi.svi.engines.batched import BatchedEngine
from ppl_vi.svi.engines.compiled import plan
from ppl_vi.svi.engines.portion import Portion
from ppl_vi.svi.engines.step import Engine
from ppl_vi.svi.objectives import Objective
from ppl_vi.svi.program import Program
from ppl_vi.svi.randomness import pseudo_random

# The share of a batched step's time that compiling saves, as measured on small guides. It is a rough figure, which only
# decides which engine is chosen.
SAVED_SHARE = 0.85
# The seconds that it takes to load machine code from the cache, once the step has been traced; as rough a figure.
LOAD_SECONDS = 0.05
# A fit of at most this many steps, with at most this many draws of the guide in all, takes less time than tracing the
# step a second time, so it is not estimated what compiling would save.
MAX_UNTRACED_STEPS, MAX_UNTRACED_DRAWS = 100, 10**6

_many_fits: ContextVar[bool] = ContextVar("_many_fits", default=False)


@contextmanager
def many_fits() -> Iterator[None]:
    """In this block "auto" chooses as if all machine code were in the cache, because many fits will use it.

    The choice, and with it the last digits of a fit, then does not depend on what was compiled before.
    """
    token = _many_fits.set(True)
    try:
        yield
    finally:
        _many_fits.reset(token)


@dataclass(frozen=True)
class Chosen:
    """An engine.

    Attributes:
        name: one of `ENGINES`.
        engine: the engine.
        reason: why it is this engine, where none or another one was asked for by name; else "".
    """

    name: str
    engine: Engine
    reason: str


def choose(
    name: str,
    program: Program,
    objective: Objective,
    theta: Tensor,
    num_particles: int,
    num_steps: int,
    one_step: bool = False,
) -> Chosen:
    """The batched or the compiled engine for fits `theta` `(B, R, D)`.

    "auto" compiles where the time that `num_steps` compiled steps save, by a rough model, exceeds the time that
    compiling takes, which is next to nothing where the machine code is in the cache. The choice does not depend on a
    clock: the same call gives the same numbers to rounding, and to the last bit once the machine code is in the cache.
    What can't be compiled runs batched. With `one_step` each call of inductor's code takes a single step.
    """
    batched = BatchedEngine(program, objective)
    if name == "batched":
        return Chosen("batched", batched, "")
    num_draws = num_steps * theta[..., 0].numel() * num_particles
    if name == "auto" and num_steps <= MAX_UNTRACED_STEPS and num_draws <= MAX_UNTRACED_DRAWS:
        return Chosen("batched", batched, f"{num_steps} steps are too few to be compiled")
    generator = torch.Generator(device=theta.device).manual_seed(0)
    batch, replicas, _ = theta.shape
    portion = Portion.of(program, batch, replicas, num_particles)
    noise = pseudo_random(
        program.draws, (1 if one_step else portion.num_steps, batch, replicas, num_particles), generator
    )
    try:
        found = plan(program, objective, theta, noise, num_steps)
        saved, why = SAVED_SHARE * num_steps * found.batched_seconds, ""
        if name == "auto":
            if saved <= (LOAD_SECONDS if found.is_cached or _many_fits.get() else found.seconds):
                takes = f"compiling would take about {found.seconds:.2g} s and save {saved:.1g} s"
                why = f"compiled steps would save {saved:.1g} s" if found.is_cached else takes
                return Chosen("batched", batched, why)
            spent = "its code is kept" if found.is_cached else f"compiling takes about {found.seconds:.2g} s"
            why = f"saves about {saved:.2g} s of {num_steps} steps, {spent}"
        return Chosen("compiled", found.make(), why)
    except Exception as error:  # a guide may do anything, and the system may lack anything that a compiler needs
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        return Chosen("batched", batched, f"can't be compiled here: {line}")
