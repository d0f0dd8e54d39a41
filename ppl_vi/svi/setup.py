"""What stays the same while a fit runs: the model and guide, the strategy, the engine, and what memory allows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vi.guides import Family
from ppl_vi.numerics.vmapping import decides_by_value
from ppl_vi.svi.engines.batched import BatchedEngine
from ppl_vi.svi.engines.choice import choose
from ppl_vi.svi.engines.memory import ChunkedEngine, Footprint, footprint
from ppl_vi.svi.engines.portion import Portion
from ppl_vi.svi.engines.probe import step_gradients
from ppl_vi.svi.engines.pyro import PyroEngine, pyro_elbo
from ppl_vi.svi.engines.step import Engine
from ppl_vi.svi.gradients import MAX_HESSIAN_POINTS, NUM_SCRAMBLES, GradientSource, MeanGradients
from ppl_vi.svi.objectives import Objective
from ppl_vi.svi.program import Program, flat_parameters
from ppl_vi.svi.randomness import UnsupportedRandomnessError, pseudo_random
from ppl_vi.svi.start import build_guide
from ppl_vi.svi.stopping import PRECONDITIONER_POINTS, curvature_preconditioner

# The shares of the steps' work that the checks together and the preconditioners together may take. A larger share tells
# of more fits whether they have converged, or makes a better preconditioner, and makes all fits slower.
CHECK_SHARE = 0.2
PRECONDITIONER_SHARE = 0.1
# What the checks may cost whatever the steps do, in numbers that are computed: some tens of milliseconds.
FREE_CHECK_WORK = 2.0**25
# A fit of the usual rounds has so many preconditioners; each has at least so many points.
NUM_PRECONDITIONERS = 3
MIN_PRECONDITIONER_POINTS = 16
# Sobol points a scramble in the quick checks before a full one, which decide only what is plain.
QUICK_CHECK_POINTS = (32, 128)
# Draws tried one by one: a branch that one in ten draws takes is seen with a probability of 1 - 0.9^64 > 0.998.
DRAWS_ONE_BY_ONE = 64
DECIDES_BY_VALUE = "decides by a drawn value what to do ('if', 'while', bool(), item())"


class UnsuitableModelError(TypeError):
    """The model or guide can't be fitted by the engine that was asked for, or by any; the message says why."""


