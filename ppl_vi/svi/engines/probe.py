"""The gradients of the convergence checks by way of an engine's own step, so that a check costs what steps cost.

A step of size 0 from moments of 0 leaves (1 - beta1) times the gradient in Adam's first moment. Points are taken as
many at a time as the engine has replicas, and noise as many particles at a time as a step has.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vi.svi.engines.adam import BETA1
from ppl_vi.svi.engines.step import NO_OP_STEP, Engine, State

# Steps of fewer particles are not used: a check would need so many of them that calling them costs more than the
# derivatives without an engine do.
MIN_PARTICLES = 32


def step_gradients(engine: Engine, num_replicas: int, num_particles: int) -> StepGradients | None:
    """The gradients of an engine made for so many replicas and particles.

    Returns:
        None where its steps have too few particles, or where it takes several steps in each call.
    """
    several = getattr(engine, "num_steps", 1) > 1
    return None if several or num_particles < MIN_PARTICLES else StepGradients(engine, num_replicas, num_particles)


@dataclass(frozen=True)
class StepGradients:
    """A `ppl_vi.svi.gradients.GradientSource` that uses the steps of an engine.

    Attributes:
        engine: an engine that can take one step at a time.
        num_replicas: the replicas of each problem that it was made for.
        num_particles: the particles of its steps.
    """

    engine: Engine
    num_replicas: int
    num_particles: int

    def fits(self, noise: tuple[Tensor, ...]) -> bool:
        """Whether noise `(scrambles, groups, particles, *shape)` can be divided into whole steps."""
        return bool(noise) and noise[0].shape[2] % self.num_particles == 0

    def gradients(self, theta: Tensor, noise: tuple[Tensor, ...]) -> Tensor:
        """The gradient of the loss at `theta` `(B, N, D)`, averaged over each scramble: `(B, N, S, D)`."""
        batch, num, _ = theta.shape
        short = -num % self.num_replicas
        whole = torch.cat([theta, theta[:, -1:].expand(-1, short, -1)], 1)
        states = [self._state_at(some) for some in whole.split(self.num_replicas, 1)]
        scrambles = []
        for scramble in zip(*(n.unbind(0) for n in noise), strict=True):
            steps = list(zip(*(n.unflatten(1, (-1, self.num_particles)).flatten(0, 1) for n in scramble), strict=True))
            scrambles.append(torch.stack([self._step(states, batch, draws) for draws in steps]).mean(0))
        return torch.stack(scrambles, 2)[:, :num]

    def _state_at(self, theta: Tensor) -> State:
        """A state at `theta` whose moments are 0 and whose preconditioner is 1."""
        alive = torch.ones(theta.shape[:2], dtype=torch.bool, device=theta.device)
        return State.start(theta, torch.ones_like(theta), alive, self.engine.sizes)

    def _step(self, states: list[State], batch: int, draws: tuple[Tensor, ...]) -> Tensor:
        """The gradient at all points on one step's noise `(P, *shape)`, `(B, N, D)`; nan where it is not finite."""
        noise = tuple(n.expand(1, batch, self.num_replicas, *n.shape).contiguous() for n in draws)
        found = []
        for state in states:
            scalars = torch.tensor(NO_OP_STEP, dtype=state.theta[0].dtype, device=state.theta[0].device)[:, None]
            after, _ = self.engine.advance(state, scalars, noise)
            gradient = torch.cat(after.first, -1) / (1 - BETA1)
            found.append(torch.where(after.alive[..., None], gradient, torch.nan))
        return torch.cat(found, 1)
