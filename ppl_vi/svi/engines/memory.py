"""How many fits fit into memory at once.

A step's memory is that of the values alive at its fullest moment, counted on the traced graph, and grows in proportion
to fits times particles. A batch that needs more than it may is taken in chunks of replicas; since the noise is drawn
for all of them first, the results are the same numbers.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from ppl_vi.svi.engines.batched import BatchedEngine
from ppl_vi.svi.engines.step import Engine, State
from ppl_vi.svi.objectives import Objective
from ppl_vi.svi.program import Program
from ppl_vi.svi.randomness import pseudo_random

SMALL = 2**20  # particles of all fits, their noise and data counted by numbers, for which nothing is asked
SHARE = 0.5  # of what is free
UNKNOWN = 300  # numbers alive for each of noise and data, where a step can't be traced
UNTRACED = 3.0  # times a traced graph's memory that the same derivative takes where it is not traced


def free_bytes(device: torch.device) -> int:
    """Memory that can be had now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo") as file:
            kilobytes = next(line.split()[1] for line in file if line.startswith("MemAvailable:"))
        return int(kilobytes) * 1024
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def peak_bytes(graph: GraphModule) -> int:
    """The most that a graph's values take at once, run in order, each dropped after its last use."""
    last: dict[Node, Node] = {}
    for node in graph.graph.nodes:
        for source in node.all_input_nodes:
            last[source] = node
    alive = most = 0
    for node in graph.graph.nodes:
        alive += _bytes(node)
        most = max(most, alive)
        alive -= sum(_bytes(source) for source in node.all_input_nodes if last[source] is node)
        if node not in last:
            alive -= _bytes(node)
    return most


def _bytes(node: Node) -> int:
    value: Any = node.meta.get("val")
    owns = node.op != "call_function" or not str(node.target).startswith(("aten.view", "aten.expand", "aten.select"))
    return value.numel() * value.element_size() if isinstance(value, Tensor) and owns else 0


@dataclass(frozen=True)
class Footprint:
    """What particles take, and what there is for them.

    Attributes:
        particle: bytes a particle of one fit takes in a traced step, or 0 where the batch is too small to ask.
        max_bytes: what may be taken.
    """

    particle: float
    max_bytes: float

    def num_replicas(self, num_problems: int, num_replicas: int, num_particles: int, share: float = 1.0) -> int:
        """How many replicas of all problems fit in at once, at most `num_replicas`.

        Args:
            num_problems, num_replicas: of the batch.
            num_particles: of each fit.
            share: times the memory that a traced step takes.

        Raises:
            ValueError: not even one does.
        """
        each = self.particle * share * num_problems * num_particles
        if each <= 0 or each * num_replicas <= self.max_bytes:
            return num_replicas
        if each > self.max_bytes:
            raise ValueError(
                f"one replica of {num_problems} problems with {num_particles} particles takes about "
                f"{each / 2**30:.3g} GiB, and {self.max_bytes / 2**30:.3g} GiB may be taken: "
                "give fewer problems or particles, or more memory"
            )
        return int(self.max_bytes / each)


def footprint(
    program: Program, objective: Objective, theta: Tensor, num_particles: int, max_memory: float | None
) -> Footprint:
    """What fits `theta` `(B, R, D)` take a particle, by tracing one replica of theirs.

    Args:
        program, objective: what is fitted.
        theta: the parameters of all fits.
        num_particles: of each.
        max_memory: GiB that may be taken, or None for half of what is free.
    """
    max_bytes = SHARE * free_bytes(theta.device) if max_memory is None else max_memory * 2**30
    numbers = sum(d.shape.numel() for d in program.draws) + sum(arg[0].numel() for arg in program.target.args)
    particles = theta.shape[0] * num_particles
    if program.one_by_one or (particles * theta.shape[1] * numbers <= SMALL and max_memory is None):
        return Footprint(0.0, max_bytes)
    one = theta[:, :1].contiguous()
    generator = torch.Generator(device=theta.device).manual_seed(0)
    noise = pseudo_random(program.draws, (*one.shape[:2], num_particles), generator)
    graph = BatchedEngine(program, objective).trace(one, noise)
    taken = peak_bytes(graph) if graph else UNKNOWN * particles * numbers * theta.element_size()
    return Footprint(taken / particles, max_bytes)


@dataclass(frozen=True)
class ChunkedEngine:
    """Takes the steps of some replicas after those of others.

    Attributes:
        engine: made for `size` replicas.
        size: of a chunk; the last is filled up with copies of a replica.
    """

    engine: Engine
    size: int

    @property
    def sizes(self) -> Any:
        """See `ppl_vi.svi.engines.step.Engine`."""
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
