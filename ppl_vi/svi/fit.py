"""`fit`: a guide family to every problem of a target, by SVI."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ppl_vi.guides import Family, find_family
from ppl_vi.guides.autoguides import drawn_by_latents
from ppl_vi.guides.own import name_of
from ppl_vi.numerics.vmapping import branches, draws_unasked, masks
from ppl_vi.svi.diagnosis import culprit
from ppl_vi.svi.engines.adam import pace
from ppl_vi.svi.engines.batched import BatchedEngine
from ppl_vi.svi.engines.choice import ENGINES, Chosen, choose
from ppl_vi.svi.engines.memory import UNTRACED, ChunkedEngine, Footprint, footprint
from ppl_vi.svi.engines.probe import Probe, probe_of
from ppl_vi.svi.engines.pyro import PyroSVI, pyro_elbo
from ppl_vi.svi.engines.step import LONG, TOGETHER, Engine, Portion, State
from ppl_vi.svi.objectives import Objective, find_objective
from ppl_vi.svi.program import Program, load_parameters
from ppl_vi.svi.randomness import UnsupportedRandomnessError, pseudo_random
from ppl_vi.svi.result import Fit, Progress, finished, versions
from ppl_vi.svi.start import build_guide, start_guides
from ppl_vi.svi.stopping import (
    HESSIAN_POINTS,
    MAX_PARAMETERS,
    NUM_SCRAMBLES,
    UNIT_POINTS,
    check,
    curvature_units,
    surrogate,
)
from ppl_vi.svi.support import SupportMismatchError, mismatch
from ppl_vi.target.isolation import isolated
from ppl_vi.target.target import Target

DECIDES = "decides by a drawn value what to do ('if', 'while', bool(), item())"
FIRST_ROUND = 0.125  # of num_steps; every further round is twice as long as the one before
MIN_ROUNDS = 2  # before a fit may stop: where noise vanishes at the optimum (stl), one round more gains many digits
FIRST_CHECK = 1024  # Sobol points a scramble in the first check; doubled in every further one
EARLY = 0.15  # of the tolerance, before the last round
DECAY = 0.02  # the step size at the end of a round, of that at its start
AVERAGED = 0.5  # the last part of a round, over which the iterates are averaged
SNAPSHOTS_PER_ROUND = 12


class UnsuitableModelError(TypeError):
    """The model or guide can't be fitted by the engine asked for, or by none; the message says why."""


class UnsuitableObjectiveError(ValueError):
    """The objective can't be used with this guide; the message says why."""


@dataclass(frozen=True)
class Settings:
    """What the strategy of a fit needs to know."""

    objective: Objective
    num_steps: int
    num_particles: int
    lr: float
    seed: int
    tolerance: float
    max_memory: float | None = None


@dataclass
class Run:
    """Where a batch of fits stands; what both engines fill in."""

    theta: Tensor
    unit: Tensor
    alive: Tensor
    status: np.ndarray
    stop_reason: np.ndarray
    num_steps: np.ndarray
    gain: np.ndarray
    bounds: list[np.ndarray]
    steps: list[int]
    trajectory: list[Tensor]
    step: int = 0


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
    settings = Settings(find_objective(objective), num_steps, num_particles, lr, seed, tolerance, max_memory)
    _validate(settings, engine, num_replicas)
    try:
        return _fit(target, family, settings, engine, num_replicas, allow_support_mismatch, progress, began)
    except RuntimeError as error:
        if masks(error):
            raise UnsuitableModelError(
                f"{target.name}: the model or guide indexes by a mask of drawn values, which can't be done for many "
                "draws at once: choose by torch.where"
            ) from error
        if not draws_unasked(error):
            raise
        raise UnsuitableModelError(
            f"{target.name}: the model draws random numbers that are neither latent nor a plate's subsample, so that "
            "its density is random"
        ) from error