@dataclass(frozen=True)
class Strategy:
    """How a fit is made; see `ppl_vi.svi.fit.fit` for each of these."""

    objective: Objective
    num_steps: int
    num_particles: int
    lr: float
    seed: int
    tolerance: float
    max_memory: float | None = None


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
        takes_fits_one_by_one: whether the engine's work is less when fits are left out.
        portion: how many replicas and steps noise is drawn for at once.
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
    takes_fits_one_by_one: bool
    portion: Portion
    footprint: Footprint
    gradient_source: GradientSource | None

    def check_work(self, num_points: int, num_replicas: int) -> float:
        """What a check costs: how often the widest temporary's numbers are computed for all its gradients together.

        Args:
            num_points: Sobol points a scramble.
            num_replicas: that are checked, of each problem.
        """
        dim, num_fits = self.program.layout.size, self.program.target.num_problems * num_replicas
        gradients = NUM_SCRAMBLES * num_points + 2 * dim * min(num_points, MAX_HESSIAN_POINTS)
        return float(gradients * num_fits * self.program.target.width)

    def affordable_points(self, num_points: int, num_replicas: int, budget: float) -> int:
        """So many Sobol points a scramble, halved until a check costs no more than the budget; 0 if none does."""
        while num_points and self.check_work(num_points, num_replicas) > budget:
            num_points //= 2
        return num_points

    def check_budget(self, num_steps: int) -> float:
        """What all checks together may cost by the time that so many steps have been taken."""
        return max(FREE_CHECK_WORK, CHECK_SHARE * self._work_of_steps(num_steps))

    def _work_of_steps(self, num_steps: int) -> float:
        width = self.program.target.width
        return float(num_steps * self.strategy.num_particles * self.num_fits * width)

    @property
    def preconditioner_points(self) -> int:
        """Sobol points a scramble for a preconditioner: fewer where the usual number would cost more than it saves."""
        usual = PRECONDITIONER_POINTS
        if self.gradient_source is not None:
            usual = max(usual, self.strategy.num_particles)
        share = PRECONDITIONER_SHARE * self._work_of_steps(self.strategy.num_steps)
        budget = max(FREE_CHECK_WORK, share) / NUM_PRECONDITIONERS
        while usual > MIN_PRECONDITIONER_POINTS and self.check_work(usual, self.num_replicas) > budget:
            usual //= 2
        return usual

    @property
    def num_fits(self) -> int:
        """How many fits there are in all."""
        return self.program.target.num_problems * self.num_replicas

    @property
    def estimator(self) -> MeanGradients:
        """Gives the gradients and Hessians of the convergence checks."""
        strategy = self.strategy
        return MeanGradients(self.program, strategy.objective, strategy.num_particles, self.gradient_source)


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
    num_problems, num_replicas, _ = initial.shape
    objective, num_particles = strategy.objective, strategy.num_particles
    memory = footprint(program, objective, initial, num_particles, strategy.max_memory)
    portion = Portion.of(program, num_problems, num_replicas, num_particles)
    if engine == "pyro":
        pyro = PyroEngine(program, objective, num_particles)
        return Setup(program, strategy, num_replicas, engine, reason, pyro, pyro, True, portion, memory, None)
    size = memory.num_replicas(num_problems, portion.num_replicas, num_particles)
    num_calls = strategy.num_steps * math.ceil(num_replicas / size)
    chosen = choose(engine, program, objective, initial[:, :size].contiguous(), num_particles, num_calls)
    return Setup(
        program=program,
        strategy=strategy,
        num_replicas=num_replicas,
        engine_name=chosen.name,
        engine_reason=chosen.reason,
        engine=ChunkedEngine(chosen.engine, size),
        one_step_engine=ChunkedEngine(BatchedEngine(program, objective), size),
        takes_fits_one_by_one=False,
        portion=portion,
        footprint=memory,
        gradient_source=step_gradients(chosen.engine, size, num_particles),
    )


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
    pyro_elbo(strategy.objective, strategy.num_particles)
    return "pyro", why


def find_how_draws_are_run(program: Program, strategy: Strategy) -> None:
    """Runs model and guide for two draws at once; if that can't be done, the program takes them one by one from now."""
    while True:
        try:
            _try_draws(program, strategy)
            return
        except (RuntimeError, UnsupportedRandomnessError) as error:
            by_seeds = isinstance(error, UnsupportedRandomnessError)
            if not (decides_by_value(error) or by_seeds) or not program.replayable:
                raise
            program.run_one_by_one(str(error) if by_seeds else DECIDES_BY_VALUE, by_seeds)


def _try_draws(program: Program, strategy: Strategy) -> None:
    num_draws = DRAWS_ONE_BY_ONE if program.one_by_one else 2
    noise = pseudo_random(program.draws, (1, 1, num_draws), torch.Generator(program.initial.device).manual_seed(0))
    estimator = MeanGradients(program, strategy.objective, strategy.num_particles)
    estimator.gradients(program.initial.expand(program.target.num_problems, 1, -1), noise)


def first_preconditioner(setup: Setup, family: Family) -> Tensor:
    """The preconditioner of the first round, `(B, 1, D)`: from the curvature where replicas start on average.

    A replica that starts far from there would measure a curvature that says little about the optimum.
    """
    program, seed = setup.program, setup.strategy.seed
    target = program.target
    guides = [build_guide(family, target, problem, seed=seed) for problem in range(target.num_problems)]
    theta = torch.stack([flat_parameters(program.layout, guide) for guide in guides])[:, None]
    num_points = min(PRECONDITIONER_POINTS, setup.preconditioner_points)
    return curvature_preconditioner(setup.estimator, theta, num_points, seed)
