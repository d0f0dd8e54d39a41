"""`fit`: a guide family to every problem of a target, by SVI."""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from torch import Tensor, nn

from ppl_vi.guides import Family, find_family
from ppl_vi.guides.autoguides import drawn_by_latents
from ppl_vi.guides.own import name_of
from ppl_vi.numerics.vmapping import decides_by_value, draws_outside_sites, indexes_by_mask
from ppl_vi.runtime.provenance import versions
from ppl_vi.svi.engines.choice import ENGINES, Chosen, choose
from ppl_vi.svi.engines.memory import ChunkedEngine, footprint
from ppl_vi.svi.engines.probe import step_gradients
from ppl_vi.svi.engines.pyro import pyro_elbo
from ppl_vi.svi.engines.step import Portion
from ppl_vi.svi.finishing import finished
from ppl_vi.svi.objectives import Objective, find_objective
from ppl_vi.svi.program import Program, load_parameters
from ppl_vi.svi.randomness import UnsupportedRandomnessError, pseudo_random
from ppl_vi.svi.result import Fit, Progress
from ppl_vi.svi.rounds import Run, Strategy, pyro_round, run_rounds, units_at, vectorised_round
from ppl_vi.svi.start import build_guide, start_guides
from ppl_vi.svi.stopping import (
    MAX_PARAMETERS,
    surrogate,
)
from ppl_vi.svi.support import SupportMismatchError, mismatch
from ppl_vi.target.target import Target

DECIDES = "decides by a drawn value what to do ('if', 'while', bool(), item())"


class UnsuitableModelError(TypeError):
    """The model or guide can't be fitted by the engine asked for, or by none; the message says why."""


class UnsuitableObjectiveError(ValueError):
    """The objective can't be used with this guide; the message says why."""


def fit(
    target: Target,
    family: Family | str,
    *,
    objective: str | Objective = "trace_elbo",
    engine: str = "auto",
    num_steps: int = 1000,
    num_particles: int = 256,
    num_replicas: int = 1,
    lr: float = 0.2,
    tolerance: float = 1e-3,
    seed: int = 0,
    max_memory: float | None = None,
    allow_support_mismatch: bool = False,
    progress: Progress | None = None,
) -> Fit:
    """Fits a guide family to every problem of a target by SVI.

    Adam in rounds, each twice as long as the one before, in units of each parameter's curvature where the round
    starts. Within a round the step size decays to a fiftieth and the last
    half of the iterates is averaged. From the second round on every fit is then checked for what it could still gain
    (`ppl_vi.svi.stopping`), and those that could gain no more than `tolerance` (at the end; before, 0.15 of it)
    have converged. Replicas start from the target's mode and curvature in
    unconstrained space, overdispersed, and have their own noise.

    Args:
        target: one problem or many.
        family: a guide family, or its name.
        objective: by name (`renyi:ALPHA` and `iwae:K` take a number) or an `Objective`.
        engine: "compiled", the steps of all fits as machine code; "batched", the same operation by operation; "pyro",
            Pyro's own `SVI` one fit at a time; "auto", the fastest (see `ppl_vi.svi.engines.choice.choose`).
        num_steps: at most.
        num_particles: draws of the guide a step.
        num_replicas: independent fits of each problem.
        lr: Adam's first step, in units of each parameter's own curvature.
        tolerance: nats.
        seed: of initial values and noise.
        max_memory: GiB that the steps and checks may take at once, beyond that replicas are taken in chunks, to the
            same numbers; None is half of what is free. What the fit keeps, its history above all, comes on top.
        allow_support_mismatch: fit a guide that leaks mass all the same.
        progress: called with the steps done and the most there can be.

    Raises:
        UnsuitableModelError: "compiled" or "batched" was asked for, and the model or guide can't be run for many draws
            at once; or the model's density is random.
        SupportMismatchError: the guide puts mass where the posterior has none.
        UnsuitableObjectiveError: the objective can't be used with this guide.
        ValueError: an argument is out of range.
    """
    began = time.perf_counter()
    settings = Strategy(find_objective(objective), num_steps, num_particles, lr, seed, tolerance, max_memory)
    _validate(settings, engine, num_replicas)
    try:
        return _fit(target, family, settings, engine, num_replicas, allow_support_mismatch, progress, began)
    except RuntimeError as error:
        if indexes_by_mask(error):
            raise UnsuitableModelError(
                f"{target.name}: the model or guide indexes by a mask of drawn values, which can't be done for many "
                "draws at once: choose by torch.where"
            ) from error
        if not draws_outside_sites(error):
            raise
        raise UnsuitableModelError(
            f"{target.name}: the model draws random numbers that are neither latent nor a plate's subsample, so that "
            "its density is random"
        ) from error


