"""Which engine takes the steps of a fit, and why."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vi.svi.engines.batched import BatchedEngine
from ppl_vi.svi.engines.compiled import plan
from ppl_vi.svi.engines.step import Engine, Portion
from ppl_vi.svi.objectives import Objective
from ppl_vi.svi.program import Program
from ppl_vi.svi.randomness import pseudo_random

ENGINES = ("auto", "compiled", "batched", "pyro")
SAVED = 0.85  # of a batched step's time
LOAD = 0.05  # seconds to load machine code that is kept, once the step has been traced
FEW_STEPS, FEW_DRAWS = 100, 10**6  # of all fits: not worth tracing a step twice


@dataclass(frozen=True)
class Chosen:
    """An engine, by name, and why it is this one where another was asked for or none by name."""

    name: str
    engine: Engine
    reason: str


def choose(
    name: str, program: Program, objective: Objective, theta: Tensor, num_particles: int, num_steps: int
) -> Chosen:
    """The vectorised engine for fits `theta` `(B, R, D)`.

    "auto" compiles where the time that `num_steps` compiled steps save, by a rough model, exceeds what compiling takes,
    which is next to nothing where the machine code is kept from before. It does not look at the clock: the same call
    gives the same numbers, to rounding, and to the last bit once the machine code is kept. What can't be compiled runs
    batched.
    """
    batched = BatchedEngine(program, objective)
    if name == "batched":
        return Chosen("batched", batched, "")
    fits = theta[..., 0].numel()
    if name == "auto" and num_steps <= FEW_STEPS and num_steps * fits * num_particles <= FEW_DRAWS:
        return Chosen("batched", batched, f"{num_steps} steps are too few to be compiled")
    generator = torch.Generator(device=theta.device).manual_seed(0)
    batch, replicas, _ = theta.shape
    portion = Portion.of(program, batch, replicas, num_particles)
    noise = pseudo_random(program.draws, (portion.num_steps, batch, replicas, num_particles), generator)
    try:
        found = plan(program, objective, theta, noise, num_steps)
        saved, why = SAVED * num_steps * found.batched_seconds, ""
        if name == "auto":
            if saved <= (LOAD if found.kept else found.seconds):
                takes = f"compiling would take about {found.seconds:.2g} s and save {saved:.1g} s"
                return Chosen("batched", batched, f"compiled steps would save {saved:.1g} s" if found.kept else takes)
            spent = "its code is kept" if found.kept else f"compiling takes about {found.seconds:.2g} s"
            why = f"saves about {saved:.2g} s of {num_steps} steps, {spent}"
        return Chosen("compiled", found.make(), why)
    except Exception as error:  # tracing meets whatever a guide does, compiling whatever the system lacks
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        return Chosen("batched", batched, f"can't be compiled here: {line}")
