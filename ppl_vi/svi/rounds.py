"""The rounds of a fit: Adam with a falling step size, the average of the last iterates, then a convergence check.

Each round is twice as long as the one before and starts at its average, with half its step size and with the
preconditioner of the curvature there. Within a round the step size falls geometrically, and the iterates of the last
half are averaged (Polyak and Juditsky 1992, Acceleration of stochastic approximation by averaging).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ppl_vi.numerics.newton import descent_step
from ppl_vi.runtime.stages import Running, stage
from ppl_vi.svi.curvature import (
    DIFFERENCE,
    MAX_HESSIAN_PARAMETERS,
    MAX_HESSIANS,
    Curvature,
    nearby,
    preconditioner,
)
from ppl_vi.svi.engines.adam import step_schedule
from ppl_vi.svi.engines.blocks import BlockEngine
from ppl_vi.svi.engines.compiled import MAX_UNROLLED_STEPS
from ppl_vi.svi.engines.portion import power_of_2
from ppl_vi.svi.engines.step import State
from ppl_vi.svi.gradients import MAX_HESSIAN_POINTS
from ppl_vi.svi.program import Program
from ppl_vi.svi.running import RunningFit
from ppl_vi.svi.setup import (
    CHECK_SHARE,
    FREE_WORK,
    MAX_PARTICLES,
    MIN_HESSIAN_POINTS,
    QUICK_CHECK_POINTS,
    Strategy,
    find_how_draws_are_run,
    first_preconditioner,
    prepare,
)
from ppl_vi.svi.solves import most_gain, num_gradients
from ppl_vi.svi.stopping import CHECK_ERROR_RATE, GainBounds, gain_bounds

# The length of the first round, as a share of all steps.
FIRST_ROUND_SHARE = 0.125
# Rounds before a fit may stop: where the gradient's noise vanishes at the optimum, as with the objective "stl", one
# round more gains many digits.
MIN_ROUNDS = 2
# Sobol points of each scramble in the first convergence check; every further check has twice as many as the one before.
FIRST_CHECK_POINTS = 1024
# A check on fewer points does not stop a fit, even if it is the last that its cost allows: its Hessian is too rough.
MIN_STOPPING_POINTS = 64
# Steps get more draws until their noise alone would leave a fit this share of the tolerance short of its optimum. A
# smaller share costs more draws.
NOISE_SHARE = 0.05
# A step's noise is measured on so many sets of draws.
NUM_NOISE_SETS = 16
# How often one of the quick checks before it may be wrong: a tenth of what a full check may be.
QUICK_CHECK_ERROR_RATE = 0.1 * CHECK_ERROR_RATE
# Sobol points a scramble for the slopes that tell whether an optimum is far: all scrambles together are eight draws,
# whose noise is small beside the slope of an optimum that is many steps away.
SLOPE_POINTS = 1
# The step size at the end of a round, as a share of that at its start.
FINAL_RATE_SHARE = 0.02
# The last part of a round, over which the iterates are averaged, as a share of the round.
AVERAGED_SHARE = 0.5
# How often the parameters are noted within a round. The steps at which they are noted grow geometrically, and all are
# multiples of SNAPSHOT_STEPS, the first of them.
SNAPSHOTS_PER_ROUND, SNAPSHOT_STEPS = 12, 8


@dataclass(frozen=True)
class Schedule:
    """The steps of one round.

    Attributes:
        scalars: for each step what `Engine.advance` takes, `(3, length)`.
        snapshots: after which steps the parameters are noted, besides the last.
    """

    scalars: Tensor
    snapshots: frozenset[int]

    @staticmethod
    def of(length: int, lr: float, like: Tensor) -> Schedule:
        """A round of `length` steps whose first has step size `lr`, in the dtype and on the device of `like`."""
        rates = lr * FINAL_RATE_SHARE ** (np.arange(length) / length)
        first_averaged = int(length * (1 - AVERAGED_SHARE))
        weights = np.where(np.arange(length) >= first_averaged, 1.0 / (length - first_averaged), 0.0)
        numbers = np.stack([*step_schedule(rates, np.arange(1, length + 1)), weights])
        multiples = np.geomspace(1, length / SNAPSHOT_STEPS, SNAPSHOTS_PER_ROUND).astype(int)
        snapshots = set((SNAPSHOT_STEPS * multiples)[:-1].tolist()) - {length}
        return Schedule(torch.as_tensor(numbers, dtype=like.dtype).to(like.device), frozenset(snapshots))

    @property
    def length(self) -> int:
        """The number of steps."""
        return self.scalars.shape[-1]

    def stretches(self, max_steps: int) -> list[list[int]]:
        """The round in stretches of at most so many steps, each as the steps that bound its pieces.

        A stretch from step 32 to step 64 with a snapshot after step 40 is `[32, 40, 64]`.
        """
        found = []
        for begin in range(0, self.length, max_steps):
            end = min(begin + max_steps, self.length)
            found.append([begin, *sorted(step for step in self.snapshots if begin < step < end), end])
        return found


def fit_program(program: Program, strategy: Strategy, initial: Tensor, centre: Tensor, engine: str) -> RunningFit:
    """Fits of a model and guide, after all of their rounds.

    Args:
        program: the model and guide.
        strategy: how the fits are made.
        initial: the parameters of all fits before their first step, `(B, R, D)`.
        centre: the parameters where the replicas of each problem start on average, `(B, 1, D)`.
        engine: as `ppl_vi.svi.fit.fit` takes it.

    Raises:
        UnsuitableModelError: the model or guide can't be run by this engine.
        ValueError: there is too little memory, or Pyro's own SVI is needed and has no such objective.
    """
    with stage("preparing the steps"):
        find_how_draws_are_run(program, strategy)
        setup = prepare(program, strategy, initial, engine)
        running = RunningFit.start(setup, initial, first_preconditioner(setup, centre))
    run_rounds(running)
    return running


def run_rounds(fit: RunningFit) -> None:
    """Takes rounds until every fit has stopped or all steps are taken."""
    with stage("fitting", "step", fit.setup.strategy.num_steps) as running:
        _run_rounds(fit, running)


def _run_rounds(fit: RunningFit, running: Running) -> None:
    strategy, theta = fit.setup.strategy, fit.theta
    generator = torch.Generator(device=theta.device).manual_seed(strategy.seed)
    length, number = max(1, round(strategy.num_steps * FIRST_ROUND_SHARE)), 0
    while not fit.is_last and fit.is_running.any():
        left = strategy.num_steps - fit.num_steps_taken
        length = left if left < 2 * length else length
        schedule = Schedule.of(length, strategy.lr / 2**number, theta)
        theta = _take_round(fit, theta, schedule, generator, running)
        fit.end_round(theta)
        number, length = number + 1, 2 * length
        with stage("checking convergence"):
            curvature = _curvature(fit, theta, number, fit.setup.preconditioner_points)
            if number >= _min_rounds(fit) or fit.is_last:
                gain, curvature = _gain(fit, theta, curvature, number)
                fit.stop_converged(gain)
            if curvature is not None and number >= _min_rounds(fit) and fit.setup.is_wide:
                _finish_by_newton(fit, theta, curvature, number)
            if not fit.is_last and fit.is_running.any():
                _prepare_round(fit, theta, curvature, length, generator)
        running.at(fit.num_steps_taken)


def _is_wide(fit: RunningFit) -> bool:
    return fit.setup.is_wide


def _min_rounds(fit: RunningFit) -> int:
    return 1 if fit.setup.is_wide else MIN_ROUNDS


# ---- the steps of a round


def _take_round(
    fit: RunningFit, theta: Tensor, schedule: Schedule, generator: torch.Generator, running: Running
) -> Tensor:
    """Takes the steps of one round from `theta` on; the averages of the iterates, both `(B, R, D)`."""
    portion = fit.setup.portion(fit.num_particles)
    fit.step_work += fit.setup.work(schedule.length * fit.num_particles * fit.setup.num_fits)
    was_running, held = torch.as_tensor(fit.is_running, device=theta.device)[..., None], fit.theta
    is_stepped = torch.as_tensor(fit.is_stepped, device=theta.device)
    state = State.start(theta, fit.preconditioner.steps, is_stepped, fit.setup.engine.sizes)
    states = state.portions(portion.num_replicas)
    first_replicas = range(0, theta.shape[1], portion.num_replicas)
    for stretch in schedule.stretches(portion.num_steps):
        walks = [
            _walk(fit, state, replica, schedule.scalars, stretch, generator, running)
            for state, replica in zip(states, first_replicas, strict=True)
        ]
        for end, pieces in zip(stretch[1:], zip(*walks, strict=True), strict=True):
            fit.bounds.extend(torch.cat([piece.bounds for piece in pieces], 2).cpu().numpy())
            if end in schedule.snapshots:
                passed = State.joined([piece.state for piece in pieces]).whole_theta
                fit.note(torch.where(was_running, passed, held))
        running.at(fit.num_steps_taken)
        states = [walk[-1].state for walk in walks]
    return State.joined(states).average


@dataclass(frozen=True)
class Piece:
    """What some steps of some replicas gave.

    Attributes:
        state: the state after them.
        bounds: the bounds of each step, `(num, B, R)`, nats.
    """

    state: State
    bounds: Tensor


def _walk(
    fit: RunningFit,
    state: State,
    replica: int,
    scalars: Tensor,
    stretch: list[int],
    generator: torch.Generator,
    running: Running,
) -> list[Piece]:
    """Takes one stretch of a round's steps, for the replicas from `replica` on, whose state this is, piece by piece."""
    start = stretch[0]
    noise = fit.setup.noise((stretch[-1] - start, *state.alive.shape, fit.num_particles), generator)
    pieces = []
    for begin, end in itertools.pairwise(stretch):
        own_scalars, own_noise = scalars[:, begin:end], tuple(n[begin - start : end - start] for n in noise)
        piece = _walk_in_spans(fit, state, own_scalars, own_noise, running)
        if not torch.equal(piece.state.alive, state.alive):
            num_steps = fit.num_steps_taken + begin - start
            piece = _walk_step_by_step(fit, state, replica, num_steps, own_scalars, own_noise)
        state = piece.state
        pieces.append(piece)
    return pieces


