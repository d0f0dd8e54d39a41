"""Steps from blocks of draws: the gradient of all draws together, and Adam along given axes by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from models.exponential_normal import target
from ppl_vi.guides import find_family
from ppl_vi.svi.engines.adam import AXES_EPS, step_schedule
from ppl_vi.svi.engines.batched import BatchedEngine
from ppl_vi.svi.engines.blocks import BlockEngine
from ppl_vi.svi.engines.compiled import compiled_engine
from ppl_vi.svi.engines.memory import ChunkedEngine
from ppl_vi.svi.engines.step import State, gradients
from ppl_vi.svi.objectives import trace_elbo
from ppl_vi.svi.program import Program
from ppl_vi.svi.randomness import pseudo_random
from ppl_vi.svi.start import build_guide
from ppl_vi.target.isolation import isolated

TARGET = target([1.5, -2.0])
REPLICAS, BLOCK = 3, 16


def engine_of(kind: str, program: Program, theta: Tensor) -> BlockEngine:
    if kind == "batched":
        return BlockEngine(ChunkedEngine(BatchedEngine(program, trace_elbo), 4), BLOCK, program.layout.size)
    noise = pseudo_random(program.draws, (1, *theta.shape[:2], BLOCK), torch.Generator().manual_seed(0))
    made: Any = compiled_engine(program, trace_elbo, theta, noise, 1000)
    return BlockEngine(made, BLOCK, program.layout.size, made.min_replicas)


@pytest.mark.parametrize("kind", ["batched", "compiled"])
@pytest.mark.parametrize("num_blocks", [1, 4])
def test_blocks_give_the_gradient_of_all_draws_and_a_step_along_the_axes(kind: str, num_blocks: int) -> None:
    with isolated(TARGET.dtype, seed=0):
        program = Program(TARGET, build_guide(find_family("lognormal"), TARGET))
        dim = program.layout.size
        theta = program.initial + 0.3 * torch.randn(2, REPLICAS, dim)
        axes = torch.randn(2, REPLICAS, dim, dim)
        generator = torch.Generator().manual_seed(1)
        noise = pseudo_random(program.draws, (1, 2, REPLICAS, num_blocks * BLOCK), generator)
        slope, bound = gradients(program, trace_elbo, theta, TARGET.args, tuple(n[0] for n in noise))
        engine = engine_of(kind, program, theta)
        alive = torch.ones(2, REPLICAS, dtype=torch.bool)
        alive[1, 2] = False
        alive[:, 1] = False  # in both problems, so that its gradient is not computed
        state = State.start(theta, axes, alive, engine.sizes)
        scalars = torch.tensor([*step_schedule(0.1, 1), 1.0], dtype=theta.dtype)[:, None]
        after, bounds = engine.advance(state, scalars, noise)
    # the first step of Adam is of size 0.1 along each axis, against the slope there, where that is not small
    along = axes.mT @ slope[..., None]
    moved = theta - 0.1 * (axes @ (along / (along.abs() + AXES_EPS)))[..., 0]
    expected = torch.where(alive[..., None], moved, theta)
    torch.testing.assert_close(after.theta[0], expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(after.average, expected, rtol=1e-9, atol=1e-9)
    bound[:, 1] = torch.nan
    torch.testing.assert_close(bounds[0], bound, rtol=1e-10, atol=1e-10, equal_nan=True)
    assert torch.equal(after.alive, alive)


def test_a_fit_whose_gradient_is_not_finite_stays_where_it_was() -> None:
    with isolated(TARGET.dtype, seed=0):
        program = Program(TARGET, build_guide(find_family("lognormal"), TARGET))
        theta = program.initial.expand(2, REPLICAS, -1).clone()
        theta[0, 1] = 800.0  # exp of it is infinite
        noise = pseudo_random(program.draws, (1, 2, REPLICAS, BLOCK), torch.Generator().manual_seed(1))
        engine = engine_of("batched", program, theta)
        alive = torch.ones(2, REPLICAS, dtype=torch.bool)
        axes = torch.eye(program.layout.size, dtype=theta.dtype).expand(2, REPLICAS, -1, -1)
        scalars = torch.tensor([*step_schedule(0.1, 1), 1.0], dtype=theta.dtype)[:, None]
        after, _ = engine.advance(State.start(theta, axes, alive, engine.sizes), scalars, noise)
    assert after.alive.tolist() == [[True, False, True], [True, True, True]]
    assert torch.equal(after.theta[0][0, 1], theta[0, 1])
    assert bool((after.theta[0][1] != theta[1]).all())
