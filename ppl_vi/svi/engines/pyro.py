"""The reference engine: Pyro's own `SVI` and ELBOs, one fit at a time."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.elbo import ELBO
from pyro.optim import PyroOptim
from torch import Tensor, nn

from ppl_vi.svi.engines.adam import UnitAdam
from ppl_vi.svi.objectives import Objective
from ppl_vi.svi.program import NoReparameterization, Program
from ppl_vi.svi.randomness import Replay, seeded

ELBOS: dict[str, Callable[..., ELBO]] = {
    "trace_elbo": Trace_ELBO,
    "score_function": Trace_ELBO,
    "trace_mean_field_elbo": TraceMeanField_ELBO,
    "renyi": RenyiELBO,
}


def pyro_elbo(objective: Objective, num_particles: int) -> tuple[ELBO, AbstractContextManager[Any]]:
    """Pyro's ELBO for an objective and the context it runs in.

    Raises:
        ValueError: Pyro has none.
    """
    name, _, argument = objective.name.partition(":")
    if name == "iwae" and int(argument) == num_particles:
        return RenyiELBO(alpha=0.0, num_particles=num_particles), nullcontext()
    if name not in ELBOS:
        raise ValueError(
            f"Pyro has no ELBO for '{objective.name}' with {num_particles} particles; use engine='batched'"
        )
    extra = {"alpha": float(argument)} if name == "renyi" else {}
    context = NoReparameterization() if name == "score_function" else nullcontext()
    return ELBOS[name](num_particles=num_particles, **extra), context


def _given(program: Program, noise: tuple[Tensor, ...], num_particles: int) -> AbstractContextManager[Any]:
    """Hands out noise, each draw's `(P, *shape)`, in the order in which Pyro asks for it, particle after particle.

    What can't be given is drawn by Pyro itself, from the first particle's seed.
    """
    if not program.replayable:
        return seeded(noise[0])
    return Replay([draws[p] for p in range(num_particles) for draws in noise])


def loss_and_gradient(
    program: Program,
    guide: nn.Module,
    objective: Objective,
    row: tuple[Tensor, ...],
    noise: tuple[Tensor, ...],
    num_particles: int,
) -> tuple[float, Tensor]:
    """Pyro's loss for one fit on given noise and its gradient in the guide's unconstrained parameters, `(D,)`."""
    elbo, context = pyro_elbo(objective, num_particles)
    guide.zero_grad()
    with context, _given(program, noise, num_particles):
        loss = elbo.loss_and_grads(program.target.model, guide, *row)
    values = dict(guide.named_parameters())
    found: dict[str, Tensor] = {}
    for name in program.layout.names:
        gradient = values[name].grad
        found[name] = torch.zeros_like(values[name]) if gradient is None else gradient
    return float(loss), program.layout.flatten(found)


class PyroSVI:
    """Pyro's `SVI` for one fit, its step size set from outside.

    Args:
        program: names and order of the parameters.
        guide: the guide, fitted in place.
        objective: what to maximise.
        row: the model's arguments.
        unit: of each parameter, `(D,)`.
        num_particles: draws a step.
    """

    def __init__(
        self,
        program: Program,
        guide: nn.Module,
        objective: Objective,
        row: tuple[Tensor, ...],
        unit: Tensor,
        num_particles: int,
    ) -> None:
        values = dict(guide.named_parameters())
        units = {values[name]: part for name, part in program.layout.unflatten(unit).items()}
        for value in values.values():  # Pyro's SVI asks every parameter for it, and sets it on constrained ones alone
            value.unconstrained = weakref.ref(value)  # type: ignore[attr-defined]
        self._program, self._guide, self._row, self._num_particles = program, guide, row, num_particles
        elbo, self._context = pyro_elbo(objective, num_particles)
        self._optim = PyroOptim(UnitAdam, {"lr": 0.0, "units": units})
        self._svi = SVI(program.target.model, guide, self._optim, loss=elbo)

    def step(self, lr: float, noise: tuple[Tensor, ...]) -> float:
        """One `SVI.step`; minus the loss."""
        self._optim.pt_optim_args["lr"] = lr
        for optimiser in self._optim.optim_objs.values():
            optimiser.param_groups[0]["lr"] = lr
        with self._context, _given(self._program, noise, self._num_particles):
            return -float(self._svi.step(*self._row))

    @property
    def theta(self) -> Tensor:
        """The guide's parameters now, `(D,)`."""
        return self._program.layout.flatten({n: p.detach() for n, p in self._guide.named_parameters()})