def _walk_in_spans(
    fit: RunningFit, state: State, scalars: Tensor, noise: tuple[Tensor, ...], running: Running
) -> Piece:
    """Takes the steps of one piece, in several calls where these take so long that there is something to tell."""
    bounds, share = [], state.alive.shape[1] / fit.theta.shape[1]
    for begin, end in running.spans(scalars.shape[-1], MAX_UNROLLED_STEPS):
        state, bound = fit.setup.engine.advance(state, scalars[:, begin:end], tuple(n[begin:end] for n in noise))
        bounds.append(bound)
        running.advance((end - begin) * share)
    return Piece(state, torch.cat(bounds))


def _walk_step_by_step(
    fit: RunningFit, state: State, replica: int, num_steps: int, scalars: Tensor, noise: tuple[Tensor, ...]
) -> Piece:
    """Takes steps one by one, and marks the fits that diverge.

    Args:
        fit: the fits.
        state: of the replicas from `replica` on.
        replica: the first of them.
        num_steps: the steps that have been taken before.
        scalars, noise: as `Engine.advance` takes them.
    """
    engine, sizes = fit.setup.one_step_engine, [part.shape[-1] for part in state.theta]
    bounds, state = [], state.resized(engine.sizes)
    for i in range(scalars.shape[-1]):
        draws = tuple(n[i : i + 1] for n in noise)
        before = state
        state, bound = engine.advance(before, scalars[:, i : i + 1], draws)
        bounds.append(bound)
        for b, r in (before.alive & ~state.alive).nonzero().tolist():
            theta, drawn = before.whole_theta[b, r], tuple(n[0, b, r] for n in draws)
            fit.mark_diverged(b, replica + r, num_steps + i + 1, theta, drawn)
    return Piece(state.resized(sizes), torch.cat(bounds))


