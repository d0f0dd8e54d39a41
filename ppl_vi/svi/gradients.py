"""The gradient and the Hessian of an objective at given parameters, averaged over noise that is made for it.

Convergence checks and preconditioners need both more exactly than one step of SVI estimates them. Where the objective
is a mean over particles, the noise is scrambled Sobol points, whose mean has a smaller error; the spread over
independent scrambles gives the standard error. Other bounds depend on the number of particles, and are averaged over
groups of as many pseudo-random particles as a step has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.func import grad

from ppl_vi.compiler.many_points import chunks
from ppl_vi.numerics.control_variates import controlled_means, hermite_products
from ppl_vi.svi.objectives import Objective, surrogate_loss
from ppl_vi.svi.program import Program
from ppl_vi.svi.randomness import pseudo_random, quasi_random

Noise = tuple[Tensor, ...]

# Independent scrambles of the Sobol points, each of which gives a mean of its own: enough of them that Student's
# quantile, 2.4, is near the normal one, 2.0.
NUM_SCRAMBLES = 8
# The groups of particles in each of these repetitions, for objectives that are no mean over particles.
NUM_GROUPS = 16
# The most Sobol points that the Hessian is computed from, since it takes 2 D gradients at all of them.
MAX_HESSIAN_POINTS = 512
# Gradients are means over blocks of so many points where control variates take away from their errors.
CONTROL_BLOCK = 16
# Where points have to be run one by one, only this share of them is used, but at least MIN_POINTS.
ONE_BY_ONE_SHARE, MIN_POINTS = 1 / 64, 4


class GradientSource(Protocol):
    """A faster way to the gradients of `MeanGradients`, for noise that it can take; see `ppl_vi.svi.engines.probe`."""

    def fits(self, noise: Noise) -> bool:
        """Whether it can take this noise."""
        ...

    def gradients(self, theta: Tensor, noise: Noise) -> Tensor:
        """As `MeanGradients.gradients`."""
        ...


@dataclass(frozen=True)
class MeanGradients:
    """Gradients and Hessians of one objective's loss, for all problems of a target.

    Attributes:
        program, objective: what is fitted, and by which objective.
        num_particles: particles of a step, for objectives that are no mean over particles.
        source: a faster way to gradients, where there is one.
        max_particles: the most draws, of all points together, that gradients are otherwise computed for at once; None
            for any number.
        is_controlled: whether `controlled_gradients` uses control variates.
    """

    program: Program
    objective: Objective
    num_particles: int
    source: GradientSource | None = None
    max_particles: int | None = None
    is_controlled: bool = False

    def noise(self, num_points: int, seed: int, num_scrambles: int = NUM_SCRAMBLES) -> Noise:
        """New noise for means, for each draw `(scrambles, groups, particles, *shape)`.

        Args:
            num_points: Sobol points a scramble, in one group; of no account for objectives that are no mean.
            seed: of the scrambles.
            num_scrambles: takes only the first of the `NUM_SCRAMBLES` scrambles.
        """
        draws, device = self.program.draws, self.program.initial.device
        if self.objective.additive:
            noise = quasi_random(draws, self._affordable(num_points), num_scrambles, seed, NUM_SCRAMBLES)
            return tuple(n[:, None].to(device) for n in noise)
        generator = torch.Generator(device=device).manual_seed(seed)
        return pseudo_random(draws, (num_scrambles, NUM_GROUPS, self.num_particles), generator)

    def _affordable(self, num_points: int) -> int:
        if not self.program.one_by_one:
            return num_points
        return max(MIN_POINTS, round(num_points * ONE_BY_ONE_SHARE))

    def gradients(self, theta: Tensor, noise: Noise) -> Tensor:
        """The gradient of the loss at `theta` `(B, N, D)`, averaged over each scramble: `(B, N, S, D)`."""
        if self.source is not None and self.source.fits(noise):
            return self.source.gradients(theta, noise)
        if self.max_particles is None or not noise:
            return self._at_once(theta, noise)
        (scrambles, groups, num), found = noise[0].shape[:3], []
        of_point = len(theta) * scrambles * groups * num
        size = max(1, num * self.max_particles // of_point) if self.objective.additive else num
        for some in theta.split(max(1, self.max_particles // of_point), 1):
            parts = [tuple(n[:, :, few] for n in noise) for few in chunks(num, min(num, size))]
            # the mean over all draws, of those over the parts of them
            means = [self._at_once(some, part) * (part[0].shape[2] / num) for part in parts]
            found.append(torch.stack(means).sum(0))
        return torch.cat(found, 1)

    def _at_once(self, theta: Tensor, noise: Noise) -> Tensor:
        """The same for all points and all noise together."""
        over = self.program.over

        def of_group(point: Tensor, row: tuple[Tensor, ...], group: Noise) -> Tensor:
            return grad(lambda at: surrogate_loss(self.program, self.objective, at, row, group)[0])(point)

        def of_scramble(point: Tensor, row: tuple[Tensor, ...], groups: Noise) -> Tensor:
            return over(lambda group: of_group(point, row, group))(groups).mean(0)

        def of_point(point: Tensor, row: tuple[Tensor, ...]) -> Tensor:
            if not noise:  # nothing is random
                return of_group(point, row, noise)[None]
            return over(lambda groups: of_scramble(point, row, groups))(noise)

        return over(over(of_point, in_dims=(0, None)))(theta, self.program.target.args)

    def controlled_gradients(self, theta: Tensor, noise: Noise) -> Tensor:
        """As `gradients`, with smaller errors where the gradient is nearly a polynomial in normal noise."""
        if not (self.is_controlled and noise and self.objective.additive) or any(
            draw.kind != "normal" for draw in self.program.draws
        ):
            return self.gradients(theta, noise)
        scrambles, _, num = noise[0].shape[:3]
        block = math.gcd(num, CONTROL_BLOCK)
        controls = hermite_products(torch.cat([n[:, 0].reshape(scrambles, num, -1) for n in noise], -1), block)
        if controls is None:
            return self.gradients(theta, noise)
        blocks = tuple(n.unflatten(2, (-1, block)).transpose(1, 2).flatten(0, 1) for n in noise)
        return controlled_means(self.gradients(theta, blocks).unflatten(2, (scrambles, -1)).movedim(-1, 2), controls).mT

    def halves(self, num_points: int, seed: int) -> Noise:
        """The first points of the first two scrambles, as many of each as give `MAX_HESSIAN_POINTS` in all.

        For objectives that are no mean over particles it is all particles of the first two repetitions.

        Args:
            num_points: Sobol points a scramble, as in `noise`.
            seed: of the scrambles.
        """
        noise = self.noise(num_points, seed, num_scrambles=2)
        if not self.objective.additive:
            return noise
        return tuple(n[:, :, : max(1, min(n.shape[2], self._affordable(MAX_HESSIAN_POINTS)) // 2)] for n in noise)

    def hessians(self, theta: Tensor, noise: Noise, step: Tensor) -> Tensor:
        """Hessians of the loss at `theta` `(B, R, D)` by central differences of gradients: `(B, R, S, D, D)`.

        All differences of a Hessian are taken on the same noise, that of its scramble.

        Args:
            theta: the parameters.
            noise: as `noise` and `halves` give it.
            step: how far each parameter is moved to either side, `(B, R, D)`.
        """
        batch, replicas, dim = theta.shape
        shift = torch.diag_embed(step)
        moved = torch.cat([theta[:, :, None] + shift, theta[:, :, None] - shift], 2).reshape(batch, -1, dim)
        gradients = self.gradients(moved, noise)  # (B, 2 R D, S, D)
        up, down = gradients.reshape(batch, replicas, 2, dim, -1, dim).unbind(2)
        hessian = ((up - down) / (2 * step[..., None, None])).transpose(2, 3)
        return (hessian + hessian.mT) / 2
