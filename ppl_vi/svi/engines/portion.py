"""For how many replicas and steps noise is drawn in one call; these replicas and steps are a portion."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ppl_vi.svi.program import Program

# A portion has at least the first number of steps, so that calls of an engine cost little beside the steps, and at most
# the second, beyond which fewer calls save nothing. The first gives way where the noise of that many steps of a single
# replica is more than the cache holds.
MIN_PORTION_STEPS, MAX_PORTION_STEPS = 32, 64
# The same where every step is a call of its own, however many are drawn for: many replicas a call cost less than one.
MIN_PORTION_SINGLE_STEPS = 4
# Numbers of noise in a portion, by kind of device: on a CPU, as many as stay in its cache. More would be fetched from
# main memory when the steps use them. A single step of a single replica may have more.
MAX_NOISE_NUMBERS = {"cpu": 2**18}
# The same on other devices, which are fast only where each call has much to do.
MAX_NOISE_NUMBERS_ELSEWHERE = 2**24


@dataclass(frozen=True)
class Portion:
    """The replicas and the steps that noise is drawn for at once.

    Attributes:
        num_replicas: replicas of every problem.
        num_steps: steps one after another, a power of 2.
    """

    num_replicas: int
    num_steps: int

    @staticmethod
    def of(
        program: Program, num_problems: int, num_replicas: int, num_particles: int, step_by_step: bool = False
    ) -> Portion:
        """The portion for a batch of fits.

        All replicas take many steps at once where there is little noise, so that calls cost little; some replicas take
        some steps where there is much noise, so that it stays in the cache.

        Args:
            program: the model and guide, whose noise is counted.
            num_problems, num_replicas, num_particles: of the batch.
            step_by_step: whether each step of a portion is a call of its own.
        """
        numbers_of_replica = sum(draw.shape.numel() for draw in program.draws) * num_problems * num_particles
        most_numbers = MAX_NOISE_NUMBERS.get(program.initial.device.type, MAX_NOISE_NUMBERS_ELSEWHERE)
        replica_steps = max(1, most_numbers // max(1, numbers_of_replica))
        least = MIN_PORTION_SINGLE_STEPS if step_by_step else MIN_PORTION_STEPS
        wished = max(least, min(MAX_PORTION_STEPS, replica_steps // num_replicas))
        num_steps = power_of_2(min(replica_steps, wished))
        num_portions = math.ceil(num_replicas / max(1, replica_steps // num_steps))
        return Portion(math.ceil(num_replicas / num_portions), num_steps)


def power_of_2(most: int) -> int:
    """The largest power of 2 that is at most `most`."""
    return 1 << (most.bit_length() - 1)
