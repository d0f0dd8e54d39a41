"""Memory counted on a graph, and batches taken in chunks to the same numbers."""

import pytest
import torch
from torch import Tensor

from models.exponential_normal import target as toy
from ppl_vi.compiler.trace import trace
from ppl_vi.guides import FAMILIES
from ppl_vi.svi.engines.memory import Footprint, footprint, free_bytes, peak_bytes
from ppl_vi.svi.fit import fit
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
        room = footprint(program, trace_elbo, theta, 32, max_memory=1.0)
    assert room.num_replicas(2, 7, 32) == 7
    least = room.particle * 3.0 * 2 * 16_384 / 2**30  # GiB for one replica in the last check
    whole, parts = fit(target, "lognormal", **options), fit(target, "lognormal", max_memory=1.5 * least, **options)
    assert Footprint(room.particle, 1.5 * least * 2**30).num_replicas(2, 7, 16_384, factor=3.0) == 1
    torch.testing.assert_close(whole.theta, parts.theta, rtol=1e-10, atol=1e-10)
    assert whole.status.tolist() == parts.status.tolist()
    assert whole.elbo_history == pytest.approx(parts.elbo_history, rel=1e-10)


def test_too_little_memory_for_one_replica_is_said() -> None:
    with pytest.raises(ValueError, match=r"one replica of 1 problems with .* particles takes about .* GiB, and 1e-05"):
        fit(toy([1.5]), "lognormal", max_memory=1e-5, num_steps=8)


def test_the_free_memory_is_plausible() -> None:
    assert 2**26 < free_bytes(torch.device("cpu")) < 2**45