def _fit(
    target: Target,
    family: Family | str,
    settings: Strategy,
    engine: str,
    num_replicas: int,
    allow_support_mismatch: bool,
    progress: Progress | None,
    began: float,
) -> Fit:
    seed, num_particles = settings.seed, settings.num_particles
    name, family = (family, find_family(family)) if isinstance(family, str) else (name_of(family), family)
    guides = start_guides(family, target, num_replicas, seed)
    problem = mismatch(target, guides[0][0])
    if problem and not allow_support_mismatch:
        raise SupportMismatchError(problem)
    with target.isolated(seed):
        program = Program(target, guides[0][0])
        unsuitable = settings.objective.unsuitable(program)
        if unsuitable:
            raise UnsuitableObjectiveError(f"{settings.objective.name}: {unsuitable}")
        initial = torch.stack([torch.stack([_theta(program, guide) for guide in row]) for row in guides])
        unit = _units_in_some_way(program, settings, family)
        run = _start(initial, unit)
        engine, reason = _possible(engine, program, settings)
        room = footprint(program, settings.objective, initial, num_particles, settings.max_memory)
        probe = None
        if engine == "pyro":
            one_round = pyro_round(program, settings, guides)
        else:
            portion = Portion.of(program, target.num_problems, num_replicas, num_particles)
            size = room.num_replicas(target.num_problems, portion.num_replicas, num_particles)
            chosen = _choose(engine, program, settings, initial, size)
            engine, reason = chosen.name, chosen.reason
            one_round = vectorised_round(program, settings, ChunkedEngine(chosen.engine, size), portion)
            probe = step_gradients(chosen.engine, size, num_particles)
        run_rounds(program, settings, run, room, one_round, probe, progress)
    final, parameters = _finish(program, family, target, guides, run.theta)
    has_trajectory = final.layout == program.layout
    return Fit(
        target=target,
        family_name=name,
        family=family,
        objective=settings.objective.name,
        engine=engine,
        engine_reason=reason,
        seed=seed,
        seconds=time.perf_counter() - began,
        num_particles=num_particles,
        lr=settings.lr,
        parameters=parameters,
        scope=dict.fromkeys(parameters, "per_problem"),
        initial=program.layout.unflatten(initial) if has_trajectory else {},
        steps=np.array(run.steps if has_trajectory else [], dtype=np.int64),
        trajectory=torch.stack(run.trajectory) if has_trajectory else torch.empty(0, dtype=target.dtype),
        elbo_history=np.stack(run.bounds),
        status=run.status.astype(np.str_),
        stop_reason=run.stop_reason.astype(np.str_),
        num_steps=run.num_steps,
        predicted_gain=run.gain,
        support_mismatch=problem or "",
        versions=versions(),
        program=final,
    )


def _validate(settings: Strategy, engine: str, num_replicas: int) -> None:
    if engine not in ENGINES:
        raise ValueError(f"unknown engine '{engine}'; there are {', '.join(ENGINES)}")
    for what, value in (
        ("num_steps", settings.num_steps),
        ("num_particles", settings.num_particles),
        ("num_replicas", num_replicas),
    ):
        if value < 1:
            raise ValueError(f"{what} must be at least 1, got {value}")
    memory = 1.0 if settings.max_memory is None else settings.max_memory
    for what, number in (("lr", settings.lr), ("tolerance", settings.tolerance), ("max_memory", memory)):
        if not number > 0 or number == float("inf"):
            raise ValueError(f"{what} must be positive and finite, got {number}")
    check_objective(settings.objective, engine, settings.num_particles)