# ---- between rounds


def _curvature(fit: RunningFit, theta: Tensor, number: int, most: int) -> Curvature | None:
    """The curvature at `theta` `(B, R, D)`, where round `number` ended, on at most so many points.

    Returns:
        None where there are too many parameters, or where no steps follow and no check could use it.
    """
    setup, replicas = fit.setup, fit.running_replicas
    if setup.program.layout.size > MAX_HESSIAN_PARAMETERS or not len(replicas):
        return None
    units, running = fit.preconditioner.units, theta[:, replicas]
    affordable = setup.affordable_hessian_points(fit.num_particles)
    most_apart = min(MAX_HESSIANS, max(1, affordable // MIN_HESSIAN_POINTS))
    chosen, of_running = nearby(running, units[:, replicas], most_apart)
    if fit.is_last and affordable // chosen.shape[1] < MIN_STOPPING_POINTS:
        return None
    num_points = power_of_2(min(most, affordable // chosen.shape[1]))
    places = replicas[chosen][..., None]
    points, steps = theta.take_along_dim(places, 1), DIFFERENCE * units.take_along_dim(places, 1)
    noise = setup.estimator.halves(num_points, setup.strategy.seed + number)
    hessians = setup.estimator.hessians(points, noise, steps)
    group = of_running.new_zeros(theta.shape[:2]).index_copy(1, replicas, of_running)
    return Curvature(group, hessians, num_points)


def _prepare_round(
    fit: RunningFit, theta: Tensor, curvature: Curvature | None, length: int, generator: torch.Generator
) -> None:
    """Sets the preconditioner, and how many draws a step has, for the round that starts at `theta` `(B, R, D)`."""
    setup, replicas = fit.setup, fit.running_replicas
    if curvature is not None:
        noise = setup.estimator.noise(SLOPE_POINTS, setup.strategy.seed)
        running = theta[:, replicas]
        gradients = setup.estimator.gradients(running, noise).mean(2)
        found = preconditioner(running, curvature.of_replicas(replicas), gradients, setup.is_adaptive)
        fit.preconditioner = fit.preconditioner.with_replicas(replicas, found)
    if setup.is_adaptive and isinstance(setup.engine, BlockEngine) and setup.program.draws:
        limit = NOISE_SHARE * setup.strategy.tolerance * length * AVERAGED_SHARE
        while fit.num_particles < MAX_PARTICLES and _excess_of_noise(fit, setup.engine, theta, generator) > limit:
            fit.num_particles *= 2


def _excess_of_noise(fit: RunningFit, engine: BlockEngine, theta: Tensor, generator: torch.Generator) -> float:
    """How far the noise of one step keeps a fit from its optimum, nats; the median over the fits that run.

    Averaged over T steps, iterates around an optimum with the Hessian H are off by the covariance H^-1 S H^-1 / T,
    where S is that of a step's gradient, and so tr(H^-1 S) / 2T nats short of it (Polyak and Juditsky 1992). Along
    axes of length 1 / sqrt(h) that is half the sum of the gradient's variances along these. Returned is the value for
    T = 1; inf where a gradient is not finite.
    """
    replicas = fit.running_replicas
    batch, num, dim = theta.shape[0], len(replicas), theta.shape[2]
    lanes = theta[:, replicas].repeat_interleave(NUM_NOISE_SETS, 1)
    noise = fit.setup.noise((batch, num * NUM_NOISE_SETS, fit.num_particles), generator)
    gradients = engine.gradients(lanes, noise)[0].reshape(batch, num, NUM_NOISE_SETS, dim)
    along = gradients @ fit.preconditioner.steps[:, replicas]  # the axes, `(B, N, D, D)`
    excess = (along.var(2).sum(-1) / 2)[torch.from_numpy(fit.is_running)[:, replicas]]
    return float(torch.where(excess.isnan(), torch.inf, excess).median())


@dataclass(frozen=True)
class Look:
    """One of the checks that follow one another until it is told whether a fit has converged.

    Attributes:
        num_points: Sobol points a scramble.
        seed: of its noise.
        error_rate: how often either of its bounds may be wrong along an axis.
    """

    num_points: int
    seed: int
    error_rate: float


def _looks(fit: RunningFit, number: int) -> list[Look]:
    """The checks after round `number`, the quick ones first."""
    seed = fit.setup.strategy.seed + 7919 * number  # each check has noise of its own
    full = Look(FIRST_CHECK_POINTS * 2 ** max(number - MIN_ROUNDS, 0), seed, CHECK_ERROR_RATE)
    if not fit.setup.strategy.objective.additive:  # such an objective has the same noise whatever the points
        return [full]
    of_an_axis = QUICK_CHECK_ERROR_RATE / fit.setup.program.layout.size  # one wrong axis of all is enough
    return [*(Look(num, seed + 1 + k, of_an_axis) for k, num in enumerate(QUICK_CHECK_POINTS)), full]


def _gain(
    fit: RunningFit, theta: Tensor, curvature: Curvature | None, number: int
) -> tuple[np.ndarray, Curvature | None]:
    """The most that each fit could still gain near `theta` `(B, R, D)` after round `number`, nats, `(B, R)`.

    Checks on few points come first: a fit that has plainly not converged is told by these, and is not checked again.
    Only where others are left is the curvature found on more points; it is given back. A check that would cost more
    than its share of the steps takes fewer points, or is left out.
    """
    fit.is_checked = False
    if fit.setup.program.layout.size > MAX_HESSIAN_PARAMETERS:
        return _gain_of_many(fit, theta, number), None
    found, is_open = np.full(theta.shape[:2], np.inf), fit.is_running
    if curvature is None:
        return found, None
    each = fit.setup.affordable_hessian_points(fit.num_particles) // curvature.hessians.shape[1]
    if each < MIN_STOPPING_POINTS:  # no check could stop a fit
        return found, curvature
    looks = _looks(fit, number)
    # stopping here would save the steps that are left, so these count
    left = (fit.setup.strategy.num_steps - fit.num_steps_taken) * fit.num_particles * fit.setup.num_fits
    budget = max(FREE_WORK, CHECK_SHARE * (fit.step_work + fit.setup.work(left)))
    if not fit.is_last:  # some is kept for the check after the last round
        budget -= fit.setup.check_work(QUICK_CHECK_POINTS[-1], int(is_open.any(0).sum()))
    for look in looks:
        replicas = torch.from_numpy(np.flatnonzero(is_open.any(0)))
        affordable = fit.setup.affordable_points(look.num_points, len(replicas), budget - fit.check_work)
        if not len(replicas) or affordable < min(look.num_points, MIN_STOPPING_POINTS):
            break
        if look is looks[-1] and curvature.num_points < power_of_2(min(MAX_HESSIAN_POINTS, each)):
            curvature = _curvature(fit, theta, number, MAX_HESSIAN_POINTS) or curvature
        look = replace(look, num_points=affordable)
        fit.check_work += fit.setup.check_work(look.num_points, len(replicas))
        fit.is_checked = True
        bounds = _bounds(fit, theta, replicas, curvature, look)
        least, most = bounds.least.cpu().numpy(), bounds.most.cpu().numpy()
        at = replicas.numpy()
        is_rough = min(look.num_points, curvature.num_points) < MIN_STOPPING_POINTS
        found[:, at] = np.where(is_open[:, at] & ~(is_rough & (most <= fit.gain_limit)), most, found[:, at])
        is_open[:, at] &= (least <= fit.gain_limit) & (is_rough | (most > fit.gain_limit))
    return found, curvature


def _finish_by_newton(fit: RunningFit, theta: Tensor, curvature: Curvature, number: int) -> None:
    """Moves fits that run by a step of Newton's method from `theta` `(B, R, D)`, where they have converged after it.

    The gradient where they arrive is that of new noise. The others stay where they are, and take another round.
    """
    replicas, look = fit.running_replicas, _looks(fit, number)[-1]
    look = replace(look, num_points=QUICK_CHECK_POINTS[-1], seed=look.seed + len(QUICK_CHECK_POINTS) + 1)
    if not len(replicas) or curvature.num_points < MIN_STOPPING_POINTS:
        return
    fit.check_work += 2 * fit.setup.check_work(look.num_points, len(replicas))
    units, hessian = fit.preconditioner.units[:, replicas], curvature.of_replicas(replicas).mean(2)
    noise = fit.setup.estimator.noise(look.num_points, look.seed)
    gradient = fit.setup.estimator.controlled_gradients(theta[:, replicas], noise).mean(2) * units
    hessian = hessian * units[..., None] * units[..., None, :]
    step = descent_step(gradient, hessian, torch.ones_like(gradient[..., 0]))
    moved = theta.index_copy(1, replicas, theta[:, replicas] + step * units)
    most = _bounds(fit, moved, replicas, curvature, replace(look, seed=look.seed + 1)).most
    gain = np.full(theta.shape[:2], np.inf)
    gain[:, replicas.numpy()] = most.cpu().numpy()
    fit.take(moved, gain)


def _gain_of_many(fit: RunningFit, theta: Tensor, number: int) -> np.ndarray:
    """The same for fits of so many parameters that there is no Hessian: after the last round alone.

    Before it the noise of so many parameters would mostly hide whether a fit may stop.
    """
    found, setup = np.full(theta.shape[:2], np.inf), fit.setup
    look, replicas = _looks(fit, number)[-1], fit.running_replicas
    budget = max(FREE_WORK, CHECK_SHARE * fit.step_work)

    def cost(points: int) -> float:
        each = num_gradients(points, min(MAX_HESSIAN_POINTS, points))
        return setup.work(each * len(replicas) * setup.program.target.num_problems)

    points = look.num_points
    while points >= MIN_STOPPING_POINTS and cost(points) > budget:
        points //= 2
    if not fit.is_last or not len(replicas) or points < MIN_STOPPING_POINTS or setup.program.one_by_one:
        return found
    fit.check_work, fit.is_checked = fit.check_work + cost(points), True
    at = (points, min(MAX_HESSIAN_POINTS, points), look.seed, look.error_rate)
    found[:, replicas.numpy()] = most_gain(setup.estimator, theta[:, replicas], *at).cpu().numpy()
    return found


def _bounds(fit: RunningFit, theta: Tensor, replicas: Tensor, curvature: Curvature, look: Look) -> GainBounds:
    """The bounds of `gain_bounds` for some replicas."""
    units, hessians = fit.preconditioner.units[:, replicas], curvature.of_replicas(replicas)
    if not fit.setup.is_wide:  # there the noise of the gradient hides that of the Hessian
        hessians = hessians.mean(2, keepdim=True)
    at = (look.num_points, look.seed, look.error_rate)
    return gain_bounds(fit.setup.estimator, theta[:, replicas], units, hessians, *at)
