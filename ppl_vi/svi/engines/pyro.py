"""The reference engine: Pyro's own `SVI` and ELBOs, one fit and one step at a time."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.elbo import ELBO
from pyro.optim import PyroOptim
from torch import Tensor, nn

from ppl_vi.svi.engines.adam import adam
from ppl_vi.svi.engines.step import State
from ppl_vi.svi.objectives import Objective
from ppl_vi.svi.program import NoReparameterization, Program, load_parameters
from ppl_vi.svi.randomness import Replay, seeded

ELBOS: dict[str, Callable[..., ELBO]] = {
    "trace_elbo": Trace_ELBO,
    "score_function": Trace_ELBO,
    "trace_mean_field_elbo": TraceMeanField_ELBO,
    "renyi": RenyiELBO,
}


def pyro_elbo(objective: Objective, num_particles: int) -> tuple[ELBO, AbstractContextManager[Any]]:
    """Pyro's ELBO for an objective, and the context in which it has to run.

    Raises:
        ValueError: Pyro has no such ELBO.
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


def _replayed(program: Program, noise: tuple[Tensor, ...], num_particles: int) -> AbstractContextManager[Any]:
    """A context in which Pyro is given noise, each draw's `(P, *shape)`, particle after particle as it asks for it.

    Where the guide's noise can't be given, Pyro draws it itself, from the seed of the first particle.
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
    """Pyro's loss for one fit on given noise, and its gradient in the guide's unconstrained parameters, `(D,)`."""
    elbo, context = pyro_elbo(objective, num_particles)
    guide.zero_grad()
    with program.isolated(), context, _replayed(program, noise, num_particles):
        loss = elbo.loss_and_grads(program.model, guide, *row)
    values = dict(guide.named_parameters())
    found: dict[str, Tensor] = {}
    for name in program.layout.names:
        gradient = values[name].grad
        found[name] = torch.zeros_like(values[name]) if gradient is None else gradient
    return float(loss), program.layout.flatten(found)


@dataclass
class AdamMemory:
    """What a step of Adam needs besides the gradients; set before each step, and read after it.

    Attributes:
        rate, correction: the two numbers of `adam.step_schedule`.
        first, second: the moments of each parameter.
        preconditioner: how far each parameter moves in a step of size 1.
    """

    rate: float = 0.0
    correction: float = 1.0
    first: dict[Tensor, Tensor] = field(default_factory=dict)
    second: dict[Tensor, Tensor] = field(default_factory=dict)
    preconditioner: dict[Tensor, Tensor] = field(default_factory=dict)


class PreconditionedAdam(torch.optim.Optimizer):
    """The update `adam` as a torch optimiser that keeps all of its state in an `AdamMemory`.

    Args:
        params: the parameters.
        memory: the state.
    """

    def __init__(self, params: Iterable[Any], memory: AdamMemory) -> None:
        super().__init__(params, {})
        self._memory = memory

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Updates every parameter that has a gradient."""
        memory = self._memory
        for parameter in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            theta, memory.first[parameter], memory.second[parameter] = adam(
                parameter,
                memory.first[parameter],
                memory.second[parameter],
                parameter.grad,
                memory.preconditioner[parameter],
                memory.rate,
                memory.correction,
            )
            parameter.copy_(theta)


class PyroEngine:
    """Takes each step of each fit by Pyro's `SVI.step`, with the guide of the program in the place of all guides.

    Args:
        program: the model, and the guide, whose parameters are overwritten.
        objective: what is maximised.
        num_particles: draws of the guide a step.

    Raises:
        ValueError: Pyro has no such ELBO.
    """

    def __init__(self, program: Program, objective: Objective, num_particles: int) -> None:
        self._program, self._num_particles = program, num_particles
        self._parameters = dict(program.guide.named_parameters())
        for value in self._parameters.values():
            # SVI asks every parameter for its unconstrained value, which Pyro sets on constrained ones alone
            value.unconstrained = weakref.ref(value)  # type: ignore[attr-defined]
        elbo, self._context = pyro_elbo(objective, num_particles)
        self._memory = AdamMemory()
        optimiser = PyroOptim(PreconditionedAdam, {"memory": self._memory})
        self._svi = SVI(program.model, program.guide, optimiser, loss=elbo)

    @property
    def sizes(self) -> list[int]:
        """All parameters in one part."""
        return [self._program.layout.size]

    def advance(self, state: State, scalars: Tensor, noise: tuple[Tensor, ...]) -> tuple[State, Tensor]:
        """See `ppl_vi.svi.engines.step.Engine`. The bound of a fit that is not alive is nan."""
        bounds = []
        for t, (rate, correction, weight) in enumerate(scalars.mT.tolist()):
            self._memory.rate, self._memory.correction = rate, correction
            state, bound = self._step(state, weight, tuple(n[t] for n in noise))
            bounds.append(bound)
        return state, torch.stack(bounds)

    def _step(self, state: State, weight: float, noise: tuple[Tensor, ...]) -> tuple[State, Tensor]:
        """One step of every fit that is alive, on noise `(B, R, P, *shape)`; the bounds `(B, R)`."""
        alive, theta, first, second, total, preconditioner = (tensor.clone() for tensor in state.tensors)
        bounds = torch.full(alive.shape, torch.nan, dtype=theta.dtype, device=theta.device)
        for b, r in state.alive.nonzero().tolist():
            self._load(theta[b, r], first[b, r], second[b, r], preconditioner[b, r])
            replayed = _replayed(self._program, tuple(n[b, r] for n in noise), self._num_particles)
            with self._program.isolated(), self._context, replayed:
                bound = -float(self._svi.step(*self._program.target.row(b)))
            bounds[b, r] = bound
            moved = self._flat({parameter: parameter.detach() for parameter in self._parameters.values()})
            alive[b, r] = math.isfinite(bound) and bool(moved.isfinite().all())
            if alive[b, r]:
                theta[b, r] = moved
                first[b, r], second[b, r] = self._flat(self._memory.first), self._flat(self._memory.second)
        return State.of([alive, theta, first, second, total + weight * theta, preconditioner], 1), bounds

    def _load(self, theta: Tensor, first: Tensor, second: Tensor, preconditioner: Tensor) -> None:
        """Puts one fit's parameters into the guide, and its moments and preconditioner, all `(D,)`, into the memory."""
        load_parameters(self._program.guide, self._program.layout.unflatten(theta))
        self._memory.first = self._by_parameter(first)
        self._memory.second = self._by_parameter(second)
        self._memory.preconditioner = self._by_parameter(preconditioner)

    def _by_parameter(self, flat: Tensor) -> dict[Tensor, Tensor]:
        return {self._parameters[name]: part for name, part in self._program.layout.unflatten(flat).items()}

    def _flat(self, values: dict[Tensor, Tensor]) -> Tensor:
        return self._program.layout.flatten(
            {name: values[self._parameters[name]] for name in self._program.layout.names}
        )
