"""Engines that run the Pyro model and guide as they are: Pyro's own loop, and those of `ppl_vi.svi`."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer import SVI, JitTrace_ELBO, Trace_ELBO
from pyro.optim import Adam
from torch import Tensor
from torch.distributions import transform_to
from torch.func import jacrev, vmap

from benchmarks.speed_case import WHOLE_STEPS, Case, MissingError
from benchmarks.speed_problems import FORMS, PROBLEMS, START_SCALE, rates
from ppl_vi.svi.engines.adam import BETA1, BETA2, EPS, step_schedule
from ppl_vi.svi.engines.choice import choose
from ppl_vi.svi.engines.memory import ChunkedEngine
from ppl_vi.svi.engines.portion import Portion
from ppl_vi.svi.engines.step import State
from ppl_vi.svi.fit import fit
from ppl_vi.svi.objectives import trace_elbo
from ppl_vi.svi.program import Program
from ppl_vi.svi.randomness import pseudo_random
from ppl_vi.svi.start import build_guide
from ppl_vi.target.target import Target

# The number of steps that engines are told to expect: so many that none of them saves compile time by slower steps.
NUM_PLANNED_STEPS = 10**7


def target_of(case: Case) -> Target:
    """The problem that a case is about."""
    problem = PROBLEMS[case.problem]
    return problem.target(case.size or problem.size, getattr(torch, case.dtype))


def start_program(case: Case, target: Target) -> Program:
    """The model and the guide, at the common start, as pure functions."""
    zero = torch.zeros(target.dim, dtype=target.dtype)
    guide = build_guide(PROBLEMS[case.problem].guides[case.guide], target, 0, zero, zero + START_SCALE)
    return Program(target, guide)


# ---- Pyro's own


class PyroLoop:
    """`SVI.step`, one fit, its parameters in Pyro's store by name, as Pyro has them unless told otherwise."""

    def __init__(self, case: Case, elbo: Any) -> None:
        target = target_of(case)
        self._case, self._target, self._row, self._done = case, target, target.row(0), 0
        self._guide = PROBLEMS[case.problem].guides[case.guide](target.model)
        self._optim = Adam({"lr": 0.0, "betas": (BETA1, BETA2), "eps": EPS})
        self._svi = SVI(target.model, self._guide, self._optim, loss=elbo)

    def advance(self, num_steps: int) -> None:
        """As in `Loop`."""
        with pyro.settings.context(module_local_params=False):
            for rate in rates(self._done, num_steps).tolist():
                self._optim.pt_optim_args["lr"] = rate
                for optimiser in self._optim.optim_objs.values():
                    optimiser.param_groups[0]["lr"] = rate
                self._svi.step(*self._row)
        self._done += num_steps

    def parameters(self) -> dict[str, Tensor]:
        """As in `Loop`."""
        if self._case.guide in FORMS:
            return {name: pyro.param(name).detach()[None] for name in FORMS[self._case.guide].constraints}
        program = start_program(self._case, self._target)
        values = {name: value.detach() for name, value in self._guide.named_parameters()}
        return _affine(program, program.layout.flatten(values)[None])


def pyro_loop(case: Case) -> PyroLoop:
    """Pyro's `Trace_ELBO`."""
    return PyroLoop(case, Trace_ELBO(num_particles=case.num_particles))


def pyro_jit_loop(case: Case) -> PyroLoop:
    """Pyro's `JitTrace_ELBO`, compiled by `torch.jit.trace` in the first step."""
    return PyroLoop(case, JitTrace_ELBO(num_particles=case.num_particles, ignore_jit_warnings=True))


# ---- ours


