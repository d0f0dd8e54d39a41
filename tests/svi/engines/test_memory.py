"""Memory counted on a graph, and batches taken in chunks to the same numbers."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.exponential_normal import target as toy
from ppl_vi.compiler.trace import trace
from ppl_vi.guides import FAMILIES
from ppl_vi.runtime.memory import MemoryBoundError, allowing
from ppl_vi.svi.engines.memory import Footprint, footprint, peak_bytes
from ppl_vi.svi.fit import fit
from ppl_vi.svi.gradients import MeanGradients
from ppl_vi.svi.objectives import trace_elbo
from ppl_vi.svi.program import Program
from ppl_vi.svi.start import build_guide
from ppl_vi.target.isolation import isolated


def test_the_peak_is_what_is_alive_at_once() -> None:
    """Of x and its outer product with itself both are needed for the sum, which is small."""

    def function(x: Tensor) -> Tensor:
        y = x[:, None] * x[None]  # 100 x 100
        z = y.sin()  # while y is still there
        return z.sum() + x.sum()

    graph = trace(function, [torch.ones(100, dtype=torch.float64)])
    assert peak_bytes(graph) == pytest.approx(8 * (100 + 2 * 100 * 100), rel=1e-2)


def test_a_batch_in_chunks_gives_the_same_numbers() -> None:
    """Seven replicas, three at a time in the steps and fewer in the checks; the last chunk is filled up."""
    target = toy([1.5, -3.0])
    options = {"num_steps": 40, "num_particles": 32, "num_replicas": 7, "seed": 3, "engine": "batched"}
    with isolated(seed=0):
        program = Program(target, build_guide(FAMILIES["lognormal"], target))
        theta = program.initial.expand(2, 7, -1)
        with allowing(2.0**30):
            room = footprint(program, trace_elbo, theta, 32)
    assert room.num_replicas(2, 7, 32) == 7
    least = room.particle * 2 * 32 * 1.5 / 2**30  # GiB for a step of one replica, and little more
    whole, parts = fit(target, "lognormal", **options), fit(target, "lognormal", max_memory=least, **options)
    tight = Footprint(room.particle, least * 2**30)
    assert tight.num_replicas(2, 7, 32) == 1
    assert tight.untraced_particles == 32  # of the 2 x 4096 draws of a check
    torch.testing.assert_close(whole.theta, parts.theta, rtol=1e-10, atol=1e-10)
    assert whole.status.tolist() == parts.status.tolist()
    assert whole.elbo_history == pytest.approx(parts.elbo_history, rel=1e-10)


def test_too_little_memory_for_one_replica_is_said() -> None:
    said = r"a step of one replica of one problem with 24 draws at once takes about .* MB of memory, and 0.001 MB may"
    with pytest.raises(MemoryBoundError, match=said):
        fit(toy([1.5]), "lognormal", num_particles=24, max_memory="1KB", num_steps=8)


def test_a_wrong_amount_is_refused() -> None:
    with pytest.raises(ValueError, match="such as 500MB, 4GB or 4GiB, got 'much'"):
        fit(toy([1.5]), "lognormal", max_memory="much")
    with pytest.raises(ValueError, match="max_memory must be positive and finite, got -1"):
        fit(toy([1.5]), "lognormal", max_memory=-1)


@pytest.mark.parametrize("most", [1, 5, 1000])
def test_gradients_in_pieces_are_those_at_once(most: int) -> None:
    """Two problems and three replicas on eight scrambles of 16 points; 5 does not divide them."""
    target = toy([1.5, -3.0])
    with isolated(seed=0):
        program = Program(target, build_guide(FAMILIES["lognormal"], target))
        theta = program.initial.expand(2, 3, -1) + torch.tensor([0.0, 0.1, -0.2])[:, None]
        whole = MeanGradients(program, trace_elbo, 16)
        noise = whole.noise(16, seed=2)
        expected = whole.gradients(theta, noise)
        found = replace(whole, max_particles=most).gradients(theta, noise)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
