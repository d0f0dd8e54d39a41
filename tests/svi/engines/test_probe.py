"""Gradients for the checks by way of an engine's step are those of the objective itself."""

from __future__ import annotations

import pytest
import torch

from models.exponential_normal import target
from ppl_vi.guides import find_family
from ppl_vi.svi.engines.batched import BatchedEngine
from ppl_vi.svi.engines.memory import ChunkedEngine
from ppl_vi.svi.engines.probe import StepGradients, step_gradients
from ppl_vi.svi.fit import fit
from ppl_vi.svi.gradients import MeanGradients
from ppl_vi.svi.objectives import find_objective
from ppl_vi.svi.program import Program
from ppl_vi.svi.start import build_guide
from ppl_vi.target.isolation import isolated

TARGET = target([1.5, -2.0, 4.0])
REPLICAS, PARTICLES = 4, 64


@pytest.mark.parametrize(("family", "objective"), [("lognormal", "trace_elbo"), ("gamma", "renyi:0.5")])
@pytest.mark.parametrize("size", [REPLICAS, 3])
def test_a_probe_finds_the_mean_gradients(family: str, objective: str, size: int) -> None:
    wanted = find_objective(objective)
    with isolated(TARGET.dtype, seed=0):
        program = Program(TARGET, build_guide(find_family(family), TARGET))
        points = program.initial + 0.3 * torch.randn(3, 7, program.layout.size)  # 7 is no multiple of the replicas
        estimator = MeanGradients(program, wanted, PARTICLES)
        noise = estimator.noise(128, seed=3)
        probe = StepGradients(ChunkedEngine(BatchedEngine(program, wanted), size), REPLICAS, PARTICLES)
        assert probe.fits(noise)
        found = probe.gradients(points, noise)
        expected = estimator.gradients(points, noise)
    assert found.shape == (3, 7, 8, program.layout.size)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
    assert (expected.std(2) > 0).all()  # each scramble has its own noise


def test_a_gradient_that_is_not_finite_is_not_taken_for_none() -> None:
    objective = find_objective("trace_elbo")
    with isolated(TARGET.dtype, seed=0):
        program = Program(TARGET, build_guide(find_family("lognormal"), TARGET))
        points = program.initial.expand(3, 2, -1).clone()
        points[1, 0] = 800.0  # exp of it is infinite
        noise = MeanGradients(program, objective, PARTICLES).noise(64, seed=3)
        found = StepGradients(BatchedEngine(program, objective), 2, PARTICLES).gradients(points, noise)
    assert found[1, 0].isnan().all()
    assert found[[0, 0, 1, 2, 2], [0, 1, 1, 0, 1]].isfinite().all()


def test_there_is_no_probe_where_steps_are_few_particles_or_several_at_a_time() -> None:
    class Several:
        sizes = (1,)
        num_steps = 4

    assert step_gradients(Several(), 2, 256) is None  # type: ignore[arg-type]
    with isolated(TARGET.dtype, seed=0):
        program = Program(TARGET, build_guide(find_family("lognormal"), TARGET))
        objective = find_objective("trace_elbo")
        engine = BatchedEngine(program, objective)
        assert step_gradients(engine, 2, 8) is None
        assert not StepGradients(engine, 2, 100).fits(MeanGradients(program, objective, 100).noise(128, seed=0))


def test_a_check_says_the_same_with_a_probe_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"num_steps": 40, "num_particles": 64, "num_replicas": 2, "seed": 3, "engine": "batched"}
    probed = fit(TARGET, "gamma", **settings)  # type: ignore[arg-type]
    monkeypatch.setattr("ppl_vi.svi.setup.step_gradients", lambda *given: None)
    plain = fit(TARGET, "gamma", **settings)  # type: ignore[arg-type]
    assert (plain.predicted_gain > 0).all()
    torch.testing.assert_close(
        torch.from_numpy(probed.predicted_gain), torch.from_numpy(plain.predicted_gain), rtol=1e-6, atol=0
    )