class ReplicaLoop:
    """All replicas in one step, by an engine of `ppl_vi.svi.engines.choice`."""

    def __init__(self, case: Case, engine: str) -> None:
        self._case, self._target = case, target_of(case)
        self._program = start_program(case, self._target)
        self._generator = torch.Generator().manual_seed(0)
        theta = self._program.initial.expand(1, case.replicas, -1).contiguous()
        self._portion = Portion.of(self._program, 1, case.replicas, case.num_particles)
        some = theta[:, : self._portion.num_replicas].contiguous()
        chosen = choose(engine, self._program, trace_elbo, some, case.num_particles, NUM_PLANNED_STEPS)
        if chosen.name != engine:
            raise MissingError(chosen.reason)
        self._engine = ChunkedEngine(chosen.engine, self._portion.num_replicas)
        alive = torch.ones(theta.shape[:2], dtype=torch.bool)
        state = State.start(theta, torch.ones_like(theta), alive, self._engine.sizes)
        self._states = state.portions(self._portion.num_replicas)
        self._done = 0

    def advance(self, num_steps: int) -> None:
        """As in `Loop`."""
        steps = np.arange(self._done + 1, self._done + num_steps + 1)
        numbers = np.stack([*step_schedule(rates(self._done, num_steps), steps), np.zeros(num_steps)])
        scalars = torch.as_tensor(numbers, dtype=self._target.dtype)
        for begin in range(0, num_steps, self._portion.num_steps):
            some = scalars[:, begin : begin + self._portion.num_steps]
            self._states = [self._advanced(state, some) for state in self._states]
        self._done += num_steps

    def _advanced(self, state: State, scalars: Tensor) -> State:
        prefix = (scalars.shape[-1], *state.alive.shape, self._case.num_particles)
        noise = pseudo_random(self._program.draws, prefix, self._generator)
        return self._engine.advance(state, scalars, noise)[0]

    def parameters(self) -> dict[str, Tensor]:
        """As in `Loop`."""
        theta = torch.cat(State.joined(self._states).theta, -1)[0]
        if self._case.guide in FORMS:
            constraints = FORMS[self._case.guide].constraints
            parts = self._program.layout.unflatten(theta).values()
            named = zip(constraints.items(), parts, strict=True)
            return {name: transform_to(constraint)(part) for (name, constraint), part in named}
        return _affine(self._program, theta)


def batched_loop(case: Case) -> ReplicaLoop:
    """`engine="batched"`."""
    return ReplicaLoop(case, "batched")


def compiled_loop(case: Case) -> ReplicaLoop:
    """`engine="compiled"`, as it is compiled for a run of very many steps."""
    return ReplicaLoop(case, "compiled")


class WholeFits:
    """Whole fits by the compiled engine: starts, preconditioners, steps and convergence checks."""

    def __init__(self, case: Case) -> None:
        target, num_steps = target_of(case), WHOLE_STEPS["fit"]
        numbers: dict[str, Any] = {"num_particles": case.num_particles, "num_replicas": case.replicas}
        family = PROBLEMS[case.problem].guides[case.guide]
        self._fit = partial(fit, target, family, engine="compiled", seed=0, num_steps=num_steps, **numbers)

    def advance(self, num_steps: int) -> None:
        """As in `Loop`: one fit after another, each of the steps that it may take at most."""
        for _ in range(num_steps // WHOLE_STEPS["fit"]):
            self._fit()

    def parameters(self) -> dict[str, Tensor]:
        """As in `Loop`."""
        raise MissingError("a whole fit ends when it has converged, or after its steps")


def whole_fits(case: Case) -> WholeFits:
    """`ppl_vi.fit`, whole."""
    return WholeFits(case)


def _affine(program: Program, theta: Tensor) -> dict[str, Tensor]:
    """The Gaussian in unconstrained space that a guide at `theta` `(R, P)` is: it maps its noise there affinely."""
    target, shapes = program.target, [draw.shape for draw in program.draws]
    if any(draw.kind != "normal" for draw in program.draws):
        raise MissingError("the guide is not Gaussian in unconstrained space")
    sizes = [shape.numel() for shape in shapes]

    def position(point: Tensor, flat: Tensor) -> Tensor:
        noise = tuple(part.reshape(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True))
        return target.unconstrain(program.latents(point, target.row(0), noise))

    zero = torch.zeros(sum(sizes), dtype=theta.dtype)
    loc = vmap(lambda point: position(point, zero))(theta)
    factor = vmap(lambda point: jacrev(lambda flat: position(point, flat))(zero))(theta)
    return {"loc": loc, "factor": factor}
