"""Steps of any number of draws, from an engine whose steps have few: the gradient is the mean over blocks of draws.

The engine inside gives the gradient on each block by a step of size 0, with every block where a replica stands in a
fit. The mean over a fit's blocks then moves its parameters by Adam, here in coordinates that may be any linear map of
the parameters. So one compiled step serves rounds of few and of many draws, and steps along the curvature's axes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vi.svi.engines.adam import adam
from ppl_vi.svi.engines.probe import gradients_by_step
from ppl_vi.svi.engines.step import Engine, State


@dataclass(frozen=True)
class BlockEngine:
    """An `Engine` that takes a step from the mean gradient over blocks of draws.

    The preconditioner of its states is a matrix for each fit, `(B, R, D, D)`: its columns are how far a step of size 1
    along each axis moves the parameters.

    Attributes:
        engine: gives the gradient on one block.
        num_particles: the draws of a block. The noise of a step has a multiple of it.
        size: how many parameters a fit has.
        min_replicas: the fewest replicas that `engine` takes at once.
    """

    engine: Engine
    num_particles: int
    size: int
    min_replicas: int = 1

    @property
    def sizes(self) -> list[int]:
        """All parameters in one part."""
        return [self.size]

    def advance(self, state: State, scalars: Tensor, noise: tuple[Tensor, ...]) -> tuple[State, Tensor]:
        """See `ppl_vi.svi.engines.step.Engine`. The bound of a replica that is alive in no problem is nan."""
        (theta,), (first,), (second,), (total,) = state.theta, state.first, state.second, state.total
        (preconditioner,), alive, bounds = state.preconditioner, state.alive, []
        for i, (rate, correction, weight) in enumerate(scalars.mT.tolist()):
            gradient, bound = self._of_alive(theta, alive, tuple(n[i] for n in noise))
            moved = adam(theta, first, second, gradient, preconditioner, rate, correction)
            alive = alive & bound.isfinite() & moved[0].isfinite().all(-1)
            here = alive[..., None]
            theta, first, second = (
                torch.where(here, *pair) for pair in zip(moved, (theta, first, second), strict=True)
            )
            total = total + weight * theta
            bounds.append(bound)
        return State(alive, (theta,), (first,), (second,), (total,), state.preconditioner), torch.stack(bounds)

    def _of_alive(self, theta: Tensor, alive: Tensor, noise: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """What `gradients` gives for the replicas that are alive in any problem; 0 and nan for the others."""
        some = alive.any(0).nonzero()[:, 0]
        if len(some) == alive.shape[1]:
            return self.gradients(theta, noise)
        gradient, bound = torch.zeros_like(theta), torch.full_like(theta[..., 0], torch.nan)
        if len(some):
            found = self.gradients(theta[:, some], tuple(n[:, some] for n in noise))
            gradient, bound = gradient.index_copy(1, some, found[0]), bound.index_copy(1, some, found[1])
        return gradient, bound

    def gradients(self, theta: Tensor, noise: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """The gradient of the loss at `theta` `(B, R, D)` and the bound, `(B, R)`, nan where they are not finite.

        Args:
            theta: the parameters.
            noise: for each draw `(B, R, P, *shape)`.
        """
        batch, replicas, dim = theta.shape
        num_blocks = noise[0].shape[2] // self.num_particles if noise else 1
        lanes = theta.repeat_interleave(num_blocks, 1)
        blocks = tuple(n.unflatten(2, (num_blocks, self.num_particles)).flatten(1, 2)[None] for n in noise)
        gradient, bound = gradients_by_step(self.engine, lanes, blocks, self.min_replicas)
        return (
            gradient.reshape(batch, replicas, num_blocks, dim).mean(2),
            bound.reshape(batch, replicas, num_blocks).mean(2),
        )
