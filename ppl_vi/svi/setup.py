"""What stays the same while a fit runs: the model and guide, the strategy, the engine, and what memory allows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ppl_vi.guides.own import has_network
from ppl_vi.numerics.vmapping import needs_a_loop
from ppl_vi.svi.curvature import (
    AXES_POINTS,
    MAX_HESSIAN_PARAMETERS,
    UNITS_POINTS,
    Preconditioner,
    curvature_preconditioner,
)
from ppl_vi.svi.engines.batched import BatchedEngine
from ppl_vi.svi.engines.blocks import BlockEngine
from ppl_vi.svi.engines.choice import choose
from ppl_vi.svi.engines.compiled import PLAIN_GUIDES, KernelEngine
from ppl_vi.svi.engines.memory import ChunkedEngine, Footprint, footprint
from ppl_vi.svi.engines.portion import Portion, power_of_2
from ppl_vi.svi.engines.probe import step_gradients
from ppl_vi.svi.engines.pyro import PyroEngine, pyro_elbo
from ppl_vi.svi.engines.step import Engine
from ppl_vi.svi.gradients import NUM_SCRAMBLES, GradientSource, MeanGradients
from ppl_vi.svi.objectives import Objective
from ppl_vi.svi.program import Program
from ppl_vi.svi.randomness import UnsupportedRandomnessError, pseudo_random, shifted_nets
from ppl_vi.target.target import Target

# The shares of the steps' work that the gradients of all checks, and all Hessians, may take. A larger share tells of
# more fits whether they have converged, or makes better preconditioners, and makes all fits slower.
CHECK_SHARE = 0.3
CURVATURE_SHARE = 0.3
# What the checks, and each Hessian, may cost whatever the steps do, in numbers that are computed: some
# milliseconds to tens of milliseconds.
FREE_WORK = 2.0**20
# A fit of the usual rounds has so many Hessians. Replicas that lie apart have Hessians of their own as long as each has
# so many points. One alone has at least the number after it: on much data, where a point is dear, the loss is nearly a
# polynomial, and few points tell its curvature.
NUM_HESSIANS = 3
MIN_HESSIAN_POINTS = 16
LEAST_HESSIAN_POINTS = 4
# Sobol points a scramble in the quick checks before a full one, which decide only what is plain.
QUICK_CHECK_POINTS = (32, 128)
# With wider temporaries than this, as on many rows, steps take so long that a fit may stop after its first round. Its
# checks then use control variates, and a step of Newton's method is tried before another round.
MAX_NARROW_WIDTH = 10_000
# The draws of a step where their number adapts to the noise: in the first round, and at most.
FIRST_PARTICLES, MAX_PARTICLES = 16, 256
# The draws of a step where their number adapts, as a rough average over the rounds: decides what is compiled.
EXPECTED_PARTICLES = 64
# Gradients are then taken on blocks of the first round's draws, or of fewer where these would make temporaries of more
# numbers than this (8 MiB each in double precision) while the step is traced.
MAX_BLOCK_NUMBERS = 2**20
# Blocks and fits of at least so many together are what code is made for where there are as many: they fill a vector.
FULL_LANES = 8
# The draws of a step where their number can't adapt: for Pyro's own SVI, which takes them one by one, and for others,
# such as those whose objective depends on the number.
PYRO_PARTICLES, FIXED_PARTICLES = 64, 256
# With one latent number and no wider temporaries than this, all draws of a step together take less time than the loop
# that adapts their number, and there are no axes but the parameters'. With a larger bound fits of one latent and some
# hundred rows would take all draws from their first step on.
MAX_FIXED_WIDTH = 2**6
# Draws tried one by one: a branch that one in ten draws takes is seen with a probability of 1 - 0.9^64 > 0.998.
DRAWS_ONE_BY_ONE = 64
# What a converged fit may still gain nearby, nats, where nobody asks for another tolerance: a hundredth of what tables
# show of a gap that matters. A larger one stops fits earlier and farther from their optimum.
TOLERANCE = 1e-3


class UnsuitableModelError(TypeError):
    """The model or guide can't be fitted by the engine that was asked for, or by any; the message says why."""


