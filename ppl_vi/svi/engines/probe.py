"""The gradients of the convergence checks by way of an engine's own step, so that a check costs what steps cost.

A step of size 0 from moments of 0 leaves (1 - beta1) times the gradient in Adam's first moment. Each point with each
block of the noise, of as many particles as a step has, stands where a replica stands in a fit. A kernel takes any
number of these at once; the batched engine takes as many at a time as it was made for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vi.svi.engines.adam import BETA1
from ppl_vi.svi.engines.compiled import KernelEngine
from ppl_vi.svi.engines.step import NO_OP_STEP, Engine, State

# The batched engine's steps are not used if they have fewer particles: a check would need so many of them that calling
# them costs more than the derivatives without an engine do.
MIN_PARTICLES = 32
# The noise of one call of a kernel has at most so many numbers, half a MiB in double precision: with more, what a call
# reads and writes would not stay in the processor's cache.
MAX_NOISE_NUMBERS = 2**16


def gradients_by_step(
    engine: Engine, theta: Tensor, noise: tuple[Tensor, ...], min_replicas: int = 1
) -> tuple[Tensor, Tensor]:
    """The gradients of the loss at points `(B, R, D)`, and the bounds there, `(B, R)`, by one step of an engine.

    Args:
        engine: an engine that can take one step at a time.
        theta: the points.
        noise: for each draw `(1, B, R, P, *shape)`.
        min_replicas: the fewest replicas that the engine takes at once; fewer are filled up with copies of the last.

    Returns:
        The gradients, nan where they are not finite, and the bounds.
    """
    num, short = theta.shape[1], max(0, min_replicas - theta.shape[1])
    theta = torch.cat([theta, theta[:, -1:].expand(-1, short, -1)], 1)
    noise = tuple(torch.cat([n, *[n[:, :, -1:]] * short], 2) for n in noise)
    alive = torch.ones(theta.shape[:2], dtype=torch.bool, device=theta.device)
    state = State.start(theta, torch.ones_like(theta), alive, engine.sizes)
    scalars = torch.tensor(NO_OP_STEP, dtype=theta.dtype, device=theta.device)[:, None]
    after, bounds = engine.advance(state, scalars, noise)
    gradient = torch.cat(after.first, -1) / (1 - BETA1)
    return torch.where(after.alive[..., None], gradient, torch.nan)[:, :num], bounds[0, :, :num]


def step_gradients(engine: Engine, num_replicas: int, num_particles: int) -> StepGradients | None:
    """The gradients of an engine made for so many replicas and particles.

    Returns:
        None where its steps have too few particles, or where it takes several steps in each call.
    """
    if isinstance(engine, KernelEngine):
        return StepGradients(engine, None, num_particles, engine.min_replicas)
    several = getattr(engine, "num_steps", 1) > 1
    return None if several or num_particles < MIN_PARTICLES else StepGradients(engine, num_replicas, num_particles)


@dataclass(frozen=True)
class StepGradients:
    """A `ppl_vi.svi.gradients.GradientSource` that uses the steps of an engine.

    Attributes:
        engine: an engine that can take one step at a time.
        num_replicas: the replicas of each problem that it was made for; None where it serves any number from the
            smallest on.
        num_particles: the particles of its steps.
        min_replicas: the fewest replicas that it takes at once.
    """

    engine: Engine
    num_replicas: int | None
    num_particles: int
    min_replicas: int = 1

    def fits(self, noise: tuple[Tensor, ...]) -> bool:
        """Whether noise `(scrambles, groups, particles, *shape)` can be divided into whole steps, or fill one."""
        num = noise[0].shape[2] if noise else 0
        return bool(num) and (num % self.num_particles == 0 or self.num_particles % num == 0)

    def gradients(self, theta: Tensor, noise: tuple[Tensor, ...]) -> Tensor:
        """The gradient of the loss at `theta` `(B, N, D)`, averaged over each scramble: `(B, N, S, D)`."""
        scrambles, times = len(noise[0]), max(1, self.num_particles // noise[0].shape[2])
        noise = tuple(torch.cat([n] * times, 2) for n in noise)  # the mean stays the same
        blocks = tuple(n.unflatten(2, (-1, self.num_particles)).flatten(0, 2) for n in noise)  # (S K, P, *shape)
        found = self._at_all(theta, blocks) if self.num_replicas is None else self._by_replicas(theta, blocks)
        return found.unflatten(2, (scrambles, -1)).mean(3)

    def _at_all(self, theta: Tensor, blocks: tuple[Tensor, ...]) -> Tensor:
        """The gradients at points `(B, N, D)` on each block of noise `(K, P, *shape)`, `(B, N, K, D)`."""
        batch, _, dim = theta.shape
        num_blocks = len(blocks[0])
        per_point = batch * num_blocks * sum(n[0].numel() for n in blocks)
        found = []
        for some in theta.split(max(1, MAX_NOISE_NUMBERS // per_point), 1):
            lanes = some[:, :, None].expand(-1, -1, num_blocks, -1).reshape(batch, -1, dim)
            noise = tuple(n.expand(1, batch, some.shape[1], *n.shape).flatten(2, 3) for n in blocks)
            gradients, _ = gradients_by_step(self.engine, lanes, noise, self.min_replicas)
            found.append(gradients.unflatten(1, (-1, num_blocks)))
        return torch.cat(found, 1)

    def _by_replicas(self, theta: Tensor, blocks: tuple[Tensor, ...]) -> Tensor:
        """The same, of as many points at a time as the engine has replicas, one block after another."""
        batch, num, _ = theta.shape
        assert self.num_replicas is not None
        whole = torch.cat([theta, theta[:, -1:].expand(-1, -num % self.num_replicas, -1)], 1)
        found = []
        for draws in zip(*blocks, strict=True):
            noise = tuple(n.expand(1, batch, self.num_replicas, *n.shape).contiguous() for n in draws)
            parts = [gradients_by_step(self.engine, some, noise)[0] for some in whole.split(self.num_replicas, 1)]
            found.append(torch.cat(parts, 1)[:, :num])
        return torch.stack(found, 2)
