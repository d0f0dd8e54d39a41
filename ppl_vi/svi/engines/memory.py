"""How many replicas can be computed at once in the memory that there is.

The memory of a step is the largest that its intermediate values take at any moment, counted on the traced graph. It
grows in proportion to the number of fits and of particles. A batch that needs more memory than it may take is computed
in chunks of replicas; since the noise of all replicas is drawn before, the numbers stay the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from ppl_vi.runtime.memory import SHARE_OF_FREE_MEMORY, MemoryBoundError, is_bounded, room, shown
from ppl_vi.svi.engines.batched import BatchedEngine
from ppl_vi.svi.engines.step import Engine, State
from ppl_vi.svi.objectives import Objective
from ppl_vi.svi.program import Program
from ppl_vi.svi.randomness import pseudo_random

# A batch whose noise and data, repeated for each particle of each fit, are at most this many numbers (8 MiB in double
# precision) takes little memory. Its step is traced to find out how much only where the memory is bounded.
MAX_NUMBERS_NOT_COUNTED = 2**20
# The numbers that a step that can't be traced is assumed to need at once, for each number of noise and data.
NUMBERS_OF_UNTRACED_STEP = 300
# Derivatives that are computed under `vmap`, not traced, are assumed to take this many times the memory of the traced
# step.
UNTRACED_MEMORY_FACTOR = 3.0


def room_bytes(device: torch.device) -> float:
    """The bytes that may be taken on a device now, on top of what is held."""
    return SHARE_OF_FREE_MEMORY * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else room()


def peak_bytes(graph: GraphModule) -> int:
    """The most bytes that a graph's values take at once, when each is dropped after its last use."""
    last: dict[Node, Node] = {}
    for node in graph.graph.nodes:
        for source in node.all_input_nodes:
            last[source] = node
    held = most = 0
    for node in graph.graph.nodes:
        held += _bytes(node)
        most = max(most, held)
        held -= sum(_bytes(source) for source in node.all_input_nodes if last[source] is node)
        if node not in last:
            held -= _bytes(node)
    return most


def _bytes(node: Node) -> int:
    """The bytes of a node's value; 0 for a view, which has no memory of its own."""
    value: Any = node.meta.get("val")
    owns = node.op != "call_function" or not str(node.target).startswith(("aten.view", "aten.expand", "aten.select"))
    return value.numel() * value.element_size() if isinstance(value, Tensor) and owns else 0


@dataclass(frozen=True)
class Footprint:
    """How much memory particles take, and how much there is for them.

    Attributes:
        particle: the bytes that one particle of one fit takes in a traced step, or 0 where the batch is so small that
            they were not counted.
        max_bytes: the bytes that may be taken in all.
    """

    particle: float
    max_bytes: float

    def num_replicas(self, num_problems: int, num_replicas: int, num_particles: int) -> int:
        """How many replicas of all problems can take a step at once, at most `num_replicas`.

        Args:
            num_problems, num_replicas: of the batch.
            num_particles: of each fit, at once.

        Raises:
            MemoryBoundError: there is not enough memory for a single replica.
        """
        each = self.particle * num_problems * num_particles
        if each <= 0 or each * num_replicas <= self.max_bytes:
            return num_replicas
        if each > self.max_bytes:
            of = f"{num_problems} problems" if num_problems > 1 else "one problem"
            raise MemoryBoundError(
                f"a step of one replica of {of} with {num_particles} draws at once takes about {shown(each)} of "
                f"memory, and {shown(self.max_bytes)} may be taken: give fewer problems or draws, or allow more memory"
            )
        return int(self.max_bytes / each)

    @property
    def untraced_particles(self) -> int | None:
        """How many draws derivatives that are not traced may be computed for at once; None for any number."""
        if self.particle <= 0:
            return None
        return max(1, int(self.max_bytes / (UNTRACED_MEMORY_FACTOR * self.particle)))


def footprint(program: Program, objective: Objective, theta: Tensor, num_particles: int) -> Footprint:
    """The memory that the particles of fits take, found by tracing the step of one replica.

    Args:
        program, objective: what is fitted, and by which objective.
        theta: the parameters of all fits, `(B, R, D)`.
        num_particles: of each fit.
    """
    max_bytes = room_bytes(theta.device)
    numbers = sum(d.shape.numel() for d in program.draws) + sum(arg[0].numel() for arg in program.target.args)
    particles = theta.shape[0] * num_particles
    if program.one_by_one or (particles * theta.shape[1] * numbers <= MAX_NUMBERS_NOT_COUNTED and not is_bounded()):
        return Footprint(0.0, max_bytes)
    one = theta[:, :1].contiguous()
    generator = torch.Generator(device=theta.device).manual_seed(0)
    noise = pseudo_random(program.draws, (*one.shape[:2], num_particles), generator)
    graph = BatchedEngine(program, objective).trace(one, noise)
    taken = peak_bytes(graph) if graph else NUMBERS_OF_UNTRACED_STEP * particles * numbers * theta.element_size()
    return Footprint(taken / particles, max_bytes)


@dataclass(frozen=True)
class ChunkedEngine:
    """Takes the steps of one chunk of replicas after those of another.

    Attributes:
        engine: an engine made for `size` replicas of each problem.
        size: the replicas of a chunk; the last chunk is filled up with copies of its last replica.
    """

    engine: Engine
    size: int

    @property
    def sizes(self) -> Sequence[int]:
        """The sizes of the parts in which the engine wants the parameters."""
        return self.engine.sizes

    def advance(self, state: State, scalars: Tensor, noise: tuple[Tensor, ...]) -> tuple[State, Tensor]:
        """See `ppl_vi.svi.engines.step.Engine`."""
        num = state.alive.shape[1]
        if num == self.size:
            return self.engine.advance(state, scalars, noise)
        states, bounds = [], []
        for begin in range(0, num, self.size):
            index = torch.arange(begin, begin + self.size, device=state.alive.device).clamp(max=num - 1)
            keep = min(self.size, num - begin)
            some = state.over(partial(torch.index_select, dim=1, index=index))
            draws = tuple(n.index_select(2, index) for n in noise)
            after, found = self.engine.advance(some, scalars, draws)
            states.append(after.over(partial(torch.narrow, dim=1, start=0, length=keep)))
            bounds.append(found[:, :, :keep])
        return State.joined(states), torch.cat(bounds, 2)