@dataclass(frozen=True)
class Strategy:
    """How a fit is made; see `ppl_vi.svi.fit.fit` for each of these."""

    objective: Objective
    num_steps: int
    num_particles: int | Literal["auto"]
    lr: float
    seed: int
    tolerance: float = TOLERANCE


# What `find_how_draws_are_run` has found to run for several draws at once: guides of each target.
_run_together: WeakKeyDictionary[Target, set[Any]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Setup:
    """What stays the same while a batch of fits runs.

    Attributes:
        program: the model and guide as pure functions.
        strategy: how the fits are made.
        num_replicas: fits of each problem.
        engine_name: the name of the engine.
        engine_reason: why it is this engine, where none or another one was asked for by name; else "".
        engine: takes the steps.
        one_step_engine: takes the same steps one at a time, when it has to be found out which of them went wrong.
        num_particles: the draws of a step, in the first round.
        in_blocks: whether steps take their draws in blocks; their noise is then that of shifted nets.
        is_adaptive: whether later rounds may have more draws, and all steps go along the axes of the curvature.
        footprint: how much memory the checks may take.
        gradient_source: a faster way to the gradients of the checks, where there is one.
    """

    program: Program
    strategy: Strategy
    num_replicas: int
    engine_name: str
    engine_reason: str
    engine: Engine
    one_step_engine: Engine
    num_particles: int
    in_blocks: bool
    is_adaptive: bool
    footprint: Footprint
    gradient_source: GradientSource | None

    def work(self, num_gradients: float) -> float:
        """What so many draws of one fit cost: how often the widest temporary's numbers are computed."""
        return num_gradients * self.program.target.width

    def check_work(self, num_points: int, num_replicas: int) -> float:
        """What the gradients of a check cost, on `num_points` a scramble for so many replicas of each problem."""
        return self.work(NUM_SCRAMBLES * num_points * num_replicas * self.program.target.num_problems)

    def affordable_points(self, num_points: int, num_replicas: int, budget: float) -> int:
        """So many Sobol points a scramble, halved until a check costs no more than the budget; 0 if none does."""
        while num_points and self.check_work(num_points, num_replicas) > budget:
            num_points //= 2
        return num_points

    @property
    def preconditioner_points(self) -> int:
        """The most points of a Hessian from which only a preconditioner is made."""
        return AXES_POINTS if self.is_adaptive else UNITS_POINTS

    def affordable_hessian_points(self, num_particles: int) -> int:
        """How many points all Hessians of a problem may have after a round whose steps have so many draws."""
        steps = self.work(self.strategy.num_steps * num_particles * self.num_fits)
        budget = max(FREE_WORK, CURVATURE_SHARE / NUM_HESSIANS * steps)
        of_point = self.work(2 * self.program.layout.size * self.program.target.num_problems)
        return max(LEAST_HESSIAN_POINTS, int(budget / max(of_point, 1)))

    def portion(self, num_particles: int) -> Portion:
        """For how many replicas and steps noise is drawn at once."""
        num_problems = self.program.target.num_problems
        return Portion.of(self.program, num_problems, self.num_replicas, num_particles, self.in_blocks)

    @property
    def num_fits(self) -> int:
        """How many fits there are in all."""
        return self.program.target.num_problems * self.num_replicas

    @property
    def takes_fits_one_by_one(self) -> bool:
        """Whether the engine's work is less when fits are left out."""
        return self.in_blocks or self.engine_name == "pyro"

    @property
    def is_wide(self) -> bool:
        """Whether a step takes long, see `MAX_NARROW_WIDTH`."""
        return self.is_adaptive and self.program.target.width > MAX_NARROW_WIDTH

    @property
    def estimator(self) -> MeanGradients:
        """Gives the gradients and Hessians of the convergence checks."""
        return MeanGradients(
            self.program,
            self.strategy.objective,
            self.num_particles,
            self.gradient_source,
            self.footprint.untraced_particles,
            self.is_wide,
        )

    def noise(self, prefix: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
        """The noise of steps, for each draw `(*prefix, *shape)`, where `prefix` ends with the draws of a step."""
        make = shifted_nets if self.in_blocks else pseudo_random
        return make(self.program.draws, prefix, generator)


def prepare(program: Program, strategy: Strategy, initial: Tensor, engine: str) -> Setup:
    """Chooses the engine for fits that start at `initial` `(B, R, D)`, and how much it computes at once.

    Args:
        program: the model and guide, see also `find_how_draws_are_run`.
        strategy: how the fits are made.
        initial: the parameters of all fits.
        engine: the name of an engine, or "auto".

    Raises:
        UnsuitableModelError: the model or guide can't be run by this engine.
        ValueError: there is too little memory, or Pyro's own SVI is needed and has no such objective.
    """
    engine, reason = _possible_engine(engine, program, strategy)
    num_problems, num_replicas, dim = initial.shape
    objective, (num_particles, is_adaptive) = strategy.objective, _particles(program, strategy, engine)
    in_blocks = _is_in_blocks(program, strategy, engine)
    block = _block(program, min(num_particles, FIRST_PARTICLES)) if in_blocks else num_particles
    memory = footprint(program, objective, initial, block)
    if engine == "pyro":
        pyro = PyroEngine(program, objective, num_particles)
        return Setup(
            program, strategy, num_replicas, engine, reason, pyro, pyro, num_particles, False, False, memory, None
        )
    portion = Portion.of(program, num_problems, num_replicas, num_particles, in_blocks)
    size = memory.num_replicas(num_problems, portion.num_replicas, block)
    num_lanes = min(size * (num_particles // block), max(size, FULL_LANES))
    expected = EXPECTED_PARTICLES if is_adaptive else num_particles
    num_calls = strategy.num_steps * math.ceil(num_replicas * (expected // block) / num_lanes)
    few = initial[:, :size].repeat_interleave(math.ceil(num_lanes / size), 1)[:, :num_lanes].contiguous()
    chosen = choose(engine, program, objective, few, block, num_calls, one_step=in_blocks)
    engines: list[Engine] = [ChunkedEngine(one, size) for one in (chosen.engine, BatchedEngine(program, objective))]
    if in_blocks:
        least = (getattr(chosen.engine, "min_replicas", 1), 1)
        any_number = isinstance(chosen.engine, KernelEngine)
        inner = [chosen.engine if any_number else engines[0], engines[1]]
        engines = [BlockEngine(one, block, dim, num) for one, num in zip(inner, least, strict=True)]
    return Setup(
        program=program,
        strategy=strategy,
        num_replicas=num_replicas,
        engine_name=chosen.name,
        engine_reason=chosen.reason,
        engine=engines[0],
        one_step_engine=engines[1],
        num_particles=num_particles,
        in_blocks=in_blocks,
        is_adaptive=is_adaptive,
        footprint=memory,
        gradient_source=step_gradients(chosen.engine, size, block),
    )


def _is_in_blocks(program: Program, strategy: Strategy, engine: str) -> bool:
    """Whether steps take their draws in blocks, which fill a processor's vectors however few fits there are.

    They do not where that would take longer than all draws together, see `MAX_FIXED_WIDTH`, nor for a network, whose
    parameters every block would have for itself.
    """
    return (
        strategy.num_particles == "auto"
        and (program.target.dim > 1 or program.target.width > MAX_FIXED_WIDTH)
        and strategy.objective.additive
        and engine != "pyro"
        and not program.one_by_one
        and not has_network(program.guide)
    )


def _particles(program: Program, strategy: Strategy, engine: str) -> tuple[int, bool]:
    """The draws of a step in the first round, and whether their number adapts to the noise.

    It does not where the curvature is not known, or says little, as that of a network does: there steps along its axes
    end farther from the optimum.
    """
    if strategy.num_particles != "auto":
        return strategy.num_particles, False
    is_adaptive = _is_in_blocks(program, strategy, engine) and program.layout.size <= MAX_HESSIAN_PARAMETERS
    return (FIRST_PARTICLES, True) if is_adaptive else (auto_particles(strategy.objective, engine), False)


def _block(program: Program, num_particles: int) -> int:
    """The draws of a block, a power of 2: `num_particles`, or fewer where one draw has large temporaries.

    Rows of data fill the processor's vectors; where there are matrices instead, blocks do.
    """
    target = program.target
    most = min(num_particles, MAX_BLOCK_NUMBERS // max(1, target.width))
    if target.largest.is_matrix:
        most = min(most, num_particles // FULL_LANES)
    return power_of_2(max(1, most))


def auto_particles(objective: Objective, engine: str) -> int:
    """The draws of a step that "auto" stands for where their number can't adapt."""
    group = group_size(objective)
    most = PYRO_PARTICLES if engine == "pyro" else FIXED_PARTICLES
    return group * max(1, most // group)


def group_size(objective: Objective) -> int:
    """How many draws an objective takes together: K of "iwae:K", else 1."""
    kind, _, samples = objective.name.partition(":")
    return int(samples) if kind == "iwae" else 1


def _possible_engine(engine: str, program: Program, strategy: Strategy) -> tuple[str, str]:
    """The engine that was asked for, or Pyro's own SVI where only that can run the model and the choice is free.

    Returns:
        The engine's name, and the reason for Pyro's own SVI where it was not asked for; else "".

    Raises:
        UnsuitableModelError: the engine that was asked for can't run the model or guide.
        ValueError: Pyro's own SVI is needed, and has no such objective.
    """
    if not program.one_by_one or engine == "pyro":
        return engine, ""
    why = f"the model or guide {program.one_by_one}, which can't be done for many draws at once"
    if engine != "auto":
        raise UnsuitableModelError(f"{program.target.name}: {why}; engine='pyro' can")
    pyro_elbo(strategy.objective, _particles(program, strategy, "pyro")[0])
    return "pyro", why


def find_how_draws_are_run(program: Program, strategy: Strategy) -> None:
    """Runs model and guide for two draws at once; if that can't be done, the program takes them one by one from now.

    Pyro's own guides without settings are tried once for each target and objective.
    """
    known = _run_together.setdefault(program.target, set())
    key = (type(program.guide), program.layout, strategy.objective, program.model is program.target.model)
    if key in known:
        return
    while True:
        try:
            _try_draws(program, strategy)
            if type(program.guide) in PLAIN_GUIDES and not program.one_by_one:
                known.add(key)
            return
        except (RuntimeError, UnsupportedRandomnessError) as error:
            by_seeds = isinstance(error, UnsupportedRandomnessError)
            reason = str(error) if by_seeds else needs_a_loop(error)
            if not reason or not program.replayable:
                raise
            program.run_one_by_one(reason, by_seeds)


def _try_draws(program: Program, strategy: Strategy) -> None:
    group = group_size(strategy.objective)
    num_draws = group * math.ceil((DRAWS_ONE_BY_ONE if program.one_by_one else 2) / group)
    noise = pseudo_random(program.draws, (1, 1, num_draws), torch.Generator(program.initial.device).manual_seed(0))
    estimator = MeanGradients(program, strategy.objective, _particles(program, strategy, "")[0])
    estimator.gradients(program.initial.expand(program.target.num_problems, 1, -1), noise)


def first_preconditioner(setup: Setup, theta: Tensor) -> Preconditioner:
    """The preconditioner of the first round, for all replicas, from the curvature at `theta` `(B, 1, D)`.

    `theta` is where replicas start on average. A replica that starts far from there would measure a curvature that says
    little about the optimum.
    """
    affordable = setup.affordable_hessian_points(setup.num_particles)
    num_points = power_of_2(min(setup.preconditioner_points, affordable))
    one = curvature_preconditioner(setup.estimator, theta, num_points, setup.strategy.seed, setup.is_adaptive)
    return one.of_replicas(setup.num_replicas)