def check_objective(objective: Objective, engine: str, num_particles: int) -> None:
    """Checks what can be told of an objective before anything is computed.

    Raises:
        ValueError: it can't be had with this engine or this number of particles.
    """
    kind, _, samples = objective.name.partition(":")
    if kind == "iwae" and num_particles % int(samples):
        raise ValueError(f"num_particles must be a multiple of K = {samples} for iwae, got {num_particles}")
    if engine == "pyro":
        pyro_elbo(objective, num_particles)


def _units_in_some_way(program: Program, settings: Strategy, family: Family) -> Tensor:
    """The units; this first run for many draws at once shows whether that can be done."""
    while True:
        try:
            _try_large(program, settings)
            return _units(program, settings, family)
        except (RuntimeError, UnsupportedRandomnessError) as error:
            by_seeds = isinstance(error, UnsupportedRandomnessError)
            if not (decides_by_value(error) or by_seeds) or not program.replayable:
                raise
            program.run_one_by_one(str(error) if by_seeds else DECIDES, by_seeds)


def _try_large(program: Program, settings: Strategy) -> None:
    """A run of a guide so large that its units take none."""
    if program.layout.size > MAX_PARAMETERS:
        row = program.target.row(0)
        noise = pseudo_random(program.draws, (2,), torch.Generator(program.initial.device).manual_seed(0))
        surrogate(program, settings.objective, program.initial, row, noise)


def _possible(engine: str, program: Program, settings: Strategy) -> tuple[str, str]:
    """The engine, or Pyro's own SVI where that alone can do it and the choice is free, and why.

    Raises:
        UnsuitableModelError: the engine asked for can't do it.
        ValueError: Pyro's own SVI would have to, and has no such objective.
    """
    if not program.one_by_one or engine == "pyro":
        return engine, ""
    why = f"the model or guide {program.one_by_one}, which can't be done for many draws at once"
    if engine != "auto":
        raise UnsuitableModelError(f"{program.target.name}: {why}; engine='pyro' can")
    pyro_elbo(settings.objective, settings.num_particles)
    return "pyro", why


def _choose(engine: str, program: Program, settings: Strategy, initial: Tensor, size: int) -> Chosen:
    """The engine for `size` replicas at a time."""
    calls = settings.num_steps * math.ceil(initial.shape[1] / size)
    some = initial[:, :size].contiguous()
    return choose(engine, program, settings.objective, some, settings.num_particles, calls)


def _units(program: Program, settings: Strategy, family: Family) -> Tensor:
    """Curvature at the undispersed start: a replica that starts far out would measure the curvature there."""
    target = program.target
    central = [_theta(program, build_guide(family, target, b, seed=settings.seed)) for b in range(target.num_problems)]
    return units_at(program, settings, torch.stack(central)[:, None])


def _theta(program: Program, guide: nn.Module) -> Tensor:
    return program.layout.flatten({name: value.detach() for name, value in guide.named_parameters()})


def _start(theta: Tensor, unit: Tensor) -> Run:
    shape = theta.shape[:2]
    return Run(
        theta=theta,
        unit=unit.expand_as(theta),
        alive=torch.ones(shape, dtype=torch.bool, device=theta.device),
        status=np.full(shape, "not_converged", dtype=object),
        stop_reason=np.full(shape, "", dtype=object),
        num_steps=np.zeros(shape, dtype=np.int64),
        gain=np.full(shape, np.inf),
        bounds=[],
        steps=[0],
        trajectory=[theta],
    )


def _finish(
    program: Program, family: Family, target: Target, guides: list[list[nn.Module]], theta: Tensor
) -> tuple[Program, dict[str, Tensor]]:
    """What fits are scored by, and their parameters: the Laplace approximation at the mode where that is the family."""
    if not hasattr(guides[0][0], "laplace_approximation"):
        scored = drawn_by_latents(guides[0][0])
        after = program if scored is guides[0][0] else Program(target, scored)
        return after, program.layout.unflatten(theta)
    final: list[list[nn.Module]] = []
    for b, row in enumerate(guides):
        final.append([])
        for r, guide in enumerate(row):
            load_parameters(guide, program.layout.unflatten(theta[b, r]))
            final[-1].append(finished(guide, target, b))
    after = Program(target, final[0][0])
    stacked = torch.stack([torch.stack([_theta(after, guide) for guide in row]) for row in final])
    return after, after.layout.unflatten(stacked)