def _fit(
    target: Target,
    family: Family | str,
    settings: Settings,
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
    with isolated(target.dtype, seed=seed):
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
            one_round = _pyro_round(program, settings, guides)
        else:
            portion = Portion.of(program, target.num_problems, num_replicas, num_particles)
            size = room.num_replicas(target.num_problems, portion.num_replicas, num_particles)
            chosen = _choose(engine, program, settings, initial, size)
            engine, reason = chosen.name, chosen.reason
            one_round = _vectorised_round(program, settings, ChunkedEngine(chosen.engine, size), portion)
            probe = probe_of(chosen.engine, size, num_particles)
        _run_rounds(program, settings, run, room, one_round, probe, progress)
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


def _validate(settings: Settings, engine: str, num_replicas: int) -> None:
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


def _units_in_some_way(program: Program, settings: Settings, family: Family) -> Tensor:
    """The units; this first run for many draws at once shows whether that can be done."""
    while True:
        try:
            _try_large(program, settings)
            return _units(program, settings, family)
        except (RuntimeError, UnsupportedRandomnessError) as error:
            by_seeds = isinstance(error, UnsupportedRandomnessError)
            if not (branches(error) or by_seeds) or not program.replayable:
                raise
            program.run_one_by_one(str(error) if by_seeds else DECIDES, by_seeds)


def _try_large(program: Program, settings: Settings) -> None:
    """A run of a guide so large that its units take none."""
    if program.layout.size > MAX_PARAMETERS:
        row = program.target.row(0)
        noise = pseudo_random(program.draws, (2,), torch.Generator(program.initial.device).manual_seed(0))
        surrogate(program, settings.objective, program.initial, row, noise)


def _possible(engine: str, program: Program, settings: Settings) -> tuple[str, str]:
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


def _choose(engine: str, program: Program, settings: Settings, initial: Tensor, size: int) -> Chosen:
    """The engine for `size` replicas at a time."""
    calls = settings.num_steps * math.ceil(initial.shape[1] / size)
    some = initial[:, :size].contiguous()
    return choose(engine, program, settings.objective, some, settings.num_particles, calls)


def _units(program: Program, settings: Settings, family: Family) -> Tensor:
    """Curvature at the undispersed start: a replica that starts far out would measure the curvature there."""
    target = program.target
    central = [_theta(program, build_guide(family, target, b, seed=settings.seed)) for b in range(target.num_problems)]
    return _units_at(program, settings, torch.stack(central)[:, None])


def _units_at(program: Program, settings: Settings, theta: Tensor, probe: Probe | None = None) -> Tensor:
    args = program.target.args
    return curvature_units(program, settings.objective, theta, args, settings.num_particles, settings.seed, probe)


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


Round = Callable[[Run, Tensor, int, float], Tensor]
Draws = tuple[Tensor, ...]


def _run_rounds(
    program: Program,
    settings: Settings,
    run: Run,
    room: Footprint,
    one_round: Round,
    probe: Probe | None,
    progress: Progress | None,
) -> None:
    """Rounds of growing length until every fit has stopped or the steps are used up."""
    length = max(1, round(settings.num_steps * FIRST_ROUND))
    number, theta = 0, run.theta
    while run.step < settings.num_steps and (run.status == "not_converged").any():
        left = settings.num_steps - run.step
        length = left if left < 2 * length else length
        if number:  # the curvature where the fit is now; a start far out says little of it
            run.unit = _in_chunks(room, UNIT_POINTS, theta, lambda some: _units_at(program, settings, some, probe))
        theta = one_round(run, theta, length, settings.lr / 2**number)
        number, length = number + 1, 2 * length
        last = run.step >= settings.num_steps
        gain = _gain(program, settings, run, room, theta, number, probe) if number >= MIN_ROUNDS or last else None
        _record(settings, run, theta, gain)
        if progress:
            progress(run.step, settings.num_steps)


def _gain(
    program: Program,
    settings: Settings,
    run: Run,
    room: Footprint,
    theta: Tensor,
    number: int,
    probe: Probe | None,
) -> np.ndarray:
    """What each fit could still gain nearby after round `number`, nats, `(B, R)`."""
    num_points = FIRST_CHECK * 2 ** max(number - MIN_ROUNDS, 0)

    def gain(both: Tensor) -> Tensor:
        point, unit = both.chunk(2, -1)
        found = check(
            program,
            settings.objective,
            point,
            program.target.args,
            unit,
            settings.num_particles,
            num_points=num_points,
            seed=settings.seed + 7919 * number,
            probe=probe,
        )
        return found.gain

    return _in_chunks(room, num_points, torch.cat([theta, run.unit], -1), gain).cpu().numpy()


def _in_chunks(room: Footprint, num_points: int, values: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """`function` of so many replicas at a time as can be checked with `num_points` a scramble, `(B, R, ...)`."""
    batch, replicas, dim = values.shape
    particles = max(NUM_SCRAMBLES * num_points, 2 * dim * HESSIAN_POINTS)
    size = room.num_replicas(batch, replicas, particles, share=UNTRACED)
    return torch.cat([function(some) for some in values.split(size, 1)], 1)


def _record(settings: Settings, run: Run, theta: Tensor, gain: np.ndarray | None) -> None:
    """Takes the averaged iterates of those still running, and stops those that have arrived."""
    running = run.status == "not_converged"
    mask = torch.as_tensor(running, device=theta.device)
    run.theta = torch.where(mask[..., None], theta, run.theta)
    run.num_steps[running] = run.step
    run.steps.append(run.step)
    run.trajectory.append(run.theta)
    if gain is None:
        return
    run.gain[running] = gain[running]
    for at in zip(*np.nonzero(running), strict=True):
        bound = (
            f"at most {gain[at]:.1e} nats to gain nearby" if np.isfinite(gain[at]) else "no bound on what is to gain"
        )
        run.stop_reason[at] = f"{bound} (tolerance {settings.tolerance:g})"
        last = run.step >= settings.num_steps
        if gain[at] <= settings.tolerance * (1.0 if last else EARLY):
            run.status[at] = "converged"
        elif last:
            run.stop_reason[at] = f"all {settings.num_steps} steps taken; {run.stop_reason[at]}"


def _schedule(length: int, lr: float) -> tuple[np.ndarray, np.ndarray]:
    """Step sizes and averaging weights of a round."""
    rates = lr * DECAY ** (np.arange(length) / length)
    first = int(length * (1 - AVERAGED))
    weights = np.where(np.arange(length) >= first, 1.0 / (length - first), 0.0)
    return rates, weights


def _snapshots(length: int) -> set[int]:
    """After which steps of a round its trajectory is noted, besides the last."""
    steps = TOGETHER * np.geomspace(1, length / TOGETHER, SNAPSHOTS_PER_ROUND).astype(int)
    return set(steps[:-1].tolist()) - {length}


def _mark_diverged(
    program: Program, settings: Settings, run: Run, at: tuple[int, int], step: int, theta: Tensor, noise: Draws
) -> None:
    """Notes that fit `at` left the finite numbers at a step, from `theta` `(D,)` on with `noise` `(P, *shape)`."""
    run.status[at] = "diverged"
    run.num_steps[at] = step
    where = culprit(program, settings.objective, theta, program.target.row(at[0]), noise)
    run.stop_reason[at] = f"diverged at step {step}: {where}"
    run.theta = run.theta.clone()
    run.theta[at] = theta


def _vectorised_round(program: Program, settings: Settings, engine: ChunkedEngine, portion: Portion) -> Round:
    """Rounds in which portions of the replicas take portions of the steps."""
    generator = torch.Generator(device=program.initial.device).manual_seed(settings.seed)
    slow = ChunkedEngine(BatchedEngine(program, settings.objective), engine.size)  # looks for what went wrong

    def walk(run: Run, state: State, replica: int, scalars: Tensor, ends: list[int]) -> list[tuple[State, Tensor]]:
        """The state of the replicas from `replica` on, and the bounds since the last, at each of `ends`."""
        prefix = (scalars.shape[-1], *state.alive.shape, settings.num_particles)
        noise = pseudo_random(program.draws, prefix, generator)
        found = []
        for begin, end in itertools.pairwise([0, *ends]):
            some, draws = scalars[:, begin:end], tuple(n[begin:end] for n in noise)
            after, bounds = engine.advance(state, some, draws)
            if not torch.equal(after.alive, state.alive):
                after, bounds = _watched(program, settings, run, slow, (state, replica, begin), some, draws)
            state = after
            found.append((state, bounds))
        return found

    def one_round(run: Run, theta: Tensor, length: int, lr: float) -> Tensor:
        rates, weights = _schedule(length, lr)
        numbers = np.stack([*pace(rates, np.arange(1, length + 1)), weights])
        scalars = torch.as_tensor(numbers, dtype=theta.dtype).to(theta.device)
        states = State.start(theta, run.unit, run.alive, engine.sizes).portions(portion.num_replicas)
        places = range(0, theta.shape[1], portion.num_replicas)
        still, held, snapshots = _still(run, theta), run.theta, _snapshots(length)
        for begin in range(0, length, portion.num_steps):
            end = min(begin + portion.num_steps, length)
            ends = sorted({s - begin for s in snapshots if begin < s < end} | {end - begin})
            walked = [walk(run, s, at, scalars[:, begin:end], ends) for s, at in zip(states, places, strict=True)]
            for there, parts in zip(ends, zip(*walked, strict=True), strict=True):
                passed, bounds = zip(*parts, strict=True)
                run.bounds.extend(torch.cat(bounds, 2).cpu().numpy())
                if begin + there in snapshots:
                    run.steps.append(run.step + there)
                    run.trajectory.append(torch.where(still, torch.cat(State.joined(passed).theta, -1), held))
            states = [found[-1][0] for found in walked]
            run.step += end - begin
        state = State.joined(states)
        run.alive = state.alive
        return torch.cat(state.total, -1)

    return one_round


def _watched(
    program: Program,
    settings: Settings,
    run: Run,
    slow: Engine,
    start: tuple[State, int, int],
    scalars: Tensor,
    noise: Draws,
) -> tuple[State, Tensor]:
    """Takes steps one by one, and marks the fits that diverge; `start` is a state, its first replica and its step."""
    state, replica, step = start
    sizes = [part.shape[-1] for part in state.theta]
    found = []
    for i in range(scalars.shape[-1]):
        draws = tuple(n[i : i + 1] for n in noise)
        before, joined = state, state.resized(slow.sizes)
        after, bounds = slow.advance(joined, scalars[:, i : i + 1], draws)
        state = after.resized(sizes)
        found.append(bounds)
        for b, r in (before.alive & ~state.alive).nonzero().tolist():
            drawn = tuple(n[0, b, r] for n in draws)
            at, where = (b, replica + r), run.step + step + i + 1
            _mark_diverged(program, settings, run, at, where, joined.theta[0][b, r], drawn)
    return state, torch.cat(found)


def _still(run: Run, theta: Tensor) -> Tensor:
    return torch.as_tensor(run.status == "not_converged", device=theta.device)[..., None]


def _pyro_round(program: Program, settings: Settings, guides: list[list[nn.Module]]) -> Round:
    generator = torch.Generator(device=program.initial.device).manual_seed(settings.seed)

    def one_fit(run: Run, at: tuple[int, int], theta: Tensor, rates: np.ndarray, weights: np.ndarray) -> Tensor:
        b, r = at
        guide = guides[b][r]
        load_parameters(guide, program.layout.unflatten(theta[b, r]))
        svi = PyroSVI(program, guide, settings.objective, program.target.row(b), run.unit[b, r], settings.num_particles)
        total = torch.zeros_like(theta[b, r])
        for i, (lr, weight) in enumerate(zip(rates, weights, strict=True)):
            if i % LONG == 0:
                prefix = (min(LONG, len(rates) - i), settings.num_particles)
                several = pseudo_random(program.draws, prefix, generator)
            noise = tuple(n[i % LONG] for n in several)
            before = svi.theta.clone()
            run.bounds[run.step + i][at] = svi.step(lr, noise)
            after = svi.theta
            if not (np.isfinite(run.bounds[run.step + i][at]) and bool(after.isfinite().all())):
                _mark_diverged(program, settings, run, at, run.step + i + 1, before, noise)
                return before
            total = total + weight * after
        return total

    def one_round(run: Run, theta: Tensor, length: int, lr: float) -> Tensor:
        rates, weights = _schedule(length, lr)
        run.bounds.extend(np.full(theta.shape[:2], np.nan) for _ in range(length))
        new = run.theta.clone()
        for b, r in zip(*np.nonzero(run.status == "not_converged"), strict=True):
            new[b, r] = one_fit(run, (b, r), theta, rates, weights)
        run.step += length
        return new

    return one_round


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
