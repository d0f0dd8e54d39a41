"""TODO."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ppl_vi.svi.diagnosis import culprit
from ppl_vi.svi.engines.adam import step_schedule
from ppl_vi.svi.engines.batched import BatchedEngine
from ppl_vi.svi.engines.memory import UNTRACED, ChunkedEngine, Footprint
from ppl_vi.svi.engines.probe import StepGradients
from ppl_vi.svi.engines.pyro import PyroSVI
from ppl_vi.svi.engines.step import LONG, TOGETHER, Engine, Portion, State
from ppl_vi.svi.objectives import Objective
from ppl_vi.svi.program import Program, load_parameters
from ppl_vi.svi.randomness import pseudo_random
from ppl_vi.svi.result import Progress
from ppl_vi.svi.stopping import (
    HESSIAN_POINTS,
    NUM_SCRAMBLES,
    UNIT_POINTS,
    check,
    curvature_units,
)

FIRST_ROUND = 0.125  # of num_steps; every further round is twice as long as the one before
MIN_ROUNDS = 2  # before a fit may stop: where noise vanishes at the optimum (stl), one round more gains many digits
FIRST_CHECK = 1024  # Sobol points a scramble in the first check; doubled in every further one
EARLY = 0.15  # of the tolerance, before the last round
DECAY = 0.02  # the step size at the end of a round, of that at its start
AVERAGED = 0.5  # the last part of a round, over which the iterates are averaged
SNAPSHOTS_PER_ROUND = 12
Draws = tuple[Tensor, ...]


@dataclass(frozen=True)
class Strategy:
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


def units_at(program: Program, settings: Strategy, theta: Tensor, probe: StepGradients | None = None) -> Tensor:
    args = program.target.args
    return curvature_units(program, settings.objective, theta, args, settings.num_particles, settings.seed, probe)


Round = Callable[[Run, Tensor, int, float], Tensor]


def run_rounds(
    program: Program,
    settings: Strategy,
    run: Run,
    room: Footprint,
    one_round: Round,
    probe: StepGradients | None,
    progress: Progress | None,
) -> None:
    """Rounds of growing length until every fit has stopped or the steps are used up."""
    length = max(1, round(settings.num_steps * FIRST_ROUND))
    number, theta = 0, run.theta
    while run.step < settings.num_steps and (run.status == "not_converged").any():
        left = settings.num_steps - run.step
        length = left if left < 2 * length else length
        if number:  # the curvature where the fit is now; a start far out says little of it
            run.unit = _in_chunks(room, UNIT_POINTS, theta, lambda some: units_at(program, settings, some, probe))
        theta = one_round(run, theta, length, settings.lr / 2**number)
        number, length = number + 1, 2 * length
        last = run.step >= settings.num_steps
        gain = _gain(program, settings, run, room, theta, number, probe) if number >= MIN_ROUNDS or last else None
        _record(settings, run, theta, gain)
        if progress:
            progress(run.step, settings.num_steps)


def _gain(
    program: Program,
    settings: Strategy,
    run: Run,
    room: Footprint,
    theta: Tensor,
    number: int,
    probe: StepGradients | None,
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


def _record(settings: Strategy, run: Run, theta: Tensor, gain: np.ndarray | None) -> None:
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
    program: Program, settings: Strategy, run: Run, at: tuple[int, int], step: int, theta: Tensor, noise: Draws
) -> None:
    """Notes that fit `at` left the finite numbers at a step, from `theta` `(D,)` on with `noise` `(P, *shape)`."""
    run.status[at] = "diverged"
    run.num_steps[at] = step
    where = culprit(program, settings.objective, theta, program.target.row(at[0]), noise)
    run.stop_reason[at] = f"diverged at step {step}: {where}"
    run.theta = run.theta.clone()
    run.theta[at] = theta


def vectorised_round(program: Program, settings: Strategy, engine: ChunkedEngine, portion: Portion) -> Round:
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
        numbers = np.stack([*step_schedule(rates, np.arange(1, length + 1)), weights])
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
    settings: Strategy,
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


def pyro_round(program: Program, settings: Strategy, guides: list[list[nn.Module]]) -> Round:
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
