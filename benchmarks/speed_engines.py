"""Engines that run the Pyro model and guide as they are: Pyro's own loop, and those of `ppl_vi.svi`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.infer import SVI, JitTrace_ELBO, Trace_ELBO
from pyro.optim import Adam
from torch import Tensor
from torch.distributions import transform_to
from torch.func import jacrev, vmap

from benchmarks.speed_case import Case, MissingError
from benchmarks.speed_problems import FORMS, PROBLEMS, START_SCALE, rates
from ppl_vi.svi.adam import BETA1, BETA2, EPS
from ppl_vi.svi.batched import make_step
from ppl_vi.svi.objectives import trace_elbo
from ppl_vi.svi.pure import Program
from ppl_vi.svi.randomness import pseudo_random
from ppl_vi.svi.start import build_guide
from ppl_vi.target import Target


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
    """All replicas in one step; the state is that of `ppl_vi.svi.batched.make_step`, all of it of shape `(1, R, D)`."""

    def __init__(self, case: Case) -> None:
        self.case, self.target = case, target_of(case)
        self.program = start_program(case, self.target)
        self.generator = torch.Generator().manual_seed(0)
        shape = (1, case.replicas)
        self.theta = self.program.initial.expand(*shape, -1).clone()
        self.first, self.second, self.total = (torch.zeros_like(self.theta) for _ in range(3))
        self.alive = torch.ones(shape, dtype=torch.bool)
        self.unit = torch.ones_like(self.theta)
        self.done = 0

    def scalars(self, num_steps: int) -> Tensor:
        """Step sizes, step numbers from 1 and averaging weights of the next steps, `(3, num_steps)`."""
        lr = torch.from_numpy(rates(self.done, num_steps))
        t = torch.arange(self.done + 1, self.done + num_steps + 1)
        return torch.stack([lr, t, torch.zeros(num_steps)]).to(self.target.dtype)

    def parameters(self) -> dict[str, Tensor]:
        """As in `Loop`."""
        theta = self.theta[0]
        if self.case.guide in FORMS:
            constraints = FORMS[self.case.guide].constraints
            parts = self.program.layout.unflatten(theta).values()
            named = zip(constraints.items(), parts, strict=True)
            return {name: transform_to(constraint)(part) for (name, constraint), part in named}
        return _affine(self.program, theta)


class BatchedLoop(ReplicaLoop):
    """`engine="batched"`: one call of the traced step after the other."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self._step: Callable[..., tuple[Tensor, ...]] | None = None

    def advance(self, num_steps: int) -> None:
        """As in `Loop`."""
        prefix = (*self.theta.shape[:2], self.case.num_particles)
        for lr, t, weight in self.scalars(num_steps).unbind(1):
            noise = pseudo_random(self.program.draws, prefix, self.generator)
            state = (self.theta, self.first, self.second, self.alive, self.unit, lr, t, self.total, weight)
            inputs = (*state, *self.target.args, *noise)
            self._step = self._step or make_step(self.program, trace_elbo, inputs)
            self.theta, self.first, self.second, self.alive, self.total, _ = self._step(*inputs)
        self.done += num_steps


def batched_loop(case: Case) -> BatchedLoop:
    """`engine="batched"`."""
    return BatchedLoop(case)


def compiled_loop(case: Case) -> ReplicaLoop:
    """`engine="compiled"`.

    THE COMPILED ENGINE IS PUT IN HERE, in a subclass of `ReplicaLoop` like `BatchedLoop`:
    `ppl_vi.svi.engines.engine("compiled", program, objective, (B, R, P)).advance(state, scalars, noise)`.
    """
    raise MissingError("this version has no compiled engine")


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
